"""A store of format 1 becomes one of format 2: every object is proved, none is lost, and a killed migration goes on.

Format 1 is `objects/AB/CD/<SHA-256 of the bytes>`, raw, without metadata. Objects go over in batches: proved by
their old name, stored under their new one, synced, noted in `v1-names`, and only then removed from the old place.
The mark of format 2 is last, so nobody opens a store that is half way.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from ..core.digest import IS_FALLBACK, Digest
from ..core.errors import Busy, EnvironmentFault, UsageError
from ..core.fields import dataclass, field
from .durability import sync_file_system, sync_path
from .files import HOST_FAILED, PIECE, READ, Scratch, entries, fault, kind_of
from .layout import Store, is_marked, make_directories, mark
from .objects import Objects
from .place import Place
from .reading import stamp

NAMES = "v1-names"
"""Lines of an old name and the new one: for whoever still holds old names."""

_NAME = re.compile(r"[0-9a-f]{64}")
_BATCH_OBJECTS = 1000
_BATCH_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Aside:
    """What could not go over: its place below the store's root as it was, why, and where it is kept."""

    path: str
    reason: str
    kept: str


@dataclass(slots=True)
class Migrated:
    moved: int = 0
    bytes: int = 0
    aside: list[Aside] = field(default_factory=list)
    earlier: list[str] = field(default_factory=list)
    """What interrupted migrations before this one had set aside."""


def migrate(root: Path, progress: Callable[[Migrated], None] = lambda _: None) -> Migrated:
    """Brings a store to this format; one that is there already is left alone.

    Raises UsageError where there is no store, Busy while another process does the same, EnvironmentFault where
    the host refuses: what was done stays done, and the next call goes on.
    """
    if IS_FALLBACK:
        raise EnvironmentFault("a store is only migrated to BLAKE3's names", hint="without --allow-hash-fallback")
    place = os.path.realpath(root)
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in HOST_FAILED:
            raise fault(error, "opening the store to be migrated", place) from error
        raise UsageError(f'no store at "{place}"', facts=[("cause", error.strerror or "")]) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy("another process migrates this store", facts=[("store", place)]) from None
        if is_marked(place):
            with suppress(OSError):
                os.rmdir(f"{place}/objects")  # Killed between its last two calls.
            return Migrated()
        if not os.path.isdir(f"{place}/objects"):
            Store(root, read_only=True)  # Says what it is instead.
        return _Migration(place, progress).run()
    except OSError as error:
        raise fault(error, f"migrating the store {place}", place) from error
    finally:
        os.close(descriptor)


class _Migration:
    def __init__(self, place: str, progress: Callable[[Migrated], None]) -> None:
        make_directories(place)
        self._place = place
        self._scratch = Scratch(f"{place}/v2/tmp")
        self._scratch.sweep()
        self._objects = Objects(Place(f"{place}/v2", self._scratch))
        self._progress = progress
        self._done = Migrated()
        self._batch: list[tuple[str, str, Digest]] = []
        self._batch_bytes = 0

    def run(self) -> Migrated:
        quarantine = f"{self._place}/v2/quarantine"
        self._done.earlier = sorted(item.name for item in entries(quarantine) if item.name.endswith(".v1"))
        self._mend_names()
        for path in self._walk():
            self._take(path)
            if len(self._batch) >= _BATCH_OBJECTS or self._batch_bytes >= _BATCH_BYTES:
                self._commit()
        self._commit()
        self._remove_shards()
        sync_path(self._place)
        mark(self._place, self._scratch, durable=True)
        os.rmdir(f"{self._place}/objects")
        return self._done

    def _walk(self) -> Iterator[str]:
        """Every file of the old objects, in order; what is no directory of theirs is set aside."""
        for outer in entries(f"{self._place}/objects"):
            if not outer.is_dir(follow_symlinks=False):
                self._set_aside(outer.path, "it is no shard directory")
                continue
            for inner in entries(outer.path):
                if not inner.is_dir(follow_symlinks=False):
                    self._set_aside(inner.path, "it is no shard directory")
                    continue
                for item in entries(inner.path):
                    yield item.path

    def _take(self, path: str) -> None:
        name = os.path.basename(path)
        shards = path.split("/")[-3:-1]
        if not _NAME.fullmatch(name) or [name[:2], name[2:4]] != shards:
            self._set_aside(path, "it is not named as an object of this directory")
            return
        try:
            mode = os.lstat(path).st_mode
            if not stat.S_ISREG(mode):
                self._set_aside(path, f"{kind_of(mode)} stands in its place")
                return
            descriptor = os.open(path, READ)
        except FileNotFoundError:
            return
        try:
            before = os.fstat(descriptor)
            if _sha256(descriptor) != name:
                self._set_aside(path, "its bytes do not give its name")
                return
            digest, size = self._objects.put_file(descriptor)
            if stamp(os.fstat(descriptor)) != stamp(before):
                raise EnvironmentFault("an old object is being written to", facts=[("path", path)])
        except _Unreadable as error:
            self._set_aside(path, f"it cannot be read: {error}")
            return
        finally:
            os.close(descriptor)
        self._batch.append((path, name, digest))
        self._batch_bytes += size

    def _commit(self) -> None:
        """From here on the batch is in the new place, whatever happens: the old one may go."""
        if not self._batch:
            return
        sync_file_system(self._place)
        with open(f"{self._place}/{NAMES}", "ab") as file:
            file.write(b"".join(f"{name} {digest}\n".encode() for _, name, digest in self._batch))
            file.flush()
            os.fsync(file.fileno())
        for path, _, _ in self._batch:
            with suppress(FileNotFoundError):
                os.unlink(path)
        self._done.moved += len(self._batch)
        self._done.bytes += self._batch_bytes
        self._batch, self._batch_bytes = [], 0
        self._progress(self._done)

    def _mend_names(self) -> None:
        """Drops a last line that was cut off: its objects are still in the old place and are noted again."""
        with suppress(FileNotFoundError), open(f"{self._place}/{NAMES}", "r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)

    def _set_aside(self, path: str, reason: str) -> None:
        kept = f"v2/quarantine/{os.path.basename(path)[:100]}.{self._scratch.name()}.v1"
        os.rename(path, f"{self._place}/{kept}")
        self._done.aside.append(Aside(os.path.relpath(path, self._place), reason, kept))

    def _remove_shards(self) -> None:
        for outer in entries(f"{self._place}/objects"):
            for inner in entries(outer.path):
                os.rmdir(inner.path)
            os.rmdir(outer.path)


class _Unreadable(Exception):
    """Bytes that the disk does not give back."""


def _sha256(descriptor: int) -> str:
    hasher = hashlib.sha256()
    at = 0
    while True:
        try:
            piece = os.pread(descriptor, PIECE, at)
        except OSError as error:
            raise _Unreadable(error.strerror) from error
        if not piece:
            return hasher.hexdigest()
        hasher.update(piece)
        at += len(piece)
