"""Which versions of Requiem a manifest is for: `>=1.2,<2`."""

from __future__ import annotations

import re

from .errors import Fact
from .layers import Layer
from .paths import quoted

_CLAUSE = re.compile(r"\s*(>=|<=|==|!=|~=|>|<)?\s*([0-9]+(?:\.[0-9]+){0,3})\s*")


def check_version(project: Layer) -> None:
    from .. import __version__

    wanted = project.values.get("requiem")
    if wanted is None:
        return
    place = project.places["requiem"]
    facts: list[Fact] = [("this is", f"requiem {__version__}")]
    for clause in wanted.split(","):
        match = _CLAUSE.fullmatch(clause)
        if match is None:
            raise place.error(f"{quoted(wanted)} is no range of versions", hint='such as ">=1.0" or ">=1.2,<2"')
        if not _fits(
            _release(__version__), match.group(1) or "==", _release(match.group(2)), match.group(2).count(".")
        ):
            raise place.error(
                f"this manifest wants requiem {quoted(wanted)}", facts=facts, hint="pip install -U requiem-build"
            )


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    numbers = [int(part[:9]) for part in match.group().split(".")] if match else []
    return tuple([*numbers, 0, 0, 0, 0][:4])


def _fits(ours: tuple[int, ...], relation: str, theirs: tuple[int, ...], dots: int) -> bool:
    match relation:
        case ">=":
            return ours >= theirs
        case "<=":
            return ours <= theirs
        case ">":
            return ours > theirs
        case "<":
            return ours < theirs
        case "==":
            return ours == theirs
        case "!=":
            return ours != theirs
        case _:  # ~=1.2 is >=1.2 and ==1.*
            return ours >= theirs and ours[: max(dots, 1)] == theirs[: max(dots, 1)]
