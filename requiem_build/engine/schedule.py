"""One loop for both modes. Its thread owns all state; workers only do what `begin` left over.

It does not know what a step is: `begin` does the work, the frontier says what may start.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ..core.frontier import Frontier
from ..core.instance import Plan


class Outcome(Protocol):
    @property
    def ok(self) -> bool: ...


T = TypeVar("T", bound=Outcome)
Begin = Callable[[str, Mapping[str, T]], "T | Callable[[], T]"]
"""A step's name and the outcomes of what it waits for -> its outcome, or the work that is left, for a worker."""

INSIST_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    name: str
    outcome: T | None
    error: BaseException | None


class Stop:
    """Asked of a running schedule, also from a signal handler: start nothing more.

    `insist` is called again and again until what runs has ended: a step that was just about to start when it
    was first called must not be missed.
    """

    def __init__(self, insist: Callable[[], None] = lambda: None) -> None:
        self.requested = False
        self.insist = insist


class Schedule(Generic[T]):
    """Runs a plan to its end. `settled(name, outcome)` is told of each step in this thread; None means skipped.

    What is quick (a step that is fresh, a hit) is done by `begin` right here: handing it to a thread would
    cost more than doing it. An exception of `begin` or of a worker stops the start of new steps and is raised
    when the running ones have ended.
    """

    def __init__(
        self,
        plan: Plan,
        frontier: Frontier,
        begin: Begin[T],
        *,
        workers: int,
        keep_going: bool,
        settled: Callable[[str, T | None], None],
        stop: Stop,
    ) -> None:
        self._plan = plan
        self._frontier = frontier
        self._begin = begin
        self._workers = workers
        self._keep_going = keep_going
        self._settled = settled
        self._stop = stop
        self._outcomes: dict[str, T] = {}
        self._done: queue.SimpleQueue[Done[T]] = queue.SimpleQueue()
        self._running = 0
        self._error: BaseException | None = None

    def run(self) -> None:
        with ThreadPoolExecutor(max_workers=self._workers, thread_name_prefix="requiem") as pool:
            while self._frontier.unfinished:
                self._start_what_can(pool)
                if self._running:
                    self._running -= 1
                    self._take(self._next())
                else:
                    self._skip(self._frontier.stop())
        if self._error is not None:
            raise self._error

    def _start_what_can(self, pool: ThreadPoolExecutor) -> None:
        while self._running < self._workers and not self._stop.requested and self._error is None:
            name = self._frontier.take()
            if name is None:
                return
            instance = self._plan.instances[name]
            needed = {need: self._outcomes[need] for need in (*instance.needs, *instance.after)}
            try:
                begun = self._begin(name, needed)
            except BaseException as caught:
                self._take(Done(name, None, caught))
                continue
            if callable(begun):
                self._running += 1
                pool.submit(self._work, name, begun)
            else:
                self._take(Done(name, begun, None))

    def _work(self, name: str, rest: Callable[[], T]) -> None:
        try:
            self._done.put(Done(name, rest(), None))
        except BaseException as caught:
            self._done.put(Done(name, None, caught))

    def _next(self) -> Done[T]:
        while True:
            try:
                # Always with a time-out: a signal does not shorten a wait that has already begun.
                return self._done.get(timeout=INSIST_EVERY_S)
            except queue.Empty:
                if self._stop.requested:
                    self._stop.insist()

    def _take(self, done: Done[T]) -> None:
        if done.outcome is None:
            self._error = self._error or done.error
            self._skip(self._frontier.finish(done.name, ok=False))
            return
        self._outcomes[done.name] = done.outcome
        skipped = self._frontier.finish(done.name, ok=done.outcome.ok)
        self._settled(done.name, done.outcome)
        self._skip(skipped)
        if not done.outcome.ok and not self._keep_going:
            self._stop.requested = True

    def _skip(self, names: list[str]) -> None:
        for name in names:
            self._settled(name, None)
