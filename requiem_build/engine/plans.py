"""The plan: made from the manifest, or remembered from the last run if everything it rested on still holds."""

from __future__ import annotations

import marshal
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..core.digest import object_digest
from ..core.errors import RequiemError, UsageError
from ..core.fields import dataclass, replace
from ..core.instance import Input, Instance, Plan, Root
from ..core.patterns import is_pattern, unescape
from ..core.policy import Limits, Policy
from . import evidence, sealed
from .journal import places_of
from .workspace import DOT, Files, WorkspaceListing

if TYPE_CHECKING:
    from ..core.manifest import Manifest

KEPT_MAX = 8
NO_PLACE = marshal.dumps(None)
"""The place of a group."""
EVERYTHING = ("*",)
"""Targets that match every step."""
Patterns = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked for: a plan answers exactly one question."""

    root: str
    manifest: str
    targets: tuple[str, ...]
    tags: tuple[str, ...]
    profile: str | None
    sets: tuple[tuple[str, str], ...]
    cwd: str
    platform: tuple[tuple[str, str], ...]
    user_roots: str = ""

    def digest(self) -> str:
        return object_digest(repr((__version__, *(getattr(self, name) for name in self.__match_args__))).encode())


@dataclass(slots=True)
class Planned:
    """`offers` holds what each `discover` matches among the sources; `manifest` each file's digest."""

    plan: Plan
    offers: dict[Patterns, tuple[str, ...]]
    manifest: dict[str, str | None]
    evidence: dict[str, evidence.Item]
    kinds: Mapping[str, str | None]
    made_now: bool
    store_settings: Mapping[str, object]
    whole: bool
    """Whether it holds every step of the manifest, though nobody named them."""


def obtain(root: str, question: Question, seal: bytes, user_roots: Mapping[str, object]) -> Planned:
    remembered = _load(root, question, seal)
    return remembered if remembered is not None else _make(root, question, user_roots)


def sketch(root: str, question: Question, user_roots: Mapping[str, object]) -> tuple[Plan, list[RequiemError]]:
    """A plan to be looked at, not built: sources may be missing. With the complaints about those that are."""
    from ..core.plan import make_plan

    manifest = _manifest(Files(root), question, user_roots)
    missing: list[RequiemError] = []
    plan = make_plan(
        manifest,
        question.targets,
        WorkspaceListing(root),
        tags=question.tags,
        platform=dict(question.platform),
        cwd=question.cwd,
        missing=missing,
    )
    return plan, missing


def _manifest(files: Files, question: Question, user_roots: Mapping[str, object]) -> Manifest:
    from ..core.manifest import load_manifest

    return load_manifest(
        files.read, question.manifest, profile=question.profile, sets=dict(question.sets), user_roots=user_roots
    )


def _equal_questions(question: Question) -> tuple[Question, ...]:
    """Questions whose plan, if it holds every step of the manifest, is the same."""
    if question.tags or question.targets not in ((), EVERYTHING):
        return (question,)
    return (question, replace(question, targets=EVERYTHING if not question.targets else ()))


def _make(root: str, question: Question, user_roots: Mapping[str, object]) -> Planned:
    from ..core.patterns import match_sources
    from ..core.plan import make_plan

    files, listing = Files(root), WorkspaceListing(root)
    manifest = _manifest(files, question, user_roots)
    plan = make_plan(
        manifest, question.targets, listing, tags=question.tags, platform=dict(question.platform), cwd=question.cwd
    )
    asked = {instance.discover for instance in plan.instances.values() if instance.discover}
    offers = {patterns: tuple(match_sources(patterns, listing, plan.declared)) for patterns in sorted(asked)}
    digests = {
        path: None if content is None else str(object_digest(content)) for path, content in files.contents.items()
    }
    outputs = evidence.Outputs(plan.declared)
    _check_what_is_read_here(plan, files, outputs)
    found = evidence.gather(root, {**listing.looks, **files.looks}, outputs)
    kinds = {path: kind for path, (kind, _) in listing.kinds.items() if not outputs.covers(os.path.relpath(path, root))}
    whole = not question.tags and (
        question.targets == EVERYTHING or (not question.targets and manifest.default is None)
    )
    return Planned(plan, offers, digests, found, kinds, True, manifest.store, whole)


def _check_what_is_read_here(plan: Plan, files: Files, outputs: evidence.Outputs) -> None:
    """Requiem reads manifests and env_files itself, before anything is built: no step can make them."""
    for path in files.contents:
        if outputs.has(os.path.normpath(path)):
            raise UsageError(f'"{path}" is read with the manifest and declared as an output of a step')
    for instance in plan.instances.values():
        for path in instance.env_file:
            if outputs.covers(path):
                raise UsageError(
                    f'env_file "{path}" of step "{instance.name}" is made by a step',
                    hint="it is read before anything runs; let the command read it instead",
                )


def _path(root: str, question: Question) -> str:
    return os.path.join(root, DOT, "plans", question.digest()[:24])


