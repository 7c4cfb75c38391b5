"""A frozen clock stands still for every program, and what is seeded is the same each time; the host must really hold it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from requiem_build.core.errors import EnvironmentFault, SandboxUnavailable
from requiem_build.core.policy import INPUT_MTIME_S, Limits
from requiem_build.sandbox import keeper
from requiem_build.sandbox.base import Staged
from requiem_build.sandbox.linux import StrictSandbox

pytestmark = pytest.mark.userns
if os.uname().machine not in keeper.MACHINES:
    pytest.skip("nothing can be held on this processor, and it is refused", allow_module_level=True)

MOMENT = 1_000_000_000


@pytest.fixture(scope="module")
def frozen():
    with StrictSandbox(clock="frozen") as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def held():
    with StrictSandbox(clock="frozen", random="seeded") as sandbox:
        yield sandbox


C_DATE = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int main(void) {
    struct timespec a, b, c; struct timeval d; time_t e;
    clock_gettime(CLOCK_REALTIME, &a);
    syscall(SYS_clock_gettime, CLOCK_REALTIME_COARSE, &b);
    timespec_get(&c, TIME_UTC);
    gettimeofday(&d, 0);
    syscall(SYS_time, &e);
    printf("%ld %ld %ld %ld %ld %ld %lu\n", a.tv_sec, b.tv_sec, c.tv_sec, d.tv_sec, time(0), e, getauxval(AT_SYSINFO_EHDR));
    return 0;
}
"""
GO_DATE = 'package main\nimport ("fmt"; "time")\nfunc main() { fmt.Println(time.Now().Unix()) }\n'
PROGRAMS = {
    # What asks for the date, each in its own way.
    "a shell": ("date +%s; printf '%(%s)T\\n' -1", 2),
    "Python": (
        "python3 -c 'import time, datetime; print(int(time.time())); print(int(datetime.datetime.now().timestamp()))'",
        2,
    ),
    "Perl": ("perl -e 'print time, \"\\n\"'", 1),
    "threads and children": (
        (
            "python3 -c '\nimport os, threading, time\nsay = lambda: print(int(time.time()), flush=True)\n"
            "threads = [threading.Thread(target=say) for _ in range(3)]\nfor t in threads: t.start(); t.join()\n"
            'if os.fork() == 0:\n    say(); os.execvp("date", ["date", "+%s"])\nos.wait()\''
        ),
        5,
    ),
    "a date in the kernel's own files": (
        "grep -o 'btime .*' /proc/stat | cut -d' ' -f2 | sed s/315619200/1000000000/",
        1,
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_clock_stands_still_for(name, frozen, run_in, unconfined):
    script, lines = PROGRAMS[name]
    step = run_in(frozen, "bash", "-c", script, env={"SOURCE_DATE_EPOCH": str(MOMENT)})
    assert step.out.split() == [str(MOMENT)] * lines, step.err
    assert str(MOMENT) not in unconfined("bash", "-c", script)


@pytest.mark.gcc
@pytest.mark.parametrize("flags", [[], ["-static"], ["-static", "-O2"]])
def test_the_clock_stands_still_for_compiled_programs(flags, frozen, run_in, tmp_path):
    """Static ones too: there is no library to stand in for, and without vDSO all ask the kernel."""
    (tmp_path / "date.c").write_text(C_DATE)
    subprocess.run(["gcc", *flags, "-o", tmp_path / "date", tmp_path / "date.c"], check=True)
    control = subprocess.run([tmp_path / "date"], capture_output=True, text=True).stdout.split()
    assert all(abs(int(word) - time.time()) < 100 for word in control[:6]) and int(control[6]) != 0
    staged = [Staged("date.exe", data=(tmp_path / "date").read_bytes(), executable=True)]
    step = run_in(frozen, "./date.exe", staged=staged, env={"SOURCE_DATE_EPOCH": str(MOMENT)})
    assert step.out.split() == [str(MOMENT)] * 6 + ["0"], step.err


def test_the_clock_stands_still_for_go(frozen, run_in, tmp_path):
    if shutil.which("go") is None:
        pytest.skip("NOT TESTED: needs go")
    (tmp_path / "date.go").write_text(GO_DATE)
    env = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off"}
    subprocess.run(["go", "build", "-o", tmp_path / "date", tmp_path / "date.go"], check=True, env=env)
    staged = [Staged("date.exe", data=(tmp_path / "date").read_bytes(), executable=True)]
    assert run_in(frozen, "./date.exe", staged=staged).out == f"{INPUT_MTIME_S}\n"


def test_without_a_date_of_its_own_it_is_that_of_the_inputs(frozen, run_in):
    assert run_in(frozen, "date", "+%s").out == f"{INPUT_MTIME_S}\n"
    assert run_in(frozen, "date", "+%s", env={"SOURCE_DATE_EPOCH": "yesterday"}).out == f"{INPUT_MTIME_S}\n"


def test_waiting_goes_on(frozen, run_in):
    script = "import time; a = time.monotonic(); time.sleep(0.2); print(0.2 <= time.monotonic() - a < 30)"
    assert run_in(frozen, "python3", "-c", script).out == "True\n"


def test_a_bad_pointer_is_the_programs_own_error(frozen, run_in):
    script = "import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.syscall(228, 0, 8), ctypes.get_errno())"
    assert run_in(frozen, "python3", "-c", script).out == "-1 14\n"


def test_a_step_ends_as_it_would_without(frozen, run_in):
    for command, code, termination, number in (
        (("sh", "-c", "exit 42"), 42, "exited", None),
        (("sh", "-c", "kill -SEGV $$"), 139, "signaled", 11),
        (("sh", "-c", "kill -KILL $$"), 137, "signaled", 9),
        (("nowhere",), 127, "not_found", None),
        (("sh", "-c", "trap 'exit 3' TERM; kill $$; sleep 9"), 3, "exited", None),
    ):
        finished = run_in(frozen, *command).finished
        assert (finished.exit_code, finished.termination, finished.signal) == (code, termination, number)
    step = run_in(frozen, "sh", "-c", "(setsid sleep 1000 &); echo $$ done")
    assert (step.out, step.finished.leftovers >= 1) == ("10 done\n", True)
    assert run_in(frozen, "sleep", "60", limits=Limits(timeout_ms=200)).finished.termination == "timeout"
    assert (
        run_in(
            frozen, "sh", "-c", "head -c 5000 /dev/zero > x", limits=Limits(file_size_bytes=100)
        ).finished.termination
        == "file_size"
    )


def test_a_stopped_process_stops_and_goes_on(frozen, run_in):
    script = "sleep 0.3 & p=$!; kill -STOP $p; sleep 0.1; grep -c 'State:.[Tt] ' /proc/$p/status; kill -CONT $p; wait $p; echo $?"
    assert run_in(frozen, "bash", "-c", script).out == "1\n0\n"


EXECUTING = """
import os, signal
for _ in range(400):
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            os.execv("/bin/true", ["true"])
        children.append(child)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
print("all")
"""


def test_a_child_that_is_killed_as_it_executes_takes_nobody_with_it(frozen, run_in, python):
    step = run_in(frozen, python, "-I", "-S", "-c", EXECUTING)
    assert (step.out, step.finished.termination) == ("all\n", "exited")


@pytest.mark.parametrize("place", ["_registers", "_words", "_write"])
def test_a_process_that_is_gone_when_it_is_looked_at_is_let_go(place, monkeypatch):
    """At each moment at which it could have been killed; and one that lives is never run on without being told."""
    seen = []

    def registers(_: int) -> list[int] | None:
        seen.append(place)
        return None if place == "_registers" or len(seen) > 1 else [0] * 27

    def words(*_: int):
        if place == "_words":
            raise keeper._OutOfReach
        yield from (0, 0, 0, keeper._AT_VDSO, 1)

    monkeypatch.setattr(keeper, "_registers", registers)
    monkeypatch.setattr(keeper, "_words", words)
    monkeypatch.setattr(keeper, "_write", lambda *_: False)
    keeper.Keeper(0, True)._prepare(1)
    if place != "_registers":
        monkeypatch.setattr(keeper, "_registers", lambda _: [0] * 27)
        with pytest.raises(keeper._OutOfReach):
            keeper.Keeper(0, True)._prepare(1)


ASKING = """
import resource, time
for _ in range(20_000):
    time.time()
used = resource.getrusage(resource.RUSAGE_SELF)
print(round(1000 * (used.ru_utime + used.ru_stime)), used.ru_maxrss)
"""


def test_what_the_keeper_uses_is_not_the_steps(frozen, run_in, python):
    """Answering costs the keeper several times the processor time that asking costs the step."""
    step = run_in(frozen, python, "-I", "-S", "-c", ASKING)
    used_ms, resident_kib = map(int, step.out.split())
    counted = step.finished.rusage
    # A few milliseconds more are those of the program's end.
    assert used_ms - 2 <= counted["user_ms"] + counted["system_ms"] <= 1.5 * used_ms + 100
    assert resident_kib <= counted["max_rss_kib"] <= 1.2 * resident_kib
    limited = run_in(frozen, python, "-I", "-S", "-c", ASKING, limits=Limits(cpu_time_ms=3 * used_ms + 100))
    assert limited.finished.termination == "exited"


def test_what_a_killed_step_used_is_counted_without_its_keeper(frozen, run_in):
    step = run_in(frozen, "sh", "-c", "while :; do :; done", limits=Limits(cpu_time_ms=300))
    assert step.finished.termination == "cpu_time"
    assert 290 <= step.finished.rusage["user_ms"] + step.finished.rusage["system_ms"] < 1500


def test_walls_stand_as_without(frozen, run_in, python):
    status = dict(line.split(":", 1) for line in run_in(frozen, "cat", "/proc/self/status").out.splitlines())
    assert [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")] == [0, 0, 0]
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    script = (
        "import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.syscall(101, 16, 5, 0, 0), ctypes.get_errno())"
    )
    assert run_in(frozen, python, "-c", script).out == "-1 1\n"
    assert "No such file" in run_in(frozen, "ls", f"/proc/{keeper.PID}").err
    # Whoever kills the keeper kills himself with it.
    assert run_in(frozen, "sh", "-c", f"kill -9 {keeper.PID}; sleep 5; date").finished.exit_code != 0


RANDOM = (
    "head -c 8 /dev/urandom | od -An -tx1; python3 -c 'import os, random, uuid; print(os.urandom(8).hex(), random.random(), uuid.uuid4())'; "
    "bash -c 'echo $RANDOM $SRANDOM; getconf PAGESIZE >/dev/null'; cat /proc/sys/kernel/random/uuid; mktemp -u; env -u PYTHONHASHSEED python3 -c 'print(hash(\"x\"))'"
)


def test_what_is_random_is_the_same_each_time(held, run_in, unconfined):
    first, second = (run_in(held, "bash", "-c", RANDOM) for _ in range(2))
    assert first.out == second.out and first.err == ""
    assert len(first.out.splitlines()) == 6
    with StrictSandbox(clock="frozen", random="seeded") as other:
        assert run_in(other, "bash", "-c", RANDOM).out == first.out
    assert unconfined("bash", "-c", RANDOM) != unconfined("bash", "-c", RANDOM)


@pytest.mark.gcc
def test_even_what_a_program_is_given_at_its_start_is_the_same(held, run_in, tmp_path):
    (tmp_path / "a.c").write_text(
        "#include <stdio.h>\n#include <sys/auxv.h>\nint main(void) { unsigned char *r = (void *)getauxval(AT_RANDOM);"
        ' for (int i = 0; i < 16; i++) printf("%02x", r[i]); return 0; }\n'
    )
    subprocess.run(["gcc", "-static", "-o", tmp_path / "a", tmp_path / "a.c"], check=True)
    seen = {subprocess.run([tmp_path / "a"], capture_output=True).stdout for _ in range(2)}
    assert len(seen) == 2
    staged = [Staged("a", data=(tmp_path / "a").read_bytes(), executable=True)]
    assert {run_in(held, "./a", staged=staged).out for _ in range(2)} == {bytes(range(1, 17)).hex()}


# From the command line


def test_a_build_with_a_frozen_clock_is_its_own_question(project):
    step = """
        [steps.s]
        command = "date +%s > out; head -c 4 /dev/urandom | od -An -tx1 >> out"
        outputs = ["out"]
        """
    project.manifest(step)
    real = project.build().report["steps"][0]["request_digest"]
    project.manifest(step + 'clock = "frozen"\nrandom = "seeded"\n')
    ran = project.build("--cache", "off").report["steps"][0]
    first = project.read("out")
    assert first.startswith(f"{INPUT_MTIME_S}\n")
    assert ran["request_digest"] != real
    assert project.build("--cache", "off").report["steps"][0]["result_digest"] == ran["result_digest"]


@pytest.mark.parametrize("key", ['clock = "frozen"', 'random = "seeded"'])
@pytest.mark.parametrize("level", ["process", "none"])
def test_below_strict_it_is_refused(project, key, level):
    project.manifest(f'[steps.s]\ncommand = "date > out"\noutputs = ["out"]\n{key}\n')
    said = project.refuse("build", "--sandbox", level, expect=4).err
    assert key in said and "strict" in said
    assert not project.exists("out")


def test_where_nobody_may_trace_it_is_a_fault_and_no_approximation(run_in, monkeypatch, tmp_path):
    """A filter of the host that refuses ptrace, as some containers have it."""
    script = tmp_path / "without.py"
    script.write_text(NO_PTRACE)
    ran = subprocess.run(
        ["/usr/bin/python3", script, Path(__file__).resolve().parents[2]], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "cannot be traced, or be limited: Operation not permitted" in ran.stdout


NO_PTRACE = """
import ctypes, struct, sys
sys.path.insert(0, sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
program = struct.pack("=HBBI", 0x20, 0, 0, 0) + struct.pack("=HBBI", 0x15, 0, 1, 101)
program += struct.pack("=HBBI", 6, 0, 0, 0x50001) + struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)
kept = ctypes.create_string_buffer(program, len(program))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", 4, ctypes.addressof(kept)))), 0, 0) == 0
from requiem_build.core.errors import EnvironmentFault
from requiem_build.core.policy import WORLD_ENVIRONMENT
from requiem_build.sandbox.base import Job
from requiem_build.sandbox.linux import StrictSandbox
with StrictSandbox(clock="frozen") as sandbox:
    try:
        sandbox.run(Job(["true"], WORLD_ENVIRONMENT))
    except EnvironmentFault as fault:
        print(fault.what, fault.facts)
"""


def test_on_another_processor_it_is_refused(monkeypatch):
    monkeypatch.setattr(keeper, "MACHINES", ())
    with pytest.raises(SandboxUnavailable, match="cannot be held on this processor") as refused:
        StrictSandbox(clock="frozen")
    assert isinstance(refused.value, EnvironmentFault)
