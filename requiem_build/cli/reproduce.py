"""`requiem reproduce`: runs steps again under one perturbation at a time, and names the cause of what differs."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from ..core.errors import EnvironmentFault, UsageError
from ..core.fields import dataclass, field, replace
from ..core.policy import Limits
from ..core.verdict import Level
from ..engine import memory as memories
from ..engine import noop, plans
from ..engine.items import diffoscope
from ..engine.journal import seconds_of
from ..engine.options import Options
from ..engine.ratchet import fallen, parse_ratchet, raised
from ..engine.reproduce import Examined, Finding, another_seconds, examine
from ..engine.rerun import CannotRerun, Rerunner
from ..engine.site import Site, cwd_of, find_site, open_view, processors, question_of, trust_of, working_store
from ..engine.trials import find_clock_library
from ..engine.trust import Trust
from ..engine.verdicts import Known, Levels, find_all_known, fresh_verdict, select, settled, verdict_of
from ..store.keys import Verifier
from ..store.layout import Store
from ..store.verdicts import Verdicts
from .console import plain, print_error, write_err, write_out
from .globals import Globals
from .running import JOBS_MAX, heeding_signals, parse_sets

SCHEMA = "requiem.reproduce/1"
RUNS_MAX = 1000
TIMEOUT_MIN_MS = 60_000
"""A step under a perturbation may take this long, or twenty times as long as it took, before it counts as stuck."""
WAITING_MAX = 64
"""So many steps may wait for another second while others run: most of the time of one that differs goes into that."""


@dataclass(slots=True)
class Line:
    """One step's part of the answer. `why_not` says why it was not run again."""

    name: str
    known: Known | None = None
    before: Level = field(default_factory=lambda: Level(0))
    after: Level = field(default_factory=lambda: Level(0))
    examined: Examined | None = None
    why_not: str = ""

    def as_json(self) -> dict[str, object]:
        examined = self.examined or Examined()
        return {
            "agreed": examined.agreed,
            "before": str(self.before),
            "findings": [finding.as_json() for finding in examined.findings],
            "level": str(self.after),
            "name": self.name,
            "not_run": self.why_not,
            "request_digest": self.known.request.digest if self.known else None,
            "result_digest": self.known.kept.result.digest if self.known else None,
            "runs": examined.runs,
            "tried": dict(examined.tried),
        }


@click.command()
@click.argument("steps", nargs=-1)
@click.option("--runs", "runs", type=int, default=1, show_default=True, help="Runs without any perturbation.")
@click.option("-j", "--jobs", "jobs", type=int, help="Steps that run at once (default: twice the CPUs).")
@click.option("--ratchet", "ratchet", help="No step may fall below its level in FILE; what rises is written there.")
@click.option("--profile", "profile", help="Use [profiles.NAME].")
@click.option("--set", "set_", multiple=True, help="Set a variable: NAME=VALUE.")
@click.pass_context
def command(
    context: click.Context,
    steps: tuple[str, ...],
    runs: int,
    jobs: int | None,
    ratchet: str | None,
    profile: str | None,
    set_: tuple[str, ...],
) -> int:
    """Run built steps again, one perturbation at a time, and say what makes a result differ. Exit 3 if one does."""
    shared: Globals = context.obj
    if not 1 <= runs <= RUNS_MAX:
        raise UsageError(f"--runs is {runs}, not a number of runs from 1 to {RUNS_MAX}")
    if jobs is not None and not 1 <= jobs <= JOBS_MAX:
        raise UsageError(f"-j is {jobs}, not a number of jobs from 1 to {JOBS_MAX}")
    options = Options(shared.start, shared.environment, manifest=shared.file, profile=profile, sets=parse_sets(set_))
    site = find_site(options)
    trust = trust_of(site, options)
    store = open_view(site)
    before = _read_ratchet(shared, ratchet)
    planned = plans.obtain(site.root, question_of(site, options), site.seal, site.settings.roots)
    instances = planned.plan.instances
    chosen = select(planned.plan, steps, cwd_of(site, options.start))
    memory = memories.load(site.dot, site.seal)
    with heeding_signals() as heed, Rerunner(site, store, planned.plan.roots) as rerunner:
        heed(rerunner.interrupt)
        jobs = jobs or 2 * processors()
        work = _Work(shared, site, store, trust, rerunner, runs, jobs)
        with ThreadPoolExecutor(jobs + WAITING_MAX) as pool:
            known = find_all_known(store, chosen, memory, site.workspace_id)
            lines = list(pool.map(work.line, chosen, known, [instances[name].limits for name in chosen]))
        fell = _keep_ratchet(shared, ratchet, before, {line.name: line.after for line in lines}, set(instances))
        in_vain = next((line for line in lines if line.why_not), None) if steps else None
        code = _answer(shared, lines, fell, work.library, rerunner, in_vain)
    if code == 0 and in_vain is not None:
        error = EnvironmentFault(f'"{in_vain.name}" was not run again', facts=[("cause", in_vain.why_not)])
        if not shared.json:
            raise error
        print_error(error, color=shared.color == "always")  # The answer is given already: one document is enough.
        return error.exit_code
    return code


