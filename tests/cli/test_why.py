"""`requiem why`: each kind of difference is named, with old and new; and the build's own line for the same miss."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from project import SOURCE, Project

from requiem_build.sandbox import parts

pytestmark = pytest.mark.userns

MANIFEST = """
    [vars]
    level = "1"
    [roots.sdk]
    path = "sdk"
    [steps.gen]
    command = "cat in.txt > build/gen.txt"
    inputs = ["in.txt"]
    outputs = ["build/gen.txt"]
    [steps.x]
    command = ["sh", "use.sh", "{{ level }}"]
    inputs = ["use.sh", "build/gen.txt", "src/*.txt", "assets/"]
    discover = ["inc/*.h"]
    depfile = "build/x.d"
    outputs = ["build/x.txt"]
    roots = ["sdk"]
    path = ["sdk"]
    tools = ["tool"]
    pass_env = ["PASSED", "MY_TOKEN"]
    env.MODE = "fast"
"""
USE = """
    cat build/gen.txt src/*.txt inc/a.h > build/x.txt
    echo 'build/x.txt: inc/a.h' > build/x.d
"""


@pytest.fixture
def built(project: Project) -> Project:
    project.write("in.txt", "in\n")
    project.write("use.sh", USE)
    project.write("src/a.txt", "".join(f"line {n}\n" for n in range(30)))
    project.write("assets/deep/logo.txt", "x\n")
    project.write("inc/a.h", "one\n")
    project.write("sdk/tool", "#!/bin/sh\n", executable=True)
    project.manifest(MANIFEST)
    project.build(env={"PASSED": "1", "MY_TOKEN": "old-s3cret"})
    return project


ENV = {"PASSED": "1", "MY_TOKEN": "old-s3cret"}


def why(project: Project, *arguments: str, env: Mapping[str, str] = ENV) -> dict[str, Any]:
    ran = project.run("why", "--json", *arguments, env=env)
    assert ran.code == 0, ran.err
    answer = json.loads(ran.out)
    jsonschema.validate(answer, json.loads((SOURCE / "schemas/why.schema.json").read_text()))
    (step,) = answer["steps"]
    assert isinstance(step, dict)
    return step


def edit_manifest(old: str, new: str) -> Callable[[Project], object]:
    return lambda p: p.write("requiem.toml", p.read("requiem.toml").replace(old, new))


CHANGES: dict[str, tuple[Callable[[Project], object], str, list[str]]] = {
    "input": (
        lambda p: p.write("src/a.txt", p.read("src/a.txt").replace("line 20\n", "line twenty\n")),
        "input src/a.txt changed",
        ["@@ -20,3 +20,3 @@", " line 19", "-line 20", "+line twenty", " line 21"],
    ),
    "new input": (lambda p: p.write("src/b.txt", "b\n"), "new input src/b.txt", []),
    "gone input": (
        lambda p: (p.write("src/b.txt", "b\n"), p.build(env=ENV), os.unlink(p.root / "src/b.txt"), shutil.rmtree(p.root / ".cas/records/paths")),
        "input src/b.txt is gone",
        [],
    ),
    "directory": (
        lambda p: (p.write("assets/deep/logo.txt", "y\n"), p.write("assets/new.txt", "n\n")),
        "input assets/ changed",
        ["assets/new.txt is new", "assets/deep/logo.txt changed"],
    ),
    "bit": (lambda p: os.chmod(p.root / "use.sh", 0o755), "input use.sh changed", ["its executable bit changed"]),
    "binary": (lambda p: p.write("src/a.txt", b"\0\1"), "input src/a.txt changed", ["230 -> 2 bytes, not compared"]),
    "discovered": (lambda p: p.write("inc/a.h", "two\n"), "discovered input inc/a.h changed", ["@@ -1,2 +1,2 @@", "-one", "+two"]),
    "discover": (lambda p: p.write("inc/b.h", "b\n"), "the files that discover matches are others", []),
    "command": (edit_manifest('level = "1"', 'level = "2"'), "command changed", ['-"1"', '+"2"']),
    "variable": (edit_manifest('"fast"', '"slow"'), 'variable MODE changed: "fast" -> "slow"', []),
    "new variable": (edit_manifest('env.MODE = "fast"', 'env.MODE = "fast"\nenv.N = "1"'), 'new variable N: "1"', []),
    "policy": (edit_manifest('env.MODE = "fast"', 'env.MODE = "fast"\nmax_output_bytes = 10'), "max_output_bytes 1048576 -> 10", []),
    "root": (lambda p: p.write("sdk/other", "o\n"), "root sdk changed", []),
    "salt": (edit_manifest('env.MODE = "fast"', 'env.MODE = "fast"\nsalt = "{{ level }}"'), "salt changed", []),
    "outputs": (edit_manifest('outputs = ["build/x.txt"]', 'outputs = ["build/x.txt", "build/x.d"]'), "declared outputs changed", []),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
def test_each_change_is_named_with_its_inside(built: Project, kind: str) -> None:
    change, text, details = CHANGES[kind]
    change(built)
    step = why(built, "x")
    assert step["state"] == "miss"
    assert [d for each in step["compared"]["changes"] for d in each["details"]] == details
    shown = built.run("why", "x", env=ENV).out
    assert text in shown, shown
    reason = text.split(":")[0]
    assert step["reason"].startswith(reason)
    again = built.build(env=ENV)
    assert again.step("x")["reason"].startswith(reason)
    after = why(built, "x")
    assert after["state"] == "fresh" and after["last_run"]["reason"].startswith(reason)
    assert [d for each in after["last_run"]["changes"] for d in each["details"]] == details


def test_a_salt_counts_also_in_a_remembered_plan(built: Project) -> None:
    edit_manifest("[steps.x]", '[steps.x]\nsalt = "{{ level }}-a"')(built)
    assert built.build(env=ENV).states == {"gen": "fresh", "x": "ran"}
    os.unlink(built.root / "build/x.txt")
    for _ in range(2):  # The first plan of these is remembered, and the second build asks nobody.
        assert built.build(env=ENV).step("x")["state"] != "ran"
    assert json.loads(built.run("show", "request", "x", env=ENV).out)["salt"] == "1-a"
    edit_manifest('salt = "{{ level }}-a"\n', "")(built)
    assert built.build(env=ENV).step("x")["state"] != "ran"
    assert json.loads(built.run("show", "request", "x", env=ENV).out)["salt"] == ""


def test_a_changed_tool_and_several_reasons(built: Project) -> None:
    built.write("sdk/tool", "#!/bin/sh\n# other\n", executable=True)
    built.write("in.txt", "in\n\n")
    built.build("gen", env=ENV)
    step = why(built, "x")
    assert {(each["kind"], each["name"]) for each in step["compared"]["changes"]} == {
        ("input", "build/gen.txt"),
        ("root", "sdk"),
        ("tool", "tool"),
    }
    assert built.build("-n", env=ENV).step("x")["reason"] == "input build/gen.txt changed (and 2 more)"
    explained = "input build/gen.txt changed; root sdk changed; tool tool changed"
    assert built.build("-n", "--explain", env=ENV).step("x")["reason"] == explained
    assert explained in built.run("build", "--explain", env=ENV).err


def test_what_waits_names_what_it_waits_for(built: Project) -> None:
    built.write("in.txt", "other\n")
    step = why(built, "x")
    assert step["state"] == "unknown" and step["waits_for"] == [{"name": "gen", "reason": "input in.txt changed"}]
    assert "it waits for a step that would run:\n  gen: input in.txt changed" in built.run("why", "x", env=ENV).out


def test_values_of_secret_names_are_never_shown(built: Project) -> None:
    env = {**ENV, "MY_TOKEN": "new-s3cret", "PASSED": "2"}
    ran = built.run("why", "x", env=env)
    assert "variable MY_TOKEN changed" in ran.out and 'variable PASSED changed: "1" -> "2"' in ran.out
    shown = ran.out + ran.err + built.run("why", "x", "--json", env=env).out
    assert "s3cret" not in shown and "(hidden)" in shown


def test_never_built_failed_and_lost(built: Project, tmp_path: Any) -> None:
    fresh = Project(tmp_path / "other")
    fresh.manifest('[steps.x]\ncommand = "exit 1"\n')
    step = why(fresh, "x")
    assert (step["state"], step["reason"], step["compared"]) == ("miss", "never built here", None)
    fresh.build(expect=1)
    assert why(fresh, "x")["reason"] == "it failed last time"
    shutil.rmtree(built.root / ".cas")
    built.write("in.txt", "other\n")
    assert why(built, "gen")["reason"] == "its last request is gone from the store"


def test_another_workspace_of_the_same_store_is_compared_with(built: Project, tmp_path: Any) -> None:
    env = {**ENV, "REQUIEM_CAS_DIR": str(built.base / "store")}
    built.build("--cache", "wo", env=env)
    copy = Project(tmp_path / "copy")
    shutil.copytree(
        built.root, copy.root, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".cas", ".requiem", "build")
    )
    copy.write("in.txt", "other\n")
    step = why(copy, "gen", env=env)
    assert step["compared"]["source"] == "another workspace's build"
    assert step["compared"]["changes"][0]["details"] == ["@@ -1,2 +1,2 @@", "-in", "+other"]


def test_against_an_earlier_run(built: Project) -> None:
    first = built.build(env=ENV).report["run"]
    built.write("in.txt", "other\n")
    built.build(env=ENV)
    step = why(built, "gen", "--vs", first[:-2])
    assert step["state"] == "fresh" and step["compared"]["run"] == first
    assert [each["name"] for each in step["compared"]["changes"]] == ["in.txt"]
    assert "the request is the same" in why(built, "gen", "--vs", "latest")["compared"]["notes"]
    assert "no run" in built.refuse("why", "gen", "--vs", "1999").err
    assert "no such option" in built.refuse("why", "gen", "--against", "1999").err
    assert "no step" in built.refuse("why", "nope").err


def test_against_another_machines_report(built: Project) -> None:
    theirs = built.build(env=ENV).report
    built.write("in.txt", "other\n")
    built.write("in2.txt", "x")
    built.build(env=ENV)
    built.write("there.json", json.dumps(theirs))
    step = why(built, "gen", "--vs", "there.json")  # The store has the other request.
    assert [each["name"] for each in step["compared"]["changes"]] == ["in.txt"]
    step = why(built, "x", "--vs", "there.json")
    assert [each["name"] for each in step["compared"]["changes"]] == ["build/gen.txt"]
    assert "other inputs, since these gave another result there: gen" in step["compared"]["notes"]


def test_only_digests_are_known_of_another_machine(built: Project, tmp_path: Any) -> None:
    """The other machine has our old input and another variable: both are found by trying what this store knows."""
    built.write("in.txt", "second\n")
    built.build(env={**ENV, "PASSED": "2"})
    built.write("in.txt", "third\n")
    built.build(env={**ENV, "PASSED": "2"})
    there = Project(tmp_path / "there")
    shutil.copytree(
        built.root, there.root, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".cas", ".requiem", "build")
    )
    report = there.build(env=ENV).report
    built.write("there.json", json.dumps(report))
    step = why(built, "x", "--vs", "there.json", env={**ENV, "PASSED": "2"})
    told = {(each["name"], each["old"], each["new"]) for each in step["compared"]["changes"]}
    assert told == {("PASSED", "1", "2")}
    report["steps"][0]["request_digest"] = report["steps"][1]["request_digest"] = "0" * 64
    built.write("there.json", json.dumps(report))
    step = why(built, "x", "--vs", "there.json", env={**ENV, "PASSED": "2"})
    assert step["compared"]["changes"] == []
    assert any("not in this store" in note for note in step["compared"]["notes"])
    assert any(note.startswith("the same inputs from gen") for note in step["compared"]["notes"])
    built.write("bad.json", '{"schema": "x"}')
    assert "is not a requiem.report/1" in built.refuse("why", "x", "--vs", "bad.json").err


def test_divergences_of_a_request_are_shown(project: Project) -> None:
    project.manifest(
        '[steps.r]\ncommand = "echo $RANDOM$RANDOM > r.txt; echo same > s.txt"\noutputs = ["r.txt", "s.txt"]\n'
    )
    project.build()
    project.build("--cache", "wo")
    (other,) = why(project, "r")["divergences"]
    assert other["differs"] == ["r.txt"]
    assert "the same request also gave" in project.run("why", "r").out


def test_instances_and_groups(project: Project) -> None:
    project.write("a.txt", "a\n")
    project.write("b.txt", "b\n")
    project.manifest("""
        [steps.copy]
        foreach.f = "*.txt"
        command = "cp {{ f }} {{ output }}"
        inputs = ["{{ f }}"]
        outputs = ["build/{{ f }}"]
        [steps.all]
        needs = ["copy"]
    """)
    project.build()
    project.write("a.txt", "c\n")
    for target in ("copy", "all"):
        shown = project.run("why", target).out
        assert shown.startswith("copy:a.txt would run: input a.txt changed\n") and shown.endswith(
            "1 of 2 are up to date\n"
        )
    assert project.run("why", "copy:b.txt").out.startswith("copy:b.txt is up to date\n  it last ran in ")
    assert project.run("why", "build/a.txt").out.startswith("copy:a.txt would run")


# Packages


def test_a_package_is_named_by_its_versions(tmp_path: Any) -> None:
    def lines(version: str, *more: bytes) -> list[bytes]:
        return [b"gcc-12 " + version.encode() + b" amd64", b"libc6 2.36 amd64", b"libc6 2.36 i386", *more]

    files = [b"program\0/usr/local/bin/x\0aa", b"directory\0/usr/local"]
    parts.keep(str(tmp_path), "a" * 64, lines("12.2.0-14"), files)
    parts.keep(
        str(tmp_path), "b" * 64, lines("12.2.0-15", b"htop 3 amd64"), [b"program\0/usr/local/bin/x\0bb", files[1]]
    )
    found = parts.differences(str(tmp_path), "a" * 64, "b" * 64)
    assert [(d.kind, d.name, d.old, d.new) for d in found] == [
        ("package", "gcc-12", "12.2.0-14", "12.2.0-15"),
        ("package", "htop", None, "3"),
        ("system file", "/usr/local/bin/x", "program", "program"),
    ]
    assert parts.differences(str(tmp_path), "a" * 64, "c" * 64) == []
    (tmp_path / "system.parts" / ("b" * 64)).write_text("{")
    assert parts.differences(str(tmp_path), "a" * 64, "b" * 64) == []


@pytest.mark.root
def test_an_upgraded_package_is_named_in_the_build_and_in_why(project: Project) -> None:
    if not os.path.exists("/var/lib/dpkg/status"):
        pytest.skip("no dpkg here")
    project.manifest('[steps.x]\ncommand = "echo 1 > o"\noutputs = ["o"]\n')
    env = {"XDG_CACHE_HOME": str(project.base / "cache")}
    project.build(env=env)
    status = Path("/var/lib/dpkg/status").read_text()
    head, _, tail = status.partition("Package: bash\n")
    version = next(line[9:] for line in tail.splitlines() if line.startswith("Version: "))
    project.write("status", f"{head}Package: bash\n" + tail.replace(f"Version: {version}\n", "Version: 99-1\n", 1))
    script = f'mount --bind {project.root}/status /var/lib/dpkg/status && exec {sys.executable} -m requiem_build "$@"'
    for arguments in (["why", "x"], ["build"]):
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", *arguments],
            cwd=project.root, env=project.environment(env), capture_output=True, text=True,
        )  # fmt: skip
        assert f"package bash {version} -> 99-1" in done.stdout + done.stderr, done.stderr
