"""One loop for both modes, turned by whichever thread has just finished a step.

It does not know what a step is: `begin` does the work, the frontier says what may start.
"""

from __future__ import annotations

import errno
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from ..core.errors import EnvironmentFault
from ..core.fields import dataclass
from ..core.frontier import Frontier
from ..core.instance import Plan
from ..store.files import hint_of


class Outcome(Protocol):
    @property
    def ok(self) -> bool: ...


T = TypeVar("T", bound=Outcome)
Begin = Callable[[str, Mapping[str, T]], "T | Callable[[], T]"]
"""A step's name and the outcomes of what it waits for -> its outcome, or the work that is left."""
Work = tuple[str, "Callable[[], T]"]

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
    """Runs a plan to its end. `settled(name, outcome)` is told of each step, one at a time; None means skipped.

    All state belongs to whoever holds the lock. A thread that has done a step's work settles it, begins what may
    start now and goes on with it itself: handing each step to another thread and back costs more than a small
    step's bookkeeping. What is quick (a step that is fresh, a hit) is done by `begin` on the spot. An exception of
    `begin`, of a step's work or of `settled` stops the start of new steps and is raised when the running ones have
    ended.
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
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._waiting: queue.SimpleQueue[Work[T] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._running = 0
        self._error: BaseException | None = None

    def run(self) -> None:
        """Returns when every step is settled and every thread has ended. Signal handlers run meanwhile."""
        with self._lock:
            first = self._start_what_can()
            if first is not None:
                self._hand_over(first)
        try:
            # Always with a time-out: a signal does not shorten a wait that has already begun.
            while not self._ended.wait(INSIST_EVERY_S):
                if self._stop.requested:
                    self._stop.insist()
        finally:
            self._ended.wait()
            for _ in self._threads:
                self._waiting.put(None)
            for thread in self._threads:
                thread.join()
        if self._error is not None:
            raise self._error

    def _hand_over(self, work: Work[T]) -> None:
        if self._running > len(self._threads):  # Else one of them waits, or will in a moment.
            thread = threading.Thread(target=self._work, name=f"requiem-{len(self._threads)}", daemon=True)
            try:
                thread.start()
            except (RuntimeError, MemoryError) as error:  # No more threads are to be had: those that run do it all.
                if not self._threads:
                    raise EnvironmentFault("not even one thread can be started", hint=hint_of(errno.EAGAIN)) from error
                self._workers = len(self._threads)
            else:
                self._threads.append(thread)
        self._waiting.put(work)

    def _work(self) -> None:
        try:
            self._work_on()
        except BaseException as caught:  # Not a step's, but ours: memory has ended. Nobody may wait for this thread.
            self._error = self._error or caught
            self._ended.set()

    def _work_on(self) -> None:
        while (work := self._waiting.get()) is not None:
            while work is not None:
                name, rest = work
                try:
                    done = Done(name, rest(), None)
                except BaseException as caught:
                    done = Done(name, None, caught)
                with self._lock:
                    self._running -= 1
                    self._take(done)
                    work = self._start_what_can()

    def _start_what_can(self) -> Work[T] | None:
        """With the lock held. Returns work for the calling thread; what more there is goes to others."""
        mine: Work[T] | None = None
        while self._running < self._workers and not self._stop.requested and self._error is None:
            name = self._frontier.take()
            if name is None:
                break
            work = self._started(name)
            if work is None:
                continue
            self._running += 1
            if mine is None:
                mine = work
            else:
                self._hand_over(work)
        if not self._running:
            self._skip(self._frontier.stop())
            self._ended.set()
        return mine

    def _started(self, name: str) -> Work[T] | None:
        instance = self._plan.instances[name]
        needed = {need: self._outcomes[need] for need in (*instance.needs, *instance.after)}
        try:
            begun = self._begin(name, needed)
        except BaseException as caught:
            self._take(Done(name, None, caught))
            return None
        if callable(begun):
            return name, begun
        self._take(Done(name, begun, None))
        return None

    def _take(self, done: Done[T]) -> None:
        if done.outcome is None:
            self._error = self._error or done.error
            self._skip(self._frontier.finish(done.name, ok=False))
            return
        self._outcomes[done.name] = done.outcome
        skipped = self._frontier.finish(done.name, ok=done.outcome.ok)
        self._settle(done.name, done.outcome)
        self._skip(skipped)
        if not done.outcome.ok and not self._keep_going:
            self._stop.requested = True

    def _skip(self, names: list[str]) -> None:
        for name in names:
            self._settle(name, None)

    def _settle(self, name: str, outcome: T | None) -> None:
        try:
            self._settled(name, outcome)
        except BaseException as caught:
            self._error = self._error or caught
