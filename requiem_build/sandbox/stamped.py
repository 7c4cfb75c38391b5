"""What this machine remembers of its system: small JSON files that carry their own digest, and digests by stamp.

Lost or damaged they cost time, nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

SETTLED_NS = 2_000_000_000
"""A file that changed less than this before it was read may change again without its stamp changing."""


class Sealed:
    """A JSON object in a file that carries its own digest. Damaged, missing or unwritable, it is empty."""

    def __init__(self, path: str) -> None:
        self._path = path

    def load(self) -> dict[str, Any]:
        from ..core.digest import object_digest

        try:
            with open(self._path, "rb") as file:
                seal, _, body = file.read().partition(b"\n")
            if object_digest(body).encode() != seal:
                return {}
            known = json.loads(body)
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def save(self, known: Mapping[str, Any]) -> None:
        from ..core.digest import object_digest

        body = json.dumps(known, sort_keys=True, separators=(",", ":")).encode()
        mine = f"{self._path}.{os.getpid()}.{time.monotonic_ns()}"
        try:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            with open(mine, "wb") as file:
                file.write(object_digest(body).encode() + b"\n" + body)
            os.replace(mine, self._path)  # Readers see the old memory or the new one.
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(mine)


class Memory:
    """Digests of files by path and stamp."""

    def __init__(self, path: str, began_ns: int) -> None:
        self._file = Sealed(path)
        self._known = self._file.load()
        self._kept: dict[str, list[object]] = {}
        self._began_ns = began_ns

    def digest(self, path: str, seen: os.stat_result) -> str:
        """Of the file's content, read only if its stamp is new."""
        return self._look_up(path, path, seen, lambda content: content)

    def derive(self, path: str, view: Callable[[bytes], bytes]) -> str:
        """Of what `view` makes of the file's content."""
        return self._look_up(f"packages of {path}", path, os.stat(path), view)

    def _look_up(self, key: str, path: str, seen: os.stat_result, view: Callable[[bytes], bytes]) -> str:
        stamp = _stamp(seen)
        known = self._known.get(key)
        if known is not None and known[1:] == stamp:
            self._kept[key] = known
            return str(known[0])
        from ..core.digest import object_digest

        with open(path, "rb") as file:
            digest = object_digest(view(file.read()))
            after = _stamp(os.fstat(file.fileno()))
        settled = max(seen.st_mtime_ns, seen.st_ctime_ns) < self._began_ns - SETTLED_NS
        if settled and after == stamp:
            self._kept[key] = [digest, *stamp]
        return digest

    def save(self) -> None:
        if self._kept != self._known:
            self._file.save(self._kept)


def _stamp(seen: os.stat_result) -> list[int]:
    return [seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size, seen.st_ino, seen.st_mode]
