"""`requiem build`: flags in, a report out."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer

from ..core.errors import UsageError
from ..core.policy import LEVELS
from ..engine import build as engine
from ..engine.options import Options
from ..engine.report import Report
from .console import Console, write_out
from .globals import Globals

MODES = ("turbo", "repro")
JOBS_MAX = 4096


def command(
    context: typer.Context,
    targets: Annotated[list[str] | None, typer.Argument(help="Steps, instances, outputs or patterns.")] = None,
    jobs: Annotated[int | None, typer.Option("-j", "--jobs", help="Steps at once (default: the CPUs).")] = None,
    keep_going: Annotated[bool, typer.Option("-k", "--keep-going", help="A failure skips only dependents.")] = False,
    dry_run: Annotated[bool, typer.Option("-n", "--dry-run", help="Say what would be done, and do nothing.")] = False,
    mode: Annotated[str | None, typer.Option(help="turbo (parallel) or repro (one by one, in plan order).")] = None,
    cache: Annotated[str, typer.Option(help="rw, ro, wo or off.")] = "rw",
    sandbox: Annotated[str | None, typer.Option(help="strict, process or none, for this run.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Give each step's reason.")] = False,
    shuffle: Annotated[str | None, typer.Option(help="Run ready steps in a random order made from SEED.")] = None,
    profile: Annotated[str | None, typer.Option(help="Use [profiles.NAME].")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Set a variable: NAME=VALUE.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Only steps with this tag.")] = None,
    timeline: Annotated[str | None, typer.Option(hidden=True)] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Exit with 5 if another build holds the workspace.")
    ] = False,
) -> int:
    """Build what is needed."""
    if timeline is not None:
        from ..core.errors import NotBuiltYet

        raise NotBuiltYet("--timeline")
    shared: Globals = context.obj
    options = make_options(
        shared,
        targets=tuple(targets or ()),
        jobs=jobs,
        keep_going=keep_going,
        dry_run=dry_run,
        mode=mode,
        cache=cache,
        sandbox=sandbox,
        explain=explain,
        shuffle=shuffle,
        profile=profile,
        sets=parse_sets(set_ or []),
        tags=tuple(tag or ()),
        wait=not no_wait,
    )
    report = run_build(options, shared)
    if shared.json:
        write_out(json.dumps(report.as_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return report.exit_code


def make_options(shared: Globals, *, mode: str | None, jobs: int | None, **rest: Any) -> Options:
    """Checked options. Raises UsageError that names the flag."""
    _one_of("--mode", mode, MODES)
    _one_of("--cache", rest.get("cache", "rw"), engine.OUTPUT_MODES)
    _one_of("--sandbox", rest.get("sandbox"), LEVELS)
    if jobs is not None and not 0 < jobs <= JOBS_MAX:
        raise UsageError(f"-j is {jobs}, not a number of jobs from 1 to {JOBS_MAX}")
    if mode is None:
        from ..engine.settings import load_settings

        mode = load_settings(shared.environment).mode or "turbo"
        _one_of("build.mode in the user's configuration", mode, MODES)
    return Options(
        start=shared.start,
        environment=shared.environment,
        manifest=shared.file,
        verbose=shared.verbose,
        mode=mode,
        jobs=jobs,
        **rest,
    )


def _one_of(flag: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise UsageError(f"{flag} is {value!r}, which is none of {', '.join(choices)}")


def parse_sets(texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {text!r} is not NAME=VALUE")
        found[name] = value
    return found


def run_build(options: Options, shared: Globals) -> Report:
    """One build with a console listening and signals heeded."""
    console = Console(
        color=shared.color,
        quiet=shared.quiet,
        verbose=shared.verbose,
        explain=options.explain or options.dry_run,
        environment=shared.environment,
    )
    try:
        with heeding_signals() as heed:

            def begin(running: engine.Running) -> None:
                console.begin(running)
                heed(running.interrupt)

            report = engine.build(options, console, begin)
        console.summary(report)
    finally:
        console.close()
    return report


@contextmanager
def heeding_signals() -> Iterator[Callable[[Callable[[int], None]], None]]:
    """INT, TERM and HUP reach the running build; before one runs they end the command as usual."""
    receivers: list[Callable[[int], None]] = []

    def handle(number: int, _: FrameType | None) -> None:
        if not receivers:
            from ..core.errors import Interrupted

            raise Interrupted(number)
        receivers[0](number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield receivers.append
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
