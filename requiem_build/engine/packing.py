"""A run as one file and back: what it needs is gathered from a store, and filed into another.

journal -> records of every scope -> objects, trees walked -> bundle -> verified -> another store
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from ..core import canonical
from ..core.digest import EMPTY, Digest, is_digest, object_digest
from ..core.entries import Entry, File, Link, Tree, parse_tree
from ..core.errors import CorruptObject, IntegrityError, MissingObject, RequestError, UsageError
from ..core.fields import dataclass, field
from ..core.request import ABSENT, Request, is_read, parse_request
from ..core.result import Result, parse_result
from ..store.bundle import SMALL_MAX, Contents, Member, Writer
from ..store.keys import Key
from ..store.layout import Store
from ..store.records import Kept
from ..store.runs import Run

MISSING_SHOWN = 20
_PIECE = 1 << 20


@dataclass(slots=True)
class Gathered:
    """What goes into a bundle. `sizes` maps each object to the number of its bytes."""

    run: Run
    journal: Digest
    manifest: dict[str, str | None] = field(default_factory=dict)
    records: dict[Digest, bytes] = field(default_factory=dict)
    sizes: dict[Digest, int] = field(default_factory=dict)
    missing: dict[Digest, str] = field(default_factory=dict)
    unrecorded: list[str] = field(default_factory=list)
    """Steps that are only in the journal: nothing was remembered of them."""


class Gatherer:
    """Walks one run. Every object is read and verified on the way."""

    def __init__(self, store: Store, read: Callable[[str], bytes | None] = lambda _: None) -> None:
        """`read` gives a file of the workspace, for manifests that the store does not hold."""
        self._store = store
        self._read = read
        self._pending: list[tuple[str, Entry]] = []
        self._walked: set[Digest] = set()

    def gather(self, run_id: str) -> Gathered:
        """Raises UnknownName, or IntegrityError that lists what the store has lost."""
        run = self._store.runs.get(run_id)
        found = Gathered(run, run.journal)
        self._want("the journal", run.journal)
        self._take(found)
        if not found.missing:
            for event in events_of(self._store, run.journal):
                self._event(event, found)
            self._take(found)
        if found.missing:
            shown = [("missing", f"{what}: {digest}") for digest, what in list(found.missing.items())[:MISSING_SHOWN]]
            raise IntegrityError(
                f"the store lacks {len(found.missing)} of the objects of run {run_id}",
                facts=shown,
                hint="requiem build makes what is lost again, in a run of its own",
            )
        return found

    def _event(self, event: Mapping[str, Any], found: Gathered) -> None:
        kind = event.get("event")
        if kind == "plan_made":
            for path, digest in event["manifest"].items():
                found.manifest[path] = digest
                self._manifest_file(path, digest)
        elif kind == "step_finished" and event["result_digest"] is not None:
            self._step(event, found)

    def _manifest_file(self, path: str, digest: str | None) -> None:
        """The project's manifest as it was, from the store or else from the workspace."""
        if digest is None:
            return
        if not self._store.objects.has(Digest(digest)):
            content = self._read(path)
            if content is not None and object_digest(content) == digest:
                self._store.objects.put(content)
        self._want(path, Digest(digest))

    def _step(self, event: Mapping[str, Any], found: Gathered) -> None:
        name = str(event["name"])
        kept = list(self._records(Digest(event["request_digest"]), event["result_digest"]))
        for each in kept:
            content = encode_kept(each)
            found.records[object_digest(content)] = content
            self._everything_of(name, parse_request(each.request), each.result)
        if kept:
            return
        try:  # A journal may hold of itself what the store does not keep: failures, and what runs each time.
            request = parse_request(canonical.encode_plain(event["request"]))
            result = parse_result(canonical.encode_plain(event["result"]))
        except (KeyError, RequestError, TypeError):
            found.unrecorded.append(name)
            streams = [event.get(f"{stream}_digest") for stream in ("stdout", "stderr")]
            for digest in streams:
                if is_digest(digest):
                    self._want(f"output of {name}", Digest(str(digest)))
            return
        self._everything_of(name, request, result)

    def _records(self, request_digest: Digest, result_digest: str) -> Iterator[Kept]:
        """Whoever claims it: everybody's record, and that of each key that signed one."""
        for scope in self._store.scopes():
            kept = scope.find(request_digest)
            candidates = [] if kept is None else [kept]
            if kept is None or kept.result.digest != result_digest:
                candidates = list(scope.divergences(request_digest))
            yield from (each for each in candidates if each.result.digest == result_digest)

    def _everything_of(self, name: str, request: Request, result: Result) -> None:
        for path, entry in request.inputs.items():
            what = f'input "{path}" of {name}'
            if "tree" in entry:
                self._pending.append((what, Tree(Digest(str(entry["tree"])), 0, 0)))
            elif "digest" in entry:
                self._want(what, Digest(str(entry["digest"])))
        for path, digest in (request.discovered or {}).items():
            if digest != ABSENT and (is_read(path) or self._store.objects.has(Digest(digest))):
                self._want(f'"{path}", read by {name}', Digest(digest))
        if request.stdin is not None:
            self._want(f"stdin of {name}", request.stdin)
        if request.system_document is not None:
            self._want(f"packages of the system of {name}", request.system_document)
        for path, output in result.outputs.items():
            self._pending.append((f'output "{path}" of {name}', output))
        for captured in (result.stdout, result.stderr):
            self._want(f"output of {name}", captured.digest)

    def _want(self, what: str, digest: Digest) -> None:
        self._pending.append((what, File(digest, 0)))

    def _take(self, found: Gathered) -> None:
        while self._pending:  # Grows while it is walked: no recursion over what others wrote.
            what, entry = self._pending.pop()
            if isinstance(entry, Link) or entry.digest in found.missing:
                continue
            known = entry.digest in found.sizes
            if known and (isinstance(entry, File) or entry.digest in self._walked):
                continue
            try:
                if not known:
                    found.sizes[entry.digest] = _size(self._store, entry.digest)
                if isinstance(entry, Tree):
                    self._walked.add(entry.digest)
                    children = parse_tree(self._store.objects.get(entry.digest, size_max=canonical.BYTES_MAX))
                    self._pending += [(f"{what}: {name}", child) for name, child in children]
            except (MissingObject, CorruptObject, RequestError):
                if entry.digest == EMPTY:
                    self._store.objects.put(b"")
                    found.sizes[EMPTY] = 0
                else:
                    found.sizes.pop(entry.digest, None)
                    found.missing[entry.digest] = what


