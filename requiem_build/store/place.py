"""Where a store's objects lie and whether they may be written: what reading, writing and checking share."""

from __future__ import annotations

from ..core.digest import Digest, parse_digest
from ..core.errors import EnvironmentFault
from ..core.fields import dataclass
from .files import Scratch, fault

Stamp = tuple[int, int, int, int]
"""Inode, mtime, ctime and size of a file: whoever changes it in place changes its ctime."""

Part = tuple[int, int]
"""Which of how many parts of a store, from 0."""

WHOLE: Part = (0, 1)


@dataclass(frozen=True, slots=True)
class Problem:
    """One damaged thing. `digest` is None for what is no object at all; `path` is below the store's root."""

    path: str
    reason: str
    digest: Digest | None = None


class Place:
    """`base` is the absolute `v2` directory. `refusal`: why nothing may be written, or None.

    `durable`: what is written is on the disk before it counts as stored.
    """

    def __init__(
        self, base: str, scratch: Scratch, *, refusal: EnvironmentFault | None = None, durable: bool = False
    ) -> None:
        self.base = base
        self.objects = base + "/objects"
        self.quarantine = base + "/quarantine"
        self.packs = base + "/packs"
        self.scratch = scratch
        self.refusal = refusal
        self.durable = durable
        self.verified: dict[Digest, Stamp] = {}
        """Blobs whose bytes this process has read and found right, by the state of the inode then."""

    def path(self, digest: Digest) -> str:
        """Where the blob lies or would lie. Raises RequestError for what is no digest: that is never a path."""
        parse_digest(digest)
        return f"{self.objects}/{digest[:2]}/{digest[2:4]}/{digest}"

    def writing(self, digest: Digest | None, size: int) -> Translated:
        """Every write to the store passes here: refused if it may not be, and a host's refusal gets its words."""
        if self.refusal is not None:
            raise self.refusal
        return Translated(digest, self.base, size)


class Translated:
    """`with` a write to the store: an OSError inside becomes an EnvironmentFault."""

    __slots__ = ("_digest", "_needs", "_place")

    def __init__(self, digest: Digest | None, place: str, needs: int) -> None:
        self._digest, self._place, self._needs = digest, place, needs

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError):
            raise fault(error, f"storing {self._digest or 'a file'}", self._place, needs=self._needs) from error
