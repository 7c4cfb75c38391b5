"""Lays out what many lost steps gave, half of it by a process beside this one. It decides nothing and tells nobody.

What it could not do is left to the schedule, which asks about each of these steps as ever and meets the same trouble
again, at a time at which it can be told. Processes, since most of the work on small files is Python's own.
"""

from __future__ import annotations

import marshal
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from signal import SIGTERM

from ..core.errors import RequiemError
from ..core.instance import Instance
from .recollection import Recollection
from .stamps import Stamp

STEPS_MIN = 100
"""A process costs as much as laying out some dozens."""
STEPS_MAX = 10_000
"""Nothing is shown of what is laid out here, so it must not take long."""

Laid = list[tuple[str, list[Stamp]]]


def restore_ahead(recollection: Recollection, lost: Sequence[Instance], *, stopped: Callable[[], bool]) -> None:
    """Nothing, where a second process does not pay, or could not be forked from a process with threads."""
    if len(lost) < STEPS_MIN or not hasattr(os, "memfd_create") or threading.active_count() > 1:
        return
    lost = lost[:STEPS_MAX]
    half = len(lost) // 2
    memory = os.memfd_create("restored", os.MFD_CLOEXEC)
    try:
        child = _fork(recollection, lost[half:], memory, stopped)
        if child == 0:  # No room for another process.
            return
        done = False
        try:
            for instance in lost[:half]:
                if stopped():
                    break
                recollection.restore_ahead(instance)
            else:
                done = True
        finally:
            if not done:
                os.kill(child, SIGTERM)
            os.waitpid(child, 0)
        recollection.restored_elsewhere(_read(memory))
    finally:
        os.close(memory)


def _fork(recollection: Recollection, lost: Sequence[Instance], memory: int, stopped: Callable[[], bool]) -> int:
    """The process that lays these out; 0 if there can be none."""
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError:
        return 0
    if child:
        return child
    try:
        laid: Laid = []
        with suppress(RequiemError, OSError):
            for instance in lost:
                if stopped() or os.getppid() != parent:  # Nobody will ask what was done.
                    break
                stamps = recollection.restore_ahead(instance)
                if stamps is not None:
                    laid.append((instance.name, stamps))
        _write(memory, marshal.dumps(laid))
    finally:
        os._exit(0)


def _write(memory: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(memory, rest) :]


def _read(memory: int) -> Laid:
    """Empty if that process ended before it had told."""
    content = os.pread(memory, os.fstat(memory).st_size, 0)
    try:
        laid: Laid = marshal.loads(content)
    except (EOFError, ValueError, TypeError):
        return []
    return laid
