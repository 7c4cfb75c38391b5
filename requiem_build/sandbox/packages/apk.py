"""Alpine's package database: one text file, described in apk-package(5) and apk_db's own lines for files."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Collection, Iterator, Mapping

from ..system import APK
from .base import Contents, Package, Places, endings

_OPERATORS = "<>=~"


def parse_installed(text: str) -> dict[str, tuple[Package, list[str]]]:
    """Name -> the package, and the lines of its stanza."""
    found = {}
    for stanza in text.split("\n\n"):
        lines = stanza.split("\n")
        fields = {line[0]: line[2:] for line in lines if line[1:2] == ":" and line[0] in "PVADp"}
        if "P" not in fields:
            continue
        needs = tuple((_bare(word),) for word in fields.get("D", "").split() if not word.startswith("!"))
        provides = tuple(_bare(word) for word in fields.get("p", "").split())
        package = Package(fields["P"], fields["P"], fields.get("V", ""), fields.get("A", ""), needs, provides)
        found[package.id] = (package, lines)
    return found


def _bare(word: str) -> str:
    """`so:libc.musl-x86_64.so.1=1` without its version."""
    for place, letter in enumerate(word):
        if letter in _OPERATORS:
            return word[:place]
    return word


def parse_files(lines: list[str]) -> Iterator[tuple[str, str]]:
    """(path, sum or nothing) of the `F:` directories, and of the `R:` entries in each with their `Z:` sums."""
    folder, path, digest = "", "", ""
    for line in (*lines, "F:"):
        kind, value = line[:2], line[2:]
        if kind in ("F:", "R:") and path:
            yield path, digest
            path = ""
        if kind == "F:" and value:
            folder = f"/{value}"
            yield folder, ""
        elif kind == "F:":
            folder = ""
        elif kind == "R:":
            path, digest = f"{folder}/{value}", ""
        elif kind == "Z:":
            digest = _sum(value)


def _sum(value: str) -> str:
    """`Q1` and a SHA-1 in base64."""
    try:
        return "sha1:" + base64.b64decode(value[2:], validate=True).hex() if value.startswith("Q1") else ""
    except binascii.Error:
        return ""


class Apk:
    kind = "apk"

    def __init__(self, root: str = "/") -> None:
        self._places = Places(root)
        self._file = next((f for f in map(self._places.host, APK) if os.path.exists(f)), APK[0])
        self._read: dict[str, tuple[Package, list[str]]] | None = None

    @property
    def _stanzas(self) -> dict[str, tuple[Package, list[str]]]:
        if self._read is None:
            with open(self._file, encoding="utf-8", errors="surrogateescape") as file:
                self._read = parse_installed(file.read())
        return self._read

    def stamped(self) -> list[str]:
        return [self._file]

    def packages(self) -> Mapping[str, Package]:
        return {id_: package for id_, (package, _) in self._stanzas.items()}

    def contents(self, package: Package) -> Contents:
        found = [(self._places.canonical(path), digest) for path, digest in parse_files(self._stanzas[package.id][1])]
        sums = {path: digest for path, digest in found if digest and not os.path.islink(self._places.host(path))}
        record = "".join(f"{digest}  {path}\n" for path, digest in sorted(found) if digest)
        return Contents(tuple(path for path, _ in found), sums, record.encode("utf-8", "surrogateescape"))

    def owners(self, paths: Collection[str]) -> dict[str, str]:
        return {path: id_ for id_, mine in self._paths() for path in mine & set(paths)}

    def ending(self, suffix: str) -> list[tuple[str, str]]:
        return endings(self._paths(), suffix)

    def _paths(self) -> Iterator[tuple[str, set[str]]]:
        for id_, (package, _) in self._stanzas.items():
            yield id_, set(self.contents(package).paths)

    def links(self) -> list[str]:
        """The applets of busybox: links to it that its trigger made."""
        found = []
        for folder in ("/bin", "/sbin", "/usr/bin", "/usr/sbin"):
            host = self._places.host(folder)
            for name in sorted(os.listdir(host)) if os.path.isdir(host) else ():
                if os.path.islink(f"{host}/{name}") and "busybox" in os.readlink(f"{host}/{name}"):
                    found.append(self._places.canonical(f"{folder}/{name}"))
        return list(dict.fromkeys(found))

    def diversions(self) -> list[tuple[str, str, str]]:
        return []
