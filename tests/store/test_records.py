"""Records: found when whole, a miss with a reason when not, and the first published result stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from requiem_build.core.canonical import encode_plain, parse
from requiem_build.core.digest import Domain, digest, object_digest
from requiem_build.core.errors import EnvironmentFault, RequestError
from requiem_build.core.result import make_result
from requiem_build.store.layout import Store
from requiem_build.store.records import Absent, Kept


def publish(store: Store, values) -> Kept:
    return store.records.publish(values.request, values.result, values.record)


def path_of(store: Store, request_digest: str) -> Path:
    return store.root / "records" / request_digest[:2] / request_digest


def test_what_was_published_is_found_whole(store: Store, made) -> None:
    values = made()
    assert store.records.look(values.request.digest) == Absent("no record")
    assert not publish(store, values).diverged
    found = store.records.find(values.request.digest)
    assert found == Kept(values.record, values.request.encoded, values.result)
    assert digest(Domain.REQUEST, found.request) == values.request.digest
    assert list(store.records) == [found]


def test_a_record_file_is_one_canonical_object_named_by_the_request(store: Store, made) -> None:
    values = made()
    publish(store, values)
    content = path_of(store, values.request.digest).read_bytes()
    value = parse(content)
    assert encode_plain(value) == content
    assert sorted(value) == ["record", "request", "result"]
    assert digest(Domain.REQUEST, encode_plain(value["request"])) == values.request.digest
    assert digest(Domain.RESULT, encode_plain(value["result"])) == value["record"]["result_digest"]


def test_another_process_finds_it(store: Store, made) -> None:
    values = made()
    publish(store, values)
    found = Store(store.root, read_only=True).records.find(values.request.digest)
    assert found is not None
    assert found.result == values.result


@pytest.mark.parametrize("number", range(0, 40, 3))
def test_inputs_named_like_the_parts_of_a_record_do_not_mislead(store: Store, made, number: int) -> None:
    values = made()
    inputs = {f"{'d/' * n}{name}": {"symlink": "x"} for n in range(number) for name in ("result", "request", "record")}
    request = replace(values.request, inputs={**inputs, **values.request.inputs})
    result = make_result(
        request,
        exit_code=0,
        termination="exited",
        stdout=values.result.stdout,
        stderr=values.result.stderr,
        outputs=values.result.outputs,
    )
    record = replace(values.record, request_digest=request.digest, result_digest=result.digest)
    store.records.publish(request, result, record)
    found = store.records.find(request.digest)
    assert found is not None
    assert (found.request, found.result, found.record) == (request.encoded, result, record)


def test_the_first_result_stays_and_another_one_is_a_divergence(store: Store, made) -> None:
    first, second, third = made(), made(text=b"other"), made(text=b"third")
    publish(store, first)
    again = publish(store, first)
    assert not again.diverged
    for other in (second, third, second):
        kept = publish(store, other)
        assert kept.diverged
        assert kept.result == first.result
    assert store.records.find(first.request.digest).result == first.result
    wanted = {second.result.digest, third.result.digest}
    assert {kept.result.digest for kept in store.records.divergences(first.request.digest)} == wanted
    assert {kept.result.digest for kept in store.records.divergences()} == wanted
    assert list(store.records.divergences(object_digest(b"another request"))) == []


def test_only_success_is_published(store: Store, made) -> None:
    values = made()
    failed = make_result(
        values.request,
        exit_code=1,
        termination="exited",
        stdout=values.result.stdout,
        stderr=values.result.stderr,
        outputs={},
    )
    with pytest.raises(AssertionError):
        store.records.publish(values.request, failed, replace(values.record, result_digest=failed.digest))
    assert store.records.find(values.request.digest) is None


def test_a_record_that_names_another_request_or_result_is_not_published(store: Store, made) -> None:
    values, other = made(), made("b")
    for wrong in (
        (values.request, other.result, values.record),
        (other.request, values.result, values.record),
        (values.request, values.result, other.record),
    ):
        with pytest.raises(AssertionError):
            store.records.publish(*wrong)


def test_a_result_is_found_by_its_digest_among_records_and_divergences(store: Store, made) -> None:
    values, other = made("a"), made("b")
    diverged = made("b", text=b"other")
    for one in (values, other, diverged):
        publish(store, one)
    for one in (values, other, diverged):
        found = store.records.find_result(one.result.digest)
        assert found is not None
        assert (found.result, found.request) == (one.result, one.request.encoded)
    assert store.records.find_result(object_digest(b"none")) is None
    with pytest.raises(RequestError):
        store.records.find_result("../etc")


def test_r18_what_is_no_digest_is_never_used_as_a_path(store: Store) -> None:
    for name in ("../../x", "A" * 64, "ab", ""):
        with pytest.raises(RequestError):
            store.records.find(name)
        with pytest.raises(RequestError):
            store.records.path_sets(name)


# -- damage ----------------------------------------------------------------------------------------------


def swap(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new, 1)

    return change


def in_part(part: str, **changes: object) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        value = parse(content)
        value[part].update(changes)
        return encode_plain({**value, part: {k: v for k, v in value[part].items() if v != "gone"}})

    return change


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "truncated": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "trailing bytes": lambda content: content + b"\n",
    "two documents": lambda content: content * 2,
    "not json": lambda _: b"hello",
    "not utf-8": lambda content: content[:20] + b"\xff" + content[21:],
    "a list": lambda _: b"[]",
    "deep": lambda _: b'{"record":' * 100_000,
    "spaces": swap(b'"executor":', b'"executor": '),
    "duplicate field": swap(b'{"record":{', b'{"record":{"host":"other",'),
    "duplicate part": swap(b'{"record":', b'{"record":{},"record":'),
    "unknown part": swap(b'{"record":', b'{"a":1,"record":'),
    "other record version": in_part("record", schema="requiem.record/2"),
    "other result version": in_part("result", schema="requiem.result/2"),
    "other request version": in_part("request", schema="requiem.request/2"),
    "record field gone": in_part("record", host="gone"),
    "result field gone": in_part("result", stdout="gone"),
    "another result digest": in_part("record", result_digest=object_digest(b"x")),
    "another request digest": in_part("record", request_digest=object_digest(b"x")),
    "another exit": in_part("result", exit_code=1),
    "other outputs": in_part("result", outputs={}),
    "another command": in_part("request", command=["rm"]),
    "result of another request": in_part("result", request_digest=object_digest(b"x")),
    "bad output": in_part("result", outputs={"../x": {"symlink": "y"}}),
    "marks without end": lambda _: b'{"record":' + b',"request":{,"result":{' * 100_000 + b"}}",
}


@pytest.mark.parametrize("harm", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_malformed_record_is_a_miss_with_a_reason_and_is_replaced(
    store: Store, made, harm: Callable[[bytes], bytes]
) -> None:
    values = made()
    publish(store, values)
    path = path_of(store, values.request.digest)
    good = path.read_bytes()
    path.unlink()
    path.write_bytes(harm(good))
    found = store.records.look(values.request.digest)
    assert isinstance(found, Absent)
    assert found.damaged
    assert len(found.reason) > 20
    assert store.records.find(values.request.digest) is None
    assert list(store.records) == []
    assert store.records.find_result(values.result.digest) is None
    assert [where for where, _ in store.records.damaged()] == [str(path.relative_to(store.root))]
    assert publish(store, values).result == values.result
    assert path.read_bytes() == good
    assert list(store.records.damaged()) == []
    assert len(os.listdir(store.root / "v2" / "quarantine")) == 1


def test_a_record_of_one_request_under_the_name_of_another_is_a_miss(store: Store, made) -> None:
    """B3 of faults.md asks it of objects (C04); a swapped record would be a wrong answer too."""
    values, other = made("a"), made("b")
    publish(store, values)
    publish(store, other)
    path, other_path = (path_of(store, one.request.digest) for one in (values, other))
    path.unlink()
    path.write_bytes(other_path.read_bytes())
    assert store.records.look(values.request.digest) == Absent(
        "its record is damaged: it holds another request", damaged=True
    )
    assert store.records.find(other.request.digest) is not None


def test_a_whole_but_failed_result_is_never_a_hit(store: Store, made) -> None:
    values = made()
    publish(store, values)
    path = path_of(store, values.request.digest)
    value = parse(path.read_bytes())
    value["result"]["exit_code"] = 1
    value["record"]["result_digest"] = digest(Domain.RESULT, encode_plain(value["result"]))
    path.unlink()
    path.write_bytes(encode_plain(value))
    assert store.records.look(values.request.digest) == Absent(
        "its record is damaged: it is of a failure", damaged=True
    )


NO_FILES = {
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a directory": lambda path: path.mkdir(),
    "a fifo": os.mkfifo,
    "huge": lambda path: (path.touch(), os.truncate(path, 1 << 30)),
}


@pytest.mark.parametrize("harm", NO_FILES.values(), ids=NO_FILES.keys())
def test_a_record_that_is_no_file_is_a_miss_and_is_replaced(store: Store, made, harm) -> None:
    values = made()
    path = path_of(store, values.request.digest)
    path.parent.mkdir()
    harm(path)
    found = store.records.look(values.request.digest)
    assert isinstance(found, Absent)
    assert found.damaged
    publish(store, values)
    assert store.records.find(values.request.digest) is not None


def test_no_flipped_byte_of_a_record_ever_changes_its_request_or_result(store: Store, made) -> None:
    values = made()
    publish(store, values)
    path = path_of(store, values.request.digest)
    good = path.read_bytes()
    path.chmod(0o644)
    hits = 0
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ (0x01, 0x20, 0x80)[at % 3]]) + good[at + 1 :])
        found = store.records.find(values.request.digest)
        if found is not None:
            hits += 1
            assert (found.request, found.result) == (values.request.encoded, values.result)
            assert at < good.index(b',"request":{"command"'), "only the record itself is outside every digest"
    assert hits < len(values.record.encoded)


def test_a_store_opened_for_reading_publishes_nothing(store: Store, made) -> None:
    values = made()
    reader = Store(store.root, read_only=True)
    with pytest.raises(EnvironmentFault, match="reading only"):
        publish(reader, values)
    with pytest.raises(EnvironmentFault, match="reading only"):
        reader.records.add_path_set(values.request.digest, ("a",))
    assert store.records.find(values.request.digest) is None


# -- path sets -------------------------------------------------------------------------------------------


def test_path_sets_come_newest_first_without_repeats(store: Store) -> None:
    name = object_digest(b"request")
    assert store.records.path_sets(name) == []
    for paths in (("a",), ("b", "c"), ("a",), (), ("b", "c")):
        store.records.add_path_set(name, paths)
    assert store.records.path_sets(name) == [("b", "c"), (), ("a",)]
    assert Store(store.root).records.path_sets(name) == [("b", "c"), (), ("a",)]


def test_at_most_sixteen_path_sets_are_kept(store: Store) -> None:
    name = object_digest(b"request")
    for number in range(20):
        store.records.add_path_set(name, (f"{number}.h",))
    assert store.records.path_sets(name) == [(f"{number}.h",) for number in range(19, 3, -1)]


@pytest.mark.parametrize(
    "harm",
    [b"", b"[]", b"{}", b"\xff", b"[" * 1000, b'{"request_digest":"x","schema":"requiem.paths/1","sets":[["a"]]}'],
    ids=range(6),
)
def test_malformed_path_sets_are_none_and_are_replaced(store: Store, harm: bytes) -> None:
    name = object_digest(b"request")
    store.records.add_path_set(name, ("a",))
    path = store.root / "records" / "paths" / name[:2] / name
    path.unlink()
    path.write_bytes(harm)
    assert store.records.path_sets(name) == []
    store.records.add_path_set(name, ("b",))
    assert store.records.path_sets(name) == [("b",)]


@pytest.mark.parametrize("sets", ['"a"', '["a"]', "[[1]]", '{"a":1}'])
def test_path_sets_of_another_shape_are_none(store: Store, sets: str) -> None:
    name = object_digest(b"request")
    path = store.root / "records" / "paths" / name[:2] / name
    path.parent.mkdir()
    path.write_text(f'{{"request_digest":"{name}","schema":"requiem.paths/1","sets":{sets}}}')
    assert store.records.path_sets(name) == []
    assert list(store.records) == []
