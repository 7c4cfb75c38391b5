"""Which steps would run if these files changed? By what each step reads, exactly; nothing is run or hashed.

A file that is edited touches who reads it: inputs, directory inputs, discovered headers of the last result, roots,
tools, env_files. A file that comes or goes also changes what patterns mean, so the plan is made a second time as it
would be then (or was at a revision), and the two plans are compared. What only stands behind a touched step may run:
it does not if the touched one makes the same as before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..core.errors import RequiemError
from ..core.fields import dataclass
from ..core.instance import Instance, Plan
from ..core.listing import Kind
from ..core.manifest import load_manifest
from ..core.patterns import match_sources, matches_any
from ..core.plan import make_plan
from ..core.request import LISTING, SHADOWS
from ..executors.system_headers import shadows
from .memory import Memory
from .plans import Planned, Question
from .workspace import Files, WorkspaceListing, left_out

Read = Callable[[str], "bytes | None"]
Offers = Mapping[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Edit:
    """Workspace-relative paths: `changed` stand before and after, `deleted` only before, `added` only after.

    `future` are added too, and not there yet. `before(path)` gives an edited manifest file's old content, None where
    nothing stood; without it an edited manifest touches every step.
    """

    changed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    future: tuple[str, ...] = ()
    before: Read | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        return (*self.changed, *self.added, *self.deleted, *self.future)


@dataclass(frozen=True, slots=True)
class Affected:
    """`certain` steps read something that changed; the others wait for one of them."""

    name: str
    certain: bool
    because: str


class _Overlaid:
    """A listing in which some files are there and others are not, whatever the disk says."""

    def __init__(self, listing: WorkspaceListing, present: Iterable[str], absent: Iterable[str]) -> None:
        self._listing = listing
        self._absent = frozenset(absent)
        self._present: dict[str, dict[str, Kind]] = {}
        self._known: dict[str, Mapping[str, Kind]] = {}
        for path in present:
            directory, _, name = path.rpartition("/")
            self._present.setdefault(directory or ".", {})[name] = "file"
            while directory:
                above, _, name = directory.rpartition("/")
                self._present.setdefault(above or ".", {}).setdefault(name, "dir")
                directory = above

    def children(self, directory: str) -> Mapping[str, Kind]:
        known = self._known.get(directory)
        if known is None:
            prefix = "" if directory == "." else directory + "/"
            found = {n: k for n, k in self._listing.children(directory).items() if prefix + n not in self._absent}
            known = self._known[directory] = {**self._present.get(directory, {}), **found}
        return known

    def kind(self, path: str) -> Kind | None:
        plain = path.removesuffix("/")
        if plain in self._absent:
            return None
        directory, _, name = plain.rpartition("/")
        return self._present.get(directory or ".", {}).get(name) or self._listing.kind(path)

    def is_program(self, path: str) -> bool:
        return path not in self._absent and self._listing.is_program(path)


@dataclass(slots=True)
class Finder:
    """One question over one plan. `memory` holds what each step discovered when it was last built here."""

    root: str
    planned: Planned
    question: Question
    memory: Memory
    user_roots: Mapping[str, object]

    def affected(self, edit: Edit) -> list[Affected]:
        """In plan order, certain or not. Raises what planning raises if a file of the future breaks the plan."""
        plan = self.planned.plan
        offers: Offers = self.planned.offers
        manifests = [path for path in edit.paths if path in self._manifests()]
        if manifests and edit.before is None:
            return [Affected(n, True, f"{manifests[0]} changed") for n, i in plan.instances.items() if not i.is_group]
        direct: dict[str, str] = {}
        if edit.future:
            plan, offers = self._plan(present=edit.future)
        if manifests or len(edit.paths) > len(edit.changed):
            direct |= self._replanned(edit, plan, offers, manifests=bool(manifests))
        for name, because in _Readers(self, plan, edit).of([path for path in edit.paths if path not in manifests]):
            direct.setdefault(name, because)
        return self._with_dependents(plan, direct)

    def _with_dependents(self, plan: Plan, direct: Mapping[str, str]) -> list[Affected]:
        found = {name: Affected(name, True, because) for name, because in direct.items()}
        pending = list(found)
        dependents = plan.dependents()
        for name in pending:  # Grows while it is walked.
            for other in dependents[name]:
                if other not in found and self._uses(plan.instances[other], plan.instances[name]):
                    found[other] = Affected(other, False, f"needs {name}")
                    pending.append(other)
        return [found[name] for name in plan.instances if name in found and not plan.instances[name].is_group]

    def _uses(self, instance: Instance, producer: Instance) -> bool:
        """A step that only waits for another because of `discover` uses it if it read one of its outputs."""
        known = self.discovered(instance)
        return producer.name in instance.needs or known is None or bool(set(known) & set(producer.outputs))

    def _manifests(self) -> set[str]:
        return {os.path.normpath(path) for path in self.planned.manifest}

    def _replanned(self, edit: Edit, plan: Plan, offers: Offers, *, manifests: bool) -> dict[str, str]:
        """The steps that were not in the plan before the edit as they are after it."""
        every = [instance for instance in plan.instances.values() if not instance.is_group]
        before = self.planned.plan
        offered: Offers = self.planned.offers
        if manifests or edit.added or edit.deleted:
            try:
                before, offered = self._plan(present=edit.deleted, absent=edit.added, edit=edit)
            except RequiemError as error:
                return {instance.name: f"there was no such plan before: {error.what}" for instance in every}
        found: dict[str, str] = {}
        for instance in every:
            other = before.instances.get(instance.name)
            if other is None:
                found[instance.name] = "a new step"
            elif _asks(instance, plan) != _asks(other, before):
                found[instance.name] = _difference(other, instance)
            elif offered.get(instance.discover) != offers.get(instance.discover) and self._lists(instance):
                found[instance.name] = "the files that discover matches are others"
        return found

    def _plan(
        self, *, present: Iterable[str] = (), absent: Iterable[str] = (), edit: Edit | None = None
    ) -> tuple[Plan, Offers]:
        """The plan if some files were there and others were not, and the manifests as they were before the edit."""
        files, listing = Files(self.root), _Overlaid(WorkspaceListing(self.root), present, absent)

        def read(path: str) -> bytes | None:
            plain = os.path.normpath(path)
            if edit is not None and edit.before is not None and plain in edit.paths:
                return edit.before(plain)
            return files.read(path)

        asked = self.question
        manifest = load_manifest(
            read, asked.manifest, profile=asked.profile, sets=dict(asked.sets), user_roots=self.user_roots
        )
        plan = make_plan(
            manifest, asked.targets, listing, tags=asked.tags, platform=dict(asked.platform), cwd=asked.cwd
        )
        wanted = {instance.discover for instance in plan.instances.values() if instance.discover}
        return plan, {patterns: tuple(match_sources(patterns, listing, plan.declared)) for patterns in wanted}

    def _lists(self, instance: Instance) -> bool:
        """Whether the list of all that discover matches is in the step's key: also if it was never built here."""
        known = self.discovered(instance)
        return known is None or LISTING in known

    def discovered(self, instance: Instance) -> tuple[str, ...] | None:
        remembered = self.memory.steps.get(instance.name)
        return None if remembered is None else remembered.discovered


