"""What a step sees of the host's system, told before it runs: packages, digest, and how the view is really shown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

from ..core.entries import Entry
from ..core.errors import RequiemError
from ..core.fields import dataclass, replace
from ..core.instance import Instance
from ..core.request import SYSTEM_ROOT, Request
from ..sandbox.linux import StrictSandbox
from ..sandbox.masks import Shown
from ..sandbox.showing import show
from ..sandbox.visible import View
from .build import build
from .divergences import Divergence, divergences_in, of_step
from .named import first_line, is_source, named_programs
from .options import Options
from .site import Site, find_site, named, open_view
from .stamps import Stamps
from .surroundings import Surroundings, surroundings_of

SCHEMA = "requiem.view/1"


@dataclass(frozen=True, slots=True)
class Seen:
    """`view` and `mechanism` are None for a step that sees all of the host."""

    step: str
    digest: str
    system: str
    view: View | None = None
    mechanism: str | None = None
    divergences: tuple[Divergence, ...] = ()

    def as_json(self) -> dict[str, Any]:
        packages = self.view.packages if self.view is not None else ()
        return {
            "changed": list(self.view.changed) if self.view is not None else [],
            "digest": self.digest,
            "divergences": [each.as_json() for each in self.divergences],
            "directories": len(self.view.directories) if self.view is not None else None,
            "files": len(self.view.files) + len(self.view.etc_files) if self.view is not None else None,
            "links": len(self.view.links) + len(self.view.etc_links) if self.view is not None else None,
            "mechanism": self.mechanism,
            "packages": [{"architecture": p.architecture, "name": p.name, "version": p.version} for p in packages],
            "step": self.step,
            "system": self.system,
        }


def look(options: Options, name: str) -> list[Seen]:
    """Of each instance that a name means. A view of packages is mounted for the answer.

    Raises UnknownName for what the manifest does not have, SandboxUnavailable where a view cannot be had.
    """
    site = find_site(options)
    planned, instances = named(site, options, name)
    surroundings = surroundings_of(site, planned.plan.roots, Stamps(), options.environment)
    level = options.sandbox or site.settings.sandbox
    asked = _asked(options, instances)
    instances = [_with_tools(instance, asked.get(instance.name)) for instance in instances]
    diverged: list[Divergence] = []
    with suppress(RequiemError):  # There may be no store yet.
        diverged = divergences_in(open_view(site))
    found = _seen(site, surroundings, instances, level, planned.plan.roots)
    return [replace(each, divergences=of_step(diverged, each.step)) for each in found]


def _asked(options: Options, instances: list[Instance]) -> dict[str, Request]:
    """What the next build will ask of them, as far as that is known: what a step reads may have to be made first."""
    found: dict[str, Request] = {}

    def note(name: str, request: Request, offered: Mapping[str, Entry]) -> None:
        found[name] = request

    names = tuple(instance.name for instance in instances)
    with suppress(RequiemError):
        build(replace(options, targets=names, dry_run=True, mode="repro", cache="rw"), lambda _: None, asked=note)
    return found


def _with_tools(instance: Instance, request: Request | None) -> Instance:
    """With what its inputs turned out to need, too."""
    if request is None:
        return instance
    return replace(instance, tools=tuple(dict.fromkeys((*instance.tools, *request.tools))))


def _seen(
    site: Site, surroundings: Surroundings, instances: list[Instance], level: str | None, roots: Any
) -> Iterator[Seen]:
    mechanisms: dict[str, str] = {}
    for instance in instances:
        if instance.policy.system == "host" or (level or instance.policy.sandbox) != "strict":
            yield Seen(instance.name, surroundings.system(), "host")
            continue
        paths = {surroundings.root_path(roots[each]) for each in instance.roots}
        command = command_of(instance)
        named = named_programs(
            instance, command, surroundings.environment(instance, "strict"), _sources(site, instance)
        )
        view = surroundings.packaged.view(instance, command, paths, named)
        if view.digest not in mechanisms:
            mechanisms[view.digest] = _mount(site, view, {SYSTEM_ROOT, *paths})
        yield Seen(instance.name, view.digest, "packages", view, mechanisms[view.digest])


def _sources(site: Site, instance: Instance) -> Callable[[str], bytes]:
    """The first lines of a step's sources; what others make is among the tools of what was asked, if it is known."""
    return lambda path: first_line(os.path.join(site.root, path)) if is_source(path, instance) else b""


def command_of(instance: Instance) -> tuple[str, ...]:
    """Also of a step whose command is filled in only when its inputs are known: its programs are known before."""
    if instance.command:
        return instance.command
    command = json.loads(instance.late).get("command")
    return tuple(command) if isinstance(command, list) and command else ("bash", "-c", str(command))


def _mount(site: Site, view: View, roots: Collection[str]) -> str:
    def boot(shown: Shown | None) -> str:
        assert shown is not None
        with StrictSandbox(shown=shown):
            return shown.mechanism

    return show(site.distribution, view.digest, roots, site.cache_home, boot)