class _Work:
    """What all steps share."""

    def __init__(
        self, shared: Globals, site: Site, store: Store, trust: Trust | None, rerunner: Rerunner, runs: int, jobs: int
    ) -> None:
        self.shared = shared
        self.site = site
        self.rerunner = rerunner
        self.runs = runs
        self.library = find_clock_library()
        self.trust = trust
        self.reading = Verdicts(store)
        self.levels = Levels(store, trust)
        self.key = None if trust is None else trust.key
        self.writing: Verdicts | None = None
        self.lock = threading.Lock()
        self.slots = threading.BoundedSemaphore(jobs)

    def line(self, name: str, known: Known | None, limits: Limits) -> Line:
        with self.slots:
            return self._line(name, known, limits)

    def _line(self, name: str, known: Known | None, limits: Limits) -> Line:
        if known is None:
            line = Line(name, why_not="it has no recorded result here: requiem build")
        else:
            line = Line(name, known, before=self.levels.level(known))
            line.after = line.before
            try:
                self.rerunner.check(known.request)
                line.examined = self._examine(known, limits)
                line.after = self._settle(known, line.examined)
            except CannotRerun as cannot:
                line.why_not = str(cannot)
        self._tell(line)
        return line

    def _examine(self, known: Known, limits: Limits) -> Examined:
        usual_ms = max(TIMEOUT_MIN_MS, 20 * known.kept.record.duration_ms)
        return examine(
            self.rerunner,
            known.request,
            known.kept.result,
            runs=self.runs,
            library=self.library,
            ran_s=seconds_of(known.kept.record.when),
            limits=replace(limits, timeout_ms=limits.timeout_ms or usual_ms),
            on_run=self._progress(known.name),
            rest=self._rest,
        )

    def _rest(self, than_s: float) -> None:
        """Another step runs meanwhile."""
        self.slots.release()
        try:
            another_seconds(than_s)
        finally:
            self.slots.acquire()

    def _progress(self, name: str) -> Callable[[str], None]:
        def progress(what: str) -> None:
            if self.shared.verbose and not self.shared.quiet:
                write_err(f"running  {plain(name)}: {what}\n")

        return progress

    def _settle(self, known: Known, examined: Examined) -> Level:
        verdict = settled(verdict_of(self.reading, known), examined)
        before = self.levels.level(known)
        with self.lock:
            if self.writing is None:
                store = working_store(self.site)
                self.reading = self.writing = Verdicts(store)  # What is written from now on is read here too.
                self.levels = Levels(store, self.trust)
        self.writing.keep(verdict)
        if self.key is not None:  # Of what it ran itself: what anybody can write into the store is not signed on.
            said = self.reading.signed_by(
                [self.key.key_id], verdict.request_digest, verdict.result_digest, Verifier([self.key])
            )
            own = said.get(self.key.key_id) or fresh_verdict(known)
            self.writing.keep_signed(settled(own, examined), self.key)
        after = self.levels.level(known)
        if after < before:
            noop.forget(self.site)  # A build that had nothing to do may now have something to refuse.
        return after

    def _tell(self, line: Line) -> None:
        if self.shared.json or (self.shared.quiet and not line.why_not):
            return
        if line.why_not:
            write_err(f"{'skipped':<8} {plain(line.name)}  ({plain(line.why_not)})\n")
        elif line.examined is not None:
            word = "same" if line.examined.steady else "differs"
            write_err(f"{word:<8} {plain(line.name)}  {line.examined.runs} runs, {line.after}\n")


