"""Which of the system's libraries the programs among a step's inputs ask for: what the linker would look for first.

It looks at contents that are in the key already, so what it finds adds nothing to what the key rests on. Programs in
roots are not looked into, since a root is often much larger than what a step runs of it. But nearly all that comes as
binaries (wheels, addons of Node, toolchains) asks for the runtime of C++.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping

from ..core.digest import Digest
from ..core.elf import HEAD, Asking, Kind, asking
from ..core.entries import Entry, File, Tree
from ..executors.blobs import EACH_MAX
from .workspace import Workspace

OF_ROOTS = "libstdc++.so.6"
"""What a step with roots sees beside its programs, where a package has it."""
FILES_MAX = 2_000
"""A directory with more files than that is not looked into."""

Place = Callable[[str, Kind], "str | None"]
"""A library's name and kind -> the absolute path at which the linker finds it in the system."""


class Libraries:
    """Remembers what it read by its digest."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._asked: dict[Digest, Asking | None] = {}

    def needed(self, entries: Mapping[str, Entry], sources: Collection[str], place: Place) -> tuple[str, ...]:
        """Their absolute paths. What another input is called is taken to be found there.

        Raises MissingObject and CorruptObject for what another step made and the store has no more.
        """
        wanted: dict[tuple[str, Kind], None] = {}
        for top, path, entry in self._all(entries):
            if not (isinstance(entry, File) and entry.size >= HEAD and (entry.executable or ".so" in path)):
                continue
            told = self._asking(path, entry, is_source=top in sources)
            if told is not None:
                wanted.update(((name, told.kind), None) for name in told.names)
        if not wanted:
            return ()
        own = {posixpath.basename(path) for _, path, _ in self._all(entries)}
        found = (place(name, kind) for name, kind in wanted if name not in own)
        return tuple(dict.fromkeys(path for path in found if path is not None))

    def _all(self, entries: Mapping[str, Entry]) -> Iterator[tuple[str, str, Entry]]:
        """(the input that it is or lies in, path, entry) of every file and link, also in directories."""
        pending: list[tuple[str, str, Entry]] = [(path, path, entry) for path, entry in entries.items()]
        for top, path, entry in pending:  # It grows while it is read.
            if not isinstance(entry, Tree):
                yield top, path, entry
            elif 0 < entry.files <= FILES_MAX:
                children = self._workspace.children_of(entry)
                pending += ((top, f"{path.rstrip('/')}/{name}", each) for name, each in children.items())

    def _asking(self, path: str, entry: File, *, is_source: bool) -> Asking | None:
        if entry.digest not in self._asked:
            self._asked[entry.digest] = self._read(path, entry, is_source=is_source)
        return self._asked[entry.digest]

    def _read(self, path: str, entry: File, *, is_source: bool) -> Asking | None:
        blobs = self._workspace.blobs
        content = blobs.held(entry.digest)
        if content is None and not is_source and entry.size <= EACH_MAX:
            content = blobs.get(entry.digest)
        if content is not None:
            return asking(lambda offset, size: content[offset : offset + size])
        full = self._workspace.full(path) if is_source else blobs.objects.file(entry.digest)
        try:
            descriptor = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None  # A source that went away meanwhile: whoever keeps it will say so.
        try:
            return asking(lambda offset, size: os.pread(descriptor, size, offset))
        except OSError:
            return None
        finally:
            os.close(descriptor)
