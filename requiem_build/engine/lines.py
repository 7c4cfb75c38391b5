"""The journal's lines of steps that are fresh, kept, since most of them are the same in run after run.

`.requiem/lines` belongs to one plan and one run (`Written.told`), and what has changed since is in `Written.stale`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from . import sealed, touched
from .journal import line_of

if TYPE_CHECKING:
    from .site import Site
    from .touched import Part

STALE_MAX = 0.02
"""Where more of the lines than this no longer hold, they are all written anew."""


def of(site: Site, part: Part) -> list[bytes]:
    """The line of each untouched step."""
    path = os.path.join(site.dot, "lines")
    value = sealed.load(path, site.seal)
    written = part.written
    known: dict[int, bytes] = {}
    if value is not None and value[0] == (written.told, len(part.kept.names)):
        known = value[1]
    stale = set(written.stale)
    missing = {
        number: line_of(touched.fresh(part, number))
        for number in part.untouched
        if number not in known or part.kept.names[number] in stale
    }
    known.update(missing)
    if len(missing) > STALE_MAX * len(part.untouched):
        written.told = part.memory.last_run
        written.stale = []
        sealed.save(path, site.seal, ((written.told, len(part.kept.names)), known))
    return [known[number] for number in part.untouched]
