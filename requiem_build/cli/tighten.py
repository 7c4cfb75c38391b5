"""`requiem tighten STEP`: the change to the manifest that makes a step's declaration what it uses."""

from __future__ import annotations

import json
import shlex

import click

from ..core.errors import RequiemError
from .console import plain, write_bytes, write_err, write_out
from .globals import Globals
from .observe import observed_parts, observing_options

SCHEMA = "requiem.tighten/1"


class StepFailed(RequiemError):
    """What a failed step did not read says nothing."""

    exit_code = 1


@click.command()
@click.argument("step")
@click.option("--profile", "profile", help="Use [profiles.NAME].")
@click.option("--set", "set_", multiple=True, help="Set a variable: NAME=VALUE.")
@click.pass_context
def command(context: click.Context, step: str, profile: str | None, set_: tuple[str, ...]) -> int:
    """Observe a step and print the patch that declares what it uses and no more: requiem tighten STEP | patch -p1."""
    from ..engine.tightening import step_of, tighten

    shared: Globals = context.obj
    options = observing_options(shared, profile, set_)
    whole = step_of(options, step)
    scene, found = observed_parts(shared, options, whole)
    for seen, _ in found:
        if seen.failure:
            hint = f"requiem observe {shlex.quote(seen.step)} says what it touched"
            raise StepFailed(f'"{seen.step}" {seen.failure}: what it would have read is not known', hint=hint)
    parts = list(zip(scene.parts, (seen for seen, _ in found), strict=True))
    answer = tighten(scene.site, options, whole, parts)
    if shared.json:
        document = {
            "added": answer.added,
            "notes": answer.notes,
            "patch": answer.patch,
            "removed": answer.removed,
            "schema": SCHEMA,
            "step": whole,
        }
        write_out(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        return 0
    write_bytes(answer.patch.encode())
    for note in answer.notes:
        write_err(f"note: {plain(note)}\n")
    if not shared.quiet:
        change = f"{len(answer.added)} added, {len(answer.removed)} removed" if answer.patch else "nothing to change"
        write_err(f"{plain(whole)}: {change}\n")
    return 0
