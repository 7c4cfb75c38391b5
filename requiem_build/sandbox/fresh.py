"""A worker that gives each step namespaces of its own: right for every step, whatever it is shown.

For each job a thread that is thrown away afterwards takes private mount and IPC namespaces, stages the
inputs, gives up every right and spawns the command: on Linux all of these belong to the thread. Python is
never forked for a step without resource limits, because a fork of even a small interpreter costs more than
all the walls together. Standard library only; see `worker.py`.
"""

from __future__ import annotations

import fcntl
import os

from . import syscalls
from .boot import Boot, raise_loopback
from .serving import Serving
from .shelf import Shelf
from .staging import Preparation
from .threads import in_thread
from .wire import Channel

TYPE_CHECKING = False  # The module of that name costs a worker several milliseconds at its start.
if TYPE_CHECKING:
    from typing import Any


class Fresh(Serving):
    """What was mounted for a job goes away with its thread and its processes."""

    def __init__(self, channel: Channel, boot: Boot, confinement: syscalls.Filter | None) -> None:
        super().__init__(channel, boot)
        self._confinement = confinement
        self._shelf = Shelf()

    def run(self, job: dict[str, Any]) -> None:
        preparation = Preparation(self.boot, self._confinement, self._shelf)
        if job["terminal"] is not None:
            job["terminal"] = self._open_terminal()

        def start(out: int, err: int) -> None:
            failure: list[BaseException] = []
            for preparation.applying in job["shelf"]:
                getattr(self._shelf, preparation.applying[0])(*preparation.applying[1:])
            in_thread(preparation.start, failure, job, out, err)
            if failure:
                raise failure[0]

        try:
            self.follow(job, preparation, start)
        finally:
            preparation.release()
        preparation.remove_mountpoints()
        for number in job["dropped"]:  # As long as to make so many files: not before anybody has his answer.
            self._shelf.drop(number)
        if self.boot.network_was_used():
            self._renew_network()

    def _open_terminal(self) -> str:
        """One of the view's own; the engine is given its other side."""
        terminal = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(terminal, 0x40045431, bytes(4))  # TIOCSPTLCK: unlocked.
            number = int.from_bytes(fcntl.ioctl(terminal, 0x80045430, bytes(4)), "little")  # TIOCGPTN
            self.channel.send(("terminal",), terminal)
        finally:
            os.close(terminal)
        return f"/dev/pts/{number}"

    def _renew_network(self) -> None:
        """What the last step did in it would be seen by the next one."""
        syscalls.unshare(syscalls.CLONE_NEWNET)
        raise_loopback()
        self.boot.watch_network()
