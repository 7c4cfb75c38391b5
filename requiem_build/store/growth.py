"""About how large is the store? Counted now and then, and in between each build adds what it wrote.

`v2/size` holds what the last collection counted and a line of each build since. An estimate only: what a
killed build wrote is missing until the next count, and what was written twice is in it twice.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from ..core.fields import dataclass
from .files import BLOCK, SHARED_BITS, NotAFile, Scratch, read_small

_BYTES_MAX = 1 << 18
SIZE_MAX = 10 << 30
"""How large a store becomes if nobody says otherwise, in bytes."""


def on_disk(size: int) -> int:
    """What a file of `size` bytes takes: whole blocks, as on nearly every file system."""
    return -(-size // BLOCK) * BLOCK


@dataclass(frozen=True, slots=True)
class Estimate:
    """`counted_at` in seconds of the epoch. `cost_ms` is what the last collection took, `built_ms` all builds since."""

    size: int
    counted_at: int
    cost_ms: int
    built_ms: int


class Growth:
    """One store's file of its size."""

    def __init__(self, base: str, scratch: Scratch) -> None:
        self._path = f"{base}/size"
        self._scratch = scratch

    def estimate(self) -> Estimate | None:
        """None if the store was never counted, or so long ago that the file grew too large. Raises OSError."""
        try:
            content = read_small(self._path, _BYTES_MAX)
            if content is None:
                return None
            first, *lines = content.decode("ascii").splitlines()
            size, counted_at, cost_ms = (int(word) for word in first.split())
            built_ms = 0
            for line in lines:
                written, lasted_ms = (int(word) for word in line.split())
                size, built_ms = size + max(0, written), built_ms + max(0, lasted_ms)
        except (NotAFile, ValueError):
            return None
        return Estimate(size, counted_at, cost_ms, built_ms)

    def begin(self) -> None:
        """A store that was made just now holds nothing: it need not be counted. Lost where it cannot be noted."""
        with suppress(OSError):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(descriptor, _mode_beside(self._path))
                os.write(descriptor, b"0 %d 0\n" % time.time())
            finally:
                os.close(descriptor)

    def add(self, written: int, lasted_ms: int) -> None:
        """A build wrote that many bytes and took that long. Lost where it cannot be noted."""
        with suppress(OSError):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(descriptor, b"%d %d\n" % (written, lasted_ms))
            finally:
                os.close(descriptor)

    def counted(self, size: int, counted_at: int, cost_ms: int) -> None:
        """The store was counted. Raises OSError."""
        temporary = self._scratch.write(b"%d %d %d\n" % (size, counted_at, cost_ms))
        try:
            os.chmod(temporary, _mode_beside(self._path))
            os.rename(temporary, self._path)
        except BaseException:
            self._scratch.discard(temporary)
            raise


def _mode_beside(path: str) -> int:
    """Who may add to the file: the group only in a shared store, others never."""
    return 0o664 if os.stat(os.path.dirname(path)).st_mode & SHARED_BITS == SHARED_BITS else 0o644
