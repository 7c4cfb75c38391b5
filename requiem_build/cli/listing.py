"""`requiem list`, and `requiem` alone: the steps of this project."""

from __future__ import annotations

import json

import click

from ..core.errors import NotBuiltYet
from ..engine import plans
from ..engine.options import Options
from ..engine.site import find_site, question_of
from .build import parse_sets
from .console import plain, write_out
from .globals import Globals


@click.command()
@click.argument("targets", nargs=-1)
@click.option("--profile", "profile", help="Use [profiles.NAME].")
@click.option("--set", "set_", multiple=True, help="Set a variable: NAME=VALUE.")
@click.option("--tag", "tag", multiple=True, help="Only steps with this tag.")
@click.option("--since", "since", hidden=True)
@click.option("--changed", "changed", multiple=True, hidden=True)
@click.pass_context
def command(
    context: click.Context,
    targets: tuple[str, ...],
    profile: str | None,
    set_: tuple[str, ...],
    tag: tuple[str, ...],
    since: str | None,
    changed: tuple[str, ...],
) -> int:
    """List the steps and their instances."""
    if since is not None or changed:
        raise NotBuiltYet("--since" if since is not None else "--changed")
    shared: Globals = context.obj
    options = Options(
        shared.start,
        shared.environment,
        manifest=shared.file,
        targets=targets,
        tags=tag,
        profile=profile,
        sets=parse_sets(set_),
    )
    site = find_site(options)
    plan = plans.obtain(site.root, question_of(site, options), site.seal, site.settings.roots).plan
    if shared.json:
        rows = [
            {
                "command": list(instance.command),
                "description": instance.description,
                "inputs": [item.path for item in instance.inputs],
                "name": name,
                "needs": list(instance.needs),
                "outputs": list(instance.outputs),
                "step": instance.step,
                "tags": list(instance.tags),
            }
            for name, instance in plan.instances.items()
        ]
        write_out(json.dumps({"schema": "requiem.list/1", "steps": rows}, indent=2, ensure_ascii=False) + "\n")
        return 0
    by_step: dict[str, list[str]] = {}
    for name, instance in plan.instances.items():
        by_step.setdefault(instance.step, []).append(name)
    width = max((len(plain(step)) for step in by_step), default=0)
    for step, names in by_step.items():
        descriptions = {plan.instances[name].description for name in names}
        described = descriptions.pop() if len(descriptions) == 1 else ""
        count = "" if names == [step] else f"{len(names)} instance{'s' if len(names) > 1 else ''}"
        about = "  ".join(text for text in (described, count) if text)
        write_out(f"{plain(step).ljust(width)}  {plain(about)}".rstrip() + "\n")
        if shared.verbose:
            for name in names:
                outputs = ", ".join(plan.instances[name].outputs)
                write_out(f"  {plain(name)}" + (f" -> {plain(outputs)}" if outputs else "") + "\n")
    return 0
