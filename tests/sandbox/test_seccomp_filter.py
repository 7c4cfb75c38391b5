"""The filter, run by a small BPF interpreter: so the other architecture is tested here, too."""

from __future__ import annotations

import errno
import struct

import pytest

from requiem_build.sandbox.seccomp import MACHINES, make_filter

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS, FAMILY = (0x50000 | number for number in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT))


def judge(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    padded = (*arguments, *(0 for _ in range(6 - len(arguments))))
    context = struct.pack("<iIQ6Q", number, architecture, 0, *(value & (2**64 - 1) for value in padded))
    register, at = 0, 0
    for _ in range(4096):
        code, then, other, operand = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        if code == 0x20:
            (register,) = struct.unpack_from("<I", context, operand)
        elif code == 0x54:
            register &= operand
        elif code == 0x06:
            return operand
        else:
            happens = {0x15: register == operand, 0x35: register >= operand, 0x45: bool(register & operand)}[code]
            at += then if happens else other
    raise AssertionError("the program does not end")


CASES = [
    # name of the call: numbers, arguments, verdict
    ("read", (0, 63), (), ALLOW),
    ("mount", (165, 40), (), EPERM),
    ("ptrace", (101, 117), (), EPERM),
    ("keyctl", (250, 219), (), EPERM),
    ("unshare", (272, 97), (), EPERM),
    ("setns", (308, 268), (), EPERM),
    ("io_uring_setup", (425, 425), (), ENOSYS),
    ("clone3", (435, 435), (), ENOSYS),
    ("openat2", (437, 437), (), ENOSYS),
    ("clone of a thread", (56, 220), (0x3D0F00,), ALLOW),
    ("clone of a process", (56, 220), (17,), ALLOW),
    ("clone into a user namespace", (56, 220), (0x10000000 | 17,), EPERM),
    ("clone into a cgroup namespace", (56, 220), (0x02000000,), EPERM),
    ("AF_UNIX", (41, 198), (1, 1 | 0x80000), ALLOW),
    ("AF_INET", (41, 198), (2, 2), ALLOW),
    ("AF_INET6", (41, 198), (10, 1 | 0x800), ALLOW),
    ("AF_NETLINK", (41, 198), (16, 3), FAMILY),
    ("AF_PACKET", (41, 198), (17, 3), FAMILY),
    ("AF_VSOCK", (41, 198), (40, 1), FAMILY),
    ("AF_ALG", (41, 198), (38, 5), FAMILY),
    ("SOCK_RAW", (41, 198), (2, 3), EPERM),
    ("SOCK_RAW with a flag", (41, 198), (10, 3 | 0x80000), EPERM),
    ("own limits", (302, 261), (0, 7), ALLOW),
    ("limits of another", (302, 261), (1, 7), EPERM),
    ("TIOCSTI", (16, 29), (0, 0x5412), EPERM),
    ("TIOCLINUX", (16, 29), (0, 0x541C), EPERM),
    ("TCGETS", (16, 29), (0, 0x5401), ALLOW),
    ("fchmod", (91, 52), (3, 0o755), ALLOW),
    ("fchmod set-uid", (91, 52), (3, 0o4755), EPERM),
    ("fchmodat set-gid", (268, 53), (3, 0, 0o2755), EPERM),
    ("fchmodat2 set-uid", (452, 452), (3, 0, 0o4755), EPERM),
    ("openat to read", (257, 56), (3, 0, 0, 0o4000), ALLOW),
    ("openat to create", (257, 56), (3, 0, 0o101, 0o644), ALLOW),
    ("openat to create set-uid", (257, 56), (3, 0, 0o101, 0o4755), EPERM),
    ("mknodat set-uid", (259, 33), (3, 0, 0o104755), EPERM),
    ("what is this personality", (135, 92), (0xFFFFFFFF,), ALLOW),
    ("another personality", (135, 92), (0x0400000,), EPERM),
    ("chmod set-uid", (90, None), (0, 0o4755), EPERM),
    ("open to create set-uid", (2, None), (0, 0o102, 0o6755), EPERM),
    ("creat", (85, None), (0, 0o2644), EPERM),
    ("x32 getpid", (0x40000000 + 39, None), (), KILL),
]


@pytest.mark.parametrize("machine", sorted(MACHINES))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_call_is_judged(machine, case):
    _, numbers, arguments, verdict = case
    column, architecture = MACHINES[machine]
    if numbers[column] is None:
        pytest.skip("this machine has no such call")
    program = make_filter(machine)
    assert program is not None
    assert judge(program, architecture, numbers[column], *arguments) == verdict


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_a_program_of_another_architecture_is_killed(machine):
    program = make_filter(machine)
    assert program is not None
    assert judge(program, 0x40000003, 1) == KILL


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_the_filter_is_within_the_kernels_limit(machine):
    program = make_filter(machine)
    assert program is not None
    assert len(program) // 8 < 4096


def test_an_unknown_machine_has_no_filter():
    assert make_filter("riscv64") is None
