"""A build after few changes looks at few steps, and answers as if it had looked at all of them."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from project import Project

from requiem_build.core.instance import Instance
from requiem_build.engine import build as engine
from requiem_build.engine import memory, noop, quick, touched
from requiem_build.engine.options import Options
from requiem_build.engine.requests import RequestMaker
from requiem_build.engine.site import find_site, question_of

pytestmark = pytest.mark.userns

SEED = int(os.environ.get("REQUIEM_SEED", "20261125"))
HISTORIES = int(os.environ.get("REQUIEM_HISTORIES", "2"))

MANIFEST = """
    [steps.sum]
    foreach.src = "src/*.txt"
    command = "cat {{ src }} > {{ output }}"
    inputs = ["{{ src }}"]
    outputs = ["out/{{ src.stem }}.sum"]
    [steps.sums]
    needs = ["sum"]
    [steps.all]
    command = "cat {{ inputs }} | wc -c > {{ output }}"
    inputs = ["@sums"]
    outputs = ["out/all.txt"]
    [steps.last]
    command = "cat {{ inputs }} > {{ output }}; echo $WHO >> {{ output }}"
    inputs = ["out/all.txt", "run.sh"]
    pass_env = ["WHO"]
    outputs = ["out/last.txt"]
    [steps.reads]
    command = "cat $(cat which.txt) > {{ output }}; echo \\"{{ output }}: $(cat which.txt)\\" > {{ depfile }}"
    inputs = ["which.txt"]
    discover = ["inc/*.h"]
    depfile = "out/reads.d"
    outputs = ["out/reads.txt"]
    [steps.fed]
    command = "tr a-z A-Z > {{ output }}"
    stdin = "in.txt"
    outputs = ["out/fed.txt"]
    [steps.tree]
    command = "mkdir {{ output }}; cp -r lib/. {{ output }}"
    inputs = ["lib/"]
    outputs = ["out/tree/"]
