"""Signed records: ours by another implementation, another's by ours, and every way to be wrong."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope as TheirEnvelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from requiem_build.core.canonical import encode_plain, parse
from requiem_build.core.errors import RequestError
from requiem_build.core.result import Record, parse_record
from requiem_build.core.seal import (
    RECORD_TYPE,
    STATEMENT_TYPE,
    Envelope,
    Signature,
    claims_of,
    parse_envelope,
    record_envelope,
    signed_part,
    with_envelope,
)
from requiem_build.core.trust import UNTRUSTED, Claim, HitPolicy, choose
from requiem_build.store.keys import Key, Keys, Verifier
from requiem_build.store.layout import Store
from requiem_build.store.seals import SealedRecords, describe, seal, signers_of

ORDER = 2**252 + 27742317777372353535851937790883648493


@pytest.fixture
def people(tmp_path: Path) -> Callable[[str], Key]:
    """A key of each person's own, by name."""
    rings = Keys(str(tmp_path / "people"))

    def key(name: str) -> Key:
        if name not in {each.name for each in rings.all()}:
            rings.new(name)
        return rings.signer(name)

    return key


def their_key(key: Key) -> SSlibKey:
    return SSlibKey.from_crypto(key.secret.public_key(), keyid=key.key_id)


def policy(*keys: Key, **more: Any) -> HitPolicy:
    return HitPolicy({key.key_id: key.name for key in keys}, **more)


# What is signed


def test_the_pre_authentication_encoding_is_the_specifications_example() -> None:
    envelope = Envelope("http://example.com/HelloWorld", b"hello world")
    assert envelope.signed_bytes == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_another_implementation_verifies_ours(made: Any, people: Any) -> None:
    record = seal(made().record, people("ci"))
    theirs = TheirEnvelope.from_dict(copy.deepcopy(record.signatures[0]))
    assert theirs.verify([their_key(people("ci"))], threshold=1)
    with pytest.raises(VerificationError):
        theirs.verify([their_key(people("mallory"))], threshold=1)
    assert theirs.payload == replace(record, signatures=()).encoded


def test_ours_verifies_another_implementations(made: Any, people: Any) -> None:
    record = made().record
    theirs = TheirEnvelope(signed_part(record), RECORD_TYPE, {})
    theirs.sign(CryptoSigner(people("ci").secret, their_key(people("ci"))))
    signed = with_envelope(record, parse_envelope(theirs.to_dict()))
    assert signers_of(signed, Verifier([people("ci")])) == {people("ci").key_id}


def test_a_signed_record_is_read_back_as_it_was(made: Any, people: Any, store: Store) -> None:
    thing = made()
    record = seal(thing.record, people("ci"))
    store.records.publish(thing.request, thing.result, record)
    kept = store.records.find(thing.request.digest)
    assert kept is not None and kept.record.encoded == record.encoded
    assert signers_of(kept.record, Verifier([people("ci")])) == {people("ci").key_id}


def test_every_byte_of_a_signed_record_counts(made: Any, people: Any) -> None:
    """Whatever differs from what was signed, in any field, is not signed."""
    record = seal(made().record, people("ci"))
    verifier = Verifier([people("ci")])
    content = record.encoded
    at = content.index(b'"signatures"')
    end = content.index(b',"when"')
    still_signed = []
    for position in [*range(at), *range(end, len(content))]:
        for flip in (0x01, 0x20):
            changed = bytearray(content)
            changed[position] ^= flip
            try:
                other = parse_record(parse(bytes(changed)))
            except RequestError:
                continue
            if signers_of(other, verifier) and other.encoded != content:
                still_signed.append(position)
    assert still_signed == []


# Every way to be wrong


def forged(record: Record, key: Key, mallory: Key) -> Record:
    return seal(replace(record, result_digest="0" * 64), mallory)


def wrong_payload_type(record: Record, key: Key, mallory: Key) -> Record:
    return with_envelope(record, key.sign(Envelope(STATEMENT_TYPE, signed_part(record))))


def relabelled_type(record: Record, key: Key, mallory: Key) -> Record:
    signed = key.sign(Envelope(STATEMENT_TYPE, signed_part(record)))
    return with_envelope(record, replace(signed, payload_type=RECORD_TYPE))


def swapped_payload(record: Record, key: Key, mallory: Key) -> Record:
    signed = key.sign(record_envelope(replace(record, asserted=("system",))))
    return with_envelope(record, replace(signed, payload=signed_part(record)))


