"""What differs between two systems, in the words of `why`: the parts that this machine remembers of each digest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from ..sandbox import parts
from .explain import Change, System


def system_changes(cache_home: str, read: Callable[[str], bytes] | None = None) -> System:
    """Looks differences up in this machine's cache, and where that lacks a view of packages, by `read` in the store.

    What is in neither has none.
    """

    def find(old: str, new: str) -> Iterable[Change]:
        if read is not None:
            parts.learn(cache_home, old, read)
            parts.learn(cache_home, new, read)
        for difference in parts.differences(cache_home, old, new):
            what: Literal["new", "gone", "changed"] = (
                "new" if difference.old is None else "gone" if difference.new is None else "changed"
            )
            yield Change(difference.kind, difference.name, what, difference.old, difference.new)

    return find
