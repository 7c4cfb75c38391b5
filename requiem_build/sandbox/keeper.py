"""Holds the clock, and what the kernel hands out at random, still for one step and all its processes.

A process of its own stands between the worker and the step and traces it. Whatever asks the kernel for the date stops
in the step's filter and is answered here; so that nothing asks elsewhere, each program starts without the kernel's
page of clock code (vDSO): static programs and those of Go then ask as all others do. Other system calls do not
stop. What it cannot hold is said in docs/decisions/0042-held-clock.md. Standard library only; see `worker.py`.
"""

from __future__ import annotations

import _signal as signal
import ctypes
import os
import resource
import struct
from contextlib import suppress

from .starting import SLOTS, join_cgroup

TYPE_CHECKING = False  # The module of that name costs a worker several milliseconds at its start.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

MACHINES = ("x86_64",)
PID = 5
"""The keeper's own: below that of every step, which is the same as without one."""

_SEIZE, _CONT, _LISTEN, _GETREGSET, _SETREGSET = 0x4206, 7, 0x4208, 0x4204, 0x4205
_OPTIONS = 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000  # Fork, vfork, clone, exec, seccomp; and they end with the keeper.
_EXEC, _SECCOMP, _STOP = 4, 7, 128
_STOPPING = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_NT_PRSTATUS = 1
_SET_DUMPABLE = 4
_REGISTERS = struct.Struct("=27Q")
_RAX, _RSI, _RDI, _ORIG_RAX, _RSP = 10, 13, 14, 15, 19
_CLOCK_GETTIME, _GETTIMEOFDAY, _TIME, _GETRANDOM = 228, 96, 201, 318
_DRAWN_MAX = 1 << 16
"""Bytes at once; a program that wants more asks again, as getrandom(2) has it."""
_AT_IGNORE, _AT_RANDOM, _AT_VDSO = 1, 25, 33
_WALL = 0x40000000
_EFAULT = (1 << 64) - 14
_64_BITS = (1 << 64) - 1
_SEED = bytes(range(1, 17))
_USED = struct.Struct("=ddq")

_libc = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class NotKept(Exception):
    """This host lets nobody trace a process, not even in namespaces of his own."""


class _OutOfReach(Exception):
    """Memory of a process that cannot be read or written: mostly because it was killed meanwhile."""


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


for _move in (_libc.process_vm_readv, _libc.process_vm_writev):
    _move.restype = ctypes.c_ssize_t
    _move.argtypes = [ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]


def start(
    program: str,
    job: dict[str, Any],
    descriptors: tuple[int, int, int],
    last_pid: int,
    confine: Callable[[], None],
    account: int,
) -> int:
    """The keeper's pid; it ends as the command ends. Raises NotKept, or OSError if the command cannot be executed.

    `last_pid` is open for choosing the command's pid, or -1; `confine` is what the command gives up before it starts.
    `account` is an open file: when the command has ended, `used_by_command` reads there what it used.
    """
    result, report = os.pipe2(os.O_CLOEXEC)
    _choose_pid(last_pid, PID)
    keeper = os.fork()
    if keeper == 0:
        try:
            _keep(program, job, descriptors, last_pid, confine, report, account)
        except OSError as error:
            # Before the command is executed it is heard. Afterwards the pipe is closed, and nobody trusts a keeper
            # that fails: it dies, and every process of the step with it.
            with suppress(OSError):
                os.write(report, struct.pack("=i", -(error.errno or 22)))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(report)
    with open(result, "rb") as said:
        failure = said.read(4)
    if failure:
        os.waitpid(keeper, 0)
        (number,) = struct.unpack("=i", failure)
        if number < 0:
            raise NotKept(f"the step cannot be traced, or be limited: {os.strerror(-number)}")
        raise OSError(number, os.strerror(number))
    return keeper


def _choose_pid(last_pid: int, pid: int) -> None:
    if last_pid >= 0:
        os.pwrite(last_pid, b"%d" % (pid - 1), 0)


