"""A worker that walled itself in once, at boot, and shows every step the same view: quick, for small inputs.

Steps are kept apart by reset and verification. After each step everything that it could have left is taken
away or looked for: processes, files, modes, attributes and flags of the three directories that can be written,
System V objects, use of the network. What cannot be taken away makes the worker *stale*: it refuses the next job,
and the engine starts another (docs/decisions/0008-reused-workers.md). The worker has given up what a step must not
have, so it could not cheat if it wanted to. Standard library only; see `worker.py`.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time

from .boot import Boot
from .serving import Serving
from .staging import Staging
from .wire import Channel

TYPE_CHECKING = False  # The module of that name costs a worker several milliseconds at its start.
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

JOBS_MAX = 1000
"""Then it is replaced: whatever nobody thought of does not outlive this many steps."""

FILES_MAX = 20_000
"""A step that leaves more is tidied up after quicker by ending the worker: the kernel drops whole file systems."""

DEPTH_MAX = 500
"""The same. Landlock looks at every directory above whatever is removed, so depth costs its square."""

_PATH_SHORT = 500
"""Bytes. What lies deeper is not reached by its path."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GET_FLAGS = 0x80086601  # FS_IOC_GETFLAGS
_SET_FLAGS = 0x40086602  # FS_IOC_SETFLAGS
_CLOCK_OF_DATES = 5
"""CLOCK_REALTIME_COARSE: no file is given an earlier date than what it says."""
_NO_DUMP = b"\x40" + bytes(7)
_SOME_RIGHTS = bytes.fromhex("0200000001000700ffffffff04000500ffffffff20000500ffffffff")


class Stale(Exception):
    """Something of a step would outlive it."""


class Place:
    """One of the directories that a step can write to, and how it looks when nothing has happened in it."""

    def __init__(self, path: str, mtime_ns: int, *, ctime_tells: bool | None = None) -> None:
        """`ctime_tells` is what another place found out, or False where every step changes something anyway."""
        self.path = path
        self.descriptor = os.open(path, _DIRECTORY)
        self._mtime_ns = mtime_ns
        seen = os.fstat(self.descriptor)
        self.inode = seen.st_ino
        self._mode = stat.S_IMODE(seen.st_mode)
        self._flags = _flags(self.descriptor)
        _empty(self, FILES_MAX)
        self._size = self._size_of_nothing()
        self.ctime_tells = _ctime_tells(self.descriptor) if ctime_tells is None else ctime_tells
        self._settled: tuple[int, ...] = ()
        self.settle()

    def _size_of_nothing(self) -> int:
        """On tmpfs a size counts the names, so that one look tells that it is empty. Tried, not believed."""
        before = os.fstat(self.descriptor).st_size
        os.mkdir("probe", dir_fd=self.descriptor)
        between = os.fstat(self.descriptor).st_size
        os.rmdir("probe", dir_fd=self.descriptor)
        return before if between > before == os.fstat(self.descriptor).st_size else -1

    def size(self) -> int:
        """-1 where it says nothing about how many names there are."""
        return -1 if self._size < 0 else os.fstat(self.descriptor).st_size

    def is_untouched(self, since_ns: int) -> bool:
        """Whether no name in it, no mode, attribute, flag or date of it was changed from that moment on.

        Not known, and so False, where that moment was in the tick of the clock in which it was settled.
        """
        if not self.ctime_tells or self._settled[0] >= since_ns:
            return False
        return _dates_and_mode(os.fstat(self.descriptor)) == self._settled

    def empty(self, files_max: int) -> int:
        """How many files went. Raises Stale if they are more."""
        if self._size >= 0 and os.fstat(self.descriptor).st_size == self._size:
            return 0
        return _empty(self, files_max)

    def settle(self) -> None:
        """Gives it its own mode and date again. Raises Stale if it has attributes or flags that it had not."""
        seen = os.fstat(self.descriptor)
        if stat.S_IMODE(seen.st_mode) != self._mode:
            os.fchmod(self.descriptor, self._mode)
        if os.listxattr(self.descriptor) or _flags(self.descriptor) != self._flags:
            raise Stale("attributes of a directory were changed")
        if not self.ctime_tells:
            os.utime(self.descriptor, ns=(self._mtime_ns, self._mtime_ns))
        elif _dates_and_mode(seen) != self._settled:  # Else its date would never be older than the next step.
            os.utime(self.descriptor, ns=(self._mtime_ns, self._mtime_ns))
            self._settled = _dates_and_mode(os.fstat(self.descriptor))

    def close(self) -> None:
        os.close(self.descriptor)


