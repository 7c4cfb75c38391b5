"""Work that is split over processes: each part's answers come back as they are found. Knows nothing of stores.

Processes, since most of the work on small files is Python's own. They are forks, so the caller must not have
begun any thread; one whose parent is gone ends at its next answer.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ..core.errors import EnvironmentFault, RequiemError
from .files import fault

Answer = Callable[[Any], None]
"""Hands a value that JSON can hold to the parent."""


def fan_out(count: int, work: Callable[[int, Answer], None]) -> Iterator[Any]:
    """Runs `work(number, answer)` for each number below `count`, and gives what they answer, in any order.

    Raises EnvironmentFault if one of them ends before its work does.
    """
    children: dict[int, int] = {}
    try:
        for number in range(count):
            _fork(number, work, children)
        yield from _answers(children)
    finally:
        for descriptor, pid in children.items():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(descriptor)


def _fork(number: int, work: Callable[[int, Answer], None], children: dict[int, int]) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        children[read] = pid
        return
    code = 1
    try:
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(name, signal.SIG_DFL)
        for descriptor in (read, *children):
            os.close(descriptor)
        with os.fdopen(write, "wb") as pipe:

            def answer(value: Any) -> None:
                pipe.write(json.dumps(value).encode() + b"\n")
                pipe.flush()

            try:
                work(number, answer)
                code = 0
            except RequiemError as error:
                answer({"error": error.what, "facts": error.facts, "hint": error.hint})
            except OSError as error:
                found = fault(error, "doing a part of the work", str(error.filename or ""))
                answer({"error": found.what, "facts": found.facts, "hint": found.hint})
    finally:
        os._exit(code)


def _answers(children: dict[int, int]) -> Iterator[Any]:
    with selectors.DefaultSelector() as selector:
        rest = dict.fromkeys(children, b"")
        for descriptor in children:
            selector.register(descriptor, selectors.EVENT_READ)
        while children:
            for key, _ in selector.select():
                descriptor = key.fd
                piece = os.read(descriptor, 1 << 16)
                if not piece:
                    selector.unregister(descriptor)
                    os.close(descriptor)
                    _, status = os.waitpid(children.pop(descriptor), 0)
                    if status:
                        raise EnvironmentFault(
                            "a process that was to help has ended before its work was done",
                            hint="it was killed (out of memory?), or what it said stands above: run the same again",
                        )
                    continue
                *lines, rest[descriptor] = (rest[descriptor] + piece).split(b"\n")
                for line in lines:
                    value = json.loads(line)
                    if isinstance(value, dict) and "error" in value:
                        facts = [(str(label), str(text)) for label, text in value["facts"]]
                        raise EnvironmentFault(str(value["error"]), facts=facts, hint=value["hint"])
                    yield value