class _Readers:
    """Path -> who reads it, made once for the whole plan, so that any number of files is looked up in linear time."""

    def __init__(self, finder: Finder, plan: Plan, edit: Edit) -> None:
        self._finder = finder
        self._roots = plan.roots
        self._membership = frozenset((*edit.added, *edit.deleted, *edit.future))
        self._files: dict[str, list[tuple[str, str]]] = {}
        self._trees: dict[str, list[tuple[str, str]]] = {}
        self._root_trees: dict[str, list[tuple[str, str]]] = {}
        """Unlike trees among the inputs they hold whatever lies in them."""
        self._unknown: list[Instance] = []
        self._shadowed: dict[tuple[str, ...], list[Instance]] = {}
        for instance in plan.instances.values():
            if not instance.is_group:
                self._add(instance)

    def _add(self, instance: Instance) -> None:
        name = instance.name
        for item in (*instance.inputs, *([instance.stdin] if instance.stdin else ())):
            if item.producer is None:
                self._note(item.path, name, "reads")
                for target in self._links(item.path):
                    self._note(target, name, "reads")
        for path in instance.env_file:
            self._note(path, name, "takes variables from")
        for root_name in instance.roots:
            root = self._roots[root_name]
            for path in root.key:
                self._note(path, name, "sees the root")
            if not root.key:
                tree = root.path.rstrip("/") + "/"
                self._root_trees.setdefault(tree, []).append((name, f"sees the root {tree}"))
        for folder in instance.policy.path:
            for program in _tools(instance):
                if not folder.startswith(("/", "~")) and "/" not in program:
                    self._note(f"{folder}/{program}", name, "uses the tool")
        if instance.discover:
            self._add_discovered(instance)

    def _add_discovered(self, instance: Instance) -> None:
        known = self._finder.discovered(instance)
        if known is None:
            self._unknown.append(instance)
        for path in known or ():
            if path.startswith(SHADOWS):
                extra = tuple(filter(None, path[len(SHADOWS) :].split(":")))
                self._shadowed.setdefault(extra, []).append(instance)
            elif path != LISTING:
                self._note(path, instance.name, "read or looked for")

    def _note(self, path: str, name: str, verb: str) -> None:
        if path.endswith("/"):
            self._trees.setdefault(path, []).append((name, f"{verb} {path}"))
        else:
            self._files.setdefault(path, []).append((name, f"{verb} {path}"))

    def _links(self, path: str) -> Iterable[str]:
        """What a source that is a symlink leads to."""
        full = os.path.join(self._finder.root, path.rstrip("/"))
        if os.path.islink(full):
            real = os.path.realpath(full)
            if real.startswith(self._finder.root + "/"):
                yield os.path.relpath(real, self._finder.root) + ("/" if os.path.isdir(real) else "")

    def of(self, paths: Iterable[str]) -> Iterable[tuple[str, str]]:
        for path in paths:
            yield from self._files.get(path, ())
            for above in _above(path):
                yield from self._root_trees.get(above, ())
                if above in self._trees and _counts_in_tree(path, above):
                    yield from self._trees[above]
            for extra, instances in self._shadowed.items() if path in self._membership else ():
                for instance in instances if shadows(path, extra) else ():
                    if matches_any(instance.discover, path):
                        yield instance.name, f"{path} bears the name of a system header"
            for instance in self._unknown:
                if matches_any(instance.discover, path):
                    yield instance.name, f"may read {path}"


