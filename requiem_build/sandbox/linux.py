"""Level `strict`: worker processes, walled in by the kernel, of which one runs a job at a time.

It carries what `means.py` decided to the worker and brings back what is left of the step. It knows neither digests nor
the store.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..core.errors import EnvironmentFault, SandboxUnavailable
from ..core.fields import replace
from .attendant import Attendant, fault_of
from .base import Finished, Job
from .cgroups import Cgroups, Group, grouped, limits_held
from .ending import name_ending
from .means import FRESH, LAYERED, REUSED, Terms, choose_means, plan_step, plan_worker
from .perturbation import STILL, Perturbation
from .promises import no_strict
from .seccomp import make_filter
from .trees import Trees
from .view import find_area, job_sources
from .walls import Host, read, read_host

if TYPE_CHECKING:
    from .masks import Shown

_WAY_OUT = "or run with --sandbox process, which promises less"


class StrictSandbox:
    """Workers walled in by the kernel, that run one job at a time.

    `roots` and `store` are the absolute host directories (or files) from which any job may be shown
    something. One that does not exist yet, or is replaced later, costs a new worker when a job needs it.
    `network` is `none` or `host`, for all jobs of this sandbox. What a job sees is the same by both means: a view
    of its own, or, for small inputs, one that was reset and verified (`reused.py`) unless `reuse` is False. A
    `perturbation` is for results that are thrown away: each job then has a view of its own. `before` goes before the
    worker's command, to trace it.
    """

    level = "strict"

    def __init__(
        self,
        *,
        roots: Iterable[str] = (),
        store: str | None = None,
        network: str = "none",
        reuse: bool = True,
        perturbation: Perturbation = STILL,
        clock: str = "real",
        random: str = "real",
        cgroups: Cgroups | None = None,
        before: tuple[str, ...] = (),
        shown: Shown | None = None,
    ) -> None:
        """`clock` and `random` are those of a policy: what does not stand still by itself is held (`keeper.py`).

        `shown` is a view of packages instead of all of /usr. Raises SystemNotShown where it cannot be mounted.
        """
        assert network in ("none", "host")
        wanted = [*roots, *([] if store is None else [store])]
        self._wanted = sorted({os.path.normpath(path) for path in wanted})
        assert all(path.startswith("/") for path in self._wanted)
        self._terms = Terms(network, clock, random, reuse, perturbation)
        self._cgroups = cgroups
        self._before = before
        self._host = _require_host(shown)
        if self._terms.held:
            _require_keeper(self._host.machine)
        self._fresh: Attendant | None = None
        self._trees = Trees()
        self._reused: Attendant | None = None
        self._spare: Spare | None = None
        self._areas: dict[str, tuple[int, int]] = {}
        self._closed = False
        if self._terms.may_reuse:
            self._reused = self._boot_reused()
        else:
            self._boot_fresh()

    @property
    def protection(self) -> Mapping[str, object]:
        """What is in force for every job; `view` in a job's own says by which means it was kept apart."""
        attendant = self._reused or self._fresh
        assert attendant is not None
        return self._protection(attendant)

    def _protection(self, attendant: Attendant) -> Mapping[str, object]:
        namespaces = ["cgroup", "ipc", "mount", "pid", "user", "uts"]
        facts, shown, terms = attendant.greeting[1], self._host.shown, self._terms
        return {
            "level": self.level,
            "namespaces": sorted([*namespaces, *(["network"] if terms.network == "none" else [])]),
            "landlock": self._host.landlock,
            "seccomp": True,
            "network": terms.network,
            "uid_dropped": self._host.drop_to is not None,
            "constant_pid": bool(facts.get("constant_pid")),
            "host_paths_hidden": bool(facts.get("overlay", True)) and (shown is None or shown.mechanism != "copy"),
            "view": "reused" if attendant is self._reused else "fresh",
            **({"clock": terms.clock, "random": terms.random} if terms.held else {}),
            **({"system": shown.mechanism} if shown else {}),
        }

    def run(self, job: Job) -> Finished:
        assert not self._closed, "this sandbox is closed"
        if job.network != self._terms.network:
            raise EnvironmentFault(f"a step with network {job.network!r} was given one for {self._terms.network!r}")
        with grouped(self._cgroups, job.limits) as (group, left):
            limited = job if left is job.limits else replace(job, limits=left)
            attendant, answer, workspace = self._run(limited, group)
            if group is not None and answer[0] == "ended":
                answer = ("ended", group.seen(answer[1]))
        if answer[0] == "fault":
            raise fault_of(answer)
        finished = name_ending(answer[1], job.limits, workspace)
        if finished.changed:
            staged = {item.path for item in job.staged}  # The worker also watches the directories around them.
            finished.changed = tuple(path for path in finished.changed if path in staged)
        finished.protection = {**self._protection(attendant), **limits_held(job.limits, group)}
        finished.on_close = attendant.clean
        return finished

    def _run(self, job: Job, group: Group | None) -> tuple[Attendant, tuple[Any, ...], int]:
        terms = self._terms.of(job)
        means = choose_means(job, terms, grouped=group is not None, layers_work=self._layers_work)
        return self._run_reused(job) if means == REUSED else self._run_fresh(job, terms, means, group)

    def _layers_work(self) -> bool:
        if self._fresh is None or self._fresh.ended:
            self._boot_fresh()
        assert self._fresh is not None
        return bool(self._fresh.greeting[1].get("shared_trees"))

    def _run_fresh(
        self, job: Job, terms: Terms, means: str, group: Group | None
    ) -> tuple[Attendant, tuple[Any, ...], int]:
        attendant = self._current(job)
        tree = self._trees.choose(job) if means == LAYERED else None
        message = plan_step(job, self._host, terms, means, list(self._areas), tree)
        descriptor = None if group is None else group.procs
        answer, workspace = attendant.run(message, descriptor, job.on_terminal, job.slots)
        if answer[0] == "fault" and tree is not None:
            attendant.end()  # What lies on its shelf is unknown now.
        return attendant, answer, workspace

    def _run_reused(self, job: Job) -> tuple[Attendant, tuple[Any, ...], int]:
        message = plan_step(job, self._host, self._terms, REUSED, ())
        while True:
            attendant = self._reused
            if attendant is None or attendant.ended:
                attendant = self._reused = self._spare.take() if self._spare is not None else self._boot_reused()
            answer, workspace = attendant.run(message, slots=job.slots)
            if answer[0] != "stale":
                return attendant, answer, workspace
            # Something of a step would have outlived it. Where that happened once, it happens again: the next
            # worker is made while this one's successor works.
            self._reused = None
            attendant.end()
            self._spare = self._spare or Spare(self._boot_reused)

    def cancel(self, *, kill: bool) -> None:
        for attendant in (self._fresh, self._reused):
            if attendant is not None:
                attendant.cancel(kill=kill)

    def close(self) -> None:
        self._closed = True
        for attendant in (self._fresh, self._reused):
            if attendant is not None:
                attendant.end()
        if self._spare is not None:
            self._spare.end()

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
        if self._fresh is None or self._fresh.ended or outdated:
            self._boot_fresh()
        assert self._fresh is not None
        return self._fresh

    def _boot_fresh(self) -> None:
        if self._fresh is not None:
            self._fresh.end()
        present = {path: _identity(path) for path in self._wanted}
        self._areas = {path: identity for path, identity in present.items() if identity is not None}
        self._trees = Trees()
        self._fresh = _boot(plan_worker(self._host, self._terms, FRESH, list(self._areas)), self._before)

    def _boot_reused(self) -> Attendant:
        return _boot(plan_worker(self._host, self._terms, REUSED, ()))


