"""What a plan rested on, so that a later run can tell that it would be made the same way again.

Each path has a stamp and a witness. An equal, settled stamp is enough; otherwise the witness is taken
again and compared: a file's content, a directory's names and kinds (declared outputs left out, since
building makes and `clean` removes them), a link's target.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping

from ..core.digest import object_digest
from ..core.patterns import Pattern, compile_pattern, is_pattern, unescape
from . import sealed
from .stamps import NOTHING, Stamp, is_racy, stamp_at, stamp_of
from .workspace import Look, kind_by_mode

Item = tuple[Stamp, bool, str]
"""Stamp, whether it is racy, witness."""


class Outputs:
    """The declared outputs of a whole manifest, and the directories above them, relative to the root."""

    def __init__(self, declared: Iterable[str]) -> None:
        self.files: set[str] = set()
        self.parents: set[str] = set()
        self._patterns: list[Pattern] = []
        for path in declared:
            if is_pattern(path):
                pattern = compile_pattern(path)
                self._patterns.append(pattern)
                parent = "" if pattern.prefix == "." else pattern.prefix
            else:
                plain = unescape(path).rstrip("/")
                self.files.add(plain)
                parent = os.path.dirname(plain)
            while parent and parent not in self.parents:
                self.parents.add(parent)
                parent = os.path.dirname(parent)

    def has(self, path: str) -> bool:
        """Whether a file, or a directory as a whole, is an output."""
        return path in self.files or any(pattern(path) for pattern in self._patterns)

    def covers(self, path: str) -> bool:
        """Whether a path is an output or lies inside a directory that is one."""
        while path and path != ".":
            if self.has(path):
                return True
            path = os.path.dirname(path)
        return False

    def below(self, directory: str) -> list[str]:
        """The directories above outputs that lie directly in one directory (`` is the root)."""
        return [path for path in self.parents if os.path.dirname(path) == directory]


def witness(path: str, relative: str | None, outputs: Outputs) -> str:
    """What decides whether a path is still what it was. `relative` is None for what lies outside the root."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return _listing(()) if relative in outputs.parents else ""
    if stat.S_ISLNK(mode):
        return "link " + os.readlink(path)
    if stat.S_ISDIR(mode):
        return _listing(_names(path, relative, outputs))
    try:
        with open(path, "rb", opener=sealed.at_once) as file:
            return object_digest(file.read())
    except OSError:
        return "unreadable"


def _names(path: str, relative: str | None, outputs: Outputs) -> list[str]:
    found = []
    try:
        with os.scandir(path) as items:
            for item in items:
                if not _counts(relative, item.name, outputs):
                    continue
                kind = "l" if item.is_symlink() else "d" if item.is_dir(follow_symlinks=False) else "f"
                found.append(f"{kind} {item.name}")
    except OSError:
        return ["unreadable"]
    return sorted(found)


def _counts(relative: str | None, name: str, outputs: Outputs) -> bool:
    """Whether a name in a directory is the user's: neither an output, nor on the way to one, nor our own."""
    if relative is None:
        return True
    here = f"{relative}/{name}" if relative else name
    return not (outputs.has(here) or here in outputs.parents or here in (".requiem", ".cas"))


def _listing(names: Iterable[str]) -> str:
    return "dir " + object_digest("\0".join(names).encode("utf-8", "surrogateescape"))


def gather(root: str, looks: Mapping[str, Look], outputs: Outputs) -> dict[str, Item]:
    """The evidence of everything that was looked at, as it was seen then, and of the output directories inside it."""
    found: dict[str, Item] = {}
    for path, look in looks.items():
        relative = _relative(root, path)
        if relative is None or not outputs.has(relative):
            found[path] = (look.stamp, look.racy, _seen(look, relative, outputs))
    pending = [path for path, (_, _, taken) in found.items() if taken.startswith("dir ")]
    for path in pending:
        relative = _relative(root, path)
        if relative is not None:
            for below in outputs.below(relative):
                full = os.path.join(root, below)
                if full not in found:
                    found[full] = _take(full, below, outputs)
                    pending.append(full)
    return found


def _seen(look: Look, relative: str | None, outputs: Outputs) -> str:
    """The witness of what was seen when it was looked at, whatever stands there by now."""
    if look.link is not None:
        return "link " + look.link
    if look.names is not None:
        if not look.names and look.stamp == NOTHING:
            return _listing(()) if relative in outputs.parents else ""
        letters = {"link": "l", "dir": "d"}
        names = ((letters.get(kind, "f"), name) for name, kind in look.names.items())
        return _listing(sorted(f"{letter} {name}" for letter, name in names if _counts(relative, name, outputs)))
    return "" if look.content is None else object_digest(look.content)


def _take(path: str, relative: str | None, outputs: Outputs) -> Item:
    stamp = stamp_at(path)
    taken = witness(path, relative, outputs)
    return (stamp, is_racy(stamp, time.time_ns()), taken)


def _relative(root: str, path: str) -> str | None:
    if path == root:
        return ""
    return path[len(root) + 1 :] if path.startswith(root + "/") else None


def kinds_hold(kinds: Mapping[str, str | None]) -> bool:
    """Whether what was asked for by its name is still of the same kind, or absent as it was."""
    for path, kind in kinds.items():
        try:
            now: str | None = kind_by_mode(os.lstat(path).st_mode)
        except OSError:
            now = None
        if now != kind:
            return False
    return True


def still_holds(root: str, evidence: dict[str, Item], outputs: Callable[[], Outputs]) -> bool:
    """Whether every item is what it was; settled stamps are renewed in place. `outputs` is for what differs."""
    known: Outputs | None = None
    for path, (stamp, racy, taken) in list(evidence.items()):
        try:
            now = stamp_of(os.lstat(path))
        except OSError:
            now = NOTHING
        if now == stamp and not racy:
            continue
        known = known or outputs()
        item = _take(path, _relative(root, path), known)
        if item[2] != taken:
            return False
        evidence[path] = item
    return True
