"""Manifest + targets -> Plan: the wanted instances in one deterministic order. Networkx helps only to show a cycle."""

from __future__ import annotations

import fnmatch
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from . import paths
from .claims import check_outputs
from .documents import nearest
from .drafts import Draft, list_words
from .errors import ManifestError, RequiemError, UnknownName
from .expand import Expansion
from .instance import Plan
from .links import Linker
from .listing import Listing
from .manifest import Manifest
from .paths import BadPath, quoted
from .patterns import by_bytes, unescape
from .terms import make_instance

CYCLE_WORK_MAX = 3_000_000
"""Edges looked at in search of the shortest cycle; beyond it the shortest one found so far is shown."""
CYCLE_SHOWN_MAX = 40


def make_plan(
    manifest: Manifest,
    targets: Sequence[str],
    listing: Listing,
    *,
    tags: Sequence[str] = (),
    platform: Mapping[str, str],
    cwd: str = paths.ROOT,
    missing: list[RequiemError] | None = None,
) -> Plan:
    """The plan of `targets`, else of [project].default, else of everything; of these what has one of `tags`.

    With `missing` sources need not be there, and the complaints about those that are not are collected in it.
    Raises ManifestError (among them cycles), SourceMissing or UnknownName, all exit 2.
    """
    expansion = Expansion(manifest, listing, platform, missing)
    warnings = check_outputs(expansion.drafts, expansion.outputs)
    wanted = _wanted(expansion, targets, tags, cwd)
    linker = Linker(expansion)
    linker.close(wanted)
    names = _ordered(expansion, linker)
    order = {name: index for index, name in enumerate(names)}
    declared = {path: name for name, draft in expansion.drafts.items() for path, _ in draft.output_paths()}
    return Plan(
        instances={name: make_instance(linker.links[name], order) for name in names},
        roots=dict(sorted(linker.roots.items())),
        pools=dict(manifest.pools),
        declared=declared,
        warnings=tuple(warnings),
    )


def _tags(draft: Draft) -> tuple[str, ...]:
    return tuple(by_bytes({text for text, _ in list_words(draft, "tags")}))


# Targets


def _wanted(expansion: Expansion, targets: Sequence[str], tags: Sequence[str], cwd: str) -> list[str]:
    manifest = expansion.manifest
    if targets:
        found = _all_of(expansion, targets, cwd, None)
    elif manifest.default is not None and not tags:
        found = _all_of(expansion, manifest.default, paths.parent(manifest.path), manifest)
    else:
        found = dict.fromkeys(expansion.drafts)
    if not tags:
        return list(found)
    tagged = {name: _tags(expansion.drafts[name]) for name in expansion.drafts}
    known = sorted({tag for names in tagged.values() for tag in names})
    for tag in tags:
        if tag not in known:
            raise UnknownName(f"no step has the tag {quoted(tag)}", hint=nearest(tag, known))
    return [name for name in found if not set(tags).isdisjoint(tagged[name])]


def _all_of(expansion: Expansion, targets: Iterable[str], cwd: str, default: Manifest | None) -> dict[str, None]:
    found: dict[str, None] = {}
    for index, target in enumerate(targets):
        names = _target(expansion, target, cwd)
        if names is None:
            what = f"no step, output or name matches {quoted(target)}"
            hint = _nearest_target(expansion, target, cwd)
            if default is not None:
                raise default.default_place.at(index).error(f"[project] default: {what}", hint=hint)
            raise UnknownName(what, facts=[("target", quoted(target)[1:-1])], hint=hint)
        found.update(dict.fromkeys(names))
    return found


def _target(expansion: Expansion, target: str, cwd: str) -> list[str] | None:
    """An exact name, a step, an output path from `cwd`, a pattern over names: the first that there is."""
    if target in expansion.drafts:
        return [target]
    if target in expansion.of_step:
        return [draft.name for draft in expansion.of_step[target]]
    try:
        maker = expansion.outputs.maker(unescape(paths.resolve(target, cwd)))
        if maker is not None:
            return [maker]
    except BadPath:
        pass
    if not re.search(r"[*?\[]", target):
        return None
    matches = re.compile(fnmatch.translate(target)).match
    found = [
        draft.name
        for step, drafts in expansion.of_step.items()
        for draft in drafts
        if matches(draft.name) or matches(step)
    ]
    return found or None


def _nearest_target(expansion: Expansion, target: str, cwd: str) -> str | None:
    names = [*expansion.of_step, *(name for name in expansion.drafts if ":" in name)]
    outputs = [paths.relative(path, cwd) for path in expansion.outputs.files]
    return nearest(target, names) or nearest(target, outputs)


