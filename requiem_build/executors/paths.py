"""Paths as a step spells them, and as requests do."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator


def ancestors(path: str) -> Iterator[str]:
    at = path.rfind("/")
    while at > 0:
        yield path[:at]
        at = path.rfind("/", 0, at)


def relative_cwd(cwd: str, workspace: str) -> str:
    return posixpath.relpath(cwd, workspace) if cwd.startswith("/") else cwd


def plain(path: str, cwd: str, host: str) -> str:
    """A path as a step spells it, relative to the workspace's root if it lies in it."""
    return posixpath.relpath(posixpath.normpath(posixpath.join(host, cwd, path)), host)
