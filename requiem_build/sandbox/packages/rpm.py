"""The package database of Fedora, SUSE and their like: binary, so it is asked through the `rpm` program."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Iterator, Mapping

from ...core.errors import EnvironmentFault
from ..system import RPM
from .base import Contents, Package, Places, endings

TIMEOUT_S = 60

_QUERY = (
    "P\t%{NAME}\t%{EPOCHNUM}:%{VERSION}-%{RELEASE}\t%{ARCH}\t%{FILEDIGESTALGO}\n"
    "[R\t%{REQUIRENAME}\n][V\t%{PROVIDENAME}\n][F\t%{FILEDIGESTS}\t%{FILEFLAGS}\t%{FILENAMES}\n]"
)
_ALGORITHMS = {"(none)": "md5", "1": "md5", "2": "sha1", "8": "sha256", "9": "sha384", "10": "sha512"}
_GHOST = 64
_CONFIG = 1


def parse_packages(text: str) -> dict[str, tuple[Package, dict[str, str]]]:
    """Id -> the package, and its paths with their sums (or nothing), of what `_QUERY` prints.

    Signing keys are no packages. Ghosts are not the package's, and configuration has no fixed content.
    """
    found: dict[str, tuple[Package, dict[str, str]]] = {}
    for block in ("\n" + text).split("\nP\t")[1:]:
        head, *lines = block.split("\n")
        name, version, architecture, algorithm = head.split("\t")
        if name == "gpg-pubkey":
            continue
        needs: dict[str, None] = {}
        provides: dict[str, None] = {}
        paths: dict[str, str] = {}
        for line in lines:
            kind, _, value = line.partition("\t")
            if kind == "R" and not value.startswith(("rpmlib(", "(")):  # What rpm itself can do, and conditions.
                needs[value] = None
            elif kind == "V":
                provides[value] = None
            elif kind == "F":
                digest, flags, path = value.split("\t", 2)
                if not int(flags) & _GHOST:
                    fixed = digest and not int(flags) & _CONFIG
                    paths[path] = f"{_ALGORITHMS.get(algorithm, 'sha256')}:{digest}" if fixed else ""
        id_ = name if name not in found else f"{name}-{version}.{architecture}"
        groups = tuple((need,) for need in needs)
        found[id_] = (Package(id_, name, version, architecture, groups, (*provides, *paths)), paths)
    return found


class Rpm:
    kind = "rpm"

    def __init__(self, root: str = "/") -> None:
        self._places = Places(root)
        found = [path for path in map(self._places.host, RPM) if os.path.exists(path)]
        self._database = found[0] if found else self._places.host(RPM[0])
        self._read: dict[str, tuple[Package, dict[str, str]]] | None = None

    @property
    def _known(self) -> dict[str, tuple[Package, dict[str, str]]]:
        if self._read is None:
            self._read = parse_packages(self._ask("-qa", "--qf", _QUERY))
        return self._read

    def _ask(self, *arguments: str) -> str:
        command = ["rpm", "--dbpath", os.path.dirname(self._database), *arguments]
        environment = {"PATH": "/usr/bin:/bin:/usr/sbin", "LC_ALL": "C.UTF-8"}
        try:
            done = subprocess.run(command, capture_output=True, env=environment, timeout=TIMEOUT_S, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise EnvironmentFault(
                "the rpm database cannot be read", facts=[("command", " ".join(command[:4])), ("error", str(error))]
            ) from error
        return done.stdout.decode("utf-8", "surrogateescape")

    def stamped(self) -> list[str]:
        return [self._database, f"{self._database}-wal", self._places.host("/etc/alternatives")]

    def packages(self) -> Mapping[str, Package]:
        return {id_: package for id_, (package, _) in self._known.items()}

    def contents(self, package: Package) -> Contents:
        known = {self._places.canonical(path): digest for path, digest in self._known[package.id][1].items()}
        sums = {path: digest for path, digest in known.items() if digest}
        record = "".join(f"{digest}  {path}\n" for path, digest in sorted(sums.items()))
        return Contents(tuple(known), sums, record.encode("utf-8", "surrogateescape"))

    def owners(self, paths: Collection[str]) -> dict[str, str]:
        return {path: id_ for id_, mine in self._paths() for path in mine & set(paths)}

    def ending(self, suffix: str) -> list[tuple[str, str]]:
        return endings(self._paths(), suffix)

    def _paths(self) -> Iterator[tuple[str, set[str]]]:
        for id_, (_, paths) in self._known.items():
            yield id_, set(map(self._places.canonical, paths))

    def links(self) -> list[str]:
        """What `/etc/alternatives` is reached by, from the files that alternatives(8) keeps."""
        folder = self._places.host("/var/lib/alternatives")
        found: list[str] = []
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            with open(f"{folder}/{name}", encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read().split("\n")
            found += [line for line in lines[1:2] if line.startswith("/")]
        return [self._places.canonical(link) for link in found]

    def diversions(self) -> list[tuple[str, str, str]]:
        return []
