"""One build with a console listening and signals heeded: what `build` is besides its flags, without click."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ..core.errors import UsageError
from ..core.policy import LEVELS
from ..engine import build as engine
from ..engine.options import Options
from ..engine.report import Report
from .console import Console, write_err
from .globals import Globals

MODES = ("turbo", "repro")
JOBS_MAX = 4096


def build_plain(shared: Globals, words: list[str]) -> int:
    """`build` with nothing but targets and jobs, as `parse_plain` of the package's door lets through."""
    jobs, targets = None, []
    given = iter(words[1:])
    for word in given:
        if word in ("-j", "--jobs"):
            jobs = int(next(given))
        elif word.startswith("-"):  # -j8, --jobs=8
            jobs = int(word.removeprefix("--jobs=").removeprefix("-j"))
        else:
            targets.append(word)
    options = make_options(
        shared, targets=tuple(targets), mode=None, jobs=jobs, brief=not (shared.json or shared.verbose)
    )
    report = run_build(options, shared)
    with suppress(KeyboardInterrupt):  # The build is over and has been told: this may be left for the next one.
        keep_up(report, shared)
    return report.exit_code


def keep_up(report: Report, shared: Globals) -> None:
    """What the store needs after a build."""
    if report.upkeep is not None:
        report.upkeep.run(lambda text: None if shared.quiet else write_err(f"{text}\n"))


def make_options(shared: Globals, *, mode: str | None, jobs: int | None, **rest: Any) -> Options:
    """Checked options. Raises UsageError that names the flag."""
    _one_of("--mode", mode, MODES)
    _one_of("--cache", rest.get("cache", "rw"), engine.CACHE_MODES)
    _one_of("--sandbox", rest.get("sandbox"), LEVELS)
    if jobs is not None and not 0 < jobs <= JOBS_MAX:
        raise UsageError(f"-j is {jobs}, not a number of jobs from 1 to {JOBS_MAX}")
    max_load = rest.get("max_load")
    if max_load is not None and not 0 < max_load < 1e6:
        raise UsageError(f"-l is {max_load:g}, not a load average")
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


def parse_sets(texts: Sequence[str]) -> dict[str, str]:
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
        repeat=repeating(options),
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


def repeating(options: Options) -> list[str]:
    """The words that build a step again in the same way, from the directory that the user is in."""
    words = ["requiem"]
    if options.start != os.path.realpath("."):
        words += ["-C", options.start]
    if options.manifest is not None:
        words += ["-f", options.manifest]
    words.append("build")
    if options.profile is not None:
        words += ["--profile", options.profile]
    if options.sandbox is not None:
        words += ["--sandbox", options.sandbox]
    for name, value in options.sets.items():
        words += ["--set", f"{name}={value}"]
    return words


@contextmanager
def heeding_signals() -> Iterator[Callable[[Callable[[int], None]], None]]:
    """INT, TERM and HUP reach the running build.

    Before one runs they end the process on the spot: nothing needs undoing yet, and an exception thrown
    into whatever is being imported or read would only come out as something else.
    """
    receivers: list[Callable[[int], None]] = []

    def handle(number: int, _: FrameType | None) -> None:
        if not receivers:
            os.write(2, b"interrupted\n")
            os._exit(128 + number)
        receivers[-1](number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield receivers.append
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
