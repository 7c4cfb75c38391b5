"""Takes away what Requiem made, and nothing else."""

from __future__ import annotations

import os

from ..core.errors import EnvironmentFault, UsageError
from ..core.events import Listener, Warned
from ..core.fields import dataclass
from ..core.patterns import is_pattern, unescape
from ..executors.blobs import Blobs
from . import memory as memories
from . import plans
from .journal import new_run_id
from .layout import Layout
from .lock import workspace_lock
from .options import Options
from .site import find_site, open_store, prepare_dot, question_of
from .stamps import Stamps


@dataclass(frozen=True, slots=True)
class Cleaned:
    """`kept` is what stands at an output's path but is not as we made it."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]


def clean(options: Options, listener: Listener) -> Cleaned:
    """Removes every output that is still as it was made. With targets, only those steps' outputs."""
    site = find_site(options)
    prepare_dot(site.dot)
    with workspace_lock(site.dot, wait=options.wait, notice=lambda text: listener(Warned(text))):
        memory = memories.load(site.dot, site.seal)
        wanted: set[str] | None = None
        declared: dict[str, str] = {}
        if options.targets or not memory.steps:
            planned = plans.obtain(site.root, question_of(site, options), site.seal, site.settings.roots)
            wanted = set(planned.plan.instances) if options.targets else None
            declared = dict(planned.plan.declared)
        store = open_store(site)
        blobs = Blobs(store.objects)
        stamps = Stamps(memory.known)
        layout = Layout(site.root, new_run_id(), stamps, blobs, memory.made(), {}, lambda text: listener(Warned(text)))
        removed: list[str] = []
        kept: list[str] = []
        for name in list(memory.steps):
            if wanted is not None and name not in wanted:
                continue
            for path, entry in memory.steps[name].outputs.items():
                if not os.path.lexists(os.path.join(site.root, path.rstrip("/"))):
                    continue
                if options.dry_run:
                    (removed if layout.is_right(path, entry) else kept).append(path)
                else:
                    (removed if layout.remove(path) else kept).append(path)
            if not options.dry_run:
                del memory.steps[name]
        for pattern, name in declared.items():
            path = unescape(pattern)
            if memory.steps or is_pattern(pattern) or (wanted is not None and name not in wanted):
                continue
            _clean_unremembered(path, layout, removed, kept, dry_run=options.dry_run)
        if not options.dry_run:
            memories.save(site.dot, site.seal, memory)
        return Cleaned(tuple(dict.fromkeys(removed)), tuple(dict.fromkeys(kept)))


def _clean_unremembered(path: str, layout: Layout, removed: list[str], kept: list[str], *, dry_run: bool) -> None:
    """Without memory, the store is the witness: what it knows by digest was made (or at least can be had again)."""
    if path in removed or path in kept:
        return
    try:
        entry = layout.current(path)
    except (UsageError, EnvironmentFault):
        kept.append(path)
        return
    if entry is None:
        return
    if layout.knows_entry(entry):
        if not dry_run:
            layout.adopt(path, entry)
            layout.remove(path)
        removed.append(path)
    else:
        kept.append(path)
