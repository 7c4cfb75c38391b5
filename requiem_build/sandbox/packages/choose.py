"""Which package database this host has. It asks each kind whether it is at home."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable

from ...core.errors import SandboxUnavailable
from ..system import APK, DPKG, PACMAN, RPM
from .base import Database, Places

_KINDS = (
    ("dpkg", "Dpkg", (f"{DPKG}/status",)),
    ("pacman", "Pacman", (PACMAN,)),
    ("apk", "Apk", APK),
    ("rpm", "Rpm", RPM),
)
"""Module, class, and what tells that it is at home; only the one that is gets imported."""


def open_database(root: str = "/") -> Database:
    """Raises SandboxUnavailable where no kind is known: then a step cannot see packages only."""
    places = Places(root)
    for module, name, files in _KINDS:
        if any(_is_kept(places.host(path)) for path in files):
            kind: Callable[[str], Database] = getattr(importlib.import_module(f".{module}", __package__), name)
            return kind(root)
    raise SandboxUnavailable(
        'this host has no package database that Requiem knows, so system = "packages" cannot be had',
        facts=[("looked for", ", ".join(files[0] for _, _, files in _KINDS))],
        hint="keep the distribution's package database in this image: the system is part of every step's key",
    )


def _is_kept(path: str) -> bool:
    """A tool of another distribution may have made an empty one."""
    return os.path.isdir(path) or (os.path.exists(path) and os.path.getsize(path) > 0)
