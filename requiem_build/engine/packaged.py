"""What the names in a step's command and `tools` mean where the step sees packages only: `system = "packages"`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from ..core.digest import Digest, object_digest
from ..core.errors import UnknownName
from ..core.instance import Instance
from ..core.programs import interpreter
from ..core.request import SYSTEM_ROOT
from ..sandbox.distribution import Distribution
from ..sandbox.system import lookup
from ..sandbox.visible import View
from .named import first_line
from .stamps import links_of

_LOCAL = "/usr/local/bin"


class Packaged:
    """`directories(instance)` stand before its PATH, on this host.

    `program(path)` is the digest of a program's content on this host, None for what is no file.
    """

    def __init__(
        self,
        distribution: Distribution,
        directories: Callable[[Instance], Sequence[str]],
        program: Callable[[str], Digest | None],
    ) -> None:
        self.distribution = distribution
        self._directories = directories
        self._program = program
        self._views: dict[tuple[object, ...], tuple[View, dict[str, Digest]]] = {}

    def view(
        self, instance: Instance, command: Sequence[str], roots: Collection[str], named: Sequence[str] = ()
    ) -> View:
        """What the step sees of /usr. `named` are programs that its command names beside argv[0].

        Raises UnknownName for a tool that is neither a program nor a package; of `named` such add nothing.
        """
        return self._asked(instance, command, roots, named)[0]

    def tools(
        self, instance: Instance, command: Sequence[str], roots: Collection[str], named: Sequence[str] = ()
    ) -> dict[str, Digest]:
        """What argv[0], `tools` and `named` resolve to: a program by its content, a package without one by what it is.

        So that the same command and these as its `tools` give the same view. What every step sees is left out.
        """
        return dict(self._asked(instance, command, roots, named)[1])

    def is_current(self, digest: str) -> bool:
        """Whether the view of that digest, once mounted, was the host's all the time until now."""
        if self.distribution.is_unchanged() and self.distribution.known(digest) is not None:
            return True
        self.distribution.forget()
        self._views.clear()
        return False

    def _asked(
        self, instance: Instance, command: Sequence[str], roots: Collection[str], named: Sequence[str]
    ) -> tuple[View, dict[str, Digest]]:
        own = self._own_directories(instance, roots)
        outside = tuple(root for root in sorted(roots) if root.startswith("/") and root != SYSTEM_ROOT)
        key = (command[0], tuple(named), instance.tools, own, outside)
        if key not in self._views:
            tools: dict[str, Digest] = {}
            asked: list[str] = []
            for name in instance.tools:
                if not self._is_own(name, own, tools, asked):
                    tools[name] = self._packaged(name, instance)
                    asked.append(name)
            for name in dict.fromkeys((command[0], *named)):
                if name not in tools and ("/" not in name or name.startswith("/")):
                    self._ask(name, own, tools, asked, is_first=name == command[0])
            self._views[key] = (self.distribution.view(asked, outside), tools)
        return self._views[key]

    def _own_directories(self, instance: Instance, roots: Collection[str]) -> tuple[str, ...]:
        """Directories of the step's PATH that come before those of packages, as far as it sees them."""
        own = [*self._directories(instance)]
        if any(root == _LOCAL or _LOCAL.startswith(f"{root}/") for root in roots if root != SYSTEM_ROOT):
            own.append(_LOCAL)
        return tuple(own)

    def _is_own(self, name: str, own: tuple[str, ...], tools: dict[str, Digest], asked: list[str]) -> bool:
        """Whether a name is found there. What it leads to, or is run by, may be a package's: that is asked for."""
        path = None if name.startswith("/") else lookup(name, own)
        digest = self._program(path) if path is not None else None
        if path is None or digest is None:
            return False
        tools[name] = digest
        asked += self._leans_on(path)
        for each in interpreter(first_line(path)):
            further = None if each.startswith("/") else lookup(each, own)  # `#!/usr/bin/env node`, with a node beside.
            asked += [each] if further is None else self._leans_on(further)
        return True

    def _leans_on(self, path: str) -> list[str]:
        """The first on the way of links that a package owns: `.venv/bin/python` leads to /usr/bin/python3."""
        return [each for each in links_of(path) if self.distribution.owner(each) is not None][:1]

    def _ask(
        self, name: str, own: tuple[str, ...], tools: dict[str, Digest], asked: list[str], *, is_first: bool
    ) -> None:
        """Takes a program that the command names for a tool, if it is one; of what every step sees argv[0] only."""
        if self._is_own(name, own, tools, asked) or self.distribution.owner(name) is None:
            return
        found = self._content(name) if is_first or not self.distribution.is_base(name) else None
        if found is not None:
            tools[name] = found
            asked.append(name)

    def _packaged(self, name: str, instance: Instance) -> Digest:
        found = self._content(name)
        if found is not None:
            return found
        ids = self.distribution.resolve(name)
        if not ids:
            from .package_hints import unpackaged

            nearest = self.distribution.nearest(name)
            meant = f"did you mean {' or '.join(map(repr, nearest))}? " if nearest else ""
            advice = next(iter(unpackaged(name, self.distribution)), None)
            raise UnknownName(
                f'step "{instance.name}" asks for the tool "{name}", which is neither a program nor a package here',
                facts=[("step", instance.name), ("packages", self.distribution.database.kind)],
                hint=advice
                or f"{meant}install it, or declare the directory that holds it as a root and put it into `path`",
            )
        packages = self.distribution.database.packages()
        lines = [f"{packages[id_].name} {packages[id_].version} {packages[id_].architecture}\n" for id_ in ids]
        return object_digest("".join(lines).encode())

    def _content(self, name: str) -> Digest | None:
        """Of the program of that name, if a package owns it."""
        path = self.distribution.program(name)
        return None if path is None else self._program(path)
