"""Immutable bytes by their digest: checked at every write and read; a bad one is set aside and is a miss.

A loose object is two files, `AB/CD/<digest>.meta` and then `AB/CD/<digest>`: the rename of the second is the
moment at which it exists (docs/decisions/0003-object-commit-point.md). Small ones of a directory may lie together
in a pack instead. Knows nothing of requests, steps or outputs.
"""

from __future__ import annotations

import errno
import heapq
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress

from ..core.digest import Digest, object_digest
from ..core.errors import CorruptObject, EnvironmentFault, MissingObject, RequestError, UsageError
from ..core.fields import dataclass
from . import encoding as enc
from .checking import judge, walk
from .copying import check_size, clone, is_empty, is_fresh, read_whole
from .encoding import Meta
from .files import DIRECTORY_MODE, FILE_MODE, HOST_FAILED, PIECE, READ, fault, kind_of, write_all
from .packs import BYTES_MAX as PACK_BYTES_MAX
from .packs import OBJECT_MAX, OBJECTS_MAX, Packs
from .place import WHOLE, Part, Place, Problem
from .quarantine import condemn, remove_foreign
from .reading import Bad, Opened, copy_verified, open_object, open_once, pieces, read_plain, size_of, stamp
from .writing import Writer

WRITABLE_BY_OTHERS = 0o022
PACK_LEAST = 16
"""Fewer small files than this are not worth a pack."""

COLD_MIN = 16 << 10
"""From this size on what is seldom read is compressed: below, two files take up whole blocks anyway (ADR 12)."""


@dataclass(slots=True)
class Stats:
    objects: int = 0
    original_bytes: int = 0
    stored_bytes: int = 0
    compressed: int = 0
    packed: int = 0
    packs: int = 0


