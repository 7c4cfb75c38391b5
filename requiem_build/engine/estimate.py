"""How long will it still take? From how long each step took before. It decides nothing and is only shown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping


class Estimate:
    """Of the steps that are left, by past durations; one that never ran here counts as the middle one of the others."""

    def __init__(self, steps: Iterable[str], durations_ms: Mapping[str, int], jobs: int) -> None:
        known = [ms for name in steps if (ms := durations_ms.get(name, 0)) > 0]
        self._jobs = max(1, jobs)
        self._usual = statistics.median(known) if known else None
        self._left = {name: float(durations_ms.get(name) or self._usual or 0) for name in steps}
        self._sum = sum(self._left.values())
        self._began: dict[str, float] = {}

    def started(self, name: str, now_ms: float) -> None:
        self._began[name] = now_ms

    def finished(self, name: str) -> None:
        self._sum -= self._left.pop(name, 0)
        self._began.pop(name, None)

    def left_ms(self, now_ms: float) -> float | None:
        """None if nothing is known of any step. Never less than the longest step that runs needs."""
        if self._usual is None:
            return None
        gone = {name: min(self._left.get(name, 0), now_ms - began) for name, began in self._began.items()}
        longest = max((self._left.get(name, 0) - passed for name, passed in gone.items()), default=0)
        return max(0.0, longest, (self._sum - sum(gone.values())) / self._jobs)
