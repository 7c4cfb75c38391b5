"""`requiem watch`: build on every change that matters."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from ..core.errors import RequiemError
from ..engine import build as engine
from ..engine.watch import Watch
from .build import make_options, parse_sets
from .console import Console, print_error
from .globals import Globals


def command(
    context: typer.Context,
    targets: Annotated[list[str] | None, typer.Argument(help="Steps, instances, outputs or patterns.")] = None,
    jobs: Annotated[int | None, typer.Option("-j", "--jobs", help="Steps at once (default: the CPUs).")] = None,
    keep_going: Annotated[bool, typer.Option("-k", "--keep-going", help="A failure skips only dependents.")] = False,
    mode: Annotated[str | None, typer.Option(help="turbo or repro.")] = None,
    sandbox: Annotated[str | None, typer.Option(help="strict, process or none.")] = None,
    profile: Annotated[str | None, typer.Option(help="Use [profiles.NAME].")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Set a variable: NAME=VALUE.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Only steps with this tag.")] = None,
) -> int:
    """Build, then build again on every change, until Ctrl-C."""
    shared: Globals = context.obj
    options = make_options(
        shared,
        targets=tuple(targets or ()),
        jobs=jobs,
        keep_going=keep_going,
        mode=mode,
        sandbox=sandbox,
        profile=profile,
        sets=parse_sets(set_ or []),
        tags=tuple(tag or ()),
    )
    site = engine.find_site(options)
    running: list[engine.Running] = []
    first = [True]

    def build() -> bool:
        console = Console(
            color=shared.color, quiet=shared.quiet, verbose=shared.verbose, explain=True, environment=shared.environment
        )

        def begin(started: engine.Running) -> None:
            console.begin(started)
            running[:] = [started]

        try:
            report = engine.build(options, console, begin)
            counts = report.counts()
            if first or counts["fresh"] < counts["total"]:  # What we wrote ourselves wakes us up, and is no news.
                console.summary(report)
            first.clear()
        finally:
            running.clear()
            console.close()
        return report.exit_code >= 128

    def failed(error: RequiemError) -> None:
        print_error(error, color=shared.color == "always")

    def idle() -> None:
        if not shared.quiet:
            sys.stderr.write("watching for changes, Ctrl-C ends\n")
            sys.stderr.flush()

    watch = Watch(site.root, build, failed, idle)

    def handle(number: int, _: FrameType | None) -> None:
        watch.stop.set()
        for started in running:
            started.interrupt(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        watch.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0