def _tools(instance: Instance) -> list[str]:
    """Names that are looked up in the step's PATH."""
    from ..core.programs import programs

    return list(dict.fromkeys((*programs(instance.command, instance.env), *instance.tools)))


def _above(path: str) -> Iterable[str]:
    at = path.find("/")
    while at >= 0:
        yield path[: at + 1]
        at = path.find("/", at + 1)


def _counts_in_tree(path: str, tree: str) -> bool:
    """Source trees leave out what tools keep in them, unless the tree itself is one of these."""
    skip = left_out(tree)
    return skip is None or not any(map(skip, path[len(tree) :].split("/")))


def _asks(instance: Instance, plan: Plan) -> tuple[Any, ...]:
    """What of an instance is in its request: two that agree ask the same if their files are the same."""
    roots = [plan.roots[name] for name in instance.roots]
    return (
        *(instance.command, instance.late, instance.cwd, instance.stdin, instance.outputs, dict(instance.env)),
        *(instance.pass_env, instance.env_file, instance.tools, instance.policy, instance.discover, instance.depfile),
        *(instance.salt, instance.secrets, instance.cache, instance.lock),
        sorted((item.path, item.late) for item in instance.inputs),
        [(root.path, root.key) for root in roots],
    )


def _difference(old: Instance, new: Instance) -> str:
    before, after = ({item.path for item in instance.inputs} for instance in (old, new))
    gained, lost = sorted(after - before), sorted(before - after)
    if gained or lost:
        word, path = ("now reads", gained[0]) if gained else ("no longer reads", lost[0])
        more = len(gained) + len(lost) - 1
        return f"{word} {path}" + (f" and {more} more" if more else "")
    return "its command or settings changed"


def edit_of(root: str, paths: Sequence[str], memory: Memory) -> Edit:
    """What `--changed` means: what stands there is edited, what was read and is gone is deleted, else it is new."""
    changed, deleted, future = [], [], []
    for path in paths:
        full = os.path.join(root, path)
        if os.path.lexists(full):
            changed.append(path)
        elif full in memory.known:
            deleted.append(path)
        else:
            future.append(path)
    return Edit(tuple(changed), deleted=tuple(deleted), future=tuple(future))
