"""Where everything lies: a store's root, the mark of its format, and the three families in it.

    <root>/requiem-store     {"format":2,"hash":"blake3-256"}
    <root>/CACHEDIR.TAG      backups leave it out
    <root>/.gitignore        `*`
    <root>/v2/objects/AB/CD/<digest>  and <digest>.meta
    <root>/v2/tmp            unfinished files, named after their process
    <root>/v2/quarantine     what was found damaged
    <root>/v2/packs/<name>   small files of one directory output, together
    <root>/v2/leases         one file for each running build
    <root>/v2/size           about how large all this is
    <root>/v2/collecting     locked by the one process that collects
    <root>/records/AB/<request digest>
    <root>/records/paths/AB/<request digest>
    <root>/records/divergences/<request digest>/<result digest>
    <root>/records/signed/<key id>/  the same again for what one key signed
    <root>/runs/<run id>

The root keeps the umask's mode, so that a private root protects all; directories within are 0755 and files 0444.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING

from ..core import canonical
from ..core.digest import HASH, IS_FALLBACK, Digest
from ..core.entries import Entry, File, Link, Tree, parse_tree
from ..core.errors import (
    CorruptObject,
    EnvironmentFault,
    IntegrityError,
    MissingObject,
    RequestError,
    UsageError,
)
from ..core.fields import dataclass
from ..core.result import Result
from . import leases
from .durability import BATCH, FULL, sync_file_system, sync_path
from .files import NotAFile, Scratch, ensure_directory, fault, kind_of, read_small
from .growth import Growth
from .objects import Objects, Stats
from .outbox import Outbox
from .place import Place
from .records import Records
from .runs import Runs

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 2
MARK = "requiem-store"
_MARK_CONTENT = canonical.encode_plain({"format": FORMAT, "hash": HASH}) + b"\n"
_TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# This directory is a store of Requiem, a build runner: everything in it can be made again.\n"
)
_OURS = frozenset({MARK, "v1-names", "CACHEDIR.TAG", ".gitignore", "v2", "records", "runs", "verdicts"})
_DIRECTORIES = (
    *("v2", "v2/tmp", "v2/objects", "v2/quarantine", "v2/packs"),
    *("records", "records/paths", "records/divergences", "runs"),
)


@dataclass(frozen=True, slots=True)
class Contents:
    """What `cas stats` counts."""

    objects: Stats
    records: int
    divergences: int
    runs: int
    quarantined: int
    temporary: int


class Store:
    """Objects, records and runs under one root. Opening it makes it, unless `read_only`.

    Raises UsageError for a directory that holds something else, IntegrityError for the format of another
    version, EnvironmentFault where the host refuses. On a file system that cannot be written an existing
    store opens all the same: `refusal` then says why nothing can be put. `durability` is one of `DURABILITIES`.
    """

    below: Store | None = None
    """The store that cannot be written and is read through this one (`standin.py`)."""

    def __init__(self, root: str | os.PathLike[str], *, read_only: bool = False, durability: str = BATCH) -> None:
        place = self._root = os.path.realpath(root) + (f"-{HASH}" if IS_FALLBACK else "")
        self._scratch = Scratch(f"{place}/v2/tmp")
        try:
            known = _read_mark(place)
            self.refusal = _refusal(place, read_only=read_only, known=known)
            if self.refusal is None:
                if not known:
                    _check_unclaimed(place)
                _make(place, self._scratch, known=known)
        except OSError as error:
            raise fault(error, f"opening the store {place}", place) from error
        durable = durability == FULL
        self.durability = durability
        self.objects = Objects(Place(f"{place}/v2", self._scratch, refusal=self.refusal, durable=durable))
        self.records = Records(
            f"{place}/records", f"{place}/v2/quarantine", self._scratch, refusal=self.refusal, durable=durable
        )
        self.outbox = Outbox(place, self.records, durability, refusal=self.refusal)
        self.runs = Runs(f"{place}/runs", self._scratch, refusal=self.refusal, durable=durable)
        self.growth = Growth(f"{place}/v2", self._scratch)
        if self.refusal is None:
            if not known:
                self.growth.begin()
            with suppress(OSError):
                self._scratch.sweep()

    def sync(self) -> None:
        """What was put is as durable on return as it ever will be. Raises EnvironmentFault."""
        if self.durability == BATCH and self.refusal is None:
            try:
                sync_file_system(self._root)
            except OSError as error:
                raise fault(error, "syncing the store", self._root) from error

    @property
    def scratch(self) -> Scratch:
        return self._scratch

    @property
    def root(self) -> Path:
        from pathlib import Path  # Which a build does without.

        return Path(self._root)

    @property
    def roots(self) -> tuple[str, ...]:
        """Where the files lie that `objects.file` gives; the root is the first."""
        return (self._root,)

    @property
    def written(self) -> Store:
        """What of it is written and collected, without what is only read through it."""
        return self

    def lease(self) -> AbstractContextManager[None]:
        """Pins what the holder puts and uses against collection, until it ends, however it ends."""
        return nullcontext() if self.refusal is not None else leases.held(f"{self._root}/v2", self._scratch)

    def signed_records(self, key_id: str) -> Records:
        """The scope of one key: what it signed, where no other writer's record can stand in the way."""
        if self.refusal is None and not os.path.isdir(f"{self._root}/records/signed"):
            ensure_directory(f"{self._root}/records/signed")
        base, durable = f"{self._root}/records/signed/{key_id}", self.durability == FULL
        return Records(base, f"{self._root}/v2/quarantine", self._scratch, refusal=self.refusal, durable=durable)

    def with_records(self, records: Records) -> Store:
        """The same store, whose records are found and filed in another way."""
        from copy import copy

        other = copy(self)
        other.records = records
        other.outbox = Outbox(self._root, records, self.durability, refusal=self.refusal)
        return other

    def scopes(self) -> Iterator[Records]:
        """The records of every writer: of nobody in particular, then of each key."""
        yield self.records
        for key_id in self.key_ids():
            yield self.signed_records(key_id)

    def key_ids(self) -> list[str]:
        """The keys that signed any record here, in order."""
        return sorted(_names(f"{self._root}/records/signed"))

    def missing(self, result: Result) -> list[Digest]:
        """Each object that a result needs and the store lacks, trees walked and verified; in order of first mention."""
        streams = (File(stream.digest, stream.size) for stream in (result.stdout, result.stderr))
        return self.missing_of([*result.outputs.values(), *streams])

    def missing_of(self, entries: Iterable[Entry]) -> list[Digest]:
        """As `missing`, of entries."""
        wanted = list(entries)
        absent: list[Digest] = []
        seen: set[tuple[Digest, bool]] = set()
        for entry in wanted:  # Grows while it is walked: no recursion over what others wrote.
            if isinstance(entry, Link) or (entry.digest, isinstance(entry, Tree)) in seen:
                continue
            seen.add((entry.digest, isinstance(entry, Tree)))
            if isinstance(entry, File):
                if not self.objects.has(entry.digest):
                    absent.append(entry.digest)
                continue
            children = self._children(entry)
            if children is None:
                absent.append(entry.digest)
            else:
                wanted.extend(children)
        return list(dict.fromkeys(absent))

    def _children(self, tree: Tree) -> list[Entry] | None:
        try:
            return [child for _, child in parse_tree(self.objects.get(tree.digest, size_max=canonical.BYTES_MAX))]
        except (MissingObject, CorruptObject, RequestError):
            return None

    def stats(self) -> Contents:
        return Contents(
            objects=self.objects.stats(),
            records=sum(1 for _ in self.records),
            divergences=sum(1 for _ in self.records.divergences()),
            runs=sum(1 for _ in self.runs),
            quarantined=len(list(_names(f"{self._root}/v2/quarantine"))),
            temporary=sum(1 for _ in self._scratch.paths()),
        )