def _require_keeper(machine: str) -> None:
    from . import keeper

    if machine not in keeper.MACHINES:
        raise SandboxUnavailable(
            "clock and randomness cannot be held on this processor",
            facts=[("machine", machine), ("known", ", ".join(keeper.MACHINES))],
            hint='say clock = "real" and random = "real"',
        )


class Spare:
    """One worker ahead: made in the background, so that whoever takes it seldom waits."""

    def __init__(self, boot: Callable[[], Attendant]) -> None:
        self._boot = boot
        self._start()

    def _start(self) -> None:
        self._made: Attendant | BaseException | None = None
        self._thread = threading.Thread(target=self._make, name="requiem-spare", daemon=True)
        self._thread.start()

    def _make(self) -> None:
        try:
            self._made = self._boot()
        except EnvironmentFault as fault:
            self._made = fault

    def take(self) -> Attendant:
        """Raises as `boot`."""
        self._thread.join()
        taken = self._made
        self._start()
        if not isinstance(taken, Attendant):
            raise taken or EnvironmentFault("a sandbox's worker could not be started")
        return taken

    def end(self) -> None:
        self._thread.join()
        if isinstance(self._made, Attendant):
            self._made.end()


def _boot(setup: Mapping[str, Any], before: tuple[str, ...] = ()) -> Attendant:
    try:
        attendant = Attendant("worker", setup, before)
    except (EOFError, OSError) as error:
        raise _unavailable("start", getattr(error, "errno", None) or 0, "the worker ended at once") from error
    if attendant.greeting[0] != "ready":
        attendant.end()
        operation, number, why = attendant.greeting[1:]
        if operation.startswith(_SHOWING):
            raise SystemNotShown(
                "the packages' view cannot be mounted",
                facts=[("operation", operation), ("error", f"{errno.errorcode.get(number, number)}: {why}")],
            )
        raise _unavailable(operation, number, why)
    return attendant


def layers_work() -> bool:
    """Whether steps can share layers of inputs here, found out by booting a worker. True where none boots at all."""
    try:
        with StrictSandbox(reuse=False) as sandbox:
            return sandbox._layers_work()
    except SandboxUnavailable:
        return True


class SystemNotShown(SandboxUnavailable):
    """This mechanism of showing a view of packages is refused here; another may work."""


_SHOWING = ("('show_masked'", "('check_masked'")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return (seen.st_dev, seen.st_ino)


def _require_host(shown: Shown | None) -> Host:
    if sys.platform != "linux":
        raise no_strict(sys.platform)
    machine = os.uname().machine
    if make_filter(machine) is None:
        raise SandboxUnavailable(
            "strict sandboxing is not available on this processor", facts=[("machine", machine)], hint=_WAY_OUT
        )
    return read_host(shown)


def _unavailable(operation: str, number: int, why: str) -> SandboxUnavailable:
    facts = [("operation", operation), ("error", f"{errno.errorcode.get(number, number)}: {why}")]
    settings = {name: read(f"/proc/sys/{name}").strip() for name in _SETTINGS}
    contained = os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv")
    facts.append(("kernel", os.uname().release))
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
