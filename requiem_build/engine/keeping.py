"""REQUIEM_KEEP: what a step left in its workspace, copied for a person to look into. Nothing reads it again."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress

from ..core.errors import EnvironmentFault, UsageError
from ..core.request import Request
from ..sandbox.base import Finished, Job

VARIABLE = "REQUIEM_KEEP"
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def wanted(environment: Mapping[str, str]) -> str:
    """Nothing (keep nothing), `1` (failed steps) or `all`. Raises UsageError."""
    value = environment.get(VARIABLE, "")
    if value in ("", "0", "1", "all"):
        return value.replace("0", "")
    raise UsageError(f"{VARIABLE} is {value!r}, not 1 (what failed steps leave) or all (what every step leaves)")


class Keeper:
    """Keeps what ended steps left in `<dot>/kept/STEP`, the last time of each. `tell` is given a line for the user."""

    def __init__(self, dot: str, which: str, name_of: Callable[[Request], str], tell: Callable[[str], None]) -> None:
        self._dot = dot
        self._which = which
        self._name_of = name_of
        self._tell = tell

    def __call__(self, request: Request, job: Job, finished: Finished, *, failed: bool) -> None:
        """Before the sandbox is used again. Raises EnvironmentFault if it cannot be written."""
        if request.policy.sandbox == "none" or not (failed or self._which == "all"):
            return
        name = self._name_of(request)
        place = os.path.join(self._dot, "kept", re.sub(r"[^\w.@=+-]", "_", name) or "_")
        try:
            _remove(place)
            os.makedirs(place)
            _copy_tree(finished.workspace_fd, f"{place}/workspace")
            _copy_large(job, f"{place}/workspace")
            for stream, content in (("stdout", finished.stdout), ("stderr", finished.stderr)):
                with open(f"{place}/{stream}", "wb") as file:
                    file.write(content)
            with open(f"{place}/run.sh", "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(_script(request))
        except OSError as error:
            raise EnvironmentFault(
                f'what "{name}" left cannot be kept', facts=[("path", place), ("cause", error.strerror or str(error))]
            ) from error
        self._tell(f'what "{name}" left is kept in {os.path.relpath(place, os.path.dirname(self._dot))}')


def _copy_tree(top: int, target: str) -> None:
    """Everything but pipes, sockets and devices. No link is followed: what a step left is hostile."""
    os.mkdir(target)
    for folder, directories, names, descriptor in os.fwalk(".", dir_fd=top, follow_symlinks=False):
        there = os.path.join(target, folder)
        for name in (*directories, *names):
            seen = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            path = os.path.join(there, name)
            if stat.S_ISDIR(seen.st_mode):
                os.makedirs(path, exist_ok=True)
                if seen.st_mode & 0o500 != 0o500:
                    with suppress(OSError):  # Else it is kept empty.
                        os.chmod(name, 0o700, dir_fd=descriptor)
            elif stat.S_ISLNK(seen.st_mode):
                os.symlink(os.readlink(name, dir_fd=descriptor), path)
            elif stat.S_ISREG(seen.st_mode):
                _copy_file(name, descriptor, seen, path)


def _copy_file(name: str, directory: int, seen: os.stat_result, path: str) -> None:
    if not seen.st_mode & 0o400:
        with suppress(OSError):
            os.chmod(name, 0o600, dir_fd=directory)
    try:
        source = os.open(name, _FILE, dir_fd=directory)
    except PermissionError:
        return
    with os.fdopen(source, "rb") as origin, open(path, "xb") as copy:
        shutil.copyfileobj(origin, copy)
    os.chmod(path, stat.S_IMODE(seen.st_mode) & 0o777 | 0o400)


def _copy_large(job: Job, target: str) -> None:
    """What was mounted in the step's view is gone with it."""
    for item in job.staged:
        if item.source is not None:
            path = f"{target}/{item.path}"
            with suppress(FileNotFoundError):  # The step removed the directory.
                _remove(path)
                shutil.copyfile(item.source, path)
                os.chmod(path, 0o555 if item.executable else 0o444)


def _script(request: Request) -> str:
    """The command as it was run, for a shell. Secrets are left out: they are for nobody to find."""
    told = [f"{name}={value}" for name, value in sorted(request.env.items()) if name not in request.secrets]
    folder = request.cwd if not request.cwd.startswith("/") else "."
    return (
        "#!/bin/sh\n# What the step ran, without its sandbox: `requiem shell` gives that too.\n"
        f'cd "$(dirname "$0")/workspace/"{shlex.quote(folder)} &&\n'
        f"exec env -i {shlex.join(told)} {shlex.join(request.command)}\n"
    )


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        for folder, directories, _ in os.walk(path):
            for name in directories:
                full = os.path.join(folder, name)
                if not os.path.islink(full):
                    os.chmod(full, 0o700)
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
