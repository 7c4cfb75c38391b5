"""A store that cannot be written: what it has is used, what it lacks is made, and it stays as it is.

As root it lies on a file system that is mounted read-only, in a mount namespace of its own; as an ordinary user its
directories are 0555. One test has the store of another user.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from project import SOURCE, Project, Ran

from requiem_build.core.digest import Digest, object_digest
from requiem_build.store.layout import Store

pytestmark = pytest.mark.userns

MANIFEST = """
    [steps.big]
    inputs = ["large", "a"]
    outputs = ["big.out"]
    command = "cat large a > big.out"

    [steps.tree]
    inputs = ["a", "b"]
    outputs = ["dir/"]
    command = "mkdir dir; for i in $(seq 40); do echo $i > dir/$i; done; cat a b > dir/a"

    [steps.last]
    inputs = ["big.out", "dir/", "c"]
    outputs = ["last.out"]
    command = "cat big.out dir/* c > last.out"
"""
LARGE = b"0123456789abcde\n" * 20_000
TOLD = "the store is read-only: "


class Reader(Project):
    """A workspace whose store somebody else fills."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.cas = base / "cas"
        self.manifest(MANIFEST)
        self.write("large", LARGE)
        for name in "abc":
            self.write(name, name + "\n")

    def environment(self, extra: Any = None) -> dict[str, str]:
        return {**super().environment({"REQUIEM_CAS_DIR": str(self.cas)}), **(extra or {})}

    def forget(self) -> None:
        """As in a new checkout."""
        for name in (".requiem", "dir"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for name in ("big.out", "last.out"):
            (self.root / name).unlink(missing_ok=True)

    @property
    def stand_in(self) -> Path:
        return self.root / ".requiem/stand-in/store"

    def blob(self, content: bytes, root: Path | None = None) -> Path:
        return blob_in(root or self.cas, object_digest(content))

    def frozen(self, command: str, *arguments: str, **options: Any) -> Ran:
        """A command line for which the store cannot be written."""
        if os.geteuid() == 0:
            return self.run(command, *arguments, read_only=str(self.cas), **options)
        set_modes(self.cas, 0o555)
        try:
            return self.run(command, *arguments, **options)
        finally:
            set_modes(self.cas, 0o755)

    def frozen_build(self, *arguments: str, **options: Any) -> Ran:
        ran = self.frozen("build", "--json", *arguments, **options)
        assert ran.code == 0 and "Traceback" not in ran.err, f"exit {ran.code}\n{ran.out}\n{ran.err}"
        return ran

    def check(self) -> None:
        """Everything is as the sources want it."""
        big = LARGE + self.read("a").encode()
        assert (self.root / "big.out").read_bytes() == big
        names = sorted([*map(str, range(1, 41)), "a"])
        tree = [self.read("a") + self.read("b") if name == "a" else f"{name}\n" for name in names]
        assert [self.read(f"dir/{name}") for name in names] == tree
        assert (self.root / "last.out").read_bytes() == big + "".join(tree).encode() + self.read("c").encode()


def blob_in(root: Path, digest: Digest) -> Path:
    return Path(Store(root, read_only=True).objects.path(digest))


def set_modes(top: Path, mode: int) -> None:
    for folder in (top, *(path for path in top.rglob("*") if path.is_dir())):
        folder.chmod(mode)


def snapshot(top: Path) -> dict[str, tuple[int, int, str]]:
    """Every file with its inode, time of change and content."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in top.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    """The store has everything; the workspace is new."""
    found = Reader(tmp_path)
    found.build()
    found.forget()
    return found


def warnings(ran: Ran) -> list[str]:
    assert ran.err.count(TOLD) in (0, 1)
    return [text for text in ran.report["warnings"] if TOLD in text]


def test_hits_misses_and_what_was_made_once(reader: Reader) -> None:
    before = snapshot(reader.cas)
    first = reader.frozen_build()
    assert first.counts == {"hit": 3} and len(warnings(first)) == 1
    cause = "Read-only file system" if os.geteuid() == 0 else "Permission denied"
    assert warnings(first)[0].startswith(f"{TOLD}{cause}: {reader.cas}")
    reader.check()
    reader.write("b", "changed\n")
    second = reader.frozen_build()
    assert second.states == {"big": "fresh", "tree": "ran", "last": "ran"} and len(warnings(second)) == 1
    reader.check()
    assert reader.frozen_build("--verbose").counts == {"fresh": 3}
    assert reader.frozen("build").err.startswith("nothing to do")
    shutil.rmtree(reader.root / "dir")
    assert reader.frozen_build().step("tree")["state"] == "hit"
    reader.check()
    reader.write("b", "b\n")
    assert reader.frozen_build().counts == {"hit": 2, "fresh": 1}
    reader.check()
    assert snapshot(reader.cas) == before, "nothing in it has changed"


def test_a_person_is_told_once(reader: Reader) -> None:
    ran = reader.frozen("build")
    assert ran.code == 0 and ran.err.count(TOLD) == 1 and f"warning: {TOLD}" in ran.err


@pytest.mark.parametrize("level", ["strict", "process"])
def test_a_large_input_reaches_a_step_from_where_it_lies(reader: Reader, level: str) -> None:
    reader.frozen_build()
    reader.write("a", "changed\n")
    reader.write("c", "changed\n")
    ran = reader.frozen_build("--sandbox", level)
    assert ran.counts == {"ran": 3}
    reader.check()
    big = LARGE + b"changed\n"
    assert not reader.blob(LARGE, reader.stand_in).exists(), "it was not copied"
    assert reader.blob(big, reader.stand_in).exists(), "and what was made large is bound from the stand-in"


@pytest.mark.root
def test_a_large_input_that_a_step_could_not_read_there_is_copied(reader: Reader) -> None:
    """Its mode cannot be mended on a file system that cannot be written."""
    reader.blob(LARGE).chmod(0o400)
    reader.write("a", "changed\n")
    reader.frozen_build()
    reader.check()
    assert reader.blob(LARGE, reader.stand_in).exists() and reader.blob(LARGE).stat().st_mode & 0o777 == 0o400


def test_directories_lie_in_packs_on_both_sides(reader: Reader) -> None:
    reader.frozen_build()
    reader.write("b", "changed\n")
    assert reader.frozen_build().step("tree")["state"] == "ran"
    assert list((reader.cas / "v2/packs").iterdir()) and list((reader.stand_in / "v2/packs").iterdir())
    small = object_digest(b"7\n")
    assert not blob_in(reader.stand_in, small).exists() and Store(reader.stand_in).objects.get(small) == b"7\n"
    shutil.rmtree(reader.root / "dir")
    assert reader.frozen_build().step("tree")["state"] == "hit"
    reader.check()


def spoil(path: Path) -> None:
    path.chmod(0o644)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    path.chmod(0o444)


DAMAGE: dict[str, Callable[[Reader], list[Path]]] = {
    "a large output": lambda r: [r.blob(LARGE + b"a\n")],
    "a large input": lambda r: [r.blob(LARGE)],
    "small inputs": lambda r: [r.blob(b"a\n"), r.blob(b"b\n"), r.blob(b"c\n")],
    "a pack": lambda r: list((r.cas / "v2/packs").iterdir()),
    "every blob": lambda r: [p for p in (r.cas / "v2/objects").rglob("*") if len(p.name) == 64 and p.stat().st_size],
    "metadata": lambda r: list((r.cas / "v2/objects").rglob("*.meta")),
    "every record": lambda r: [p for p in (r.cas / "records").rglob("*") if p.is_file()],
}


@pytest.mark.parametrize("change", ["", "a", "c"])
@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_damaged_there_is_a_miss(reader: Reader, what: str, change: str) -> None:
    for path in DAMAGE[what](reader):
        spoil(path)
    before = snapshot(reader.cas)
    if change:
        reader.write(change, "changed\n")
    reader.frozen_build()
    reader.check()
    if not change:
        (reader.root / "big.out").unlink()
        (reader.root / "last.out").unlink()
        again = reader.frozen_build()
        assert again.counts.get("ran", 0) == 0, "what was made again is in the stand-in"
        reader.check()
    assert snapshot(reader.cas) == before


def test_the_stand_in_may_be_deleted_or_be_anything(reader: Reader) -> None:
    reader.frozen_build()
    reader.write("a", "changed\n")
    reader.frozen_build()
    shutil.rmtree(reader.stand_in)
    reader.stand_in.write_text("no store")
    reader.write("c", "changed\n")
    assert reader.frozen_build().step("last")["state"] == "ran"
    reader.check()
    (reader.stand_in / "requiem-store").chmod(0o644)
    (reader.stand_in / "requiem-store").write_text('{"format":99,"hash":"blake3-256"}')
    reader.write("c", "changed again\n")
    assert reader.frozen_build().step("last")["state"] == "ran"
    reader.check()


def test_it_goes_when_the_store_can_be_written_again(reader: Reader) -> None:
    reader.frozen_build()
    reader.write("a", "changed\n")
    reader.frozen_build()
    assert reader.stand_in.is_dir()
    reader.write("b", "changed\n")
    ran = reader.build()
    assert ran.report["warnings"] == [] and not reader.stand_in.parent.exists()
    reader.check()


def test_an_ordinary_build_and_a_dry_run_make_none(reader: Reader) -> None:
    assert reader.frozen_build("--dry-run").counts == {"hit": 3}
    assert not reader.stand_in.parent.exists()
    assert reader.build().counts == {"hit": 3} and not reader.stand_in.parent.exists()
    reader.write("b", "changed\n")
    reader.frozen_build()
    (reader.root / "last.out").unlink()
    dry = reader.frozen_build("--dry-run")
    assert dry.step("last")["state"] == "hit" and warnings(dry) == [], "it knows what was made meanwhile"


def test_commands_that_tell_of_the_last_run_find_it(reader: Reader) -> None:
    reader.frozen_build()
    reader.write("b", "changed\n")
    timeline = reader.base / "timeline.json"
    reader.frozen_build("--timeline", str(timeline))
    assert json.loads(timeline.read_text())
    for words in (["log", "tree"], ["replay"], ["why", "last"], ["pack", "-o", str(reader.base / "run.pack")]):
        ran = reader.frozen(words[0], *words[1:])
        assert ran.code == 0, f"{words}: {ran.err}"
    reader.write("new", "nowhere yet\n")
    refused = reader.frozen("cas", "put", "new")
    assert refused.code == 4, "a command on the store itself stays there"


def test_only_what_is_signed_answers_through_it_too(reader: Reader) -> None:
    configuration = "../home/config/requiem/config.toml"
    reader.write(configuration, '[trust]\nsign = true\naccept = ["local"]\n')
    assert reader.run("keys", "new").code == 0
    first = reader.frozen_build()
    assert first.counts == {"ran": 3} and "signed by nobody you trust" in first.step("big")["reason"]
    reader.check()
    (reader.root / "last.out").unlink()
    assert reader.frozen_build().step("last")["state"] == "hit", "signed by us, in the stand-in"
    reader.forget()
    assert reader.build().counts == {"ran": 3}
    reader.forget()
    assert reader.frozen_build().counts == {"hit": 3}, "signed by us, in the store"
    assert not reader.blob(LARGE + b"a\n", reader.stand_in).exists()


def test_it_is_kept_within_the_size_of_a_store(reader: Reader) -> None:
    reader.write("../home/config/requiem/config.toml", '[store]\nmax_size = "100KiB"\n')
    reader.write("a", "changed\n")
    before = snapshot(reader.cas)
    ran = reader.frozen_build()
    assert ran.counts == {"ran": 3} and "grown over its size" in ran.err
    reader.check()
    assert not reader.blob(LARGE + b"changed\n", reader.stand_in).exists() and snapshot(reader.cas) == before


def test_requests_and_results_do_not_tell(reader: Reader) -> None:
    """The same digests as with a store that can be written: nothing of it is in any of them."""
    reader.write("a", "changed\n")
    frozen = {s["name"]: (s["request_digest"], s["result_digest"]) for s in reader.frozen_build().report["steps"]}
    reader.forget()
    plain = {s["name"]: (s["request_digest"], s["result_digest"]) for s in reader.build().report["steps"]}
    assert frozen == plain


# Another user's

STRANGER = 61203


@pytest.fixture
def public() -> Iterator[Path]:
    base = Path(tempfile.mkdtemp(prefix="requiem-read-only-"))
    base.chmod(0o755)
    yield base
    shutil.rmtree(base)


@pytest.mark.root
def test_the_store_of_another_user(public: Path) -> None:
    python = "/usr/bin/python3"
    packages = [path for path in sys.path if path.endswith("site-packages")]
    env = {"PYTHONPATH": os.pathsep.join([str(SOURCE), *packages]), "XDG_CACHE_HOME": str(public / "cache")}
    person: dict[str, Any] = {"user": STRANGER, "group": STRANGER, "extra_groups": []}
    words = [python, "-c", "import requiem_build.cli.app, blake3, click"]
    if subprocess.run(words, env=env, cwd="/", capture_output=True, **person).returncode:
        pytest.skip("needs a Python of the same version that other users may run")
    reader = Reader(public)
    reader.build()
    reader.forget()
    set_modes(reader.cas, 0o555)
    (public / "cache").mkdir()
    for path in (reader.root, *reader.root.rglob("*"), reader.home, public / "cache"):
        os.chown(path, STRANGER, STRANGER)
    before = snapshot(reader.cas)

    def build() -> Ran:
        return reader.build(env=env, program=(python, "-m", "requiem_build"), **person)

    first = build()
    assert first.counts == {"hit": 3} and warnings(first)[0].startswith(TOLD + "Permission denied")
    reader.check()
    reader.write("a", "changed\n")
    second = build()
    assert second.counts == {"ran": 3} and len(warnings(second)) == 1
    reader.check()
    (reader.root / "big.out").unlink()
    assert build().counts == {"hit": 1, "fresh": 2}
    assert snapshot(reader.cas) == before
    owners = {stat.S_IMODE(path.stat().st_mode) for path in reader.cas.rglob("*") if path.is_dir()}
    assert owners == {0o555}


@pytest.mark.parametrize("words", [("pack", "-o", "x.tar"), ("reproduce", "big", "--runs", "1"), ("build", "-n")])
def test_nothing_is_deleted_through_a_link_in_the_stand_ins_place(tmp_path: Path, words: tuple[str, ...]) -> None:
    reader = Reader(tmp_path)
    reader.build()
    victim = tmp_path / "victim"
    (victim / "store").mkdir(parents=True)
    (victim / "store/precious").write_text("mine")
    os.symlink(victim, reader.root / ".requiem/stand-in")
    assert reader.frozen(*words).code == 2
    assert (victim / "store/precious").read_text() == "mine" and os.listdir(victim / "store") == ["precious"]


def test_what_only_asks_needs_no_stand_in(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.build()
    for words in (("attest", "-o", "a.json"), ("sbom",)):
        ran = reader.frozen(*words)
        assert ran.code == 0, ran.err
    assert not (reader.root / ".requiem/stand-in").exists()


def test_what_reproduce_found_out_counts_at_once(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.build()
    first = json.loads(reader.frozen("reproduce", "big", "--json").out)["steps"][0]
    second = json.loads(reader.frozen("reproduce", "big", "--json").out)["steps"][0]
    assert first["level"].startswith("reproduced") and second["before"] == first["level"]
