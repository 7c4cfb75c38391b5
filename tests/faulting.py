"""The N-th system call of a kind fails or kills: the kernel asks us at each (seccomp's user notification).

What `strace -e inject` does, but counted over all threads of a process in the order in which they call, told apart by
whose call it is (the engine's process, or those that it started), and without a stop at any other call. A command
line comes in as in `forked`: in a fork of a process that has imported everything. When all processes that were asked
about are gone the kernel says so too, so whatever a command leaves running is seen.
"""

from __future__ import annotations

import array
import atexit
import ctypes
import errno
import fcntl
import json
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache

import forked

CALLS: Mapping[str, Mapping[str, tuple[int | None, int | None]]] = {
    "write": {
        "write": (1, 64),
        "pwrite64": (18, 68),
        "writev": (20, 66),
        "sendfile": (40, 71),
        "copy_file_range": (326, 285),
        "ftruncate": (77, 46),
        "fallocate": (285, 47),
    },
    "fsync": {"fsync": (74, 82), "fdatasync": (75, 83), "syncfs": (306, 267)},
    "rename": {"rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276)},
    "mkdir": {"mkdir": (83, None), "mkdirat": (258, 34)},
    "unlink": {"unlink": (87, None), "unlinkat": (263, 35), "rmdir": (84, None)},
    "link": {"link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36)},
    "mode": {
        "chmod": (90, None),
        "fchmod": (91, 52),
        "fchmodat": (268, 53),
        "utimensat": (280, 88),
    },
    "create": {"open": (2, None), "openat": (257, 56)},
    "open": {
        "open": (2, None),
        "openat": (257, 56),
        "pipe2": (293, 59),
        "socketpair": (53, 199),
        "socket": (41, 198),
        "dup": (32, 23),
        "epoll_create1": (291, 20),
        "memfd_create": (319, 279),
        "pidfd_open": (434, 434),
    },
}
"""Kind -> its calls -> their numbers on x86-64 and on 64-bit Arm. `create` is what of the opening ones may create."""

KINDS = tuple(CALLS)
_ARM = platform.machine() == "aarch64"
HERE = platform.machine() in ("x86_64", "aarch64")
_FLAGS_AT = {"open": 1, "openat": 2}
_PATH_AT = {
    "open": 0,
    "rename": 0,
    "mkdir": 0,
    "unlink": 0,
    "rmdir": 0,
    "link": 0,
    "symlink": 1,
    "chmod": 0,
} | dict.fromkeys(("openat", "renameat", "renameat2", "mkdirat", "unlinkat", "linkat", "fchmodat", "utimensat"), 1)

_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTIFIED = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_CONTINUE = 1
_SET_FILTER, _NEW_LISTENER, _WAIT_KILLABLE = 1, 1 << 3, 1 << 5
_NO_NEW_PRIVILEGES = 38
_SECCOMP = 277 if _ARM else 317
_NOTIFY, _ALLOW = 0x7FC00000, 0x7FFF0000
ENGINE, OTHERS = "engine", "others"
GONE_S = 30
"""How long what was started may take to end once the engine has."""


@dataclass(frozen=True)
class Fault:
    """What happens at the N-th call; `onward`: and at each later one that is asked about and meets a file."""

    number: int | None = None
    """The errno; None kills."""
    onward: bool = False


@dataclass(frozen=True)
class Point:
    """One place of a run: the `nth` call of `kind` that `whose` processes make."""

    whose: str
    kind: str
    nth: int

    def __str__(self) -> str:
        return f"{self.whose} {self.kind} {self.nth}"


@dataclass
class Ended:
    """How a command line ended that may have met a fault."""

    code: int
    out: str
    err: str
    met: list[str]
    """The calls that failed or killed, with their paths."""
    left: bool
    """Whether a process that it started lived on."""
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)


def names_of(kind: str) -> dict[int, str]:
    return {number: name for name, numbers in CALLS[kind].items() if (number := numbers[_ARM]) is not None}


def run(
    arguments: Sequence[str],
    cwd: str,
    environment: Mapping[str, str],
    kinds: Sequence[str],
    point: Point | None = None,
    fault: Fault | None = None,
    timeout_s: float = 100,
) -> Ended:
    """One command line. Without a point nothing fails, and the calls of all `kinds` are counted."""
    pipes = [os.pipe() for _ in range(2)]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    numbers = sorted({number for kind in kinds for number in names_of(kind)})
    words = json.dumps([["requiem", *arguments], cwd, dict(environment), 0o022, "", numbers]).encode()
    assert len(words) <= forked.MESSAGE_MAX
    socket.send_fds(_server(os.getpid()), [words], [theirs.fileno(), *(writing for _, writing in pipes)])
    theirs.close()
    for _, writing in pipes:
        os.close(writing)
    with ours:
        told, (listener,), _, _ = socket.recv_fds(ours, 64, 1)
        (pid,) = array.array("q", told)
        judge = _Judge(listener, pid, kinds, point, fault)
        try:
            code, (out, err), left = _attend(
                judge, ours, [reading for reading, _ in pipes], time.monotonic() + timeout_s
            )
        finally:
            os.close(listener)
            for reading, _ in pipes:
                os.close(reading)
    return Ended(code, out.decode(), err.decode(), judge.met, left, judge.counts)


class _Judge:
    """Says at each call whether it goes on."""

    def __init__(
        self, listener: int, engine: int, kinds: Sequence[str], point: Point | None, fault: Fault | None
    ) -> None:
        self.listener, self.engine, self.point, self.fault = listener, engine, point, fault
        self.kinds = {kind: names_of(kind) for kind in kinds}
        self.counts: Counter[tuple[str, str]] = Counter()
        self.met: list[str] = []
        self._reached = False
        self._groups: dict[int, int] = {}

    def answer(self) -> None:
        buffer = bytearray(_NOTIFIED.size)
        try:
            fcntl.ioctl(self.listener, _RECEIVE, buffer)
        except OSError as error:
            if error.errno == errno.ENOENT:  # Who asked is dead.
                return
            raise
        identity, thread, _, number, _, _, *arguments = _NOTIFIED.unpack(buffer)
        whose = ENGINE if self._process_of(thread) == self.engine else OTHERS
        failing = asked = False
        for kind, names in self.kinds.items():
            name = names.get(number)
            if name is None or (kind == "create" and not arguments[_FLAGS_AT[name]] & os.O_CREAT):
                continue
            self.counts[whose, kind] += 1
            asked = True
            failing = failing or self._is_meant(whose, kind)
        told = self._describe(thread, number, arguments) if failing or (asked and self._reached) else ""
        if asked and self._reached and self.fault is not None and self.fault.onward:
            failing = "/" in told and "/dev/" not in told.replace("/dev/shm/", "")  # Pipes and devices are on no disk.
        self._reached = self._reached or failing
        if failing:
            self.met.append(f"{whose} {told}")
            assert self.fault is not None
            if self.fault.number is None:
                with suppress(ProcessLookupError):
                    os.kill(self._process_of(thread), signal.SIGKILL)
                return
        said = (-self.fault.number, 0) if failing and self.fault and self.fault.number else (0, _CONTINUE)
        with suppress(FileNotFoundError):
            fcntl.ioctl(self.listener, _SEND, _ANSWER.pack(identity, 0, *said))

    def _is_meant(self, whose: str, kind: str) -> bool:
        at = self.point
        return at is not None and (whose, kind) == (at.whose, at.kind) and self.counts[whose, kind] == at.nth

    def _process_of(self, thread: int) -> int:
        if thread not in self._groups:
            self._groups[thread] = thread
            with suppress(OSError), open(f"/proc/{thread}/status", "rb") as file:
                self._groups[thread] = next(int(line.split()[1]) for line in file if line.startswith(b"Tgid:"))
        return self._groups[thread]

    def _describe(self, thread: int, number: int, arguments: Sequence[int]) -> str:
        name = next(names[number] for names in self.kinds.values() if number in names)
        what = ""
        with suppress(OSError):
            if name in _PATH_AT:
                with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
                    memory.seek(arguments[_PATH_AT[name]])
                    what = os.fsdecode(memory.read(400).partition(b"\0")[0])
            else:
                what = os.readlink(f"/proc/{thread}/fd/{arguments[0]}")
        return f"{name} {what}"


def _attend(
    judge: _Judge, line: socket.socket, outputs: Sequence[int], end: float
) -> tuple[int, tuple[bytes, bytes], bool]:
    """Answers until all are gone. Returns how the command ended, what it said, and whether something lived on."""
    said = {descriptor: bytearray() for descriptor in outputs}
    poll = select.poll()
    for descriptor in (judge.listener, line.fileno(), *outputs):
        poll.register(descriptor, select.POLLIN)
    status: int | None = None
    gone = False
    while status is None or not gone:
        left_ms = (end - time.monotonic()) * 1000
        ready = poll.poll(max(0, left_ms))
        if not ready:
            if status is not None:
                break
            os.kill(judge.engine, signal.SIGKILL)
            raise subprocess.TimeoutExpired("requiem", 0, bytes(said[outputs[0]]), bytes(said[outputs[1]]))
        for descriptor, event in ready:
            if descriptor == judge.listener:
                if event & select.POLLIN:
                    judge.answer()
                elif event & select.POLLHUP:
                    gone = True
                    poll.unregister(descriptor)
            elif descriptor == line.fileno():
                (status,) = array.array("q", line.recv(8))
                poll.unregister(descriptor)
                end = min(end, time.monotonic() + GONE_S)
            else:
                content = os.read(descriptor, 1 << 16)
                said[descriptor] += content
                if not content:
                    poll.unregister(descriptor)
    for descriptor in outputs:
        os.set_blocking(descriptor, False)
        with suppress(BlockingIOError):
            while content := os.read(descriptor, 1 << 16):
                said[descriptor] += content
    out, err = (bytes(said[descriptor]) for descriptor in outputs)
    return os.waitstatus_to_exitcode(status), (out, err), not gone


@cache
def _server(pid: int) -> socket.socket:
    """The line to the one of this process: it ends when that is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {name: os.environ[name] for name in ("LANG", "PATH") if name in os.environ}
    command = [sys.executable, __file__, str(theirs.fileno())]
    started = {**environment, "PYTHONPATH": forked.SOURCE}
    process = subprocess.Popen(command, env=started, cwd="/", pass_fds=[theirs.fileno()])
    theirs.close()
    atexit.register(_end, ours, process)
    return ours


def _end(line: socket.socket, process: subprocess.Popen[bytes]) -> None:
    line.close()
    process.wait()


# The server


def tend(words: bytes, told: int, out: int, err: int) -> None:
    """Starts one command under a filter, and tells how it ended."""
    *usual, numbers = json.loads(words)
    pid = os.fork()
    with socket.socket(fileno=told) as line:
        if pid == 0:
            listener = install(numbers)
            socket.send_fds(line, [array.array("q", [os.getpid()]).tobytes()], [listener])
            os.close(listener)
            line.close()
            forked.become(json.dumps(usual).encode(), out, err)
        for descriptor in (out, err):
            os.close(descriptor)
        line.send(array.array("q", [os.waitpid(pid, 0)[1]]).tobytes())
    os._exit(0)


def install(numbers: Sequence[int]) -> int:
    """From here on this process and all that it starts are asked about at calls of these numbers."""
    libc = ctypes.CDLL(None, use_errno=True)
    lines = [(0x20, 0, 0, 0)]  # The number.
    lines += [(0x15, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    lines += [(0x06, 0, 0, _ALLOW), (0x06, 0, 0, _NOTIFY)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    described = ctypes.create_string_buffer(struct.pack("@HP", len(lines), ctypes.addressof(program)))
    if os.geteuid() != 0:
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    listener: int = libc.syscall(_SECCOMP, _SET_FILTER, _NEW_LISTENER | _WAIT_KILLABLE, described)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "no filter that asks")
    os.set_inheritable(listener, False)
    return listener


def can_ask() -> bool:
    """Whether this kernel lets a process be asked about."""

    def tried() -> None:
        os._exit(0 if install([names[0] for names in [list(names_of("fsync"))]]) > 0 else 1)

    return HERE and _in_a_fork(tried) == 0


def _in_a_fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            work()
        os._exit(1)
    return os.waitpid(pid, 0)[1]


if __name__ == "__main__":
    sys.path.pop(0)  # The tests' own modules are no part of a command's world.
    forked.serve(socket.socket(fileno=int(sys.argv[1])), tend)
