"""Collection: what goes, what stays, and what a running build has pinned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from requiem_build.core.digest import Digest, object_digest
from requiem_build.core.entries import File, make_tree
from requiem_build.core.errors import Busy, EnvironmentFault
from requiem_build.core.result import Captured, make_result
from requiem_build.store import gc, leases, uses
from requiem_build.store.growth import on_disk
from requiem_build.store.inventory import Held, Inventory, Item, take
from requiem_build.store.layout import Store
from requiem_build.store.packs import packed_size

ROOT = Path(__file__).resolve().parents[2]
DAY = 86400.0


def age(store: Store, seconds: float) -> None:
    """Makes everything in the store that much older: the clock is only ever read from its files."""
    for path in store.root.rglob("*"):
        if path.is_file() and "leases" not in path.parts:
            found = path.lstat()
            os.utime(path, (found.st_atime - seconds, found.st_mtime - seconds))


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change time cannot be set: here only modification times count, so that a test can make things old."""
    for module in ("gc", "inventory"):
        name = f"requiem_build.store.{module}.latest"
        monkeypatch.setattr(name, lambda *found: max(one.st_mtime for one in found))


def publish(store: Store, made: Callable[..., object], name: str, text: bytes) -> Digest:
    values = made(name, text)
    store.objects.put(text)
    store.objects.put(b"said")
    store.objects.put(b"")
    store.objects.put(name.encode())
    store.records.publish(values.request, values.result, values.record)
    return values.request.digest


def on_disk_now(store: Store) -> int:
    families = ("v2/objects", "records", "runs")
    return sum(
        on_disk(path.lstat().st_size)
        for family in families
        for path in (store.root / family).rglob("*")
        if path.is_file()
    )


def is_whole(store: Store, request: Digest) -> bool:
    kept = store.records.find(request)
    return kept is not None and store.missing(kept.result) == []


# What goes and what stays


