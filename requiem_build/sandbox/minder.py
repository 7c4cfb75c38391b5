"""The process that minds the steps of the levels `process` and `none`: starts one at a time, ends all that it started.

It walls nothing in. At `none` (`here`) it shares the user's terminal and process group with the step. On Linux it is a
child subreaper, so a daemon that flees its parents becomes its child and is found; elsewhere it ends the step's process
group, or at `none` the command alone. When the engine goes away, so does everything here.

Standard library only; `attendant.py` starts it with a bare interpreter.
"""

from __future__ import annotations

import _signal as signal
import _socket as socket
import ctypes
import os
import sys
import time

from .processes import Stream, Tree, Watch
from .starting import TAKEN, Refusal, cause, find_program, start_command
from .wire import Channel

TYPE_CHECKING = False  # The module of that name costs a minder several milliseconds at its start.
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_CHANNEL = 3
_PR_SET_CHILD_SUBREAPER = 36


class Descendants(Tree):
    """Everything that the step started, without a pid namespace to draw the line.

    `here`: its command is in our own session and group, and may be given up with what this user may not end (`sudo`).
    """

    def __init__(self, leader: int, *, here: bool) -> None:
        super().__init__(leader)
        self._here = here

    def pids(self) -> Iterator[int]:
        return (pid for pid, _ in _descendants(os.getpid())) if sys.platform == "linux" else iter(())

    def signal(self, number: int) -> None:
        found = list(_descendants(os.getpid())) if sys.platform == "linux" else []
        if number == signal.SIGKILL:  # A group ends at once, while it forks: faster than we could look.
            for group in {group for _, group in found} - {os.getpgrp(), 0}:
                if not self._here or any(pid == group for pid, _ in found):  # Else it may be one of the user's own.
                    _send(-group, number)
        for pid, _ in found:
            _send(pid, number)
        if not found:
            _send(self.leader if self._here else -self.leader, number)

    def end(self) -> None:
        while self.status is None:
            self.reap(0)
        # A process that forks faster than we look is found in a later round.
        while True:
            self.signal(signal.SIGKILL)
            self.reap_dead()
            if not self.has_children() or (self._here and not any(map(_may_end, self.pids()))):
                return
            time.sleep(0.002)

    def has_children(self) -> bool:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True


def _may_end(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True  # It has ended: look again.
    except PermissionError:
        return False
    return True


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):  # A set-uid program is beyond this level.
        return


def _descendants(top: int) -> Iterator[tuple[int, int]]:
    """Each with its process group: at level `process` those are the step's own, since its command began a session."""
    children: dict[int, list[tuple[int, int]]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    words = file.read().rpartition(b")")[2].split()
                parent, group = int(words[1]), int(words[2])
            except (OSError, ValueError, IndexError):
                continue
            children.setdefault(parent, []).append((int(name), group))
    waiting = [top]
    while waiting:
        found = children.get(waiting.pop(), [])
        yield from found
        waiting += (pid for pid, _ in found)


def _become_reaper() -> bool:
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def _run(channel: Channel, job: dict[str, Any]) -> None:
    """Answers in any case: how the step ended, or by what it could not be run."""
    streams: list[Stream] = []
    try:
        for _ in ("stdout", "stderr"):
            streams.append(Stream(job["max_output_bytes"]))
        reply = _reply(channel, job, *streams)
    except (OSError, RuntimeError) as error:
        _leave(streams)
        channel.send(("fault", "mind the step", *cause(error)))
    else:
        _leave(streams)
        channel.send(("ended", {**reply, "changed": []}))


def _leave(streams: list[Stream]) -> None:
    os.chdir("/")
    for stream in streams:
        stream.close()


def _reply(channel: Channel, job: dict[str, Any], out: Stream, err: Stream) -> dict[str, Any]:
    here = job["here"]
    os.chdir(job["cwd"])
    try:
        leader = _start(job, 1 if here else out.writer, 2 if here else err.writer)
    except Refusal as refusal:
        return {"refused": str(refusal)}
    tree = Descendants(leader, here=here)
    try:
        for stream in (out, err):
            stream.close_writer()
        watch = Watch(channel, job["number"], tree, (out, err), job["ceilings"], job["places"])
        return {**watch.follow(job["timeout_ms"]), "tmp_full": False}
    except BaseException:  # Mostly the engine is gone. Nobody waits for the answer, but the step must not live on.
        _send(leader if here else -leader, signal.SIGKILL)  # Without a look at anything: that may be what we cannot do.
        tree.signal(signal.SIGKILL)
        tree.end()
        raise


def _start(job: dict[str, Any], out: int, err: int) -> int:
    program = find_program(job["command"][0], job["env"].get("PATH"))
    if job["stdin"] is None:
        return start_command(program, job, 0, out, err)
    stdin = os.open(job["stdin"], os.O_RDONLY | os.O_CLOEXEC)
    try:
        return start_command(program, job, stdin, out, err)
    finally:
        os.close(stdin)


def main() -> None:
    os.closerange(_CHANNEL + 1, 1 << 16)
    os.set_inheritable(_CHANNEL, False)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE}:
        signal.signal(number, signal.SIG_DFL)  # What is ignored here would be ignored in every step.
    channel = Channel(socket.socket(fileno=_CHANNEL))
    try:
        here = channel.receive()[0]["here"]
        if here:
            _stay_with_the_terminal()
        else:
            os.umask(0o022)
            _begin_session()
        channel.send(("ready", {"subreaper": _become_reaper()}))
        lent = -1
        while True:
            (kind, *rest), descriptor = channel.receive()
            if kind == "lend":
                lent = descriptor
            elif kind == "run":
                _run(channel, {**rest[0], "cgroup": descriptor, "slots": lent, "here": here})
                for given in (descriptor, lent):
                    if given >= 0:
                        os.close(given)
                lent = -1
    except EOFError:
        os._exit(0)  # The engine is gone, or has let us go.
    finally:
        os._exit(1)


def _begin_session() -> None:
    try:
        os.setsid()
    except PermissionError:  # It has one already where it could be started in one.
        return


def _stay_with_the_terminal() -> None:
    """What it sends is for the step and the engine, which then decides. It may have waited for us already."""
    for number in TAKEN:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
