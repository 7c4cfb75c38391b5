"""What values may hold: the kinds of keys, each with its check, its JSON Schema and its words.

It does not know which key has which kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from .fields import dataclass
from .locate import KeyPath
from .paths import has_control, quoted
from .policy import WORLD_ENVIRONMENT

DURATION_MS_MAX = 366 * 24 * 3600 * 1000
SIZE_MAX = 2**50
COUNT_MAX = 1_000_000
INHERITED = "..."
UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
UNITS_BYTES = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}

_DURATION = re.compile(r"([0-9]{1,12})(ms|s|m|h)")
_SIZE = re.compile(r"([0-9]{1,12})(KiB|MiB|GiB)")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
TAKEN = frozenset(
    {
        "False",
        "None",
        "True",
        "and",
        "depfile",
        "else",
        "false",
        "if",
        "in",
        "inputs",
        "is",
        "none",
        "not",
        "or",
        "output",
        "outputs",
        "platform",
        "profile",
        "true",
    }
)

Schema: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a value, and where inside it."""

    what: str
    path: KeyPath = ()
    hint: str | None = None


Check: TypeAlias = Callable[[Any], Problem | None]


@dataclass(frozen=True, slots=True)
class Kind:
    wanted: str
    check: Check
    schema: Schema


def type_name(value: object) -> str:
    names = {
        bool: "true or false",
        int: "an integer",
        float: "a float",
        str: "a string",
        list: "a list",
        dict: "a table",
    }
    found = names.get(type(value))
    return f"the float {value}" if isinstance(value, float) else found or "a date or time"


def _wants(wanted: str, value: object, path: KeyPath = (), hint: str | None = None) -> Problem:
    return Problem(f"wants {wanted}, not {type_name(value)}", path, hint)


def _text(value: Any) -> Problem | None:
    if type(value) is not str:
        hint = f'write "{value}"' if isinstance(value, int | float) and not isinstance(value, bool) else None
        return _wants("a string", value, hint=hint)
    return Problem("holds a NUL character") if "\0" in value else None


def _plain(value: Any) -> Problem | None:
    problem = _text(value)
    if problem:
        return problem
    if not value:
        return Problem("is empty")
    return Problem("holds a control character") if not value.isprintable() and has_control(value) else None


def _list(check: Check, wanted: str) -> Check:
    def checked(value: Any) -> Problem | None:
        if type(value) is not list:
            hint = f"write [{quoted(value)}]" if isinstance(value, str) else None
            return _wants(wanted, value, hint=hint)
        for index, item in enumerate(value):
            problem = None if item == INHERITED and type(item) is str else check(item)
            if problem:
                return Problem(problem.what, (index, *problem.path), problem.hint)
        if value.count(INHERITED) > 1:
            return Problem('holds "..." more than once', (len(value) - 1 - value[::-1].index(INHERITED),))
        return None

    return checked


def _table(check: Check, names: Check | None = None, wanted: str = "a table") -> Check:
    def checked(value: Any) -> Problem | None:
        if type(value) is not dict:
            return _wants(wanted, value)
        for name, item in value.items():
            problem = (names(name) if names else None) or check(item)
            if problem:
                return Problem(problem.what, (name, *problem.path), problem.hint)
        return None

    return checked


def _either(wanted: str, *checks: tuple[type, Check]) -> Check:
    def checked(value: Any) -> Problem | None:
        for kind, check in checks:
            if type(value) is kind:
                return check(value)
        listable = type(value) is str and any(kind is list for kind, _ in checks)
        return _wants(wanted, value, hint=f"write [{quoted(value)}]" if listable else None)

    return checked


def identifier(name: str) -> Problem | None:
    """Names that expressions can say."""
    if not _IDENTIFIER.fullmatch(name):
        plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
        hint = f'"{plain}" would do' if _IDENTIFIER.fullmatch(plain) else None
        return Problem(f"{quoted(name)} is no name for a variable: letters, digits and _ only", hint=hint)
    return Problem(f"{quoted(name)} has a meaning of its own in expressions") if name in TAKEN else None


