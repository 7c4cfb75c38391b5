"""Two versions of one file -> where they differ: the first format that understands both answers, bytes if none."""

from __future__ import annotations

from collections.abc import Callable

from .archives import compare_archives
from .base import FOUND_MAX, Difference, NotThisFormat, first_difference, shown
from .binaries import compare_elf, compare_gzip, compare_png, compare_pyc
from .texts import compare_json, compare_text

DEPTH_MAX = 8
"""Archives within archives are opened so deep."""

_FORMATS = (compare_archives, compare_gzip, compare_elf, compare_pyc, compare_png, compare_json, compare_text)


def compare(then: bytes, now: bytes) -> list[Difference]:
    """At most 20 differences, outermost first. Hostile bytes cost bounded time and memory and never an error."""
    return _at_depth(DEPTH_MAX)(then, now)


def _at_depth(depth: int) -> Callable[[bytes, bytes], list[Difference]]:
    def compare_here(then: bytes, now: bytes) -> list[Difference]:
        if then == now:
            return []
        for read in _FORMATS if depth > 0 else ():
            try:
                found = read(then, now, _at_depth(depth - 1))
            except NotThisFormat:
                continue
            if found:
                return found[:FOUND_MAX]
        at = first_difference(then, now)
        return [Difference(("bytes",), shown(then, at), shown(now, at), at)]

    return compare_here
