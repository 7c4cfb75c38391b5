"""When does what was written survive a power cut? Never promised, after each batch, or at once.

none    nothing is synced: the system writes it out when it likes
batch   one sync for what half a second brought (longer on a slow disk); only then are its records published
full    each object is synced before its record, and each record before its step counts as done
"""

from __future__ import annotations

import errno
import os

from ..core.policy import DURABILITIES

NONE, BATCH, FULL = DURABILITIES
BATCH_S = 0.5
SYNC_SHARE = 10
"""Where a sync takes long, the next one waits that many times as long: a tenth of a build, no more, goes into them."""
PAUSE_MAX_S = 5.0


def sync_file_system(directory: str) -> None:
    """Everything that anyone wrote to the file system of a directory is on the disk. Raises OSError."""
    try:
        import ctypes
    except ImportError as error:  # Its library cannot be opened now: a disk that fails, too many open files.
        raise OSError(errno.EIO, str(error), directory) from error
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        call = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if call is None:
            os.sync()  # A host without syncfs: its sync also waits, but tells of no failure.
        elif call(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), directory)
    finally:
        os.close(descriptor)


def sync_path(path: str) -> None:
    """A file's bytes, or a directory's names, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
