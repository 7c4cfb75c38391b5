"""Level `strict`: one worker process, walled in by the kernel, that runs one job at a time.

It carries what `view.py` decided to the worker and brings back what is left of the step. It knows neither
digests nor the store.
"""

from __future__ import annotations

import errno
import os
import platform
import sys
from collections.abc import Iterable, Mapping

from ..core.errors import EnvironmentFault, SandboxUnavailable
from ..core.policy import WORKSPACE
from .attendant import Attendant
from .base import Finished, Job
from .ending import name_ending
from .layout import plan_rlimits
from .seccomp import make_filter
from .view import Host, find_area, job_sources, plan_boot, plan_job, read, read_host

_WAY_OUT = "or run with --sandbox process, which promises less"


class StrictSandbox:
    """One worker process, walled in by the kernel, that runs one job at a time.

    `roots` and `store` are the absolute host directories (or files) from which any job may be shown
    something. One that does not exist yet, or is replaced later, costs a new worker when a job needs it.
    `network` is `none` or `host`, for all jobs of this sandbox.
    """

    level = "strict"

    def __init__(self, *, roots: Iterable[str] = (), store: str | None = None, network: str = "none") -> None:
        assert network in ("none", "host")
        wanted = [*roots, *([] if store is None else [store])]
        self._wanted = sorted({os.path.normpath(path) for path in wanted})
        assert all(path.startswith("/") for path in self._wanted)
        self._network = network
        self._host = _require_host()
        self._attendant: Attendant | None = None
        self._areas: dict[str, tuple[int, int]] = {}
        self._facts: dict[str, object] = {}
        self._closed = False
        self._boot()

    @property
    def protection(self) -> Mapping[str, object]:
        namespaces = ["cgroup", "ipc", "mount", "pid", "user", "uts"]
        return {
            "level": self.level,
            "namespaces": sorted([*namespaces, *(["network"] if self._network == "none" else [])]),
            "landlock": self._host.landlock,
            "seccomp": True,
            "network": self._network,
            "uid_dropped": self._host.drop_to is not None,
            "constant_pid": bool(self._facts.get("constant_pid")),
            "host_paths_hidden": bool(self._facts.get("overlay")),
        }

    def run(self, job: Job) -> Finished:
        assert not self._closed, "this sandbox is closed"
        if job.network != self._network:
            raise EnvironmentFault(f"a step with network {job.network!r} was given a sandbox for {self._network!r}")
        attendant = self._current(job)
        answer, workspace = attendant.run(
            {
                "operations": plan_job(job, list(self._areas), self._host.landlock),
                "command": list(job.command),
                "env": dict(job.env),
                "cwd": WORKSPACE if job.cwd == "." else f"{WORKSPACE}/{job.cwd}",
                "rlimits": plan_rlimits(job.limits),
                "timeout_ms": job.limits.timeout_ms,
                "max_output_bytes": job.max_output_bytes,
            }
        )
        if answer[0] == "fault":
            _, operation, number, why = answer
            raise EnvironmentFault(
                "the sandbox could not be made ready for a step",
                facts=[("operation", operation), ("error", f"{errno.errorcode.get(number, number)}: {why}")],
            )
        finished = name_ending(answer[1], job.limits, workspace)
        staged = {item.path for item in job.staged}  # The worker also watches the directories around them.
        finished.changed = tuple(path for path in finished.changed if path in staged)
        return finished

    def cancel(self, *, kill: bool) -> None:
        attendant = self._attendant
        if attendant is not None:
            attendant.cancel(kill=kill)

    def close(self) -> None:
        self._closed = True
        if self._attendant is not None:
            self._attendant.end()

    def __enter__(self) -> StrictSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _current(self, job: Job) -> Attendant:
        """A worker that lives and holds the very directories that this job is shown."""
        needed = {self._wanted[find_area(source, self._wanted)] for source in job_sources(job)}
        for path in sorted(needed):
            if _identity(path) is None:
                raise EnvironmentFault("a directory that a step needs does not exist", facts=[("path", path)])
        outdated = any(_identity(path) != self._areas.get(path) for path in needed)
        if self._attendant is None or self._attendant.ended or outdated:
            self._boot()
        assert self._attendant is not None
        return self._attendant

    def _boot(self) -> None:
        if self._attendant is not None:
            self._attendant.end()
        present = {path: _identity(path) for path in self._wanted}
        self._areas = {path: identity for path, identity in present.items() if identity is not None}
        plan = plan_boot(self._host, list(self._areas), self._network)
        try:
            attendant = Attendant("worker", {"operations": plan, "filter": make_filter(self._host.machine)})
        except (EOFError, OSError) as error:
            raise _unavailable("start", getattr(error, "errno", None) or 0, "the worker ended at once") from error
        self._attendant = attendant
        if attendant.greeting[0] != "ready":
            attendant.end()
            raise _unavailable(*attendant.greeting[1:])
        self._facts = attendant.greeting[1]


def _identity(path: str) -> tuple[int, int] | None:
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return (seen.st_dev, seen.st_ino)


def _require_host() -> Host:
    if sys.platform != "linux":
        raise SandboxUnavailable("strict sandboxing needs Linux", hint="run with --sandbox process")
    machine = platform.machine()
    if make_filter(machine) is None:
        raise SandboxUnavailable(
            "strict sandboxing is not available on this processor", facts=[("machine", machine)], hint=_WAY_OUT
        )
    return read_host()


def _unavailable(operation: str, number: int, why: str) -> SandboxUnavailable:
    facts = [("operation", operation), ("error", f"{errno.errorcode.get(number, number)}: {why}")]
    settings = {name: read(f"/proc/sys/{name}").strip() for name in _SETTINGS}
    contained = os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv")
    facts.append(("kernel", platform.release()))
    hint = how_to_get(number, settings, contained)
    return SandboxUnavailable("strict sandboxing is not available here", facts=facts, hint=f"{hint}; {_WAY_OUT}")


_SETTINGS = (
    "user/max_user_namespaces",
    "kernel/unprivileged_userns_clone",
    "kernel/apparmor_restrict_unprivileged_userns",
)


def how_to_get(number: int, settings: Mapping[str, bytes], contained: bool) -> str:
    """What the person at this host can do, from the error number and the host's settings."""
    if settings.get("user/max_user_namespaces") == b"0" or number == errno.ENOSPC:
        return "allow user namespaces: sysctl -w user.max_user_namespaces=10000"
    if settings.get("kernel/unprivileged_userns_clone") == b"0":
        return "allow user namespaces: sysctl -w kernel.unprivileged_userns_clone=1"
    if contained and number in (errno.EPERM, errno.EACCES):
        return (
            "start the container with --security-opt seccomp=unconfined --security-opt systempaths=unconfined "
            "(or a profile that allows unshare and mount)"
        )
    if settings.get("kernel/apparmor_restrict_unprivileged_userns") == b"1":
        return "allow user namespaces: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile"
    if number in (errno.ENOSYS, errno.EINVAL):
        return "use a kernel from 5.12 on with user, pid, network and mount namespaces"
    return "this user may not make user and mount namespaces here"
