"""`requiem clean`: takes away exactly what Requiem made."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from ..engine.clean import clean
from ..engine.options import Options
from .console import Console, plain, write_out
from .globals import Globals


def command(
    context: typer.Context,
    targets: Annotated[list[str] | None, typer.Argument(help="Only these steps' outputs.")] = None,
    dry_run: Annotated[bool, typer.Option("-n", "--dry-run", help="Only say what would go.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Exit with 5 if a build holds the workspace.")] = False,
) -> int:
    """Remove the outputs that Requiem made and nobody has changed."""
    shared: Globals = context.obj
    console = Console(
        color=shared.color, quiet=shared.quiet, verbose=shared.verbose, explain=False, environment=shared.environment
    )
    options = Options(
        shared.start,
        shared.environment,
        manifest=shared.file,
        targets=tuple(targets or ()),
        dry_run=dry_run,
        wait=not no_wait,
    )
    cleaned = clean(options, console)
    if shared.json:
        answer = {"kept": cleaned.kept, "ok": True, "removed": cleaned.removed, "schema": "requiem.clean/1"}
        write_out(json.dumps(answer, sort_keys=True) + "\n")
        return 0
    for path in cleaned.kept:
        sys.stderr.write(f'warning: kept "{plain(path)}": it is not as it was made\n')
    if shared.verbose:
        for path in cleaned.removed:
            sys.stderr.write(f"removed  {plain(path)}\n")
    if not shared.quiet:
        verb = "would remove" if dry_run else "removed"
        sys.stderr.write(f"{verb} {len(cleaned.removed)} output{'s' if len(cleaned.removed) != 1 else ''}\n")
    return 0
