"""What may a step see? A job becomes a list of operations, in pure functions. It applies nothing.

An operation is a tuple: the name of a method of `staging.Staging` (`plan_staging`) or of `staging.Preparation`
(`plan_job`, in a view of its own), then its arguments. The walls around it are those of `walls.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from ..core.errors import EnvironmentFault
from ..core.fields import dataclass, field, replace
from ..core.policy import WORKSPACE
from . import syscalls
from .base import Job, Mount, Staged
from .layout import plan_directories, tmp_names_max
from .perturbation import STILL, Perturbation, placed
from .trees import Choice
from .walls import INPUT_MTIME_NS, Operation, landlock_rules

_STAGING = "/dev/shm"
"""Where a job's stores lie while it is prepared; the step's own /dev/shm is put there afterwards."""


@dataclass(slots=True)
class _Shown:
    """What of one area a job shows: whole, as a root; or parts of it."""

    whole: list[Mount] = field(default_factory=list)
    parts: list[tuple[str, Mount]] = field(default_factory=list)
    files: list[tuple[str, Staged]] = field(default_factory=list)
    stdin: str | None = None


def plan_job(
    job: Job, areas: Sequence[str], landlock: int, here: Perturbation = STILL, tree: Choice | None = None
) -> list[Operation]:
    """How the view of one step is made. Raises EnvironmentFault for a source outside of all areas."""
    shown = _sort_by_area(job, areas)
    if here.newest_last:
        for what in shown.values():
            what.files.reverse()
    borrowed, attached = _plan_areas(shown, here)
    room = ",size=3g,nr_inodes=300k" if here.other_host else ""
    tmp = _tmp_options(job.limits.tmp_bytes) + (room if job.limits.tmp_bytes is None else "")
    if job.backdrop is not None:
        borrowed.append((len(borrowed), find_area(job.backdrop, areas), False))
    plan: list[Operation] = [("borrow", borrowed)] if borrowed else []
    plan += [
        ("new_namespaces", syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC),
        *(
            [("hide_trees",), ("tmpfs", here.workspace, f"mode=0755{room}")]
            if tree is None
            else [("lay_tree", tree.number, here.workspace, f"mode=0755{room}")]
        ),
        ("enter_workspace" if job.backdrop is None else "enter_upper", here.workspace),
        ("tmpfs", "/tmp", tmp),
        ("watch_tmp", "/tmp"),
        ("scratch", here.home, 0o755),
    ]
    shared = [("tmpfs", "/dev/shm", tmp), ("watch_shared", "/dev/shm")]
    made = (here.home, "/tmp", "/dev/shm")
    if job.backdrop is None:
        plan += plan_staging(job, (*attached, *shared), made, here, tree)
    else:
        plan += plan_staging(job, (), made[:2], here)
        plan += [("hide", path) for path in job.hidden]
        plan += [
            ("attach", len(borrowed) - 1, _STAGING),
            ("show_backdrop", _STAGING, here.workspace),
            ("detach", _STAGING),
            *attached,
            *shared,
        ]
    if landlock:
        plan.append(("landlock", landlock, landlock_rules(landlock, here.workspace)))
    return plan + _plan_perturbation(here)


def _tmp_options(size: int | None) -> str:
    """Of /tmp and of /dev/shm."""
    return "mode=1777" if size is None else f"mode=1777,size={size},nr_inodes={tmp_names_max(size)}"


def plan_staging(
    job: Job,
    shown: Sequence[Operation] = (),
    made: Sequence[str] = (),
    here: Perturbation = STILL,
    tree: Choice | None = None,
) -> list[Operation]:
    """How the inputs of one step come into its workspace.

    `shown` is done when the directories are there; `made` are directories that it then dates too. What lies in a
    `tree` is there already.
    """
    if tree is not None:
        job = replace(job, staged=tree.rest)
    directories = plan_directories(job)
    if tree is not None:
        directories = [path for path in directories if path not in tree.directories]
        made = [*made, *_touched(job, directories, tree.directories)]
    if here.newest_last:
        directories = sorted(sorted(directories, reverse=True), key=lambda path: path.count("/"))
    plan: list[Operation] = [("make_directory", path, 0o755) for path in directories]
    plan += shown
    links = []
    for item in sorted(job.staged, key=_by_path, reverse=here.newest_last):
        if item.data is not None:
            plan.append(("write", item.path, item.data, 0o555 if item.executable else 0o444, INPUT_MTIME_NS))
        elif item.symlink is not None:
            links.append(("link", item.path, item.symlink, INPUT_MTIME_NS))
    # Links come last, so that nothing is ever staged through one.
    plan += links
    plan.append(("date", [*directories, ".", *made], INPUT_MTIME_NS))
    if isinstance(job.stdin, bytes):
        plan.append(("stdin_bytes", job.stdin))
    return plan


def _touched(job: Job, directories: Sequence[str], known: frozenset[str]) -> list[str]:
    """Directories of a tree in which something is made for this step alone, and which look changed by that."""
    places = [*directories, *(item.path for item in job.staged)]
    places += [mount.target[len(WORKSPACE) + 1 :] for mount in job.mounts if mount.target.startswith(WORKSPACE + "/")]
    return sorted({os.path.dirname(path) for path in places} & known)


def plan_shelf(tree: Choice | None) -> list[Operation]:
    """What a worker does with its shelf before a job: methods of `shelf.Shelf`."""
    if tree is None or tree.made_of is None:
        return []
    files = [(i.path, i.data, 0o555 if i.executable else 0o444) for i in tree.made_of if i.data is not None]
    return [("put", tree.number, sorted(tree.directories), files, INPUT_MTIME_NS)]


def _plan_perturbation(here: Perturbation) -> list[Operation]:
    """The last things before the command starts, so that they change nothing of how its view is made."""
    plan: list[Operation] = []
    if here.addresses_vary:
        plan.append(("vary_addresses",))
    if here.other_host:
        plan.append(("other_kernel",))
    if here.first_pid is not None:
        plan.append(("number_processes", here.first_pid))
    if here.cpus is not None:
        plan.append(("use_processors", here.cpus))
    if here.umask != STILL.umask:
        plan.append(("set_umask", here.umask))
    return plan


def _by_path(item: Staged) -> str:
    return item.path


def job_sources(job: Job) -> list[str]:
    """Every host path of which the job is shown something."""
    sources = [os.path.normpath(mount.source) for mount in job.mounts]
    sources += [item.source for item in job.staged if item.source is not None]
    sources += [job.backdrop] if job.backdrop is not None else []
    return [*sources, job.stdin] if isinstance(job.stdin, str) else sources


def find_area(source: str, areas: Sequence[str]) -> int:
    """The area in which a host path lies, the innermost if several."""
    best = -1
    for number, area in enumerate(areas):
        inside = source == area or source.startswith(area.rstrip("/") + "/")
        if inside and (best < 0 or len(area) > len(areas[best])):
            best = number
    if best < 0:
        raise EnvironmentFault(
            "the sandbox was not told of a directory that a step needs",
            facts=[("path", source), ("known", ", ".join(areas) or "none")],
        )
    return best


def _sort_by_area(job: Job, areas: Sequence[str]) -> dict[int, _Shown]:
    shown: dict[int, _Shown] = {}

    def locate(source: str) -> tuple[_Shown, str]:
        number = find_area(source, areas)
        return shown.setdefault(number, _Shown()), os.path.relpath(source, areas[number])

    for mount in sorted(job.mounts, key=lambda mount: mount.target):
        _check_target(mount.target)
        found, inside = locate(os.path.normpath(mount.source))
        if inside == ".":
            found.whole.append(mount)
        else:
            found.parts.append((inside, mount))
    for item in sorted(job.staged, key=_by_path):
        if item.source is not None:
            found, inside = locate(item.source)
            found.files.append((inside, item))
    if isinstance(job.stdin, str):
        found, found.stdin = locate(job.stdin)
    return dict(sorted(shown.items()))


def _check_target(target: str) -> None:
    first = target.split("/")[1] if target.startswith("/") else ""
    if not first or first in ("proc", "dev", "sys") or os.path.normpath(target) != target or target == WORKSPACE:
        raise EnvironmentFault("a root cannot be shown there", facts=[("path", target)])


def _plan_areas(shown: Mapping[int, _Shown], here: Perturbation) -> tuple[list[tuple[int, int, bool]], list[Operation]]:
    """(slot, area, hidden) for each copy of an area's mount that is needed, and what is done with them."""
    borrowed: list[tuple[int, int, bool]] = []
    plan: list[Operation] = []
    for area, what in shown.items():
        for mount in what.whole:
            borrowed.append((len(borrowed), area, mount.source != mount.target))
            plan.append(("attach", len(borrowed) - 1, placed(mount.target, here.workspace)))
        if not (what.parts or what.files or what.stdin):
            continue
        borrowed.append((len(borrowed), area, True))
        plan.append(("attach", len(borrowed) - 1, _STAGING))
        for inside, mount in what.parts:
            plan.append(("show_tree", f"{_STAGING}/{inside}", placed(mount.target, here.workspace)))
        for inside, item in what.files:
            mode = 0o555 if item.executable else 0o444
            plan.append(("show_file", f"{_STAGING}/{inside}", item.path, mode, INPUT_MTIME_NS))
        if what.stdin is not None:
            plan.append(("stdin_file", f"{_STAGING}/{what.stdin}"))
        plan.append(("detach", _STAGING))
    return borrowed, plan
