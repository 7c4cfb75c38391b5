"""The engine's own door: a request in, its result out. Nothing is laid out and nothing is planned."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from ..core.digest import Digest
from ..core.entries import Tree
from ..core.errors import EnvironmentFault, RequestError, UnknownName
from ..core.fields import replace
from ..core.instance import Instance
from ..core.policy import Limits
from ..core.request import ABSENT, SYSTEM_ROOT, Request, is_read
from ..executors.base import Ran
from ..executors.blobs import Blobs
from ..executors.local import LocalExecutor
from ..store.layout import Store
from .rerun import of_request, offered_of
from .secrets import Secrets
from .site import Site, boot_sandbox, host_platform
from .stamps import Stamps
from .surroundings import surroundings_of


def execute(
    request: Request,
    site: Site,
    store: Store,
    environment: Mapping[str, str],
    on_start: Callable[[Callable[[int], None]], None],
) -> Ran:
    """Runs one request whose objects are in the store. `environment` is the caller's, for secrets.

    Raises EnvironmentFault if its roots, tools or platform are not this host's, UnknownName for a missing object.
    """
    if request.discover and request.discovered is None:
        raise EnvironmentFault(
            "a request with discover cannot be run alone: what it may see is not in it",
            hint="`requiem show request STEP` gives the one in which it is",
        )
    _check_paths(request, site)
    _check_host(request, site)
    blobs = Blobs(store.objects)
    _check_objects(request, blobs)
    blobs.put(b"")
    roots = [os.path.join(site.root, path) for path in request.roots if path != SYSTEM_ROOT]
    executor = LocalExecutor(
        blobs,
        lambda wanted: boot_sandbox(wanted, site, store, roots),
        workspace=site.root,
        secrets=Secrets(environment, site.settings.secrets).values,
    )
    try:
        on_start(lambda _: executor.cancel(kill=False))
        ran = executor.execute(replace(request, discovered=None), offered_of(request, blobs), Limits())
        return replace(ran, request=request, result=of_request(request, ran.result))
    finally:
        executor.close()


def _check_paths(request: Request, site: Site) -> None:
    """Raises RequestError for paths that no directory can hold together."""
    level = request.policy.sandbox
    if request.cwd.startswith("/") == (level == "strict") or (
        level != "strict" and request.cwd != site.root and not request.cwd.startswith(site.root + "/")
    ):
        raise RequestError(f"request.cwd {request.cwd!r} does not fit the level {level} in this workspace")
    for path in request.inputs:
        parent = os.path.dirname(path.rstrip("/"))
        while parent:
            if parent in request.inputs:
                raise RequestError(f"request.inputs has both {parent!r} and {path!r} below it")
            parent = os.path.dirname(parent)


def _check_host(request: Request, site: Site) -> None:
    if dict(request.platform) != host_platform():
        raise EnvironmentFault(
            "the request is for another platform",
            facts=[("request", str(dict(request.platform))), ("host", str(host_platform()))],
        )
    stamps = Stamps()
    surroundings = surroundings_of(site, {}, stamps, {})
    probe = Instance("exec", "exec", request.command, "", policy=request.policy, tools=tuple(request.tools))
    others = set(request.roots) - {SYSTEM_ROOT}
    for path, digest in request.roots.items():
        here: Digest | None
        if path == SYSTEM_ROOT:
            here = surroundings.system_root(probe, request.command, others)
        else:
            tree = stamps.tree(os.path.join(site.root, path), special_ok=True)
            here = tree.digest if isinstance(tree, Tree) else None
        if here != digest:
            raise EnvironmentFault(
                f'the root "{path}" is not the request\'s', facts=[("request", digest), ("host", here or "absent")]
            )
    found = surroundings.tools_of(probe, request.command, others)
    for name, digest in request.tools.items():
        if found.get(name) != digest:
            raise EnvironmentFault(
                f'the tool "{name}" is not the request\'s', facts=[("request", digest), ("host", found.get(name, "?"))]
            )


def _check_objects(request: Request, blobs: Blobs) -> None:
    named = [str(entry.get("digest") or entry.get("tree") or "") for entry in request.inputs.values()]
    discovered = (each for path, each in (request.discovered or {}).items() if is_read(path) and each != ABSENT)
    for digest in (*named, request.stdin or "", *discovered):
        if digest and not blobs.stored(Digest(digest)):
            raise UnknownName(f"no object {digest} in the store", hint="requiem cas put FILE")
