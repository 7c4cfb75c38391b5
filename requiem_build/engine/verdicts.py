"""What each step has earned: from its record and from what `reproduce` kept. It runs nothing."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..core.events import StepFinished
from ..core.fields import dataclass, replace
from ..core.instance import Instance, Plan
from ..core.query import Graph
from ..core.request import Request, parse_request
from ..core.verdict import Level, Verdict, parse_level, suffices
from ..store.layout import Store
from ..store.records import Kept
from ..store.seals import signers_of
from ..store.verdicts import Verdicts
from .history import last_successes
from .journal import now_text
from .lineage import find_result
from .memory import Memory

if TYPE_CHECKING:
    from .reproduce import Examined
    from .trust import Trust


@dataclass(frozen=True, slots=True)
class Known:
    """A step whose last result here is recorded."""

    name: str
    request: Request
    kept: Kept


def find_all_known(store: Store, names: Sequence[str], memory: Memory, workspace: str) -> list[Known | None]:
    """The record of each step's last success in this workspace; None where the store has none.

    What the workspace does not remember itself, the store's journals tell.
    """
    forgotten = [name for name in names if name not in memory.steps]
    recalled = last_successes(store, workspace, forgotten) if forgotten else {}
    found: list[Known | None] = []
    for name in names:
        step = memory.steps.get(name)
        built = recalled.get(name) if step is None else (step.request_digest, step.result_digest)
        kept = None if built is None else find_result(store, *built)
        found.append(None if kept is None else Known(name, parse_request(kept.request), kept))
    return found


def select(plan: Plan, wanted: Sequence[str], cwd: str) -> list[str]:
    """The instances that these names mean, in plan order; all without `wanted`. Raises UnknownName."""
    graph = Graph(plan)
    found = {instance.name for text in wanted for instance in graph.running(text, cwd)}
    return [name for name, each in plan.instances.items() if not each.is_group and (name in found or not wanted)]


def fresh_verdict(known: Known) -> Verdict:
    """That of a result of which nothing but its record speaks."""
    return Verdict(known.request.digest, known.kept.result.digest, known.kept.record.host)


def verdict_of(verdicts: Verdicts, known: Known) -> Verdict:
    """What was earned so far, which may be nothing but the record itself."""
    return verdicts.find(known.request.digest, known.kept.result.digest) or fresh_verdict(known)


@dataclass(frozen=True, slots=True)
class Levels:
    """The levels of results as one reader sees them: what the store keeps, and what keys that he trusts have signed."""

    store: Store
    trust: Trust | None = None

    def judge(self, known: Known) -> tuple[Level, list[str]]:
        """The level, and what keeps it from being higher."""
        vouching, here = self._vouching(known), socket.gethostname()
        verdict = self._verdict(known, vouching)
        of_it = (known.request, known.kept.record, here)
        return verdict.level(*of_it, vouched=bool(vouching)), verdict.caps(*of_it, vouched=bool(vouching))

    def level(self, known: Known) -> Level:
        return self.judge(known)[0]

    def _verdict(self, known: Known, vouching: frozenset[str]) -> Verdict:
        """What was earned here, and what trusted keys signed of their own runs. One that differs takes all back."""
        verdicts = Verdicts(self.store)
        found = verdict_of(verdicts, known)
        if self.trust is None or self.trust.policy is None:
            return found
        accept, verifier = self.trust.policy.accept, self.trust.verifier
        said = verdicts.signed_by(accept, found.request_digest, found.result_digest, verifier)
        agreed, differs = dict(found.agreed), set(found.differs)
        for key_id, other in said.items():
            differs.update(f"{item} (says {accept[key_id]})" for item in other.differs)
            for host, runs in other.agreed.items():
                agreed[host] = max(runs, agreed.get(host, 0))
        for key_id in self._others(known, vouching):
            agreed.setdefault(f"key {accept[key_id]}", 1)
        confirmed = found.confirmed or any(other.confirmed for other in said.values())
        return replace(found, agreed=agreed, differs=tuple(sorted(differs)), confirmed=confirmed)

    def _vouching(self, known: Known) -> frozenset[str]:
        """The accepted keys that signed a record of this very result, made where nothing was taken on trust."""
        if self.trust is None or self.trust.policy is None:
            return frozenset()
        found = signers_of(known.kept.record, self.trust.verifier) & self.trust.policy.accept.keys()
        for key_id in self.trust.policy.accept.keys() - found:
            kept = self.store.signed_records(key_id).find(known.request.digest)
            if kept is None or kept.result.digest != known.kept.result.digest:
                continue
            if not fresh_verdict(known).caps(known.request, kept.record, "", vouched=True):
                found |= signers_of(kept.record, self.trust.verifier) & {key_id}
        return found

    def _others(self, known: Known, vouched: frozenset[str]) -> list[str]:
        """Those of them who are somebody else than who made the record at hand."""
        vouching, record = sorted(vouched), known.kept.record
        if not vouching:
            return []
        assert self.trust is not None
        first = sorted(signers_of(record, self.trust.verifier) & vouched)[:1]
        if first or record.host != socket.gethostname():
            return [key_id for key_id in vouching if key_id != (first or vouching)[0]]
        return [key_id for key_id in vouching if not self.trust.verifier.keys[key_id].own]


def settled(verdict: Verdict, examined: Examined) -> Verdict:
    """The verdict after a step was examined on this host. What differs takes back all that was earned."""
    here = socket.gethostname()
    differs = tuple(finding.item for finding in examined.findings if not finding.held)
    agreed = dict(verdict.agreed)
    if differs:
        agreed = {}
    elif examined.agreed:
        agreed[here] = agreed.get(here, 0) + examined.agreed
    varied = sorted({*verdict.varied, *(name for name, how in examined.tried.items() if how == "same")})
    return replace(
        verdict,
        agreed=agreed,
        differs=differs,
        confirmed=verdict.confirmed or examined.agreed > 0,
        varied=tuple(varied),
        when=now_text(),
    )


def shortfalls(
    store: Store, instances: Mapping[str, Instance], steps: Sequence[StepFinished], trust: Trust | None = None
) -> list[str]:
    """One line for each step that succeeded and is not proven as far as it must be."""
    levels, found = Levels(store, trust), []
    for step in steps:
        wanted = instances[step.name].require
        if not wanted or step.state not in ("fresh", "hit", "ran"):
            continue
        asked, gave = step.request_digest, step.result_digest
        kept = find_result(store, asked, gave) if asked and gave else None
        if kept is None:
            found.append(f'step "{step.name}" must be {wanted}, and it has no record')
            continue
        known = Known(step.name, parse_request(kept.request), kept)
        level, caps = levels.judge(known)
        if not suffices(level, parse_level(wanted)):
            found.append(f'step "{step.name}" must be {wanted}, and is {level}{_because(caps)}')
    return found


def _because(reasons: Sequence[str]) -> str:
    return f" ({'; '.join(reasons)})" if reasons else ""
