"""Runs: listed once under an id that is never a path, oldest first."""

from __future__ import annotations

import json

import pytest

from requiem_build.core.digest import object_digest
from requiem_build.core.errors import EnvironmentFault, IntegrityError, RequestError, UnknownName, UsageError
from requiem_build.store.layout import Store

JOURNAL = object_digest(b"journal")
SUMMARY = {"workspace": "w1", "when": "2026-11-23T05:00:00Z", "ok": True, "exit_code": 0, "counts": {"ran": 3}}


def test_a_run_is_listed_and_found(store: Store) -> None:
    added = store.runs.add("20261123-050000-ab", JOURNAL, SUMMARY)
    assert store.runs.get("20261123-050000-ab") == added
    assert (added.journal, added.counts, added.ok) == (JOURNAL, {"ran": 3}, True)
    content = (store.root / "runs" / "20261123-050000-ab").read_bytes()
    assert content == added.encoded
    assert json.loads(content)["schema"] == "requiem.run/1"


def test_runs_come_oldest_first_and_the_latest_is_of_its_workspace(store: Store) -> None:
    for run_id, workspace in (("3", "w1"), ("1", "w1"), ("4", "w2"), ("2", "w2")):
        store.runs.add(run_id, JOURNAL, {**SUMMARY, "workspace": workspace})
    assert [run.run for run in store.runs] == ["1", "2", "3", "4"]
    assert store.runs.latest("w1").run == "3"
    assert store.runs.latest("w2").run == "4"
    assert store.runs.latest("w3") is None


def test_an_id_is_taken_once(store: Store) -> None:
    store.runs.add("1", JOURNAL, SUMMARY)
    with pytest.raises(UsageError, match="exists already"):
        store.runs.add("1", JOURNAL, {**SUMMARY, "ok": False})
    assert store.runs.get("1").ok


@pytest.mark.parametrize("run_id", ["", ".", "..", "../x", "a/b", "a\0", "-a", "a" * 65, "é", "a\n", " "])
def test_an_id_is_never_a_path(store: Store, run_id: str) -> None:
    with pytest.raises(UnknownName):
        store.runs.add(run_id, JOURNAL, SUMMARY)
    with pytest.raises(UnknownName):
        store.runs.get(run_id)
    assert list(store.runs) == []


def test_an_unknown_run_is_a_wrong_name(store: Store) -> None:
    with pytest.raises(UnknownName, match='no run "7"'):
        store.runs.get("7")


@pytest.mark.parametrize(
    "change",
    [
        {"ok": 1},
        {"exit_code": True},
        {"counts": {"a": "b"}},
        {"counts": []},
        {"when": None},
        {"more": 1},
        {"workspace": 1},
    ],
    ids=str,
)
def test_a_summary_of_another_shape_is_refused(store: Store, change: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        store.runs.add("1", JOURNAL, {**SUMMARY, **change})


@pytest.mark.parametrize("harm", [b"", b"{}", b"\xff", b"[" * 1000, b"x" * (2 << 20)], ids=range(5))
def test_a_damaged_run_is_an_integrity_error_and_is_passed_over(store: Store, harm: bytes) -> None:
    store.runs.add("1", JOURNAL, SUMMARY)
    store.runs.add("2", JOURNAL, SUMMARY)
    (store.root / "runs" / "2").unlink()
    (store.root / "runs" / "2").write_bytes(harm)
    with pytest.raises(IntegrityError):
        store.runs.get("2")
    assert [run.run for run in store.runs] == ["1"]
    assert store.runs.latest("w1").run == "1"


def test_a_run_under_the_name_of_another_is_damaged(store: Store) -> None:
    store.runs.add("1", JOURNAL, SUMMARY)
    (store.root / "runs" / "2").write_bytes((store.root / "runs" / "1").read_bytes())
    with pytest.raises(IntegrityError):
        store.runs.get("2")


def test_a_store_opened_for_reading_lists_nothing_new(store: Store) -> None:
    with pytest.raises(EnvironmentFault):
        Store(store.root, read_only=True).runs.add("1", JOURNAL, SUMMARY)
