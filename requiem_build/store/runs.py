"""What each invocation came to: its journal's object and a summary, listed by an id that sorts by time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..core import canonical
from ..core.digest import Digest, is_digest
from ..core.errors import EnvironmentFault, IntegrityError, RequestError, UnknownName, UsageError
from ..core.fields import dataclass
from .durability import sync_path
from .files import NotAFile, Scratch, ensure_directory, entries, fault, link_new, read_small

SCHEMA = "requiem.run/1"
RUN_MAX = 1 << 20
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")
_FIELDS = {"counts", "exit_code", "journal", "ok", "run", "schema", "when", "workspace"}


@dataclass(frozen=True, slots=True)
class Run:
    """`workspace` is an id, not a path. `journal` is an object."""

    run: str
    workspace: str
    when: str
    ok: bool
    exit_code: int
    journal: Digest
    counts: Mapping[str, int]

    @property
    def encoded(self) -> bytes:
        return canonical.encode_plain(
            {
                "counts": dict(self.counts),
                "exit_code": self.exit_code,
                "journal": self.journal,
                "ok": self.ok,
                "run": self.run,
                "schema": SCHEMA,
                "when": self.when,
                "workspace": self.workspace,
            }
        )


class Runs:
    """The runs of one store, oldest first."""

    def __init__(
        self, base: str, scratch: Scratch, *, refusal: EnvironmentFault | None = None, durable: bool = False
    ) -> None:
        self._base = base
        self._scratch = scratch
        self._refusal = refusal
        self._durable = durable

    def add(self, run_id: str, journal: Digest, summary: Mapping[str, Any]) -> Run:
        """`summary` holds workspace, when, ok, exit_code and counts. Raises UsageError if the id is taken."""
        run = _checked({"run": run_id, "journal": journal, "schema": SCHEMA, **summary}, run_id)
        if self._refusal is not None:
            raise self._refusal
        try:
            ensure_directory(self._base)
            temporary = self._scratch.write(run.encoded, durable=self._durable)
            try:
                if not link_new(temporary, self._path(run_id)):
                    raise UsageError(f'run "{run_id}" exists already')
                if self._durable:
                    sync_path(self._base)
            finally:
                self._scratch.discard(temporary)
        except OSError as error:
            raise fault(error, f'listing run "{run_id}"', self._base) from error
        return run

    def get(self, run_id: str) -> Run:
        """Raises UnknownName, or IntegrityError if what is listed there is no run."""
        try:
            content = read_small(self._path(run_id), RUN_MAX)
            if content is None:
                raise UnknownName(f'no run "{run_id}" in the store')
            return _checked(canonical.parse(content), run_id)
        except (RequestError, NotAFile, ValueError) as error:
            raise IntegrityError(f'run "{run_id}" is damaged', facts=[("cause", str(error))]) from error
        except OSError as error:
            raise fault(error, f'reading run "{run_id}"', self._base) from error

    def latest(self, workspace: str) -> Run | None:
        """The newest readable run of a workspace."""
        for item in reversed(entries(self._base)):
            run = self._readable(item.name)
            if run is not None and run.workspace == workspace:
                return run
        return None

    def __iter__(self) -> Iterator[Run]:
        """Every readable run, oldest first."""
        for item in entries(self._base):
            run = self._readable(item.name)
            if run is not None:
                yield run

    def ids(self) -> list[str]:
        """Every id that is listed, oldest first, also of runs that cannot be read."""
        return [item.name for item in entries(self._base) if _ID.fullmatch(item.name)]

    def _readable(self, run_id: str) -> Run | None:
        if not _ID.fullmatch(run_id):
            return None
        try:
            return self.get(run_id)
        except (UnknownName, IntegrityError):
            return None

    def _path(self, run_id: str) -> str:
        if not _ID.fullmatch(run_id):
            raise UnknownName(f"not the id of a run: {run_id[:80]!r}", hint="letters, digits, - and _, at most 64")
        return f"{self._base}/{run_id}"


def _checked(value: Any, run_id: str) -> Run:
    if not isinstance(value, dict) or value.keys() != _FIELDS or value["schema"] != SCHEMA or value["run"] != run_id:
        raise RequestError(f"a run must hold exactly {', '.join(sorted(_FIELDS))}")
    counts = value["counts"]
    valid = (
        isinstance(value["workspace"], str)
        and isinstance(value["when"], str)
        and isinstance(value["ok"], bool)
        and type(value["exit_code"]) is int
        and is_digest(value["journal"])
        and isinstance(counts, Mapping)
        and all(isinstance(name, str) and type(number) is int for name, number in counts.items())
    )
    if not valid:
        raise RequestError("a field of a run is not of its type")
    return Run(
        run_id, value["workspace"], value["when"], value["ok"], value["exit_code"], value["journal"], dict(counts)
    )
