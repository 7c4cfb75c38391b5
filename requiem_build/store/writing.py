"""How an object comes to be: a finished blob in `tmp`, its metadata, then the blob's rename (ADR 3 and 10)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from ..core.digest import Digest, object_digest
from ..core.policy import INPUT_MTIME_S
from . import encoding as enc
from . import reading
from .copying import check_size, copy_hashed
from .durability import sync_path
from .encoding import Meta, plain_meta
from .files import BLOCK, DELETED_MAX, create_file, ensure_directory, move_aside, write_all
from .place import Place
from .reading import Opened, is_sane, pieces, stamp

INPUT_MTIME_NS = INPUT_MTIME_S * 1_000_000_000


T = TypeVar("T")


class Writer:
    """Writes loose objects. Safe for any number of threads and processes, without a lock."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._shards: set[str] = set()
        self._synced: set[Digest] = set()

    def holds(self, digest: Digest, size: int) -> bool:
        """Whether the object need not be written; where everything must be durable, it is so on return."""
        if not is_sane(self._place, digest, size):
            return False
        if self._place.durable and self._place.refusal is None and digest not in self._synced:
            path = self._place.path(digest)  # Another process may have written it and not synced it.
            sync_path(path)
            sync_path(path + ".meta")
            self._sync_shard(digest)
            self._synced.add(digest)
        return True

    def insist(self, write: Callable[[], T]) -> T:
        """Once more where the whole store was deleted while something was put into it, with its temporary files."""
        for _ in range(DELETED_MAX):
            try:
                return write()
            except FileNotFoundError:
                self._shards.clear()
        return write()

    def put_new(self, digest: Digest, content: bytes, encoding: str) -> None:
        """Writes an object that is not there. Raises OSError."""
        size = len(content)
        frame = enc.compress(content) if encoding == enc.ZSTD else None
        if frame is None:
            self._publish(digest, self._write(content), plain_meta(digest, size))
            return
        self.put_frame(digest, size, frame)

    def put_frame(self, digest: Digest, size: int, frame: bytes) -> None:
        """Writes an object that is not there as its zstd frame, which is smaller than it. Raises OSError."""
        meta = Meta(digest, enc.ZSTD, size, len(frame), object_digest(frame)).encoded
        for _ in range(len(reading.TRIES_S)):
            self._publish(digest, self._write(frame), meta)
            # A process that stored the plain bytes meanwhile may have left its metadata beside our blob.
            if is_sane(self._place, digest, size):
                return

    def copy_in(self, fd: int, size: int, expect_size: int | None, size_max: int | None) -> tuple[Digest, int]:
        """Copies a large file while hashing what is copied: always a fresh inode. Raises OSError."""
        scratch = self._place.scratch
        target, temporary = scratch.create()
        try:
            try:
                hasher = copy_hashed(fd, target, size, size_max)
                os.utime(target, ns=(INPUT_MTIME_NS, INPUT_MTIME_NS))  # As every input has it: it can be bound.
                if self._place.durable:
                    os.fsync(target)
            finally:
                os.close(target)
            digest = hasher.digest()
            check_size(hasher.size, expect_size, size_max)
            if self.holds(digest, hasher.size):
                scratch.discard(temporary)
                return digest, hasher.size
            self._publish(digest, temporary, plain_meta(digest, hasher.size))
            scratch.written += hasher.size
        except BaseException:
            scratch.discard(temporary)
            raise
        with suppress(OSError):  # These bytes were hashed while they were written.
            self._place.verified[digest] = stamp(os.lstat(self._place.path(digest)))
        return digest, hasher.size

    def make_plain(self, digest: Digest, opened: Opened) -> None:
        """Replaces a compressed blob by its plain bytes: the blob first, for plain bytes need no metadata (ADR 3)."""
        scratch, path = self._place.scratch, self._place.path(digest)
        target, temporary = scratch.create()
        try:
            for piece in pieces(opened):
                write_all(target, piece)
            described = self._write(plain_meta(digest, opened.meta.original_size))
            try:
                if self._place.durable:
                    os.fsync(target)
                os.rename(temporary, path)
                os.rename(described, path + ".meta")
            except BaseException:
                scratch.discard(described)
                raise
            if self._place.durable:
                self._sync_shard(digest)
        except BaseException:
            scratch.discard(temporary)
            raise
        finally:
            os.close(target)
        self._place.verified[digest] = stamp(os.lstat(path))

    def _write(self, content: bytes) -> str:
        return self._place.scratch.write(content, durable=self._place.durable)

    def _publish(self, digest: Digest, blob: str, meta: bytes) -> None:
        """The one way into `objects/`: metadata first, then the blob, whose rename makes the object exist.

        `blob` is a finished temporary file.
        """
        path = self._place.path(digest)
        try:
            self._ensure_shard(digest)
            try:
                self._describe(path + ".meta", meta)
                os.rename(blob, path)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                self._make_way(digest)  # The store was deleted meanwhile, or a directory bars the place.
                self._describe(path + ".meta", meta)
                os.rename(blob, path)
            if self._place.durable:
                self._sync_shard(digest)
                self._synced.add(digest)
        except BaseException:
            self._place.scratch.discard(blob)
            raise

    def _describe(self, path: str, meta: bytes) -> None:
        """Metadata that was not there is written in its place: without its blob it means nothing yet (ADR 10)."""
        try:
            descriptor = create_file(path)
        except FileExistsError:
            described = self._write(meta)
            try:
                os.rename(described, path)
            except BaseException:
                self._place.scratch.discard(described)
                raise
            return
        try:
            try:
                write_all(descriptor, meta)
                self._place.scratch.written += BLOCK
                if self._place.durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            if not os.path.lexists(path.removesuffix(".meta")):  # Another writer may have finished the object.
                self._place.scratch.discard(path)
            raise

    def _ensure_shard(self, digest: Digest) -> None:
        name = digest[:4]
        if name in self._shards:
            return
        base, objects = self._place.base, self._place.objects
        outer = f"{objects}/{digest[:2]}"
        if digest[:2] not in self._shards:
            try:
                ensure_directory(outer)
            except FileNotFoundError:  # The store was deleted under us.
                os.makedirs(os.path.dirname(base), exist_ok=True)
                for path in (base, objects, outer):
                    ensure_directory(path)
            self._shards.add(digest[:2])
            if self._place.durable:
                sync_path(objects)
        ensure_directory(f"{outer}/{digest[2:4]}")
        self._shards.add(name)
        if self._place.durable:
            sync_path(outer)

    def _sync_shard(self, digest: Digest) -> None:
        outer = f"{self._place.objects}/{digest[:2]}"
        for path in (f"{outer}/{digest[2:4]}", outer, self._place.objects):
            sync_path(path)

    def _make_way(self, digest: Digest) -> None:
        self._shards.clear()
        self._ensure_shard(digest)
        quarantine = self._place.quarantine
        for path in (self._place.path(digest), self._place.path(digest) + ".meta"):
            with suppress(FileNotFoundError):
                if stat.S_ISDIR(os.lstat(path).st_mode):
                    ensure_directory(quarantine)
                    move_aside(path, f"{quarantine}/{os.path.basename(path)}.{self._place.scratch.name()}")
