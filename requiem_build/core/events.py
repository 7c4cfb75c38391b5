"""Everything that happens in a run, as data: the vocabulary of journal, screen and plug-ins.

Readers of events never influence a digest. Times are added by the journal, not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, TypeAlias

StepState = Literal["fresh", "hit", "ran", "failed", "skipped", "miss", "unknown"]


@dataclass(frozen=True, slots=True)
class RunStarted:
    run: str
    mode: str
    engine: str
    targets: tuple[str, ...] = ()
    workspace: str = ""
    """The workspace's id, as in `runs/`."""
    when: str = ""


@dataclass(frozen=True, slots=True)
class PlanMade:
    """`steps` counts the plan's instances that are not groups: each finishes exactly once."""

    steps: int
    manifest: Mapping[str, str | None]
    """Each manifest file -> its digest, or null where an optional one is absent."""


@dataclass(frozen=True, slots=True)
class StepStarted:
    name: str
    shown: str
    reason: str


@dataclass(frozen=True, slots=True)
class StepFinished:
    """The report's line for one step, and what a reader needs to show its output."""

    name: str
    state: StepState
    request_digest: str | None = None
    result_digest: str | None = None
    exit_code: int | None = None
    termination: str | None = None
    reason: str = ""
    duration_ms: int = 0
    outputs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    failure: str = ""
    """For a failed step: one line why, as a person would say it."""
    hints: tuple[str, ...] = ()
    stdout_digest: str | None = None
    stderr_digest: str | None = None
    record: Mapping[str, object] | None = None
    """Of a step that ran. A failed one's record is kept only here."""
    place: int | None = None
    """Its place in the plan, from 0; groups have none."""
    needs: tuple[int, ...] = ()
    """The places of what had to be finished first."""
    record_digest: str | None = None
    """Names the claim that the store keeps of this result (`Record.digest`)."""
    request: Mapping[str, object] | None = None
    result: Mapping[str, object] | None = None
    """Both are given where the store keeps no record of them: of a failure, and of what is not remembered."""


@dataclass(frozen=True, slots=True)
class Warned:
    text: str


@dataclass(frozen=True, slots=True)
class RunFinished:
    ok: bool
    exit_code: int
    counts: Mapping[str, int] = field(default_factory=dict)
    when: str = ""


Event: TypeAlias = RunStarted | PlanMade | StepStarted | StepFinished | Warned | RunFinished
Listener: TypeAlias = Callable[[Event], None]

_NAMES = {
    RunStarted: "run_started",
    PlanMade: "plan_made",
    StepStarted: "step_started",
    StepFinished: "step_finished",
    Warned: "warned",
    RunFinished: "run_finished",
}


_FIELDS = {kind: tuple(field.name for field in fields(kind)) for kind in _NAMES}


def as_json(event: Event) -> dict[str, object]:
    kind = type(event)
    return {"event": _NAMES[kind], **{name: getattr(event, name) for name in _FIELDS[kind]}}
