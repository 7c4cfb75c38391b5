"""How one step is made ready: a method for each operation of `view.plan_job`. It decides nothing.

`Staging` is what every worker does: inputs, and whether they are what they were. `Preparation` makes a view of
the step's own first, in a thread of the worker that is thrown away: namespaces, capabilities, Landlock and
seccomp belong to the thread. Standard library only; see `worker.py`.
"""

from __future__ import annotations

import errno
import os
import stat

from . import syscalls
from .boot import Boot
from .shelf import Shelf, write_all
from .starting import find_program, refuse, start_command

TYPE_CHECKING = False  # The module of that name costs a worker several milliseconds at its start.
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

FIRST_PID = 10
"""The pid of every step: above those of the worker's own threads, which come and go."""

_WORKSPACE = "/workspace/"
_TMP = "/tmp/"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

Stamp = tuple[int, int, int, int, int]


def _stamp(seen: os.stat_result) -> Stamp:
    return (seen.st_ino, seen.st_mode, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


class Staging:
    """A step's inputs in its workspace: the operations that write them, each named as in `view.py`, and the check."""

    def __init__(self, boot: Boot, here: str = "") -> None:
        """`here` is where the worker stands, if it is known."""
        self.boot = boot
        self.here = here
        self.applying: tuple[Any, ...] = ()
        self.stamps: dict[str, Stamp] = {}
        self.places: dict[str, int] = {}
        self.workspace = -1
        self.tmp = -1
        self.shared = -1
        self.stdin = boot.null
        self.pid = 0
        self.account = -1
        """Where a keeper says what its command used."""
        self.first_pid = FIRST_PID

    def apply(self, operations: list[tuple[Any, ...]]) -> None:
        """Raises whatever an operation raises; `applying` is then that operation."""
        for self.applying in operations:
            getattr(self, self.applying[0])(*self.applying[1:])
        self.applying = ("spawn",)

    def spawn(self, job: dict[str, Any], out: int, err: int, confine: Callable[[], None] | None = None) -> None:
        """Starts the command, after `confine` has given up what it must not have. Raises Refusal."""
        if job["cwd"] != self.here:
            os.chdir(job["cwd"])
        if self.boot.last_pid >= 0:
            os.pwrite(self.boot.last_pid, b"%d" % (self.first_pid - 1), 0)
        if confine is not None:
            confine()
        program = find_program(job["command"][0], job["env"].get("PATH"))
        self.pid = start_command(program, job, self.stdin, out, err)

    def spawn_kept(self, job: dict[str, Any], out: int, err: int, confine: Callable[[], None]) -> None:
        """As `spawn`, with a keeper of the clock in between, who is not confined."""
        from . import keeper  # Only few steps need it.

        os.chdir(job["cwd"])
        program = find_program(job["command"][0], job["env"].get("PATH"))
        self.account = os.memfd_create("account", os.MFD_CLOEXEC)
        try:
            streams = (self.stdin, out, err)
            self.pid = keeper.start(program, job, streams, self.boot.last_pid, confine, self.account)
        except OSError as error:
            refuse(program, error)

    def used_by_command(self) -> tuple[float, float, int] | None:
        """Of a step with a keeper: see `keeper.used_by_command`."""
        from . import keeper

        return keeper.used_by_command(self.account)

    def make_directory(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)
        self.places[path] = os.lstat(path).st_ino

    def write(self, path: str, content: bytes, mode: int, mtime_ns: int) -> None:
        target = os.open(path, _NEW_FILE, mode)
        try:
            write_all(target, content)
            os.utime(target, ns=(mtime_ns, mtime_ns))
            self.stamps[path] = _stamp(os.fstat(target))
        finally:
            os.close(target)

    def link(self, path: str, target: str, mtime_ns: int) -> None:
        os.symlink(target, path)
        os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
        self.stamps[path] = _stamp(os.lstat(path))

    def date(self, paths: list[str], mtime_ns: int) -> None:
        for path in paths:
            os.utime(path, ns=(mtime_ns, mtime_ns))

    def stdin_bytes(self, content: bytes) -> None:
        memory = os.memfd_create("stdin", os.MFD_CLOEXEC)
        try:
            write_all(memory, content)
            self.stdin = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(memory)

    def changed(self) -> list[str]:
        """The inputs that are no longer what was staged, looked at without trusting a single directory."""
        found = {path for path, stamp in self.stamps.items() if _look(path, self.workspace) != stamp}
        for place, inode in self.places.items():
            try:
                seen = os.stat(place, dir_fd=self.workspace, follow_symlinks=False)
                moved = seen.st_ino != inode or not stat.S_ISDIR(seen.st_mode)
            except OSError:
                moved = True
            if moved:  # Also what still lies in it: it was reached by another way.
                below = place + "/"
                found.update(path for path in (*self.stamps, *self.places) if path == place or path.startswith(below))
        return sorted(found)


class Preparation(Staging):
    """What happens in the thread of one job: a view of its own, its inputs, then the spawn."""

    def __init__(self, boot: Boot, confinement: syscalls.Filter | None, shelf: Shelf) -> None:
        super().__init__(boot)
        self.confinement = confinement
        self.shelf = shelf
        self.tree = 0
        self.own_layer = -1
        self.slots: dict[int, int] = {}
        self.mountpoints: list[tuple[str, bool]] = []
        self.ruleset = -1
        self.private = (_WORKSPACE, _TMP)
        self.personality = syscalls.ADDR_NO_RANDOMIZE

    # Operations.

    def borrow(self, wanted: list[tuple[int, int, bool]]) -> None:
        """Fetches (slot, area, hidden) from the staging namespace; `hidden` keeps the host path out of mountinfo."""
        syscalls.unshare(0x200)  # CLONE_FS: a thread that shares its root with others may not change namespace.
        syscalls.setns(self.boot.staging, syscalls.CLONE_NEWNS)
        for slot, area, hidden in wanted:
            # A bind mount shows the path of its source on its file system to everyone who can read
            # /proc/self/mountinfo. An overlay made for this job alone shows only its own paths, and is too
            # young to remember files that were replaced.
            place = f"/{area}"
            if hidden and self.boot.facts["overlay"] and os.path.isdir(place):
                self.slots[slot] = syscalls.new_overlay(f"{place}:/empty")
            else:
                self.slots[slot] = syscalls.open_tree(place)
        syscalls.setns(self.boot.home, syscalls.CLONE_NEWNS)

    def new_namespaces(self, flags: int) -> None:
        syscalls.unshare(flags)

    def tmpfs(self, path: str, options: str) -> None:
        syscalls.mount("tmpfs", path, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, options)

    def hide_trees(self) -> None:
        self.shelf.hide()

    def lay_tree(self, number: int, path: str, options: str) -> None:
        self.own_layer = self.shelf.lay(number, path, options)
        self.tree = number

    def changed(self) -> list[str]:
        found = super().changed()
        if not self.tree:
            return found
        return sorted({*found, *self.shelf.changed(self.tree, self.own_layer)})

    def enter_workspace(self, path: str) -> None:
        os.chdir(path)
        self.private = (path + "/", _TMP)
        self.workspace = os.open(".", _DIRECTORY)

    def enter_upper(self, path: str) -> None:
        """As `enter_workspace`, for a workspace with a backdrop: what is staged goes under what will be seen."""
        os.mkdir(f"{path}/upper", 0o755)
        os.mkdir(f"{path}/work", 0o755)
        self.enter_workspace(f"{path}/upper")
        self.private = (path + "/", _TMP)

    def hide(self, path: str) -> None:
        """The sign by which an overlay knows that something of its lower layer is gone."""
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, 0)
        except (FileExistsError, FileNotFoundError):
            return  # Staged, or inside something that is hidden.

    def show_backdrop(self, lower: str, path: str) -> None:
        overlay = syscalls.new_writable_overlay(lower, f"{path}/upper", f"{path}/work")
        try:
            syscalls.move_mount(overlay, path)
        finally:
            os.close(overlay)
        os.chdir(path)

    def watch_tmp(self, path: str) -> None:
        self.tmp = os.open(path, _DIRECTORY)

    def watch_shared(self, path: str) -> None:
        self.shared = os.open(path, _DIRECTORY)

    def attach(self, slot: int, target: str) -> None:
        descriptor = self.slots[slot]
        self._make_place(target, stat.S_ISDIR(os.fstat(descriptor).st_mode))
        syscalls.move_mount(descriptor, target)
        os.close(self.slots.pop(slot))  # Until then it is `release` that closes it.

    def detach(self, path: str) -> None:
        syscalls.umount(path)

    def show_tree(self, source: str, target: str) -> None:
        self._make_place(target, os.path.isdir(source))
        syscalls.mount(source, target, flags=syscalls.MS_BIND | syscalls.MS_REC)

    def _make_place(self, path: str, directory: bool) -> None:
        """Where a root shall lie. In the view's own root it is made only for the time of this job."""
        if os.path.exists(path):
            return
        shared = not path.startswith(self.private)
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            place = "/".join(parts[:depth])
            if os.path.lexists("/" + place):
                continue
            is_directory = directory or depth < len(parts)
            _make(place if shared else "/" + place, is_directory, self.boot.base if shared else None)
            if shared:
                self.mountpoints.append((place, is_directory))
        if not os.path.exists(path):  # Inside a read-only tree such as /usr nothing can be made.
            raise FileNotFoundError(errno.ENOENT, "there is no such place in the view", path)

    def scratch(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def show_file(self, source: str, path: str, mode: int, mtime_ns: int) -> None:
        """A file of the store, without a copy if it already looks as an input must look."""
        seen = os.stat(source)
        if not stat.S_ISREG(seen.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", source)
        if (stat.S_IMODE(seen.st_mode), seen.st_mtime_ns) == (mode, mtime_ns):
            _touch(path)
            self.stamps[path] = _stamp(os.lstat(path))
            syscalls.mount(source, path, flags=syscalls.MS_BIND)
        else:
            self._copy(source, path, mode, mtime_ns)

    def _copy(self, source: str, path: str, mode: int, mtime_ns: int) -> None:
        origin = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        target = os.open(path, _NEW_FILE, mode)
        try:
            while os.sendfile(target, origin, None, 1 << 30):
                pass
            os.utime(target, ns=(mtime_ns, mtime_ns))
            self.stamps[path] = _stamp(os.fstat(target))
        finally:
            os.close(origin)
            os.close(target)

    def stdin_file(self, source: str) -> None:
        self.stdin = os.open(source, os.O_RDONLY | os.O_CLOEXEC)

    def landlock(self, abi: int, rules: list[tuple[str, int]]) -> None:
        self.ruleset = syscalls.landlock_ruleset(abi)
        for path, rights in rules:
            syscalls.landlock_allow(self.ruleset, path, rights)

    def vary_addresses(self) -> None:
        self.personality &= ~syscalls.ADDR_NO_RANDOMIZE

    def other_kernel(self) -> None:
        self.personality |= syscalls.UNAME26

    def number_processes(self, first: int) -> None:
        self.first_pid = first

    def use_processors(self, count: int) -> None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])  # Of this thread and what it starts.

    def set_umask(self, mask: int) -> None:
        os.umask(mask)  # Of this thread: its new mount namespace gave it a file-system state of its own.

    # The end of the thread.

    def start(self, job: dict[str, Any], out: int, err: int) -> None:
        self.apply(job["operations"])
        if job["hold"] is None:
            self.spawn(job, out, err, self._confine)
        else:
            self.spawn_kept({**job, "pid": FIRST_PID}, out, err, self._confine)

    def _confine(self) -> None:
        syscalls.set_personality(self.personality)
        syscalls.drop_capabilities()
        if self.ruleset >= 0:
            syscalls.landlock_restrict(self.ruleset)
        if self.confinement is not None:
            self.confinement.load()

    def release(self) -> None:
        """Gives back every descriptor that the view needed."""
        for descriptor in (*self.slots.values(), self.ruleset, self.tmp, self.shared, self.own_layer, self.account):
            if descriptor >= 0:
                os.close(descriptor)
        if self.workspace >= 0:
            os.close(self.workspace)

    def remove_mountpoints(self) -> None:
        for place, directory in reversed(self.mountpoints):
            if directory:
                os.rmdir(place, dir_fd=self.boot.base)
            else:
                os.unlink(place, dir_fd=self.boot.base)


def _touch(path: str, directory: int | None = None) -> None:
    os.close(os.open(path, _NEW_FILE, 0o444, dir_fd=directory))


def _make(path: str, directory: bool, inside: int | None) -> None:
    if directory:
        os.mkdir(path, 0o755, dir_fd=inside)
    else:
        _touch(path, inside)


def _look(path: str, directory: int) -> Stamp | None:
    try:
        return _stamp(os.stat(path, dir_fd=directory, follow_symlinks=False))
    except OSError:
        return None
