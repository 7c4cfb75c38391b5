"""Many lost outputs are laid out by two processes, and nothing of what a build says or leaves depends on that."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from project import REQUIEM, Project, Ran

from requiem_build.core.entries import File
from requiem_build.store.layout import Store

pytestmark = pytest.mark.userns

COUNT = 160


@pytest.fixture
def built(project: Project) -> Project:
    """Steps in pairs, each second one reading what the first has made; nothing of it is in the workspace any more."""
    steps = []
    for number in range(COUNT // 2):
        project.write(f"src/{number}", f"source {number}\n")
        steps.append(
            f'[steps.a{number}]\ncommand = "cp src/{number} out/a{number}"\ninputs = ["src/{number}"]\n'
            f'outputs = ["out/a{number}"]\n'
            f'[steps.b{number}]\ncommand = "cat out/a{number} out/a{number} > out/b{number}"\n'
            f'inputs = ["@a{number}"]\noutputs = ["out/b{number}"]\n'
        )
    project.manifest('[defaults]\nsandbox = "process"\n' + "".join(steps))
    project.build()
    shutil.rmtree(project.root / "out")
    return project


def hold(project: Project) -> None:
    """Everything is there, nothing else is, and there is nothing to do."""
    for number in range(COUNT // 2):
        text = project.read(f"src/{number}")
        assert project.read(f"out/a{number}") == text and project.read(f"out/b{number}") == 2 * text
    assert len(list((project.root / "out").iterdir())) == COUNT
    assert list((project.root / ".requiem/tmp").iterdir()) == []
    assert project.build().counts == {"fresh": COUNT}
    assert project.run("replay").code == 0


def test_two_processes_lay_out_what_one_would_and_say_the_same(built: Project) -> None:
    log = built.base / "log"
    traced = ("strace", "-f", "-qq", "-e", "trace=rename", "-o", str(log), *REQUIEM)
    by_two = built.run("build", "-j", "2", program=traced)
    assert by_two.code == 0, by_two.err
    who = Counter(line.split()[0] for line in log.read_text().splitlines() if "/out/" in line and "= 0" in line)
    assert len(who) == 2 and min(who.values()) > COUNT // 3, who  # Some calls take two lines.
    assert opened(built) == [], "the stamps of what the other process laid out are known, so nothing is read again"
    hold(built)
    shutil.rmtree(built.root / "out")
    by_one = built.run("build", "-j", "1")
    assert said(by_two) == said(by_one) and len(said(by_one)) == COUNT
    hold(built)


def opened(project: Project) -> list[str]:
    """Which outputs a plain build opens."""
    log = project.base / "opened"
    assert (
        project.run("build", program=("strace", "-f", "-qq", "-e", "trace=openat", "-o", str(log), *REQUIEM)).code == 0
    )
    return [line for line in log.read_text().splitlines() if "/out/" in line]


def said(ran: Ran) -> set[str]:
    return {line for line in ran.err.splitlines() if line.startswith("hit ")}


def test_what_the_store_has_lost_is_made_again_and_the_rest_is_restored(built: Project) -> None:
    store = Store(built.root / ".cas")
    gone = [built.root / ".cas" / store.objects.path(entry.digest) for entry in _entries(store, {"a3", "b70", "b79"})]
    for path in gone:
        os.unlink(path)
    ran = built.run("build", "-j", "2")
    assert ran.code == 0 and len(said(ran)) == COUNT - 4 and "1 fresh" in ran.err, (
        "b3 was laid out before a3 was missed"
    )
    again = {line.split()[1] for line in ran.err.splitlines() if line.startswith("ran ")}
    assert again == {"a3", "b70", "b79"}, ran.err
    hold(built)


def _entries(store: Store, names: set[str]) -> list[File]:
    found = [item for kept in store.records for item in kept.result.outputs.items()]
    return [entry for path, entry in found if path[4:] in names and isinstance(entry, File)]


def test_a_step_that_lost_one_of_its_outputs_has_both_again(project: Project) -> None:
    steps = (
        f'[steps.s{number}]\ncommand = "echo {number} | tee out/{number} > kept/{number}"\n'
        f'outputs = ["out/{number}", "kept/{number}"]\n'
        for number in range(COUNT)
    )
    project.manifest('[defaults]\nsandbox = "process"\n' + "".join(steps))
    project.build()
    shutil.rmtree(project.root / "out")
    assert len(said(project.run("build", "-j", "2"))) == COUNT
    for number in range(COUNT):
        assert project.read(f"out/{number}") == project.read(f"kept/{number}") == f"{number}\n"


def test_an_edit_beside_it_runs_what_it_must(built: Project) -> None:
    built.write("src/5", "another source\n")
    ran = built.run("build", "-j", "2")
    assert ran.code == 0 and len(said(ran)) == COUNT - 2
    hold(built)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_leaves_no_process_and_no_half(built: Project, how: signal.Signals) -> None:
    for count in (1, COUNT // 4, COUNT // 2):
        shutil.rmtree(built.root / "out", ignore_errors=True)
        with built.start("build", "-q", "-j", "2") as process:
            while len(list((built.root / "out").glob("*"))) < count and process.poll() is None:
                time.sleep(0.001)
            process.send_signal(how)
            assert process.wait(timeout=30) in (0, 128 + how, -how)
            assert _processes_in(built.root) == []
        for path in (built.root / "out").glob("*"):
            name = path.name
            assert path.read_text() == built.read(f"src/{name[1:]}") * (2 if name[0] == "b" else 1)
    assert built.build().report["ok"]
    hold(built)


def _processes_in(root: Path) -> list[str]:
    end = time.monotonic() + 5
    while (found := list(_working_in(root))) and time.monotonic() < end:
        time.sleep(0.02)  # Who notices that its parent is gone is in the middle of something.
    return found


def _working_in(root: Path) -> Iterator[str]:
    for pid in os.listdir("/proc"):
        with suppress(OSError):
            if pid.isdigit() and os.readlink(f"/proc/{pid}/cwd").startswith(str(root)):
                yield pid
