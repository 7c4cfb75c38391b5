"""A name on the command line means the same to every command: a step, an instance, an output from here, a group."""

from __future__ import annotations

import json

import pytest
from project import Project, Ran

pytestmark = pytest.mark.userns


@pytest.fixture
def plan(project: Project) -> Project:
    project.manifest("""
        [steps.all]
        needs = ["each", "sub/b"]
        [steps.empty]
        needs = []
        [steps.each]
        foreach = { x = ["1", "2"] }
        command = "echo {{ x }} > each-{{ x }}"
        outputs = ["each-{{ x }}"]
        inputs = ["unread"]
    """)
    text = project.read("requiem.toml").replace('name = "work"\n', 'name = "work"\ninclude = ["sub"]\n')
    project.write("requiem.toml", text)
    project.write("unread", "")
    project.write(
        "sub/requiem.toml", '[project]\nname="sub"\n[steps.b]\ncommand = "echo > out/b"\noutputs = ["out/b"]\n'
    )
    project.build()
    return project


def names(ran: Ran) -> list[str]:
    steps = json.loads(ran.out).get("steps", [])
    return [step.get("step", step.get("name")) for step in steps]


ALL = ["each:1", "each:2", "sub/b"]


@pytest.mark.parametrize("command", ["doctor", "why", "observe", "reproduce"])
def test_a_name_means_the_same_to_every_command(plan: Project, command: str) -> None:
    names_and_meanings = [("all", ALL), ("each-1", ["each:1"])]
    if command in ("doctor", "why"):  # These run nothing, and are quick.
        names_and_meanings += [("each", ALL[:2]), ("each:2", ["each:2"]), ("sub/b", ["sub/b"]), ("e*", ALL[:2])]
    for name, meant in names_and_meanings:
        ran = plan.run(command, "--json", name)
        assert (ran.code, sorted(names(ran))) == (0, meant), (name, ran.err)
    below = plan.run(command, "--json", "-f", "../../requiem.toml", "b", cwd=plan.root / "sub/out")
    assert names(below) == ["sub/b"], below.err
    for unknown in ("eac", "out/b"):
        assert f'"{unknown}"' in plan.refuse(command, unknown).err
    assert "did you mean" in plan.refuse(command, "eac").err


def test_a_group_is_never_answered_by_silence(plan: Project) -> None:
    assert plan.run("doctor", "all").out.count("system = ") == 3
    assert "a group without steps" in plan.refuse("doctor", "empty").err
    shown = plan.run("build", "--explain-policy", "all")
    assert shown.code == 0 and "each:1 (one of 3 instances)" in shown.out
    assert "3 instances" in plan.refuse("shell", "all", "--", "true").err


def test_a_step_is_tightened_by_what_all_its_instances_use(plan: Project) -> None:
    text = plan.read("requiem.toml").replace("echo {{ x }} >", "test {{ x }} = 1 || cat unread; echo {{ x }} >")
    plan.write("requiem.toml", text)
    assert plan.run("tighten", "each:1").out == ""
    assert "2 steps" in plan.refuse("tighten", "all").err
