"""Everything a step sees besides its inputs: the system, other roots, tools and environment, each by its digest."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..core import canonical
from ..core.digest import Digest, object_digest
from ..core.entries import Entry, File, Link, Tree
from ..core.errors import SourceMissing, UnknownName, UsageError
from ..core.fields import dataclass
from ..core.instance import Instance, Root
from ..core.policy import BASE_PATH, JOBSERVER_FLAGS, JOBSERVER_VARIABLE, WORKSPACE, WORLD_ENVIRONMENT
from ..core.request import SYSTEM_ROOT, Request
from ..core.secrecy import looks_secret
from ..sandbox.system import lookup, system_digest
from .stamps import Stamps, links_of

if TYPE_CHECKING:
    from ..sandbox.distribution import Distribution
    from .packaged import Packaged
    from .site import Site


@dataclass(frozen=True, slots=True)
class Seen:
    """One root as a request names it. `asserted` says what was taken on trust, or is empty."""

    path: str
    digest: Digest
    asserted: str = ""


class Surroundings:
    """Digests of roots and tools, each computed once a run.

    `system` gives the digest of the whole host, `distribution` the packages of which a step may see some.
    """

    def __init__(
        self,
        workspace: str,
        roots: Mapping[str, Root],
        stamps: Stamps,
        system: Callable[[], Digest],
        host_env: Mapping[str, str],
        distribution: Callable[[], Distribution],
    ) -> None:
        self.workspace = workspace
        self.host_env = host_env
        self._roots = roots
        self._stamps = stamps
        self._system = system
        self._system_digest: Digest | None = None
        self._distribution = distribution
        self._packaged: Packaged | None = None
        self._seen: dict[str, Seen] = {}
        self._tools: dict[tuple[str, tuple[str, ...]], Digest | None] = {}
        self._files: dict[str, Mapping[str, str]] = {}
        self._search: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._plain: dict[tuple[str, tuple[str, ...]], dict[str, str]] = {}
        """The environment of steps that add nothing to it, by level and `path`: most steps share one."""

    def system_root(
        self, instance: Instance, command: Sequence[str], roots: Collection[str], named: Sequence[str] = ()
    ) -> Digest:
        """What the step sees of /usr, by digest. `roots` are its other roots' paths, `named` as for `tools_of`."""
        if instance.policy.system == "packages":
            return Digest(self.packaged.view(instance, command, roots, named).digest)
        return self.system()

    @property
    def packaged(self) -> Packaged:
        if self._packaged is None:
            from .packaged import Packaged

            self._packaged = Packaged(self._distribution(), self._own_directories, self._program)
        return self._packaged

    @property
    def saw_packages(self) -> bool:
        return self._packaged is not None and self._packaged.distribution.is_used

    @property
    def saw_host(self) -> bool:
        return self._system_digest is not None

    def system(self) -> Digest:
        """Of all that the host has."""
        if self._system_digest is None:
            self._system_digest = self._system()
        return self._system_digest

    # Roots

    def spelled(self, path: str) -> str:
        """A root's path, or one of `path`, as requests spell it: absolute, or relative to the workspace's root."""
        if path.startswith("~"):
            path = os.path.expanduser(path)
        if path.startswith("/"):
            inside = os.path.relpath(path, self.workspace)
            return (path.rstrip("/") or "/") if inside.startswith("..") else inside
        return path.rstrip("/")

    def root_path(self, root: Root) -> str:
        return self.spelled(root.path)

    def host_path(self, root: Root) -> str:
        return os.path.join(self.workspace, self.root_path(root))

    def roots_of(self, instance: Instance, made: Mapping[str, Mapping[str, Entry]]) -> list[Seen]:
        """The instance's roots without the system. `made` maps a producer to its outputs."""
        seen = []
        for name in instance.roots:
            root = self._roots[name]
            outputs = made.get(root.producer or "", {})
            tree = outputs.get(self.root_path(root) + "/")
            if isinstance(tree, Tree):
                seen.append(Seen(self.root_path(root), tree.digest))
            else:
                seen.append(self._root(root))
        return seen

    def _root(self, root: Root) -> Seen:
        known = self._seen.get(root.name)
        if known is None:
            known = self._seen[root.name] = self._look(root)
        return known

    def _look(self, root: Root) -> Seen:
        path, full = self.root_path(root), self.host_path(root)
        if full == "/":
            raise UsageError(f'root "{root.name}" is the whole host', hint="name the directory that the step needs")
        if root.key:
            entries = {key: self._key_entry(root, key) for key in root.key}
            content = canonical.encode_plain({key: entry.as_output() for key, entry in entries.items()})
            return Seen(path, object_digest(content), asserted=f"root {root.name} by {', '.join(root.key)}")
        tree = self._stamps.tree(full, special_ok=True)
        if tree is None:
            raise SourceMissing(f'root "{root.name}" is not a directory: "{root.path}"', facts=[("path", full)])
        return Seen(path, tree.digest)

    def changed_root(self, instance: Instance, request: Request) -> str | None:
        """A root that is no longer what it was when it was first looked at; None if all are."""
        if request.policy.system == "packages" and not self.packaged.is_current(request.roots[SYSTEM_ROOT]):
            return SYSTEM_ROOT
        for name in instance.roots:
            before = self._seen.get(name)
            if before is not None and self._look(self._roots[name]) != before:
                del self._seen[name]
                return before.path
        return None

    def _key_entry(self, root: Root, key: str) -> File | Link:
        chain = links_of(os.path.join(self.workspace, os.path.expanduser(key)))
        entry = [self._stamps.entry(path) for path in chain][-1]
        if entry is None:
            raise SourceMissing(f'root "{root.name}" is keyed by "{key}", which does not exist')
        return entry

    # Tools

    def search_path(self, instance: Instance) -> tuple[str, ...]:
        """Host directories in the order in which the step's PATH searches."""
        path = instance.policy.path
        if path not in self._search:
            self._search[path] = (*self._own_directories(instance), *BASE_PATH.split(":"))
        return self._search[path]

    def _own_directories(self, instance: Instance) -> tuple[str, ...]:
        """Those that stand before PATH, on the host."""
        return tuple(os.path.join(self.workspace, self.spelled(each)) for each in instance.policy.path)

    def tools_of(
        self, instance: Instance, command: Sequence[str], roots: Collection[str] = (), named: Sequence[str] = ()
    ) -> dict[str, Digest]:
        """What argv[0] and `tools` resolve to, by content. Raises UnknownName for a tool that is nowhere.

        Where a step sees packages only, so do the programs that its command is found to name.
        """
        if instance.policy.system == "packages":
            return self.packaged.tools(instance, command, roots, named)
        search = self.search_path(instance)
        found: dict[str, Digest] = {}
        for name in instance.tools:
            digest = self._tool(name, search)
            if digest is None:
                raise UnknownName(
                    f'step "{instance.name}" asks for the tool "{name}", which is not in its PATH',
                    facts=[("step", instance.name), ("PATH", ":".join(search))],
                    hint="install it, or declare the directory that holds it as a root and put it into `path`",
                )
            found[name] = digest
        program = command[0]
        if "/" not in program or program.startswith("/"):
            digest = self._tool(program, search)
            if digest is not None:
                found[program] = digest
        return found

    def _tool(self, name: str, search: tuple[str, ...]) -> Digest | None:
        key = (name, search)
        if key not in self._tools:
            path = name if name.startswith("/") else lookup(name, search)
            self._tools[key] = self._program(path) if path else None
        return self._tools[key]

    def _program(self, path: str) -> Digest | None:
        entry = self._stamps.entry(os.path.realpath(path))
        return entry.digest if isinstance(entry, File) else None

    # Environment

    def environment(self, instance: Instance, sandbox: str) -> Mapping[str, str]:
        """World 1, then the manifest's, then what is passed: the whole environment that the step sees."""
        if instance.env or instance.env_file or instance.pass_env or instance.jobserver:
            return self._environment(instance, sandbox)
        key = (sandbox, instance.policy.path)
        if key not in self._plain:
            self._plain[key] = self._environment(instance, sandbox)
        return self._plain[key]

    def _environment(self, instance: Instance, sandbox: str) -> dict[str, str]:
        env = dict(WORLD_ENVIRONMENT) if sandbox != "none" else {}
        prefix = WORKSPACE if sandbox == "strict" else self.workspace
        if instance.policy.path and sandbox != "none":
            extra = [os.path.join(prefix, self.spelled(path)) for path in instance.policy.path]
            env["PATH"] = ":".join([*extra, BASE_PATH])
        for path in instance.env_file:
            env |= self._env_file(path, instance)
        for name in instance.secrets:
            if name in env:
                raise UsageError(
                    f'step "{instance.name}" has "{name}" among its secrets, and in an env_file too',
                    hint="what an env_file gives is in the key, and so known to whoever reads the store",
                )
        env |= instance.env
        for name in self.passed(instance):
            env[name] = self.host_env[name]
        if instance.jobserver and sandbox != "none":
            if JOBSERVER_VARIABLE in env:  # In a file, or by a pattern: what is named is refused before.
                raise UsageError(
                    f'step "{instance.name}" has a jobserver, which gives it {JOBSERVER_VARIABLE}, and is given that '
                    "by its env_file or a pattern of its pass_env too",
                    hint=f'take it out of the file, or put "!{JOBSERVER_VARIABLE}" into pass_env',
                )
            env[JOBSERVER_VARIABLE] = JOBSERVER_FLAGS
        return env

    def passed(self, instance: Instance) -> list[str]:
        return [name for name in passed_names(instance.pass_env, self.host_env) if name not in instance.secrets]

    def _env_file(self, path: str, instance: Instance) -> Mapping[str, str]:
        if path not in self._files:
            full = os.path.join(self.workspace, path)
            if [self._stamps.entry(step, named=step == full) for step in links_of(full)][-1] is None:
                raise SourceMissing(f'step "{instance.name}" names the env_file "{path}", which does not exist')
            with open(full, "rb") as file:
                self._files[path] = parse_env_file(file.read(), path)
        return self._files[path]


