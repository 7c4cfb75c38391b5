"""What `.requiem/` remembers between runs: stamps, each step's last result, the last plan. All of it may be lost.

It never answers for the store: a memory that disagrees with the workspace is just forgotten.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

from ..core.entries import Entry
from ..core.fields import dataclass, field
from . import sealed
from .stamps import Known, pack, unpack

KNOWN_MAX = 1_000_000


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
    """A mapping of which most is never asked for: each value is marshalled by itself, until it is asked for."""

    def __init__(self, rows: dict[str, bytes], decode: Callable[[Any], V], encode: Callable[[V], Any]) -> None:
        self._rows: dict[str, bytes | None] = {**rows}
        self._live: dict[str, V] = {}
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

    def __delitem__(self, name: str) -> None:
        del self._rows[name]
        self._live.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

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

    def made(self) -> dict[str, Entry]:
        """Every output path that Requiem put into this workspace, and what it put there."""
        return {path: entry for step in self.steps.values() for path, entry in step.outputs.items()}


def load(dot: str, key: bytes) -> Memory:
    value = sealed.load(os.path.join(dot, "memory"), key)
    known, steps, failed, last_run = value if value is not None else ({}, {}, {}, None)
    return Memory(Rows(known, _same, _same), Rows(steps, _remembered, _row), failed, last_run)


def save(dot: str, key: bytes, memory: Memory) -> None:
    known = memory.known if isinstance(memory.known, Rows) else _filled(Rows({}, _same, _same), memory.known)
    steps = memory.steps if isinstance(memory.steps, Rows) else _filled(Rows({}, _remembered, _row), memory.steps)
    sealed.save(os.path.join(dot, "memory"), key, (known.rows(), steps.rows(), memory.failed, memory.last_run))


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
