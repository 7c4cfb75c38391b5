"""What every test may use."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import Project

ROOT = Path(__file__).resolve().parent.parent
# Who starts the suite in the background has it ignore interrupts, and everything would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
VECTORS = Path(os.environ.get("REQUIEM_VECTORS", ROOT.parent / "shared" / "vectors"))


def _judge_iris_on_demand() -> None:
    """`jsonschema` imports a package that takes seconds to build its grammars, and hardly any schema asks for an IRI."""
    name = "rfc3987_syntax"

    def is_valid_syntax(term: str, value: str) -> bool:
        import importlib

        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return bool(importlib.import_module(name).is_valid_syntax(term, value))

    stand_in = types.ModuleType(name)
    stand_in.is_valid_syntax = is_valid_syntax  # type: ignore[attr-defined]
    sys.modules.setdefault(name, stand_in)


_judge_iris_on_demand()

ONCE = (
    *("differences/", "formats/", "manifest/", "plan/", "test_architecture.py", "test_fields.py"),
    *("cli/test_cas.py", "cli/test_start.py", "engine/test_oracle.py", "engine/test_secrets.py", "store/test_gc.py"),
    *("store/test_damage.py", "store/test_faults.py"),
    *(f"store/test_{name}.py" for name in ("audit", "bundle", "care_faults", "care_model", "copying", "every_call")),
    "store/test_exhaustive.py",
    *(f"store/test_{name}.py" for name in ("kill", "many", "migrate", "model", "packs", "records", "runs", "seals")),
    *(
        f"engine/test_{name}.py"
        for name in ("admission", "ahead_of_time", "attest", "discovered", "forgeries", "frontier")
    ),
    *(f"engine/test_{name}.py" for name in ("hints", "lent_slots", "linked", "many_builds", "memory", "mutations")),
    *(f"engine/test_{name}.py" for name in ("package_hints", "packing", "planted", "policy", "replay", "reproduce")),
    "engine/test_restoring.py",
    *(f"engine/test_{name}.py" for name in ("signed_verdicts", "touched", "trust")),
    *(f"cli/test_{name}.py" for name in ("hash", "list", "names", "schemas", "trust_schemas", "why")),
    *("executors/test_discovery.py", "observing/test_edits.py", "observing/test_strace.py"),
    *("sandbox/test_ending.py", "sandbox/test_seccomp_filter.py", "sandbox/test_other_systems.py"),
)
"""What is marked `once`: values and formats, planning, loops of faults over a store of one's own, what is read out of
records and journals, which steps are looked at, when they are begun and by how many. None of it asks who runs it;
whether a step may do something, and who owns what, do."""
THEIRS = (
    *(
        "test_docs.py",
        "cli/test_commands.py",
        "examples/test_examples.py::test_an_example_keeps_its_word[data-pipeline]",
    ),
    *(f"engine/test_{name}.py" for name in ("build", "hostile", "odd_files", "paths")),
)
"""What is marked `theirs`: what a user types, edits and gets wrong. Root may do more, so an ordinary user is the harder
case. What root alone can try is not among it."""
SLOW = (
    *(
        "engine/test_reproduce.py",
        "engine/test_replay.py",
        "store/test_exhaustive.py",
        "examples/",
        "plan/test_scale.py",
    ),
    *("engine/test_touched.py", "test_docs.py", "store/test_care_model.py", "store/test_model.py"),
)
"""What holds tests that take long: these begin first, so that no worker has one left when the others have ended."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {item: item.path.relative_to(ROOT / "tests").as_posix() for item in items}
    for item, place in places.items():
        if place.startswith(ONCE):
            item.add_marker(pytest.mark.once)
        if f"{place}::{item.name}".startswith(THEIRS) and not item.get_closest_marker("root"):
            item.add_marker(pytest.mark.theirs)
    items.sort(key=lambda item: not places[item].startswith(SLOW))


def can_unshare() -> bool:
    return subprocess.run(["unshare", "-Ur", "true"], capture_output=True).returncode == 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew from what the code gives")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that cannot run here is skipped for a person and fails in CI: a hole must not hide."""
    missing = None
    if item.get_closest_marker("wine") and not (shutil.which("wine") and os.environ.get("REQUIEM_WINDOWS_PYTHON")):
        pytest.skip("needs wine and REQUIEM_WINDOWS_PYTHON")
    if item.get_closest_marker("root") and os.geteuid() != 0:
        missing = "needs uid 0"
        if os.environ.get("REQUIEM_TEST_USER"):  # The ordinary user's pass of CI: root's tests ran before it.
            pytest.skip(missing)
    elif item.get_closest_marker("userns") and not can_unshare():
        missing = "needs user namespaces"
    elif item.get_closest_marker("gcc") and shutil.which("gcc") is None:
        missing = "needs gcc"
    elif item.get_closest_marker("vectors") and not VECTORS.is_dir():
        missing = f"needs the official test data in {VECTORS} (or REQUIEM_VECTORS)"
    if missing:
        if os.environ.get("CI"):
            pytest.fail(f"CI must run this test, but it {missing}")
        pytest.skip(missing)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A workspace with a home and a store of its own."""
    return Project(tmp_path)


@pytest.fixture
def deep(project: Project) -> Iterator[Project]:
    """A project whose steps nest directories deeper than pytest's own cleaning up can follow."""
    from requiem_build.sandbox.descent import remove

    yield project
    remove(str(project.base))


@pytest.fixture
def vectors() -> Path:
    return VECTORS
