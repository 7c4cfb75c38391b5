"""The sandbox's paths, told as the user's own; and nobody else's."""

from __future__ import annotations

import json

import pytest
from project import Project

from requiem_build.cli.places import users_own

ROOT = "/home/u/my proj"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("/workspace", ROOT),
        ("/workspace/src/x.c:3: warning", f"{ROOT}/src/x.c:3: warning"),
        ("cd /workspace; pwd\n/workspace\n", f"cd {ROOT}; pwd\n{ROOT}\n"),
        ("It is in /workspace. Or is it /workspace?", f"It is in {ROOT}. Or is it {ROOT}?"),
        ('"/workspace/a" (/workspace/b) [/workspace/c]', f'"{ROOT}/a" ({ROOT}/b) [{ROOT}/c]'),
        ("P=/workspace/bin:/workspace:/usr/bin", f"P={ROOT}/bin:{ROOT}:/usr/bin"),
        ("gcc -I/workspace/include -L/workspace", f"gcc -I{ROOT}/include -L{ROOT}"),
        ("\x1b[01m\x1b[K/workspace/x.c:1:\x1b[m", f"\x1b[01m\x1b[K{ROOT}/x.c:1:\x1b[m"),
        ("at file:///workspace/x.mjs:3", "at file:///home/u/my%20proj/x.mjs:3"),
    ],
)
def test_a_path_of_the_sandbox_is_shown_as_the_users_own(said: str, shown: str) -> None:
    assert users_own(said, ROOT) == shown


@pytest.mark.parametrize(
    "said",
    [
        "see https://ci.example/workspace/run/7",
        "https://ci.example/?at=/workspace/run",
        "git@host.example/workspace/x and s3://bucket/workspace/x",
        "/opt/workspace/x ./workspace/x ../workspace a/workspace ~/workspace $HOME/workspace ${X}/workspace",
        "/workspace2 /workspaces/x /workspace.old/x /workspace-2 /workspace_x //workspace/x",
        "x-y/workspace @/workspace/x %2f/workspace",
        "workspace/x",
    ],
)
def test_a_path_or_address_of_somebody_else_stays_as_it_is(said: str) -> None:
    assert users_own(said, ROOT) == said


def test_long_words_cost_no_more_than_their_length() -> None:
    for long in ("a", "-I", "a://", "/workspace", "\x1b[", "."):
        users_own(long * 200_000 + " /workspace " + long * 200_000 + "/workspace", "/r")


@pytest.mark.userns
def test_build_and_log_show_the_users_paths_and_machines_get_the_bytes(project: Project) -> None:
    said = "/workspace/src/x.c:3: see https://ci.example/workspace/run/7"
    shown = f"{project.root}/src/x.c:3: see https://ci.example/workspace/run/7\n{project.root}\n"
    project.manifest(f"""
        [steps.a]
        command = "echo {said}; pwd"
        [steps.b]
        command = ["no-such-tool"]
        path = ["bin"]
        [steps.c]
        command = "echo {said} is of the host"
        sandbox = "process"
    """)
    ran = project.run("build", "-k")
    assert ran.code == 1 and ran.err.count(f"was not found in PATH ({project.root}/bin:") == 2
    assert shown in ran.err and shown in project.run("log", "a").out
    assert f"{project.root}/bin:" in project.run("log", "b").err
    # Below strict nothing of Requiem's lies there: whatever it is, it is the host's.
    assert f"{said} is of the host" in ran.err and said in project.run("log", "c").out
    answer = json.loads(project.run("log", "a", "--json").out)
    assert answer["stdout"] == f"{said}\n/workspace\n"
    digest = json.loads(project.run("show", "result", "a").out)["stdout"]["digest"]
    assert project.run("cas", "get", digest).out == answer["stdout"]
