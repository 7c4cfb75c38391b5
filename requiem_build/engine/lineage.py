"""What a target was made of: its steps back to the sources, as the store remembers them. The ground of attest and sbom.

It reads what is recorded and runs nothing. A chain of which one link was built from something else than the next
one made is refused: it would tell of a build that never was.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO

from ..core.digest import Digest, Hasher
from ..core.entries import Entry, File, Link, Tree, parse_tree
from ..core.errors import CorruptObject, MissingObject, UsageError
from ..core.fields import dataclass
from ..core.instance import Instance
from ..core.request import ABSENT, Request, is_read, parse_request
from ..core.result import Record, Result
from ..sandbox.system import lookup
from ..store.layout import Store
from ..store.records import Kept
from . import history, plans
from . import memory as memories
from .options import Options
from .site import Site, find_site, question_of, working_store

BASE_PATH = "/usr/local/bin:/usr/bin:/bin"
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a chain, as it was last built here."""

    name: str
    instance: Instance
    request: Request
    result: Result
    record: Record


@dataclass(frozen=True, slots=True)
class Content:
    """Something that was read or made: where, and under which names other tools can find it again.

    `kind` is source, discovered, root, tool or output. `digest` is Requiem's own; `sha256` is that of the same
    bytes, where they are at hand.
    """

    kind: str
    path: str
    digest: Digest
    sha256: str | None = None
    size: int | None = None
    is_tree: bool = False


@dataclass(frozen=True)
class Lineage:
    """`links` are in plan order; `targets` names those whose outputs are what was asked for."""

    site: Site
    store: Store
    links: Mapping[str, Step]
    targets: tuple[str, ...]
    manifest: Mapping[str, str | None]
    project: str

    def read_set(self) -> list[Content]:
        """Everything from outside that any step of the chain could read: it had nothing else."""
        made = {path for link in self.links.values() for path in link.result.outputs}
        trees = tuple(path for path in made if path.endswith("/"))
        found: dict[tuple[str, str, str], Content] = {}
        for link in self.links.values():
            for content in self._read_by(link):
                inside = content.kind in ("source", "discovered", "root") and (
                    content.path in made or content.path.startswith(trees)
                )
                if not inside:
                    found.setdefault((content.kind, content.path, content.digest), content)
        return sorted(found.values(), key=lambda content: (content.kind, content.path.encode(), content.digest))

    def _read_by(self, link: Step) -> Iterator[Content]:
        request = link.request
        for path, entry in request.inputs.items():
            if "tree" in entry:
                yield self._content("source", path, Digest(str(entry["tree"])), is_tree=True)
            elif "digest" in entry:
                yield self._content("source", path, Digest(str(entry["digest"])))
        if request.stdin is not None:
            yield self._content("source", link.instance.stdin.path if link.instance.stdin else "stdin", request.stdin)
        for path, found in (request.discovered or {}).items():
            if found != ABSENT and is_read(path):
                yield self._content("discovered", path, Digest(found))
        for path, digest in request.roots.items():
            yield Content("root", path, digest)
        for name, digest in request.tools.items():
            yield self._tool(name, digest, request)

    def absent(self) -> list[str]:
        """Paths that a step looked for and did not find: their appearance would be another request."""
        probed = (link.request.discovered or {} for link in self.links.values())
        return sorted({path for found in probed for path, digest in found.items() if digest == ABSENT})

    def outputs(self, names: tuple[str, ...]) -> list[Content]:
        """Every file that these steps made, those in directories one by one."""
        found: dict[str, Content] = {}
        for name in names:
            for path, entry in self.links[name].result.outputs.items():
                for inner, file in self._files(path, entry):
                    found[inner] = self._content("output", inner, file.digest)
        return [found[path] for path in sorted(found, key=str.encode)]

    def _files(self, path: str, entry: Entry) -> Iterator[tuple[str, File]]:
        waiting = [(path.rstrip("/"), entry)]
        while waiting:
            at, item = waiting.pop()
            if isinstance(item, File):
                yield at, item
            elif isinstance(item, Tree):
                children = parse_tree(self.store.objects.get(item.digest))
                waiting.extend((f"{at}/{name}", child) for name, child in children)

    def _content(self, kind: str, path: str, digest: Digest, *, is_tree: bool = False) -> Content:
        if is_tree:
            return Content(kind, path, digest, is_tree=True)
        try:
            with tempfile.TemporaryFile() as copy:  # Where the store cannot be written no file can be made in it.
                self.store.objects.copy_to(digest, copy.fileno())
                copy.seek(0)
                sha256, size = both_digests(copy, digest)
        except (MissingObject, CorruptObject):
            return Content(kind, path, digest)
        return Content(kind, path, digest, sha256, size)

    def _tool(self, name: str, digest: Digest, request: Request) -> Content:
        """The program on this host, if it is still the one that the request names."""
        search = [os.path.join(self.site.root, path) for path in request.policy.path] + BASE_PATH.split(":")
        path = lookup(name, search)
        if path is not None:
            try:
                with open(path, "rb") as program:
                    sha256, size = both_digests(program, digest)
                return Content("tool", name, digest, sha256, size)
            except (CorruptObject, OSError):
                pass
        return Content("tool", name, digest)


