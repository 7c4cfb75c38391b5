"""What will the sandbox of a step do? Answered before anything runs, by making the very job that would be run.

Only sizes of inputs count for that, so none is read: of what another step has yet to make the last known is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from ..core.digest import EMPTY, Digest
from ..core.entries import Entry, File, Tree
from ..core.errors import SourceMissing, UsageError
from ..core.fields import dataclass, replace
from ..core.instance import Input, Instance
from ..core.patterns import compile_pattern
from ..core.policy import WORLD_ENVIRONMENT
from ..core.request import SYSTEM_ROOT, Request
from ..core.secrecy import looks_secret
from ..executors.blobs import EACH_MAX, Blobs
from ..executors.local import LocalExecutor
from ..sandbox.explained import Explained, existing, explain_none, explain_process, explain_strict
from ..sandbox.linux import layers_work
from ..sandbox.means import Terms
from ..sandbox.walls import read_host
from ..store.layout import Store
from . import memory, plans
from .options import Options
from .requests import Inputs, RequestMaker
from .site import Site, find_site, host_platform, named, staged_at, working_store
from .stamps import Stamps
from .surroundings import surroundings_of
from .workspace import Workspace

if TYPE_CHECKING:
    from ..sandbox.masks import Shown

HIDDEN = "(hidden)"


@dataclass(frozen=True, slots=True)
class Variable:
    """`origin` is world, manifest, env_file, pass_env or secret. `value` is hidden where the name looks secret."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class StepPolicy:
    """`unknown` names inputs that other steps have yet to make; `others` is how many more instances the step has."""

    name: str
    explained: Explained
    environment: tuple[Variable, ...]
    unknown: tuple[str, ...]
    others: int

    def as_json(self) -> dict[str, object]:
        return {
            "environment": [
                {"name": each.name, "origin": each.origin, "value": each.value} for each in self.environment
            ],
            "level": self.explained.level,
            "means": self.explained.means,
            "name": self.name,
            "operations": [_plain(operation) for operation in self.explained.operations],
            "others": self.others,
            "schema": "requiem.policy/1",
            "sections": {
                name: [{"subject": subject, "words": words} for subject, words in lines]
                for name, lines in self.explained.sections.items()
            },
            "unknown": list(self.unknown),
        }


def _plain(value: Any) -> Any:
    """An operation as JSON: contents by their size."""
    if isinstance(value, bytes):
        return f"({len(value)} bytes)"
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def explain_policy(options: Options, step: str) -> StepPolicy:
    """Raises UnknownName, or UsageError for a step that cannot be run at all."""
    site = find_site(options)
    planned, instances = named(site, options, step)
    return _Explanation(site, options, planned).explain(instances[0], len(instances) - 1)