def signed_something_else(record: Record, key: Key, mallory: Key) -> Record:
    return with_envelope(record, key.sign(record_envelope(replace(record, asserted=("system",)))))


def claimed_key_id(record: Record, key: Key, mallory: Key) -> Record:
    signed = mallory.sign(record_envelope(record))
    return with_envelope(record, replace(signed, signatures=(Signature(key.key_id, signed.signatures[0].signature),)))


def malleated(record: Record, key: Key, mallory: Key) -> Record:
    """S + L in place of S satisfies the equation and is not a signature (RFC 8032, 5.1.7)."""
    signed = key.sign(record_envelope(record))
    raw = signed.signatures[0].signature
    scalar = (int.from_bytes(raw[32:], "little") + ORDER).to_bytes(32, "little")
    return with_envelope(record, replace(signed, signatures=(Signature(key.key_id, raw[:32] + scalar),)))


def cut(record: Record, key: Key, mallory: Key) -> Record:
    value = key.sign(record_envelope(record)).as_json()
    short = base64.b64encode(base64.b64decode(value["signatures"][0]["sig"])[:63]).decode()
    return replace(record, signatures=({**value, "signatures": [{"keyid": key.key_id, "sig": short}]},))


def none_at_all(record: Record, key: Key, mallory: Key) -> Record:
    value = key.sign(record_envelope(record)).as_json()
    return replace(record, signatures=({**value, "signatures": []},))


def stripped(record: Record, key: Key, mallory: Key) -> Record:
    return replace(seal(record, key), signatures=())


def no_envelope(record: Record, key: Key, mallory: Key) -> Record:
    return replace(record, signatures=({"alg": "none", "keyid": key.key_id, "sig": ""},))


def only_mallory(record: Record, key: Key, mallory: Key) -> Record:
    return seal(record, mallory)


def too_far_behind(record: Record, key: Key, mallory: Key) -> Record:
    """The limit is on what is looked at: a valid signature behind a heap of others is not looked for."""
    junk = mallory.sign(record_envelope(record)).as_json()
    return replace(record, signatures=(*([junk] * 16), key.sign(record_envelope(record)).as_json()))


WRONG = [
    forged,
    wrong_payload_type,
    relabelled_type,
    swapped_payload,
    signed_something_else,
    claimed_key_id,
    malleated,
    cut,
    none_at_all,
    stripped,
    no_envelope,
    only_mallory,
    too_far_behind,
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_it_is_not_signed_by_the_trusted_key_fail(wrong: Any, made: Any, people: Any, store: Store) -> None:
    """With its positive control: the same record, rightly signed, answers."""
    ci, mallory, thing = people("ci"), people("mallory"), made()
    bad = wrong(thing.record, ci, mallory)
    assert signers_of(bad, Verifier([ci])) == set()
    assert all(seen.state != "valid" for seen in describe(bad, Verifier([ci])))
    if bad.result_digest == thing.result.digest:
        store.records.publish(thing.request, thing.result, bad)
        reader = SealedRecords(store, Verifier([ci]), policy(ci), None)
        assert reader.find(thing.request.digest) is None
        assert reader.why_not(thing.request.digest) == UNTRUSTED
    assert signers_of(seal(thing.record, ci), Verifier([ci])) == {ci.key_id}


def test_a_record_of_another_request_does_not_answer(made: Any, people: Any, store: Store) -> None:
    """A valid, signed record under another request's name: the store's own check refuses it first."""
    ci, one, two = people("ci"), made("a"), made("b")
    SealedRecords(store, Verifier([]), None, ci).publish(one.request, one.result, seal(one.record, ci))
    source = Path(store.root, "records", one.request.digest[:2], one.request.digest)
    for base in ("records", f"records/signed/{ci.key_id}"):
        target = Path(store.root, base, two.request.digest[:2], two.request.digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    reader = SealedRecords(store, Verifier([ci]), policy(ci), None)
    assert reader.find(two.request.digest) is None
    assert reader.find(one.request.digest) is not None
    # Nor does its signature count on the other's record.
    moved = replace(two.record, signatures=seal(one.record, ci).signatures)
    assert signers_of(moved, Verifier([ci])) == set()


def test_a_revoked_key_counts_no_more(made: Any, people: Any, store: Store) -> None:
    ci, thing = people("ci"), made()
    record = seal(thing.record, ci)
    SealedRecords(store, Verifier([]), None, ci).publish(thing.request, thing.result, record)
    revoked = Verifier([replace(ci, revoked=True)])
    for hit in (HitPolicy({}), policy(ci)):
        reader = SealedRecords(store, revoked, hit, None)
        assert reader.find(thing.request.digest) is None
        assert reader.why_not(thing.request.digest) == 'record is signed by the revoked key "ci"'
    assert [seen.state for seen in describe(record, revoked)] == ["revoked"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"payload": "", "payloadType": "t", "signatures": [], "more": 1},
        {"payload": "a", "payloadType": "t", "signatures": []},
        {"payload": "YQ", "payloadType": "t", "signatures": []},
        {"payload": "YR==", "payloadType": "t", "signatures": []},
        {"payload": "Y Q==", "payloadType": "t", "signatures": []},
        {"payload": 1, "payloadType": "t", "signatures": []},
        {"payload": "", "payloadType": None, "signatures": []},
        {"payload": "", "payloadType": "t", "signatures": {}},
        {"payload": "", "payloadType": "t", "signatures": [{}]},
        {"payload": "", "payloadType": "t", "signatures": [{"sig": ""}]},
        {"payload": "", "payloadType": "t", "signatures": [{"sig": "A" * 86 + "==", "alg": "none"}]},
        {"payload": "", "payloadType": "t", "signatures": [{"sig": "A" * 86 + "==", "keyid": 1}]},
        {"payload": "", "payloadType": "t", "signatures": [{"sig": "A" * 86 + "=="}] * 17},
    ],
)
def test_what_is_no_envelope_is_refused(value: object) -> None:
    with pytest.raises(RequestError):
        parse_envelope(value)