def _names(directory: str) -> Iterator[str]:
    with suppress(FileNotFoundError):
        yield from os.listdir(directory)


def _read_mark(place: str) -> bool:
    """Whether the root bears the mark of this format. Raises IntegrityError for another format's."""
    path = f"{place}/{MARK}"
    try:
        content = read_small(path, 4096)
        if content is None or not content.strip(b"\0"):  # Without bytes: the power failed while it was made.
            return False
        mark = canonical.parse(content)
        number, primitive = mark["format"], mark["hash"]
    except (NotAFile, ValueError, RequestError, KeyError, TypeError) as error:
        raise IntegrityError(
            "the store's mark of its format is damaged", facts=[("path", path)], hint="is this really a store?"
        ) from error
    if type(number) is not int or number > FORMAT:
        raise IntegrityError(
            f"store format v{number} is newer than this requiem",
            facts=[("store", place), ("understood", f"v{FORMAT}")],
            hint="use the newer requiem, or another store with REQUIEM_CAS_DIR",
        )
    if number != FORMAT:
        raise _older(place)
    if primitive != HASH:  # The store says how its names are made, never an object.
        raise IntegrityError(f"the store's names are made by {primitive}, not {HASH}", facts=[("store", place)])
    return True


def mark_is_exact(root: str | os.PathLike[str]) -> bool:
    """Whether the mark of the format is byte for byte what this version writes."""
    with suppress(OSError, NotAFile, ValueError):
        return read_small(f"{root}/{MARK}", 4096) == _MARK_CONTENT
    return False


