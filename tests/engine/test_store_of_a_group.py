"""A store that a group shares, and in which one of them bars the way: the others' builds go on all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from project import SOURCE, Project, Ran

from requiem_build.store.layout import Store

pytestmark = [pytest.mark.userns, pytest.mark.root]

GROUP = 61210
USERS = (61211, 61212)
PYTHON = "/usr/bin/python3"
MANIFEST = """
    [steps.big]
    inputs = ["a"]
    outputs = ["big.out"]
    command = "for i in $(seq 60000); do echo line $i; done > big.out; cat a >> big.out"

    [steps.tree]
    inputs = ["a"]
    outputs = ["dir/"]
    command = "mkdir dir; for i in $(seq 40); do echo $i > dir/$i; done; cat a > dir/a"

    [steps.last]
    inputs = ["big.out", "dir/"]
    outputs = ["last.out"]
    command = "cat big.out dir/* > last.out"
"""


class Member(Project):
    """One of the group, with a checkout and a home of his own."""

    def __init__(self, base: Path, uid: int, caches: Path) -> None:
        super().__init__(base / str(uid))
        self.uid = uid
        self.cache = caches / str(uid)
        self.cas = base / "cas"
        self.manifest(MANIFEST)
        self.write("a", "a\n")
        for path in (self.root, *self.root.rglob("*"), self.home):
            os.chown(path, uid, GROUP)

    def environment(self, extra: Any = None) -> dict[str, str]:
        packages = [path for path in sys.path if path.endswith("site-packages")]
        paths = {"PYTHONPATH": os.pathsep.join([str(SOURCE), *packages]), "XDG_CACHE_HOME": str(self.cache)}
        return {**super().environment(extra), **paths, "REQUIEM_CAS_DIR": str(self.cas)}

    @property
    def as_himself(self) -> dict[str, Any]:
        return {"user": self.uid, "group": GROUP, "extra_groups": []}

    def builds(self, *arguments: str) -> Ran:
        ran = self.build(*arguments, program=(PYTHON, "-m", "requiem_build"), **self.as_himself)
        lines = self.read("last.out").splitlines()
        assert (len(lines), lines[-1]) == (60_042, self.read("a").strip())
        return ran

    def does(self, program: str) -> None:
        """Whatever he pleases, in the store."""
        subprocess.run([PYTHON, "-c", f"import os\n{program}"], cwd=self.cas, check=True, **self.as_himself)

    def forget(self) -> None:
        for name in ("big.out", "dir", "last.out"):
            path = self.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="module")
def caches() -> Iterator[Path]:
    """Facts of this machine, as each user found them: once for all tests."""
    base = Path(tempfile.mkdtemp(prefix="requiem-group-cache-"))
    base.chmod(0o755)
    for uid in USERS:
        (base / str(uid)).mkdir()
        os.chown(base / str(uid), uid, GROUP)
    yield base
    shutil.rmtree(base)


@pytest.fixture
def group(caches: Path) -> Iterator[tuple[Member, Member]]:
    """Two of it; the first has built."""
    base = Path(tempfile.mkdtemp(prefix="requiem-group-"))
    base.chmod(0o755)
    cas = base / "cas"
    cas.mkdir()
    os.chown(cas, 0, GROUP)
    cas.chmod(0o2775)
    first, second = (Member(base, uid, caches) for uid in USERS)
    words = [PYTHON, "-c", "import requiem_build.cli.app, blake3, click"]
    if subprocess.run(words, env=first.environment(), cwd="/", capture_output=True, **first.as_himself).returncode:
        pytest.skip("needs a Python of the same version that other users may run")
    assert first.builds().counts == {"ran": 3}
    yield first, second
    shutil.rmtree(base)


BARRED = {
    "objects": "v2/objects",
    "packs": "v2/packs",
    "records": "records",
}


@pytest.mark.parametrize("where", BARRED)
def test_anothers_directories_in_the_place_of_things_are_misses(group: tuple[Member, Member], where: str) -> None:
    """Only he can take them elsewhere: they get another name where they stand, and the result is published."""
    first, second = group
    first.does(f"""
for folder, _, names in os.walk({BARRED[where]!r}):
    for name in names:
        path = os.path.join(folder, name)
        os.unlink(path)
        os.makedirs(path + "/within", 0o755)
""")
    ran = second.builds()
    assert set(ran.counts) <= {"ran", "hit"} and ran.report["warnings"] == []
    assert not (second.root / ".requiem/stand-in").exists()
    second.forget()
    assert second.builds().counts == {"hit": 3}, "what was made was published"
    assert first.run("cas", "verify", "--repair", program=(PYTHON, "-m", "requiem_build")).code in (0, 3)
    assert list(Store(first.cas).objects.verify()) == [], "root takes the directories away"


def test_a_record_that_nobody_else_can_read_is_made_again(group: tuple[Member, Member]) -> None:
    first, second = group
    first.does("""
for folder, _, names in os.walk("records"):
    for name in names:
        os.chmod(os.path.join(folder, name), 0)
""")
    assert second.builds().counts == {"ran": 3}
    second.forget()
    assert second.builds().counts == {"hit": 3}


EMPTY = """
for top in ("v2/objects", "v2/packs", "records"):
    for folder, _, names in os.walk(top):
        for name in names:
            os.unlink(os.path.join(folder, name))
"""
CLOSED = {"shards of objects": "v2/objects/", "packs": "v2/packs", "temporary files": "v2/tmp", "records": "records/"}
"""Which directories; with a slash at the end all that are in it."""


@pytest.mark.parametrize("what", CLOSED)
def test_where_nothing_can_be_put_results_are_used_unpublished(group: tuple[Member, Member], what: str) -> None:
    """As of a store that was filled before it was shared: it looks as if it could be written, and cannot."""
    first, second = group
    first.does(EMPTY)
    first.does(f"""
top = {CLOSED[what]!r}
for folder in [path for path, _, _ in os.walk(top) if path != top] or [top]:
    os.chmod(folder, 0o755)
""")
    (warning,) = second.builds().report["warnings"]
    assert warning.startswith("the store is read-only: Permission denied: "), warning
    assert warning.endswith("; what this build makes is kept in .requiem/stand-in")
    assert second.builds().counts == {"fresh": 3}
    second.forget()
    second.builds()
    assert list(Store(first.cas).objects.verify()) == []
