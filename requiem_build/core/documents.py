"""One TOML file: its bytes -> its tables, and a message for each place in it. It does not know any key's meaning."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from . import plain
from .errors import Fact, ManifestError, RequiemError
from .fields import dataclass, field
from .locate import KeyPath, first_with_same_path, line_column, locate, spelled_path
from .paths import quoted

BYTES_MAX = 4 * 1024 * 1024
NESTING_MAX = 64
INTEGER_MAX = 2**63 - 1
WIDTH_MAX = 120

_TOKEN = re.compile(
    r'''"""[^"\\]*(?:(?:\\[\s\S]|"(?!""))[^"\\]*)*(?:"{3,5})?|\'\'\'[^']*(?:'(?!'')[^']*)*(?:'{3,5})?'''
    r"""|"[^"\\\n]*(?:\\.[^"\\\n]*)*"?|'[^'\n]*'?|#[^\n]*|[\[\]{}]"""
)
_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")

E = TypeVar("E", bound=RequiemError)


@dataclass(frozen=True, eq=False)
class Document:
    path: str
    text: str = ""
    tables: dict[str, Any] = field(default_factory=dict)

    def holds(self, path: KeyPath) -> bool:
        value: Any = self.tables
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return False
        return True

    def facts(self, path: KeyPath, *, value: bool = True) -> list[Fact]:
        line, column = locate(self.text, path, value=value)
        return [*self._facts(line, column), *([("key", spelled_path(path))] if path else [])]

    def facts_at(self, line: int, column: int) -> list[Fact]:
        return self._facts(line, column)

    def _facts(self, line: int, column: int) -> list[Fact]:
        return [("manifest", f"{self.path}:{line}:{column}"), ("line", _shown_line(self.text, line, column))]


@dataclass(frozen=True, eq=False)
class Source:
    """A document, perhaps with another laid over it (requiem.local.toml): the more particular one first."""

    documents: tuple[Document, ...]
    tables: Mapping[str, Any]

    def document(self, path: KeyPath) -> Document:
        for document in self.documents:
            if document.holds(path):
                return document
        return self.documents[-1]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written. `parts` holds the items that were written elsewhere than their whole."""

    source: Source
    path: KeyPath
    parts: Mapping[str | int, Place] | None = None

    def at(self, *keys: str | int) -> Place:
        place = self
        for key in keys:
            inner = None if place.parts is None else place.parts.get(key)
            place = inner or Place(place.source, (*place.path, key))
        return place

    def error(
        self,
        what: str,
        *,
        hint: str | None = None,
        facts: Iterable[Fact] = (),
        key: bool = False,
        kind: type[E] | None = None,
    ) -> RequiemError:
        """The complaint about this place (about the key itself with `key`)."""
        document = self.source.document(self.path)
        return (kind or ManifestError)(what, facts=[*document.facts(self.path, value=not key), *facts], hint=hint)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The hint that names what was probably meant."""
    known = list(names)
    if len(known) > 5000:  # difflib compares with each.
        known = [other for other in known if other[:2] == name[:2]][:5000]
    close = get_close_matches(name[:200], known, n=1, cutoff=0.6)
    if not close:
        folded = {other.lower(): other for other in known}
        close = [folded[name.lower()]] if name.lower() in folded else []
    return "did you mean " + " or ".join(quoted(other) for other in close) + "?" if close else None


