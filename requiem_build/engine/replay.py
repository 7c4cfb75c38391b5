"""Was a run what it says it was? Its journal, its plan's order and every step's proof, offline and read-only.

    runs/ID -> journal, line by line -> each step: request, result, record, trace, objects -> all that is wrong

It reads a store and nothing else. Memory does not grow with the journal but by a few bytes for each step.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from ..core import canonical
from ..core.digest import Digest
from ..core.errors import CorruptObject, IntegrityError, MissingObject, RequestError, UnknownName
from ..core.events import parse_event
from ..core.fields import dataclass, field
from ..store.keys import Verifier
from ..store.layout import MARK, Store, mark_is_exact
from ..store.runs import Run
from .journal import journal_lines
from .proofs import Event, Problem, Proofs, Proven

SCHEMA = "requiem.replay/1"
PROBLEMS_MAX = 10_000
STEPS_MAX = 1 << 26

OnStep = Callable[[Event, Proven], Iterator[Problem]]
"""Asked about each step whose request and result were found: what else is wrong with it."""


@dataclass(slots=True)
class Replayed:
    """`problems` is empty if all of it holds. `executed` counts the steps that were run again."""

    run: str
    problems: list[Problem] = field(default_factory=list)
    steps: int = 0
    objects: int = 0
    executed: int = 0
    manifest: dict[str, str | None] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_json(self) -> dict[str, object]:
        return {
            "executed": self.executed,
            "manifest": self.manifest,
            "objects": self.objects,
            "ok": self.ok,
            "problems": [problem.as_json() for problem in self.problems],
            "run": self.run,
            "schema": SCHEMA,
            "steps": self.steps,
        }


def find_run(store: Store, wanted: str, workspace: str | None, last: str | None = None) -> str:
    """The id of a run: `wanted`, or for `latest` the newest of the workspace (None: of any), or one that is damaged.

    `last` is what the workspace remembers as its last run. Raises UnknownName.
    """
    if wanted != "latest":
        if wanted not in store.runs.ids():
            raise UnknownName(f'no run "{wanted}" in the store', facts=[("store", str(store.root))])
        return wanted
    for run_id in reversed(store.runs.ids()):
        try:
            if workspace is None or run_id == last or store.runs.get(run_id).workspace == workspace:
                return run_id
        except IntegrityError:
            return run_id  # It may well be the one that is meant: to pass it over would be to hide it.
    raise UnknownName("no run of this workspace in the store", facts=[("store", str(store.root))])


def replay(store: Store, run_id: str, on_step: OnStep | None = None, verifier: Verifier | None = None) -> Replayed:
    """All that is wrong with a run; signatures are judged by a `verifier`'s keys.

    Raises UnknownName if there is none of that id, EnvironmentFault.
    """
    replayed = Replayed(run_id)
    if not mark_is_exact(store.root):
        replayed.problems.append(Problem("the store's mark of its format is damaged", MARK))
    try:
        run = store.runs.get(run_id)
    except IntegrityError as error:
        cause = dict(error.facts).get("cause", "")
        replayed.problems.append(Problem(f"{error.what}: {cause}", f"runs/{run_id}"))
        return replayed
    proofs = Proofs(store, verifier)
    try:
        for problem in _Replay(store, run, proofs, replayed, on_step).problems():
            replayed.problems.append(problem)
            if len(replayed.problems) >= PROBLEMS_MAX:
                replayed.problems.append(Problem("and more: there are too many problems to list", ""))
                break
    finally:
        proofs.close()
    replayed.objects = proofs.objects
    return replayed


class _Replay:
    """The state of one replay, line by line."""

    def __init__(self, store: Store, run: Run, proofs: Proofs, replayed: Replayed, on_step: OnStep | None) -> None:
        self.store = store
        self.run = run
        self.proofs = proofs
        self.replayed = replayed
        self.on_step = on_step
        self.mode = ""
        self.planned = 0
        self.number = 0
        self.at_ms = 0
        self.highest = -1
        self.ended = False
        self.counts: Counter[str] = Counter()
        self.started: dict[str, int] = {}
        self.finished = array("q")
        """By place: the line that finished the step, negative if it did not succeed; 0: not yet."""

    @property
    def where(self) -> str:
        return f"journal line {self.number}"

    def problems(self) -> Iterator[Problem]:
        try:
            for line in journal_lines(self.store, self.run.journal):
                self.number += 1
                yield from self._line(line)
        except (MissingObject, CorruptObject) as error:
            yield Problem(f"the journal cannot be believed: {error.what}", _object_place(self.run.journal))
            if self.number == 0:
                return
        if not self.ended:
            yield Problem(f"the journal is cut off: it ends after line {self.number}, before run_finished", self.where)

    def _line(self, line: bytes) -> Iterator[Problem]:
        try:
            event = parse_event(line)
            if canonical.encode_plain(event) != line:
                raise RequestError("it is not canonical")
        except (RequestError, RecursionError) as error:
            what = error.what if isinstance(error, RequestError) else "nested too deep"
            yield Problem(f"not a line of a journal: {what}", self.where)
            return
        if event["at_ms"] < self.at_ms:
            yield Problem("it is earlier than the line before it", self.where)
        self.at_ms = event["at_ms"]
        if self.ended:
            yield Problem("it stands after the end of the run", self.where)
        kind = event["event"]
        if (kind == "run_started") != (self.number == 1) or (kind == "plan_made") != (self.number == 2):
            yield Problem(f"{kind} is out of its place", self.where)
        yield from getattr(self, f"_{kind}")(event)

    def _run_started(self, event: Event) -> Iterator[Problem]:
        self.mode = event["mode"]
        yield from self._compare(event, {"run": self.run.run, "workspace": self.run.workspace})

    def _plan_made(self, event: Event) -> Iterator[Problem]:
        self.planned = event["steps"]
        self.replayed.manifest = dict(event["manifest"])
        for path, digest in event["manifest"].items():
            wrong = "" if digest is None else self.proofs.check_object(Digest(digest))
            if wrong:
                yield Problem(f'manifest "{path}": {wrong}', _object_place(Digest(digest)))

    def _step_started(self, event: Event) -> Iterator[Problem]:
        if event["name"] in self.started:
            yield Problem("it started twice", self.where, event["name"])
        self.started[event["name"]] = self.number

    def _step_finished(self, event: Event) -> Iterator[Problem]:
        self.replayed.steps += 1
        self.counts[event["state"]] += 1
        began = self.started.pop(event["name"], self.number)
        yield from self._check_order(event, began)
        if event["request_digest"] is None:
            if event["state"] not in ("failed", "skipped"):
                yield Problem("it has an answer and no request", self.where, event["name"])
            return
        proven = self.proofs.find(event, self.where)
        if isinstance(proven, Problem):
            yield proven
            return
        yield from self.proofs.check(event, proven, self.where)
        if self.on_step is not None:
            yield from self.on_step(event, proven)

    def _check_order(self, event: Event, began: int) -> Iterator[Problem]:
        """Plan order: each place once, nothing before what it needs, and in repro mode one after the other."""
        place, name = event["place"], event["name"]
        if place >= min(self.planned, STEPS_MAX):
            yield Problem(f"its place {place} is not in a plan of {self.planned} steps", self.where, name)
            return
        if place >= len(self.finished):
            self.finished.extend([0] * (place + 1 - len(self.finished)))
        if self.finished[place]:
            yield Problem(f"place {place} of the plan is finished twice", self.where, name)
        succeeded = event["state"] in ("fresh", "hit", "ran")
        for need in event["needs"] if event["state"] != "skipped" else ():
            line = self.finished[need] if need < place else 0
            if need >= place:
                yield Problem(f"it needs place {need}, which comes after its own, {place}", self.where, name)
            elif not 0 < line < began:
                yield Problem(f"it began before place {need}, which it needs, had succeeded", self.where, name)
        if self.mode == "repro" and event["state"] != "skipped":
            if place < self.highest:
                yield Problem("mode repro, and it is not in plan order", self.where, name)
            self.highest = place
        self.finished[place] = self.number if succeeded else -self.number

    def _warned(self, event: Event) -> Iterator[Problem]:
        yield from ()

    def _run_finished(self, event: Event) -> Iterator[Problem]:
        self.ended = True
        run = self.run
        said = {"counts": dict(run.counts), "exit_code": run.exit_code, "ok": run.ok, "when": run.when}
        yield from self._compare(event, said)
        counts = {name: number for name, number in event["counts"].items() if number and name != "total"}
        if counts != dict(self.counts) or event["counts"].get("total") != self.counts.total():
            yield Problem(f"the run counts {event['counts']}, the journal holds {dict(self.counts)}", self.where)
        if event["ok"] != (event["exit_code"] == 0):
            yield Problem("its exit code and its ok contradict each other", self.where)
        for name in self.started:
            yield Problem("it started and never finished", self.where, name)

    def _compare(self, event: Event, said: dict[str, Any]) -> Iterator[Problem]:
        for name, value in said.items():
            if event[name] != value:
                yield Problem(f"{name} mismatch: {value!r} is listed, the journal has {event[name]!r}", self.where)


def _object_place(digest: Digest) -> str:
    return f"v2/objects/{digest[:2]}/{digest[2:4]}/{digest}"
