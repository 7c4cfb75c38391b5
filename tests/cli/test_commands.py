"""The command line as a stranger meets it: words, exit codes, streams."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from project import SOURCE, Project

pytestmark = pytest.mark.userns

HELLO = """
    [steps.hello]
    description = "Says hello"
    command = "cat name.txt > out.txt"
    inputs = ["name.txt"]
    outputs = ["out.txt"]
"""


@pytest.fixture
def hello(project: Project) -> Project:
    project.write("name.txt", "world\n")
    project.manifest(HELLO)
    return project


def imported(project: Project, *arguments: str) -> set[str]:
    """The modules that a command line imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "requiem_build", *arguments],
        cwd=project.root,
        env=project.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


SLOW = {"networkx", "jinja2", "click", "rich", "watchfiles", "zstandard", "rfc8785", "tomllib", "subprocess"}


def test_version_and_a_no_op_import_nothing_slow(hello: Project) -> None:
    hello.build()
    time.sleep(0.05)  # Past the clock tick in which nothing that was just written can be believed.
    hello.run("build")
    assert "nothing to do: 1 step up to date" in hello.run("build").err
    assert not SLOW & imported(hello, "--version")
    assert not SLOW & imported(hello, "build")


def test_a_build_whose_plan_is_known_imports_neither_networkx_nor_jinja2(hello: Project) -> None:
    hello.build()
    hello.write("name.txt", "you\n")
    assert not {"networkx", "jinja2"} & imported(hello, "build")
    assert hello.read("out.txt") == "you\n"


def test_the_fast_path_and_the_command_line_know_the_same_flags() -> None:
    from requiem_build import __main__ as door
    from requiem_build.cli import globals as shared
    from requiem_build.cli.build import command

    jobs = next(parameter for parameter in command.params if parameter.name == "jobs")
    assert tuple(jobs.opts) == door.JOBS
    assert all(shared._FLAGS[flag] == "quiet" for flag in door.QUIET)
    assert all(shared._VALUES[flag] == "directory" for flag in door.DIRECTORY)
    assert door.parse_plain(["build", "-j", "2", "-q", "-C", "x", "a", "b"]) == (True, "x", ("a", "b"))
    for spelled in ("-j2", "--jobs=2"):
        assert door.parse_plain(["build", spelled, "a"]) == (False, None, ("a",))
    wrong = [["build", word] for word in ("-j0", "-j-1", "-jx", "-j2k", "--jobs=", "--jobs", "-j9999", "-j²")]
    for other in (["build", "-k"], ["build", "--json"], ["list"], ["-v", "build"], ["build", "-j"], [], *wrong):
        assert door.parse_plain(other) is None


def test_a_number_of_jobs_may_be_written_at_once(hello: Project) -> None:
    assert hello.run("build", "-j1").code == 0
    assert "nothing to do" in hello.run("build", "-j2").err
    assert "click" not in imported(hello, "build", "-j2")
    hello.write("name.txt", "you\n")
    assert "click" not in imported(hello, "build", "--jobs=1")
    assert hello.read("out.txt") == "you\n"
    assert hello.run("build", "-j0").code == 2


def test_the_fast_path_notices_whatever_changes(hello: Project) -> None:
    hello.manifest(
        HELLO + '[steps.all]\ncommand = "cat {{ inputs }} > all.txt"\ninputs = ["d/*.txt"]\n'
        'outputs = ["all.txt"]\n[steps.env]\ncommand = "echo $X > env.txt"\npass_env = ["X"]\n'
        'outputs = ["env.txt"]\n'
    )
    hello.write("d/a.txt", "a\n")

    def settled() -> bool:
        time.sleep(0.05)
        hello.run("build", env={"X": "1"})
        return "nothing to do" in hello.run("build", env={"X": "1"}).err

    assert settled()
    hello.write("d/b.txt", "b\n")
    hello.run("build", env={"X": "1"})
    assert hello.read("all.txt") == "a\nb\n"
    assert settled()
    hello.run("build", env={"X": "2"})
    assert hello.read("env.txt") == "2\n"
    assert settled()
    os.unlink(hello.root / "all.txt")
    hello.run("build", env={"X": "1"})
    assert hello.read("all.txt") == "a\nb\n"
    assert settled()
    hello.write("requiem.toml", hello.read("requiem.toml").replace("cat name.txt", "cat name.txt name.txt"))
    hello.run("build", env={"X": "1"})
    assert hello.read("out.txt") == "world\nworld\n"


