"""The process inside the walls: applies lists of operations and runs one step at a time. It decides nothing.

`linux.py` starts it with a bare interpreter (`-I -S`), tells it by operations how to wall itself in (`boot.py`),
and then sends jobs (`staging.py`, `processes.py`). It becomes PID 1 of its own namespaces, so whatever happens
to it ends everything it started.

There are two kinds: `fresh.py` gives each step namespaces of its own, `reused.py` shows all steps one view and
takes away after each what it left.

These modules use the standard library only, and import everything before the first operation: the files of
the interpreter may lie where the unprivileged user of the worker cannot read them. They import little, and of
`signal` and `socket` only the C part, because each boot pays for it.
"""

from __future__ import annotations

import _socket
import gc
import os

from . import syscalls
from .boot import CHANNEL, Boot
from .fresh import Fresh
from .reused import Reused
from .serving import Serving
from .starting import cause
from .wire import Channel

TYPE_CHECKING = False  # The module of that name costs a worker several milliseconds at its start.
if TYPE_CHECKING:
    from typing import Any


def main() -> None:
    os.closerange(CHANNEL + 1, 1 << 20)
    os.set_inheritable(CHANNEL, False)
    os.umask(0o022)
    channel = Channel(_socket.socket(fileno=CHANNEL))
    try:
        setup = channel.receive()[0]
        engine = os.pidfd_open(setup["engine"])
        if os.getppid() != setup["engine"]:
            raise EOFError
        boot = Boot(engine)
        if setup["held"]:
            from . import keeper  # noqa: F401 - it cannot be found any more once the walls are up
        for operation in setup["operations"]:
            try:
                getattr(boot, operation[0])(*operation[1:])
            except BaseException as error:
                channel.send(("unavailable", repr(operation)[:400], *cause(error)))
                raise EOFError from error
        channel.send(("ready", boot.facts))
        worker = _make(channel, boot, setup)
        del setup
        gc.freeze()
        worker.serve()
    except EOFError:
        os._exit(0)  # The engine is gone, or has let us go.
    finally:
        os._exit(
            1
        )  # Something that no step should bring about: whoever waits for an answer is told that there is none.


def _make(channel: Channel, boot: Boot, setup: dict[str, Any]) -> Serving:
    if setup["reused"] is not None:
        return Reused(channel, boot, *setup["reused"])
    return Fresh(channel, boot, syscalls.Filter(setup["filter"]))
