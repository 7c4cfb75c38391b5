"""The shape of every package database, and the one question about places that they share. It reads no database."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from ...core.fields import dataclass, field

TOPS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32")
"""What may be a link into /usr, or a directory of its own beside it."""


@dataclass(frozen=True, slots=True)
class Package:
    """`id` is its name, followed by `:architecture` where that is not the host's own.

    `needs` are groups of names: of each group one must be there. Versions are not looked at: what is installed together
    was found to fit by the package manager.
    """

    id: str
    name: str
    version: str
    architecture: str
    needs: tuple[tuple[str, ...], ...] = ()
    provides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Contents:
    """What belongs to a package: canonical absolute paths, also of directories and links.

    `sums` maps files to `algorithm:hexadecimal`, as far as the database has them; `record` is what it keeps as their
    sums, byte for byte (a digest of it stands for the package's content).
    """

    paths: tuple[str, ...]
    sums: Mapping[str, str] = field(default_factory=dict)
    record: bytes = b""


class Database(Protocol):
    """One host's installed packages. Everything is read from below `root`."""

    kind: str

    def stamped(self) -> list[str]:
        """Host paths of which at least one changes its stamp whenever the database changes."""

    def packages(self) -> Mapping[str, Package]:
        """By id. Raises OSError where it cannot be read."""

    def contents(self, package: Package) -> Contents: ...

    def owners(self, paths: Collection[str]) -> dict[str, str]:
        """Canonical path -> the id of the package that it belongs to; those that belong to none are left out."""

    def ending(self, suffix: str) -> list[tuple[str, str]]:
        """(canonical path, id) of everything whose path ends so; for messages."""

    def links(self) -> list[str]:
        """Links that belong to no package but that programs are meant to be found by (alternatives)."""

    def diversions(self) -> list[tuple[str, str, str]]:
        """(path, where another package's file of that path lies instead, the package that took its place)."""


class Places:
    """Paths as they lie below `root`, spelled one way: since /bin is a link to /usr/bin, packages say either."""

    def __init__(self, root: str = "/") -> None:
        self.root = root.rstrip("/")
        self._merged: dict[str, str] = {}
        for name in TOPS:
            path = f"{self.root}/{name}"
            if os.path.islink(path) and os.readlink(path).strip("/") == f"usr/{name}":
                self._merged[name] = f"/usr/{name}"

    @property
    def tops(self) -> tuple[str, ...]:
        """The directories that hold programs and libraries: /usr, and those beside it that are no links into it."""
        own = (f"/{name}" for name in TOPS if name not in self._merged and os.path.isdir(f"{self.root}/{name}"))
        return ("/usr", *own)

    def canonical(self, path: str) -> str:
        first, slash, rest = path[1:].partition("/")
        merged = self._merged.get(first)
        return path if merged is None else merged + slash + rest

    def spellings(self, path: str) -> tuple[str, ...]:
        """Every way in which a package may name a canonical path."""
        first = path[5:].partition("/")[0] if path.startswith("/usr/") else ""
        return (path, path[4:]) if first in self._merged else (path,)

    def host(self, path: str) -> str:
        return self.root + path

    def find_program(self, name: str, search: Iterable[str]) -> str | None:
        """The canonical path, below the root, of a program; absolute names are taken as they are."""
        candidates = [name] if name.startswith("/") else [f"{folder}/{name}" for folder in search]
        for candidate in candidates:
            path = self.canonical(candidate)
            if os.path.lexists(self.host(path)) and not os.path.isdir(self.host(path)):
                return path
        return None

    def resolve(self, path: str) -> list[str]:
        """A path and, if it is a link, all that it leads through, canonical and below the root."""
        found = [self.canonical(path)]
        while len(found) < 40 and os.path.islink(self.host(found[-1])):
            target = os.path.join(os.path.dirname(found[-1]), os.readlink(self.host(found[-1])))
            found.append(self.canonical(os.path.normpath(target)))
        return found


def endings(owned: Iterable[tuple[str, Collection[str]]], suffix: str) -> list[tuple[str, str]]:
    """(path, id) of all paths that end so, where a database has no quicker way."""
    return sorted((path, id_) for id_, paths in owned for path in paths if path.endswith(suffix))
