"""Does what a journal says of one step hold? Request, result, record, trace and every object, from the store alone.

It runs nothing, writes nothing and knows nothing of the workspace. All that is wrong is said, not only the first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..core import canonical
from ..core.digest import EMPTY, Digest, is_digest, object_digest
from ..core.entries import Entry, File, Link, Tree, make_tree, parse_tree
from ..core.errors import CorruptObject, MissingObject, RequestError
from ..core.fields import dataclass, field
from ..core.patterns import compile_pattern, is_pattern, unescape
from ..core.request import ABSENT, Request, by_bytes, parse_request
from ..core.result import Record, Result, make_trace, parse_record, parse_result
from ..store.keys import Verifier
from ..store.layout import Store
from ..store.records import PATH_SETS_MAX, Absent, Kept, Records

REMEMBERED_MAX = 1 << 20
"""Objects whose check is remembered; beyond it they are forgotten and checked again: time, not memory."""

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """`where` is a path below the store's root, or a line of the journal."""

    what: str
    where: str
    step: str = ""

    def as_json(self) -> dict[str, str]:
        return {"step": self.step, "what": self.what, "where": self.where}


@dataclass(frozen=True, slots=True)
class Proven:
    """What a step's line in the journal stands for. `record` is the one that the store keeps, if it keeps one.

    `copies` are all that it keeps of this result: in the scope of no key (""), or of one.
    """

    request: Request
    result: Result
    record: Record | None
    copies: tuple[tuple[str, Record], ...] = ()


