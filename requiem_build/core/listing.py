"""What a plan may ask of the workspace. The engine answers; the core only looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

Kind = Literal["file", "dir", "link", "other"]


class Listing(Protocol):
    def children(self, directory: str) -> Mapping[str, Kind]:
        """Name -> kind of what stands in a directory (`.` is the root); empty without one. Links are not followed."""

    def kind(self, path: str) -> Kind | None:
        """What stands at a path, links not followed; None if nothing does."""

    def is_program(self, path: str) -> bool:
        """Whether a regular file with an executable bit stands at a path."""
