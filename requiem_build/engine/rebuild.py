"""Must a request be run, or is its result known? Three answers of one shape: Cached, Always, Predicted.

A rebuilder knows requests, records and an executor. It does not know steps, the workspace or time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from ..core.digest import EMPTY, Digest
from ..core.entries import Entry, File, Tree
from ..core.errors import CorruptObject, MissingObject
from ..core.fields import dataclass, replace
from ..core.policy import Limits
from ..core.request import Request
from ..core.result import Record, Result
from ..executors.base import Executor, Ran
from ..executors.blobs import EACH_MAX, Blobs
from ..executors.discovery import discovered_now
from ..store.layout import Store


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request to be answered. `keep_inputs` puts all it names into the store, before it is run."""

    request: Request
    offered: Mapping[str, Entry]
    limits: Limits
    keep_inputs: Callable[[], None]
    started: Callable[[], None]
    still_true: Callable[[], None]
    """Raises if what the request says of the surroundings was no longer so when the step had run."""
    asserted: tuple[str, ...] = ()
    remember: bool = True
    retries: int = 0
    unanswered: bool = False
    """Whether the store was asked just now and had no record at all."""


@dataclass(frozen=True, slots=True)
class Built:
    """`ran` is None for a hit and for a prediction; `result` is None only for a predicted miss."""

    request: Request
    result: Result | None
    record: Record | None
    ran: Ran | None
    diverged: bool = False
    same_as: str = ""
    """The step of this run that asked the same and was answered first."""
    recorded: bool = True
    """Whether the store has the record."""
    filed: Record | None = None
    """The record that the store keeps of this result; another one than `record` if it was known before."""


class Rebuilder(Protocol):
    def recall(self, request: Request, offered: Mapping[str, Entry]) -> Built | None:
        """The answer if it is known, and whole in the store. Quick: nothing is run."""

    def build(self, wanted: Wanted) -> Built:
        """The answer, by running the request."""


MakeRecord = Callable[[Ran, Wanted], Record]


def find(
    store: Store, blobs: Blobs, request: Request, offered: Mapping[str, Entry], absent: set[Digest] | None = None
) -> Built | None:
    """The record of a request, all of whose objects are there: by each known path set, newest first.

    Requests of which there is no record at all are added to `absent`.
    """
    if not request.discover:
        candidates = [request]
    else:
        sets = store.records.path_sets(request.digest)
        candidates = [request.with_discovered(discovered_now(paths, offered)) for paths in sets]
    for candidate in candidates:
        kept = store.records.find(candidate.digest)
        if kept is None and absent is not None:
            absent.add(candidate.digest)
        elif kept is not None and _is_whole(store, blobs, kept.result):
            return Built(candidate, kept.result, kept.record, None, filed=kept.record)
    return None


def _is_whole(store: Store, blobs: Blobs, result: Result) -> bool:
    """Small outputs are read and verified at once, since they are about to be laid out; large ones only looked for."""
    for captured in (result.stdout, result.stderr):
        if captured.digest != EMPTY and not blobs.stored(captured.digest):
            return False
    for entry in result.outputs.values():
        if isinstance(entry, Tree):
            return not store.missing(result)
        if isinstance(entry, File) and not is_there(blobs, entry):
            return False
    return True


def is_there(blobs: Blobs, entry: File) -> bool:
    """Whether the store has a file's content: read and verified if it is small, only looked for if it is large."""
    if entry.size > EACH_MAX:
        return blobs.objects.has(entry.digest)
    try:
        blobs.get(entry.digest)
    except (CorruptObject, MissingObject):
        return False
    return True


class Always:
    """Runs every request: the yardstick that Cached is tested against. `publish` says whether it remembers."""

    def __init__(self, executor: Executor, store: Store, make_record: MakeRecord, *, publish: bool) -> None:
        self._executor = executor
        self._store = store
        self._make_record = make_record
        self._publish = publish

    def recall(self, request: Request, offered: Mapping[str, Entry]) -> Built | None:
        return None

    def build(self, wanted: Wanted) -> Built:
        wanted.started()
        wanted.keep_inputs()
        for _ in range(wanted.retries + 1):
            ran = self._executor.execute(wanted.request, wanted.offered, wanted.limits)
            if ran.ok or ran.cancelled:
                break
        wanted.still_true()
        record = self._make_record(ran, wanted)
        diverged, filed = False, None
        if ran.ok and self._publish and wanted.remember:  # A failure is reported, never remembered.
            path_set = None if ran.discovered is None else (wanted.request.digest, ran.discovered)
            kept = self._store.outbox.add(ran.request, ran.result, record, path_set, unanswered=wanted.unanswered)
            diverged = kept.result.digest != ran.result.digest
            filed = None if diverged else kept.record
        return Built(ran.request, ran.result, record, ran, diverged, recorded=filed is not None, filed=filed)


class Cached:
    """Constructive traces: a request seen before gives the result that it gave then."""

    def __init__(self, store: Store, blobs: Blobs, otherwise: Rebuilder) -> None:
        self._store = store
        self._blobs = blobs
        self._otherwise = otherwise
        self._absent: set[Digest] = set()

    def recall(self, request: Request, offered: Mapping[str, Entry]) -> Built | None:
        return find(self._store, self._blobs, request, offered, self._absent)

    def build(self, wanted: Wanted) -> Built:
        return self._otherwise.build(replace(wanted, unanswered=wanted.request.digest in self._absent))


class Predicted:
    """Says hit or miss and runs nothing."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs

    def recall(self, request: Request, offered: Mapping[str, Entry]) -> Built | None:
        return find(self._store, self._blobs, request, offered)

    def build(self, wanted: Wanted) -> Built:
        return Built(wanted.request, None, None, None)
