"""The files that a step was shown, by path: offered ones, inputs, and what is in directory inputs."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping

from ..core import includes
from ..core.digest import Digest
from ..core.entries import Entry, File, Link, files_below
from ..core.includes import Scan
from ..core.request import Request
from .paths import ancestors

GetObject = Callable[[Digest], bytes]


class Shown:
    """The files that a step was shown, by path: offered ones, inputs, and what is in directory inputs."""

    def __init__(self, request: Request, offered: Mapping[str, Entry], get: GetObject) -> None:
        self.offered = offered
        self._get = get
        self._entries: dict[str, Entry] = dict(offered)
        for path, value in request.inputs.items():
            if "tree" in value:
                self._entries.update(files_below(path, Digest(str(value["tree"])), get))
            elif "symlink" in value:
                self._entries[path] = Link(str(value["symlink"]))
            else:
                self._entries[path] = File(Digest(str(value["digest"])), 0)
        self._links = {path: entry.target for path, entry in self._entries.items() if isinstance(entry, Link)}

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def real(self, path: str) -> str:
        """A path with every symlinked directory in it followed; the file itself may still be a link."""
        if not self._links:
            return path
        for _ in range(40):
            for above in ancestors(path):
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
