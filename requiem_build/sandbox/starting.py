"""How a command is found and started, as execvp(3) would. It does not know what surrounds it.

Standard library only; see `worker.py`.
"""

from __future__ import annotations

import _signal as signal
import errno
import os
import resource
import stat
import struct

TYPE_CHECKING = False  # The module of that name costs a worker several milliseconds at its start.
if TYPE_CHECKING:
    from typing import Any, NoReturn


_OF_THE_HOST = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What is no fault of a command that could not be started."""


_ABSENT = "was not found"

_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}

TAKEN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""What a terminal sends to all in its foreground: who minds a step there lets it pass, and the step must not."""

SLOTS = 3
"""The descriptor by which a step finds the job slots that it is lent: JOBSERVER_DESCRIPTOR, as its MAKEFLAGS say."""


class Refusal(Exception):
    """The command cannot be started, and that is the step's own fault."""


def cause(error: BaseException) -> tuple[int, str]:
    """An error number, or 0, and words: as a worker tells its engine what it could not do."""
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return error.errno or 0, f"{os.strerror(error.errno or 0)}{where}"
    return 0, f"{type(error).__name__}: {error}"


def find_program(name: str, search: str | None) -> str:
    """As execvp(3) would, inside the view. Raises Refusal with the reason for a person.

    A path is not looked at: if it cannot be executed, the kernel will say so, and `refuse` why.
    """
    if not name:
        raise Refusal("the command is empty")
    if "/" in name and "\0" not in name:
        return name
    path = "/bin:/usr/bin" if search is None else search
    unusable = None
    for directory in path.split(":"):
        candidate = f"{directory or '.'}/{name}"
        kind = _why_unusable(candidate)
        if kind is None:
            return candidate
        if kind != _ABSENT:
            unusable = unusable or f'"{candidate}" {kind}'
    raise Refusal(unusable or f'"{name}" {_ABSENT} in PATH ({path})')


def _why_unusable(path: str) -> str | None:
    """What is said of it; None of a program."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return _ABSENT
    if stat.S_ISREG(mode):
        return None if mode & 0o111 == 0o111 or os.access(path, os.X_OK) else "is not executable"
    return "is a directory" if stat.S_ISDIR(mode) else "is not a program"


def start_command(program: str, job: dict[str, Any], stdin: int, out: int, err: int) -> int:
    """The pid of the command, a session of its own but for `here`. Raises Refusal if the program cannot be executed."""
    try:
        if job["rlimits"] or job["cgroup"] >= 0:
            return _fork_and_execute(program, job, stdin, out, err)
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, old, new) for new, old in enumerate((stdin, out, err))]
        if job.get("terminal"):  # The first one that the leader of a session opens becomes its own.
            actions = [(os.POSIX_SPAWN_OPEN, 0, job["terminal"], os.O_RDWR, 0)]
            actions += [(os.POSIX_SPAWN_DUP2, 0, new) for new in (1, 2)]
        if job["slots"] >= 0:
            actions.append((os.POSIX_SPAWN_DUP2, job["slots"], SLOTS))
        try:
            return os.posix_spawn(
                program,
                job["command"],
                job["env"],
                file_actions=actions,
                setsid=not job.get("here"),
                setsigmask=(),
                setsigdef=_SIGNALS,  # Those not named are asked for, one by one.
            )
        except NotImplementedError:  # A C library that cannot make a session there: older releases of macOS.
            return _fork_and_execute(program, job, stdin, out, err)
    except OSError as error:
        refuse(program, error)
    except ValueError as error:  # A NUL byte in an argument or in the environment.
        raise Refusal(f'"{program}" cannot be started: {error}') from error


def refuse(program: str, error: OSError) -> NoReturn:
    """Raises Refusal, or the error itself where it is no fault of the command."""
    if error.errno in _OF_THE_HOST:
        raise error
    kind = _why_unusable(program)
    raise Refusal(_why_not_started(program, error) if kind is None else f'"{program}" {kind}') from error


def _why_not_started(program: str, error: OSError) -> str:
    if error.errno == errno.ENOEXEC:
        return f'"{program}" is not a program of this machine and has no #! line'
    if error.errno == errno.E2BIG:
        return f'"{program}" cannot be started: its arguments and environment are too long'
    if error.errno == errno.ENOENT:
        return f'"{program}" cannot be started: its interpreter is missing{_interpreter(program)}'
    return f'"{program}" cannot be started: {os.strerror(error.errno or 0)}'


def _interpreter(program: str) -> str:
    try:
        with open(program, "rb") as script:
            first = script.read(256).split(b"\n")[0]
    except OSError:
        return ""
    return f" ({first[2:].strip().decode(errors='replace')})" if first.startswith(b"#!") else ""


def join_cgroup(cgroup: int, report: int) -> None:
    """Puts this process into its cgroup, and so all that it will ever start. That it cannot is no fault of the step."""
    if cgroup >= 0:
        try:
            os.write(cgroup, b"0")
        except OSError as error:
            os.write(report, struct.pack("=i", -(error.errno or errno.EINVAL)))
            os._exit(127)


def _begin_anew(*, here: bool) -> None:
    if not here:
        os.setsid()
    for number in (signal.SIGPIPE, *TAKEN):
        signal.signal(number, signal.SIG_DFL)


def _fork_and_execute(program: str, job: dict[str, Any], stdin: int, out: int, err: int) -> int:
    """posix_spawn(3) has no place for resource limits, and a limit set afterwards comes too late."""
    result, report = os.pipe()  # Closed on execution: then there is nothing to read.
    pid = os.fork()
    if pid == 0:
        try:
            join_cgroup(job["cgroup"], report)
            _begin_anew(here=job.get("here", False))
            if job.get("terminal"):
                stdin = out = err = os.open(job["terminal"], os.O_RDWR)
            for number, descriptor in enumerate((stdin, out, err)):
                os.dup2(descriptor, number)
            if job["slots"] >= 0:
                os.dup2(job["slots"], SLOTS)
            for which, soft, hard in job["rlimits"]:
                ceiling = resource.getrlimit(which)[1]
                if ceiling != resource.RLIM_INFINITY:
                    soft, hard = min(soft, ceiling), min(hard, ceiling)  # noqa: PLW2901
                resource.setrlimit(which, (soft, hard))
            os.execve(program, job["command"], job["env"])
        except OSError as error:
            os.write(report, struct.pack("=i", error.errno or errno.EINVAL))
        finally:
            os._exit(127)
    os.close(report)
    try:
        failure = os.read(result, 4)
    finally:
        os.close(result)
    if failure:
        os.waitpid(pid, 0)
        (number,) = struct.unpack("=i", failure)
        if number < 0:
            raise RuntimeError(f"the step cannot join its cgroup: {os.strerror(-number)}")
        raise OSError(number, os.strerror(number))
    return pid
