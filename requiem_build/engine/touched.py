"""What of a plan a build must look at: little, where little changed since a build that left everything right.

That build wrote down every path that it rested on (`noop.py`). A path with another stamp leads to the steps that name
it; these, and all that wait for them, are looked at as ever. Every other step rests only on paths that are as they
were: it is fresh. Where only an output is gone, its step has still given what is remembered of it. A path that leads
nowhere, or that a plan rests on, sends the question to the full build.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any

from ..core.entries import Entry
from ..core.errors import EnvironmentFault, UsageError
from ..core.events import StepFinished
from ..core.fields import dataclass, replace
from ..core.instance import Instance, Plan
from . import evidence, noop, plans, quick
from .memory import Rows
from .stamps import NOTHING, Stamp, Stamps, pack, stamp_at

if TYPE_CHECKING:
    from .memory import Memory, Remembered
    from .options import Options
    from .site import Site

CHUNK = 500
SHARE_MAX = 0.5
"""Where more of a plan than this must be looked at, the full build does it."""


@dataclass(slots=True)
class Part:
    """`planned` holds only the instances to be looked at, `order` the same with none but themselves to wait for."""

    written: noop.Written
    kept: plans.Kept
    planned: plans.Planned
    order: Plan
    untouched: list[int]
    """The instances that are fresh, by their number in the plan, without groups."""
    seen: dict[str, Stamp]
    """Paths that changed and lead to no step: touched, or looked at and found to be the same. With their new stamps."""
    changed: Mapping[str, Stamp]
    """Every path with another stamp than was written down, and that stamp."""
    memory: Memory
    lost: Set[str]
    instances: Mapping[str, Instance]

    @property
    def total(self) -> int:
        own = sum(not instance.is_group for instance in self.planned.plan.instances.values())
        return len(self.untouched) + own

    def stamp(self, root: str, path: str) -> Stamp | None:
        """What a path had when it was decided what to look at."""
        return self.changed.get(path) or self.written.stamp(root, path)

    def outputs(self, name: str) -> Mapping[str, Entry]:
        """What an instance that is fresh has made; a group, what its members have."""
        found: dict[str, Entry] = {}
        pending = [name]
        while pending:
            each = pending.pop()
            remembered = self.memory.steps.get(each)
            if remembered is not None:
                found.update(remembered.outputs)
            else:
                pending.extend(reversed(self.instances[each].needs))
        return found

    def made(self) -> dict[str, Entry]:
        steps = self.memory.steps
        names = [name for name in self.planned.plan.instances if name in steps]
        return {path: entry for name in names for path, entry in steps[name].outputs.items()}

    def known(self) -> dict[str, Mapping[str, Entry]]:
        return Outcomes(self)

    def places(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        import marshal

        kept = self.kept
        index = {name: number for number, name in enumerate(kept.names)}
        mine = self.planned.plan.instances
        return {name: marshal.loads(kept.places[index[name]]) for name, each in mine.items() if not each.is_group}


class Everything(Mapping[str, Instance]):
    """All instances of a plan, each taken apart when it is asked for; `looked_at` are those that are already."""

    def __init__(self, kept: plans.Kept, looked_at: Mapping[str, Instance]) -> None:
        self._kept = kept
        self._looked_at = looked_at
        self._index = {name: number for number, name in enumerate(kept.names)}

    def __getitem__(self, name: str) -> Instance:
        found = self._looked_at.get(name)
        return self._kept.instance(self._index[name]) if found is None else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept.names)

    def __len__(self) -> int:
        return len(self._kept.names)


class Outcomes(dict[str, Mapping[str, Entry]]):
    """The outputs of steps that have ended, those that are fresh among them."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self._part = part

    def __missing__(self, name: str) -> Mapping[str, Entry]:
        if name in self._part.planned.plan.instances:
            raise KeyError(name)  # It has not ended.
        return self._part.outputs(name)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default


def look(site: Site, options: Options, question: plans.Question, memory: Memory) -> Part | None:
    """The part of a plan that must be looked at; None if that is all of it, or cannot be told."""
    if not (options.brief and noop.is_plain(options)):
        return None
    written = noop.load(site, options)
    if written is None or written.last_run != memory.last_run or memory.last_run is None:
        return None
    changed = _changed(site.root, written)
    kept = plans.load(site.root, question, site.seal)
    if changed is None or kept is None:
        return None
    written.note_changed(site.root, changed)
    return _part(site.root, written, kept, changed, memory)


def _changed(root: str, written: noop.Written) -> dict[str, Stamp] | None:
    """Absolute paths with another stamp than was written down -> their stamp now. None if anything foreign changed."""
    if any(map(os.path.lexists, written.absent)):
        return None
    inside = len(written.inside) * quick.STAMP_BYTES
    # As if the build had begun there: what changed since has another stamp than is written down, and is seen next time.
    now = written.at_the_door
    try:
        outside = quick.stamps_now(written.outside) if now is None else now[inside:]
    except OSError:
        return None
    if outside != written.stamps[inside:]:
        return None
    changed: dict[str, Stamp] = {}
    for first in range(0, len(written.inside), CHUNK):
        names = written.inside[first : first + CHUNK]
        begin, end = first * quick.STAMP_BYTES, (first + len(names)) * quick.STAMP_BYTES
        chunk = written.stamps[begin:end]
        if now is None or now[begin:end] != chunk:
            changed |= _changed_of([f"{root}/{name}" for name in names], chunk, b"" if now is None else now[begin:end])
    for path in written.witnesses:
        if path not in changed and not written.is_witnessed(path):
            changed[path] = stamp_at(path)
    return changed


