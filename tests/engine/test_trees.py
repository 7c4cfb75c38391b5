"""Directory outputs as users meet them: many small files, kept in the store alone, and large files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import Project

from requiem_build.core.digest import object_digest
from requiem_build.store.layout import Store

pytestmark = pytest.mark.userns

TREE = """
[steps.modules]
command = "mkdir -p modules/a/b modules/empty && for i in $(seq 300); do echo file $i > modules/a/b/$i.js; done"
outputs = ["modules/"]
{more}
[steps.count]
command = "cat modules/a/b/*.js | wc -l > count.txt; test -d modules/empty"
inputs = ["modules/"]
outputs = ["count.txt"]
"""


def files_of(store: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(store / "v2"))


def test_a_directory_of_small_files_is_a_pack_and_comes_back_whole(project: Project) -> None:
    project.manifest(TREE.format(more=""))
    project.build()
    assert project.read("count.txt").strip() == "300"
    assert files_of(project.root / ".cas") < 20
    assert len(list((project.root / ".cas/v2/packs").iterdir())) == 1
    shutil.rmtree(project.root / "modules")
    assert project.build().counts == {"hit": 1, "fresh": 1}
    assert project.read("modules/a/b/7.js") == "file 7\n"
    assert (project.root / "modules/empty").is_dir()
    assert project.build().counts == {"fresh": 2}
    digest = object_digest(b"file 7\n")
    assert project.run("cas", "get", digest).out == "file 7\n"
    assert digest in project.run("cas", "ls").out
    path = Path(project.run("cas", "path", digest).out.strip())
    assert path.name == digest and path.read_bytes() == b"file 7\n"


def test_a_damaged_pack_costs_one_run_and_no_repair(project: Project) -> None:
    project.manifest(TREE.format(more=""))
    first = project.build().report
    (pack,) = (project.root / ".cas/v2/packs").iterdir()
    content = bytearray(pack.read_bytes())
    content[-3] ^= 4
    pack.chmod(0o644)
    pack.write_bytes(content)
    verified = project.run("cas", "verify")
    assert verified.code == 3 and len(verified.out.splitlines()) == 1
    shutil.rmtree(project.root / "modules")
    again = project.build()
    assert again.report["ok"]
    assert [s["result_digest"] for s in again.report["steps"]] == [s["result_digest"] for s in first["steps"]]
    assert len(list((project.root / "modules/a/b").iterdir())) == 300
    assert project.run("cas", "verify").code == 0


def test_outputs_that_are_not_laid_out_stay_in_the_store_and_are_shown_to_others(project: Project) -> None:
    project.manifest(TREE.format(more="lay_out = false"))
    project.build()
    assert project.read("count.txt").strip() == "300"
    assert not project.exists("modules")
    assert project.build().counts == {"fresh": 2}
    os.unlink(project.root / "count.txt")
    assert project.build().counts == {"fresh": 1, "hit": 1}
    assert not project.exists("modules")
    (pack,) = (project.root / ".cas/v2/packs").iterdir()
    pack.unlink()
    shutil.rmtree(project.root / ".cas/v2/objects")
    assert project.build().report["ok"], "what the store lost is made again"
    assert project.read("count.txt").strip() == "300"


# Large files, where the file system can clone them


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    if shutil.which("mkfs.xfs") is None or not os.path.exists("/dev/loop-control"):
        if os.environ.get("CI") and os.path.exists("/dev/loop-control"):
            pytest.fail("CI must run this test, but it needs mkfs.xfs")
        pytest.skip("NOT TESTED: needs mkfs.xfs and loop devices")
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(400 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def used(place: Path) -> int:
    os.sync()
    room = os.statvfs(place)
    return (room.f_blocks - room.f_bfree) * room.f_frsize


@pytest.mark.root
def test_large_files_share_blocks_where_that_can_be_and_never_an_inode(xfs: Path) -> None:
    store = Store(xfs / "cas")
    content = os.urandom(32 << 20)
    (xfs / "source").write_bytes(content)
    before = used(xfs)
    digest, _ = store.objects.put_path(str(xfs / "source"))
    assert digest == object_digest(content)
    descriptor = os.open(xfs / "laid out", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    store.objects.copy_to(digest, descriptor)
    os.close(descriptor)
    assert used(xfs) - before < 8 << 20, "three files, the blocks of one"
    assert (xfs / "laid out").read_bytes() == content
    blob = Path(store.objects.path(digest))
    assert len({(xfs / name).stat().st_ino for name in ("source", "laid out")} | {blob.stat().st_ino}) == 3
    for name in ("source", "laid out"):
        with open(xfs / name, "r+b") as file:
            file.write(b"changed")
    assert store.objects.get(digest) == content
    blob.chmod(0o644)
    with open(blob, "r+b") as file:
        file.write(b"rot")
    descriptor = os.open(xfs / "bad", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with pytest.raises(Exception, match="damaged"):
        store.objects.copy_to(digest, descriptor)
    os.close(descriptor)


# What succeeded is remembered, however the build ends

TWO = """
[steps.first]
command = "echo 1 > first.txt"
outputs = ["first.txt"]
[steps.second]
command = "{second}"
inputs = ["first.txt"]
"""


def records(project: Project) -> int:
    return len(list((project.root / ".cas/records").glob("[0-9a-f][0-9a-f]/*")))


def test_what_succeeded_before_a_failure_is_remembered(project: Project) -> None:
    project.manifest(TWO.format(second="exit 1"))
    project.build(expect=1)
    assert records(project) == 1
    shutil.rmtree(project.root / ".requiem")
    os.unlink(project.root / "first.txt")
    assert project.build(expect=1).states == {"first": "hit", "second": "failed"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_succeeded_before_an_interruption_is_remembered(project: Project, number: signal.Signals) -> None:
    project.manifest(TWO.format(second="sleep 60"))
    process = project.start("build")
    assert process.stderr is not None
    for line in process.stderr:  # The first step's line comes at once, its record half a second later.
        if b"first" in line:
            break
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert records(project) == 1


def test_a_result_that_differs_is_told_by_its_step_and_never_published(project: Project) -> None:
    project.manifest("""
        [steps.roll]
        command = "head -c 16 /dev/urandom > dice"
        outputs = ["dice"]
    """)
    project.build()
    again = project.build("--cache", "wo")
    assert "gave another result than before" in str(again.step("roll")["warnings"])
    assert records(project) == 1
    assert len(list((project.root / ".cas/records/divergences").rglob("*"))) == 2
