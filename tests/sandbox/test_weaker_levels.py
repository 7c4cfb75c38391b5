"""Levels `process` and `none` keep the promises they make, and say which ones they do not make."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from requiem_build.core.errors import EnvironmentFault, SandboxUnavailable
from requiem_build.core.policy import INPUT_MTIME_S, Limits
from requiem_build.sandbox.attendant import Attendant
from requiem_build.sandbox.base import Job, Mount, Staged
from requiem_build.sandbox.posix import NoSandbox, ProcessSandbox

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def box(tmp_path):
    with ProcessSandbox(str(tmp_path / "scratch")) as sandbox:
        yield sandbox


def test_a_step_gets_copies_and_a_fixed_environment(box, run_in, make_object, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "leak")
    large = make_object("store/large", b"L" * 1000)
    staged = [
        Staged("src/a", data=b"a"),
        Staged("link", symlink="src/a"),
        Staged("large", source=large),
        Staged("run", data=b"#!/bin/sh\necho ran\n", executable=True),
    ]
    script = "./run; cat link; wc -c < large; stat -c '%a %Y' src/a large src; env; pwd; echo out > made/out"
    step = run_in(box, "sh", "-c", script, staged=staged, directories=["made"])
    assert step.out.startswith(f"ran\na1000\n444 {INPUT_MTIME_S}\n444 {INPUT_MTIME_S}\n755 {INPUT_MTIME_S}\n")
    assert "SECRET_TOKEN" not in step.out
    assert f"HOME={os.path.dirname(box.workspace)}/home\n" in step.out
    assert f"TMPDIR={os.path.dirname(box.workspace)}/tmp\n" in step.out
    assert step.out.endswith(f"{box.workspace}\n")
    assert step.files["made/out"] == b"out\n"
    assert step.finished.changed == ()


def test_each_job_starts_with_an_empty_directory(box, run_in):
    run_in(box, "sh", "-c", 'mkdir closed; touch closed/x left "$HOME/left" "$TMPDIR/left"; chmod 0 closed')
    assert run_in(box, "sh", "-c", 'ls -A . "$HOME" "$TMPDIR" | grep left').out == ""


def test_a_changed_input_is_found(box, run_in):
    staged = [Staged("a", data=b"a"), Staged("b", data=b"b")]
    assert run_in(box, "sh", "-c", "chmod +w a; echo x > a", staged=staged).finished.changed == ("a",)


def test_a_directory_that_is_an_input_stays_and_what_comes_into_it_is_no_change(box, run_in):
    staged = [Staged("d"), Staged("d/e"), Staged("d/e/f", data=b"f")]
    assert run_in(box, "sh", "-c", "touch d/new d/e/new; rm d/new", staged=staged).finished.changed == ()
    assert run_in(box, "sh", "-c", "mv d/e d/f", staged=staged).finished.changed == ("d/e", "d/e/f")
    assert run_in(box, "sh", "-c", "mv d x; mkdir -p d/e", staged=staged).finished.changed == ("d", "d/e", "d/e/f")
    assert run_in(box, "sh", "-c", "rm -r d; touch d", staged=staged).finished.changed == ("d", "d/e", "d/e/f")


def test_roots_of_the_workspace_are_links_and_others_are_simply_there(box, run_in, tmp_path):
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/tool").write_text("#!/bin/sh\necho tool\n")
    (tmp_path / "venv/bin/tool").chmod(0o755)
    mounts = [Mount(str(tmp_path / "venv"), "/workspace/venv"), Mount("/usr", "/usr")]
    path = {"PATH": "/workspace/venv/bin:/usr/bin:/bin"}
    assert run_in(box, "tool", mounts=mounts, env=path).out == "tool\n"
    with pytest.raises(EnvironmentFault):
        run_in(box, "true", mounts=[Mount("/usr", "/elsewhere")])


def test_daemons_are_killed_wherever_they_flee(box, run_in):
    marker = f"76543.{os.getpid()}"
    step = run_in(box, "sh", "-c", f"(setsid sh -c 'setsid sleep {marker} &' &); sleep 0.2; echo done")
    assert step.out == "done\n"
    assert step.finished.leftovers >= 1
    assert subprocess.run(["pgrep", "-f", f"^sleep {marker}"], capture_output=True).stdout == b""


def test_the_time_limit_ends_the_whole_tree(box, run_in):
    marker = f"65432.{os.getpid()}"
    step = run_in(box, "sh", "-c", f"(setsid sleep {marker} &); sleep 60", limits=Limits(timeout_ms=200))
    assert step.finished.termination == "timeout"
    assert subprocess.run(["pgrep", "-f", f"^sleep {marker}"], capture_output=True).stdout == b""


def test_limits_signals_stdin_and_missing_programs(box, run_in):
    assert run_in(box, "sh", "-c", "ulimit -n", limits=Limits(open_files=50)).out == "50\n"
    assert run_in(box, "sh", "-c", "kill -SEGV $$").finished.signal == signal.SIGSEGV
    assert run_in(box, "cat", stdin=b"given").out == "given"
    assert run_in(box, "cat").out == ""
    assert run_in(box, "nowhere").finished.termination == "not_found"
    assert run_in(box, "sh", "-c", "yes | head -c 100000", max_output_bytes=10).finished.stdout_truncated
    assert run_in(box, "sh", "-c", "yes | head -1; echo $?").err == ""


def test_cancel_ends_a_running_step(box, run_in):
    timer = threading.Timer(0.2, box.cancel, kwargs={"kill": True})
    begun = time.monotonic()
    timer.start()
    step = run_in(box, "sh", "-c", "trap '' TERM; sleep 60 & sleep 61; sleep 62")
    assert step.finished.cancelled
    assert time.monotonic() - begun < 5
    timer.join()


def test_close_removes_the_scratch_directory_and_the_minder(tmp_path, run_in):
    sandbox = ProcessSandbox(str(tmp_path / "scratch"))
    run_in(sandbox, "sh", "-c", "mkdir -p a/b; touch a/b/c; chmod 0 a/b a")
    sandbox.close()
    sandbox.close()
    assert not (tmp_path / "scratch").exists()


def test_a_minder_that_dies_is_a_fault_and_is_replaced(box, run_in):
    with pytest.raises(EnvironmentFault, match="worker died") as raised:
        run_in(box, "sh", "-c", "kill -KILL $PPID")
    assert ("worker", "killed by signal 9") in raised.value.facts
    assert run_in(box, "echo", "again").out == "again\n"


SAYS_NO_ENDING = """
import sys
sys.path.insert(0, sys.argv[1])
import _socket
from requiem_build.sandbox.wire import Channel
channel = Channel(_socket.socket(fileno=3))
channel.receive()
channel.send(("ready", {}))
channel.receive()
"""


def test_a_worker_that_ends_well_without_having_told_an_ending_is_a_fault():
    attendant = Attendant("minder", {}, before=(sys.executable, "-c", SAYS_NO_ENDING, str(ROOT)))
    with pytest.raises(EnvironmentFault, match="worker died") as raised:
        attendant.run({"command": ["true"]})
    assert raised.value.exit_code == 4 and ("worker", "exit code 0") in raised.value.facts


def test_what_the_minder_cannot_do_is_a_fault_that_says_why_and_leaves_nothing(box, run_in):
    marker = f"76543.{os.getpid()}"
    minder = box._attendant._pid
    usual = resource.prlimit(minder, resource.RLIMIT_NOFILE)
    most = usual[1]
    resource.prlimit(minder, resource.RLIMIT_NOFILE, (6, most))
    with pytest.raises(EnvironmentFault) as raised:
        run_in(box, "true")
    assert "EMFILE" in dict(raised.value.facts)["error"]
    resource.prlimit(minder, resource.RLIMIT_NOFILE, (10, most))  # Too few to start one that has a limit.
    with pytest.raises(EnvironmentFault) as raised:
        run_in(box, "true", limits=Limits(open_files=9))
    assert "EMFILE" in dict(raised.value.facts)["error"]

    def run_out() -> None:
        while not os.path.exists(f"{box.workspace}/begun"):
            time.sleep(0.01)
        resource.prlimit(minder, resource.RLIMIT_NOFILE, (3, most))

    resource.prlimit(minder, resource.RLIMIT_NOFILE, usual)
    thread = threading.Thread(target=run_out)
    thread.start()
    with pytest.raises(EnvironmentFault) as raised:
        run_in(box, "sh", "-c", f": > begun; exec sleep {marker}", limits=Limits(processes=9))
    thread.join()
    assert "EMFILE" in dict(raised.value.facts)["error"]
    assert subprocess.run(["pgrep", "-f", marker], capture_output=True).stdout == b""
    resource.prlimit(minder, resource.RLIMIT_NOFILE, usual)
    assert run_in(box, "echo", "again").out == "again\n"
    assert box._attendant._pid == minder


def test_when_the_runner_is_killed_its_steps_end(tmp_path):
    marker = f"54321.{os.getpid()}"
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from requiem_build.sandbox.posix import ProcessSandbox\n"
        "from requiem_build.sandbox.base import Job\n"
        "command = ['sh', '-c', '(setsid sleep ' + sys.argv[2] + ' &); sleep ' + sys.argv[2]]\n"
        "ProcessSandbox(sys.argv[3]).run(Job(command, {'PATH': '/usr/bin:/bin'}))\n"
    )

    def sleeping() -> int:
        found = subprocess.run(["pgrep", "-f", f"^sleep {marker}"], capture_output=True).stdout.split()
        return len(found)

    def eventually(count: int) -> bool:
        end = time.monotonic() + 10
        while sleeping() != count:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    runner = subprocess.Popen([sys.executable, "-c", script, str(ROOT), marker, str(tmp_path / "scratch")])
    try:
        assert eventually(2)
        runner.kill()
        runner.wait()
        assert eventually(0)
    finally:
        runner.kill()
        runner.wait()


def test_process_says_what_it_does_not_promise(box):
    assert box.protection["level"] == "process"
    assert "network is closed" in box.protection["not_promised"]


@pytest.fixture
def here(tmp_path):
    sandbox = NoSandbox(str(tmp_path), ["tools"])
    yield sandbox
    sandbox.close()


def run_here(sandbox: NoSandbox, *command: str, env: dict[str, str] | None = None, **limits: int):
    finished = sandbox.run(Job(command, env or {}, limits=Limits(**limits)))
    finished.close()
    return finished


def is_running(marker: str) -> bool:
    return subprocess.run(["pgrep", "-f", f"^sleep {marker}"], capture_output=True).stdout != b""


def test_none_runs_in_the_real_workspace_with_the_users_environment(here, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MINE", "yes")
    env = {"ADDED": "by the step"}
    command = ["sh", "-c", 'echo "$MINE $ADDED $HOME"; pwd; cat > out/file; exit 4']
    finished = here.run(Job(command, env, stdin=b"in", directories=["out"]))
    finished.close()
    assert capfd.readouterr().out == f"yes by the step {os.environ['HOME']}\n{tmp_path}\n"
    assert (finished.exit_code, finished.termination, finished.stdout) == (4, "exited", b"")
    assert (tmp_path / "out/file").read_text() == "in"


def test_none_names_signals_missing_programs_and_time_limits(tmp_path):
    sandbox = NoSandbox(str(tmp_path))
    for command, limits, termination in (
        (["sh", "-c", "kill -9 $$"], Limits(), "signaled"),
        (["no-such-program"], Limits(), "not_found"),
        (["sleep", "60"], Limits(timeout_ms=100), "timeout"),
    ):
        finished = sandbox.run(Job(command, {}, limits=limits))
        finished.close()
        assert finished.termination == termination
    sandbox.close()


def test_none_ends_whatever_the_step_started_after_success_and_when_time_is_up(here):
    marker = f"76542.{os.getpid()}"
    flee = f"(setsid sh -c 'setsid sleep {marker} &' &); sleep {marker} & sleep 0.2"
    finished = run_here(here, "sh", "-c", flee)
    assert finished.termination == "exited" and finished.leftovers >= 2 and not is_running(marker)
    finished = run_here(here, "sh", "-c", f"{flee}; sleep 60", timeout_ms=400)
    assert finished.termination == "timeout" and not is_running(marker)


def test_none_asks_all_of_a_step_to_end_before_it_kills(here, tmp_path):
    script = "(trap 'echo asked > inner; exit' TERM; sleep 60 & wait) & trap 'echo asked > outer; exit' TERM; wait"
    timer = threading.Timer(0.4, here.cancel, kwargs={"kill": False})
    timer.start()
    assert run_here(here, "sh", "-c", script).cancelled
    timer.join()
    assert (tmp_path / "inner").exists() and (tmp_path / "outer").exists()


NOT_OURS = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from requiem_build.sandbox import minder
leader, other = (os.posix_spawnp("sleep", ["sleep", seconds], os.environ) for seconds in ("0", "60"))
kill = os.kill
def refuse(pid, number):
    if pid == other:
        raise PermissionError
    kill(pid, number)
os.kill = refuse
minder.Descendants(leader, here=True).end()
kill(other, signal.SIGKILL)
print("ended")
"""


