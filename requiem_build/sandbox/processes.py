"""The processes of one step: their output, their deadline, their end. It does not know how they were walled in.

Standard library only; see `worker.py`.
"""

from __future__ import annotations

import _signal as signal
import os
import select
import time

from .gauge import Gauge
from .wire import Channel

TYPE_CHECKING = False  # The module of that name costs a worker several milliseconds at its start.
if TYPE_CHECKING:
    import resource
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    Used = tuple[float, float, int]
    """Seconds of processor time, the user's and the system's, and the largest resident size in KiB."""

GRACE_S = 2.0
"""Between TERM and KILL."""

_CHUNK = 65536

_PATIENCE_MS = 1000.0 if hasattr(os, "pidfd_open") else 20.0
"""Orphans that end while the command runs on are ours to reap, and without pidfds the command's own end is, too."""


class Stream:
    """One output of the step: keeps the first bytes, counts none, drops the rest as it comes."""

    def __init__(self, most: int) -> None:
        self.reader, self.writer = os.pipe()  # Closed on execution; the step's end must look like any other pipe.
        self._blocks = True
        self._room = most
        self._kept: list[bytes] = []
        self.truncated = False
        self.open = True

    def pull(self) -> bool:
        """Takes what is there. False when there is nothing now."""
        if self._blocks:  # The step may have read it itself, by /proc, since we were told of it.
            os.set_blocking(self.reader, False)
            self._blocks = False
        try:
            chunk = os.read(self.reader, _CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            self.open = False
            return False
        if len(chunk) > self._room:
            self.truncated = True
            chunk = chunk[: self._room]
        if chunk:
            self._kept.append(chunk)
            self._room -= len(chunk)
        return True

    def drain(self) -> None:
        while self.open and self.pull():
            pass

    def kept(self) -> bytes:
        return b"".join(self._kept)

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        self.close_writer()
        os.close(self.reader)


class Tree:
    """The processes of one step: everything in this pid namespace but ourselves.

    With `kept` the leader is no process of the step, but the keeper that started its command (`keeper.py`): what it
    uses is not the step's, and `kept` says what the command used, when both have ended. A keeper that was killed says
    nothing; whether it had waited for its command, or left that to us, was up to chance.
    """

    def __init__(self, leader: int, *, kept: Callable[[], Used | None] | None = None) -> None:
        self.leader = leader
        self.keeper = 0 if kept is None else leader
        self._kept = kept
        self._keeper_s = 0.0
        self.status: int | None = None
        self.killed = 0
        self.user_s = 0.0
        self.system_s = 0.0
        self.max_rss_kib = 0

    def reap(self, flags: int) -> bool | None:
        """One dead process. False when there is none now, None when there is no child at all."""
        try:
            wanted = -1 if self._kept is None else self._next_ended(flags)
            if wanted == 0:
                return False
            pid, status, used = os.wait4(wanted, flags)
        except ChildProcessError:
            return None
        if pid == 0:
            return False
        user_s, system_s, max_rss_kib = used.ru_utime, used.ru_stime, used.ru_maxrss
        if self._kept is not None and pid == self.keeper:
            user_s, system_s, max_rss_kib = self._kept() or _without(used, self._keeper_s)
        self.user_s += user_s
        self.system_s += system_s
        self.max_rss_kib = max(self.max_rss_kib, max_rss_kib)
        if pid == self.leader:
            self.status = status
        elif self.status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            self.killed += 1
        return True

    def _next_ended(self, flags: int) -> int:
        """The pid of a dead child, or 0 if there is none now. Of a keeper it is noted what it used itself."""
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | flags)
        if ended is None:
            return 0
        if ended.si_pid == self.keeper:
            self._keeper_s = _used_by_itself(self.keeper)
        return ended.si_pid

    def reap_dead(self) -> None:
        while self.reap(os.WNOHANG):
            pass

    def pids(self) -> Iterable[int]:
        """All that live now, and what nobody has waited for."""
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]

    def signal(self, number: int) -> None:
        try:
            os.kill(-1, number)  # From PID 1: everyone in the namespace, whatever session or group it fled to.
        except ProcessLookupError:
            return

    def end(self) -> None:
        """Nothing is left when this returns. A process cannot escape by forking: fork fails once KILL is pending."""
        while self.status is None:
            self.reap(0)
        found: bool | None = True
        while found:
            found = self.reap(os.WNOHANG)
        if found is None:  # Whoever loses his parent becomes a child of PID 1, so nobody else is here.
            return
        self.signal(signal.SIGKILL)
        while self.reap(0):
            pass


