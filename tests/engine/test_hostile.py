"""Ways to a stale answer or a lost file that a hostile reviewer found. Each was a bug once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from project import Project

pytestmark = pytest.mark.userns

COMPILE = """
    [steps.m]
    command = ["gcc", "{flags}", "-MMD", "-MF", "m.d", "-c", "m.c", "-o", "m.o"]
    inputs = ["m.c"]
    discover = ["inc/*.h"]
    depfile = "m.d"
    outputs = ["m.o"]
"""


# Stale answers


@pytest.mark.gcc
def test_a_header_behind_a_symlink_counts_by_its_content(project: Project) -> None:
    project.write("m.c", '#include "a.h"\nint x = X;\n')
    project.write("inc/b.h", "#define X 1\n")
    os.symlink("b.h", project.root / "inc/a.h")
    project.manifest(COMPILE.replace("{flags}", "-Iinc"))
    project.build()
    project.write("inc/b.h", "#define X 2\n")
    assert project.build().states == {"m": "ran"}


@pytest.mark.gcc
def test_headers_that_a_compiler_takes_for_the_systems_count_too(project: Project) -> None:
    project.write("m.c", "#include <a.h>\nint x = X;\n")
    project.write("inc/a.h", "#define X 1\n")
    project.manifest(COMPILE.replace('"{flags}"', '"-isystem", "inc"'))
    project.build()
    project.write("inc/a.h", "#define X 2\n")
    assert project.build().states == {"m": "ran"}


def test_a_root_that_changes_while_a_step_runs_is_never_remembered(project: Project) -> None:
    project.write("t/d", "1\n")
    project.manifest(
        '[roots.t]\npath = "t"\n[steps.c]\ncommand = "sleep 1.5; cat t/d > o"\nroots = ["t"]\noutputs = ["o"]\n'
    )
    process = project.start("build")
    time.sleep(1.0)
    project.write("t/d", "2\n")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and b"changed during the build" in err
    assert project.read("o") == "2\n"
    project.write("t/d", "1\n")
    project.build()
    assert project.read("o") == "1\n"


def test_a_copied_workspace_reads_its_own_manifest(project: Project, tmp_path: Path) -> None:
    project.manifest('[steps.a]\ncommand = "echo v1 > o"\noutputs = ["o"]\n')
    project.build()
    subprocess.run(["cp", "-a", project.root, tmp_path / "copy"], check=True)
    copy = Project(tmp_path, "copy")
    copy.write("requiem.toml", copy.read("requiem.toml").replace("v1", "v2"))
    copy.run("build")
    assert copy.read("o") == "v2\n" and project.read("o") == "v1\n"


def test_what_a_symlink_leads_to_is_watched(project: Project) -> None:
    project.manifest(
        '[roots.k]\npath = "k"\nkey = ["key"]\n[steps.a]\ncommand = "echo v1 $E > o"\n'
        'env_file = ["e"]\nroots = ["k"]\noutputs = ["o"]\n'
    )
    os.rename(project.root / "requiem.toml", project.root / "real.toml")
    os.symlink("real.toml", project.root / "requiem.toml")
    project.write("e1", "E=one\n")
    os.symlink("e1", project.root / "e")
    project.write("k/lock", "1")
    os.symlink("k/lock", project.root / "key")
    assert project.build().states == {"a": "ran"}
    project.write("e1", "E=two\n")
    project.run("build")
    assert project.read("o") == "v1 two\n"
    project.write("k/lock", "2")
    assert project.build().states == {"a": "ran"}
    project.write("real.toml", project.read("real.toml").replace("v1", "v2"))
    project.run("build")
    assert project.read("o") == "v2 two\n"


def test_a_configuration_that_moves_is_noticed(project: Project, tmp_path: Path) -> None:
    project.manifest('[steps.a]\ncommand = "echo 1 > o"\noutputs = ["o"]\n')
    project.build()
    project.run("build")
    assert "nothing to do" in project.run("build").err
    (tmp_path / "other/requiem").mkdir(parents=True)
    (tmp_path / "other/requiem/config.toml").write_text('[build]\nsandbox = "process"\n')
    assert "ran" in project.run("build", env={"XDG_CONFIG_HOME": str(tmp_path / "other")}).err


def test_the_manifest_that_was_read_decides_not_the_one_that_lies_there_when_planning_ends(project: Project) -> None:
    values = ", ".join(f'"{i}"' for i in range(1500))
    project.manifest(
        f'[steps.a]\ncommand = "echo v1 > o"\noutputs = ["o"]\n'
        f'[steps.many]\nforeach.i = [{values}]\ncommand = "true {{{{ i }}}}"\n'
    )
    text = project.read("requiem.toml")
    process = project.start("build", "a")
    for _ in range(40):  # Some write falls between the reading and the end of planning.
        project.write("requiem.toml", text.replace("v1", "v2"))
        time.sleep(0.05)
    assert process.wait(timeout=60) == 0
    process.communicate()
    project.run("build", "a")
    assert project.read("o") == "v2\n"


def test_no_step_makes_what_requiem_reads_itself(project: Project) -> None:
    project.write("i", '{"n": 1}')
    project.write("v.json", '{"n": 0}')
    project.write(
        "requiem.toml",
        '[project]\nname = "x"\nvars_files = ["v.json"]\n[steps.gen]\n'
        'command = "cp i v.json"\ninputs = ["i"]\noutputs = ["v.json"]\n',
    )
    assert "read with the manifest" in project.refuse("build").err
    project.manifest(
        '[steps.e]\ncommand = "echo A=1 > gen.env"\noutputs = ["gen.env"]\n'
        '[steps.a]\ncommand = "true"\nenv_file = ["gen.env"]\n'
    )
    assert "made by a step" in project.refuse("build").err


def test_an_output_that_vanishes_during_the_build_is_not_up_to_date(project: Project) -> None:
    project.manifest(
        '[steps.a]\ncommand = "echo a > a.out"\noutputs = ["a.out"]\n'
        '[steps.b]\ncommand = "sleep 1.5; cat a.out > b.out"\ninputs = ["a.out"]\noutputs = ["b.out"]\n'
    )
    process = project.start("build")
    until = time.monotonic() + 20
    while not project.exists("a.out") and time.monotonic() < until:
        time.sleep(0.02)
    os.unlink(project.root / "a.out")
    process.communicate(timeout=60)
    project.run("build")
    assert project.read("a.out") == "a\n"


def test_a_foreach_text_that_is_a_path_or_not_is_planned_anew(project: Project) -> None:
    project.write("foo", "x")
    project.write("sub/keep", "x")
    project.manifest(
        '[steps.a]\nforeach.v = ["foo"]\ncwd = "sub"\ncommand = "echo {{ v }} > {{ output }}"\noutputs = ["o"]\n'
    )
    project.build()
    with_path = project.read("o")
    os.unlink(project.root / "foo")
    project.run("build")
    assert project.read("o") != with_path


def test_what_is_only_in_the_store_is_looked_for_there(project: Project) -> None:
    project.manifest('[steps.a]\ncommand = "echo 1 > o"\noutputs = ["o"]\nlay_out = false\n')
    project.build()
    shutil.rmtree(project.root / ".cas")
    assert "ran" in project.run("build").err


# Lost files


def test_a_file_that_became_a_source_is_not_removed(project: Project) -> None:
    reader = '[steps.b]\ncommand = "cat v.h > o"\ninputs = ["v.h"]\noutputs = ["o"]\n'
    project.manifest('[steps.gen]\ncommand = "echo 1 > v.h"\noutputs = ["v.h"]\n' + reader)
    project.build()
    project.manifest(reader)
    project.build()
    assert project.read("v.h") == "1\n" and project.build().code == 0


def test_a_tracked_file_is_not_removed_when_its_step_vanishes(project: Project) -> None:
    other = '[steps.b]\ncommand = "echo 2 > o"\noutputs = ["o"]\n'
    project.manifest('[steps.gen]\ncommand = "echo 1 > v.h"\noutputs = ["v.h"]\n' + other)
    project.build()
    for command in (["git", "init", "-q"], ["git", "add", "-f", "v.h"]):
        subprocess.run(command, cwd=project.root, check=True)
    project.manifest(other)
    project.build()
    assert project.read("v.h") == "1\n"


def test_two_steps_that_exchange_their_outputs_keep_both(project: Project) -> None:
    text = '[steps.a]\ncommand = "echo a > X"\noutputs = ["X"]\n[steps.b]\ncommand = "echo b > Y"\noutputs = ["Y"]\n'
    project.manifest(text)
    project.build()
    project.manifest(text.replace("X", "Z").replace("Y", "X").replace("Z", "Y"))
    project.build()
    assert project.read("X") == "b\n" and project.read("Y") == "a\n"


def test_another_variants_outputs_are_left_alone(project: Project) -> None:
    project.manifest(
        '[vars]\nd = "dbg"\n[profiles.rel.vars]\nd = "rel"\n[steps.a]\ncommand = "echo {{ d }} > {{ output }}"\n'
        'outputs = ["b/{{ d }}/o"]\n'
    )
    project.write("b.toml", '[project]\nname = "other"\n[steps.z]\ncommand = "echo z > z"\noutputs = ["z"]\n')
    project.build()
    project.build("--profile", "rel")
    project.run("-f", "b.toml", "build")
    assert project.read("b/dbg/o") == "dbg\n" and project.read("b/rel/o") == "rel\n" and project.read("z") == "z\n"


def test_links_and_empty_directories_in_a_directory_output_are_moved_aside(project: Project) -> None:
    project.manifest('[steps.a]\ncommand = "mkdir s; echo 1 > s/a; ln -s a s/own; mkdir s/empty"\noutputs = ["s/"]\n')
    project.build()
    os.symlink("/etc/hostname", project.root / "s/mine")
    (project.root / "s/folder").mkdir()
    ran = project.build()
    assert sorted(os.listdir(project.root / "s")) == ["a", "empty", "own"]
    moved = {path.name for path in (project.root / ".requiem/displaced").rglob("*")}
    assert {"mine", "folder"} <= moved and not {"own", "empty"} & moved
    assert len(ran.report["warnings"]) == 2


def test_level_none_overwrites_nobodys_file_and_can_run_twice(project: Project) -> None:
    project.write("out", "precious\n")
    project.manifest('[steps.a]\ncommand = "echo new > out; mkdir d; echo 1 > d/x"\noutputs = ["out", "d/"]\n')
    project.build("--sandbox", "none")
    assert [p.read_text() for p in (project.root / ".requiem/displaced").rglob("out")] == ["precious\n"]
    assert project.build("--sandbox", "none").states == {"a": "ran"}


def test_git_is_asked_about_every_output_whatever_the_environment(project: Project) -> None:
    project.write("gen/a.txt", "mine\n")
    for command in (["git", "init", "-q"], ["git", "add", "gen"]):
        subprocess.run(command, cwd=project.root, check=True)
    project.manifest('[steps.a]\ncommand = "echo new > gen/a.txt"\noutputs = ["gen/*.txt"]\n')
    assert "tracked by git" in project.refuse("build", env={"GIT_DIR": "/nowhere"}).err
    project.manifest('[steps.a]\ncommand = "echo 1 > other"\noutputs = ["other"]\n')
    project.build()
    project.manifest('[steps.a]\ncommand = "echo 1 > other; echo new > gen/a.txt"\noutputs = ["other", "gen/a.txt"]\n')
    project.refuse("build")
    assert project.read("gen/a.txt") == "mine\n"


# Hangs and ends


def test_a_failure_with_a_very_long_line_is_told_at_once(project: Project) -> None:
    project.manifest("""[steps.a]\ncommand = "head -c 900000 /dev/zero | tr '\\\\0' x; exit 1"\n""")
    started = time.monotonic()
    project.build(expect=1)
    assert time.monotonic() - started < 30


def test_bad_values_are_refused_in_words(project: Project) -> None:
    project.manifest('[roots.r]\npath = "/"\n[steps.a]\ncommand = "true"\nroots = ["r"]\n')
    assert "whole host" in project.refuse("build").err
    project.manifest('[steps.a]\ncommand = "true"\n')
    config = project.home / "config/requiem/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("[build]\njobs = -3\n")
    project.refuse("build")
    config.unlink()
    project.build()
    request = json.loads(project.run("show", "request", "a").out)
    project.write("r.json", json.dumps({**request, "cwd": "/etc"}))
    project.refuse("exec", "r.json")
    empty = {"digest": project.run("cas", "put", "r.json").out.strip(), "executable": False}
    project.write("r.json", json.dumps({**request, "inputs": {"a": empty, "a/b": empty}}))
    project.refuse("exec", "r.json")
    (project.root / "folder").mkdir()
    project.refuse("-f", "folder", "build")


@pytest.mark.root
def test_outputs_on_another_mount_are_laid_out(project: Project) -> None:
    (project.root / "build").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", project.root / "build"], check=True)
    try:
        project.manifest(
            '[steps.a]\ncommand = "echo 1 > build/a; mkdir build/d; echo 2 > build/d/x"\n'
            'outputs = ["build/a", "build/d/"]\n'
        )
        project.build()
        assert project.read("build/a") == "1\n" and project.read("build/d/x") == "2\n"
        assert sorted(os.listdir(project.root / "build")) == ["a", "d"]
    finally:
        subprocess.run(["umount", project.root / "build"], check=True)


def test_an_output_that_cannot_be_read_is_replaced(project: Project) -> None:
    project.manifest('[steps.a]\ncommand = "echo 1 > o"\noutputs = ["o"]\n')
    project.build()
    (project.root / "o").chmod(0)
    project.build()
    assert project.run("clean").code == 0


def test_an_input_behind_a_symlink_out_of_the_workspace_is_refused(project: Project) -> None:
    os.symlink("/etc", project.root / "etcl")
    project.manifest('[steps.a]\ncommand = "cat etcl/hostname"\ninputs = ["etcl/hostname"]\n')
    assert "out of the workspace" in project.refuse("build").err


@pytest.mark.gcc
def test_the_hint_of_a_foreach_instance_is_right(project: Project) -> None:
    project.write("src/a.c", '#include "a.h"\n')
    project.write("include/a.h", "")
    project.manifest(
        '[steps.c]\nforeach.src = "src/*.c"\ncommand = ["gcc", "-Iinclude", "-c", "{{ src }}", "-o", "a.o"]\n'
        'inputs = ["{{ src }}"]\noutputs = ["a.o"]\n'
    )
    assert 'inputs = [..., "include/a.h"]' in project.build(expect=1).err


# M23: somebody else's manifest


@pytest.mark.root
@pytest.mark.parametrize("harm", ["owner", "directory", "writable"])
def test_m23_root_beware_of_what_others_may_write(project: Project, harm: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has this to fear")
    project.manifest("[steps.who]\ncommand = 'id -u > who.txt'\noutputs = ['who.txt']\n")
    path = project.root if harm == "directory" else project.root / "requiem.toml"
    os.chmod(path, 0o666) if harm == "writable" else os.chown(path, 12345, 12345)
    assert "you are root" in project.build("--sandbox", "process", expect=2).report["error"]["what"]
    assert not project.exists("who.txt")
    built = project.build()
    assert built.counts == {"ran": 1} and any("you are root" in text for text in built.report["warnings"])
    assert project.read("who.txt") == "1000\n"
    mine = {"SUDO_UID": "12345"}
    if harm != "writable":
        assert project.build("--cache", "off", env=mine).report["warnings"] == [], "the control: one's own, by sudo"
        assert project.build("--sandbox", "process", env=mine).counts == {"ran": 1}
