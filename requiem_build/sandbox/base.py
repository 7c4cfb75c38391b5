"""The shape of every sandbox: a Job goes in, what is left of it comes out.

It does not know requests, digests or the store: the executor has turned them into bytes and paths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from ..core.fields import dataclass, field
from ..core.policy import Limits

if TYPE_CHECKING:
    from .perturbation import Perturbation


@dataclass(frozen=True, slots=True)
class Staged:
    """One input file, link or empty directory as the step must see it; exactly one source is given.

    `data` (bytes) is written; `source` (absolute host path of an immutable file, in the store) is shown
    read-only without a copy where the sandbox can; `symlink` is a link's target; none of them: a directory.
    """

    path: str
    data: bytes | None = None
    source: str | None = None
    symlink: str | None = None
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Mount:
    """A root: a host directory or file (absolute path) shown read-only at an absolute path of the sandbox."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Job:
    """`command[0]` is looked up in `env["PATH"]`. `directories` exist and are empty before the step starts."""

    command: Sequence[str]
    env: Mapping[str, str]
    cwd: str = "."
    stdin: bytes | str | None = None
    """Bytes, the host path of an immutable file, or None for /dev/null."""
    staged: Sequence[Staged] = ()
    directories: Sequence[str] = ()
    mounts: Sequence[Mount] = ()
    network: str = "none"
    max_output_bytes: int = 1024 * 1024
    fresh: bool = False
    """A view of its own is wanted, also where one that was reset would do (they are to give the same result)."""
    limits: Limits = field(default_factory=Limits)
    backdrop: str | None = None
    """An absolute host directory that is seen through the workspace, wherever nothing is staged: to observe a step.

    What the step writes is kept apart from it. `workspace_fd` then holds only what was staged and written.
    """
    hidden: Sequence[str] = ()
    """What of the backdrop is absent."""
    slots: int = -1
    """A pipe of job slots that the step finds open as JOBSERVER_DESCRIPTOR; -1 for none."""
    on_terminal: Callable[[int], None] | None = None
    """Then a terminal of the step's own is its input and outputs; called with the descriptor of its other side."""
    here: Perturbation | None = None
    """Instead of the sandbox's own, from which it differs only in what is done for each step."""


@dataclass(slots=True)
class Finished:
    """What is left when every process of the step is dead.

    `workspace_fd` is a directory descriptor of the workspace as the step left it (everything in it is
    hostile), or -1 where there is no such thing (Windows); the caller calls `close` before the sandbox runs its next
    job. `changed` names staged inputs that the step changed, replaced or removed.
    """

    exit_code: int
    """The command's own, 128 + N after signal N, 127 when it was not found."""
    termination: str
    """One of core.result.TERMINATIONS; never `output_size`, which the executor finds."""
    workspace_fd: int
    signal: int | None = None
    reason: str = ""
    """For `not_found` and refused starts: one line why."""
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    changed: tuple[str, ...] = ()
    leftovers: int = 0
    """Processes that outlived the command and were killed."""
    rusage: Mapping[str, int] = field(default_factory=dict)
    """`user_ms`, `system_ms`, `max_rss_kib` of the command's process tree as far as waited for."""
    cancelled: bool = False
    protection: Mapping[str, object] = field(default_factory=dict)
    """What was really in force, as the record says it, e.g. {"landlock": 6, "seccomp": true, ...}."""
    on_close: Callable[[], None] | None = None

    def close(self) -> None:
        """The workspace is no longer needed."""
        if self.workspace_fd >= 0:
            os.close(self.workspace_fd)
        if self.on_close is not None:
            self.on_close()


class Sandbox(Protocol):
    """One sandbox runs one job at a time; each worker thread of the engine has its own."""

    level: str

    def run(self, job: Job) -> Finished:
        """Runs to the end, limits included. Raises EnvironmentFault when the sandbox itself fails."""

    def cancel(self, *, kill: bool) -> None:
        """From another thread: TERM, two seconds, KILL to the whole tree (`kill`: at once). Idle: no effect."""

    def close(self) -> None:
        """Ends it and everything in it. Idempotent."""
