"""REQUIEM_KEEP: what a step left in its workspace, copied for a person to look into. Nothing reads it again."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import BinaryIO

from ..core.errors import EnvironmentFault, UsageError
from ..core.request import Request
from ..core.secrecy import Masker
from ..sandbox.base import Finished, Job
from ..sandbox.descent import PATH_BYTES_MAX, remove, walk

VARIABLE = "REQUIEM_KEEP"
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CHUNK = 1 << 20


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

    def __call__(
        self, request: Request, job: Job, finished: Finished, *, failed: bool, masker: Masker | None = None
    ) -> None:
        """Before the sandbox is used again. `masker` has the step's secrets, which are not kept.

        Raises EnvironmentFault if it cannot be written.
        """
        if request.policy.sandbox == "none" or not (failed or self._which == "all"):
            return
        name = self._name_of(request)
        kept = os.path.join(self._dot, "kept")
        place = os.path.join(kept, re.sub(r"[^\w.@=+-]", "_", name) or "_")
        try:
            os.makedirs(kept, exist_ok=True)
            os.chmod(kept, 0o700)  # A step's files are for whoever ran it.
            remove(place)
            os.mkdir(place)
            copy = _Copy(f"{place}/workspace", masker)
            copy.tree(finished.workspace_fd)
            copy.large(job)
            for stream, content in (("stdout", finished.stdout), ("stderr", finished.stderr)):
                with open(f"{place}/{stream}", "wb") as file:
                    file.write(content)
            with open(f"{place}/run.sh", "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(_script(request))
        except OSError as error:
            raise EnvironmentFault(
                f'what "{name}" left cannot be kept', facts=[("path", place), ("cause", error.strerror or str(error))]
            ) from error
        where = os.path.relpath(place, os.path.dirname(self._dot))
        self._tell(f'what "{name}" left is kept in {where}{copy.left_out}')


class _Copy:
    """A copy of a workspace at `target`: everything but pipes, sockets, devices, and what holds a secret.

    No link is followed: what a step left is hostile.
    """

    def __init__(self, target: str, masker: Masker | None) -> None:
        self._target = target
        self._masker = masker
        self.secret = 0
        """How many files, links and directories were left out since a secret is in them, or in their names."""
        self.too_deep: list[str] = []

    def tree(self, top: int) -> None:
        longest = PATH_BYTES_MAX - len(os.fsencode(os.path.abspath(self._target)))
        for folder, descriptor, entries in walk(top, path_bytes_max=longest, too_deep=self.too_deep):
            os.mkdir(os.path.join(self._target, folder))
            for name, seen in tuple(entries.items()):
                if self._is_secret([os.fsencode(f"{folder}/{name}")]):
                    del entries[name]
                elif stat.S_ISLNK(seen.st_mode):
                    link = os.readlink(name, dir_fd=descriptor)
                    if not self._is_secret([os.fsencode(link)]):
                        os.symlink(link, os.path.join(self._target, folder, name))
                elif stat.S_ISREG(seen.st_mode):
                    self._file(name, descriptor, seen, os.path.join(self._target, folder, name))

    def large(self, job: Job) -> None:
        """What was mounted in the step's view is gone with it."""
        for item in job.staged:
            if item.source is not None:
                path = f"{self._target}/{item.path}"
                with suppress(FileNotFoundError), open(item.source, "rb") as origin:  # The step removed the directory.
                    remove(path)
                    self._content(origin, path, 0o555 if item.executable else 0o444)

    def _file(self, name: str, directory: int, seen: os.stat_result, path: str) -> None:
        if not seen.st_mode & 0o400:
            with suppress(OSError):
                os.chmod(name, 0o600, dir_fd=directory)
        try:
            source = os.open(name, _FILE, dir_fd=directory)
        except PermissionError:
            return
        with os.fdopen(source, "rb") as origin:
            self._content(origin, path, stat.S_IMODE(seen.st_mode) & 0o777 | 0o400)

    def _content(self, origin: BinaryIO, path: str, mode: int) -> None:
        if self._masker is not None:
            if self._is_secret(iter(lambda: origin.read(_CHUNK), b"")):
                return
            origin.seek(0)
        with open(path, "xb") as copy:
            shutil.copyfileobj(origin, copy)
        os.chmod(path, mode)

    def _is_secret(self, pieces: Iterable[bytes]) -> bool:
        found = self._masker is not None and self._masker.held_in_pieces(pieces) is not None
        self.secret += found
        return found

    @property
    def left_out(self) -> str:
        told = []
        if self.secret:
            told.append(f"{self.secret} of it, which {'holds' if self.secret == 1 else 'hold'} a secret")
        if self.too_deep:
            told.append(f"{len(self.too_deep)} of it, nested too deeply to be named")
        return f", without {' and '.join(told)}" if told else ""


def _script(request: Request) -> str:
    """The command as it was run, for a shell. Secrets are left out: they are for nobody to find."""
    told = [f"{name}={value}" for name, value in sorted(request.env.items()) if name not in request.secrets]
    folder = request.cwd if not request.cwd.startswith("/") else "."
    return (
        "#!/bin/sh\n# What the step ran, without its sandbox: `requiem shell` gives that too.\n"
        f'cd "$(dirname "$0")/workspace/"{shlex.quote(folder)} &&\n'
        f"exec env -i {shlex.join(told)} {shlex.join(request.command)}\n"
    )
