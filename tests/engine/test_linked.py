"""A program that one step made is run by another, and the libraries that it asks for are there without a word."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from project import Project

STDCXX = f"/usr/lib/{os.uname().machine}-linux-gnu/libstdc++.so.6"
pytestmark = [
    pytest.mark.userns,
    pytest.mark.gcc,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not (Path("/var/lib/dpkg/status").exists() and Path(STDCXX).exists()), reason="needs Debian's libstdc++6"
    ),
]

LINK = f"""
    [steps.link]
    command = "echo 'int main(void) {{ return 0; }}' | gcc -x c - -x none -Wl,--no-as-needed {STDCXX} -o app"
    tools = ["libstdc++6"]
    outputs = ["app"]
"""


def tools(project: Project, step: str) -> dict[str, Any]:
    return dict(json.loads(project.run("show", "request", step).out)["tools"])


def test_a_program_of_another_step_finds_its_libraries(project: Project) -> None:
    project.manifest(LINK + '[steps.run]\ncommand = ["./app"]\ninputs = ["app"]\n')
    assert project.build().counts == {"ran": 2}
    assert list(tools(project, "run")) == [STDCXX]
    assert project.run("replay", "--execute").code == 0
    digest = json.loads(project.run("show", "request", "run").out)["roots"]["/usr"]
    assert json.loads(project.run("doctor", "run", "--json").out)["steps"][0]["digest"] == digest
    assert project.build().counts == {"fresh": 2}
    shutil.rmtree(project.root / ".requiem")  # Asked anew, it is asked the same.
    assert project.build().counts == {"fresh": 2}


def test_programs_in_directories_and_beside_the_command_find_theirs(project: Project) -> None:
    project.manifest(
        LINK.replace('"app"', '"out/"')
        .replace("-o app", "-o out/app")
        .replace('command = "', 'command = "mkdir -p out; ')
        + '[steps.run]\ncommand = "cd out && exec ./app"\ninputs = ["out/"]\n'
    )
    assert project.build().counts == {"ran": 2}
    assert STDCXX in tools(project, "run")


def test_a_library_that_the_step_brings_itself_is_not_sought_in_the_system(project: Project) -> None:
    project.manifest(
        LINK
        + f"""
        [steps.own]
        command = "cp {STDCXX} libstdc++.so.6"
        tools = ["libstdc++6"]
        outputs = ["libstdc++.so.6"]
        [steps.run]
        command = ["./app"]
        inputs = ["app", "libstdc++.so.6"]
        env = {{ LD_LIBRARY_PATH = "/workspace" }}
        """
    )
    assert project.build().counts == {"ran": 3}
    assert not [name for name in tools(project, "run") if name.endswith("libstdc++.so.6")]


def test_a_source_that_is_a_program_is_read_where_it_lies(project: Project) -> None:
    project.manifest(LINK)
    project.build()
    os.rename(project.root / "app", project.root / "prebuilt")
    with open(project.root / "prebuilt", "ab") as file:
        file.write(bytes(300_000))  # Too large to be held in memory.
    project.manifest('[steps.run]\ncommand = ["./prebuilt"]\ninputs = ["prebuilt"]\n')
    assert project.build().counts == {"ran": 1}
    assert STDCXX in tools(project, "run")


def test_a_directory_of_sources_is_read_where_it_lies(project: Project) -> None:
    """Nothing of it need be in the store when a step is asked; large programs never are in memory."""
    project.manifest(LINK)
    project.build()
    (project.root / "tools/more").mkdir(parents=True)
    shutil.copy("/bin/bash", project.root / "tools/more/large")
    os.rename(project.root / "app", project.root / "tools/app")
    project.manifest('[steps.run]\ncommand = ["tools/app"]\ninputs = ["tools/"]\n')
    assert project.build().counts == {"ran": 1}
    assert STDCXX in tools(project, "run")
    shutil.rmtree(project.root / ".cas")
    project.manifest('[steps.run]\ncommand = ["tools/app", "again"]\ninputs = ["tools/"]\n')
    assert project.build().counts == {"ran": 1}


def test_a_script_of_another_step_is_run_by_what_it_says(project: Project) -> None:
    project.manifest(
        """
        [steps.write]
        command = "printf '#!/usr/bin/perl\\\\nprint 6 * 7;\\\\n' > gen && chmod +x gen"
        outputs = ["gen"]
        [steps.run]
        command = "./gen > out"
        inputs = ["gen"]
        outputs = ["out"]
        """
    )
    assert project.build().counts == {"ran": 2}
    assert project.read("out") == "42"


def test_what_the_store_lost_is_made_again_before_it_is_read(project: Project) -> None:
    project.manifest(LINK + '[steps.run]\ncommand = ["./app"]\ninputs = ["app"]\n')
    project.build()
    shutil.rmtree(project.root / ".cas")
    shutil.rmtree(project.root / ".requiem")
    os.unlink(project.root / "app")
    assert project.build().counts == {"ran": 2}


def test_what_comes_as_a_root_has_the_runtime_of_cxx(project: Project) -> None:
    """As wheels of a virtual environment need it."""
    project.manifest(LINK)
    project.build()
    (project.root / "sdk").mkdir()
    os.rename(project.root / "app", project.root / "sdk/app")
    project.manifest('[roots.sdk]\npath = "sdk"\n[steps.run]\ncommand = "sdk/app"\nroots = ["sdk"]\n')
    assert project.build().counts == {"ran": 1}
    assert STDCXX in tools(project, "run")
