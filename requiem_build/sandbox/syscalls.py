"""The Linux system calls that Python's standard library lacks; it does not know what a sandbox is.

Standard library only: the worker imports this file by its folder, outside of any package.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4

ATTR_RDONLY = 0x1
ATTR_NOSUID = 0x2
ATTR_NODEV = 0x4
ATTR_NOEXEC = 0x8

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

ADDR_NO_RANDOMIZE = 0x0040000
UNAME26 = 0x0020000

LANDLOCK_EXECUTE = 1 << 0
LANDLOCK_WRITE_FILE = 1 << 1
LANDLOCK_READ_FILE = 1 << 2
LANDLOCK_READ_DIR = 1 << 3
LANDLOCK_READ = LANDLOCK_EXECUTE | LANDLOCK_READ_FILE | LANDLOCK_READ_DIR
LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET = 1

_X86 = os.uname().machine == "x86_64"
_NR_CAPSET = 126 if _X86 else 91
_NR_PIVOT_ROOT = 155 if _X86 else 41
_NR_SECCOMP = 317 if _X86 else 277
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432
_NR_MOUNT_SETATTR = 442
_NR_LANDLOCK_CREATE = 444
_NR_LANDLOCK_ADD = 445
_NR_LANDLOCK_RESTRICT = 446

_libc = ctypes.CDLL(None, use_errno=True)
_call = _libc.syscall
_call.restype = ctypes.c_long
_mount = _libc.mount
_mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_personality = _libc.personality
_personality.argtypes = [ctypes.c_ulong]


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def _optional(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(descriptor: int, flags: int) -> None:
    _check(_libc.setns(descriptor, flags), f"setns({flags:#x})")


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    done = _mount(_optional(source), os.fsencode(target), _optional(kind), flags, _optional(options))
    _check(done, f"mount({kind or source or 'flags'}, {target})")


def umount(target: str) -> None:
    """Takes a mount and all that lies on it out of the view; files that are open stay readable."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount({target})")


def pivot_root_here() -> None:
    """The current directory becomes the root, and the old root disappears (pivot_root(2), NOTES)."""
    _check(_call(_NR_PIVOT_ROOT, b".", b"."), "pivot_root")
    umount(".")
    os.chdir("/")


def sethostname(name: str) -> None:
    encoded = name.encode()
    _check(_libc.sethostname(encoded, len(encoded)), "sethostname")


def prctl(option: int, value: int = 0) -> None:
    _check(_prctl(option, value, 0, 0, 0), f"prctl({option}, {value})")


def drop_bounding_set() -> None:
    """No program that is executed from here on can ever gain a capability."""
    for capability in range(64):
        if _prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            if ctypes.get_errno() != errno.EINVAL:  # EINVAL: the kernel knows no more of them.
                _check(-1, f"prctl(PR_CAPBSET_DROP, {capability})")
            break


CAP_CHECKPOINT_RESTORE = 40
_CAPABILITIES_HEADER = struct.pack("=II", 0x20080522, 0)
_NO_CAPABILITIES = bytes(24)


def drop_capabilities() -> None:
    """Of the calling thread only."""
    _check(_call(_NR_CAPSET, _CAPABILITIES_HEADER, _NO_CAPABILITIES), "capset")


def keep_capability(capability: int) -> None:
    """All but this one are given up, by the calling thread; programs that it executes have none."""
    low, high = 1 << capability & 0xFFFFFFFF, 1 << capability >> 32
    wanted = struct.pack("=6I", low, low, 0, high, high, 0)
    _check(_call(_NR_CAPSET, _CAPABILITIES_HEADER, wanted), "capset")


def fix_addresses() -> None:
    """Programs executed by the calling thread are loaded at the same addresses each time."""
    set_personality(ADDR_NO_RANDOMIZE)


def set_personality(flags: int) -> None:
    """How programs that the calling thread executes see the kernel (personality(2))."""
    _check(_personality(flags), "personality")


def open_tree(path: str, flags: int = OPEN_TREE_CLONE | AT_RECURSIVE) -> int:
    """A copy of the mounts at `path`, which lie nowhere until they are moved somewhere."""
    return _check(_call(_NR_OPEN_TREE, AT_FDCWD, os.fsencode(path), flags | OPEN_TREE_CLOEXEC), f"open_tree({path})")


def move_mount(descriptor: int, target: str) -> None:
    flags = MOVE_MOUNT_F_EMPTY_PATH
    done = _call(_NR_MOVE_MOUNT, descriptor, b"", AT_FDCWD, os.fsencode(target), flags)
    _check(done, f"move_mount({target})")


def set_mount_attributes(descriptor: int, attributes: int) -> None:
    """Adds attributes to a mount and to all mounts below it."""
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
    flags = AT_EMPTY_PATH | AT_RECURSIVE
    done = _call(_NR_MOUNT_SETATTR, descriptor, b"", flags, wanted, ctypes.c_size_t(len(wanted)))
    _check(done, "mount_setattr")


_FSCONFIG_SET_STRING = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_CMD_CREATE = 6


def new_overlay(lower: str) -> int:
    """A read-only overlay of `lower` (paths joined by colons) that lies nowhere yet."""
    context = _check(_call(_NR_FSOPEN, b"overlay", 1), "fsopen(overlay)")
    try:
        layers = os.fsencode(lower)
        _check(_call(_NR_FSCONFIG, context, _FSCONFIG_SET_STRING, b"lowerdir", layers, 0), f"fsconfig({lower})")
        _check(_call(_NR_FSCONFIG, context, _FSCONFIG_SET_FLAG, b"ro", None, 0), "fsconfig(ro)")
        _check(_call(_NR_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), f"overlay({lower})")
        return _check(_call(_NR_FSMOUNT, context, 1, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV), "fsmount(overlay)")
    finally:
        os.close(context)


def landlock_abi() -> int:
    """The version of Landlock that this kernel has; 0 for none."""
    return max(0, int(_call(_NR_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))))


def landlock_rights(abi: int) -> int:
    """Every right on files that this version can take away."""
    return (1 << 16) - 1 if abi >= 5 else (1 << 15) - 1 if abi >= 3 else (1 << 14) - 1


def landlock_ruleset(abi: int) -> int:
    # Signals are the pid namespace's business: a scope for them would hold for PID 1 in one kind of worker only.
    scope = LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET if abi >= 6 else 0
    # Ports are left alone: the network namespace has nothing but loopback, which a step may use.
    attributes = struct.pack("=QQQ", landlock_rights(abi), 0, scope)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    done = _call(_NR_LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0))
    return _check(done, "landlock_create_ruleset")


def landlock_allow(ruleset: int, path: str, rights: int) -> None:
    """`path` must be a directory; the rights hold for all that lies below it."""
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", rights, place)
        _check(_call(_NR_LANDLOCK_ADD, ruleset, 1, rule, ctypes.c_uint32(0)), f"landlock_add_rule({path})")
    finally:
        os.close(place)


def landlock_restrict(ruleset: int) -> None:
    _check(_call(_NR_LANDLOCK_RESTRICT, ruleset, ctypes.c_uint32(0)), "landlock_restrict_self")


class Filter:
    """A seccomp program, laid out once so that loading it is one call."""

    def __init__(self, program: bytes) -> None:
        self._code = ctypes.create_string_buffer(program, len(program))
        self._header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(self._code))

    def load(self) -> None:
        """For the calling thread and what it executes; it cannot be taken back."""
        # SPEC_ALLOW: without it older kernels slow down every filtered process (speculative store bypass).
        _check(_call(_NR_SECCOMP, 1, ctypes.c_uint32(4), self._header), "seccomp")
