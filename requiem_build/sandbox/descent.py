"""Walks through a tree that a step left, and removes one: without recursion, by descriptors, and through no link.

A step may have nested directories as deep as it liked. All its processes are dead, so `..` leads back to where we came
from. It does not know steps.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress

PATH_BYTES_MAX = 3800
"""So much below the kernel's PATH_MAX that any name in such a directory can still be named."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Entries = dict[str, os.stat_result]


def walk(
    top: int, *, path_bytes_max: int = PATH_BYTES_MAX, too_deep: list[str] | None = None
) -> Iterator[tuple[str, int, Entries]]:
    """Each directory: its path from `top` (empty for that itself), a descriptor of it, and what is in it, in order.

    The descriptor is good until the next step. A directory that the caller takes out of the entries is not entered;
    one whose path is longer than `path_bytes_max` is not either, and is put into `too_deep`. Directories that their
    owner may not read are opened up.
    """
    here = os.dup(top)
    way: list[str] = []  # From the top to here.
    length = 0  # Of that way as a path, in bytes.
    waiting: list[list[str]] = []  # What is still to be entered at each step of the way, and here.
    try:
        while True:
            if len(waiting) == len(way):  # We have just come in.
                entries = _entries(here)
                yield "/".join(way), here, entries
                waiting.append([name for name, seen in entries.items() if stat.S_ISDIR(seen.st_mode)][::-1])
            elif waiting[-1]:
                name = waiting[-1].pop()
                longer = length + len(os.fsencode(name)) + 1
                if longer > path_bytes_max:
                    if too_deep is not None:
                        too_deep.append("/".join((*way, name)))
                    continue
                with suppress(OSError):
                    here = _move(here, name)
                    way.append(name)
                    length = longer
            else:
                waiting.pop()
                if not way:
                    return
                here = _move(here, "..")
                length -= len(os.fsencode(way.pop())) + 1
    finally:
        os.close(here)


def remove(path: str) -> None:
    """Whatever stands there, with all in it and whatever modes it has. Nothing need stand there. Raises OSError."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        os.unlink(path)
        return
    _open_up(path, mode, None)
    top = os.open(path, _DIRECTORY)
    try:
        _empty(top)
    finally:
        os.close(top)
    os.rmdir(path)


def _empty(top: int) -> None:
    here = os.dup(top)
    way: list[str] = []
    waiting: list[list[str]] = []
    try:
        while True:
            if len(waiting) == len(way):
                waiting.append(_clear(here))
            elif waiting[-1]:
                name = waiting[-1].pop()
                here = _move(here, name)
                way.append(name)
            else:
                waiting.pop()
                if not way:
                    return
                here = _move(here, "..")
                os.rmdir(way.pop(), dir_fd=here)
    finally:
        os.close(here)


def _clear(directory: int) -> list[str]:
    """Unlinks all that is no directory; the names of the directories, opened up."""
    below = []
    for name, seen in _entries(directory).items():
        if stat.S_ISDIR(seen.st_mode):
            below.append(name)
        else:
            os.unlink(name, dir_fd=directory)
    return below


def _entries(directory: int) -> Entries:
    found: Entries = {}
    for name in sorted(os.listdir(directory), key=os.fsencode):
        seen = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(seen.st_mode):
            _open_up(name, seen.st_mode, directory)
        found[name] = seen
    return found


def _open_up(name: str, mode: int, directory: int | None) -> None:
    if mode & 0o700 != 0o700:
        with suppress(OSError):  # Not ours: what it holds is passed over, or cannot be removed.
            os.chmod(name, 0o700, dir_fd=directory)


def _move(here: int, name: str) -> int:
    there = os.open(name, _DIRECTORY, dir_fd=here)
    os.close(here)
    return there