def _keep(
    program: str,
    job: dict[str, Any],
    descriptors: tuple[int, int, int],
    last_pid: int,
    confine: Callable[[], None],
    report: int,
    account: int,
) -> None:
    moment, seeded = job["hold"]
    attached, go = os.pipe2(os.O_CLOEXEC)
    waiting, ready = os.pipe2(os.O_CLOEXEC)
    _choose_pid(last_pid, job["pid"])
    command = os.fork()
    if command == 0:
        os.close(go)
        _become(program, job, descriptors, (attached, ready), confine, report)
    for descriptor in (*descriptors, attached, ready):
        if descriptor > 2:
            os.close(descriptor)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(number, signal.SIG_IGN)  # They are for the step, whose end is also ours.
    os.read(waiting, 1)
    _require(_ptrace(_SEIZE, command, None, _OPTIONS))
    os.write(go, b"x")
    os.close(go)
    os.close(report)
    status = Keeper(moment, seeded).until_end(command)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # Others whose end it saw are no children of its own.
    os.pwrite(account, _USED.pack(used.ru_utime, used.ru_stime, used.ru_maxrss), 0)
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


def used_by_command(account: int) -> tuple[float, float, int] | None:
    """Seconds of processor time, the user's and the system's, and the largest resident size in KiB.

    None if the keeper was killed before it could say it.
    """
    said = os.pread(account, _USED.size, 0)
    if len(said) < _USED.size:
        return None
    user_s, system_s, max_rss_kib = _USED.unpack(said)
    return user_s, system_s, max_rss_kib


def _become(
    program: str,
    job: dict[str, Any],
    descriptors: tuple[int, int, int],
    pipes: tuple[int, int],
    confine: Callable[[], None],
    report: int,
) -> None:
    attached, ready = pipes
    try:
        join_cgroup(job["cgroup"], report)  # The step's limits are not those of its keeper.
        os.setsid()
        # The worker's memory is closed to everyone without rights over the host. This copy of it is gone in a moment,
        # and no process of the step is there yet.
        _libc.prctl(_SET_DUMPABLE, 1, 0, 0, 0)
        os.write(ready, b"x")
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        if os.read(attached, 1) != b"x":
            os._exit(127)
        if job.get("terminal"):  # The first one that the leader of a session opens becomes its own.
            descriptors = (os.open(job["terminal"], os.O_RDWR),) * 3
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        if job["slots"] >= 0:
            os.dup2(job["slots"], SLOTS)
        for which, soft, hard in job["rlimits"]:
            ceiling = resource.getrlimit(which)[1]
            if ceiling != resource.RLIM_INFINITY:
                soft, hard = min(soft, ceiling), min(hard, ceiling)  # noqa: PLW2901
            resource.setrlimit(which, (soft, hard))
        confine()
        os.execve(program, job["command"], job["env"])
    except OSError as error:
        os.write(report, struct.pack("=i", error.errno or 22))
    finally:
        os._exit(127)