def _changed_of(paths: list[str], stamps: bytes, now: bytes) -> dict[str, Stamp]:
    """Those of some paths with other stamps than these; `now` are those of a moment ago, or empty."""
    if not now:
        try:
            now = quick.stamps_now(paths)
        except OSError:  # One of them is gone.
            now = b"".join(quick.packed(list(stamp_at(path))) for path in paths)
    size = quick.STAMP_BYTES
    places = [(path, number * size) for number, path in enumerate(paths)]
    return {path: noop.unpacked(now, at) for path, at in places if now[at : at + size] != stamps[at : at + size]}


def _part(
    root: str, written: noop.Written, kept: plans.Kept, changed: Mapping[str, Stamp], memory: Memory
) -> Part | None:
    affected: set[int] = set()
    lost: set[int] = set()
    seen: dict[str, Stamp] = {}
    rested: dict[str, evidence.Item] = {}
    stamps = Stamps(memory.known, fine=False)
    if not {path[len(root) + 1 :] for path in changed}.isdisjoint(written.reached):
        return None  # A directory input, a link, a root or a tool leads there, too.
    for path, now in changed.items():
        name = path[len(root) + 1 :]
        readers = _readers(kept, name)
        if path in kept.evidence:
            rested[path] = kept.evidence[path]
        elif not readers:
            return None
        if path in kept.kinds and now == NOTHING:
            return None
        if now == NOTHING and len(readers) == 1 and kept.declared.get(name) == kept.names[readers[0]]:
            lost.update(readers)
        elif readers and not _is_same(root, stamps, written, path):
            affected.update(readers)
        else:
            seen[path] = now
    if rested:
        if not evidence.still_holds(root, rested, lambda: evidence.Outputs(kept.declared)):
            return None
        seen |= {path: stamp for path, (stamp, _, _) in rested.items()}
    if not evidence.kinds_hold({path: kept.kinds[path] for path in changed if path in kept.kinds}):
        return None
    return _reach(written, kept, affected, lost - affected, seen, changed, memory)


def _readers(kept: plans.Kept, name: str) -> list[int]:
    found = list(kept.readers.get(name, ()))
    for patterns, paths in kept.offers.items():
        if name in paths:
            found += kept.offered_to.get(patterns, ())
    return found


def _is_same(root: str, stamps: Stamps, written: noop.Written, path: str) -> bool:
    """Whether a path has the content that the last build found there, though its stamp is another."""
    known = stamps.known.get(path)
    if known is None or known[1] or written.stamp(root, path) != known[0]:
        return False
    try:
        entry = stamps.entry(path)
    except (UsageError, EnvironmentFault):
        return False
    return entry is not None and pack(entry) == known[2]


def _reach(
    written: noop.Written,
    kept: plans.Kept,
    affected: Iterable[int],
    lost: Set[int],
    seen: dict[str, Stamp],
    changed: Mapping[str, Stamp],
    memory: Memory,
) -> Part | None:
    """The affected and lost instances, and all that wait for them."""
    numbers = {*affected, *lost}
    pending = list(numbers)
    for number in pending:
        more = [each for each in kept.dependents[number] if each not in numbers]
        numbers.update(more)
        pending.extend(more)
        if len(numbers) - len(lost) > SHARE_MAX * len(kept.names) and len(kept.names) > CHUNK:
            return None
    instances = {kept.names[number]: kept.instance(number) for number in sorted(numbers)}
    order = {name: _among(instance, instances) for name, instance in instances.items()}
    untouched = [
        number for number, place in enumerate(kept.places) if number not in numbers and place != plans.NO_PLACE
    ]
    steps = memory.steps
    assert isinstance(steps, Rows)  # As it was read.
    if not steps.has_all([kept.names[number] for number in untouched]):
        return None
    planned = kept.planned(instances)
    names = frozenset(kept.names[number] for number in lost)
    everything = Everything(kept, instances)
    return Part(written, kept, planned, kept.plan(order), untouched, seen, changed, memory, names, everything)


def _among(instance: Instance, others: Mapping[str, Instance]) -> Instance:
    """With none but these to wait for."""
    needs = tuple(need for need in instance.needs if need in others)
    after = tuple(need for need in instance.after if need in others)
    return (
        instance if (needs, after) == (instance.needs, instance.after) else replace(instance, needs=needs, after=after)
    )


def fresh(part: Part, number: int) -> StepFinished:
    """The event of an instance that is fresh, as the full build would tell it."""
    import marshal

    name = part.kept.names[number]
    remembered: Remembered = part.memory.steps[name]
    place, needs = marshal.loads(part.kept.places[number])
    return StepFinished(
        name,
        "fresh",
        remembered.request_digest,
        remembered.result_digest,
        exit_code=0,
        termination="exited",
        reason="up to date",
        outputs=part.kept.instance(number).outputs,
        warnings=remembered.warnings,
        place=place,
        needs=needs,
        record_digest=remembered.record_digest,
    )
