"""A run's journal: every event as one JSON line, with its time. At the end it becomes an object of the store."""

from __future__ import annotations

import datetime
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import IO

from ..core import canonical
from ..core.digest import Digest
from ..core.errors import RequiemError
from ..core.events import Event, StepStarted, as_json
from ..core.instance import Plan
from ..store.layout import Store
from .workspace import read_regular

PACKED_MAX = 16 * 1024 * 1024
"""A larger journal never lies in memory as a whole: it is stored as it is, and read through a pipe."""


def new_run_id() -> str:
    """Sortable by time, also within a second, and not the same for two runs of one moment."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{now.microsecond:05x}{os.urandom(2).hex()}"


def now_text() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Journal:
    """Lines go to a file in `folder`, so that memory stays flat and a crashed run leaves what it had.

    A step's beginning also gets a `worker`, a small number for the thread that tells of it: a lane of the timeline.
    """

    def __init__(self, run: str, folder: str) -> None:
        self.run = run
        self._path = os.path.join(folder, f"{run}.jsonl")
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._lanes: dict[int, int] = {}
        try:
            self._file: IO[bytes] = open(self._path, "w+b")  # noqa: SIM115 - open for the whole run
        except OSError:  # A journal is no reason not to build.
            import tempfile

            self._path = ""
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - the same

    def __call__(self, event: Event) -> None:
        with self._lock:
            at_ms = round((time.monotonic() - self._started) * 1000)  # Under the lock: no line is older than the last.
            line = {"at_ms": at_ms, **as_json(event)}
            if type(event) is StepStarted:
                line["worker"] = self._lanes.setdefault(threading.get_ident(), len(self._lanes))
            self._file.write(canonical.encode_plain(line) + b"\n")

    def tell(self, lines: Iterable[bytes]) -> None:
        """Many events of this moment, as `line_of` gives them."""
        with self._lock:
            head = b'{"at_ms":%d,' % round((time.monotonic() - self._started) * 1000)
            written = (b"\n" + head).join(lines)
            if written:  # Megabytes, often: not copied once more.
                self._file.writelines((head, written, b"\n"))

    def keep(self, store: Store) -> Digest | None:
        """Puts the journal into the store. A store that cannot take it is no reason to fail a finished run."""
        with suppress(RequiemError, OSError):
            self._file.flush()
            size = self._file.tell()
            if size > PACKED_MAX:
                return store.objects.put_file(self._file.fileno())[0]
            return store.objects.put_cold(os.pread(self._file.fileno(), size, 0))
        return None

    def finish(self, store: Store, kept: Digest | None, summary: Mapping[str, object]) -> None:
        """Lists the run with its journal, which is durable by now."""
        with suppress(RequiemError):
            if kept is not None:
                store.runs.add(self.run, kept, summary)
        self.close()

    def close(self) -> None:
        self._file.close()
        if self._path:
            with suppress(OSError):
                os.unlink(self._path)


def line_of(event: Event) -> bytes:
    """An event's line without its time, which is the first of its names."""
    return canonical.encode_plain(as_json(event))[1:]


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
