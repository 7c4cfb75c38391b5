"""Files that appear whole or not at all, and a host's refusals in our words. Knows nothing of digests or records."""

from __future__ import annotations

import errno
import os
import pwd
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import count

from ..core.digest import object_digest
from ..core.errors import EnvironmentFault, Fact, IntegrityError, StoreRefused

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""How everything in a store and every step's output is opened: no link is followed, no FIFO is waited for."""

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
FILE_MODE = 0o444
DIRECTORY_MODE = 0o755
SHARED_BITS = stat.S_ISGID | stat.S_IWGRP
SHARED_MODE = DIRECTORY_MODE | SHARED_BITS
STALE_S = 3600
DELETED_MAX = 4
"""How often one write puts up with the whole store being deleted under it."""
PIECE = 1 << 20
BLOCK = 4096
"""What a file system gives out at once: every file takes whole ones."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_NOWHERE = (errno.ENOENT, errno.ENOTDIR)
HOST_FAILED = (*_TOO_MANY, errno.EIO, errno.ENOMEM)
"""What no path that was given wrongly can cause."""


_HINTS = {
    **dict.fromkeys(NO_SPACE, "free some space there, then run the same again: nothing needs to be repaired"),
    **dict.fromkeys(_TOO_MANY, "raise the limit with `ulimit -n`, or lower -j"),
    **dict.fromkeys(_REFUSED, "look at its owner, its mode and how its file system is mounted"),
    errno.EIO: "the disk or its file system fails: look into the kernel's log (dmesg), then run the same again",
    errno.ENOMEM: "end other programs, lower -j, or raise the limit (ulimit -v, the container's): nothing is lost",
    errno.EAGAIN: "raise the limit of processes and threads (ulimit -u, the container's), or lower -j",
}


def hint_of(number: int | None) -> str | None:
    """What helps against a host's refusal, whatever was refused."""
    return _HINTS.get(number or 0)


class NotAFile(Exception):
    """What stands at a path is a link, a directory, a device or the like."""


def fault(error: OSError, doing: str, place: str, *, needs: int | None = None) -> EnvironmentFault:
    """What a host's refusal means for its user. `place` is the store's path, `needs` bytes."""
    cause: Fact = ("cause", error.strerror or str(error))
    if error.errno in NO_SPACE:
        facts: list[Fact] = [("store", place)]
        if needs is not None:
            facts.append(("needs", f"{needs} bytes"))
        with suppress(OSError):
            room = os.statvfs(place)
            facts.append(("free", f"{room.f_bavail * room.f_frsize} bytes, {room.f_favail} files"))
        return EnvironmentFault(
            f"no space left while {doing}",
            facts=[*facts, cause],
            hint="free some space, or move the store with REQUIEM_CAS_DIR or [store] path",
        )
    if error.errno in _REFUSED:
        at = str(error.filename2 or error.filename or place)
        return StoreRefused(
            f"permission refused while {doing}",
            facts=[("path", at), *_ownership(at), cause],
            hint="use a store of your own with REQUIEM_CAS_DIR, or change the owner or mode",
        )
    if error.errno in _TOO_MANY:
        return EnvironmentFault(f"too many open files while {doing}", facts=[cause], hint=hint_of(error.errno))
    path = error.filename2 or error.filename or place
    hint = hint_of(error.errno)
    if error.errno in _NOWHERE:
        hint = "say with REQUIEM_CAS_DIR or [store] path where the store can lie: there is no directory for it there"
    return EnvironmentFault(f"the host failed while {doing}", facts=[("path", str(path)), cause], hint=hint)


