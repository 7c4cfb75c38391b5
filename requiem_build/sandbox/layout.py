"""What every level makes of a job before it starts: its directories, its resource limits. Pure functions."""

from __future__ import annotations

import math
from functools import lru_cache

from ..core.fields import replace
from ..core.policy import WORKSPACE, Limits
from .base import Job, Staged

_PROCESSES_OF_ITS_OWN = 2
"""The worker and its guard count against RLIMIT_NPROC of their user namespace."""


def plan_directories(job: Job) -> list[str]:
    """Every directory of the workspace that must exist before the step starts, parents first."""
    named = {path.rstrip("/") for path in (job.cwd, *job.directories)}
    named.update(item.path.rstrip("/") if _is_directory(item) else _parent_of(item.path) for item in job.staged)
    named.update(
        _parent_of(mount.target[len(WORKSPACE) + 1 :])
        for mount in job.mounts
        if mount.target.startswith(WORKSPACE + "/")
    )
    wanted: set[str] = set()
    for path in named - {"."}:
        wanted.update(_itself_and_above(path))
    return sorted(wanted)


def _is_directory(item: Staged) -> bool:
    return item.data is None and item.source is None and item.symlink is None


def _parent_of(path: str) -> str:
    """The directory of a path, `.` for one at the top. Directories are checked as such; here it is the name's turn."""
    parent, slash, name = path.rpartition("/")
    assert name not in ("", ".."), f"not a workspace path: {path!r}"
    assert parent or not slash, f"not a workspace path: {path!r}"
    return parent or "."


@lru_cache(maxsize=4096)
def _itself_and_above(path: str) -> tuple[str, ...]:
    """A directory of the workspace and all that must exist before it. Many steps of a build share them."""
    _check(path)
    parts = path.split("/")
    return tuple("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))


def _check(path: str) -> None:
    """A path that stays in the workspace; manifests have been checked, so anything else is a bug."""
    assert path and path[0] != "/" and ".." not in path.split("/"), f"not a workspace path: {path!r}"


def plan_rlimits(limits: Limits, *, held: bool = False) -> list[tuple[int, int, int]]:
    """(resource, soft, hard). The hard limit of CPU time is what ends a step that ignores SIGXCPU.

    `held`: a keeper stands between the worker and the step, and counts as the worker does.
    """
    import resource  # Windows has none, and no such limits.

    wanted: list[tuple[int, int, int]] = []
    if limits.cpu_time_ms is not None:
        seconds = max(1, math.ceil(limits.cpu_time_ms / 1000))
        wanted.append((resource.RLIMIT_CPU, seconds, seconds + 1))
    processes = None if limits.processes is None else limits.processes + _PROCESSES_OF_ITS_OWN + held
    for which, value in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, limits.file_size_bytes),
    ):
        if value is not None:
            wanted.append((which, value, value))
    return wanted


def plan_rlimits_without_namespaces(limits: Limits) -> list[tuple[int, int, int]]:
    """As `plan_rlimits`, where the kernel's limit of processes would count every process of this user."""
    return plan_rlimits(replace(limits, processes=None))


def plan_ceilings(limits: Limits) -> dict[str, int]:
    """What all processes of the step together may use: looked at while they run (`gauge.py`)."""
    wanted = {"cpu_ms": limits.cpu_time_ms, "memory": limits.memory_bytes, "processes": limits.processes}
    return {name: value for name, value in wanted.items() if value is not None}


def plan_ceilings_without_mounts(limits: Limits) -> dict[str, int]:
    """As `plan_ceilings`, where no file system of its own holds what the step writes for a while."""
    tmp = {} if limits.tmp_bytes is None else {"tmp": limits.tmp_bytes, "tmp_names": tmp_names_max(limits.tmp_bytes)}
    return plan_ceilings(limits) | tmp


def tmp_names_max(size: int) -> int:
    """Names take room too: as many as there would be of files of 1 KiB."""
    return max(1024, size // 1024)
