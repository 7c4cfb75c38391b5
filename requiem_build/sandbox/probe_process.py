"""What the level `process` really gives where there is no `strict`: found out by running a step, as `probe.py` does."""

from __future__ import annotations

import os
import sys
import tempfile

from ..core.errors import EnvironmentFault
from ..core.policy import WORLD_ENVIRONMENT
from .base import Finished, Job, Sandbox, Staged
from .promises import NOT_ON_POSIX, NOT_ON_WINDOWS, system_name

_ATTEMPTS = r"""
import os, subprocess, sys
print(sorted(os.listdir(".")) == ["input"])
print(not [name for name in os.environ if name.startswith("REQUIEM_PROBE")])
quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
print(subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"], **quiet).pid)
"""

Found = tuple[str, bool, str]
"""What, whether it is in force, and in which way."""


def probe_process() -> list[Found]:
    """What was tried, then what is not promised. Takes about a second."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tried = _try(os.path.join(folder, "scratch"))
        except EnvironmentFault as fault:
            tried = [("process", False, "; ".join((fault.what, *(text for _, text in fault.facts))))]
    missing = NOT_ON_WINDOWS if sys.platform == "win32" else NOT_ON_POSIX
    return [*tried, *(("not promised", False, f"{what} (on {system_name(sys.platform)})") for what in missing)]


def _sandbox(scratch: str) -> Sandbox:
    if sys.platform == "win32":
        from .windows import WindowsSandbox

        return WindowsSandbox(scratch)
    from .posix import ProcessSandbox

    return ProcessSandbox(scratch)


def _try(scratch: str) -> list[Found]:
    os.environ["REQUIEM_PROBE_SECRET"] = "undeclared"
    sandbox = _sandbox(scratch)
    try:
        command = [sys.executable, "-I", "-S", "-c", _ATTEMPTS]
        finished = sandbox.run(Job(command, WORLD_ENVIRONMENT, staged=[Staged("input", data=b"")]))
        finished.close()
    finally:
        sandbox.close()
        del os.environ["REQUIEM_PROBE_SECRET"]
    return _judge(finished)


def _judge(finished: Finished) -> list[Found]:
    said = finished.stdout.decode(errors="replace").split()
    if finished.exit_code != 0 or len(said) != 3:
        why = finished.reason or finished.stderr.decode(errors="replace").strip()[-300:]
        raise EnvironmentFault("the probe failed", facts=[("said", why)])
    return [
        ("process", True, "a step runs in a directory of its own"),
        ("staged directory", said[0] == "True", "the workspace holds its inputs and nothing else"),
        ("fixed environment", said[1] == "True", "variables of the host are not passed"),
        ("whole tree ends", not _lives(int(said[2])), "what a step leaves running is ended with it"),
    ]


def _lives(pid: int) -> bool:
    if sys.platform == "win32":
        from .win_jobs import lives

        return lives(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
