"""Where does a key stand in TOML text? Only for messages: `tomllib` gives no positions.

It walks the text once, without recursion, and stops at the first thing it does not understand. It
judges nothing: what is valid TOML is for `tomllib` to say.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from .fields import dataclass

KeyPath: TypeAlias = tuple[str | int, ...]

_SPACE = re.compile(r"[ \t]*")
BLANK = re.compile(r"[ \t\r\n]*(?:#[^\n]*[ \t\r\n]*)*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"[^"\\\n]*(?:\\.[^"\\\n]*)*"|'[^'\n]*'""")
STRING = re.compile(
    # Unrolled loops: no possessive quantifiers, which the first releases of Python 3.11 get wrong.
    r'''"""[^"\\]*(?:(?:\\[\s\S]|"(?!""))[^"\\]*)*"{3,5}|\'\'\'[^']*(?:'(?!'')[^']*)*'{3,5}'''
    r"""|"[^"\\\n]*(?:\\.[^"\\\n]*)*"|'[^'\n]*'"""
)
_SCALAR = re.compile(r"[^,\]}\n#]+")
BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Found:
    """A key path, and the offsets of its key and of its value (equal for headers and items)."""

    path: KeyPath
    key: int
    value: int


def locate(text: str, path: KeyPath, *, value: bool = True) -> tuple[int, int]:
    """Line and column, from 1, of a key's value (or of the key itself); of the nearest table if it is not there."""
    best: tuple[int, int, int] = (-1, 0, 0)
    for found in positions(text):
        if found.path == path:
            best = (len(path) + 1, 0, found.value if value else found.key)
            break
        shared = 0
        for mine, theirs in zip(path, found.path, strict=False):
            if mine != theirs:
                break
            shared += 1
        if shared == len(found.path) or shared == len(path):  # A table above it, or something inside it.
            best = max(best, (shared, -found.key, found.key), key=lambda item: item[:2])
    return line_column(text, best[2])


def line_column(text: str, offset: int) -> tuple[int, int]:
    start = text.rfind("\n", 0, offset) + 1
    return text.count("\n", 0, start) + 1, offset - start + 1


def first_with_same_path(text: str, offset: int) -> Found | None:
    """The earlier of two definitions of one key, when the later one begins on the line of `offset`."""
    seen: dict[KeyPath, Found] = {}
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    line = bisect_right(starts, offset)
    for found in positions(text):
        at = bisect_right(starts, found.key)
        if at > line:
            return None
        if at == line and found.path in seen:
            return seen[found.path]
        seen.setdefault(found.path, found)
    return None


def spelled_path(path: Sequence[str | int]) -> str:
    """`steps.link.inputs[0]`."""
    parts: list[str] = []
    for part in path:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        else:
            plain = part if BARE.fullmatch(part) else '"' + _escaped(part) + '"'
            parts.append(f".{plain}" if parts else plain)
    return "".join(parts)


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() and c not in '"\\' else c.encode("unicode_escape").decode() for c in text)


def positions(text: str) -> Iterator[Found]:
    """Every table header, key and array item, in the order of the text."""
    prefix: KeyPath = ()
    arrays: dict[KeyPath, int] = {}
    at = 0
    while (at := _end(BLANK, text, at)) < len(text):
        if text[at] == "[":
            double = text.startswith("[[", at)
            keys, end = _dotted(text, at + (2 if double else 1))
            if not keys:
                return
            prefix = _header(keys, double, arrays)
            yield Found(prefix, at, at)
            closing = text.find("]", end)
            at = len(text) if closing < 0 else closing + (2 if double else 1)
            continue
        keys, end = _dotted(text, at)
        if not keys or not text.startswith("=", end):
            return
        for found, end_ in _values(text, end + 1, prefix + tuple(keys), at):
            if found is not None:
                yield found
            at = end_
        if at < 0:
            return


def _header(keys: list[str], double: bool, arrays: dict[KeyPath, int]) -> KeyPath:
    path: KeyPath = ()
    for index, key in enumerate(keys):
        path = (*path, key)
        last = index == len(keys) - 1
        if double and last:
            arrays[path] = arrays.get(path, -1) + 1
        if path in arrays:
            path = (*path, arrays[path])
    return path


def _values(text: str, at: int, path: KeyPath, key_at: int) -> Iterator[tuple[Found | None, int]]:
    """One value and all inside it, each with where reading got to; -1 at the end of understanding."""
    open_: list[tuple[str, KeyPath, int]] = []
    while True:
        at = _end(BLANK if open_ else _SPACE, text, at)
        if at >= len(text):
            yield None, -1
            return
        yield Found(path, key_at, at), at
        if text[at] in "[{":
            open_.append((text[at], path, 0))
            at += 1
        else:
            match = STRING.match(text, at) or _SCALAR.match(text, at)
            if match is None:
                yield None, -1
                return
            at = match.end()
        while True:
            if not open_:
                yield None, at
                return
            at = _end(BLANK, text, at)
            bracket, path, index = open_[-1]
            if text.startswith(",", at):
                at = _end(BLANK, text, at + 1)
            if not text.startswith("]" if bracket == "[" else "}", at):
                break
            open_.pop()
            at += 1
        open_[-1] = (bracket, path, index + 1)
        if bracket == "[":
            path, key_at = (*path, index), at
        else:
            keys, end = _dotted(text, at)
            if not keys or not text.startswith("=", end):
                yield None, -1
                return
            path, key_at, at = path + tuple(keys), at, end + 1


def _dotted(text: str, at: int) -> tuple[list[str], int]:
    keys: list[str] = []
    while True:
        at = _end(_SPACE, text, at)
        match = _KEY.match(text, at)
        if match is None:
            return [], at
        keys.append(_unquoted(match.group()))
        at = _end(_SPACE, text, match.end())
        if not text.startswith(".", at):
            return keys, at
        at += 1


def _unquoted(key: str) -> str:
    if key[0] not in "\"'":
        return key
    if key[0] == "'" or "\\" not in key:
        return key[1:-1]
    import tomllib

    try:
        return next(iter(tomllib.loads(f"{key} = 0")))
    except ValueError:
        return key[1:-1]


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at
