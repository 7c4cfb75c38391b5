"""How did a step end? Wait status, limits and what it said become one word. No processes, no files."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

from ..core.policy import Limits
from .base import Finished

_TELLTALES = (
    # What C libraries, shells and language runtimes print when a limit makes a call fail (in English: LC_ALL is fixed).
    ("memory", (b"cannot allocate memory", b"memoryerror", b"bad_alloc", b"out of memory", b"memory exhausted")),
    ("processes", (b"resource temporarily unavailable", b"cannot fork", b"can't start new thread")),
    ("open_files", (b"too many open files", b": error 24")),
    ("file_size", (b"file too large", b"file size limit exceeded")),
)
_LIMIT_OF = {
    "memory": "memory_bytes",
    "processes": "processes",
    "open_files": "open_files",
    "file_size": "file_size_bytes",
}


def name_ending(reply: Mapping[str, Any], limits: Limits, workspace: int) -> Finished:
    """`reply` is what a worker saw: a wait status (or a refusal to start), output, and how much was used."""
    changed = tuple(reply["changed"])
    if "refused" in reply:
        return Finished(127, "not_found", workspace, reason=reply["refused"], changed=changed)
    code, number = exit_code(reply["status"])
    finished = Finished(
        exit_code=code,
        termination="exited" if number is None else "signaled",
        workspace_fd=workspace,
        signal=number,
        stdout=reply["stdout"],
        stderr=reply["stderr"],
        stdout_truncated=reply["stdout_truncated"],
        stderr_truncated=reply["stderr_truncated"],
        changed=changed,
        leftovers=reply["leftovers"],
        rusage={name: reply[name] for name in ("user_ms", "system_ms", "max_rss_kib")},
        cancelled=reply["cancelled"],
    )
    if reply["timed_out"]:
        finished.termination = "timeout"
    elif reply["hit"]:
        finished.termination = reply["hit"]
    elif code != 0 and not finished.cancelled:
        finished.termination = _limit_hit(finished, limits, reply) or finished.termination
    return finished


def exit_code(status: int) -> tuple[int, int | None]:
    """(the code as a shell would say it, the signal or None) of a wait status."""
    code = os.waitstatus_to_exitcode(status)
    return (code, None) if code >= 0 else (128 - code, -code)


def _limit_hit(finished: Finished, limits: Limits, reply: Mapping[str, Any]) -> str | None:
    """The limit that made a step fail, as far as can be told. A shell passes its child's signal on as 128 + N."""
    by_signal = finished.exit_code - 128
    if limits.cpu_time_ms is not None:
        used_ms = finished.rusage["user_ms"] + finished.rusage["system_ms"]
        if by_signal == signal.SIGXCPU or (by_signal == signal.SIGKILL and used_ms >= limits.cpu_time_ms):
            return "cpu_time"
    if limits.file_size_bytes is not None and by_signal == signal.SIGXFSZ:
        return "file_size"
    said = finished.stderr[-65536:].lower()
    for name, telltales in _TELLTALES:
        if getattr(limits, _LIMIT_OF[name]) is not None and any(telltale in said for telltale in telltales):
            return name
    if reply["tmp_full"]:
        return "tmp"
    return reply["reached"] or None
