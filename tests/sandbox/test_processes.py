"""A step is followed to its end whatever it writes meanwhile."""

from __future__ import annotations

import os
import socket
import subprocess

from requiem_build.sandbox.processes import Stream, Tree, Watch
from requiem_build.sandbox.wire import Channel


class OneProcess(Tree):
    """Signals its leader only: the other children of this test are none of its business."""

    def signal(self, number: int) -> None:
        if self.status is None:
            os.kill(self.leader, number)

    def end(self) -> None:
        _, self.status, _ = os.wait4(self.leader, 0)

    def reap_dead(self) -> None:
        pass


class Endless(Stream):
    """Output that is always there, and more of it."""

    def __init__(self) -> None:
        super().__init__(10)
        os.close(self.reader)
        self.reader = os.open("/dev/zero", os.O_RDONLY)

    def drain(self) -> None:
        pass


def test_a_deadline_is_kept_though_there_is_always_something_to_read():
    process = subprocess.Popen(["sleep", "60"])
    streams = (Endless(), Stream(10))
    ours, theirs = socket.socketpair()
    streams[1].close_writer()
    try:
        reply = Watch(Channel(ours), 1, OneProcess(process.pid), streams, {}).follow(100)
    finally:
        process.kill()
        process.returncode = 0  # It has been waited for.
        for end in (ours, theirs, *streams):
            end.close()
    assert reply["timed_out"]
    assert os.waitstatus_to_exitcode(reply["status"]) == -15
    assert reply["stdout"] == b"\0" * 10
    assert reply["stdout_truncated"]