def _dates_and_mode(seen: os.stat_result) -> tuple[int, ...]:
    return (seen.st_ctime_ns, seen.st_mtime_ns, seen.st_atime_ns, seen.st_mode)


def _ctime_tells(directory: int) -> bool:
    """Whether the kernel dates each kind of change of a directory. Tried, not believed.

    That can be seen where a change that follows a look has a date of its own (from Linux 6.13 on), and not one in
    ticks of the clock.
    """
    changes: tuple[Callable[[int], object], ...] = (
        lambda place: os.mkdir("inner", dir_fd=place),
        lambda place: os.fchmod(place, 0o700),
        lambda place: os.utime(place, ns=(0, 0)),
        lambda place: os.setxattr(place, "user.probe", b"x"),
        lambda place: os.removexattr(place, "user.probe"),
        lambda place: os.setxattr(place, "system.posix_acl_default", _SOME_RIGHTS),
        lambda place: fcntl.ioctl(place, _SET_FLAGS, _NO_DUMP),
    )
    os.mkdir("probe", dir_fd=directory)
    probe = os.open("probe", _DIRECTORY, dir_fd=directory)
    try:
        return all(_is_dated(change, probe) for change in changes)
    finally:
        os.rmdir("inner", dir_fd=probe)
        os.close(probe)
        os.rmdir("probe", dir_fd=directory)


def _is_dated(change: Callable[[int], object], directory: int) -> bool:
    before = os.fstat(directory).st_ctime_ns
    try:
        change(directory)
    except OSError:
        return True  # What cannot be done here cannot be done by a step, which has the same rights.
    return os.fstat(directory).st_ctime_ns != before


def _flags(descriptor: int) -> int:
    try:
        return int.from_bytes(fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8)), "little")
    except OSError:  # A tmpfs of older kernels has none.
        return 0


def _empty(place: Place, files_max: int) -> int:
    """Removes everything below a directory. How many files went. Raises Stale if they are too many, or too deep."""
    try:
        return _empty_plain(place.path, files_max)
    except (OSError, _Unusual):
        return _empty_thoroughly(place.descriptor, files_max)


class _Unusual(Exception):
    """Directories are nested deeply."""


def _empty_plain(top: str, files_max: int) -> int:
    """By paths, which is quick. Raises OSError where one is closed or somebody else's.

    All processes of the step are dead: what was a directory a moment ago still is, so no link is followed.
    """
    folders = [top]
    removed = 0
    for folder in folders:
        if len(folder) > _PATH_SHORT:
            raise _Unusual
        entries = list(os.scandir(folder))  # Which is closed at its end.
        removed += len(entries)
        if removed > files_max:
            raise Stale("too many files were left")
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                os.unlink(entry.path)
    for folder in reversed(folders[1:]):
        os.rmdir(folder)
    return removed


def _empty_thoroughly(top: int, files_max: int) -> int:
    """By descriptors and without recursion: a step may have nested as deep as it liked, and closed what it made.

    All processes of the step are dead, so `..` leads back to where we came from.
    """
    removed = 0
    here = os.dup(top)
    way: list[str] = []  # From the top to here.
    waiting: list[list[str]] = []  # What is still to be emptied at each step of the way, and here.
    try:
        while True:
            if len(waiting) == len(way):  # We have just come in.
                below, found = _clear(here)
                waiting.append(below)
                removed += found
                if removed > files_max:
                    raise Stale("too many files were left")
            elif waiting[-1]:
                if len(way) >= DEPTH_MAX:
                    raise Stale("directories were nested too deeply")
                way.append(waiting[-1].pop())
                here = _move(here, way[-1])
            else:
                waiting.pop()
                if not way:
                    return removed
                here = _move(here, "..")
                os.rmdir(way.pop(), dir_fd=here)
    finally:
        os.close(here)


