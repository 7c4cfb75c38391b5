"""Many builds at once: one workspace waits, one store does not; collection and deletion beside them are only misses."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from project import Project

pytestmark = pytest.mark.userns

GATED = """
    [roots.gate]
    path = "{gate}"
    key = ["key"]
    [steps.before]
    command = "seq 40000 > before.txt"
    outputs = ["before.txt"]
    lay_out = {lay_out}
    [steps.waits]
    roots = ["gate"]
    inputs = ["before.txt"]
    command = "until [ -e {gate}/go ]; do sleep 0.01; done; tail -n 1 before.txt > waits.txt"
    outputs = ["waits.txt"]
    [steps.after]
    inputs = ["before.txt", "waits.txt"]
    command = "cat before.txt waits.txt > after.txt"
    outputs = ["after.txt"]
"""


class Gate:
    """A step of a real build that runs until it is let go."""

    def __init__(self, project: Project, *, lay_out: bool = True) -> None:
        self.project = project
        self.place = project.base / "gate"
        self.place.mkdir()
        project.write("key", "one")  # What stands for the gate's content, which changes while it is watched.
        project.manifest(GATED.format(gate=self.place, lay_out=str(lay_out).lower()))

    @contextmanager
    def building(self, *words: str, **options: object) -> Iterator[subprocess.Popen[bytes]]:
        """A build that has come to the waiting step; at the end it is let go."""
        process = self.project.start("build", "--json", *words, **options)
        while not self._has_begun():
            assert process.poll() is None, process.communicate()
        try:
            yield process
        finally:
            self.let_go()

    def _has_begun(self) -> bool:
        """A lease and the first step's output: the second one runs now or is about to."""
        store = self.project.root / ".cas"
        leases = store / "v2/leases"
        with suppress(OSError):
            if not os.listdir(leases):
                return False
            return any(file.stat().st_size > 200_000 for file in (store / "v2/objects").glob("*/*/*"))
        return False

    def let_go(self) -> None:
        (self.place / "go").write_text("")


@pytest.fixture
def gate(project: Project) -> Gate:
    return Gate(project)


def end(process: subprocess.Popen[bytes], expect: int = 0) -> dict[str, int]:
    out, err = process.communicate(timeout=100)
    assert process.returncode == expect, err.decode()
    return {name: count for name, count in json.loads(out)["counts"].items() if count and name != "total"}


# One workspace


def test_two_builds_of_one_workspace_wait_with_a_message_and_both_succeed(gate: Gate) -> None:
    with gate.building() as first:
        second = gate.project.start("build", "--json")
        assert second.stderr is not None
        said = second.stderr.readline().decode()
        assert said.startswith(f"warning: waiting for pid {first.pid} ")
        busy = gate.project.refuse("build", "--no-wait", expect=5)
        assert "another build holds this workspace" in busy.err and str(first.pid) in busy.err
    assert end(first) == {"ran": 3}
    assert end(second) == {"fresh": 3}


def test_a_killed_build_leaves_nothing_to_wait_for_and_nothing_pinned(gate: Gate) -> None:
    with gate.building() as first:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert len(os.listdir(gate.project.root / ".cas/v2/leases")) == 1
    again = gate.project.build("--no-wait")
    assert again.counts in ({"ran": 2, "hit": 1}, {"ran": 3})  # Whether its first record got out.
    assert gate.project.run("cas", "gc", "--max-size", "1").code == 0
    assert os.listdir(gate.project.root / ".cas/v2/leases") == []
    assert json.loads(gate.project.run("cas", "ls", "--json").out)["entries"] == []


# Many workspaces, one store


def test_many_workspaces_fill_one_store_at_once(tmp_path: Path) -> None:
    environment = {"REQUIEM_CAS_DIR": str(tmp_path / "cas")}
    projects = [Project(tmp_path / str(number)) for number in range(6)]
    for number, project in enumerate(projects):
        project.manifest(f"""
            [steps.same]
            foreach.n = [{", ".join(f'"{n}"' for n in range(8))}]
            command = "seq {{{{ n }}}} 2000 > {{{{ output }}}}"
            outputs = ["same/{{{{ n }}}}"]
            [steps.own]
            command = "echo {number} > own.txt"
            outputs = ["own.txt"]
        """)
    running = [project.start("build", "--json", env=environment) for project in projects]
    assert all(sum(end(process).values()) == 9 for process in running)
    for project in projects:
        shutil.rmtree(project.root / "same")
        assert project.build(env=environment).counts == {"hit": 8, "fresh": 1}
    assert projects[0].run("cas", "verify", env=environment).code == 0
    records = json.loads(projects[0].run("cas", "stats", "--json", env=environment).out)["kinds"]["records"]["count"]
    assert records == 8 + 6


