"""`why STEP`: what the next build would do with a step and why, or why it last ran. Nothing is run or changed.

The prediction is a dry run; each difference is one between two kept requests, so it cannot drift from the key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..core.digest import Digest
from ..core.entries import Entry
from ..core.events import Event, StepFinished
from ..core.fields import dataclass, field, replace
from ..core.instance import Plan
from ..core.query import Graph
from ..core.request import Request
from ..core.result import Result
from ..core.secrecy import looks_secret
from ..executors.discovery import discovered_now
from ..store.layout import Store
from . import history, memory
from .build import Running, build
from .contents import Contents
from .explain import Change, System, changes
from .options import Options
from .site import Site, cwd_of, find_site, working_store
from .systems import system_changes

SCHEMA = "requiem.why/1"
BLOCKERS_MAX = 10
DETAILED_MAX = 20
"""Changes whose contents are looked into; the others are only named."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A change, and what can be said of its inside: diff lines, changed names, words that came and went."""

    change: Change
    details: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        change = self.change
        hidden = change.kind == "variable" and looks_secret(change.name)
        return {
            "details": list(self.details),
            "kind": change.kind,
            "name": change.name,
            "new": "(hidden)" if hidden and change.new is not None else change.new,
            "old": "(hidden)" if hidden and change.old is not None else change.old,
            "what": change.what,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """A request against an earlier or another one. `source` says in words which; `run` and `when` where known."""

    source: str
    request_digest: str | None
    differences: tuple[Difference, ...]
    run: str | None = None
    when: str | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    """What else is known, in whole sentences."""

    def as_json(self) -> dict[str, object]:
        return {
            "changes": [difference.as_json() for difference in self.differences],
            "notes": list(self.notes),
            "reason": self.reason,
            "request_digest": self.request_digest,
            "run": self.run,
            "source": self.source,
            "when": self.when,
        }


@dataclass(frozen=True, slots=True)
class Diverged:
    """Another result of the very same request. `differs` names outputs and streams."""

    result_digest: str
    when: str
    host: str
    differs: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "differs": list(self.differs),
            "host": self.host,
            "result_digest": self.result_digest,
            "when": self.when,
        }


@dataclass(slots=True)
class Why:
    """The answer for one instance. `state` is the next build's: fresh, hit, miss or unknown."""

    name: str
    state: str
    reason: str
    request_digest: str | None
    result_digest: str | None
    compared: Comparison | None = None
    last_run: Comparison | None = None
    waits_for: list[tuple[str, str]] = field(default_factory=list)
    divergences: list[Diverged] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        return {
            "compared": self.compared.as_json() if self.compared else None,
            "divergences": [each.as_json() for each in self.divergences],
            "last_run": self.last_run.as_json() if self.last_run else None,
            "name": self.name,
            "reason": self.reason,
            "request_digest": self.request_digest,
            "state": self.state,
            "waits_for": [{"name": name, "reason": reason} for name, reason in self.waits_for],
        }