def test_a_clone_that_brings_its_caches_is_built_right(hello: Project, tmp_path: Path) -> None:
    hello.build()
    shutil.copytree(hello.root, tmp_path / "clone", symlinks=True)
    clone = Project(tmp_path, "clone")
    (clone.root / "out.txt").write_text("poison\n")
    other = {"XDG_CACHE_HOME": str(tmp_path / "other-cache")}  # Another user: another seal.
    ran = clone.build(env=other)
    assert ran.states == {"hello": "hit"}
    assert clone.read("out.txt") == "world\n"
    for name in ("memory", "noop"):
        (clone.root / ".requiem" / name).write_bytes(b"\x00garbage")
    assert clone.build(env=other).code == 0


def test_requiem_alone_lists_the_steps(hello: Project) -> None:
    ran = hello.run()
    assert ran.code == 0 and "hello" in ran.out and "Says hello" in ran.out
    listed = json.loads(hello.run("list", "--json").out)
    assert [step["name"] for step in listed["steps"]] == ["hello"]


def test_errors_have_one_form_and_the_right_code(project: Project) -> None:
    ran = project.refuse("build")
    assert re.match(r"error: no requiem.toml in .* or above\n  hint: requiem init makes one\n$", ran.err)
    assert not project.exists(".requiem")
    answer = json.loads(project.run("build", "--json").out)
    assert answer["ok"] is False and answer["error"]["code"] == 2
    assert 'did you mean "build"?' in project.refuse("biuld").err
    assert 'did you mean "--dry-run"?' in project.refuse("build", "--dry-rn").err
    for line in (
        ["build", "-j", "0"],
        ["build", "-j", "x"],
        ["build", "--mode", "fast"],
        ["build", "--cache", "x"],
        ["build", "--sandbox", "x"],
        ["build", "--set", "x"],
        ["-C", "/nowhere", "build"],
        ["-C"],
        ["--color", "pink", "build"],
        ["cas", "get", "xyz"],
        ["show", "nothing", "x"],
        ["schema", "nope"],
    ):
        project.manifest(HELLO)
        project.write("name.txt", "x")
        project.refuse(*line)
    assert project.refuse("graph", expect=4).err.startswith('error: the command "graph" is not built yet')


def test_exact_bytes_leave_by_their_doors(hello: Project) -> None:
    step = hello.build().step("hello")
    request = hello.run("show", "request", "hello").out
    hello.write("request.json", json.dumps(json.loads(request), indent=4))
    assert hello.run("digest", "request", "request.json").out.strip() == step["request_digest"]
    assert hello.run("canonical", "request.json").out == request
    result = json.loads(hello.run("show", "result", step["result_digest"]).out)
    assert result["request_digest"] == step["request_digest"]
    trace = hello.run("show", "trace", "hello").out.encode()
    hello.write("trace.json", trace)
    assert hello.run("digest", "object", "trace.json").out.strip() == result["trace_digest"]
    digest = result["outputs"]["out.txt"]["digest"]
    assert hello.run("cas", "get", digest).out == "world\n"
    assert Path(hello.run("cas", "path", digest).out.strip()).read_text() == "world\n"
    assert hello.run("cas", "put", "out.txt").out.strip() == digest
    record = json.loads(hello.run("show", "record", "hello").out)
    assert record["protection"]["level"] == "strict" and record["asserted"] == []
    hello.refuse("cas", "get", "0" * 64)


