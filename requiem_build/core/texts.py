"""Texts with `{{ expression }}` in them, filled in: items of a list, lines, and strings for a shell.

There are no blocks and no comments, so shell text survives. Names alone (`{{ src.stem }}`) are answered
here; anything more is for expressions.py.
It knows paths as texts only.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from .expressions import Compiled, compile_expression
from .fields import dataclass
from .paths import quoted
from .patterns import escape
from .values import ATTRIBUTES, ITEMS_MAX, BadTemplate, Named, Raw, Value, Variables, as_text

EXPRESSION_MAX = 2000
WORDS_BYTES_MAX = 64 * 1024 * 1024
BRACKETS_MAX = 40


_NAMES = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)\s*")
_WORDS_OF_JINJA = frozenset(
    {"False", "None", "True", "and", "else", "false", "if", "in", "is", "none", "not", "or", "true"}
)
_GLUE = r"[A-Za-z0-9_./=:,+@%-]*"
_GLUE_BEFORE = re.compile(_GLUE + r"\Z")
_GLUE_AFTER = re.compile(_GLUE)


@dataclass(frozen=True, slots=True)
class Expression:
    """`names` if it is nothing but a dotted name; else Jinja2 compiles `text` when it is first needed."""

    text: str
    names: tuple[str, ...]

    def value(self, variables: Variables) -> Any:
        if self.names:
            found = _lookup(self.names, variables)
            if found is not _UNKNOWN:
                return found
        return self._compiled().value(variables)

    def roots(self) -> frozenset[str]:
        """The variables that it speaks of."""
        return frozenset(self.names[:1]) if self.names else self._compiled().roots

    def _compiled(self) -> Compiled:
        return compile_expression(self.text)


_UNKNOWN = object()


def _lookup(names: tuple[str, ...], variables: Variables) -> Any:
    value: Any = variables.get(names[0], _UNKNOWN)
    for name in names[1:]:
        if isinstance(value, dict):
            value = value.get(name, _UNKNOWN)
        elif isinstance(value, Named) and name in value.names:
            value = value.names[name]
        elif isinstance(value, Value) and name in ATTRIBUTES:
            value = getattr(value, name)
        else:
            return _UNKNOWN
    return value


Part: TypeAlias = "str | Expression"


@lru_cache(maxsize=65536)
def parse(text: str) -> tuple[Part, ...]:
    """Literal texts and expressions, in order. Raises BadTemplate."""
    if "{{" not in text:
        return (text,) if text else ()
    parts: list[Part] = []
    at = 0
    while True:
        start = text.find("{{", at)
        if start < 0:
            break
        if start > at:
            parts.append(text[at:start])
        end = _end_of_expression(text, start + 2)
        parts.append(_expression(text[start + 2 : end]))
        at = end + 2
    if at < len(text):
        parts.append(text[at:])
    return tuple(parts)


def _end_of_expression(text: str, at: int) -> int:
    depth = 0
    quote = ""
    while at < len(text):
        character = text[at]
        if quote:
            if character == "\\":
                at += 1
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        elif text.startswith("}}", at) and depth == 0:
            return at
        elif character in "([{":
            depth += 1
            if depth > BRACKETS_MAX:
                raise BadTemplate(f"an expression nests deeper than {BRACKETS_MAX}")
        elif character in ")]}":
            depth = max(0, depth - 1)
        at += 1
    raise BadTemplate("{{ without }}", hint='a literal {{ is {{ "{{" }}')


@lru_cache(maxsize=65536)
def _expression(text: str) -> Expression:
    if len(text) > EXPRESSION_MAX:
        raise BadTemplate(f"an expression is longer than {EXPRESSION_MAX} characters", hint="put parts into [vars]")
    match = _NAMES.fullmatch(text)
    names = tuple(match.group(1).split(".")) if match else ()
    if names and _WORDS_OF_JINJA.isdisjoint(names):
        return Expression(text.strip(), names)
    if not text.strip():
        raise BadTemplate("{{ }} holds no expression")
    return Expression(text.strip(), ())


def roots_of(text: str) -> frozenset[str]:
    """The variables that a text speaks of."""
    if "{{" not in text:
        return frozenset()
    found: frozenset[str] = frozenset()
    for part in parse(text):
        if isinstance(part, Expression):
            found |= part.roots()
    return found


def native(text: str, variables: Variables) -> Any:
    """The value itself if the text is one expression; else the text, filled in."""
    parts = parse(text)
    if len(parts) == 1 and isinstance(parts[0], Expression):
        return parts[0].value(variables)
    found = words(text, variables)
    return found[0] if len(found) == 1 and not _has_list(parts, variables) else found


def _has_list(parts: tuple[Part, ...], variables: Variables) -> bool:
    return any(isinstance(part, Expression) and isinstance(part.value(variables), list | tuple) for part in parts)


def words(text: str, variables: Variables, *, literal_paths: bool = False) -> list[str]:
    """One item of a list, filled in: as many as the list in it has, else one. Raises BadTemplate.

    With `literal_paths`, paths that were matched mean themselves even if they hold pattern characters.
    """
    if "{{" not in text:
        return [text]
    parts = parse(text)
    if len(parts) == 1 and isinstance(parts[0], Expression):
        value = parts[0].value(variables)
        items = value if isinstance(value, list | tuple) else (value,)
        found = [_word(item, parts[0].text, literal_paths, literal_paths) for item in items]
        check_size(found)
        return found
    several: list[str] | None = None
    at_list = -1
    filled: list[str] = []
    for index, part in enumerate(parts):
        if isinstance(part, str):
            filled.append(part)
            continue
        value = part.value(variables)
        if isinstance(value, list | tuple):
            if several is not None:
                raise BadTemplate("two lists in one item", hint="join one of them: {{ dirs | join(',') }}")
            several, at_list = (
                [_word(item, part.text, literal_paths and index == 0, literal_paths) for item in value],
                index,
            )
            filled.append("")
        else:
            filled.append(_word(value, part.text, literal_paths and index == 0, literal_paths))
    before, after = "".join(filled[: at_list + 1]), "".join(filled[at_list + 1 :])
    found = [before + after] if several is None else [before + item + after for item in several]
    check_size(found)
    return found


def _word(value: Any, expression: str, first: bool, literal: bool) -> str:
    text = as_text(value, expression)
    if literal and isinstance(value, Value) and value.exact:
        text = escape(text)
        if first and text.startswith(("!", "@")):
            return "./" + text
    return text


def line(text: str, variables: Variables) -> str:
    """A text filled in, a list as its items with spaces between. Raises BadTemplate."""
    if "{{" not in text:
        check_size([text])
        return text
    parts = parse(text)
    filled = []
    for part in parts:
        if isinstance(part, str):
            filled.append(part)
            continue
        value = part.value(variables)
        items = value if isinstance(value, list | tuple) else [value]
        filled.append(" ".join(as_text(item, part.text) for item in items))
    check_size(filled)
    return "".join(filled)


def shell_text(text: str, variables: Variables) -> str:
    """A shell string filled in: each value one quoted word, a list several; `| raw` opts out. Raises BadTemplate."""
    parts = list(parse(text))
    filled: list[str] = []
    skip = 0
    for index, part in enumerate(parts):
        if isinstance(part, str):
            filled.append(part[skip:])
            skip = 0
            continue
        value = part.value(variables)
        if not isinstance(value, list | tuple):
            filled.append(_shell_word(value, part.text, text, parts, index))
            continue
        items = [_shell_word(item, part.text, text, parts, index) for item in value]
        before = after = ""
        if index > 0 and isinstance(parts[index - 1], str) and filled:
            match = _GLUE_BEFORE.search(filled[-1])
            before = match.group() if match else ""
            filled[-1] = filled[-1][: len(filled[-1]) - len(before)]
        following = parts[index + 1] if index + 1 < len(parts) else None
        if isinstance(following, str):
            match = _GLUE_AFTER.match(following)
            after = match.group() if match else ""
            skip = len(after)
        filled.append(" ".join(before + item + after for item in items))
    check_size(filled)
    return "".join(filled)


def _shell_word(value: Any, expression: str, text: str, parts: Sequence[Part], index: int) -> str:
    plain = as_text(value, expression)
    if isinstance(value, Raw):
        return plain
    word = shlex.quote(plain)
    if word != plain:
        before = "".join(part if isinstance(part, str) else "x" for part in parts[:index])
        quote = open_quote(before)
        if quote:
            raise BadTemplate(
                f"{{{{ {expression} }}}} stands inside {quote} quotes of the shell,"
                f" and its value {quoted(plain)} needs quotes of its own",
                hint="take the quotes around it away (each value is quoted by itself), or write `| raw`",
            )
    return word


def open_quote(text: str) -> str:
    """Which shell quote is open at the end of a text, as far as a scan can tell (comments and here-documents aside)."""
    quote = ""
    at = 0
    while at < len(text):
        character = text[at]
        if quote == "'":
            quote = "" if character == "'" else quote
        elif character == "\\":
            at += 1
        elif quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == "#" and (at == 0 or text[at - 1] in " \t\n;"):
            newline = text.find("\n", at)
            at = len(text) if newline < 0 else newline
        at += 1
    return quote


def check_size(texts: Sequence[str]) -> None:
    if len(texts) > ITEMS_MAX:
        raise BadTemplate(f"more than {ITEMS_MAX:,} items")
    if sum(map(len, texts)) > WORDS_BYTES_MAX:
        raise BadTemplate(f"longer than {WORDS_BYTES_MAX:,} characters")
