"""Results that wait until their objects are on the disk: one sync for all of half a second, then their records.

A crash before that leaves objects without a record, which is a miss. The steps of the run do not wait: they have
each other's results in memory. With durability `full` nothing waits here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from ..core.digest import Digest
from ..core.errors import EnvironmentFault, RequiemError
from ..core.fields import dataclass, replace
from ..core.request import Request
from ..core.result import Record, Result
from .durability import BATCH, BATCH_S, FULL, PAUSE_MAX_S, SYNC_SHARE, sync_file_system
from .files import fault
from .records import Kept, Records, Written

PathSet = tuple[Digest, Sequence[str]]
"""What a step with `discover` read, under the request that led to it."""


@dataclass(slots=True)
class _Waiting:
    request: Request
    result: Result
    record: Record
    path_set: PathSet | None
    diverged: bool
    written: Written | None = None


class Outbox:
    """The one way in which an engine remembers. Safe for several threads; `flush` ends the run's share of it."""

    def __init__(self, root: str, records: Records, level: str, *, refusal: EnvironmentFault | None) -> None:
        self._root = root
        self._records = records
        self._level = level
        self._refusal = refusal
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._timer: threading.Thread | None = None
        self._hurry = threading.Event()
        self._failure: RequiemError | None = None
        self._news: list[Kept] = []
        self._pause_s = BATCH_S
        self._early = False
        """Whether anything was published since the last flush: what was put after that is not yet on the disk."""

    def add(
        self,
        request: Request,
        result: Result,
        record: Record,
        path_set: PathSet | None = None,
        *,
        unanswered: bool = False,
    ) -> Kept:
        """Remembers a success, soon; returns what counts for its request now: `diverged` if that is another result.

        `unanswered`: it was looked for just now, and there was nothing. What comes in between is told by `flush`.
        Raises EnvironmentFault; also for what could not be remembered before.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._failure is not None:
            raise self._failure
        if self._level == FULL:
            if path_set is not None:
                self._records.add_path_set(*path_set)
            return self._records.publish(request, result, record)
        first = None if unanswered else self._records.find(request.digest)
        diverged = first is not None and first.result.digest != result.digest
        with self._lock:
            self._waiting.append(_Waiting(request, result, record, path_set, diverged))
            if self._timer is None:
                self._hurry.clear()
                timer = threading.Thread(target=self._send_later, name="requiem-outbox", daemon=True)
                with suppress(RuntimeError, MemoryError):  # Without a thread of its own it waits for `flush`.
                    timer.start()
                    self._timer = timer
        if first is None:
            return Kept(record, request.encoded, result)
        return replace(first, diverged=diverged)

    def flush(self) -> list[Kept]:
        """Publishes all that waits. Returns the first results of requests that others answered otherwise meanwhile.

        With durability `batch` everything that this run put is on the disk then, the run's own journal too.
        Raises EnvironmentFault if anything of this run could not be remembered: then its objects have no record.
        """
        self._hurry.set()
        timer = self._timer
        if timer is not None:
            timer.join()
        self._send(last=True)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        news, self._news = self._news, []
        return news

    def _send_later(self) -> None:
        self._hurry.wait(self._pause_s)
        with self._lock:
            self._timer = None
        self._send(last=self._hurry.is_set())  # Then it is the flush's own.

    def _send(self, *, last: bool = False) -> None:
        with self._sending:
            with self._lock:
                batch, self._waiting = self._waiting, []
            try:
                self._publish(batch, sync=bool(batch) or (last and self._early))
                self._early = not last and (self._early or bool(batch))
            except RequiemError as error:  # Never tried again: a sync that failed once says nothing when it succeeds.
                self._failure = self._failure or error
            finally:
                for one in batch:
                    if one.written is not None:
                        self._records.discard(one.written)

    def _publish(self, batch: list[_Waiting], *, sync: bool) -> None:
        for one in batch:
            one.written = self._records.write(one.request, one.result, one.record)
        if sync and self._level == BATCH:
            begun = time.monotonic()
            try:
                sync_file_system(self._root)
                self._pause_s = min(PAUSE_MAX_S, max(BATCH_S, SYNC_SHARE * (time.monotonic() - begun)))
            except FileNotFoundError:
                pass  # The whole store was deleted: its objects are gone, and these records will be misses.
            except OSError as error:
                raise fault(error, "syncing the store", self._root) from error
        for one in batch:
            if one.path_set is not None:
                self._records.add_path_set(*one.path_set)
            assert one.written is not None
            kept = self._records.file(one.written)
            if kept.diverged and not one.diverged:
                self._news.append(kept)
