"""Everything that happens in a run, as data: the vocabulary of journal, screen and plug-ins.

Readers of events never influence a digest. Times are added by the journal, not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args

from . import canonical
from .digest import is_digest
from .errors import RequestError
from .fields import dataclass, field

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


_FIELDS: dict[type, tuple[str, ...]] = {kind: getattr(kind, "__match_args__") for kind in _NAMES}  # noqa: B009 - mypy does not know it of a type


def as_json(event: Event) -> dict[str, object]:
    kind = type(event)
    return {"event": _NAMES[kind], **{name: getattr(event, name) for name in _FIELDS[kind]}}


# Reading a journal back


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_counts(value: object) -> bool:
    return isinstance(value, dict) and all(type(number) is int for number in value.values())


def _optional(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


_CHECKS: Mapping[str, Callable[[object], bool]] = {
    "at_ms": _is_count,
    "counts": _is_counts,
    "duration_ms": _is_count,
    "exit_code": lambda value: value is None or type(value) is int,
    "hints": _is_texts,
    "manifest": lambda value: isinstance(value, dict) and all(d is None or is_digest(d) for d in value.values()),
    "needs": lambda value: isinstance(value, list) and all(_is_count(place) for place in value),
    "ok": lambda value: isinstance(value, bool),
    "outputs": _is_texts,
    "place": _is_count,
    "record": _optional(lambda value: isinstance(value, dict)),
    "record_digest": _optional(is_digest),
    "request": _optional(lambda value: isinstance(value, dict)),
    "request_digest": _optional(is_digest),
    "result": _optional(lambda value: isinstance(value, dict)),
    "result_digest": _optional(is_digest),
    "state": lambda value: value in get_args(StepState),
    "stderr_digest": _optional(is_digest),
    "stdout_digest": _optional(is_digest),
    "steps": _is_count,
    "targets": _is_texts,
    "termination": _optional(_is_text),
    "warnings": _is_texts,
    "worker": _is_count,
}
_KEYS = {
    _NAMES[kind]: {"at_ms", "event", *names, *(["worker"] if kind is StepStarted else [])}
    for kind, names in _FIELDS.items()
}


def parse_event(line: bytes) -> dict[str, Any]:
    """A journal's line, each field of its type. Raises RequestError that names the field."""
    value = canonical.parse(line)
    if not isinstance(value, dict) or value.get("event") not in _KEYS:
        raise RequestError("it is no event that this requiem knows")
    keys = _KEYS[value["event"]]
    if value.keys() != keys:
        strange = sorted(value.keys() ^ keys)
        raise RequestError(f"a {value['event']} lacks or should not have: {', '.join(strange)[:200]}")
    for name, item in value.items():
        if not _CHECKS.get(name, _is_text)(item):
            raise RequestError(f"{value['event']}.{name} is not of its type")
    return value
