"""A step made ready to be run beside the store: to observe it, or to look around in its sandbox. Never remembered."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..core.entries import Entry
from ..core.errors import EnvironmentFault
from ..core.fields import dataclass, replace
from ..core.instance import Instance, Plan
from ..core.request import SYSTEM_ROOT, Request
from ..core.secrecy import Masker
from ..executors.blobs import Blobs
from ..executors.local import LocalExecutor, masker_of
from ..sandbox.base import Finished, Job, Sandbox
from ..sandbox.descent import walk
from ..store.layout import Store
from . import build as builds
from .options import Options
from .rerun import Beside
from .secrets import Secrets
from .site import Site, boot_sandbox, find_site, make_scratch, named, working_store
from .stamps import Stamps
from .surroundings import Surroundings, surroundings_of
from .workspace import InputChanged, Workspace


@dataclass(frozen=True, slots=True)
class Part:
    """One instance as the next build would run it. `offered` is what its `discover` matches now."""

    instance: Instance
    request: Request
    offered: Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class Scene:
    """The parts that were asked for, and the whole plan that they belong to."""

    site: Site
    plan: Plan
    parts: tuple[Part, ...]


def set_scene(options: Options, step: str, build: Callable[[Options], None]) -> Scene:
    """Builds what a step needs (by `build`, which may raise), and asks what the step itself would be asked.

    Raises UnknownName first of all for a secret that is not set.
    What it needs is built at its own level; the step itself is asked at the level that `options` say.
    """
    level, options = options.sandbox, replace(options, sandbox=None)
    site = find_site(options)
    planned, instances = named(site, options, step)
    plan, names = planned.plan, [instance.name for instance in instances]
    Secrets(options.environment, site.settings.secrets).values(
        {secret for name in names for secret in plan.instances[name].secrets}
    )
    needed = {need for name in names for need in (*plan.instances[name].needs, *plan.instances[name].after)}
    if needed - set(names):
        build(replace(options, targets=tuple(name for name in plan.instances if name in needed)))
    asked: dict[str, tuple[Request, Mapping[str, Entry]]] = {}

    def keep(name: str, request: Request, offered: Mapping[str, Entry]) -> None:
        asked[name] = (request, dict(offered))

    builds.build(replace(options, targets=(step,), dry_run=True, mode="repro", cache="rw"), lambda _: None, asked=keep)
    for name in names:
        if name not in asked:
            raise EnvironmentFault(
                f'what "{name}" needs is not known',
                facts=[("needs", ", ".join(plan.instances[name].needs))],
                hint="a step that it needs is never remembered (cache = false, or the network without lock)",
            )
    parts = [Part(plan.instances[name], *asked[name]) for name in names]
    if level is not None:
        surroundings = surroundings_of(site, plan.roots, Stamps(), options.environment)
        parts = [replace(part, request=_at_level(part, level, site, surroundings)) for part in parts]
    _know_packages(site, plan, options, parts)
    return Scene(site, plan, tuple(parts))


def _know_packages(site: Site, plan: Plan, options: Options, parts: Sequence[Part]) -> None:
    """Only a view of packages that this site has looked at can be shown."""
    surroundings = surroundings_of(site, plan.roots, Stamps(), options.environment)
    for part in parts:
        if part.request.policy.system == "packages":
            instance = replace(part.instance, tools=tuple(part.request.tools))
            surroundings.system_root(instance, part.request.command, set(part.request.roots) - {SYSTEM_ROOT})


def _at_level(part: Part, level: str, site: Site, surroundings: Surroundings) -> Request:
    instance = part.instance
    below = os.path.normpath(os.path.join(site.root, instance.cwd))
    return replace(
        part.request,
        policy=replace(part.request.policy, sandbox=level),
        cwd=instance.cwd if level == "strict" else below,
        env=surroundings.environment(instance, level),
    )


class Stage:
    """`with` a scratch store that vanishes. Jobs of parts, and strict sandboxes to run them in."""

    def __init__(self, site: Site, environment: Mapping[str, str]) -> None:
        """`environment` is the caller's, for secrets."""
        self.site = site
        self._secrets = Secrets(environment, site.settings.secrets)
        self._scratch = make_scratch(site)
        self.scratch = self._scratch.path
        self.store: Store = working_store(site)
        self.blobs = Blobs(Beside(self.store.objects, Path(self.scratch, "store")))
        self.workspace = Workspace(site.root, Stamps(keep=self.blobs.hold), self.blobs)
        self.running: Sandbox | None = None
        self.signal: int | None = None
        self._lease = self.store.lease()

    def __enter__(self) -> Stage:
        self._lease.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.running is not None:
            self.running.close()
        self._lease.__exit__(None, None, None)
        self._scratch.close()

    def interrupt(self, number: int) -> None:
        """From a signal handler: TERM to what runs; the second time KILL."""
        again = self.signal is not None
        self.signal = self.signal or number
        if self.running is not None:
            self.running.cancel(kill=again)

    def job(self, part: Part) -> Job:
        """What the step would be given, without the values of its secrets.

        Raises InputChanged's words as EnvironmentFault if a file changed meanwhile.
        """
        try:
            for path, entry in self._sources(part):
                self.workspace.keep(path, entry)
        except InputChanged as changed:
            raise EnvironmentFault(f'"{changed.path}" changed meanwhile', hint="try again") from None
        executor = LocalExecutor(self.blobs, self.boot, workspace=self.site.root)
        return executor.job(part.request, part.offered, part.instance.limits)

    def masker(self, part: Part) -> Masker | None:
        """Of its secrets, for `confide` and `masked`. Raises UnknownName, UsageError."""
        return masker_of(part.request, self._secrets.values)

    def _sources(self, part: Part) -> list[tuple[str, Entry]]:
        found: dict[str, Entry] = dict(part.offered)
        items = [*part.instance.inputs, *([part.instance.stdin] if part.instance.stdin else [])]
        for item in items:
            if item.producer is None:
                found |= self.workspace.source(item.path, part.instance.name)
        return list(found.items())

    def boot(self, request: Request, *extra: str, before: tuple[str, ...] = ()) -> Sandbox:
        """A sandbox for one request. Raises SandboxUnavailable."""
        roots = [os.path.join(self.site.root, path) for path in request.roots if path != SYSTEM_ROOT]
        self.running = boot_sandbox(
            request, self.site, self.store, [*roots, *extra, self.scratch], reuse=False, before=before
        )
        return self.running


def left_behind(finished: Finished, job: Job) -> list[str]:
    """Files and links of a finished job's workspace that were not staged, and those that were changed."""
    staged = {item.path for item in job.staged}
    found = []
    for folder, _, entries in walk(finished.workspace_fd):
        for name, seen in entries.items():
            path = f"{folder}/{name}" if folder else name
            if not stat.S_ISDIR(seen.st_mode) and path not in staged:
                found.append(path)
    return sorted({*found, *finished.changed})