def test_a_failed_steps_request_result_record_and_trace_are_shown(hello: Project) -> None:
    hello.manifest(
        HELLO + '[steps.bad]\ncommand = "echo no; exit 3"\n[steps.each]\ncommand = "true"\ncache = false\n'
        '[steps.early]\ncommand = "cat x/y"\ninputs = ["x/y"]\n[steps.x]\ncommand = "mkdir x"\noutputs = ["x/"]\n'
    )
    report = hello.build("-k", expect=1)
    for name in ("bad", "each"):
        step = report.step(name)
        for what in (name, step["request_digest"], step["result_digest"]):
            hello.write("request.json", hello.run("show", "request", what).out)
            hello.write("result.json", hello.run("show", "result", what).out)
            assert hello.run("digest", "request", "request.json").out.strip() == step["request_digest"]
            assert hello.run("digest", "result", "result.json").out.strip() == step["result_digest"]
            record = json.loads(hello.run("show", "record", what).out)
            assert record["result_digest"] == step["result_digest"]
            hello.write("trace.json", hello.run("show", "trace", what).out)
            digest = hello.run("digest", "object", "trace.json").out.strip()
            assert digest == json.loads(hello.read("result.json"))["trace_digest"]
        assert json.loads(hello.read("result.json"))["exit_code"] == (3 if name == "bad" else 0)
    assert "requiem log early" in hello.refuse("show", "result", "early").err
    hello.refuse("show", "result", "0" * 64)


def test_show_follows_the_last_run_also_where_it_failed_after_a_success(project: Project) -> None:
    project.manifest("""
        [steps.flaky]
        command = "exit $(cat state/code)"
        roots = ["state"]
        [roots.state]
        path = "state"
        key = ["key"]
    """)
    project.write("key", "1")
    for code, expect in (("0", 0), ("5", 1)):
        project.write("state/code", code)
        step = project.build("--cache", "wo", expect=expect).step("flaky")
        assert json.loads(project.run("show", "result", "flaky").out)["exit_code"] == int(code)
        assert json.loads(project.run("show", "result", step["result_digest"]).out)["exit_code"] == int(code)


def test_exec_runs_a_request_and_prints_its_result(hello: Project) -> None:
    step = hello.build().step("hello")
    hello.write("request.json", hello.run("show", "request", "hello").out)
    ran = hello.run("exec", "request.json")
    assert ran.code == 0
    assert ran.out.strip() == hello.run("show", "result", "hello").out
    request = json.loads(hello.read("request.json"))
    request["command"][-1] = "echo no >&2; exit 4"
    hello.write("request.json", json.dumps(request))
    ran = hello.run("exec", "request.json")
    assert ran.code == 1 and json.loads(ran.out)["exit_code"] == 4
    request["roots"]["/usr"] = step["request_digest"]
    hello.write("request.json", json.dumps(request))
    hello.refuse("exec", "request.json", expect=4)
    hello.write("request.json", "{}")
    hello.refuse("exec", "request.json")


def test_log_tells_what_a_step_wrote(project: Project) -> None:
    project.manifest("""
        [steps.x]
        command = "echo to-out; echo to-err >&2; printf '\\\\033[31mred\\\\033[0m\\\\n'"
        [steps.bad]
        command = "echo broken; exit 1"
    """)
    project.build("-k", expect=1)
    log = project.run("log", "x")
    assert "to-out" in log.out and "to-err" in log.out
    assert "\x1b" not in log.out and "\\x1b[31mred" in log.out
    assert "broken" in project.run("log", "bad").out
    assert 'did you mean "bad"?' in project.refuse("log", "bda").err


def test_a_hit_prints_what_it_wrote_only_when_asked(project: Project) -> None:
    project.manifest("""
        [steps.talk]
        command = "echo CAPTURED; echo x > out.txt"
        outputs = ["out.txt"]
    """)
    project.build()
    for forget in ((), (".requiem",)):  # From memory, then from the store's record.
        for flags, told in ((["-v"], 1), ([], 0), (["-n", "-v"], 0)):
            for name in ("out.txt", *forget):
                (shutil.rmtree if name == ".requiem" else os.remove)(project.root / name)
            ran = project.run("build", *flags)
            assert "hit" in ran.err and ran.err.count("CAPTURED") == told
            project.build()


def test_init_makes_something_that_builds(project: Project) -> None:
    assert project.run("init").code == 0
    assert project.build().counts == {"ran": 1}
    assert "already" in project.refuse("init").err


