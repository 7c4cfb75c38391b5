"""`requiem build`: flags in, a report out."""

from __future__ import annotations

import json
from contextlib import suppress

import click

from ..core.errors import UsageError
from .console import write_out
from .globals import Globals
from .running import keep_up, make_options, parse_sets, run_build


@click.command()
@click.argument("targets", nargs=-1)
@click.option("-j", "--jobs", "jobs", type=int, help="Steps at once (default: as configured, or the CPUs).")
@click.option("-l", "--max-load", "max_load", type=float, help="Start no further step from this load average on.")
@click.option("-k", "--keep-going", "keep_going", is_flag=True, help="A failure skips only dependents.")
@click.option("-n", "--dry-run", "dry_run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--mode", "mode", help="turbo (parallel) or repro (one by one, in plan order).")
@click.option(
    "--cache", "cache", default="rw", show_default=True, help="rw; ro: publish nothing; wo: run all; off: both."
)
@click.option("--sandbox", "sandbox", help="strict, process or none, for this run.")
@click.option("--explain", "explain", is_flag=True, help="Give each step's reasons (and build, without -n).")
@click.option("--explain-policy", "explain_policy", help="Say what the sandbox of STEP will do, and run nothing.")
@click.option("--shuffle", "shuffle", help="Run ready steps in a random order made from SEED.")
@click.option("--profile", "profile", help="Use [profiles.NAME].")
@click.option("--set", "set_", multiple=True, help="Set a variable: NAME=VALUE.")
@click.option("--tag", "tag", multiple=True, help="Only steps with this tag.")
@click.option("--timeline", "timeline", help="Write what ran when to FILE, for Perfetto or chrome://tracing.")
@click.option("--no-wait", "no_wait", is_flag=True, help="Exit with 5 if another build holds the workspace.")
@click.pass_context
def command(
    context: click.Context,
    targets: tuple[str, ...],
    jobs: int | None,
    max_load: float | None,
    keep_going: bool,
    dry_run: bool,
    mode: str | None,
    cache: str,
    sandbox: str | None,
    explain: bool,
    explain_policy: str | None,
    shuffle: str | None,
    profile: str | None,
    set_: tuple[str, ...],
    tag: tuple[str, ...],
    timeline: str | None,
    no_wait: bool,
) -> int:
    """Build what is needed."""
    if timeline is not None and dry_run:
        raise UsageError("--timeline shows what ran, and with -n nothing runs")
    shared: Globals = context.obj
    options = make_options(
        shared,
        targets=targets,
        jobs=jobs,
        max_load=max_load,
        keep_going=keep_going,
        dry_run=dry_run,
        mode=mode,
        cache=cache,
        sandbox=sandbox,
        explain=explain,
        shuffle=shuffle,
        profile=profile,
        sets=parse_sets(set_),
        tags=tag,
        wait=not no_wait,
        brief=not (shared.json or shared.verbose or timeline is not None),
    )
    if explain_policy is not None:
        from .policy import tell_policy

        return tell_policy(options, explain_policy, shared)
    report = run_build(options, shared)
    if timeline is not None:
        from .cas_store import open_view
        from .timeline import write_timeline

        write_timeline(shared, open_view(shared), report.run, timeline)
    if shared.json:
        write_out(json.dumps(report.as_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    with suppress(KeyboardInterrupt):  # The build is over and has been told: this may be left for the next one.
        keep_up(report, shared)
    return report.exit_code
