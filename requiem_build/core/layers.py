"""Keys of a step from several tables, one laid over the other: defaults, profile, templates, the step itself.

Tables merge, all else replaces, and `"..."` in a list is the list below. Every value keeps its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .documents import Place, nearest
from .errors import NotBuiltYet
from .fields import dataclass, field
from .keys import STEP, Key
from .kinds import INHERITED
from .paths import quoted

TABLE_KEYS = frozenset({"env", "foreach", "inputs", "outputs"})


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
            old = below.values.get(name)
            if isinstance(value, dict) and isinstance(old, dict) and name in TABLE_KEYS:
                merged.values[name], merged.places[name] = _merged(
                    (old, below.places[name]), (value, self.places[name])
                )
            elif isinstance(value, dict):
                merged.values[name], merged.places[name] = _merged(({}, self.places[name]), (value, self.places[name]))
            elif _inherits(value):
                merged.values[name], merged.places[name] = _spliced(
                    (old, below.places.get(name)), (value, self.places[name])
                )
        return merged


def _inherits(value: object) -> bool:
    if isinstance(value, list):
        return INHERITED in value
    return isinstance(value, dict) and any(_inherits(inner) for inner in value.values())


def _merged(below: tuple[dict[str, Any], Place], above: tuple[dict[str, Any], Place]) -> tuple[dict[str, Any], Place]:
    old, old_place = below
    new, new_place = above
    values = {**old, **new}
    parts: dict[str | int, Place] = {name: (new_place if name in new else old_place).at(name) for name in values}
    for name, value in new.items():
        if isinstance(value, list) and INHERITED in value:
            values[name], parts[name] = _spliced((old.get(name), old_place.at(name)), (value, new_place.at(name)))
    return values, Place(new_place.source, new_place.path, parts)


def _spliced(below: tuple[Any, Place | None], above: tuple[list[Any], Place]) -> tuple[list[Any], Place]:
    old, old_place = below
    new, new_place = above
    values: list[Any] = []
    parts: dict[str | int, Place] = {}
    for index, item in enumerate(new):
        if item != INHERITED:
            parts[len(values)] = new_place.at(index)
            values.append(item)
        elif isinstance(old, list) and old_place is not None:
            for inner, inherited in enumerate(old):
                parts[len(values)] = old_place.at(inner)
                values.append(inherited)
    return values, Place(new_place.source, new_place.path, parts)


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