def test_none_gives_up_what_this_user_may_not_end():
    """As it is with what `sudo` started: a build must not wait for it for ever."""
    ran = subprocess.run([sys.executable, "-c", NOT_OURS, str(ROOT)], capture_output=True, text=True, timeout=30)
    assert (ran.returncode, ran.stdout) == (0, "ended\n"), ran.stderr


def test_none_sets_each_variable_of_the_step_and_its_path_before_yours(here, tmp_path, monkeypatch, capfd):
    for name, value in (("TZ", "Europe/Berlin"), ("PYTHONHASHSEED", "77"), ("LANG", "de_DE.UTF-8")):
        monkeypatch.setenv(name, value)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/say").write_text('#!/bin/sh\necho "$TZ $PYTHONHASHSEED $LANG"\n')
    (tmp_path / "tools/say").chmod(0o755)
    assert run_here(here, "say", env={"TZ": "UTC", "PYTHONHASHSEED": "0"}).exit_code == 0
    assert capfd.readouterr().out == "UTC 0 de_DE.UTF-8\n"
    assert run_here(here, "say", env={"PATH": "/usr/bin:/bin"}).termination == "not_found"


def test_none_holds_limits_and_refuses_the_one_that_it_cannot_hold(here, tmp_path, capfd):
    assert run_here(here, "sh", "-c", "ulimit -n; ulimit -v", open_files=50, memory_bytes=1 << 30).exit_code == 0
    assert capfd.readouterr().out == f"50\n{1 << 20}\n"
    many = "for i in 1 2 3 4 5 6; do sleep 60 & done; wait"
    assert run_here(here, "sh", "-c", many, processes=3).termination == "processes"
    big = run_here(here, "sh", "-c", "exec head -c 100000 /dev/zero > big", file_size_bytes=4096)
    assert big.termination == "file_size"
    with pytest.raises(SandboxUnavailable, match="cannot be had at the level none") as raised:
        run_here(here, "touch", "never", tmp_bytes=1 << 20)
    assert raised.value.exit_code == 4 and raised.value.hint and not (tmp_path / "never").exists()
