"""The trees of inputs that steps of one worker share, in a file system that no step can reach.

A step sees a tree through an overlay: what it writes lies in a layer of its own, and that layer is the exact list
of what it changed. It does not decide what is in a tree: `trees.py` does. Standard library only; see `worker.py`.
"""

from __future__ import annotations

import os
import stat

from . import syscalls

TYPE_CHECKING = False  # The module of that name costs a worker several milliseconds at its start.
if TYPE_CHECKING:
    from collections.abc import Iterator

PLACE = "/dev/shm"
"""Every step has a directory of its own there, which covers this one."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

TWO_FROM = 400
"""Files. To make a process costs as much as to make so many of them."""
_TWO = 2

_LOWER = "/run"
"""Where the tree lies while the overlay is made: a name that does not tell which tree it is."""


class Shelf:
    """Trees by number. A tree is whole or absent: one that cannot be made costs the worker its life."""

    def __init__(self) -> None:
        self.mounted = False
        self._files: dict[int, frozenset[str]] = {}
        self._directories: dict[int, frozenset[str]] = {}

    def drop(self, number: int) -> None:
        for path in self._files.pop(number):
            os.unlink(f"{PLACE}/{number}/{path}")
        for path in sorted(self._directories.pop(number), reverse=True):
            os.rmdir(f"{PLACE}/{number}/{path}")
        os.rmdir(f"{PLACE}/{number}")

    def put(self, number: int, directories: list[str], files: list[tuple[str, bytes, int]], mtime_ns: int) -> None:
        """`directories` come parents first; `files` are (path, content, mode)."""
        if not self.mounted:
            flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
            syscalls.mount("tmpfs", PLACE, "tmpfs", flags, "mode=0755")
            self.mounted = True
        top = f"{PLACE}/{number}"
        os.mkdir(top, 0o755)
        for path in directories:
            os.mkdir(f"{top}/{path}", 0o755)
        dates = (mtime_ns, mtime_ns)
        _write_by_two(top, files, dates)
        for path in (*reversed(directories), ""):
            os.utime(f"{top}/{path}", ns=dates)
        self._files[number] = frozenset(path for path, _, _ in files)
        self._directories[number] = frozenset(directories)

    def hide(self) -> None:
        """In the namespace of one step: there are no trees."""
        if self.mounted:
            syscalls.umount(PLACE)

    def lay(self, number: int, place: str, options: str) -> int:
        """In the namespace of one step: mounts a tree at a place, below a layer of the step's own (tmpfs, `options`).

        The descriptor of that layer's directory is returned. What is mounted names neither the tree nor the shelf.
        """
        syscalls.mount(f"{PLACE}/{number}", _LOWER, flags=syscalls.MS_BIND)
        syscalls.umount(PLACE)
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        syscalls.mount("tmpfs", PLACE, "tmpfs", flags, options)
        for name in ("upper", "work"):
            os.mkdir(f"{PLACE}/{name}", 0o755)
        layers = f"lowerdir={_LOWER},upperdir={PLACE}/upper,workdir={PLACE}/work,userxattr"
        syscalls.mount("overlay", place, "overlay", flags, layers)
        upper = os.open(f"{PLACE}/upper", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        syscalls.umount(PLACE)
        syscalls.umount(_LOWER)
        return upper

    def changed(self, number: int, upper: int) -> set[str]:
        """What of a tree a step changed, replaced or removed: whatever of it lies in the step's own layer."""
        files, directories = self._files[number], self._directories[number]
        found: set[str] = set()
        pending = [""]
        for folder in pending:
            opened = os.open(folder or ".", _DIRECTORY, dir_fd=upper)
            try:
                names = os.listdir(opened)
                modes = [os.stat(name, dir_fd=opened, follow_symlinks=False).st_mode for name in names]
                whole = folder != "" and _is_opaque(opened)
            finally:
                os.close(opened)
            if whole:  # It was removed and made anew, and what it held is gone.
                found.update(_with_all_below(folder, files, directories))
                continue
            for name, mode in zip(names, modes, strict=True):
                path = f"{folder}/{name}" if folder else name
                if path in files:
                    found.add(path)
                elif path in directories and stat.S_ISDIR(mode):
                    pending.append(path)
                elif path in directories:
                    found.update(_with_all_below(path, files, directories))
        return found


def _write_by_two(top: str, files: list[tuple[str, bytes, int]], dates: tuple[int, int]) -> None:
    """One half by a process beside this one, where that is quicker: nearly all of it is the kernel's work."""
    if len(files) < TWO_FROM or len(os.sched_getaffinity(0)) < _TWO:
        _write_all(top, files, dates)
        return
    half = len(files) // 2
    helper = os.fork()
    if helper == 0:
        failed = 255
        try:
            _write_all(top, files[half:], dates)
            failed = 0
        except OSError as error:
            failed = error.errno or failed
        finally:
            os._exit(failed)
    try:
        _write_all(top, files[:half], dates)
    finally:
        _, status = os.waitpid(helper, 0)
    if status:
        number = os.waitstatus_to_exitcode(status)
        raise OSError(number, os.strerror(number) if number > 0 else "the process that writes beside was killed", top)


def _write_all(top: str, files: list[tuple[str, bytes, int]], dates: tuple[int, int]) -> None:
    """By descriptors of their directories, one after the other: the way from the top to each file costs its time."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    folder, opened = "", os.open(top, _DIRECTORY)
    try:
        for path, content, mode in files:
            above, _, name = path.rpartition("/")
            if above != folder:
                os.close(opened)
                opened = -1
                folder, opened = above, os.open(f"{top}/{above}", _DIRECTORY)
            target = os.open(name, flags, mode, dir_fd=opened)
            try:
                write_all(target, content)
                os.utime(target, ns=dates)
            finally:
                os.close(target)
    finally:
        if opened >= 0:
            os.close(opened)


def write_all(target: int, content: bytes) -> None:
    written = os.write(target, content)
    while written < len(content):  # It was interrupted, or is larger than what one call writes.
        written += os.write(target, memoryview(content)[written:])


def _with_all_below(folder: str, *known: frozenset[str]) -> Iterator[str]:
    yield folder
    for paths in known:
        yield from (path for path in paths if path.startswith(folder + "/"))


def _is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, "user.overlay.opaque") == b"y"
    except OSError:
        return False


def works(empty: str, scratch: str) -> bool:
    """Tried, in two directories of the caller's: some kernels have no overlay for user namespaces, or none on tmpfs."""
    try:
        for name in ("upper", "work", "merged"):
            os.mkdir(f"{scratch}/{name}")
        os.mkdir(f"{empty}/d")
        options = f"lowerdir={empty},upperdir={scratch}/upper,workdir={scratch}/work,userxattr"
        syscalls.mount("overlay", f"{scratch}/merged", "overlay", syscalls.MS_NOSUID | syscalls.MS_NODEV, options)
        os.rmdir(f"{scratch}/merged/d")
        os.mkdir(f"{scratch}/merged/d")
        opened = os.open(f"{scratch}/upper/d", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        opaque = _is_opaque(opened)
        os.close(opened)
        syscalls.umount(f"{scratch}/merged")
    except OSError:
        return False
    return opaque
