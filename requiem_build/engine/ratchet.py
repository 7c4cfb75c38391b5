"""A file that remembers each step's level, for CI: a step may rise above its level and never fall below it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..core import canonical
from ..core.errors import RequestError, UsageError
from ..core.verdict import LEVELS, Level, parse_level

SCHEMA = "requiem.ratchet/1"


def parse_ratchet(content: bytes, name: str) -> dict[str, Level]:
    """Step -> the level it had. Raises UsageError."""
    try:
        value = canonical.parse(content)
        if not isinstance(value, dict) or value.get("schema") != SCHEMA or value.keys() != {"schema", "steps"}:
            raise ValueError("it does not hold exactly schema and steps")
        return {step: parse_level(str(text)) for step, text in dict(value["steps"]).items()}
    except (RequestError, ValueError, TypeError) as error:
        raise UsageError(
            f'"{name}" is no ratchet', facts=[("cause", str(error))], hint="delete it to begin anew"
        ) from error


def fallen(before: Mapping[str, Level], now: Mapping[str, Level]) -> dict[str, tuple[Level, Level]]:
    """Steps that are below what they were: (then, now). Numbers of runs do not count, only levels."""
    return {
        name: (before[name], level) for name, level in now.items() if name in before and level.rank < before[name].rank
    }


def raised(before: Mapping[str, Level], now: Mapping[str, Level], planned: set[str]) -> bytes:
    """The file as it should be next: levels only rise, and steps that are no more are gone."""
    ranks = {name: level.rank for name, level in before.items() if name in planned}
    for name, level in now.items():
        ranks[name] = max(ranks.get(name, 0), level.rank)
    steps = {name: LEVELS[rank] for name, rank in sorted(ranks.items())}
    return (json.dumps({"schema": SCHEMA, "steps": steps}, indent=2, ensure_ascii=False) + "\n").encode()
