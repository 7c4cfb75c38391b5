"""Which primitive makes the names: BLAKE3, or nothing; SHA-256 only where the user says so, and never mixed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import jsonschema
import pytest
from project import SOURCE, Project

FLAG = "--allow-hash-fallback"


@pytest.fixture
def without(tmp_path: Path) -> dict[str, str]:
    """An environment in which BLAKE3 cannot be loaded."""
    place = tmp_path / "without"
    place.mkdir()
    (place / "blake3.py").write_text('raise ImportError("libblake3 is gone")\n')
    return {"PYTHONPATH": f"{place}:{SOURCE}"}


@pytest.fixture
def one(project: Project) -> Project:
    project.write("in.txt", "hello\n")
    project.manifest("""
        [steps.copy]
        command = ["cp", "in.txt", "out.txt"]
        inputs = ["in.txt"]
        outputs = ["out.txt"]
        sandbox = "process"
    """)
    return project


def test_the_version_for_machines(project: Project, without: dict[str, str]) -> None:
    schema = json.loads((Path(SOURCE) / "schemas/version.schema.json").read_text())
    found = project.run("version", "--json").report
    jsonschema.validate(found, schema)
    assert (found["cas"], found["hash"], found["abi"]) == (2, "blake3-256", 1)
    assert project.run("--version").out == f"requiem {found['requiem']}\n"
    assert project.run("version").out.startswith(f"requiem {found['requiem']}\n")
    other = project.run("version", "--json", FLAG, env=without).report
    jsonschema.validate(other, schema)
    assert other["hash"] == "sha256"


@pytest.mark.parametrize(
    "arguments",
    [
        *(("build",), ("build", "-n"), ("build", "--cache", "off"), ("exec", "x"), ("digest", "object", "in.txt")),
        *(("cas", "put", "in.txt"), ("cas", "get", "0" * 64), ("cas", "path", "0" * 64), ("cas", "ls")),
        *(("cas", "stats"), ("cas", "verify"), ("cas", "migrate"), ("log", "copy"), ("show", "request", "copy")),
        *(("list",), ("clean",), ("doctor",), ("watch",), ("version",), ("build", "--json"), ("build", "--", FLAG)),
    ],
    ids=" ".join,
)
def test_k16_without_the_primitive_every_command_fails_closed(
    one: Project, without: dict[str, str], arguments: tuple[str, ...]
) -> None:
    refused = one.refuse(*arguments, expect=4, env=without)
    assert "BLAKE3 cannot be loaded" in refused.err
    assert FLAG in refused.err
    if "--json" in arguments:
        assert json.loads(refused.out)["error"]["code"] == 4
    assert sorted(os.listdir(one.root)) == ["in.txt", "requiem.toml"], "nothing was made"


def test_the_fallback_has_a_store_of_its_own_and_believes_nothing_of_the_other(
    one: Project, without: dict[str, str]
) -> None:
    first = one.build().report["steps"][0]
    other = one.build(FLAG, env=without)
    assert "names are made by SHA-256" in other.err
    step = other.report["steps"][0]
    assert step["state"] == "ran", "a result that BLAKE3 names is not believed"
    assert step["request_digest"] != first["request_digest"]
    apart = one.root / ".cas-sha256"
    assert json.loads((apart / "requiem-store").read_text()) == {"format": 2, "hash": "sha256"}
    name = hashlib.sha256(b"cas:hello\n").hexdigest()
    assert one.run("cas", "get", name, FLAG, env=without).out == "hello\n"
    assert one.run("cas", "verify", FLAG, env=without).code == 0
    assert one.build(FLAG, env=without).counts == {"fresh": 1}
    os.unlink(one.root / "out.txt")
    assert one.build(FLAG, env=without).counts == {"hit": 1}
    again = one.build().report["steps"][0]
    assert again["request_digest"] == first["request_digest"]
    assert again["state"] in ("fresh", "hit")
    one.refuse("cas", "get", name, expect=2)


def test_a_store_of_one_primitive_is_never_read_by_the_other(one: Project, without: dict[str, str]) -> None:
    one.build(FLAG, env=without)
    moved = {"REQUIEM_CAS_DIR": str(one.root / ".cas-sha256")}
    assert "names are made by sha256" in one.refuse("cas", "ls", expect=3, env=moved).err
    one.build()
    (one.root / ".cas").rename(one.root / "other-sha256")
    swapped = {"REQUIEM_CAS_DIR": str(one.root / "other"), **without}
    refused = one.run("cas", "ls", FLAG, env=swapped)
    assert refused.code == 3
    assert "names are made by blake3-256" in refused.err


def test_the_flag_changes_nothing_where_the_primitive_is_there(one: Project) -> None:
    first = one.build().report["steps"][0]
    with_flag = one.build(FLAG)
    assert "warning" not in with_flag.err
    assert with_flag.counts == {"fresh": 1}
    assert with_flag.report["steps"][0]["request_digest"] == first["request_digest"]
    assert not (one.root / ".cas-sha256").exists()
