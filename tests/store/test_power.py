"""The power fails: a real ext4 with a journal, whose unwritten blocks are lost (C13, C16)."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from project import Project

from requiem_build.core.digest import object_digest
from requiem_build.core.errors import EnvironmentFault
from requiem_build.store import durability, outbox
from requiem_build.store.layout import Store

FS_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
PATIENCE_S = 90


class Disk:
    """A small ext4 in a file, mounted through a loop device; `cut` is what a power failure leaves of it."""

    def __init__(self, base: Path) -> None:
        self.place = base / "disk"
        self.place.mkdir()
        image = base / "image"
        with open(image, "wb") as file:
            file.truncate(96 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
        found = subprocess.run(["losetup", "-f", "--show", str(image)], capture_output=True, text=True)
        if found.returncode != 0:
            raise OSError(found.stderr)
        self.device = found.stdout.strip()
        self._mount()

    def _mount(self) -> None:
        subprocess.run(["mount", self.device, str(self.place)], check=True)

    def cut(self, release: Callable[[], None] = lambda: None) -> None:
        """All that is not on the disk by now is lost. `release` ends whoever still works on it."""
        descriptor = os.open(self.place, os.O_RDONLY)
        fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        os.close(descriptor)
        release()
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            gone = subprocess.run(["umount", str(self.place)], capture_output=True).returncode == 0
            if gone:  # Else somebody who was killed is still on his way out of it.
                self._mount()
            try:
                (self.place / "lost+found" / "probe").touch()
                return
            except (
                OSError
            ):  # A sandbox that is just dying, or another test's, still holds the old mount: it is that one.
                time.sleep(0.01)
        pytest.fail("the file system was never let go of")

    def commit_names(self) -> None:
        """As the journal does every few seconds: names are on the disk, delayed bytes are not."""
        durability.sync_path(str(self.place))

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.place)], check=False)
        subprocess.run(["losetup", "-d", self.device], check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    missing = [tool for tool in ("mkfs.ext4", "losetup") if shutil.which(tool) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"CI must run this test, but it needs {missing}")
    if missing:
        pytest.skip(f"NOT TESTED: needs {missing}")
    if not os.path.exists("/dev/loop-control"):
        print("\nNO POWER-CUT TEST WAS RUN: this host has no loop devices at all", file=sys.__stderr__)
        pytest.skip("NOT TESTED: this host has no loop devices at all")
    try:
        disk = Disk(tmp_path)
    except OSError as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI must run this test: {error}")
        pytest.skip(f"NOT TESTED: {error}")
    yield disk
    disk.close()


def remember(store: Store, values: SimpleNamespace) -> None:
    for content in (values.text, b"said", b""):
        store.objects.put(content)
    store.outbox.add(values.request, values.result, values.record)


def published_is_whole(store: Store) -> int:
    """How many records there are; each one's objects are there and right."""
    count = 0
    for kept in store.records:
        assert store.missing(kept.result) == []
        for entry in kept.result.outputs.values():
            assert store.objects.check(entry.digest), "a record names an object that the power cut took"
        assert store.objects.check(kept.result.stdout.digest)
        count += 1
    return count


@pytest.mark.root
@pytest.mark.parametrize("level", ["none", "batch", "full"])
@pytest.mark.parametrize("committed", [False, True], ids=["at once", "after a journal commit"])
def test_c16_after_a_power_cut_what_was_promised_is_there(disk: Disk, made, level: str, committed: bool) -> None:
    store = Store(disk.place / "cas", durability=level)
    disk.commit_names()
    everything = [made(name=f"step{number}", text=b"output %d" % number * 500) for number in range(20)]
    for values in everything:
        remember(store, values)
    packing = store.objects.packing()
    small = [b"small %d" % number for number in range(30)]
    for content in small:
        packing.add(content)
    packing.close()
    if level == "batch":
        store.outbox.flush()
        store.sync()
    elif level == "none":
        store.outbox.flush()
    if committed:
        disk.commit_names()
    disk.cut()
    after = Store(disk.place / "cas")
    count = published_is_whole(after) if level != "none" else 0
    if level == "full":
        assert count == 20, "a step counts as done when its record is on the disk"
    if level != "none":
        assert all(after.objects.check(object_digest(values.text)) for values in everything)
        assert all(after.objects.check(object_digest(content)) for content in small)
    for content in (b"said", *small, *(values.text for values in everything)):
        digest = object_digest(content)  # Whatever is missing is a miss, nothing is wrong, and a put mends it.
        if after.objects.check(digest):
            assert after.objects.get(digest) == content
        assert after.objects.get(after.objects.put(content)) == content


STEPS = """
[steps.make]
foreach.n = {numbers}
command = "head -c 20000 /dev/zero | tr '\\\\0' {{{{ n }}}} > {{{{ output }}}}"
outputs = ["out/{{{{ n }}}}.txt"]
[steps.many]
command = "mkdir -p tree && for i in $(seq 50); do echo $i > tree/$i; done"
outputs = ["tree/"]
[steps.all]
inputs = ["@make"]
command = "cat {{{{ inputs }}}} > all.txt"
outputs = ["all.txt"]
"""


