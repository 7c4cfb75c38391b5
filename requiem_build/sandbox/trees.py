"""Which of a step's inputs lie in a tree that steps share? Decided here, made by the worker (`shelf.py`).

A step with many inputs is shown them as one read-only layer below its workspace, and the next steps with the same
ones are shown the same layer (docs/decisions/0041-shared-trees.md). A tree is known by all that is in it: paths,
bytes and modes are compared, not names of them. It knows no kernel and no digest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from ..core.fields import dataclass
from .base import Job, Staged
from .layout import plan_directories

INPUTS_MIN = 64
"""From here on a layer is cheaper than writing each file and looking whether it is still what it was."""

BYTES_MAX = 64 * 1024 * 1024
"""Of all the trees of one worker, which lie in memory; one more while it is made, before others are dropped."""

TREES_MAX = 8
REST_MAX = 16
"""So many files are written beside a tree rather than making another tree; or a tenth of all, if that is more."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`rest` is what of the job's inputs does not lie in the tree. `directories` are those that the tree has."""

    number: int
    directories: frozenset[str]
    rest: Sequence[Staged]
    made_of: tuple[Staged, ...] | None
    """What the worker must put into the tree first; None if it has it."""
    dropped: tuple[int, ...]
    """Trees that it shall forget."""


def may_lie_in_tree(item: Staged) -> bool:
    """Files whose bytes are known, and empty directories."""
    return item.source is None and item.symlink is None


@dataclass(frozen=True, slots=True)
class _Tree:
    items: Mapping[str, Staged]
    directories: frozenset[str]
    size: int


class Trees:
    """What one worker has on its shelf, newest use last."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, _Tree] = OrderedDict()
        self._number = 0
        self._last: Mapping[str, Staged] = {}

    def choose(self, job: Job) -> Choice | None:
        """None where a tree is not worth it."""
        wanted = {item.path: item for item in job.staged if may_lie_in_tree(item)}
        if len(wanted) < INPUTS_MIN:
            return None
        beside = max(REST_MAX, len(wanted) // 10)
        before, self._last = self._last, wanted
        for number in reversed(self._known):
            tree = self._known[number]
            if len(wanted) - beside <= len(tree.items) <= len(wanted) and tree.items.items() <= wanted.items():
                self._known.move_to_end(number)
                return Choice(number, tree.directories, _rest(job, tree.items), None, ())
        # What two steps in a row have in common is likely what the third has, too.
        common = {path: item for path, item in wanted.items() if _equal(before.get(path), item)}
        items = common if len(wanted) - beside <= len(common) else wanted
        size = sum(len(item.data) for item in items.values() if item.data is not None)
        if size > BYTES_MAX:
            return None
        return self._add(job, items, size)

    def _add(self, job: Job, items: Mapping[str, Staged], size: int) -> Choice:
        dropped = []
        while self._known and (
            len(self._known) >= TREES_MAX or size + sum(tree.size for tree in self._known.values()) > BYTES_MAX
        ):
            dropped.append(self._known.popitem(last=False)[0])
        self._number += 1
        made_of = tuple(items[path] for path in sorted(items))
        directories = frozenset(plan_directories(Job((), {}, staged=made_of)))
        self._known[self._number] = _Tree(items, directories, size)
        return Choice(self._number, directories, _rest(job, items), made_of, tuple(dropped))


def _rest(job: Job, items: Mapping[str, Staged]) -> list[Staged]:
    return [item for item in job.staged if item.path not in items]


def _equal(one: Staged | None, other: Staged) -> bool:
    """Of two that may lie in a tree, at one path."""
    if one is other:
        return True
    return one is not None and one.data == other.data and one.executable == other.executable
