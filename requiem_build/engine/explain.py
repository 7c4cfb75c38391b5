"""Why is this a miss? A diff of two requests, so that the reason can never drift from the key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SINGLE = {
    "cwd": "working directory",
    "depfile": "depfile",
    "platform": "platform",
    "salt": "salt",
    "stdin": "stdin",
    "world": "world",
    "discover": "discover patterns",
    "outputs": "declared outputs",
    "secrets": "secrets",
}


def reasons(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Every difference between two requests' JSON values, the most telling first."""
    yield from _paths("input", old["inputs"], new["inputs"])
    yield from _paths("discovered input", old["discovered"] or {}, new["discovered"] or {})
    if old["command"] != new["command"]:
        yield "command changed"
    yield from _named("variable", old["env"], new["env"])
    yield from _named("tool", old["tools"], new["tools"])
    yield from _roots(old["roots"], new["roots"])
    for name in sorted(new["policy"]):
        if old["policy"].get(name) != new["policy"][name]:
            yield f"{name} {old['policy'].get(name)} -> {new['policy'][name]}"
    for name, shown in _SINGLE.items():
        if old[name] != new[name]:
            yield f"{shown} changed"


def short_reason(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """One line: the first difference, and how many more there are."""
    found = list(reasons(old, new))
    if not found:
        return "its result is gone from the store"
    return found[0] if len(found) == 1 else f"{found[0]} (and {len(found) - 1} more)"


def _paths(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for path in sorted(new):
        if path == "//discover":
            if path in old and old[path] != new[path]:
                yield "the files that discover matches are others"
        elif path not in old:
            yield f"new {kind} {path}"
        elif old[path] != new[path]:
            yield f"{kind} {path} changed"
    for path in sorted(old.keys() - new.keys()):
        yield f"{kind} {path} is gone"


def _named(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(new.keys() | old.keys()):
        if name not in old:
            yield f"new {kind} {name}"
        elif name not in new:
            yield f"{kind} {name} is gone"
        elif old[name] != new[name]:
            yield f"{kind} {name} changed"


def _roots(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for path in sorted(new.keys() | old.keys()):
        if old.get(path) != new.get(path):
            yield "the system changed" if path == "/usr" else f"root {path} changed"