def _move(here: int, name: str) -> int:
    there = os.open(name, _DIRECTORY, dir_fd=here)
    os.close(here)
    return there


def _clear(directory: int) -> tuple[list[str], int]:
    """Unlinks all that is no directory. The names of the directories, opened up to be emptied; how much was here."""
    below = []
    with os.scandir(directory) as found:
        entries = list(found)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.stat(follow_symlinks=False).st_mode & 0o700 != 0o700:
                os.chmod(entry.name, 0o700, dir_fd=directory)
            below.append(entry.name)
        else:
            os.unlink(entry.name, dir_fd=directory)
    return below, len(entries)


class Reused(Serving):
    """Runs the jobs of one build one after the other in one view."""

    def __init__(self, channel: Channel, boot: Boot, workspace: str, tmp: str, home: str, mtime_ns: int) -> None:
        super().__init__(channel, boot)
        self._mtime_ns = mtime_ns
        os.chdir(workspace)
        self._workspace = Place(workspace, mtime_ns, ctime_tells=False)
        self._shared = Place("/dev/shm", mtime_ns)
        self._tmp = Place(tmp, mtime_ns, ctime_tells=self._shared.ctime_tells)
        self._home_path = home
        self._make_home()
        self._objects = [os.open(f"/proc/sysvipc/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("msg", "sem", "shm")]
        self._jobs = 0
        self._used = 0
        """The number of the job whose traces are still here, or 0."""
        self._stale = ""
        self._begun_ns = 0
        self._elsewhere = False
        """Whether the last job made this process leave the workspace's top."""

    def run(self, job: dict[str, Any]) -> None:
        self.clean(self._used)
        if self._stale or self._jobs >= JOBS_MAX:
            self.channel.send(("stale", self._stale or "it has run enough"))
            return
        self._jobs += 1
        self._used = job["number"]
        self._begun_ns = time.clock_gettime_ns(_CLOCK_OF_DATES)
        self._elsewhere = job["cwd"] != self._workspace.path
        staging = Staging(self.boot, self._workspace.path)
        staging.workspace, staging.tmp = self._workspace.descriptor, self._tmp.descriptor
        staging.shared = self._shared.descriptor

        def start(out: int, err: int) -> None:
            staging.apply(job["operations"])
            staging.spawn(job, out, err)

        self.follow(job, staging, start)

    def clean(self, number: int) -> None:
        """Takes away what the last job left, and looks for what it must not have left."""
        if number != self._used or not number or self._stale:
            return
        self._used = 0
        try:
            self._reset()
        except Stale as why:
            self._stale = str(why)
        except OSError as error:
            self._stale = f"it cannot be tidied up: {error.strerror}"

    def _reset(self) -> None:
        if self._elsewhere:
            os.chdir(self._workspace.path)
        left = FILES_MAX - _empty(self._workspace, FILES_MAX)
        self._workspace.settle()
        if not self._shared.is_untouched(self._begun_ns):
            self._shared.empty(left)
            self._shared.settle()
        self._reset_tmp(left)
        for objects in self._objects:
            if os.pread(objects, 4096, 0).count(b"\n") > 1:  # The first line is the heading.
                raise Stale("System V objects were left")
        if self.boot.network_was_used():
            raise Stale("the network was used")

    def _reset_tmp(self, files_max: int) -> None:
        untouched = self._tmp.is_untouched(self._begun_ns)  # Then the home in it is the one that we made.
        if untouched or self._has_only_home():
            if not self._home.is_untouched(self._begun_ns):
                self._home.empty(files_max)
                self._home.settle()
        else:
            self._tmp.empty(files_max)
            self._home.close()
            self._make_home()
        if not untouched:
            self._tmp.settle()

    def _make_home(self) -> None:
        os.mkdir(self._home_path, 0o755)
        self._home = Place(self._home_path, self._mtime_ns, ctime_tells=self._tmp.ctime_tells)
        self._full_tmp = self._tmp.size()
        self._tmp.settle()

    def _has_only_home(self) -> bool:
        if self._full_tmp < 0 or self._tmp.size() != self._full_tmp:
            return False
        try:
            return os.stat(self._home_path, follow_symlinks=False).st_ino == self._home.inode
        except OSError:
            return False
