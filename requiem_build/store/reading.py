"""A loose object, opened and read: its blob and its metadata judged together, its bytes compared with its name."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator

from ..core.digest import Digest, Hasher, object_digest
from ..core.errors import IntegrityError, MissingObject, RequestError
from ..core.fields import dataclass
from . import encoding as enc
from . import uses
from .copying import copy_hashed
from .encoding import Malformed, Meta, parse_meta, plain_meta
from .files import READ, NotAFile, fault, kind_of, read_judged
from .place import Place, Stamp

TRIES_S = (0.0, 0.002, 0.01)
"""Blob and metadata are two files: what disagrees is looked at again before it is judged."""

PLAIN_MAX = 1 << 20
"""What is read in one go, in bytes."""

_UNREADABLE = (errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Opened:
    """A blob held open and what its metadata says; the stats are what quarantine may take, and nothing else."""

    descriptor: int
    status: os.stat_result
    meta: Meta
    meta_status: os.stat_result


class Bad(Exception):
    """What stands at an object's place is not the object. The stats tell which inodes were judged."""

    def __init__(self, reason: str, blob: os.stat_result | None, meta: os.stat_result | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.blob = blob
        self.meta = meta


def is_sane(place: Place, digest: Digest, size: int | None = None) -> bool:
    """Whether the object is there and of the right size; its bytes are not read. Never raises."""
    return size_of(place, digest) is not None if size is None else size_of(place, digest) == size


def size_of(place: Place, digest: Digest) -> int | None:
    """The size of a loose object's plain bytes; None unless blob and metadata are there and fit. Never raises."""
    try:
        path = place.path(digest)
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            return None
        found = read_judged(path + ".meta", enc.META_MAX)
        if found is None:
            return None
        meta = parse_meta(found[0], digest, status.st_size)
        return meta.original_size if meta.fits(status.st_size) and note_use(place, meta, found[1]) else None
    except (OSError, ValueError, NotAFile, Malformed, RequestError):
        return None


def note_use(place: Place, meta: Meta, found: os.stat_result) -> bool:
    """Keeps the object from collection for a while. False if it was collected since its metadata was read."""
    if place.refusal is not None or not uses.is_due(found):
        return True
    path = place.path(meta.digest)
    return uses.note(path + ".meta", meta.encoded, place.scratch) and os.path.lexists(path)


def read_plain(place: Place, digest: Digest, *, is_use: bool) -> bytes | None:
    """The bytes of a small object that lies there as it is, whole and verified: nearly every read, in few calls.

    None for all else, of which this judges nothing: `open_object` and `pieces` do.
    """
    path = place.path(digest)
    try:
        found = read_judged(path, PLAIN_MAX)
        described = None if found is None else read_judged(path + ".meta", enc.META_MAX)
    except (OSError, NotAFile, ValueError):
        return None
    if found is None or described is None:
        return None
    content, size = found[0], len(found[0])
    if described[0] != plain_meta(digest, size) or object_digest(content) != digest:
        return None
    if is_use:
        note_use(place, Meta(digest, enc.IDENTITY, size, size, digest), described[1])
    return content


def open_object(place: Place, digest: Digest, *, is_use: bool) -> Opened:
    """The blob, open, with metadata that fits it. Raises MissingObject, or Bad if it stays so at a second look."""
    judged: Bad | None = None
    for pause_s in TRIES_S:
        if pause_s:
            time.sleep(pause_s)
        try:
            opened = open_once(place, digest)
            if is_use:
                note_use(place, opened.meta, opened.meta_status)
            return opened
        except Bad as bad:
            judged = bad
    assert judged is not None
    raise judged


def open_once(place: Place, digest: Digest) -> Opened:
    path = place.path(digest)
    try:
        descriptor = os.open(path, READ)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingObject(f"the store does not hold object {digest}", facts=[("store", place.base)]) from error
    except OSError as error:
        raise _cannot_open(place, digest, path, error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Bad(f"{kind_of(status.st_mode)} stands in its place", status, status_at(path + ".meta"))
        return Opened(descriptor, status, *_meta(place, digest, status))
    except BaseException:
        os.close(descriptor)
        raise


def _cannot_open(place: Place, digest: Digest, path: str, error: OSError) -> Exception:
    if error.errno in (errno.ELOOP, errno.ENXIO):
        try:
            found = os.lstat(path)
        except OSError:
            return MissingObject(f"the store does not hold object {digest}")
        return Bad(f"{kind_of(found.st_mode)} stands in its place", found, status_at(path + ".meta"))
    if error.errno in _UNREADABLE:  # Another user's file in a shared store: as good as absent.
        return MissingObject(f"object {digest} cannot be read", facts=[("path", path), ("cause", str(error))])
    return fault(error, f"reading object {digest}", place.base)


def _meta(place: Place, digest: Digest, blob: os.stat_result) -> tuple[Meta, os.stat_result]:
    path = place.path(digest) + ".meta"
    try:
        found = read_judged(path, enc.META_MAX)
        if found is None:
            raise Bad("its metadata is missing", blob)
        return parse_meta(found[0], digest, blob.st_size), found[1]
    except Malformed as error:
        raise Bad(str(error), blob, status_at(path)) from error
    except (NotAFile, ValueError) as error:
        raise Bad("its metadata is not a small file", blob, status_at(path)) from error
    except OSError as error:
        if error.errno in _UNREADABLE:
            raise MissingObject(f"the metadata of object {digest} cannot be read", facts=[("path", path)]) from error
        raise fault(error, f"reading object {digest}", place.base) from error


def pieces(opened: Opened) -> Iterator[bytes]:
    """The plain bytes in order. Raises Bad after the last one if they are not what the name says."""
    meta = opened.meta
    hasher = Hasher()
    try:
        for piece in enc.plain_pieces(opened.descriptor, opened.status.st_size, meta):
            hasher.update(piece)
            yield piece
    except Malformed as error:
        raise Bad(str(error), opened.status, opened.meta_status) from error
    except OSError as error:
        raise Bad(f"it cannot be read: {error.strerror}", opened.status, opened.meta_status) from error
    _compare(hasher, opened)


def copy_verified(opened: Opened, target: int) -> None:
    """Copies a plain blob to an empty file that is open for reading and writing. Raises as `pieces`.

    What is verified is the copy. An OSError is the target's.
    """
    try:
        hasher = copy_hashed(opened.descriptor, target, opened.meta.original_size, None)
    except OSError:
        for _ in pieces(opened):  # Whose fault was it?
            pass
        raise
    except IntegrityError as error:
        raise Bad(error.what, opened.status, opened.meta_status) from error
    _compare(hasher, opened)


def _compare(hasher: Hasher, opened: Opened) -> None:
    if hasher.size != opened.meta.original_size or hasher.digest() != opened.meta.digest:
        raise Bad("its bytes do not give its name", opened.status, opened.meta_status)


def status_at(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
