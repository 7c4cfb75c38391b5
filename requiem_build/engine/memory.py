"""What `.requiem/` remembers between runs: stamps, each step's last result, the last plan. All of it may be lost.

It never answers for the store: a memory that disagrees with the workspace is just forgotten.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

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


@dataclass(slots=True)
class Memory:
    known: dict[str, Known] = field(default_factory=dict)
    steps: dict[str, Remembered] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Steps that failed when they were last run -> the digest of that request."""
    last_run: str | None = None

    def made(self) -> dict[str, Entry]:
        """Every output path that Requiem put into this workspace, and what it put there."""
        return {path: entry for step in self.steps.values() for path, entry in step.outputs.items()}


def load(dot: str, key: bytes) -> Memory:
    value = sealed.load(os.path.join(dot, "memory"), key)
    if value is None:
        return Memory()
    known, steps, failed, last_run = value
    return Memory(known, {name: _remembered(row) for name, row in steps.items()}, failed, last_run)


def save(dot: str, key: bytes, memory: Memory) -> None:
    steps = {
        name: (
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
        for name, step in memory.steps.items()
    }
    sealed.save(os.path.join(dot, "memory"), key, (memory.known, steps, memory.failed, memory.last_run))


def _remembered(row: Any) -> Remembered:
    request, result, outputs, duration_ms, discovered, variant, warnings, recorded, trust, record = row
    entries = {path: unpack(packed) for path, packed in outputs.items()}
    return Remembered(request, result, entries, duration_ms, discovered, variant, warnings, recorded, trust, record)
