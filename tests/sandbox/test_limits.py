"""Limits hold for all processes of a step together, by every means, and are named when they are hit."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from requiem_build.core import kinds
from requiem_build.core.policy import Limits, line_of
from requiem_build.sandbox import keeper
from requiem_build.sandbox.linux import StrictSandbox
from requiem_build.sandbox.posix import ProcessSandbox

pytestmark = pytest.mark.userns

SAFE = {"timeout_ms": 60_000}
"""So that a limit that does not hold fails the test instead of hanging it."""


@pytest.fixture(params=["reused", "fresh", "process"])
def go_anywhere(request: Any, run_in: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    made: Any = (
        ProcessSandbox(str(tmp_path / "scratch"))
        if request.param == "process"
        else StrictSandbox(reuse=request.param == "reused")
    )
    with made as sandbox:
        yield lambda *command, **fields: run_in(sandbox, *command, **fields)


@pytest.fixture
def run_python(go_anywhere: Callable[..., Any], python: str) -> Callable[..., Any]:
    return lambda script, **limits: go_anywhere(python, "-I", "-S", "-c", script, limits=Limits(**{**SAFE, **limits}))


FORK_BOMB = """
import os, time
while True:
    try:
        os.fork()
    except OSError as error:
        time.sleep(0.3)  # So that the bomb stands still at the limit instead of burning the machine.
        raise
"""


def test_a_fork_bomb_ends_at_the_limit(run_python):
    step = run_python(FORK_BOMB, processes=30)
    assert step.finished.termination == "processes"
    assert run_python("print('still here')").out == "still here\n"


THREADS = """
import threading, time
try:
    for number in range(60):
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
finally:
    time.sleep(0.5)  # So that who looks 20 times a second sees them.
"""


def test_threads_count_as_processes_do(run_python):
    assert run_python(THREADS, processes=30).finished.termination == "processes"


def test_the_control_as_many_processes_as_the_limit_allows(run_python):
    script = "import os, time\nfor i in range(10):\n    if os.fork() == 0: time.sleep(0.2); os._exit(0)\nprint('all')"
    step = run_python(script, processes=20)
    assert (step.out, step.finished.termination) == ("all\n", "exited")


TOGETHER = """
import os, time
count = 1
try:
    while count < 9:
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        count += 1
except OSError:
    pass
print(count, flush=True)
time.sleep(0.2)  # So that who looks 20 times a second sees them.
"""


@pytest.mark.parametrize("clock", ["real", "frozen"])
@pytest.mark.parametrize("most", [1, 4])
def test_as_many_as_were_asked_for_also_beside_a_keeper(run_in, python, clock, most):
    if clock == "frozen" and os.uname().machine not in keeper.MACHINES:
        pytest.skip("nothing can be held on this processor")
    with StrictSandbox(clock=clock) as sandbox:
        step = run_in(sandbox, python, "-I", "-S", "-c", TOGETHER, limits=Limits(processes=most, **SAFE))
    assert (step.out, step.finished.termination) == (f"{most}\n", "exited")


BUSY = "t = time.process_time()\nwhile time.process_time() - t < {}: pass\n"


def test_processor_time_of_short_lived_children_adds_up(run_python):
    script = "import os, time\nwhile True:\n    if os.fork() == 0:\n        t = time.process_time()\n"
    script += "        while time.process_time() - t < 0.1: pass\n        os._exit(0)\n    os.wait()\n"
    step = run_python(script, cpu_time_ms=700)
    assert step.finished.termination == "cpu_time"
    assert step.finished.rusage["user_ms"] + step.finished.rusage["system_ms"] < 3000


def test_processor_time_of_orphans_that_fled_adds_up(run_python):
    script = (
        "import os, time\nfor i in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n"
    )
    script += "            while True: pass\n        os._exit(0)\ntime.sleep(50)\n"
    assert run_python(script, cpu_time_ms=700).finished.termination == "cpu_time"


def test_a_step_that_ends_before_anyone_looks_has_used_its_time_all_the_same(run_python):
    step = run_python("import time\n" + BUSY.format(0.2), cpu_time_ms=100)
    assert step.finished.termination == "cpu_time"


def test_what_hides_itself_counts_too(run_python):
    """Nobody without rights reads in /proc of a process that is not dumpable; the kernel limits each child alone."""
    script = "import ctypes, os, time\nctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\nwhile True:\n    if os.fork() == 0:\n"
    script += "        t = time.process_time()\n        while time.process_time() - t < 0.1: pass\n"
    script += "        os._exit(0)\n    os.wait()\n"
    assert run_python(script, cpu_time_ms=700, timeout_ms=40_000).finished.termination == "cpu_time"


CHILDREN = """
import os, time
{before}
for i in range({count}):
    if os.fork() == 0:
        {inside}
        time.sleep(2)
        os._exit(0)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""


def test_memory_of_many_children_adds_up(run_python):
    script = CHILDREN.format(before="", count=8, inside="held = b'x' * 30_000_000")
    assert run_python(script, memory_bytes=120_000_000).finished.termination == "memory"


def test_the_control_memory_that_children_share_counts_once(run_python):
    script = CHILDREN.format(before="held = b'x' * 30_000_000", count=8, inside="pass")
    assert run_python(script, memory_bytes=120_000_000).finished.termination == "exited"


def test_shared_memory_counts(run_python):
    inside = "m = mmap.mmap(-1, 30_000_000); m.write(b'x' * 30_000_000)"
    script = CHILDREN.format(before="import mmap", count=8, inside=inside)
    assert run_python(script, memory_bytes=120_000_000).finished.termination == "memory"


