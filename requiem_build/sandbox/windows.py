"""Level `process` on Windows: a directory of the step's own, a fixed environment, a Job Object around all it starts.

The job ends with its handle, so whatever happens to us, nothing of the step lives on. The rest of the host stays
visible and in reach, and `protection` says so. There are no directory descriptors: `workspace` is where the step ran.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from ..core.errors import EnvironmentFault
from ..core.policy import HOME, INPUT_MTIME_S, WORKSPACE
from .base import Finished, Job, Staged
from .layout import plan_directories
from .promises import NOT_ON_WINDOWS, no_strict
from .win_jobs import JobObject, NotToBeHad, close, create_suspended, exit_code, resume, wait
from .win_names import batch_refusal, name_refusal

_CHUNK = 65536
_OURS = frozenset({"PATH", "HOME", "TMPDIR", "TEMP", "TMP", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "SYSTEMROOT"})
_NOT_ENOUGH_QUOTA = 1816
"""What the job's own limit of CPU time ends a process with."""

_Stamp = tuple[int, int, int]


class WindowsSandbox:
    """`scratch` is a directory for this sandbox alone; it is emptied before each job and removed by `close`."""

    level = "process"

    def __init__(self, scratch: str, level: str = "process") -> None:
        if level != "process":
            raise no_strict(sys.platform)
        self._scratch = os.path.abspath(scratch)
        self.workspace = os.path.join(self._scratch, "workspace")
        self._turn = threading.Lock()
        self._job: JobObject | None = None
        self._cancelled = False

    @property
    def protection(self) -> Mapping[str, object]:
        return {
            "level": self.level,
            "job_object": True,
            "staged_directory": True,
            "fixed_environment": True,
            "home_and_tmpdir": "fresh directories of the host",
            "kills": "every process of the job",
            "limits": ["cpu_time", "memory", "output_size", "processes", "timeout"],
            "not_promised": list(NOT_ON_WINDOWS),
        }

    def run(self, job: Job) -> Finished:
        """Raises EnvironmentFault for what cannot be staged here; a limit that Windows does not have is refused."""
        for name in ("open_files", "file_size_bytes", "tmp_bytes"):
            if getattr(job.limits, name) is not None:
                raise EnvironmentFault(
                    f"the limit {name.removesuffix('_bytes')} cannot be held on Windows",
                    hint="leave it out for Windows, in a profile",
                )
        try:
            stamps = self._stage(job)
            environment = self._environment(job.env)
            program, refusal = _find_program(job.command, environment, self._cwd(job))
            if refusal:
                return Finished(127, "not_found", -1, reason=refusal, protection=self.protection)
            finished = self._follow(job, program, environment)
        except NotToBeHad as error:
            raise EnvironmentFault("the step cannot be held by a Job Object", facts=[("cause", str(error))]) from error
        except OSError as error:
            raise EnvironmentFault(
                "the inputs of a step cannot be laid out",
                facts=[("path", str(error.filename)), ("error", error.strerror or str(error))],
            ) from error
        finished.changed = tuple(path for path, stamp in stamps.items() if _look(self._place(path)) != stamp)
        return finished

    def cancel(self, *, kill: bool) -> None:
        """Windows has no way to ask all of a job to end: both kinds end it at once."""
        with self._turn:
            if self._job is not None:
                self._cancelled = True
                self._job.terminate()

    def close(self) -> None:
        self.cancel(kill=True)
        _remove(self._scratch)

    def __enter__(self) -> WindowsSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What the step sees

    def _cwd(self, job: Job) -> str:
        return os.path.normpath(os.path.join(self.workspace, job.cwd))

    def _place(self, path: str) -> str:
        return os.path.join(self.workspace, *path.split("/"))

    def _environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """The step's own, and of the host only what no program of Windows runs without."""
        system = os.environ.get("SYSTEMROOT", r"C:\Windows")
        here = {name: value for name, value in env.items() if name.upper() not in _OURS}
        below = [entry for entry in env.get("PATH", "").split(":") if entry.startswith(WORKSPACE + "/")]
        own = [self._place(entry[len(WORKSPACE) + 1 :]) for entry in below]
        here["PATH"] = ";".join([*own, rf"{system}\System32", system])
        home, tmp = os.path.join(self._scratch, "home"), os.path.join(self._scratch, "tmp")
        for name in ("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA"):
            here[name] = env["HOME"] if name == "HOME" and env.get("HOME", HOME) != HOME else home
        for name in ("TMPDIR", "TEMP", "TMP"):
            here[name] = tmp
        return {**here, "SYSTEMROOT": system, "PATHEXT": ".COM;.EXE;.BAT;.CMD"}

    def _stage(self, job: Job) -> dict[str, _Stamp]:
        refusal = name_refusal([item.path for item in job.staged], [*job.directories, job.cwd])
        if refusal:
            raise EnvironmentFault("a path cannot be laid out on Windows", facts=[("path", refusal)])
        if job.mounts:
            raise EnvironmentFault(
                "roots cannot be shown on Windows",
                facts=[("path", job.mounts[0].target)],
                hint="declare them as inputs",
            )
        _remove(self._scratch)
        for name in ("workspace", "home", "tmp"):
            os.makedirs(os.path.join(self._scratch, name))
        directories = plan_directories(job)
        for path in directories:
            os.mkdir(self._place(path))
        return {item.path: self._stage_file(item) for item in job.staged if item.path not in directories}

    def _stage_file(self, item: Staged) -> _Stamp:
        place = self._place(item.path)
        if item.symlink is not None:
            raise EnvironmentFault(
                "an input is a symlink, which cannot be made here", facts=[("path", item.path)], hint="copy the file"
            )
        if item.source is not None:
            shutil.copyfile(item.source, place)
        else:
            with open(place, "xb") as file:
                file.write(item.data or b"")
        os.utime(place, (INPUT_MTIME_S, INPUT_MTIME_S))
        os.chmod(place, stat.S_IREAD)
        return _stamp(os.stat(place))

    # The processes

    def _follow(self, job: Job, program: str, environment: Mapping[str, str]) -> Finished:
        limits = job.limits
        with (
            JobObject(
                memory_bytes=limits.memory_bytes, processes=limits.processes, cpu_time_ms=limits.cpu_time_ms
            ) as around,
            contextlib.ExitStack() as open_,
        ):
            stdin = open_.enter_context(self._stdin(job))
            out, err = Pump(job.max_output_bytes), Pump(job.max_output_bytes)
            try:
                process = create_suspended(
                    program,
                    subprocess.list2cmdline([program, *job.command[1:]]),
                    self._cwd(job),
                    environment,
                    (stdin.fileno(), out.writer, err.writer),
                )
            except OSError as error:
                for pump in (out, err):
                    pump.finish()
                why = f'"{program}" cannot be started: {error.strerror or error}'
                return Finished(127, "not_found", -1, reason=why, protection=self.protection)
            around.take(process)
            with self._turn:
                self._job, self._cancelled = around, False
            try:
                resume(process)
                timed_out = not wait(process, limits.timeout_ms)
            finally:
                with self._turn:
                    self._job = None
                leftovers = around.active() - (0 if wait(process, 0) else 1)
                around.terminate()
                wait(process, None)
            for pump in (out, err):
                pump.finish()
            code = exit_code(process)
            close(process)
            return self._finished(job, around, code, timed_out, leftovers, (out, err))

    def _finished(
        self,
        job: Job,
        around: JobObject,
        code: int,
        timed_out: bool,
        leftovers: int,
        streams: tuple[Pump, Pump],
    ) -> Finished:
        used = around.used()
        termination = "exited"
        if timed_out:
            termination = "timeout"
        elif code != 0 and not self._cancelled:
            if job.limits.cpu_time_ms is not None and code == _NOT_ENOUGH_QUOTA:
                termination = "cpu_time"
            elif job.limits.processes is not None and used["terminated"] > 0:
                termination = "processes"
            elif job.limits.memory_bytes is not None and used["peak_bytes"] >= job.limits.memory_bytes * 0.9:
                termination = "memory"
        out, err = streams
        return Finished(
            code,
            termination,
            -1,
            stdout=out.kept,
            stderr=err.kept,
            stdout_truncated=out.truncated,
            stderr_truncated=err.truncated,
            leftovers=max(0, leftovers),
            rusage={
                "user_ms": used["user_ms"],
                "system_ms": used["system_ms"],
                "max_rss_kib": used["peak_bytes"] // 1024,
            },
            cancelled=self._cancelled,
            protection=self.protection,
        )

    def _stdin(self, job: Job) -> Any:
        path = os.devnull if job.stdin is None else job.stdin
        if isinstance(path, bytes):
            given = os.path.join(self._scratch, "stdin")
            with open(given, "wb") as file:
                file.write(path)
            path = given
        return open(path, "rb")


