"""What a step touched, held against what it declared. Pure: how it was traced, and what stands where, is handed in."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from .fields import dataclass, field
from .paths import ancestors, is_within
from .policy import WORKSPACE

READ, EXECUTED, LOOKED, LISTED, WROTE = "read", "executed", "looked at", "listed", "wrote"
SCHEMA = "requiem.observe/1"
ABSENT = frozenset({"ENOENT", "ENOTDIR", "ELOOP", "ENAMETOOLONG"})
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc")
"""What packages bring."""
_VIEW = (*_SYSTEM, "/proc", "/dev", "/tmp", "/sys")
"""What every step sees, or what none ever sees: nothing there can be declared by its path."""


@dataclass(frozen=True, slots=True)
class Access:
    """One look at a path, absolute in the step's own view. Bytes that are no UTF-8 are surrogates.

    `error` is empty for a success, else the name of the error; `wanted` is what was tried.
    """

    wanted: str
    path: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Declared:
    """What a step says of itself. Paths of whole directories end in `/`; `covers(path)` is the outputs' meaning."""

    inputs: Collection[str]
    offered: Collection[str]
    outputs: Callable[[str], bool]
    roots: Collection[str] = ()

    def shows(self, path: str) -> bool:
        return (
            path in self.inputs
            or path in self.offered
            or any(above + "/" in self.inputs for above in (path, *ancestors(path)))
        )


@dataclass(slots=True)
class Touched:
    """A path and all that was wanted of it, in a fixed order."""

    path: str
    how: set[str] = field(default_factory=set)
    made_by: str | None = None
    hidden: bool = False
    """It was not to be seen where the step ran, though it stands there."""
    line: str = ""
    """What to add to the manifest."""

    def as_json(self) -> dict[str, object]:
        return {
            "hidden": self.hidden,
            "how": sorted(self.how),
            "line": self.line,
            "made_by": self.made_by,
            "path": readable(self.path),
        }


@dataclass(frozen=True, slots=True)
class Lacking:
    """A package that the step does not see, and what of it was looked for."""

    path: str
    package: str

    @property
    def line(self) -> str:
        return f'tools = [..., "{self.package}"]'

    def as_json(self) -> dict[str, object]:
        return {"line": self.line, "package": self.package, "path": readable(self.path)}


@dataclass(slots=True)
class Observation:
    """One run's worth of looks. Paths are relative to the workspace's root, but those of `outside`."""

    step: str
    undeclared: list[Touched] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    """What it made and left, and did not declare."""
    changed: list[str] = field(default_factory=list)
    """Files of the workspace that it read and changed: a step must not."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """What it may not write or cannot read, and the error's name."""
    unused: list[str] = field(default_factory=list)
    outside: list[Touched] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    """Every path of the workspace that it saw something of."""
    packages: list[Lacking] = field(default_factory=list)
    """Of what this host has and the step looked for in vain."""
    system_seen: dict[str, None] = field(default_factory=dict)
    """What it saw of the system, in that order."""
    system_absent: dict[str, None] = field(default_factory=dict)
    """What it did not see of it though it stands on this host."""
    system_files: int = 0
    exit_code: int = 0
    failure: str = ""
    view: str = "workspace"
    runs: int = 1

    @property
    def clean(self) -> bool:
        """Whether its declaration is exact as far as this run shows."""
        return not (self.undeclared or self.made or self.changed or self.unused or self.outside)

    def as_json(self) -> dict[str, object]:
        return {
            "absent": [readable(path) for path in self.absent],
            "changed": [readable(path) for path in self.changed],
            "clean": self.clean,
            "exit_code": self.exit_code,
            "failure": self.failure,
            "listed": [readable(path) for path in self.listed],
            "made": [readable(path) for path in self.made],
            "name": self.step,
            "outside": [each.as_json() for each in self.outside],
            "packages": [each.as_json() for each in self.packages],
            "refused": [{"error": error, "path": readable(path)} for path, error in self.refused],
            "runs": self.runs,
            "system_files": self.system_files,
            "undeclared": [each.as_json() for each in self.undeclared],
            "unused": [readable(path) for path in self.unused],
            "view": self.view,
        }


