"""Which step may run next? The build's state machine: no files, no processes, no clock.

WAITING -> READY -> RUNNING -> DONE | FAILED
    \\________\\_____________-> SKIPPED   (a step it waits for did not succeed, or the build stopped)
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from enum import Enum, auto

from .instance import Plan


class State(Enum):
    WAITING = auto()
    READY = auto()
    RUNNING = auto()
    DONE = auto()
    FAILED = auto()
    SKIPPED = auto()


Priority = Callable[[str], float]
"""A step's place in the ready set: smaller is sooner; plan order breaks ties."""


class Frontier:
    """Holds every instance's state. A pool's steps never run more at once than its capacity."""

    def __init__(self, plan: Plan, priority: Priority, pools: Mapping[str, int] | None = None) -> None:
        self.states = dict.fromkeys(plan.instances, State.WAITING)
        self.unfinished = len(self.states)
        self._dependents = plan.dependents()
        self._missing = {n: len({*i.needs, *i.after}) for n, i in plan.instances.items()}
        self._pool = {n: i.pool for n, i in plan.instances.items() if i.pool}
        self._free = dict(plan.pools if pools is None else pools)
        self._priority = priority
        self._rank = {name: rank for rank, name in enumerate(plan.instances)}
        self._ready: list[tuple[float, int, str]] = []
        self._held: dict[str, list[tuple[float, int, str]]] = {pool: [] for pool in self._free}
        self._plan_ready()

    def _plan_ready(self) -> None:
        for name, missing in self._missing.items():
            if missing == 0:
                self._make_ready(name)

    def take(self) -> str | None:
        """The ready step of best priority, now RUNNING; None if none can start."""
        while self._ready:
            entry = heapq.heappop(self._ready)
            name = entry[2]
            if self.states[name] is not State.READY:
                continue
            pool = self._pool.get(name)
            if pool is not None:
                if self._free[pool] < 1:
                    heapq.heappush(self._held[pool], entry)
                    continue
                self._free[pool] -= 1
            self.states[name] = State.RUNNING
            return name
        return None

    def finish(self, name: str, *, ok: bool) -> list[str]:
        """Settles a running step. Returns the steps that are skipped because of it, in plan order."""
        assert self.states[name] is State.RUNNING
        pool = self._pool.get(name)
        if pool is not None:
            self._free[pool] += 1
            if self._held[pool]:
                heapq.heappush(self._ready, heapq.heappop(self._held[pool]))
        self.states[name] = State.DONE if ok else State.FAILED
        self.unfinished -= 1
        if ok:
            self._release(name)
            return []
        return self._skip(self._dependents[name])

    def stop(self) -> list[str]:
        """Nothing more will start. Returns all that had not started, in plan order."""
        return self._skip([n for n, state in self.states.items() if state in (State.WAITING, State.READY)])

    def _release(self, name: str) -> None:
        for dependent in self._dependents[name]:
            self._missing[dependent] -= 1
            if self._missing[dependent] == 0 and self.states[dependent] is State.WAITING:
                self._make_ready(dependent)

    def _skip(self, names: list[str]) -> list[str]:
        skipped, pending = [], list(names)  # A worklist, not recursion: chains may be long.
        while pending:
            name = pending.pop()
            if self.states[name] in (State.WAITING, State.READY):
                self.states[name] = State.SKIPPED
                self.unfinished -= 1
                skipped.append(name)
                pending.extend(self._dependents[name])
        return sorted(skipped, key=self._rank.__getitem__)

    def _make_ready(self, name: str) -> None:
        self.states[name] = State.READY
        heapq.heappush(self._ready, (self._priority(name), self._rank[name], name))


def plan_order(name: str) -> float:
    """Repro: the ready set is a FIFO queue, which is plan order itself."""
    return 0.0


def critical_path_first(plan: Plan, durations_ms: Mapping[str, int]) -> Priority:
    """Turbo: the step with the longest remaining path first, by past durations (1 ms where unknown)."""
    height: dict[str, float] = {}
    dependents = plan.dependents()
    for name in reversed(list(plan.instances)):
        below = max((height[dependent] for dependent in dependents[name]), default=0.0)
        height[name] = below + max(1, durations_ms.get(name, 1))
    return lambda name: -height[name]
