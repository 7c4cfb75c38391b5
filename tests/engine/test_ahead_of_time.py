"""What a brief build does beside something else: it reads, looks and packs while other things go on."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from project import Project

from requiem_build.core.events import PlanMade, StepFinished, StepStarted, Warned
from requiem_build.engine import journal as journals
from requiem_build.engine import memory as memories
from requiem_build.engine import noop, quick, sealed, touched
from requiem_build.engine.journal import Journal, line_of
from requiem_build.engine.memory import Memory, PackedRows, Rows
from requiem_build.engine.options import Options
from requiem_build.engine.site import find_site, question_of
from requiem_build.store.encoding import Packed
from requiem_build.store.layout import Store

KEY = bytes(32)
NAMES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12)


# Rows that are searched


def packed(rows: dict[str, bytes]) -> PackedRows:
    made = PackedRows.pack(rows)
    assert made is not None
    index, count, text = made
    return PackedRows(index, count, memoryview(text))


@given(st.dictionaries(NAMES, st.binary(max_size=20)), NAMES)
def test_packed_rows_are_the_rows(rows: dict[str, bytes], other: str) -> None:
    there = packed(rows)
    assert there.unpacked() == rows and there.count == len(rows)
    assert {name: there.find(name) for name in rows} == rows
    assert there.find(other) == rows.get(other)


def test_what_tells_names_apart_is_no_name() -> None:
    rows = {"a": b"1", "aa": b"22", "00000000000c": b"333", "000000000000000000000001": b"4"}
    there = packed(rows)
    for name in ("000000000001", "\0", "\0a", "a\0", "", "000000000000000000000001a", "0"):
        assert there.find(name) is None
    assert {name: there.find(name) for name in rows} == rows
    assert PackedRows.pack({"a\0b": b"x"}) is None


def test_a_name_with_a_nought_is_remembered_too(tmp_path: Path) -> None:
    memory = Memory(last_run="one")
    memory.known["a\0\0b\0"] = ((1, 2, 3, 4, 5), False, ("d" * 64, 1, False))
    memories.save(str(tmp_path), KEY, memory)
    assert dict(memories.load(str(tmp_path), KEY).known) == memory.known


def test_threads_that_ask_while_all_is_unpacked_are_answered() -> None:
    for _ in range(20):
        rows: Rows[int] = Rows(packed({str(n): b"i" + n.to_bytes(4, "little") for n in range(2000)}), int, int)
        wrong: list[object] = []

        def ask(seed: int, rows: Rows[int] = rows, wrong: list[object] = wrong) -> None:
            chance = random.Random(seed)
            for number in range(150):
                n = chance.randrange(2000)
                if rows[str(n)] not in (n, -n):
                    wrong.append(n)
                if number % 10 == 0:
                    rows[str(n)] = -n

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong and len(rows) == 2000
        assert all(rows[name] in (int(name), -int(name)) for name in rows)


# Files that are read early


@pytest.fixture
def saved(tmp_path: Path) -> str:
    path = str(tmp_path / "cache")
    sealed.save_long(path, KEY, ("first", 1), b"tail")
    return path


def loaded(path: str) -> tuple[object, bytes] | None:
    found = sealed.load_long(path, KEY)
    return None if found is None else (found[0], bytes(found[1]))


def read_early(*paths: str) -> None:
    sealed.read_early(paths, KEY)
    for path in paths:
        early = sealed._early[path]
        early.ready.acquire()  # It has read, and whoever asks finds so.
        early.ready.release()


def test_what_was_read_early_is_not_read_again(saved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read_early(saved)
    monkeypatch.setattr(sealed, "_read", None)
    assert loaded(saved) == (("first", 1), b"tail")


def test_what_was_replaced_since_is_read_again(saved: str) -> None:
    read_early(saved)
    sealed.save_long(saved, KEY, ("second", 2), b"other")
    assert loaded(saved) == (("second", 2), b"other")
    assert loaded(saved) == (("second", 2), b"other"), "and once more without"


def test_so_is_what_was_changed_in_its_place(saved: str) -> None:
    read_early(saved)
    with open(saved, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    assert loaded(saved) is None


def test_what_was_not_there_may_be_there_now(tmp_path: Path) -> None:
    path = str(tmp_path / "later")
    read_early(path)
    sealed.save_long(path, KEY, "now", b"")
    assert loaded(path) == ("now", b"")


def test_what_is_gone_or_foreign_is_absent(saved: str, tmp_path: Path) -> None:
    foreign = str(tmp_path / "foreign")
    sealed.save_long(foreign, bytes(31) + b"x", "theirs", b"")
    read_early(saved, foreign)
    os.unlink(saved)
    assert loaded(saved) is None and loaded(foreign) is None


# A journal that is packed on the way


def told(store: Store, journal: Journal, lines: list[bytes]) -> bytes:
    """What the store holds of a journal in which these are told between others."""
    journal(PlanMade(2, {}))
    journal.tell(lines)
    journal(StepStarted("a", "true", "never built here"))
    journal(Warned("end"))
    kept = journal.keep(store)
    journal.close()
    assert kept is not None
    return store.objects.get(kept)


def lines_of(count: int) -> list[bytes]:
    return [line_of(StepFinished(f"s{n}", "fresh", f"{n:064x}", "b" * 64, place=n, needs=())) for n in range(count)]


def fails(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: None,
        lambda patch: patch.setattr(Packed, "add", fails),
        lambda patch: patch.setattr(Packed, "end", lambda _: ("0" * 64, 10, bytes(10))),
        lambda patch: patch.setattr(journals, "PACKED_MAX", 20_000),
        lambda patch: patch.setattr(journals, "COLD_MIN", 1 << 30),
    ],
    ids=["packed", "no room", "nothing saved", "too large", "too small"],
)
def test_a_journal_is_whole_however_it_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[pytest.MonkeyPatch], None]
) -> None:
    spoil(monkeypatch)
    lines = lines_of(100)
    content = told(Store(tmp_path / "store"), Journal("run", str(tmp_path)), lines)
    first, *rest = content.splitlines(keepends=True)
    assert json.loads(first)["event"] == "plan_made" and rest[:100] == lines
    assert [json.loads(line)["event"] for line in rest[100:]] == ["step_started", "warned"]
    times = [json.loads(line)["at_ms"] for line in content.splitlines()]
    assert times == sorted(times) and set(times[:101]) == {0}
    assert not list(tmp_path.glob("*.jsonl"))


def test_one_that_is_packed_is_a_frame_in_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    journal = Journal("run", str(tmp_path))
    journal(PlanMade(2, {}))
    journal.tell(lines_of(100))
    kept = journal.keep(store)
    assert kept is not None
    size = store.objects.size(kept) or 0
    blob = tmp_path / "store/v2/objects" / kept[:2] / kept[2:4] / kept
    assert blob.read_bytes()[:4] == b"\x28\xb5\x2f\xfd" and blob.stat().st_size < size / 2
    journal.close()


# Paths that changed lately are looked at first


@pytest.fixture
def many(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Enough steps that a journal of their lines is packed."""
    for number in range(60):
        project.write(f"src/{number}.txt", f"{number}\n")
    project.manifest("""
        [steps.each]
        foreach.src = "src/*.txt"
        command = "cat {{ src }} > {{ output }}"
        inputs = ["{{ src }}"]
        outputs = ["out/{{ src.name }}"]
    """)
    project.build()
    time.sleep(0.05)  # Past the clock tick in which nothing that was just written can be believed.
    project.run("build")
    monkeypatch.setattr(quick, "SHARE_MIN", 2)
    monkeypatch.setattr(quick, "seen", [])
    return project


