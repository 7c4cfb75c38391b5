"""From an instance and what it depends on to a Request: all that can influence it, by digest."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence

from ..core.digest import Digest
from ..core.entries import Entry, File, Link, Tree
from ..core.errors import UsageError
from ..core.fields import dataclass, replace
from ..core.instance import Input, Instance
from ..core.patterns import compile_pattern
from ..core.policy import Policy
from ..core.request import SYSTEM_ROOT, Request, by_bytes
from ..executors.blobs import EACH_MAX
from .linked import OF_ROOTS, Libraries
from .named import FIRST_LINE_MAX, first_line, is_source, named_programs
from .surroundings import Surroundings
from .workspace import Workspace

Made = Mapping[str, Mapping[str, Entry]]
"""Instance -> its outputs, for everything that a step waits for."""


class InputNotMade(Exception):
    """A step that was to make an input succeeded without making it: the reader fails with these words."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


@dataclass(frozen=True, slots=True)
class Inputs:
    """Entries by path, and which of them are sources of the workspace."""

    entries: Mapping[str, Entry]
    sources: frozenset[str]
    late: Mapping[str, tuple[str, ...]]
    """What each late input's pattern turned out to be."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and what of it was taken on trust."""

    request: Request
    asserted: tuple[str, ...]


class RequestMaker:
    """`level` overrides the instances' own; `matcher(pattern)(path)` is the meaning of patterns."""

    def __init__(
        self,
        workspace: Workspace,
        surroundings: Surroundings,
        platform: Mapping[str, str],
        level: str | None,
    ) -> None:
        self._workspace = workspace
        self._surroundings = surroundings
        self._platform = platform
        self._level = level
        self._libraries = Libraries(workspace)

    def changed_root(self, instance: Instance, request: Request) -> str | None:
        return self._surroundings.changed_root(instance, request)

    def keep_system(self, request: Request) -> None:
        """The list of packages that the request names by its digest, into the store: so two of them can be compared."""
        if request.policy.system == "packages":
            view = self._surroundings.packaged.distribution.known(request.roots[SYSTEM_ROOT])
            if view is not None:
                self._workspace.blobs.put_named(request.roots[SYSTEM_ROOT], view.document)

    def level_of(self, instance: Instance) -> str:
        return self._level or instance.policy.sandbox

    def missing_packages(self, request: Request, text: str) -> tuple[str, ...]:
        """Which packages have what a failed step's words say is missing."""
        if request.policy.system != "packages":
            return ()
        from .package_hints import missing_packages

        distribution = self._surroundings.packaged.distribution
        view = distribution.known(request.roots[SYSTEM_ROOT])
        return () if view is None else missing_packages(text, distribution, view)

    def package_hints(self, request: Request, text: str) -> tuple[str, ...]:
        """Lines to add to the manifest for what a failed step's words say is missing."""
        if request.policy.system != "packages":
            return ()
        from .package_hints import for_failure

        distribution = self._surroundings.packaged.distribution
        view = distribution.known(request.roots[SYSTEM_ROOT])
        return () if view is None else for_failure(text, distribution, view)

    def policy_of(self, instance: Instance) -> Policy:
        """What is really in force: below strict nothing hides the rest of the host, so a step sees all of it."""
        policy, level = instance.policy, self.level_of(instance)
        system = policy.system if level == "strict" else "host"
        path = tuple(map(self._surroundings.spelled, policy.path))
        if (level, system, path) == (policy.sandbox, policy.system, policy.path):
            return policy
        return replace(policy, sandbox=level, system=system, path=path)

    def inputs(self, instance: Instance, made: Made) -> Inputs:
        entries: dict[str, Entry] = {}
        sources: set[str] = set()
        late: dict[str, tuple[str, ...]] = {}
        for item in instance.inputs:
            if item.producer is None:
                found = self._workspace.source(item.path, instance.name)
                sources |= found.keys()
            else:
                found = self._made(item, made[item.producer], instance)
                if item.late:
                    late[item.path] = tuple(dict.fromkeys((*late.get(item.path, ()), *by_bytes(set(found)))))
            entries |= found
        return Inputs(entries, frozenset(sources), late)

    def _made(self, item: Input, outputs: Mapping[str, Entry], instance: Instance) -> dict[str, Entry]:
        if item.late:
            return self._late(item, outputs)
        entry = outputs.get(item.path) or self._inside(item.path, outputs)
        if entry is None:
            raise InputNotMade(f'reads "{item.path}", which "{item.producer}" did not make')
        return {item.path: entry}

    def _late(self, item: Input, outputs: Mapping[str, Entry]) -> dict[str, Entry]:
        matches = compile_pattern(item.path)
        found = {path: entry for path, entry in outputs.items() if matches(path)}
        if not found:
            raise InputNotMade(f'reads "{item.path}", and "{item.producer}" made nothing that matches')
        return found

    def _inside(self, path: str, outputs: Mapping[str, Entry]) -> Entry | None:
        """An entry of a directory output, found through its tree objects."""
        plain = path.rstrip("/")
        for top, entry in outputs.items():
            if not (isinstance(entry, Tree) and (plain + "/").startswith(top)):
                continue
            below: Entry | None = entry
            for name in plain[len(top) :].split("/"):
                below = self._workspace.children_of(below).get(name) if isinstance(below, Tree) else None
            return below if isinstance(below, Tree) == path.endswith("/") else None
        return None

    def make(self, instance: Instance, inputs: Inputs, command: Sequence[str], made: Made) -> Asked:
        surroundings = self._surroundings
        roots = surroundings.roots_of(instance, made)
        paths = {root.path for root in roots}
        policy = self.policy_of(instance)
        level = policy.sandbox
        asserted = [root.asserted for root in roots if root.asserted]
        if policy.system == "host":
            asserted.append("system")
        if policy.network == "host":
            asserted.append("network")
        asserted += [f"secret {name}" for name in instance.secrets]
        if policy is not instance.policy:
            instance = replace(instance, policy=policy)
        env = surroundings.environment(instance, level)
        named = self._named(instance, command, env, inputs) if policy.system == "packages" else ()
        request = Request(
            command=tuple(command),
            env=env,
            inputs={path: entry.as_input() for path, entry in inputs.entries.items()},
            outputs=tuple(by_bytes(instance.outputs)),
            policy=policy,
            platform=self._platform,
            cwd=self._cwd(instance, level),
            secrets=instance.secrets,
            stdin=self._stdin(instance, made),
            roots={
                SYSTEM_ROOT: surroundings.system_root(instance, command, paths, named),
                **{root.path: root.digest for root in roots},
            },
            tools=surroundings.tools_of(instance, command, paths, named),
            discover=tuple(by_bytes(instance.discover)),
            depfile=instance.depfile,
            salt=instance.salt,
        )
        return Asked(request, tuple(asserted))

    def _named(
        self, instance: Instance, command: Sequence[str], env: Mapping[str, str], inputs: Inputs
    ) -> tuple[str, ...]:
        """The programs that its command names, and the libraries that programs among its inputs ask for."""
        distribution = self._surroundings.packaged.distribution
        of_roots = distribution.own_library(OF_ROOTS) if instance.roots else None

        def line(path: str) -> bytes:
            entry = inputs.entries.get(path)
            if isinstance(entry, File) and path not in inputs.sources:
                return self._workspace.blobs.get(entry.digest)[:FIRST_LINE_MAX] if 0 < entry.size <= EACH_MAX else b""
            return first_line(self._workspace.full(path)) if is_source(path, instance) else b""

        return (
            *named_programs(instance, command, env, line),
            *self._libraries.needed(inputs.entries, inputs.sources, distribution.library),
            *([of_roots] if of_roots is not None else []),
        )

    def _cwd(self, instance: Instance, level: str) -> str:
        """Below strict the real absolute path is part of what the step sees, and so of the request."""
        if level == "strict":
            return instance.cwd
        return posixpath.normpath(posixpath.join(self._workspace.root, instance.cwd))

    def _stdin(self, instance: Instance, made: Made) -> Digest | None:
        if instance.stdin is None:
            return None
        item = instance.stdin
        found = (
            self._workspace.source(item.path, instance.name)
            if item.producer is None
            else self._made(item, made[item.producer], instance)
        )
        entry = next((e for e in reversed(found.values()) if not isinstance(e, Link)), None)
        if not isinstance(entry, File):
            raise UsageError(f'step "{instance.name}" has the stdin "{item.path}", which is not a file')
        return entry.digest