def test_no_build_waits_for_another_in_the_same_store(gate: Gate, tmp_path: Path) -> None:
    environment = {"REQUIEM_CAS_DIR": str(gate.project.root / ".cas")}
    other = Project(tmp_path / "other")
    other.manifest('[steps.a]\ncommand = "echo a > a.txt"\noutputs = ["a.txt"]\n')
    with gate.building() as first:
        assert other.build(env=environment).counts == {"ran": 1}
        assert first.poll() is None
    assert end(first) == {"ran": 3}


# Beside collection


def test_what_a_running_build_made_is_pinned_against_gc(gate: Gate) -> None:
    with gate.building() as build:
        said = json.loads(gate.project.run("cas", "gc", "--max-size", "1", "--max-age", "0", "--json").out)
        assert said["pinned_bytes"] > 200_000
    assert end(build) == {"ran": 3}
    assert gate.project.run("cas", "verify").code == 0
    (gate.project.root / "after.txt").unlink()
    assert gate.project.build().counts == {"fresh": 2, "hit": 1}


@pytest.mark.parametrize("lay_out", [True, False])
@pytest.mark.parametrize("what", ["objects", "store"])
def test_what_is_deleted_under_a_build_is_had_again(project: Project, what: str, lay_out: bool) -> None:
    gate = Gate(project, lay_out=lay_out)
    with gate.building() as build:
        shutil.rmtree(project.root / (".cas/v2/objects" if what == "objects" else ".cas"), ignore_errors=True)
    counts = end(build)
    assert sum(counts.values()) == 3 and "failed" not in counts
    assert project.read("after.txt").splitlines()[-1] == "40000"
    assert project.build().counts in ({"fresh": 3}, {"fresh": 2, "ran": 1}, {"fresh": 2, "hit": 1})
    assert project.run("cas", "verify").code == 0


WIDE = "\n".join(
    f"""
    [steps.a{n}]
    command = "mkdir -p d{n}/sub && seq {n} 30000 > d{n}/big && echo {{{{ k }}}} > d{n}/sub/x"
    outputs = ["d{n}/"]
    lay_out = {"true" if n % 2 else "false"}
    [steps.b{n}]
    command = "head -n 2 d{n}/big > b{n}.txt && cat d{n}/sub/x >> b{n}.txt && head -c 200000 d{n}/big > c{n}"
    inputs = ["d{n}/big", "d{n}/sub/x"]
    outputs = ["b{n}.txt", "c{n}"]
    [steps.c{n}]
    command = "cat b{n}.txt c{n} > e{n}"
    inputs = ["b{n}.txt", "c{n}"]
    outputs = ["e{n}"]
    """
    for n in range(5)
)


def delete_some(project: Project, chance: random.Random) -> None:
    for path in chance.sample(files := list((project.root / ".cas").glob("v2/*/**/*")), min(len(files), 3)):
        with suppress(OSError):
            path.unlink()


def delete_all(project: Project, chance: random.Random) -> None:
    shutil.rmtree(project.root / ".cas", ignore_errors=True)


def collect(project: Project, chance: random.Random) -> None:
    assert project.run("cas", "gc", "--max-size", "1").code == 0


@pytest.mark.parametrize(("harm", "pause_s"), [(delete_some, 0.04), (delete_all, 0.4), (collect, 0.0)])
def test_builds_beside_a_deleter_give_the_right_outputs(
    project: Project, harm: Callable[[Project, random.Random], None], pause_s: float
) -> None:
    project.manifest('[vars]\nk = "0"\n' + WIDE)
    project.build()
    chance, stop = random.Random(1), threading.Event()

    def deleting() -> None:
        while not stop.wait(pause_s):
            harm(project, chance)

    deleter = threading.Thread(target=deleting)
    deleter.start()
    try:
        for turn in range(3):
            project.build("--set", f"k={turn}")
            for n in range(5):
                assert project.read(f"e{n}").splitlines()[:3] == [f"{n}", f"{n + 1}", f"{turn}"]
    finally:
        stop.set()
        deleter.join()
    assert list((project.root / ".cas").glob("v2/leases/*")) == []
    assert project.run("cas", "verify", "--repair").code in (0, 3)
    project.build("--set", "k=last")
    assert project.run("cas", "verify").code == 0
