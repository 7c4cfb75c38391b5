"""May one more step run now? Job slots of make, the machine's load and its free memory: none of it is in any digest.

At least one step always runs, whatever the machine says, so that a build always ends.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from ..core.fields import dataclass
from .jobserver import Jobserver, Unavailable, find_jobserver
from .options import Options
from .settings import Settings

LOOK_EVERY_S = 0.1


class Admission:
    """A gate for worker threads. `max_load` is a load average, `min_memory` the bytes that must stay available.

    `cancelled` ends every wait: what is let in then is ended at once.
    """

    def __init__(
        self,
        *,
        jobserver: Jobserver | None = None,
        max_load: float | None = None,
        min_memory: int | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._jobserver = jobserver
        self._max_load = max_load
        self._min_memory = min_memory
        self._cancelled = cancelled
        self._changed = threading.Condition()
        self._running = 0
        self._own_slot_taken = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Waits until one more may run, and holds its place."""
        while (leave := self._enter(LOOK_EVERY_S)) is None:
            pass
        try:
            yield
        finally:
            leave()

    def try_enter(self) -> Callable[[], None] | None:
        """As entering, without waiting: what leaves again, or None if there is no room now."""
        return None if self._cancelled() else self._enter(0)

    def _enter(self, wait_s: float) -> Callable[[], None] | None:
        """What leaves again; None if there was no room for so long. The first step takes our own slot of make's."""
        with self._changed:
            if not (self._running == 0 or self._cancelled() or self._has_room()):
                self._changed.wait(wait_s)
                return None
            if self._jobserver is None or not self._own_slot_taken or self._cancelled():
                self._own_slot_taken = True
                self._running += 1
                return partial(self._leave, None)
        token = self._jobserver.take(wait_s)
        if token is None:
            return None
        with self._changed:
            self._running += 1
        return partial(self._leave, token)

    def _leave(self, token: bytes | None) -> None:
        with self._changed:
            self._running -= 1
            if token is None:
                self._own_slot_taken = False
            self._changed.notify_all()
        if token is not None:
            assert self._jobserver is not None
            self._jobserver.give_back(token)

    def _has_room(self) -> bool:
        if self._max_load is not None and os.getloadavg()[0] >= self._max_load:
            return False
        if self._min_memory is None:
            return True
        available = available_memory()
        return available is None or available >= self._min_memory

    def close(self) -> None:
        if self._jobserver is not None:
            self._jobserver.close()


def available_memory() -> int | None:
    """Bytes that can still be had without swapping: the kernel's estimate, or what our control group leaves."""
    found = []
    with suppress(OSError, ValueError, StopIteration), open("/proc/meminfo", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("MemAvailable:"))
        found.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError):
        limit, used = _number("memory.max"), _number("memory.current")
        found.append(max(0, limit - used))
    return min(found, default=None)


def _number(name: str) -> int:
    with open(f"/sys/fs/cgroup/{name}", encoding="ascii") as file:
        return int(file.read())  # `max` is a ValueError: no limit.


@dataclass(frozen=True, slots=True)
class Gate:
    """`refusal` says why make's job slots cannot be shared, though they were offered."""

    admission: Admission | None
    refusal: str = ""


def gate(options: Options, settings: Settings, *, cancelled: Callable[[], bool]) -> Gate:
    """What may run at once beside -j, where make, the flags or the user's configuration ask for a limit."""
    max_load = settings.max_load if options.max_load is None else options.max_load
    named = "jobserver" in options.environment.get("MAKEFLAGS", "") and options.jobs is None
    if not (named or max_load or settings.min_memory):
        return Gate(None)
    jobserver, refusal = None, ""
    try:
        jobserver = find_jobserver(options.environment) if named else None
    except Unavailable as reason:
        refusal = str(reason)
    admission = Admission(jobserver=jobserver, max_load=max_load, min_memory=settings.min_memory, cancelled=cancelled)
    return Gate(admission, refusal)
