"""Which requests of a store gave another result than their first, and which steps asked them. It compares nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..core.fields import dataclass
from ..store.layout import Store
from .history import finished_in, runs_of

NAMED_MAX = 100
"""Requests whose steps are looked for in the journals."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """`results` are those that came after the first. `steps` is empty where no journal tells of the request."""

    request_digest: str
    results: tuple[str, ...]
    steps: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        return {"request_digest": self.request_digest, "results": list(self.results), "steps": list(self.steps)}


def divergences_in(store: Store) -> list[Divergence]:
    """By step, then by request."""
    results: dict[str, set[str]] = {}
    for kept in store.records.divergences():
        results.setdefault(kept.record.request_digest, set()).add(kept.result.digest)
    steps = _steps_of(store, sorted(results)[:NAMED_MAX])
    found = [Divergence(each, tuple(sorted(results[each])), tuple(sorted(steps.get(each, ())))) for each in results]
    return sorted(found, key=lambda each: (not each.steps, each.steps, each.request_digest))


def of_step(found: Iterable[Divergence], name: str) -> tuple[Divergence, ...]:
    return tuple(each for each in found if name in each.steps)


def _steps_of(store: Store, requests: Collection[str]) -> dict[str, set[str]]:
    """The names that the newest run with each request had for it: of any workspace, since one store serves many."""
    found: dict[str, set[str]] = {}
    for run in runs_of(store, None):
        wanted = [each for each in requests if each not in found]
        if not wanted:
            break
        for event in finished_in(store, run, digests=wanted):
            found.setdefault(event["request_digest"], set()).add(event["name"])
    return found
