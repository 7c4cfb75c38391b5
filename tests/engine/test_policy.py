"""`build --explain-policy`: what it says of a step is what is then done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from project import SOURCE, Project

from requiem_build.engine import build as engine
from requiem_build.engine.options import Options
from requiem_build.engine.policy import explain_policy
from requiem_build.sandbox import attendant, explained, linux
from requiem_build.sandbox.boot import Boot
from requiem_build.sandbox.staging import Preparation

pytestmark = pytest.mark.userns

MANIFEST = """
    [roots.sdk]
    path = "sdk"
    [steps.gen]
    command = "mkdir -p d; echo 1 > d/x; echo 2 > g"
    outputs = ["d/", "g"]
    [steps.small]
    foreach.n = [1, 2]
    command = "cat g d/x in.txt link > {{ output }}"
    inputs = ["@gen", "in.txt", "link", "tree/"]
    stdin = "in.txt"
    env = { CFLAGS = "-O2" }
    pass_env = ["CI?", "MY_KEY?"]
    secrets = ["API_TOKEN"]
    outputs = ["o/{{ n }}"]
    timeout = "5m"
    [steps.own]
    command = "wc -c big > s"
    inputs = ["big"]
    roots = ["sdk"]
    outputs = ["s"]
    memory = "512MiB"
    tmp = "64MiB"
    network = "host"
"""
ENV = {"API_TOKEN": "s3cret-value", "CI": "1", "MY_KEY": "another-s3cret"}


@pytest.fixture
def made(project: Project) -> Project:
    project.write("in.txt", "in\n")
    os.symlink("in.txt", project.root / "link")
    project.write("tree/a/b", "b\n")
    project.write("big", b"x" * 300_000)
    project.write("sdk/tool", "tool\n")
    project.manifest(MANIFEST)
    return project


def options(project: Project, **more: Any) -> Options:
    return Options(str(project.root), project.environment(ENV), **more)


def plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return len(value)
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("step", ["small:1", "own", "gen"])
def test_what_it_says_is_what_is_applied(made: Project, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    engine.build(options(made, targets=("gen",)), lambda _: None)
    told = explain_policy(options(made), step)
    boots: list[Any] = []
    jobs: list[Any] = []
    really_boot, really_run = linux._boot, attendant.Attendant.run

    def boot(setup: Any, *more: Any) -> Any:
        boots.append(setup["operations"])
        return really_boot(setup, *more)

    def run(self: Any, job: Any, *more: Any) -> Any:
        jobs.append((boots[-1], job))
        return really_run(self, job, *more)

    monkeypatch.setattr(linux, "_boot", boot)
    monkeypatch.setattr(attendant.Attendant, "run", run)
    report = engine.build(options(made, targets=(step,), cache="wo"), lambda _: None)
    assert report.exit_code == 0
    done = next(each for each in jobs if step == "gen" or "mkdir" not in each[1]["command"][-1])
    assert plain(told.explained.operations) == plain([*done[0], *done[1]["operations"]])
    assert {each.name for each in told.environment} == set(done[1]["env"])
    assert told.unknown == ()


def test_nothing_runs_and_nothing_is_written(made: Project) -> None:
    made.run("build", "--explain-policy", "small", env=ENV)
    assert not made.exists("g") and not made.exists(".requiem")


def test_it_is_said_in_words(made: Project) -> None:
    ran = made.run("build", "--explain-policy", "small", "-v", env=ENV)
    assert ran.code == 0 and ran.err == ""
    for words in (
        "small:1 (one of 2 instances): level strict",
        'not known yet: "g", which "gen" has yet to make',
        "CFLAGS=-O2  (env)",
        "CI=1  (yours)",
        "MY_KEY=(hidden)  (yours)",
        "API_TOKEN=(its value is not shown)  (secret, masked)",
        "/workspace/in.txt",
        "input, 3 bytes",
        "input, a link to in.txt",
        "an empty network of its own",
        "ptrace",
        'timeout = "5m"',
        "no limit of",
    ):
        assert words in ran.out
    assert "s3cret" not in ran.out
    own = made.run("build", "--explain-policy", "own", "-v", env=ENV).out
    for words in (
        "a view of its own",
        "/workspace/sdk",
        "a root, read-only",
        "from the store",
        "the host's own network",
    ):
        assert words in own
    assert 'memory = "512MiB"' in own and "at most 67108864 bytes" in own


@pytest.mark.parametrize("level", ["strict", "process", "none"])
def test_the_answer_for_machines_is_what_its_schema_says(made: Project, level: str) -> None:
    schema = json.loads(Path(SOURCE, "schemas/policy.schema.json").read_text())
    ran = made.run("build", "--explain-policy", "own", "--sandbox", level, "--json", env=ENV)
    jsonschema.validate(ran.report, schema)
    assert ran.report["level"] == level and "s3cret" not in ran.out


def test_a_step_that_is_none_is_refused(made: Project) -> None:
    assert "nope" in made.refuse("build", "--explain-policy", "nope").err


def test_every_operation_has_words() -> None:
    operations = {name for kind in (Boot, Preparation) for name in vars(kind) if not name.startswith("_")}
    operations |= {name for base in Preparation.__mro__ for name in vars(base) if not name.startswith("_")}
    means = {"start", "release", "remove_mountpoints", "apply", "spawn", "spawn_kept", "changed"}
    means |= {"watch_network", "network_was_used"}
    perturbations = {"vary_addresses", "use_processors", "set_umask", "other_kernel", "number_processes"}
    observation = {"enter_upper", "show_backdrop", "hide"}  # Of `observe` alone: no build has a backdrop.
    unknown = operations - means - perturbations - observation - explained.SILENT - explained._WORDS.keys()
    assert unknown == set()
