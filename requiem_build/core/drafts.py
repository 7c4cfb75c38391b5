"""A draft: one instance on its way, and its texts filled in, each complaint at its key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from . import paths, patterns
from .documents import Place
from .errors import RequiemError, SourceMissing
from .fields import dataclass, field
from .manifest import Step
from .paths import BadPath, quoted
from .patterns import BadPattern, compile_pattern
from .texts import line, words
from .values import BadTemplate

_UP_AFTER_WILDCARD = re.compile(r"[*?\[].*/\.\.(/|$)", re.DOTALL)


@dataclass(slots=True)
class Entry:
    """One item of `inputs` or `outputs`: what it means, and what it is called. `one` if it was written as one path."""

    name: str | None
    one: bool
    items: list[str]
    places: list[Place]


@dataclass(slots=True)
class Draft:
    """`each` holds plain values; those in `exact` are matched paths. Outputs are workspace-relative and escaped."""

    name: str
    step: Step
    each: Mapping[str, Any]
    exact: frozenset[str]
    names: dict[str, Any]
    cwd: str = "."
    outputs: list[Entry] = field(default_factory=list)

    @property
    def is_group(self) -> bool:
        return "command" not in self.step.values

    def output_paths(self) -> Iterator[tuple[str, Place]]:
        for entry in self.outputs:
            yield from zip(entry.items, entry.places, strict=True)


def workspace_pattern(text: str, folder: str, place: Place) -> patterns.Pattern:
    """A pattern as written in the manifest of `folder`. Raises ManifestError at its place."""
    try:
        if _UP_AFTER_WILDCARD.search(text):
            raise BadPath("holds .. after a wildcard")
        resolved = paths.resolve(text, folder)
        if resolved == paths.ROOT:
            raise BadPath("is the whole workspace")
        return compile_pattern(resolved)
    except (BadPath, BadPattern) as error:
        raise place.error(f"pattern {quoted(text)} {error}") from error


def no_match(text: str, owner: str, place: Place) -> RequiemError:
    return place.error(f"{owner}: nothing matches {quoted(text)}", kind=SourceMissing)


def nothing_left(exclude: str, owner: str, place: Place) -> RequiemError:
    return place.error(
        f"{owner}: {quoted(exclude)} takes away all that there is",
        hint="an exclude takes away what stands before it in the list",
        kind=SourceMissing,
    )


# Texts of one draft, with their complaints


class telling:
    """Turns what is wrong with a template into the complaint about its key."""

    def __init__(self, step: Step, key: str, place: Place) -> None:
        self._step, self._key, self._place = step, key, place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, BadTemplate):
            raise self._place.error(
                f"`{self._key}` of step {quoted(self._step.name)}: {error.what}", hint=error.hint
            ) from error


def entries(draft: Draft, key: str) -> Iterator[Entry]:
    """`inputs` or `outputs`, filled in: one entry for each item as written."""
    value = draft.step.values[key]
    place = draft.step.places[key]
    named = value.items() if isinstance(value, dict) else [(None, value)]
    for name, written in named:
        where = place if name is None else place.at(name)
        items = written if isinstance(written, list) else [written]
        for index, item in enumerate(items):
            at = where.at(index) if isinstance(written, list) else where
            with telling(draft.step, key, at):
                filled = words(item, draft.names, literal_paths=True)
            yield Entry(name, not isinstance(written, list), filled, [at] * len(filled))


def list_words(draft: Draft, key: str, *, literal_paths: bool = False) -> list[tuple[str, Place]]:
    """A list of texts (or one text), filled in, each with its place. Where patterns may stand, paths are escaped."""
    value = draft.step.values.get(key)
    if value is None:
        return []
    place = draft.step.places[key]
    found: list[tuple[str, Place]] = []
    items = value if isinstance(value, list) else [value]
    for index, item in enumerate(items):
        at = place.at(index) if isinstance(value, list) else place
        with telling(draft.step, key, at):
            found.extend((word, at) for word in words(item, draft.names, literal_paths=literal_paths))
    return found


def one_word(draft: Draft, key: str, *, literal_paths: bool = False) -> str:
    found = list_words(draft, key, literal_paths=literal_paths)
    if len(found) != 1:
        raise draft.step.places[key].error(
            f"`{key}` of step {quoted(draft.step.name)} wants one path, not {len(found)}"
        )
    return found[0][0]


def one_line(draft: Draft, key: str, names: Mapping[str, Any]) -> str:
    text = draft.step.values.get(key, "")
    with telling(draft.step, key, draft.step.places.get(key, draft.step.place)):
        return line(text, names)
