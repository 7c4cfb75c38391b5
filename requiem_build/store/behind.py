"""Hashes a file in a thread of its own while another one is still writing it: what is hashed is what was written."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING

from ..core.digest import Hasher

if TYPE_CHECKING:
    from queue import SimpleQueue

_PIECE = 256 << 10  # Stays in the processor's own cache between being read and hashed.


class Behind:
    """`with` a file that is being written from its beginning: `reached` says how far it is.

    When the `with` ends, `hasher` has seen all of it. Raises RuntimeError where no thread can be had, and at the
    end whatever kept the file from being read: OSError, MemoryError.
    """

    def __init__(self, descriptor: int) -> None:
        from queue import SimpleQueue
        from threading import Thread

        self.hasher = Hasher()
        self._descriptor = descriptor
        self._reached: SimpleQueue[int | None] = SimpleQueue()
        self._failure: OSError | MemoryError | None = None
        self._thread = Thread(target=self._follow, name="requiem-hash", daemon=True)
        self._thread.start()

    def reached(self, end: int) -> None:
        """Everything before `end` is written and will not change."""
        self._reached.put(end)

    def _follow(self) -> None:
        buffer = memoryview(bytearray(_PIECE))
        try:
            while (end := self._reached.get()) is not None:
                while self.hasher.size < end:
                    wanted = buffer[: end - self.hasher.size]
                    filled = os.preadv(self._descriptor, [wanted], self.hasher.size)
                    if filled == 0:
                        raise OSError(f"a file of {end} bytes ends after {self.hasher.size}")
                    self.hasher.update(wanted[:filled])
        except (OSError, MemoryError) as error:  # Half a file must never be taken for all of it.
            self._failure = error

    def __enter__(self) -> Behind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reached.put(None)
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure
