"""Does a step give the same again, and if not, why? One perturbation at a time, and a cause for each difference.

    again -> steady items: one perturbation after another        -> what makes them differ is the cause
          -> unsteady ones: one thing after another held still    -> what makes them agree is the cause

Nothing of it is remembered but the verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from ..core.differences.base import Difference
from ..core.errors import EnvironmentFault
from ..core.fields import dataclass, field
from ..core.policy import Limits
from ..core.request import Request
from ..core.result import Result
from ..sandbox.perturbation import STILL, Perturbation
from .items import ENDING, Item, Items, differing, explain, items_of
from .rerun import NO_LIMITS, CannotRerun, Rerunner
from .trials import AGAIN, INODES, Trial, fix_for, held, holdable, trials

SAME, DIFFERS = "same", "differs"
HELD_RUNS = 3
"""Two runs of a race agree too often by chance; what is named in the end was tried twice as often."""
ALONE: tuple[str, ...] = (INODES,)
NOTHING_HELD: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One item that can come out otherwise. `causes` is empty if none of what was tried explains it.

    `held`: only what the request fixes makes it differ, so the request's result is still always the same.
    `by_place`: the cause was told by where the difference lies, not by a run.
    """

    item: str
    causes: tuple[str, ...]
    held: bool
    differences: tuple[Difference, ...]
    by_place: bool = False
    note: str = ""
    then: Item | None = None
    now: Item | None = None

    @property
    def fix(self) -> str:
        return fix_for(self.causes[0] if self.causes else "", list(self.differences))

    def as_json(self) -> dict[str, object]:
        return {
            "by_place": self.by_place,
            "causes": list(self.causes),
            "differences": [difference.as_json() for difference in self.differences],
            "fix": self.fix,
            "held": self.held,
            "item": self.item,
            "note": self.note,
        }


@dataclass(slots=True)
class Examined:
    """What running a request again showed. `agreed` runs gave its very result; `tried` is by trial."""

    agreed: int = 0
    runs: int = 0
    tried: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def steady(self) -> bool:
        return all(finding.held for finding in self.findings)


OnRun = Callable[[str], None]
Rest = Callable[[float], None]
"""Given a time in seconds since 1970, returns in another pair of seconds than that one."""


def another_seconds(than_s: float) -> None:
    """A pair of seconds is how finely zip tells the time."""
    while int(time.time() / 2) == int(than_s / 2):
        time.sleep(max(0.0, 2.0 - time.time() % 2.0) + 0.001)


def examine(
    rerunner: Rerunner,
    request: Request,
    result: Result,
    *,
    runs: int,
    library: str | None,
    ran_s: float,
    limits: Limits = NO_LIMITS,
    on_run: OnRun = lambda _: None,
    rest: Rest = another_seconds,
) -> Examined:
    """Runs a request `runs` times more as it is, and once under each perturbation.

    `ran_s` is when it gave that result, in seconds since 1970. Raises CannotRerun, EnvironmentFault, Interrupted.
    """
    return _Examination(rerunner, request, result, library, ran_s, limits, on_run, rest).run(runs)


