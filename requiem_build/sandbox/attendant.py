"""The engine's hold on one worker process: starts it, carries jobs to it one at a time, ends it.

It does not know what the worker does with a job.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any

from ..core.errors import EnvironmentFault
from .wire import Channel

_START = """
import sys, types
package = types.ModuleType("walls")
package.__path__ = [{folder!r}]
sys.modules["walls"] = package
from walls.{module} import main
main()
"""
"""The worker's modules as a package of their own: this one would import all of Requiem with them."""


class Attendant:
    """Raises EOFError when the worker ends before it has answered `setup`; `greeting` is that answer."""

    def __init__(self, module: str, setup: Mapping[str, Any]) -> None:
        self._sending = threading.Lock()
        self._ending = threading.Lock()
        self._number = 0
        self._running = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._pid = _spawn(module, theirs.fileno())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = Channel(ours)
        try:
            self._channel.send({"engine": os.getpid(), **setup})
            self.greeting: tuple[Any, ...] = self._channel.receive()[0]
        except BaseException:
            self.end()
            raise

    def run(self, job: Mapping[str, Any], descriptor: int | None = None) -> tuple[tuple[Any, ...], int]:
        """The worker's answer and the descriptor that came with it, or -1. Whatever is raised, the worker is ended."""
        try:
            with self._sending:
                self._number += 1
                self._running = True
                self._channel.send(("run", {"number": self._number, **job}), descriptor)
            return self._channel.receive()
        except (EOFError, OSError) as error:
            raise EnvironmentFault(
                "the sandbox's worker died",
                facts=[("step", " ".join(job["command"])[:200]), ("worker", self.end())],
                hint="the kernel's log may say why: out of memory, or killed by hand",
            ) from error
        except BaseException:
            # What still runs in there must not outlive the caller's interest in it.
            self.end()
            raise
        finally:
            with self._sending:
                self._running = False

    def cancel(self, *, kill: bool) -> None:
        with self._sending:
            if self._running:
                # If the worker is gone, so is what was to be cancelled.
                with contextlib.suppress(EOFError):
                    self._channel.send(("cancel", self._number, kill))

    def clean(self) -> None:
        """What the last job left is no longer needed."""
        with self._sending, contextlib.suppress(EOFError):  # If the worker is gone, so is what it would tidy up.
            if not self._running:
                self._channel.send(("clean", self._number))

    @property
    def ended(self) -> bool:
        return self._pid == 0

    def end(self) -> str:
        """Ends the worker and waits for it. How it ended, in words. Idempotent."""
        with self._ending:
            self._channel.close()
            pid, self._pid = self._pid, 0
            if not pid:
                return "ended before"
            try:
                _, status = os.waitpid(pid, 0)
            except ChildProcessError:  # Someone in this program waits for all children.
                return "ended"
        code = os.waitstatus_to_exitcode(status)
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _spawn(module: str, end: int) -> int:
    code = _START.format(folder=os.path.dirname(os.path.abspath(__file__)), module=module)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, end, 3),
    ]
    arguments = [sys.executable, "-I", "-S", "-W", "ignore", "-c", code]
    # A session of its own: Ctrl-C in the terminal is for the engine, which then decides.
    return os.posix_spawn(sys.executable, arguments, {}, file_actions=actions, setsid=True)
