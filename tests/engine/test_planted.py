"""What no other test noticed when it was broken on purpose: see `Planted faults` in docs/testing.md."""

from __future__ import annotations

import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from project import CACHE, Project

from requiem_build.core.errors import EnvironmentFault
from requiem_build.core.frontier import Frontier, plan_order
from requiem_build.core.instance import Instance, Plan
from requiem_build.engine import quick, sealed
from requiem_build.engine.schedule import Schedule, Stop
from requiem_build.sandbox import system
from requiem_build.sandbox.distribution import Distribution

pytestmark = pytest.mark.userns

ONE_STEP = """
    [steps.x]
    command = "cat in.txt > out.txt"
    inputs = ["in.txt"]
    outputs = ["out.txt"]
"""

READS_ONE_OF_TWO = """
    [steps.x]
    command = "cat src/a.h > out.txt; echo 'out.txt: src/a.h' > x.d"
    discover = ["src/*.h"]
    depfile = "x.d"
    outputs = ["out.txt"]
"""


@pytest.fixture
def one(project: Project) -> Project:
    project.write("in.txt", "1\n")
    project.manifest(ONE_STEP)
    return project


@pytest.fixture
def headers(project: Project) -> Project:
    project.write("src/a.h", "a\n")
    project.write("src/b.h", "b\n")
    project.manifest(READS_ONE_OF_TWO)
    return project


def settle(project: Project, env: Mapping[str, str] | None = None) -> None:
    """Builds until a plain build is answered without a look at the plan."""
    project.run("build", env=env)
    time.sleep(0.05)  # Past the clock tick in which nothing that was just written can be believed.
    assert project.run("build", env=env).code == 0


# What a step read


def test_a_step_runs_again_only_for_what_it_read_of_what_it_may_read(headers: Project) -> None:
    headers.build()
    headers.write("src/b.h", "other\n")
    assert headers.build().counts == {"fresh": 1}
    headers.write("src/a.h", "other\n")
    assert headers.build().counts == {"ran": 1}
    assert headers.read("out.txt") == "other\n"


def test_a_step_that_read_what_it_may_read_is_fresh_without_a_store(headers: Project) -> None:
    headers.build()
    shutil.rmtree(headers.root / ".cas")
    assert headers.build().counts == {"fresh": 1}


@pytest.mark.parametrize("depfile", [True, False])
def test_a_new_file_that_a_step_might_have_read_makes_it_run(headers: Project, depfile: bool) -> None:
    headers.manifest(READS_ONE_OF_TWO if depfile else READS_ONE_OF_TWO.replace('depfile = "x.d"', ""))
    headers.build()
    headers.write("src/c.h", "c\n")
    again = headers.build()
    assert again.counts == {"ran": 1}
    assert again.step("x")["reason"] == "the files that discover matches are others"
    os.unlink(headers.root / "src/c.h")
    assert "ran" not in headers.build().counts


def test_a_step_that_may_read_and_does_not_say_what_it_read_fails(headers: Project) -> None:
    headers.manifest(READS_ONE_OF_TWO.replace("> x.d", "> elsewhere.d"))
    ran = headers.build(expect=1)
    assert 'declared output "x.d" was not produced' in ran.step("x")["reason"] + ran.err


# Outputs


def test_what_stood_in_an_output_directory_is_moved_aside(project: Project) -> None:
    project.write("gen/mine.txt", "mine\n")
    project.manifest('[steps.x]\ncommand = "mkdir gen; echo 1 > gen/a.txt"\noutputs = ["gen/"]\n')
    project.build()
    assert os.listdir(project.root / "gen") == ["a.txt"]
    moved = list((project.root / ".requiem/displaced").rglob("mine.txt"))
    assert [path.read_text() for path in moved] == ["mine\n"]


@pytest.mark.parametrize("target", ["../../outside.txt", "/etc/hostname", "../../workspace2/x"])
def test_an_output_that_links_out_of_the_workspace_fails(project: Project, target: str) -> None:
    project.manifest(f'[steps.x]\ncommand = "ln -s {target} out/link"\noutputs = ["out/link"]\n')
    assert f'is a symlink to "{target}", outside of the workspace' in project.build(expect=1).err
    assert not project.exists("out/link")


def test_a_pipe_in_an_outputs_place_fails_and_is_not_waited_for(project: Project) -> None:
    project.manifest('[steps.x]\ncommand = "mkfifo out.txt"\noutputs = ["out.txt"]\n')
    process = project.start("build")
    try:
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "neither a file, a symlink nor a directory" in err.decode()