@dataclass(slots=True)
class Proofs:
    """Checks steps of one store; `objects` counts the distinct objects that were read."""

    store: Store
    verifier: Verifier | None = None
    objects: int = 0
    _good: set[tuple[Digest, int | None]] = field(default_factory=set)
    _null: int = field(default_factory=lambda: os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))

    def close(self) -> None:
        os.close(self._null)

    def find(self, event: Event, where: str) -> Proven | Problem:
        """Request and result of a finished step: from its record, or from the journal's line itself."""
        name = event["name"]
        try:
            if event["request"] is not None and event["result"] is not None:
                request = parse_request(canonical.encode_plain(event["request"]))
                result = parse_result(canonical.encode_plain(event["result"]))
                return Proven(request, result, None)
            return self._kept(event)
        except (RequestError, RecursionError, TypeError) as error:
            return Problem(f"its request or result is not one: {_reason(error)}", where, name)

    def _kept(self, event: Event) -> Proven | Problem:
        digest = event["request_digest"]
        if not is_digest(digest):
            raise RequestError("its request's digest is not a digest")
        place = f"records/{digest[:2]}/{digest}"
        scopes = ("", *self.store.key_ids())
        looked = [self._records(scope).look(Digest(digest)) for scope in scopes]
        copies = [
            (key_id, kept)
            for key_id, kept in zip(scopes, looked, strict=True)
            if isinstance(kept, Kept) and kept.result.digest == event["result_digest"]
        ]
        fitting = [kept for _, kept in copies]
        damaged = [absent for absent in looked if isinstance(absent, Absent) and absent.damaged]
        if damaged or not fitting:
            absent = next(iter(damaged), looked[0])
            if isinstance(absent, Kept):
                return Problem("the store keeps another result of its request", place, event["name"])
            return Problem(f"there is no record of its request: {absent.reason}", place, event["name"])
        named = [kept for kept in fitting if kept.record.digest == event["record_digest"]]
        kept = (named or fitting)[0]
        found = tuple((key_id, each.record) for key_id, each in copies)
        return Proven(parse_request(kept.request), kept.result, kept.record, found)

    def _records(self, scope: str) -> Records:
        return self.store.signed_records(scope) if scope else self.store.records

    def check(self, event: Event, proven: Proven, where: str) -> Iterator[Problem]:
        """All that is wrong with a step whose request and result were found."""
        name, request, result, record = event["name"], proven.request, proven.result, proven.record
        place = where if record is None else f"records/{request.digest[:2]}/{request.digest}"
        for what in (
            *_contradictions(event, request, result),
            *_undeclared(request, result, made=event["state"] != "failed"),
        ):
            yield Problem(what, where, name)
        for what in _wrong_record(event, request, result, record):
            yield Problem(what, place, name)
        for key_id, copy in proven.copies:
            scope = f"records/signed/{key_id}" if key_id else "records"
            for what in self._wrong_signatures(key_id, copy):
                yield Problem(what, f"{scope}/{request.digest[:2]}/{request.digest}", name)
            if request.discover:
                yield from self._check_path_set(name, request, key_id, copy)
        for what, found in self._objects_of(request, result):
            for problem in self._check_entry(found):
                yield Problem(f"{what}: {problem}", _place(found), name)

    def _wrong_signatures(self, scope: str, record: Record) -> Iterator[str]:
        """Of keys that are known here: what others signed, nobody here can judge."""
        if self.verifier is None or not (record.signatures or scope):
            return
        from ..store.seals import describe

        found = describe(record, self.verifier)
        for seen in found:
            if seen.state.startswith("invalid"):
                yield f"a signature of its record is {seen.state}"
            elif seen.hint not in ("", seen.key_id):
                yield f"a signature of its record says that it is of the key {seen.hint}, and is of {seen.key_id}"
        if scope and scope not in (seen.key_id for seen in found):
            yield f"its record lies where those of the key {scope} lie, and is not signed by it"

    def _check_path_set(self, name: str, request: Request, scope: str, record: Record) -> Iterator[Problem]:
        asked = Request(**{**{f: getattr(request, f) for f in Request.__match_args__}, "discovered": None})
        sets = self._records(scope).path_sets(asked.digest)
        if len(sets) < PATH_SETS_MAX and (record.discovered or ()) not in sets:
            place = f"records{f'/signed/{scope}' if scope else ''}/paths/{asked.digest[:2]}/{asked.digest}"
            yield Problem("what it read is not among the known path sets", place, name)

    # Objects

    def _objects_of(self, request: Request, result: Result) -> Iterator[tuple[str, Entry | Digest]]:
        """What each is to the step, and its entry or its bare digest."""
        for path, entry in request.inputs.items():
            if "symlink" not in entry:
                tree = entry.get("tree")
                digest = Digest(str(tree or entry["digest"]))
                yield f'input "{path}"', Tree(digest, -1, -1) if tree else digest
        if request.stdin is not None:
            yield "stdin", request.stdin
        if request.system_document is not None:
            yield "its system's packages", request.system_document
        for path, found in (request.discovered or {}).items():
            if found != ABSENT:
                yield f'read "{path}"', Digest(found)
        for stream, captured in (("stdout", result.stdout), ("stderr", result.stderr)):
            yield stream, File(captured.digest, captured.size)
        for path, output in result.outputs.items():
            if not isinstance(output, Link):
                yield f'output "{path}"', output

    def _check_entry(self, top: Entry | Digest) -> Iterator[str]:
        pending: list[tuple[str, Entry | Digest]] = [("", top)]
        for path, entry in pending:  # Grows while it is walked: no recursion over what others wrote.
            if isinstance(entry, Link):
                continue
            wrong = self.check_object(entry if isinstance(entry, str) else entry.digest, _size(entry))
            if wrong:
                yield f"{path}: {wrong}" if path else wrong
            elif isinstance(entry, Tree):
                children, wrong = self._children(entry)
                if wrong:
                    yield f"{path}: {wrong}" if path else wrong
                pending += [(f"{path}/{child}".lstrip("/"), below) for child, below in children]

    def _children(self, tree: Tree) -> tuple[Sequence[tuple[str, Entry]], str]:
        try:
            children = parse_tree(self.store.objects.get(tree.digest, size_max=canonical.BYTES_MAX))
        except (MissingObject, CorruptObject, RequestError) as error:
            return (), error.what
        made, _ = make_tree(dict(children))
        counted = tree.files < 0 or (made.files, made.size) == (tree.files, tree.size)
        return children, "" if counted else f"directory {tree.digest} holds another number of files or bytes"

    def check_object(self, digest: Digest, size: int | None = None) -> str:
        """Why an object is not whole, or not of that size; empty if it is. Every byte of it is read, once."""
        if (digest, size) in self._good:
            return ""
        if not self.store.objects.check(digest, size):
            try:
                self.store.objects.copy_to(digest, self._null)
            except MissingObject as error:
                return "" if digest == EMPTY and not size else error.what  # Nothing needs no bytes to be known.
            except CorruptObject as error:
                return error.what
            return f"object {digest} is not of the size {size}"
        self.objects += 1
        if len(self._good) >= REMEMBERED_MAX:
            self._good.clear()
        self._good.add((digest, size))
        return ""


