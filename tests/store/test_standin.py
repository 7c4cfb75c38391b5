"""A writable store in front of one that is only read: what is found through both, and where things go."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from requiem_build.core.digest import Digest, object_digest
from requiem_build.core.errors import CorruptObject, EnvironmentFault, MissingObject, UnknownName
from requiem_build.core.result import Captured, make_result
from requiem_build.core.verdict import Verdict
from requiem_build.store import encoding, gc
from requiem_build.store.keys import Key, Keys, Verifier
from requiem_build.store.layout import Store
from requiem_build.store.objects import PACK_LEAST
from requiem_build.store.seals import SealedRecords, seal
from requiem_build.store.standin import StandIn, stand_in
from requiem_build.store.verdicts import Verdicts

Made = Callable[..., SimpleNamespace]
LARGE = b"0123456789abcde\n" * 20_000


@pytest.fixture
def below(tmp_path: Path) -> Store:
    """To be filled; `over` sees it as one that cannot be written."""
    return Store(tmp_path / "cas")


def over(below: Store) -> StandIn:
    found = stand_in(below.root.parent / "front", Store(below.root, read_only=True))
    assert isinstance(found, StandIn)
    return found


def put_all(store: Store, contents: list[bytes]) -> list[Digest]:
    packing = store.objects.packing()
    digests = [packing.add(content) for content in contents]
    packing.close()
    return digests


SMALL = st.lists(st.binary(max_size=40), max_size=2 * PACK_LEAST)


@settings(max_examples=25, deadline=None)
@given(there=SMALL, here=SMALL, asked=SMALL)
def test_objects_are_the_union_and_what_is_put_is_whole_in_front(
    tmp_path_factory: pytest.TempPathFactory, there: list[bytes], here: list[bytes], asked: list[bytes]
) -> None:
    lower = Store(tmp_path_factory.mktemp("both") / "cas")
    put_all(lower, there)
    both = over(lower)
    put_all(both, here)
    for content in (*there, *here, *asked):
        digest, known = object_digest(content), content in there or content in here
        assert both.objects.has(digest) == both.objects.check(digest, len(content)) == known
        assert both.objects.size(digest) == (len(content) if known else None)
        if known:
            assert both.objects.get(digest) == content
        else:
            with pytest.raises(MissingObject):
                both.objects.get(digest)
    again = Store(both.front.root)
    assert {digest for digest, _ in again.objects.ls()} == {object_digest(content) for content in here}


FORMS: dict[str, Callable[[Store], bytes]] = {
    "plain": lambda store: LARGE[: store.objects.put(LARGE) and len(LARGE)],
    "compressed": lambda store: LARGE[: store.objects.put(LARGE, encoding=encoding.ZSTD) and len(LARGE)],
    "packed": lambda store: b"7" if put_all(store, [str(i).encode() for i in range(PACK_LEAST)]) else b"",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_a_file_that_may_be_shown(below: Store, form: str) -> None:
    content = FORMS[form](below)
    both = over(below)
    path = Path(both.objects.file(object_digest(content)))
    assert path.read_bytes() == content and path.stat().st_mode & 0o777 == 0o444
    root = below.root if form == "plain" else both.front.root
    assert path.is_relative_to(root) and str(root) in both.roots
    assert os.listdir(both.front.root / "v2/tmp") == []


@pytest.mark.parametrize("mode", [0o666, 0o464])
def test_what_others_may_write_is_copied_before_it_is_shown(below: Store, mode: int) -> None:
    digest = below.objects.put(LARGE)
    blob = Path(below.objects.path(digest))
    blob.chmod(mode)
    both = over(below)
    path = Path(both.objects.file(digest))
    assert path.stat().st_mode & 0o777 == 0o444 and path.read_bytes() == LARGE
    assert path.is_relative_to(both.front.root)


@pytest.mark.parametrize("size", [10, len(LARGE)])
def test_what_is_damaged_there_is_absent_once_it_was_read(below: Store, size: int) -> None:
    content = LARGE[:size]
    digest = below.objects.put(content)
    blob = Path(below.objects.path(digest))
    blob.chmod(0o644)
    blob.write_bytes(content[:-1] + b"!")
    both = over(below)
    with pytest.raises(CorruptObject):
        both.objects.file(digest)
    assert not both.objects.has(digest)
    with pytest.raises(MissingObject):
        both.objects.get(digest)
    both.objects.put(content)
    assert both.objects.get(digest) == content and over(below).objects.get(digest) == content


def test_an_object_that_is_only_larger_than_asked_for_is_not_taken_for_damaged(below: Store) -> None:
    digest = below.objects.put(b"x" * 100)
    both = over(below)
    with pytest.raises(CorruptObject):
        both.objects.get(digest, size_max=10)
    assert both.objects.get(digest) == b"x" * 100


def other_result(values: SimpleNamespace) -> SimpleNamespace:
    result = make_result(
        values.request,
        exit_code=0,
        termination="exited",
        stdout=Captured(object_digest(b"other"), 5),
        stderr=Captured(),
        outputs=values.result.outputs,
    )
    return SimpleNamespace(result=result, record=replace(values.record, result_digest=result.digest))


def test_the_first_result_stays_also_if_it_lies_behind(below: Store, made: Made) -> None:
    values = made("a")
    other = other_result(values)
    below.records.publish(values.request, values.result, values.record)
    both = over(below)
    assert both.records.find(values.request.digest) is not None
    kept = both.records.publish(values.request, other.result, other.record)
    assert kept.diverged and kept.result.digest == values.result.digest
    assert [each.result.digest for each in both.records.divergences(values.request.digest)] == [other.result.digest]
    found = both.records.find(values.request.digest)
    assert found is not None and found.result.digest == values.result.digest
    assert both.records.find_result(other.result.digest) is not None
    both.outbox.add(made("b").request, made("b").result, made("b").record)
    assert both.outbox.flush() == [] and both.front.records.find(made("b").request.digest) is not None
    assert below.records.find(made("b").request.digest) is None


def test_path_sets_of_both_and_new_ones_in_front(below: Store, made: Made) -> None:
    request = made("a").request.digest
    below.records.add_path_set(request, ["old"])
    both = over(below)
    both.records.add_path_set(request, ["new"])
    assert both.records.path_sets(request) == [("new",), ("old",)]
    assert below.records.path_sets(request) == [("old",)]


def test_runs_of_both_in_order(below: Store) -> None:
    def add(store: Store, run: str) -> None:
        summary = {"counts": {}, "exit_code": 0, "ok": True, "when": "2020-01-01T00:00:00Z", "workspace": "w"}
        store.runs.add(run, store.objects.put(b"journal"), summary)

    add(below, "1")
    add(below, "3")
    both = over(below)
    add(both, "2")
    assert both.runs.ids() == [run.run for run in both.runs] == ["1", "2", "3"]
    latest = both.runs.latest("w")
    assert latest is not None and latest.run == "3" and both.runs.get("2").run == "2" and both.runs.latest("x") is None
    with pytest.raises(UnknownName):
        both.runs.get("4")


def test_signed_records_are_seen_through_and_filed_in_front(below: Store, made: Made, tmp_path: Path) -> None:
    keys = Keys(str(tmp_path / "keys"))
    key: Key = keys.new("me")
    values = made("a")
    record = seal(values.record, key)
    SealedRecords(below, Verifier([key]), None, key).publish(values.request, values.result, record)
    both = over(below)
    view = both.with_records(SealedRecords(both, Verifier([key]), None, key))
    scope = both.signed_records(key.key_id)
    assert scope.find(values.request.digest) is not None and len(list(both.scopes())) == 2
    other = other_result(values)
    kept = view.records.publish(values.request, other.result, seal(other.record, key))
    assert kept.diverged and kept.result.digest == values.result.digest
    everybody = both.records.find(values.request.digest)
    assert everybody is not None and everybody.result.digest == values.result.digest
    new = made("b")
    view.outbox.add(new.request, new.result, seal(new.record, key))
    view.outbox.flush()
    assert scope.find(new.request.digest) is not None
    assert both.front.signed_records(key.key_id).find(new.request.digest) is not None


def test_verdicts_are_seen_through(below: Store, made: Made) -> None:
    values = made("a")
    verdict = Verdict(values.request.digest, values.result.digest, "here")
    Verdicts(below).keep(verdict)
    assert Verdicts(over(below)).find(values.request.digest, values.result.digest) == verdict


def test_only_the_front_is_collected(below: Store) -> None:
    kept = below.objects.put(b"there")
    both = over(below)
    gone = both.objects.put(b"here")
    gc.collect(both.written, gc.Bounds(0))
    assert both.objects.has(kept) and not both.objects.has(gone)


def test_a_view_makes_nothing(below: Store) -> None:
    lower = Store(below.root, read_only=True)
    place = below.root.parent / "front"
    assert stand_in(place, lower, read_only=True) is lower and not place.exists()
    both = over(below)
    digest = both.objects.put(b"made meanwhile")
    view = stand_in(place, lower, read_only=True)
    assert view.objects.get(digest) == b"made meanwhile"
    with pytest.raises(EnvironmentFault):
        view.objects.put(b"x")