def test_the_executable_bit_of_an_output_is_kept(project: Project) -> None:
    project.manifest('[steps.x]\ncommand = "echo 1 > tool; chmod +x tool; echo 2 > text"\noutputs = ["tool", "text"]\n')
    for _ in range(2):  # Made, then restored.
        project.build()
        modes = [stat.S_IMODE((project.root / name).stat().st_mode) & 0o111 != 0 for name in ("tool", "text")]
        assert modes == [True, False]
        os.unlink(project.root / "tool")


def corrupt(project: Project) -> set[int]:
    """Gives every object other bytes of the same length; returns the lengths."""
    blobs = [p for p in (project.root / ".cas/v2/objects").rglob("*") if p.is_file() and p.suffix != ".meta"]
    for path in blobs:
        path.chmod(0o644)
        path.write_bytes(b"\1" * path.stat().st_size)
    return {path.stat().st_size for path in blobs}


@pytest.mark.parametrize("size", [6, 300_000])
def test_corrupt_objects_of_any_size_are_made_again(project: Project, size: int) -> None:
    content = os.urandom(size)
    project.write("in.bin", content)
    project.manifest('[steps.x]\ncommand = "tail -c +2 in.bin > out.bin"\ninputs = ["in.bin"]\noutputs = ["out.bin"]\n')
    project.build()
    assert {size - 1, size} <= corrupt(project)
    os.unlink(project.root / "out.bin")
    assert project.build().counts == {"ran": 1}
    assert (project.root / "out.bin").read_bytes() == content[1:]


def test_a_corrupt_object_is_no_hit_in_a_prediction_either(one: Project) -> None:
    one.build()
    os.unlink(one.root / "out.txt")
    assert one.build("-n").counts == {"hit": 1}
    corrupt(one)
    assert one.build("-n").counts == {"miss": 1}


# Surroundings


def test_a_tool_counts_even_where_its_root_is_keyed_by_something_else(project: Project) -> None:
    project.write("tools/version", "1\n")
    project.write("tools/bin/greet", "#!/bin/sh\necho hi\n", executable=True)
    project.manifest("""
        [roots.tools]
        path = "tools"
        key = ["tools/version"]
        [steps.program]
        command = ["greet"]
        roots = ["tools"]
        path = ["tools/bin"]
        [steps.tool]
        command = "greet"
        tools = ["greet"]
        roots = ["tools"]
        path = ["tools/bin"]
    """)
    project.build()
    project.write("tools/bin/greet", "#!/bin/sh\necho hello\n", executable=True)
    again = project.build()
    assert again.counts == {"ran": 2}
    assert again.step("tool")["reason"] == again.step("program")["reason"] == "tool greet changed"


def test_secrets_do_not_pass_by_a_pattern(project: Project) -> None:
    project.manifest("""
        [steps.pattern]
        command = "echo ${MY_NAME:-none} ${MY_TOKEN:-none}"
        pass_env = ["MY_*"]
        [steps.exact]
        command = "echo ${MY_TOKEN:-none}"
        pass_env = ["MY_TOKEN"]
    """)
    project.build(env={"MY_NAME": "name", "MY_TOKEN": "token"})
    assert project.run("log", "pattern").out == "name none\n"
    assert project.run("log", "exact").out == "token\n"


# Nothing to do?


def test_another_setting_of_the_environment_is_another_question(one: Project) -> None:
    settle(one)
    assert "nothing to do" in one.run("build").err
    assert "nothing to do" not in one.run("build", env={"REQUIEM_SANDBOX": "process"}).err


@pytest.mark.parametrize("seen", ["host", "packages"])
def test_a_system_that_changed_is_something_to_do(one: Project, tmp_path: Path, seen: str) -> None:
    one.write("requiem.toml", one.read("requiem.toml") + f'system = "{seen}"\n')
    settle(one)
    root, key = str(one.root), sealed.seal_key(sealed.cache_home(one.environment()))

    def answer() -> int | None:
        return quick.nothing_to_do(root, "requiem.toml", root, (), one.environment())

    assert answer() == 1
    kept = sealed.load(quick.memory_path(root), key)
    head, (inside, outside, stamps, absent, *rest) = kept[:5], kept[5:]
    database = system._package_databases()[0]
    if seen == "host":
        assert system.HostSystem(str(tmp_path)).look().stamps.keys() <= {*outside, *absent}
        counting = ["/etc", "/usr/local", database]
    else:
        distribution = Distribution(str(tmp_path))
        distribution.view(["bash"])
        assert set(distribution.watched()) <= {*outside, *absent}
        assert "/usr/local" not in outside
        counting = [database, *(path for path in distribution.watched() if path in outside)]
    for path in counting:
        at = 40 * (len(inside) + outside.index(path))
        other = stamps[:at] + bytes([stamps[at] ^ 1]) + stamps[at + 1 :]
        sealed.save(quick.memory_path(root), key, (*head, inside, outside, other, absent, *rest))
        assert answer() is None, path
    sealed.save(quick.memory_path(root), key, (*head, inside, outside, stamps, [*absent, "/usr"], *rest))
    assert answer() is None, "what was absent and is there now"
    sealed.save(quick.memory_path(root), key, kept)
    assert answer() == 1, "the control"


