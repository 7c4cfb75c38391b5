"""Where a build happens: the workspace, its settings and its store; everything that does not depend on the plan."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from ..core.digest import object_digest
from ..core.errors import EnvironmentFault, RequiemError, SandboxUnavailable, StoreRefused, UsageError
from ..core.fields import dataclass, replace
from ..core.request import SYSTEM_ROOT, Request
from ..sandbox.base import Sandbox
from ..store.durability import BATCH
from ..store.growth import SIZE_MAX
from ..store.layout import Store
from . import plans, sealed
from .options import Options
from .settings import Settings, load_settings
from .workspace import DOT, Files, InputChanged, find_workspace

if TYPE_CHECKING:
    from ..core.instance import Instance
    from ..sandbox.cgroups import Cgroups
    from ..sandbox.distribution import Distribution
    from ..sandbox.linux import StrictSandbox
    from ..sandbox.masks import Shown
    from ..sandbox.perturbation import Perturbation
    from .scratch import Scratch
    from .trust import Trust


AHEAD_MAX = 8
"""Workers that are started before a step asks for one."""
STAND_IN = "stand-in"
"""Below `.requiem/`: what builds make while the store cannot be written."""
BESIDE = "beside"
"""Below `.requiem/`: what works beside the builds; see `scratch.py`."""


@dataclass(slots=True)
class Site:
    """`root` and `dot` are absolute; `cache_home` holds facts of this machine that all workspaces share."""

    root: str
    manifest: str
    dot: str
    cache_home: str
    seal: bytes
    settings: Settings
    _distribution: Distribution | None = None

    @property
    def distribution(self) -> Distribution:
        """The host's packages; nothing is read before somebody asks something of them."""
        if self._distribution is None:
            from ..sandbox.distribution import Distribution

            self._distribution = Distribution(self.cache_home)
        return self._distribution

    @property
    def workspace_id(self) -> str:
        """Names this workspace in a store that may serve many, without telling its path."""
        return str(object_digest(self.root.encode("utf-8", "surrogateescape")))[:16]


def find_site(options: Options) -> Site:
    root, manifest = find_workspace(options.start, options.manifest)
    _refuse_link(os.path.join(root, DOT))
    home = sealed.cache_home(options.environment)
    return Site(
        root, manifest, os.path.join(root, DOT), home, sealed.seal_key(home), load_settings(options.environment)
    )


def _refuse_link(path: str) -> None:
    """What Requiem empties and overwrites is its own only where it lies in the workspace itself."""
    if os.path.islink(path):
        import shlex

        quoted = shlex.quote(path)
        raise UsageError(
            f'"{path}" is a symlink, and Requiem writes to no other place than the workspace',
            facts=[("leads to", os.readlink(path))],
            hint=f"rm {quoted}: what it holds can be made again",
        )


def host_platform() -> dict[str, str]:
    return {"arch": os.uname().machine, "os": os.uname().sysname.lower()}


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def question_of(site: Site, options: Options) -> plans.Question:
    return plans.Question(
        root=site.root,
        manifest=site.manifest,
        targets=options.targets,
        tags=options.tags,
        profile=options.profile,
        sets=tuple(sorted(options.sets.items())),
        cwd=cwd_of(site, options.start),
        platform=tuple(sorted(host_platform().items())),
        user_roots=repr(sorted(site.settings.roots.items())),
    )


def cwd_of(site: Site, start: str) -> str:
    """From where in the workspace names are meant: its root for whoever stands outside of it."""
    inside = start == site.root or start.startswith(site.root + "/")
    return os.path.relpath(start, site.root) if inside else "."


def named(site: Site, options: Options, step: str) -> tuple[plans.Planned, list[Instance]]:
    """The plan of a target, and the instances with a command that its name means. Raises UnknownName, ManifestError."""
    from ..core.query import Graph

    question = question_of(site, replace(options, targets=(step,)))
    planned = plans.obtain(site.root, question, site.seal, site.settings.roots)
    return planned, Graph(planned.plan).running(step, question.cwd)


def open_store(site: Site, settings: Mapping[str, object] | None = None, *, read_only: bool = False) -> Store:
    """The store that the environment, the user's configuration or `settings` name, else `.cas/` in the workspace.

    `settings` is the manifest's [store]; without it, it is read, and a manifest that is broken has none.
    """
    if settings is None and not site.settings.store_path:
        settings = _manifest_settings(site)
    durability = site.settings.durability or (settings or {}).get("durability") or BATCH
    return Store(store_path(site, settings), read_only=read_only, durability=str(durability))


