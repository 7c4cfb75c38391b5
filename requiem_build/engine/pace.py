"""How many steps run at once, and which first? As was asked, by the machine, and by how long each took before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from ..core.frontier import Priority, critical_path_first, plan_order
from ..core.instance import Plan
from .site import processors

if TYPE_CHECKING:
    from .admission import Admission
    from .memory import Memory
    from .options import Options
    from .site import Site

OVERLAP = 1
"""Workers beyond the steps that may run at once: while one collects its outputs, another's step runs."""


class Pace:
    def __init__(self, site: Site, options: Options) -> None:
        self._settings, self._options = site.settings, options
        self._in_order = options.mode == "repro" or options.dry_run
        self._held_to_one = False

    def jobs(self) -> int:
        """How many steps may run at once."""
        if self._in_order or self._held_to_one:
            return 1
        return self._options.jobs or self._settings.jobs or processors()

    def workers(self) -> int:
        return 1 if self._in_order else self.jobs() + OVERLAP

    def admission(self, cancelled: Callable[[], bool], warn: Callable[[str], None]) -> Admission | None:
        """What holds steps back while the machine is busy, if anything was asked to. What it refuses is told."""
        settings, options = self._settings, self._options
        wanted = settings.max_load or options.max_load or settings.min_memory or options.environment.get("MAKEFLAGS")
        if not wanted or self._in_order:
            return None
        from .admission import gate

        found = gate(options, settings, cancelled=cancelled)
        if found.refusal:
            warn(f"{found.refusal}; one step at a time")
            self._held_to_one = True
        return found.admission

    def priority(self, order: Plan, names: Iterable[str], durations: Callable[[], Mapping[str, int]]) -> Priority:
        """Which of the instances of `order` comes first. `names` are all that the plan has."""
        if self._options.shuffle is not None:
            import random

            shuffled = random.Random(self._options.shuffle)
            places = {name: shuffled.random() for name in names}
            return places.__getitem__
        return plan_order if self._in_order else critical_path_first(order, durations())


def durations_ms(plan: Plan, memory: Memory) -> dict[str, int]:
    """Of each step of the plan, how long it took when it last ran; 0 where that is not known."""
    steps = memory.steps
    names = (name for name, instance in plan.instances.items() if not instance.is_group)
    return {name: steps[name].duration_ms if name in steps else 0 for name in names}
