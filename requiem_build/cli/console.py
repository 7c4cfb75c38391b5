"""What a person sees of a run: a reader of its events. It never influences what is built.

Everything human goes to stderr. A live line is shown only on a terminal outside CI.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any

from ..core.digest import EMPTY, Digest
from ..core.errors import RequiemError
from ..core.events import Event, PlanMade, RunFinished, StepFinished, StepStarted, Warned
from .places import users_own

if TYPE_CHECKING:
    from ..engine.build import Running
    from ..engine.estimate import Estimate
    from ..engine.report import Report

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_COLORS = {"ran": "32", "hit": "36", "fresh": "2", "failed": "31;1", "skipped": "2", "miss": "33", "unknown": "2"}
LABEL_WIDTH = 8
_PIECE = 1 << 16


def plain(text: str) -> str:
    """Text that cannot steer a terminal: control characters and half surrogates are shown, not sent."""
    found = set(_CONTROL.findall(text))  # A megabyte of them is not rare, and few are different.
    return text.translate({ord(each): f"\\x{ord(each):02x}" for each in found}) if found else text


def words(content: bytes) -> str:
    """What a step wrote, as text; show it by `plain`."""
    return content.decode("utf-8", "backslashreplace").rstrip("\n")


def wants_color(choice: str, stream: IO[str], environment: Mapping[str, str]) -> bool:
    """Flag, then NO_COLOR, then FORCE_COLOR, then whether it is a terminal that can."""
    if choice != "auto":
        return choice == "always"
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR"):
        return True
    return stream.isatty() and environment.get("TERM") != "dumb"


def is_live(environment: Mapping[str, str]) -> bool:
    return sys.stderr.isatty() and environment.get("TERM") != "dumb" and not environment.get("CI")


def duration(ms: int) -> str:
    seconds = ms / 1000
    if seconds < 0.1:
        return f"{ms} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


class Console:
    """Listens to one run. `quiet` leaves only failures and warnings."""

    def __init__(
        self,
        *,
        color: str,
        quiet: bool,
        verbose: bool,
        explain: bool,
        environment: Mapping[str, str],
        repeat: Sequence[str] = ("requiem", "build"),
    ) -> None:
        self._color = wants_color(color, sys.stderr, environment)
        self._quiet = quiet
        self._verbose = verbose
        self._explain = explain
        self._repeat = tuple(repeat)
        self._lock = threading.Lock()
        self._live = Live() if is_live(environment) and not quiet else None
        self._running: Running | None = None
        self._shown: dict[str, str] = {}
        self._failed: list[StepFinished] = []
        self._total = self._done = 0

    def begin(self, running: Running) -> None:
        self._running = running
        self._done += running.untouched
        if self._live:
            self._live.expect(running.durations_ms(), running.jobs)

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case PlanMade():
                self._total = event.steps
                if self._live:
                    self._live.start(event.steps)
            case StepStarted():
                self._shown[event.name] = event.shown
                if self._live:
                    self._live.running(event.name)
            case StepFinished():
                self._done += 1
                if self._live:
                    self._live.finished(event.name, self._done)
                self._step(event)
            case Warned():
                self._say(self._paint("warning", "33") + ": " + plain(event.text))
            case RunFinished():
                self.close()
            case _:
                pass

    def close(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def _step(self, step: StepFinished) -> None:
        if step.state == "failed":
            self._failed.append(step)
        if self._quiet and step.state != "failed":
            self._warnings(step)
            return
        predicted = step.state in ("miss", "unknown")
        if step.state in ("fresh", "skipped") and not self._verbose and not (self._explain and step.state == "fresh"):
            return
        words = [self._label(step.state), plain(step.name)]
        if step.state == "ran":
            words.append(self._paint(duration(step.duration_ms), "2"))
        detail = step.failure if step.state == "failed" else step.reason
        if step.state == "failed":
            detail = self._own(detail, step)
        if detail and (step.state in ("ran", "failed") or predicted or self._verbose or self._explain):
            words.append(self._paint(f"({plain(detail)})", "2"))
        self._say("  ".join(words))
        self._warnings(step)
        if step.state == "ran" or (step.state == "hit" and self._verbose):
            self._captured(step)

    def _warnings(self, step: StepFinished) -> None:
        for warning in step.warnings:
            self._say(self._paint("warning", "33") + f': step "{plain(step.name)}": {plain(warning)}')

    def _label(self, state: str) -> str:
        return self._paint(state.ljust(LABEL_WIDTH - 1), _COLORS[state])

    def _captured(self, step: StepFinished) -> None:
        for digest in (step.stdout_digest, step.stderr_digest):
            if digest and digest != EMPTY:
                self._say(self._text(digest, step))

    def _text(self, digest: str, step: StepFinished) -> str:
        assert self._running is not None
        try:
            content = self._running.read(Digest(digest))
        except RequiemError as error:
            return f"(its output is lost: {error.what})"
        return plain(self._own(words(content), step))

    def _own(self, text: str, step: StepFinished) -> str:
        running = self._running
        return users_own(text, running.root) if running is not None and running.is_strict(step.name) else text

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._color else text

    def _say(self, text: str) -> None:
        if self._live:
            self._live.print(text)
        else:
            write_err(text + "\n")

    # The end

    def summary(self, report: Report) -> None:
        """Failures in full, then one line."""
        self.close()
        for step in self._failed:
            self._failure(step)
        counts = report.counts()
        if self._quiet and report.ok:
            return
        told = ", ".join(f"{count} {name}" for name, count in counts.items() if name != "total" and count)
        if report.dry_run:
            write_err(f"would build: {told or 'nothing'}\n")
        elif report.exit_code >= 128:
            write_err(f"interrupted: {told or 'nothing done'}\n")
        elif report.refusals:
            write_err(self._paint("refused", "31;1") + f": {told}; not proven as far as the manifest demands\n")
            write_err("  hint: requiem reproduce\n")
        elif not report.ok:
            write_err(self._paint("failed", "31;1") + f": {told} in {duration(report.duration_ms)}\n")
        elif counts["fresh"] == counts["total"]:
            steps = f"{counts['total']} step{'s' if counts['total'] != 1 else ''}"
            write_err(f"nothing to do: {steps} up to date\n")
        else:
            write_err(self._paint("built", "32") + f": {told} in {duration(report.duration_ms)}\n")

    def _failure(self, step: StepFinished) -> None:
        write = write_err
        write(
            "\n"
            + self._paint("error", "31;1")
            + f': step "{plain(step.name)}" failed: {plain(self._own(step.failure, step))}\n'
        )
        facts = []
        if step.name in self._shown:
            facts.append(("command", _folded(plain(self._shown[step.name]))))
        facts.append(("repeat", shlex.join([*self._repeat, step.name])))
        width = max(len(label) for label, _ in facts)
        for label, text in facts:
            write(f"  {(label + ':').ljust(width + 1)} {text}\n")
        for hint in step.hints:
            write(f"  hint: {plain(hint)}\n")
        for name, digest in (("stdout", step.stdout_digest), ("stderr", step.stderr_digest)):
            if digest and digest != EMPTY:
                write(self._paint(f"--- {name}", "2") + "\n" + self._text(digest, step) + "\n")


def _folded(text: str) -> str:
    return text.replace("\n", "\n             ") if "\n" in text else text


class Live:
    """The one live line: how many are done, what runs, how long it may take. Drawn by rich."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None
        self._names: dict[str, None] = {}
        self._estimate: Estimate | None = None

    def expect(self, durations_ms: Mapping[str, int], jobs: int) -> None:
        from ..engine.estimate import Estimate

        self._estimate = Estimate(durations_ms, durations_ms, jobs)

    def _left(self) -> str:
        left_ms = self._estimate.left_ms(time.monotonic() * 1000) if self._estimate is not None else None
        return "" if left_ms is None else f"about {duration(round(left_ms / 1000) * 1000)} left"

    def start(self, total: int) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn
        from rich.text import Text

        left = self._left

        class Left(TextColumn):
            def render(self, task: Task) -> Text:
                return Text(left())

        console = RichConsole(stderr=True, highlight=False, markup=False, emoji=False)
        self._progress = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            Left(""),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            refresh_per_second=8,
        )
        self._task = self._progress.add_task("", total=total)
        self._progress.start()

    def running(self, name: str) -> None:
        self._names[name] = None
        if self._estimate is not None:
            self._estimate.started(name, time.monotonic() * 1000)
        self._describe()

    def finished(self, name: str, done: int) -> None:
        self._names.pop(name, None)
        if self._estimate is not None:
            self._estimate.finished(name)
        if self._progress is not None:
            self._progress.update(self._task, completed=done)
        self._describe()

    def _describe(self) -> None:
        if self._progress is not None:
            self._progress.update(self._task, description=plain(", ".join(self._names)))

    def print(self, text: str) -> None:
        if self._progress is None:
            write_err(text + "\n")
        else:
            from rich.text import Text

            self._progress.console.print(Text.from_ansi(text), soft_wrap=True)

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A live line for something else than a build. It has no thread: who works may fork."""
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(bar_width=30), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=RichConsole(stderr=True), transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=total)

        def show(done: int, text: str) -> None:
            progress.update(task, completed=min(done, total), description=text, refresh=True)

        yield show


def print_error(error: RequiemError, *, color: bool = False) -> None:
    """One line what, aligned facts, a hint."""
    head = "\x1b[31;1merror\x1b[0m" if color else "error"
    lines = [f"{head}: {plain(error.what)}"]
    width = max((len(label) for label, _ in error.facts), default=0)
    for label, text in error.facts:
        indented = plain_lines(text).replace("\n", "\n" + " " * (width + 4))
        lines.append(f"  {(label + ':').ljust(width + 1)} {indented}")
    if error.hint:
        lines.append(f"  hint: {plain_lines(error.hint)}")
    write_err("\n".join(lines) + "\n")


def plain_lines(text: str) -> str:
    return "\n".join(plain(line) for line in text.split("\n"))


class ReaderGone(Exception):
    """Whoever read our stdout has closed it."""


def write_err(text: str) -> None:
    """For a person. Nobody may be listening, and that changes nothing."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def write_out(text: str) -> None:
    """A machine's answer, on stdout, whole or an error."""
    write_bytes(text.encode("utf-8", "backslashreplace"))


def write_bytes(content: bytes) -> None:
    view = memoryview(content)
    try:
        while view:
            view = view[os.write(1, view) :]
    except BrokenPipeError as error:
        raise ReaderGone from error


def stdin_pieces() -> Iterator[bytes]:
    """What comes by standard input, to its end.

    Python's own file reads on in C until it has as much as was asked for; an interrupt that comes between two of its
    reads is heeded after the next one only, which may never end.
    """
    while piece := os.read(0, _PIECE):
        yield piece
