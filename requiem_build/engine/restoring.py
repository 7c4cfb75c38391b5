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
    with suppress(OSError):  # No room for another process, or for a descriptor: then it is done as ever.
        memory = os.memfd_create("restored", os.MFD_CLOEXEC)
        try:
            _by_two(recollection, lost[:half], lost[half:], memory, stopped)
        finally:
            os.close(memory)


def _by_two(
    recollection: Recollection,
    ours: Sequence[Instance],
    theirs: Sequence[Instance],
    memory: int,
    stopped: Callable[[], bool],
) -> None:
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            # Of a parent that is gone nobody will ask what was done.
            laid = _restore(recollection, theirs, lambda: stopped() or os.getppid() != parent)
            _write(memory, marshal.dumps(laid))
        finally:
            os._exit(0)
    done = False
    try:
        _restore(recollection, ours, stopped)
        done = not stopped()
    finally:
        if not done:
            os.kill(child, SIGTERM)
        os.waitpid(child, 0)
    recollection.restored_elsewhere(_read(memory))


def _restore(recollection: Recollection, lost: Sequence[Instance], stopped: Callable[[], bool]) -> Laid:
    """Up to the first trouble, which the schedule will meet and tell."""
    laid: Laid = []
    with suppress(RequiemError):
        for instance in lost:
            if stopped():
                break
            stamps = recollection.restore_ahead(instance)
            if stamps is not None:
                laid.append((instance.name, stamps))
    return laid


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