def _size(entry: Entry | Digest) -> int | None:
    return entry.size if isinstance(entry, File) else None


def _place(entry: Entry | Digest) -> str:
    assert not isinstance(entry, Link)
    digest = entry if isinstance(entry, str) else entry.digest
    return f"v2/objects/{digest[:2]}/{digest[2:4]}/{digest}"


def _reason(error: BaseException) -> str:
    return error.what if isinstance(error, RequestError) else type(error).__name__


def _contradictions(event: Event, request: Request, result: Result) -> Iterator[str]:
    """Where the journal's line, the request and the result do not say the same."""
    said: list[tuple[str, object, object]] = [
        ("request digest", event["request_digest"], request.digest),
        ("result digest", event["result_digest"], result.digest),
        ("result's request", result.request_digest, request.digest),
        ("exit code", event["exit_code"], result.exit_code),
        ("termination", event["termination"], result.termination),
        ("outputs", by_bytes(set(event["outputs"])), list(request.outputs)),
    ]
    for stream in ("stdout", "stderr"):
        if event[f"{stream}_digest"] is not None:
            said.append((stream, event[f"{stream}_digest"], getattr(result, stream).digest))
    for what, here, there in said:
        if here != there:
            yield f"{what} mismatch: {here} is recorded, {there} is what it is"
    trace = make_trace(request, result.exit_code, result.termination, result.outputs)
    if object_digest(trace) != result.trace_digest:
        yield f"trace mismatch: the result names {result.trace_digest}, its events give {object_digest(trace)}"


def _undeclared(request: Request, result: Result, *, made: bool) -> Iterator[str]:
    """Outputs that were not declared, and declared ones that are not there although they were `made`."""
    literal = {unescape(path) for path in request.outputs if not is_pattern(path)}
    patterns = {path: compile_pattern(path) for path in request.outputs if is_pattern(path)}
    for path in result.outputs:
        if path not in literal and not any(matches(path) for matches in patterns.values()):
            yield f'output "{path}" was not declared'
    if made:
        for path in by_bytes(literal - result.outputs.keys()):
            yield f'declared output "{path}" is not in the result'


def _wrong_record(event: Event, request: Request, result: Result, record: Record | None) -> Iterator[str]:
    if record is not None:
        if event["record_digest"] is None:
            yield "its journal does not name the record"
        elif record.digest != event["record_digest"] and not _is_anothers(record, event["record"]):
            yield f"record mismatch: {event['record_digest']} is recorded, {record.digest} is what it is"
    elif event["record_digest"] is not None:
        yield "its journal names a record and holds the result itself"
    if event["record"] is None:
        return
    try:
        own = parse_record(event["record"])
    except RequestError as error:
        yield f"its own record is not one: {error.what}"
        return
    if (own.request_digest, own.result_digest) != (request.digest, result.digest):
        yield "its own record is of another request or result"


def _is_anothers(kept: Record, own: object) -> bool:
    """Whether another build filed its record while this one ran: then more than one of its measures is another."""
    if not isinstance(own, dict):
        return False
    measures = ("when", "duration_ms", "rusage", "host")
    return sum(kept.as_json()[name] != own.get(name) for name in measures) > 1
