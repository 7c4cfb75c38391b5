"""May another hash stand in for BLAKE3? Only where the user said so in so many words, before anything was hashed."""

from __future__ import annotations

FLAG = "--allow-hash-fallback"
_allowed = False


def allow_fallback() -> None:
    """From now on names are made by SHA-256 if BLAKE3 cannot be loaded, in a store of their own."""
    global _allowed  # noqa: PLW0603 - a property of the whole process: one process has one kind of names
    _allowed = True


def fallback_allowed() -> bool:
    return _allowed
