"""Variables: their tables checked, `--set` read, and texts that speak of other variables filled in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from . import kinds
from .documents import Document, Place, Source, check_value, nearest, read_document
from .errors import UnknownName, UsageError
from .paths import quoted
from .texts import native, roots_of
from .values import ITEMS_MAX, BadTemplate, Variables


def check_variables(table: Any, place: Place) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise place.error(f"variables want a table, not {kinds.type_name(table)}")
    for name in table:
        problem = kinds.identifier(name)
        if problem:
            raise place.at(name).error(f"variable {problem.what}", hint=problem.hint, key=True)
    check_value(table, place)
    return table


def set_variable(name: str, text: str, known: Mapping[str, Any]) -> tuple[dict[str, Any], Place]:
    """One `--set NAME=VALUE` as a table of variables. The value is TOML if it can be, else a string."""
    parts = name.split(".")
    table: Any = known
    for index, part in enumerate(parts):
        if not isinstance(table, dict) or part not in table:
            names = [".".join([*parts[:index], other]) for other in table] if isinstance(table, dict) else []
            raise UnknownName(
                f"--set: no variable {quoted(name)}",
                facts=[("variables", ", ".join(names[:20]) or "none")],
                hint=nearest(".".join(parts[: index + 1]), names),
            )
        table = table[part]
    value: Any = _toml_value(text)
    for part in reversed(parts[1:]):
        value = {part: value}
    document = Document("--set", f"{name} = {text}", {parts[0]: value})
    place = Place(Source((document,), document.tables), ())
    check_value(document.tables, place)
    return document.tables, place


def _toml_value(text: str) -> Any:
    try:
        found = read_document("--set", f"value = {text}".encode("utf-8", "surrogateescape")).tables
        check_value(found, Place(Source((), found), ()))
    except (UsageError, UnicodeError, IndexError):
        return text
    return found["value"] if found.keys() == {"value"} else text


def render_variables(
    raw: Mapping[str, Any], fixed: Variables, fail: Callable[[str, BadTemplate], Exception]
) -> dict[str, Any]:
    """Variables that speak of variables, filled in. `fail` words an error at a variable."""
    done: dict[str, Any] = {}
    pending = [(name, False) for name in reversed(list(raw))]
    waiting: dict[str, None] = {}
    while pending:
        name, ready = pending.pop()
        if name in done:
            continue
        try:
            if not ready:
                if name in waiting:
                    order = list(waiting)
                    cycle = " -> ".join([*order[order.index(name) :], name])
                    raise BadTemplate(f"variables refer to each other in a cycle: {cycle}")
                waiting[name] = None
                pending.append((name, True))
                wanted = set().union(*(roots_of(text) for text in spoken(raw[name]) if "{{" in text))
                pending.extend(
                    (other, False) for other in sorted(wanted, reverse=True) if other in raw and other not in done
                )
                continue
            done[name] = _filled(raw[name], {**fixed, **done})
            waiting.pop(name, None)
        except BadTemplate as error:
            raise fail(name, error) from error
    return {name: done[name] for name in raw}


def _filled(value: Any, variables: Variables) -> Any:
    """A value with every text in it filled in; nesting is limited by the manifest's."""
    if isinstance(value, str):
        return native(value, variables) if "{{" in value else value
    if isinstance(value, dict):
        return {name: _filled(item, variables) for name, item in value.items()}
    if isinstance(value, list):
        found: list[Any] = []
        for item in value:
            new = _filled(item, variables)
            if isinstance(item, str) and isinstance(new, list | tuple):
                found.extend(new)
            else:
                found.append(new)
        if len(found) > ITEMS_MAX:
            raise BadTemplate(f"more than {ITEMS_MAX:,} items")
        return found
    return value


def spoken(value: object) -> Iterator[str]:
    """Every text inside a value of the manifest."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
