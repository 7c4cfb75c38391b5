"""The engine's hold on one worker process: starts it, carries jobs to it one at a time, ends it.

It does not know what the worker does with a job.
"""

from __future__ import annotations

import _socket as socket
import contextlib
import errno
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ..core.errors import EnvironmentFault
from .starting import TAKEN
from .wire import Channel

_START = """
import sys, types
package = types.ModuleType("walls")
package.__path__ = [{folder!r}]
sys.modules["walls"] = package
from walls.{module} import main
main()
"""
"""The worker's modules as a package of their own: this one would import all of Requiem with them."""

_FILES_ENOUGH = 64
"""A worker that may open so many never ended for lack of them."""


class Attendant:
    """Raises EOFError when the worker ends before it has answered `setup`; `greeting` is that answer.

    `before` are words that go before the worker's own command: a program that executes what follows it. `here`: it has
    our terminal, streams and process group, and must let the terminal's signals pass.
    """

    def __init__(
        self, module: str, setup: Mapping[str, Any], before: tuple[str, ...] = (), *, here: bool = False
    ) -> None:
        self._sending = threading.Lock()
        self._ending = threading.Lock()
        self._number = 0
        self._running = False
        self.greeting: tuple[Any, ...] = ()
        begun = None if before or here else AHEAD.take(module)
        if begun is not None:
            with contextlib.suppress(EOFError):  # It was killed while it waited.
                self._greet(*begun, {**setup, "here": False})
        if not self.greeting:
            self._greet(*_start(module, before, here=here), {**setup, "here": here})

    def _greet(self, pid: int, channel: Channel, setup: Mapping[str, Any]) -> None:
        self._pid, self._channel = pid, channel
        try:
            channel.send({"engine": os.getpid(), **setup})
            self.greeting = channel.receive()[0]
        except BaseException:
            self.end()
            raise

    def run(
        self,
        job: Mapping[str, Any],
        descriptor: int | None = None,
        on_terminal: Callable[[int], None] | None = None,
        slots: int = -1,
    ) -> tuple[tuple[Any, ...], int]:
        """The worker's answer and the descriptor that came with it, or -1. Whatever is raised, the worker is ended.

        `descriptor` goes with the job, `slots` is for the step itself. `on_terminal` is given the terminal that comes
        before the answer of a job that has one.
        """
        try:
            with self._sending:
                self._number += 1
                self._running = True
                if slots >= 0:
                    self._channel.send(("lend",), slots)
                self._channel.send(("run", {"number": self._number, **job}), descriptor)
            answer, came = self._channel.receive()
            if answer[0] == "terminal" and on_terminal is not None:
                on_terminal(came)
                answer, came = self._channel.receive()
            return answer, came
        except (EOFError, OSError) as error:
            raise EnvironmentFault(
                "the sandbox's worker died",
                facts=[("step", " ".join(job["command"])[:200]), ("worker", self.end())],
                hint=_why_it_may_have_died(),
            ) from error
        except BaseException:
            # What still runs in there must not outlive the caller's interest in it.
            self.end()
            raise
        finally:
            with self._sending:
                self._running = False

    def cancel(self, *, kill: bool) -> None:
        with self._sending:
            if self._running:
                # If the worker is gone, so is what was to be cancelled.
                with contextlib.suppress(EOFError):
                    self._channel.send(("cancel", self._number, kill))

    def clean(self) -> None:
        """What the last job left is no longer needed."""
        with self._sending, contextlib.suppress(EOFError):  # If the worker is gone, so is what it would tidy up.
            if not self._running:
                self._channel.send(("clean", self._number))

    @property
    def ended(self) -> bool:
        return self._pid == 0

    def end(self) -> str:
        """Ends the worker and waits for it. How it ended, in words. Idempotent."""
        with self._ending:
            pid, self._pid = self._pid, 0
            return _end(pid, self._channel) if pid else "ended before"


class Ahead:
    """Workers that were started before it is known what for: an interpreter needs longer to start than to be told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun: list[tuple[str, int, Channel]] = []

    def start(self, module: str, count: int) -> None:
        """Where that cannot be done it will be told by the one who needs a worker."""
        with self._lock, contextlib.suppress(OSError):
            for _ in range(count):
                self._begun.append((module, *_start(module, ())))

    def take(self, module: str) -> tuple[int, Channel] | None:
        with self._lock:
            for index, (kind, pid, channel) in enumerate(self._begun):
                if kind == module:
                    del self._begun[index]
                    return pid, channel
        return None

    def end(self) -> None:
        """Those that nobody needed."""
        with self._lock:
            begun, self._begun = self._begun, []
        for _, pid, channel in begun:
            _end(pid, channel)


AHEAD = Ahead()
"""Of this process, as its children are."""


def _start(module: str, before: tuple[str, ...], *, here: bool = False) -> tuple[int, Channel]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        pid = _spawn(module, theirs.fileno(), before, here=here)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return pid, Channel(ours)


def _end(pid: int, channel: Channel) -> str:
    channel.close()
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:  # Someone in this program waits for all children.
        return "ended"
    code = os.waitstatus_to_exitcode(status)
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def fault_of(answer: tuple[Any, ...]) -> EnvironmentFault:
    """What a worker tells when it could not run a job, as an error: `("fault", operation, error number, why)`."""
    _, operation, number, why = answer
    return EnvironmentFault(
        "the sandbox could not be made ready for a step",
        facts=[("operation", operation), ("error", f"{errno.errorcode.get(number, number)}: {why}")],
    )


def _spawn(module: str, end: int, before: tuple[str, ...], *, here: bool) -> int:
    code = _START.format(folder=os.path.dirname(os.path.abspath(__file__)), module=module)
    arguments = [*before, sys.executable, "-I", "-S", "-W", "ignore", "-c", code]
    channel = (os.POSIX_SPAWN_DUP2, end, 3)
    if here:  # Until it can ignore what the terminal sends, that waits.
        return os.posix_spawn(arguments[0], arguments, {}, file_actions=[channel], setsigmask=TAKEN)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        channel,
    ]
    # A session of its own: Ctrl-C in the terminal is for the engine, which then decides.
    try:
        return os.posix_spawn(arguments[0], arguments, {}, file_actions=actions, setsid=True)
    except NotImplementedError:  # A C library that cannot: older releases of macOS. The worker makes its own session.
        return os.posix_spawn(arguments[0], arguments, {}, file_actions=actions)


def _why_it_may_have_died() -> str:
    import resource

    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= allowed < _FILES_ENOUGH:
        return f"too many open files: at most {allowed} may be open here, raise that with `ulimit -n`"
    return "the kernel's log may say why: out of memory, or killed by hand"