# Order


def _ordered(expansion: Expansion, linker: Linker) -> list[str]:
    """Kahn's algorithm with a FIFO queue, ties in manifest order. Raises ManifestError for a cycle."""
    members = [name for name in expansion.drafts if name in linker.links]
    waits = {name: dict.fromkeys((*linker.links[name].needs, *linker.links[name].after)) for name in members}
    order = kahn(waits)
    if len(order) < len(members):
        raise _cycle(expansion, linker, shortest_cycle(_tangled(expansion, waits)))
    return order


def kahn(waits: Mapping[str, Iterable[str]]) -> list[str]:
    """First what waits for nothing, in the mapping's order; each one taken appends what it was the last to hold up.

    What lies on or behind a cycle is left out. A test holds it against networkx, whose import would cost more than
    the whole plan of a thousand steps.
    """
    dependents: dict[str, list[str]] = {name: [] for name in waits}
    missing: dict[str, int] = {}
    for name, needs in waits.items():
        missing[name] = 0
        for need in needs:
            dependents[need].append(name)
            missing[name] += 1
    order = [name for name, count in missing.items() if count == 0]
    for name in order:  # Grows while it is walked: the queue and the order are one list.
        for dependent in dependents[name]:
            missing[dependent] -= 1
            if missing[dependent] == 0:
                order.append(dependent)
    return order


def _tangled(expansion: Expansion, waits: Mapping[str, Mapping[str, None]]) -> dict[str, list[str]]:
    """The steps on cycles and what they wait for among themselves, small knots in manifest order."""
    import networkx

    graph = networkx.DiGraph()
    graph.add_nodes_from(waits)
    graph.add_edges_from((need, name) for name, needs in waits.items() for need in needs)
    components = [members for members in networkx.strongly_connected_components(graph) if len(members) > 1]
    tangled = {name for component in components for name in component}
    tangled.update(networkx.nodes_with_selfloops(graph))
    few = len(tangled) < 200
    return {
        name: [need for need in (expansion.drafts if few else waits[name]) if need in tangled and need in waits[name]]
        for name in waits
        if name in tangled
    }


def _cycle(expansion: Expansion, linker: Linker, cycle: Sequence[str]) -> ManifestError:
    names = [_short(name) for name in [*cycle, cycle[0]]]
    if len(names) > CYCLE_SHOWN_MAX:
        half = CYCLE_SHOWN_MAX // 2
        names[half:-half] = [f"... {len(names) - 2 * half} more ..."]
    shown = " -> ".join(names)
    first = linker.links[cycle[0]]
    second = cycle[1] if len(cycle) > 1 else cycle[0]
    step = first.draft.step
    key = "discover" if second in first.after else "inputs"
    place = step.places.get(key) or step.places.get("needs") or step.place
    by_discover = [
        name for name, next_ in zip(cycle, [*cycle[1:], cycle[0]], strict=True) if next_ in linker.links[name].after
    ]
    hint = None
    if by_discover:
        hint = f"discover of {quoted(by_discover[0])} matches an output of that cycle: take it out with !"
    error = place.error(f"steps wait for each other in a cycle: {shown}", hint=hint, kind=ManifestError)
    assert isinstance(error, ManifestError)
    return error


def _short(name: str) -> str:
    return quoted(name)[1:].removesuffix('"')


def shortest_cycle(waits: Mapping[str, Sequence[str]]) -> list[str]:
    """A shortest cycle `a, b` (a waits for b, b for a), beginning with its first node in the mapping's order.

    Breadth first from each node, no further than the best so far; the work is limited.
    """
    rank = {name: index for index, name in enumerate(waits)}
    best: list[str] = []
    work = 0
    for start in waits:
        came: dict[str, str] = {}
        queue = deque([(start, 1)])
        found = False
        while queue and not found:
            name, length = queue.popleft()
            if best and length >= len(best):
                break
            for need in waits[name]:
                work += 1
                if need == start:
                    best = [name]
                    while best[-1] != start:
                        best.append(came[best[-1]])
                    best.reverse()
                    found = True
                    break
                if need in rank and need not in came:
                    came[need] = name
                    queue.append((need, length + 1))
        if len(best) == 1 or (best and work > CYCLE_WORK_MAX):
            break
    first = min(range(len(best)), key=lambda index: rank[best[index]])
    return best[first:] + best[:first]
