"""One step of a build, from what it depends on to its outputs in the workspace.

    inputs -> request -> fresh? -> rebuilder (hit or run) -> laid out -> Outcome

It runs in a worker thread and knows nothing of order: the schedule has seen to that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ..core.digest import Digest
from ..core.entries import Entry, Tree, files_below
from ..core.errors import CorruptObject, MissingObject, SourceMissing
from ..core.events import Listener, StepFinished, StepStarted, StepState, Warned
from ..core.fields import dataclass, field
from ..core.instance import Instance
from ..core.patterns import lead_into, matches_any
from ..core.request import Request
from ..store.layout import Store
from . import lost
from .flights import Flights
from .layout import Layout
from .memory import Remembered
from .owning import make_room
from .rebuild import Built, Rebuilder, Wanted
from .recollection import Recollection
from .requests import Asked, InputNotMade, Inputs, Made, RequestMaker
from .undeclared import undeclared_arguments
from .workspace import InputChanged, Workspace

SAME = "same request as"
INTERRUPTED = "interrupted"
LOSSES_MAX = 8
"""How often one step puts up with objects that are deleted under it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`outputs` is what dependents see. `known` is false in a dry run, where a miss's outputs are not known."""

    ok: bool
    outputs: Mapping[str, Entry]
    finished: StepFinished | None
    remembered: Remembered | None = None
    known: bool = True
    built: Built | None = None


Rest = Callable[[], Outcome]


def why_not_remembered(instance: Instance, level: str) -> str:
    """Empty for a step whose result is remembered."""
    if not instance.cache:
        return "cache = false: it runs each time"
    if level == "none":
        return "sandbox none: it runs each time"
    if instance.policy.network == "host" and not instance.lock:
        return 'network = "host" without lock: it runs each time'
    return ""


class _Once:
    """A text that is found when it is first asked for: why a step runs is costly to say, and a hit need not know."""

    def __init__(self, find: Callable[[], str]) -> None:
        self._find = find
        self._text: str | None = None

    def __call__(self) -> str:
        if self._text is None:
            self._text = self._find()
        return self._text


