"""A run goes to another machine: as one file, checked there without network, and good for hits."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from project import REQUIEM, Project

pytestmark = pytest.mark.userns

MANIFEST = """
    [steps.read]
    command = "cat include/a.h > build/read; echo 'build/read: include/a.h' > build/read.d; echo said"
    discover = ["include/*.h"]
    depfile = "build/read.d"
    outputs = ["build/read"]
    [steps.tree]
    command = "cp -r data out; ln -s one out/link; mkdir out/empty; cat > out/stdin"
    inputs = ["data/"]
    stdin = "in.txt"
    outputs = ["out/"]
    [steps.join]
    command = "cat build/read out/one > {{ output }}"
    inputs = ["build/read", "out/"]
    outputs = ["joined"]
"""


def filled(project: Project) -> Project:
    project.manifest(MANIFEST)
    for path in ("include/a.h", "include/b.h", "data/one", "data/deep/two", "in.txt"):
        project.write(path, f"{path}\n")
    project.write("data/large", b"large\n" * 500_000)
    return project


@pytest.fixture
def here(tmp_path: Path) -> Project:
    project = filled(Project(tmp_path / "here"))
    project.build()
    return project


@pytest.fixture
def there(tmp_path: Path) -> Project:
    return filled(Project(tmp_path / "there"))


def packed(project: Project, *words: str) -> Path:
    ran = project.run("pack", *words, "-o", "run.tar")
    assert ran.code == 0, ran.err
    return project.root / "run.tar"


def test_another_machine_builds_from_it(here: Project, there: Project) -> None:
    bundle = packed(here)
    ran = there.run("unpack", str(bundle))
    assert ran.code == 0, ran.err
    assert there.build().counts == {"hit": 3}
    assert there.read("joined") == here.read("joined")
    assert there.run("unpack", str(bundle)).code == 0  # Again is no harm.
    again = there.run("pack", json.loads(there.run("unpack", str(bundle), "--json").out)["run"], "-o", "again.tar")
    assert again.code == 0 and (there.root / "again.tar").read_bytes() == bundle.read_bytes()


def test_the_same_run_is_the_same_bytes(here: Project) -> None:
    one = packed(here).read_bytes()
    assert packed(here).read_bytes() == one
    here.run("keys", "new")
    signed = packed(here, "--key", "local").read_bytes()
    assert signed != one and packed(here, "--key", "local").read_bytes() == signed


def test_it_holds_the_project_and_the_journal(here: Project, there: Project) -> None:
    there.run("unpack", str(packed(here)))
    assert there.run("cas", "get", here.run("digest", "object", "requiem.toml").out.strip()).code == 0
    run = json.loads(next((there.root / ".cas/runs").iterdir()).read_text())
    assert '"run_finished"' in there.run("cas", "get", run["journal"]).out


def test_it_is_checked_offline_and_nothing_is_left(here: Project, there: Project, tmp_path: Path) -> None:
    bundle = packed(here)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {"TMPDIR": str(scratch)}
    ran = there.run("replay", str(bundle), "--json", env=environment)
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["ok"] and found["steps"] == 3 and found["problems"] == []
    assert list(scratch.iterdir()) == [] and not there.exists(".cas")
    assert "not signed" in there.run("replay", str(bundle), env=environment).err


def test_it_comes_through_a_pipe(here: Project, there: Project) -> None:
    bundle = packed(here)
    with bundle.open("rb") as file:
        done = subprocess.run(
            [*REQUIEM, "unpack", "-"],
            stdin=file,
            cwd=there.root,
            env=there.environment(),
            capture_output=True,
        )
    assert done.returncode == 0, done.stderr
    assert there.build().counts == {"hit": 3}


@pytest.mark.parametrize("at", [0, 600, 1100, -1025, -1500, 0.3, 0.6, 0.9])
def test_a_damaged_one_is_refused_everywhere(here: Project, there: Project, at: float) -> None:
    """Every byte of a small one is tried in tests/store; here some of a whole one, by the command line."""
    bundle = packed(here)
    content = bytearray(bundle.read_bytes())
    position = int(at) if isinstance(at, int) else int(at * len(content))
    content[position] ^= 4
    bundle.write_bytes(content)
    for word in ("replay", "unpack"):
        assert "the bundle is damaged" in there.refuse(word, str(bundle), expect=3).err
    assert there.build().counts == {"ran": 3}  # Nothing of it was filed.


def test_a_signed_one_answers_who_trusts_its_signers(here: Project, there: Project, tmp_path: Path) -> None:
    here.write("../home/config/requiem/config.toml", "[trust]\nsign = true\n")
    here.build("--cache", "wo")
    unsigned = Project(tmp_path / "unsigned")
    filled(unsigned).build()
    here.run("keys", "export", "-o", "key.pem")
    there.run("keys", "trust", "ci", str(here.root / "key.pem"))
    there.write("../home/config/requiem/config.toml", '[trust]\naccept = ["ci"]\n')
    refused = there.refuse("replay", str(packed(unsigned)), expect=3)
    assert "packed by nobody you trust" in refused.err and "signed by nobody you trust" in refused.err
    there.run("unpack", str(packed(unsigned)))
    assert set(there.build("-n").states.values()) == {"miss", "unknown"}
    shutil.rmtree(here.root / ".cas")  # What was unsigned there is gone: the first record of a request stays.
    here.build("--cache", "wo")
    bundle = packed(here)
    ran = there.run("replay", str(bundle))
    assert ran.code == 0 and "packed by ci" in ran.err
    there.run("unpack", str(bundle))
    assert there.build().counts == {"hit": 3}


def test_what_the_store_has_lost_is_listed_and_not_packed(here: Project) -> None:
    for path in ("data/one", "data/large"):
        digest = here.run("digest", "object", path).out.strip()
        for victim in (here.root / ".cas/v2/objects" / digest[:2] / digest[2:4]).glob(f"{digest}*"):
            victim.unlink()
    refused = here.refuse("pack", "-o", "run.tar", expect=3)
    assert "lacks 2 of the objects" in refused.err
    assert not here.exists("run.tar") and not list(here.root.glob("*.part"))


def test_a_run_that_failed_is_packed_too(project: Project, there: Project) -> None:
    project.manifest("""
        [steps.good]
        command = "echo good > good.txt"
        outputs = ["good.txt"]
        [steps.bad]
        command = "echo sorry >&2; exit 1"
        [steps.now]
        command = "date > now.txt"
        outputs = ["now.txt"]
        cache = false
    """)
    project.build("-k", expect=1)
    ran = project.run("pack", "-o", "run.tar")
    assert ran.code == 0, ran.err
    assert there.run("replay", str(project.root / "run.tar")).code == 0
    there.run("unpack", str(project.root / "run.tar"))
    assert there.run("cas", "get", _digest_of(project, b"sorry\n")).out == "sorry\n"


def _digest_of(project: Project, content: bytes) -> str:
    project.write("content", content)
    return project.run("digest", "object", "content").out.strip()


def test_the_manifest_goes_as_it_was(here: Project, there: Project) -> None:
    digest = here.run("digest", "object", "requiem.toml").out.strip()
    with (here.root / "requiem.toml").open("a") as file:
        file.write("# later\n")
    there.run("unpack", str(packed(here)))
    assert "# later" not in there.run("cas", "get", digest).out
    for victim in (here.root / ".cas/v2/objects" / digest[:2] / digest[2:4]).glob(f"{digest}*"):
        victim.unlink()
    assert f"requiem.toml: {digest}" in here.refuse("pack", "-o", "run.tar", expect=3).err


def test_what_is_no_bundle_is_told(project: Project) -> None:
    project.manifest("")
    project.write("junk", b"junk" * 1000)
    project.write("empty", b"")
    for name in ("junk", "empty"):
        assert "damaged" in project.refuse("replay", name, expect=3).err
    assert 'no file "nowhere"' in project.refuse("unpack", "nowhere").err
    assert "no run" in project.refuse("pack", "-o", "x.tar").err
