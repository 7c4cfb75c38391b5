"""Sign and verify records: who may answer a reader, and where each writer's records lie.

A signed record is filed twice: among everybody's, where the first of a request stays, and in the scope of its
key, where nobody else's can stand before it. A reader with a policy looks into the scopes of the keys that he
accepts, then among everybody's, and takes what distinct keys of them vouch for. It does not know steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..core.digest import Digest
from ..core.errors import RequestError
from ..core.fields import dataclass
from ..core.result import Record
from ..core.seal import SIGNATURES_MAX, claims_of, parse_envelope, record_envelope, with_envelope
from ..core.trust import UNTRUSTED, Claim, HitPolicy, choose
from ..core.verdict import Verdict
from .keys import Key, Verifier
from .layout import Store
from .records import PATH_SETS_MAX, Kept, Records, Written
from .verdicts import Verdicts


def seal(record: Record, key: Key) -> Record:
    """The record with the key's signature over all the rest of it."""
    return with_envelope(record, key.sign(record_envelope(record)))


def signers_of(record: Record, verifier: Verifier) -> frozenset[str]:
    """Ids of the distinct keys whose signature over this very record holds."""
    found: set[str] = set()
    for envelope in claims_of(record):
        found |= verifier.signers(envelope)
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Seen:
    """One signature of a record as a person is told of it: `state` is valid, revoked, unknown key or invalid.

    `hint` is whose it says it is, which proves nothing; `key_id` is the key that made it, or else the hint.
    """

    key_id: str
    name: str
    state: str
    hint: str = ""


def describe(record: Record, verifier: Verifier) -> list[Seen]:
    """Every signature that a record carries and what it is worth here."""
    sealed = dict.fromkeys(claims_of(record))
    seen: list[Seen] = []
    for value in record.signatures[:SIGNATURES_MAX]:
        try:
            envelope = parse_envelope(value)
        except RequestError as error:
            seen.append(Seen("", "", f"invalid: {error.what}"))
            continue
        for signature in envelope.signatures:
            owner = verifier.owner(envelope, signature)
            key = verifier.keys.get(owner or signature.key_id)
            if envelope not in sealed:
                state = "invalid: over something else"
            elif owner is None:
                state = "invalid" if key is not None else "unknown key"
            else:
                state = "revoked" if verifier.keys[owner].revoked else "valid"
            seen.append(Seen(owner or signature.key_id, key.name if key else "", state, signature.key_id))
    return seen


class SealedRecords(Records):
    """A store's records for a reader with a policy, a writer with a key, or both: everybody's in all other respects."""

    def __init__(self, store: Store, verifier: Verifier, policy: HitPolicy | None, key: Key | None) -> None:
        vars(self).update(vars(store.records))
        self._verifier = verifier
        self._policy = policy
        self._everybody = store.records
        self._mine = None if key is None else (key, store.signed_records(key.key_id))
        accepted = () if policy is None else policy.accept
        self._accepted: dict[str, Records] = {key_id: store.signed_records(key_id) for key_id in accepted}
        self._refused: dict[Digest, str] = {}
        self._verdicts = Verdicts(store)

    def why_not(self, request_digest: Digest) -> str | None:
        """Why a record that is there was not taken; None if there was none."""
        return self._refused.get(request_digest)

    def find(self, request_digest: Digest) -> Kept | None:
        if self._policy is None:
            return self._everybody.find(request_digest)
        kept: list[Kept] = []

        def claims() -> Iterator[Claim]:
            for records in (*self._accepted.values(), self._everybody):
                found = records.find(request_digest)
                if found is not None:
                    kept.append(found)
                    yield Claim(found.record, signers_of(found.record, self._verifier))

        chosen = choose(claims(), self._policy, self._said)
        if isinstance(chosen, int):
            return kept[chosen]
        if kept:
            self._refused[request_digest] = self._revoked(kept) if chosen == UNTRUSTED else chosen
        return None

    def note_used(self, request_digest: Digest) -> None:
        """In every scope that may answer this reader, and in the writer's own."""
        mine = () if self._mine is None else (self._mine[1],)
        for records in (self._everybody, *self._accepted.values(), *mine):
            records.note_used(request_digest)

    def _said(self, record: Record) -> dict[str, Verdict]:
        """What accepted keys say of a record's result after running its request again."""
        return self._verdicts.signed_by(self._accepted, record.request_digest, record.result_digest, self._verifier)

    def _revoked(self, kept: list[Kept]) -> str:
        states = {(seen.state, seen.name) for each in kept for seen in describe(each.record, self._verifier)}
        names = sorted(name for state, name in states if state == "revoked")
        return f'record is signed by the revoked key "{names[0]}"' if names else UNTRUSTED

    def path_sets(self, request_digest: Digest) -> list[tuple[str, ...]]:
        """Those of accepted keys first. They only say where to look: what is found there is judged by itself."""
        places = (*self._accepted.values(), self._everybody)
        sets = [one for records in places for one in records.path_sets(request_digest)]
        return list(dict.fromkeys(sets))[: PATH_SETS_MAX * len(places)]

    def add_path_set(self, request_digest: Digest, paths: Sequence[str]) -> None:
        self._everybody.add_path_set(request_digest, paths)
        if self._mine is not None:
            self._mine[1].add_path_set(request_digest, paths)

    def file(self, written: Written) -> Kept:
        """Files a record everywhere that it belongs, and returns what counts for its request here now."""
        kept = self._everybody.file(written)
        if self._mine is None:
            return kept if self._policy is None else written.kept
        key, scope = self._mine
        request_digest = written.kept.record.request_digest
        own = scope.find(request_digest)
        if own is not None and key.key_id not in signers_of(own.record, Verifier([key])):
            scope.set_aside(request_digest)  # Whoever put it there, it was not this key.
        return scope.file(written)
