"""This request gave this result: found by the request's digest, each with request and result kept whole.

A record that is malformed in any way is a miss with a reason, never an error: it only costs a run. The
first published result of a request stays; a different one is kept beside it as a divergence. Whether the
objects that a result names are there is the caller's question (`Store.missing`).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

from ..core import canonical
from ..core.digest import Digest, Domain, digest, is_digest, parse_digest
from ..core.errors import EnvironmentFault, IntegrityError, RequestError
from ..core.fields import dataclass, replace
from ..core.request import Request
from ..core.result import Record, Result, parse_record, parse_result
from . import uses
from .durability import sync_path
from .files import (
    DELETED_MAX,
    NotAFile,
    Scratch,
    ensure_directory,
    entries,
    fault,
    link_new,
    move_aside,
    read_judged,
    read_small,
)

PATH_SETS_MAX = 16
PATHS_SCHEMA = "requiem.paths/1"
_REQUEST, _RESULT = b',"request":{', b',"result":{'
_CUTS_MAX = 64
_SHARD = re.compile(r"[0-9a-f]{2}")
T = TypeVar("T")
NoteUse = Callable[[str, bytes, os.stat_result], None]


@dataclass(frozen=True, slots=True)
class Kept:
    """`request` is its canonical bytes. `diverged`: what was just published differs from this, the first one."""

    record: Record
    request: bytes
    result: Result
    diverged: bool = False


@dataclass(frozen=True, slots=True)
class Absent:
    """Why there is no record to use. `damaged`: a file stands there that is not one."""

    reason: str
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """A record that is written and not yet filed."""

    kept: Kept
    temporary: str


class Records:
    """The records of one store. Safe for any number of threads and processes, without a lock."""

    def __init__(
        self,
        base: str,
        quarantine: str,
        scratch: Scratch,
        *,
        refusal: EnvironmentFault | None = None,
        durable: bool = False,
    ) -> None:
        """`base` is the absolute `records` directory. `refusal`: why nothing may be written, or None.

        `durable`: what is published is on the disk when `publish` returns.
        """
        self._base = base
        self._quarantine = quarantine
        self._scratch = scratch
        self._refusal = refusal
        self._durable = durable
        self._made: set[str] = set()

    @property
    def base(self) -> str:
        """The absolute directory in which they lie."""
        return self._base

    # -- finding ------------------------------------------------------------------------------------------

    def find(self, request_digest: Digest) -> Kept | None:
        """The record of a request, checked; None if there is none that can be used."""
        found = self.look(request_digest)
        return found if isinstance(found, Kept) else None

    def look(self, request_digest: Digest) -> Kept | Absent:
        """As `find`, with the reason of a miss. Raises only EnvironmentFault, when this host cannot read at all."""
        return _load(self._path(request_digest), request_digest, self._base, self._note_use)

    def _note_use(self, path: str, content: bytes, found: os.stat_result) -> None:
        if self._refusal is None and uses.is_due(found):
            uses.note(path, content, self._scratch)

    def note_used(self, request_digest: Digest) -> None:
        """Keeps a record from collection for a while, though it was not read: its result is in use."""
        path = self._path(request_digest)
        with suppress(OSError):
            if self._refusal is None and uses.is_due(os.lstat(path)):
                os.utime(path, follow_symlinks=False)

    def find_result(self, result_digest: Digest) -> Kept | None:
        """By a scan of every record and divergence."""
        wanted = parse_digest(result_digest).encode()
        for path, request_digest in (*self._files(), *self._divergence_files()):
            with suppress(OSError, NotAFile, ValueError, RequestError):
                content = read_small(path, canonical.BYTES_MAX)
                if content is not None and wanted in content:
                    found = _parse(content, request_digest)
                    if found.result.digest == result_digest:
                        return found
        return None

    def __iter__(self) -> Iterator[Kept]:
        """Every usable record, by request digest."""
        for path, request_digest in self._files():
            found = _load(path, request_digest, self._base)
            if isinstance(found, Kept):
                yield found

    def damaged(self) -> Iterator[tuple[str, str]]:
        """Every file among the records that is not one, as (path below the store's root, reason)."""
        top = os.path.dirname(self._base)
        for path, request_digest in self._path_set_files():
            content: bytes | None = b""
            with suppress(NotAFile, ValueError, RequestError):
                content = read_small(path, canonical.BYTES_MAX)
                if content is None or _parse_path_sets(content, request_digest):
                    continue
            yield os.path.relpath(path, top), "it is no list of path sets"
        for path, request_digest in (*self._files(), *self._divergence_files()):
            found = _load(path, request_digest, self._base)
            if isinstance(found, Absent) and found.damaged:
                yield os.path.relpath(path, top), found.reason

    def divergences(self, request_digest: Digest | None = None) -> Iterator[Kept]:
        """Results that differ from the first published one, of one request or of all."""
        for path, of_request in self._divergence_files():
            if request_digest in (None, of_request):
                found = _load(path, of_request, self._base)
                if isinstance(found, Kept):
                    yield found

    def _files(self) -> Iterator[tuple[str, Digest]]:
        for shard in entries(self._base):
            if _SHARD.fullmatch(shard.name) and shard.is_dir(follow_symlinks=False):
                for item in entries(shard.path):
                    if is_digest(item.name) and item.name[:2] == shard.name:
                        yield item.path, Digest(item.name)

    def _path_set_files(self) -> Iterator[tuple[str, Digest]]:
        for shard in entries(f"{self._base}/paths"):
            if _SHARD.fullmatch(shard.name) and shard.is_dir(follow_symlinks=False):
                for item in entries(shard.path):
                    if is_digest(item.name) and item.name[:2] == shard.name:
                        yield item.path, Digest(item.name)

    def _divergence_files(self) -> Iterator[tuple[str, Digest]]:
        for folder in entries(f"{self._base}/divergences"):
            if is_digest(folder.name) and folder.is_dir(follow_symlinks=False):
                for item in entries(folder.path):
                    if is_digest(item.name):
                        yield item.path, Digest(folder.name)

    # -- publishing ---------------------------------------------------------------------------------------

    def publish(self, request: Request, result: Result, record: Record) -> Kept:
        """Files a success under its request and returns what is filed there now: `diverged` if that is another result.

        Raises EnvironmentFault; then nothing was filed.
        """
        written = self.write(request, result, record)
        try:
            return self.file(written)
        finally:
            self.discard(written)

    def write(self, request: Request, result: Result, record: Record) -> Written:
        """A record ready to be filed, which nobody can find yet; discard it afterwards. Raises EnvironmentFault."""
        assert result.ok, "only success is remembered"
        assert request.digest == result.request_digest == record.request_digest
        assert record.result_digest == result.digest
        mine = Kept(record, request.encoded, result)
        if self._refusal is not None:
            raise self._refusal
        try:
            return self._insist(lambda: Written(mine, self._scratch.write(_encode(mine), durable=self._durable)))
        except OSError as error:
            raise self._cannot_publish(error, request.digest) from error

    def discard(self, written: Written) -> None:
        self._scratch.discard(written.temporary)

    def file(self, written: Written) -> Kept:
        """As `publish`, of what was written; once more where the whole store was deleted meanwhile."""
        mine, temporary = written.kept, written.temporary
        try:
            for _ in range(DELETED_MAX):
                try:
                    return self._file(mine, temporary)
                except FileNotFoundError:
                    self._made.clear()
                    temporary = self._scratch.write(_encode(mine), durable=self._durable)
            return self._file(mine, temporary)
        except OSError as error:
            raise self._cannot_publish(error, mine.record.request_digest) from error
        finally:
            if temporary != written.temporary:
                self._scratch.discard(temporary)

    def _insist(self, write: Callable[[], T]) -> T:
        """Once more where the whole store was deleted while something was written, with its temporary files."""
        for _ in range(DELETED_MAX):
            try:
                return write()
            except FileNotFoundError:
                self._made.clear()
        return write()

    def _file(self, mine: Kept, temporary: str) -> Kept:
        request_digest = mine.record.request_digest
        path = self._path(request_digest)
        self._ensure(os.path.dirname(path))
        for _ in range(8):
            if self._link(temporary, path):
                return mine
            first = self.look(request_digest)
            if isinstance(first, Kept):
                if first.result.digest == mine.result.digest:
                    return first
                self._keep_divergence(temporary, mine, request_digest)
                return replace(first, diverged=True)
            self._set_aside(path, request_digest)  # Also what cannot be read: nobody can use it.
        raise IntegrityError(f"the record of request {request_digest} cannot be replaced", facts=[("path", path)])

    def _cannot_publish(self, error: OSError, request_digest: Digest) -> EnvironmentFault:
        return fault(error, f"publishing the record of request {request_digest}", self._base)

    def _link(self, temporary: str, path: str) -> bool:
        try:
            linked = link_new(temporary, path)
        except FileNotFoundError:  # A directory of the store was deleted meanwhile.
            self._made.clear()
            self._ensure(os.path.dirname(path))
            linked = link_new(temporary, path)
        if self._durable:
            sync_path(os.path.dirname(path))
        return linked

    def _keep_divergence(self, temporary: str, mine: Kept, request_digest: Digest) -> None:
        folder = f"{self._base}/divergences/{request_digest}"
        self._ensure(f"{self._base}/divergences")
        self._ensure(folder)
        self._link(temporary, f"{folder}/{mine.result.digest}")

    def set_aside(self, request_digest: Digest) -> None:
        """Moves a request's record into quarantine: somebody has shown that it is not what it says."""
        if self._refusal is not None:
            raise self._refusal
        self._set_aside(self._path(request_digest), request_digest)

    def _set_aside(self, path: str, request_digest: Digest) -> None:
        ensure_directory(self._quarantine)
        with suppress(FileNotFoundError):
            move_aside(path, f"{self._quarantine}/{request_digest}.{self._scratch.name()}.record")

    def _ensure(self, directory: str) -> None:
        if directory in self._made:
            return
        try:
            ensure_directory(directory)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self._base), exist_ok=True)
            for path in (self._base, f"{self._base}/paths", f"{self._base}/divergences", directory):
                ensure_directory(path)
        self._made.add(directory)
        if self._durable:
            sync_path(os.path.dirname(directory))

    # -- path sets ----------------------------------------------------------------------------------------

    def path_sets(self, request_digest: Digest) -> list[tuple[str, ...]]:
        """What steps with `discover` read and probed under this request, newest first, at most 16."""
        path = self._paths_path(request_digest)
        try:
            found = read_judged(path, canonical.BYTES_MAX)
            if found is None:
                return []
            sets = _parse_path_sets(found[0], request_digest)
            self._note_use(path, *found)
            return sets
        except (OSError, NotAFile, ValueError, RequestError):
            return []

    def add_path_set(self, request_digest: Digest, paths: Sequence[str]) -> None:
        """Puts a set in front. Of two processes that add at once, one may lose its own: that costs a run at most."""
        known = self.path_sets(request_digest)
        wanted = tuple(paths)
        if known[:1] == [wanted]:
            return
        if self._refusal is not None:
            raise self._refusal
        sets = [wanted, *(other for other in known if other != wanted)][:PATH_SETS_MAX]
        content = canonical.encode_plain(
            {"request_digest": request_digest, "schema": PATHS_SCHEMA, "sets": [list(one) for one in sets]}
        )
        path = self._paths_path(request_digest)

        def write() -> None:
            self._ensure(os.path.dirname(path))
            temporary = self._scratch.write(content, durable=self._durable)
            try:
                try:
                    os.rename(temporary, path)
                except IsADirectoryError:
                    self._set_aside(path, request_digest)
                    os.rename(temporary, path)
            except BaseException:
                self._scratch.discard(temporary)
                raise

        try:
            self._insist(write)
        except OSError as error:
            raise fault(error, f"remembering what request {request_digest} read", self._base) from error

    def _path(self, request_digest: Digest) -> str:
        name = parse_digest(request_digest)
        return f"{self._base}/{name[:2]}/{name}"

    def _paths_path(self, request_digest: Digest) -> str:
        name = parse_digest(request_digest)
        return f"{self._base}/paths/{name[:2]}/{name}"


