"""`requiem clean`: takes away exactly what Requiem made."""

from __future__ import annotations

import json

import click

from ..engine.clean import clean
from ..engine.options import Options
from .console import Console, plain, write_err, write_out
from .globals import Globals


@click.command()
@click.argument("targets", nargs=-1)
@click.option("-n", "--dry-run", "dry_run", is_flag=True, help="Only say what would go.")
@click.option("--no-wait", "no_wait", is_flag=True, help="Exit with 5 if a build holds the workspace.")
@click.pass_context
def command(context: click.Context, targets: tuple[str, ...], dry_run: bool, no_wait: bool) -> int:
    """Remove the outputs that Requiem made and nobody has changed."""
    shared: Globals = context.obj
    console = Console(
        color=shared.color, quiet=shared.quiet, verbose=shared.verbose, explain=False, environment=shared.environment
    )
    options = Options(
        shared.start,
        shared.environment,
        manifest=shared.file,
        targets=targets,
        dry_run=dry_run,
        wait=not no_wait,
    )
    cleaned = clean(options, console)
    if shared.json:
        answer = {"kept": cleaned.kept, "ok": True, "removed": cleaned.removed, "schema": "requiem.clean/1"}
        write_out(json.dumps(answer, sort_keys=True) + "\n")
        return 0
    for path in cleaned.kept:
        write_err(f'warning: kept "{plain(path)}": it is not as it was made\n')
    if shared.verbose:
        for path in cleaned.removed:
            write_err(f"removed  {plain(path)}\n")
    if not shared.quiet:
        verb = "would remove" if dry_run else "removed"
        write_err(f"{verb} {len(cleaned.removed)} output{'s' if len(cleaned.removed) != 1 else ''}\n")
    return 0