@dataclass(slots=True)
class Performer:
    """Everything that steps share. `always` says why each of them runs whatever is known; empty where it need not."""

    instances: Mapping[str, Instance]
    places: Mapping[str, tuple[int, tuple[int, ...]]]
    """Each step's place in the plan, and those of what it waits for."""
    offers: Mapping[tuple[str, ...], tuple[str, ...]]
    maker: RequestMaker
    workspace: Workspace
    store: Store
    recollection: Recollection
    layout: Layout
    rebuilder: Rebuilder
    emit: Listener
    always: str
    dry_run: bool
    verbose: bool
    asked: Callable[[str, Request, Mapping[str, Entry]], None] | None = None
    """Told each step's request, and what `discover` offers to it, before it is answered."""
    ran_unremembered: bool = False
    """Whether a step ran that runs each time: then there is never nothing to do."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The caller's: a variable that a step lacks and that is there is named."""
    known: dict[str, Mapping[str, Entry]] = field(default_factory=dict)
    """The outputs of each step that another waited for: those that have ended, and those that are not looked at."""
    _flights: Flights = field(default_factory=Flights)

    def begin(self, name: str, needed: Mapping[str, Outcome]) -> Outcome | Rest:
        """The step's outcome if it is quickly had; else what is left to do, for a worker."""
        instance = self.instances[name]
        self.known.update((need, outcome.outputs) for need, outcome in needed.items())
        made = {need: self.known[need] for need in (*instance.needs, *instance.after)}
        known = all(outcome.known for outcome in needed.values())
        as_before = self.recollection.waits_for_nothing_new(instance)
        if instance.is_group:
            if as_before:
                self.recollection.note_as_before(name)
            merged = {path: entry for need in instance.needs for path, entry in made[need].items()}
            return Outcome(True, merged, None, known=known)
        if not known:
            finished = self._finished(instance, "unknown", reason="it waits for a miss")
            return Outcome(True, {}, finished, known=False)
        remembered = self.recollection.recovered(instance) if as_before else None
        if remembered is not None:
            return self._as_remembered(instance, remembered, "hit")
        if self._is_heavy(instance, made):
            return lambda: self._perform(instance, made)
        try:
            begun = self._attempt(instance, made)
        except (InputNotMade, InputChanged, CorruptObject, MissingObject):
            return lambda: self._perform(instance, made)
        return begun if isinstance(begun, Outcome) else lambda: self._perform(instance, made, begun)

    def _is_heavy(self, instance: Instance, made: Made) -> bool:
        """Whether it must read much: a large source that is not known by its stamp, or a directory."""
        if any(path.endswith("/") for path in instance.outputs):
            return True
        return any(
            item.producer is None and (item.path.endswith("/") or not self.workspace.is_light(item.path))
            for item in instance.inputs
        )

    def _perform(self, instance: Instance, made: Made, begun: Rest | None = None) -> Outcome:
        """Everything, and again where a try met something that had changed or was lost."""
        losses = LOSSES_MAX
        changed_once = False
        while True:
            try:
                return self._finish(begun or self._attempt(instance, made))
            except InputNotMade as missing:
                return self._failed_before(instance, missing.what)
            except InputChanged as changed:
                if changed_once:
                    return self._failed_before(instance, f'input "{changed.path}" changed during the build')
                changed_once = True
                where = f'input "{changed.path}" of "{instance.name}"'
                self.emit_warning(f"{where} changed during the build: trying once more")
            except (CorruptObject, MissingObject) as gone:
                if self.dry_run:
                    finished = self._finished(instance, "unknown", reason=gone.what)
                    return Outcome(True, {}, finished, known=False)
                if losses == 0:
                    raise
                losses -= 1
                self.emit_warning(f"{gone.what}: it is made again")
                with suppress(InputNotMade, InputChanged, CorruptObject, MissingObject):  # Lost again meanwhile.
                    made = self._recover(instance)
            begun = None

    def _recover(self, instance: Instance) -> Made:
        """What the step waits for, in the store again: somebody deleted from it while we build."""

        def run(lost_one: Instance, needed: Made) -> Mapping[str, Entry] | None:
            if lost_one.is_group:
                return {path: entry for need in lost_one.needs for path, entry in needed[need].items()}
            outcome = self._finish(self._attempt(lost_one, needed))
            return outcome.outputs if outcome.ok else None

        self.workspace.blobs.forget_all()
        return lost.recover(instance, self.instances, self.known, store=self.store, workspace=self.workspace, run=run)

    def _finish(self, begun: Outcome | Rest) -> Outcome:
        return begun if isinstance(begun, Outcome) else begun()

    def emit_warning(self, text: str) -> None:
        self.emit(Warned(text))

    def _finished(
        self,
        instance: Instance,
        state: StepState,
        request_digest: str | None = None,
        result_digest: str | None = None,
        **facts: Any,
    ) -> StepFinished:
        place, needs = self.places[instance.name]
        return StepFinished(
            instance.name,
            state,
            request_digest,
            result_digest,
            outputs=instance.outputs,
            place=place,
            needs=needs,
            **facts,
        )

    def _failed_before(self, instance: Instance, failure: str) -> Outcome:
        finished = self._finished(instance, "failed", reason=failure, failure=failure)
        return Outcome(False, {}, finished)

    def _attempt(self, instance: Instance, made: Made) -> Outcome | Rest:
        inputs = self.maker.inputs(instance, made)
        command, shown = self._command(instance, inputs)
        asked = self.maker.make(instance, inputs, command, made)
        offered = self._offered(instance, made)
        if self.asked is not None:
            self.asked(instance.name, asked.request, offered)
        refusal = why_not_remembered(instance, asked.request.policy.sandbox)
        must_run = refusal or self.always
        if not must_run:
            found = self.recollection.answer(instance, asked.request, offered, restore=not self.dry_run)
            if found is not None:
                return self._as_remembered(instance, *found)
        self.ran_unremembered |= bool(refusal)
        if self.dry_run:
            return self._predict(instance, asked.request, offered, must_run)
        reason = _Once(lambda: must_run or self.recollection.reason(instance, asked.request, offered))
        if not must_run and asked.request.digest not in self._flights:
            recalled = self.rebuilder.recall(asked.request, offered)
            if recalled is not None:
                return self._conclude(instance, inputs, recalled, reason, offered)

        def rest() -> Outcome:
            built = self._build(instance, inputs, asked, offered, reason, shown, remember=not refusal)
            return self._conclude(instance, inputs, built, reason, offered)

        return rest

    def _command(self, instance: Instance, inputs: Inputs) -> tuple[tuple[str, ...], str]:
        if not instance.late:
            return instance.command, instance.shown
        from ..core.templates import render_late

        return render_late(instance.late, inputs.late)

    def _offered(self, instance: Instance, made: Made) -> dict[str, Entry]:
        """What `discover` matches now: sources, and outputs of the steps that come first because of it."""
        if not instance.discover:
            return {}
        offered: dict[str, Entry] = {}
        for path in self.offers[instance.discover]:
            try:
                offered |= self.workspace.source(path, instance.name)  # With what a symlink leads to.
            except SourceMissing:
                continue  # It went away since the patterns were matched, or leads nowhere.
        for producer in instance.after:
            for path, entry in made[producer].items():
                if not isinstance(entry, Tree):
                    if matches_any(instance.discover, path):
                        offered[path] = entry
                elif lead_into(instance.discover, path):
                    below = files_below(path, entry.digest, self.workspace.blobs.get)
                    offered.update((each, there) for each, there in below if matches_any(instance.discover, each))
        return offered

    def _as_remembered(self, instance: Instance, remembered: Remembered, state: StepState) -> Outcome:
        stdout_digest, stderr_digest = self._said(remembered) if state == "hit" and self.verbose else (None, None)
        return Outcome(
            True,
            remembered.outputs,
            self._finished(
                instance,
                state,
                remembered.request_digest,
                remembered.result_digest,
                exit_code=0,
                termination="exited",
                reason="up to date" if state == "fresh" else "restored from the store",
                warnings=remembered.warnings,
                stdout_digest=stdout_digest,
                stderr_digest=stderr_digest,
                record_digest=remembered.record_digest,
            ),
            self.recollection.renewed(remembered),
        )

    def _said(self, remembered: Remembered) -> tuple[Digest | None, Digest | None]:
        """What a restored step wrote when it ran. Memory does not hold it: hardly anybody asks."""
        kept = None if self.dry_run else self.store.records.find(Digest(remembered.request_digest))
        if kept is None or kept.result.digest != remembered.result_digest:
            return None, None
        return kept.result.stdout.digest, kept.result.stderr.digest

    # Hit, or run

    def _predict(self, instance: Instance, request: Request, offered: Mapping[str, Entry], must_run: str) -> Outcome:
        found = self.rebuilder.recall(request, offered) if not must_run else None
        if found is None:
            reason = must_run or self.recollection.reason(instance, request, offered)
            finished = self._finished(instance, "miss", request.digest, reason=reason)
            return Outcome(True, {}, finished, known=False)
        result = found.result
        assert result is not None
        in_place = self.recollection.in_place(instance, result.outputs)
        finished = self._finished(
            instance,
            "fresh" if in_place else "hit",
            found.request.digest,
            result.digest,
            exit_code=0,
            termination="exited",
            reason="up to date" if in_place else "in the store",
        )
        return Outcome(True, result.outputs, finished)

    def _build(
        self,
        instance: Instance,
        inputs: Inputs,
        asked: Asked,
        offered: Mapping[str, Entry],
        reason: Callable[[], str],
        shown: str,
        *,
        remember: bool,
    ) -> Built:
        def started() -> None:
            if asked.request.policy.sandbox == "none":  # It runs in the workspace itself.
                make_room(self.workspace.root, instance, inputs.entries, self.layout)
            for warning in self._suspicious(instance, inputs, shown, asked.request):
                self.emit_warning(warning)
            self.emit(StepStarted(instance.name, shown, reason()))

        wanted = Wanted(
            asked.request,
            offered,
            instance.limits,
            keep_inputs=lambda: self._keep(instance, inputs, offered, asked.request),
            started=started,
            asserted=asked.asserted,
            still_true=lambda: self._check_roots(instance, asked.request),
            remember=remember,
            retries=instance.retries,
        )
        if not remember:
            return self.rebuilder.build(wanted)
        return self._flights.answer(instance.name, wanted, self.rebuilder)

    def _keep(self, instance: Instance, inputs: Inputs, offered: Mapping[str, Entry], request: Request) -> None:
        """Puts every source that the request names into the store; what other steps made is there already."""
        self.maker.keep_system(request)
        for path, entry in (*inputs.entries.items(), *offered.items()):
            try:
                self.workspace.keep(path, entry)
            except InputChanged:
                if path in inputs.sources or path in offered:
                    raise
                raise MissingObject(f'the store does not hold "{path}", which another step made') from None
        if instance.stdin is not None and instance.stdin.producer is None:
            for path, entry in self.workspace.source(instance.stdin.path, instance.name).items():
                self.workspace.keep(path, entry)

    def _check_roots(self, instance: Instance, request: Request) -> None:
        """A root is shown as it lies on the host: if it changed meanwhile, nobody knows what the step saw."""
        changed = self.maker.changed_root(instance, request)
        if changed is not None:
            raise InputChanged(changed)

    def _suspicious(self, instance: Instance, inputs: Inputs, shown: str, request: Request) -> list[str]:
        """Words of the command that name an existing file of the workspace which the step will not see."""
        return undeclared_arguments(
            instance,
            shown,
            self.workspace.root,
            visible={*inputs.entries, *(self.offers.get(instance.discover) or ())},
            roots=request.roots,
        )

    def _conclude(
        self,
        instance: Instance,
        inputs: Inputs,
        built: Built,
        reason: Callable[[], str],
        offered: Mapping[str, Entry],
    ) -> Outcome:
        result, ran = built.result, built.ran
        assert result is not None
        if ran is not None and ran.cancelled and not ran.ok:  # We ended it: that is no failure of its own.
            finished = self._finished(instance, "skipped", reason=INTERRUPTED)
            return Outcome(False, {}, finished)
        warnings = ["gave another result than before for the same request"] if built.diverged else []
        failure = ran.failure if ran is not None else ""
        in_place = built.request.policy.sandbox == "none"  # What lies in the workspace is mostly not the step's.
        if ran is not None and ran.undeclared and not in_place and (self.verbose or failure):
            warnings.append("made and did not declare: " + ", ".join(ran.undeclared[:10]))
        if result.stdout.truncated or result.stderr.truncated:
            warnings.append("captured output was cut at max_output_bytes")
        changed = False
        if not failure and instance.lay_out:
            changed = self.layout.lay_out(instance.name, result.outputs, self.recollection.previous(instance))
        state: StepState = "failed" if failure else "ran" if ran is not None else "hit" if changed else "fresh"
        if built.same_as:
            state, why = "hit", f"{SAME} {built.same_as}"
        elif state in ("hit", "fresh"):
            why = "restored from the store" if state == "hit" else "up to date"
        else:
            why = reason()
        finished = self._finished(
            instance,
            state,
            built.request.digest,
            result.digest,
            exit_code=result.exit_code,
            termination=result.termination,
            reason=why,
            duration_ms=ran.duration_ms if ran is not None else 0,
            warnings=tuple(warnings),
            failure=failure,
            hints=self._hints(instance, inputs, built, offered) if failure else (),
            stdout_digest=result.stdout.digest,
            stderr_digest=result.stderr.digest,
            record=built.record.as_json() if built.record is not None and ran is not None else None,
            record_digest=built.filed.digest if built.filed is not None else None,
            request=None if built.filed is not None else built.request.as_json(),
            result=None if built.filed is not None else result.as_json(),
        )
        if failure:
            return Outcome(False, {}, finished, built=built)
        return Outcome(True, result.outputs, finished, self.recollection.learnt(built, finished), built=built)

    def _hints(self, instance: Instance, inputs: Inputs, built: Built, offered: Mapping[str, Entry]) -> tuple[str, ...]:
        ran = built.ran
        if ran is None:
            return ()
        text = (ran.stderr + b"\n" + ran.stdout).decode("utf-8", "replace") + "\n" + ran.failure
        from . import hints

        found = hints.for_failure(
            instance,
            text,
            self.workspace.root,
            visible={*inputs.entries, *offered},
            request=built.request,
            environment=self.environment,
        )
        return (*self.maker.package_hints(built.request, text), *found) or hints.last_resort(instance, text)
