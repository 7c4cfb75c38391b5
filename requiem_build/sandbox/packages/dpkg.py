"""Debian's package database: `status` and `info/` of /var/lib/dpkg, diversions and alternatives, read by themselves."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping

from ..system import DPKG
from .base import Contents, Package, Places

_FIELD = re.compile(r"^(Package|Status|Version|Architecture|Depends|Pre-Depends|Provides): (.*)$", re.M)
_NAME = re.compile(r"\s*([^\s(\[:]+)")


def parse_status(text: str) -> dict[str, Package]:
    """The installed packages of a status file, by id."""
    stanzas = [dict(_FIELD.findall(stanza)) for stanza in text.split("\n\n")]
    installed = [fields for fields in stanzas if fields.get("Status", "").endswith(" installed")]
    native = _native(installed)
    found = {}
    for fields in installed:
        package = _package(fields, native)
        found[package.id] = package
    return found


def _native(installed: list[dict[str, str]]) -> str:
    """The architecture of dpkg itself, and where it is not among them the one that most packages are for."""
    architectures = [fields.get("Architecture", "") for fields in installed]
    for fields in installed:
        if fields["Package"] == "dpkg":
            return fields.get("Architecture", "")
    own = sorted(set(architectures) - {"all"}, key=lambda each: (-architectures.count(each), each))
    return own[0] if own else "all"


def _package(fields: Mapping[str, str], native: str) -> Package:
    name, architecture = fields["Package"], fields.get("Architecture", "")
    needs = (*_groups(fields.get("Pre-Depends", "")), *_groups(fields.get("Depends", "")))
    provides = tuple(group[0] for group in _groups(fields.get("Provides", "")))
    id_ = name if architecture in (native, "all") else f"{name}:{architecture}"
    return Package(id_, name, fields.get("Version", ""), architecture, needs, provides)


def _groups(field: str) -> Iterator[tuple[str, ...]]:
    """`a (>= 1) | b, c:any` -> (a, b), (c)."""
    for group in field.split(","):
        names = tuple(match.group(1) for match in map(_NAME.match, group.split("|")) if match)
        if names:
            yield names


def parse_alternatives(text: str) -> list[str]:
    """The links of one group of alternatives (the file is described in update-alternatives' sources: `deb` format)."""
    lines = text.split("\n")
    links = lines[1:2]
    place = 2
    while place + 1 < len(lines) and lines[place]:
        links.append(lines[place + 1])
        place += 2
    return links


def parse_sums(content: bytes, places: Places) -> dict[str, str]:
    """`md5  path` lines, relative to the root, -> canonical path -> `md5:sum`."""
    found = {}
    for line in content.decode("utf-8", "surrogateescape").split("\n"):
        digest, _, path = line.partition("  ")
        if path:
            found[places.canonical("/" + path)] = f"md5:{digest}"
    return found


class Dpkg:
    kind = "dpkg"

    def __init__(self, root: str = "/") -> None:
        self._places = Places(root)
        self._admin = self._places.host(DPKG)
        self._packages: dict[str, Package] | None = None
        self._lists: dict[str, bytes] | None = None
        self._diversions: list[tuple[str, str, str]] | None = None

    def stamped(self) -> list[str]:
        names = ("status", "diversions", "info", "alternatives", "updates")
        return [*(f"{self._admin}/{name}" for name in names), self._places.host("/etc/alternatives")]

    def packages(self) -> Mapping[str, Package]:
        if self._packages is None:
            self._packages = parse_status(_text(f"{self._admin}/status"))
        return self._packages

    def diversions(self) -> list[tuple[str, str, str]]:
        if self._diversions is None:
            lines = _text(f"{self._admin}/diversions").split("\n") if self._has("diversions") else []
            canonical = self._places.canonical
            self._diversions = [
                (canonical(lines[at]), canonical(lines[at + 1]), lines[at + 2]) for at in range(0, len(lines) - 2, 3)
            ]
        return self._diversions

    def contents(self, package: Package) -> Contents:
        listed = self._read(package, "list").decode("utf-8", "surrogateescape").split("\n")
        record = self._read(package, "md5sums")
        sums = parse_sums(record, self._places)
        moved = {path: aside for path, aside, by in self.diversions() if by != package.name}
        paths = [self._places.canonical(path) for path in listed if path and path != "/."]
        return Contents(
            tuple(moved.get(path, path) for path in paths),
            {moved.get(path, path): digest for path, digest in sums.items()},
            record,
        )

    def owners(self, paths: Collection[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in paths:
            owner = self._owner(path)
            if owner is not None:
                found[path] = owner
        return found

    def _owner(self, path: str) -> str | None:
        named, refused = path, ""
        for original, aside, by in self.diversions():
            if path == original:
                return by if by in self.packages() else None
            if path == aside:
                named, refused = original, by
        lines = [b"\n" + os.fsencode(spelling) + b"\n" for spelling in self._places.spellings(named)]
        guess = os.path.basename(named)  # Most programs belong to the package of their name: one list to look at.
        if guess in self.packages() and guess != refused:
            content = b"\n" + self._read(self.packages()[guess], "list")
            if any(line in content for line in lines):
                return guess
        for id_, content in self._all_lists().items():
            if id_ != refused and any(line in content for line in lines):
                return id_
        return None

    def ending(self, suffix: str) -> list[tuple[str, str]]:
        wanted = os.fsencode(suffix) + b"\n"
        found = []
        for id_, content in self._all_lists().items():
            at = content.find(wanted)
            while at >= 0:
                begin = content.rfind(b"\n", 0, at) + 1
                found.append((self._places.canonical(os.fsdecode(content[begin : at + len(wanted) - 1])), id_))
                at = content.find(wanted, at + 1)
        return sorted(found)

    def links(self) -> list[str]:
        folder = f"{self._admin}/alternatives"
        found: list[str] = []
        for name in sorted(os.listdir(folder)) if self._has("alternatives") else ():
            found += parse_alternatives(_text(f"{folder}/{name}"))
        return [self._places.canonical(link) for link in found if link.startswith("/")]

    def _has(self, name: str) -> bool:
        return os.path.exists(f"{self._admin}/{name}")

    def _all_lists(self) -> dict[str, bytes]:
        if self._lists is None:
            self._lists = {id_: b"\n" + self._read(each, "list") for id_, each in sorted(self.packages().items())}
        return self._lists

    def _read(self, package: Package, kind: str) -> bytes:
        for name in (f"{package.name}:{package.architecture}", package.name):
            try:
                with open(f"{self._admin}/info/{name}.{kind}", "rb") as file:
                    return file.read()
            except FileNotFoundError:
                continue
        return b""


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
