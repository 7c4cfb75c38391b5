"""What a store holds, file by file: sizes and last uses of objects, and what each record and run keeps.

It reads no object but trees and journals, and judges nothing: what is damaged is the affair of audit.py. What cannot
be read ends the walk: who deletes by what he sees must see everything.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Literal, TypeAlias

from ..core import canonical
from ..core.digest import EMPTY, Digest, is_digest
from ..core.entries import File, Tree, parse_tree
from ..core.errors import CorruptObject, EnvironmentFault, IntegrityError, MissingObject, RequestError, UnknownName
from ..core.fields import dataclass, field, replace
from .files import NotAFile, entries, read_small
from .growth import on_disk
from .layout import Store
from .packs import NotAPack
from .records import split_record

Kind: TypeAlias = Literal["record", "paths", "divergence", "run"]
Tick: TypeAlias = Callable[[], None]
"""Called every now and then while much is walked: it may raise to end the walk."""

_NAMED = re.compile(rb'"(?:digest|tree)":"([0-9a-f]{64})"')
_ANY = re.compile(rb':"([0-9a-f]{64})"')
_TREE = re.compile(rb'"tree":"([0-9a-f]{64})"')
_SHARD = re.compile(r"[0-9a-f]{2}")
JOURNAL_MAX = 64 << 20
TICK_EVERY = 64


@dataclass(frozen=True, slots=True)
class Held:
    """A loose object, or a pack. `size` is bytes on disk, `used` its last use, `touched` the latest of its times."""

    name: str
    size: int
    used: float
    touched: float
    whole: bool = True
    """False for a half: a blob without metadata or the other way round."""
    is_pack: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """A record, a known path set, a divergence or a run. `path` is absolute.

    `needs` are the objects without which it cannot be used; `names` are others that it keeps, such as inputs.
    A tree stands for all below it (`Inventory.trees`), and what is not in the store may be among them.
    """

    kind: Kind
    name: str
    path: str
    size: int
    used: float
    touched: float
    needs: frozenset[Digest] = frozenset()
    names: frozenset[Digest] = frozenset()
    workspace: str = ""


@dataclass(slots=True)
class Inventory:
    """`objects` maps each object to what holds it: itself if it lies loose, else a pack.

    `trees` maps each directory's list to what it names; one that cannot be read names nothing.
    """

    objects: dict[Digest, Held] = field(default_factory=dict)
    packs: dict[str, Held] = field(default_factory=dict)
    members: dict[str, dict[Digest, int]] = field(default_factory=dict)
    """What lies in each pack, with its size."""
    items: list[Item] = field(default_factory=list)
    trees: dict[Digest, tuple[Digest, ...]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(held.size for held in self.held) + sum(item.size for item in self.items)

    @property
    def held(self) -> list[Held]:
        """Every loose object and every pack, once."""
        return [*(held for held in self.objects.values() if not held.is_pack), *self.packs.values()]


def take(store: Store, tick: Tick = lambda: None) -> Inventory:
    """Everything in the store. Raises EnvironmentFault where it cannot be read, and what `tick` raises."""
    found = Inventory()
    for number, held in enumerate(objects(store)):
        found.objects[Digest(held.name)] = held
        if number % TICK_EVERY == 0:
            tick()
    _take_packs(store, found)
    tops: set[Digest] = set()
    for number, item in enumerate(items(store, tops)):
        found.items.append(item)
        if number % TICK_EVERY == 0:
            tick()
    for number, _ in enumerate(_below(store, found, tops)):
        if number % TICK_EVERY == 0:
            tick()
    return found


def holders(store: Store) -> dict[Digest, Held]:
    """What holds each object."""
    found = Inventory(objects={Digest(held.name): held for held in objects(store)})
    _take_packs(store, found)
    return found.objects


def _take_packs(store: Store, found: Inventory) -> None:
    for item in entries(f"{store.root}/v2/packs"):
        with suppress(FileNotFoundError, NotAPack):
            pack = store.objects.packs.load(item.name)
            seen = os.lstat(pack.path)
            held = Held(pack.name, on_disk(pack.size), seen.st_mtime, latest(seen), is_pack=True)
            found.packs[pack.name] = held
            found.members[pack.name] = {digest: size for digest, _, size in pack.items()}
            for digest in found.members[pack.name]:
                if not (digest in found.objects and found.objects[digest].whole):
                    found.objects[digest] = held


def _below(store: Store, found: Inventory, tops: set[Digest]) -> Iterator[Digest]:
    """Reads every tree once, however many records name it."""
    pending = list(tops)
    seen = set(tops)
    for tree in pending:  # Grows while it is walked: no recursion over what others wrote.
        if tree not in found.objects:
            continue
        below: list[Digest] = []
        content = _peek(store, tree, canonical.BYTES_MAX)
        if content is None:  # Then nothing that needs it is whole.
            found.objects[tree] = replace(found.objects[tree], whole=False)
            continue
        with suppress(RequestError):
            for _, entry in parse_tree(content):
                if isinstance(entry, File | Tree):
                    below.append(entry.digest)
                if isinstance(entry, Tree) and entry.digest not in seen:
                    seen.add(entry.digest)
                    pending.append(entry.digest)
        found.trees[tree] = tuple(below)
        yield tree


# Objects


def objects(store: Store) -> Iterator[Held]:
    """Every loose object by name, in order; no blob is read."""
    top = f"{store.root}/v2/objects"
    for outer in entries(top):
        if _is_shard(outer):
            for inner in entries(outer.path):
                if _is_shard(inner):
                    yield from _in_shard(inner.path, outer.name + inner.name)


def about_how_many(store: Store) -> int:
    """Objects, by looking into an eighth of the shards: digests are spread evenly."""
    outers = [outer for outer in entries(f"{store.root}/v2/objects") if _is_shard(outer)][::8]
    names = sum(len(entries(inner.path)) for outer in outers for inner in entries(outer.path))
    return max(1, names * 4)  # Two files an object.


def _is_shard(item: os.DirEntry[str]) -> bool:
    return _SHARD.fullmatch(item.name) is not None and item.is_dir(follow_symlinks=False)


def _in_shard(directory: str, prefix: str) -> Iterator[Held]:
    halves: dict[str, list[os.stat_result | None]] = {}
    barred: set[str] = set()
    """Where a directory stands, nothing is collected: that is for a put or a repair."""
    for item in entries(directory):
        name = item.name.removesuffix(".meta")
        if is_digest(name) and name.startswith(prefix):
            with suppress(FileNotFoundError):  # It went away since it was listed.
                found = item.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    barred.add(name)
                halves.setdefault(name, [None, None])[item.name != name] = found
    for name, (blob, meta) in halves.items():
        if name in barred:
            continue
        there = [half for half in (blob, meta) if half is not None]
        yield Held(
            name,
            size=sum(on_disk(half.st_size) for half in there),
            used=(meta or there[0]).st_mtime,
            touched=latest(*there),
            whole=len(there) == 2,
        )


def latest(*found: os.stat_result) -> float:
    """The latest of all times of files: no clock that was set wrong, and no copy, makes something new look old."""
    return max(max(one.st_mtime, one.st_ctime) for one in found)


# What keeps them


def items(store: Store, trees: set[Digest]) -> Iterator[Item]:
    """Everything that keeps objects; the trees that it names are added to `trees`."""
    for scope in store.scopes():
        yield from _items_of(scope.base, trees)
    for file in entries(f"{store.root}/runs"):
        yield from _run(file, store, trees)


def _items_of(records: str, trees: set[Digest]) -> Iterator[Item]:
    """Of the records of one writer."""
    for shard in entries(records):
        if _is_shard(shard):
            for file in entries(shard.path):
                yield from _record(file, "record", Digest(file.name), trees)
    for shard in entries(f"{records}/paths"):
        if _is_shard(shard):
            for file in entries(shard.path):
                yield from _plain(file, "paths")
    for folder in entries(f"{records}/divergences"):
        if is_digest(folder.name) and folder.is_dir(follow_symlinks=False):
            for file in entries(folder.path):
                yield from _record(file, "divergence", Digest(folder.name), trees)


def _record(file: os.DirEntry[str], kind: Kind, request_digest: Digest, trees: set[Digest]) -> Iterator[Item]:
    for item in _plain(file, kind):
        content = _content(file.path)
        parts = split_record(content, request_digest) if content and is_digest(request_digest) else None
        if parts is None:
            yield item  # Damaged, or gone: it keeps nothing.
            continue
        trees |= _digests(_TREE, parts[1]) | _digests(_TREE, parts[2])
        outputs, _, rest = parts[2].rpartition(b',"request_digest":"')
        needs = _digests(_NAMED, outputs) | (_digests(_NAMED, rest) - {EMPTY})  # A silent step has nothing to lose.
        yield replace(item, needs=needs, names=_digests(_ANY, parts[1]) | {EMPTY})


def _run(file: os.DirEntry[str], store: Store, trees: set[Digest]) -> Iterator[Item]:
    """A run keeps its journal, and so the manifest, what steps wrote, and results that no record holds."""
    for item in _plain(file, "run"):
        try:
            run = store.runs.get(file.name)
        except (UnknownName, IntegrityError):
            yield item
            continue
        journal = _peek(store, run.journal, JOURNAL_MAX) or b""
        trees |= _digests(_TREE, journal)
        yield replace(item, needs=frozenset({run.journal}), names=_digests(_ANY, journal), workspace=run.workspace)


def _digests(pattern: re.Pattern[bytes], content: bytes) -> frozenset[Digest]:
    return frozenset(Digest(name.decode()) for name in pattern.findall(content))


def _plain(file: os.DirEntry[str], kind: Kind) -> Iterator[Item]:
    with suppress(FileNotFoundError):
        found = file.stat(follow_symlinks=False)
        if stat.S_ISREG(found.st_mode):
            yield Item(kind, file.name, file.path, on_disk(found.st_size), found.st_mtime, latest(found))


def _content(path: str) -> bytes | None:
    """None if nothing that could be a record stands there. Raises OSError: what cannot be read may keep much."""
    try:
        return read_small(path, canonical.BYTES_MAX)
    except (NotAFile, ValueError):
        return None


def _peek(store: Store, digest: Digest, size_max: int) -> bytes | None:
    """An object that names others; None if it is gone or damaged. Raises EnvironmentFault if it cannot be read."""
    try:
        return store.objects.peek(digest, size_max=size_max)
    except CorruptObject:
        return None
    except MissingObject as missing:
        if os.path.lexists(store.objects.path(digest)):
            raise EnvironmentFault(missing.what, facts=missing.facts) from missing
        return None