@pytest.mark.root
@pytest.mark.userns
@pytest.mark.parametrize("level", ["batch", "full"])
def test_c16_the_power_fails_when_a_build_has_ended(disk: Disk, level: str) -> None:
    project = Project(disk.place)
    project.manifest(f'[store]\ndurability = "{level}"\n' + STEPS.format(numbers=list(range(1, 9))))
    disk_sync(project)
    first = project.build().report
    if level == "batch":
        disk.commit_names()
    disk.cut()
    store = Store(project.root / ".cas")
    assert published_is_whole(store) == 10
    assert list(store.objects.verify()) == []
    second = project.build().report
    assert digests(second) == digests(first)
    assert project.read("all.txt") == "".join(str(number) * 20000 for number in range(1, 9))
    assert sorted(os.listdir(project.root / "tree"), key=int) == [str(number) for number in range(1, 51)]
    assert project.build().counts == {"fresh": 10}


@pytest.mark.root
@pytest.mark.userns
def test_c16_the_power_fails_while_a_build_runs(disk: Disk) -> None:
    project = Project(disk.place)
    project.manifest(STEPS.format(numbers=list(range(1, 80))))
    disk_sync(project)
    process = project.start("build", "-j", "2")
    records = project.root / ".cas" / "records"
    while process.poll() is None and not any(records.glob("[0-9a-f][0-9a-f]/*")):
        pass  # Until the first batch is published.
    disk.commit_names()

    def end() -> None:
        process.kill()
        process.communicate()

    disk.cut(end)
    published_is_whole(Store(project.root / ".cas"))
    report = project.build().report
    assert report["ok"]
    names = sorted(f"{number}.txt" for number in range(1, 80))
    assert project.read("all.txt") == "".join(name[0] * 20000 for name in names)


def disk_sync(project: Project) -> None:
    durability.sync_file_system(str(project.root))


def digests(report: dict) -> list[tuple[str, str]]:
    return [(step["request_digest"], step["result_digest"]) for step in report["steps"]]


# The order, without a disk


def test_no_record_is_published_before_its_objects_are_synced(
    store: Store, made, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = made()
    seen = []
    monkeypatch.setattr(outbox, "sync_file_system", lambda _: seen.append(store.records.find(values.request.digest)))
    remember(store, values)
    store.outbox.flush()
    assert seen == [None]
    assert store.records.find(values.request.digest) is not None
    assert os.listdir(store.root / "v2" / "tmp") == []


def test_half_a_second_later_it_is_published_without_a_flush(store: Store, made) -> None:
    values = made()
    remember(store, values)
    timer = store.outbox._timer
    assert timer is not None
    timer.join(timeout=60)
    assert store.records.find(values.request.digest) is not None
    assert store.outbox.flush() == []


def test_what_was_put_after_the_last_records_is_on_the_disk_when_the_run_ends(
    store: Store, made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's journal: of a run that took so long that nothing waits when it ends."""
    synced: list[bool] = []
    journal = object_digest(b"journal")
    monkeypatch.setattr(outbox, "sync_file_system", lambda _: synced.append(store.objects.has(journal)))
    remember(store, made())
    timer = store.outbox._timer
    assert timer is not None
    timer.join(timeout=60)
    store.objects.put(b"journal")
    store.outbox.flush()
    assert synced == [False, True]
    store.outbox.flush()
    assert synced == [False, True], "nothing was put since"


def test_c13_what_cannot_be_synced_is_never_published(store: Store, made, monkeypatch: pytest.MonkeyPatch) -> None:
    values = made()

    def fail(_: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(outbox, "sync_file_system", fail)
    remember(store, values)
    with pytest.raises(EnvironmentFault, match="syncing the store"):
        store.outbox.flush()
    monkeypatch.undo()
    assert store.outbox.flush() == [], "a second sync says nothing about the first"
    assert store.records.find(values.request.digest) is None
    assert os.listdir(store.root / "v2" / "tmp") == []
    remember(store, values)
    store.outbox.flush()
    assert store.records.find(values.request.digest) is not None


def test_a_divergence_is_told_at_once_and_one_that_came_meanwhile_at_the_flush(store: Store, made) -> None:
    first, second = made(), made(text=b"another output")
    store.records.publish(first.request, first.result, first.record)
    told = store.outbox.add(second.request, second.result, second.record)
    assert told.diverged and told.result == first.result
    assert store.outbox.flush() == [], "it was told before"
    third = made(name="b")
    assert not store.outbox.add(third.request, third.result, third.record).diverged
    other = made(name="b", text=b"of another process")
    if store.records.find(third.request.digest) is None:  # Not yet published by the timer.
        Store(store.root).records.publish(other.request, other.result, other.record)
        (news,) = store.outbox.flush()
        assert news.result == other.result
    assert len(list(store.records.divergences())) == 2
