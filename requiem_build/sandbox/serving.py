"""What every worker does: takes one job at a time, follows the step to its end, and says what it saw.

It does not know how a step is walled in: `fresh.py` and `reused.py` do. Standard library only; see `worker.py`.
"""

from __future__ import annotations

import os

from .boot import Boot
from .processes import Stream, Tree, Watch
from .staging import Staging
from .starting import Refusal, cause
from .wire import Channel

TYPE_CHECKING = False  # The module of that name costs a worker several milliseconds at its start.
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Serving:
    """The engine's end of the work: `serve` until the engine goes away (EOFError)."""

    def __init__(self, channel: Channel, boot: Boot) -> None:
        self.channel = channel
        self.boot = boot
        self._slots = -1
        """What the next job's step is lent."""

    def serve(self) -> None:
        while True:
            (kind, *rest), descriptor = self.channel.receive()
            if kind == "run":
                lent, self._slots = self._slots, -1
                try:
                    self.run({**rest[0], "cgroup": descriptor, "slots": lent})
                finally:
                    for given in (descriptor, lent):
                        if given >= 0:
                            os.close(given)
            elif kind == "lend":
                self._slots = descriptor
            elif kind == "clean":
                self.clean(rest[0])
            # A late cancellation of a job that has already ended: nothing to do.

    def run(self, job: dict[str, Any]) -> None:
        raise NotImplementedError

    def clean(self, number: int) -> None:
        """The engine has taken what it wants of that job's workspace."""

    def follow(self, job: dict[str, Any], staging: Staging, start: Callable[[int, int], None]) -> None:
        """Starts a step with these descriptors as its stdout and stderr, waits until nothing of it is left, answers."""
        streams = (Stream(job["max_output_bytes"]), Stream(job["max_output_bytes"]))
        try:
            try:
                start(streams[0].writer, streams[1].writer)
            except Refusal as refusal:
                self.channel.send(("ended", {"refused": str(refusal), "changed": []}), staging.workspace)
                return
            except BaseException as error:
                self.channel.send(("fault", repr(staging.applying)[:400], *cause(error)))
                return
            for stream in streams:
                stream.close_writer()
            tree = Tree(staging.pid, kept=None if staging.account < 0 else staging.used_by_command)
            watch = Watch(self.channel, job["number"], tree, streams, job["ceilings"])
            reply = watch.follow(job["timeout_ms"])
            reply["changed"] = staging.changed()
            reply["tmp_full"] = reply["status"] != 0 and (is_full(staging.tmp) or is_full(staging.shared))
            self.channel.send(("ended", reply), staging.workspace)
        finally:
            for stream in streams:
                stream.close()
            if staging.stdin != self.boot.null:
                os.close(staging.stdin)


def is_full(directory: int) -> bool:
    seen = os.fstatvfs(directory)
    return seen.f_blocks > 0 and (seen.f_bavail * seen.f_frsize < 65536 or seen.f_favail == 0)
