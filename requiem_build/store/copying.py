"""A file's bytes from one descriptor to another, hashed on the way. Knows nothing of objects or where they lie."""

from __future__ import annotations

import errno
import fcntl
import os

from ..core.digest import Hasher
from ..core.errors import IntegrityError, Refused
from .files import PIECE, write_all

_FICLONE = 0x40049409
_CANNOT_CLONE = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EBADF, errno.ETXTBSY}
)
_COPY_PIECE = 256 << 10  # Stays in the processor's own cache between being read, hashed and written.
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

    `target` is a fresh file open for reading and writing.
    """
    if clone(source, target):
        return _hash(target, size, size_max)
    hasher = Hasher()
    buffer = memoryview(bytearray(_COPY_PIECE))
    while (filled := os.preadv(source, [buffer], hasher.size)) > 0:
        piece = buffer[:filled]
        hasher.update(piece)
        write_all(target, piece)
        check_growth(hasher.size, size, size_max)
    return hasher


def _hash(descriptor: int, size: int, size_max: int | None) -> Hasher:
    hasher = Hasher()
    buffer = memoryview(bytearray(_COPY_PIECE))
    while (filled := os.preadv(descriptor, [buffer], hasher.size)) > 0:
        hasher.update(buffer[:filled])
        check_growth(hasher.size, size, size_max)
    return hasher


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