def asks_the_door(project: Project) -> int | None:
    root = str(project.root)
    return quick.nothing_to_do(root, "requiem.toml", root, (), project.environment())


def looked_at(project: Project) -> set[str] | None:
    options = Options(str(project.root), project.environment(), brief=True)
    site = find_site(options)
    part = touched.look(site, options, question_of(site, options), memories.load(site.dot, site.seal))
    return None if part is None else set(part.planned.plan.instances)


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


@pytest.mark.userns
def test_a_path_that_is_edited_again_needs_no_look_at_the_others(many: Project) -> None:
    others, descriptors = children(), set(os.listdir("/proc/self/fd"))
    assert asks_the_door(many) == 60
    many.write("src/7.txt", "one\n")
    assert asks_the_door(many) is None
    quick.let_go()
    assert "built: 1 ran, 59 fresh" in many.run("build").err
    many.run("build")  # Of the directory of outputs it is known only now that nothing else happened there.
    assert asks_the_door(many) == 60
    many.write("src/7.txt", "two\n")
    many.write("src/9.txt", "new\n")
    assert asks_the_door(many) is None
    _, value, _ = quick.seen[0]
    assert "src/7.txt" in [value[5][number] for number in value[10]], "the control: it is known from last time"
    assert looked_at(many) == {"each:src/7.txt", "each:src/9.txt"} and not quick.seen
    assert asks_the_door(many) is None
    quick.let_go()
    os.unlink(many.root / "src/7.txt")  # Gone is another stamp, too.
    assert asks_the_door(many) is None
    quick.let_go()
    assert children() == others and set(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.userns
def test_it_is_no_longer_first_once_others_were(many: Project) -> None:
    for number in range(noop.LATELY_MAX + 2):
        many.write(f"src/{number}.txt", "edited\n")
        assert "built: 1 ran" in many.run("build").err
    options = Options(str(many.root), many.environment(), brief=True)
    written = noop.load(find_site(options), options)
    assert written is not None
    names = [written.inside[number] for number in written.lately]
    assert len(names) == noop.LATELY_MAX and names.pop(0) == "out"  # Each of them was followed by an output.
    assert names == [f"src/{number}.txt" for number in reversed(range(3, noop.LATELY_MAX + 2))]


@pytest.mark.userns
def test_the_journal_of_a_large_brief_build_proves_every_step(many: Project) -> None:
    for content in ("one\n", "two\n", "three\n"):
        many.write("src/5.txt", content)
        assert "built: 1 ran, 59 fresh" in many.run("build").err
        assert many.run("replay").code == 0
    assert many.run("cas", "verify").code == 0
    many.write("src/6.txt", "last\n")
    many.run("build")
    assert many.run("replay").code == 0
