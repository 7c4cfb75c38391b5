"""Every example does what its expect.toml says: first build, second build, outputs, and what each edit runs.

expect.toml: `[build]` and `[again]` give counts of states, `[outputs]` what must lie in the workspace, each
`[[edits]]` a change and the steps that it `ran` (or that it `fails`). After each edit the example is put back as
it was, and that must run nothing.
"""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from project import Project, Ran

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BUILD_S = 900

Expected = Mapping[str, Any]


def expected_of(name: str) -> Expected:
    return tomllib.loads((EXAMPLES / name / "expect.toml").read_text(encoding="utf-8"))


def examples(*, network: bool | None = None) -> list[Any]:
    """Their names as test parameters, marked with what they need."""
    found = []
    for folder in sorted(EXAMPLES.iterdir()):
        if not (folder / "requiem.toml").exists():
            continue
        expected = expected_of(folder.name)
        needs_network = expected.get("network", False)
        if network is None or needs_network is network:
            marks = [pytest.mark.network] if needs_network else []
            marks += [pytest.mark.gcc] if "gcc" in expected.get("tools", ()) else []
            found.append(pytest.param(folder.name, marks=marks))
    return found


def set_up(name: str, base: Path) -> Project:
    """A copy as a clone would have it, without what somebody's own build has left."""
    project = Project(base)
    left_out = shutil.ignore_patterns("build", ".cas", ".requiem", ".venv", "__pycache__")
    shutil.copytree(EXAMPLES / name, project.root, dirs_exist_ok=True, ignore=left_out)
    return project


def build(project: Project, expected: Expected, *, expect: int = 0) -> Ran:
    return project.build(*expected.get("targets", ()), expect=expect, timeout_s=BUILD_S)


def names(ran: Ran, state: str) -> list[str]:
    return [name for name, found in ran.states.items() if found == state]


@pytest.mark.userns
@pytest.mark.timeout(2 * BUILD_S)
@pytest.mark.parametrize("name", examples())
def test_an_example_keeps_its_word(name: str, tmp_path: Path) -> None:
    expected = expected_of(name)
    project = set_up(name, tmp_path)
    assert build(project, expected).counts == expected["build"]
    assert build(project, expected).counts == expected["again"]
    for path, wanted in expected["outputs"].items():
        check_output(project.root / path, wanted)
    if os.environ.get("REQUIEM_TEST_USER") == "again" and name != "data-pipeline":  # Which only he builds.
        return  # Which steps an edit runs cannot depend on who runs them.
    for edit in expected["edits"]:
        check_edit(project, expected, edit)


@pytest.mark.userns
@pytest.mark.parametrize("name", examples(network=False))
def test_an_example_gives_the_same_everywhere(name: str, tmp_path: Path) -> None:
    """Another directory, another store, another scheduler: the same requests, results and bytes."""
    expected = expected_of(name)
    here = set_up(name, tmp_path / "here")
    there = set_up(name, tmp_path / "a longer way" / "there")
    turbo = build(here, expected)
    repro = there.build("--mode", "repro", *expected.get("targets", ()))
    for step in turbo.report["steps"]:
        other = repro.step(step["name"])
        assert (step["request_digest"], step["result_digest"]) == (other["request_digest"], other["result_digest"])
    for path in expected["outputs"]:
        if (here.root / path).is_file():
            assert (here.root / path).read_bytes() == (there.root / path).read_bytes()


def test_every_example_is_one_that_a_reader_and_this_test_can_use() -> None:
    folders = [folder for folder in EXAMPLES.iterdir() if folder.is_dir()]
    assert {"hello", "c-project", "data-pipeline", "docs-site"} <= {folder.name for folder in folders}
    for folder in folders:
        for file in ("requiem.toml", "README.md", "expect.toml"):
            assert (folder / file).is_file(), f"{folder.name} has no {file}"


def check_output(path: Path, wanted: Mapping[str, Any]) -> None:
    assert path.is_file(), f"{path} is missing"
    content = path.read_bytes()
    for how, value in wanted.items():
        match how:
            case "is":
                assert content == value.encode()
            case "starts":
                assert content.startswith(value.encode()), f"{path} begins with {content[:80]!r}"
            case "contains":
                assert value.encode() in content, f"{path} does not contain {value!r}"
            case "digest":
                assert blake3(b"cas:" + content).hexdigest() == value, f"{path} has other bytes"
            case "executable":
                assert os.access(path, os.X_OK) is value
            case _:
                pytest.fail(f"expect.toml: unknown check {how!r}")


def check_edit(project: Project, expected: Expected, edit: Mapping[str, Any]) -> None:
    undo = apply(project, edit)
    fails = edit.get("fails", [])
    after = build(project, expected, expect=1 if fails else 0)
    if fails:
        assert set(names(after, "failed")) & set(fails), edit["name"]  # Without -k the first failure ends it.
        assert set(names(after, "failed")) <= set(fails), edit["name"]
    else:
        assert names(after, "ran") == edit["ran"], edit["name"]
        assert not names(after, "failed") and not names(after, "skipped"), edit["name"]
    undo()
    assert names(build(project, expected), "ran") == [], f"put back: {edit['name']}"
    for path, wanted in expected["outputs"].items():
        check_output(project.root / path, wanted)


def apply(project: Project, edit: Mapping[str, Any]) -> Any:
    """Makes the edit and gives what takes it back. Deleted outputs are not put back: the build did that."""
    for path in edit.get("delete", ()):
        shutil.rmtree(project.root / path)
    if "create" in edit:
        project.write(edit["create"], edit["text"].encode())
        return (project.root / edit["create"]).unlink
    if "file" not in edit:
        return lambda: None
    path = project.root / edit["file"]
    before = path.read_text(encoding="utf-8")
    old, new = edit.get("replace", ("", ""))
    assert old in before, f"{edit['file']} does not hold {old!r}"
    path.write_text(before.replace(old, new, 1) + edit.get("append", ""), encoding="utf-8")
    return lambda: path.write_text(before, encoding="utf-8")
