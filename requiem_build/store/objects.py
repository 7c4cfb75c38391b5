"""Immutable bytes by their digest: checked at every write and read; a bad one is set aside and is a miss.

An object is two files, `AB/CD/<digest>.meta` and then `AB/CD/<digest>`: the second rename is the moment at
which it exists (docs/decisions/0003-object-commit-point.md). Knows nothing of requests, steps or outputs.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from ..core.digest import Digest, Hasher, is_digest, object_digest, parse_digest
from ..core.errors import (
    CorruptObject,
    EnvironmentFault,
    IntegrityError,
    MissingObject,
    Refused,
    RequestError,
    UsageError,
)
from ..core.policy import INPUT_MTIME_S
from . import encoding as enc
from .encoding import Malformed, Meta, parse_meta, plain_meta
from .files import (
    DIRECTORY_MODE,
    FILE_MODE,
    PIECE,
    READ,
    NotAFile,
    Scratch,
    ensure_directory,
    entries,
    fault,
    kind_of,
    read_judged,
    read_small,
    write_all,
)

INPUT_MTIME_NS = INPUT_MTIME_S * 1_000_000_000

_TRIES_S = (0.0, 0.002, 0.01)
"""Blob and metadata are two files: what disagrees is looked at again before it is judged."""

_SETTLE_S = 0.01
_GROWTH_MAX = 64 << 20
_SHARD = re.compile(r"[0-9a-f]{2}")
_UNREADABLE = (errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Problem:
    """One damaged thing. `digest` is None for what is no object at all; `path` is below the store's root."""

    path: str
    reason: str
    digest: Digest | None = None


@dataclass(slots=True)
class Stats:
    objects: int = 0
    original_bytes: int = 0
    stored_bytes: int = 0
    compressed: int = 0


@dataclass(frozen=True, slots=True)
class _Opened:
    """A blob held open and what its metadata says; the stats are what quarantine may take, and nothing else."""

    descriptor: int
    status: os.stat_result
    meta: Meta
    meta_status: os.stat_result