def working_store(
    site: Site,
    settings: Mapping[str, object] | None = None,
    *,
    dry_run: bool = False,
    refused: StoreRefused | None = None,
) -> Store:
    """As `open_store`; where that store cannot be written, one of the workspace's own stands in front of it.

    A `dry_run` makes no such store: it only looks into the one that is there. `refused`: why it could not be
    written a moment ago, though it looks as if it could.
    """
    store = open_store(site, settings, read_only=refused is not None)
    if refused is not None:
        store.refusal = refused
    return store if store.refusal is None else _behind_stand_in(site, store, read_only=dry_run)


def open_view(site: Site, settings: Mapping[str, object] | None = None) -> Store:
    """The store as builds of this workspace see it, for reading only."""
    return _behind_stand_in(site, open_store(site, settings, read_only=True), read_only=True)


def _behind_stand_in(site: Site, store: Store, *, read_only: bool) -> Store:
    from ..store.standin import stand_in

    root = f"{site.dot}/{STAND_IN}/store"
    for path in (os.path.dirname(root), root):  # Whatever else stands there is deleted.
        _refuse_link(path)
    return stand_in(root, store, read_only=read_only)


def drop_stand_in(site: Site, store: Store) -> None:
    """Once the store can be written again nothing needs it. Only for whoever holds the workspace's lock."""
    path = os.path.join(site.dot, STAND_IN)
    if store.below is None and os.path.lexists(path):
        import shutil

        shutil.rmtree(path, ignore_errors=True)


def stand_in_notice(store: Store) -> str | None:
    """What a user must know of a build whose store cannot be written; None if it can."""
    if store.below is None or store.below.refusal is None:
        return None
    facts = dict(store.below.refusal.facts)
    cause = facts.get("cause", store.below.refusal.what)
    where = str(facts.get("path", store.below.root)).removesuffix("/v2/objects")
    return f"the store is read-only: {cause}: {where}; what this build makes is kept in {DOT}/{STAND_IN}"


def store_path(site: Site, settings: Mapping[str, object] | None = None) -> str:
    """Where `open_store` opens it."""
    if settings is None and not site.settings.store_path:
        settings = _manifest_settings(site)
    configured = site.settings.store_path or (settings or {}).get("path")
    return os.path.join(site.root, os.path.expanduser(str(configured)) if configured else ".cas")


def size_max(site: Site, settings: Mapping[str, object] | None = None) -> int:
    """The bound of the store that `open_store` opens, in bytes.

    A manifest speaks only for the workspace's own store: in one that many share, the user's configuration does.
    """
    if site.settings.store_size_max is not None:
        return site.settings.store_size_max
    if settings is None:
        settings = _manifest_settings(site)
    wish = settings.get("max_size")
    if site.settings.store_path or settings.get("path") or not isinstance(wish, int):
        return SIZE_MAX
    return wish


def _manifest_settings(site: Site) -> Mapping[str, object]:
    from ..core.manifest import load_manifest

    with suppress(RequiemError):
        return load_manifest(Files(site.root).read, site.manifest).store
    return {}


def trust_of(site: Site, options: Options) -> Trust | None:
    """Whose records may answer here and who signs; None, and nothing imported, where nobody asked for either."""
    if not site.settings.trust and not os.path.lexists(os.path.join(site.root, "requiem.local.toml")):
        return None
    from .trust import load_trust

    return load_trust(site.settings.trust, site.root, options.environment)


def can_write(site: Site) -> bool:
    """Whether this workspace can be built in at all, or only asked about."""
    return os.access(site.dot if os.path.isdir(site.dot) else site.root, os.W_OK | os.X_OK)


def prepare_dot(dot: str) -> None:
    """`.requiem/` with its own ignore file. Raises UsageError if it leads elsewhere, EnvironmentFault."""
    for name in ("tmp", "staged", "displaced", "kept", BESIDE, STAND_IN):
        _refuse_link(os.path.join(dot, name))
    try:
        os.makedirs(os.path.join(dot, "tmp"), exist_ok=True)
        ignore = os.path.join(dot, ".gitignore")
        if not os.path.exists(ignore):
            with open(ignore, "w", encoding="utf-8") as file:
                file.write("*\n")
            with open(os.path.join(dot, "CACHEDIR.TAG"), "w", encoding="utf-8") as file:
                file.write("Signature: 8a477f597d28d172789f06886806bc55\n")
    except OSError as error:
        raise EnvironmentFault(f'cannot write to "{dot}"', facts=[("cause", error.strerror or str(error))]) from error


