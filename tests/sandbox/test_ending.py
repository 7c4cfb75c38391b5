"""A wait status, limits and a few words become one termination."""

from __future__ import annotations

import pytest

from requiem_build.core.policy import Limits
from requiem_build.core.result import TERMINATIONS
from requiem_build.sandbox.ending import name_ending

REPLY = {
    "status": 0,
    "stdout": b"",
    "stderr": b"",
    "stdout_truncated": False,
    "stderr_truncated": False,
    "changed": [],
    "leftovers": 0,
    "timed_out": False,
    "cancelled": False,
    "tmp_full": False,
    "hit": "",
    "reached": "",
    "user_ms": 0,
    "system_ms": 0,
    "max_rss_kib": 0,
}


@pytest.mark.parametrize(
    ("seen", "limits", "code", "termination"),
    [
        ({}, Limits(), 0, "exited"),
        ({"status": 3 << 8}, Limits(), 3, "exited"),
        ({"status": 11}, Limits(), 139, "signaled"),
        ({"status": 11 | 0x80}, Limits(), 139, "signaled"),
        ({"status": 15, "timed_out": True}, Limits(timeout_ms=1), 143, "timeout"),
        ({"status": 0, "timed_out": True}, Limits(timeout_ms=1), 0, "timeout"),
        ({"status": 24}, Limits(cpu_time_ms=1), 152, "cpu_time"),
        ({"status": 24}, Limits(), 152, "signaled"),
        ({"status": 152 << 8}, Limits(cpu_time_ms=1), 152, "cpu_time"),
        ({"status": 9, "user_ms": 2000}, Limits(cpu_time_ms=1500), 137, "cpu_time"),
        ({"status": 9, "user_ms": 20}, Limits(cpu_time_ms=1500), 137, "signaled"),
        ({"status": 25}, Limits(file_size_bytes=1), 153, "file_size"),
        ({"status": 1 << 8, "stderr": b"x: File too large"}, Limits(file_size_bytes=1), 1, "file_size"),
        ({"status": 1 << 8, "stderr": b"MemoryError"}, Limits(memory_bytes=1), 1, "memory"),
        ({"status": 1 << 8, "stderr": b"MemoryError"}, Limits(), 1, "exited"),
        ({"status": 0, "stderr": b"MemoryError"}, Limits(memory_bytes=1), 0, "exited"),
        ({"status": 1 << 8, "stderr": b"Too many open files"}, Limits(open_files=1), 1, "open_files"),
        ({"status": 2 << 8, "stderr": b"sh: 1: Cannot fork"}, Limits(processes=1), 2, "processes"),
        ({"status": 1 << 8, "tmp_full": True}, Limits(), 1, "tmp"),
        ({"status": 9, "hit": "memory"}, Limits(memory_bytes=1), 137, "memory"),
        ({"status": 0, "hit": "cpu_time"}, Limits(cpu_time_ms=1), 0, "cpu_time"),
        ({"status": 9, "hit": "memory", "timed_out": True}, Limits(memory_bytes=1), 137, "timeout"),
        ({"status": 1 << 8, "reached": "processes"}, Limits(processes=1), 1, "processes"),
        ({"status": 0, "reached": "processes"}, Limits(processes=1), 0, "exited"),
        ({"status": 9, "cancelled": True, "tmp_full": True}, Limits(), 137, "signaled"),
    ],
)
def test_an_ending_has_one_name(seen, limits, code, termination):
    finished = name_ending({**REPLY, **seen}, limits, -1)
    assert (finished.exit_code, finished.termination) == (code, termination)
    assert finished.termination in TERMINATIONS


def test_a_refusal_to_start_has_code_127_and_a_reason():
    finished = name_ending({"refused": "no such thing", "changed": []}, Limits(), -1)
    assert (finished.exit_code, finished.termination, finished.reason) == (127, "not_found", "no such thing")
