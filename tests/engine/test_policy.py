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
from requiem_build.engine.policy import StepPolicy, explain_policy
from requiem_build.sandbox import attendant, explained, keeper, linux
from requiem_build.sandbox.boot import Boot
from requiem_build.sandbox.shelf import Shelf
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

    [steps.many]
    command = "cat many/1.txt > n; ls many | wc -l > m"
    inputs = ["many/*.txt", "link", "tree/"]
    outputs = ["m", "n"]
    open_files = 500

    [steps.few]  # As many inputs, but they cannot lie in a layer.
    command = "ls links > l"
    inputs = ["links/*"]
    outputs = ["l"]

    [steps.held]
    command = "date > when"
    inputs = ["many/1*.txt"]
    outputs = ["when"]
    env = { SOURCE_DATE_EPOCH = "1000000000" }
    clock = "frozen"
    random = "seeded"
    processes = 20

    [steps.timed]
    command = "true"
    cpu_time = "1m"
    file_size = "1MiB"
"""
ENV = {"API_TOKEN": "s3cret-value", "CI": "1", "MY_KEY": "another-s3cret"}


@pytest.fixture
def made(project: Project) -> Project:
    project.write("in.txt", "in\n")
    os.symlink("in.txt", project.root / "link")
    project.write("tree/a/b", "b\n")
    project.write("big", b"x" * 300_000)
    project.write("sdk/tool", "tool\n")
    (project.root / "links").mkdir()
    for number in range(100):
        project.write(f"many/{number}.txt", f"{number}\n")
        os.symlink("../in.txt", project.root / f"links/{number}")
    project.manifest(MANIFEST)
    return project


def options(project: Project, **more: Any) -> Options:
    return Options(str(project.root), project.environment(ENV), **more)


def plain(value: Any) -> Any:
    """Contents by their size; none of the kernel's counters."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, tuple) and value[:2] == ("cover", "/proc/stat"):
        return [*value[:2]]
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.fixture
def delegated(made: Project, tmp_path: Path) -> None:
    """A plain directory stands for a cgroup that is the user's own."""
    (tmp_path / "delegated").mkdir(mode=0o777)
    (tmp_path / "delegated/cgroup.controllers").write_text("cpu memory pids\n")
    config = made.home / "config/requiem/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[limits]\ncgroup = "{tmp_path}/delegated"\n')


STEPS = {
    "small:1": "reset and verified",
    "own": "of its own",
    "gen": "reset and verified",
    "many": "above a layer",
    "few": "reset and verified",
    "held": "of its own",
    "timed": "of its own",
}
GROUPED = {"own": "of its own", "held": "of its own", "timed": "of its own", "many": "above a layer"}
"""With a cgroup some of the limits are held otherwise."""


def check_that_it_says_what_is_applied(
    made: Project, monkeypatch: pytest.MonkeyPatch, step: str, means: str
) -> StepPolicy:
    engine.build(options(made, targets=("gen",)), lambda _: None)
    told = explain_policy(options(made), step)
    boots: dict[Any, Any] = {}
    jobs: list[Any] = []
    really_boot, really_run = linux._boot, attendant.Attendant.run

    def boot(setup: Any, *more: Any) -> Any:
        booted = really_boot(setup, *more)
        boots[booted] = setup
        return booted

    def run(self: Any, job: Any, *more: Any, **rest: Any) -> Any:
        jobs.append((boots[self], job))
        return really_run(self, job, *more, **rest)

    monkeypatch.setattr(linux, "_boot", boot)
    monkeypatch.setattr(attendant.Attendant, "run", run)
    report = engine.build(options(made, targets=(step,), cache="wo"), lambda _: None)
    assert report.exit_code == 0
    worker, job = next(each for each in jobs if step == "gen" or "mkdir" not in each[1]["command"][-1])
    explained = told.explained
    assert plain(explained.operations) == plain([*worker["operations"], *job.get("shelf", ()), *job["operations"]])
    assert explained.worker.keys() == worker.keys()
    assert [name for name in worker if plain(explained.worker[name]) != plain(worker[name])] == []
    assert explained.worker.get("filter") == worker.get("filter")
    assert {each.name for each in told.environment} == set(job["env"])
    masked = {"env", "max_output_bytes"} if step.startswith("small") else set()  # It has a secret.
    assert told.explained.step.keys() == job.keys()
    assert [name for name in job if plain(explained.step[name]) != plain(job[name]) and name not in masked] == []
    assert means in explained.means and told.unknown == ()
    return told


@pytest.mark.parametrize("step", STEPS)
def test_what_it_says_is_what_is_applied(made: Project, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    if step == "held" and os.uname().machine not in keeper.MACHINES:
        pytest.skip("nothing can be held on this processor")
    check_that_it_says_what_is_applied(made, monkeypatch, step, STEPS[step])


@pytest.mark.parametrize("step", GROUPED)
def test_it_says_what_is_applied_where_there_is_a_cgroup(
    made: Project, delegated: None, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    if step == "held" and os.uname().machine not in keeper.MACHINES:
        pytest.skip("nothing can be held on this processor")
    told = check_that_it_says_what_is_applied(made, monkeypatch, step, GROUPED[step])
    if step != "many":
        limits = dict(told.explained.sections["limits"])
        by_kernel = "all together, by the kernel in a cgroup"
        assert limits.get('memory = "512MiB"', by_kernel) == limits.get("processes = 20", by_kernel) == by_kernel


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
    many = made.run("build", "--explain-policy", "many", "-v", env=ENV).out
    for words in ("a layer of inputs that steps share", "/workspace/many/77.txt", "input, 3 bytes", "500"):
        assert words in many
    if os.uname().machine in keeper.MACHINES:
        held = made.run("build", "--explain-policy", "held", env=ENV).out
        assert "always 1000000000 seconds after 1970" in held and "never make keys" in held


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
    operations.add(Shelf.put.__name__)
    operations |= {name for base in Preparation.__mro__ for name in vars(base) if not name.startswith("_")}
    means = {"start", "release", "remove_mountpoints", "apply", "spawn", "spawn_kept", "used_by_command", "changed"}
    means |= {"watch_network", "network_was_used"}
    perturbations = {"vary_addresses", "use_processors", "set_umask", "other_kernel", "number_processes"}
    observation = {"enter_upper", "show_backdrop", "hide"}  # Of `observe` alone: no build has a backdrop.
    unknown = operations - means - perturbations - observation - explained.SILENT - explained._WORDS.keys()
    assert unknown == set()
