"""Which paths a step's answer rests on beyond its declared inputs: what it read, and what it looked for in vain.

What a depfile names comes from the step; where else a compiler would have looked is derived (`core/includes.py`) from
bytes that the step was shown. Where that cannot be derived, the list of all that `discover` matches stands in.
"""

from __future__ import annotations

import glob
import os
import posixpath
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache

from ..core import canonical, includes
from ..core.digest import Digest, object_digest
from ..core.entries import Entry, File, Link, Tree, parse_tree
from ..core.includes import OUTSIDE, Scan, Search, Unknown
from ..core.patterns import matches_any
from ..core.policy import BASE_PATH, WORKSPACE
from ..core.request import ABSENT, LISTING, SHADOWS, Request, by_bytes

PROBES_MAX = 2000
"""Absent paths of one step; beyond them the list of all that `discover` matches is the smaller key."""
HEADER_BYTES_MAX = 8 << 20
PRECOMPILED = (".gch", ".pch")

_SYSTEM_DIRECTORIES = (
    *("/usr/include", "/usr/local/include", "/usr/include/*-*-*", "/usr/include/*-*", "/usr/lib/gcc/*/*/include"),
    *("/usr/lib/gcc/*/*/include-fixed", "/usr/lib64/gcc/*/*/include", "/usr/lib/gcc-cross/*/*/include"),
    *("/usr/include/c++/*", "/usr/include/c++/*/backward", "/usr/include/c++/*/*-*-*", "/usr/include/c++/*/*-*"),
    *("/usr/include/*/c++/*", "/usr/lib/llvm-*/lib/clang/*/include", "/usr/lib/clang/*/include"),
    *("/usr/lib/llvm-*/include/c++/v1", "/usr/*-*/include", "/usr/*-*/include/c++/*", "/usr/*-*/sys-include"),
)
_SYSTEM_INCLUDE = re.compile(r"-(?:isystem|idirafter|cxx-isystem)[ =]?\s*([^\s'\"]+)")

GetObject = Callable[[Digest], bytes]


def discovered_now(paths: Sequence[str], offered: Mapping[str, Entry]) -> dict[str, str]:
    """The path set filled with what stands there now: digests, or `absent`."""
    found: dict[str, str] = {}
    for path in paths:
        if path == LISTING:
            found[path] = object_digest(canonical.encode_plain(by_bytes(set(offered))))
            continue
        if path.startswith(SHADOWS):
            directories = tuple(filter(None, path[len(SHADOWS) :].split(":")))
            bearing = [each for each in offered if shadows(each, directories)]
            found[path] = object_digest(canonical.encode_plain(by_bytes(set(bearing))))
            continue
        entry = offered.get(path)
        match entry:
            case None:
                found[path] = ABSENT
            case File():
                found[path] = entry.digest
            case _:
                found[path] = object_digest(canonical.encode_plain(entry.as_input()))
    return found


@lru_cache(maxsize=1)
def system_directories() -> tuple[str, ...]:
    """Every directory in which some compiler of this host looks by itself: more than any one of them has."""
    return tuple(
        sorted({path for pattern in _SYSTEM_DIRECTORIES for path in glob.glob(pattern) if os.path.isdir(path)})
    )


@lru_cache(maxsize=1 << 17)
def shadows(path: str, extra: tuple[str, ...] = ()) -> bool:
    """Whether a workspace path ends in the name of a system header, so that it could be taken instead of it."""
    parts = path.split("/")
    names = ["/".join(parts[index:]) for index in range(len(parts))]
    return any(os.path.exists(f"{directory}/{name}") for directory in (*system_directories(), *extra) for name in names)


def path_set(
    request: Request, named: Sequence[str], offered: Mapping[str, Entry], get: GetObject, root: str
) -> tuple[str, ...]:
    """What a step's answer rests on, by the paths that its depfile names. `root` is the workspace on this host."""
    shown = _Shown(request, offered, get)
    cwd = _relative_cwd(request.cwd, root)
    host = WORKSPACE if request.policy.sandbox == "strict" else root
    read = {shown.real(path) for path in (_plain(name, cwd, host) for name in named)}
    try:
        if not _is_compiler(request):
            raise Unknown("not a compiler that is run directly")
        extra, marker = _Derivation(request, shown, cwd, host).derive(read)
        return (*by_bytes({*(read & offered.keys()), *extra}), marker)
    except Unknown:
        return (*by_bytes(_listed(request, read & offered.keys(), offered, shown, cwd)), LISTING)


