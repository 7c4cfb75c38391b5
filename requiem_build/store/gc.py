"""Keeps a store within its bounds: decides what goes (pure), then takes it away so that whatever dies midway is a miss.

A record that is kept keeps its objects; what was used since the oldest living lease began is never touched.
First go the records, then objects that nothing kept names, each only if it still is what was judged.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..core.digest import Digest
from ..core.errors import Busy, EnvironmentFault
from ..core.fields import dataclass, field, replace
from . import leases
from .files import ensure_directory, entries, fault, link_new
from .growth import SIZE_MAX
from .inventory import Held, Inventory, Item, Tick, latest, take
from .layout import Store
from .marks import Marks
from .repacking import Repacking, choose, rewrite
from .uses import GRAIN_S

ORPHAN_S = 86400
"""How long an object that nothing names is kept, if there is room: somebody may be about to name it."""

RUNS_MAX = 200
"""Runs kept of each workspace."""

QUARANTINE_S = 30 * 86400
_SLACK_S = 2.0
"""A file's time may be a clock tick behind, and a lease's ahead."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """`size_max` in bytes on disk; `age_max_s` since the last use, None for any.

    A store that is over its size is brought down to `room` of it.
    """

    size_max: int = SIZE_MAX
    age_max_s: float | None = None
    room: float = 1.0


@dataclass(slots=True)
class Plan:
    """What goes, and what stays: each in the order in which it is to be taken away."""

    items: list[Item] = field(default_factory=list)
    objects: list[Held] = field(default_factory=list)
    repacks: list[Repacking] = field(default_factory=list)
    kept: int = 0
    """Bytes that stay."""
    pinned: int = 0
    """Of these, the bytes that stay only because of a lease."""

    @property
    def freed(self) -> int:
        gone = sum(item.size for item in self.items) + sum(held.size for held in self.objects)
        return gone + sum(chosen.saved for chosen in self.repacks)


@dataclass(slots=True)
class Collected:
    """What was taken away. `complete` is false if it was ended before its time."""

    objects: int = 0
    packs: int = 0
    repacked: int = 0
    items: dict[str, int] = field(default_factory=lambda: {"record": 0, "paths": 0, "divergence": 0, "run": 0})
    quarantined: int = 0
    freed: int = 0
    kept: int = 0
    pinned: int = 0
    complete: bool = True


def decide(found: Inventory, bounds: Bounds, *, pinned_since: float | None, now: float) -> Plan:
    """Least recently used first. Pure: the same inventory gives the same plan.

    A record stays if it and the objects that it alone keeps still fit, newest first; what does not fit goes, and
    with it all that is older. One that is larger than the bound all by itself goes alone.
    """
    plan = Plan()
    marks = _keep_items(found, bounds, pinned_since, now, plan)
    _keep_orphans(marks, found, bounds, pinned_since, now, plan)
    _repack(marks, found, pinned_since, plan)
    plan.items.sort(key=lambda item: (item.used, item.path))
    plan.objects = sorted(
        (held for held in found.held if held.name not in marks.kept), key=lambda held: (held.used, held.name)
    )
    return plan


def _keep_items(found: Inventory, bounds: Bounds, pinned_since: float | None, now: float, plan: Plan) -> Marks:
    marks = Marks(found)
    full = False
    runs: dict[str, int] = {}
    for item in sorted(found.items, key=lambda item: (_used(item, now), item.path), reverse=True):
        runs[item.workspace] = runs.get(item.workspace, 0) + (item.kind == "run")
        marks.name(item)
        pinned = _is_pinned(item, pinned_since)
        useful = (
            not (bounds.age_max_s is not None and now - item.used >= bounds.age_max_s)
            and not (item.kind == "run" and runs[item.workspace] > RUNS_MAX)
            and marks.is_whole(item)
        )
        if not pinned and (full or not useful):
            plan.items.append(item)
            continue
        new = marks.kept_by(item)
        cost = item.size + marks.cost(new)
        fits = useful and not full and plan.kept + cost <= bounds.size_max
        if fits or pinned:
            marks.keep(new)
            plan.kept += cost
            plan.pinned += 0 if fits else cost
        else:
            plan.items.append(item)
            full = cost <= bounds.size_max
    return marks


def _keep_orphans(
    marks: Marks, found: Inventory, bounds: Bounds, pinned_since: float | None, now: float, plan: Plan
) -> None:
    """What is pinned stays; of what nothing ever named the young stays while there is room."""
    kept = marks.kept
    for held in found.held:
        if held.name not in kept and _is_pinned(held, pinned_since):
            kept.add(held.name)
            plan.kept += held.size
            plan.pinned += held.size
    age_max_s = ORPHAN_S if bounds.age_max_s is None else min(ORPHAN_S, bounds.age_max_s)
    named = {found.objects[digest].name for digest in marks.named}
    orphans = [held for held in found.held if held.name not in named and held.name not in kept]
    for held in sorted(orphans, key=lambda held: (_used(held, now), held.name), reverse=True):
        young = now - held.used < (age_max_s if held.whole else min(GRAIN_S, age_max_s))  # A half is in the making.
        if young and plan.kept + held.size <= bounds.size_max:
            kept.add(held.name)
            plan.kept += held.size


def _repack(marks: Marks, found: Inventory, pinned_since: float | None, plan: Plan) -> None:
    """Of a pack that stays for a part of it only that part, unless it is pinned."""
    staying = [held for held in found.packs.values() if held.name in marks.kept]
    plan.repacks = choose(found, [held for held in staying if not _is_pinned(held, pinned_since)], marks.marked)
    plan.kept -= sum(chosen.saved for chosen in plan.repacks)


def _used(what: Held | Item, now: float) -> float:
    """A last use in the future counts as now: a clock that was wrong once must not keep something for ever."""
    return min(what.used, now)


def _is_pinned(what: Held | Item, pinned_since: float | None) -> bool:
    return pinned_since is not None and what.touched >= pinned_since


# Taking away


def collect(store: Store, bounds: Bounds, *, tick: Tick = lambda: None, dry_run: bool = False) -> Collected:
    """Brings the store within its bounds, as far as leases allow. `tick` may raise to end it at any point.

    Raises EnvironmentFault where the store cannot be read or written.
    """
    if store.refusal is not None and not dry_run:
        raise store.refusal
    sweep = _Sweep(store, bounds, tick)
    try:
        return sweep.run(dry_run=dry_run)
    except OSError as error:
        raise fault(error, "collecting what the store no longer needs", str(store.root)) from error


class _Sweep:
    """One collection. `done` tells what came of it even if it is ended midway."""

    def __init__(self, store: Store, bounds: Bounds, tick: Tick) -> None:
        self._store = store
        self._base = f"{store.root}/v2"
        self._bounds = bounds
        self._tick = tick
        self._lease_state: object = None
        self._pinned_since: float | None = None
        self._forgotten: set[str] = set()
        """Records that were removed, as their place below any scope."""
        self.done = Collected()

    def run(self, *, dry_run: bool) -> Collected:
        begun = time.monotonic()
        now = time.time()
        self._look_at_leases()
        found = take(self._store, self._tick)
        bounds = self._bounds
        if found.size > bounds.size_max:
            bounds = replace(bounds, size_max=int(bounds.size_max * bounds.room))
        plan = decide(found, bounds, pinned_since=self._pinned_since, now=now)
        self.done.kept, self.done.pinned = plan.kept, plan.pinned
        if dry_run:
            self.done.freed = plan.freed
            self.done.repacked = len(plan.repacks)
            self.done.packs = sum(held.is_pack for held in plan.objects)
            self.done.objects = len(plan.objects) - self.done.packs
            for item in plan.items:
                self.done.items[item.kind] += 1
            return self.done
        for item in plan.items:  # What names goes before what is named: a record never outlives its objects.
            self._remove_item(item)
        self._forget_verdicts()
        for held in plan.objects:
            self._remove_object(held)
        self._repack(plan.repacks)
        self._remove_quarantined(now)
        cost_ms = round((time.monotonic() - begun) * 1000)
        self._store.growth.counted(found.size - self.done.freed, int(now), cost_ms)
        return self.done

    def _look_at_leases(self) -> None:
        """Leases are looked at again whenever one has come or gone since."""
        with suppress(FileNotFoundError):
            found = os.stat(f"{self._base}/leases")
            state = (found.st_mtime_ns, found.st_ino)
            if state == self._lease_state:
                return
            self._lease_state = state
        began = leases.oldest(self._base)
        self._pinned_since = None if began is None else began - GRAIN_S - _SLACK_S

    def _may_go(self, judged: Held | Item) -> bool:
        self._tick()
        self._look_at_leases()
        return not _is_pinned(judged, self._pinned_since)

    def _remove_item(self, item: Item) -> None:
        if not self._may_go(item):
            return
        if self._claim(item.path, item.touched):
            self.done.items[item.kind] += 1
            self.done.freed += item.size
            if item.kind == "divergence":
                with suppress(OSError):
                    os.rmdir(os.path.dirname(item.path))
            if item.kind == "record":
                self._forgotten.add(f"{item.name[:2]}/{item.name}")

    def _forget_verdicts(self) -> None:
        """Of requests of which no writer has a record any more: what was earned by a result that is gone."""
        base = f"{self._store.root}/verdicts"
        scopes = [scope.base for scope in self._store.scopes()] if self._forgotten else []
        keys = []
        with suppress(OSError):
            keys = os.listdir(f"{base}/signed") if self._forgotten else []
        for shard in self._forgotten:
            if any(os.path.lexists(f"{scope}/{shard}") for scope in scopes):
                continue
            for path in (f"{base}/{shard}", *(f"{base}/signed/{key_id}/{shard}" for key_id in keys)):
                with suppress(OSError):
                    os.unlink(path)

    def _remove_object(self, held: Held) -> None:
        """The blob first: an object whose use was noted after it was judged gets it back.

        Whoever finds the blob gone makes both files anew, and whoever notes a use later finds the metadata gone.
        """
        if held.is_pack:
            self._remove_pack(held)
            return
        path = self._store.objects.path(Digest(held.name))
        described = path + ".meta"
        if not self._may_go(held) or not _is_inside(path):
            return
        blob, meta = _status(path), _status(described)
        if any(half is not None and latest(half) > held.touched for half in (blob, meta)):
            return
        taken = self._take_away(path, held.touched)
        meta = _status(described)
        if (blob is not None and taken is None) or (meta is not None and latest(meta) > held.touched):
            if taken is not None:
                self._put_back(taken, path)
            return
        if meta is not None:
            with suppress(FileNotFoundError):
                os.unlink(described)
        if taken is not None:
            self._store.scratch.discard(taken)
        if taken is not None or meta is not None:
            self.done.objects += 1
            self.done.freed += held.size
        with suppress(OSError):  # Only an empty directory can be removed, and a put makes it again.
            os.rmdir(os.path.dirname(path))

    def _remove_pack(self, held: Held) -> None:
        if self._may_go(held) and self._claim(f"{self._base}/packs/{held.name}", held.touched):
            self.done.packs += 1
            self.done.freed += held.size

    def _repack(self, chosen: list[Repacking]) -> None:
        """The new packs first and on the disk, then the old ones go: what is wanted always lies in one of them."""
        written = [each for each in chosen if self._may_go(each.held) and rewrite(self._store, each)]
        if written:
            self._store.sync()
        for each in chosen:
            old = each.held
            if each in written and self._may_go(old) and self._claim(f"{self._base}/packs/{old.name}", old.touched):
                self.done.repacked += 1
                self.done.freed += each.saved
            else:
                self.done.kept += each.saved

    def _claim(self, path: str, touched: float) -> bool:
        taken = self._take_away(path, touched)
        if taken is not None:
            self._store.scratch.discard(taken)
        return taken is not None

    def _take_away(self, path: str, touched: float) -> str | None:
        """Moves a file to a temporary name; None, and back again, if it was used or replaced since it was judged."""
        found = _status(path)
        if found is None or latest(found) > touched or stat.S_ISDIR(found.st_mode):
            return None
        taken = f"{self._store.scratch.directory}/{self._store.scratch.name()}"
        try:
            os.rename(path, taken)
        except FileNotFoundError:
            return None
        moved = os.lstat(taken)
        if (moved.st_ino, moved.st_mtime_ns) == (found.st_ino, found.st_mtime_ns):  # A rename changes the ctime.
            return taken
        self._put_back(taken, path)
        return None

    def _put_back(self, taken: str, path: str) -> None:
        link_new(taken, path)  # Not over what has come meanwhile.
        self._store.scratch.discard(taken)

    def _remove_quarantined(self, now: float) -> None:
        age_max_s = QUARANTINE_S if self._bounds.age_max_s is None else min(self._bounds.age_max_s, QUARANTINE_S)
        for item in entries(f"{self._base}/quarantine"):
            self._tick()
            with suppress(OSError):
                if now - item.stat(follow_symlinks=False).st_ctime < age_max_s:
                    continue
                if item.is_dir(follow_symlinks=False):
                    import shutil

                    shutil.rmtree(item.path)
                else:
                    os.unlink(item.path)
                self.done.quarantined += 1


def _is_inside(path: str) -> bool:
    """Nothing is ever deleted through a link that leads out of the store."""
    inner = os.path.dirname(path)
    return all(
        found is not None and stat.S_ISDIR(found.st_mode) for found in (_status(inner), _status(os.path.dirname(inner)))
    )


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


@contextmanager
def alone(store: Store, *, wait: bool, notice: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """One collection at a time in one store; builds take no notice of it. Raises Busy without `wait`."""
    path = f"{store.root}/v2/collecting"
    try:
        ensure_directory(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise fault(error, "beginning to collect", str(store.root)) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise Busy("another process collects in this store", facts=[("store", str(store.root))]) from None
            notice("waiting for another collection in this store")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise EnvironmentFault("this file system has no locks", facts=[("store", str(store.root))]) from error
        yield
    finally:
        os.close(descriptor)