def _ownership(path: str) -> list[Fact]:
    """Owner and mode of the nearest thing on the way to a path that can be looked at."""
    while True:
        try:
            found = os.lstat(path)
        except OSError:
            parent = os.path.dirname(path)
            if parent == path:
                return []
            path = parent
            continue
        try:
            owner = pwd.getpwuid(found.st_uid).pw_name
        except KeyError:
            owner = str(found.st_uid)
        return [("owner", f"{owner} of {path}"), ("mode", f"{stat.S_IMODE(found.st_mode):04o}")]


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Writes every byte; a short write is gone on with (EINTR is Python's own affair, PEP 475)."""
    done = os.write(descriptor, content)
    if done == len(content):
        return
    rest = memoryview(content)[done:]
    while rest:
        done = os.write(descriptor, rest)
        if done == 0:
            raise OSError(errno.EIO, "a write of zero bytes")
        rest = rest[done:]


def create_file(path: str) -> int:
    """A new file of mode 0444 whatever the umask, open for reading and writing. Raises OSError."""
    descriptor = os.open(path, _NEW, FILE_MODE)
    if _umask() & FILE_MODE:
        os.fchmod(descriptor, FILE_MODE)
    return descriptor


def read_small(path: str, size_max: int) -> bytes | None:
    """As `read_judged`, without the status."""
    found = read_judged(path, size_max)
    return None if found is None else found[0]


def read_judged(path: str, size_max: int) -> tuple[bytes, os.stat_result] | None:
    """A regular file of at most `size_max` bytes and its status; None if nothing stands there.

    Raises NotAFile for a link, a directory or a special file, ValueError if it is larger, else OSError.
    """
    try:
        descriptor = os.open(path, READ)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NotAFile(path) from error
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise NotAFile(path)
        if found.st_size > size_max:
            raise ValueError(f"{found.st_size} bytes where at most {size_max} may be")
        return _read_rest(descriptor, found.st_size, size_max), found
    finally:
        os.close(descriptor)


def _read_rest(descriptor: int, size: int, size_max: int) -> bytes:
    content = os.read(descriptor, size + 1)
    if len(content) == size:
        return content
    pieces, total = [content], len(content)
    while content:
        if total > size_max:
            raise ValueError(f"more than {size_max} bytes")
        content = os.read(descriptor, PIECE)
        pieces.append(content)
        total += len(content)
    return b"".join(pieces)


def link_new(temporary: str, path: str) -> bool:
    """Gives a finished file its name too, unless the name is taken: readers see the whole file or none.

    False if it is taken. Raises OSError.
    """
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    if os.path.lexists(path):
        return False
    os.rename(temporary, path)  # A file system without links: two at once may both think that they were first.
    return True


def move_aside(path: str, target: str) -> str:
    """Renames `path` to `target`, which nothing has, and says where it is now. Raises OSError.

    Another user's directory can be taken elsewhere by him alone, but gets another name where it stands.
    """
    try:
        os.rename(path, target)
    except PermissionError:
        target = f"{os.path.dirname(path)}/foreign.{os.path.basename(target)}"
        os.rename(path, target)
    return target


def ensure_directory(path: str) -> None:
    """A real directory of mode 0755 whatever the umask: a sandbox's unprivileged user reads through it.

    In a directory that its group may write and that hands its group down (2775) it is of mode 2775 itself: a store
    is shared by giving its root that mode. Raises IntegrityError where anything else stands: nothing is ever
    written through a link out of the store.
    """
    try:
        os.mkdir(path, DIRECTORY_MODE)
        mode = _mode_below(path)
        if mode != DIRECTORY_MODE or _umask() & DIRECTORY_MODE:
            os.chmod(path, mode)
    except FileExistsError:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode):
            raise IntegrityError(
                f'"{path}" is not a directory, nothing is written there',
                facts=[("kind", kind_of(found.st_mode))],
                hint="remove it: the store makes its own directories",
            ) from None
        mode = _mode_below(path)
        if found.st_mode & mode != mode and found.st_uid == os.geteuid():
            os.chmod(path, mode)  # Another process was killed between its mkdir and its chmod.