class _Explanation:
    def __init__(self, site: Site, options: Options, planned: plans.Planned) -> None:
        self.site = site
        self.options = options
        self.planned = planned
        self.store = working_store(site, planned.store_settings, dry_run=True)
        self.memory = memory.load(site.dot, site.seal)
        stamps = Stamps(self.memory.known)
        self.workspace = Workspace(site.root, stamps, Blobs(self.store.objects))
        self.surroundings = surroundings_of(site, planned.plan.roots, stamps, options.environment)
        self.unknown: list[str] = []

    def explain(self, instance: Instance, others: int) -> StepPolicy:
        level = self.options.sandbox or self.site.settings.sandbox
        maker = RequestMaker(self.workspace, self.surroundings, host_platform(), level)
        instance, made = self._known(instance)
        inputs = maker.inputs(instance, made)
        request = maker.make(instance, inputs, self._command(instance, inputs), made).request
        offered = self._offered(instance)
        explained = self._explained(request, offered, instance, {**offered, **inputs.entries})
        environment = self._environment(instance, request)
        return StepPolicy(instance.name, explained, environment, tuple(self.unknown), others)

    def _known(self, instance: Instance) -> tuple[Instance, dict[str, dict[str, Entry]]]:
        """The instance without inputs of which nothing can be said, and what its producers last made."""
        made: dict[str, dict[str, Entry]] = {}
        kept = []
        for name in instance.needs:
            remembered = self.memory.steps.get(name)
            made[name] = dict(remembered.outputs) if remembered is not None else {}
        for item in instance.inputs:
            if item.producer is None or self._was_made(item, made.setdefault(item.producer, {})):
                kept.append(item)
        if instance.stdin is not None and instance.stdin.producer is not None:
            self._was_made(instance.stdin, made.setdefault(instance.stdin.producer, {}))
        return replace(instance, inputs=tuple(kept)), made

    def _was_made(self, item: Input, outputs: dict[str, Entry]) -> bool:
        if item.late:
            matches = compile_pattern(item.path)
            known = any(matches(path) for path in outputs)
        else:
            known = item.path in outputs or any(top[-1] == "/" and item.path.startswith(top) for top in outputs)
            if not known:
                outputs[item.path] = Tree(EMPTY, 0, 0) if item.path.endswith("/") else File(EMPTY, 0, False)
        if not known:
            self.unknown.append(f'"{item.path}", which "{item.producer}" has yet to make')
        return known or not item.late

    def _command(self, instance: Instance, inputs: Inputs) -> tuple[str, ...]:
        if not instance.late:
            return instance.command
        from ..core.templates import render_late

        try:
            return render_late(instance.late, inputs.late)[0]
        except (UsageError, KeyError):
            return ("/bin/sh", "-c", instance.shown)  # It speaks of what is not there yet.

    def _offered(self, instance: Instance) -> dict[str, Entry]:
        offered: dict[str, Entry] = {}
        for path in self.planned.offers.get(instance.discover, ()):
            try:
                offered |= self.workspace.source(path, instance.name)
            except SourceMissing:
                continue
        return offered

    def _explained(
        self, request: Request, offered: Mapping[str, Entry], instance: Instance, entries: Mapping[str, Entry]
    ) -> Explained:
        blobs = cast(Blobs, _Sizes(self.store, self.workspace, entries))
        executor = LocalExecutor(blobs, lambda _: _no_sandbox(), workspace=self.site.root)
        job = executor.job(request, offered, instance.limits)
        if request.policy.sandbox == "none":
            return explain_none(job)
        if request.policy.sandbox == "process":
            cgroup = self.site.settings.cgroup is not None
            return explain_process(job, staged_at(self.site, request), cgroup=cgroup)
        roots = [self.surroundings.host_path(root) for root in self.planned.plan.roots.values()]
        policy = request.policy
        return explain_strict(
            job,
            read_host(self._shown(request)),
            existing([*roots, *map(str, self.store.roots)]),
            Terms(policy.network, policy.clock, policy.random),
            cgroup=self.site.settings.cgroup is not None,
            layers_work=layers_work,
        )

    def _shown(self, request: Request) -> Shown | None:
        """The view of packages that it would see, made ready but not mounted."""
        if request.policy.system == "host":
            return None
        from ..sandbox.showing import show

        site = self.site
        return show(
            site.distribution, request.roots[SYSTEM_ROOT], list(request.roots), site.cache_home, lambda shown: shown
        )

    def _environment(self, instance: Instance, request: Request) -> tuple[Variable, ...]:
        passed = set(self.surroundings.passed(instance))
        found = [Variable(name, "(its value is not shown)", "secret") for name in instance.secrets]
        for name, value in request.env.items():
            if name in passed:
                origin = "pass_env"
            elif name in instance.env:
                origin = "manifest"
            else:
                origin = "world" if name in WORLD_ENVIRONMENT else "env_file"
            found.append(Variable(name, HIDDEN if looks_secret(name) else value, origin))
        return tuple(sorted(found, key=lambda each: each.name))


def _no_sandbox() -> Any:
    raise AssertionError("an explanation runs nothing")


class _Sizes:
    """Stands for the store's bytes where only how many they are matters."""

    def __init__(self, store: Store, workspace: Workspace, entries: Mapping[str, Entry]) -> None:
        self.objects = self
        self._store = store
        self._workspace = workspace
        self._sizes: dict[Digest, int] = {EMPTY: 0}
        self._trees: dict[Digest, bytes] = {EMPTY: b"[]"}
        pending = list(entries.values())
        for entry in pending:
            if isinstance(entry, File):
                self._sizes[entry.digest] = entry.size
            elif isinstance(entry, Tree) and entry.digest != EMPTY:
                pending += self._workspace.children_of(entry).values()

    def held(self, digest: Digest) -> bytes | None:
        size = self._sizes.get(digest, 0)
        return bytes(size) if size <= EACH_MAX else None

    def size(self, digest: Digest) -> int:
        return self._sizes.get(digest, 0)

    def file(self, digest: Digest) -> str:
        return self._store.objects.place.path(digest)

    def get(self, digest: Digest) -> bytes:
        """A directory's list."""
        return self._trees.get(digest) or self._workspace.tree_content(digest)
