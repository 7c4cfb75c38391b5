"""Which objects does a record lead to, and are they all there? A walk over an inventory, without a file.

Each tree is walked once for each question, however many records name it.
"""

from __future__ import annotations

from ..core.digest import Digest
from .inventory import Inventory, Item


class Marks:
    """Which objects are kept (`marked`), and which are named by anything at all."""

    def __init__(self, found: Inventory) -> None:
        self._found = found
        self._whole: dict[Digest, bool] = {}
        self.marked: set[Digest] = set()
        self.kept: set[str] = set()
        """The names of what holds the marked ones."""
        self.named: set[Digest] = set()

    def name(self, item: Item) -> None:
        self.named |= self._below(item.needs | item.names, self.named)

    def kept_by(self, item: Item) -> set[Digest]:
        """What would be marked anew if the item were kept."""
        return self._below(item.needs | item.names, self.marked)

    def _below(self, tops: frozenset[Digest], seen: set[Digest]) -> set[Digest]:
        found: set[Digest] = set()
        pending = [digest for digest in tops if digest in self._found.objects and digest not in seen]
        for digest in pending:
            if digest not in found:
                found.add(digest)
                pending += [
                    below
                    for below in self._found.trees.get(digest, ())
                    if below in self._found.objects and below not in seen
                ]
        return found

    def cost(self, digests: set[Digest]) -> int:
        """What keeping these adds, in bytes on disk: a pack is kept whole."""
        new = {self._found.objects[digest] for digest in digests}
        return sum(held.size for held in new if held.name not in self.kept)

    def keep(self, digests: set[Digest]) -> None:
        self.marked |= digests
        self.kept.update(self._found.objects[digest].name for digest in digests)

    def is_whole(self, item: Item) -> bool:
        return all(self._is_there(digest) for digest in item.needs)

    def _is_there(self, top: Digest) -> bool:
        """Whether an object is there with all below it."""
        if top not in self._whole:
            pending, seen = [top], {top}
            for digest in pending:
                held = self._found.objects.get(digest)
                if held is None or not held.whole or self._whole.get(digest) is False:
                    self._whole[top] = False
                    return False
                below = () if self._whole.get(digest) else self._found.trees.get(digest, ())
                pending += [one for one in below if one not in seen]
                seen.update(below)
            self._whole.update(dict.fromkeys(seen, True))
        return self._whole[top]