class _Bad(Exception):
    """What stands at an object's place is not the object. The stats tell which inodes were judged."""

    def __init__(self, reason: str, blob: os.stat_result | None, meta: os.stat_result | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.blob = blob
        self.meta = meta


class Objects:
    """The objects of one store. Safe for any number of threads and processes, without a lock."""

    def __init__(self, base: str, scratch: Scratch, *, refusal: EnvironmentFault | None = None) -> None:
        """`base` is the absolute `v2` directory. `refusal`: why nothing may be written, or None."""
        self._base = base
        self._objects = base + "/objects"
        self._quarantine = base + "/quarantine"
        self._scratch = scratch
        self._refusal = refusal
        self._shards: set[str] = set()
        self._verified: dict[Digest, tuple[int, int, int, int]] = {}

    def path(self, digest: Digest) -> str:
        """Where the blob lies or would lie. Raises RequestError for what is no digest: that is never a path."""
        parse_digest(digest)
        return f"{self._objects}/{digest[:2]}/{digest[2:4]}/{digest}"

    # -- writing ------------------------------------------------------------------------------------------

    def put(self, content: bytes, *, encoding: str = enc.IDENTITY) -> Digest:
        """Stores bytes and returns their name. Raises EnvironmentFault; then nothing was stored."""
        digest = object_digest(content)
        if self._sane(digest, len(content)):
            return digest
        with self._writing(digest, len(content)):
            self._put_new(digest, content, encoding)
        return digest

    def _put_new(self, digest: Digest, content: bytes, encoding: str) -> None:
        size = len(content)
        frame = enc.compress(content) if encoding == enc.ZSTD else None
        if frame is None:
            self._publish(digest, self._scratch.write(content), plain_meta(digest, size))
            return
        meta = Meta(digest, enc.ZSTD, size, len(frame), object_digest(frame)).encoded
        for _ in range(len(_TRIES_S)):
            self._publish(digest, self._scratch.write(frame), meta)
            # A process that stored the plain bytes meanwhile may have left its metadata beside our blob.
            if self._sane(digest, size):
                return

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
                content = _read_from_start(fd, size)
        except OSError as error:
            raise fault(error, "reading a file to be stored", self._base) from error
        if size > PIECE:
            return self._copy_in(fd, size, expect_size, size_max)
        _check_size(len(content), expect_size, size_max)
        return self.put(content), len(content)

    def put_path(self, path: str, *, dir_fd: int | None = None) -> tuple[Digest, int]:
        """Stores the regular file at a path; a link is not followed, a FIFO not waited for."""
        try:
            descriptor = os.open(path, READ, dir_fd=dir_fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise UsageError(f'"{path}" is not a regular file') from error
            raise UsageError(f'cannot read "{path}"', facts=[("cause", error.strerror or str(error))]) from error
        try:
            return self.put_file(descriptor)
        finally:
            os.close(descriptor)

    def _copy_in(self, fd: int, size: int, expect_size: int | None, size_max: int | None) -> tuple[Digest, int]:
        with self._writing(None, size):
            target, temporary = self._scratch.create()
            try:
                try:
                    hasher = _copy_hashed(fd, target, size, size_max)
                    os.utime(target, ns=(INPUT_MTIME_NS, INPUT_MTIME_NS))  # As every input has it: it can be bound.
                finally:
                    os.close(target)
                digest = hasher.digest()
                _check_size(hasher.size, expect_size, size_max)
                if self._sane(digest, hasher.size):
                    self._scratch.discard(temporary)
                    return digest, hasher.size
                self._publish(digest, temporary, plain_meta(digest, hasher.size))
            except BaseException:
                self._scratch.discard(temporary)
                raise
            with suppress(OSError):  # These bytes were hashed while they were written.
                self._verified[digest] = _stamp(os.lstat(self.path(digest)))
            return digest, hasher.size

    def _writing(self, digest: Digest | None, size: int) -> _Translated:
        """Every write to the store passes here: refused if it may not be, and a host's refusal gets its words."""
        if self._refusal is not None:
            raise self._refusal
        return _Translated(f"storing {digest or 'a file'}", self._base, size)

    def _publish(self, digest: Digest, blob: str, meta: bytes) -> None:
        """The one way into `objects/`: metadata first, then the blob, whose rename makes the object exist.

        `blob` is a finished temporary file. Durability belongs here: sync before the renames, the directory after.
        """
        try:
            described = self._scratch.write(meta)
        except BaseException:
            self._scratch.discard(blob)
            raise
        path = self.path(digest)
        try:
            self._ensure_shard(digest)
            try:
                os.rename(described, path + ".meta")
                os.rename(blob, path)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                self._make_way(digest)  # The store was deleted meanwhile, or a directory bars the place.
                with suppress(FileNotFoundError):  # It went in before.
                    os.rename(described, path + ".meta")
                os.rename(blob, path)
        except BaseException:
            self._scratch.discard(described, blob)
            raise

    def _ensure_shard(self, digest: Digest) -> None:
        name = digest[:4]
        if name in self._shards:
            return
        outer = f"{self._objects}/{digest[:2]}"
        if digest[:2] not in self._shards:
            try:
                ensure_directory(outer)
            except FileNotFoundError:  # The store was deleted under us.
                os.makedirs(os.path.dirname(self._base), exist_ok=True)
                for path in (self._base, self._objects, outer):
                    ensure_directory(path)
            self._shards.add(digest[:2])
        ensure_directory(f"{outer}/{digest[2:4]}")
        self._shards.add(name)

    def _make_way(self, digest: Digest) -> None:
        self._shards.clear()
        self._ensure_shard(digest)
        for path in (self.path(digest), self.path(digest) + ".meta"):
            with suppress(FileNotFoundError):
                if stat.S_ISDIR(os.lstat(path).st_mode):
                    ensure_directory(self._quarantine)
                    os.rename(path, f"{self._quarantine}/{os.path.basename(path)}.{self._scratch.name()}")

    # -- looking ------------------------------------------------------------------------------------------

    def has(self, digest: Digest) -> bool:
        """Whether the object is there and of the right size; its bytes are not read. Never raises."""
        return self._sane(digest, None)

    def _sane(self, digest: Digest, size: int | None) -> bool:
        try:
            path = self.path(digest)
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode):
                return False
            content = read_small(path + ".meta", enc.META_MAX)
            if content is None:
                return False
            meta = parse_meta(content, digest, status.st_size)
            return meta.fits(status.st_size) and size in (None, meta.original_size)
        except (OSError, ValueError, NotAFile, Malformed, RequestError):
            return False

    # -- reading ------------------------------------------------------------------------------------------

    def get(self, digest: Digest, *, size_max: int | None = None) -> bytes:
        """The bytes, verified. Raises MissingObject, or CorruptObject: both are a miss to a build."""
        with self._reading(digest) as opened:
            if size_max is not None and opened.meta.original_size > size_max:
                raise CorruptObject(
                    f"object {digest} is larger than it may be",
                    facts=[("size", str(opened.meta.original_size)), ("limit", str(size_max))],
                )
            return b"".join(_pieces(opened))

    def copy_to(self, digest: Digest, fd: int) -> None:
        """Writes the bytes at `fd`'s position. They are verified only when this returns: rename afterwards.

        Raises as `get`; an OSError of the target is the caller's.
        """
        with self._reading(digest) as opened:
            for piece in _pieces(opened):
                write_all(fd, piece)

    def check(self, digest: Digest, size: int | None = None) -> bool:
        """Whether the object is wholly good (and has that size). A bad one is quarantined. Never raises."""
        try:
            with self._reading(digest) as opened:
                for _ in _pieces(opened):
                    pass
                return size is None or opened.meta.original_size == size
        except (MissingObject, CorruptObject, EnvironmentFault, RequestError):
            return False

    def file(self, digest: Digest) -> str:
        """The absolute path of the verified plain blob, mode 0444. Raises as `get`, and EnvironmentFault.

        Verified once for each state of the inode: whoever changes it in place changes its ctime.
        """
        path = self.path(digest)
        known = self._verified.get(digest)
        if known is not None:
            with suppress(OSError):
                if _stamp(os.lstat(path)) == known:
                    return path
        with self._reading(digest) as opened:
            if opened.status.st_size == opened.meta.original_size:
                if opened.status.st_mode & FILE_MODE != FILE_MODE:
                    with suppress(OSError):
                        os.fchmod(opened.descriptor, FILE_MODE)  # A store that was copied under a strict umask.
                before = _stamp(os.fstat(opened.descriptor))
                for _ in _pieces(opened):
                    pass
                if _stamp(os.fstat(opened.descriptor)) == before:
                    self._verified[digest] = before
                return path
            self._make_plain(digest, opened)
        return path

    def _make_plain(self, digest: Digest, opened: _Opened) -> None:
        """Replaces a compressed blob by its plain bytes: the blob first, for plain bytes need no metadata (ADR 3)."""
        with self._writing(digest, opened.meta.original_size):
            target, temporary = self._scratch.create()
            try:
                for piece in _pieces(opened):
                    write_all(target, piece)
                described = self._scratch.write(plain_meta(digest, opened.meta.original_size))
                try:
                    os.rename(temporary, self.path(digest))
                    os.rename(described, self.path(digest) + ".meta")
                except BaseException:
                    self._scratch.discard(described)
                    raise
            except BaseException:
                self._scratch.discard(temporary)
                raise
            finally:
                os.close(target)
            self._verified[digest] = _stamp(os.lstat(self.path(digest)))

    def _reading(self, digest: Digest) -> _Reading:
        return _Reading(self, digest)

    def _open(self, digest: Digest) -> _Opened:
        """The blob, open, with metadata that fits it. Raises MissingObject or CorruptObject (then quarantined)."""
        judged: _Bad | None = None
        for pause_s in _TRIES_S:
            if pause_s:
                time.sleep(pause_s)
            try:
                return self._open_once(digest)
            except _Bad as bad:
                judged = bad
        assert judged is not None
        raise self._condemn(digest, judged) from judged

    def _open_once(self, digest: Digest) -> _Opened:
        path = self.path(digest)
        try:
            descriptor = os.open(path, READ)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingObject(f"the store does not hold object {digest}", facts=[("store", self._base)]) from error
        except OSError as error:
            raise self._cannot_open(digest, path, error) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _Bad(f"{kind_of(status.st_mode)} stands in its place", status, _status(path + ".meta"))
            return _Opened(descriptor, status, *self._meta(digest, status))
        except BaseException:
            os.close(descriptor)
            raise

    def _cannot_open(self, digest: Digest, path: str, error: OSError) -> Exception:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            try:
                found = os.lstat(path)
            except OSError:
                return MissingObject(f"the store does not hold object {digest}")
            return _Bad(f"{kind_of(found.st_mode)} stands in its place", found, _status(path + ".meta"))
        if error.errno in _UNREADABLE:  # Another user's file in a shared store: as good as absent.
            return MissingObject(f"object {digest} cannot be read", facts=[("path", path), ("cause", str(error))])
        return fault(error, f"reading object {digest}", self._base)

    def _meta(self, digest: Digest, blob: os.stat_result) -> tuple[Meta, os.stat_result]:
        path = self.path(digest) + ".meta"
        try:
            found = read_judged(path, enc.META_MAX)
            if found is None:
                raise _Bad("its metadata is missing", blob)
            return parse_meta(found[0], digest, blob.st_size), found[1]
        except Malformed as error:
            raise _Bad(str(error), blob, _status(path)) from error
        except (NotAFile, ValueError) as error:
            raise _Bad("its metadata is not a small file", blob, _status(path)) from error
        except OSError as error:
            if error.errno in _UNREADABLE:
                raise MissingObject(
                    f"the metadata of object {digest} cannot be read", facts=[("path", path)]
                ) from error
            raise fault(error, f"reading object {digest}", self._base) from error

    # -- quarantine ---------------------------------------------------------------------------------------

    def _condemn(self, digest: Digest, bad: _Bad) -> CorruptObject:
        kept = self._set_aside(digest, bad)
        return CorruptObject(
            f"object {digest} is damaged: {bad.reason}",
            facts=[("path", self.path(digest)), ("quarantined", kept or "no")],
            hint="it counts as absent: the next build makes it again",
        )

    def _set_aside(self, digest: Digest, bad: _Bad) -> str | None:
        """Moves exactly the inodes that were judged into quarantine: a repair that came meanwhile stays."""
        self._verified.pop(digest, None)
        if self._refusal is not None or not self._shard_is_real(digest):
            return None
        path, target = self.path(digest), f"{self._quarantine}/{digest}.{self._scratch.name()}"
        moved = False
        with suppress(OSError, IntegrityError):
            ensure_directory(self._quarantine)
            moved = bad.blob is not None and _move_judged(path, bad.blob, target)
            if bad.meta is not None and (moved or bad.blob is None):
                moved |= _move_judged(path + ".meta", bad.meta, target + ".meta")
                time.sleep(_SETTLE_S)
                if os.path.lexists(path):  # A put was between its two renames: the metadata was its own.
                    os.link(target + ".meta", path + ".meta", follow_symlinks=False)
        return target if moved else None

    def _shard_is_real(self, digest: Digest) -> bool:
        """Nothing is ever moved or deleted through a link that leads out of the store."""
        outer = f"{self._objects}/{digest[:2]}"
        try:
            return all(stat.S_ISDIR(os.lstat(path).st_mode) for path in (outer, f"{outer}/{digest[2:4]}"))
        except OSError:
            return False

    # -- all of them --------------------------------------------------------------------------------------

    def verify(self, progress: Callable[[int, int], None] | None = None, *, repair: bool = False) -> Iterator[Problem]:
        """Reads every object and names each damaged one once, in order. `progress(objects, bytes)` so far.

        Nothing is changed unless `repair`, which moves what is damaged or foreign into quarantine.
        """
        objects = total = 0
        for found in self._walk():
            if isinstance(found, Problem):
                if repair:
                    self._remove_foreign(found)
                yield found
                continue
            problem, size = self._judge(found, repair=repair)
            if problem is not None:
                yield problem
            objects, total = objects + 1, total + size
            if progress is not None:
                progress(objects, total)

    def _judge(self, digest: Digest, *, repair: bool) -> tuple[Problem | None, int]:
        where = f"v2/objects/{digest[:2]}/{digest[2:4]}/{digest}"
        bad: _Bad | None = None
        for pause_s in _TRIES_S:
            if pause_s:
                time.sleep(pause_s)
            try:
                opened = self._open_once(digest)
                try:
                    for _ in _pieces(opened):
                        pass
                    return None, opened.status.st_size
                finally:
                    os.close(opened.descriptor)
            except _Bad as caught:
                bad = caught
            except MissingObject as missing:
                gone = not os.path.lexists(self.path(digest))
                bad = _Bad("its blob is missing" if gone else missing.what, None, _status(self.path(digest) + ".meta"))
                if gone and bad.meta is None:
                    return None, 0  # Deleted since it was listed.
        assert bad is not None
        if repair:
            self._set_aside(digest, bad)
        return Problem(where, bad.reason, digest), 0

    def _remove_foreign(self, problem: Problem) -> None:
        path = os.path.join(os.path.dirname(self._base), problem.path)
        with suppress(OSError, IntegrityError):
            if self._refusal is None:
                ensure_directory(self._quarantine)
                os.rename(path, f"{self._quarantine}/foreign.{self._scratch.name()}")

    def _walk(self) -> Iterator[Digest | Problem]:
        """Every name that ought to be an object, in order, and everything that ought not to be there."""
        for outer in _shards(self._objects, "v2/objects"):
            if isinstance(outer, Problem):
                yield outer
                continue
            for inner in _shards(f"{self._objects}/{outer}", f"v2/objects/{outer}"):
                if isinstance(inner, Problem):
                    yield inner
                else:
                    yield from _names(f"{self._objects}/{outer}/{inner}", f"v2/objects/{outer}/{inner}", outer + inner)

    def ls(self) -> Iterator[tuple[Digest, Meta]]:
        """Every object that is sane by its size, in order; no blob is read."""
        for found in self._walk():
            if not isinstance(found, Problem):
                with suppress(_Bad, MissingObject, EnvironmentFault):
                    opened = self._open_once(found)
                    os.close(opened.descriptor)
                    yield found, opened.meta

    def stats(self) -> Stats:
        stats = Stats()
        for _, meta in self.ls():
            stats.objects += 1
            stats.original_bytes += meta.original_size
            stats.stored_bytes += meta.stored_size
            stats.compressed += meta.encoding == enc.ZSTD
        return stats


class _Reading:
    """`with` an open object: closed at the end, and set aside if its bytes turn out to be wrong."""

    __slots__ = ("_digest", "_objects", "_opened")

    def __init__(self, objects: Objects, digest: Digest) -> None:
        self._objects = objects
        self._digest = digest

    def __enter__(self) -> _Opened:
        self._opened = self._objects._open(self._digest)
        return self._opened

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        os.close(self._opened.descriptor)
        if isinstance(error, _Bad):
            raise self._objects._condemn(self._digest, error) from error


class _Translated:
    """`with` a write to the store: an OSError inside becomes an EnvironmentFault."""

    __slots__ = ("_doing", "_needs", "_place")

    def __init__(self, doing: str, place: str, needs: int) -> None:
        self._doing, self._place, self._needs = doing, place, needs

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError):
            raise fault(error, self._doing, self._place, needs=self._needs) from error


