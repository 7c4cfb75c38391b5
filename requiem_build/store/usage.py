"""What a store holds, counted by kind, and what it was good for: ratios, and hits of each day."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from ..core.digest import Digest
from ..core.entries import Link
from ..core.fields import dataclass, field
from .files import entries
from .growth import on_disk
from .inventory import Inventory, Item, take
from .layout import Store
from .runs import Run

TENANT = "default"
"""The one user of a store, until tenants come."""

KINDS = ("objects", "packs", "records", "paths", "divergences", "runs", "quarantine", "temporary")
_OF_ITEM = {"record": "records", "paths": "paths", "divergence": "divergences", "run": "runs"}


@dataclass(slots=True)
class Count:
    """`bytes` on disk."""

    count: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.count += 1
        self.bytes += size


@dataclass(slots=True)
class Day:
    """The runs of one day (UTC) and the steps in them."""

    runs: int = 0
    hit: int = 0
    ran: int = 0
    fresh: int = 0
    failed: int = 0

    @property
    def hit_rate(self) -> float | None:
        """Of the steps that were not simply up to date, how many were answered from the store."""
        asked = self.hit + self.ran
        return round(self.hit / asked, 4) if asked else None


@dataclass(slots=True)
class Usage:
    """`original_bytes` and `stored_bytes` are those of all objects' contents, plain and as stored.

    `recorded_bytes` is what all records' outputs and logs would take if each had its own copy; `shared_bytes` is
    what they take.
    """

    kinds: dict[str, Count] = field(default_factory=lambda: {kind: Count() for kind in KINDS})
    tenants: dict[str, Count] = field(default_factory=dict)
    days: dict[str, Day] = field(default_factory=dict)
    compressed: int = 0
    original_bytes: int = 0
    stored_bytes: int = 0
    recorded_bytes: int = 0
    shared_bytes: int = 0

    @property
    def size(self) -> int:
        """All kinds together, on disk."""
        return sum(count.bytes for count in self.kinds.values())

    @property
    def compression_ratio(self) -> float | None:
        return round(self.original_bytes / self.stored_bytes, 3) if self.stored_bytes else None

    @property
    def dedup_ratio(self) -> float | None:
        return round(self.recorded_bytes / self.shared_bytes, 3) if self.shared_bytes else None


def usage(store: Store) -> Usage:
    """Counts everything. Raises EnvironmentFault where the store cannot be read."""
    found = Usage()
    inventory = take(store)
    for held in inventory.held:
        found.kinds["packs" if held.is_pack else "objects"].add(held.size)
    sizes: dict[Digest, int] = {}
    for digest, meta in store.objects.ls():
        sizes[digest] = meta.original_size
        found.original_bytes += meta.original_size
        found.stored_bytes += meta.stored_size
        found.compressed += meta.stored_size < meta.original_size
    for item in inventory.items:
        found.kinds[_OF_ITEM[item.kind]].add(item.size)
    _count_recorded(store, found, sizes, inventory)
    for kind, directory in (("quarantine", "v2/quarantine"), ("temporary", "v2/tmp")):
        for size in _file_sizes(f"{store.root}/{directory}"):
            found.kinds[kind].add(size)
    found.tenants[TENANT] = Count(
        len(sizes),
        sum(found.kinds[kind].bytes for kind in ("objects", "packs", "records", "paths", "divergences", "runs")),
    )
    for run in store.runs:
        _count_run(found, run)
    return found


def _count_recorded(store: Store, found: Usage, sizes: dict[Digest, int], inventory: Inventory) -> None:
    seen: set[Digest] = set()
    for kept in (kept for scope in store.scopes() for kept in scope):
        for stream in (kept.result.stdout, kept.result.stderr):
            found.recorded_bytes += stream.size
            seen.add(stream.digest)
        for entry in kept.result.outputs.values():
            if not isinstance(entry, Link):
                found.recorded_bytes += entry.size
                seen.add(entry.digest)
    found.shared_bytes = sum(sizes.get(digest, 0) for digest in _files(inventory, seen))


def _files(inventory: Inventory, tops: set[Digest]) -> set[Digest]:
    """The files that these digests lead to; a directory's list itself is no output's content."""
    found = set(tops)
    pending = list(tops)
    for digest in pending:
        below = [one for one in inventory.trees.get(digest, ()) if one not in found]
        found.update(below)
        pending += below
    return found - inventory.trees.keys()


def _count_run(found: Usage, run: Run) -> None:
    day = found.days.setdefault(run.when[:10], Day())
    day.runs += 1
    for name in ("hit", "ran", "fresh", "failed"):
        setattr(day, name, getattr(day, name) + max(0, run.counts.get(name, 0)))


def _file_sizes(directory: str) -> Iterator[int]:
    for item in entries(directory):
        with suppress(OSError):
            if item.is_dir(follow_symlinks=False):
                yield from _file_sizes(item.path)
            else:
                yield on_disk(item.stat(follow_symlinks=False).st_size)


def row_of(item: Item) -> dict[str, object]:
    """One line of a listing."""
    return {"kind": _OF_ITEM[item.kind], "name": item.name, "size": item.size, "used": round(item.used)}


def quarantined(store: Store) -> Iterator[dict[str, object]]:
    for item in entries(f"{store.root}/v2/quarantine"):
        with suppress(OSError):
            found = os.lstat(item.path)
            yield {
                "kind": "quarantine",
                "name": item.name,
                "size": on_disk(found.st_size),
                "used": round(found.st_mtime),
            }
