"""What all processes of a step use together. The kernel limits each process; what they add up to is looked at here.

By /proc, every 50 ms, and only for steps with such a limit. Standard library only; see `worker.py`.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False  # The module of that name costs a worker several milliseconds at its start.
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .processes import Tree

EVERY_S = 0.05
_PART_OF_TIME = 10
"""Looking at files takes no more than a tenth of a step's time."""
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Gauge:
    """`ceilings` holds those of `cpu_ms`, `memory` (bytes) and `processes` (threads count) that there are.

    Also `tmp` (bytes) and `tmp_names`, for the directories `places`.
    """

    def __init__(self, tree: Tree, ceilings: dict[str, int], places: Sequence[str] = ()) -> None:
        self._tree = tree
        self._ceilings = ceilings
        self._places = places
        self._next = 0.0
        self._next_in_places = 0.0
        self.hit = ""
        """The limit that was passed, as results name it."""
        self.reached = ""
        """A limit that the kernel holds, and that all of the step together have come up to."""

    def is_time(self, now: float) -> bool:
        return bool(self._ceilings) and now >= self._next

    def wait_ms(self, now: float) -> float | None:
        """How long until the next look; None if there is nothing to look at."""
        return max(0.0, (self._next - now) * 1000) if self._ceilings else None

    def look(self) -> bool:
        """Whether a limit is passed now."""
        pids = [pid for pid in self._tree.pids() if pid != self._tree.keeper]
        cpu_s, resident, tasks = self._tree.user_s + self._tree.system_s, 0, 0
        for pid in pids:
            seen = _stat(pid)
            if seen is not None:
                cpu_s, resident, tasks = cpu_s + seen[0], resident + seen[1], tasks + seen[2]
        most = self._ceilings.get("processes")
        if most is not None and tasks >= most:
            self.reached = "processes"
        if most is not None and tasks > most:
            self.hit = "processes"
        most = self._ceilings.get("memory")
        if most is not None and resident > most and _share_of(pids) > most:
            self.hit = "memory"
        self._look_at_time(cpu_s)
        self._look_into_places(pids)
        now = time.monotonic()
        self._next = now + EVERY_S
        return bool(self.hit)

    def look_back(self) -> None:
        """When all are dead: what ended between two looks counts too."""
        self._look_at_time(self._tree.user_s + self._tree.system_s)
        self._next_in_places = 0.0
        self._look_into_places(())

    def _look_into_places(self, pids: Iterable[int]) -> None:
        begun = time.monotonic()
        if "tmp" not in self._ceilings or begun < self._next_in_places:
            return
        from .room import is_passed  # Only few steps need it.

        if is_passed(self._places, self._ceilings["tmp"], self._ceilings["tmp_names"], pids):
            self.hit = self.hit or "tmp"
        now = time.monotonic()
        self._next_in_places = now + _PART_OF_TIME * (now - begun)  # Many files take their time.

    def _look_at_time(self, cpu_s: float) -> None:
        if "cpu_ms" in self._ceilings and cpu_s * 1000 > self._ceilings["cpu_ms"]:
            self.hit = self.hit or "cpu_time"


def _stat(pid: int) -> tuple[float, int, int] | None:
    """(seconds of processor time with that of waited-for children, resident bytes, threads)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
        # The first of these words is the third of proc(5).
        ticks = sum(int(word) for word in words[11:15])
        return ticks * _TICK_S, int(words[21]) * _PAGE, int(words[17])
    except (OSError, ValueError, IndexError):
        return None  # It has just ended.


def _share_of(pids: Iterable[int]) -> int:
    """Bytes of memory with each shared page counted once: children share most of theirs with their parent."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                total += sum(int(line.split()[1]) * 1024 for line in file if line.startswith(b"Pss:"))
        except (OSError, ValueError, IndexError):
            continue
    return total
