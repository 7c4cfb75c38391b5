"""A store that cannot be written, behind one of our own that can: what is put goes into ours, what is asked for is
looked up in ours, then in the other.

Ours holds whole what was put into it, so that it is a store like any other and may be collected or deleted at any
time. Nothing of the other is believed more than in a store that can be written: only what is damaged there cannot
be set aside, so it counts as absent for as long as this process lives.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..core.digest import Digest
from ..core.errors import CorruptObject, EnvironmentFault, IntegrityError, MissingObject, UnknownName, UsageError
from ..core.fields import replace
from .files import FILE_MODE
from .layout import Store
from .objects import WRITABLE_BY_OTHERS, Objects, Packing
from .outbox import Outbox
from .records import PATH_SETS_MAX, Absent, Kept, Records
from .runs import Run, Runs


def stand_in(root: str, below: Store, *, read_only: bool = False) -> Store:
    """`below` with a store at `root` in front of it. Whatever else stands at `root` is deleted, unless `read_only`.

    Then also nothing is made: without a store at `root` it is `below` alone. Raises as `Store`.
    """
    try:
        front = Store(root, read_only=read_only, durability=below.durability)
    except (IntegrityError, UsageError):
        if read_only:
            return below
        _remove(root)
        front = Store(root, durability=below.durability)
    return StandIn(front, below)


def _remove(path: str) -> None:
    with suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


class StandIn(Store):
    """`front` is written and asked first, `below` only read. Its `root` is that of `front`."""

    def __init__(self, front: Store, below: Store) -> None:
        vars(self).update(vars(front))
        self.front = front
        self.below = self._below = below
        self.objects = _Objects(front.objects, below.objects)
        self.records = _Records(front.records, below.records)
        self.runs = _Runs(front.runs, below.runs)
        self.outbox = Outbox(front.roots[0], self.records, front.durability, refusal=front.refusal)

    @property
    def roots(self) -> tuple[str, ...]:
        return (*self.front.roots, *self._below.roots)

    @property
    def written(self) -> Store:
        return self.front

    def signed_records(self, key_id: str) -> Records:
        return _Records(self.front.signed_records(key_id), self._below.signed_records(key_id))

    def key_ids(self) -> list[str]:
        return sorted({*self.front.key_ids(), *self._below.key_ids()})


class _Objects(Objects):
    """Looking and reading goes through; writing, and what `cas` commands ask of all objects, is of the front alone."""

    def __init__(self, front: Objects, below: Objects) -> None:
        vars(self).update(vars(front))
        self._front = front
        self._below = below
        self._bad: set[Digest] = set()

    def packing(self) -> Packing:
        return Packing(self._front)  # What the other has is stored again: only so is ours whole.

    def size(self, digest: Digest) -> int | None:
        found = super().size(digest)
        return self._size_below(digest) if found is None else found

    def _size_below(self, digest: Digest) -> int | None:
        return None if digest in self._bad else self._below.size(digest)

    def _is_below(self, digest: Digest) -> bool:
        return super().size(digest) is None and self._size_below(digest) is not None

    @contextmanager
    def _judging(self, digest: Digest) -> Iterator[None]:
        """What turns out to be no good below counts as absent from then on, so that it is made again and put."""
        try:
            yield
        except (MissingObject, CorruptObject):
            if not self._below.check(digest):
                self._bad.add(digest)
            raise

    def _get(self, digest: Digest, size_max: int | None, *, is_use: bool) -> bytes:
        if not self._is_below(digest):
            return super()._get(digest, size_max, is_use=is_use)
        with self._judging(digest):
            return self._below.get(digest, size_max=size_max)

    def copy_to(self, digest: Digest, fd: int) -> None:
        if not self._is_below(digest):
            super().copy_to(digest, fd)
            return
        with self._judging(digest):
            self._below.copy_to(digest, fd)

    def check(self, digest: Digest, size: int | None = None) -> bool:
        if super().check(digest, size):
            return True
        return self._size_below(digest) is not None and self._below.check(digest, size)

    def file(self, digest: Digest) -> str:
        if self._is_below(digest):
            with self._judging(digest):
                found = self._file_below(digest)
                if found is not None:
                    return found
                self._copy_up(digest)
        return super().file(digest)

    def _file_below(self, digest: Digest) -> str | None:
        """None where the blob is compressed or packed, or where a step could not read it, or others could write it."""
        try:
            path = self._below.file(digest)
        except EnvironmentFault as error:
            if error is not self._below.place.refusal:
                raise
            return None
        with suppress(OSError):
            if os.lstat(path).st_mode & (FILE_MODE | WRITABLE_BY_OTHERS) == FILE_MODE:
                return path
        return None

    def _copy_up(self, digest: Digest) -> None:
        with self.place.writing(digest, self._below.size(digest) or 0):
            descriptor, temporary = self.place.scratch.create()
            try:
                self._below.copy_to(digest, descriptor)
                self.put_file(descriptor)
            finally:
                os.close(descriptor)
                self.place.scratch.discard(temporary)


class _Records(Records):
    """The front's record of a request stands before the other's; where only the other has one, that is the first."""

    def __init__(self, front: Records, below: Records) -> None:
        vars(self).update(vars(front))
        self._below = below

    def look(self, request_digest: Digest) -> Kept | Absent:
        own = super().look(request_digest)
        if isinstance(own, Kept):
            return own
        there = self._below.look(request_digest)
        return there if isinstance(there, Kept) or not own.damaged else own

    def find_result(self, result_digest: Digest) -> Kept | None:
        return super().find_result(result_digest) or self._below.find_result(result_digest)

    def divergences(self, request_digest: Digest | None = None) -> Iterator[Kept]:
        yield from super().divergences(request_digest)
        yield from self._below.divergences(request_digest)

    def path_sets(self, request_digest: Digest) -> list[tuple[str, ...]]:
        both = (*super().path_sets(request_digest), *self._below.path_sets(request_digest))
        return list(dict.fromkeys(both))[:PATH_SETS_MAX]

    def _file(self, mine: Kept, temporary: str) -> Kept:
        request_digest = mine.record.request_digest
        first = self.find(request_digest)
        if first is None or first.result.digest == mine.result.digest or os.path.lexists(self._path(request_digest)):
            return super()._file(mine, temporary)
        self._keep_divergence(temporary, mine, request_digest)
        return replace(first, diverged=True)


class _Runs(Runs):
    """What a workspace did lately is in the front, what it did before in the other."""

    def __init__(self, front: Runs, below: Runs) -> None:
        vars(self).update(vars(front))
        self._below = below

    def get(self, run_id: str) -> Run:
        try:
            return super().get(run_id)
        except UnknownName:
            return self._below.get(run_id)

    def latest(self, workspace: str) -> Run | None:
        found = [run for run in (super().latest(workspace), self._below.latest(workspace)) if run is not None]
        return max(found, key=lambda run: run.run, default=None)

    def __iter__(self) -> Iterator[Run]:
        yield from sorted((*super().__iter__(), *self._below), key=lambda run: run.run)

    def ids(self) -> list[str]:
        return sorted({*super().ids(), *self._below.ids()})
