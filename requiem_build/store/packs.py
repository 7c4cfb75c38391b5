"""Many small objects in one file: a directory output's small files must not become two files each.

    16 bytes   `requiem-pack/1` and two newlines
     8 bytes   how many objects, little-endian
    48 bytes   for each, sorted by digest: its digest (32), its offset from the file's beginning (8), its size (8)
    the rest   the objects' bytes in the order of the digests, without gaps

A pack's name is the `cas:` digest of everything before the first object: a list that was changed has no pack's
name, and each object is proved by its own. It appears by one rename, whole or not at all.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress

from ..core.digest import Digest, is_digest, object_digest
from ..core.errors import EnvironmentFault, IntegrityError
from ..core.fields import dataclass
from .durability import sync_path
from .files import READ, ensure_directory, fault, move_aside, write_all
from .place import WHOLE, Part, Place, Problem
from .uses import GRAIN_S

MAGIC = b"requiem-pack/1\n\n"
OBJECTS_MAX = 1 << 16
BYTES_MAX = 32 << 20
"""Of all objects in a pack: a writer holds them in memory, and a damaged one is written again without them."""

OBJECT_MAX = 64 << 10
"""Larger files are worth two files of their own: the sandbox binds them as they lie."""

TABLE_AFTER = 64
TABLES_MAX = 4
"""After so many questions a list of up to 64 Ki objects is made a table, which takes some milliseconds, and so many
are kept."""
_COUNT = struct.Struct("<Q")
_ITEM = struct.Struct("<32sQQ")
_HEAD = len(MAGIC) + _COUNT.size
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM)


class NotAPack(Exception):
    """What stands in a pack's place; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack's list, checked against its name; `size` is the whole file's, in bytes; `used` its last use."""

    name: str
    path: str
    index: bytes
    size: int
    used: float

    def __len__(self) -> int:
        return (len(self.index) - _HEAD) // _ITEM.size

    def find(self, digest: bytes) -> tuple[int, int] | None:
        """Offset and size of an object; None if it is not here, or lies beyond the file's end."""
        low, high, index = 0, len(self), self.index
        while low < high:
            middle = (low + high) // 2
            at = _HEAD + middle * _ITEM.size
            if index[at : at + 32] < digest:
                low = middle + 1
            else:
                high = middle
        if low == len(self):
            return None
        found, offset, size = _ITEM.unpack_from(index, _HEAD + low * _ITEM.size)
        return (offset, size) if found == digest and self.is_inside(offset, size) else None

    def is_inside(self, offset: int, size: int) -> bool:
        """Whether an object may lie there."""
        return size <= OBJECT_MAX and len(self.index) <= offset and offset + size <= self.size

    def items(self) -> Iterator[tuple[Digest, int, int]]:
        """Digest, offset and size of every object, by digest."""
        for digest, offset, size in _ITEM.iter_unpack(self.index[_HEAD:]):
            yield Digest(digest.hex()), offset, size


def make_index(contents: Mapping[Digest, bytes]) -> bytes:
    """Everything before the first object of a pack of these."""
    parts = [MAGIC, _COUNT.pack(len(contents))]
    offset = _HEAD + len(contents) * _ITEM.size
    for digest in sorted(contents):
        parts.append(_ITEM.pack(bytes.fromhex(digest), offset, len(contents[digest])))
        offset += len(contents[digest])
    return b"".join(parts)


def packed_size(sizes: Iterable[int]) -> int:
    """How many bytes a pack of objects of these sizes has."""
    return sum((_ITEM.size + size for size in sizes), _HEAD)


