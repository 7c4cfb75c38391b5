"""A step is followed to its end whatever it writes meanwhile."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from requiem_build.sandbox.processes import Stream, Tree, Watch
from requiem_build.sandbox.wire import Channel

ROOT = Path(__file__).parents[2]


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


def test_reading_never_blocks_though_the_step_took_what_we_were_told_of():
    stream = Stream(10)
    os.write(stream.writer, b"xy")
    assert stream.pull()
    assert not os.get_blocking(stream.reader)
    assert not stream.pull() and stream.open
    stream.close()


class Kept(Tree):
    """A keeper's, and without a namespace of its own."""

    def signal(self, number: int) -> None:
        raise AssertionError("nobody is left")


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def be_keeper(own_s: float, command_s: float) -> None:
    """Uses some time, waits for a command that uses more, and is killed before it could tell anyone."""
    command = os.fork()
    if command == 0:
        burn(command_s)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(command, 0)
    burn(own_s)
    os.kill(os.getpid(), signal.SIGKILL)


def follow_a_killed_keeper() -> None:
    """In a process of its own: every child of this one is taken for one of the step."""
    keeper = os.fork()
    if keeper == 0:
        be_keeper(0.2, 0.1)
    tree = Kept(keeper, kept=lambda: None)
    tree.end()
    both = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(tree.user_s + tree.system_s, both.ru_utime + both.ru_stime)


@pytest.mark.skipif(sys.platform != "linux", reason="only there a step can have a keeper")
def test_what_a_command_used_is_known_though_its_keeper_died_between_waiting_and_telling():
    code = "from tests.sandbox.test_processes import follow_a_killed_keeper as follow; follow()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    used_s, with_keeper_s = map(float, done.stdout.split())
    assert 0.09 <= used_s < 0.2 <= with_keeper_s
