"""What a path's content was when its stamp was so: a memory of digests that stat can refute, never vouch for alone.

A stamp taken within a clock tick of the file's last change proves nothing (the file may change again
under the same stamp), so such an entry is marked racy and its content is read again next time.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import suppress
from typing import TypeAlias

from ..core.digest import Digest, Hasher, object_digest
from ..core.entries import Entry, File, Link, Tree, make_tree
from ..core.errors import EnvironmentFault, UsageError

Stamp: TypeAlias = tuple[int, int, int, int, int]
"""mtime_ns, ctime_ns, size, inode, mode; all zero for a path where nothing stands."""
NOTHING: Stamp = (0, 0, 0, 0, 0)

Known: TypeAlias = tuple[Stamp, bool, tuple[object, ...]]
"""Stamp, whether it is racy, and the entry in its plain form."""

TICK_NS = 20_000_000  # The coarsest kernel clock tick (10 ms) twice over.
READ_AT_ONCE = 1 << 20
LINKS_MAX = 40
CLOCK_TRIES = 6
Keep: TypeAlias = Callable[[Digest, bytes], None]


def stamp_of(found: os.stat_result) -> Stamp:
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_mode)


def stamp_at(path: str) -> Stamp:
    try:
        return stamp_of(os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return NOTHING


def links_of(path: str) -> list[str]:
    """A path and, if it is a symlink, everything that it leads through: what reading it rests on."""
    found = [path]
    while len(found) < LINKS_MAX and os.path.islink(found[-1]):
        target = os.path.join(os.path.dirname(found[-1]), os.readlink(found[-1]))
        found.append(os.path.normpath(target))
    return found


def is_racy(stamp: Stamp, now_ns: int) -> bool:
    """Whether the path changed so lately, or has a time so far in the future, that its stamp proves nothing."""
    return max(stamp[0], stamp[1]) > now_ns - TICK_NS


def pack(entry: Entry) -> tuple[object, ...]:
    match entry:
        case File():
            return (entry.digest, entry.size, entry.executable)
        case Link():
            return (entry.target,)
        case Tree():
            return (entry.digest, entry.files, entry.size, "tree")


def unpack(packed: tuple[object, ...]) -> Entry:
    match packed:
        case (str(target),):
            return Link(target)
        case (str(digest), int(size), bool(executable)):
            return File(Digest(digest), size, executable)
        case (str(digest), int(files), int(size), "tree"):
            return Tree(Digest(digest), files, size)
    raise ValueError(packed)


def tells_changes_apart(directory: str) -> bool:
    """Whether this file system gives a file that was looked at a new time with its very next change.

    Linux does so from 6.13 on (multigrain timestamps). Then a stamp proves its content however young it is.
    Tried on a file of our own; a coarse clock cannot pass by chance.
    """
    path = os.path.join(directory, f"clock-{os.getpid()}")
    seen: set[int] = set()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            for _ in range(CLOCK_TRIES):
                os.pwrite(descriptor, b"x", 0)
                seen.add(os.lstat(path).st_ctime_ns)
        finally:
            os.close(descriptor)
            os.unlink(path)
    except OSError:
        return False
    return len(seen) == CLOCK_TRIES


class Stamps:
    """`known` maps an absolute path to what was last read there. `keep` is offered each small file's bytes.

    `fine` says that the workspace's file system tells changes apart; `device` is which one that is.
    """

    def __init__(
        self,
        known: MutableMapping[str, Known] | None = None,
        keep: Keep | None = None,
        *,
        fine: bool = False,
        device: int = -1,
        expected: Callable[[str], Stamp | None] = lambda _: None,
    ) -> None:
        self.known: MutableMapping[str, Known] = {} if known is None else known
        self._keep = keep
        self.fine = fine
        self._device = device
        self._expected = expected
        """The stamp that a path had when this run decided what to look at; None if that rests on nothing."""
        self.settled = True
        """Whether nothing was found to have changed while the build ran."""
        self.seen: dict[str, Stamp] = {}
        """The stamps met in this run, directories too: what a no-op must find again."""
        self.reached: set[str] = set()
        """Paths that were looked at for another reason than that a step names them: who rests on them is not known."""

    def entry(self, path: str, *, named: bool = False) -> File | Link | None:
        """What stands at an absolute path; None if nothing does. Raises UsageError for a special file.

        `named`: by a step, as its input or output.
        """
        if not named:
            self.reached.add(path)
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            self.seen[path] = NOTHING
            return None
        except OSError as error:
            raise EnvironmentFault(f'cannot look at "{path}"', facts=[("cause", str(error))]) from error
        return self.entry_for(path, found)

    def entry_for(self, path: str, found: os.stat_result) -> File | Link:
        stamp = stamp_of(found)
        before = self.seen.get(path) or self._expected(path)
        if before is not None and before != stamp:
            self.settled = False  # Whoever looked first had another content: no stamp holds for both.
        self.seen[path] = stamp
        known = self.known.get(path)
        if known is not None and known[0] == stamp and not known[1]:
            return unpack(known[2])  # type: ignore[return-value]
        if stat.S_ISLNK(found.st_mode):
            entry: File | Link = Link(os.readlink(path))
        elif stat.S_ISREG(found.st_mode):
            entry = self._read(path)
        else:
            raise UsageError(f'"{path}" is {kind_of(found.st_mode)}, not a file', hint="steps read files and links")
        self.note(path, entry, self.seen[path], device=found.st_dev)
        return entry

    def note(self, path: str, entry: Entry, stamp: Stamp, *, device: int | None = None) -> None:
        """Remembers what stands at a path now. Without a device it is the workspace's."""
        self.seen[path] = stamp
        here = device is None or device == self._device
        self.known[path] = (stamp, not (self.fine and here) and is_racy(stamp, time.time_ns()), pack(entry))

    def note_new(self, path: str, entry: Entry, stamp: Stamp) -> None:
        """As `note`, of what was just made within a directory that a step names as a whole."""
        self.reached.add(path)
        self.note(path, entry, stamp)

    def note_directory(self, path: str, stamp: Stamp) -> None:
        """Remembers that a directory holds just what was noted of it when its stamp was so."""
        self.seen[path] = stamp

    def forget(self, path: str) -> None:
        self.known.pop(path, None)

    def settle(self) -> None:
        """Reads again, now that the clock has moved on, what was too new to be believed; large files wait."""
        now = time.time_ns()
        for path in self.seen:
            known = self.known.get(path)
            if known is None or not known[1] or is_racy(known[0], now) or known[0][2] > READ_AT_ONCE:
                continue
            with suppress(UsageError, EnvironmentFault):
                if self.entry(path, named=True) is None or self.known[path][2] != known[2]:
                    self.known.pop(path, None)  # It is another by now: nothing that was found out holds for it.
                    self.settled = False

    def _read(self, path: str) -> File:
        """Reads by `read`, not mmap: a file that shrinks meanwhile must not kill us."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise EnvironmentFault(f'cannot read "{path}"', facts=[("cause", error.strerror or str(error))]) from error
        try:
            found = os.fstat(descriptor)
            self.seen[path] = stamp_of(found)
            executable = bool(found.st_mode & 0o111)
            if found.st_size < READ_AT_ONCE:
                content = os.read(descriptor, found.st_size + 1)
                if len(content) == found.st_size:
                    digest = object_digest(content)
                    if self._keep is not None:
                        self._keep(digest, content)
                    return File(digest, len(content), executable)
                os.lseek(descriptor, 0, os.SEEK_SET)
            hasher = Hasher()
            while piece := os.read(descriptor, READ_AT_ONCE):
                hasher.update(piece)
            return File(hasher.digest(), hasher.size, executable)
        except OSError as error:
            raise EnvironmentFault(f'cannot read "{path}"', facts=[("cause", error.strerror or str(error))]) from error
        finally:
            os.close(descriptor)

    def tree(
        self,
        path: str,
        *,
        skip: Callable[[str], bool] | None = None,
        keep_tree: Keep | None = None,
        special_ok: bool = False,
    ) -> Tree | None:
        """The tree of an absolute directory, names that `skip` says left out; None if no directory stands there.

        `keep_tree` is offered each directory's object. Unreadable names and special files are errors,
        but for `special_ok`, where they are left out.
        """
        if not _is_directory(path):
            self.seen[path] = stamp_at(path)
            return None
        children: dict[str, dict[str, Entry]] = {}
        directories = [path]
        for directory in directories:  # Grows while it is walked: breadth first, no recursion.
            children[directory] = found_here = {}
            self.seen[directory] = stamp_at(directory)
            for item in _scan(directory):
                if skip is not None and skip(item.name):
                    continue
                self.reached.add(item.path)
                _must_be_utf8(item.name, directory)
                if item.is_dir(follow_symlinks=False):
                    directories.append(item.path)
                elif item.is_file(follow_symlinks=False) or item.is_symlink():
                    found_here[item.name] = self.entry_for(item.path, item.stat(follow_symlinks=False))
                elif not special_ok:
                    self.entry_for(item.path, item.stat(follow_symlinks=False))
        tree = None
        for directory in reversed(directories):
            tree, content = make_tree(children[directory])
            if keep_tree is not None:
                keep_tree(tree.digest, content)
            if directory != path:
                children[os.path.dirname(directory)][os.path.basename(directory)] = tree
        return tree


def kind_of(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else "a special file"


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _scan(directory: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as items:
            yield from sorted(items, key=lambda item: os.fsencode(item.name))
    except OSError as error:
        raise EnvironmentFault(f'cannot list "{directory}"', facts=[("cause", error.strerror or str(error))]) from error


def _must_be_utf8(name: str, directory: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"a name is not UTF-8: {os.fsencode(name)!r}", facts=[("directory", directory)], hint="rename it"
        ) from error