def _encode(kept: Kept) -> bytes:
    """The canonical JSON of {record, request, result}, made of the three canonical parts."""
    return b'{"record":%b,"request":%b,"result":%b}' % (kept.record.encoded, kept.request, kept.result.encoded)


def _load(path: str, request_digest: Digest, place: str, note_use: NoteUse = lambda *_: None) -> Kept | Absent:
    try:
        found = read_judged(path, canonical.BYTES_MAX)
        if found is None:
            return Absent("no record")
        kept = _parse(found[0], request_digest)
        note_use(path, *found)
        return kept
    except (NotAFile, ValueError) as error:
        return Absent(f"its record is not a file of a sensible size ({error})", damaged=True)
    except RequestError as error:
        return Absent(f"its record is damaged: {error.what}", damaged=True)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EIO):
            return Absent(f"its record cannot be read: {error.strerror}")
        raise fault(error, f"reading the record of request {request_digest}", place) from error


def _parse(content: bytes, request_digest: Digest) -> Kept:
    """Every part must name the others: none can be damaged, swapped or of another request.

    Raises RequestError with the reason.
    """
    parts = split_record(content, request_digest)
    if parts is None:
        value = canonical.parse(content)
        if not isinstance(value, dict) or value.keys() != {"record", "request", "result"}:
            raise RequestError("it does not hold exactly record, request and result")
        raise RequestError("it holds another request")
    record = parse_record(canonical.parse(parts[0]))
    result = parse_result(parts[2])
    if record.encoded != parts[0] or result.encoded != parts[2]:
        raise RequestError("it is not canonical")
    if record.request_digest != request_digest or result.request_digest != request_digest:
        raise RequestError("it is of another request")
    if record.result_digest != result.digest:
        raise RequestError("it names another result")
    if not result.ok:
        raise RequestError("it is of a failure")
    return Kept(record, parts[1], result)


