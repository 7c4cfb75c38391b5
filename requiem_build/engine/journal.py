"""A run's journal: every event as one JSON line, with its time. At the end it becomes an object of the store."""

from __future__ import annotations

import datetime
import os
import threading
import time
from contextlib import suppress

from ..core import canonical
from ..core.digest import Digest
from ..core.errors import RequiemError
from ..core.events import Event, as_json
from ..store.layout import Store


def new_run_id() -> str:
    """Sortable by time, also within a second, and not the same for two runs of one moment."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{now.microsecond:05x}{os.urandom(2).hex()}"


def now_text() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Journal:
    """Lines are kept in memory and in `path`, so that a crashed run leaves what it had."""

    def __init__(self, run: str, path: str) -> None:
        self.run = run
        self._path = path
        self._started = time.monotonic()
        self._lines: list[bytes] = []
        self._lock = threading.Lock()
        self._file = None
        with suppress(OSError):
            self._file = open(path, "wb")  # noqa: SIM115 - open for the whole run

    def __call__(self, event: Event) -> None:
        at_ms = round((time.monotonic() - self._started) * 1000)
        line = canonical.encode_plain({"at_ms": at_ms, **as_json(event)}) + b"\n"
        with self._lock:
            self._lines.append(line)
            if self._file is not None:
                self._file.write(line)

    def keep(self, store: Store) -> Digest | None:
        """Puts the journal into the store. A store that cannot take it is no reason to fail a finished run."""
        with suppress(RequiemError):
            return store.objects.put_cold(b"".join(self._lines))
        return None

    def finish(self, store: Store, kept: Digest | None, summary: dict[str, object]) -> None:
        """Lists the run with its journal, which is durable by now."""
        with suppress(RequiemError):
            if kept is not None:
                store.runs.add(self.run, kept, summary)
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            with suppress(OSError):
                os.unlink(self._path)
