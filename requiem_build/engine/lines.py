"""The journal's lines of steps that are fresh, kept, since most of them are the same in run after run.

`.requiem/lines` belongs to one plan and one run (`Written.told`), and what has changed since is in `Written.stale`.
It holds the lines as one text in the plan's order, so that what is told of it is a few pieces of that text.
"""

from __future__ import annotations

import os
from array import array
from typing import TYPE_CHECKING

from . import sealed, touched
from .journal import line_of

if TYPE_CHECKING:
    from .site import Site
    from .touched import Part

STALE_MAX = 0.02
"""Where more of the lines than this no longer hold, they are all written anew."""


def of(site: Site, part: Part) -> list[memoryview | bytes]:
    """The lines of all untouched steps, in the plan's order, in pieces."""
    path = os.path.join(site.dot, "lines")
    mark = (part.written.told, len(part.kept.names))
    found = sealed.load_long(path, site.seal)
    if found is None or found[0][0] != mark:
        return _anew(site, part, path)
    (_, ends), text = found
    told, missing = _pieces(part, array("Q", ends), text)
    return told if missing <= STALE_MAX * len(part.untouched) else _anew(site, part, path)


def _pieces(part: Part, ends: array[int], text: memoryview) -> tuple[list[memoryview | bytes], int]:
    """`ends` holds for each instance of the plan where its line ends, and begins with a nought.

    With the number of those that had to be made.
    """
    names, stale = part.kept.names, set(part.written.stale)
    told: list[memoryview | bytes] = []
    missing = begin = end = 0
    for number in part.untouched:
        first, last = ends[number], ends[number + 1]
        if first == last or names[number] in stale:
            told += (text[begin:end], line_of(touched.fresh(part, number)))
            missing += 1
            begin = end
        elif first == end:
            end = last
        else:
            told.append(text[begin:end])
            begin, end = first, last
    told.append(text[begin:end])
    return told, missing


def _anew(site: Site, part: Part, path: str) -> list[memoryview | bytes]:
    untouched = set(part.untouched)
    count = len(part.kept.names)
    lines = [line_of(touched.fresh(part, number)) if number in untouched else b"" for number in range(count)]
    ends = array("Q", [0])
    for line in lines:
        ends.append(ends[-1] + len(line))
    text = b"".join(lines)
    part.written.told = part.memory.last_run
    part.written.stale = []
    sealed.save_long(path, site.seal, ((part.written.told, count), ends.tobytes()), text)
    return [text]