def _size(store: Store, digest: Digest) -> int:
    return os.stat(store.objects.file(digest)).st_size


def events_of(store: Store, journal: Digest) -> Iterator[Mapping[str, Any]]:
    """A journal's events, line by line, as far as a bundle rests on them. Raises IntegrityError for what is none."""
    with open(store.objects.file(journal), "rb") as file:
        number = 0
        while line := file.readline(canonical.BYTES_MAX):
            number += 1
            try:
                event = canonical.parse(line)
                cause = "" if isinstance(event, dict) and _is_sound(event) else "a field is missing or of another type"
            except RequestError as error:
                cause = error.what
            if cause:
                raise IntegrityError("the journal is damaged", facts=[("line", str(number)), ("cause", cause)])
            yield event


def _is_sound(event: Mapping[str, Any]) -> bool:
    kind = event.get("event")
    if kind == "plan_made":
        manifest = event.get("manifest")
        return isinstance(manifest, dict) and all(each is None or is_digest(each) for each in manifest.values())
    if kind != "step_finished":
        return True
    request, result = event.get("request_digest"), event.get("result_digest")
    named = isinstance(event.get("name"), str) and (request is None or is_digest(request))
    return named and (result is None or (request is not None and is_digest(result)))


def encode_kept(kept: Kept) -> bytes:
    """A record with its request and result, as the store files it."""
    return b'{"record":%b,"request":%b,"result":%b}' % (kept.record.encoded, kept.request, kept.result.encoded)


def write_bundle(store: Store, found: Gathered, key: Key | None, file: BinaryIO) -> Contents:
    """The same bytes for the same run, store and key."""
    objects = [Member(f"objects/{digest}", digest, found.sizes[digest]) for digest in sorted(found.sizes)]
    records = [
        Member(f"records/{number}.json", digest, len(found.records[digest]))
        for number, digest in enumerate(sorted(found.records))
    ]
    run = Member(f"runs/{found.run.run}", object_digest(found.run.encoded), len(found.run.encoded))
    contents = Contents(found.run.run, found.manifest, (*objects, *records, run))
    if len(contents.encoded) > SMALL_MAX:
        raise UsageError(f"run {found.run.run} is too large for one bundle", facts=[("objects", str(len(objects)))])
    writer = Writer(file, contents, None if key is None else key.sign(contents.envelope()))
    for member in objects:
        writer.add(member, _pieces(store, member.digest))
    for member in records:
        writer.add(member, iter([found.records[member.digest]]))
    writer.add(run, iter([found.run.encoded]))
    writer.finish()
    return contents


def _pieces(store: Store, digest: Digest) -> Iterator[bytes]:
    with open(store.objects.file(digest), "rb") as file:
        while piece := file.read(_PIECE):
            yield piece
