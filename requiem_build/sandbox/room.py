"""How much room do files take that a step wrote for a while? Where no file system of their own bounds them.

It looks at directories and, on Linux, at what processes hold open though its name is gone. Standard library only;
see `minder.py`.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

TYPE_CHECKING = False  # The module of that name costs a worker several milliseconds at its start.
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_BLOCK = 512
_GONE = " (deleted)"


def is_passed(places: Sequence[str], bytes_max: int, names_max: int, pids: Iterable[int]) -> bool:
    """Whether these directories hold more, in bytes on the disk or in names.

    A directory that cannot be looked into counts as too much: nobody could say how much it holds.
    """
    size = names = 0
    seen: set[tuple[int, int]] = set()
    try:
        for found in _files_below(places):
            names += 1
            if found.st_nlink > 1:  # By whatever name: once.
                if (found.st_dev, found.st_ino) in seen:
                    continue
                seen.add((found.st_dev, found.st_ino))
            size += found.st_blocks * _BLOCK
            if size > bytes_max or names > names_max:
                return True
    except PermissionError:
        return True
    return size + sum(_nameless(places, pids).values()) > bytes_max


def _files_below(places: Sequence[str]) -> Iterator[os.stat_result]:
    """Everything below, directories too, without following a link. What goes away meanwhile is passed by."""
    pending = list(places)
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            with suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                yield found
                if stat.S_ISDIR(found.st_mode):
                    pending.append(entry.path)


def _nameless(places: Sequence[str], pids: Iterable[int]) -> dict[tuple[int, int], int]:
    """Bytes of each file from there that has no name any more and is held open."""
    held: dict[tuple[int, int], int] = {}
    for pid in pids:
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:  # It has just ended, or hides.
            continue
        for descriptor in descriptors:
            path = f"/proc/{pid}/fd/{descriptor}"
            with suppress(OSError):
                name = os.readlink(path)
                if name.endswith(_GONE) and any(name.startswith(f"{place}/") for place in places):
                    found = os.stat(path)
                    if found.st_nlink == 0:
                        held[found.st_dev, found.st_ino] = found.st_blocks * _BLOCK
    return held
