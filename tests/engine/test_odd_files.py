"""A pipe or a directory where a file should be: said in words, at once, and never waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from project import Project

MANIFEST = """
    [project]
    name = "work"
    include = ["sub"]
    vars_files = ["v.toml"]
    [steps.a]
    command = "cat pinned > out"
    inputs = ["pinned"]
    outputs = ["out"]
    env_file = "e"
    lock = ["pinned"]
    network = "host"
"""
FILES = {
    "sub/requiem.toml": '[project]\nname = "sub"\n[steps.b]\ncommand = "true"\n',
    "v.toml": 'x = "1"\n',
    "e": "X=1\n",
    "pinned": "1\n",
    "requiem.local.toml": '[vars]\nx = "2"\n',
}
CONFIGURATION = "../home/config/requiem/config.toml"
WAIT_S = 60


@pytest.fixture
def whole(project: Project) -> Project:
    project.write("requiem.toml", MANIFEST)
    for path, text in FILES.items():
        project.write(path, text)
    return project


def put(kind: str, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    os.mkfifo(place) if kind == "pipe" else place.mkdir()


@pytest.mark.parametrize("kind", ["pipe", "directory"])
@pytest.mark.parametrize("path", ["requiem.toml", *FILES, CONFIGURATION, ".requiem/lock"])
def test_it_is_refused_and_named(whole: Project, path: str, kind: str) -> None:
    for built in (False, True):
        if built:
            whole.build()
        before = (whole.root / path).read_bytes() if (whole.root / path).exists() else None
        put(kind, whole.root / path)
        refused = whole.refuse("build", "--cache", "ro", timeout_s=WAIT_S)
        assert os.path.basename(path) in refused.err, refused.err
        if path in ("requiem.toml", "requiem.local.toml", CONFIGURATION):
            for words in (["list"], ["why", "a"], ["tighten", "a"]):
                whole.refuse(*words, timeout_s=WAIT_S)
        os.unlink(whole.root / path) if kind == "pipe" else os.rmdir(whole.root / path)
        if before is not None:
            (whole.root / path).write_bytes(before)


@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_the_local_file_is_also_asked_for_trust(whole: Project, kind: str) -> None:
    put(kind, whole.root / "requiem.local.toml")
    ran = whole.run("doctor", timeout_s=WAIT_S)
    assert "not a file" in ran.out and "Traceback" not in ran.err


@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_memory_that_is_no_file_is_none(project: Project, kind: str) -> None:
    project.manifest('[steps.a]\ncommand = "cat in > out"\ninputs = ["in"]\noutputs = ["out"]\n')
    project.write("in", "1")
    project.build()
    memory = sorted(
        path
        for path in (project.root / ".requiem").rglob("*")
        if path.is_file() and path.name[0].islower() and path.name != "lock"
    )
    assert {"noop", "memory", "used"} <= {path.name for path in memory}
    for path in memory:
        put(kind, path)
        assert project.build("--verbose", timeout_s=WAIT_S).states == {"a": "fresh"}
        if path.is_fifo():
            path.unlink()
        elif path.is_dir():
            path.rmdir()
