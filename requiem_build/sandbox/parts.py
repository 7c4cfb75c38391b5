"""What a system's digest was made of, kept beside it so that a later difference can be named: only for messages.

A digest says that the system is another; this says `package gcc-12 12.2.0-14 -> 12.2.0-15`. Lost or damaged
parts cost the detail, nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from ..core.errors import RequiemError
from ..core.fields import dataclass

KEPT_MAX = 64
FILES_MAX = 50_000


@dataclass(frozen=True, slots=True)
class Difference:
    """`kind` is `package` or `system file`. `old` and `new` are versions or words; None where it is not there."""

    kind: str
    name: str
    old: str | None
    new: str | None


def keep(cache_dir: str, digest: str, packages: Iterable[bytes], described: Iterable[bytes]) -> None:
    """Writes down what a digest covers. `packages` are `name version architecture`, `described` the lines of files."""
    lines = list(described)
    files = {} if len(lines) > FILES_MAX else dict(_file(line) for line in lines)
    folder = os.path.join(cache_dir, "system.parts")
    path = os.path.join(folder, digest)
    mine = f"{path}.{os.getpid()}"
    with suppress(OSError):
        os.makedirs(folder, exist_ok=True)
        with open(mine, "w", encoding="utf-8", errors="surrogateescape") as file:
            json.dump({"files": files, "packages": [_text(line) for line in packages]}, file)
        os.replace(mine, path)  # Readers see the whole or none.
        kept = sorted(os.scandir(folder), key=lambda item: -item.stat().st_mtime_ns)
        for item in kept[KEPT_MAX:]:
            os.unlink(item.path)


def learn(cache_dir: str, digest: str, read: Callable[[str], bytes]) -> None:
    """Takes the parts of a view of packages from its document, where this machine does not know them yet.

    `read` gives an object's bytes, and raises RequiemError for one that is not there.
    """
    if os.path.exists(os.path.join(cache_dir, "system.parts", digest)):
        return
    with suppress(RequiemError, ValueError, KeyError, TypeError):
        document = read(digest)
        packages = [" ".join(each[:3]).encode("utf-8", "surrogateescape") for each in json.loads(document)["packages"]]
        keep(cache_dir, digest, packages, lines_of(document))


def lines_of(document: bytes) -> list[bytes]:
    """The files and links of a view of packages, described as `keep` takes them."""
    view = json.loads(document)
    lines = [f"file\0{path}\0{digest}" for path, digest in view["files"].items()]
    lines += [f"link\0{path}\0{target}" for path, target in view["links"].items()]
    lines += [f"absent\0{path}\0" for path in view["absent"]]
    return [line.encode("utf-8", "surrogateescape") for line in lines]


def differences(cache_dir: str, old: str, new: str) -> list[Difference]:
    """What differs between two systems that this machine knows, packages first; empty if either is not known."""
    before, after = _load(cache_dir, old), _load(cache_dir, new)
    if before is None or after is None:
        return []
    found = [Difference("package", *each) for each in _compared(_versions(before), _versions(after))]
    files = _compared(before.get("files", {}), after.get("files", {}))
    return found + [Difference("system file", name, _kind(a), _kind(b)) for name, a, b in files]


def _load(cache_dir: str, digest: str) -> dict[str, dict[str, str]] | None:
    try:
        with open(os.path.join(cache_dir, "system.parts", digest), encoding="utf-8", errors="surrogateescape") as file:
            value = json.load(file)
        return {"files": dict(value["files"]), "packages": dict.fromkeys(value["packages"], "")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _versions(parts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Name -> version; the architecture is named where one name is there for several."""
    found: dict[str, str] = {}
    for line in parts["packages"]:
        name, _, rest = line.partition(" ")
        version, _, architecture = rest.partition(" ")
        found[f"{name}:{architecture}" if name in found else name] = version
    return found


def _compared(old: Mapping[str, str], new: Mapping[str, str]) -> list[tuple[str, str | None, str | None]]:
    names = sorted(old.keys() | new.keys())
    return [(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _file(line: bytes) -> tuple[str, str]:
    kind, _, rest = line.partition(b"\0")
    name, _, content = rest.partition(b"\0")
    return _text(name), _text(kind + b" " + content)


def _kind(described: str | None) -> str | None:
    return None if described is None else described.partition(" ")[0]


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def known_digests(cache_dir: str) -> list[str]:
    """The systems that this machine remembers, newest first."""
    with suppress(OSError):
        kept = sorted(os.scandir(os.path.join(cache_dir, "system.parts")), key=lambda item: -item.stat().st_mtime_ns)
        return [item.name for item in kept if "." not in item.name]
    return []
