"""A host that gives too little memory, or no thread: said in words with exit 4, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from project import REQUIEM, SOURCE, Project

from requiem_build.store.layout import Store

LIMITS_MIB = range(12, 72, 2) if os.environ.get("REQUIEM_EXHAUSTIVE") else (24, 34, 46)
"""Of the address space: from where Requiem's first line runs to where all of a small build does."""
MANIFEST = """
    [defaults]
    sandbox = "process"
    [steps.one]
    command = "mkdir tree && for i in $(seq 20); do echo $i > tree/$i; done && cat in.txt > one.txt"
    inputs = ["in.txt"]
    outputs = ["one.txt", "tree/"]
    [steps.two]
    command = "cat one.txt tree/* > two.txt"
    inputs = ["one.txt", "tree/"]
    outputs = ["two.txt"]
"""


def can_begin(limit: str) -> bool:
    """The control: an interpreter that only loads the command line."""
    program = "import runpy, requiem_build.cli.app, requiem_build.cli.running"
    command = ["prlimit", limit, sys.executable, "-c", program]
    return subprocess.run(command, cwd=SOURCE, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs prlimit")
@pytest.mark.timeout(1200)
def test_too_little_memory_is_said_and_loses_nothing(tmp_path: Path) -> None:
    codes = []
    for mib in LIMITS_MIB:
        limit = f"--as={mib << 20}"
        project = Project(tmp_path / f"limit{mib}")
        project.write("in.txt", "hello\n")
        project.manifest(MANIFEST)
        ended = project.run("build", "-j", "2", program=("prlimit", limit, *REQUIEM), timeout_s=60)
        if ended.code == 1 and not can_begin(limit):
            continue  # It was the interpreter's end and not ours.
        codes.append(ended.code)
        assert ended.code in (0, 4), f"{mib} MiB: {ended}"
        assert "Traceback" not in ended.err, f"{mib} MiB: {ended}"
        if ended.code == 4:
            assert "error: " in ended.err, f"{mib} MiB: {ended}"
            assert "  hint: " in ended.err, f"{mib} MiB: {ended}"
        assert project.run("build").code == 0
        assert project.read("two.txt").startswith("hello\n1\n10\n")
        assert project.build().counts == {"fresh": 2}
        store = Store(project.root / ".cas")
        assert list(store.objects.verify()) == []
        assert all(store.missing(kept.result) == [] for kept in store.records)
    assert 4 in codes
