"""What in the workspace is whose: nothing that git tracks is replaced, and what no step makes any more is removed."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Mapping

from ..core.errors import UsageError
from ..core.instance import Instance, Plan
from ..core.patterns import by_bytes, compile_pattern, is_pattern, unescape
from .evidence import Outputs
from .layout import Layout, tracked_by_git
from .memory import Memory
from .options import Options
from .undeclared import covered
from .workspace import WorkspaceListing


def foreign_owner(paths: Iterable[str], uid: int, environment: Mapping[str, str]) -> str:
    """Who else decides what root builds here, in words; empty for everyone but root, and where it is only root.

    Whoever called sudo is no stranger (docs/decisions/0009-manifests-of-others.md).
    """
    if uid != 0:
        return ""
    known = {0, int(environment.get("SUDO_UID", "0") or 0)} if environment.get("SUDO_UID", "0").isdigit() else {0}
    for path in paths:
        try:
            seen = os.stat(path)
        except OSError:
            continue
        if seen.st_uid not in known:
            return f'"{path}" belongs to user {seen.st_uid}, and you are root'
        if seen.st_mode & stat.S_IWOTH and not seen.st_mode & stat.S_ISVTX:
            return f'"{path}" can be written by everyone, and you are root'
    return ""


def beware_of_others(root: str, manifest: Iterable[str], plan: Plan, options: Options, level: str | None) -> str:
    """A warning for root where somebody else decides what is built; empty where nobody does.

    `level` is the user's own setting. Raises UsageError where commands of others would run with root's rights.
    """
    paths = [os.path.join(root, name) for name in (".", *manifest)]
    who = foreign_owner(paths, os.geteuid(), options.environment)
    if who and not options.dry_run:
        wanted = options.sandbox or level
        levels = {wanted or i.policy.sandbox for i in plan.instances.values() if not i.is_group}
        if levels - {"strict"}:
            raise UsageError(
                f"{who}: below the level strict its commands would run with your rights",
                hint="run it as that user, or chown the workspace",
            )
    return who


def refuse_tracked(root: str, plan: Plan, made: Collection[str], layout: Layout, level: str | None) -> None:
    """Raises UsageError, before anything changes, for an output that git tracks: it is somebody's.

    `level` is the user's own setting. What is not laid out replaces nothing, but where the step runs right here.
    """
    strange: dict[str, str] = {}
    for name, instance in plan.instances.items():
        replaces = instance.lay_out or (level or instance.policy.sandbox) == "none"
        for declared in instance.outputs if replaces else ():
            path = compile_pattern(declared).prefix if is_pattern(declared) else unescape(declared)
            if path not in made and os.path.lexists(os.path.join(root, path.rstrip("/"))):
                strange[path.rstrip("/")] = name
    if not strange:
        return
    outputs = Outputs(plan.declared)
    for path in tracked_by_git(root, list(strange)):
        if outputs.covers(path) and path not in made and not layout.knows(path):
            owner = next(top for top in strange if top in (path, ".") or path.startswith(top + "/"))
            raise UsageError(
                f'"{path}" is tracked by git, and a step would replace it',
                facts=[("step", strange[owner])],
                hint="git rm --cached it if it is generated, or give the output another path",
            )


class _Standing(WorkspaceListing):
    """What stands in the workspace, as a tree to walk."""

    def has_source(self, directory: str) -> bool:
        return False


def make_room(root: str, instance: Instance, keep: Collection[str], layout: Layout) -> None:
    """For a step that runs in the workspace itself: afterwards nothing stands where its outputs do, but what it made.

    What a pattern means is dealt with like what stands at a plain output's path, so that nobody's file is taken for
    one of the step's. `keep` are its inputs.
    """
    layout.make_room(unescape(path) for path in instance.outputs if not is_pattern(path))
    standing = _Standing(root)
    for declared in instance.outputs:
        if is_pattern(declared):
            for path in by_bytes(compile_pattern(declared).walk(standing)):
                if path not in keep and not covered(path, keep):
                    layout.vacate(instance.name, path)


def refuse_behind_links(root: str, plan: Plan) -> None:
    """Raises UsageError, before anything runs, for an output that would be laid out through a symlinked directory."""
    real: set[str] = {""}
    for name, instance in plan.instances.items():
        for declared in instance.outputs if instance.lay_out else ():
            path = compile_pattern(declared).prefix + "/x" if is_pattern(declared) else unescape(declared).rstrip("/")
            folder = os.path.dirname(path)
            while folder not in real:
                if os.path.islink(f"{root}/{folder}"):
                    raise UsageError(
                        f'output "{declared}" of "{name}" lies behind a symlink, "{folder}"',
                        facts=[("leads to", os.readlink(f"{root}/{folder}"))],
                        hint="name the directory that it leads to, or remove it",
                    )
                real.add(folder)
                folder = os.path.dirname(folder)


def remove_vanished(root: str, plan: Plan, memory: Memory, variant: str, layout: Layout) -> None:
    """Takes away, if they are as we made them, the outputs of steps that the manifest no longer has."""
    alive = set(plan.declared.values())
    outputs = Outputs(plan.declared)
    kept = {item.path for instance in plan.instances.values() for item in instance.inputs if item.producer is None}
    vanished: list[str] = []
    for name, step in list(memory.steps.items()):
        if name in alive or name in plan.instances or step.variant != variant:
            continue
        vanished += [path for path in step.outputs if not outputs.has(path.rstrip("/")) and path not in kept]
        del memory.steps[name]
    tracked = set(tracked_by_git(root, [path.rstrip("/") for path in vanished])) if vanished else set()
    for path in vanished:
        if not any(each == path.rstrip("/") or each.startswith(path) for each in tracked):
            layout.remove(path)
