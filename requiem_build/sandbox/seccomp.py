"""Which system calls may a step make? A deny-list as a BPF program; it does not know how a filter is loaded.

The mount view is the wall. This is the second one: what no build needs and an attacker does. Whatever the
filter refuses is refused with an errno that programs expect, so that they fall back instead of crashing:
ENOSYS where a C library probes for something new, EPERM where a person would lack the right.
"""

from __future__ import annotations

import errno
import struct

from ..core.fields import dataclass

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> its column in the tables below and its AUDIT_ARCH value."""

_EPERM_CALLS: dict[str, tuple[int | None, int | None]] = {
    # The view of the file system, and namespaces that would make a new one.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "open_by_handle_at": (304, 265),
    "unshare": (272, 97),
    "setns": (308, 268),
    # Other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # Kernel keyrings are not namespaced: a key would pass from step to step.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # Large kernel surfaces with a history.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "modify_ldt": (154, None),
    # The machine.
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vhangup": (153, 58),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}

_ENOSYS_CALLS: dict[str, tuple[int | None, int | None]] = {
    "clone3": (435, 435),  # Its flags lie in memory, where no filter sees them; libc falls back to clone.
    "openat2": (437, 437),  # The same for its mode.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "landlock_create_ruleset": (444, 444),  # Present or not would differ between hosts.
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}

_CLONE = (56, 220)
_GETRANDOM = (318, 278)
_CLOCK_GETTIME = (228, 113)
_DATES = {"gettimeofday": (96, 169), "time": (201, None)}
_WALL_CLOCKS = (0, 5, 8, 11)  # CLOCK_REALTIME, _COARSE, _ALARM, CLOCK_TAI
_IOCTL = (16, 29)
_SOCKET = (41, 198)
_PRLIMIT = (302, 261)
_PERSONALITY = (135, 92)
_MODE_CALLS: dict[str, tuple[int | None, int | None, int]] = {
    # The last number is the index of the argument that holds the mode.
    "chmod": (90, None, 1),
    "fchmod": (91, 52, 1),
    "fchmodat": (268, 53, 2),
    "fchmodat2": (452, 452, 2),
    "creat": (85, None, 1),
    "mknod": (133, None, 1),
    "mknodat": (259, 33, 2),
}
_OPEN_CALLS: dict[str, tuple[int | None, int | None, int, int]] = {
    # The indexes of the flags and of the mode, which only means something when a file may be created.
    "open": (2, None, 1, 2),
    "openat": (257, 56, 2, 3),
}

ARGUMENTS_REFUSED = {
    "clone": "for new namespaces",
    "chmod, mknod, open": "with a set-uid or set-gid bit",
    "ioctl": "that writes into a terminal's input",
    "prlimit64": "of other processes",
    "personality": "but to ask for it",
    "socket": "but of AF_UNIX, AF_INET and AF_INET6, and none of them raw",
}
"""What is refused only with some arguments, in words: one for each of the rules below."""

_NEW_NAMESPACES = 0x7E020000
_SETID_BITS = 0o6000
_MAY_CREATE = 0o100 | 0o20000000  # O_CREAT, __O_TMPFILE
_TERMINAL_INJECTION = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_SOCKET_TYPES = (1, 2, 5)  # SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET: not SOCK_RAW
_QUERY_PERSONALITY = 0xFFFFFFFF
_X32_BIT = 0x40000000

_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_REFUSE = 0x00050000
_TRACE = 0x7FF00000

_LOAD, _JUMP_EQ, _JUMP_GE, _JUMP_SET, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE = 0, 4


@dataclass(frozen=True, slots=True)
class _Line:
    """One instruction; `then` and `other` name labels, and None means the next line."""

    code: int
    operand: int = 0
    then: str | None = None
    other: str | None = None
    label: str | None = None
    """A line with a label is only a place."""


def _argument(index: int) -> int:
    """The offset of the low half of an argument in struct seccomp_data, on little-endian machines."""
    return 16 + 8 * index


def _assemble(lines: list[_Line]) -> bytes:
    places: dict[str, int] = {}
    code = []
    for line in lines:
        if line.label is None:
            code.append(line)
        else:
            places[line.label] = len(code)

    def distance(at: int, label: str | None) -> int:
        steps = 0 if label is None else places[label] - at - 1
        assert 0 <= steps <= 255, f"the jump to {label} is too far for BPF"
        return steps

    packed = (
        struct.pack("<HBBI", line.code, distance(at, line.then), distance(at, line.other), line.operand)
        for at, line in enumerate(code)
    )
    return b"".join(packed)


def _when(number: int | None, name: str, body: list[_Line]) -> list[_Line]:
    """`body` for one call; it allows what it does not refuse."""
    if number is None:
        return []
    after = f"after {name}"
    return [
        _Line(_JUMP_EQ, number, other=after),
        *body,
        _Line(_RETURN, _ALLOW),
        _Line(0, label=after),
    ]


def refused_calls(machine: str) -> dict[str, list[str]]:
    """What `make_filter` refuses whatever its arguments, by the error that the step gets."""
    column = MACHINES[machine][0]
    return {
        error: sorted(name for name, numbers in calls.items() if numbers[column] is not None)
        for error, calls in (("EPERM", _EPERM_CALLS), ("ENOSYS", _ENOSYS_CALLS))
    }


def make_filter(
    machine: str, *, held_random: bool = False, held_clock: bool = False, seeded: bool = False
) -> bytes | None:
    """The program for one machine, as seccomp(2) takes it; None where Requiem knows no system call table.

    `held_random`: without getrandom(2) programs read /dev/urandom, which can be held. `held_clock`: questions for the
    date stop for a tracer (`keeper.py`), and fail where there is none; `seeded`: the same with getrandom(2).
    """
    if machine not in MACHINES:
        return None
    column, architecture = MACHINES[machine]
    lines = [
        _Line(_LOAD, _ARCHITECTURE),
        _Line(_JUMP_EQ, architecture, other="kill"),  # A 32-bit program has other numbers for the same calls.
        _Line(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        lines.append(_Line(_JUMP_GE, _X32_BIT, then="kill"))
    for open_name, (*open_numbers, flags, mode) in _OPEN_CALLS.items():
        created = [
            _Line(_LOAD, _argument(flags)),
            _Line(_JUMP_SET, _MAY_CREATE, other="allow"),
            _Line(_LOAD, _argument(mode)),
            _Line(_JUMP_SET, _SETID_BITS, then="EPERM"),
        ]
        lines += _when(open_numbers[column], open_name, created)
    if held_clock:
        asked = [_Line(_JUMP_EQ, clock, then="trace") for clock in _WALL_CLOCKS]
        lines += _when(_CLOCK_GETTIME[column], "clock_gettime", [_Line(_LOAD, _argument(0)), *asked])
        for date_numbers in _DATES.values():
            number = date_numbers[column]
            if number is not None:
                lines += [_Line(_JUMP_EQ, number, then="trace")]
    if seeded:
        lines += [_Line(_JUMP_EQ, _GETRANDOM[column], then="trace")]
    absent = {**_ENOSYS_CALLS, "getrandom": _GETRANDOM} if held_random else _ENOSYS_CALLS
    for calls, refusal in ((_EPERM_CALLS, "EPERM"), (absent, "ENOSYS")):
        numbers = sorted(both[column] or 0 for both in calls.values() if both[column] is not None)
        lines += [_Line(_JUMP_EQ, number, then=refusal) for number in numbers]
    for mode_name, (*mode_numbers, mode) in _MODE_CALLS.items():
        lines += _when(
            mode_numbers[column],
            mode_name,
            [_Line(_LOAD, _argument(mode)), _Line(_JUMP_SET, _SETID_BITS, then="EPERM")],
        )
    lines += _when(
        _CLONE[column], "clone", [_Line(_LOAD, _argument(0)), _Line(_JUMP_SET, _NEW_NAMESPACES, then="EPERM")]
    )
    injected = [_Line(_JUMP_EQ, request, then="EPERM") for request in _TERMINAL_INJECTION]
    lines += _when(_IOCTL[column], "ioctl", [_Line(_LOAD, _argument(1)), *injected])
    # A pid of 0 is the caller. PID 1 has the step's uid, so the kernel would let a step set the limits of the
    # worker itself and so of all later steps.
    lines += _when(
        _PRLIMIT[column], "prlimit64", [_Line(_LOAD, _argument(0)), _Line(_JUMP_EQ, 0, then="allow", other="EPERM")]
    )
    lines += _when(
        _PERSONALITY[column],
        "personality",
        [_Line(_LOAD, _argument(0)), _Line(_JUMP_EQ, _QUERY_PERSONALITY, then="allow", other="EPERM")],
    )
    lines += _when(_SOCKET[column], "socket", _socket_lines())
    lines += [
        _Line(0, label="allow"),
        _Line(_RETURN, _ALLOW),
        _Line(0, label="EPERM"),
        _Line(_RETURN, _REFUSE | errno.EPERM),
        _Line(0, label="ENOSYS"),
        _Line(_RETURN, _REFUSE | errno.ENOSYS),
        _Line(0, label="EAFNOSUPPORT"),
        _Line(_RETURN, _REFUSE | errno.EAFNOSUPPORT),
        _Line(0, label="kill"),
        _Line(_RETURN, _KILL_PROCESS),
        *([_Line(0, label="trace"), _Line(_RETURN, _TRACE)] if held_clock or seeded else []),
    ]
    return _assemble(lines)


def _socket_lines() -> list[_Line]:
    """Only the families and types listed above: anything else reaches beyond the sandbox or deep into the kernel."""
    families = [_Line(_JUMP_EQ, family, then="known family") for family in _FAMILIES[:-1]]
    types = [_Line(_JUMP_EQ, kind, then="allow") for kind in _SOCKET_TYPES[:-1]]
    return [
        _Line(_LOAD, _argument(0)),
        *families,
        _Line(_JUMP_EQ, _FAMILIES[-1], other="EAFNOSUPPORT"),
        _Line(0, label="known family"),
        _Line(_LOAD, _argument(1)),
        _Line(_AND, 0xF),
        *types,
        _Line(_JUMP_EQ, _SOCKET_TYPES[-1], other="EPERM"),
    ]
