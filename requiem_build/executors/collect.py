"""Takes a finished step's outputs out of its workspace and into the store.

Everything below the workspace's descriptor is hostile: no symlink is followed, no special file is
opened, no walk recurses. Files are copied while they are hashed, after every process is dead.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence

from ..core.digest import Digest
from ..core.entries import Entry, File, Link, Tree, make_tree
from ..core.fields import dataclass, field
from ..core.patterns import compile_pattern, is_pattern, unescape
from ..core.policy import WORKSPACE, line_of
from ..core.secrecy import Masker
from ..store.objects import Packing
from ..store.packs import OBJECT_MAX
from .blobs import EACH_MAX, Blobs

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CHUNK = 1 << 20
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
LISTED_MAX = 10
PATH_BYTES_MAX = 4000
"""Below the kernel's PATH_MAX: no program, ours included, could name what lies deeper."""


class NotCollected(Exception):
    """An output is missing or is nothing that can be kept: the step fails with these words."""

    def __init__(self, what: str, termination: str = "exited") -> None:
        super().__init__(what)
        self.what = what
        self.termination = termination


@dataclass(slots=True)
class Collector:
    """`workspace` is a directory descriptor.

    `visible` are the absolute directories that every step with these roots sees: a symlink may lead there.
    """

    blobs: Blobs
    workspace: int
    visible: Sequence[str] = ("/usr",)
    size_max: int | None = None
    masker: Masker | None = None
    """The step's secrets: an output that holds one is refused, since the store would keep it for whoever reads it."""
    _size: int = field(default=0, init=False)
    _packing: Packing | None = field(default=None, init=False)

    def collect(self, declared: Sequence[str], inputs: Collection[str]) -> dict[str, Entry]:
        """Every declared output's entry. Raises NotCollected for the first that cannot be had."""
        found: dict[str, Entry] = {}
        for path in declared:
            if is_pattern(path):
                found |= self._pattern(path, inputs)
            elif path.endswith("/"):
                found[unescape(path)] = self._packed_tree(unescape(path))
            else:
                found[unescape(path)] = self._single(unescape(path))
        return found

    def _single(self, path: str) -> Entry:
        parent = self._open_parent(path)
        if parent is None:
            raise NotCollected(f'declared output "{path}" was not produced')
        try:
            return self._take(parent, posixpath.basename(path), path)
        finally:
            os.close(parent)

    def _take(self, directory: int, name: str, path: str) -> File | Link:
        self._refuse_secret_name(path)
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            raise NotCollected(f'declared output "{path}" was not produced') from None
        if stat.S_ISLNK(found.st_mode):
            target = os.readlink(name, dir_fd=directory)
            self._refuse_secret(path, [os.fsencode(target)])
            return Link(self._checked_target(path, target))
        if stat.S_ISDIR(found.st_mode):
            raise NotCollected(f'declared output "{path}" is a directory: declare it as "{path}/"')
        if not stat.S_ISREG(found.st_mode):
            raise NotCollected(f'declared output "{path}" is neither a file, a symlink nor a directory')
        self._account(found, path)
        descriptor = _open_readable(directory, name, found.st_mode)
        try:
            digest, size = self._put(path, descriptor, found.st_size)
        finally:
            os.close(descriptor)
        return File(digest, size, bool(found.st_mode & 0o111))

    def _put(self, path: str, descriptor: int, size: int) -> tuple[Digest, int]:
        if size <= EACH_MAX:
            content = os.read(descriptor, size + 1)
            if len(content) == size:
                self._refuse_secret(path, [content])
                return self._keep(content), size
            os.lseek(descriptor, 0, os.SEEK_SET)
        if self.masker is not None:
            self._refuse_secret(path, iter(lambda: os.read(descriptor, _CHUNK), b""))
            os.lseek(descriptor, 0, os.SEEK_SET)
        digest, size = self.blobs.objects.put_file(descriptor)
        self.blobs.note_stored(digest)
        return digest, size

    def _keep(self, content: bytes) -> Digest:
        """Small files of a directory are gathered in packs."""
        if self._packing is None or len(content) > OBJECT_MAX:
            return self.blobs.put(content)
        digest = self._packing.add(content)
        self.blobs.hold(digest, content)
        return digest

    def _refuse_secret(self, path: str, pieces: Iterable[bytes]) -> None:
        name = None if self.masker is None else self.masker.held_in_pieces(pieces)
        if name is not None:
            raise NotCollected(f'output "{path}" holds the secret "{name}", and would be kept in the store')

    def _refuse_secret_name(self, path: str) -> None:
        name = None if self.masker is None else self.masker.held_in(os.fsencode(path))
        if name is not None:
            raise NotCollected(f'an output is named by the secret "{name}", and would be kept in the store')

    def _account(self, found: os.stat_result, path: str) -> None:
        self._size += found.st_size
        if self.size_max is not None and self._size > self.size_max:
            raise NotCollected(f'hit its limit: {line_of("output_size", self.size_max)}, at "{path}"', "output_size")

    def _checked_target(self, path: str, target: str) -> str:
        try:
            target.encode("utf-8")
        except UnicodeEncodeError:
            raise NotCollected(f'output "{path}" is a symlink to a name that is not UTF-8') from None
        if target.startswith("/"):
            plain = posixpath.normpath(target)
            if any(plain == seen or plain.startswith(seen + "/") for seen in self.visible):
                return target
            raise NotCollected(f'output "{path}" is a symlink to "{target}", outside of the workspace')
        landed = posixpath.normpath(posixpath.join(WORKSPACE, posixpath.dirname(path), target))
        if landed != WORKSPACE and not landed.startswith(WORKSPACE + "/"):
            raise NotCollected(f'output "{path}" is a symlink to "{target}", outside of the workspace')
        return target

    def _open_parent(self, path: str) -> int | None:
        """The directory that holds a path, reached without following a link; None if it is not there."""
        *parts, _ = path.split("/")
        if not parts:
            return os.dup(self.workspace)
        descriptor = self.workspace
        for part in parts:
            try:
                below = os.open(part, _DIRECTORY, dir_fd=descriptor)
            except PermissionError:
                os.chmod(part, 0o700, dir_fd=descriptor)
                below = os.open(part, _DIRECTORY, dir_fd=descriptor)
            except OSError as error:
                if error.errno not in _NOT_THERE:
                    raise  # Too many open files: that says nothing of the output.
                return None
            finally:
                if descriptor != self.workspace:
                    os.close(descriptor)
            descriptor = below
        return descriptor

    def _packed_tree(self, path: str) -> Tree:
        self._packing = packing = self.blobs.objects.packing()
        try:
            tree = self._tree(path)
        finally:
            self._packing = None
        packing.close()
        return tree

    def _tree(self, path: str) -> Tree:
        top = path.rstrip("/")
        parent = self._open_parent(top)
        if parent is None:
            raise NotCollected(f'declared output "{path}" was not produced')
        try:
            kind = _kind(parent, posixpath.basename(top))
            if kind != "dir":
                raise NotCollected(
                    f'declared output "{path}" ' + ("was not produced" if kind is None else "is not a directory")
                )
        finally:
            os.close(parent)
        children: dict[str, dict[str, Entry]] = {}
        order = []
        for directory, names in self._walk(top):
            self._refuse_secret_name(directory)
            order.append(directory)
            children[directory] = kept = {}
            descriptor = self._open_parent(directory + "/x")
            assert descriptor is not None
            try:
                for name, kind in names:
                    if kind != "dir":
                        _name_must_be_utf8(name, directory)
                        kept[name] = self._take(descriptor, name, f"{directory}/{name}")
            finally:
                os.close(descriptor)
        for directory in reversed(order):
            tree, content = make_tree(children[directory])
            self._keep(content)
            if directory == top:
                return tree
            children[posixpath.dirname(directory)][posixpath.basename(directory)] = tree
        raise AssertionError(top)

    def _walk(self, top: str, *, to_the_end: bool = True) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
        """Directories (paths from the workspace, parents first) and their children's kinds; no link is followed.

        What lies too deep to be named raises NotCollected, or is passed over where not all is wanted.
        """
        pending = [top]
        for directory in pending:
            descriptor = self._open_parent(directory + "/x" if directory != "." else "x")
            if descriptor is None:
                continue
            try:
                names = sorted(_list(descriptor), key=os.fsencode)
                kinds = [(name, _kind(descriptor, name)) for name in names]
            finally:
                os.close(descriptor)
            yield directory, kinds
            for name, kind in kinds:
                if kind == "dir":
                    _name_must_be_utf8(name, directory)
                    path = name if directory == "." else f"{directory}/{name}"
                    if len(path.encode()) <= PATH_BYTES_MAX:
                        pending.append(path)
                    elif to_the_end:
                        raise NotCollected(
                            f'a directory is too deep: "{path[:60]}..." is more than {PATH_BYTES_MAX} bytes'
                        )

    def _pattern(self, pattern: str, inputs: Collection[str]) -> dict[str, Entry]:
        matches = compile_pattern(pattern)
        literal = matches.prefix
        found: dict[str, Entry] = {}
        for directory, names in self._walk(literal):
            for name, kind in names:
                path = name if directory == "." else f"{directory}/{name}"
                if kind != "dir" and path not in inputs and matches(path):
                    _name_must_be_utf8(name, directory)
                    found[path] = self._single(path)
        if not found:
            raise NotCollected(f'declared output "{pattern}" matches nothing that the step made')
        return dict(sorted(found.items(), key=lambda item: item[0].encode("utf-8")))

    def undeclared(self, declared: Sequence[str], known: Collection[str]) -> list[str]:
        """What the step made and did not declare; the first few, for people."""
        directories = tuple(path for path in declared if path.endswith("/"))
        patterns = [compile_pattern(path) for path in declared if is_pattern(path)]
        found: list[str] = []
        for directory, names in self._walk(".", to_the_end=False):
            for name, kind in names:
                path = name if directory == "." else f"{directory}/{name}"
                declared_too = path in declared or path.startswith(directories) or any(m(path) for m in patterns)
                if kind != "dir" and path not in known and not declared_too:
                    found.append(path)
                    if len(found) > LISTED_MAX:
                        return found
        return found


def _kind(directory: int, name: str) -> str | None:
    try:
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        return None
    return "dir" if stat.S_ISDIR(mode) else "file"


def _list(descriptor: int) -> list[str]:
    return os.listdir(descriptor)


def _open_readable(directory: int, name: str, mode: int) -> int:
    try:
        return os.open(name, _FILE, dir_fd=directory)
    except PermissionError:  # The step made it unreadable; its bytes are an output all the same.
        os.chmod(name, stat.S_IMODE(mode) | 0o400, dir_fd=directory)
        return os.open(name, _FILE, dir_fd=directory)


def _name_must_be_utf8(name: str, directory: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise NotCollected(f'an output\'s name in "{directory}" is not UTF-8: {os.fsencode(name)!r}') from None