def test_both_alphabets_of_base64_are_read() -> None:
    content = bytes(range(256))
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        value = {"payload": encode(content).decode(), "payloadType": "t", "signatures": []}
        assert parse_envelope(value).payload == content


# Thresholds


def test_the_same_key_twice_counts_once(made: Any, people: Any, store: Store) -> None:
    a, b, thing = people("a"), people("b"), made()
    envelope = record_envelope(thing.record)
    twice_inside = with_envelope(thing.record, a.sign(a.sign(envelope)))
    twice_over = seal(seal(thing.record, a), a)
    renamed = a.sign(envelope)
    renamed = replace(renamed, signatures=(*renamed.signatures, replace(renamed.signatures[0], key_id="other")))
    verifier = Verifier([a, b])
    for record in (twice_inside, twice_over, with_envelope(thing.record, renamed)):
        assert signers_of(record, verifier) == {a.key_id}
    SealedRecords(store, verifier, None, a).publish(thing.request, thing.result, twice_over)
    reader = SealedRecords(store, verifier, policy(a, b, threshold=2), None)
    assert reader.find(thing.request.digest) is None
    assert reader.why_not(thing.request.digest) == "record is signed by 1 of the 2 keys that you ask for"


def test_two_builders_who_agree_are_two(made: Any, people: Any, store: Store) -> None:
    a, b, thing = people("a"), people("b"), made()
    SealedRecords(store, Verifier([]), None, a).publish(thing.request, thing.result, seal(thing.record, a))
    later = replace(thing.record, when="2026-11-24T00:00:00Z", host="builder-2")
    SealedRecords(store, Verifier([]), None, b).publish(thing.request, thing.result, seal(later, b))
    reader = SealedRecords(store, Verifier([a, b]), policy(a, b, threshold=2), None)
    assert reader.find(thing.request.digest) is not None


def test_two_builders_who_differ_are_one_each(made: Any, people: Any, store: Store) -> None:
    a, b = people("a"), people("b")
    one, other = made(text=b"one"), made(text=b"other")
    SealedRecords(store, Verifier([]), None, a).publish(one.request, one.result, seal(one.record, a))
    SealedRecords(store, Verifier([]), None, b).publish(other.request, other.result, seal(other.record, b))
    verifier = Verifier([a, b])
    assert SealedRecords(store, verifier, policy(a, b, threshold=2), None).find(one.request.digest) is None
    for key, thing in ((a, one), (b, other)):
        found = SealedRecords(store, verifier, policy(key), None).find(one.request.digest)
        assert found is not None and found.result.digest == thing.result.digest


