"""Levels `process` and `none`: the least that any POSIX host can do, and nothing at all. No kernel features here.

`process` gives a step a directory of its own with copies of its inputs, a fixed environment, limits, and the
end of every process it started. The rest of the host stays visible and in reach, and `protection` says so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import IO

from ..core.errors import EnvironmentFault
from ..core.policy import HOME, INPUT_MTIME_S, WORLD_ENVIRONMENT, Limits
from .attendant import Attendant, fault_of
from .base import Finished, Job, Staged
from .cgroups import Cgroups, grouped, limits_held
from .descent import remove
from .ending import name_ending
from .layout import plan_ceilings_without_mounts, plan_directories, plan_rlimits_without_namespaces
from .perturbation import placed
from .processes import GRACE_S
from .promises import NOT_ON_POSIX

_INPUT_MTIME = (INPUT_MTIME_S * 1_000_000_000, INPUT_MTIME_S * 1_000_000_000)

_Stamp = tuple[int, int, int, int, int]


class ProcessSandbox:
    """`scratch` is a directory for this sandbox alone; it is emptied before each job and removed by `close`.

    A step runs in `<scratch>/workspace` (see `workspace`), with HOME and TMPDIR in `<scratch>/home` and
    `<scratch>/tmp` unless it chose its own. PATH entries below /workspace follow the workspace.
    """

    level = "process"

    def __init__(self, scratch: str, cgroups: Cgroups | None = None) -> None:
        self._scratch = os.path.abspath(scratch)
        self._cgroups = cgroups
        self.workspace = f"{self._scratch}/workspace"
        self._attendant = _start_minder()

    @property
    def protection(self) -> Mapping[str, object]:
        subreaper = bool(self._attendant.greeting[1]["subreaper"])
        return {
            "level": self.level,
            "staged_directory": True,
            "fixed_environment": True,
            "home_and_tmpdir": "fresh directories of the host",
            "kills": "every descendant" if subreaper else "the process group",
            "limits": ["cpu_time", "file_size", "memory", "open_files", "output_size", "processes", "timeout", "tmp"],
            "not_promised": list(NOT_ON_POSIX),
        }

    def run(self, job: Job) -> Finished:
        if self._attendant.ended:
            self._attendant = _start_minder()
        with _host_errors():
            stamps = self._stage(job)
            workspace = os.open(self.workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        terminal = -1
        try:
            if job.on_terminal is not None:
                other_side, terminal = os.openpty()
                job.on_terminal(other_side)
            with grouped(self._cgroups, job.limits) as (group, left):
                descriptor = None if group is None else group.procs
                answer, _ = self._attendant.run(self._message(job, left, terminal), descriptor, slots=job.slots)
                if answer[0] == "fault":
                    raise fault_of(answer)
                reply = answer[1] if group is None else group.seen(answer[1])
            finished = name_ending(reply, job.limits, workspace)
        except BaseException:
            os.close(workspace)
            raise
        finally:
            if terminal >= 0:
                os.close(terminal)
        finished.protection = {**self.protection, **limits_held(job.limits, group)}
        finished.changed = tuple(path for path, stamp in stamps.items() if _look(path, workspace) != stamp)
        return finished

    def _message(self, job: Job, limits: Limits, terminal: int) -> dict[str, object]:
        return {
            "command": list(job.command),
            "env": self._environment(job.env),
            "cwd": os.path.normpath(f"{self.workspace}/{job.cwd}"),
            "stdin": self._stdin(job),
            "rlimits": plan_rlimits_without_namespaces(limits),
            "ceilings": plan_ceilings_without_mounts(limits),
            "places": [f"{self._scratch}/tmp", f"{self._scratch}/home"],
            "timeout_ms": limits.timeout_ms,
            "max_output_bytes": job.max_output_bytes,
            "terminal": None if terminal < 0 else os.ttyname(terminal),
        }

    def cancel(self, *, kill: bool) -> None:
        self._attendant.cancel(kill=kill)

    def close(self) -> None:
        self._attendant.end()
        _remove(self._scratch)

    def __enter__(self) -> ProcessSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _environment(self, env: Mapping[str, str]) -> dict[str, str]:
        here = dict(env)
        for name, usual, ours in (("HOME", HOME, "home"), ("TMPDIR", "/tmp", "tmp")):
            if here.get(name) == usual:
                here[name] = f"{self._scratch}/{ours}"
        if "PATH" in here:
            here["PATH"] = ":".join(placed(entry, self.workspace) for entry in here["PATH"].split(":"))
        return here

    def _stdin(self, job: Job) -> str:
        if not isinstance(job.stdin, bytes):
            return job.stdin or os.devnull
        path = f"{self._scratch}/stdin"
        with open(path, "wb") as file:
            file.write(job.stdin)
        return path

    def _stage(self, job: Job) -> dict[str, _Stamp]:
        _remove(self._scratch)
        for name in ("workspace", "home", "tmp"):
            os.makedirs(f"{self._scratch}/{name}", 0o755)
        directories = plan_directories(job)
        for path in directories:
            os.mkdir(f"{self.workspace}/{path}", 0o755)
        stamps, made = {}, set(directories)
        for item in sorted(job.staged, key=lambda item: (item.symlink is not None, item.path)):
            place = f"{self.workspace}/{item.path}"
            stamps[item.path] = _place_of(os.lstat(place)) if item.path in made else _stage_file(place, item)
        for mount in job.mounts:
            target = placed(mount.target, self.workspace)
            if target != mount.target:
                os.symlink(mount.source, target)
            elif mount.source != mount.target:
                raise EnvironmentFault(
                    "a root cannot be shown elsewhere without a sandbox", facts=[("path", mount.target)]
                )
        for path in (*directories, ""):
            os.utime(f"{self.workspace}/{path}", ns=_INPUT_MTIME)
        return stamps


def _start_minder() -> Attendant:
    try:
        return Attendant("minder", {})
    except (EOFError, OSError) as error:
        raise EnvironmentFault(
            "the process that minds the steps cannot be started", facts=[("cause", str(error))]
        ) from error


@contextlib.contextmanager
def _host_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            "the inputs of a step cannot be laid out",
            facts=[
                *([("path", os.fsdecode(error.filename))] if error.filename is not None else []),
                ("cause", os.strerror(error.errno or 0)),
            ],
        ) from error


def _stage_file(place: str, item: Staged) -> _Stamp:
    if item.symlink is not None:
        os.symlink(item.symlink, place)
        os.utime(place, ns=_INPUT_MTIME, follow_symlinks=False)
        return _stamp(os.lstat(place))
    if item.source is not None:
        shutil.copyfile(item.source, place)
    else:
        with open(place, "xb") as file:
            file.write(item.data or b"")
    os.chmod(place, 0o555 if item.executable else 0o444)
    os.utime(place, ns=_INPUT_MTIME)
    return _stamp(os.lstat(place))


def _stamp(seen: os.stat_result) -> _Stamp:
    return (seen.st_ino, seen.st_mode, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


def _place_of(seen: os.stat_result) -> _Stamp:
    """Of a directory: whether it is the one that was made, whatever came into it."""
    return (seen.st_ino, stat.S_IFMT(seen.st_mode), 0, 0, 0)


def _look(path: str, workspace: int) -> _Stamp | None:
    try:
        seen = os.stat(path, dir_fd=workspace, follow_symlinks=False)
    except OSError:
        return None
    return _place_of(seen) if stat.S_ISDIR(seen.st_mode) else _stamp(seen)


def _remove(top: str) -> None:
    """A whole tree, whatever modes a step gave to its directories."""
    try:
        remove(top)
    except OSError as error:
        cause = error.strerror or str(error)
        raise EnvironmentFault(
            "the scratch directory cannot be emptied", facts=[("path", top), ("cause", cause)]
        ) from error


class NoSandbox:
    """Runs the command where you are: the real workspace, your environment and terminal. Nothing is captured."""

    level = "none"
    protection: Mapping[str, object] = {"level": "none"}

    def __init__(self, workspace: str) -> None:
        self.workspace = os.path.abspath(workspace)
        self._turn = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._cancelled = False

    def run(self, job: Job) -> Finished:
        for path in job.directories:
            os.makedirs(f"{self.workspace}/{path}", exist_ok=True)
        workspace = os.open(self.workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return self._run(job, workspace)
        except BaseException:
            os.close(workspace)
            raise

    def _run(self, job: Job, workspace: int) -> Finished:
        added = {name: value for name, value in job.env.items() if WORLD_ENVIRONMENT.get(name) != value}
        self._cancelled = False
        with _open_stdin(job.stdin) as stdin:
            try:
                process = subprocess.Popen(
                    list(job.command), stdin=stdin, cwd=f"{self.workspace}/{job.cwd}", env={**os.environ, **added}
                )
            except (OSError, ValueError) as error:
                why = f'"{job.command[0]}" cannot be started: {getattr(error, "strerror", None) or error}'
                return Finished(127, "not_found", workspace, reason=why, protection=self.protection)
        with self._turn:
            self._running = process
        try:
            timed_out = self._wait(process, job.limits)
        finally:
            with self._turn:
                self._running = None
        code = 128 - process.returncode if process.returncode < 0 else process.returncode
        number = -process.returncode if process.returncode < 0 else None
        termination = "timeout" if timed_out else "exited" if number is None else "signaled"
        return Finished(
            code,
            termination,
            workspace,
            signal=number,
            cancelled=self._cancelled,
            protection=self.protection,
        )

    def _wait(self, process: subprocess.Popen[bytes], limits: Limits) -> bool:
        """Whether the time was up."""
        try:
            process.wait(None if limits.timeout_ms is None else limits.timeout_ms / 1000)
        except subprocess.TimeoutExpired:
            _terminate(process)
            return True
        except BaseException:
            _terminate(process)
            raise
        return False

    def cancel(self, *, kill: bool) -> None:
        with self._turn:
            process = self._running
            self._cancelled = process is not None
        if process is not None and kill:
            process.kill()
        elif process is not None:
            _terminate(process)

    def close(self) -> None:
        self.cancel(kill=True)


def _terminate(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _open_stdin(stdin: bytes | str | None) -> Iterator[IO[bytes] | None]:
    if stdin is None:
        yield None
    elif isinstance(stdin, str):
        with open(stdin, "rb") as file:
            yield file
    else:
        with tempfile.TemporaryFile() as file:
            file.write(stdin)
            file.seek(0)
            yield file
