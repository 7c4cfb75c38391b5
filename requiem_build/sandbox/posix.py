"""Levels `process` and `none`: the least that any POSIX host can do, and nothing at all. No kernel features here.

`process` gives a step a directory of its own with copies of its inputs, a fixed environment, limits, and the
end of every process it started. The rest of the host stays visible and in reach, and `protection` says so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from ..core.errors import EnvironmentFault, SandboxUnavailable
from ..core.policy import BASE_PATH, HOME, INPUT_MTIME_S, Limits
from .attendant import Attendant, fault_of
from .base import Finished, Job, Staged
from .cgroups import Cgroups, grouped, limits_held
from .descent import remove
from .ending import name_ending
from .layout import (
    plan_ceilings,
    plan_ceilings_without_mounts,
    plan_directories,
    plan_rlimits_without_namespaces,
)
from .perturbation import placed
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


def _start_minder(*, here: bool = False) -> Attendant:
    try:
        return Attendant("minder", {}, here=here)
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
    """Runs the command where you are: the real workspace, your environment and terminal. Nothing is captured.

    `path` are directories that go before your PATH, unless the step has one of its own.
    """

    level = "none"
    protection: Mapping[str, object] = {"level": "none"}

    def __init__(self, workspace: str, path: Sequence[str] = ()) -> None:
        self.workspace = os.path.abspath(workspace)
        self._path = path
        self._attendant: Attendant | None = None

    def run(self, job: Job) -> Finished:
        if job.limits.tmp_bytes is not None:
            raise SandboxUnavailable(
                f"{job.limits.line('tmp')} cannot be had at the level none",
                facts=[("level", self.level), ("cause", "the step writes to your own /tmp, and so do others")],
                hint='say sandbox = "process" or "strict", or take tmp out of the step',
            )
        for path in job.directories:
            os.makedirs(f"{self.workspace}/{path}", exist_ok=True)
        workspace = os.open(self.workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if self._attendant is None or self._attendant.ended:
                self._attendant = _start_minder(here=True)
            with _stdin_path(job.stdin) as stdin:
                answer, _ = self._attendant.run(self._message(job, stdin))
            if answer[0] == "fault":
                raise fault_of(answer)
            finished = name_ending(answer[1], job.limits, workspace)
        except BaseException:
            os.close(workspace)
            raise
        finished.protection = self.protection
        return finished

    def _message(self, job: Job, stdin: str | None) -> dict[str, object]:
        return {
            "command": list(job.command),
            "env": self._environment(job.env),
            "cwd": os.path.normpath(f"{self.workspace}/{job.cwd}"),
            "stdin": stdin,
            "rlimits": plan_rlimits_without_namespaces(job.limits),
            "ceilings": plan_ceilings(job.limits),
            "places": [],
            "timeout_ms": job.limits.timeout_ms,
            "max_output_bytes": 0,
        }

    def _environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """Yours, and above it what the step was given: its request has no other variables."""
        here = {**os.environ, **env}
        if self._path and "PATH" not in env:
            first = [os.path.join(self.workspace, path) for path in self._path]
            here["PATH"] = ":".join([*first, os.environ.get("PATH", BASE_PATH)])
        return here

    def cancel(self, *, kill: bool) -> None:
        if self._attendant is not None:
            self._attendant.cancel(kill=kill)

    def close(self) -> None:
        if self._attendant is not None:
            self._attendant.end()


@contextlib.contextmanager
def _stdin_path(stdin: bytes | str | None) -> Iterator[str | None]:
    if not isinstance(stdin, bytes):
        yield stdin
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(stdin)
        file.flush()
        yield file.name
