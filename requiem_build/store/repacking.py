"""Packs most of whose objects nobody wants any more are written anew without them. Judged purely, then done.

Which objects are wanted is told by gc.py; here is decided what that means for a pack that stays (ADR 53).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Set
from contextlib import suppress

from ..core.digest import Digest
from ..core.errors import EnvironmentFault
from ..core.fields import dataclass
from .growth import on_disk
from .inventory import Held, Inventory
from .layout import Store
from .packs import NotAPack, packed_size


@dataclass(frozen=True, slots=True)
class Repacking:
    """A pack and what of it is to stay; `saved` are bytes on disk."""

    held: Held
    alive: tuple[Digest, ...]
    saved: int


def choose(found: Inventory, packs: Iterable[Held], marked: Set[Digest]) -> list[Repacking]:
    """Which of these packs are worth writing anew with the marked objects alone: those whose half or more is dead.

    What nobody named yet counts as dead: whoever is about to name it holds a lease, and the pack is not among these.
    """
    chosen = []
    for held in packs:
        members = found.members.get(held.name, {})
        alive = tuple(digest for digest in members if digest in marked and found.objects[digest] is held)
        saved = held.size - on_disk(packed_size(members[digest] for digest in alive))
        if alive and 2 * saved >= held.size:
            chosen.append(Repacking(held, alive, saved))
    return chosen


def rewrite(store: Store, chosen: Repacking) -> bool:
    """Writes a pack of what is alive, beside the old one and as old as that; False where that cannot be.

    What is damaged is left out: it is a miss already. The old one may go when the new one is on the disk.
    """
    packs = store.objects.packs
    try:
        pack = packs.load(chosen.held.name)
        content = packs.read_all(pack, chosen.alive)
        if not content:
            return False
        name = packs.write(content)
    except (NotAPack, OSError, EnvironmentFault):  # Gone, damaged, or no room for both: then it stays as it is.
        return False
    with suppress(OSError):
        os.utime(f"{store.root}/v2/packs/{name}", (chosen.held.used, chosen.held.used))
    return True