class Watch:
    """Waits for a step to end: its exit, its deadline, a cancellation, or the end of the engine."""

    def __init__(
        self,
        channel: Channel,
        number: int,
        tree: Tree,
        streams: tuple[Stream, Stream],
        ceilings: dict[str, int],
        places: Sequence[str] = (),
    ) -> None:
        self.gauge = Gauge(tree, ceilings, places)
        self.channel = channel
        self.number = number
        self.tree = tree
        self.streams = {stream.reader: stream for stream in streams}
        self.timed_out = False
        self.cancelled = False
        self._kill_at: float | None = None

    def follow(self, timeout_ms: int | None) -> dict[str, Any]:
        """Returns when every process of the step is dead and all that they wrote has been read."""
        self._until_end(timeout_ms)
        self.tree.end()
        self.gauge.look_back()
        for stream in self.streams.values():
            stream.drain()
        out, err = self.streams.values()
        return {
            "status": self.tree.status,
            "stdout": out.kept(),
            "stderr": err.kept(),
            "stdout_truncated": out.truncated,
            "stderr_truncated": err.truncated,
            "leftovers": self.tree.killed,
            "timed_out": self.timed_out,
            "hit": self.gauge.hit,
            "reached": self.gauge.reached,
            "cancelled": self.cancelled,
            "user_ms": round(self.tree.user_s * 1000),
            "system_ms": round(self.tree.system_s * 1000),
            "max_rss_kib": self.tree.max_rss_kib,
        }

    def _until_end(self, timeout_ms: int | None) -> None:
        deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        ended = _open_process(self.tree.leader)
        poll = select.poll()
        for descriptor in (ended, self.channel.fileno(), *self.streams):
            if descriptor >= 0:
                poll.register(descriptor, select.POLLIN)
        try:
            while True:
                while self.channel.pending():
                    self._on_message(self.channel.receive()[0])
                happened = dict(poll.poll(self._patience_ms(deadline)))
                if ended in happened or self.tree.status is not None:
                    self._close_ended(happened)
                    return
                self._on_time(deadline)
                if not happened:
                    self.tree.reap_dead()
                for descriptor in happened:
                    if descriptor == self.channel.fileno():
                        self._on_message(self.channel.receive()[0])
                    elif not self.streams[descriptor].pull() and not self.streams[descriptor].open:
                        poll.unregister(descriptor)
        finally:
            if ended >= 0:
                os.close(ended)

    def _close_ended(self, happened: dict[int, int]) -> None:
        """Nothing is read from a stream that is empty and that nobody has open to write."""
        for descriptor, stream in self.streams.items():
            if happened.get(descriptor) == select.POLLHUP:
                stream.open = False

    def _patience_ms(self, deadline: float | None) -> float:
        next_event = self._kill_at if self._kill_at is not None else deadline
        now = time.monotonic()
        waits = [_PATIENCE_MS, self.gauge.wait_ms(now)]
        if next_event is not None:
            waits.append(max(0.0, (next_event - now) * 1000 + 1))
        return min(wait for wait in waits if wait is not None)

    def _on_time(self, deadline: float | None) -> None:
        now = time.monotonic()
        if self.gauge.is_time(now) and self.gauge.look():
            self.tree.signal(signal.SIGKILL)
        elif self._kill_at is not None:
            if now >= self._kill_at:
                self.tree.signal(signal.SIGKILL)
        elif deadline is not None and now >= deadline:
            self.timed_out = True
            self._terminate(now)

    def _on_message(self, message: tuple[Any, ...]) -> None:
        kind, number, *rest = message
        if kind != "cancel" or number != self.number:
            return  # It is about a job before this one.
        (kill,) = rest
        self.cancelled = True
        if kill:
            self.tree.signal(signal.SIGKILL)
        elif self._kill_at is None:
            self._terminate(time.monotonic())

    def _terminate(self, now: float) -> None:
        self.tree.signal(signal.SIGTERM)
        self.tree.signal(signal.SIGCONT)  # A stopped process could not act on TERM.
        self._kill_at = now + GRACE_S


def _used_by_itself(pid: int) -> float:
    """Seconds of processor time of a process that has ended and was not waited for, without those of its children."""
    return time.clock_gettime(~pid << 3 | 2)  # Its clock: see clock_getcpuclockid(3).


def _without(used: resource.struct_rusage, own_s: float) -> Used:
    """What is left of it for the children: how much the user's, is by their shares; of their size nothing is known."""
    total_s = used.ru_utime + used.ru_stime
    part = max(0.0, total_s - own_s) / total_s if total_s else 0.0
    return used.ru_utime * part, used.ru_stime * part, 0


def _open_process(pid: int) -> int:
    """A descriptor that becomes readable when the process ends, or -1 where there is no such thing."""
    return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1
