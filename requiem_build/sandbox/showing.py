"""Shows a view of packages by the first mechanism that works here, found out by really mounting it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from ..core.errors import EnvironmentFault, SandboxUnavailable
from .distribution import Distribution
from .linux import SystemNotShown
from .masks import MECHANISMS, Shown, make_ready
from .system import Sealed
from .visible import View

T = TypeVar("T")


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
    memory = Sealed(Path(cache_dir, "masks.refused.json"))
    refused: dict[str, str] = dict(memory.load())
    told: list[tuple[str, str]] = []
    for mechanism in MECHANISMS:
        here = f"{mechanism} {_place()}"
        if here in refused:
            told.append((mechanism, refused[here]))
            continue
        try:
            return boot(_ready(distribution, view, roots, folder, mechanism))
        except SystemNotShown as error:
            why = "; ".join(text for _, text in error.facts)
        except OSError as error:
            why = f"{os.strerror(error.errno or 0)}: {error.filename or folder}"
        told.append((mechanism, why))
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


def _place() -> str:
    """What was refused once is refused again as long as kernel and user are the same."""
    return f"{os.uname().release} {'root' if os.geteuid() == 0 else 'user'}"
