"""A sandbox leaves nothing behind: no process, no mount, no descriptor, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from requiem_build.core.errors import EnvironmentFault, SandboxUnavailable
from requiem_build.sandbox import linux, means
from requiem_build.sandbox.base import Mount, Staged
from requiem_build.sandbox.walls import plan_boot

pytestmark = pytest.mark.userns

ROOT = Path(__file__).resolve().parents[2]


def running(marker: str) -> list[int]:
    """Processes with a word in their command line."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                line = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in line.split(b"\0"):
                found.append(int(name))
    return found


def eventually(happened, patience_s=10.0) -> bool:
    end = time.monotonic() + patience_s
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def children() -> list[str]:
    """Ours, but for the process of which command lines are forked (tests/forked.py)."""
    found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True).stdout.split()
    return [pid for pid in found if b"forked.py" not in _command(pid)]


def _command(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_close_leaves_nothing_and_can_be_repeated(strict, run_in):
    before = (sorted(os.listdir("/proc/self/fd")), Path("/proc/self/mountinfo").read_text())
    sandbox = strict()
    run_in(sandbox, "true")
    pids = children()
    sandbox.close()
    sandbox.close()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids[:-1])
    assert before == (sorted(os.listdir("/proc/self/fd")), Path("/proc/self/mountinfo").read_text())


def test_fifty_jobs_leak_no_descriptor(strict, run_in, make_object, tmp_path):
    large = make_object("store/large", b"L" * 200_000)
    (tmp_path / "root").mkdir()
    sandbox = strict(store=str(tmp_path / "store"), roots=[str(tmp_path / "root")])
    jobs = (
        (("true",), {"staged": [Staged("a", data=b"a"), Staged("large", source=large)], "stdin": b"x"}),
        (("nowhere",), {"stdin": large}),
        (("sh", "-c", "sleep 9 & kill -9 $$"), {}),
    )

    def descriptors() -> list[int]:
        pids = [os.getpid()]
        if os.geteuid() == 0:
            outer = next(pid for pid in children() if os.path.exists(f"/proc/{pid}/fd"))
            pids += [int(word) for word in subprocess.run(["pgrep", "-P", outer], capture_output=True).stdout.split()]
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]

    for command, fields in jobs:
        run_in(sandbox, *command, **fields)
    before = descriptors()
    for number in range(50):
        command, fields = jobs[number % len(jobs)]
        run_in(sandbox, *command, **fields)
    with pytest.raises(EnvironmentFault):
        run_in(sandbox, "true", staged=[Staged("x", source=f"{tmp_path}/store/absent")])
    with pytest.raises(EnvironmentFault, match="made ready"):
        run_in(sandbox, "true", mounts=[Mount(str(tmp_path / "root"), "/usr/no/such/place")])
    assert descriptors() == before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_runner_is_killed_every_process_ends(how):
    marker = f"98765.{os.getpid()}{int(how)}"
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from requiem_build.sandbox.linux import StrictSandbox\n"
        "from requiem_build.sandbox.base import Job\n"
        "command = ['sh', '-c', '(setsid sleep ' + sys.argv[2] + ' &); sleep ' + sys.argv[2]]\n"
        "StrictSandbox().run(Job(command, {'PATH': '/usr/bin:/bin'}))\n"
    )
    runner = subprocess.Popen([sys.executable, "-c", script, str(ROOT), marker])
    try:
        # The runner itself has the marker among its arguments, and sh has it inside of a longer one.
        assert eventually(lambda: len(running(marker)) >= 3)
        runner.send_signal(how)
        runner.wait(10)
        assert eventually(lambda: running(marker) == [])
    finally:
        runner.kill()
        runner.wait()


def test_the_runners_end_is_seen_even_if_a_child_of_it_holds_its_socket():
    marker = f"97654.{os.getpid()}"
    script = (
        "import os, sys, threading, time; sys.path.insert(0, sys.argv[1])\n"
        "from requiem_build.sandbox.linux import StrictSandbox\n"
        "from requiem_build.sandbox.base import Job\n"
        "sandbox = StrictSandbox()\n"
        "if os.fork() == 0:\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "sandbox.run(Job(['sleep', sys.argv[2]], {'PATH': '/usr/bin:/bin'}))\n"
    )
    runner = subprocess.Popen([sys.executable, "-c", script, str(ROOT), marker], stdout=subprocess.PIPE, text=True)
    child = int(runner.stdout.readline())
    try:
        assert eventually(lambda: len(running(marker)) >= 3)  # The runner, its child and the step.
        runner.kill()
        runner.wait(10)
        assert eventually(lambda: running(marker) == [child])
    finally:
        runner.kill()
        runner.wait()
        runner.stdout.close()
        os.kill(child, signal.SIGKILL)


