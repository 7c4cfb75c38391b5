"""The shape of every executor: a request goes in, what it did comes out.

An executor needs nothing but the store: every input that a request names is there before it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ..core.entries import Entry
from ..core.fields import dataclass, field
from ..core.policy import Limits
from ..core.request import Request
from ..core.result import Result


@dataclass(frozen=True, slots=True)
class Ran:
    """`request` is the one asked for, with `discovered` filled where there is `discover`.

    `failure` is empty for a success, else one line why (also when the command itself exited with 0).
    """

    request: Request
    result: Result
    failure: str = ""
    hints: tuple[str, ...] = ()
    discovered: tuple[str, ...] | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    undeclared: tuple[str, ...] = ()
    """What the step made and did not declare; listed only when a declared output is missing or on request."""
    duration_ms: int = 0
    protection: Mapping[str, object] = field(default_factory=dict)
    rusage: Mapping[str, int] = field(default_factory=dict)
    leaks: tuple[str, ...] = ()
    cancelled: bool = False

    @property
    def ok(self) -> bool:
        return not self.failure


class Executor(Protocol):
    name: str

    def execute(self, request: Request, offered: Mapping[str, Entry], limits: Limits) -> Ran:
        """Runs a request. `offered` is what `discover` matches now: visible, in the key only if reported.

        Raises EnvironmentFault when the request cannot be run here at all.
        """

    def cancel(self, *, kill: bool) -> None:
        """Ends all that is running, from any thread."""

    def close(self) -> None:
        """Ends every process that the executor holds."""
