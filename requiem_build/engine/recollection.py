"""What the workspace's memory says of a step: that it is fresh, that its outputs can be restored, why it must run.

It knows what was made here before and what stands here now. It does not run anything, and asks no rebuilder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Mapping, Set

from ..core.digest import Digest
from ..core.entries import Entry, File
from ..core.errors import CorruptObject, MissingObject
from ..core.events import StepFinished, StepState
from ..core.fields import dataclass, field, replace
from ..core.instance import Instance
from ..core.request import Request
from ..executors.blobs import Blobs
from ..executors.discovery import discovered_now
from ..store.layout import Store
from . import explain
from .layout import Layout
from .memory import Memory, Remembered
from .rebuild import Built, is_there
from .stamps import Stamp


@dataclass(slots=True)
class Recollection:
    """Safe for several threads, of which each asks about another step. `variant` is the profile and its settings."""

    memory: Memory
    layout: Layout
    blobs: Blobs
    store: Store
    variant: str
    trust: str = ""
    """The hit policy's digest, empty if any record may answer."""
    why_refused: Callable[[Request, Mapping[str, Entry]], str] | None = None
    """Why that policy did not take a record that is there; empty if there was none."""
    explain: Callable[[Mapping[str, object], Mapping[str, object]], str] = explain.short_reason
    """Words for the difference of two requests."""
    lost: Set[str] = frozenset()
    """Steps of which nothing but outputs is known to have changed: their requests are what they were."""
    looked_at: Container[str] = frozenset()
    """With `lost`: all other steps are as they were."""
    _as_before: set[str] = field(default_factory=set)
    """Of those that were looked at, the ones that have what they had."""
    _restored: set[str] = field(default_factory=set)
    """Lost steps whose outputs were laid out before anybody asked for them."""

    def answer(
        self, instance: Instance, request: Request, offered: Mapping[str, Entry], *, restore: bool
    ) -> tuple[Remembered, StepState] | None:
        """What the step gave last, if that was this very request: in place, or else restored if that is wanted."""
        remembered = self.memory.steps.get(instance.name)
        if remembered is None or remembered.trust != self.trust:
            return None
        if remembered.discovered is not None:
            request = request.with_discovered(discovered_now(remembered.discovered, offered))
        if request.digest != remembered.request_digest:
            return None
        state: StepState = "fresh"
        if not self.in_place(instance, remembered.outputs):
            if not restore or not self._restore(instance, remembered):
                return None
            state = "hit"
        self._as_before.add(instance.name)
        return remembered, state

    def waits_for_nothing_new(self, instance: Instance) -> bool:
        """Whether all that a lost step, or a group, waits for has what it had. False where no step is lost."""
        return bool(self.lost) and all(
            need in self._as_before or need not in self.looked_at for need in (*instance.needs, *instance.after)
        )

    def note_as_before(self, group: str) -> None:
        self._as_before.add(group)

    def recovered(self, instance: Instance) -> Remembered | None:
        """What a lost step gave last, restored without its request: by induction that is the remembered one.

        Only for one that waits for nothing new. None if it is not lost, or if the store has lost it too.
        """
        remembered = self._recoverable(instance)
        if remembered is None:
            return None
        try:
            if instance.name not in self._restored and not self._restore(instance, remembered):
                return None
        except (CorruptObject, MissingObject):  # Lost since it was looked for: it is made again.
            return None
        self._as_before.add(instance.name)
        return remembered

    def _recoverable(self, instance: Instance) -> Remembered | None:
        remembered = self.memory.steps.get(instance.name) if instance.name in self.lost else None
        if remembered is None or remembered.trust != self.trust or remembered.variant != self.variant:
            return None
        return remembered

    def restore_ahead(self, instance: Instance) -> list[Stamp] | None:
        """Lays out what a lost step gave, where nothing stands, before it is known whether it waits for something new.

        Then its outputs are our own, and stale, as they would be if they had not been lost. Returns their stamps, or
        None if nothing was laid out. Raises EnvironmentFault.
        """
        remembered = self._recoverable(instance)
        try:
            if remembered is None or not self._is_kept(instance, remembered):
                return None
            stamps = self.layout.lay_out_new(instance.name, remembered.outputs)
        except (CorruptObject, MissingObject):
            return None
        if stamps is not None:
            self._restored.add(instance.name)
        return stamps

    def restored_elsewhere(self, laid: Iterable[tuple[str, list[Stamp]]]) -> None:
        """What another process did in `restore_ahead`."""
        for name, stamps in laid:
            self.layout.note_laid_out(name, self.memory.steps[name].outputs, stamps)
            self._restored.add(name)

    def _restore(self, instance: Instance, remembered: Remembered) -> bool:
        """Lays out what is remembered, if the store has all of it, verified."""
        if not self._is_kept(instance, remembered):
            return False
        self.layout.lay_out(instance.name, remembered.outputs, self.previous(instance))
        return True

    def _is_kept(self, instance: Instance, remembered: Remembered) -> bool:
        """Whether it can be laid out from what the store has, verified."""
        files = [entry for entry in remembered.outputs.values() if isinstance(entry, File)]
        if not (instance.lay_out and remembered.recorded and len(files) == len(remembered.outputs)):
            return False
        return all(is_there(self.blobs, entry) for entry in files)

    def in_place(self, instance: Instance, outputs: Mapping[str, Entry]) -> bool:
        """Whether exactly these stand in the workspace, or in the store if they are not laid out."""
        if instance.lay_out:
            return all(self.layout.is_right(path, entry) for path, entry in outputs.items())
        if not all(is_there(self.blobs, entry) for entry in outputs.values() if isinstance(entry, File)):
            return False
        return not self.store.missing_of(outputs.values())

    def previous(self, instance: Instance) -> Mapping[str, Entry]:
        """What this step made before under the same profile and settings: another variant's outputs are not stale."""
        previous = self.memory.steps.get(instance.name)
        return previous.outputs if previous is not None and previous.variant == self.variant else {}

    def renewed(self, remembered: Remembered) -> Remembered:
        """The same, under the profile and settings of now."""
        return remembered if remembered.variant == self.variant else replace(remembered, variant=self.variant)

    def learnt(self, built: Built, finished: StepFinished) -> Remembered:
        """What is to be remembered of an answer."""
        assert built.result is not None
        previous = self.memory.steps.get(finished.name)
        duration_ms = built.record.duration_ms if built.record else previous.duration_ms if previous else 0
        discovered = None if built.request.discovered is None else tuple(built.request.discovered)
        return Remembered(
            built.request.digest,
            built.result.digest,
            built.result.outputs,
            duration_ms,
            discovered,
            self.variant,
            tuple(w for w in finished.warnings if w.startswith("captured output")),
            recorded=built.recorded,
            trust=self.trust,
            record_digest=built.filed.digest if built.filed is not None else None,
        )

    def reason(self, instance: Instance, request: Request, offered: Mapping[str, Entry]) -> str:
        """Why this is not fresh, by the request that was last answered here."""
        refused = self.why_refused(request, offered) if self.why_refused is not None else ""
        if refused:
            return refused
        if instance.name in self.memory.failed:
            return "it failed last time"
        remembered = self.memory.steps.get(instance.name)
        if remembered is None:
            return "never built here"
        kept = self.store.records.find(Digest(remembered.request_digest))
        if kept is None:
            return "its last request is gone from the store"
        if remembered.discovered is not None:
            request = request.with_discovered(discovered_now(remembered.discovered, offered))
        if request.digest == remembered.request_digest:
            gone = [path for path, entry in remembered.outputs.items() if not self.layout.is_right(path, entry)]
            return f"output {gone[0]} is missing or changed" if gone else "its result is gone from the store"
        return self.explain(json.loads(kept.request), request.as_json())
