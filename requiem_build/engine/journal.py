"""A run's journal: every event as one JSON line, with its time. At the end it becomes an object of the store."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import IO

from ..core import canonical
from ..core.digest import Digest
from ..core.errors import RequiemError
from ..core.events import Event, PlanMade, StepStarted, as_json
from ..core.instance import Plan
from ..store.encoding import Packed
from ..store.layout import Store
from ..store.objects import COLD_MIN
from .workspace import read_regular

PACKED_MAX = 16 * 1024 * 1024
"""A larger journal never lies in memory as a whole: it is stored as it is, and read through a pipe."""


def new_run_id() -> str:
    """Sortable by time, also within a second, and not the same for two runs of one moment."""
    seconds, rest_ns = divmod(time.time_ns(), 1_000_000_000)
    when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds))
    return f"{when}-{rest_ns // 1000:05x}{os.urandom(2).hex()}"


def now_text() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def seconds_of(when: str) -> float:
    """Since 1970. A time that nobody can read, of another version's record, is the present."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(when).timestamp()
    except (ValueError, OverflowError):
        return time.time()


class Journal:
    """Lines go to a file in `folder`, so that memory stays flat and a crashed run leaves what it had.

    Its clock begins when the plan has been told: until then no time passes. A step's beginning also gets a `worker`, a
    small number for the thread that tells of it: a lane of the timeline.
    """

    def __init__(self, run: str, folder: str) -> None:
        self.run = run
        self._path = os.path.join(folder, f"{run}.jsonl")
        self._started: float | None = None
        self._lock = threading.Lock()
        self._lanes: dict[int, int] = {}
        self._packing: Packing | None = None
        try:
            self._file: IO[bytes] = open(self._path, "w+b")  # noqa: SIM115 - open for the whole run
        except OSError:  # A journal is no reason not to build.
            self._path = ""
            self._file = _nowhere()

    def __call__(self, event: Event) -> None:
        with self._lock:
            now = time.monotonic()  # Under the lock: no line is older than the last.
            line = {"at_ms": round((now - (self._started or now)) * 1000), **as_json(event)}
            if type(event) is StepStarted:
                line["worker"] = self._lanes.setdefault(threading.get_ident(), len(self._lanes))
            elif type(event) is PlanMade:
                self._started = now
            self._file.write(canonical.encode_plain(line) + b"\n")

    def tell(self, lines: Sequence[bytes | memoryview]) -> None:
        """Whole lines of the moment in which the plan was told, as `line_of` gives them, right after that.

        They are megabytes, often: packed while steps run, and never written down as they are.
        """
        with self._lock:
            if COLD_MIN <= sum(map(len, lines)) <= PACKED_MAX:
                self._file.flush()
                size = self._file.tell()
                self._packing = Packing(self._file.fileno(), size, lines)
            else:
                self._file.writelines(lines)
            self._started = time.monotonic()

    def keep(self, store: Store) -> Digest | None:
        """Puts the journal into the store. A store that cannot take it is no reason to fail a finished run."""
        with suppress(RequiemError, OSError):
            self._file.flush()
            size = self._file.tell()
            if size > PACKED_MAX:
                return store.objects.put_file(self._file.fileno())[0]
            if self._packing is not None:
                packed = self._packing.end(size)
                kept = None if packed is None else store.objects.put_packed(packed)
                return kept or store.objects.put_cold(self._packing.plain(size))
            return store.objects.put_cold(os.pread(self._file.fileno(), size, 0))
        return None

    def finish(self, store: Store, kept: Digest | None, summary: Mapping[str, object]) -> None:
        """Lists the run with its journal, which is durable by now."""
        with suppress(RequiemError):
            if kept is not None:
                store.runs.add(self.run, kept, summary)
        self.close()

    def close(self) -> None:
        if self._packing is not None:
            self._packing.join()
        self._file.close()
        if self._path:
            with suppress(OSError):
                os.unlink(self._path)


class Packing:
    """What a file holds so far, and lines that follow there; then what the file gets in addition.

    They are hashed and compressed by a thread of its own: neither needs the interpreter.
    """

    def __init__(self, descriptor: int, size: int, lines: Sequence[bytes | memoryview]) -> None:
        self._descriptor = descriptor
        self._size = size
        self._lines = lines
        self._packed: Packed | None = None
        self._thread = threading.Thread(target=self._begin, name="requiem-journal", daemon=True)
        self._thread.start()

    def _begin(self) -> None:
        with suppress(OSError, MemoryError, ImportError):  # Who puts it into the store as it is will meet them again.
            packed = Packed()
            for piece in (os.pread(self._descriptor, self._size, 0), *self._lines):
                packed.add(piece)
            self._packed = packed

    def join(self) -> None:
        self._thread.join()

    def end(self, size: int) -> Packed | None:
        """With the rest, up to that size of the file; None if nothing came of it."""
        self.join()
        if self._packed is not None:
            self._packed.add(self._rest(size))
        return self._packed

    def plain(self, size: int) -> bytes:
        return b"".join((os.pread(self._descriptor, self._size, 0), *self._lines, self._rest(size)))

    def _rest(self, size: int) -> bytes:
        return os.pread(self._descriptor, size - self._size, self._size)


AT_ONCE = b'{"at_ms":0,'


def _nowhere() -> IO[bytes]:
    """A file without a place, also where no file system has room."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("journal"), "w+b")
    import tempfile

    return tempfile.TemporaryFile()


def line_of(event: Event) -> bytes:
    """The line of an event that is told together with the plan."""
    return AT_ONCE + canonical.encode_plain(as_json(event))[1:] + b"\n"


def places_of(plan: Plan) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Instance -> its place in the plan and those of what must be finished first; a group is its members."""
    places: dict[str, tuple[int, tuple[int, ...]]] = {}
    members: dict[str, frozenset[int]] = {}
    for name, instance in plan.instances.items():  # Dependencies first.
        needs: set[int] = set()
        for need in (*instance.needs, *instance.after):
            needs |= members[need] if need in members else {places[need][0]}
        if instance.is_group:
            members[name] = frozenset(needs)
        else:
            places[name] = (len(places), tuple(sorted(needs)))
    return places


def keep_manifest(root: str, manifest: Mapping[str, str | None], store: Store) -> None:
    """Puts the manifest's files into the store, so that a run can be checked and moved without its workspace."""
    for path, digest in manifest.items():
        if digest is not None and not store.objects.has(Digest(digest)):
            with suppress(RequiemError):
                content = read_regular(os.path.join(root, path))
                if content is not None:
                    store.objects.put(content)


def journal_lines(store: Store, journal: Digest) -> Iterator[bytes]:
    """A journal's lines, without their ends, in flat memory. They are verified only when the last was given.

    Raises MissingObject or CorruptObject, at the latest then. A line beyond 64 MiB comes in pieces.
    """
    if (store.objects.size(journal) or 0) <= PACKED_MAX:
        yield from store.objects.get(journal).removesuffix(b"\n").split(b"\n")
        return
    reader, writer = os.pipe()
    failure: list[RequiemError] = []

    def write() -> None:
        try:
            store.objects.copy_to(journal, writer)
        except RequiemError as error:
            failure.append(error)
        except OSError:
            pass  # The reader has lost interest.
        finally:
            os.close(writer)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        with open(reader, "rb") as pipe:
            while line := pipe.readline(canonical.BYTES_MAX):
                yield line.removesuffix(b"\n")
    finally:
        thread.join()
    if failure:
        raise failure[0]
