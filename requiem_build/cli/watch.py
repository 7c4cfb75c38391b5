"""`requiem watch`: build on every change that matters."""

from __future__ import annotations

import signal
from types import FrameType

import click

from ..core.errors import RequiemError
from ..engine import build as engine
from ..engine.report import Report
from ..engine.site import find_site
from ..engine.watch import Watch, is_no_news
from .console import Console, print_error, write_err
from .globals import Globals
from .running import keep_up, make_options, parse_sets


@click.command()
@click.argument("targets", nargs=-1)
@click.option("-j", "--jobs", "jobs", type=int, help="Steps at once (default: the CPUs).")
@click.option("-k", "--keep-going", "keep_going", is_flag=True, help="A failure skips only dependents.")
@click.option("--mode", "mode", help="turbo or repro.")
@click.option("--sandbox", "sandbox", help="strict, process or none.")
@click.option("--profile", "profile", help="Use [profiles.NAME].")
@click.option("--set", "set_", multiple=True, help="Set a variable: NAME=VALUE.")
@click.option("--tag", "tag", multiple=True, help="Only steps with this tag.")
@click.pass_context
def command(
    context: click.Context,
    targets: tuple[str, ...],
    jobs: int | None,
    keep_going: bool,
    mode: str | None,
    sandbox: str | None,
    profile: str | None,
    set_: tuple[str, ...],
    tag: tuple[str, ...],
) -> int:
    """Build, then build again on every change, until Ctrl-C."""
    shared: Globals = context.obj
    options = make_options(
        shared,
        targets=targets,
        jobs=jobs,
        keep_going=keep_going,
        mode=mode,
        sandbox=sandbox,
        profile=profile,
        sets=parse_sets(set_),
        tags=tag,
    )
    site = find_site(options)
    running: list[engine.Running] = []
    last: list[Report | None] = [None]
    told = [""]

    def build() -> bool:
        console = Console(
            color=shared.color,
            quiet=shared.quiet,
            verbose=shared.verbose,
            explain=False,
            environment=shared.environment,
        )

        def begin(started: engine.Running) -> None:
            console.begin(started)
            running[:] = [started]

        if is_no_news(last[0]):
            return False
        try:
            report = engine.build(options, console, begin)
            counts = report.counts()
            if last[0] is None or counts["fresh"] < counts["total"]:
                console.summary(report)
            last[0] = report
            keep_up(report, shared)
            told[0] = ""
        finally:
            running.clear()
            console.close()
        return report.exit_code >= 128

    def failed(error: RequiemError) -> None:
        if error.what != told[0]:  # An error that stands is told once, however many files are saved meanwhile.
            print_error(error, color=shared.color == "always")
        told[0] = error.what
        last[0] = None

    def idle() -> None:
        if not shared.quiet:
            write_err("watching for changes, Ctrl-C ends\n")

    watch = Watch(site.root, build, failed, idle)

    ended_by = [0]

    def handle(number: int, _: FrameType | None) -> None:
        ended_by[0] = number
        watch.stop.set()
        for started in running:
            started.interrupt(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        watch.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + ended_by[0] if ended_by[0] not in (0, signal.SIGINT) else 0  # Ctrl-C is how one ends it.
