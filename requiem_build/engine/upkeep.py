"""After a build, when all has been said: notes what the store is used for, and keeps it within its size.

Of all the time that builds take, collecting takes at most a tenth: it waits until they have lasted ten times as
long as the last collection did, then it is done here, in one go, and may be interrupted at any moment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from ..core.digest import Digest
from ..core.errors import Busy, EnvironmentFault
from ..core.fields import dataclass
from ..store.growth import Estimate
from ..store.layout import Store
from ..store.records import Records
from .site import Site

SHARE = 0.1
ROOM = 0.9
"""How full a store is left: collecting down to the very bound would collect again after each build."""

USED_EVERY_S = 86400
RECOUNT_S = 7 * 86400
LIMIT_S = 5.0
"""No exit is put off for longer."""


class OutOfTime(Exception):
    """The collection took too long to go on with now."""


@dataclass(frozen=True, slots=True)
class Upkeep:
    """`used` gives the requests whose results the workspace is in use of, by `records`; `size_max` in bytes."""

    store: Store
    records: Records
    site: Site
    size_max: int
    lasted_ms: int
    used: Callable[[], Sequence[Digest]]

    def run(self, notice: Callable[[str], None]) -> None:
        """Never raises but KeyboardInterrupt: a store that cannot be kept in order is no fault of the build's."""
        if self.store.refusal is not None:
            return
        with suppress(OSError):
            self._note_used()
        with suppress(EnvironmentFault, OSError, Busy, OutOfTime):
            estimate = self.store.growth.estimate()
            if self.store.scratch.written:
                self.store.growth.add(self.store.scratch.written, self.lasted_ms)
            if self._is_due(estimate):
                self._collect(estimate, notice)

    def _note_used(self) -> None:
        """Once a day what is only ever fresh counts as used: its records are not read, but they are wanted."""
        mark = os.path.join(self.site.dot, "used")
        now = time.time()
        with suppress(FileNotFoundError):
            if 0 <= now - os.stat(mark).st_mtime < USED_EVERY_S:
                return
        with open(mark, "wb"):
            os.utime(mark)
        for request_digest in self.used():
            self.records.note_used(request_digest)

    def _is_due(self, estimate: Estimate | None) -> bool:
        if estimate is None:
            return True  # Never counted.
        large = estimate.size + self.store.scratch.written > self.size_max
        old = time.time() - estimate.counted_at > RECOUNT_S
        earned_ms = SHARE * (estimate.built_ms + self.lasted_ms)
        return (large or old) and earned_ms >= estimate.cost_ms

    def _collect(self, estimate: Estimate | None, notice: Callable[[str], None]) -> None:
        from ..store import gc

        begun = time.monotonic()

        def tick() -> None:
            if time.monotonic() - begun > LIMIT_S:
                raise OutOfTime

        with gc.alone(self.store, wait=False):
            try:
                done = gc.collect(self.store, gc.Bounds(self.size_max, room=ROOM), tick=tick)
            except OutOfTime:
                size, at = (estimate.size, estimate.counted_at) if estimate else (0, round(time.time()))
                self.store.growth.counted(size, at, round(2 * LIMIT_S * 1000))  # The next try must be earned.
                notice("the store is over its size and too large to be cleaned in passing: run `requiem cas gc`")
                return
        if done.freed:
            notice(
                f"the store had grown over its size: {done.freed >> 20} MiB of what was used least recently are gone"
            )