def workspace_paths(request: Request, named: Sequence[str], root: str) -> list[str]:
    """What of a depfile lies in the workspace, by its plain path."""
    host = WORKSPACE if request.policy.sandbox == "strict" else root
    paths = (_plain(name, _relative_cwd(request.cwd, root), host) for name in named)
    return [path for path in paths if not path.startswith("..")]


def _listed(request: Request, read: set[str], offered: Mapping[str, Entry], shown: _Shown, cwd: str) -> set[str]:
    """What counts as read where it is not derived: also headers that `-MMD` leaves out as the system's."""
    command = " ".join(request.command)
    found = set(read)
    texts = [shown.scan(path) for path in read | request.inputs.keys()]
    hides = "-MM" in command and any(shadows(path) for path in offered)
    if hides or any(text.embeds or (text.system_header and "-MM" in command) for text in texts if text is not None):
        return set(offered)
    for path in _SYSTEM_INCLUDE.findall(command):
        folder = _plain(path, cwd, WORKSPACE)
        found |= {each for each in offered if each.startswith(folder + "/")}
    return shown.with_targets(found)


class _Shown:
    """The files that a step was shown, by path: offered ones, inputs, and what is in directory inputs."""

    def __init__(self, request: Request, offered: Mapping[str, Entry], get: GetObject) -> None:
        self.offered = offered
        self._get = get
        self._entries: dict[str, Entry] = dict(offered)
        for path, value in request.inputs.items():
            if "tree" in value:
                self._add_tree(path, Digest(str(value["tree"])))
            elif "symlink" in value:
                self._entries[path] = Link(str(value["symlink"]))
            else:
                self._entries[path] = File(Digest(str(value["digest"])), 0)
        self._links = {path: entry.target for path, entry in self._entries.items() if isinstance(entry, Link)}

    def _add_tree(self, path: str, digest: Digest) -> None:
        pending = [(path, digest)]
        for prefix, tree in pending:
            for name, entry in parse_tree(self._get(tree)):
                if isinstance(entry, Tree):
                    pending.append((f"{prefix}{name}/", entry.digest))
                else:
                    self._entries[prefix + name] = entry

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def real(self, path: str) -> str:
        """A path with every symlinked directory in it followed; the file itself may still be a link."""
        if not self._links:
            return path
        for _ in range(40):
            for above in _ancestors(path):
                if above in self._links:
                    target = posixpath.normpath(posixpath.join(posixpath.dirname(above), self._links[above]))
                    path = target + path[len(above) :]
                    break
            else:
                return path
        return path

    def file(self, path: str) -> File | None:
        entry = self._entries.get(path)
        for _ in range(40):
            if not isinstance(entry, Link):
                break
            path = self.real(posixpath.normpath(posixpath.join(posixpath.dirname(path), entry.target)))
            entry = self._entries.get(path)
        return entry if isinstance(entry, File) else None

    def content(self, path: str) -> bytes | None:
        file = self.file(path)
        return None if file is None else self._get(file.digest)

    def scan(self, path: str) -> Scan | None:
        file = self.file(path)
        if file is None:
            return None
        known = _scans.get(file.digest)
        if known is None:
            known = _scans[file.digest] = includes.scan(self._get(file.digest))
        return known

    def with_targets(self, read: Collection[str]) -> set[str]:
        """What is read through a symlink is read too."""
        found = set(read)
        pending = list(read)
        for path in pending:
            target = self._links.get(path)
            if target is not None:
                target = self.real(posixpath.normpath(posixpath.join(posixpath.dirname(path), target)))
                if target in self.offered and target not in found:
                    found.add(target)
                    pending.append(target)
        return found

    def paths(self) -> Iterator[str]:
        yield from self._entries


_scans: dict[Digest, Scan] = {}
"""What each text looks for: a header that a thousand files include is scanned once."""


