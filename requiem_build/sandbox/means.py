"""By which means does a job run at level `strict`, and what is its worker told? One answer, to run and to explain it.

Pure functions of the job, the host and what holds for every job of one sandbox. How walls and views are made is for
`walls.py` and `view.py` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core.fields import dataclass, replace
from ..core.policy import HOME, WORKSPACE
from .base import Job
from .layout import plan_ceilings, plan_rlimits
from .perturbation import STILL, Perturbation, of_worker, perturbed_environment
from .seccomp import make_filter
from .trees import INPUTS_MIN, Choice, may_lie_in_tree
from .view import plan_job, plan_shelf, plan_staging
from .walls import INPUT_MTIME_NS, Host, plan_boot

REUSED = "reused"
"""A view that was reset and verified after the step before (`reused.py`)."""

FRESH = "fresh"
"""A view of its own (`fresh.py`)."""

LAYERED = "layered"
"""A view of its own above a layer of inputs that steps share (`shelf.py`)."""

SHARED_VIEW_BYTES_MAX = 16 * 1024 * 1024
"""Inputs are written, not mounted, into a view that steps share: beyond this a view of its own is quicker."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every job of one sandbox.

    `reuse`: a view may be shared with other steps. `clock` and `random` are those of a policy: what does not stand
    still by itself is held (`keeper.py`). A `perturbation` is for results that are thrown away.
    """

    network: str = "none"
    clock: str = "real"
    random: str = "real"
    reuse: bool = True
    perturbation: Perturbation = STILL

    @property
    def held(self) -> bool:
        return (self.clock, self.random) != ("real", "real")

    @property
    def here(self) -> Perturbation:
        """The surroundings of each step."""
        return self.perturbation if self.random == "real" else replace(self.perturbation, held_random=True)

    def of(self, job: Job) -> Terms:
        """What holds for this job."""
        if job.here is None:
            return self
        assert of_worker(job.here) == of_worker(self.perturbation)
        return replace(self, perturbation=job.here)

    @property
    def may_reuse(self) -> bool:
        return self.reuse and self.perturbation == STILL and not self.held


def choose_means(job: Job, terms: Terms, *, grouped: bool, layers_work: Callable[[], bool]) -> str:
    """REUSED, FRESH or LAYERED. `grouped`: the step has a cgroup. `layers_work` is asked only if it counts."""
    if not terms.may_reuse:
        return FRESH
    if _wants_layer(job) and layers_work():
        return LAYERED
    return REUSED if not grouped and _fits_one_view(job) else FRESH


def _wants_layer(job: Job) -> bool:
    """Whether a job has so many inputs that a layer is quicker than any other means."""
    if job.fresh or job.backdrop is not None or len(job.staged) < INPUTS_MIN:
        return False
    return sum(map(may_lie_in_tree, job.staged)) >= INPUTS_MIN


def _fits_one_view(job: Job) -> bool:
    """Whether a job can run in a view that it shares with others: all that it is shown is small and in memory."""
    if (
        job.fresh
        or job.backdrop is not None
        or job.mounts
        or isinstance(job.stdin, str)
        or job.limits.tmp_bytes is not None
        or job.on_terminal is not None  # A worker that gave up its rights opens none.
    ):
        return False
    if plan_ceilings(job.limits):  # Nor does it see what a step hides in /proc.
        return False
    if any(item.source is not None for item in job.staged):
        return False
    return sum(len(item.data) for item in job.staged if item.data is not None) <= SHARED_VIEW_BYTES_MAX


def plan_worker(host: Host, terms: Terms, means: str, areas: Sequence[str]) -> dict[str, Any]:
    """What a worker for such jobs is told when it starts. `areas` are the host directories that jobs may be shown."""
    filter_ = make_filter(
        host.machine,
        held_random=terms.perturbation.held_random and terms.random != "seeded",
        held_clock=terms.clock == "frozen",
        seeded=terms.random == "seeded",
    )
    if means == REUSED:
        plan = plan_boot(host, [], terms.network, filter_)
        return {"operations": plan, "reused": (WORKSPACE, "/tmp", HOME, INPUT_MTIME_NS), "held": False}
    plan = plan_boot(host, areas, terms.network, here=terms.here, frozen=terms.clock == "frozen")
    return {"operations": plan, "filter": filter_, "reused": None, "held": terms.held}


def plan_step(
    job: Job, host: Host, terms: Terms, means: str, areas: Sequence[str], tree: Choice | None = None
) -> dict[str, Any]:
    """What the worker is told of one job, whose limits are those that no cgroup holds."""
    here = terms.here
    told = {
        "operations": plan_staging(job) if means == REUSED else plan_job(job, areas, host.landlock, here, tree),
        "command": list(job.command),
        "env": dict(job.env) if here is STILL else perturbed_environment(job.env, here),
        "cwd": here.workspace if job.cwd == "." else f"{here.workspace}/{job.cwd}",
        "rlimits": plan_rlimits(job.limits, held=terms.held),
        "ceilings": plan_ceilings(job.limits),
        "timeout_ms": job.limits.timeout_ms,
        "max_output_bytes": job.max_output_bytes,
        "terminal": None if job.on_terminal is None else "",
    }
    if means == REUSED:
        return told
    dropped = [] if tree is None else list(tree.dropped)
    return {**told, "shelf": plan_shelf(tree), "dropped": dropped, "hold": _hold(job, terms)}


def _hold(job: Job, terms: Terms) -> tuple[int | None, bool] | None:
    """(the moment that is always now, whether nothing is random)."""
    if not terms.held:
        return None
    return frozen_moment(job.env) if terms.clock == "frozen" else None, terms.random == "seeded"


def frozen_moment(env: Mapping[str, str]) -> int:
    """The date at which a step's clock stands: its SOURCE_DATE_EPOCH, or that of every input."""
    said = env.get("SOURCE_DATE_EPOCH", "")
    return int(said) if said.isascii() and said.isdigit() and len(said) < 12 else INPUT_MTIME_NS // 1_000_000_000
