"""Changes to the text of a manifest that keep everything else of it: comments, order, spacing. Pure.

An edit that cannot be made without guessing raises CannotEdit; the caller says so to the user.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from .blocks import key as spelled_key
from .blocks import string, strings
from .locate import BLANK, STRING, Found, KeyPath, positions

_LINE_REST = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\r?\n|$)")


class CannotEdit(Exception):
    """Why not, worded to follow a colon."""


def remove_item(text: str, path: KeyPath) -> str:
    """Takes away one string: an item of a list, or a name of a table with it."""
    found = _find(text, path)
    end = _end_of_string(text, found.value)
    start = found.value if isinstance(path[-1], int) else found.key
    table_line = not isinstance(path[-1], int) and _begins_line(text, start) and not _is_inline(text, path)
    if table_line:
        return _without_line(text, start, end)
    after = _skip_blanks(text, end)
    if text.startswith(",", after):
        if _begins_line(text, start) and _ends_line(text, after + 1):
            return _without_line(text, start, after + 1)
        gap = re.compile(r"[ \t]*").match(text, after + 1)
        assert gap is not None
        return text[:start] + text[gap.end() :]
    if _begins_line(text, start) and _ends_line(text, end):
        return _without_line(text, start, end)  # The comma before it may stay: it is a list over several lines.
    comma = _comma_before(text, path, found)
    if comma is None:
        return text[:start] + text[end:]
    between = text[comma + 1 : start]
    return text[:comma] + (between if between.strip() else "") + text[end:]  # A comment, and the end of its line, stay.


def add_items(text: str, path: KeyPath, items: Sequence[str]) -> str:
    """Puts strings at the end of a list, each on a line of its own if the list is written so."""
    found = _find(text, path)
    if text[found.value] != "[":
        raise CannotEdit("it is not written as a list")
    inner = [each for each in positions(text) if each.path[:-1] == path and isinstance(each.path[-1], int)]
    at = _end_of_string(text, inner[-1].value) if inner else found.value + 1
    after = _skip_blanks(text, at)
    comma = text.startswith(",", after)
    closing = _skip_blanks(text, after + 1 if comma else after)
    if text[closing] != "]":
        raise CannotEdit("its end cannot be found")
    if "\n" in text[found.value : closing]:
        first = inner[-1].value if inner else found.value
        indent = re.match(r"[ \t]*", text[text.rfind("\n", 0, first) + 1 :])
        space = indent.group() if inner and indent and _begins_line(text, first) else "    "
        break_ = "\r\n" if "\r\n" in text[found.value : closing] else "\n"
        where = after + 1 if comma else at
        rest = _LINE_REST.match(text, where)
        if rest is not None and rest.group().endswith("\n"):  # A comment at its end is about the last item.
            lines = "".join(f"{space}{string(item)},{break_}" for item in items)
            return text[:at] + ("" if comma or not inner else ",") + text[at : rest.end()] + lines + text[rest.end() :]
    listed = ", ".join(string(item) for item in items)
    if not inner:
        return text[: found.value + 1] + listed + text[closing:]
    return text[:at] + ", " + listed + text[after + 1 if comma else at :]


def add_key(text: str, table: KeyPath, name: str, items: Sequence[str]) -> str:
    """A new key with a list, behind the first key that a table has, or right below its heading."""
    headed = [each for each in positions(text) if each.path == table and text[each.key] == "["]
    if not headed:
        raise CannotEdit(f"{'.'.join(map(str, table))} has no heading of its own")
    keys = [each for each in positions(text) if each.path[: len(table)] == table and len(each.path) > len(table)]
    own = [each for each in keys if each.key > headed[0].key and not isinstance(each.path[len(table)], int)]
    break_ = "\r\n" if "\r\n" in text else "\n"
    line = f"{spelled_key(name)} = {strings(items)}".replace("\n", break_) + break_
    first = next((each for each in own if each.path == (*table, "command")), None)
    if first is not None:
        at = _end_of_value(text, first)
        rest = _LINE_REST.match(text, at)
        if rest is not None and rest.group().endswith("\n"):
            return text[: rest.end()] + line + text[rest.end() :]
    at = text.find("\n", headed[0].key) + 1
    if not at:
        return text + break_ + line
    return text[:at] + line + text[at:]


def add_named(text: str, path: KeyPath, name: str, items: Sequence[str]) -> str:
    """A name more in a table, with a list."""
    found = _find(text, path)
    if text[found.value] != "{":
        return add_key(text, path, name, items)
    inner = [each for each in positions(text) if each.path[:-1] == path and not isinstance(each.path[-1], int)]
    if not inner:
        raise CannotEdit("it is an empty table")
    at = _end_of_value(text, inner[-1])
    listed = ", ".join(string(item) for item in items)
    return f"{text[:at]}, {spelled_key(name)} = [{listed}]{text[at:]}"


def patch(name: str, old: str, new: str) -> str:
    """A unified diff that patch(1) and git apply take. Lines end at newlines and nowhere else."""
    lines = list(difflib.unified_diff(_lines(old), _lines(new), f"a/{name}", f"b/{name}", n=3, lineterm="\n"))
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


def _lines(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+\Z", text)


def _find(text: str, path: KeyPath) -> Found:
    for found in positions(text):
        if found.path == path:
            return found
    raise CannotEdit("its place in the text cannot be found")


def _comma_before(text: str, path: KeyPath, item: Found) -> int | None:
    """Where the comma between an item and the one before it stands. One in a comment is none."""
    earlier = [each for each in positions(text) if each.path[:-1] == path[:-1] and each.key < item.key]
    at = _skip_blanks(text, _end_of_value(text, earlier[-1])) if earlier else -1
    return at if at >= 0 and text.startswith(",", at) else None


def _end_of_string(text: str, at: int) -> int:
    match = STRING.match(text, at)
    if match is None:
        raise CannotEdit("it is not written as a string")
    return match.end()


def _end_of_value(text: str, found: Found) -> int:
    """The end of a string or of a list of strings."""
    if text[found.value] != "[":
        return _end_of_string(text, found.value)
    at = found.value + 1
    while True:
        at = _skip_blanks(text, at)
        if at >= len(text) or text[at] == "]":
            return at + 1
        at = at + 1 if text[at] == "," else _end_of_string(text, at)


def _is_inline(text: str, path: KeyPath) -> bool:
    above = next((each for each in positions(text) if each.path == path[:-1]), None)
    return above is not None and text[above.value] == "{"


def _skip_blanks(text: str, at: int) -> int:
    match = BLANK.match(text, at)
    return match.end() if match else at


def _begins_line(text: str, at: int) -> bool:
    return not text[text.rfind("\n", 0, at) + 1 : at].strip(" \t")


def _ends_line(text: str, at: int) -> bool:
    match = _LINE_REST.match(text, at)
    return match is not None


def _without_line(text: str, start: int, end: int) -> str:
    first = text.rfind("\n", 0, start) + 1
    match = _LINE_REST.match(text, end)
    return text[:first] + text[match.end() if match else end :]
