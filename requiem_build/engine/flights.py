"""Equal requests of one run are answered once: the first one flies, the others wait for it to land."""

from __future__ import annotations

import threading

from ..core.digest import Digest
from ..core.fields import replace
from .rebuild import Built, Rebuilder, Wanted


class Flights:
    """Every answer of a run that was sought by running, by its request. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Digest, _Flight] = {}

    def __contains__(self, request_digest: Digest) -> bool:
        return request_digest in self._known

    def answer(self, name: str, wanted: Wanted, rebuilder: Rebuilder) -> Built:
        """The rebuilder's answer, or that of the step which asked the same and came first."""
        digest = wanted.request.digest
        with self._lock:
            flight = self._known.get(digest)
            if flight is None or flight.name == name:  # The first, or the first once more.
                flight = self._known[digest] = _Flight(name)
        if flight.name != name:
            built = flight.result()
            ok = built.result is not None and built.result.ok
            return replace(built, ran=None, same_as=flight.name) if ok else built
        try:
            built = rebuilder.build(wanted)
        except BaseException as error:
            with self._lock:  # It may be tried again, as after a changed input.
                self._known.pop(digest, None)
            flight.land(error)
            raise
        flight.land(built)
        return built


class _Flight:
    def __init__(self, name: str) -> None:
        self.name = name
        self._landed = threading.Lock()
        self._landed.acquire()
        self._answer: Built | BaseException | None = None

    def land(self, answer: Built | BaseException) -> None:
        self._answer = answer
        self._landed.release()

    def result(self) -> Built:
        """Waits for it. Raises what the one who sought it met."""
        with self._landed:
            assert self._answer is not None
            if isinstance(self._answer, BaseException):
                raise self._answer
            return self._answer
