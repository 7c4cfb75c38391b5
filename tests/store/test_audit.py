"""`cas verify`: exactly the damaged set, the same from any number of processes, and repair that loses nothing else."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from requiem_build.core.digest import object_digest
from requiem_build.core.entries import File, make_tree
from requiem_build.core.errors import EnvironmentFault
from requiem_build.core.policy import Policy
from requiem_build.core.request import Request
from requiem_build.core.result import Captured, Record, make_result
from requiem_build.store import gc
from requiem_build.store.audit import audit
from requiem_build.store.fanout import fan_out
from requiem_build.store.layout import Store

ROOT = Path(__file__).resolve().parents[2]


def fill(store: Store, count: int) -> list[str]:
    return [
        store.objects.put(b"object %d" % number * 20, encoding=("identity", "zstd")[number % 2])
        for number in range(count)
    ]


def harm(path: Path, how: str) -> None:
    path.chmod(0o644)
    content = path.read_bytes()
    if how == "flip":
        path.write_bytes(content[:5] + bytes([content[5] ^ 4]) + content[6:])
    elif how == "cut":
        path.write_bytes(content[:-3])
    elif how == "grow":
        path.write_bytes(content + b"more")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "link":
        path.unlink()
        path.symlink_to("/etc/passwd")
    elif how == "fifo":
        path.unlink()
        os.mkfifo(path)
    elif how == "folder":
        path.unlink()
        path.mkdir()


HARMS = ("flip", "cut", "grow", "empty", "link", "fifo", "folder")


@pytest.mark.parametrize("workers", [1, 3])
def test_c31_exactly_the_damaged_set_is_named_and_repair_takes_only_that(store: Store, workers: int) -> None:
    digests = fill(store, 300)
    chosen = random.Random(7).sample(digests, 2 * len(HARMS))
    for number, digest in enumerate(chosen):
        path = store.objects.path(digest) + (".meta" if number >= len(HARMS) else "")
        harm(Path(path), HARMS[number % len(HARMS)])
    seen = [(0, 0)]
    found = audit(store, workers=workers, progress=lambda objects, size: seen.append((objects, size)))
    assert sorted(damage.digest for damage in found.damaged) == sorted(chosen)
    assert seen[-1][0] == found.objects and seen == sorted(seen)
    assert os.listdir(store.root / "v2/quarantine") == [], "looking changes nothing"
    repaired = audit(store, workers=workers, repair=True)
    assert repaired.damaged == found.damaged
    again = audit(store, workers=workers)
    assert again.damaged == [] and again.objects == 300 - len(chosen)
    for digest in digests:
        assert store.objects.check(digest) == (digest not in chosen)


def test_records_path_sets_and_runs_are_checked_too(store: Store, made) -> None:
    values = made("a", b"output")
    for content in (b"output", b"said", b""):
        store.objects.put(content)
    store.records.publish(values.request, values.result, values.record)
    other = made("b", b"output")
    store.records.publish(other.request, other.result, other.record)
    store.records.add_path_set(values.request.digest, ["x.h"])
    facts = {"workspace": "w", "when": "now", "ok": True, "exit_code": 0, "counts": {}}
    store.runs.add("1", store.objects.put(b"journal"), facts)
    assert audit(store, workers=2).ok
    digest = values.request.digest
    wanted = [f"records/{digest[:2]}/{digest}", f"records/paths/{digest[:2]}/{digest}", "runs/1"]
    for path in wanted:
        harm(store.root / path, "flip")
    found = audit(store, workers=2)
    assert [damage.path for damage in found.damaged] == wanted
    audit(store, workers=2, repair=True)
    assert audit(store, workers=2).ok and len(os.listdir(store.root / "v2/quarantine")) == 3
    assert store.records.find(other.request.digest) is not None


def test_a_record_whose_objects_are_gone_is_no_damage_and_repair_removes_it(store: Store, made) -> None:
    values = made("a", b"output")
    for content in (b"output", b"said", b""):
        store.objects.put(content)
    store.records.publish(values.request, values.result, values.record)
    os.unlink(store.objects.path(object_digest(b"output")))
    os.unlink(store.objects.path(object_digest(b"output")) + ".meta")
    found = audit(store, workers=1)
    digest = values.request.digest
    assert found.ok and found.unanswerable == [f"records/{digest[:2]}/{digest}"]
    assert store.records.find(digest) is not None
    audit(store, workers=1, repair=True)
    assert store.records.find(digest) is None
    assert audit(store, workers=1).unanswerable == []


def test_a_damaged_object_makes_its_records_unanswerable(store: Store, made) -> None:
    values = made("a", b"output")
    for content in (b"output", b"said", b""):
        store.objects.put(content)
    store.records.publish(values.request, values.result, values.record)
    harm(Path(store.objects.path(object_digest(b"output"))), "flip")
    for repair in (False, True):
        found = audit(store, workers=2, repair=repair)
        assert [damage.digest for damage in found.damaged] == [object_digest(b"output")]
        assert len(found.unanswerable) == 1
    assert store.records.find(values.request.digest) is None


def test_the_empty_object_is_made_again_rather_than_every_record_lost(store: Store, made) -> None:
    values = made("a", b"")
    store.objects.put(b"said")
    empty = store.objects.put(b"")
    store.records.publish(values.request, values.result, values.record)
    harm(Path(store.objects.path(empty) + ".meta"), "flip")
    audit(store, workers=1, repair=True)
    assert store.missing(values.result) == [] and store.records.find(values.request.digest) is not None


def test_foreign_things_are_named_and_set_aside(store: Store) -> None:
    fill(store, 3)
    (store.root / "v2/objects/hello").write_bytes(b"x")
    shutil.copytree(store.root / "v2/tmp", store.root / "v2/objects/zz")
    found = audit(store, workers=2, repair=True)
    assert [damage.path for damage in found.damaged] == ["v2/objects/hello", "v2/objects/zz"]
    assert audit(store, workers=2).ok


def test_repair_of_a_read_only_store_is_refused(store: Store) -> None:
    with pytest.raises(EnvironmentFault):
        audit(Store(store.root, read_only=True), workers=1, repair=True)


def test_a_helper_that_dies_is_an_error_and_no_process_is_left() -> None:
    def work(number: int, answer) -> None:
        answer({"pid": os.getpid()})
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()

    pids = []
    with pytest.raises(EnvironmentFault):
        for value in fan_out(3, work):
            pids.append(value["pid"])
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_an_interrupted_verify_leaves_no_process(tmp_path: Path, number: int, code: int) -> None:
    """Helpers end when their pipe or their parent does. They are the only holders of the other end of `alive`."""
    store = Store(tmp_path / "cas")
    store.objects.put(bytes(256 << 20))
    read, write = os.pipe()
    process, child = begin_verifying(store, tmp_path, write)
    os.close(write)
    process.send_signal(number)
    assert process.wait(60) == code
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGCONT)  # Its parent is gone: so it goes at its next answer.
    _, err = process.communicate(timeout=60)
    assert b"Traceback" not in err
    assert os.read(read, 1) == b"", "the last holder has ended"
    os.close(read)


def begin_verifying(store: Store, home: Path, alive: int) -> tuple[subprocess.Popen[bytes], int]:
    """A verify that is in the middle of its work, since one of its helpers is stopped."""
    command = [sys.executable, "-m", "requiem_build", "cas", "verify", "-j", "1"]
    environment = {**os.environ, "REQUIEM_CAS_DIR": str(store.root), "PYTHONPATH": str(ROOT), "HOME": str(home)}
    environment.pop("COVERAGE_PROCESS_START", None)
    for _ in range(20):
        process = subprocess.Popen(command, cwd=home, env=environment, pass_fds=[alive], stderr=subprocess.PIPE)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None:
            for child in map(int, children.read_text().split()):
                os.kill(child, signal.SIGSTOP)
                return process, child
        process.communicate()  # It was too quick for us.
    raise AssertionError("no verify could be caught at its work")


@pytest.mark.parametrize("how", [*HARMS, "delete", "delete the metadata"])
@pytest.mark.parametrize("where", ["loose", "packed"])
def test_who_only_looks_at_a_damaged_tree_leaves_it_where_it_is(store: Store, how: str, where: str) -> None:
    """A collection's dry run and a `verify` without repair read the trees that records name."""
    tree, text = make_tree({name: File(object_digest(name.encode()), 1) for name in "ab"})
    request = Request(command=("true",), env={}, inputs={}, outputs=("dir/",), policy=Policy(), platform={"os": "l"})
    result = make_result(
        request, exit_code=0, termination="exited", stdout=Captured(), stderr=Captured(), outputs={"dir/": tree}
    )
    for content in (b"a", b"b", b"", *((text,) if where == "loose" else ())):
        store.objects.put(content)
    path = Path(store.objects.path(tree.digest))
    if where == "packed":
        path = store.root / "v2/packs" / store.objects.packs.write({tree.digest: text})
    record = Record(request.digest, result.digest, "2026-01-01T00:00:00Z", 1, "local", "host", "0", {})
    store.records.publish(request, result, record)
    if how.startswith("delete"):
        (path if how == "delete" or where == "packed" else Path(f"{path}.meta")).unlink()
    else:
        harm(path, how)
    before = snapshot(store.root)
    found = audit(Store(store.root), workers=1)
    said = gc.collect(Store(store.root), gc.Bounds(0), dry_run=True)
    assert snapshot(store.root) == before
    assert audit(Store(store.root), workers=1).damaged == found.damaged
    done = gc.collect(Store(store.root), gc.Bounds(0))
    assert (said.freed, said.items, said.objects, said.packs) == (done.freed, done.items, done.objects, done.packs)


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    found = {str(path): path.lstat() for path in root.rglob("*") if path.name not in ("collecting", "size")}
    return {name: (status.st_ino, status.st_size) for name, status in found.items()}
