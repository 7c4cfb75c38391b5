"""Puts outputs into the workspace and takes them away again. Requiem replaces or deletes only what it made.

Each path is old or new, never partial: files are renamed into place, directories are swapped. No parent
that is a symlink is ever followed, and nothing laid out shares an inode with the store.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property

from ..core.digest import Digest
from ..core.entries import Entry, File, Link, Tree, parse_tree
from ..core.errors import CorruptObject, EnvironmentFault, MissingObject, UsageError
from ..core.patterns import is_pattern, unescape
from ..executors.blobs import EACH_MAX, Blobs
from .stamps import Stamp, Stamps, stamp_at, stamp_of
from .workspace import DOT

_SOMETHING_ELSE = object()
_AT_CWD, _RENAME_EXCHANGE = -100, 2
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Layout:
    """`made` maps each path that we put here to what we put, `declared` each output to its instance.

    `warn` is told of what was moved aside.
    """

    def __init__(
        self,
        root: str,
        run: str,
        stamps: Stamps,
        blobs: Blobs,
        made: Mapping[str, Entry],
        declared: Mapping[str, str],
        warn: Callable[[str], None],
    ) -> None:
        self.root = root
        self._run = run
        self._stamps = stamps
        self._blobs = blobs
        self._made = dict(made)
        self._all_declared = declared
        self._owner: dict[str, str] = {}
        self._warn = warn
        self._counter = 0
        self._lock = threading.Lock()
        self._parents: set[str] = set()
        self._tmp = os.path.join(root, DOT, "tmp")
        self._near: dict[str, bool] = {}

    def is_right(self, path: str, entry: Entry) -> bool:
        """Whether exactly this stands there already."""
        return self._look(path) == entry

    def _look(self, path: str) -> Entry | object | None:
        """What stands there; nothing that is an entry for a special file, or one that cannot be read."""
        try:
            return self.current(path)
        except (UsageError, EnvironmentFault):
            return _SOMETHING_ELSE

    def current(self, path: str) -> Entry | None:
        if path.endswith("/"):
            return self._stamps.tree(f"{self.root}/{path[:-1]}")
        return self._stamps.entry(f"{self.root}/{path}", named=True)

    def knows(self, path: str) -> bool:
        """Whether our memory or the store knows what stands at a path."""
        return self._is_ours(path, os.path.join(self.root, path))

    def knows_entry(self, entry: Entry) -> bool:
        """Whether the store has this very content, so that nothing is lost if it is taken away."""
        return not isinstance(entry, Link) and self._blobs.objects.has(entry.digest)

    def adopt(self, path: str, entry: Entry) -> None:
        self._made[path] = entry

    def lay_out(self, name: str, outputs: Mapping[str, Entry], previous: Iterable[str]) -> bool:
        """Makes the workspace hold exactly these, without what the step made before. Returns whether it changed."""
        changed = False
        gone = [
            path
            for path in previous
            if path not in outputs and (self._owner.get(path) or self._declared.get(path)) in (None, name)
        ]
        for path in gone:  # First: a file may have been where a directory goes now, which may hold one of that name.
            if not _gives_way(path, outputs):
                changed |= self.remove(path)
        for path, entry in outputs.items():
            here = self._look(path)
            if here != entry:
                self._place(path, entry, vacant=here is None)
                changed = True
            self._own(name, path, entry)
        for path in gone:
            self._made.pop(path, None)
        return changed

    def lay_out_new(self, name: str, outputs: Mapping[str, Entry]) -> list[Stamp] | None:
        """The stamps of files that were laid out where nothing stood; None, and nothing done, if something does."""
        if any(os.path.lexists(f"{self.root}/{path}") for path in outputs):
            return None
        for path, entry in outputs.items():
            self._place(path, entry, vacant=True)
            self._own(name, path, entry)
        return [self._stamps.seen[f"{self.root}/{path}"] for path in outputs]

    def note_laid_out(self, name: str, outputs: Mapping[str, Entry], stamps: Iterable[Stamp]) -> None:
        """As if `lay_out` had done here what it did in another process. `stamps` are what `lay_out_new` gave."""
        for (path, entry), stamp in zip(outputs.items(), stamps, strict=True):
            self._stamps.note(f"{self.root}/{path}", entry, stamp)
            self._own(name, path, entry)

    def _own(self, name: str, path: str, entry: Entry) -> None:
        self._made[path] = entry
        self._owner[path] = name

    @cached_property
    def _declared(self) -> Mapping[str, str]:
        """Every plain output that the manifest declares -> its maker."""
        return {unescape(path): name for path, name in self._all_declared.items() if not is_pattern(path)}

    def make_room(self, paths: Iterable[str]) -> None:
        """Takes away or moves aside what stands at outputs' paths, for a step that runs right here."""
        for path in paths:
            full = os.path.join(self.root, path.rstrip("/"))
            self._make_parents(path.rstrip("/"))
            self._clear_the_way(path, full)
            _remove(full)
            self._stamps.forget(full)

    def vacate(self, name: str, path: str) -> None:
        """Takes a file away if it is as we made it, and moves it aside otherwise, also if the store happens to have it.

        Its directory stays, even if empty: another step may be about to write into it. So does what another just made.
        """
        if self._owner.get(path) not in (None, name):
            return
        full = f"{self.root}/{path}"
        self._check_parents(path)
        made = self._made.get(path)
        if made is not None and self.is_right(path, made):
            _remove(full)
        else:
            self.displace(path)
        self._stamps.forget(full)

    def _place(self, path: str, entry: Entry, *, vacant: bool) -> None:
        """`vacant`: nothing stood there a moment ago."""
        full = f"{self.root}/{path.rstrip('/')}"
        self._make_parents(path.rstrip("/"))
        if not vacant or isinstance(entry, Tree):  # A file may stand where a directory is wanted.
            self._clear_the_way(path, full)
        temporary = self._temporary(os.path.dirname(full))
        try:
            match entry:
                case File():
                    self._write_file(temporary, entry)
                case Link():
                    os.symlink(entry.target, temporary)
                case Tree():
                    self._write_tree(temporary, entry, full)
            if isinstance(entry, Tree):
                self._swap(temporary, full, path)
                self._stamps.note_directory(full, stamp_at(full))
            else:
                os.rename(temporary, full)
                self._stamps.note(full, entry, stamp_at(full))
        except OSError as error:
            _remove(temporary)
            raise EnvironmentFault(
                f'cannot lay out "{path}"', facts=[("cause", error.strerror or str(error)), ("path", full)]
            ) from error

    def _write_file(self, target: str, entry: File, directory: int | None = None) -> Stamp:
        """`target` is below the open `directory`, if there is one, and does not exist."""
        mode = 0o777 if entry.executable else 0o666
        descriptor = os.open(target, _NEW, mode, dir_fd=directory)
        try:
            if entry.size <= EACH_MAX:
                content = self._blobs.glance(entry.digest)
                done = os.write(descriptor, content)
                while done < len(content):
                    done += os.write(descriptor, memoryview(content)[done:])
            else:
                self._blobs.objects.copy_to(entry.digest, descriptor)
            return stamp_of(os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def _write_tree(self, target: str, tree: Tree, full: str) -> None:
        """Writes a directory that will be renamed to `full`, which changes no stamp of what is in it."""
        pending: list[tuple[str, str, Digest]] = [(target, full, tree.digest)]
        for place, later, digest in pending:
            os.mkdir(place)
            directory = os.open(place, _DIRECTORY)
            try:
                for name, entry in parse_tree(self._blobs.get(digest)):
                    match entry:
                        case File():
                            self._stamps.note_new(f"{later}/{name}", entry, self._write_file(name, entry, directory))
                        case Link():
                            os.symlink(entry.target, name, dir_fd=directory)
                            self._stamps.note_new(
                                f"{later}/{name}",
                                entry,
                                stamp_of(os.stat(name, dir_fd=directory, follow_symlinks=False)),
                            )
                        case Tree():
                            pending.append((f"{place}/{name}", f"{later}/{name}", entry.digest))
            finally:
                os.close(directory)
        for place, later, _ in pending[1:]:
            self._stamps.reached.add(later)
            self._stamps.note_directory(later, stamp_at(place))

    def _swap(self, new: str, full: str, path: str) -> None:
        """What stands there is the old one or the new one, at any moment where the system can exchange the two."""
        if not os.path.lexists(full):
            os.rename(new, full)
            return
        if _exchange(new, full):
            _remove(new)
            return
        old = self._temporary(os.path.dirname(full))
        os.rename(full, old)
        try:
            os.rename(new, full)
        except OSError:
            os.rename(old, full)
            raise
        _remove(old)

    def _clear_the_way(self, path: str, full: str) -> None:
        """What stands at an output's path and is not ours is moved aside, never lost."""
        try:
            mode = os.lstat(full).st_mode
        except FileNotFoundError:
            return
        wants_directory = path.endswith("/")
        if wants_directory and stat.S_ISDIR(mode):
            for foreign in self._foreign_in(path, full):
                self.displace(foreign)
            return
        if stat.S_ISDIR(mode) and self._made_below(path):
            for foreign in self._foreign_in(path + "/", full):
                self.displace(foreign)
            _remove(full)
            self._stamps.forget(full)
        elif stat.S_ISDIR(mode) or not self._is_ours(path, full):
            self.displace(path.rstrip("/"))
        elif wants_directory:
            os.unlink(full)

    def _made_below(self, path: str) -> bool:
        """Whether a directory at a file's place is, or holds, an output of before."""
        return any(made.startswith(path + "/") for made in tuple(self._made))  # Other threads add to it.

    def _is_ours(self, path: str, full: str) -> bool:
        """Neither our memory nor the store knows its content: then it is somebody's."""
        try:
            current = self._stamps.entry(full, named=True)
        except (UsageError, EnvironmentFault):
            return False
        if current is None or current == self._made.get(path):
            return True
        return isinstance(current, File) and self._blobs.objects.has(current.digest)

    def _foreign_in(self, path: str, full: str) -> list[str]:
        """What of a directory at an output's place is somebody's: files, links and empty directories not made by us."""
        made = self._made.get(path)
        with suppress(UsageError, EnvironmentFault):
            if made is not None and self._stamps.tree(full) == made:
                return []
        ours = self._inside(path, made) if isinstance(made, Tree) else {}
        foreign = []
        for directory, folders, names in os.walk(full):
            relative = os.path.relpath(directory, self.root)
            if not folders and not names and relative + "/" not in ours and directory != full:
                foreign.append(relative)
            for name in (*names, *folders):
                here = os.path.join(relative, name)
                if os.path.islink(os.path.join(directory, name)):
                    entry = ours.get(here)
                    if not isinstance(entry, Link) or entry.target != os.readlink(os.path.join(directory, name)):
                        foreign.append(here)
                elif name in names and not self._is_ours(here, os.path.join(directory, name)):
                    foreign.append(here)
        return foreign

    def _inside(self, path: str, tree: Tree) -> dict[str, Entry]:
        """Every path of a directory that we made, as far as the store still knows it."""
        found: dict[str, Entry] = {}
        pending: list[tuple[str, Tree]] = [(path, tree)]
        for prefix, directory in pending:
            with suppress(CorruptObject, MissingObject):
                for name, entry in parse_tree(self._blobs.get(directory.digest)):
                    if isinstance(entry, Tree):
                        found[f"{prefix}{name}/"] = entry
                        pending.append((f"{prefix}{name}/", entry))
                    else:
                        found[prefix + name] = entry
        return found

    def displace(self, path: str) -> None:
        """Moves something that is not ours to `.requiem/displaced/RUN/`."""
        target = os.path.join(self.root, DOT, "displaced", self._run, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        import shutil

        shutil.move(os.path.join(self.root, path), target)
        shown = os.path.relpath(target, self.root)
        self._warn(f'"{path}" was not made by Requiem and stood in an output\'s place: moved to {shown}')

    def remove(self, path: str) -> bool:
        """Takes an output away if it is still as we made it, and its directories if they are empty now."""
        entry = self._made.pop(path, None)
        if entry is None or not self.is_right(path, entry):
            return False
        full = os.path.join(self.root, path.rstrip("/"))
        try:
            self._check_parents(path.rstrip("/"))
        except UsageError:
            return False
        _remove(full)
        self._stamps.forget(full)
        self._remove_empty_parents(path.rstrip("/"))
        return True

    def _remove_empty_parents(self, path: str) -> None:
        parent = os.path.dirname(path)
        while parent:
            try:
                os.rmdir(os.path.join(self.root, parent))
            except OSError:
                return
            self._parents.discard(parent)
            parent = os.path.dirname(parent)

    def _check_parents(self, path: str) -> None:
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in path.split("/")[:-1]:
                below = self._enter(descriptor, part, path, make=False)
                os.close(descriptor)
                descriptor = below
        except FileNotFoundError:
            pass
        finally:
            os.close(descriptor)

    def _make_parents(self, path: str) -> None:
        """Makes the directories above a path, one by one from the root, following no link."""
        parent = os.path.dirname(path)
        if not parent or (parent in self._parents and os.path.isdir(os.path.join(self.root, parent))):
            return
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parent.split("/"):
                below = self._enter(descriptor, part, path, make=True)
                os.close(descriptor)
                descriptor = below
        except OSError as error:
            raise EnvironmentFault(
                f'cannot make the directory of "{path}"', facts=[("cause", error.strerror or str(error))]
            ) from error
        finally:
            os.close(descriptor)
        self._parents.add(parent)

    def _enter(self, descriptor: int, part: str, path: str, *, make: bool) -> int:
        try:
            return os.open(part, _DIRECTORY, dir_fd=descriptor)
        except FileNotFoundError:
            if not make:
                raise
            with suppress(FileExistsError):
                os.mkdir(part, dir_fd=descriptor)
            return os.open(part, _DIRECTORY, dir_fd=descriptor)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            mode = os.stat(part, dir_fd=descriptor, follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                raise UsageError(
                    f'the output "{path}" lies behind a symlink, "{part}"',
                    hint="replace the symlink by a directory: outputs are laid out only inside the workspace",
                ) from None
            if stat.S_ISREG(mode):
                raise UsageError(f'the output "{path}" lies below "{part}", which is a file') from None
            raise

    def _temporary(self, directory: str) -> str:
        """A free name on the file system of a directory: in our scratch, or beside the output on another mount."""
        with self._lock:
            self._counter += 1
            name = f"{os.getpid()}-{self._counter}"
        if directory not in self._near:
            self._near[directory] = os.stat(directory).st_dev == os.stat(self._tmp).st_dev
        return os.path.join(self._tmp, name) if self._near[directory] else os.path.join(directory, f".requiem-{name}")


def _gives_way(path: str, outputs: Mapping[str, Entry]) -> bool:
    """Whether a file is to stand where this is, or where a directory above it is: making room for that knows best."""
    above = path.rstrip("/")
    while above:
        if above in outputs and above != path:
            return True
        above = os.path.dirname(above)
    return False


def _exchange(one: str, other: str) -> bool:
    """Both exist and change places in one step; False where system or file system cannot do that. Raises OSError."""
    try:
        import ctypes

        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (ImportError, AttributeError):  # Not Linux, or a C library from before 2018.
        return False
    if rename(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), one, None, other)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):
        import shutil

        shutil.rmtree(path, ignore_errors=True)


def tracked_by_git(root: str, paths: list[str]) -> list[str]:
    """Which of the workspace's paths git tracks (a directory stands for all below it); none outside of a repository.

    Raises EnvironmentFault if there is a repository and git cannot say.
    """
    import subprocess

    directory = root
    while not os.path.exists(os.path.join(directory, ".git")):
        parent = os.path.dirname(directory)
        if parent == directory:
            return []
        directory = parent
    # A repository of another user, or a hook's variables, must not make git look away.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    found: list[str] = []
    for start in range(0, len(paths), 500):
        wanted = [f":(literal){path}" for path in paths[start : start + 500]]
        command = ["git", "-c", "safe.directory=*", "-C", root, "ls-files", "-z", "--", *wanted]
        try:
            done = subprocess.run(command, capture_output=True, check=False, env=environment)
            failed, why = done.returncode != 0, done.stderr.decode("utf-8", "replace").strip()[:200]
        except OSError as error:
            failed, why = True, error.strerror or str(error)
        if failed:
            raise EnvironmentFault(
                "git cannot say which files at outputs' places it tracks",
                facts=[("repository", directory), ("git", why)],
            )
        found.extend(os.fsdecode(name) for name in done.stdout.split(b"\0") if name)
    return found