def read_document(path: str, content: bytes) -> Document:
    """Raises ManifestError for whatever is not a manifest's TOML."""
    if len(content) > BYTES_MAX:
        raise ManifestError(
            f"{path} is too large: {len(content):,} bytes",
            facts=[("manifest", path)],
            hint=f"the limit is {BYTES_MAX:,} bytes; `include` divides a manifest",
        )
    try:
        text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, content) from error
    tables = plain.read(text, lambda part: not _nests_too_deep(part))
    if tables is not None:
        return Document(path, text, tables)
    _check_nesting(path, text)
    try:
        return Document(path, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise _syntax(path, text, str(error)) from error
    except (ValueError, OverflowError) as error:  # Python converts at most 4,300 digits.
        raise _too_large(path, text) from error
    except RecursionError as error:
        raise ManifestError(f"{path}: nesting deeper than {NESTING_MAX}", facts=[("manifest", path)]) from error


def _not_utf8(path: str, content: bytes) -> ManifestError:
    offset = 0
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start
    line = content.count(b"\n", 0, offset) + 1
    return ManifestError(
        f"{path} is not UTF-8: byte 0x{content[offset]:02x} at offset {offset}",
        facts=[("manifest", f"{path}:{line}")],
        hint="TOML is UTF-8 only",
    )


def _check_nesting(path: str, text: str) -> None:
    """By a scan outside strings: the recursive parser must never see hostile depth."""
    at = _nests_too_deep(text)
    if at:
        facts = Document(path, text).facts_at(*line_column(text, at - 1))
        raise ManifestError(f"nesting deeper than {NESTING_MAX}", facts=facts)


def _nests_too_deep(text: str) -> int:
    """One more than where brackets are open too deep; 0 if they never are."""
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in ("[", "{"):
            depth += 1
            if depth > NESTING_MAX:
                return match.start() + 1
        elif token in ("]", "}"):
            depth = max(0, depth - 1)
    return 0


def _syntax(path: str, text: str, message: str) -> ManifestError:
    match = _AT.search(message)
    document = Document(path, text)
    if match is None or match.group(1) is None:
        line, column = line_column(text, len(text.rstrip("\n")))
    else:
        line, column = int(match.group(1)), int(match.group(2))
    what = message[: match.start()] if match else message
    facts = document.facts_at(line, column)
    starts = _offset(text, line)
    if what.startswith(("Cannot", "Duplicate")):
        earlier = first_with_same_path(text, starts)
        if earlier is not None:
            at = "{}:{}".format(*line_column(text, earlier.key))
            what = f'"{spelled_path(earlier.path)}" is defined twice'
            facts.append(("first", f"{path}:{at}"))
    return ManifestError(f"{path} is not valid TOML: {_printable(what)}", facts=facts)


def _too_large(path: str, text: str) -> ManifestError:
    match = re.search(r"[0-9][0-9_]{4000,}", text)
    line, column = line_column(text, match.start() if match else 0)
    return ManifestError("integer too large", facts=Document(path, text).facts_at(line, column))


def _offset(text: str, line: int) -> int:
    at = 0
    for _ in range(line - 1):
        at = text.find("\n", at) + 1
        if at == 0:
            return len(text)
    return at


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)[:500]


def _shown_line(text: str, line: int, column: int) -> str:
    start = _offset(text, line)
    end = text.find("\n", start)
    whole = text[start : len(text) if end < 0 else end].rstrip("\r").replace("\t", " ")
    cut = max(0, column - 1 - WIDTH_MAX * 2 // 3) if len(whole) > WIDTH_MAX else 0
    before = _printable(whole[cut : column - 1])
    shown = before + _printable(whole[max(cut, column - 1) : cut + WIDTH_MAX])
    return f"{shown}\n{' ' * len(before)}^"


def check_value(value: object, place: Place) -> None:
    """Refuses what no variable may be: dates, numbers that are none, integers beyond 64 bits, endless nesting."""
    for path, item in walk(value):
        problem = _refusal(item)
        if len(path) > NESTING_MAX:
            raise place.error(f"{spelled_path(place.path)}: nesting deeper than {NESTING_MAX}")
        if problem:
            raise place.at(*path).error(problem)


def _refusal(item: object) -> str | None:
    match item:
        case bool() | str() | list() | dict():
            return None
        case int():
            return None if abs(item) <= INTEGER_MAX else "integer too large: the limit is 64 bits"
        case float():
            return None if math.isfinite(item) else f"number not finite: {item}"
        case _:
            return "a date or time has no one spelling in a command: write it as a string"


def walk(value: object) -> Iterator[tuple[KeyPath, object]]:
    """A value and all inside it, tables in their order, no deeper than one beyond the limit."""
    pending: list[tuple[KeyPath, object]] = [((), value)]
    while pending:
        path, item = pending.pop()
        yield path, item
        if len(path) > NESTING_MAX:
            continue
        if isinstance(item, dict):
            pending.extend(((*path, key), inner) for key, inner in reversed(item.items()))
        elif isinstance(item, list):
            pending.extend(((*path, index), item[index]) for index in range(len(item) - 1, -1, -1))


def merge_tables(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merge, all else is replaced."""
    merged = dict(below)
    pending = [(merged, above)]
    while pending:
        target, source = pending.pop()
        for key, value in source.items():
            old = target.get(key)
            if isinstance(old, dict) and isinstance(value, dict):
                target[key] = dict(old)
                pending.append((target[key], value))
            else:
                target[key] = value
    return merged
