"""A file's bytes from one descriptor to another, hashed on the way. Knows nothing of objects or where they lie."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator

from ..core.digest import Hasher
from ..core.errors import IntegrityError, Refused
from .behind import Behind
from .files import PIECE, write_all

_FICLONE = 0x40049409
_CANNOT_CLONE = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EBADF, errno.ETXTBSY}
)
_COPY_PIECE = 256 << 10  # Stays in the processor's own cache between being read, hashed and written.
_STEP = 2 << 20
_APART_MIN = 4 << 20
"""From this size on a second processor hashes while the first one copies."""

_CANNOT_COPY = _CANNOT_CLONE - {errno.EPERM}
GROWTH_MAX = 64 << 20


def clone(source: int, target: int) -> bool:
    """Makes an empty file share the blocks of another one, where the file system can: two inodes, no copying.

    Whoever writes to either changes only that one. False if it cannot be done; raises OSError for a full disk.
    """
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT_CLONE:
            return False
        raise
    return True


def copy_hashed(source: int, target: int, size: int, size_max: int | None) -> Hasher:
    """Copies a whole file that had `size` bytes; the hasher has seen exactly what is in the target. Raises OSError.

    `target` is an empty file open for reading and writing, which nobody else writes to.
    """
    if clone(source, target):
        return _hash(target, size, size_max)
    if size >= _APART_MIN and (os.cpu_count() or 1) > 1:
        try:
            behind = Behind(target)
        except RuntimeError:  # No more threads can be had here: the same bytes, one thing after the other.
            return _copy_hashed(source, target, size, size_max)
        with behind:
            for end in _copy(source, target):
                behind.reached(end)
                check_growth(end, size, size_max)
        return behind.hasher
    return _copy_hashed(source, target, size, size_max)


def _copy_hashed(source: int, target: int, size: int, size_max: int | None) -> Hasher:
    """One piece after the other: what was written of it last is still in the processor's cache when it is hashed."""
    hasher = Hasher()
    buffer = memoryview(bytearray(_COPY_PIECE))
    while (filled := os.preadv(source, [buffer], hasher.size)) > 0:
        piece = buffer[:filled]
        hasher.update(piece)
        write_all(target, piece)
        check_growth(hasher.size, size, size_max)
    return hasher


def _copy(source: int, target: int) -> Iterator[int]:
    """Copies in steps, in the kernel as far as it can, and says after each how many bytes are there.

    The target's position is then its end.
    """
    end = 0
    try:
        while step := os.copy_file_range(source, target, _STEP, end, end):
            end += step
            yield end
    except OSError as error:
        if error.errno not in _CANNOT_COPY:
            raise
    buffer = memoryview(bytearray(_COPY_PIECE))  # Also after the kernel saw the end: some do so too early.
    os.lseek(target, end, os.SEEK_SET)
    while (filled := os.preadv(source, [buffer], end)) > 0:
        write_all(target, buffer[:filled])
        end += filled
        if end % _STEP < filled:
            yield end
    yield end


def _hash(descriptor: int, size: int, size_max: int | None) -> Hasher:
    hasher = Hasher()
    buffer = memoryview(bytearray(_COPY_PIECE))
    while (filled := os.preadv(descriptor, [buffer], hasher.size)) > 0:
        hasher.update(buffer[:filled])
        check_growth(hasher.size, size, size_max)
    return hasher


def is_fresh(descriptor: int) -> bool:
    """Whether `copy_hashed` can fill it: an empty file, open for reading and writing."""
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR and is_empty(descriptor)


def is_empty(descriptor: int) -> bool:
    """Whether it is a file without a byte."""
    found = os.fstat(descriptor)
    return stat.S_ISREG(found.st_mode) and found.st_size == 0


def read_whole(descriptor: int, size: int) -> bytes:
    """A file of about `size` bytes, wherever the descriptor's shared position is."""
    content = os.pread(descriptor, size + 1, 0)
    if len(content) == size:
        return content
    pieces, total = [content], len(content)
    while piece := os.pread(descriptor, PIECE, total):
        pieces.append(piece)
        total += len(piece)
        check_growth(total, size, None)
    return b"".join(pieces)


def check_growth(size: int, expected: int, size_max: int | None) -> None:
    """Raises Refused beyond `size_max`, IntegrityError for a file that outruns its reader."""
    if size_max is not None and size > size_max:
        raise Refused("a file is larger than it may be", facts=[("size", f"over {size_max} bytes")])
    if size > expected + GROWTH_MAX:
        raise IntegrityError("a file grows faster than it can be stored", facts=[("began with", f"{expected} bytes")])


def check_size(size: int, expect_size: int | None, size_max: int | None) -> None:
    check_growth(size, size, size_max)
    if expect_size is not None and size != expect_size:
        raise IntegrityError(
            "a file changed while it was stored",
            facts=[("expected", f"{expect_size} bytes"), ("found", f"{size} bytes")],
        )
