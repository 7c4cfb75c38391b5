"""Which packages a step sees, from the names that it asks for. Pure: what is installed is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .base import Package

BASE_PACKAGES = (
    *("bash", "dash", "coreutils", "sed", "grep", "findutils", "diffutils", "tar", "gzip"),
    *("libc-bin", "glibc-common"),  # The locale C.UTF-8, in which every step runs.
    "busybox",  # What is all of these where they are absent.
)
BASE_PROGRAMS = ("awk", "sh")
"""Of which the host chooses one among several packages."""

_COMPANIONS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    # What a package is of no use without, though it does not need it by its own account.
    (("gcc", "clang", "tcc", "rustc", "gfortran", "gdc", "gnat", "ghc"), ("libc6-dev", "glibc-devel", "musl-dev")),
    (("clang", "rustc", "ghc"), ("binutils",)),
    (("python3-minimal",), ("python3",)),
)


def companions(name: str) -> tuple[str, ...]:
    """Names of packages that belong to a package by the table; `gcc-12` is a gcc."""
    stem = name.rstrip("0123456789.").rstrip("-")
    found: list[str] = []
    for of, brought in _COMPANIONS:
        if name in of or stem in of:
            found += brought
    return tuple(found)


class Installed:
    """Finds packages by name, by what they provide, and by what they need."""

    def __init__(self, packages: Mapping[str, Package]) -> None:
        self._packages = packages
        self._named: dict[str, list[Package]] = {}
        self._providers: dict[str, list[Package]] = {}
        for id_ in sorted(packages):
            package = packages[id_]
            self._named.setdefault(package.name, []).append(package)
            for provided in package.provides:
                self._providers.setdefault(provided, []).append(package)

    def find(self, name: str, architecture: str = "") -> list[Package]:
        """The package of that id or name, of the given architecture if there is one; else all that provide it."""
        named = self._named.get(name, [])
        for wanted in (architecture, "all"):
            same = [package for package in named if wanted and package.architecture == wanted]
            if same:
                return same[:1]
        if name in self._packages:
            return [self._packages[name]]
        return named[:1] or self._providers.get(name, [])

    def closure(self, wanted: Iterable[str]) -> list[Package]:
        """Everything that these ids need, themselves included, sorted by id.

        Of a group of alternatives the first that is installed counts, so that the others may come and go.
        """
        pending = sorted(set(wanted))
        seen: dict[str, Package] = {}
        while pending:
            package = self._packages[pending.pop()]
            if package.id in seen:
                continue
            seen[package.id] = package
            own = "" if package.architecture in ("all", "noarch", "any") else package.architecture
            for group in package.needs:
                pending += self._first(group, own)
            for name in companions(package.name):
                pending += [found.id for found in self.find(name, own)]
        return [seen[id_] for id_ in sorted(seen)]

    def _first(self, group: tuple[str, ...], architecture: str) -> list[str]:
        for name in group:
            found = self.find(name, architecture)
            if found:
                return [package.id for package in found]
        return []
