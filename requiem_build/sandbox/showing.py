"""Shows a view of packages by the first mechanism that works here, found out by really mounting it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import TypeVar

from ..core.errors import EnvironmentFault, SandboxUnavailable
from .distribution import Distribution
from .linux import SystemNotShown
from .masks import MECHANISMS, NeverHere, Shown, make_ready
from .stamped import Sealed
from .visible import View

T = TypeVar("T")
_ALL_IDS = ["0", "0", "4294967295"]


def show(
    distribution: Distribution,
    digest: str,
    roots: Collection[str],
    cache_dir: str,
    boot: Callable[[Shown | None], T],
) -> T:
    """What `boot` makes of the view of that digest, ready to be mounted. `roots` are places at which a step sees more.

    Raises SandboxUnavailable where no mechanism works, which the host's user can do something about.
    """
    view = distribution.known(digest)
    if view is None:
        raise EnvironmentFault("the packages that a step asked for are no longer what they were", hint="build again")
    folder = os.path.join(cache_dir, "masks")
    memory = Sealed(f"{cache_dir}/masks.refused.json")
    refused: dict[str, str] = dict(memory.load())
    told: list[tuple[str, str]] = []
    place = _place(distribution.places.tops)
    for mechanism in MECHANISMS:
        here = f"{mechanism} {place}"
        if here in refused:
            told.append((mechanism, refused[here]))
            continue
        try:
            return boot(_ready(distribution, view, roots, folder, mechanism))
        except SystemNotShown as error:
            why, for_good = "; ".join(text for _, text in error.facts), True
        except OSError as error:
            why, for_good = f"{os.strerror(error.errno or 0)}: {error.filename or folder}", isinstance(error, NeverHere)
        told.append((mechanism, why))
        if for_good:
            refused[here] = why
            memory.save(refused)
    raise SandboxUnavailable(
        'the packages that a step asks for cannot be shown alone here, so system = "packages" cannot be had',
        facts=told,
        hint='system = "host" shows all of /usr and takes it on trust, --sandbox process hides nothing at all; '
        "`requiem doctor` says what is missing",
    )


def _ready(distribution: Distribution, view: View, roots: Collection[str], folder: str, mechanism: str) -> Shown:
    places = distribution.places
    inside = sorted(root for root in roots if any(root.startswith(f"{top}/") for top in places.tops))
    return make_ready(view, places, folder, mechanism, inside)


def _place(tops: Collection[str]) -> str:
    """What was refused once is refused again as long as kernel, user and what is mounted below /usr are the same.

    Whoever has rights only in a namespace of his own may not cover what others have mounted there.
    """
    user = "root" if os.geteuid() == 0 else "user"
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            user += "" if file.read().split() == _ALL_IDS else " of a namespace"
        with open("/proc/self/mountinfo", "rb") as file:
            points = {os.fsdecode(line.split(b" ", 5)[4]) for line in file}
    except OSError:
        points = set()
    below = sorted(point for point in points if any(point.startswith(f"{top}/") for top in tops))
    return " ".join([os.uname().release, user, *below])
