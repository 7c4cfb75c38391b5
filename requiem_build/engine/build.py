"""One build, as a list of stages: settings, lock, plan, guard, schedule, tidy, report."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

from .. import __version__
from ..core.digest import Digest
from ..core.errors import Interrupted, Refused, RequiemError, StoreRefused
from ..core.events import Event, Listener, PlanMade, RunFinished, RunStarted, StepFinished, Warned
from ..core.fields import dataclass
from ..core.frontier import Frontier
from ..core.instance import Instance
from ..executors.base import Executor
from ..executors.blobs import Blobs
from ..sandbox.system import HostSystem
from ..store.outbox import Outbox
from . import lines, noop, plans, quick, schedule, touched
from . import memory as memories
from .assembly import Asked, Assembly
from .journal import Journal, keep_manifest, new_run_id, now_text
from .layout import Layout
from .lock import workspace_lock
from .options import Options
from .owning import beware_of_others, refuse_behind_links, refuse_tracked, remove_vanished
from .pace import Pace, durations_ms
from .report import Report
from .scope import Scope, Whole
from .secrets import Secrets, check_environment
from .site import (
    Site,
    can_write,
    clear_scratch,
    dismiss_workers,
    drop_stand_in,
    find_site,
    prepare_dot,
    question_of,
    size_max,
    stand_in_notice,
    start_workers,
    trust_of,
    working_store,
)
from .stamps import Stamps, tells_changes_apart
from .step import INTERRUPTED, Outcome, Performer, why_not_remembered
from .surroundings import Surroundings, surroundings_of
from .upkeep import Upkeep
from .workspace import Workspace

CACHE_MODES = ("rw", "ro", "wo", "off")


@dataclass(frozen=True, slots=True)
class Running:
    """A build that has begun: what a signal handler calls with its signal's number, and a reader of objects."""

    interrupt: Callable[[int], None]
    read: Callable[[Digest], bytes]
    root: str
    durations_ms: Callable[[], Mapping[str, int]] = dict
    """Of each step of the plan, how long it took when it last ran; 0 where that is not known."""
    jobs: int = 1
    planned: plans.Planned | None = None
    untouched: int = 0
    """Steps of the plan that are fresh and not told one by one."""
    is_strict: Callable[[str], bool] = lambda name: True
    """Whether a step saw the workspace at `/workspace`."""


OnStart = Callable[[Running], None]


def build(
    options: Options, listener: Listener, on_start: OnStart = lambda _: None, asked: Asked | None = None
) -> Report:
    """Builds, and says how it went. `on_start` is called before the first step, `asked` with each step's request.

    Raises RequiemError for what is wrong before any step runs; a failed step is in the report.
    """
    _make_garbage_rare()
    try:
        return _build(options, listener, on_start, asked)
    finally:
        gc.enable()
        dismiss_workers()


def _build(options: Options, listener: Listener, on_start: OnStart, asked: Asked | None) -> Report:
    site = find_site(options)
    if options.dry_run and not can_write(site):
        return _Run(site, options, listener, asked).run(on_start)  # A question changes nothing, and needs no lock.
    prepare_dot(site.dot)

    def notice(text: str) -> None:
        listener(Warned(text))

    with workspace_lock(site.dot, wait=options.wait, notice=notice):
        clear_scratch(site.dot)
        run = _Run(site, options, listener, asked)
        try:
            return _remembering(run, on_start)
        except StoreRefused as refused:  # Only now, though the store had looked as if it could be written.
            if run.signal is not None:
                raise
            return _remembering(_Run(site, options, listener, asked, refused), on_start)


def _remembering(run: _Run, on_start: OnStart) -> Report:
    """Whatever ends the run, what succeeded before is remembered."""
    try:
        return run.run(on_start)
    except BaseException:
        run.remember()
        raise


def _make_garbage_rare() -> None:
    """A plan lives as long as we do, so nothing is looked for while it is made; and a step makes few cycles."""
    gc.set_threshold(50_000, 20, 20)
    gc.disable()