def _variable_name(name: Any) -> Problem | None:
    return identifier(name)


def _environment_name(name: Any) -> Problem | None:
    if not name or "=" in name or has_control(name):
        return Problem(f"cannot name an environment variable: {quoted(name)}")
    return None


def _environment_item(name: Any) -> Problem | None:
    return _text(name) or _environment_name(name)


def _secret_item(name: Any) -> Problem | None:
    problem = _text(name)
    if problem is None and (not _IDENTIFIER.fullmatch(name) or name in WORLD_ENVIRONMENT):
        problem = Problem(f"{quoted(name)} cannot name a secret", hint="a secret is a variable's name, and no pattern")
    return problem


def _any(value: Any) -> Problem | None:
    return None


def _boolean(value: Any) -> Problem | None:
    return None if type(value) is bool else _wants("true or false", value)


def _one_of(choices: tuple[str, ...]) -> Check:
    wanted = "one of " + ", ".join(quoted(choice) for choice in choices)

    def checked(value: Any) -> Problem | None:
        if type(value) is str and value in choices:
            return None
        if type(value) is not str:
            return _wants(wanted, value)
        from .documents import nearest

        return Problem(f"wants {wanted}, not {quoted(value)}", hint=nearest(value, choices))

    return checked


def _count(least: int, most: int = COUNT_MAX) -> Check:
    def checked(value: Any) -> Problem | None:
        if type(value) is not int:
            return _wants("a whole number", value)
        if not least <= value <= most:
            shown = value if abs(value) < 10**18 else "a number of many digits"
            return Problem(f"wants a whole number from {least} to {most}, not {shown}")
        return None

    return checked


def duration_ms(text: str) -> int | None:
    match = _DURATION.fullmatch(text)
    found = int(match.group(1)) * UNITS_MS[match.group(2)] if match else 0
    return found if 0 < found <= DURATION_MS_MAX else None


def size_bytes(value: int | str) -> int | None:
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        value = int(match.group(1)) * UNITS_BYTES[match.group(2)] if match else -1
    return value if 0 <= value <= SIZE_MAX else None


def _duration(value: Any) -> Problem | None:
    if type(value) is not str:
        hint = f'write "{value}s"' if type(value) is int and 0 < value < 10**6 else None
        return _wants('a duration such as "500ms", "30s", "10m" or "2h"', value, hint=hint)
    if duration_ms(value) is None:
        return Problem(
            f'wants a duration such as "500ms", "30s", "10m" or "2h" (at most 366 days), not {quoted(value)}'
        )
    return None


def _size(least: int) -> Check:
    wanted = 'a size: bytes, or such as "512KiB", "64MiB" or "2GiB"'

    def checked(value: Any) -> Problem | None:
        if type(value) not in (int, str):
            return _wants(wanted, value)
        found = size_bytes(value)
        if found is None or found < least:
            shown = quoted(value) if isinstance(value, str) else str(value) if abs(value) < 10**18 else "so many digits"
            return Problem(f"wants {wanted} (from {least} to 1 PiB), not {shown}")
        return None

    return checked


def _values(value: Any) -> Problem | None:
    """What `foreach` gives one variable: a pattern or expression, or a list of patterns, scalars and tables."""
    if type(value) is str:
        return _text(value)
    if type(value) is not list:
        return _wants(
            "a pattern, a list or an expression", value, hint=f"write [{value}]" if type(value) is int else None
        )
    for index, item in enumerate(value):
        if type(item) not in (str, int, float, bool, dict):
            return _wants("a string, a number, true or false, or a table", item, (index,))
    return None


_STRING: Schema = {"type": "string"}
_STRINGS: Schema = {"type": "array", "items": _STRING}
_NAMED: Schema = {"type": "object", "additionalProperties": {"anyOf": [_STRING, _STRINGS]}}