def readable(path: str) -> str:
    r"""A path that any reader of JSON takes: bytes that are no UTF-8 are written as `\xff`."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


Stands = Callable[[str], str | None]
"""`file`, `link`, `dir`, `other` or None: a path of the workspace, or an absolute one of the host, as it stands now."""
Resolve = Callable[[str], Sequence[str]]
"""The symlinks of the workspace that a path leads through, then where it leads; empty if that is out of it."""


def judge(step: str, accesses: Iterable[Access], declared: Declared, stands: Stands, resolve: Resolve) -> Observation:
    """What of a step's accesses its declaration does not say, and what it says in vain."""
    seen = Observation(step)
    looks: dict[str, Touched] = {}
    hosts: dict[str, Touched] = {}
    written: set[str] = set()
    failed: dict[str, str] = {}
    absent: dict[str, None] = {}
    system: set[str] = set()
    for access in accesses:
        path = posixpath.normpath(access.path)
        if not is_within(path, (WORKSPACE,)):
            _outside(access, path, hosts, system, failed, declared.roots, stands)
            if access.wanted != WROTE and is_within(path, _SYSTEM):
                _of_system(seen, access, path, stands)
            continue
        inside = path[len(WORKSPACE) + 1 :]
        if not inside:
            if access.wanted == LISTED:
                looks.setdefault(".", Touched(".")).how.add(LISTED)
            continue
        if access.wanted == WROTE:
            if not access.error:
                written.add(inside)
            elif access.error not in ABSENT and access.error != "EEXIST":
                failed[inside] = access.error
            continue
        for place in resolve(inside):
            if place in written:
                continue
            if access.error in ABSENT and stands(place) is None:
                absent[place] = None
                continue
            if access.error and access.error not in ABSENT and access.wanted != LOOKED:
                failed[place] = access.error
            found = looks.setdefault(place, Touched(place))
            found.how.add(access.wanted)
            found.hidden |= access.error in ABSENT
    _sort(seen, looks, written, absent, declared, stands)
    seen.refused = sorted(failed.items())
    seen.outside = [hosts[path] for path in sorted(hosts)]
    seen.system_files = len(system)
    return seen


def _sort(
    seen: Observation,
    looks: Mapping[str, Touched],
    written: Collection[str],
    absent: Collection[str],
    declared: Declared,
    stands: Stands,
) -> None:
    for path in sorted(looks, key=_bytes):
        touched = looks[path]
        kind = "dir" if path == "." else stands(path)
        if kind == "dir":
            if LISTED in touched.how:
                seen.listed.append(path)
            if touched.hidden and not declared.shows(path) and not is_within(path, declared.roots):
                touched.path += "/"  # Nobody looks into a directory that is not there.
                seen.undeclared.append(touched)
            continue
        seen.used.add(path)
        if kind is None or declared.outputs(path) or declared.shows(path) or is_within(path, declared.roots):
            continue
        seen.undeclared.append(touched)
    listed = set(seen.listed)
    for path in sorted(declared.inputs, key=_bytes):
        top = path.rstrip("/")
        used = top in seen.used or top in listed
        if path.endswith("/"):
            used = used or any(each.startswith(path) for each in (*seen.used, *listed))
        if not used:
            seen.unused.append(path)
    seen.absent = sorted((path for path in absent if path not in written and not declared.outputs(path)), key=_bytes)


def _outside(
    access: Access,
    path: str,
    hosts: dict[str, Touched],
    system: set[str],
    failed: dict[str, str],
    roots: Collection[str],
    stands: Stands,
) -> None:
    if not access.error:
        if access.wanted in (READ, EXECUTED) and not path.startswith(("/proc", "/dev", "/tmp")):
            system.add(path)
        return
    if access.wanted == WROTE:
        if access.error not in ABSENT and access.error != "EEXIST" and not path.startswith(("/dev", "/proc")):
            failed[path] = access.error
        return
    if access.error in ABSENT and not is_within(path, (*_VIEW, *roots)) and stands(path) in ("file", "link"):
        found = hosts.setdefault(path, Touched(path, hidden=True))
        found.how.add(access.wanted)


def _of_system(seen: Observation, access: Access, path: str, stands: Stands) -> None:
    if not access.error:
        seen.system_seen[path] = None
    elif access.error in ABSENT and path not in seen.system_absent and stands(path) in ("file", "link"):
        seen.system_absent[path] = None


def _bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")
