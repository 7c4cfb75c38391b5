"""Every loose object in order, and what is wrong with any: for `cas verify`, `ls` and `stats`."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

from ..core.digest import Digest, is_digest
from ..core.errors import MissingObject
from . import reading
from .files import entries
from .place import WHOLE, Part, Place, Problem
from .quarantine import set_aside
from .reading import Bad, open_once, pieces, status_at

_SHARD = re.compile(r"[0-9a-f]{2}")


def judge(place: Place, digest: Digest, *, repair: bool) -> tuple[Problem | None, int]:
    """Reads one object whole: what is wrong with it, and how many bytes it takes up."""
    where = f"v2/objects/{digest[:2]}/{digest[2:4]}/{digest}"
    bad: Bad | None = None
    for pause_s in reading.TRIES_S:
        if pause_s:
            time.sleep(pause_s)
        try:
            opened = open_once(place, digest)
            try:
                for _ in pieces(opened):
                    pass
                return None, opened.status.st_size
            finally:
                os.close(opened.descriptor)
        except Bad as caught:
            bad = caught
        except MissingObject as missing:
            gone = not os.path.lexists(place.path(digest))
            bad = Bad("its blob is missing" if gone else missing.what, None, status_at(place.path(digest) + ".meta"))
            if gone and bad.meta is None:
                return None, 0  # Deleted since it was listed.
    assert bad is not None
    if repair:
        set_aside(place, digest, bad)
    return Problem(where, bad.reason, digest), 0


def walk(place: Place, part: Part = WHOLE) -> Iterator[Digest | Problem]:
    """Every name that ought to be a loose object, in order, and everything that ought not to be there."""
    number, count = part
    for outer in _shards(place.objects, "v2/objects"):
        if isinstance(outer, Problem):
            if number == 0:
                yield outer
            continue
        if int(outer, 16) % count != number:
            continue
        for inner in _shards(f"{place.objects}/{outer}", f"v2/objects/{outer}"):
            if isinstance(inner, Problem):
                yield inner
            else:
                yield from _names(f"{place.objects}/{outer}/{inner}", f"v2/objects/{outer}/{inner}", outer + inner)


def _shards(path: str, where: str) -> Iterator[str | Problem]:
    try:
        found = entries(path)
    except OSError as error:
        yield Problem(where, f"it cannot be listed: {error.strerror}")
        return
    for item in found:
        if _SHARD.fullmatch(item.name) and item.is_dir(follow_symlinks=False):
            yield item.name
        else:
            yield Problem(f"{where}/{item.name}", "it is no shard directory")


def _names(path: str, where: str, prefix: str) -> Iterator[Digest | Problem]:
    try:
        found = entries(path)
    except OSError as error:
        yield Problem(where, f"it cannot be listed: {error.strerror}")
        return
    previous = ""
    for item in found:
        name = item.name.removesuffix(".meta")
        if not is_digest(name) or not name.startswith(prefix):
            yield Problem(f"{where}/{item.name}", "it is not named as an object of this directory")
        elif name != previous:
            previous = name
            yield Digest(name)
