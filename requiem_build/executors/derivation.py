"""One compile: from the texts that it read to all that its answer rests on. Texts come from the store, not the disk."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator

from ..core import includes
from ..core.includes import OUTSIDE, Scan, Search, Unknown
from ..core.paths import is_within
from ..core.patterns import matches_any
from ..core.request import SHADOWS, Request
from .paths import ancestors, plain
from .shown import Shown
from .system_headers import macros_of, missing_from_the_system, reachable, shadows

PROBES_MAX = 2000
"""Absent paths of one step; beyond them the list of all that `discover` matches is the smaller key."""
PRECOMPILED = (".gch", ".pch")


class Derivation:
    """One compile: from what it read to what else its answer rests on."""

    def __init__(self, request: Request, shown: Shown, cwd: str, host: str) -> None:
        self._request = request
        self._shown = shown
        self._cwd = cwd
        self._host = host
        self._standing: set[str] = set()
        self._directories: list[str] = []
        self.outside: tuple[str, ...] = ()
        self.done: dict[str, bool] = {}
        """Texts that were scanned, and whether what they include may go unreported."""
        self.places: set[tuple[str, str]] = set()
        self.missing: frozenset[str] = frozenset()
        self._names: frozenset[str] = frozenset()
        self._hidden: set[str] = set()
        self._search: Search = includes.search_of(
            request.command, request.env, lambda name: shown.content(shown.real(plain(name, cwd, host)))
        )

    def derive(self, read: set[str]) -> tuple[set[str], str]:
        """Paths besides those read that count, and the marker for names of the system. Raises Unknown."""
        if self._search.links:
            raise Unknown("it links, and no depfile names what a linker reads")
        shown = self._shown
        read = {path for path in read if path in shown} | set(self._sources())
        self._standing = self._stands(read)
        self._directories, self.outside = self._searched()
        self._closure(read)
        scanned, outside = set(self.done), self.outside
        found = shown.with_targets(scanned & shown.offered.keys()) | self._mentioned()
        once = {file.digest for path in scanned if (file := shown.file(path)) and self._scan(path).once}
        probed = {name for path in scanned for name in self._scan(path).probed} | self.missing
        for name, path in self.places:
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
            path = self._shown.real(plain(name, self._cwd, self._host))
            if path in self._shown:
                yield path

    def _stands(self, read: Collection[str]) -> set[str]:
        """Directories that are there as long as the request and what was read are the same."""
        request = self._request
        files = [*read, *request.inputs, *request.outputs, request.depfile or "", self._cwd + "/x"]
        return {above for path in files for above in ancestors(path.rstrip("/"))} | {"."}

    def _searched(self) -> tuple[list[str], tuple[str, ...]]:
        """Directories of the workspace, and absolute ones of the system. Raises Unknown for one of another root."""
        inside: dict[str, None] = {}
        outside: dict[str, None] = {}
        for directory in self._search.directories:
            path = self._place(directory)
            if path != OUTSIDE:
                if is_within(path, self._request.roots):
                    raise Unknown(f"the directory {directory} is a root's")
                inside[self._shown.real(path)] = None
            elif directory.startswith("/usr/") and ":" not in directory:
                outside[posixpath.normpath(directory)] = None
            else:
                raise Unknown(f"the directory {directory} is outside of the workspace and the system")
        return list(inside), tuple(outside)

    def _place(self, directory: str) -> str:
        return includes.place(self._cwd, directory, self._standing, self._host)

    def _closure(self, read: set[str]) -> None:
        """Finds the texts that were read, every place in which they look for something, and what the system wants.

        What `-MMD` leaves out counts as read by its name: what a system header includes, be it one of the system,
        one in a directory that the command calls the system's, or one that calls itself so. And a depfile has room
        for one source only.
        """
        self._names = frozenset(self._search.forced)
        self.places = self._places(f"{self._cwd}/x", _names(quoted=self._names))
        if not self._search.reports_all:
            self._hidden = {path for path in self._shown.paths() if shadows(path, self.outside)}
        if self._hides_all():
            self._hidden |= self._visible(self.places) | read
        pending = [*read, *self._hidden]
        while True:
            known = self._names
            self._walk(pending)
            self.missing = missing_from_the_system(self._names, self.outside)
            new = self._places(None, _names(angled=self.missing))
            for path in self.done:
                values = self._values(path)
                self._names |= values
                new |= self._places(path, _names(quoted=values))
            self.places |= new
            pending = []
            if self._hidden or not self._search.reports_all:
                pending = list(self._visible(new) - self._hidden)
                self._hidden |= set(pending)
            if not pending and known == self._names:
                return

    def _hides_all(self) -> bool:
        """Whether a depfile may leave out anything: a second source, or headers that the command calls the system's."""
        several = len(self._search.sources) > 1
        of_system = any(self._place(directory) != OUTSIDE for directory in self._search.system_directories)
        return several or (of_system and not self._search.reports_all)

    def _visible(self, places: Collection[tuple[str, str]]) -> set[str]:
        return {path for _, path in places if path in self._shown}

    def _walk(self, pending: list[str]) -> None:
        """Scans texts, and those that hidden ones lead to."""
        for path in pending:  # Grows while it is walked.
            found = self._shown.scan(path)
            hides = path in self._hidden
            if found is None or self.done.get(path, False) or (path in self.done and not hides):
                continue
            new = self._places(path, self._checked(path, found))
            hides |= found.system_header and not self._search.reports_all
            self.done[path] = hides
            self.places |= new
            self._names |= found.names
            if hides:
                more = self._visible(new) - self._hidden
                self._hidden |= more
                pending += more

    def _values(self, path: str) -> frozenset[str]:
        """The headers that the macros which a text includes may name. A macro that nobody defines includes nothing."""
        values: set[str] = set()
        for macro in self._scan(path).macros:
            defined = [*self._search.definitions(macro)]
            for text in self.done:
                defined += includes.definitions(self._shown.content(text) or b"", macro)
            system, _ = reachable(self._names, self.outside)
            if None in defined or any(macro in macros_of(file) for file in system):
                raise Unknown(f"{path} includes what {macro} puts together")
            values |= {name for name in defined if name is not None}
        return frozenset(values)

    def _checked(self, path: str, found: Scan) -> Scan:
        if found.opaque:
            raise Unknown(f"{path} includes or asks for what macros put together")
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
                path = self._shown.real(plain(piece, self._cwd, self._host)) if piece else ""
                if path in self._shown.offered:
                    found.add(path)
        return found


def _names(*, quoted: Collection[str] = (), angled: Collection[str] = ()) -> Scan:
    none = frozenset[str]()
    return Scan(frozenset(quoted), frozenset(angled), none, False, none, False, False, False)