@dataclass(slots=True)
class Prediction:
    """What a dry run found: each step's line, its request, and what `discover` offered to it."""

    site: Site
    store: Store
    plan: Plan
    finished: dict[str, StepFinished] = field(default_factory=dict)
    requests: dict[str, tuple[Request, Mapping[str, Entry]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def predict(options: Options) -> Prediction:
    """A dry run of the targets. Raises whatever a build would before its first step."""
    options = replace(options, dry_run=True, keep_going=True)
    finished: dict[str, StepFinished] = {}
    requests: dict[str, tuple[Request, Mapping[str, Entry]]] = {}

    def listen(event: Event) -> None:
        if isinstance(event, StepFinished):
            finished[event.name] = event

    def asked(name: str, request: Request, offered: Mapping[str, Entry]) -> None:
        requests[name] = (request, offered)

    begun: list[Running] = []
    report = build(options, listen, begun.append, asked)
    site, planned = find_site(options), begun[0].planned
    assert planned is not None
    store = working_store(site, planned.store_settings, dry_run=True)
    return Prediction(site, store, planned.plan, finished, requests, report.warnings)


class Explainer:
    """Answers for the instances of one prediction."""

    def __init__(self, prediction: Prediction) -> None:
        self.prediction = prediction
        self.store = prediction.store
        self.memory = memory.load(prediction.site.dot, prediction.site.seal)
        self.system: System = system_changes(
            prediction.site.cache_home, lambda digest: prediction.store.objects.get(Digest(digest))
        )
        self._contents = Contents(prediction.site.root, prediction.store)

    def members(self, target: str, start: str) -> list[str]:
        """The instances that a target means. Raises UnknownName."""
        found = Graph(self.prediction.plan).running(target, cwd_of(self.prediction.site, start))
        return [instance.name for instance in found]

    def explain(self, name: str) -> Why:
        event = self.prediction.finished[name]
        why = Why(name, event.state, event.reason, event.request_digest, event.result_digest)
        match event.state:
            case "unknown":
                why.waits_for = self._blockers(name)
            case "miss":
                why.compared = self._since_last_result(name)
            case _:
                why.last_run = self._last_run(name)
        if event.request_digest:
            why.divergences = self.divergences(event.request_digest)
        return why

    # What is compared

    def now(self, name: str, like: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The request of the next build, its discovered inputs filled as another request's were."""
        asked = self.prediction.requests.get(name)
        if asked is None:
            return None
        request, offered = asked
        if like is not None and like["discovered"] is not None:
            request = request.with_discovered(discovered_now(tuple(like["discovered"]), offered))
        return request.as_json()

    def _since_last_result(self, name: str) -> Comparison | None:
        remembered = self.memory.steps.get(name)
        workspace = self.prediction.site.workspace_id
        known = remembered.request_digest if remembered is not None else None
        last = next(history.finished(self.store, workspace, name), None)
        failed = f" (it failed then: {last.event['failure']})" if last and last.event["state"] == "failed" else ""
        if known is not None:
            old = history.request_of(self.store, known)
            run = next(
                (h.run for h in history.finished(self.store, workspace, name) if h.request_digest == known), None
            )
            source = "its last result here"
        else:
            happened = next(
                (
                    h
                    for h in history.finished(self.store, None, name)
                    if history.request_of(self.store, h.request_digest)
                ),
                None,
            )
            if happened is None:
                return None
            known, run, source = happened.request_digest, happened.run, "another workspace's build"
            old = history.request_of(self.store, known)
        if old is None:
            return None
        new = self.now(name, old)
        assert new is not None
        return Comparison(
            source,
            known,
            self.differences(old, new),
            run.run if run else None,
            run.when if run else None,
            reason=f"the last run was {last.run.run}{failed}" if failed and last else "",
        )

    def _last_run(self, name: str) -> Comparison | None:
        """The newest run in which the step's command ran here, and what had changed since the time before."""
        ran = None
        for happened in history.finished(self.store, self.prediction.site.workspace_id, name):
            if ran is None:
                if happened.event["state"] in ("ran", "failed"):
                    ran = happened
            elif happened.request_digest and happened.request_digest != ran.request_digest:
                old = history.request_of(self.store, happened.request_digest)
                new = history.request_of(self.store, ran.request_digest)
                found = self.differences(old, new) if old and new else ()
                return self._ran(ran, _without_consequences(found))
        return None if ran is None else self._ran(ran, ())

    def _ran(self, ran: history.Happened, differences: tuple[Difference, ...]) -> Comparison:
        return Comparison(
            "the run before",
            ran.request_digest,
            differences,
            ran.run.run,
            ran.run.when,
            reason=str(ran.event["reason"]),
        )

    def differences(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Difference, ...]:
        found = []
        for index, change in enumerate(changes(old, new, self.system)):
            details = self._details(change) if index < DETAILED_MAX else []
            found.append(Difference(change, tuple(details)))
        return tuple(found)

    def _details(self, change: Change) -> list[str]:
        match change.kind:
            case "input" | "discovered input" if change.what == "changed":
                return self._contents.differences(change.name, change.old, change.new)
            case "command":
                return command_differences(change.old, change.new)
            case "stdin" if change.old and change.new:
                return self._contents.differences("", change.old, change.new)
        return []

    # What it waits for

    def _blockers(self, name: str) -> list[tuple[str, str]]:
        """The misses that a step waits for, through whatever lies between, nearest first."""
        plan, finished = self.prediction.plan, self.prediction.finished
        found: list[tuple[str, str]] = []
        pending, seen = [name], {name}
        for at in pending:  # Grows while it is walked.
            for need in (*plan.instances[at].needs, *plan.instances[at].after):
                if need in seen:
                    continue
                seen.add(need)
                event = finished.get(need)
                if event is not None and event.state == "miss":
                    found.append((need, event.reason))
                elif event is None or event.state == "unknown":
                    pending.append(need)
        return found

    # Divergences

    def divergences(self, request_digest: str) -> list[Diverged]:
        first = self.store.records.find(Digest(request_digest))
        return [
            Diverged(
                other.result.digest,
                other.record.when,
                other.record.host,
                tuple(result_differences(first.result, other.result)) if first else (),
            )
            for other in self.store.records.divergences(Digest(request_digest))
        ]


def result_differences(old: Result, new: Result) -> list[str]:
    """The names of outputs and streams in which two results differ."""
    names = sorted(old.outputs.keys() | new.outputs.keys())
    found = [name for name in names if old.outputs.get(name) != new.outputs.get(name)]
    found += [stream for stream in ("stdout", "stderr") if getattr(old, stream) != getattr(new, stream)]
    return found + (["exit code"] if old.exit_code != new.exit_code else [])


def command_differences(old: Iterable[str], new: Iterable[str]) -> list[str]:
    """The arguments that came and went; of a shell's text the lines that changed."""
    from .contents import text_differences

    before, after = list(old), list(new)
    if len(before) == len(after) and before[:-1] == after[:-1] and ("\n" in before[-1] or "\n" in after[-1]):
        return text_differences(before[-1].encode(), after[-1].encode())
    import difflib

    found = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag != "equal":
            found += [f"-{json.dumps(word, ensure_ascii=False)}" for word in before[a:b]]
            found += [f"+{json.dumps(word, ensure_ascii=False)}" for word in after[c:d]]
    return found[:24]


def _without_consequences(found: tuple[Difference, ...]) -> tuple[Difference, ...]:
    """Other path sets follow from what changed: they are a cause only where nothing else is."""
    causes = tuple(
        each
        for each in found
        if not (each.change.kind == "discovered input" and each.change.what != "changed")
        and each.change.kind != "discover"
    )
    return causes or found
