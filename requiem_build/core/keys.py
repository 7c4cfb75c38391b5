"""Every key of a manifest, once: what it may hold, what it means. Checks, the JSON Schema and the reference all read this.

It knows the shape of values, not their effect.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from .locate import KeyPath
from .paths import has_control, quoted
from .policy import CLOCKS, LEVELS, NETWORKS, RANDOMS, SYSTEMS

DURATION_MS_MAX = 366 * 24 * 3600 * 1000
SIZE_MAX = 2**50
COUNT_MAX = 1_000_000
INHERITED = "..."
SHELLS = ("bash", "sh")
UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
UNITS_BYTES = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}

_DURATION = re.compile(r"([0-9]{1,12})(ms|s|m|h)")
_SIZE = re.compile(r"([0-9]{1,12})(KiB|MiB|GiB)")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
TAKEN = frozenset(
    "inputs outputs output depfile platform profile true false none True False None not and or in is if else".split()
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


@dataclass(frozen=True, slots=True)
class Key:
    kind: Kind
    says: str
    default: str = ""
    templates: bool = False
    """Whether `{{ }}` is filled in it."""
    later: bool = False
    """Named in the design, not in this version: refused unless its value is one of `now`."""
    now: tuple[object, ...] = ()


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
    if isinstance(value, float) and value != value:
        return "nan"
    return str(value) if isinstance(value, float) else found or "a date or time"


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
        return _wants(wanted, value)

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
        return Problem(f"{quoted(name)} cannot name an environment variable")
    return None


def _environment_item(name: Any) -> Problem | None:
    return _text(name) or _environment_name(name)


def _any(value: Any) -> Problem | None:
    return None


def _boolean(value: Any) -> Problem | None:
    return None if type(value) is bool else _wants("true or false", value)


def _choice(choices: tuple[str, ...]) -> Check:
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
DURATION = Kind(
    "a duration",
    _duration,
    {"type": "string", "pattern": "^[0-9]{1,12}(ms|s|m|h)$", "examples": ["500ms", "30s", "10m", "2h"]},
)


def _size_kind(least: int) -> Kind:
    units = {"type": "string", "pattern": "^[0-9]{1,12}(KiB|MiB|GiB)$", "examples": ["512KiB", "64MiB", "2GiB"]}
    return Kind("a size", _size(least), {"anyOf": [{"type": "integer", "minimum": least, "maximum": SIZE_MAX}, units]})


def _count_kind(least: int, most: int = COUNT_MAX) -> Kind:
    return Kind("a whole number", _count(least, most), {"type": "integer", "minimum": least, "maximum": most})


def _choice_kind(choices: tuple[str, ...]) -> Kind:
    return Kind("one of " + ", ".join(choices), _choice(choices), {"enum": list(choices)})


SIZE = _size_kind(1)
SIZE_OR_NOTHING = _size_kind(0)
COUNT = _count_kind(1)
ANYTHING = Kind("anything", _any, {})

STEP: Mapping[str, Key] = {
    "description": Key(TEXT, "One line for people: `requiem list` and messages show it.", templates=True),
    "tags": Key(NAMES, "Words to choose steps by: `requiem build --tag slow`.", "[]", templates=True),
    "extends": Key(NAME, "The template whose keys this one starts from."),
    "foreach": Key(EACH, "One instance for each value; several variables give their product.", templates=True),
    "when": Key(CONDITION, "Whether the instance exists at all.", "true", templates=True),
    "command": Key(
        COMMAND,
        "What runs: a list is an argv, a string is for the shell. Without it the step is a group.",
        templates=True,
    ),
    "stdin": Key(NAME, "The file that the command reads as standard input; else it is empty.", templates=True),
    "cwd": Key(NAME, "The directory that the command runs in.", '"."', templates=True),
    "shell": Key(
        _choice_kind(SHELLS), "What runs a string command: `bash -euo pipefail -c` or `/bin/sh -eu -c`.", '"bash"'
    ),
    "inputs": Key(
        PATHS,
        "Files, patterns, `dir/` trees and `@step` that the step reads. It sees nothing else of the workspace.",
        "[]",
        templates=True,
    ),
    "discover": Key(
        NAMES,
        "Patterns of files that the step may read: visible, and in the key only once it has read them.",
        "[]",
        templates=True,
    ),
    "depfile": Key(NAME, "Where the command writes what it read (Makefile syntax, as `gcc -MMD -MF`).", templates=True),
    "needs": Key(NAMES, "Steps that come first, and whose outputs follow the inputs.", "[]", templates=True),
    "outputs": Key(PATHS, "Files, `dir/` trees and patterns that the step makes.", "[]", templates=True),
    "lay_out": Key(BOOLEAN, "Whether outputs are put into the workspace, or only kept in the store.", "true"),
    "tools": Key(NAMES, "Programs or packages that the step uses beside its own.", "[]", templates=True),
    "roots": Key(NAMES, "Read-only trees, by their names in `[roots]`.", "[]"),
    "path": Key(NAMES, "Directories that stand before PATH.", "[]", templates=True),
    "env": Key(ENVIRONMENT, "Environment variables of the step.", "{}", templates=True),
    "pass_env": Key(ENVIRONMENT_NAMES, "Variables of the caller that the step sees; their values count.", "[]"),
    "secrets": Key(NAMES, "Secrets that the step gets, by name.", "[]", later=True, now=([],)),
    "env_file": Key(FILES, "Files of `NAME=value` lines that add to `env`.", "[]", templates=True),
    "sandbox": Key(_choice_kind(LEVELS), "The level of protection.", '"strict"'),
    "system": Key(_choice_kind(SYSTEMS), "What the step sees of /usr.", '"host"', later=True, now=("host",)),
    "network": Key(_choice_kind(NETWORKS), "Whether the step reaches the network.", '"none"'),
    "clock": Key(_choice_kind(CLOCKS), "What time it is for the step.", '"real"', later=True, now=("real",)),
    "random": Key(
        _choice_kind(RANDOMS), "Where the step's randomness comes from.", '"real"', later=True, now=("real",)
    ),
    "max_output_bytes": Key(
        SIZE_OR_NOTHING, "How much of stdout, and of stderr, is kept; more is cut and marked.", '"1MiB"'
    ),
    "timeout": Key(DURATION, "How long the step may take by the clock on the wall."),
    "cpu_time": Key(DURATION, "How much processor time it may use."),
    "memory": Key(SIZE, "How much memory it may use."),
    "processes": Key(COUNT, "How many processes and threads it may have at once."),
    "open_files": Key(COUNT, "How many files each process may have open."),
    "file_size": Key(SIZE, "How large one file may become."),
    "output_size": Key(SIZE, "How large all outputs together may be."),
    "tmp": Key(SIZE, "How much fits into /tmp and HOME."),
    "cache": Key(BOOLEAN, "Whether results are remembered; `false` runs the step each time.", "true"),
    "retries": Key(_count_kind(0, 100), "How often a failed command is tried again.", "0"),
    "pool": Key(NAME, "The pool of `[pools]` whose places it shares."),
    "persistent": Key(BOOLEAN, "A process that stays while others use it.", "false", later=True, now=(False,)),
    "ready": Key(ANYTHING, "How a persistent step says that it is ready.", later=True),
    "lock": Key(
        NAMES,
        "Inputs that pin what the network gives; with them a step that uses it is remembered.",
        "[]",
        templates=True,
    ),
    "require": Key(ANYTHING, "Conditions on results.", later=True, now=([], {})),
}

PROJECT: Mapping[str, Key] = {
    "name": Key(NAME, "The project's name."),
    "requiem": Key(NAME, 'Versions of Requiem that this manifest is for: ">=1.0", ">=1.2,<2".'),
    "default": Key(NAMES, "What a plain `requiem build` builds; without it everything.", "all instances"),
    "include": Key(NAMES, "Other manifests: folders with a requiem.toml, or .toml files.", "[]"),
    "vars_files": Key(NAMES, "TOML or JSON files whose values are laid over `[vars]`.", "[]"),
}

ROOT: Mapping[str, Key] = {
    "path": Key(NAME, "A directory: relative to the manifest, absolute, or `~/`."),
    "key": Key(NAMES, "Files that stand for its content, such as a lock file; without it every file counts.", "[]"),
}

STORE: Mapping[str, Key] = {
    "max_size": Key(SIZE, "How large the store may become before what is oldest is dropped."),
    "path": Key(NAME, "Where the store lies. Only in requiem.local.toml or in the user's configuration.", '".cas"'),
}

POOL = Key(COUNT, "How many of its steps may run at once.")

TABLES: Mapping[str, str] = {
    "project": "The project: its name, what is built by default, what else belongs to it.",
    "vars": "Variables for templates.",
    "defaults": "Keys that every step starts from.",
    "templates": "Keys for `extends`, by name.",
    "profiles": "Other defaults and variables, by name: `requiem build --profile NAME`.",
    "steps": "The steps, by name.",
    "roots": "Read-only trees outside the inputs, by name.",
    "pools": "How many steps of a kind may run at once, by name.",
    "store": "The store of objects and records.",
}
