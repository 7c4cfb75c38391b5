"""One loop for both modes. Its thread owns all state; workers only call `perform`.

It does not know what a step is: `perform` does the work, the frontier says what may start.
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
Perform = Callable[[str, Mapping[str, T]], T]
"""A step's name and the outcomes of what it waits for -> its outcome."""


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


INSIST_EVERY_S = 0.1


def _next(done: queue.SimpleQueue[Done[T]], stop: Stop) -> Done[T]:
    while True:
        try:
            return done.get(timeout=INSIST_EVERY_S if stop.requested else None)
        except queue.Empty:
            stop.insist()


def run(
    plan: Plan,
    frontier: Frontier,
    perform: Perform[T],
    *,
    jobs: int,
    keep_going: bool,
    settled: Callable[[str, T | None], None],
    stop: Stop,
) -> dict[str, T]:
    """Runs the plan to its end. `settled(name, outcome)` is told of each step in this thread; None means skipped.

    An exception of `perform` stops the start of new steps and is raised when the running ones have ended.
    """
    outcomes: dict[str, T] = {}
    done: queue.SimpleQueue[Done[T]] = queue.SimpleQueue()
    running = 0
    error: BaseException | None = None

    def work(name: str, needed: Mapping[str, T]) -> None:
        try:
            done.put(Done(name, perform(name, needed), None))
        except BaseException as caught:
            done.put(Done(name, None, caught))

    def skip(names: list[str]) -> None:
        for name in names:
            settled(name, None)

    with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="requiem") as pool:
        while frontier.unfinished:
            while running < jobs and not stop.requested and error is None and (name := frontier.take()) is not None:
                instance = plan.instances[name]
                needed = {need: outcomes[need] for need in (*instance.needs, *instance.after)}
                running += 1
                pool.submit(work, name, needed)
            if not running:
                skip(frontier.stop())
                break
            finished = _next(done, stop)
            running -= 1
            if finished.outcome is None:
                error = error or finished.error
                skip(frontier.finish(finished.name, ok=False))
                continue
            outcomes[finished.name] = finished.outcome
            skipped = frontier.finish(finished.name, ok=finished.outcome.ok)
            settled(finished.name, finished.outcome)
            skip(skipped)
            if not finished.outcome.ok and not keep_going:
                stop.requested = True
    if error is not None:
        raise error
    return outcomes