def clear_scratch(dot: str) -> None:
    """What crashed runs left. Only for whoever holds the workspace's lock."""
    for folder in ("tmp", "staged"):
        path = os.path.join(dot, folder)
        left: list[str] = []
        with suppress(OSError), os.scandir(path) as items:
            left = [item.path for item in items]
        if left:
            from ..sandbox.descent import remove  # Seldom needed.

            for item in left:
                with suppress(OSError):
                    remove(item)
    beside = os.path.join(dot, BESIDE)
    if os.path.lexists(beside):
        from .scratch import clear_abandoned

        clear_abandoned(beside)


def staged_at(site: Site, request: Request) -> str:
    """The directory in which a step of the level `process` runs."""
    return os.path.join(site.dot, "staged", request.digest[:24])


def make_scratch(site: Site, *, outside: bool = False) -> Scratch:
    """For work beside the builds of this workspace, also where nothing can be written in it, or may be (`outside`)."""
    from .scratch import Scratch

    writable = not outside and can_write(site)
    if writable:
        prepare_dot(site.dot)
    return Scratch(os.path.join(site.dot if writable else site.cache_home, BESIDE))


def _is_gone(store: Store, error: SandboxUnavailable) -> bool:
    return any("ENOENT" in told and root in told for _, told in error.facts for root in store.roots)


def _cgroups(site: Site) -> Cgroups | None:
    if site.settings.cgroup is None:
        return None
    from ..sandbox.cgroups import Cgroups

    return Cgroups(site.settings.cgroup)


def boot_sandbox(
    request: Request,
    site: Site,
    store: Store,
    roots: list[str],
    perturbation: Perturbation | None = None,
    *,
    reuse: bool = True,
    before: tuple[str, ...] = (),
) -> Sandbox:
    """A sandbox of exactly the level that the request says. Raises SandboxUnavailable, never gives a weaker one.

    Only `strict` can be perturbed, can do without `reuse`, and has a worker that words can go `before`.
    """
    level = request.policy.sandbox
    if level == "strict" and sys.platform != "linux":
        from ..sandbox.promises import no_strict

        raise no_strict(sys.platform)
    if level == "strict":
        for left in (2, 1, 0):
            try:
                return _boot_strict(request, site, store, roots, perturbation, reuse=reuse, before=before)
            except SandboxUnavailable as error:
                if left == 0 or not _is_gone(store, error):
                    raise  # Else the store was deleted at this very moment: without one it boots as well.
    for name in ("clock", "random"):
        if getattr(request.policy, name) != "real":
            wanted = f'{name} = "{getattr(request.policy, name)}"'
            raise SandboxUnavailable(
                f"{wanted} cannot be had at the level {level}",
                facts=[("level", level)],
                hint=f'{name} can only be held by strict sandboxing: say sandbox = "strict", or {name} = "real"',
            )
    from ..sandbox.posix import NoSandbox, ProcessSandbox

    if level == "none":
        return NoSandbox(workspace=site.root, path=request.policy.path)
    # The path is part of what the step sees: the same for the same request, and no other step's.
    return ProcessSandbox(staged_at(site, request), _cgroups(site))


def start_workers(count: int) -> None:
    """Begins that many of the processes that strict sandboxes need. It is no promise, and costs little if none is."""
    if sys.platform == "linux":
        from ..sandbox.attendant import AHEAD

        AHEAD.start("worker", min(count, AHEAD_MAX))


def dismiss_workers() -> None:
    """Ends those that no sandbox took."""
    if "requiem_build.sandbox.attendant" in sys.modules:
        from ..sandbox.attendant import AHEAD

        AHEAD.end()


def _boot_strict(
    request: Request,
    site: Site,
    store: Store,
    roots: list[str],
    perturbation: Perturbation | None,
    *,
    reuse: bool,
    before: tuple[str, ...],
) -> StrictSandbox:
    from ..sandbox.linux import StrictSandbox
    from ..sandbox.perturbation import STILL

    def boot(shown: Shown | None) -> StrictSandbox:
        return StrictSandbox(
            roots=[*roots, *store.roots[1:]],
            store=store.roots[0],
            network=request.policy.network,
            reuse=reuse,
            perturbation=perturbation or STILL,
            clock=request.policy.clock if not before else "real",  # Nobody can be traced twice.
            random=request.policy.random if not before else "real",
            before=before,
            cgroups=_cgroups(site),
            shown=shown,
        )

    if request.policy.system == "host":
        return boot(None)
    from ..sandbox.showing import show

    if site.distribution.known(request.roots[SYSTEM_ROOT]) is None:
        raise InputChanged(SYSTEM_ROOT)  # Somebody found that the packages have changed since this was asked.
    return show(site.distribution, request.roots[SYSTEM_ROOT], list(request.roots), site.cache_home, boot)
