"""Does a held clock, or randomness, stand still here for every program? Tried, as `probe.py` tries the walls."""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import Any

from ..core.errors import EnvironmentFault, SandboxUnavailable
from ..core.policy import INPUT_MTIME_S, WORLD_ENVIRONMENT
from .base import Job, Mount, Staged
from .linux import StrictSandbox

_ASK = r"""
import ctypes, json, os, struct, subprocess, time
libc = ctypes.CDLL(None)
libc.getauxval.restype = ctypes.c_ulong
raw = ctypes.create_string_buffer(16)
libc.syscall(228, 0, raw)
with open("/dev/urandom", "rb") as device:
    drawn = device.read(8)
said = subprocess.run(["./static"], stdout=subprocess.PIPE).stdout
print(json.dumps({
    "dynamic": int(time.time()),
    "raw call": struct.unpack("=qq", raw.raw)[0],
    "static program": struct.unpack("=qq", said)[0],
    "vdso": libc.getauxval(33),
    "random": [os.urandom(8).hex(), drawn.hex(), ctypes.string_at(libc.getauxval(25), 16).hex()],
}))
"""

_HOW = "a host of x86_64 that lets a process trace its own children (ptrace)"

# clock_gettime(CLOCK_REALTIME, sp); write(1, sp, 16); exit(0): asks the kernel, as static programs and those of Go do.
_CODE = bytes.fromhex(
    "4883ec10 31ff 4889e6 b8e4000000 0f05 bf01000000 4889e6 ba10000000 b801000000 0f05 31ff b83c000000 0f05"
)


def static_program() -> bytes:
    """A program without any library, for x86_64."""
    start = 64 + 56
    base, size = 0x400000, start + len(_CODE)
    header = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return header + segment + _CODE


def ask(**options: str) -> dict[str, Any]:
    """What a step sees of date and randomness. Raises EnvironmentFault."""
    python = os.path.realpath(sys.executable)
    prefix = os.path.realpath(sys.base_prefix)
    roots = [] if prefix.startswith("/usr") else [prefix]
    staged = [Staged("static", data=static_program(), executable=True)]
    with StrictSandbox(roots=roots, **options) as sandbox:  # type: ignore[arg-type]
        job = Job(
            [python, "-I", "-S", "-c", _ASK],
            WORLD_ENVIRONMENT,
            staged=staged,
            mounts=[Mount(root, root) for root in roots],
        )
        finished = sandbox.run(job)
        finished.close()
    if finished.exit_code != 0:
        said = finished.reason or finished.stderr.decode(errors="replace").strip()[-300:]
        raise EnvironmentFault("the probe failed inside the sandbox", facts=[("said", said)])
    seen = json.loads(finished.stdout)
    assert isinstance(seen, dict)
    return seen


def probe_held() -> list[tuple[str, bool, str, str]]:
    """(name, in force, detail, how to get it) of both. For a host on which strict sandboxing boots."""
    return [_probe("frozen clock", _clock, clock="frozen"), _probe("seeded randomness", _random, random="seeded")]


def _probe(name: str, judge: Any, **options: str) -> tuple[str, bool, str, str]:
    try:
        held, detail = judge(ask(**options), ask(**options))
    except (SandboxUnavailable, EnvironmentFault) as error:
        why = "; ".join((error.what, *(f"{label}: {text}" for label, text in error.facts)))
        return name, False, why, _HOW
    return name, held, detail, "" if held else _HOW


def _clock(first: dict[str, Any], second: dict[str, Any]) -> tuple[bool, str]:
    ways = ("dynamic", "raw call", "static program")
    moved = [way for seen in (first, second) for way in ways if seen[way] != INPUT_MTIME_S]
    if moved:
        return False, f"another date is seen by: {', '.join(sorted(set(moved)))}"
    if first["vdso"] or second["vdso"]:
        return False, "programs can read the clock from a page of the kernel's (vDSO)"
    return True, "dynamic and static programs, raw calls; no vDSO; not: dates of files written by the step"


def _random(first: dict[str, Any], second: dict[str, Any]) -> tuple[bool, str]:
    if first["random"] != second["random"]:
        return False, "two runs were given different bytes"
    return True, "getrandom, /dev/urandom, a program's start; not: the processor's own instruction"