class _Run:
    """The state of one build while it lasts."""

    def __init__(
        self,
        site: Site,
        options: Options,
        listener: Listener,
        asked: Asked | None,
        refused: StoreRefused | None = None,
    ) -> None:
        """`refused`: why the store could not be written in the run before this one."""
        self.site = site
        self.refused = refused
        self.asked = asked
        self.options = options
        self.run_id = new_run_id()
        self.listener = listener
        self.report = Report(mode=options.mode, run=self.run_id, dry_run=options.dry_run)
        self.stop = schedule.Stop(self._insist)
        self.signal: int | None = None
        self.kill = False
        self.pace = Pace(site, options)
        self.journal: Journal | None = None
        self.executor: Executor | None = None
        self.started = time.monotonic()
        self.started_when = now_text()
        self.ahead = 0
        self.outbox: Outbox | None = None
        self.trust = trust_of(site, options)
        self.host_system = HostSystem(site.cache_home)
        self.part: touched.Part | None = None
        """The scope, if that is not all of the plan."""
        self.secrets = Secrets(options.environment, site.settings.secrets)

    def emit(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.report.warnings.append(event.text)
        if self.journal is not None:
            self.journal(event)
        self.listener(event)

    def interrupt(self, number: int) -> None:
        """From a signal handler. Once: start nothing more and end what runs; twice: kill it."""
        self.kill = self.signal is not None
        self.signal = self.signal or number
        self.stop.requested = True
        self._insist()

    def _insist(self) -> None:
        if self.signal is not None and self.executor is not None:
            self.executor.cancel(kill=self.kill)

    def remember(self) -> None:
        """Waits until the records of all that succeeded are published. Raises EnvironmentFault."""
        for first in self.outbox.flush() if self.outbox is not None else ():
            request = first.record.request_digest[:16]
            self.emit(Warned(f"another build meanwhile gave another result for the same request ({request})"))

    def run(self, on_start: OnStart) -> Report:
        options, site = self.options, self.site
        if quick.seen:  # The door found that something differs: most probably a step runs.
            self._start_ahead(1)
        self.memory = memories.load(site.dot, site.seal)
        question = question_of(site, options)
        self.part = touched.look(site, options, question, self.memory)
        if self.part is not None and not self.part.planned.plan.instances:
            return self._only_touched(self.part)
        self._start_workers()
        self.scope = self.part or self._whole(question)
        self.planned = self.scope.planned
        self.store = working_store(site, self.planned.store_settings, dry_run=options.dry_run, refused=self.refused)
        self.view = self.store if self.trust is None else self.trust.view(self.store)
        self.outbox = self.view.outbox
        if not options.dry_run:
            drop_stand_in(site, self.store)
            self.journal = Journal(self.run_id, os.path.join(site.dot, "tmp"))
            keep_manifest(site.root, self.planned.manifest, self.store)
        with self._journaled():
            return self._run(question, on_start)

    def _start_workers(self) -> None:
        """Those that a step will most probably need, so that they start while we still plan."""
        if self.part is not None:
            self._start_ahead(min(self.pace.jobs(), len(self.part.planned.plan.instances) - len(self.part.lost)))
        elif not self.memory.steps:  # Nothing was ever built here.
            self._start_ahead(self.pace.workers())

    def _start_ahead(self, count: int) -> None:
        """As many in all, if steps run in what these are for."""
        if self.options.dry_run or (self.options.sandbox or self.site.settings.sandbox or "strict") != "strict":
            return
        if count > self.ahead:  # Else what starts them need not even be imported.
            start_workers(count - self.ahead)
            self.ahead = count

    def _whole(self, question: plans.Question) -> Scope:
        planned = plans.obtain(self.site.root, question, self.site.seal, self.site.settings.roots)
        return Whole(planned, self.memory)

    def _only_touched(self, part: touched.Part) -> Report:
        """Files were touched, and every one holds what it held: as if there had been nothing to do."""
        self.report.untouched = part.total
        stamps = Stamps(self.memory.known, fine=tells_changes_apart(os.path.join(self.site.dot, "tmp")))
        noop.renew(self.site, part.written, part.seen, stamps, run=self.memory.last_run)
        memories.save(self.site.dot, self.site.seal, self.memory)
        return self.report

    @contextmanager
    def _journaled(self) -> Iterator[None]:
        """Whatever ends the run, its journal ends too, and is listed."""
        try:
            yield
        except BaseException as error:
            code = error.exit_code if isinstance(error, RequiemError) else RequiemError.exit_code
            # The error that ended the run is the one to tell of; where the disk is full, no journal can be ended.
            with suppress(RequiemError, OSError, ValueError):
                if self.journal is not None and isinstance(error, RequiemError):
                    self.journal(Warned(error.what))
                self._end_journal(ok=False, exit_code=code)
            raise

    def _run(self, question: plans.Question, on_start: OnStart) -> Report:
        options, site, plan = self.options, self.site, self.planned.plan
        self.emit(
            RunStarted(self.run_id, options.mode, __version__, options.targets, site.workspace_id, self.started_when)
        )
        foreign = beware_of_others(site.root, self.planned.manifest, plan, options, site.settings.sandbox)
        if foreign:
            self.emit(Warned(foreign))
        self.places, made = self.scope.places(), self.scope.made()
        self.emit(PlanMade(self.scope.total, self.planned.manifest))
        self._tell_untouched()
        notice = None if options.dry_run else stand_in_notice(self.store)
        for warning in (*([notice] if notice else []), *plan.warnings):
            self.emit(Warned(warning))
        blobs = Blobs(self.store.objects)
        stamps = Stamps(
            self.memory.known,
            keep=blobs.hold,
            fine=tells_changes_apart(os.path.join(site.dot, "tmp")),
            device=os.stat(site.root).st_dev,
            expected=partial(self.scope.stamp, site.root),
        )
        workspace = Workspace(site.root, stamps, blobs)
        layout = Layout(
            site.root,
            self.run_id,
            stamps,
            blobs,
            made,
            plan.declared,
            lambda text: self.emit(Warned(text)),
        )
        surroundings = surroundings_of(site, plan.roots, stamps, options.environment, self.host_system.digest)
        if not options.dry_run:
            refuse_tracked(site.root, plan, made, layout, options.sandbox or site.settings.sandbox)
            refuse_behind_links(site.root, plan)
            self._check_environment()
        gc.freeze()
        gc.enable()
        parts = Assembly(
            site=site,
            options=options,
            scope=self.scope,
            memory=self.memory,
            store=self.store,
            view=self.view,
            trust=self.trust,
            secrets=self.secrets,
            emit=self.emit,
            asked=self.asked,
        )
        admission = self.pace.admission(lambda: self.signal is not None, lambda text: self.emit(Warned(text)))
        with self.store.lease(), parts.executor(blobs, surroundings, self.pace.jobs(), admission) as executor:
            self.executor = executor
            on_start(
                Running(
                    interrupt=self.interrupt,
                    read=blobs.get,
                    root=site.root,
                    durations_ms=partial(durations_ms, plan, self.memory),
                    jobs=self.pace.jobs(),
                    planned=self.planned,
                    untouched=self.report.untouched,
                    is_strict=self._is_strict,
                )
            )
            self.performer = parts.performer(self.places, workspace, surroundings, layout, executor)
            self._restore_ahead()
            self._schedule(self.performer)
        gc.disable()  # What is written down now is needed to the end.
        if not options.dry_run:
            self._tidy(layout, stamps, question)
        return self._conclude(stamps, question, surroundings)

    def _is_strict(self, name: str) -> bool:
        level = self.options.sandbox or self.site.settings.sandbox
        return (level or self.scope.instances[name].policy.sandbox) == "strict"

    def _tell_untouched(self) -> None:
        if self.part is not None:
            self.report.untouched = len(self.part.untouched)
            if self.journal is not None:
                self.journal.tell(lines.of(self.site, self.part))

    def _check_environment(self) -> None:
        """Raises UnknownName for a variable or a secret that a step cannot do without."""

        def must_run(instance: Instance) -> bool:
            if self.options.cache not in ("rw", "ro"):
                return True
            level = self.options.sandbox or self.site.settings.sandbox or instance.policy.sandbox
            return bool(why_not_remembered(instance, level))

        instances = self.planned.plan.instances.values()
        concerned = [instance for instance in instances if instance.pass_env or instance.secrets]
        check_environment(
            concerned,
            self.options.environment,
            self.secrets,
            must_run=must_run,
            warn=lambda text: self.emit(Warned(text)),
        )

    # Schedule

    def _restore_ahead(self) -> None:
        lost = self.performer.recollection.lost
        most = 2 * len(lost) > len(self.planned.plan.instances)  # Else most of them may run again.
        if most and self.pace.jobs() > 1:
            from .restoring import restore_ahead

            wanted = [instance for name, instance in self.planned.plan.instances.items() if name in lost]
            restore_ahead(self.performer.recollection, wanted, stopped=lambda: self.stop.requested)

    def _schedule(self, performer: Performer) -> None:
        plan = self.planned.plan
        durations = partial(durations_ms, plan, self.memory)
        finished: dict[str, StepFinished] = {}

        def settled(name: str, outcome: Outcome | None) -> None:
            if outcome is None:
                event = self._skipped(name)
            elif outcome.finished is None:
                return  # A group: it has members, and nothing of its own.
            else:
                event = outcome.finished
                self._learn(name, outcome)
            if event is not None:
                finished[name] = event
                self.emit(event)

        try:
            schedule.Schedule(
                self.scope.order,
                Frontier(self.scope.order, self.pace.priority(self.scope.order, plan.instances, durations)),
                performer.begin,
                workers=self.pace.workers(),
                keep_going=self.options.keep_going or self.options.dry_run,
                settled=settled,
                stop=self.stop,
            ).run()
        finally:  # Also of a run that could not go on: its journal counts what was done.
            self.report.steps = [finished[name] for name in plan.instances if name in finished]

    def _skipped(self, name: str) -> StepFinished | None:
        instance = self.planned.plan.instances[name]
        if instance.is_group:
            return None
        place, needs = self.places[name]
        reason = INTERRUPTED if self.signal is not None else "a step failed"
        return StepFinished(name, "skipped", reason=reason, outputs=instance.outputs, place=place, needs=needs)

    def _learn(self, name: str, outcome: Outcome) -> None:
        if outcome.remembered is not None:
            self.memory.steps[name] = outcome.remembered
            self.memory.failed.pop(name, None)
        elif outcome.finished is not None and outcome.finished.state == "failed":
            self.memory.failed[name] = outcome.finished.request_digest or ""

    # Tidy

    def _tidy(self, layout: Layout, stamps: Stamps, question: plans.Question) -> None:
        """Removes the outputs of steps that the manifest no longer has, and saves what was learnt."""
        if self.part is None:
            remove_vanished(self.site.root, self.planned.plan, self.memory, self.options.variant, layout)
        stamps.settle()
        if self.part is None:
            self._forget_the_unseen(stamps)
        self.memory.last_run = self.run_id
        memories.save(self.site.dot, self.site.seal, self.memory)
        if self.part is not None:
            return
        if self.planned.made_now or not self._plan_is_settled():
            plans.keep(self.site.root, question, self.site.seal, self.planned)

    def _plan_is_settled(self) -> bool:
        return all(not racy for _, racy, _ in self.planned.evidence.values())

    def _forget_the_unseen(self, stamps: Stamps) -> None:
        if len(self.memory.known) > 2 * len(stamps.seen) + 10_000:
            self.memory.known = {path: known for path, known in self.memory.known.items() if path in stamps.seen}

    # Report

    def _conclude(self, stamps: Stamps, question: plans.Question, surroundings: Surroundings) -> Report:
        report = self.report
        failed = any(step.state == "failed" for step in report.steps)
        if self.signal is not None:
            report.exit_code = Interrupted(self.signal).exit_code
        else:
            report.exit_code = 1 if failed else self._refused()
        report.rested_on = {p: stamp for p, (stamp, _, _) in self.planned.evidence.items()} | stamps.seen
        report.duration_ms = round((time.monotonic() - self.started) * 1000)
        self._end_journal(ok=report.ok, exit_code=report.exit_code)
        if not self.options.dry_run:
            report.upkeep = Upkeep(
                self.store.written,
                self.view.records,
                site=self.site,
                size_max=size_max(self.site, self.planned.store_settings),
                lasted_ms=report.duration_ms,
                used=lambda: [Digest(step.request_digest) for step in self.memory.steps.values()],
            )
        well = report.ok and not self.performer.ran_unremembered
        if self.part is not None:
            self._renew(self.part, stamps, well=well)
        elif well and not self.options.dry_run:
            rested_on = self.trust.paths() if self.trust is not None else []
            steps, run = len(report.steps), self.run_id
            noop.remember(
                self.site, self.options, self.planned, stamps, surroundings, steps, rested_on, run, self.host_system
            )
        return report

    def _renew(self, part: touched.Part, stamps: Stamps, *, well: bool) -> None:
        """Writes down what the next build may believe of what this one looked at."""
        part.written.stale = sorted({*part.written.stale, *part.planned.plan.instances})
        if well and stamps.settled:
            noop.renew(self.site, part.written, {**part.seen, **stamps.seen}, stamps, run=self.run_id)
        else:
            noop.failed(self.site, part.written, self.run_id)

    def _refused(self) -> int:
        """The exit code of a build in which no step failed: 6 if one is not proven as far as the manifest demands."""
        instances = self.planned.plan.instances
        if self.options.dry_run or not any(instance.require for instance in instances.values()):
            return 0
        from .verdicts import shortfalls

        self.remember()  # What is not published yet has earned nothing.
        self.report.refusals = shortfalls(self.store, instances, self.report.steps, self.trust)
        for refusal in self.report.refusals:
            self.emit(Warned(refusal))
        return Refused.exit_code if self.report.refusals else 0

    def _end_journal(self, *, ok: bool, exit_code: int) -> None:
        counts, when = self.report.counts(), now_text()
        self.emit(RunFinished(ok, exit_code, counts, when))
        kept = None if self.journal is None else self.journal.keep(self.store)
        self.remember()
        if self.journal is not None:
            summary = {"counts": counts, "exit_code": exit_code, "ok": ok, "when": when}
            self.journal.finish(self.store, kept, {**summary, "workspace": self.site.workspace_id})
            self.journal = None