def _read_ratchet(shared: Globals, name: str | None) -> dict[str, Level]:
    if name is None:
        return {}
    path = os.path.join(shared.start, name)
    if not os.path.lexists(path):
        return {}
    from .inspect import read_file

    return parse_ratchet(read_file(shared, name), name)


def _keep_ratchet(
    shared: Globals, name: str | None, before: dict[str, Level], now: dict[str, Level], planned: set[str]
) -> dict[str, tuple[Level, Level]]:
    """What fell. A file of which nothing fell is written anew, if that changes it."""
    fell = fallen(before, now)
    if name is None or fell:
        return fell
    path = os.path.join(shared.start, name)
    content = raised(before, now, planned)
    try:
        if os.path.exists(path):
            with open(path, "rb") as file:
                if file.read() == content:
                    return fell
        temporary = f"{path}.{os.getpid()}.part"
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError as error:
        raise EnvironmentFault(f'cannot write "{name}"', facts=[("cause", error.strerror or str(error))]) from error
    return fell


def _answer(
    shared: Globals,
    lines: list[Line],
    fell: dict[str, tuple[Level, Level]],
    library: str | None,
    rerunner: Rerunner,
    in_vain: Line | None,
) -> int:
    """`in_vain`: a step that was asked for by name and could not be run again."""
    ok = not fell and all(line.examined is None or line.examined.steady for line in lines)
    if shared.json:
        document: dict[str, Any] = {
            "clock": "libfaketime" if library else "seconds only",
            "fallen": {name: {"now": str(now), "then": str(then)} for name, (then, now) in fell.items()},
            "ok": ok and in_vain is None,
            "schema": SCHEMA,
            "steps": [line.as_json() for line in lines],
        }
        write_out(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        return 0 if ok else 3
    for line in lines:
        for finding in line.examined.findings if line.examined else ():
            if not finding.held or not shared.quiet:
                write_out(_sentence(line.name, finding) + "\n")
            if shared.verbose:
                for text in _details(finding, rerunner):
                    write_out(f"    {plain(text)}\n")
    for name, (then, now) in fell.items():
        write_out(f"{plain(name)} fell from {then.name} to {now}\n")
    if library is None and not shared.quiet:
        write_err("note: the clock was only let run on: apt install libfaketime, and whole days are tried too\n")
    return 0 if ok else 3


def _sentence(step: str, finding: Finding) -> str:
    """`app: app.tar differs at member x.o, mtime; cause: clock; fix: ...`"""
    first = finding.differences[0] if finding.differences else None
    place = f" at {', '.join(first.place)}" if first else ""
    byte = f" (byte {first.offset})" if first is not None and first.offset is not None else ""
    seen = f": {first.then} -> {first.now}" if first else ""
    parts = [f"{step}: {finding.item} differs{place}{byte}{seen}"]
    cause = " and ".join(finding.causes) or "unknown: none of what can be varied or held explains it"
    parts.append(f"cause: {cause}{' (by its place)' if finding.by_place else ''}")
    if finding.note:
        parts.append(finding.note)
    if finding.held:
        parts.append("held: the sandbox fixes this, so the result is the same each time")
    if finding.fix:
        parts.append(f"fix: {finding.fix}")
    return plain("; ".join(parts))


def _details(finding: Finding, rerunner: Rerunner) -> list[str]:
    found = [
        f"{', '.join(each.place)}: {each.then} -> {each.now}" + (f" (byte {each.offset})" if each.offset else "")
        for each in finding.differences[1:]
    ]
    program = shutil.which("diffoscope")
    if program and finding.then is not None and finding.now is not None:
        found += diffoscope(program, finding.item, finding.then, finding.now, rerunner.blobs)
    return found
