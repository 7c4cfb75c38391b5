"""What each step has earned: from its record and from what `reproduce` kept. It runs nothing."""

from __future__ import annotations

import fnmatch
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..core.digest import Digest
from ..core.errors import UnknownName
from ..core.events import StepFinished
from ..core.fields import dataclass, replace
from ..core.instance import Instance
from ..core.request import Request, parse_request
from ..core.verdict import Level, Verdict, parse_level, suffices
from ..store.layout import Store
from ..store.records import Kept
from ..store.verdicts import Verdicts
from .journal import now_text
from .memory import Memory

if TYPE_CHECKING:
    from .reproduce import Examined


@dataclass(frozen=True, slots=True)
class Known:
    """A step whose last result here is recorded."""

    name: str
    request: Request
    kept: Kept


def find_known(store: Store, name: str, memory: Memory) -> Known | None:
    """The record of a step's last success in this workspace; None if the store has none."""
    remembered = memory.steps.get(name)
    kept = store.records.find(Digest(remembered.request_digest)) if remembered is not None else None
    return None if kept is None else Known(name, parse_request(kept.request), kept)


def select(instances: Mapping[str, Instance], wanted: Sequence[str]) -> list[str]:
    """Steps of the plan by name, by step, by output or by a pattern over names; all without `wanted`.

    Raises UnknownName.
    """
    names = [name for name, instance in instances.items() if not instance.is_group]
    if not wanted:
        return names
    found: dict[str, None] = {}
    for text in wanted:
        matched = [name for name in names if name == text] or [
            name
            for name in names
            if instances[name].step == text or text in instances[name].outputs or fnmatch.fnmatchcase(name, text)
        ]
        if not matched:
            raise UnknownName(f'no step, output or name matches "{text}"', hint="requiem list")
        found |= dict.fromkeys(matched)
    return [name for name in names if name in found]


def verdict_of(verdicts: Verdicts, known: Known) -> Verdict:
    """What was earned so far, which may be nothing but the record itself."""
    record = known.kept.record
    earned = verdicts.find(known.request.digest, known.kept.result.digest)
    return earned or Verdict(known.request.digest, known.kept.result.digest, record.host)


def level_of(verdicts: Verdicts, known: Known) -> Level:
    return verdict_of(verdicts, known).level(known.request, known.kept.record, socket.gethostname())


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


def shortfalls(store: Store, instances: Mapping[str, Instance], steps: Sequence[StepFinished]) -> list[str]:
    """One line for each step that succeeded and is not proven as far as it must be."""
    verdicts, found = Verdicts(store), []
    for step in steps:
        wanted = instances[step.name].require
        if not wanted or step.state not in ("fresh", "hit", "ran"):
            continue
        kept = store.records.find(Digest(step.request_digest)) if step.request_digest else None
        if kept is None or kept.result.digest != step.result_digest:
            found.append(f'step "{step.name}" must be {wanted}, and it has no record')
            continue
        known = Known(step.name, parse_request(kept.request), kept)
        level = level_of(verdicts, known)
        if not suffices(level, parse_level(wanted)):
            why = verdict_of(verdicts, known).caps(known.request, kept.record, socket.gethostname())
            found.append(f'step "{step.name}" must be {wanted}, and is {level}{_because(why)}')
    return found


def _because(reasons: Sequence[str]) -> str:
    return f" ({'; '.join(reasons)})" if reasons else ""
