"""What a running build needs is pinned: it holds a lease, and collection spares what was used since the oldest began.

A lease is a file of `v2/leases` that its holder keeps locked. The kernel drops the lock when the holder dies,
however it dies, so a lease never needs to be removed by hand. All times compared are those of files of one store.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .files import READ, Scratch, ensure_directory, entries, is_of_the_dead

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
UNLOCKED_S = 86400
"""How long a lease is believed on a file system without locks."""


@contextmanager
def held(base: str, scratch: Scratch) -> Iterator[None]:
    """Holds a lease on the store whose `v2` directory is `base`; where none can be made, nothing is pinned."""
    taken: tuple[int, str] | None = None
    with suppress(OSError):
        taken = _take(f"{base}/leases", scratch)
    try:
        yield
    finally:
        if taken is not None:
            with suppress(OSError):
                os.unlink(taken[1])
            os.close(taken[0])


def _take(directory: str, scratch: Scratch) -> tuple[int, str]:
    """Locked before it has its name: whoever sees a lease without a lock knows that its holder is dead.

    What killed processes of this host left goes: a store that never grows over its size is never collected.
    """
    ensure_directory(directory)
    for item in entries(directory):
        if is_of_the_dead(item.name):
            with suppress(OSError):
                os.unlink(item.path)
    descriptor, temporary = scratch.create()
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path = f"{directory}/{os.path.basename(temporary)}"
        os.rename(temporary, path)
    except BaseException:
        os.close(descriptor)
        scratch.discard(temporary)
        raise
    return descriptor, path


def oldest(base: str) -> float | None:
    """When the oldest living lease began, in the file system's seconds; None without one. Dead ones are removed."""
    began: list[float] = []
    for item in entries(f"{base}/leases"):
        try:
            descriptor = os.open(item.path, READ)
        except FileNotFoundError:
            continue  # Its holder has ended.
        except OSError:
            with suppress(OSError):  # A link or the like: no lease. What cannot be read may be one.
                if not item.is_file(follow_symlinks=False):
                    os.unlink(item.path)
                else:
                    began.append(_began(item.stat(follow_symlinks=False)))
            continue
        try:
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode) and _is_alive(descriptor, found):
                began.append(_began(found))
            else:
                with suppress(OSError):
                    os.unlink(item.path)
        finally:
            os.close(descriptor)
    return min(began, default=None)


def _is_alive(descriptor: int, found: os.stat_result) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            return True
        return time.time() - found.st_mtime < UNLOCKED_S
    return False


def _began(found: os.stat_result) -> float:
    return min(found.st_mtime, found.st_ctime)
