"""Make's jobserver, as a client: when make runs us, our steps share its job slots (GNU make's manual, "Job Slots").

One slot is ours already, the one that runs us. For each further step at once a token is taken, and given back,
byte for byte, when the step has ended. Steps never see make's own: a way out of the sandbox would be one between
steps, too (`executors/slots.py` lends them others).
"""

from __future__ import annotations

import os
import select
import shlex
import stat
from collections.abc import Mapping
from contextlib import suppress

FLAGS = ("--jobserver-auth=", "--jobserver-fds=")


class Unavailable(Exception):
    """Make speaks of a jobserver that we cannot reach; the words say why and what to do."""


class Jobserver:
    """Tokens are single bytes from a pipe. Reading never blocks, whatever the pipe's other readers do."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing

    def take(self, timeout_s: float) -> bytes | None:
        """A token, or None if there was none in time."""
        poll = select.poll()
        poll.register(self._reading, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            return None
        with suppress(BlockingIOError):  # Another client was faster.
            token = os.read(self._reading, 1)
            return token or None
        return None

    def give_back(self, token: bytes) -> None:
        os.write(self._writing, token)

    def close(self) -> None:
        for descriptor in {self._reading, self._writing}:
            with suppress(OSError):
                os.close(descriptor)


def find_jobserver(environment: Mapping[str, str]) -> Jobserver | None:
    """The jobserver that MAKEFLAGS names; None without one. Raises Unavailable."""
    auth = _auth(environment.get("MAKEFLAGS", ""))
    if auth is None:
        return None
    if auth.startswith("fifo:"):
        return _by_name(auth[5:])
    numbers = auth.split(",")
    if len(numbers) != 2 or not all(number.lstrip("-").isdigit() for number in numbers):
        raise Unavailable(f"MAKEFLAGS names a jobserver in an unknown way: {auth!r}")
    return _by_descriptors(int(numbers[0]), int(numbers[1]))


def _auth(flags: str) -> str | None:
    """The last word counts, as for make."""
    try:
        words = shlex.split(flags)
    except ValueError:
        words = flags.split()
    found = None
    for word in words:
        if word == "--":  # Only variables follow.
            break
        for flag in FLAGS:
            if word.startswith(flag):
                found = word.removeprefix(flag)
    return found


def _by_name(path: str) -> Jobserver:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise Unavailable(f"the jobserver {path} is not a fifo")
    except OSError as error:
        raise Unavailable(f"the jobserver {path} cannot be opened: {error.strerror}") from error
    return Jobserver(descriptor, descriptor)


def _by_descriptors(reading: int, writing: int) -> Jobserver:
    """A pipe that we inherited, opened once more: our reads may then not block without changing make's own."""
    try:
        for descriptor in (reading, writing):
            if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                raise Unavailable("make's jobserver is not open here: begin the recipe's line with +")
        return Jobserver(
            os.open(f"/proc/self/fd/{reading}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC),
            os.open(f"/proc/self/fd/{writing}", os.O_WRONLY | os.O_CLOEXEC),
        )
    except OSError as error:
        raise Unavailable("make's jobserver is not open here: begin the recipe's line with +") from error