def both_digests(file: IO[bytes], digest: Digest) -> tuple[str, int]:
    """A file's SHA-256 and size. Raises CorruptObject unless the same bytes have that digest, OSError."""
    ours, theirs = Hasher(), hashlib.sha256()
    while piece := file.read(_PIECE):
        ours.update(piece)
        theirs.update(piece)
    if ours.digest() != digest:
        raise CorruptObject(f"what was read is not object {digest}")
    return theirs.hexdigest(), ours.size


def trace_back(options: Options) -> Lineage:
    """The chain of `options.targets`, as it was last built in this workspace.

    Raises UsageError where a step was never built or is not remembered, or where the links do not fit.
    """
    site = find_site(options)
    planned = plans.obtain(site.root, question_of(site, options), site.seal, site.settings.roots)
    store = working_store(site, planned.store_settings, dry_run=True)
    memory = memories.load(site.dot, site.seal)
    links: dict[str, Step] = {}
    instances = {name: instance for name, instance in planned.plan.instances.items() if not instance.is_group}
    told = {
        name: (step.request_digest, step.result_digest)
        for name, step in memory.steps.items()
        if step.variant == options.variant
    }
    forgotten = [name for name in instances if name not in told]
    recalled = history.last_successes(store, site.workspace_id, forgotten) if forgotten else {}
    for name, instance in instances.items():
        built = told.get(name) or recalled.get(name)
        links[name] = _link(name, instance, built, store, site, from_journal=name not in told)
    _check_that_links_fit(links)
    makers = [link for link in links.values() if link.result.outputs]  # A test needs what it tests, and ends nothing.
    needed = {need for link in makers for need in (*link.instance.needs, *link.instance.after)}
    targets = tuple(name for name in links if name not in needed or name in options.targets)
    return Lineage(site, store, links, targets, planned.manifest, _project_name(site))


def _link(
    name: str, instance: Instance, built: tuple[str, str] | None, store: Store, site: Site, *, from_journal: bool
) -> Step:
    """`built`: the digests of its request and result. What only a journal tells must be what is planned now."""
    if built is None:
        raise UsageError(
            f'step "{name}" has not been built here',
            facts=[
                ("looked in", f"{site.dot}, which only the user who built reads, and the journals of {store.root}"),
                ("workspace", f"{site.root} ({site.workspace_id})"),
            ],
            hint="requiem build, with the same settings, in this directory and with this store",
        )
    request_digest, result_digest = built
    kept = find_result(store, request_digest, result_digest)
    if kept is None:
        raise UsageError(
            f'the store has no record of step "{name}"',
            facts=[("request", request_digest), ("store", str(store.root))],
            hint="a step that runs each time is not remembered; for any other: requiem build --cache wo",
        )
    request = parse_request(kept.request)
    if from_journal and not _is_of(instance, request):
        raise UsageError(
            f'step "{name}" was last built here under other settings, or before the manifest changed',
            facts=[("request", request_digest), ("told by", f"the journals of {store.root}")],
            hint="requiem build, with the same settings",
        )
    return Step(name, instance, request, kept.result, kept.record)


def find_result(store: Store, request_digest: str, result_digest: str) -> Kept | None:
    """The record that a request gave this very result: everybody's first, then those in the scope of each key."""
    for records in store.scopes():
        kept = records.find(Digest(request_digest))
        if kept is not None and kept.result.digest == result_digest:
            return kept
        for each in records.divergences(Digest(request_digest)):
            if each.result.digest == result_digest:
                return each
    return None


def _is_of(instance: Instance, request: Request) -> bool:
    """Whether a request can be of the step as it is planned now: its command, outputs and variables."""
    same = instance.late or tuple(instance.command) == tuple(request.command)
    declared = sorted(instance.outputs) == sorted(request.outputs)
    return bool(same) and declared and all(request.env.get(name) == value for name, value in instance.env.items())


def _check_that_links_fit(links: Mapping[str, Step]) -> None:
    for link in links.values():
        for need in link.instance.needs:
            made = links[need].result.outputs if need in links else {}
            for path, entry in made.items():
                read = link.request.inputs.get(path)
                given = None if isinstance(entry, Link) else entry.digest
                if read is not None and given is not None and given not in (read.get("digest"), read.get("tree")):
                    raise UsageError(
                        f'step "{link.name}" was built from another "{path}" than "{need}" made last',
                        hint="requiem build",
                    )


def _project_name(site: Site) -> str:
    import tomllib

    with open(os.path.join(site.root, site.manifest), "rb") as file:
        return str(tomllib.load(file).get("project", {}).get("name", "project"))
