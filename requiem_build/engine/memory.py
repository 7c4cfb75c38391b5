"""What `.requiem/` remembers between runs: stamps, each step's last result, the last plan. All of it may be lost.

It never answers for the store: a memory that disagrees with the workspace is just forgotten.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, TypeVar

from ..core.entries import Entry
from ..core.fields import dataclass, field
from . import sealed
from .stamps import Known, pack, unpack

CHANGED_MAX = 0.02
"""The share of what is remembered from which on all of it is written anew."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """How a step ended when it last succeeded here. `variant` is the profile and settings it was built under."""

    request_digest: str
    result_digest: str
    outputs: Mapping[str, Entry]
    duration_ms: int
    discovered: tuple[str, ...] | None
    variant: str
    warnings: tuple[str, ...] = ()
    recorded: bool = True
    """Whether the store was given the record: only then may it be restored from the store."""
    trust: str = ""
    """The hit policy's digest under which it was run or accepted; what was accepted under another is asked again."""
    record_digest: str | None = None


V = TypeVar("V")


class Rows(MutableMapping[str, V]):
    """A mapping of which most is never asked for: each value is marshalled by itself, until it is asked for.

    It knows what has been set or deleted since it was first written down, also by others who told of it (`changes`).
    """

    def __init__(self, rows: dict[str, bytes], decode: Callable[[Any], V], encode: Callable[[V], Any]) -> None:
        self._rows: dict[str, bytes | None] = rows  # type: ignore[assignment]  # Its own from now on.
        self._live: dict[str, V] = {}
        self._changed: set[str] = set()
        self._decode = decode
        self._encode = encode

    def __getitem__(self, name: str) -> V:
        found = self._live.get(name)
        if found is None:
            row = self._rows[name]
            assert row is not None
            found = self._live[name] = self._decode(marshal.loads(row))
        return found

    def __setitem__(self, name: str, value: V) -> None:
        self._live[name] = value
        self._rows[name] = None
        self._changed.add(name)

    def __delitem__(self, name: str) -> None:
        del self._rows[name]
        self._live.pop(name, None)
        self._changed.add(name)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def changes(self) -> dict[str, bytes | None]:
        """What has changed, as rows; None for what is gone."""
        return {name: self._row(name) if name in self._rows else None for name in self._changed}

    def apply(self, changes: Mapping[str, bytes | None]) -> None:
        self._changed.update(changes)
        for name, row in changes.items():
            if row is not None:
                self._rows[name] = row
            else:
                self._rows.pop(name, None)

    def settle(self) -> None:
        """What it holds now is what is written down."""
        self._changed.clear()

    @property
    def changed_much(self) -> bool:
        return len(self._changed) > CHANGED_MAX * len(self._rows)

    def _row(self, name: str) -> bytes:
        row = self._rows[name]
        return marshal.dumps(self._encode(self._live[name])) if row is None else row

    def rows(self) -> dict[str, bytes]:
        encode, live = self._encode, self._live
        return {name: marshal.dumps(encode(live[name])) if row is None else row for name, row in self._rows.items()}


@dataclass(slots=True)
class Memory:
    known: MutableMapping[str, Known] = field(default_factory=dict)
    steps: MutableMapping[str, Remembered] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Steps that failed when they were last run -> the digest of that request."""
    last_run: str | None = None
    mark: bytes = b""
    """Of the file that it was read from: what has changed since is told on top of that."""

    def made(self) -> dict[str, Entry]:
        """Every output path that Requiem put into this workspace, and what it put there."""
        return {path: entry for step in self.steps.values() for path, entry in step.outputs.items()}


def load(dot: str, key: bytes) -> Memory:
    value = sealed.load(_path(dot), key)
    known, steps, failed, last_run, mark = value if value is not None else ({}, {}, {}, None, b"")
    memory = Memory(Rows(known, _same, _same), Rows(steps, _remembered, _row), failed, last_run, mark)
    later = sealed.load(_later_path(dot), key) if mark else None
    if later is not None and later[0] == mark:
        assert isinstance(memory.known, Rows) and isinstance(memory.steps, Rows)
        memory.known.apply(later[1])
        memory.steps.apply(later[2])
        memory.failed, memory.last_run = later[3:]
    return memory


def save(dot: str, key: bytes, memory: Memory) -> None:
    """Where little changed, only that is written: `memory.later` belongs to one `memory`, which says so by its mark."""
    known, steps = memory.known, memory.steps
    if not isinstance(known, Rows):
        known = memory.known = _filled(Rows({}, _same, _same), known)
    if not isinstance(steps, Rows):
        steps = memory.steps = _filled(Rows({}, _remembered, _row), steps)
    if memory.mark and not (known.changed_much or steps.changed_much):
        later = (memory.mark, known.changes(), steps.changes(), memory.failed, memory.last_run)
        sealed.save(_later_path(dot), key, later)
        return
    memory.mark = os.urandom(16)
    sealed.save(_path(dot), key, (known.rows(), steps.rows(), memory.failed, memory.last_run, memory.mark))
    known.settle()
    steps.settle()
    with suppress(OSError):
        os.unlink(_later_path(dot))


def _path(dot: str) -> str:
    return os.path.join(dot, "memory")


def _later_path(dot: str) -> str:
    return os.path.join(dot, "memory.later")


def _filled(rows: Rows[V], values: Mapping[str, V]) -> Rows[V]:
    rows.update(values)
    return rows


def _same(value: Any) -> Any:
    return value


def _row(step: Remembered) -> tuple[object, ...]:
    return (
        step.request_digest,
        step.result_digest,
        {path: pack(entry) for path, entry in step.outputs.items()},
        step.duration_ms,
        step.discovered,
        step.variant,
        step.warnings,
        step.recorded,
        step.trust,
        step.record_digest,
    )


def _remembered(row: Any) -> Remembered:
    request, result, outputs, duration_ms, discovered, variant, warnings, recorded, trust, record = row
    entries = {path: unpack(packed) for path, packed in outputs.items()}
    return Remembered(request, result, entries, duration_ms, discovered, variant, warnings, recorded, trust, record)
