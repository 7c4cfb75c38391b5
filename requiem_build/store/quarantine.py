"""Setting aside what is damaged: exactly the inodes that were judged, never what came in their place."""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress

from ..core.digest import Digest
from ..core.errors import CorruptObject, IntegrityError
from .files import ensure_directory
from .place import Place, Problem
from .reading import Bad, stamp

SETTLE_S = 0.01


def condemn(place: Place, digest: Digest, bad: Bad, *, is_use: bool = True) -> CorruptObject:
    """Sets a damaged object aside, unless it was only looked at, and gives the error that says so."""
    kept = set_aside(place, digest, bad) if is_use else None
    return CorruptObject(
        f"object {digest} is damaged: {bad.reason}",
        facts=[("path", place.path(digest)), ("quarantined", kept or "no")],
        hint="it counts as absent: the next build makes it again",
    )


def set_aside(place: Place, digest: Digest, bad: Bad) -> str | None:
    """Moves exactly the inodes that were judged into quarantine: a repair that came meanwhile stays."""
    place.verified.pop(digest, None)
    if place.refusal is not None or not _shard_is_real(place, digest):
        return None
    path, target = place.path(digest), f"{place.quarantine}/{digest}.{place.scratch.name()}"
    moved = False
    with suppress(OSError, IntegrityError):
        ensure_directory(place.quarantine)
        moved = bad.blob is not None and _move_judged(path, bad.blob, target)
        if bad.meta is not None and (moved or bad.blob is None):
            moved |= _move_judged(path + ".meta", bad.meta, target + ".meta")
            time.sleep(SETTLE_S)
            if os.path.lexists(path):  # A put was between its two files: the metadata was its own.
                os.link(target + ".meta", path + ".meta", follow_symlinks=False)
    return target if moved else None


def remove_foreign(place: Place, problem: Problem) -> None:
    """Moves what is no object out of the objects' directory."""
    path = os.path.join(os.path.dirname(place.base), problem.path)
    with suppress(OSError, IntegrityError):
        if place.refusal is None:
            ensure_directory(place.quarantine)
            os.rename(path, f"{place.quarantine}/foreign.{place.scratch.name()}")


def _shard_is_real(place: Place, digest: Digest) -> bool:
    """Nothing is ever moved or deleted through a link that leads out of the store."""
    outer = f"{place.objects}/{digest[:2]}"
    try:
        return all(stat.S_ISDIR(os.lstat(path).st_mode) for path in (outer, f"{outer}/{digest[2:4]}"))
    except OSError:
        return False


def _move_judged(path: str, judged: os.stat_result, target: str) -> bool:
    """Renames what was judged; what has taken its place since is left, or put back."""
    if stamp(os.lstat(path)) != stamp(judged):
        return False
    os.rename(path, target)
    if _identity(os.lstat(target)) == _identity(judged):
        return True
    with suppress(FileExistsError):
        os.link(target, path, follow_symlinks=False)
    os.unlink(target)
    return False


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    """What a rename does not change. A number alone is not enough: a freed inode's is given out again at once."""
    return status.st_ino, status.st_mtime_ns, status.st_size