class _Derivation:
    """One compile: from what it read to what else its answer rests on."""

    def __init__(self, request: Request, shown: _Shown, cwd: str, host: str) -> None:
        self._request = request
        self._shown = shown
        self._cwd = cwd
        self._host = host
        self._standing: set[str] = set()
        self._directories: list[str] = []
        self._search: Search = includes.search_of(
            request.command, request.env, lambda name: shown.content(shown.real(_plain(name, cwd, host)))
        )

    def derive(self, read: set[str]) -> tuple[set[str], str]:
        """Paths besides those read that count, and the marker for names of the system. Raises Unknown."""
        if self._search.links:
            raise Unknown("it links, and no depfile names what a linker reads")
        shown = self._shown
        read = {path for path in read if path in shown} | set(self._sources())
        self._standing = self._stands(read)
        self._directories, outside = self._searched()
        scanned, places, missing = self._closure(read, outside)
        found = shown.with_targets(scanned & shown.offered.keys()) | self._mentioned()
        once = {file.digest for path in scanned if (file := shown.file(path)) and self._scan(path).once}
        probed = {name for path in scanned for name in self._scan(path).probed} | missing
        for name, path in places:
            if path not in shown:
                if self._could_be(path) and not shadows(path, outside):  # What shadows is in the marker's list.
                    found.add(path)
            elif path in shown.offered:
                file = shown.file(path)
                if name in probed or path.endswith(PRECOMPILED) or (file is not None and file.digest in once):
                    found |= shown.with_targets({path})
        if len(found) > PROBES_MAX:
            raise Unknown("too many places")
        return found, ":".join((SHADOWS, *outside))

    def _scan(self, path: str) -> Scan:
        found = self._shown.scan(path)
        assert found is not None
        return found

    def _sources(self) -> Iterator[str]:
        for name in self._search.sources:
            path = self._shown.real(_plain(name, self._cwd, self._host))
            if path in self._shown:
                yield path

    def _stands(self, read: Collection[str]) -> set[str]:
        """Directories that are there as long as the request and what was read are the same."""
        request = self._request
        files = [*read, *request.inputs, *request.outputs, request.depfile or "", self._cwd + "/x"]
        return {above for path in files for above in _ancestors(path.rstrip("/"))} | {"."}

    def _searched(self) -> tuple[list[str], tuple[str, ...]]:
        """Directories of the workspace, and absolute ones of the system. Raises Unknown for one of another root."""
        inside: dict[str, None] = {}
        outside: dict[str, None] = {}
        for directory in self._search.directories:
            path = self._place(directory)
            if path != OUTSIDE:
                if any(path == root or path.startswith(root + "/") for root in self._request.roots):
                    raise Unknown(f"the directory {directory} is a root's")
                inside[self._shown.real(path)] = None
            elif directory.startswith("/usr/") and ":" not in directory:
                outside[posixpath.normpath(directory)] = None
            else:
                raise Unknown(f"the directory {directory} is outside of the workspace and the system")
        return list(inside), tuple(outside)

    def _place(self, directory: str) -> str:
        return includes.place(self._cwd, directory, self._standing, self._host)

    def _closure(
        self, read: set[str], outside: tuple[str, ...]
    ) -> tuple[set[str], set[tuple[str, str]], frozenset[str]]:
        """The texts that were read, every place in which they look for something, and names only the system wants.

        What `-MMD` leaves out counts as read by its name: what a system header includes, be it one of the system,
        one in a directory that the command calls the system's, or one that calls itself so. And a depfile has room
        for one source only.
        """
        names = frozenset(self._search.forced)
        forced = Scan(names, frozenset(), frozenset(), False, False, False, False)
        places = self._places(f"{self._cwd}/x", forced)
        all_hidden = len(self._search.sources) > 1
        hidden: set[str] = set()
        if not self._search.reports_all:
            all_hidden |= any(self._place(d) != OUTSIDE for d in self._search.system_directories)
            hidden = {path for path in self._shown.paths() if shadows(path, outside)}
        if all_hidden:
            hidden |= {path for _, path in places if path in self._shown} | read
        done: dict[str, bool] = {}
        missing: frozenset[str] = frozenset()
        pending = [*read, *hidden]
        while pending:
            for path in pending:  # Grows while it is walked.
                found = self._shown.scan(path)
                hides = path in hidden
                if found is None or done.get(path, False) or (path in done and not hides):
                    continue
                new = self._places(path, self._checked(path, found))
                hides |= found.system_header and not self._search.reports_all
                done[path] = hides
                places |= new
                names |= found.names
                if hides:
                    more = {place for _, place in new if place in self._shown} - hidden
                    hidden |= more
                    pending += more
            missing = _missing_from_the_system(names, outside)
            new = self._places(None, Scan(frozenset(), missing, frozenset(), False, False, False, False))
            places |= new
            pending = []
            if not self._search.reports_all:
                pending = [path for _, path in new if path in self._shown and path not in hidden]
                hidden |= set(pending)
        return set(done), places, missing

    def _checked(self, path: str, found: Scan) -> Scan:
        if found.opaque:
            raise Unknown(f"{path} includes what a macro names")
        if found.embeds:
            raise Unknown(f"{path} has the assembler read files")
        return found

    def _places(self, path: str | None, found: Scan) -> set[tuple[str, str]]:
        """Where one text's names may stand: in place of a header, or as a precompiled one that is preferred to it."""
        plain = includes.looked_for(self._directories, path, found, self._standing, self._host)
        real = {(name, self._shown.real(place)) for name, place in plain}
        return real | {(n, p + ending) for n, p in real for ending in PRECOMPILED if self._could_be(p + ending)}

    def _could_be(self, path: str) -> bool:
        return path in self._shown or matches_any(self._request.discover, path)

    def _mentioned(self) -> set[str]:
        """Offered files that the arguments name: response files, lists, profiles. No depfile names these."""
        found = set()
        for word in (*self._search.responses, *self._search.words):
            for piece in re.split("[=,]", word):
                path = self._shown.real(_plain(piece, self._cwd, self._host)) if piece else ""
                if path in self._shown.offered:
                    found.add(path)
        return found


