"""How a worker walls itself in: one method for each operation of `walls.plan_boot`. It decides nothing.

Standard library only; see `worker.py`.
"""

from __future__ import annotations

import _signal as signal
import _socket as socket
import errno
import fcntl
import os
import resource
import select
import stat
import struct

from . import shelf, syscalls
from .threads import in_thread

_NETWORK_BYTES = 65536
CHANNEL = 3
"""The descriptor of the socket to the engine."""

_READ_ONLY = syscalls.ATTR_RDONLY | syscalls.ATTR_NOSUID | syscalls.ATTR_NODEV
_MASK = ".mask"
_BASE = "/tmp"
"""A directory of every host on which the new root is built; nothing is written to the host's own."""


def _relative(path: str) -> str:
    """A path of the view as seen from the base directory, where the view is built before it becomes the root."""
    return path.lstrip("/") or "."


class Boot:
    """The operations that wall the worker in, each named as in `walls.py`, and what they leave behind."""

    def __init__(self, engine: int) -> None:
        self.engine = engine
        self.facts: dict[str, object] = {}
        self.trees: list[int] = []
        self.masks: list[int] = []
        self.staging = -1
        self.home = -1
        self.base = -1
        self.last_pid = -1
        self.network: list[tuple[int, bytes]] = []
        """What tells of the network's use, open, and what it says while there was none; empty for the host's."""
        self.null = -1

    def open_trees(self, paths: list[str]) -> None:
        # As root and before anything is given up: the user that the worker becomes cannot walk through a
        # closed home directory, but mounts that are already open can be put anywhere later.
        self.trees = [syscalls.open_tree(path) for path in paths]

    def open_masks(self, paths: list[str]) -> None:
        """The layers of a view of packages: see `masks.py`. They may lie where only who starts us can go."""
        self.masks = [syscalls.open_tree(path) for path in paths]

    def drop_identity(self, uid: int) -> None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # A change of uid made /proc/self belong to root.

    def core_filter(self, value: str) -> None:
        """What a core dump would hold is inherited, and can be seen."""
        _write("/proc/self/coredump_filter", value)

    def new_user(self, uid: int, gid: int) -> None:
        outside_uid, outside_gid = os.geteuid(), os.getegid()
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {outside_uid} 1")
        _write("/proc/self/gid_map", f"{gid} {outside_gid} 1")

    def new_namespaces(self, flags: int) -> None:
        syscalls.unshare(flags)

    def become_init(self) -> None:
        """Only the child returns: PID 1 of the new pid namespace."""
        child = os.fork()
        if child:
            _guard(self.engine, child)
        # The parent has one thread, so this signal means that the process ended, not one of its threads.
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            # What is ignored here would be ignored in every step. PID 1 gets no signal by default action.
            signal.signal(number, signal.SIG_DFL)

    def hostname(self, name: str) -> None:
        syscalls.sethostname(name)

    def private_mounts(self) -> None:
        syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)

    def stage_trees(self, paths: list[str]) -> None:
        """Puts the directories that jobs may show into a mount namespace of their own, as /0, /1 and so on.

        No step ever runs in it, so no step sees where they lie on the host.
        """
        failure: list[BaseException] = []
        in_thread(self._stage, failure, paths)
        if failure:
            raise failure[0]

    def _stage(self, paths: list[str]) -> None:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        self.staging = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        trees = self.trees or [syscalls.open_tree(path) for path in paths]
        syscalls.mount("tmpfs", _BASE, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=0755,size=1m")
        os.chdir(_BASE)
        for name in ("empty", "probe"):  # An overlay has at least two layers, and none may contain another.
            os.mkdir(name, 0o755)
        for number, tree in enumerate(trees):
            if stat.S_ISDIR(os.fstat(tree).st_mode):
                os.mkdir(str(number), 0o755)
            else:
                os.close(os.open(str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            syscalls.set_mount_attributes(tree, _READ_ONLY)
            syscalls.move_mount(tree, str(number))
            os.close(tree)
        syscalls.pivot_root_here()
        self.trees = []
        self.facts["overlay"] = _overlay_works()
        for name in ("lower", "scratch"):
            os.mkdir(name)
        self.facts["shared_trees"] = shelf.works("lower", "scratch")

    def new_root(self) -> None:
        options = "mode=0755,size=16m"
        syscalls.mount("tmpfs", _BASE, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, options)
        os.chdir(_BASE)

    def directory(self, path: str, mode: int) -> None:
        os.mkdir(_relative(path), mode)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        with open(_relative(path), "xb") as target:
            target.write(content)
            os.fchmod(target.fileno(), mode)

    def symlink(self, path: str, target: str) -> None:
        os.symlink(target, _relative(path))

    def bind(self, source: str, target: str) -> None:
        tree = syscalls.open_tree(source)
        syscalls.set_mount_attributes(tree, _READ_ONLY)
        place = _relative(target)
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            os.mkdir(place, 0o755)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        syscalls.move_mount(tree, place)
        os.close(tree)

    def show_masked(self, number: int, mechanism: str, target: str) -> None:
        """Of a directory of the host, what the mask of that number lets through."""
        tree, place = self.masks[number], _relative(target)
        os.mkdir(place, 0o755)
        if mechanism == "copy":
            syscalls.set_mount_attributes(tree, _READ_ONLY)
            syscalls.move_mount(tree, place)
        else:
            os.mkdir(_MASK, 0o755)
            syscalls.move_mount(tree, _MASK)
            # Two colons: what lies below them is not merged in, it is only where redirects lead.
            between = "::" if mechanism == "redirects" else ":"
            flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
            layers = f"lowerdir={_BASE}/{_MASK}{between}{target},userxattr"
            syscalls.mount("system", place, "overlay", flags, layers)
            syscalls.umount(_MASK)  # The overlay holds on to it, and no step sees where it lies.
            os.rmdir(_MASK)
        os.close(tree)

    def check_masked(self, present: str, content: bytes, hidden: str) -> None:
        """Some kernels mount a mask and do not do what it says."""
        if present:
            with open(_relative(present), "rb") as file:
                if file.read(len(content)) != content:
                    raise OSError(errno.ENOTSUP, "the mask is not understood")
        if hidden and os.path.lexists(_relative(hidden)):
            raise OSError(errno.ENOTSUP, "the mask hides nothing")

    def device(self, name: str) -> None:
        place = f"dev/{name}"
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        self._put_device(name, place)

    def _put_device(self, name: str, place: str) -> None:
        tree = syscalls.open_tree(f"/dev/{name}")
        # Read-only is about the node, not the device: its date and mode are the host's.
        syscalls.set_mount_attributes(tree, syscalls.ATTR_RDONLY | syscalls.ATTR_NOSUID | syscalls.ATTR_NOEXEC)
        syscalls.move_mount(tree, place)
        os.close(tree)

    def terminals(self, mtime_ns: int) -> None:
        os.mkdir("dev/pts", 0o755)
        flags = syscalls.MS_NOSUID | syscalls.MS_NOEXEC
        syscalls.mount("devpts", "dev/pts", "devpts", flags, "newinstance,ptmxmode=0666,mode=0620")
        os.utime("dev/pts/ptmx", ns=(mtime_ns, mtime_ns))
        tree = syscalls.open_tree("dev/pts/ptmx")  # Its mode and date are the worker's, and outlive a step.
        syscalls.set_mount_attributes(tree, syscalls.ATTR_RDONLY | syscalls.ATTR_NOSUID | syscalls.ATTR_NOEXEC)
        syscalls.move_mount(tree, "dev/pts/ptmx")
        os.close(tree)
        os.symlink("pts/ptmx", "dev/ptmx")

    def proc(self) -> None:
        os.mkdir("proc", 0o555)
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("proc", "proc", "proc", flags, "hidepid=2")
        try:
            self.last_pid = os.open("proc/sys/kernel/ns_last_pid", os.O_WRONLY | os.O_CLOEXEC)
            os.pwrite(self.last_pid, b"1", 0)
        except OSError:  # Built without CONFIG_CHECKPOINT_RESTORE: pids then vary, and the record says so.
            self.last_pid = -1
        self.facts["constant_pid"] = self.last_pid >= 0

    def sysctl(self, name: str, value: str) -> None:
        _write(f"proc/sys/{name}", value)

    def read_only(self, path: str) -> None:
        place = _relative(path)
        if os.path.lexists(place):
            syscalls.mount(place, place, flags=syscalls.MS_BIND | syscalls.MS_REC)
            flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
            syscalls.mount(None, place, flags=syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY | flags)

    def mask(self, path: str) -> None:
        place = _relative(path)
        if os.path.isdir(place):
            flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
            syscalls.mount("tmpfs", place, "tmpfs", flags, "mode=0755,size=4k")
        elif os.path.lexists(place):
            self._put_device("null", place)

    def cover(self, path: str, content: bytes) -> None:
        """Other content for a file of /proc."""
        self.file("/cover", content)
        syscalls.mount("cover", _relative(path), flags=syscalls.MS_BIND)
        os.unlink("cover")

    def date(self, mtime_ns: int) -> None:
        """What was made for the view looks the same each day. What was mounted into it keeps its own dates."""
        own = os.lstat(".").st_dev
        for folder, directories, files in os.walk("."):
            directories[:] = [name for name in directories if os.lstat(f"{folder}/{name}").st_dev == own]
            for name in ("", *directories, *files):
                place = f"{folder}/{name}"
                if os.lstat(place).st_dev == own:
                    os.utime(place, ns=(mtime_ns, mtime_ns), follow_symlinks=False)

    def enter_root(self) -> None:
        """The base becomes the root and read-only; a second, writable way to it stays for mount points of roots."""
        self.base = syscalls.open_tree(".", syscalls.OPEN_TREE_CLONE)
        syscalls.pivot_root_here()
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        syscalls.mount(None, "/", flags=syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY | flags)
        self.home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self.null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def loopback(self) -> None:
        raise_loopback()
        self.watch_network()

    def limit(self, name: str, soft: int, hard: int) -> None:
        """Not that of the shell that started the engine; -1 is none. Nobody can raise a hard limit of his own."""
        which = getattr(resource, name)
        most = resource.getrlimit(which)[1]
        soft, hard = (_lower(wanted, most) for wanted in (soft, hard))
        resource.setrlimit(which, (soft, hard))

    # What a worker that shows all steps one view does once, and every other one for each step.

    def tmpfs(self, path: str, options: str) -> None:
        syscalls.mount("tmpfs", path, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, options)

    def keep_one_capability(self) -> None:
        """That of choosing pids. The kernel lets nobody change the scheduling of a process that can do more than he."""
        syscalls.keep_capability(syscalls.CAP_CHECKPOINT_RESTORE)

    def fix_addresses(self) -> None:
        syscalls.fix_addresses()

    def landlock(self, abi: int, rules: list[tuple[str, int]]) -> None:
        ruleset = syscalls.landlock_ruleset(abi)
        for path, rights in rules:
            syscalls.landlock_allow(ruleset, path, rights)
        syscalls.landlock_restrict(ruleset)
        os.close(ruleset)

    def confine(self, program: bytes) -> None:
        syscalls.Filter(program).load()

    def watch_network(self) -> None:
        """The kernel binds these files to the network namespace that is current when they are opened."""
        for descriptor, _ in self.network:
            os.close(descriptor)
        self.network = []
        for name in ("dev", "ip6_flowlabel"):
            try:
                descriptor = os.open(f"/proc/thread-self/net/{name}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # A kernel without IPv6.
                continue
            self.network.append((descriptor, os.pread(descriptor, _NETWORK_BYTES, 0)))

    def network_was_used(self) -> bool:
        """Whether a packet went over loopback or a flow label was taken: ports, labels and counters outlive a step."""
        return any(os.pread(descriptor, len(before) + 1, 0) != before for descriptor, before in self.network)

    def drop_bounding_set(self) -> None:
        syscalls.drop_bounding_set()

    def no_new_privileges(self) -> None:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


def _lower(one: int, other: int) -> int:
    limits = [limit for limit in (one, other) if limit != resource.RLIM_INFINITY]
    return min(limits, default=resource.RLIM_INFINITY)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _guard(engine: int, init: int) -> None:
    """The outer process: ends PID 1 when the engine ends, and itself when PID 1 ends. Never returns.

    A pidfd is used because PR_SET_PDEATHSIG would fire when the *thread* of the engine that booted us ends.
    """
    os.close(CHANNEL)
    watched = select.poll()
    inside = os.pidfd_open(init)
    watched.register(engine, select.POLLIN)
    watched.register(inside, select.POLLIN)
    while not (ended := watched.poll()):
        pass
    if inside not in (descriptor for descriptor, _ in ended):
        os.kill(init, signal.SIGKILL)
    os.waitpid(init, 0)
    os._exit(0)


def raise_loopback() -> None:
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        request = struct.pack("16sH22x", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(control.fileno(), 0x8914, request)  # SIOCSIFFLAGS
    finally:
        control.close()


def _overlay_works() -> bool:
    try:
        os.close(syscalls.new_overlay("/probe:/empty"))
    except OSError:
        return False
    return True