"""
SOURCES = {
    **{f"src/{letter}.txt": f"{letter}\n" for letter in "abcd"},
    "run.sh": "run\n",
    "which.txt": "inc/one.h\n",
    "inc/one.h": "one\n",
    "inc/two.h": "two\n",
    "in.txt": "fed\n",
    "lib/x/deep.txt": "deep\n",
}


@pytest.fixture
def settled(tmp_path: Path) -> Project:
    return make(Project(tmp_path))


def make(project: Project) -> Project:
    project.manifest(MANIFEST)
    for path, content in SOURCES.items():
        project.write(path, content)
    for path in (project.root / path for path in SOURCES):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    brief(project)
    brief(project)
    return project


def brief(project: Project, expect: int = 0) -> str:
    ran = project.run("build", env={"WHO": "me"})
    assert ran.code == expect, ran.err
    assert "Traceback" not in ran.err and "warning" not in ran.err, ran.err
    return ran.err


def looked_at(project: Project) -> set[str] | None:
    """The steps that the next build would look at; None for all of them."""
    options = Options(str(project.root), project.environment({"WHO": "me"}), brief=True)
    site = find_site(options)
    part = touched.look(site, options, question_of(site, options), memory.load(site.dot, site.seal))
    return None if part is None else set(part.planned.plan.instances)


def test_an_edit_leads_to_who_reads_it_and_all_that_wait(settled: Project) -> None:
    assert looked_at(settled) == set(), "the control: nothing changed"
    settled.write("src/a.txt", "another\n")
    assert looked_at(settled) == {"sum:src/a.txt", "sums", "all", "last"}
    assert "built: 3 ran, 6 fresh" in brief(settled)
    assert settled.read("out/last.txt") == "14\nrun\nme\n"
    settled.write("in.txt", "other\n")
    assert looked_at(settled) == {"fed"}
    settled.write("inc/two.h", "not read\n")
    assert looked_at(settled) == {"fed", "reads"}
    assert "built: 1 ran, 8 fresh" in brief(settled)
    assert looked_at(settled) == set()
    assert settled.build(env={"WHO": "me"}).counts == {"fresh": 9}


def test_what_is_touched_and_holds_the_same_is_not_looked_at(settled: Project) -> None:
    for path in ("src/a.txt", "run.sh", "inc/one.h", "out/all.txt", "requiem.toml", "src"):
        os.utime(settled.root / path)
        assert looked_at(settled) == set(), path
        assert "nothing to do: 9 steps up to date" in brief(settled)


def test_a_lost_or_changed_output_leads_to_its_maker(settled: Project) -> None:
    os.unlink(settled.root / "out/fed.txt")
    assert looked_at(settled) == {"fed"}
    assert "built: 1 hit, 8 fresh" in brief(settled)
    os.unlink(settled.root / "out/a.sum")
    settled.write("out/last.txt", "scribbled\n")
    assert looked_at(settled) == {"sum:src/a.txt", "sums", "all", "last"}
    settled.run("build", env={"WHO": "me"})
    assert settled.read("out/a.sum") == "a\n" and settled.read("out/last.txt") == "8\nrun\nme\n"


SINGLE = ("a.sum", "b.sum", "c.sum", "d.sum", "all.txt", "last.txt", "reads.txt", "fed.txt")


def lose(project: Project, *names: str) -> None:
    for name in names:
        os.unlink(project.root / "out" / name)


def test_lost_outputs_come_back_whatever_waits_for_them(settled: Project) -> None:
    before = {name: settled.read(f"out/{name}") for name in SINGLE}
    lose(settled, *SINGLE)
    assert "built: 8 hit, 1 fresh" in brief(settled)
    assert {name: settled.read(f"out/{name}") for name in SINGLE} == before
    assert looked_at(settled) == set()
    assert settled.run("replay").code == 0
    assert settled.build(env={"WHO": "me"}).counts == {"fresh": 9}


def test_the_requests_of_lost_outputs_are_not_made_again(settled: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    make = RequestMaker.make

    def note(self: RequestMaker, instance: Instance, *more: Any) -> Any:
        made.append(instance.name)
        return make(self, instance, *more)

    monkeypatch.setattr(RequestMaker, "make", note)
    lose(settled, *SINGLE)
    settled.write("in.txt", "other\n")
    options = Options(str(settled.root), settled.environment({"WHO": "me"}), brief=True)
    assert engine.build(options, lambda _: None).counts()["hit"] == 7
    assert made == ["fed"], "what it reads has changed"


def test_a_lost_output_below_a_step_that_gives_another_result_is_made_anew(settled: Project) -> None:
    lose(settled, "all.txt", "last.txt", "b.sum")
    settled.write("src/a.txt", "longer\n")
    assert "built: 3 ran, 1 hit, 5 fresh" in brief(settled)
    assert settled.read("out/last.txt") == "13\nrun\nme\n" and settled.read("out/b.sum") == "b\n"
    lose(settled, "last.txt")
    settled.write("run.sh", "changed\n")
    brief(settled)
    assert settled.read("out/last.txt") == "13\nchanged\nme\n"


def test_a_lost_output_that_the_store_has_not_either_is_made_again(settled: Project) -> None:
    lose(settled, *SINGLE)
    found = settled.run("cas", "put", "src/a.txt").out.strip()  # What a.sum holds too.
    objects = settled.root / ".cas/v2/objects" / found[:2] / found[2:4]
    shutil.rmtree(objects)
    assert "1 ran" in brief(settled)
    assert settled.read("out/a.sum") == "a\n" and settled.read("out/last.txt") == "8\nrun\nme\n"
    assert settled.build(env={"WHO": "me"}).counts == {"fresh": 9}


TWICE = """
    [roots.kit]
    path = "kit"
    [steps.one]
    command = "cat {path} > one.txt"
    inputs = ["{path}"]
    outputs = ["one.txt"]
    [steps.other]
    command = "{command} > other.txt"
    outputs = ["other.txt"]