class OlderFormat(IntegrityError):
    """`requiem cas migrate` brings it to this one."""


def _older(place: str) -> OlderFormat:
    return OlderFormat("the store has the older format v1", facts=[("store", place)], hint="requiem cas migrate")


def _refusal(place: str, *, read_only: bool, known: bool) -> EnvironmentFault | None:
    if read_only:
        if not known:
            _check_unclaimed(place)
            raise UsageError(f'no store at "{place}"', hint="a build makes one")
        return EnvironmentFault("the store is open for reading only", facts=[("store", place)])
    objects = f"{place}/v2/objects"
    if known and os.path.isdir(objects) and not os.access(objects, os.W_OK | os.X_OK):
        number = errno.EROFS if os.statvfs(objects).f_flag & os.ST_RDONLY else errno.EACCES
        return fault(OSError(number, os.strerror(number), objects), "writing to the store", place)
    return None


def _check_unclaimed(place: str) -> None:
    """A root without the mark must be absent, empty, or a store whose making was interrupted."""
    try:
        found = os.lstat(place)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(f'the store "{place}" is {kind_of(found.st_mode)}, not a directory')
    names = sorted(os.listdir(place))
    if "objects" in names and os.path.isdir(f"{place}/objects"):
        raise _older(place)
    foreign = [name for name in names if name not in _OURS]
    if foreign:
        raise UsageError(
            f'"{place}" is not a store and not empty',
            facts=[("holds", ", ".join(foreign[:5]))],
            hint="give an empty or new directory",
        )


def _make(place: str, scratch: Scratch, *, known: bool) -> None:
    """Makes what is lacking, in an order in which being killed anywhere leaves what the next opening completes.

    `known`: it bears its mark.
    """
    make_directories(place)
    if not known:
        mark(place, scratch)


def make_directories(place: str) -> None:
    """All directories of a store. Raises OSError."""
    os.makedirs(place, exist_ok=True)
    for name in _DIRECTORIES:
        ensure_directory(f"{place}/{name}")


def mark(place: str, scratch: Scratch, *, durable: bool = False) -> None:
    """Says that everything is there. The mark itself is last: what bears it is complete. Raises OSError."""
    for name, content in ((".gitignore", b"*\n"), ("CACHEDIR.TAG", _TAG), (MARK, _MARK_CONTENT)):
        os.rename(scratch.write(content, durable=durable), f"{place}/{name}")
    if durable:
        sync_path(place)


def is_marked(place: str) -> bool:
    """Whether a store of this format stands there; one of an older format does not. Raises IntegrityError for newer."""
    try:
        return _read_mark(place)
    except OlderFormat:
        return False
