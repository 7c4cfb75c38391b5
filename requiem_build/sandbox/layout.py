"""What every level makes of a job before it starts: its directories, its resource limits. Pure functions."""

from __future__ import annotations

import math
import os
import resource

from ..core.policy import WORKSPACE, Limits
from .base import Job, Staged

_PROCESSES_OF_ITS_OWN = 2
"""The worker and its guard count against RLIMIT_NPROC of their user namespace."""


def plan_directories(job: Job) -> list[str]:
    """Every directory of the workspace that must exist before the step starts, parents first."""
    wanted = {_checked(path) for path in job.directories}
    staged = [_checked(item.path) for item in job.staged]
    wanted.update(path for path, item in zip(staged, job.staged, strict=True) if _is_directory(item))
    inside = [mount.target[len(WORKSPACE) + 1 :] for mount in job.mounts if mount.target.startswith(WORKSPACE + "/")]
    parents = [os.path.dirname(path) for path in (*inside, *staged)]
    wanted.update(_checked(path) for path in (*parents, job.cwd) if path)
    for path in list(wanted):
        while path := os.path.dirname(path):
            wanted.add(path)
    wanted.discard(".")
    return sorted(wanted)


def _is_directory(item: Staged) -> bool:
    return item.data is None and item.source is None and item.symlink is None


def _checked(path: str) -> str:
    """A path that stays in the workspace; manifests have been checked, so anything else is a bug."""
    assert path and not path.startswith("/") and ".." not in path.split("/"), f"not a workspace path: {path!r}"
    return path.rstrip("/")


def plan_rlimits(limits: Limits) -> list[tuple[int, int, int]]:
    """(resource, soft, hard). The hard limit of CPU time is what ends a step that ignores SIGXCPU."""
    wanted: list[tuple[int, int, int]] = []
    if limits.cpu_time_ms is not None:
        seconds = max(1, math.ceil(limits.cpu_time_ms / 1000))
        wanted.append((resource.RLIMIT_CPU, seconds, seconds + 1))
    processes = None if limits.processes is None else limits.processes + _PROCESSES_OF_ITS_OWN
    for which, value in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, limits.file_size_bytes),
    ):
        if value is not None:
            wanted.append((which, value, value))
    return wanted
