"""What a build says when it is over: one line a step, in plan order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..core.events import StepFinished
from ..core.fields import dataclass, field
from .stamps import Stamp

if TYPE_CHECKING:
    from .upkeep import Upkeep

SCHEMA = "requiem.report/1"
STATES = ("ran", "hit", "fresh", "failed", "skipped")


@dataclass(slots=True)
class Report:
    mode: str
    run: str
    dry_run: bool = False
    steps: list[StepFinished] = field(default_factory=list)
    untouched: int = 0
    """Further steps, which are fresh: of a brief build."""
    warnings: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    """Steps that are not proven as far as the manifest demands; they are among the warnings too."""
    exit_code: int = 0
    duration_ms: int = 0
    rested_on: Mapping[str, Stamp] = field(default_factory=dict)
    """Every path that was looked at, with its stamp: as long as all are so, building again gives the same."""

    upkeep: Upkeep | None = None
    """What is left to do for the store when everything has been said."""

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    def counts(self) -> dict[str, int]:
        found = Counter[str](step.state for step in self.steps)
        names = ("fresh", "hit", "miss", "unknown") if self.dry_run else STATES
        found["fresh"] += self.untouched
        return {"total": len(self.steps) + self.untouched, **{name: found[name] for name in names}}

    def as_json(self) -> dict[str, object]:
        return {
            "counts": self.counts(),
            "mode": self.mode,
            "ok": self.ok,
            "run": self.run,
            "schema": SCHEMA,
            "steps": [step_json(step) for step in self.steps],
            "warnings": list(self.warnings),
        }


def step_json(step: StepFinished) -> dict[str, object]:
    return {
        "duration_ms": step.duration_ms,
        "exit_code": step.exit_code,
        "name": step.name,
        "outputs": list(step.outputs),
        "reason": step.reason,
        "request_digest": step.request_digest,
        "result_digest": step.result_digest,
        "state": step.state,
        "termination": step.termination,
        "warnings": list(step.warnings),
    }
