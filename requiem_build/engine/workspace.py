"""The project's directory as the engine sees it: its listing, its contents by digest, and what both rested on.

It does not know steps. Whatever a plan or a request was made from is remembered as a stamp, so that a
later run can tell that nothing has changed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress

from ..core.digest import Digest
from ..core.entries import Entry, File, Link, Tree, parse_tree
from ..core.errors import EnvironmentFault, SourceMissing, UsageError
from ..core.listing import Kind
from ..executors.blobs import Blobs
from .stamps import NOTHING, Stamp, Stamps, kind_of, stamp_at

MANIFEST = "requiem.toml"
DOT = ".requiem"
NEVER_IN_TREES = frozenset(
    {".git", ".hg", ".svn", ".requiem", ".cas", "__pycache__", ".DS_Store", "node_modules", ".venv", "venv"}
)


LIGHT_BYTES = 1 << 20


class InputChanged(Exception):
    """A source no longer has the content that its request names."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class Files:
    """Reads a manifest and its includes. `read` remembers each path asked for, present or not."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.stamps: dict[str, Stamp] = {}
        self.contents: dict[str, bytes | None] = {}

    def read(self, path: str) -> bytes | None:
        full = os.path.join(self.root, path)
        self.stamps[full] = stamp_at(full)
        self.contents[path] = content = _read_regular(full)
        return content


def _read_regular(path: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise EnvironmentFault(f'cannot read "{path}"', facts=[("cause", error.strerror or str(error))]) from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f'"{path}" is {kind_of(found.st_mode)}, not a file')
        return file.read()


class WorkspaceListing:
    """Answers the plan's questions and keeps the stamp of every directory and path that it looked at."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.stamps: dict[str, Stamp] = {}
        self._children: dict[str, Mapping[str, Kind]] = {}

    def children(self, directory: str) -> Mapping[str, Kind]:
        known = self._children.get(directory)
        if known is None:
            known = self._children[directory] = dict(self._list(directory))
        return known

    def _list(self, directory: str) -> Iterator[tuple[str, Kind]]:
        full = self.root if directory == "." else os.path.join(self.root, directory)
        self.stamps[full] = stamp_at(full)
        try:
            with os.scandir(full) as items:
                for item in items:
                    yield item.name, _kind(item)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise EnvironmentFault(f'cannot list "{full}"', facts=[("cause", error.strerror or str(error))]) from error

    def kind(self, path: str) -> Kind | None:
        full = os.path.join(self.root, path)
        try:
            found = os.lstat(full)
        except (FileNotFoundError, NotADirectoryError):
            self.stamps[full] = NOTHING
            return None
        except OSError as error:
            raise UsageError(f"cannot look at {path!r}", facts=[("cause", error.strerror or str(error))]) from error
        if stat.S_ISLNK(found.st_mode):
            return "link"
        if stat.S_ISDIR(found.st_mode):
            return "dir"
        return "file" if stat.S_ISREG(found.st_mode) else "other"

    def is_program(self, path: str) -> bool:
        with suppress(OSError):
            found = os.lstat(os.path.join(self.root, path))
            return stat.S_ISREG(found.st_mode) and bool(found.st_mode & 0o111)
        return False


def _kind(item: os.DirEntry[str]) -> Kind:
    if item.is_symlink():
        return "link"
    if item.is_dir(follow_symlinks=False):
        return "dir"
    return "file" if item.is_file(follow_symlinks=False) else "other"


