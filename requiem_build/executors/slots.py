"""How many steps run at once, and the lending of slots that are free to steps which can use more than one.

A step with `jobserver = true` has a pipe of its own, in which a byte stands for a slot that it may take; it puts the
byte back when it needs the slot no more (GNU make's manual, "Job Slots"). Nobody else holds that pipe, and what lies in
it is counted, not read: a step can neither speak to another through it, nor invent a slot, nor keep one beyond its end.
"""

from __future__ import annotations

import fcntl
import os
import queue
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..core.fields import dataclass, field

LOOK_EVERY_S = 0.01
_SLOT = b"+"

GiveBack = Callable[[], None]


@dataclass(slots=True, eq=False)
class Loan:
    """One step's pipe, and what must be called for each slot that it has been offered."""

    pipe: int
    lent: list[GiveBack] = field(default_factory=list)

    def unused(self) -> int:
        """How many bytes lie in the pipe: slots that were offered and not taken, or given back."""
        (count,) = struct.unpack("=i", fcntl.ioctl(self.pipe, termios.FIONREAD, bytes(4)))
        return int(count)

    def offer(self, give_back: GiveBack) -> None:
        self.lent.append(give_back)
        os.write(self.pipe, _SLOT)

    def take_back(self, count: int) -> None:
        """What was not lent is no slot, whatever lies in the pipe."""
        with suppress(BlockingIOError):  # The step was faster.
            for _ in os.read(self.pipe, count):
                if self.lent:
                    self.lent.pop()()


class Slots:
    """`admit_more()` gives what ends the admission of one more process, or None if there is no room for it now."""

    def __init__(self, count: int, admit_more: Callable[[], GiveBack | None] = lambda: lambda: None) -> None:
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()  # A semaphore that costs next to nothing.
        for _ in range(count):
            self._free.put(None)
        self._admit_more = admit_more
        self._lock = threading.Lock()
        self._waiting = 0
        self._loans: list[Loan] = []
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Waits for a slot. Those that were only offered to a step come back for it."""
        try:
            self._free.get_nowait()
        except queue.Empty:
            with self._lock:
                self._waiting += 1
            self._free.get()
            with self._lock:
                self._waiting -= 1

    def give_back(self) -> None:
        self._free.put(None)

    @contextmanager
    def loan(self) -> Iterator[int]:
        """A pipe for one step, open for both, whose bytes are slots; -1 where that cannot be had."""
        pipe, for_step = _two_pipes()
        if pipe < 0:
            yield -1
            return
        loan = Loan(pipe)
        with self._lock:
            self._loans.append(loan)
            if self._thread is None:
                self._thread = threading.Thread(target=self._lend, name="requiem-slots", daemon=True)
                self._thread.start()
        try:
            yield for_step
        finally:
            with self._lock:  # Nobody looks at it any more.
                self._loans.remove(loan)
            os.close(pipe)
            os.close(for_step)
            for give_back in loan.lent:  # Also what was killed with it.
                give_back()

    def _lend(self) -> None:
        pause = threading.Event()
        while True:
            with self._lock:
                if not self._loans:
                    self._thread = None
                    return
                for loan in self._loans:
                    self._look_at(loan)
            pause.wait(LOOK_EVERY_S)

    def _look_at(self, loan: Loan) -> None:
        """One slot lies ready, as long as none is wanted elsewhere: taking it leads to the next."""
        unused, kept = loan.unused(), 0 if self._waiting else 1
        if unused > kept:
            loan.take_back(unused - kept)
        elif unused < kept:
            give_back = self._try_one()
            if give_back is not None:
                loan.offer(give_back)

    def _try_one(self) -> GiveBack | None:
        try:
            self._free.get_nowait()
        except queue.Empty:
            return None
        leave = self._admit_more()
        if leave is None:
            self._free.put(None)
            return None

        def give_back() -> None:
            leave()
            self._free.put(None)

        return give_back


def _two_pipes() -> tuple[int, int]:
    """The same pipe twice: ours, which never blocks, and the step's, which does."""
    if not sys.platform.startswith("linux"):
        return -1, -1
    reader, writer = os.pipe()
    try:
        ours = os.open(f"/proc/self/fd/{reader}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        theirs = os.open(f"/proc/self/fd/{reader}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(reader)
        os.close(writer)
    return ours, theirs