@pytest.mark.gcc
def test_init_among_c_sources_makes_a_program(project: Project) -> None:
    project.write("src/main.c", '#include "x.h"\nint main(void) { return X; }\n')
    project.write("include/x.h", "#define X 0\n")
    assert project.run("init").code == 0
    project.write("requiem.toml", project.read("requiem.toml").replace('"-Wall"', '"-Wall", "-Iinclude"'))
    project.build()
    assert subprocess.run([project.root / "build/work"]).returncode == 0


def test_a_closed_pipe_and_a_full_device_are_no_tracebacks(hello: Project) -> None:
    hello.build()
    done = subprocess.run(
        f"{sys.executable} -m requiem_build cas ls | head -0; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        cwd=hello.root,
        env=hello.environment(),
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr and done.returncode in (0, 141)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "requiem_build", "list"],
            cwd=hello.root,
            env=hello.environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 4 and done.stderr.startswith("error: no space left")


def test_every_schema_is_printed(hello: Project) -> None:
    for name in hello.run("schema").out.split():
        assert json.loads(hello.run("schema", name).out)["$schema"]


def test_a_bug_is_one_line_and_a_report_without_secrets(hello: Project) -> None:
    hello.write(
        "boom.py",
        "import sys\nimport requiem_build.engine.build as b\n"
        "def boom(*a, **k): raise ValueError('SECRET-TOKEN')\nb.build = boom\n"
        "from requiem_build.cli.app import run\nsys.exit(run(['build']))\n",
    )
    done = subprocess.run(
        [sys.executable, "boom.py"],
        cwd=hello.root,
        env=hello.environment({"T": "SECRET-TOKEN"}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 70
    assert done.stderr.startswith("error: a bug: ValueError") and "Traceback" not in done.stderr
    report = re.search(r"report: (\S+)", done.stderr)
    assert report and "SECRET-TOKEN" not in Path(report.group(1)).read_text() + done.stderr
    os.unlink(report.group(1))


# Signals, locks, crashes

SLOW_STEP = """
    [steps.slow]
    command = "echo started > began.txt; sleep 60.ID & setsid sleep 61.ID & sleep 62.ID"
    outputs = ["began.txt"]
    [steps.after]
    command = "true"
    needs = ["slow"]
"""


class Slow:
    """A project whose first step sleeps in three processes that can be told from every other test's."""

    def __init__(self, project: Project) -> None:
        self.id = str(time.monotonic_ns())
        self.project = project
        project.manifest(SLOW_STEP.replace("ID", self.id))

    def sleepers(self) -> int:
        done = subprocess.run(["pgrep", "-fc", rf"^sleep 6[012]\.{self.id}$"], capture_output=True, text=True)
        return int(done.stdout)

    def heal(self) -> None:
        self.project.manifest(
            "[steps.slow]\ncommand = 'echo 1 > began.txt'\noutputs = ['began.txt']\n"
            "[steps.after]\ncommand = 'true'\nneeds = ['slow']\n"
        )


def wait_for(condition: object, timeout_s: float = 20) -> None:
    until = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize("mode", ["turbo", "repro"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_build_leaves_nothing_behind(project: Project, number: int, mode: str) -> None:
    slow = Slow(project)
    process = project.start("build", "--mode", mode)
    wait_for(lambda: slow.sleepers() == 3)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number, err.decode()
    assert b"interrupted" in err and b"failed" not in err, "we ended it: it did not fail"
    wait_for(lambda: slow.sleepers() == 0)
    assert os.listdir(project.root / ".requiem/tmp") == []
    slow.heal()
    assert project.build().counts == {"ran": 2}


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5])
def test_an_interrupt_at_any_moment_ends_the_build(project: Project, after_s: float) -> None:
    slow = Slow(project)
    # What a signal does to an interpreter that is not up yet is the interpreter's affair: the clock starts in our door.
    door = "import os; from requiem_build import __main__ as door; os.write(1, b'up'); door.main()"
    process = project.start("build", program=(sys.executable, "-c", door))
    assert process.stdout is not None
    assert process.stdout.read(2) == b"up"
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode in (130, -signal.SIGINT), err.decode()
    # On a busy machine our first line may not have run yet: then there is nothing of ours in what Python says.
    assert b"Traceback" not in err or b"requiem_build" not in err or after_s == 0, err.decode()
    wait_for(lambda: slow.sleepers() == 0)


def test_a_killed_build_leaves_no_process_and_the_next_one_just_works(project: Project) -> None:
    slow = Slow(project)
    process = project.start("build")
    wait_for(lambda: slow.sleepers() == 3)
    process.kill()
    process.communicate()
    wait_for(lambda: slow.sleepers() == 0)
    slow.heal()
    assert project.build().counts == {"ran": 2}
    assert os.listdir(project.root / ".requiem/tmp") == []


def test_two_builds_wait_for_each_other_and_say_so(project: Project) -> None:
    project.manifest('[steps.x]\ncommand = "sleep 1; echo 1 > x.txt"\noutputs = ["x.txt"]\n')
    first = project.start("build", "--json")
    wait_for(lambda: (project.root / ".requiem/lock").exists() and (project.root / ".requiem/lock").read_text())
    assert project.refuse("build", "--no-wait", expect=5).code == 5
    second = project.build()
    assert "waiting for pid" in second.err
    assert first.wait() == 0
    first.communicate()
    assert second.counts == {"fresh": 1}


# Watch


def test_watch_builds_on_change_survives_a_broken_manifest_and_ends_cleanly(hello: Project) -> None:
    process = hello.start("watch")
    try:
        wait_for(lambda: hello.exists("out.txt"))
        time.sleep(1.0)
        hello.write("name.txt", "one\n")
        wait_for(lambda: hello.read("out.txt") == "one\n")
        good = hello.read("requiem.toml")
        hello.write("requiem.toml", good + "\n[steps.hello\n")
        time.sleep(1.0)
        hello.write("requiem.toml", good.replace("cat name.txt", "cat name.txt name.txt"))
        wait_for(lambda: hello.read("out.txt") == "one\none\n")
        time.sleep(1.5)
        runs = len(os.listdir(hello.root / ".cas/runs"))
        time.sleep(1.5)
        assert len(os.listdir(hello.root / ".cas/runs")) == runs, "its own outputs must not wake it up for ever"
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err.decode()
    assert b"error: " in err and b"Traceback" not in err


def test_the_package_is_what_is_tested() -> None:
    import requiem_build

    assert Path(requiem_build.__file__).is_relative_to(SOURCE)


def test_watch_does_not_repeat_a_failure_for_events_that_do_not_matter(project: Project) -> None:
    project.manifest('[steps.x]\ncommand = "echo tried; exit 1"\n')
    process = project.start("watch")
    try:
        wait_for(lambda: (project.root / ".cas/runs").is_dir() and os.listdir(project.root / ".cas/runs"))
        time.sleep(1.5)
        before = len(os.listdir(project.root / ".cas/runs"))
        (project.root / "sub").mkdir()
        for number in range(5):
            project.write("sub/notes.txt", str(number))
            time.sleep(0.2)
        time.sleep(1.0)
        assert len(os.listdir(project.root / ".cas/runs")) == before
        project.manifest('[steps.x]\ncommand = "echo fine"\n')
        wait_for(lambda: len(os.listdir(project.root / ".cas/runs")) > before)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.mark.root
def test_a_question_is_answered_where_nothing_can_be_written(project: Project) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting is root's")
    project.manifest(HELLO)
    project.write("name.txt", "x")
    project.build()
    project.write("name.txt", "y")
    read_only = f"mount --bind {project.root} {project.root} && mount -o remount,bind,ro {project.root} && "
    for words, expect in (("build -n --json", 0), ("why hello --json", 0), ("list --json", 0), ("build", 4)):
        script = f"{read_only} cd {project.root} && exec {sys.executable} -m requiem_build {words}"
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script], env=project.environment(), capture_output=True, text=True
        )
        assert done.returncode == expect, f"{words}: {done.stderr}"
