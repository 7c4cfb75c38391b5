"""The project's directory as the engine sees it: its listing, its contents by digest, and what both rested on.

It does not know steps. Whatever a plan or a request was made from is remembered as a stamp, so that a
later run can tell that nothing has changed.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from ..core.digest import Digest
from ..core.entries import Entry, File, Link, Tree, parse_tree
from ..core.errors import EnvironmentFault, SourceMissing, UsageError
from ..core.fields import dataclass
from ..core.listing import Kind
from ..core.patterns import is_never, never_in
from ..executors.blobs import Blobs
from .stamps import NOTHING, Stamp, Stamps, is_racy, kind_of, links_of, stamp_at, stamp_of

MANIFEST = "requiem.toml"
DOT = ".requiem"
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
        self.looks: dict[str, Look] = {}
        self.contents: dict[str, bytes | None] = {}

    def read(self, path: str) -> bytes | None:
        full = os.path.join(self.root, path)
        chain = links_of(full)
        looks = [Look.at(step) for step in chain]
        self.contents[path] = content = read_regular(full)
        for step, look in zip(chain, looks, strict=True):
            look.content = content if step == chain[-1] else None
            look.link = os.readlink(step) if os.path.islink(step) else None
            self.looks[step] = look
        return content


@dataclass(slots=True)
class Look:
    """A path's stamp from just before it was looked at, and what was seen there then."""

    stamp: Stamp
    racy: bool
    content: bytes | None = None
    link: str | None = None
    names: Mapping[str, Kind] | None = None
    """For a directory: what stood in it."""

    @staticmethod
    def at(path: str) -> Look:
        stamp = stamp_at(path)
        return Look(stamp, is_racy(stamp, time.time_ns()))


def read_regular(path: str) -> bytes | None:
    """None if nothing is there. Raises UsageError for what is no file, which is never waited for; EnvironmentFault."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise EnvironmentFault(f'cannot read "{path}"', facts=[("cause", error.strerror or str(error))]) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise UsageError(f'"{path}" is {kind_of(mode)}, not a file')
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


class WorkspaceListing:
    """Answers the plan's questions and keeps the stamp of every directory and path that it looked at."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.looks: dict[str, Look] = {}
        self.kinds: dict[str, tuple[Kind | None, Stamp]] = {}
        """Each path that was asked for by its name: what stood there, and its stamp."""
        self._children: dict[str, Mapping[str, Kind]] = {}

    def children(self, directory: str) -> Mapping[str, Kind]:
        known = self._children.get(directory)
        if known is None:
            full = self.root if directory == "." else os.path.join(self.root, directory)
            look = Look.at(full)
            known = self._children[directory] = look.names = dict(self._list(full))
            self.looks[full] = look
        return known

    def _list(self, full: str) -> Iterator[tuple[str, Kind]]:
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
            self.kinds[full] = (None, NOTHING)
            return None
        except OSError as error:
            raise UsageError(f"cannot look at {path!r}", facts=[("cause", error.strerror or str(error))]) from error
        kind = kind_by_mode(found.st_mode)
        self.kinds[full] = (kind, stamp_of(found))
        return kind

    def is_program(self, path: str) -> bool:
        with suppress(OSError):
            found = os.lstat(os.path.join(self.root, path))
            return stat.S_ISREG(found.st_mode) and bool(found.st_mode & 0o111)
        return False


def kind_by_mode(mode: int) -> Kind:
    if stat.S_ISLNK(mode):
        return "link"
    if stat.S_ISDIR(mode):
        return "dir"
    return "file" if stat.S_ISREG(mode) else "other"


def _kind(item: os.DirEntry[str]) -> Kind:
    if item.is_symlink():
        return "link"
    if item.is_dir(follow_symlinks=False):
        return "dir"
    return "file" if item.is_file(follow_symlinks=False) else "other"


def left_out(tree: str) -> Callable[[str], bool] | None:
    """Names that a source tree leaves out at any depth, as patterns do: what version control, Requiem and tools keep.

    None of them where the tree's own path names one: then it was asked for.
    """
    return None if never_in(tree) else is_never


class Workspace:
    """Contents by digest. Paths are relative to `root`; those of whole directories end in `/`."""

    def __init__(self, root: str, stamps: Stamps, blobs: Blobs) -> None:
        self.root = root
        self.stamps = stamps
        self.blobs = blobs
        self._trees: dict[Digest, bytes] = {}
        self._inside: set[str] = {""}

    def full(self, path: str) -> str:
        return os.path.join(self.root, path.rstrip("/"))

    def entry(self, path: str, *, named: bool = False) -> Entry | None:
        """What stands at a path now; None if nothing does. `named`: by a step, not only by what it names."""
        if path.endswith("/"):
            return self.tree(path)
        return self.stamps.entry(self.full(path), named=named)

    def is_light(self, path: str) -> bool:
        """Whether finding a file's digest is quick: it is small, or known by its stamp."""
        full = self.full(path)
        stamp = stamp_at(full)
        known = self.stamps.known.get(full)
        return stamp[2] <= LIGHT_BYTES or (known is not None and known[0] == stamp and not known[1])

    def tree(self, path: str) -> Tree | None:
        return self.stamps.tree(self.full(path), skip=left_out(path), keep_tree=self._trees.__setitem__)

    def source(self, path: str, step: str) -> dict[str, Entry]:
        """A source input: its entry, and for a symlink also what it leads to. Raises SourceMissing or UsageError."""
        found: dict[str, Entry] = {}
        self._check_parent(path, step)
        at = path
        for _ in range(40):
            entry = self.entry(at, named=at == path)
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

    def _check_parent(self, path: str, step: str) -> None:
        """A directory above a source may be a symlink, but not one out of the workspace."""
        parent = os.path.dirname(path.rstrip("/"))
        if parent in self._inside:
            return
        real = os.path.realpath(os.path.join(self.root, parent))
        if real != self.root and not real.startswith(self.root + "/"):
            raise UsageError(
                f'step "{step}" reads "{path}", which lies behind a symlink out of the workspace',
                facts=[("leads to", real)],
                hint="copy the file into the workspace, or declare the directory as a root",
            )
        self._inside.add(parent)

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
        return dict(parse_tree(self.tree_content(tree.digest)))

    def tree_content(self, digest: Digest) -> bytes:
        """One directory's list, as it was scanned or from the store."""
        return self._trees.get(digest) or self.blobs.get(digest)


def find_workspace(start: str, manifest: str | None) -> tuple[str, str]:
    """The workspace's root and its manifest's name: `manifest` as given, else the first found walking up."""
    if manifest is not None:
        full = os.path.abspath(os.path.join(start, manifest))
        if not os.path.isfile(full):
            what = f'no manifest "{manifest}"' if not os.path.exists(full) else f'"{manifest}" is not a file'
            raise UsageError(what, facts=[("directory", start)], hint="requiem init makes a manifest")
        return os.path.dirname(full), os.path.basename(full)
    directory = start
    while not os.path.exists(os.path.join(directory, MANIFEST)):
        parent = os.path.dirname(directory)
        if parent == directory:
            raise UsageError(f"no {MANIFEST} in {start} or above", hint="requiem init makes one")
        directory = parent
    return directory, MANIFEST
