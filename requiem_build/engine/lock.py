"""One build at a time in one workspace. The kernel frees the lock when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import shlex
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..core.errors import Busy, EnvironmentFault, UsageError
from .stamps import kind_of


@contextmanager
def workspace_lock(dot: str, *, wait: bool, notice: Callable[[str], None]) -> Iterator[None]:
    """Holds `.requiem/lock`. Raises Busy if another holds it and `wait` is false."""
    path = os.path.join(dot, "lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        _refuse_odd(path)
        raise EnvironmentFault(f'cannot open "{path}"', facts=[("cause", error.strerror or str(error))]) from error
    try:
        _refuse_odd(path)
        _take(descriptor, wait=wait, notice=notice)
        os.ftruncate(descriptor, 0)
        holder = f"{os.getpid()} on {os.uname().nodename} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        os.pwrite(descriptor, holder.encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _refuse_odd(path: str) -> None:
    """Raises UsageError if something stands there that is no file."""
    with suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode):
            raise UsageError(f'"{path}" is {kind_of(mode)}, not a file', hint=f"rm -r {shlex.quote(path)}")


def _take(descriptor: int, *, wait: bool, notice: Callable[[str], None]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "unknown"
    if not wait:
        raise Busy("another build holds this workspace", facts=[("holder", f"pid {holder}")])
    notice(f"waiting for pid {holder}")
    fcntl.flock(descriptor, fcntl.LOCK_EX)