def _mode_below(path: str) -> int:
    """The mode of a directory at a path, by its parent's."""
    above = os.stat(os.path.dirname(path)).st_mode
    return SHARED_MODE if above & SHARED_BITS == SHARED_BITS else DIRECTORY_MODE


@cache
def _umask() -> int:
    """This process's umask, which Requiem never changes; where it cannot be told, the strictest."""
    with suppress(OSError), open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o777


def kind_of(mode: int) -> str:
    for test, name in (
        (stat.S_ISLNK, "a symlink"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return name
    return "a file"


def entries(directory: str) -> list[os.DirEntry[str]]:
    """A directory's entries sorted by name; none if it is not there."""
    try:
        with os.scandir(directory) as items:
            return sorted(items, key=lambda item: item.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


_COUNT = count()  # Of the whole process: two stores opened on one root share its temporary names.


class Scratch:
    """One store's temporary files: each name tells which process of which host it belongs to."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.written = 0
        """About how many bytes went through here and were kept or not, in whole blocks."""
        self._owner = ("", -1)

    def name(self) -> str:
        """Unique in this directory: no two processes or threads ever get the same."""
        pid = os.getpid()
        owner, known = self._owner
        if pid != known:  # The first name of this process, which may be a fork of another.
            owner = f"{_here()}.{pid}.{_started(pid)}"
            self._owner = (owner, pid)
        return f"{owner}.{next(_COUNT)}"

    def write(self, content: bytes, *, durable: bool = False) -> str:
        """A finished temporary file of mode 0444; nothing is left if that fails. Raises OSError."""
        descriptor, path = self.create()
        self.written += -(-len(content) // BLOCK) * BLOCK
        try:
            try:
                write_all(descriptor, content)
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            self.discard(path)
            raise
        return path

    def create(self) -> tuple[int, str]:
        """A new file of mode 0444 whatever the umask, open for writing; the caller closes and renames it."""
        path = f"{self.directory}/{self.name()}"
        for _ in range(DELETED_MAX):
            try:
                return create_file(path), path
            except FileNotFoundError:  # The store was deleted under us, and may be once more before we are done.
                with suppress(FileNotFoundError):
                    os.makedirs(os.path.dirname(self.directory), exist_ok=True)
                    ensure_directory(self.directory)
        return create_file(path), path

    def discard(self, *paths: str) -> None:
        for path in paths:
            with suppress(OSError):
                os.unlink(path)

    def sweep(self, now: float | None = None) -> int:
        """Removes what dead processes of this host left, and what is older than an hour; says how many."""
        removed = 0
        for item in entries(self.directory):
            with suppress(OSError):
                if not item.is_dir(follow_symlinks=False) and _abandoned(item, time.time() if now is None else now):
                    os.unlink(item.path)
                    removed += 1
        return removed

    def paths(self) -> Iterator[str]:
        for item in entries(self.directory):
            yield item.path


_NAME = re.compile(r"([0-9a-f]{12})\.(\d{1,10})\.(\d{1,20})\.\d+")


def is_of_the_dead(name: str) -> bool | None:
    """Whether the process of this host that gave such a name is dead, or its number another's; None if unknown."""
    parts = _NAME.fullmatch(name)
    return None if parts is None or parts[1] != _here() else _started(int(parts[2])) != parts[3]


def _abandoned(item: os.DirEntry[str], now: float) -> bool:
    dead = is_of_the_dead(item.name)
    return item.stat(follow_symlinks=False).st_mtime < now - STALE_S if dead is None else dead


@cache
def _here() -> str:
    """This boot of this host and its process numbers: where a pid means what it says."""
    parts = [os.uname().nodename.encode()]
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", "rb") as file:
        parts.append(file.read(64))
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid").encode())
    return object_digest(b"\0".join(parts))[:12]


def _started(pid: int) -> str:
    """When a process began, in ticks since boot: tells it from a later one of the same number. `0` if unknown."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read(4096).rpartition(b")")[2].split()[19].decode()
    except OSError:
        return "0"