def split_record(content: bytes, request_digest: Digest) -> tuple[bytes, bytes, bytes] | None:
    """Record, request and result as bytes, found without parsing: the request's digest proves the cuts.

    No string can hold these marks (a quote within is escaped), but an input may be named `result`.
    """
    if not content.startswith(b'{"record":') or not content.endswith(b"}}"):
        return None
    tries = _CUTS_MAX
    start = content.find(_REQUEST)
    while start >= 0 and tries > 0:
        end = content.find(_RESULT, start)
        while end >= 0 and tries > 0:
            request = content[start + len(_REQUEST) - 1 : end]
            if digest(Domain.REQUEST, request) == request_digest:
                return content[10:start], request, content[end + len(_RESULT) - 1 : -1]
            tries -= 1
            end = content.find(_RESULT, end + 1)
        start = content.find(_REQUEST, start + 1)
    return None


def _parse_path_sets(content: bytes, request_digest: Digest) -> list[tuple[str, ...]]:
    value = canonical.parse(content)
    if not isinstance(value, dict) or value.keys() != {"request_digest", "schema", "sets"}:
        return []
    if value["schema"] != PATHS_SCHEMA or value["request_digest"] != request_digest:
        return []
    sets = value["sets"]
    if not isinstance(sets, list) or not all(
        isinstance(one, list) and all(isinstance(path, str) for path in one) for one in sets
    ):
        return []
    return [tuple(one) for one in sets[:PATH_SETS_MAX]]
