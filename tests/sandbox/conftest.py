"""Sandboxes for tests: made on demand, closed at the end, and a short way to run one step."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from requiem_build.core.policy import INPUT_MTIME_S, WORLD_ENVIRONMENT
from requiem_build.sandbox.base import Finished, Job
from requiem_build.sandbox.linux import StrictSandbox

PYTHON = "/usr/bin/python3"


@dataclass
class Step:
    """What a step did, with its workspace read and closed."""

    finished: Finished
    files: dict[str, bytes]

    @property
    def out(self) -> str:
        return self.finished.stdout.decode()

    @property
    def err(self) -> str:
        return self.finished.stderr.decode()


def read_all(directory: int) -> dict[str, bytes]:
    found = {}
    for folder, _, files, descriptor in os.fwalk(".", dir_fd=directory):
        for name in files:
            try:
                opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
            except OSError:
                continue
            with open(opened, "rb") as file:
                found[os.path.normpath(f"{folder}/{name}")] = file.read()
    return found


@pytest.fixture
def run_in() -> Callable[..., Step]:
    """run_in(sandbox, *command, **fields of Job): `env` is added to the world's."""

    def run(sandbox: Any, *command: str, env: dict[str, str] | None = None, **fields: Any) -> Step:
        finished = sandbox.run(Job(command, {**WORLD_ENVIRONMENT, **(env or {})}, **fields))
        try:
            return Step(finished, read_all(finished.workspace_fd))
        finally:
            finished.close()

    return run


@pytest.fixture(scope="module", params=["reused", "fresh"])
def view(request: pytest.FixtureRequest) -> str:
    """By which of its two means a strict sandbox keeps steps apart: what holds must hold by both."""
    return str(request.param)


@pytest.fixture
def strict(view: str) -> Iterator[Callable[..., StrictSandbox]]:
    """Makes strict sandboxes."""
    made = []

    def make(**options: Any) -> StrictSandbox:
        made.append(StrictSandbox(**{"reuse": view == "reused", **options}))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.close()


@pytest.fixture(scope="module")
def shared(view: str) -> Iterator[StrictSandbox]:
    """One strict sandbox for a whole module: consecutive steps in it are what a build does."""
    with StrictSandbox(reuse=view == "reused") as sandbox:
        yield sandbox


@pytest.fixture
def go(shared: StrictSandbox, run_in: Callable[..., Step]) -> Callable[..., Step]:
    """go(*command, **fields of Job) in the module's sandbox."""
    return lambda *command, **fields: run_in(shared, *command, **fields)


@pytest.fixture
def python() -> str:
    """An interpreter that lies in /usr, so that steps see it."""
    if not os.path.exists(PYTHON):
        pytest.fail(f"these tests need {PYTHON}")
    return PYTHON


@pytest.fixture
def unconfined() -> Callable[..., str]:
    """The positive control: what the same command says where nothing stops it."""

    def run(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout

    return run


@pytest.fixture
def make_object(tmp_path: Path) -> Callable[..., str]:
    """Writes a file as the store does: read-only, with the date of every input."""

    def make(name: str, content: bytes, mode: int = 0o444, folder: Path = tmp_path) -> str:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
        os.utime(path, (INPUT_MTIME_S, INPUT_MTIME_S))
        return str(path)

    return make