class Objects:
    """The objects of one store. Safe for any number of threads and processes, without a lock."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.packs = Packs(place)
        self._writer = Writer(place)

    def path(self, digest: Digest) -> str:
        """Where the blob lies or would lie. Raises RequestError for what is no digest: that is never a path."""
        return self.place.path(digest)

    # -- writing ------------------------------------------------------------------------------------------

    def put(self, content: bytes, *, encoding: str = enc.IDENTITY) -> Digest:
        """Stores bytes and returns their name. Raises EnvironmentFault; then nothing was stored."""
        digest = object_digest(content)
        if not self._writer.holds(digest, len(content)):
            with self.place.writing(digest, len(content)):
                self._writer.insist(lambda: self._writer.put_new(digest, content, encoding))
        return digest

    def put_cold(self, content: bytes) -> Digest:
        """Stores what is seldom read (captured output, journals, lists), compressed where that pays."""
        return self.put(content, encoding=enc.ZSTD if len(content) >= COLD_MIN else enc.IDENTITY)

    def put_packed(self, packed: enc.Packed) -> Digest | None:
        """Stores what was packed on the way; not where that saved nothing. Raises EnvironmentFault."""
        digest, size, frame = packed.end()
        if len(frame) >= size:
            return None
        if not self._writer.holds(digest, size):
            with self.place.writing(digest, size):
                self._writer.insist(lambda: self._writer.put_frame(digest, size, frame))
        return digest

    def put_file(self, fd: int, *, expect_size: int | None = None, size_max: int | None = None) -> tuple[Digest, int]:
        """Copies a regular file from its beginning into the store while hashing what is copied.

        The store's file is always a fresh inode: whoever still holds the source cannot change it. Raises
        Refused beyond `size_max`, IntegrityError if the size is not `expect_size`, and EnvironmentFault.
        """
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{kind_of(status.st_mode)} cannot be stored, only a file")
            size = status.st_size
            if size <= PIECE:
                content = read_whole(fd, size)
        except OSError as error:
            raise fault(error, "reading a file to be stored", self.place.base) from error
        if size > PIECE:
            with self.place.writing(None, size):
                return self._writer.insist(lambda: self._writer.copy_in(fd, size, expect_size, size_max))
        check_size(len(content), expect_size, size_max)
        return self.put(content), len(content)

    def put_path(self, path: str, *, dir_fd: int | None = None) -> tuple[Digest, int]:
        """Stores the regular file at a path; a link is not followed, a FIFO not waited for."""
        try:
            descriptor = os.open(path, READ, dir_fd=dir_fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise UsageError(f'"{path}" is not a regular file') from error
            if error.errno in HOST_FAILED:
                raise fault(error, "reading a file to be stored", self.place.base) from error
            raise UsageError(f'cannot read "{path}"', facts=[("cause", error.strerror or str(error))]) from error
        try:
            return self.put_file(descriptor)
        finally:
            os.close(descriptor)

    def packing(self) -> Packing:
        """Gathers the small files of one directory, to be stored together."""
        return Packing(self)

    # -- looking ------------------------------------------------------------------------------------------

    def has(self, digest: Digest) -> bool:
        """Whether the object is there and of the right size; its bytes are not read. Never raises."""
        return self.size(digest) is not None

    def size(self, digest: Digest) -> int | None:
        """The size of the plain bytes, which are not read; None if the object is not there. Never raises."""
        for look in (self.packs.hot_size, self._loose_size, self.packs.size_of):
            found = look(digest)
            if found is not None:
                return found
        return None

    def _loose_size(self, digest: Digest) -> int | None:
        return size_of(self.place, digest)

    # -- reading ------------------------------------------------------------------------------------------

    def get(self, digest: Digest, *, size_max: int | None = None) -> bytes:
        """The bytes, verified. Raises MissingObject, or CorruptObject: both are a miss to a build."""
        return self._get(digest, size_max, is_use=True)

    def peek(self, digest: Digest, *, size_max: int | None = None) -> bytes:
        """As `get`, for those who look after the store: it does not count as a use, and changes nothing."""
        return self._get(digest, size_max, is_use=False)

    def _get(self, digest: Digest, size_max: int | None, *, is_use: bool) -> bytes:
        packed = self.packs.hot_get(digest, is_use=is_use)
        if packed is None:
            plain = read_plain(self.place, digest, is_use=is_use)
            if plain is not None:
                _check_limit(digest, len(plain), size_max)
                return plain
            try:
                with self._reading(digest, is_use=is_use) as opened:
                    _check_limit(digest, opened.meta.original_size, size_max)
                    return b"".join(pieces(opened))
            except (MissingObject, CorruptObject):
                packed = self.packs.get(digest, is_use=is_use)
                if packed is None:
                    raise
        _check_limit(digest, len(packed), size_max)
        return packed

    def copy_to(self, digest: Digest, fd: int) -> None:
        """Writes the bytes at `fd`'s position. They are verified only when this returns: rename afterwards.

        Raises as `get`; an OSError of the target is the caller's.
        """
        if (self.size(digest) or 0) <= OBJECT_MAX:
            write_all(fd, self.get(digest))
            return
        with self._reading(digest) as opened:
            plain = opened.status.st_size == opened.meta.original_size
            if plain and is_fresh(fd):
                copy_verified(opened, fd)
                return
            if plain and is_empty(fd) and clone(opened.descriptor, fd):
                for _ in pieces(opened):  # The target's blocks are these.
                    pass
                return
            for piece in pieces(opened):
                write_all(fd, piece)

    def check(self, digest: Digest, size: int | None = None) -> bool:
        """Whether the object is wholly good (and has that size). A bad one is quarantined. Never raises."""
        with suppress(MissingObject, CorruptObject, EnvironmentFault, RequestError), self._reading(digest) as opened:
            for _ in pieces(opened):
                pass
            return size is None or opened.meta.original_size == size
        with suppress(EnvironmentFault):
            packed = self.packs.get(digest)
            return packed is not None and size in (None, len(packed))
        return False

    def is_good(self, digest: Digest) -> bool:
        """As `check`; what this process has just written, or verified before, is not read again."""
        return digest in self.place.verified or self.check(digest)

    def file(self, digest: Digest) -> str:
        """The absolute path of the verified plain blob, mode 0444. Raises as `get`, and EnvironmentFault.

        Verified once for each state of the inode: whoever changes it in place changes its ctime. What lies in
        a pack gets a blob of its own.
        """
        path = self.path(digest)
        known = self.place.verified.get(digest)
        if known is not None:
            with suppress(OSError):
                if stamp(os.lstat(path)) == known:
                    return path
        try:
            with self._reading(digest) as opened:
                exposed = opened.status.st_mode & WRITABLE_BY_OTHERS and self.place.refusal is None
                if opened.status.st_size == opened.meta.original_size and not exposed:
                    self._verify_in_place(digest, opened)
                else:  # Compressed, or others may write it: also after it was verified.
                    with self.place.writing(digest, opened.meta.original_size):
                        self._writer.make_plain(digest, opened)
        except (MissingObject, CorruptObject):
            packed = self.packs.get(digest)
            if packed is None:
                raise
            self.put(packed)
        return path

    def _verify_in_place(self, digest: Digest, opened: Opened) -> None:
        if opened.status.st_mode & FILE_MODE != FILE_MODE:
            with suppress(OSError):
                os.fchmod(opened.descriptor, FILE_MODE)  # A store that was copied under a strict umask.
        before = stamp(os.fstat(opened.descriptor))
        for _ in pieces(opened):
            pass
        if stamp(os.fstat(opened.descriptor)) == before:
            self.place.verified[digest] = before

    def _reading(self, digest: Digest, *, is_use: bool = True) -> _Reading:
        return _Reading(self, digest, is_use=is_use)

    # -- all of them --------------------------------------------------------------------------------------

    def verify(
        self, progress: Callable[[int, int], None] | None = None, *, repair: bool = False, part: Part = WHOLE
    ) -> Iterator[Problem]:
        """Reads every object and names each damaged one once, in order. `progress(objects, bytes)` so far.

        Nothing is changed unless `repair`, which moves what is damaged or foreign into quarantine. All parts
        together are the whole.
        """
        objects = total = 0
        for found in walk(self.place, part):
            if isinstance(found, Problem):
                if repair:
                    remove_foreign(self.place, found)
                yield found
                continue
            problem, size = judge(self.place, found, repair=repair)
            if problem is not None:
                yield problem
            objects, total = objects + 1, total + size
            if progress is not None:
                progress(objects, total)
        for pack in self.packs.verify(repair=repair, part=part):
            if isinstance(pack, Problem):
                yield pack
                continue
            objects, total = objects + len(pack), total + pack.size
            if progress is not None:
                progress(objects, total)

    def ls(self) -> Iterator[tuple[Digest, Meta]]:
        """Every object that is sane by its size, once, in order; no blob is read."""
        previous = None
        packed = (_packed(pack.items()) for pack in self.packs)
        for digest, meta in heapq.merge(self._loose(), *packed, key=lambda item: item[0]):
            if digest != previous:
                yield digest, meta
            previous = digest

    def _loose(self) -> Iterator[tuple[Digest, Meta]]:
        for found in walk(self.place):
            if not isinstance(found, Problem):
                with suppress(Bad, MissingObject, EnvironmentFault):
                    opened = open_once(self.place, found)
                    os.close(opened.descriptor)
                    yield found, opened.meta

    def stats(self) -> Stats:
        stats = Stats()
        for pack in self.packs:
            stats.packs += 1
            stats.packed += len(pack)
        for _, meta in self.ls():
            stats.objects += 1
            stats.original_bytes += meta.original_size
            stats.stored_bytes += meta.stored_size
            stats.compressed += meta.encoding == enc.ZSTD
        return stats


class Packing:
    """`add` the small files of one directory, then `close`: they lie in packs, or loose if they are few."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._held: dict[Digest, bytes] = {}
        self._size = 0
        self._packed = False

    def add(self, content: bytes) -> Digest:
        """The name of at most OBJECT_MAX bytes; they are stored when this is closed. Raises EnvironmentFault."""
        assert len(content) <= OBJECT_MAX
        digest = object_digest(content)
        if digest in self._held or self._objects.has(digest):
            return digest
        if self._size + len(content) > PACK_BYTES_MAX or len(self._held) == OBJECTS_MAX:
            self._flush()
        self._held[digest] = content
        self._size += len(content)
        return digest

    def close(self) -> None:
        """Stores what is still held. Raises EnvironmentFault."""
        if len(self._held) >= PACK_LEAST or (self._packed and self._held):
            self._flush()
        for content in self._held.values():
            self._objects.put(content)
        self._held = {}

    def _flush(self) -> None:
        self._objects.packs.write(self._held)
        self._held, self._size, self._packed = {}, 0, True