class Keeper:
    """`moment` is the date in seconds that is always now, or None; `seeded`: nothing random at a program's start."""

    def __init__(self, moment: int | None, seeded: bool) -> None:
        self._moment = moment
        self._seeded = seeded
        self._drawn: dict[int, int] = {}
        """How much each thread was given: every one draws from the same beginning."""

    def until_end(self, command: int) -> int:
        """The command's wait status."""
        while True:
            pid, status, _ = os.wait4(-1, _WALL)
            if not os.WIFSTOPPED(status):
                self._drawn.pop(pid, None)
                if pid == command:
                    return status
                continue
            number, event = os.WSTOPSIG(status), status >> 16
            if event == _STOP and number in _STOPPING:
                _ptrace(_LISTEN, pid, None, None)
                continue
            if event == _SECCOMP:
                self._answer(pid)
            elif event == _EXEC:
                self._prepare(pid)
            # A process that was killed meanwhile is no longer there to go on: its end comes next.
            _ptrace(_CONT, pid, None, 0 if event else number)

    def _answer(self, pid: int) -> None:
        registers = _registers(pid)
        if registers is None:
            return
        call, first, second = registers[_ORIG_RAX], registers[_RDI], registers[_RSI]
        now = struct.pack("=qq", self._moment or 0, 0)
        result, whole = 0, True
        if call == _CLOCK_GETTIME:
            whole = _write(pid, second, now)
        elif call == _GETTIMEOFDAY:
            whole = (not first or _write(pid, first, now)) and (not second or _write(pid, second, bytes(8)))
        elif call == _GETRANDOM:
            result = min(second, _DRAWN_MAX)
            whole = _write(pid, first, self._draw(pid, result))
        elif call == _TIME:
            result = self._moment or 0
            whole = not first or _write(pid, first, now[:8])
        registers[_ORIG_RAX] = (1 << 64) - 1  # The call itself is not made.
        registers[_RAX] = result if whole else _EFAULT
        _set_registers(pid, registers)

    def _draw(self, pid: int, size: int) -> bytes:
        """Bytes that look like nothing in particular (splitmix64, Steele, Lea and Flood 2014)."""
        begun = self._drawn.get(pid, 0)
        count = (size + 7) // 8
        self._drawn[pid] = begun + count
        return struct.pack(f"={count}Q", *(_mixed(begun + number) for number in range(1, count + 1)))[:size]

    def _prepare(self, pid: int) -> None:
        """A new program is about to run its first instruction: its stack tells it what the kernel has for it."""
        registers = _registers(pid)
        if registers is None:
            return
        try:
            self._tell(pid, registers[_RSP])
        except _OutOfReach:
            if _registers(pid) is not None:  # It lives, and would run on with what was to be withheld.
                raise

    def _tell(self, pid: int, place: int) -> None:
        words = _words(pid, place)
        arguments = next(words)
        place += 8 * (1 + arguments + 1)
        for _ in range(arguments + 1):
            next(words)
        while next(words):  # The environment.
            place += 8
        place += 8
        while (kind := next(words)) != 0:
            value = next(words)
            if kind == _AT_VDSO:
                _put(pid, place, struct.pack("=Q", _AT_IGNORE))
            elif kind == _AT_RANDOM and self._seeded:
                _put(pid, value, _SEED)
            place += 16


def _mixed(number: int) -> int:
    word = number * 0x9E3779B97F4A7C15 & _64_BITS
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _64_BITS
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _64_BITS
    return word ^ word >> 31


def _require(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "ptrace")


def _registers(pid: int) -> list[int] | None:
    """None if the process was killed meanwhile."""
    buffer = ctypes.create_string_buffer(_REGISTERS.size)
    vector = _Vector(ctypes.addressof(buffer), len(buffer))
    if _ptrace(_GETREGSET, pid, _NT_PRSTATUS, ctypes.addressof(vector)) < 0:
        return None
    return list(_REGISTERS.unpack(buffer.raw[: _REGISTERS.size]))


def _set_registers(pid: int, registers: list[int]) -> None:
    buffer = ctypes.create_string_buffer(_REGISTERS.pack(*registers), _REGISTERS.size)
    vector = _Vector(ctypes.addressof(buffer), _REGISTERS.size)
    _ptrace(_SETREGSET, pid, _NT_PRSTATUS, ctypes.addressof(vector))


def _write(pid: int, address: int, content: bytes) -> bool:
    buffer = ctypes.create_string_buffer(content, len(content))
    here, there = _Vector(ctypes.addressof(buffer), len(content)), _Vector(address, len(content))
    done = _libc.process_vm_writev(pid, ctypes.addressof(here), 1, ctypes.addressof(there), 1, 0)
    return bool(done == len(content))


def _put(pid: int, address: int, content: bytes) -> None:
    if not _write(pid, address, content):
        raise _OutOfReach


def _words(pid: int, address: int) -> Iterator[int]:
    """The words of a stack from an address upwards, without end. Raises _OutOfReach where there are none."""
    buffer = ctypes.create_string_buffer(4096)
    while True:
        size = 4096 - address % 4096  # Never beyond the page that is surely there.
        here, there = _Vector(ctypes.addressof(buffer), size), _Vector(address, size)
        got = _libc.process_vm_readv(pid, ctypes.addressof(here), 1, ctypes.addressof(there), 1, 0)
        if got <= 0:
            raise _OutOfReach
        yield from struct.unpack(f"={got // 8}Q", buffer.raw[: got // 8 * 8])
        address += got
