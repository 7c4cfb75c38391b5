"""A cgroup v2 directory that is ours: there the kernel limits memory and processes of all of a step together.

It is used only where the user's own configuration names it (docs/decisions/0039-limits.md), and only for steps
with such a limit. It knows directories and their files, not what a step is.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ..core.errors import EnvironmentFault
from ..core.fields import replace
from ..core.policy import Limits

CONTROLLERS = ("memory", "pids")
_PATIENCE_S = 5.0
_numbers = itertools.count(1)


class Group:
    """The cgroup of one step while it runs; `procs` is its open `cgroup.procs`, by which the step joins it."""

    def __init__(self, path: str, limits: Limits) -> None:
        self.path = path
        os.mkdir(path, 0o755)
        try:
            if limits.memory_bytes is not None:
                _write(f"{path}/memory.max", str(limits.memory_bytes))
                with contextlib.suppress(OSError):  # A kernel without swap has no such file.
                    _write(f"{path}/memory.swap.max", "0")
                _write(f"{path}/memory.oom.group", "1")  # The step ends as a whole, not by one process.
            if limits.processes is not None:
                _write(f"{path}/pids.max", str(limits.processes))
            self.procs = os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            self._remove()
            raise

    def seen(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        """What a worker saw of a step, and what the kernel counted.

        `hit`: a limit, as results name it, that ended the step. `reached`: one that made a call fail, which a step may
        well bear.
        """
        hit = "memory" if _count(f"{self.path}/memory.events", b"oom_kill") else ""
        reached = "processes" if _count(f"{self.path}/pids.events", b"max") else ""
        return {**reply, "hit": hit or reply.get("hit", ""), "reached": reached or reply.get("reached", "")}

    def close(self) -> None:
        os.close(self.procs)
        with contextlib.suppress(OSError):
            _write(f"{self.path}/cgroup.kill", "1")
        self._remove()

    def _remove(self) -> None:
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            try:
                os.rmdir(self.path)
                return
            except OSError as error:
                if error.errno != errno.EBUSY:  # A process that was killed is still on its way out.
                    return
            time.sleep(0.01)


class Cgroups:
    """Raises EnvironmentFault for a directory in which such limits cannot be set: never silently without them."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        with _explained(directory):
            if not os.path.isdir(directory):
                os.mkdir(directory, 0o755)
            with open(f"{directory}/cgroup.controllers", encoding="ascii") as file:
                there = file.read().split()
        missing = [name for name in CONTROLLERS if name not in there]
        if missing:
            raise _unusable(directory, f"no controller for {' and '.join(missing)} is given to it")
        with _explained(directory):
            _write(f"{directory}/cgroup.subtree_control", " ".join(f"+{name}" for name in CONTROLLERS))

    def make(self, limits: Limits) -> Group | None:
        """The cgroup of one step; None for a step without such a limit."""
        if not wants_group(limits):
            return None
        with _explained(self.directory):
            return Group(f"{self.directory}/requiem-{os.getpid()}-{next(_numbers)}", limits)


def wants_group(limits: Limits) -> bool:
    return limits.memory_bytes is not None or limits.processes is not None


def limits_left(limits: Limits) -> Limits:
    """Those of a step with a cgroup that are to be held otherwise."""
    return replace(limits, memory_bytes=None, processes=None)


@contextlib.contextmanager
def grouped(cgroups: Cgroups | None, limits: Limits) -> Iterator[tuple[Group | None, Limits]]:
    """The step's cgroup, and the limits that are left to be held otherwise."""
    group = None if cgroups is None else cgroups.make(limits)
    if group is None:
        yield None, limits
        return
    try:
        yield group, limits_left(limits)
    finally:
        group.close()


@contextlib.contextmanager
def _explained(directory: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unusable(directory, f"{error.strerror}: {error.filename}") from error


def _unusable(directory: str, why: str) -> EnvironmentFault:
    return EnvironmentFault(
        "the cgroup of the user's configuration cannot hold limits",
        facts=[("limits.cgroup", directory), ("cause", why)],
        hint="name a cgroup v2 directory that is delegated to you, and run: systemd-run --user --scope requiem ...",
    )


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _count(path: str, word: bytes) -> int:
    try:
        with open(path, "rb") as file:
            return sum(int(line.split()[1]) for line in file if line.split()[:1] == [word])
    except (OSError, ValueError, IndexError):
        return 0


def limits_held(limits: Limits, group: Group | None) -> dict[str, object]:
    """By what a step's memory is limited, as the record says it; nothing for a step without that limit."""
    if limits.memory_bytes is None:
        return {}
    return {"memory_limit": "rlimit" if group is None else "cgroup2"}
