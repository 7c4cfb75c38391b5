"""Work beside the builds: a scratch directory that goes with whoever made it.

Its maker holds a lock on it while he lives, and the kernel frees that however he dies: so what a killed one left is
told from what is at work, and goes with the next scratch or the next build. It does not know what lies in it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..core.errors import EnvironmentFault
from ..sandbox.descent import remove

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Scratch:
    """A directory at `path`, until `close`: in `place`, else where temporary files go, in one of this user's own.

    Raises EnvironmentFault if it can be made in neither.
    """

    def __init__(self, place: str) -> None:
        try:
            os.makedirs(place, exist_ok=True)
        except OSError:
            place = os.path.join(tempfile.gettempdir(), f"requiem-{os.geteuid()}")
        try:
            os.makedirs(place, exist_ok=True)
            with _held(place) as directory:
                _clear(place, directory)
                self.path = tempfile.mkdtemp(dir=place)
                os.chmod(self.path, 0o755)  # The sandbox's own user is shown files of it.
                self._lock = os.open(self.path, _DIRECTORY)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:
            raise EnvironmentFault(
                f'cannot write to "{place}"', facts=[("cause", error.strerror or str(error))]
            ) from error

    def close(self) -> None:
        with suppress(OSError):  # Who comes next takes it away.
            remove(self.path)
        os.close(self._lock)


def clear_abandoned(place: str) -> None:
    """Removes what killed makers left."""
    with suppress(OSError), _held(place) as directory:
        _clear(place, directory)


@contextmanager
def _held(place: str) -> Iterator[int]:
    """Nobody makes or clears one meanwhile: between its making and its lock it would look abandoned."""
    directory = os.open(place, _DIRECTORY)
    try:
        if os.fstat(directory).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it is another user's")
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield directory
    finally:
        os.close(directory)


def _clear(place: str, directory: int) -> None:
    for name in os.listdir(directory):
        with suppress(OSError):  # It is held, or is none of ours.
            lock = os.open(name, _DIRECTORY, dir_fd=directory)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(os.path.join(place, name))
            finally:
                os.close(lock)
