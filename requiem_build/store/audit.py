"""Is everything in a store what it says it is? Names exactly what is damaged, and sets it aside if asked.

It reads every byte. What is merely gone is no damage: a record without its objects is a miss, and repair removes it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress

from ..core.digest import EMPTY, Digest
from ..core.errors import IntegrityError, UnknownName
from ..core.fields import dataclass, field, replace
from .fanout import Answer, fan_out
from .files import ensure_directory, entries, fault
from .inventory import take
from .layout import Store
from .marks import Marks
from .verdicts import Verdicts

REPORT_EVERY = 64


@dataclass(frozen=True, slots=True)
class Damage:
    """`path` is below the store's root; `digest` is None for what is no object."""

    path: str
    reason: str
    digest: Digest | None = None


@dataclass(slots=True)
class Audit:
    """`unanswerable` are the paths of records whose objects are gone: they cost a run, and are no damage."""

    damaged: list[Damage] = field(default_factory=list)
    unanswerable: list[str] = field(default_factory=list)
    objects: int = 0
    bytes: int = 0
    repaired: bool = False

    @property
    def ok(self) -> bool:
        return not self.damaged


Progress = Callable[[int, int], None]
"""Told how many objects and bytes have been read so far."""


def audit(store: Store, *, workers: int, progress: Progress = lambda *_: None, repair: bool = False) -> Audit:
    """Reads everything, in `workers` processes. Raises EnvironmentFault, also where `repair` is refused."""
    if repair and store.refusal is not None:
        raise store.refusal
    try:
        return _audit(store, workers, progress, repair=repair)
    except OSError as error:
        raise fault(error, "checking the store", str(store.root)) from error


def _audit(store: Store, workers: int, progress: Progress, *, repair: bool) -> Audit:
    found = Audit(repaired=repair)
    for damage in _bad_objects(store, workers, found, progress, repair=repair):
        found.damaged.append(damage)
    for damage in (*_bad_records(store), *_bad_runs(store), *_bad_verdicts(store)):
        found.damaged.append(damage)
        if repair:
            _set_aside(store, damage.path)
    bad = {damage.digest for damage in found.damaged}
    if repair and EMPTY in bad:
        bad.remove(store.objects.put(b""))  # Many records need it, and it can always be made.
    found.damaged.sort(key=lambda damage: damage.path)
    for path in _unanswerable(store, bad):
        found.unanswerable.append(path)
        if repair:
            with suppress(FileNotFoundError):
                os.unlink(f"{store.root}/{path}")
    return found


def _bad_objects(store: Store, workers: int, found: Audit, progress: Progress, *, repair: bool) -> Iterator[Damage]:
    def work(number: int, answer: Answer) -> None:
        count = [0, 0]

        def told(objects: int, total: int) -> None:
            if objects % REPORT_EVERY == 0 or total - count[1] > 1 << 24:
                answer([objects - count[0], total - count[1]])
                count[:] = objects, total
            last[:] = objects, total

        last = [0, 0]
        for problem in store.objects.verify(told, repair=repair, part=(number, workers)):
            answer({"path": problem.path, "reason": problem.reason, "digest": problem.digest})
        answer([last[0] - count[0], last[1] - count[1]])

    for value in fan_out(workers, work):
        if isinstance(value, dict):
            yield Damage(value["path"], value["reason"], value["digest"])
        else:
            found.objects, found.bytes = found.objects + value[0], found.bytes + value[1]
            progress(found.objects, found.bytes)


def _bad_records(store: Store) -> Iterator[Damage]:
    for scope in store.scopes():
        below = os.path.relpath(os.path.dirname(scope.base), store.root)
        for path, reason in scope.damaged():
            yield Damage(os.path.normpath(os.path.join(below, path)), reason)


def _bad_runs(store: Store) -> Iterator[Damage]:
    for item in entries(f"{store.root}/runs"):
        try:
            store.runs.get(item.name)
        except (IntegrityError, UnknownName) as error:
            if os.path.lexists(item.path):
                yield Damage(f"runs/{item.name}", dict(error.facts).get("cause", error.what))


def _bad_verdicts(store: Store) -> Iterator[Damage]:
    """One that is damaged only counts as none; whose signature holds is for those to judge who know its key."""
    verdicts = Verdicts(store)
    for path in verdicts.paths():
        if not verdicts.is_whole(path):
            yield Damage(os.path.relpath(path, store.root), "it is not a verdict of its request")


def _set_aside(store: Store, path: str) -> None:
    """Into quarantine, whatever it is. Raises EnvironmentFault."""
    full = f"{store.root}/{path}"
    try:
        ensure_directory(f"{store.root}/v2/quarantine")
        with suppress(FileNotFoundError):
            target = f"{store.root}/v2/quarantine/{os.path.basename(path)[:64]}.{store.scratch.name()}"
            if not stat.S_ISDIR(os.lstat(os.path.dirname(full)).st_mode):
                return
            os.rename(full, target)
    except OSError as error:
        raise fault(error, f"setting aside {path}", str(store.root)) from error


def _unanswerable(store: Store, bad: set[Digest | None]) -> Iterator[str]:
    found = take(store)
    for digest in bad:
        if digest is not None and digest in found.objects:
            found.objects[digest] = replace(found.objects[digest], whole=False)
    marks = Marks(found)
    for item in found.items:
        if item.needs and not marks.is_whole(item):
            yield os.path.relpath(item.path, store.root)