"""
OTHERWISE = {
    "below a directory": ("src/a.txt", "cat src/*.txt", 'inputs = ["src/"]'),
    "through a link": ("src/a.txt", "cat link", 'inputs = ["link"]'),
    "in a root": ("kit/bin/tell", "cat kit/bin/tell", 'roots = ["kit"]'),
    "as a tool": ("kit/bin/tell", "tell", 'roots = ["kit"]\n    path = ["kit/bin"]\n    tools = ["tell"]'),
    "as the key of a root": ("src/a.txt", "cat kit/bin/tell", 'roots = ["kit"]'),
}


@pytest.mark.parametrize("way", sorted(OTHERWISE))
def test_what_one_step_names_and_another_reaches_otherwise_changes_both(project: Project, way: str) -> None:
    path, command, more = OTHERWISE[way]
    text = TWICE.replace("{path}", path).replace("{command}", command) + f"    {more}\n"
    if way.startswith("as the key"):
        text = text.replace('path = "kit"\n', 'path = "kit"\n    key = ["src/a.txt"]\n')
    project.manifest(text)
    project.write("src/a.txt", "1\n")
    project.write("kit/bin/tell", "#!/bin/sh\necho 1\n", executable=True)
    os.symlink("src/a.txt", project.root / "link")
    for number in (2, 3, 4):
        brief(project)
        brief(project)
        content = f"#!/bin/sh\necho {number}\n" if path.startswith("kit") else f"{number}\n"
        project.write(path, content, executable=path.startswith("kit"))
        assert "built: 2 ran" in brief(project)
        assert str(number) in project.read("one.txt")
        assert project.build(env={"WHO": "me"}).counts == {"fresh": 2}


def test_what_a_plan_rests_on_is_for_the_full_build(settled: Project) -> None:
    def after(change: Callable[[], object]) -> set[str] | None:
        before = settled.read("requiem.toml")
        change()
        found = looked_at(settled)
        settled.write("requiem.toml", before)
        brief(settled)
        brief(settled)
        assert looked_at(settled) == set()
        return found

    assert after(lambda: settled.write("src/e.txt", "e\n")) is None, "a new match"
    assert after(lambda: os.unlink(settled.root / "src/e.txt")) is None, "a match that is gone"
    assert after(lambda: settled.write("requiem.toml", settled.read("requiem.toml") + "\n# said\n")) is None
    assert after(lambda: settled.write("lib/x/deep.txt", "deeper\n")) is None, "below a directory"
    assert after(lambda: settled.write("requiem.local.toml", "[vars]\nx = 1\n")) is None
    assert after(lambda: os.unlink(settled.root / "requiem.local.toml")) is None
    options = Options(str(settled.root), settled.environment({"WHO": "you"}), brief=True)
    site = find_site(options)
    remembered = memory.load(site.dot, site.seal)
    assert touched.look(site, options, question_of(site, options), remembered) is None, "another variable"


def test_after_a_failure_the_failed_step_is_what_is_looked_at(settled: Project) -> None:
    settled.write("which.txt", "inc/none.h\n")
    settled.write("src/a.txt", "again\n")
    assert "failed" in brief(settled, expect=1)
    assert {"reads"} <= (looked_at(settled) or set())
    assert "failed" in brief(settled, expect=1)
    settled.write("which.txt", "inc/two.h\n")
    brief(settled)
    assert settled.read("out/reads.txt") == "two\n"
    assert looked_at(settled) == set()
    assert settled.build(env={"WHO": "me"}).counts == {"fresh": 9}


def test_another_build_between_sends_the_question_to_the_full_one(settled: Project) -> None:
    settled.write("in.txt", "other\n")
    settled.build("fed", env={"WHO": "me"})
    assert looked_at(settled) is None
    brief(settled)
    assert settled.read("out/fed.txt") == "OTHER\n"
    assert looked_at(settled) == set()
    settled.build("--sandbox", "process", env={"WHO": "me"})  # Leaves the same files, and other answers.
    assert looked_at(settled) is None


def test_what_the_door_saw_of_another_state_is_not_believed(settled: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(str(settled.root), settled.environment({"WHO": "me"}), brief=True)
    written = noop.load(find_site(options), options)
    assert written is not None
    value = tuple(getattr(written, name) for name in written.__match_args__)
    settled.write("in.txt", "other\n")
    now = quick.stamps_now([quick.memory_path(str(settled.root))])
    monkeypatch.setattr(quick, "seen", [(bytes(len(now)), value, lambda: written.stamps)])
    assert looked_at(settled) == {"fed"}
    monkeypatch.setattr(quick, "seen", [(now, value, lambda: written.stamps)])
    assert looked_at(settled) == set(), "the control: what was seen of this state is not looked at again"


def test_the_journal_of_a_brief_build_proves_every_step(settled: Project) -> None:
    for content in ("one\n", "two\n", "three\n"):
        settled.write("in.txt", content)
        assert "built: 1 ran, 8 fresh" in brief(settled)
        assert settled.run("replay").code == 0
    settled.write("src/a.txt", "last\n")
    brief(settled)
    settled.write("in.txt", "once more\n")
    brief(settled)
    told = journal(settled)
    for step in settled.build(env={"WHO": "me"}).report["steps"]:
        line = told[step["name"]]
        assert (line["request_digest"], line["result_digest"]) == (step["request_digest"], step["result_digest"])
        assert line["state"] == ("ran" if step["name"] == "fed" else "fresh")


def journal(project: Project) -> dict[str, Any]:
    """The lines of the last run's steps."""
    last = max((project.root / ".cas/runs").iterdir())
    content = project.run("cas", "get", json.loads(last.read_bytes())["journal"]).out
    lines = [json.loads(line) for line in content.splitlines()]
    assert [line["at_ms"] for line in lines] == sorted(line["at_ms"] for line in lines)
    return {line["name"]: line for line in lines if line["event"] == "step_finished"}


