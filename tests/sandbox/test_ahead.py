"""Workers that are started before anybody asks for one: they serve as any other, and none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from project import Project

from requiem_build.sandbox.attendant import AHEAD
from requiem_build.sandbox.base import Job
from requiem_build.sandbox.linux import StrictSandbox

pytestmark = pytest.mark.userns

ROOT = Path(__file__).resolve().parents[2]


def children() -> set[int]:
    """Whatever else is a child of ours is so before and after."""
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


@pytest.fixture
def before() -> set[int]:
    AHEAD.end()
    return children()


def said(sandbox: StrictSandbox) -> bytes:
    job = Job(command=("/bin/echo", "hello"), env={"PATH": "/bin"}, cwd=".")
    finished = sandbox.run(job)
    finished.close()
    return finished.stdout


def test_a_sandbox_takes_the_worker_that_is_there(before: set[int]) -> None:
    AHEAD.start("worker", 1)
    (begun,) = children() - before
    with StrictSandbox() as sandbox:
        assert children() - before == {begun}
        assert said(sandbox) == b"hello\n"
    assert children() == before


def test_one_that_was_killed_while_it_waited_is_made_up_for(before: set[int]) -> None:
    AHEAD.start("worker", 1)
    (begun,) = children() - before
    os.kill(begun, signal.SIGKILL)
    with StrictSandbox() as sandbox:
        assert said(sandbox) == b"hello\n"
    assert children() == before


def test_those_that_nobody_took_are_ended(before: set[int]) -> None:
    AHEAD.start("worker", 3)
    assert len(children() - before) == 3
    AHEAD.end()
    assert children() == before


def test_a_worker_for_something_else_is_left_alone(before: set[int]) -> None:
    AHEAD.start("minder", 1)
    with StrictSandbox() as sandbox:
        assert len(children() - before) == 2
        assert said(sandbox) == b"hello\n"
    AHEAD.end()
    assert children() == before


ASK = """
import os, sys
from requiem_build.cli.app import run
code = run(sys.argv[1:])
print(code, open(f"/proc/self/task/{os.getpid()}/children").read().split())
"""


@pytest.mark.parametrize("words", [(), ("--cache", "off"), ("-n",), ("--sandbox", "process"), ("nothing",)])
def test_no_build_leaves_one(project: Project, words: tuple[str, ...]) -> None:
    project.manifest('[steps.a]\ncommand = "echo hello > a"\noutputs = ["a"]\n')
    command = [sys.executable, "-c", ASK, "-q", "-C", str(project.root), "build", *words]
    asked = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert asked.stdout.strip() == f"{2 if words == ('nothing',) else 0} []", asked.stderr
