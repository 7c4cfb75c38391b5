"""The tables of many steps, as programs write them: read ten times as quickly as by a general reader of TOML.

`[steps.NAME]` and `[steps.NAME.KEY]` with bare names, strings of one line, lists of such on one line, integers and
booleans. What is before and after these is for tomllib; so is the whole text if anything in it is not so plain,
which is also how every mistake gets its message.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from typing import Any

LENGTH_MIN = 16 * 1024
"""Shorter texts are quick anyway."""

# What JSON and TOML read alike: no control characters, and only the escapes that both have.
_STRING = r'"(?:[^"\\\x00-\x1f\x7f]|\\["\\bfnrt])*"'
_BLANK = r"[ \t]*"
_LIST = rf"\[{_BLANK}(?:{_STRING}(?:{_BLANK},{_BLANK}{_STRING})*{_BLANK})?\]"
_LINE = re.compile(
    rf"([A-Za-z0-9_-]+){_BLANK}={_BLANK}({_STRING}|{_LIST}|true|false|0|-?[1-9][0-9]{{0,14}}){_BLANK}\n"
    rf"|(\n|\#[^\x00-\x08\x0a-\x1f\x7f]*\n)"
    rf"|\[steps\.([A-Za-z0-9_-]+)(?:\.([A-Za-z0-9_-]+))?\]{_BLANK}\n"
)
_FIRST = re.compile(r"^\[steps\.", re.MULTILINE)


def read(text: str, is_shallow: Callable[[str], bool]) -> dict[str, Any] | None:
    """The tables of a text; None if it is for tomllib as a whole. `is_shallow` says of what goes there if it may."""
    found = _FIRST.search(text) if len(text) >= LENGTH_MIN else None
    if found is None:
        return None
    steps, end = _tables(text, found.start())
    before, after = text[: found.start()], text[end:]
    if not steps or (after and not after.startswith("[")) or not (is_shallow(before) and is_shallow(after)):
        return None
    try:
        tables, rest = tomllib.loads(before), tomllib.loads(after)
    except (ValueError, RecursionError):
        return None
    if "steps" in tables or "steps" in rest or not tables.keys().isdisjoint(rest):
        return None
    return {**tables, "steps": steps, **rest}


def _tables(text: str, start: int) -> tuple[dict[str, dict[str, Any]], int]:
    """The steps, none if one of their names is there twice, and where they end."""
    found: dict[str, dict[str, Any]] = {}
    table: dict[str, Any] = {}
    name, end = "", start
    places: list[tuple[dict[str, Any], str]] = []
    values: list[str] = []
    names: dict[str, str] = {}  # The same few keys again and again are one object.
    for match in _LINE.finditer(text, start):
        if match.start() != end:
            break
        end = match.end()
        key, value, blank, step, inner = match.groups()
        if key is not None:
            if key in table:
                return {}, start
            key = names.setdefault(key, key)
            table[key] = None
            places.append((table, key))
            values.append(value)
        elif blank is not None:
            continue
        elif inner is None:
            if step in found:
                return {}, start
            name, table = step, {}
            found[step] = table
        else:
            if step != name or inner in found[name]:
                return {}, start
            table = found[name][names.setdefault(inner, inner)] = {}
    for (where, key), filled in zip(places, json.loads(f"[{','.join(values)}]"), strict=True):
        where[key] = filled
    return found, end
