"""How a strict step ends: its code, its signal, its limits, its processes, its output, its inputs."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from requiem_build.core.policy import Limits
from requiem_build.sandbox.base import Staged

pytestmark = pytest.mark.userns


def test_a_step_that_succeeds(go):
    step = go("sh", "-c", "echo out; echo err >&2; echo made > file")
    assert (step.finished.exit_code, step.finished.termination, step.finished.signal) == (0, "exited", None)
    assert (step.out, step.err, step.files) == ("out\n", "err\n", {"file": b"made\n"})
    assert set(step.finished.rusage) == {"user_ms", "system_ms", "max_rss_kib"}


def test_a_step_that_fails_keeps_its_code(go):
    assert go("sh", "-c", "exit 42").finished.exit_code == 42


def test_a_signal_is_named(go):
    step = go("sh", "-c", "kill -SEGV $$")
    assert (step.finished.exit_code, step.finished.termination, step.finished.signal) == (139, "signaled", 11)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("nowhere", '"nowhere" was not found in PATH (/usr/local/bin:/usr/bin:/bin)'),
        ("./plain", '"./plain" is not executable'),
        ("./folder", '"./folder" is a directory'),
        ("./nothing", '"./nothing" was not found'),
        ("./text", '"./text" is not a program of this machine and has no #! line'),
        ("./script", '"./script" cannot be started: its interpreter is missing (/no/such/interpreter)'),
        ("", "the command is empty"),
        ("echo\0", None),
    ],
)
def test_a_command_that_cannot_be_started_says_why(command, reason, go):
    staged = [
        Staged("plain", data=b"x"),
        Staged("folder"),
        Staged("text", data=b"just text\n", executable=True),
        Staged("script", data=b"#!/no/such/interpreter\n", executable=True),
    ]
    step = go(command, staged=staged)
    assert (step.finished.exit_code, step.finished.termination) == (127, "not_found")
    if reason is not None:
        assert step.finished.reason == reason


def test_a_command_is_looked_up_in_the_steps_path_and_directory(go):
    tool = [Staged("bin/tool", data=b"#!/bin/sh\necho found\n", executable=True)]
    assert go("tool", staged=tool, env={"PATH": "/workspace/bin:/usr/bin:/bin"}).out == "found\n"
    assert go("./tool", staged=tool, cwd="bin").out == "found\n"


def test_everything_a_step_leaves_running_is_killed_and_counted(go):
    script = "(setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 1; date >> alive; done' &) ; sleep 0.05; exit 0"
    step = go("sh", "-c", script)
    assert step.finished.exit_code == 0
    assert step.finished.leftovers >= 1
    assert go("sh", "-c", "ls /proc | grep -c '^[0-9]'").out.strip() <= "4"


def test_output_of_a_daemon_is_not_waited_for(go):
    begun = time.monotonic()
    assert go("sh", "-c", "sleep 60 & echo started").out == "started\n"
    assert time.monotonic() - begun < 10


def test_the_time_limit_ends_the_whole_tree(go):
    begun = time.monotonic()
    step = go("sh", "-c", "(setsid sleep 61 &); sleep 60", limits=Limits(timeout_ms=150))
    assert step.finished.termination == "timeout"
    assert (step.finished.exit_code, step.finished.signal) == (143, 15)
    assert time.monotonic() - begun < 1.9


def test_a_step_that_ignores_term_is_killed_after_the_grace_even_while_it_writes(go):
    begun = time.monotonic()
    script = "trap '' TERM; yes & yes & yes"  # Together they leave the reader no pause.
    step = go("sh", "-c", script, limits=Limits(timeout_ms=100), max_output_bytes=1000)
    assert (step.finished.termination, step.finished.signal) == ("timeout", 9)
    assert 2 <= time.monotonic() - begun < 6


def test_a_step_may_clean_up_when_its_time_is_over(go):
    script = "trap 'echo bye > note; exit 3' TERM; sleep 60 & wait"
    step = go("sh", "-c", script, limits=Limits(timeout_ms=150))
    assert (step.finished.termination, step.finished.exit_code) == ("timeout", 3)
    assert step.files == {"note": b"bye\n"}


def test_output_is_kept_to_its_limit_and_a_flood_needs_no_memory(strict, run_in):
    sandbox = strict()
    run_in(sandbox, "true")
    before = _worker_peak_kib()
    step = run_in(sandbox, "sh", "-c", "head -c 300M /dev/zero; echo end >&2", max_output_bytes=1000)
    assert step.finished.stdout == b"\0" * 1000
    assert (step.finished.stdout_truncated, step.finished.stderr_truncated) == (True, False)
    assert step.err == "end\n"
    assert _worker_peak_kib() - before < 4096


def _worker_peak_kib() -> int:
    """The most memory that any descendant of this process has ever used."""
    found = [os.getpid()]
    for pid in found:
        found += [int(child) for child in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True).stdout.split()]
    peaks = []
    for pid in found[1:]:
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        peaks += [int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM")]
    return max(peaks)


def test_output_that_just_fits_is_not_marked(go):
    step = go("printf", "12345", max_output_bytes=5)
    assert (step.out, step.finished.stdout_truncated) == ("12345", False)


@pytest.mark.parametrize(
    ("limits", "command", "termination"),
    [
        (Limits(cpu_time_ms=1000), "while :; do :; done", "cpu_time"),
        (Limits(cpu_time_ms=1000), "trap '' XCPU; while :; do :; done", "cpu_time"),
        (Limits(file_size_bytes=1000), "head -c 5000 /dev/zero > big", "file_size"),
        (Limits(open_files=10), "exec 3<. 4<. 5<. 6<. 7<. 8<. 9<.; cat /etc/passwd", "open_files"),
        (Limits(processes=5), "for i in 1 2 3 4 5 6 7; do sleep 5 & done; wait", "processes"),
        (Limits(memory_bytes=50_000_000), "sort -S 400M /dev/zero", "memory"),
        (Limits(tmp_bytes=1_000_000), "head -c 5000000 /dev/zero > /tmp/big", "tmp"),
    ],
)
def test_a_limit_that_is_hit_is_named(limits, command, termination, go, unconfined):
    step = go("sh", "-c", command, limits=limits)
    assert step.finished.exit_code != 0
    assert step.finished.termination == termination


def test_a_limit_that_is_not_hit_changes_nothing(go):
    limits = Limits(timeout_ms=60_000, cpu_time_ms=9000, memory_bytes=2**31, processes=50, open_files=64)
    plain = go("sh", "-c", "echo $$; cat a; env | sort", staged=[Staged("a", data=b"a")])
    limited = go("sh", "-c", "echo $$; cat a; env | sort", staged=[Staged("a", data=b"a")], limits=limits)
    assert (limited.out, limited.finished.termination) == (plain.out, "exited")
    assert go("nowhere", limits=limits).finished.termination == "not_found"
    assert go("sh", "-c", "exit 7", limits=limits).finished.exit_code == 7


def test_a_step_cannot_raise_its_limits(go, python):
    script = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (100, 100))"
    assert "not allowed to raise" in go(python, "-I", "-S", "-c", script, limits=Limits(open_files=50)).err


def test_ignored_signals_of_the_caller_do_not_reach_the_step(go):
    status = go("cat", "/proc/self/status").out
    seen = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
    c_library = 1 << 31 | 1 << 32  # posix_spawn of glibc ignores the two signals it keeps for itself.
    assert int(seen["SigIgn"], 16) & ~c_library == 0
    assert int(seen["SigBlk"], 16) == 0


@pytest.mark.parametrize(
    "tampering",
    [
        "chmod +w in/a; echo more >> in/a",
        "rm -f in/a",
        "cp in/a in/b; mv -f in/b in/a",
        "touch in/a",
        "rm link; ln -s in/a link",
        "mv in elsewhere; mkdir in; cp -p elsewhere/a in/a",
        "mv in elsewhere; ln -s elsewhere in",
    ],
)
def test_a_changed_input_is_found(tampering, go):
    staged = [Staged("in/a", data=b"original"), Staged("link", symlink="in/a"), Staged("other", data=b"x")]
    assert go("sh", "-c", "cat in/a link other > out; chmod 755 .", staged=staged).finished.changed == ()
    changed = go("sh", "-c", tampering, staged=staged).finished.changed
    assert changed == (("link",) if "link;" in tampering else ("in/a",))


def test_a_plain_write_to_an_input_fails(go):
    step = go("sh", "-c", "echo x > a", staged=[Staged("a", data=b"original")])
    assert "Permission denied" in step.err
    assert step.finished.changed == ()


def test_a_large_source_that_is_moved_with_its_directory_is_found(strict, run_in, make_object, tmp_path):
    large = make_object("store/large", b"L" * 200_000)
    step = run_in(
        strict(store=str(tmp_path / "store")), "sh", "-c", "mv in out", staged=[Staged("in/large", source=large)]
    )
    assert step.finished.changed == ("in/large",)


def test_a_hundred_megabytes_of_inputs_are_carried(go):
    staged = [Staged(f"in/{number}", data=bytes([number]) * 10_000_000) for number in range(11)]
    step = go("sh", "-c", "cat in/* | wc -c", staged=staged)
    assert step.out == "110000000\n"


def test_cancel_ends_a_running_step(shared, run_in):
    begun = time.monotonic()
    timer = threading.Timer(0.2, shared.cancel, kwargs={"kill": False})
    timer.start()
    step = run_in(shared, "sh", "-c", "sleep 60 & sleep 61; echo survived")
    assert step.finished.cancelled
    assert step.finished.signal == 15
    assert time.monotonic() - begun < 2
    timer.join()


def test_cancel_with_kill_does_not_wait(shared, run_in):
    begun = time.monotonic()
    timer = threading.Timer(0.2, shared.cancel, kwargs={"kill": True})
    timer.start()
    step = run_in(shared, "sh", "-c", "trap '' TERM; sleep 60; sleep 61")
    assert (step.finished.cancelled, step.finished.signal) == (True, 9)
    assert time.monotonic() - begun < 2
    timer.join()


def test_cancel_of_an_idle_sandbox_has_no_effect(shared, run_in):
    shared.cancel(kill=True)
    step = run_in(shared, "echo", "still here")
    assert (step.out, step.finished.cancelled) == ("still here\n", False)