class Pump:
    """Reads one output of the step in a thread: keeps the first bytes and drops the rest as it comes."""

    def __init__(self, most: int) -> None:
        self._reader, self.writer = os.pipe()
        self._most = most
        self.kept = b""
        self.truncated = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        pieces: list[bytes] = []
        room = self._most
        while chunk := os.read(self._reader, _CHUNK):
            self.truncated |= len(chunk) > room
            if room:
                pieces.append(chunk[:room])
                room -= len(pieces[-1])
        self.kept = b"".join(pieces)

    def finish(self) -> None:
        """When every process that could write is dead."""
        os.close(self.writer)
        self._thread.join()
        os.close(self._reader)


def _find_program(command: tuple[str, ...] | Any, env: Mapping[str, str], cwd: str) -> tuple[str, str]:
    """The program's path, or why there is none. Only the step's own PATH is searched, never the current directory."""
    name = str(command[0]).replace("/", "\\")
    places = [cwd] if "\\" in name else env["PATH"].split(";")
    for place in places:
        for ending in ("", *env["PATHEXT"].lower().split(";")):
            path = os.path.normpath(os.path.join(place, name + ending))
            if os.path.isfile(path) and (ending or os.path.splitext(path)[1]):
                return path, batch_refusal(path, command[1:])
    where = "" if "\\" in name else f" in PATH ({env['PATH']})"
    return "", f'"{command[0]}" was not found{where}'


def _stamp(seen: os.stat_result) -> _Stamp:
    return (seen.st_ino, seen.st_size, seen.st_mtime_ns)


def _look(path: str) -> _Stamp | None:
    try:
        return _stamp(os.stat(path))
    except OSError:
        return None


def _remove(top: str) -> None:
    """A whole tree, also what is read-only."""

    def open_up(work: Any, path: str, _: object) -> None:
        os.chmod(path, stat.S_IWRITE)
        work(path)

    if os.path.isdir(top):
        shutil.rmtree(top, onerror=open_up)