# Stamps that lie, and caches that are none (faults.md, B6)


def replaced_by_an_older_one(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("OLD\n")
    os.utime(other, (1_000_000_000, 1_000_000_000))
    os.replace(other, path)


def of_the_future(path: Path) -> None:
    path.write_text("NEW\n")
    os.utime(path, (4_000_000_000, 4_000_000_000))


def of_the_same_size_and_time(path: Path) -> None:
    before = path.stat()
    path.write_text("FED\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def behind_a_link(path: Path) -> None:
    path.with_name("elsewhere").write_text("elsewhere\n")
    path.unlink()
    path.symlink_to("elsewhere")


LIES = (replaced_by_an_older_one, of_the_future, of_the_same_size_and_time, behind_a_link)


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_stamps_that_lie_are_seen_through(settled: Project, lie: Callable[[Path], None]) -> None:
    path = settled.root / "in.txt"
    lie(path)
    settled.run("build", env={"WHO": "me"})
    assert settled.read("out/fed.txt") == path.read_text().upper()
    for content in ("aaa\n", "bbb\n", "ccc\n"):  # Of one size and one time, one right after the other.
        before = path.stat()
        path.write_text(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        settled.run("build", env={"WHO": "me"})
        assert settled.read("out/fed.txt") == content.upper()


def test_eight_quick_edits_of_one_size_are_never_stale_in_brief_builds(settled: Project) -> None:
    for letter in "abcdefgh":
        settled.write("in.txt", letter * 3 + "\n")
        assert "built: 1 ran" in brief(settled)
        assert settled.read("out/fed.txt") == letter.upper() * 3 + "\n"


def test_the_executable_bit_and_a_change_of_kind_count(settled: Project) -> None:
    os.chmod(settled.root / "run.sh", 0o755)
    assert looked_at(settled) == {"last"}
    assert "1 ran" in brief(settled)
    os.unlink(settled.root / "run.sh")
    os.mkdir(settled.root / "run.sh")
    assert "which is a directory" in settled.run("build", env={"WHO": "me"}).err


@pytest.mark.parametrize("name", ["noop", "memory", "lines", "plans"])
def test_damaged_and_foreign_caches_are_dropped_in_silence(settled: Project, name: str) -> None:
    settled.write("in.txt", "one\n")
    brief(settled)
    where = settled.root / ".requiem" / name
    path = next(where.iterdir()) if where.is_dir() else where
    whole = path.read_bytes()
    damaged = [b"", b"\0garbage", whole[: len(whole) // 2], whole[:-1], whole[:-9] + b"x" + whole[-8:]]
    for number, content in enumerate(damaged):
        path.write_bytes(content)
        settled.write("in.txt", f"{number}\n")
        brief(settled)
        assert settled.read("out/fed.txt") == f"{number}\n"
        assert settled.build(env={"WHO": "me"}).counts == {"fresh": 9}
    shutil.rmtree(settled.root / ".requiem")
    assert "ran" not in settled.build(env={"WHO": "me"}).counts


@pytest.mark.parametrize("other", [False, True], ids=["itself", "another"])
def test_what_is_edited_while_a_brief_build_runs_is_looked_at_next_time(project: Project, other: bool) -> None:
    """Its own input while the step runs, or one that was found to be as it was."""
    there = project.base
    project.manifest(f"""
        [steps.slow]
        command = "touch {there}/begun; while [ ! -e {there}/go ]; do sleep 0.01; done; cat in.txt > slow.txt"
        inputs = ["in.txt"]
        outputs = ["slow.txt"]
        sandbox = "process"
        [steps.still]
        command = "cat still.txt > out.txt"
        inputs = ["still.txt"]
        outputs = ["out.txt"]
    """)
    project.write("in.txt", "0\n")
    project.write("still.txt", "0\n")
    (there / "go").touch()
    brief(project)
    for content in ("1\n", "2\n"):
        (there / "go").unlink()
        (there / "begun").unlink()
        project.write("in.txt", content)
        assert looked_at(project) == {"slow"}
        with project.start("build", env={"WHO": "me"}) as process:
            while not (there / "begun").exists():
                assert process.poll() is None
            project.write("still.txt" if other else "in.txt", content + "edited\n")
            (there / "go").touch()
            process.communicate(timeout=60)
        assert project.read("slow.txt") == content
        assert looked_at(project) == {"still" if other else "slow"}
        brief(project)
        assert project.read("out.txt" if other else "slow.txt") == content + "edited\n"
        assert looked_at(project) == set()


@pytest.mark.parametrize("is_brief", [False, True], ids=["full", "brief"])
def test_what_one_step_read_before_an_edit_and_another_after_it_is_stale(project: Project, is_brief: bool) -> None:
    there = project.base
    project.manifest(f"""
        [steps.first]
        command = "cat shared.txt > first.txt"
        inputs = ["shared.txt"]
        outputs = ["first.txt"]
        [steps.slow]
        command = "touch {there}/begun; while [ ! -e {there}/go ]; do sleep 0.01; done; cat in.txt > slow.txt"
        inputs = ["in.txt", "first.txt"]
        outputs = ["slow.txt"]
        sandbox = "process"
        [steps.second]
        command = "cat shared.txt slow.txt > second.txt"
        inputs = ["shared.txt", "slow.txt"]
        outputs = ["second.txt"]
    """)
    project.write("in.txt", "0\n")
    project.write("shared.txt", "old\n")
    if is_brief:
        (there / "go").touch()
        brief(project)
        (there / "go").unlink()
        (there / "begun").unlink()
        project.write("in.txt", "1\n")
        assert looked_at(project) == {"slow", "second"}
    with project.start("build", env={"WHO": "me"}) as process:
        while not (there / "begun").exists():
            assert process.poll() is None
        project.write("shared.txt", "newer\n")
        (there / "go").touch()
        process.communicate(timeout=60)
    assert project.read("first.txt") == "old\n"
    assert project.read("second.txt").startswith("newer\n")
    brief(project)
    assert project.read("first.txt") == "newer\n"
    brief(project)
    assert looked_at(project) == set()


# The full build is the judge


def edit(project: Project, chance: random.Random, number: int) -> str:
    """One random thing that users do; says what."""
    path = project.root / chance.choice(sorted(SOURCES))
    event = chance.choice(["edit", "same", "touch", "older", "lose", "scribble", "more", "less", "comment", "bit"])
    if event == "edit":
        path.write_text("inc/two.h\n" if path.name == "which.txt" else f"edit {number}\n")
    elif event == "same" and path.name != "which.txt":
        before = path.stat()
        path.write_text(chance.choice("xyz") * (before.st_size - 1) + "\n")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif event == "touch":
        os.utime(path)
    elif event == "older" and path.name != "which.txt":
        replaced_by_an_older_one(path)
    elif event == "lose":
        for lost in chance.sample(["out/a.sum", "out/all.txt", "out/tree/x/deep.txt", "out/reads.txt"], 2):
            (project.root / lost).unlink(missing_ok=True)
    elif event == "scribble":
        project.write(chance.choice(["out/all.txt", "out/last.txt", "out/b.sum"]), "scribbled\n")
    elif event == "more":
        project.write(f"src/new{number}.txt", "new\n")
    elif event == "less":
        for more in sorted((project.root / "src").glob("new*.txt"))[:1]:
            more.unlink()
    elif event == "comment":
        project.write("requiem.toml", project.read("requiem.toml") + f"# {number}\n")
    elif event == "bit":
        path.chmod(path.stat().st_mode ^ 0o111)
    return f"{event} {path.name}"


@pytest.mark.parametrize("number", range(HISTORIES))
def test_a_brief_build_leaves_what_a_full_one_would(tmp_path: Path, number: int) -> None:
    chance = random.Random(SEED + number)
    project = make(Project(tmp_path / "brief"))
    told = []
    for each in range(6):
        told += [edit(project, chance, each) for _ in range(chance.choice([1, 1, 2]))]
        project.run("build", env={"WHO": "me"})
        twin = Project(tmp_path / f"twin{each}")
        shutil.copytree(project.root, twin.root, dirs_exist_ok=True, symlinks=True)
        for made in ("out", ".requiem", ".cas"):
            shutil.rmtree(twin.root / made)
        full = project.build(env={"WHO": "me"})
        naive = twin.build(env={"WHO": "me"})
        assert set(full.counts) == {"fresh"}, told
        answers = [
            {s["name"]: (s["request_digest"], s["result_digest"]) for s in r.report["steps"]} for r in (full, naive)
        ]
        assert answers[0] == answers[1], told
        files = [
            sorted((p.relative_to(w.root), p.read_bytes()) for p in (w.root / "out").rglob("*.[ts]*") if p.is_file())
            for w in (project, twin)
        ]
        assert files[0] == files[1], told
        brief(project)


@pytest.mark.parametrize("room", [True, False], ids=["processes", "no-room-for-one"])
def test_several_processes_see_what_one_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool) -> None:
    monkeypatch.setattr(quick, "SHARE_MIN", 2)
    monkeypatch.setattr(quick.system, "cpu_count", lambda: 3)
    if not room:
        monkeypatch.setattr(quick.system, "fork", Mock(side_effect=BlockingIOError))
    paths = [str(tmp_path / str(number)) for number in range(10)]
    for path in paths:
        Path(path).write_text(path)
    before = set(os.listdir("/proc/self/fd"))
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    others = children.read_text()
    assert quick._stamps_of_many(paths) == quick.stamps_now(paths)
    for gone in (paths[0], paths[5], paths[9]):
        os.rename(gone, f"{gone}.away")
        with suppress(OSError):  # The same to the one who asks.
            assert quick._stamps_of_many(paths) == b""
        os.rename(f"{gone}.away", gone)
    assert set(os.listdir("/proc/self/fd")) == before
    assert children.read_text() == others