@dataclass(slots=True)
class Kept:
    """A plan as it is remembered. Whoever needs only some of its instances takes only these rows apart."""

    names: list[str]
    """Every instance, in plan order."""
    rows: list[bytes]
    roots: list[tuple[Any, ...]]
    pools: dict[str, int]
    declared: dict[str, str]
    warnings: tuple[str, ...]
    offers: dict[Patterns, tuple[str, ...]]
    manifest: dict[str, str | None]
    evidence: dict[str, evidence.Item]
    kinds: dict[str, str | None]
    store_settings: dict[str, object]
    whole: bool
    readers: dict[str, list[int]]
    """Path -> the instances that name it: as a source, as their own output, as an env_file."""
    offered_to: dict[Patterns, list[int]]
    """The patterns of `discover` -> who has them."""
    dependents: list[tuple[int, ...]]
    places: list[bytes]
    """Each instance's place among those that are no groups, and the places of what comes first, marshalled."""

    def instance(self, index: int) -> Instance:
        return _instance(marshal.loads(self.rows[index]))

    def plan(self, instances: Mapping[str, Instance]) -> Plan:
        roots = {row[0]: Root(*row) for row in self.roots}
        return Plan(instances, roots, self.pools, self.declared, tuple(self.warnings))

    def planned(self, instances: Mapping[str, Instance]) -> Planned:
        plan = self.plan(instances)
        return Planned(
            plan, self.offers, self.manifest, self.evidence, self.kinds, False, self.store_settings, self.whole
        )


def load(root: str, question: Question, seal: bytes) -> Kept | None:
    """The plan that is remembered for a question. Whether it still holds is not looked at."""
    for equal in _equal_questions(question):
        value = sealed.load(_path(root, equal), seal)
        kept = None if value is None else Kept(*value)
        if kept is not None and (kept.whole or equal == question):
            return kept
    return None


def _load(root: str, question: Question, seal: bytes) -> Planned | None:
    kept = load(root, question, seal)
    if kept is None or not evidence.kinds_hold(kept.kinds):
        return None
    if not evidence.still_holds(root, kept.evidence, lambda: evidence.Outputs(kept.declared)):
        return None
    return kept.planned({name: kept.instance(index) for index, name in enumerate(kept.names)})


def keep(root: str, question: Question, seal: bytes, planned: Planned) -> None:
    """Remembers a plan; the oldest beyond a few are dropped."""
    plan = planned.plan
    index = {name: number for number, name in enumerate(plan.instances)}
    readers, offered_to = _readers(plan)
    places = places_of(plan)
    kept = Kept(
        list(plan.instances),
        [marshal.dumps(_row(instance)) for instance in plan.instances.values()],
        [tuple(getattr(r, name) for name in Root.__match_args__) for r in plan.roots.values()],
        dict(plan.pools),
        dict(plan.declared),
        plan.warnings,
        planned.offers,
        planned.manifest,
        planned.evidence,
        dict(planned.kinds),
        dict(planned.store_settings),
        planned.whole,
        readers,
        offered_to,
        [tuple(index[name] for name in names) for names in plan.dependents().values()],
        [marshal.dumps(places.get(name)) for name in plan.instances],
    )
    path = _path(root, question)
    with suppress(OSError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        sealed.save(path, seal, tuple(getattr(kept, name) for name in Kept.__match_args__))
        known = sorted(os.scandir(os.path.dirname(path)), key=lambda item: -item.stat().st_mtime_ns)
        for item in known[KEPT_MAX:]:
            os.unlink(item.path)


def _readers(plan: Plan) -> tuple[dict[str, list[int]], dict[Patterns, list[int]]]:
    readers: dict[str, list[int]] = {}
    offered_to: dict[Patterns, list[int]] = {}
    for number, instance in enumerate(plan.instances.values()):
        named = {item.path for item in instance.inputs if item.producer is None}
        if instance.stdin is not None and instance.stdin.producer is None:
            named.add(instance.stdin.path)
        named.update(instance.env_file)
        named.update(unescape(path) for path in instance.outputs if not is_pattern(path))
        for path in named:
            readers.setdefault(path, []).append(number)
        if instance.discover:
            offered_to.setdefault(instance.discover, []).append(number)
    return readers, offered_to


_NAMES: Sequence[str] = Instance.__match_args__
_values_of = attrgetter(*_NAMES)
_SIMPLE = frozenset({str, bool, int, type(None)})
_PARTS = {kind: attrgetter(*kind.__match_args__) for kind in (Input, Policy, Limits)}


def _row(instance: Instance) -> tuple[Any, ...]:
    return tuple([value if type(value) in _SIMPLE else _plain(value) for value in _values_of(instance)])


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind is tuple:
        return tuple(map(_PARTS[Input], value)) if value and type(value[0]) is Input else value
    return _PARTS[kind](value) if kind in _PARTS else dict(value)


def _instance(row: tuple[Any, ...]) -> Instance:
    values = dict(zip(_NAMES, row, strict=True))
    values["inputs"] = tuple(Input(*item) for item in values["inputs"])
    values["stdin"] = None if values["stdin"] is None else Input(*values["stdin"])
    values["policy"] = Policy(*values["policy"])
    values["limits"] = Limits(*values["limits"])
    return Instance(**values)
