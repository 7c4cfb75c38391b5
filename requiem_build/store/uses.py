"""When something of a store was last used: the mtime of its metadata or record, moved on at most once an hour.

Whoever reads such a file has its status anyway, so noting a use costs no system call but for the hour's first one.
Collection spares whatever was used within the grain before the oldest living lease: see leases.py.
"""

from __future__ import annotations

import os
import time

from .files import Scratch

GRAIN_S = 3600
"""How exactly a last use is known."""


def is_due(found: os.stat_result) -> bool:
    """Whether the use of a file of this status is to be noted. A time in the future is no use: it is set right."""
    return not -GRAIN_S < time.time() - found.st_mtime < GRAIN_S


def note(path: str, content: bytes, scratch: Scratch) -> bool:
    """Notes that a small file with this content is used now; False if it is gone, else True even where that is refused.

    Another user's file cannot be given a new time: where its directory may be written, an equal one of our own
    takes its place.
    """
    try:
        os.utime(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except PermissionError:
        _replace(path, content, scratch)
    except OSError:
        pass  # A file system that cannot be written: nobody collects there either.
    return True


def _replace(path: str, content: bytes, scratch: Scratch) -> None:
    try:
        temporary = scratch.write(content)
    except OSError:
        return
    try:
        os.rename(temporary, path)
    except OSError:
        scratch.discard(temporary)