@given(
    claims=st.lists(st.tuples(st.integers(0, 2), st.sets(st.sampled_from("abcde")), st.booleans()), max_size=8),
    accept=st.sets(st.sampled_from("abcd")),
    threshold=st.integers(1, 4),
    level=st.sampled_from(["unknown", "confined", "reproduced-elsewhere"]),
)
def test_what_answers_is_vouched_for_by_enough_distinct_accepted_keys(claims, accept, threshold, level) -> None:
    def record(result: int, confined: bool) -> Record:
        protection = {"level": "strict", "network": "none"} if confined else {"level": "process"}
        return Record("0" * 64, str(result) * 64, "t", 0, "local", "h", "e", protection)

    made = [Claim(record(result, confined), frozenset(signers)) for result, signers, confined in claims]
    hit = HitPolicy({name: name for name in accept}, threshold, level)
    chosen = choose(made, hit)
    needed = max(threshold, 2) if level == "reproduced-elsewhere" else threshold

    def support(result: int, upto: int = len(claims)) -> set[str]:
        counted = [s for r, s, confined in claims[:upto] if r == result and (confined or level == "unknown")]
        return set().union(*counted) & accept

    if isinstance(chosen, str):
        assert all(len(support(result)) < needed for result in range(3))
    else:
        result, signers, confined = claims[chosen]
        assert signers & accept and (confined or level == "unknown")
        assert len(support(result)) >= needed
        reached = [
            min(n for n in range(9) if len(support(r, n)) >= needed) for r in range(3) if len(support(r)) >= needed
        ]
        assert min(n for n in range(9) if len(support(result, n)) >= needed) == min(reached)


# Scopes


def test_an_untrusted_writer_cannot_stand_before_a_trusted_one(made: Any, people: Any, store: Store) -> None:
    """CVE-2025-36852: whoever comes first under the key of a request answers it for everybody."""
    ci, poison, right = people("ci"), made(text=b"poison"), made(text=b"right")
    assert poison.request.digest == right.request.digest
    store.records.publish(poison.request, poison.result, poison.record)
    trusting = SealedRecords(store, Verifier([ci]), policy(ci), ci)
    assert trusting.find(right.request.digest) is None
    trusting.publish(right.request, right.result, seal(right.record, ci))
    found = trusting.find(right.request.digest)
    assert found is not None and found.result.digest == right.result.digest


@pytest.mark.parametrize("text", [b"poison", b"right"])
def test_nor_by_writing_into_the_trusted_ones_scope(text: bytes, made: Any, people: Any, store: Store) -> None:
    ci, poison, right = people("ci"), made(text=text), made(text=b"right")
    for scope in (store.records, store.signed_records(ci.key_id)):
        scope.publish(poison.request, poison.result, seal(poison.record, people("mallory")))
    trusting = SealedRecords(store, Verifier([ci]), policy(ci), ci)
    assert trusting.find(right.request.digest) is None
    trusting.publish(right.request, right.result, seal(right.record, ci))
    found = trusting.find(right.request.digest)
    assert found is not None and found.result.digest == right.result.digest


def test_the_first_result_that_a_key_signed_stays(made: Any, people: Any, store: Store) -> None:
    ci, one, other = people("ci"), made(text=b"one"), made(text=b"other")
    writer = SealedRecords(store, Verifier([ci]), policy(ci), ci)
    writer.publish(one.request, one.result, seal(one.record, ci))
    assert writer.publish(other.request, other.result, seal(other.record, ci)).diverged
    found = writer.find(one.request.digest)
    assert found is not None and found.result.digest == one.result.digest


def test_path_sets_of_accepted_keys_come_first(made: Any, people: Any, store: Store) -> None:
    ci, thing = people("ci"), made()
    SealedRecords(store, Verifier([]), None, ci).add_path_set(thing.request.digest, ["right.h"])
    for number in range(40):
        store.records.add_path_set(thing.request.digest, [f"flood{number}.h"])
    reader = SealedRecords(store, Verifier([ci]), policy(ci), None)
    assert reader.path_sets(thing.request.digest)[0] == ("right.h",)


def test_every_scope_is_found_by_who_must_know_all_records(made: Any, people: Any, store: Store) -> None:
    thing = made()
    for name in ("a", "b"):
        key = people(name)
        SealedRecords(store, Verifier([]), None, key).publish(thing.request, thing.result, seal(thing.record, key))
    assert [len(list(records)) for records in store.scopes()] == [1, 1, 1]


def test_the_golden_signed_record_is_signed(golden_signed: SimpleNamespace) -> None:
    """The bytes are held by tests/formats; here the key and what it vouches for."""
    record = parse_record(parse(golden_signed.content))
    assert len(claims_of(record)) == 1
    theirs = TheirEnvelope.from_dict(copy.deepcopy(record.signatures[0]))
    assert theirs.verify([their_key(golden_signed.key)], threshold=1)
    assert encode_plain(record.as_json()) == golden_signed.content
