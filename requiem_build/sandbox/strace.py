"""What a step touches, told by strace from outside of its walls: how it is started, and what its lines say.

The sandbox refuses ptrace to every step, and nothing of that is loosened: the tracer holds the worker from before it
walls itself in, so whatever the worker starts is traced too. Nothing is judged here. Needs strace 5.9 or later.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator

from ..core.errors import EnvironmentFault
from ..core.observation import EXECUTED, LISTED, LOOKED, READ, WROTE, Access

_OPENING = frozenset({"open", "openat", "openat2", "creat"})
_LOOKING = re.compile(
    r"l?stat(64)?|newfstatat|fstatat64|statx|f?accessat2?|access|readlink(at)?|statfs(64)?|l?(get|list)xattr"
    r"|name_to_handle_at|chdir"
)
_CHANGING = re.compile(
    r"mkdir(at)?|mknod(at)?|unlink(at)?|rmdir|truncate(64)?|chmod|fchmodat2?|l?chown|fchownat|utimes?|utimensat|futimesat"
    r"|l?(set|remove)xattr"
)
_TWO = {"rename": (0, 1), "renameat": (0, 1), "renameat2": (0, 1), "link": (1,), "linkat": (1,)}
_TRACED = "trace=%file,%process,chdir,fchdir,getdents64,getdents"
_LINE = re.compile(rb"^(\d+) +(?:\d+\.\d+ )?(.*)$")
_CALL = re.compile(rb"^(\w+)\((.*)\) += (-?\d+|\?)(?:<[^>]*>)?(?: ([A-Z0-9]+))?(.*)$", re.S)
_STRING = re.compile(rb'(?:(AT_FDCWD|\d+)(?:<((?:\\x[0-9a-f]{2})*)>)?(?:\(deleted\))?, )?"((?:\\x[0-9a-f]{2})*)"')
_HELD = re.compile(rb"^(\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>")
_TRANSLATED = re.compile(rb"/\* (\d+) in strace")


def find_strace() -> str:
    """Raises EnvironmentFault where it is not installed."""
    for directory in (*os.environ.get("PATH", "").split(":"), "/usr/bin", "/bin"):
        path = os.path.join(directory, "strace")
        if directory.startswith("/") and os.access(path, os.X_OK):
            return path
    raise EnvironmentFault(
        "strace is not installed: what a step touches cannot be observed",
        hint="apt install strace (dnf, pacman and apk have it under the same name)",
    )


def traced(strace: str, into: str) -> tuple[str, ...]:
    """The words that go before a command. It stays our own child: the tracer is its grandchild (`-D`)."""
    options = ["-D", "-f", "-qq", "-y", "-xx", "-s", "8192", "--seccomp-bpf", "--pidns-translation"]
    return (strace, *options, "-e", "signal=none", "-e", _TRACED, "-o", into, "--")


def parse(lines: Iterable[bytes]) -> list[Access]:
    """What the step and all that it started touched, in order; the worker's own doings are left out."""
    reading = _Reading()
    return [access for line in lines for access in reading.line(line)]


class _Reading:
    """The state of reading one trace: which processes are the step's, and where each of them is."""

    def __init__(self) -> None:
        self._unfinished: dict[int, bytes] = {}
        self._workers: set[int] = set()
        self._executed = 0
        self._step = False
        self._where: dict[int, str] = {}

    def line(self, line: bytes) -> Iterator[Access]:
        match = _LINE.match(line)
        if match is None:
            return
        pid, text = int(match.group(1)), match.group(2).rstrip()
        if text.endswith(b"<unfinished ...>"):
            self._unfinished[pid] = text.removesuffix(b"<unfinished ...>").rstrip()
            self._note(pid, text)
            return
        if text.startswith(b"<... "):
            text = self._unfinished.pop(pid, b"") + text.partition(b" resumed>")[2]
        call = _CALL.match(text)
        if call is None:
            return
        name, arguments, result, error, rest = call.groups()
        if self._is_step(pid, name.decode(), result):
            yield from self._accesses(pid, name.decode(), arguments, int(result or b"0"), (error or b"").decode(), rest)

    def _note(self, pid: int, text: bytes) -> None:
        """A process that exists before the step starts is the worker's."""
        if not self._step and not text.startswith(b"execve"):
            self._workers.add(pid)

    def _is_step(self, pid: int, name: str, result: bytes) -> bool:
        if result == b"?":
            return False
        if self._step:
            return pid not in self._workers
        if name == "execve" and result == b"0":
            self._executed += 1
            if self._executed == 2:  # The first one is that of the worker itself.
                self._step = True
                self._workers.discard(pid)
                return True
        self._workers.add(pid)
        return False

    def _accesses(
        self, pid: int, name: str, arguments: bytes, result: int, error: str, rest: bytes
    ) -> Iterator[Access]:
        if name in ("fork", "vfork", "clone", "clone3"):
            translated = _TRANSLATED.search(rest)
            if result > 0:
                child = int(translated.group(1)) if translated else result
                self._where[child] = self._where.get(pid, "")
            return
        paths = [self._absolute(pid, *found) for found in _STRING.findall(arguments)]
        if name == "fchdir" or name.startswith("getdents"):
            held = _HELD.match(arguments)
            if held is not None and not error:
                where = _bytes(held.group(2))
                if name == "fchdir":
                    self._where[pid] = where
                else:
                    yield Access(LISTED, where)
            return
        if not paths or not paths[0]:
            return
        if name == "chdir" and not error:
            self._where[pid] = paths[0]
        for wanted, path in _meaning(name, arguments, paths):
            if path:
                yield Access(wanted, path, error if result < 0 else "")

    def _absolute(self, pid: int, descriptor: bytes, base: bytes, text: bytes) -> str:
        """Empty for a path that says nothing of its own: that of an open file."""
        path = _bytes(text)
        if descriptor == b"AT_FDCWD" and base:
            self._where[pid] = _bytes(base)
        if not path or path.startswith("/"):
            return path
        where = _bytes(base) if base else self._where.get(pid, "")
        return posixpath.join(where or "/", path)


def _meaning(name: str, arguments: bytes, paths: list[str]) -> Iterator[tuple[str, str]]:
    """What a call wanted of which path."""
    if name in _OPENING:
        writes = name == "creat" or re.search(rb"\bO_(WRONLY|RDWR|CREAT|TRUNC)\b", arguments) is not None
        if not writes or (b"O_RDWR" in arguments and b"O_TRUNC" not in arguments) or b"O_APPEND" in arguments:
            yield (LOOKED if b"O_PATH" in arguments or b"O_DIRECTORY" in arguments else READ), paths[0]
        if writes:
            yield WROTE, paths[0]
    elif name in ("execve", "execveat"):
        yield EXECUTED, paths[0]
    elif _LOOKING.fullmatch(name):
        yield LOOKED, paths[0]
    elif _CHANGING.fullmatch(name):
        yield WROTE, paths[0]
    elif name in _TWO:
        yield from ((WROTE, paths[index]) for index in _TWO[name] if index < len(paths))
        if name in ("link", "linkat"):
            yield READ, paths[0]
    elif name in ("symlink", "symlinkat") and len(paths) > 1:
        yield WROTE, paths[1]


def _bytes(text: bytes) -> str:
    return os.fsdecode(bytes.fromhex(text.replace(b"\\x", b"").decode()))
