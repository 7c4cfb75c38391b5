"""Why is this a miss? A diff of two requests, so that the reason can never drift from the key.

It knows requests as JSON values and nothing else; what a system's digest is made of is asked of `system`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..core.fields import dataclass
from ..core.request import ABSENT, LISTING, SYSTEM_ROOT

SHOWN_MAX = 60

_LISTED = "the files that discover matches are others"
_SHADOWING = "the files that bear the name of a system header are others"
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


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `what` is `new`, `changed` or `gone`; `old` and `new` are as the requests hold them, else None.

    `kind` is one of input, discovered input, discover, command, variable, tool, root, system, package, system file,
    policy, and the words of single fields.
    """

    kind: str
    name: str
    what: str
    old: Any = None
    new: Any = None

    @property
    def text(self) -> str:
        """One line for a person, without values that may be long or secret."""
        match self.kind:
            case "discover":
                return self.name
            case "command":
                return "command changed"
            case "system":
                return "the system changed"
            case "policy":
                return f"{self.name} {self.old} -> {self.new}"
            case "package" if self.what == "changed":
                return f"package {self.name} {self.old} -> {self.new}"
            case "package":
                return f"package {self.name} " + (f"{self.new} is new" if self.what == "new" else f"{self.old} is gone")
        subject = f"{self.kind} {self.name}".rstrip()
        return (
            f"new {subject}"
            if self.what == "new"
            else f"{subject} {'changed' if self.what == 'changed' else 'is gone'}"
        )


System = Callable[[str, str], Iterable[Change]]
"""Two digests of the system view -> what of them differs, where that is known; empty otherwise."""


def changes(old: Mapping[str, Any], new: Mapping[str, Any], system: System | None = None) -> list[Change]:
    """Every difference between two requests' JSON values, the most telling first."""
    return list(_changes(old, new, system))


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], system: System | None) -> Iterator[Change]:
    yield from _named("input", old["inputs"], new["inputs"])
    yield from _discovered(old["discovered"] or {}, new["discovered"] or {})
    if old["command"] != new["command"]:
        yield Change("command", "", "changed", old["command"], new["command"])
    yield from _named("variable", old["env"], new["env"])
    views = (old["policy"].get("system"), new["policy"]["system"])
    if views[0] != views[1]:  # All that the host has, or packages: what differs between the two is no change of either.
        yield Change("policy", "system", "changed", *views)
        yield from _named("root", _without_system(old["roots"]), _without_system(new["roots"]))
    else:
        yield from _roots(old["roots"], new["roots"], system)
    yield from _named("tool", old["tools"], new["tools"])
    for name in sorted(new["policy"]):
        if name != "system" and old["policy"].get(name) != new["policy"][name]:
            yield Change("policy", name, "changed", old["policy"].get(name), new["policy"][name])
    for name, shown in _SINGLE.items():
        if old[name] != new[name]:
            yield Change(shown, "", "changed", old[name], new[name])


def short_reason(
    old: Mapping[str, Any], new: Mapping[str, Any], system: System | None = None, *, shown_max: int = 1
) -> str:
    """One line: the first differences, and how many more there are."""
    found = [change.text for change in changes(old, new, system)]
    if not found:
        return "its result is gone from the store"
    more = len(found) - shown_max
    return "; ".join(found[:shown_max]) + (f" (and {more} more)" if more > 0 else "")


def _discovered(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Change]:
    """A path that was looked for and is there now is new; `absent` is no file."""
    for path in sorted(new):
        if path[:2] == "//" and path in old and old[path] != new[path]:
            told = _LISTED if path == LISTING else _SHADOWING
            yield Change("discover", told, "changed", old[path], new[path])
    plain = [{p: d for p, d in side.items() if p[:2] != "//" and d != ABSENT} for side in (old, new)]
    yield from _named("discovered input", plain[0], plain[1])


def _named(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for name in sorted(new):
        if name not in old:
            yield Change(kind, name, "new", None, new[name])
        elif old[name] != new[name]:
            yield Change(kind, name, "changed", old[name], new[name])
    for name in sorted(old.keys() - new.keys()):
        yield Change(kind, name, "gone", old[name], None)


def _roots(old: Mapping[str, str], new: Mapping[str, str], system: System | None) -> Iterator[Change]:
    before, after = old.get(SYSTEM_ROOT), new.get(SYSTEM_ROOT)
    if before != after:
        known = list(system(before, after)) if system is not None and before and after else []
        yield from known or [Change("system", "", "changed", before, after)]
    yield from _named("root", _without_system(old), _without_system(new))


def _without_system(roots: Mapping[str, str]) -> dict[str, str]:
    return {path: digest for path, digest in roots.items() if path != SYSTEM_ROOT}
