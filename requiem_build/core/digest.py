"""Digests: BLAKE3-256 names for bytes, one domain for each kind of thing that is named."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any, NewType

from .errors import EnvironmentFault, RequestError
from .primitive import FLAG, fallback_allowed

HASH = "blake3-256"
"""What a store's mark says of how its names are made."""

blake3: Any
try:
    from blake3 import blake3
except ImportError as error:
    if not fallback_allowed():  # Fail closed: no other hash may stand in for the names of things.
        raise EnvironmentFault(
            "the hash primitive BLAKE3 cannot be loaded",
            facts=[("cause", str(error))],
            hint=f"pip install --force-reinstall blake3, or {FLAG}: SHA-256, in a store of its own",
        ) from error
    from hashlib import sha256 as blake3

    HASH = "sha256"

IS_FALLBACK = HASH != "blake3-256"

Digest = NewType("Digest", str)

_HEX = re.compile(r"[0-9a-f]{64}")


class Domain(Enum):
    """The prefix that keeps a request from ever being taken for a file with the same bytes."""

    REQUEST = b"req:"
    RESULT = b"res:"
    OBJECT = b"cas:"


def digest(domain: Domain, content: bytes) -> Digest:
    """`BLAKE3-256(domain || content)` as 64 lower-case hex digits."""
    return Digest(blake3(domain.value + content).hexdigest())


def object_digest(content: bytes) -> Digest:
    """The name of a blob: the same for an input, an output and a captured stream."""
    return Digest(blake3(b"cas:" + content).hexdigest())


class Hasher:
    """The name of a blob that arrives in pieces."""

    __slots__ = ("_hash", "size")

    def __init__(self) -> None:
        self._hash = blake3(b"cas:")
        self.size = 0

    def update(self, piece: bytes | memoryview) -> None:
        self._hash.update(piece)
        self.size += len(piece)

    def digest(self) -> Digest:
        return Digest(self._hash.hexdigest())


def parse_digest(text: str) -> Digest:
    """A digest from outside. Raises RequestError for anything but 64 lower-case hex digits."""
    if not _HEX.fullmatch(text):
        raise RequestError(
            f"not a BLAKE3-256 digest: {text[:80]!r}", hint="a digest is 64 lower-case hexadecimal digits"
        )
    return Digest(text)


def is_digest(text: object) -> bool:
    return isinstance(text, str) and _HEX.fullmatch(text) is not None


EMPTY = object_digest(b"")
