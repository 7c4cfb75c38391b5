"""What `.requiem/` remembers between runs: stamps, each step's last result, the last plan. All of it may be lost.

It never answers for the store: a memory that disagrees with the workspace is just forgotten.
"""

from __future__ import annotations

import marshal
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
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

_AT = 12
"""Hexadecimal digits of a place in a file's rows."""
UNPACK_AFTER = 100
"""So many questions take as long as to unpack all."""


class PackedRows:
    """Rows as they are written down, of which a few are asked for: one text that is searched, nothing taken apart.

    Each name stands between two noughts and one; then comes where its row begins and ends.
    """

    def __init__(self, index: str, count: int, rows: memoryview) -> None:
        self._index = index
        self._rows = rows
        self.count = count

    @staticmethod
    def pack(rows: Mapping[str, bytes]) -> tuple[str, int, bytes] | None:
        """What makes one; None if a name holds what tells names apart."""
        if any("\0" in name for name in rows):
            return None
        parts, end = [], 0
        for name, row in rows.items():
            begin, end = end, end + len(row)
            parts.append(f"\0\0{name}\0{begin:0{_AT}x}{end:0{_AT}x}")
        return "".join(parts), len(parts), b"".join(rows.values())

    def find(self, name: str) -> bytes | None:
        if "\0" in name:
            return None
        at = self._index.find(f"\0\0{name}\0")
        if at < 0:
            return None
        at += len(name) + 3
        begin, end = self._index[at : at + _AT], self._index[at + _AT : at + 2 * _AT]
        return bytes(self._rows[int(begin, 16) : int(end, 16)])

    def unpacked(self) -> dict[str, bytes]:
        found = {}
        for each in self._index.split("\0\0")[1:]:
            name, _, place = each.partition("\0")
            found[name] = bytes(self._rows[int(place[:_AT], 16) : int(place[_AT:], 16)])
        return found


class Rows(MutableMapping[str, V]):
    """A mapping of which most is never asked for: each value is marshalled by itself, until it is asked for.

    It knows what has been set or deleted since it was first written down, also by others who told of it (`changes`).
    """

    def __init__(
        self, rows: dict[str, bytes] | PackedRows, decode: Callable[[Any], V], encode: Callable[[V], Any]
    ) -> None:
        self._packed = rows if isinstance(rows, PackedRows) else None
        self._unpacking = threading.Lock()
        self._asked = 0
        self._rows: dict[str, bytes | None] = {} if isinstance(rows, PackedRows) else {**rows}
        """While there are packed ones, those that differ from these."""
        self._live: dict[str, V] = {}
        self._changed: set[str] = set()
        self._decode = decode
        self._encode = encode

    def _all(self) -> dict[str, bytes | None]:
        if self._packed is not None:
            with self._unpacking:  # Other threads go on asking, and are answered all along.
                for name, row in self._packed.unpacked().items() if self._packed is not None else ():
                    self._rows.setdefault(name, row)
                self._packed = None
        return self._rows

    def _find(self, name: str) -> bytes | None:
        """Of one that is not live. Raises KeyError."""
        packed = self._packed
        if name in self._rows or packed is None:
            return self._rows[name]
        self._asked += 1
        if self._asked > UNPACK_AFTER:
            return self._all()[name]
        row = packed.find(name)
        if row is None:
            raise KeyError(name)
        return row

    def __getitem__(self, name: str) -> V:
        found = self._live.get(name)
        if found is None:
            row = self._find(name)
            assert row is not None
            found = self._live[name] = self._decode(marshal.loads(row))
        return found

    def __setitem__(self, name: str, value: V) -> None:
        self._live[name] = value
        self._rows[name] = None
        self._changed.add(name)

    def __delitem__(self, name: str) -> None:
        del self._all()[name]
        self._live.pop(name, None)
        self._changed.add(name)

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def has_all(self, names: Iterable[str]) -> bool:
        return all(map(self._all().__contains__, names))

    def changes(self) -> dict[str, bytes | None]:
        """What has changed, as rows; None for what is gone."""
        found: dict[str, bytes | None] = {}
        for name in self._changed:
            try:
                found[name] = self._row(name)
            except KeyError:
                found[name] = None
        return found

    def apply(self, changes: Mapping[str, bytes | None]) -> None:
        self._changed.update(changes)
        for name, row in changes.items():
            if row is not None:
                self._rows[name] = row
            else:
                self._all().pop(name, None)

    def settle(self) -> None:
        """What it holds now is what is written down."""
        self._changed.clear()

    @property
    def changed_much(self) -> bool:
        there = len(self._rows) if self._packed is None else self._packed.count
        return len(self._changed) > CHANGED_MAX * there

    def _row(self, name: str) -> bytes:
        row = self._find(name)
        return marshal.dumps(self._encode(self._live[name])) if row is None else row

    def rows(self) -> dict[str, bytes]:
        encode, live = self._encode, self._live
        return {name: marshal.dumps(encode(live[name])) if row is None else row for name, row in self._all().items()}


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
    found = sealed.load_long(_path(dot), key)
    value, rows = found if found is not None else (({}, {}, {}, None, b""), memoryview(b""))
    known, steps, failed, last_run, mark = value
    there = PackedRows(known[0], known[1], rows) if isinstance(known, tuple) else known
    memory = Memory(Rows(there, _same, _same), Rows(steps, _remembered, _row), failed, last_run, mark)
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
    rows = known.rows()
    packed = PackedRows.pack(rows)
    index, tail = (packed[:2], packed[2]) if packed is not None else (rows, b"")
    value = (index, steps.rows(), memory.failed, memory.last_run, memory.mark)
    sealed.save_long(_path(dot), key, value, tail)
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