class _Reading:
    """`with` an open loose object: closed at the end, and set aside if its bytes turn out to be wrong."""

    __slots__ = ("_digest", "_is_use", "_objects", "_opened")

    def __init__(self, objects: Objects, digest: Digest, *, is_use: bool) -> None:
        self._objects = objects
        self._digest = digest
        self._is_use = is_use

    def __enter__(self) -> Opened:
        try:
            self._opened = open_object(self._objects.place, self._digest, is_use=self._is_use)
        except Bad as bad:
            raise condemn(self._objects.place, self._digest, bad, is_use=self._is_use) from bad
        return self._opened

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        os.close(self._opened.descriptor)
        if isinstance(error, Bad):
            raise condemn(self._objects.place, self._digest, error, is_use=self._is_use) from error


def _check_limit(digest: Digest, size: int, size_max: int | None) -> None:
    if size_max is not None and size > size_max:
        raise CorruptObject(
            f"object {digest} is larger than it may be", facts=[("size", str(size)), ("limit", str(size_max))]
        )


def _packed(items: Iterator[tuple[Digest, int, int]]) -> Iterator[tuple[Digest, Meta]]:
    for digest, _, size in items:
        yield digest, Meta(digest, enc.IDENTITY, size, size, digest)


assert DIRECTORY_MODE & 0o005 == 0o005  # An unprivileged sandbox reads through the store's directories.