def test_what_was_used_least_recently_goes_first(store: Store, made) -> None:
    requests = []
    for number in range(6):
        requests.append(publish(store, made, f"in{number}", b"%d" % number * 20_000))
        age(store, DAY)
    assert store.records.find(requests[1]) is not None  # A use: it is the youngest now.
    before = on_disk_now(store)
    done = gc.collect(store, gc.Bounds(before * 3 // 5))
    assert on_disk_now(store) <= before * 3 // 5 and done.freed == before - on_disk_now(store)
    assert done.kept == on_disk_now(store)
    there = [is_whole(store, request) for request in requests]
    assert there == [False, True, False, False, True, True]
    assert store.records.find(requests[0]) is None, "a record never outlives its objects"
    assert list(store.objects.verify()) == []
    assert os.listdir(store.root / "v2/tmp") == []


def test_a_kept_record_keeps_inputs_outputs_logs_and_whole_trees(store: Store, made) -> None:
    contents = [b"in a tree %d" % number for number in range(3)]
    inner, inner_list = make_tree({"x": File(store.objects.put(contents[0]), len(contents[0]))})
    outer, outer_list = make_tree({"sub": inner, "y": File(store.objects.put(contents[1]), len(contents[1]))})
    values = made("a")
    result = make_result(
        values.request,
        exit_code=0,
        termination="exited",
        stdout=Captured(store.objects.put(b"said"), 4),
        stderr=Captured(store.objects.put(b""), 0),
        outputs={"dir/": outer},
    )
    for content in (inner_list, outer_list, b"a"):
        store.objects.put(content)
    orphan = store.objects.put(b"nobody names this")
    record = replace(values.record, result_digest=result.digest)
    store.records.publish(values.request, result, record)
    age(store, 2 * DAY)
    gc.collect(store, gc.Bounds())
    assert not store.objects.has(orphan)
    assert is_whole(store, values.request.digest)
    assert store.objects.get(object_digest(b"a")) == b"a", "an input is kept: replay needs it"


def test_what_one_key_signed_is_kept_and_goes_like_every_other_record(store: Store, made) -> None:
    values = made("signed", b"signed output")
    for content in (b"signed output", b"said", b"", b"signed"):
        store.objects.put(content)
    mine = store.signed_records("ab" * 32)
    mine.publish(values.request, values.result, values.record)
    age(store, 2 * DAY)
    gc.collect(store, gc.Bounds())
    assert store.objects.has(object_digest(b"signed output")) and mine.find(values.request.digest) is not None
    gc.collect(store, gc.Bounds(age_max_s=0))
    assert not store.objects.has(object_digest(b"signed output")) and mine.find(values.request.digest) is None


def test_what_nothing_names_stays_for_a_day_if_there_is_room(store: Store) -> None:
    digest = store.objects.put(b"put by hand")
    gc.collect(store, gc.Bounds())
    assert store.objects.has(digest)
    gc.collect(store, gc.Bounds(size_max=1))
    assert not store.objects.has(digest)


def test_a_record_that_lost_an_object_goes_and_so_do_its_other_objects(store: Store, made) -> None:
    request = publish(store, made, "a", b"output")
    os.unlink(store.objects.path(object_digest(b"output")))
    age(store, 2 * DAY)
    gc.collect(store, gc.Bounds())
    assert store.records.find(request) is None
    assert list(store.objects.ls()) == []


def test_one_record_that_is_larger_than_the_bound_pushes_nothing_else_out(store: Store, made) -> None:
    small = publish(store, made, "small", b"s")
    large = publish(store, made, "large", b"l" * 1_000_000)
    gc.collect(store, gc.Bounds(500_000))
    assert is_whole(store, small)
    assert store.records.find(large) is None


def test_an_age_drops_what_was_not_used_for_so_long(store: Store, made) -> None:
    old = publish(store, made, "old", b"old")
    age(store, 3 * DAY)
    young = publish(store, made, "young", b"young")
    gc.collect(store, gc.Bounds(age_max_s=2 * DAY))
    assert store.records.find(old) is None and not store.objects.has(object_digest(b"old"))
    assert is_whole(store, young)
    gc.collect(store, gc.Bounds(age_max_s=0))
    assert take(store).items == [] and take(store).objects == {}


def test_old_runs_are_bounded_for_each_workspace(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "RUNS_MAX", 3)
    facts = {"when": "2026-01-01T00:00:00Z", "ok": True, "exit_code": 0, "counts": {}}
    for number in range(5):
        for workspace in ("one", "two"):
            journal = store.objects.put(b"journal %d of %s" % (number, workspace.encode()))
            store.runs.add(f"{number}-{workspace}", journal, {"workspace": workspace, **facts})
        age(store, 10)
    age(store, 2 * DAY)
    gc.collect(store, gc.Bounds())
    assert [run.run for run in store.runs] == [f"{n}-{w}" for n in (2, 3, 4) for w in ("one", "two")]
    assert all(store.objects.has(run.journal) for run in store.runs)
    assert len(list(store.objects.ls())) == 6


def test_a_run_keeps_its_journal_and_what_its_failed_steps_wrote(store: Store) -> None:
    log = store.objects.put(b"it went wrong")
    manifest = store.objects.put(b"[project]")
    line = b'{"event":"plan_made","manifest":{"requiem.toml":"%s"}}\n' % manifest.encode()
    line += b'{"event":"step_finished","stderr_digest":"%s"}\n' % log.encode()
    journal = store.objects.put(line)
    facts = {"when": "2026-01-01T00:00:00Z", "ok": False, "exit_code": 1, "counts": {}, "workspace": "w"}
    store.runs.add("1", journal, facts)
    age(store, 2 * DAY)
    gc.collect(store, gc.Bounds())
    assert store.objects.has(journal) and store.objects.has(log) and store.objects.has(manifest)


def test_a_dry_run_says_the_same_and_changes_nothing(store: Store, made, below) -> None:
    for number in range(4):
        publish(store, made, f"{number}", b"%d" % number * 9000)
        age(store, DAY)
    before = below(store.root)
    said = gc.collect(Store(store.root, read_only=True), gc.Bounds(40_000), dry_run=True)
    assert below(store.root) == before
    done = gc.collect(store, gc.Bounds(40_000))
    assert (said.freed, said.kept, said.items, said.objects) == (done.freed, done.kept, done.items, done.objects)
    assert said.freed > 0


def test_quarantine_goes_by_age(store: Store, times) -> None:
    path = store.root / "v2/quarantine/something"
    path.write_bytes(b"bad")
    (store.root / "v2/quarantine/folder").mkdir()
    gc.collect(store, gc.Bounds())
    assert path.exists()
    assert gc.collect(store, gc.Bounds(age_max_s=0)).quarantined == 2
    assert os.listdir(store.root / "v2/quarantine") == []


def test_a_read_only_store_is_not_collected(store: Store) -> None:
    with pytest.raises(EnvironmentFault):
        gc.collect(Store(store.root, read_only=True), gc.Bounds(0))


def test_nothing_is_deleted_through_a_link_out_of_the_store(store: Store, tmp_path: Path) -> None:
    digest = store.objects.put(b"precious elsewhere")
    inner = Path(store.objects.path(digest)).parent
    outside = tmp_path / "outside"
    inner.rename(outside)
    inner.symlink_to(outside)
    gc.collect(store, gc.Bounds(age_max_s=0))
    assert sorted(path.name for path in outside.iterdir()) == [digest, digest + ".meta"]


# Packs that are mostly dead


def pack_of(store: Store, contents: list[bytes]) -> None:
    packing = store.objects.packing()
    for content in contents:
        packing.add(content)
    packing.close()


def name_packed(store: Store, made, name: str, contents: list[bytes]) -> Digest:
    """A record of a directory whose files lie in a pack already."""
    values = made(name)
    tree, text = make_tree({f"{n}": File(object_digest(c), len(c)) for n, c in enumerate(contents)})
    store.objects.put(text)
    store.objects.put(b"said")
    store.objects.put(b"")
    result = make_result(
        values.request,
        exit_code=0,
        termination="exited",
        stdout=Captured(object_digest(b"said"), 4),
        stderr=Captured(),
        outputs={"d/": tree},
    )
    store.records.publish(values.request, result, replace(values.record, result_digest=result.digest))
    return values.request.digest


PACKED = [b"packed %d " % number * 500 for number in range(20)]


@pytest.fixture
def half_dead(store: Store, made) -> Digest:
    """The pack's first two objects are named by a record, the others by one that goes as it is older."""
    pack_of(store, PACKED)
    name_packed(store, made, "old", PACKED)
    age(store, 30 * DAY)
    young = name_packed(store, made, "young", PACKED[:2])
    for pack in store.objects.packs:
        os.utime(pack.path, (time.time() - 2 * DAY, time.time() - 2 * DAY))
    return young


def test_a_pack_that_is_mostly_dead_is_written_anew(store: Store, half_dead: Digest) -> None:
    (before,) = store.objects.packs
    bounds = gc.Bounds(age_max_s=10 * DAY)
    said = gc.collect(store, bounds, dry_run=True)
    done = gc.collect(store, bounds)
    assert (said.repacked, said.freed, said.kept) == (done.repacked, done.freed, done.kept)
    assert done.repacked == 1 and take(store).size == done.kept
    fresh = Store(store.root)
    (pack,) = fresh.objects.packs
    assert len(pack) == 2 and pack.size < before.size / 2 and abs(time.time() - 2 * DAY - pack.used) < 300
    kept = fresh.records.find(half_dead)
    assert kept is not None and fresh.missing(kept.result) == []
    assert [fresh.objects.get(object_digest(content)) for content in PACKED[:2]] == PACKED[:2]
    assert not any(fresh.objects.has(object_digest(content)) for content in PACKED[2:])
    assert list(fresh.objects.verify()) == []
    assert gc.collect(store, bounds).repacked == 0, "once is enough"


def test_a_reader_who_knows_the_old_pack_finds_the_new_one(store: Store, half_dead: Digest) -> None:
    reader = Store(store.root)
    assert reader.objects.get(object_digest(PACKED[0])) == PACKED[0]
    for pack in store.objects.packs:
        os.utime(pack.path, (time.time() - 2 * DAY, time.time() - 2 * DAY))
    gc.collect(store, gc.Bounds(age_max_s=10 * DAY))
    assert reader.objects.get(object_digest(PACKED[1])) == PACKED[1]


def test_a_pack_that_a_running_build_may_need_is_not_written_anew(store: Store, half_dead: Digest) -> None:
    process = hold(store.root)
    try:
        done = gc.collect(store, gc.Bounds(age_max_s=10 * DAY))
        assert done.repacked == 0
        assert [len(pack) for pack in store.objects.packs] == [20]
    finally:
        process.communicate(b"")
    assert gc.collect(store, gc.Bounds(age_max_s=10 * DAY)).repacked == 1


def test_a_damaged_object_is_left_out_when_a_pack_is_written_anew(store: Store, half_dead: Digest) -> None:
    (pack,) = store.objects.packs
    offset, _ = pack.find(bytes.fromhex(object_digest(PACKED[0]))) or (0, 0)
    os.chmod(pack.path, 0o644)
    with open(pack.path, "rb+") as file:
        file.seek(offset)
        file.write(b"?")
    gc.collect(store, gc.Bounds(age_max_s=10 * DAY))
    assert Store(store.root).objects.get(object_digest(PACKED[1])) == PACKED[1]
    assert not Store(store.root).objects.has(object_digest(PACKED[0]))
    assert list(store.objects.verify()) == []


# Laws of the decision

digests = st.integers(0, 11).map(lambda number: object_digest(b"%d" % number))
some = st.frozensets(digests, max_size=4)
when = st.floats(0, 1000)


@st.composite
def inventories(draw: st.DrawFn) -> Inventory:
    found = Inventory()
    for digest in draw(st.sets(digests)):
        used = draw(when)
        touched = used + draw(st.floats(0, 50))
        found.objects[digest] = Held(digest, draw(st.integers(1, 100)), used, touched, draw(st.integers(0, 9)) > 0)
    for name in draw(st.sets(st.sampled_from(["pack one", "pack two"]))):
        used = draw(when)
        members = found.members[name] = draw(st.dictionaries(digests, st.sampled_from([0, 2000, 9000]), max_size=6))
        pack = found.packs[name] = Held(name, on_disk(packed_size(members.values())), used, used, is_pack=True)
        for digest in members:
            found.objects.setdefault(digest, pack)
    for number in range(draw(st.integers(0, 6))):
        used = draw(when)
        kind = draw(st.sampled_from(["record", "run", "divergence"]))
        found.items.append(Item(kind, f"{number}", f"/{number}", 10, used, used, draw(some), draw(some), "w"))
    found.trees = {digest: tuple(draw(some)) for digest in draw(st.sets(digests, max_size=3))}
    return found


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # Other load on the machine is no fault.
@given(
    inventories(),
    st.integers(0, 600) | st.integers(0, 200_000),
    st.none() | st.floats(0, 1000),
    st.none() | st.floats(0, 1000),
)
def test_laws_of_what_goes(
    found: Inventory, size_max: int, age_max_s: float | None, pinned_since: float | None
) -> None:
    plan = gc.decide(found, gc.Bounds(size_max, age_max_s), pinned_since=pinned_since, now=1000)
    gone, gone_items = {held.name for held in plan.objects}, {item.path for item in plan.items}
    kept = {digest for digest, held in found.objects.items() if held.name not in gone}
    kept_items = [item for item in found.items if item.path not in gone_items]
    assert plan.kept + plan.freed == found.size, "everything is counted once"
    assert plan.kept <= size_max + plan.pinned, "the bound holds but for what is pinned"
    if pinned_since is not None:
        assert all(held.touched < pinned_since for held in plan.objects), "what is pinned stays"
        assert all(item.touched < pinned_since for item in plan.items)
        assert all(each.held.touched < pinned_since for each in plan.repacks)
    for each in plan.repacks:
        dead = {d for d in found.members[each.held.name] if found.objects[d] is each.held} - set(each.alive)
        assert each.held.name not in gone and each.alive and 2 * each.saved >= each.held.size
        kept -= dead

    def pinned(item: Item) -> bool:
        return pinned_since is not None and item.touched >= pinned_since

    def everything(tops: frozenset[Digest]) -> set[Digest]:
        seen: set[Digest] = set()
        pending = list(tops)
        while pending:
            digest = pending.pop()
            if digest not in seen:
                seen.add(digest)
                pending += found.trees.get(digest, ()) if digest in found.objects else ()
        return seen

    for item in kept_items:
        assert pinned(item) or everything(item.needs) <= kept, "a kept record has all that it needs"
        assert everything(item.names) & found.objects.keys() <= kept
        assert pinned(item) or age_max_s is None or 1000 - item.used < age_max_s
    if age_max_s is None and size_max >= found.size:
        whole = {d for d in found.objects if found.objects[d].whole}
        for item in plan.items:
            assert not everything(item.needs) <= whole, "with room enough nothing useful goes"
    assert [item.used for item in plan.items] == sorted(item.used for item in plan.items), "the oldest go first"


# Leases


def hold(root: Path) -> subprocess.Popen[bytes]:
    """A real process that holds a lease on a store."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path; from requiem_build.store.layout import Store\n"
        f"with Store(Path({str(root)!r})).lease(): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


def test_what_a_running_build_put_or_used_is_pinned_until_it_ends(store: Store, made, times) -> None:
    used = publish(store, made, "used", b"used")
    unused = publish(store, made, "unused", b"unused")
    age(store, 2 * DAY)
    process = hold(store.root)
    assert store.records.find(used) is not None and store.objects.get(object_digest(b"used")) == b"used"
    put = store.objects.put(b"put meanwhile")
    done = gc.collect(store, gc.Bounds(size_max=0))
    assert store.records.find(unused) is None and not store.objects.has(object_digest(b"unused"))
    assert store.records.find(used) is not None
    assert store.objects.has(put) and store.objects.has(object_digest(b"used"))
    assert done.pinned > 0
    process.communicate(b"")
    gc.collect(store, gc.Bounds(size_max=0))
    assert take(store).size == 0
    assert os.listdir(store.root / "v2/leases") == []


def test_a_lease_ends_with_its_holder_however_that_dies(store: Store) -> None:
    process = hold(store.root)
    assert leases.oldest(f"{store.root}/v2") is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(os.listdir(store.root / "v2/leases")) == 1, "nobody could tidy up"
    digest = store.objects.put(b"x")
    gc.collect(store, gc.Bounds(size_max=0))
    assert not store.objects.has(digest)
    assert os.listdir(store.root / "v2/leases") == []
    process.communicate()


def test_what_a_killed_holder_left_goes_with_the_next_lease(store: Store) -> None:
    """A store that never grows over its size is never collected."""
    dead, living = hold(store.root), hold(store.root)
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    with store.lease():
        assert len(os.listdir(store.root / "v2/leases")) == 2, "the living one's and this one's"
    assert len(os.listdir(store.root / "v2/leases")) == 1
    living.kill()
    for process in (dead, living):
        process.communicate()


def test_the_oldest_of_several_leases_counts(store: Store) -> None:
    with store.lease():
        first = leases.oldest(f"{store.root}/v2")
        with store.lease():
            assert leases.oldest(f"{store.root}/v2") == first
        assert leases.oldest(f"{store.root}/v2") == first
    assert leases.oldest(f"{store.root}/v2") is None


def test_what_is_no_lease_is_swept(store: Store, tmp_path: Path) -> None:
    folder = store.root / "v2/leases"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    os.mkfifo(folder / "fifo")
    (folder / "old").write_bytes(b"")
    assert leases.oldest(f"{store.root}/v2") is None
    assert os.listdir(folder) == [] and tmp_path.exists()


def test_a_lease_that_begins_during_a_collection_is_heeded(store: Store, times) -> None:
    """The build begins after the plan was made: what it may have used before that was noted is spared as well."""
    digests = [store.objects.put(b"%d" % number) for number in range(20)]
    age(store, uses.GRAIN_S / 2)  # So recent that a use would not be noted again.
    running: list[subprocess.Popen[bytes]] = []

    def tick() -> None:
        if not running and sum(store.objects.has(digest) for digest in digests) < 20:
            running.append(hold(store.root))

    gc.collect(store, gc.Bounds(size_max=0), tick=tick)
    assert sum(store.objects.has(digest) for digest in digests) >= 18
    running[0].communicate(b"")


@pytest.mark.parametrize("use", ["get", "has", "put", "file", "find"])
def test_what_is_used_between_judgement_and_deletion_stays(store: Store, made, times, use: str) -> None:
    request = publish(store, made, "a", b"output")
    digest = object_digest(b"output")
    age(store, 2 * DAY)
    done = False

    def tick() -> None:
        """Called last right before each deletion."""
        nonlocal done
        if sweep_began[0] and not done:
            done = True
            {
                "get": lambda: store.objects.get(digest),
                "has": lambda: store.objects.has(digest),
                "put": lambda: store.objects.put(b"output"),
                "file": lambda: store.objects.file(digest),
                "find": lambda: store.records.find(request),
            }[use]()

    sweep_began = [False]
    real = gc.decide

    def decide(*arguments: object, **options: object) -> gc.Plan:
        sweep_began[0] = True
        return real(*arguments, **options)  # type: ignore[arg-type]

    gc.decide = decide  # type: ignore[assignment]
    try:
        gc.collect(store, gc.Bounds(size_max=0), tick=tick)
    finally:
        gc.decide = real
    if use == "find":
        assert store.records.find(request) is not None
    else:
        assert store.objects.get(digest) == b"output"
    assert os.listdir(store.root / "v2/quarantine") == os.listdir(store.root / "v2/tmp") == []


def test_a_blob_taken_away_and_wanted_again_is_given_back(store: Store, times, monkeypatch) -> None:
    digest = store.objects.put(b"wanted")
    age(store, 2 * DAY)
    real = gc._Sweep._take_away

    def take_away(self: gc._Sweep, path: str, touched: float) -> str | None:
        taken = real(self, path, touched)
        os.utime(path + ".meta")  # Somebody who had looked before notes his use now.
        return taken

    monkeypatch.setattr(gc._Sweep, "_take_away", take_away)
    gc.collect(store, gc.Bounds(size_max=0))
    assert store.objects.get(digest) == b"wanted"
    assert os.listdir(store.root / "v2/tmp") == []


# Uses


def test_a_use_is_noted_once_an_hour_and_a_time_in_the_future_is_set_right(store: Store) -> None:
    digest = store.objects.put(b"x")
    meta = Path(store.objects.path(digest) + ".meta")

    def used_after(mtime: float) -> float:
        os.utime(meta, (mtime, mtime))
        store.objects.get(digest)
        return meta.stat().st_mtime

    now = time.time()
    assert used_after(now - 1000) == pytest.approx(now - 1000, abs=1)
    assert used_after(now - 5000) == pytest.approx(now, abs=60)
    assert used_after(now + 10 * DAY) == pytest.approx(now, abs=60)


def test_looking_after_a_store_is_no_use(store: Store, made) -> None:
    from requiem_build.store.audit import audit
    from requiem_build.store.usage import usage

    publish(store, made, "a", b"output")
    age(store, 5 * DAY)
    before = {path: path.stat().st_mtime for path in store.root.rglob("*") if path.is_file()}
    audit(store, workers=1)
    usage(store)
    gc.collect(store, gc.Bounds(), dry_run=True)
    assert list(store.objects.ls())
    assert {path: path.stat().st_mtime for path in before} == before


# One at a time


def test_two_collections_wait_for_each_other_or_say_busy(store: Store) -> None:
    with gc.alone(store, wait=False), pytest.raises(Busy), gc.alone(Store(store.root), wait=False):
        pass
    with gc.alone(store, wait=False):
        pass


def test_a_store_deleted_while_it_is_collected_is_no_error(store: Store) -> None:
    import shutil

    for number in range(10):
        store.objects.put(b"%d" % number)
    calls = 0

    def tick() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            shutil.rmtree(store.root / "v2/objects")

    gc.collect(store, gc.Bounds(size_max=0), tick=tick)


def test_a_store_whose_size_is_lost_is_counted_anew_and_not_taken_for_empty(store: Store) -> None:
    store.objects.put(b"x" * 9000)
    (store.root / "v2/size").unlink()
    again = Store(store.root)
    assert again.growth.estimate() is None
    gc.collect(again, gc.Bounds())
    counted = again.growth.estimate()
    assert counted is not None and counted.size >= 9000


def test_the_estimate_follows_what_is_written(store: Store) -> None:
    begun = store.growth.estimate()
    assert begun is not None and begun.size == begun.built_ms == 0, "a store that was just made holds nothing"
    gc.collect(store, gc.Bounds())
    for number in range(10):
        store.objects.put(b"%d" % number * 3000)
    store.objects.put_path(__file__)
    store.growth.add(store.scratch.written, 50)
    estimate = store.growth.estimate()
    assert estimate is not None and estimate.built_ms == 50
    assert on_disk_now(store) <= estimate.size <= 1.2 * on_disk_now(store)
    gc.collect(store, gc.Bounds())
    counted = store.growth.estimate()
    assert counted is not None and counted.size == on_disk_now(store) and counted.built_ms == 0


@pytest.mark.parametrize(
    "content", [b"", b"x\n", b"1 2\n", b"1 2 3\nx y\n", b"\xff", b"1" * 5000 + b" 2 3", b"1 2 3\n" * 90_000]
)
def test_a_damaged_estimate_is_none(store: Store, content: bytes) -> None:
    (store.root / "v2/size").write_bytes(content)
    assert store.growth.estimate() is None