def _pieces(opened: _Opened) -> Iterator[bytes]:
    """The plain bytes in order. Raises _Bad after the last one if they are not what the name says."""
    meta = opened.meta
    hasher = Hasher()
    try:
        for piece in enc.plain_pieces(opened.descriptor, opened.status.st_size, meta):
            hasher.update(piece)
            yield piece
    except Malformed as error:
        raise _Bad(str(error), opened.status, opened.meta_status) from error
    except OSError as error:
        raise _Bad(f"it cannot be read: {error.strerror}", opened.status, opened.meta_status) from error
    if hasher.size != meta.original_size or hasher.digest() != meta.digest:
        raise _Bad("its bytes do not give its name", opened.status, opened.meta_status)


def _read_from_start(fd: int, size: int) -> bytes:
    """A whole file wherever the descriptor's shared position is."""
    content = os.pread(fd, size + 1, 0)
    if len(content) == size:
        return content
    pieces, total = [content], len(content)
    while piece := os.pread(fd, PIECE, total):
        pieces.append(piece)
        total += len(piece)
        _check_growth(total, size)
    return b"".join(pieces)


def _copy_hashed(source: int, target: int, size: int, size_max: int | None) -> Hasher:
    hasher = Hasher()
    buffer = memoryview(bytearray(PIECE))
    while (filled := os.preadv(source, [buffer], hasher.size)) > 0:
        piece = buffer[:filled]
        hasher.update(piece)
        write_all(target, piece)
        _check_size(hasher.size, None, size_max)
        _check_growth(hasher.size, size)
    return hasher