def test_one_process_is_refused_memory_beyond_the_limit(run_python):
    step = run_python("b'x' * 300_000_000", memory_bytes=120_000_000)
    assert step.finished.termination == "memory" and "MemoryError" in step.err


def test_a_sparse_file_is_as_large_as_it_says(run_python):
    step = run_python("open('f', 'w').truncate(10**12)", file_size_bytes=1_000_000)
    assert step.finished.termination == "file_size"


def test_descriptors_in_flight_are_bounded_too(run_python):
    script = """
import array, socket
a, b = socket.socketpair()
a.setblocking(False)
count = 0
try:
    while True:
        a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0] * 50))])
        count += 50
except OSError as error:
    print(count, error.errno)
"""
    step = run_python(script, open_files=64)
    assert step.finished.exit_code == 0
    count, _ = step.out.split()
    assert int(count) < 40_000


def test_whoever_flees_ignores_term_and_is_stopped_ends_with_the_time(go_anywhere):
    here = os.getpid()  # The same test may run elsewhere on this machine.
    script = f"trap '' TERM; (setsid sh -c 'trap \"\" TERM; (setsid sleep 98765.{here} &) ; kill -STOP $$' &); sleep 98766.{here}"
    step = go_anywhere("sh", "-c", script, limits=Limits(timeout_ms=200))
    assert step.finished.termination == "timeout"
    assert subprocess.run(["pgrep", "-f", f"^sleep 9876[56].{here}$"], capture_output=True).stdout == b""


@pytest.mark.parametrize(
    "command",
    [
        "head -c 3000000 /dev/zero > /tmp/f",
        "head -c 3000000 /dev/zero > /dev/shm/f",
        "head -c 3000000 /dev/zero > $HOME/f",
        "i=0; while :; do i=$((i+1)); : > /tmp/f$i || exit 1; done",
    ],
)
def test_tmp_is_limited_wherever_it_is_filled(shared, run_in, command):
    step = run_in(shared, "sh", "-c", command, limits=Limits(tmp_bytes=1_000_000, **SAFE))
    assert step.finished.termination == "tmp"
    assert run_in(shared, "sh", "-c", "ls /tmp /dev/shm").out.split() == ["/dev/shm:", "/tmp:", "home"]


FILLED = {
    "a file": "head -c 3000000 /dev/zero > $TMPDIR/f; exec sleep 30",
    "of another directory": "mkdir -p $TMPDIR/a/b; head -c 3000000 /dev/zero > $TMPDIR/a/b/f; exec sleep 30",
    "in HOME": "head -c 3000000 /dev/zero > $HOME/f; exec sleep 30",
    "between them": "for d in $TMPDIR $HOME; do head -c 600000 /dev/zero > $d/f; done; exec sleep 30",
    "names": "i=0; while test $i -lt 1500; do i=$((i+1)); mkdir $HOME/f$i; done; exec sleep 30",
    "without a name": "exec 3> $TMPDIR/f; rm $TMPDIR/f; head -c 3000000 /dev/zero >&3; exec sleep 30",
    "before anyone looks": "head -c 3000000 /dev/zero > $TMPDIR/f",
}
CONTROLS = {
    "less": "head -c 900000 /dev/zero > $TMPDIR/f",
    "a hole": "truncate -s 1G $TMPDIR/f",
    "names of one file": "head -c 600000 /dev/zero > $TMPDIR/f; ln $TMPDIR/f $HOME/g",
    "a link to elsewhere": "ln -s /usr $TMPDIR/usr",
    "its workspace": "head -c 3000000 /dev/zero > f",
    "what is taken away again": "for i in 1 2 3 4; do head -c 600000 /dev/zero > $TMPDIR/f; rm $TMPDIR/f; done",
}


@pytest.mark.parametrize("name", [*FILLED, *CONTROLS])
def test_tmp_is_limited_without_a_file_system_of_its_own(name, run_in, tmp_path):
    if name == "without a name" and not os.path.isdir("/proc/self/fd"):
        pytest.skip("nobody tells here what a process holds open")
    with ProcessSandbox(str(tmp_path / "scratch")) as sandbox:
        command = FILLED.get(name) or CONTROLS[name]
        step = run_in(sandbox, "sh", "-c", command, limits=Limits(tmp_bytes=1_000_000, **SAFE))
        assert step.finished.termination == ("tmp" if name in FILLED else "exited"), step.err


def test_what_nobody_can_look_into_is_too_much(run_in, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root looks into everything, and finds what is there")
    with ProcessSandbox(str(tmp_path / "scratch")) as sandbox:
        command = "mkdir $TMPDIR/d; chmod 0 $TMPDIR/d; exec sleep 30"
        step = run_in(sandbox, "sh", "-c", command, limits=Limits(tmp_bytes=1_000_000, **SAFE))
        assert step.finished.termination == "tmp"


def test_a_limit_does_not_outlive_its_step(run_python):
    run_python("pass", open_files=20, processes=30, memory_bytes=200_000_000, cpu_time_ms=5000)
    script = "import resource as r; print(r.getrlimit(r.RLIMIT_AS)[0], r.getrlimit(r.RLIMIT_NOFILE)[0] > 20)"
    assert run_python(script).out == f"{resource.RLIM_INFINITY} True\n"


# Words


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.integers(1, kinds.DURATION_MS_MAX))
def test_a_limit_is_said_as_a_manifest_would(value):
    for key, read in (("timeout", kinds.duration_ms), ("memory", kinds.size_bytes)):
        _, _, said = line_of(key, value).partition(" = ")
        assert (int(said) if said.isdigit() else read(said.strip('"'))) == value
    assert line_of("processes", value) == f"processes = {value}"
