"""A bundle back into a store, and the check of one: nothing in it is believed that was not verified.

bundle -> every byte verified -> objects, then records, then the run -> gathered anew: exactly what it held
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from ..core import canonical
from ..core.errors import IntegrityError, RequestError, UsageError
from ..core.fields import dataclass, field, replace
from ..core.request import Request, parse_request
from ..core.result import Record, Result, parse_record, parse_result
from ..core.seal import Envelope, claims_of
from ..core.trust import Claim, HitPolicy, choose
from ..store.bundle import SMALL_MAX, Contents, Damaged, Member, Reader
from ..store.keys import Verifier
from ..store.layout import Store
from ..store.runs import Run
from ..store.seals import signers_of
from .packing import Gatherer, events_of
from .replay import replay

_PIECE = 1 << 20


@dataclass(slots=True)
class Unpacked:
    contents: Contents
    envelope: Envelope
    signers: tuple[str, ...]
    objects: int = 0
    records: int = 0
    untrusted: int = 0
    """Records that no key known here has signed."""
    kept: list[Record] = field(default_factory=list)


def unpack(file: BinaryIO, store: Store, verifier: Verifier) -> Unpacked:
    """Files a bundle's content: objects first, then records, the run last; of a damaged bundle nothing at all.

    `file` can be read twice: once to the end, and then, verified again, into the store. Signed records go to
    everybody's and to the scope of each key known here that signed them. Raises Damaged.
    """
    start = file.tell()
    for member, pieces in Reader(file).members():
        if member.name.startswith("objects/"):
            for _ in pieces:
                pass
        else:
            _document(member, _joined(member, pieces))
    file.seek(start)
    reader = Reader(file)
    signers = tuple(sorted(verifier.keys[key_id].name for key_id in verifier.signers(reader.envelope)))
    done = Unpacked(reader.contents, reader.envelope, signers)
    run: Run | None = None
    synced = False
    for member, pieces in reader.members():
        if member.name.startswith("objects/"):
            _put(store, member, pieces)
            done.objects += 1
            continue
        if not synced:
            store.sync()  # A record is never more durable than what it names.
            synced = True
        kept = _document(member, _joined(member, pieces))
        if isinstance(kept, Run):
            run = kept
        else:
            done.records += 1
            done.kept.append(kept[2])
            done.untrusted += not _publish(store, verifier, *kept)
    assert run is not None  # The list ends with it.
    summary = {name: getattr(run, name) for name in ("workspace", "when", "ok", "exit_code", "counts")}
    try:
        store.runs.add(run.run, run.journal, summary)
    except UsageError:
        if store.runs.get(run.run).encoded != run.encoded:
            raise IntegrityError(f'the store has another run "{run.run}"') from None
    return done


@dataclass(slots=True)
class Replayed:
    """What checking a bundle came to. `problems` is empty if all of it holds; each is (step or member, what)."""

    unpacked: Unpacked
    steps: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)


def replay_bundle(file: BinaryIO, store: Store, verifier: Verifier, policy: HitPolicy | None) -> Replayed:
    """Checks a bundle offline, by unpacking it into `store`, which must be empty, and gathering its run anew.

    What is gathered must be exactly what the bundle held: nothing lacking, nothing more. With a policy its records,
    and the bundle itself, must be signed as that asks. Raises Damaged.
    """
    unpacked = unpack(file, store, verifier)
    replayed = Replayed(unpacked)
    run = store.runs.get(unpacked.contents.run)
    try:
        found = Gatherer(store).gather(run.run)
    except IntegrityError as error:
        replayed.problems += list(error.facts) or [("run", error.what)]
        return replayed
    steps = {
        (str(event["request_digest"]), str(event["result_digest"])): str(event["name"])
        for event in events_of(store, run.journal)
        if event.get("event") == "step_finished" and event["result_digest"] is not None
    }
    replayed.steps = len(steps)
    proven = replay(store, run.run)
    replayed.problems += [(problem.step or problem.where, problem.what) for problem in proven.problems]
    held = {member.digest for member in unpacked.contents.members if member.name.startswith("objects/")}
    replayed.problems += [("object", f"{digest} belongs to no step") for digest in sorted(held - found.sizes.keys())]
    claims: dict[tuple[str, str], list[Claim]] = {}
    for record in unpacked.kept:
        claims.setdefault((record.request_digest, record.result_digest), []).append(
            Claim(record, signers_of(record, verifier))
        )
    replayed.problems += [
        ("record", f"of request {pair[0]} belongs to no step") for pair in claims.keys() - steps.keys()
    ]
    if policy is not None:
        if not verifier.signers(unpacked.envelope) & policy.accept.keys():
            replayed.problems.append(("bundle", "it is packed by nobody you trust"))
        for pair, name in steps.items():
            chosen = choose(claims.get(pair, []), policy)
            if isinstance(chosen, str):
                replayed.problems.append((name, chosen))
    return replayed


def _publish(store: Store, verifier: Verifier, request: Request, result: Result, record: Record) -> bool:
    """Whether a key known here has signed it."""
    signers = signers_of(record, verifier) if claims_of(record) else frozenset()
    for scope in (store.records, *(store.signed_records(key_id) for key_id in sorted(signers))):
        if request.discovered is not None and record.discovered is not None:
            scope.add_path_set(replace(request, discovered=None).digest, record.discovered)
        scope.publish(request, result, record)
    return bool(signers)


def _joined(member: Member, pieces: Iterable[bytes]) -> bytes:
    if member.size > SMALL_MAX:
        raise Damaged("a document is larger than it may be", member.name)
    return b"".join(pieces)


def _parse_kept(content: bytes) -> tuple[Request, Result, Record]:
    """The three, each naming the others. Raises RequestError."""
    value = canonical.parse(content)
    if not isinstance(value, dict) or value.keys() != {"record", "request", "result"}:
        raise RequestError("a record does not hold exactly record, request and result")
    request = parse_request(canonical.encode_plain(value["request"]))
    result = parse_result(canonical.encode_plain(value["result"]))
    record = parse_record(value["record"])
    if canonical.encode_plain(value) != content:
        raise RequestError("a record is not canonical")
    if not request.digest == record.request_digest == result.request_digest or record.result_digest != result.digest:
        raise RequestError("a record, its request and its result do not name each other")
    if not result.ok:
        raise RequestError("a record is of a failure")
    return request, result, record


def _document(member: Member, content: bytes) -> tuple[Request, Result, Record] | Run:
    try:
        if member.name.startswith("records/"):
            return _parse_kept(content)
        value = json.loads(content)
        run = Run(**{name: value[name] for name in Run.__match_args__})
        if run.encoded != content or f"runs/{run.run}" != member.name:
            raise RequestError("a run is not what its name says")
        return run
    except (RequestError, ValueError, KeyError, TypeError) as error:
        why = error.what if isinstance(error, RequestError) else "a run is not one"
        raise Damaged(why, member.name) from error


def _put(store: Store, member: Member, pieces: Iterator[bytes]) -> None:
    """Small objects from memory; large ones by a file without a name."""
    if member.size <= _PIECE:
        digest = store.objects.put(b"".join(pieces))
    else:
        descriptor = _nameless(store)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                for piece in pieces:
                    file.write(piece)
            os.lseek(descriptor, 0, os.SEEK_SET)
            digest, _ = store.objects.put_file(descriptor, expect_size=member.size)
        finally:
            os.close(descriptor)
    if digest != member.digest:
        raise Damaged("its bytes are not those of its digest", member.name)


def _nameless(store: Store) -> int:
    descriptor, path = tempfile.mkstemp(dir=f"{store.root}/v2/tmp")
    os.unlink(path)
    return descriptor
