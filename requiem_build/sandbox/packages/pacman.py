"""Arch's package database: for each package a directory with `desc`, `files` and `mtree`: alpm-db, alpm-mtree(5)."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Collection, Iterator, Mapping

from ..system import PACMAN
from .base import Contents, Package, Places, endings

_VERSION = re.compile(r"[<>=]")
_SUM = re.compile(r"\bsha256digest=([0-9a-f]{64})")
_ESCAPE = re.compile(r"\\([0-7]{3})")


def parse_sections(text: str) -> dict[str, list[str]]:
    """`%NAME%`, values one a line, an empty line -> name -> values."""
    found: dict[str, list[str]] = {}
    for block in text.split("\n\n"):
        name, *values = block.strip("\n").split("\n")
        if name.startswith("%"):
            found[name.strip("%")] = values
    return found


def parse_mtree(text: str) -> dict[str, str]:
    """Path -> `sha256:sum` of each file of a package; its own files (.PKGINFO and the like) are none."""
    found = {}
    for line in text.split("\n"):
        sum_ = _SUM.search(line)
        path = _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), line.partition(" ")[0])
        if sum_ and path.startswith("./") and not path.startswith("./."):
            found[path[1:].encode("latin-1", "replace").decode("utf-8", "surrogateescape")] = f"sha256:{sum_.group(1)}"
    return found


class Pacman:
    kind = "pacman"

    def __init__(self, root: str = "/") -> None:
        self._places = Places(root)
        self._local = self._places.host(PACMAN)
        self._folders: dict[str, str] = {}
        self._packages: dict[str, Package] | None = None

    def stamped(self) -> list[str]:
        return [self._local]  # Each change of a package makes or removes a directory of its name and version.

    def packages(self) -> Mapping[str, Package]:
        if self._packages is None:
            found = {}
            for folder in sorted(os.listdir(self._local)):
                if os.path.isfile(f"{self._local}/{folder}/desc"):
                    package = self._package(folder)
                    found[package.id] = package
            self._packages = found
        return self._packages

    def _package(self, folder: str) -> Package:
        fields = parse_sections(self._text(folder, "desc"))
        (name,), version = fields["NAME"], fields.get("VERSION", [""])[0]
        self._folders[name] = folder
        needs = tuple((_VERSION.split(each)[0],) for each in fields.get("DEPENDS", []))
        provides = tuple(_VERSION.split(each)[0] for each in fields.get("PROVIDES", []))
        return Package(name, name, version, fields.get("ARCH", [""])[0], needs, provides)

    def contents(self, package: Package) -> Contents:
        folder = self._folders[package.id]
        listed = parse_sections(self._text(folder, "files")).get("FILES", [])
        paths = tuple(self._places.canonical("/" + path.rstrip("/")) for path in listed if path)
        try:
            with gzip.open(f"{self._local}/{folder}/mtree", "rb") as file:
                record = file.read()
        except OSError:
            record = b""
        sums = parse_mtree(record.decode("utf-8", "surrogateescape"))
        known = {self._places.canonical(path): digest for path, digest in sums.items()}
        record = "".join(f"{digest}  {path}\n" for path, digest in sorted(known.items())).encode("utf-8", "replace")
        return Contents(paths, known, record)

    def owners(self, paths: Collection[str]) -> dict[str, str]:
        return {path: id_ for id_, mine in self._paths() for path in mine & set(paths)}

    def ending(self, suffix: str) -> list[tuple[str, str]]:
        return endings(self._paths(), suffix)

    def _paths(self) -> Iterator[tuple[str, set[str]]]:
        for id_ in self.packages():
            listed = parse_sections(self._text(self._folders[id_], "files")).get("FILES", [])
            yield id_, {self._places.canonical("/" + path.rstrip("/")) for path in listed}

    def links(self) -> list[str]:
        return []

    def diversions(self) -> list[tuple[str, str, str]]:
        return []

    def _text(self, folder: str, name: str) -> str:
        try:
            with open(f"{self._local}/{folder}/{name}", encoding="utf-8", errors="surrogateescape") as file:
                return file.read()
        except FileNotFoundError:
            return ""
