"""What may run at once beside -j: make's job slots, load, memory. And the time that is left."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from project import REQUIEM, Project

from requiem_build.engine import admission
from requiem_build.engine.admission import Admission, available_memory
from requiem_build.engine.estimate import Estimate
from requiem_build.engine.jobserver import Unavailable, find_jobserver

STEPS = 6


def steps(project: Project) -> Path:
    """Steps that note how many of them run at once. They wait for each other for a moment, so that they would meet."""
    there = project.base / "meet"
    there.mkdir()
    project.manifest(f"""
        [steps.meet]
        foreach.n = [{", ".join(str(n) for n in range(STEPS))}]
        command = '''
        touch {there}/on{{{{ n }}}}
        for i in $(seq 60); do ls {there} | grep -c ^on >> {there}/seen{{{{ n }}}}; sleep 0.005; done
        rm {there}/on{{{{ n }}}}
        '''
        sandbox = "process"
        cache = false
    """)
    return there


def most(there: Path) -> int:
    return max(int(line) for path in there.glob("seen*") for line in path.read_text().split())


class Server:
    """A jobserver of ours: a fifo with so many tokens."""

    def __init__(self, path: Path, tokens: bytes) -> None:
        os.mkfifo(path)
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        os.write(self.descriptor, tokens)

    @property
    def flags(self) -> str:
        return f"k -j3 --jobserver-auth=fifo:{self.path} -- X=--jobserver-auth=1,2"

    def left(self) -> bytes:
        try:
            return os.read(self.descriptor, 100)
        except BlockingIOError:
            return b""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "fifo", b"ab")
    yield made
    os.close(made.descriptor)


def test_no_more_steps_run_than_make_has_slots_and_all_are_given_back(project: Project, server: Server) -> None:
    there = steps(project)
    ran = project.run("build", "-q", env={"MAKEFLAGS": server.flags, "REQUIEM_JOBS": "6"})
    assert ran.code == 0, ran.err
    assert 1 < most(there) <= 3
    assert sorted(server.left()) == sorted(b"ab")


def test_without_a_token_one_step_runs_at_a_time(project: Project, server: Server) -> None:
    there = steps(project)
    assert len(server.left()) == 2
    assert project.run("build", env={"MAKEFLAGS": server.flags, "REQUIEM_JOBS": "6"}).code == 0
    assert most(there) == 1 and server.left() == b""


def test_an_explicit_j_is_obeyed_instead(project: Project, server: Server) -> None:
    there = steps(project)
    assert project.run("build", "-j5", env={"MAKEFLAGS": server.flags}).code == 0
    assert most(there) > 3 and sorted(server.left()) == sorted(b"ab")


def test_tokens_are_given_back_after_a_failure_and_an_interrupt(project: Project, server: Server) -> None:
    project.manifest("""
        [steps.bad]
        foreach.n = [1, 2, 3, 4]
        command = "sleep 0.1; exit {{ n }}"
    """)
    environment = {"MAKEFLAGS": server.flags, "REQUIEM_JOBS": "6"}
    project.build("-k", env=environment, expect=1)
    assert server_tokens(server) == 2
    project.manifest("""
        [steps.long]
        foreach.n = [1, 2, 3, 4]
        command = "sleep 60 # {{ n }}"
    """)
    process = project.start("build", env=environment)
    while server_tokens(server):
        assert process.poll() is None
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert sorted(server.left()) == sorted(b"ab")


def server_tokens(server: Server) -> int:
    import fcntl
    import struct
    import termios

    return int(struct.unpack("i", fcntl.ioctl(server.descriptor, termios.FIONREAD, b"\0" * 4))[0])


def test_the_jobserver_is_in_no_digest_and_no_step_sees_it(project: Project, server: Server) -> None:
    project.manifest(
        '[steps.env]\ncommand = "env | sort > o; ls -l /proc/self/fd | grep -c fifo > p || true"\noutputs = ["o", "p"]\n'
    )
    alone = project.build().step("env")
    inside = project.build("--cache", "wo", env={"MAKEFLAGS": server.flags, "MAKELEVEL": "1"}).step("env")
    assert (alone["request_digest"], alone["result_digest"]) == (inside["request_digest"], inside["result_digest"])
    assert "MAKE" not in project.read("o")


@pytest.mark.parametrize("jobs", [2, 4])
def test_under_real_make_the_steps_and_makes_own_jobs_share_its_slots(project: Project, jobs: int) -> None:
    there = steps(project)
    recipe = f"\t+{' '.join(REQUIEM)} build -q\n"
    own = f"\ttouch {there}/on$@; sleep 0.5; rm {there}/on$@\n"
    project.write("Makefile", f"all: a b c ours\nours:\n{recipe}a b c:\n{own}".replace("    ", ""))
    done = subprocess.run(
        ["make", f"-j{jobs}"], cwd=project.root, env=project.environment({"REQUIEM_JOBS": "6"}), capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"warning" not in done.stderr
    assert most(there) <= jobs


def test_a_recipe_without_plus_is_told_so_and_runs_one_at_a_time(project: Project) -> None:
    there = steps(project)
    project.write("Makefile", f"all:\n\t{' '.join(REQUIEM)} build\n")
    done = subprocess.run(
        ["make", "-j4"], cwd=project.root, env=project.environment({"REQUIEM_JOBS": "6"}), capture_output=True
    )
    assert done.returncode == 0
    assert b"begin the recipe's line with +" in done.stderr
    assert most(there) == 1


@pytest.mark.parametrize("flags", ["", "k", "-j8", "-j --", "-- --jobserver-auth=3,4", "'unbalanced"])
def test_flags_without_a_jobserver(flags: str) -> None:
    assert find_jobserver({"MAKEFLAGS": flags}) is None


@pytest.mark.parametrize("auth", ["fifo:/nowhere", "fifo:/etc/passwd", "-2,-2", "900,901", "what", "1", "0,0"])
def test_a_jobserver_that_is_not_there_is_said_to_be_unavailable(auth: str) -> None:
    with pytest.raises(Unavailable):
        find_jobserver({"MAKEFLAGS": f" -j8 --jobserver-auth={auth}"})


def test_tokens_are_given_back_as_they_were(tmp_path: Path) -> None:
    made = Server(tmp_path / "f", b"xyz")
    client = find_jobserver({"MAKEFLAGS": made.flags})
    assert client is not None
    taken = [client.take(0) for _ in range(4)]
    assert taken == [b"x", b"y", b"z", None]
    for token in taken[:3]:
        assert token is not None
        client.give_back(token)
    client.close()
    assert made.left() == b"xyz"
    os.close(made.descriptor)


# Load and memory


class Gate:
    """Threads that want in; `inside` counts those that are."""

    def __init__(self, gate: Admission, wanting: int) -> None:
        self.inside = self.most = self.done = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(gate,)) for _ in range(wanting)]
        for thread in self._threads:
            thread.start()

    def _run(self, gate: Admission) -> None:
        for _ in range(3):
            with gate():
                with self._lock:
                    self.inside += 1
                    self.most = max(self.most, self.inside)
                threading.Event().wait(0.01)
                with self._lock:
                    self.inside -= 1
                    self.done += 1

    def end(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


def test_one_step_always_runs_however_loaded_the_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "LOOK_EVERY_S", 0.001)
    for gate in (Admission(max_load=1e-9), Admission(min_memory=1 << 60)):
        met = Gate(gate, 4)
        met.end()
        assert met.most == 1 and met.done == 12
    met = Gate(Admission(max_load=1e6, min_memory=1), 4)
    met.end()
    assert met.most > 1


def test_who_waits_is_let_in_when_the_build_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "LOOK_EVERY_S", 0.001)
    cancelled: list[bool] = []
    gate = Admission(max_load=1e-9, cancelled=lambda: bool(cancelled))
    with gate():
        met = Gate(gate, 2)
        cancelled.append(True)
        met.end()
    assert met.done == 6


def test_available_memory_is_a_sensible_number() -> None:
    available = available_memory()
    assert available is not None and 1 << 20 < available < 1 << 50


def test_load_and_memory_can_be_set(project: Project) -> None:
    there = steps(project)
    config = project.home / "config/requiem/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[build]\njobs = 6\nmin_memory = "900000GiB"\n')
    assert project.run("build").code == 0
    assert most(there) == 1
    for wrong in ('min_memory = "much"', "max_load = -1", 'max_load = "x"'):
        config.write_text(f"[build]\n{wrong}\n")
        assert wrong.split()[0] in project.refuse("build").err
    config.write_text("[build]\nmax_load = 100\n")
    assert project.run("build", "-l", "50").code == 0
    project.refuse("build", "-l", "0")
    project.refuse("build", "-l", "x")


# Time left


def test_the_time_left_is_that_of_past_durations() -> None:
    estimate = Estimate(["a", "b", "new"], {"a": 1000, "b": 3000}, 2)
    assert estimate.left_ms(0) == (1000 + 3000 + 2000) / 2
    estimate.started("a", 0)
    estimate.started("b", 0)
    assert estimate.left_ms(500) == (6000 - 1000) / 2
    estimate.finished("a")
    estimate.finished("new")
    assert estimate.left_ms(1000) == 2000  # The one that runs, whatever could run beside it.
    assert estimate.left_ms(9000) == 0  # Longer than before.
    estimate.finished("b")
    assert estimate.left_ms(9000) == 0
    assert Estimate(["a"], {}, 2).left_ms(0) is None


@given(st.dictionaries(st.text("abc", min_size=1), st.integers(0, 10_000)), st.integers(1, 8))
def test_a_finished_plan_has_no_time_left(durations: dict[str, int], jobs: int) -> None:
    estimate = Estimate(durations, durations, jobs)
    for name in durations:
        left = estimate.left_ms(0)
        assert left is None or left >= 0
        estimate.started(name, 0)
        estimate.finished(name)
    assert not estimate.left_ms(0)


@pytest.mark.userns
def test_the_progress_line_tells_the_time_left(project: Project) -> None:
    """On a terminal, by what the steps took before."""
    project.manifest("""
        [steps.slow]
        foreach.n = [1, 2, 3]
        command = "sleep 0.7 # {{ n }}"
        cache = false
    """)
    project.build("-j1")
    import pty

    primary, secondary = pty.openpty()
    env = project.environment({"TERM": "xterm", "COLUMNS": "120"})
    process = subprocess.Popen(
        [*REQUIEM, "build", "-j1"], cwd=project.root, env=env, stderr=secondary, stdout=secondary
    )
    os.close(secondary)
    shown = b""
    while True:
        try:
            piece = os.read(primary, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(primary)
    assert process.wait(60) == 0
    assert b"about 2.0 s left" in shown, shown
