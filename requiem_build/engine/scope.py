"""What a build looks at: all of a plan, or only what a change leads to. One shape for both, so that the build need not
know which it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Protocol

from ..core.entries import Entry
from ..core.fields import dataclass
from ..core.instance import Instance, Plan
from .journal import places_of
from .memory import Memory
from .plans import Planned
from .stamps import Stamp


class Scope(Protocol):
    @property
    def planned(self) -> Planned:
        """The plan, with none but the instances to be looked at."""

    @property
    def order(self) -> Plan:
        """The same, in which they wait for none but each other."""

    @property
    def instances(self) -> Mapping[str, Instance]:
        """Every instance that any of them waits for, too."""

    @property
    def total(self) -> int:
        """How many steps the whole plan has, without groups."""

    @property
    def lost(self) -> Set[str]:
        """Those of whose own paths only outputs are gone: nothing that they read."""

    def places(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Of each that is no group, its place in the whole plan and those of what comes first."""

    def stamp(self, root: str, path: str) -> Stamp | None:
        """What a path had when it was decided what to look at; None where that was not asked."""

    def made(self) -> dict[str, Entry]:
        """What Requiem put into the workspace, as far as the build may touch it."""

    def known(self) -> dict[str, Mapping[str, Entry]]:
        """The outputs of what is not looked at; those of others are added as they end."""


@dataclass(frozen=True, slots=True)
class Whole:
    """All of a plan."""

    planned: Planned
    memory: Memory

    @property
    def order(self) -> Plan:
        return self.planned.plan

    @property
    def instances(self) -> Mapping[str, Instance]:
        return self.planned.plan.instances

    @property
    def total(self) -> int:
        return sum(not instance.is_group for instance in self.instances.values())

    @property
    def lost(self) -> Set[str]:
        return frozenset()

    def places(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        return places_of(self.planned.plan)

    def stamp(self, root: str, path: str) -> Stamp | None:
        return None

    def made(self) -> dict[str, Entry]:
        return self.memory.made()

    def known(self) -> dict[str, Mapping[str, Entry]]:
        return {}