def test_the_system_is_watched_down_to_each_file_and_what_a_link_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = tmp_path / "local"
    (local / "lib/deep").mkdir(parents=True)
    (local / "lib/deep/file").touch()
    (tmp_path / "link").symlink_to("local")
    monkeypatch.setattr(system, "_LOCAL", str(tmp_path / "link"))
    watched = system.HostSystem(str(tmp_path / "cache")).look().stamps
    wanted = (tmp_path / "link", local, tmp_path / "link/lib/deep", tmp_path / "link/lib/deep/file")
    assert {str(path) for path in wanted} <= watched.keys()


# The seal


def test_a_memory_that_another_user_sealed_is_not_believed(one: Project, tmp_path: Path) -> None:
    one.build()
    shutil.rmtree(one.root / ".cas")
    assert one.build().counts == {"fresh": 1}  # By memory alone.
    cache = tmp_path / "cache"
    shutil.copytree(CACHE, cache, ignore=shutil.ignore_patterns("seal*", "*.[0-9]*", "masks", "views"))
    assert one.build(env={"XDG_CACHE_HOME": str(cache)}).counts == {"ran": 1}


def test_a_sealed_file_is_read_only_with_its_key_and_whole(tmp_path: Path) -> None:
    path, key = tmp_path / "cache", b"k" * 32
    sealed.save(str(path), key, ("value", 1))
    assert sealed.load(str(path), key) == ("value", 1)
    assert sealed.load(str(path), b"K" * 32) is None
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert sealed.load(str(path), key) is None
        path.write_bytes(whole[:place])
        assert sealed.load(str(path), key) is None


# The schedule


@dataclass(frozen=True)
class Ended:
    ok: bool


def test_a_step_that_runs_on_after_the_stop_is_told_again() -> None:
    told = threading.Event()
    calls: list[float] = []

    def insist() -> None:
        calls.append(time.monotonic())
        if len(calls) == 2:  # The first call came too early for it.
            told.set()

    stop = Stop(insist)

    def begin(name: str, needed: Mapping[str, Ended]) -> Callable[[], Ended]:
        stop.requested = True
        return lambda: Ended(told.wait(10))

    plan = Plan({"x": Instance("x", "x", ("true",), "true")})
    outcomes: list[Ended | None] = []
    Schedule(
        plan,
        Frontier(plan, plan_order),
        begin,
        workers=1,
        keep_going=False,
        settled=lambda name, outcome: outcomes.append(outcome),
        stop=stop,
    ).run()
    assert outcomes == [Ended(True)]


def test_threads_that_cannot_be_started_leave_the_work_to_those_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that allows one thread more, and then none; the first is the outcome's own."""
    start, given = threading.Thread.start, []

    def refuse(thread: threading.Thread) -> None:
        if given and thread.name.startswith("requiem-"):
            raise RuntimeError("can't start new thread")
        given.append(thread)
        start(thread)

    plan = Plan({name: Instance(name, name, ("true",), "true") for name in "abcdef"})
    outcomes: list[str] = []

    def go() -> None:
        Schedule(
            plan,
            Frontier(plan, plan_order),
            lambda name, needed: lambda: Ended(True),
            workers=4,
            keep_going=False,
            settled=lambda name, outcome: outcomes.append(name),
            stop=Stop(),
        ).run()

    monkeypatch.setattr(threading.Thread, "start", refuse)
    go()
    assert sorted(outcomes) == list("abcdef")
    assert len(given) == 1
    with pytest.raises(EnvironmentFault, match="not even one thread"):
        go()


def test_a_thread_that_dies_is_not_waited_for() -> None:
    """Memory may end anywhere: here where what a step's work came to is taken."""
    plan = Plan({"x": Instance("x", "x", ("true",), "true")})
    frontier = Frontier(plan, plan_order)

    def finish(*_: object, **__: object) -> list[str]:
        raise MemoryError

    frontier.finish = finish  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        Schedule(
            plan,
            frontier,
            lambda name, needed: lambda: Ended(True),
            workers=1,
            keep_going=False,
            settled=lambda name, outcome: None,
            stop=Stop(),
        ).run()