def test_a_sandbox_survives_the_thread_that_made_it(run_in):
    made = []
    thread = threading.Thread(target=lambda: made.append(linux.StrictSandbox()))
    thread.start()
    thread.join()
    with made[0] as sandbox:
        assert run_in(sandbox, "echo", "alive").out == "alive\n"


def test_a_dead_worker_is_an_environment_fault_and_is_replaced(strict, run_in):
    sandbox = strict()
    outer = int(children()[0])
    timer = threading.Timer(0.2, os.kill, (outer, signal.SIGKILL))
    timer.start()
    with pytest.raises(EnvironmentFault, match="worker died"):
        run_in(sandbox, "sleep", "60")
    timer.join()
    assert run_in(sandbox, "echo", "again").out == "again\n"


def test_an_interrupted_caller_leaves_no_step_running(strict, run_in, monkeypatch):
    sandbox = strict()
    marker = f"87654.{os.getpid()}"
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run_in(sandbox, "sleep", marker)
    timer.join()
    assert eventually(lambda: running(marker) == [])
    assert run_in(sandbox, "echo", "again").out == "again\n"


def test_a_job_that_cannot_be_staged_is_a_fault_that_names_the_operation(strict, run_in, tmp_path):
    (tmp_path / "store").mkdir()
    sandbox = strict(store=str(tmp_path / "store"))
    with pytest.raises(EnvironmentFault) as raised:
        run_in(sandbox, "true", staged=[Staged("a", source=f"{tmp_path}/store/absent")])
    assert "show_file" in dict(raised.value.facts)["operation"]
    assert "ENOENT" in dict(raised.value.facts)["error"]
    assert run_in(sandbox, "echo", "usable").out == "usable\n"


@pytest.mark.parametrize("failing", range(0, 200, 7))
def test_any_boot_operation_that_fails_makes_strict_unavailable(failing, monkeypatch):
    def broken(*arguments, **more):
        plan = plan_boot(*arguments, **more)
        place = min(failing, len(plan) - 1)
        return [*plan[:place], ("sysctl", "no/such/setting", "1"), *plan[place:]]

    monkeypatch.setattr(means, "plan_boot", broken)
    with pytest.raises(SandboxUnavailable) as raised:
        linux.StrictSandbox()
    assert raised.value.exit_code == 4
    assert "sysctl" in dict(raised.value.facts)["operation"]
    assert "--sandbox process" in raised.value.hint
    assert eventually(lambda: not children())


@pytest.mark.root
def test_without_user_namespaces_strict_is_unavailable_and_the_hint_says_how_to_get_them():
    setting = Path("/proc/sys/user/max_user_namespaces")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from requiem_build.sandbox.linux import StrictSandbox\n"
        "try: StrictSandbox()\n"
        "except Exception as error: print(type(error).__name__, error.hint)\n"
    )
    before = setting.read_text()
    # In a namespace of its own, so that other tests on this machine go on.
    inside = f"echo 0 > {setting} && exec {sys.executable} -c '{script}' {ROOT}"
    said = subprocess.run(["unshare", "-Ur", "sh", "-c", inside], capture_output=True, text=True).stdout
    assert said.startswith("SandboxUnavailable")
    assert "sysctl -w user.max_user_namespaces" in said
    assert setting.read_text() == before


@pytest.mark.root
def test_an_ordinary_user_gets_the_same_view(strict, run_in, request):
    place = tempfile.TemporaryDirectory()  # Where someone else may go, unlike pytest's own directories.
    request.addfinalizer(place.cleanup)
    here = Path(place.name)
    here.chmod(0o755)
    subprocess.run(["cp", "-r", ROOT / "requiem_build", here], check=True)
    subprocess.run(["chmod", "-R", "a+rX", here], check=True)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from requiem_build.sandbox.linux import StrictSandbox\n"
        "from requiem_build.sandbox.base import Job, Staged\n"
        "from requiem_build.core.policy import WORLD_ENVIRONMENT\n"
        "command = ['sh', '-c', 'id; pwd; hostname; echo $$; env | sort; ls -la . src /tmp; cat src/a']\n"
        "job = Job(command, WORLD_ENVIRONMENT, staged=[Staged('src/a', data=b'a')])\n"
        "print(StrictSandbox().run(job).stdout.decode())\n"
    )
    user = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]
    said = subprocess.run([*user, "/usr/bin/python3", "-c", script, here], capture_output=True, text=True, cwd="/")
    assert said.stderr == ""
    command = "id; pwd; hostname; echo $$; env | sort; ls -la . src /tmp; cat src/a"
    ours = run_in(strict(), "sh", "-c", command, staged=[Staged("src/a", data=b"a")])
    assert said.stdout == ours.out + "\n"