TEXT = Kind("a string", _text, _STRING)
NAME = Kind("a name", _plain, {"type": "string", "minLength": 1})
TEXTS = Kind("a list of strings", _list(_text, "a list of strings"), _STRINGS)
NAMES = Kind(
    "a list of names", _list(_plain, "a list of names"), {"type": "array", "items": {"type": "string", "minLength": 1}}
)
BOOLEAN = Kind("true or false", _boolean, {"type": "boolean"})
CONDITION = Kind(
    "true, false or an expression",
    _either("true, false or an expression", (bool, _boolean), (str, _text)),
    {"type": ["boolean", "string"]},
)
COMMAND = Kind(
    "a list of arguments or a string for the shell",
    _either("a list of arguments or a string for the shell", (str, _text), (list, _list(_text, "a list of strings"))),
    {"anyOf": [_STRING, _STRINGS]},
)
PATHS = Kind(
    "a list of paths, or a table of named ones",
    _either(
        'a list of paths such as ["src/a.c"], or a table of named ones',
        (list, _list(_plain, "a list of paths")),
        (
            dict,
            _table(
                _either("a path or a list of paths", (str, _plain), (list, _list(_plain, "a list of paths"))),
                lambda name: None if _IDENTIFIER.fullmatch(name) else identifier(name),
            ),
        ),
    ),
    {"anyOf": [_STRINGS, _NAMED]},
)
FILES = Kind(
    "a path or a list of paths",
    _either("a path or a list of paths", (str, _plain), (list, _list(_plain, "a list of paths"))),
    {"anyOf": [_STRING, _STRINGS]},
)
EACH = Kind(
    "a table of variables",
    _table(_values, _variable_name, 'a table: foreach.NAME = "src/*.c"'),
    {
        "type": "object",
        "additionalProperties": {
            "anyOf": [_STRING, {"type": "array", "items": {"type": ["string", "number", "boolean", "object"]}}]
        },
    },
)
ENVIRONMENT = Kind(
    "a table of strings",
    _table(_text, _environment_name),
    {"type": "object", "additionalProperties": _STRING},
)
ENVIRONMENT_NAMES = Kind("a list of names", _list(_environment_item, "a list of names"), _STRINGS)
SECRET_NAMES = Kind("a list of names", _list(_secret_item, "a list of names"), _STRINGS)
DURATION = Kind(
    "a duration",
    _duration,
    {"type": "string", "pattern": "^[0-9]{1,12}(ms|s|m|h)$", "examples": ["500ms", "30s", "10m", "2h"]},
)


def size(least: int) -> Kind:
    units = {"type": "string", "pattern": "^[0-9]{1,12}(KiB|MiB|GiB)$", "examples": ["512KiB", "64MiB", "2GiB"]}
    return Kind("a size", _size(least), {"anyOf": [{"type": "integer", "minimum": least, "maximum": SIZE_MAX}, units]})


def count(least: int, most: int = COUNT_MAX) -> Kind:
    return Kind("a whole number", _count(least, most), {"type": "integer", "minimum": least, "maximum": most})


def choice(choices: tuple[str, ...]) -> Kind:
    return Kind("one of " + ", ".join(choices), _one_of(choices), {"enum": list(choices)})


_LEVEL = r"confined|reproduced(\([1-9][0-9]{0,5}\))?|reproduced-elsewhere"


def _level(value: Any) -> Problem | None:
    wanted = "confined, reproduced, reproduced(N) or reproduced-elsewhere"
    if type(value) is not str:
        return _wants(wanted, value)
    return None if re.fullmatch(_LEVEL, value) else Problem(f"wants {wanted}, not {quoted(value)}")


LEVEL = Kind(
    "`confined`, `reproduced`, `reproduced(N)` or `reproduced-elsewhere`",
    _level,
    {"pattern": f"^({_LEVEL})$", "type": "string"},
)
SIZE = size(1)
SIZE_OR_NOTHING = size(0)
COUNT = count(1)
ANYTHING = Kind("anything", _any, {})