class Workspace:
    """Contents by digest. Paths are relative to `root`; those of whole directories end in `/`."""

    def __init__(self, root: str, stamps: Stamps, blobs: Blobs) -> None:
        self.root = root
        self.stamps = stamps
        self.blobs = blobs
        self._trees: dict[Digest, bytes] = {}

    def full(self, path: str) -> str:
        return os.path.join(self.root, path.rstrip("/"))

    def entry(self, path: str) -> Entry | None:
        """What stands at a path now; None if nothing does."""
        if path.endswith("/"):
            return self.tree(path)
        return self.stamps.entry(self.full(path))

    def is_light(self, path: str) -> bool:
        """Whether finding a file's digest is quick: it is small, or known by its stamp."""
        full = self.full(path)
        stamp = stamp_at(full)
        known = self.stamps.known.get(full)
        return stamp[2] <= LIGHT_BYTES or (known is not None and known[0] == stamp and not known[1])

    def tree(self, path: str) -> Tree | None:
        """A source tree, without what version control, Requiem and Python keep in it (unless asked for by name)."""
        parts = path.rstrip("/").split("/")
        skip = frozenset() if NEVER_IN_TREES & set(parts) else NEVER_IN_TREES
        return self.stamps.tree(self.full(path), skip=skip, keep_tree=self._trees.__setitem__)

    def source(self, path: str, step: str) -> dict[str, Entry]:
        """A source input: its entry, and for a symlink also what it leads to. Raises SourceMissing or UsageError."""
        found: dict[str, Entry] = {}
        at = path
        for _ in range(40):
            entry = self.entry(at)
            if entry is None:
                via = "" if at == path else f' (the symlink "{path}" leads there)'
                raise SourceMissing(f'step "{step}" reads "{at}", which does not exist{via}', facts=[("step", step)])
            found[at] = entry
            if not isinstance(entry, Link):
                return found
            at = self._link_target(at, entry.target, step)
            if at.endswith("/"):
                found[at] = self.entry(at) or entry
                return found
        raise UsageError(f'step "{step}" reads "{path}", a symlink that never ends', facts=[("step", step)])

    def _link_target(self, path: str, target: str, step: str) -> str:
        full = os.path.normpath(os.path.join(self.root, os.path.dirname(path), target))
        if target.startswith("/") or not (full + "/").startswith(self.root + "/") or full == self.root:
            raise UsageError(
                f'step "{step}" reads "{path}", a symlink out of the workspace',
                facts=[("link", path), ("target", target)],
                hint="copy the file into the workspace, or declare the directory as a root",
            )
        relative = os.path.relpath(full, self.root)
        return relative + "/" if os.path.isdir(full) and not os.path.islink(full) else relative

    def keep(self, path: str, entry: Entry) -> None:
        """Makes sure that the store holds what was hashed. Raises InputChanged if the content is another by now."""
        match entry:
            case File():
                self._keep_file(path, entry)
            case Tree():
                self._keep_tree(path, entry)
            case Link():
                pass

    def _keep_file(self, path: str, entry: File) -> None:
        if self.blobs.stored(entry.digest):
            return
        content = self.blobs.held(entry.digest)
        if content is not None:
            self.blobs.put(content)
            return
        try:
            descriptor = os.open(self.full(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            raise InputChanged(path) from None
        try:
            found, _ = self.blobs.objects.put_file(descriptor)
        finally:
            os.close(descriptor)
        if found != entry.digest:
            self.stamps.forget(self.full(path))
            raise InputChanged(path)
        self.blobs.note_stored(found)

    def _keep_tree(self, path: str, tree: Tree) -> None:
        pending: list[tuple[str, Digest]] = [(path, tree.digest)]
        for prefix, digest in pending:
            content = self._tree_object(path, digest)
            if not self.blobs.stored(digest):
                self.blobs.put(content)
            for name, entry in parse_tree(content):
                if isinstance(entry, Tree):
                    pending.append((f"{prefix}{name}/", entry.digest))
                elif isinstance(entry, File):
                    self._keep_file(prefix + name, entry)

    def _tree_object(self, path: str, digest: Digest) -> bytes:
        """One directory's list: as it was scanned, from the store, or from the directory as it lies there now."""
        if digest not in self._trees and not self.blobs.stored(digest):
            self.stamps.tree(self.full(path), keep_tree=self._trees.__setitem__)
            if digest not in self._trees:
                raise InputChanged(path)
        return self._trees.get(digest) or self.blobs.get(digest)

    def children_of(self, tree: Tree) -> Mapping[str, Entry]:
        """The children of one directory, from the tree object."""
        content = self._trees.get(tree.digest) or self.blobs.get(tree.digest)
        return dict(parse_tree(content))


def find_workspace(start: str, manifest: str | None) -> tuple[str, str]:
    """The workspace's root and its manifest's name: `manifest` as given, else the first found walking up."""
    if manifest is not None:
        full = os.path.abspath(os.path.join(start, manifest))
        if not os.path.exists(full):
            raise UsageError(f'no manifest "{manifest}"', facts=[("directory", start)], hint="requiem init makes one")
        return os.path.dirname(full), os.path.basename(full)
    directory = start
    while not os.path.exists(os.path.join(directory, MANIFEST)):
        parent = os.path.dirname(directory)
        if parent == directory:
            raise UsageError(f"no {MANIFEST} in {start} or above", hint="requiem init makes one")
        directory = parent
    return directory, MANIFEST