class _Held:
    """A descriptor that is closed when nobody reads through it any more."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class Packs:
    """The packs of one store. Safe for any number of threads and processes, without a lock."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._seen = -1
        self._known: dict[str, Pack] = {}
        self._hot: Pack | None = None
        self._tables: dict[str, dict[str, tuple[int, int]]] = {}
        self._asked = 0
        self._held: tuple[str, _Held] | None = None
        self._used: dict[str, float] = {}
        self._bad: set[tuple[str, Digest]] = set()

    # -- finding ------------------------------------------------------------------------------------------

    def size_of(self, digest: Digest) -> int | None:
        """The size of an object that lies in some pack; its bytes are not read. Never raises."""
        for pack, _, size in self._holding(digest):
            self._hot = pack  # What is asked for next lies there too, as a rule.
            self._note_use(pack)
            return size
        return None

    def hot_size(self, digest: Digest) -> int | None:
        """As `size_of`, by a look into the pack that was last read from alone: no system call."""
        found = self._in_hot(digest)
        return None if found is None else found[2]

    def hot_get(self, digest: Digest, *, is_use: bool = True) -> bytes | None:
        """As `get`, from the pack that was last read from alone; None also if its bytes turn out to be wrong."""
        found = self._in_hot(digest)
        content = None if found is None else self._read(*found)
        if found is None or content is None or object_digest(content) != digest:
            return None
        if is_use:
            self._note_use(found[0])
        return content

    def _in_hot(self, digest: Digest) -> tuple[Pack, int, int] | None:
        hot = self._hot
        if hot is None or not is_digest(digest) or (hot.name, digest) in self._bad:
            return None
        found = self._find(hot, digest)
        return None if found is None else (hot, *found)

    def _find(self, pack: Pack, digest: Digest) -> tuple[int, int] | None:
        """As `pack.find`; where much is asked for, a pack's list becomes a table."""
        table = self._tables.get(pack.name)
        if table is None:
            self._asked += 1
            if self._asked % TABLE_AFTER:
                return pack.find(bytes.fromhex(digest))
            while len(self._tables) >= TABLES_MAX:
                self._tables.pop(next(iter(self._tables)), None)
            table = {name: (offset, size) for name, offset, size in pack.items() if pack.is_inside(offset, size)}
            self._tables[pack.name] = table
        return table.get(digest)

    def get(self, digest: Digest, *, is_use: bool = True) -> bytes | None:
        """The verified bytes; None if no pack has them whole. A damaged pack is written anew without what is bad,
        unless it is only looked at.

        Raises EnvironmentFault if this host cannot read at all.
        """
        for _ in range(2):  # A pack may be written anew, under another name, between the look and the reading.
            for pack, offset, size in list(self._holding(digest)):
                content = self._read(pack, offset, size)
                if content is not None and object_digest(content) == digest:
                    self._hot = pack
                    if is_use:
                        self._note_use(pack)
                    return content
                if is_use:
                    self._bad.add((pack.name, digest))
                    self._mend(pack)
            if self._seen != -1:
                break
        return None

    def _note_use(self, pack: Pack) -> None:
        """Keeps a pack from collection for a while. Another user's is left to his own uses: it is too large to copy."""
        now = time.time()
        if self._place.refusal is None and not -GRAIN_S < now - self._used.get(pack.name, pack.used) < GRAIN_S:
            self._used[pack.name] = now
            with suppress(OSError):
                os.utime(pack.path, follow_symlinks=False)

    def _holding(self, digest: Digest) -> Iterator[tuple[Pack, int, int]]:
        if not is_digest(digest):
            return
        hot = self._hot
        self._refresh()
        for pack in ([hot] if hot is not None else []) + [pack for pack in self._known.values() if pack is not hot]:
            found = self._find(pack, digest)
            if found is not None and pack.name in self._known and (pack.name, digest) not in self._bad:
                yield pack, *found

    def _refresh(self) -> None:
        """Looks at the directory again if anything came or went."""
        try:
            changed = os.stat(self._place.packs).st_mtime_ns
            if changed == self._seen:
                return
            names = os.listdir(self._place.packs)
        except OSError:
            self._known, self._seen = {}, -1
            return
        known = {}
        for name in sorted(names):
            with suppress(NotAPack, OSError):
                known[name] = self._known.get(name) or self.load(name)
        self._known, self._seen = known, changed

    def load(self, name: str) -> Pack:
        """Raises NotAPack, or OSError."""
        path = f"{self._place.packs}/{name}"
        if not is_digest(name):
            raise NotAPack("it is not named as a pack")
        try:
            descriptor = os.open(path, READ)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise NotAPack("it is not a file") from error
            raise
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise NotAPack("it is not a file")
            index = os.read(descriptor, _HEAD)
            if len(index) != _HEAD or not index.startswith(MAGIC):
                raise NotAPack("it does not begin as a pack")
            (count,) = _COUNT.unpack_from(index, len(MAGIC))
            if count > OBJECTS_MAX:
                raise NotAPack("it claims more objects than a pack may hold")
            index += os.read(descriptor, count * _ITEM.size)
        finally:
            os.close(descriptor)
        if len(index) != _HEAD + count * _ITEM.size or object_digest(index) != name:
            raise NotAPack("its list does not give its name")
        return Pack(name, path, index, status.st_size, status.st_mtime)

    def _read(self, pack: Pack, offset: int, size: int) -> bytes | None:
        held = self._held
        if held is None or held[0] != pack.name:
            try:
                held = self._held = (pack.name, _Held(os.open(pack.path, READ)))
            except OSError as error:
                if error.errno in _GONE:
                    self._forget(pack)
                    return None
                raise fault(error, f"reading pack {pack.name}", self._place.base) from error
        try:
            content = os.pread(held[1].number, size, offset)
        except OSError:
            return None
        return content if len(content) == size else None

    def _forget(self, pack: Pack) -> None:
        self._seen, self._held = -1, None
        self._tables.pop(pack.name, None)
        if self._hot is pack:
            self._hot = None

    # -- writing ------------------------------------------------------------------------------------------

    def write(self, contents: Mapping[Digest, bytes]) -> str:
        """A pack of these, which their caller has hashed; returns its name. Raises EnvironmentFault."""
        index = make_index(contents)
        name = object_digest(index)
        path = f"{self._place.packs}/{name}"
        size = len(index) + sum(map(len, contents.values()))
        with self._place.writing(None, size):
            self._place.scratch.written += size
            self._write(path, index, contents)  # Over one of that name, which may be damaged.
            self._know_anew(name)
            if self._place.durable:
                sync_path(self._place.packs)
        return name

    def _know_anew(self, name: str) -> None:
        """What was found out about a pack of that name was about another file."""
        self._seen, self._held, self._hot = -1, None, None
        self._tables.pop(name, None)
        self._known = {other: pack for other, pack in self._known.items() if other != name}
        self._bad = {(other, digest) for other, digest in tuple(self._bad) if other != name}

    def _write(self, path: str, index: bytes, contents: Mapping[Digest, bytes]) -> None:
        scratch = self._place.scratch
        descriptor, temporary = scratch.create()
        try:
            try:
                write_all(descriptor, b"".join([index, *(contents[digest] for digest in sorted(contents))]))
                if self._place.durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            try:
                os.rename(temporary, path)
            except IsADirectoryError:
                ensure_directory(self._place.quarantine)
                move_aside(path, f"{self._place.quarantine}/{os.path.basename(path)}.{scratch.name()}")
                os.rename(temporary, path)
            except FileNotFoundError:  # The store was deleted meanwhile.
                for directory in (self._place.base, self._place.packs):
                    os.makedirs(os.path.dirname(directory), exist_ok=True)
                    ensure_directory(directory)
                os.rename(temporary, path)
        except BaseException:
            scratch.discard(temporary)
            raise

    def remove(self, name: str) -> None:
        """Deletes a pack: every object that lies only in it becomes a miss. Raises OSError."""
        with suppress(FileNotFoundError):
            os.unlink(f"{self._place.packs}/{name}")
        self._seen = -1

    # -- damage -------------------------------------------------------------------------------------------

    def _mend(self, pack: Pack) -> None:
        """Writes what is good of a damaged pack into a new one and sets the old one aside; what cannot be, stays."""
        self._forget(pack)
        if self._place.refusal is not None or not os.path.lexists(pack.path):
            return
        with suppress(OSError, EnvironmentFault):
            good = self.read_all(pack)
            if len(good) == len(pack):
                return
            if good:
                self.write(good)
            self.set_aside(pack.name)

    def read_all(self, pack: Pack, wanted: Collection[Digest] | None = None) -> dict[Digest, bytes]:
        """What is good of a pack, or of what is wanted of it. Raises EnvironmentFault if this host cannot read it."""
        good, chosen = {}, None if wanted is None else frozenset(wanted)
        for digest, offset, size in pack.items():
            if size <= OBJECT_MAX and (chosen is None or digest in chosen):
                content = self._read(pack, offset, size)
                if content is not None and object_digest(content) == digest:
                    good[digest] = content
        return good

    def set_aside(self, name: str) -> None:
        """Moves what stands in a pack's place into quarantine."""
        with suppress(OSError, IntegrityError):
            if self._place.refusal is None:
                ensure_directory(self._place.quarantine)
                target = f"{self._place.quarantine}/{name[:64]}.{self._place.scratch.name()}.pack"
                os.rename(f"{self._place.packs}/{name}", target)
        self._seen = -1

    def __iter__(self) -> Iterator[Pack]:
        """Every readable pack, by name."""
        self._seen = -1
        self._refresh()
        yield from self._known.values()

    def verify(self, *, repair: bool = False, part: Part = WHOLE) -> Iterator[Problem | Pack]:
        """Reads every pack: what is damaged, object by object, and each pack when it was read."""
        try:
            names = sorted(os.listdir(self._place.packs))
        except FileNotFoundError:
            return
        for name in names:
            if int.from_bytes(name.encode()[:8], "big") % part[1] != part[0]:
                continue
            try:
                pack = self.load(name)
            except FileNotFoundError:
                continue
            except (NotAPack, OSError) as error:
                yield Problem(f"v2/packs/{name}", str(error))
                if repair:
                    self.set_aside(name)
                continue
            problems = list(self._problems(pack))
            yield from problems
            if problems and repair:
                self._mend(pack)
            yield pack

    def _problems(self, pack: Pack) -> Iterator[Problem]:
        where, expected, previous = f"v2/packs/{pack.name}", len(pack.index), ""
        for digest, offset, size in pack.items():
            if offset != expected or digest <= previous or size > OBJECT_MAX:
                yield Problem(where, "its list is not in order", digest)
                continue
            expected, previous = offset + size, digest
            content = self._read(pack, offset, size)
            if content is None:
                yield Problem(where, "its bytes are cut off", digest)
            elif object_digest(content) != digest:
                yield Problem(where, "its bytes do not give its name", digest)
        if pack.size > expected:
            yield Problem(where, "something follows its last object")