def surroundings_of(
    site: Site,
    roots: Mapping[str, Root],
    stamps: Stamps,
    host_env: Mapping[str, str],
    system: Callable[[], Digest] | None = None,
) -> Surroundings:
    """Those of a workspace's steps. `system` where somebody looks at the host's system already."""
    look = system if system is not None else lambda: system_digest(site.cache_home)
    return Surroundings(site.root, roots, stamps, look, host_env, lambda: site.distribution)


def passed_names(patterns: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Names of host variables that `pass_env` lets through: secret-like ones only by their exact name.

    Excludes win wherever they stand.
    """
    names: set[str] = set()
    for pattern in patterns:
        if is_pattern(pattern):
            names |= {n for n in environment if fnmatchcase(n, pattern) and not looks_secret(n)}
        elif (name := pattern.removesuffix("?")) in environment:
            names.add(name)
    return sorted(name for name in names if not _excluded(name, patterns))


def _excluded(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern[1:]) for pattern in patterns if pattern.startswith("!"))


def is_pattern(name: str) -> bool:
    """`NAME?` is no pattern: it is a variable that may be there."""
    return any(character in name.removesuffix("?") for character in "*?[")


def required_names(patterns: Sequence[str]) -> list[str]:
    """The variables that must be there: those with their plain name."""
    plain = (name for name in patterns if name[0] != "!" and not is_pattern(name) and name[-1] != "?")
    return [name for name in plain if not _excluded(name, patterns)]


def parse_env_file(content: bytes, path: str) -> dict[str, str]:
    """`NAME=value` lines; blank lines, `#` comments, a leading `export` and one pair of quotes are understood."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceMissing(f'env_file "{path}" is not UTF-8 at byte {error.start}') from error
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        plain = line.strip().removeprefix("export ").strip()
        if not plain or plain.startswith("#"):
            continue
        name, equals, value = plain.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise SourceMissing(f'env_file "{path}" line {number} is not NAME=value', facts=[("line", line[:80])])
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name] = value
    return found
