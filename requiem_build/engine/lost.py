"""What the store lost during a build is had again: from the workspace, else by running the steps that made it.

Anybody may delete objects, or all of the store, at any moment. That costs time and is never an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..core.entries import Entry
from ..core.errors import CorruptObject, MissingObject
from ..core.instance import Instance
from ..store.layout import Store
from .workspace import InputChanged, Workspace

Made = Mapping[str, Mapping[str, Entry]]


def recover(
    instance: Instance,
    instances: Mapping[str, Instance],
    known: dict[str, Mapping[str, Entry]],
    *,
    store: Store,
    workspace: Workspace,
    run: Callable[[Instance, Made], Mapping[str, Entry] | None],
) -> Made:
    """The outputs of all that a step waits for, in the store again as far as that can be had.

    `known` holds the outputs of every step that has ended; `run` runs one of them once more, and gives its outputs
    or None if it failed. They come in plan order, so what one of them needs is there when its turn comes.
    """
    for name in _before(instance, instances):
        outputs = known.get(name)
        if outputs is None or not store.missing_of(outputs.values()) or _from_workspace(workspace, outputs):
            continue
        again = run(instances[name], _made(instances[name], known))
        if again is not None:
            known[name] = again
    return _made(instance, known)


def _made(instance: Instance, known: Mapping[str, Mapping[str, Entry]]) -> Made:
    return {need: known.get(need, {}) for need in (*instance.needs, *instance.after)}


def _before(instance: Instance, instances: Mapping[str, Instance]) -> list[str]:
    """Everything that a step waits for, directly or not, in plan order."""
    wanted = {*instance.needs, *instance.after}
    pending = list(wanted)
    for name in pending:
        more = {*instances[name].needs, *instances[name].after} - wanted
        wanted |= more
        pending.extend(more)
    return [name for name in instances if name in wanted]


def _from_workspace(workspace: Workspace, outputs: Mapping[str, Entry]) -> bool:
    """Whether all of them lie in the workspace as they were made; then they are put into the store again."""
    try:
        for path, entry in outputs.items():
            workspace.keep(path, entry)
    except (InputChanged, CorruptObject, MissingObject):
        return False
    return True
