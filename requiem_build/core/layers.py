"""Keys of a step from several tables, one laid over the other: defaults, profile, templates, the step itself.

Tables merge, all else replaces, and `"..."` in a list is the list below. Every value keeps its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from .documents import Place, nearest
from .errors import NotBuiltYet, RequiemError
from .fields import dataclass, field
from .keys import STEP, Key
from .kinds import INHERITED
from .paths import quoted

TABLE_KEYS = frozenset({"env", "foreach", "inputs", "outputs"})

_Below: TypeAlias = "tuple[Any, Place | None]"
"""What a key holds below, and where; None where it is not there."""


@dataclass(slots=True)
class Layer:
    """Checked values and their places, by key."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)

    def over(self, below: Layer) -> Layer:
        """This layer laid over another."""
        if not below.values and not any(_inherits(value) for value in self.values.values()):
            return self
        merged = Layer({**below.values, **self.values}, {**below.places, **self.places})
        for name, value in self.values.items():
            inherited = below.values.get(name), below.places.get(name)
            written = value, self.places[name]
            if isinstance(value, dict):
                merged.values[name], merged.places[name] = _merged(name, inherited, written)
            elif _inherits(value):
                merged.values[name], merged.places[name] = _spliced(name, inherited, written)
        return merged


def _inherits(value: object) -> bool:
    if isinstance(value, list):
        return INHERITED in value
    return isinstance(value, dict) and any(_inherits(inner) for inner in value.values())


def _merged(key: str, below: _Below, above: tuple[dict[str, Any], Place]) -> tuple[dict[str, Any], Place]:
    old, old_place = below
    new, new_place = above
    known = old if isinstance(old, dict) and key in TABLE_KEYS else {}
    values = {**known, **new}
    parts: dict[str | int, Place] = {name: new_place.at(name) for name in new}
    if old_place is not None:
        parts |= {name: old_place.at(name) for name in known if name not in new}
    for name, value in new.items():
        if not isinstance(value, list) or INHERITED not in value:
            continue
        part = f"{key}.{name}"
        if isinstance(old, list) and old_place is not None:
            place = new_place.at(name, value.index(INHERITED))
            hint = "give both lists a name, or none"
            raise _cannot_inherit(part, place, "a list without names", old_place, hint)
        inherited = known.get(name), old_place and old_place.at(name)
        values[name], parts[name] = _spliced(part, inherited, (value, new_place.at(name)))
    return values, Place(new_place.source, new_place.path, parts)


def _spliced(key: str, below: _Below, above: tuple[list[Any], Place]) -> tuple[list[Any], Place]:
    new, new_place = above
    values: list[Any] = []
    parts: dict[str | int, Place] = {}
    for index, item in enumerate(new):
        place = new_place.at(index)
        for inner, origin in _inherited(key, below, place) if item == INHERITED else [(item, place)]:
            parts[len(values)] = origin
            values.append(inner)
    return values, Place(new_place.source, new_place.path, parts)


def _inherited(key: str, below: _Below, place: Place) -> list[tuple[Any, Place]]:
    """What the `"..."` at a place stands for; nothing where nothing is inherited. Raises ManifestError."""
    old, old_place = below
    if old is None or old_place is None:
        return []
    if isinstance(old, list):
        return [(item, old_place.at(index)) for index, item in enumerate(old)]
    if isinstance(old, dict):
        hint = f'take up each list by its name: {key} = {{ NAME = ["..."] }}'
        raise _cannot_inherit(key, place, "a table of named ones", old_place, hint)
    if key == "command":
        hint = "write the whole command here, or the inherited one as a list"
        raise _cannot_inherit(key, place, "a text for the shell", old_place, hint)
    return [(old, old_place)]  # One path or pattern, where a list of them may stand as well.


def _cannot_inherit(key: str, place: Place, what: str, old_place: Place, hint: str) -> RequiemError:
    inherited = dict(old_place.error("").facts)["manifest"]
    return place.error(
        f'"..." in `{key}` stands for the inherited list, and what is inherited is {what}',
        facts=[("inherited", inherited)],
        hint=hint,
    )


def check_keys(table: object, keys: Mapping[str, Key], place: Place, owner: str) -> Layer:
    """A table of keys, every value of its kind. Raises ManifestError at the key; `owner` reads `step "link"`."""
    if not isinstance(table, dict):
        raise place.error(f"{owner} wants a table")
    layer = Layer()
    for name, value in table.items():
        key = keys.get(name)
        where = place.at(name)
        if key is None:
            raise where.error(f"unknown key {quoted(name)} in {owner}", hint=nearest(name, keys), key=True)
        problem = key.kind.check(value)
        if problem:
            inside = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem.path)
            subject = quoted(name + inside)
            raise where.at(*problem.path).error(f"{subject} in {owner} {problem.what}", hint=problem.hint)
        layer.values[name] = value
        layer.places[name] = where
    return layer


def refuse_later(layer: Layer, owner: str) -> None:
    """What the design names and this version does not do, unless it asks for what there is."""
    for name, value in layer.values.items():
        key = STEP[name]
        if key.later and value not in key.now:
            place = layer.places[name]
            shown = f"{name} = {quoted(value)}" if isinstance(value, str) else f"`{name}`"
            raise place.error(f"{shown} in {owner}", kind=NotBuiltYet)


class Templates:
    """`extends` in one manifest: each chain is merged once."""

    def __init__(self, base: Layer, layers: Mapping[str, Layer]) -> None:
        self._base = base
        self._layers = layers
        self._merged: dict[str, Layer] = {}

    def complete(self, layer: Layer) -> Layer:
        """A step's own layer over its templates over the defaults."""
        name = layer.values.get("extends", self._base.values.get("extends"))
        if name is None:
            return layer.over(self._base)
        place = layer.places.get("extends") or self._base.places["extends"]
        return layer.over(self._template(name, place))

    def _template(self, name: str, place: Place) -> Layer:
        known = self._merged.get(name)
        if known is None:
            known = self._base
            for each in reversed(list(self._chain(name, place))):
                known = self._layers[each].over(known)
            self._merged[name] = known
        return known

    def _chain(self, name: str, place: Place) -> Iterator[str]:
        seen: dict[str, None] = {}
        while True:
            if name not in self._layers:
                raise place.error(f"no template {quoted(name)}", hint=nearest(name, self._layers))
            if name in seen:
                order = list(seen)
                cycle = " -> ".join([*order[order.index(name) :], name])
                raise place.error(f"templates extend each other in a cycle: {cycle}")
            seen[name] = None
            yield name
            layer = self._layers[name]
            if "extends" not in layer.values:
                return
            name, place = layer.values["extends"], layer.places["extends"]
