"""`requiem add NAME -- CMD`: a command becomes a step."""

from __future__ import annotations

import json
import shlex

import click

from ..core.errors import UsageError
from .console import plain, plain_lines, write_err, write_out
from .globals import Globals
from .observe import observing_options
from .running import heeding_signals

SCHEMA = "requiem.add/1"


@click.command()
@click.argument("name")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="-- CMD...")
@click.option("-n", "--dry-run", "dry_run", is_flag=True, help="Print the step, and write nothing.")
@click.pass_context
def command(context: click.Context, name: str, words: tuple[str, ...], dry_run: bool) -> int:
    """Run a command once, observed, and write it into the manifest as a step, with what it used and made."""
    from ..engine import adding
    from ..engine.rehearsal import Stage
    from ..sandbox.strace import find_strace

    shared: Globals = context.obj
    if not words:
        raise UsageError("a command is needed", hint="requiem add NAME -- CMD...")
    find_strace()
    options = observing_options(shared, None, ())
    site, block, plan = adding.find_step(options, name, words)
    with heeding_signals() as heed, Stage(site, options.environment) as stage:
        heed(stage.interrupt)
        added = adding.add(site, options, block, plan, stage)
        if not dry_run:
            adding.write(added)
    if shared.json:
        answer = {
            "block": added.block.text(),
            "name": name,
            "notes": list(added.notes),
            "path": added.path,
            "schema": SCHEMA,
            "written": not dry_run,
        }
        write_out(json.dumps(answer, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        return 0
    write_out(plain_lines(added.block.text()))
    for note in added.notes:
        write_err(f"note: {plain(note)}\n")
    if not shared.quiet and not dry_run:
        write_err(f"written to {plain(site.manifest)}; now: requiem build {plain(shlex.quote(name))}\n")
    return 0