def _check_growth(size: int, expected: int) -> None:
    if size > expected + _GROWTH_MAX:
        raise IntegrityError("a file grows faster than it can be stored", facts=[("began with", f"{expected} bytes")])


def _check_size(size: int, expect_size: int | None, size_max: int | None) -> None:
    if size_max is not None and size > size_max:
        raise Refused("a file is larger than it may be", facts=[("size", f"over {size_max} bytes")])
    if expect_size is not None and size != expect_size:
        raise IntegrityError(
            "a file changed while it was stored",
            facts=[("expected", f"{expect_size} bytes"), ("found", f"{size} bytes")],
        )


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _move_judged(path: str, judged: os.stat_result, target: str) -> bool:
    """Renames what was judged; what has taken its place since is left, or put back."""
    if _stamp(os.lstat(path)) != _stamp(judged):
        return False
    os.rename(path, target)
    if _identity(os.lstat(target)) == _identity(judged):
        return True
    with suppress(FileExistsError):
        os.link(target, path, follow_symlinks=False)
    os.unlink(target)
    return False


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    """What a rename does not change. A number alone is not enough: a freed inode's is given out again at once."""
    return status.st_ino, status.st_mtime_ns, status.st_size


def _shards(path: str, where: str) -> Iterator[str | Problem]:
    try:
        found = entries(path)
    except OSError as error:
        yield Problem(where, f"it cannot be listed: {error.strerror}")
        return
    for item in found:
        if _SHARD.fullmatch(item.name) and item.is_dir(follow_symlinks=False):
            yield item.name
        else:
            yield Problem(f"{where}/{item.name}", "it is no shard directory")


def _names(path: str, where: str, prefix: str) -> Iterator[Digest | Problem]:
    try:
        found = entries(path)
    except OSError as error:
        yield Problem(where, f"it cannot be listed: {error.strerror}")
        return
    previous = ""
    for item in found:
        name = item.name.removesuffix(".meta")
        if not is_digest(name) or not name.startswith(prefix):
            yield Problem(f"{where}/{item.name}", "it is not named as an object of this directory")
        elif name != previous:
            previous = name
            yield Digest(name)


assert DIRECTORY_MODE & 0o005 == 0o005  # An unprivileged sandbox reads through the store's directories.