# The system's headers: those of this host, which the request names as a whole


@lru_cache(maxsize=4096)
def _missing_from_the_system(names: frozenset[str], extra: tuple[str, ...]) -> frozenset[str]:
    """Names that reachable system headers look for and the system does not have."""
    missing: set[str] = set()
    pending = [(name, "") for name in (*names, "stdc-predef.h")]
    seen = set(pending)
    for name, folder in pending:
        files = _system_files(name, folder, extra)
        if not files and name not in names:
            missing.add(name)
        for file in files:
            for wanted in _system_scan(file):
                item = (wanted, os.path.dirname(file))
                if item not in seen:
                    seen.add(item)
                    pending.append(item)
    return frozenset(missing)


@lru_cache(maxsize=1 << 15)
def _system_files(name: str, folder: str, extra: tuple[str, ...]) -> tuple[str, ...]:
    if name.startswith("/"):
        return ()
    places = (*system_directories(), *extra, *([folder] if folder else []))
    found = {os.path.normpath(f"{place}/{name}") for place in places if os.path.isfile(f"{place}/{name}")}
    return tuple(sorted(found))


@lru_cache(maxsize=1 << 15)
def _system_scan(path: str) -> tuple[str, ...]:
    try:
        with open(path, "rb") as file:
            content = file.read(HEADER_BYTES_MAX)
    except OSError:
        return ()
    return tuple(sorted(includes.scan(content).names | includes.conditional_names(content)))


# The compiler


def _is_compiler(request: Request) -> bool:
    """Whether argv[0] is gcc or clang itself, as the step's PATH gives it: no wrapper, no workspace program."""
    program = request.command[0]
    if request.env.get("PATH", "") != BASE_PATH or not includes.COMPILER.fullmatch(posixpath.basename(program)):
        return False
    if "/" in program and posixpath.dirname(program) not in BASE_PATH.split(":"):
        return False
    return _is_binary_compiler(program)


@lru_cache(maxsize=256)
def _is_binary_compiler(program: str) -> bool:
    from ..sandbox.system import lookup

    path = lookup(program, BASE_PATH.split(":"))
    if path is None:
        return False
    real = os.path.realpath(path)
    if not includes.COMPILER.fullmatch(os.path.basename(real)):
        return False
    try:
        with open(real, "rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False


# Paths


def _ancestors(path: str) -> Iterator[str]:
    at = path.rfind("/")
    while at > 0:
        yield path[:at]
        at = path.rfind("/", 0, at)


def _relative_cwd(cwd: str, workspace: str) -> str:
    return posixpath.relpath(cwd, workspace) if cwd.startswith("/") else cwd


def _plain(path: str, cwd: str, host: str) -> str:
    """A path as a step spells it, relative to the workspace's root if it lies in it."""
    return posixpath.relpath(posixpath.normpath(posixpath.join(host, cwd, path)), host)