class _Examination:
    """The state of one examination. Items that differ without any perturbation are unsteady; all others are steady."""

    def __init__(
        self,
        rerunner: Rerunner,
        request: Request,
        result: Result,
        library: str | None,
        ran_s: float,
        limits: Limits,
        on_run: OnRun,
        rest: Rest,
    ) -> None:
        self.rerunner = rerunner
        self.request = request
        self.result = result
        self.library = library
        self.limits = limits
        self.on_run = on_run
        self.rest = rest
        self.ran_s = ran_s
        self.recorded: Items = items_of(result, rerunner.blobs)
        self.base: Items = self.recorded
        self.unsteady: dict[str, Items] = {}
        """Items that differed in mere repetition -> the run in which they did."""
        self.drifted: dict[str, Items] = {}
        """Items that are steady now, and not what was recorded."""
        self.found: dict[str, list[tuple[Trial, Items, Items]]] = {}
        self.examined = Examined()
        self._agreed_last = False

    def run(self, runs: int) -> Examined:
        self._again(runs)
        if self.request.policy.sandbox == "strict":
            for trial in trials(self.library):
                self._try(trial)
            causes = self._hold() if self.unsteady else {}
        else:
            causes = {}
        self._conclude(causes)
        return self.examined

    # Runs

    def _run(self, here: Perturbation, what: str) -> Items:
        self.on_run(what)
        ran = self.rerunner.run(self.request, here, self.limits)
        self.ran_s = time.time()
        self.examined.runs += 1
        if ran.result.digest == self.result.digest:
            self._agreed_last = True
            return self.recorded
        self._agreed_last = False
        return items_of(ran.result, self.rerunner.blobs)

    def _again(self, runs: int) -> None:
        """At other seconds than before, each of them."""
        seen: list[Items] = []
        for _ in range(runs):
            self.rest(self.ran_s)
            seen.append(self._run(STILL, AGAIN))
            self.examined.agreed += self._agreed_last
        changed: dict[str, Items] = {name: now for now in seen for name in differing(self.recorded, now)}
        if changed and len(seen) == 1:
            self.rest(self.ran_s)
            seen.append(self._run(STILL, AGAIN))
            changed |= dict.fromkeys(differing(self.recorded, seen[1]), seen[1])
        for name, now in changed.items():
            same_now = all(name not in differing(seen[0], other) for other in seen[1:])
            (self.drifted if same_now else self.unsteady)[name] = now
        if self.drifted:
            self.base = seen[-1]
        self.examined.tried[AGAIN] = DIFFERS if changed else SAME

    # Steady items: what makes them differ?

    def _try(self, trial: Trial) -> None:
        try:
            base = self.base if trial.control == STILL else self._run(trial.control, trial.name)
            results = self._run_at_once(trial)
        except (CannotRerun, EnvironmentFault) as error:
            self.rerunner.raise_if_interrupted()
            self.examined.tried[trial.name] = f"not tried: {error}"
            return
        self.examined.tried[trial.name] = SAME
        for now in results:
            new = [name for name in differing(base, now) if name not in self.unsteady]
            if not new:
                continue
            self._confirm(new)
            for name in new:
                if name not in self.unsteady:
                    self.examined.tried[trial.name] = DIFFERS
                    known = self.found.setdefault(name, [])
                    if not any(each is trial for each, _, _ in known):
                        known.append((trial, base, now))

    def _run_at_once(self, trial: Trial) -> list[Items]:
        if trial.at_once == 1:
            results = [self._run(trial.here, trial.name)]
            agreed = [self._agreed_last]
        else:
            self.on_run(trial.name)
            with ThreadPoolExecutor(trial.at_once) as pool:
                rans = list(
                    pool.map(lambda _: self.rerunner.run(self.request, trial.here, self.limits), range(trial.at_once))
                )
            self.examined.runs += len(rans)
            agreed = [ran.result.digest == self.result.digest for ran in rans]
            results = [items_of(ran.result, self.rerunner.blobs) for ran in rans]
        if not trial.held:
            self.examined.agreed += sum(agreed)
        return results

    def _confirm(self, names: Iterable[str]) -> None:
        """Without the perturbation: what differs even so is unsteady, whatever the perturbation does."""
        once_more = self._run(STILL, AGAIN)
        for name in set(names) & set(differing(self.base, once_more)):
            self.unsteady[name] = once_more

    # Unsteady items: what makes them agree?

    def _hold(self) -> dict[str, tuple[str, ...]]:
        """One thing held still; for what needs more, all of them, and all but one: what is missed is its cause."""
        names = holdable(self.library)
        causes = self._confirmed([(name,) for name in names] + [names])
        mixed = [name for name, found in causes.items() if found == names]
        if mixed:
            without = {left_out: tuple(name for name in names if name != left_out) for left_out in names}
            partly = self._run_held(list(without.values()))
            for name in mixed:
                missed = tuple(each for each in names if not _all_agree(name, partly.get(without[each], [])))
                causes[name] = missed or names
        return causes

    def _confirmed(self, wanted: list[tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """What makes each item agree. A race may do so by chance, so what is named has been tried twice as often."""
        results = self._run_held(wanted)
        while True:
            causes = {name: found for name in self.unsteady if (found := _explaining(name, results))}
            once = [each for each in results if each in causes.values() and len(results[each]) == HELD_RUNS]
            if ALONE in once:
                once.append(NOTHING_HELD)
            more = self._run_held(once) if once else {}
            if not more:
                return causes
            for each, ran in more.items():
                results.setdefault(each, []).extend(ran)

    def _run_held(self, wanted: list[tuple[str, ...]]) -> dict[tuple[str, ...], list[Items]]:
        """Three runs of each, at different seconds."""
        results: dict[tuple[str, ...], list[Items]] = {}
        for _ in range(HELD_RUNS):
            self.rest(self.ran_s)
            for names in wanted:
                try:
                    ran = self._run(held(names, self.library), f"held: {', '.join(names) or 'nothing'}")
                    results.setdefault(names, []).append(ran)
                except (CannotRerun, EnvironmentFault):
                    self.rerunner.raise_if_interrupted()
        return results

    # What it comes to

    def _conclude(self, causes: dict[str, tuple[str, ...]]) -> None:
        for name in sorted(self.unsteady):
            now = self.unsteady[name]
            self._add(name, causes.get(name, ()), self.base if name in self.base else self.recorded, now)
        for name in sorted(self.drifted.keys() - self.unsteady.keys()):
            known = tuple(trial.name for trial, _, _ in self.found.get(name, []) if not trial.held)
            note = "it gives the same each time now, and not what was recorded"
            self._add(name, known, self.recorded, self.drifted[name], note=note)
        for name in sorted(self.found.keys() - self.unsteady.keys() - self.drifted.keys()):
            tried = self.found[name]
            loose = [each for each in tried if not each[0].held]
            shown = (loose or tried)[0]
            self._add(name, tuple(trial.name for trial, _, _ in loose or tried), shown[1], shown[2], held=not loose)

    def _add(
        self, name: str, causes: tuple[str, ...], then: Items, now: Items, *, held: bool = False, note: str = ""
    ) -> None:
        before, after = then.get(name), now.get(name)
        if name == ENDING:
            assert before is not None and after is not None
            found = [Difference(("ending",), before.facts, after.facts)]
        else:
            found = explain(before, after, self.rerunner.blobs)
        betrayed = next((difference.betrays for difference in found if difference.betrays), "")
        by_place = not causes and bool(betrayed)
        self.examined.findings.append(
            Finding(
                name,
                (betrayed,) if by_place else causes,
                held,
                tuple(found),
                by_place,
                note,
                before,
                after,
            )
        )


def _explaining(name: str, held_runs: dict[tuple[str, ...], list[Items]]) -> tuple[str, ...]:
    """The first thing that, held still, makes all runs agree on an item; nothing if none does.

    A view of its own is no cause where runs agree in shared ones just as well, as those of one minute do on a date.
    """
    no_cause = {NOTHING_HELD, *([ALONE] if _all_agree(name, held_runs.get(NOTHING_HELD, [])) else [])}
    tried = (causes for causes in held_runs if causes not in no_cause)
    return next((causes for causes in tried if _all_agree(name, held_runs[causes])), ())


def _all_agree(name: str, results: list[Items]) -> bool:
    return len(results) >= HELD_RUNS and all(_agree(name, results[0], other) for other in results[1:])


def _agree(name: str, one: Items, other: Items) -> bool:
    """Whether an item is there, and the same, in two runs that both ended well."""
    return one[ENDING] == other[ENDING] and name in one and one.get(name) == other.get(name)
