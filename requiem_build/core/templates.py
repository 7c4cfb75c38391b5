"""Templates: `{{ expression }}` in the texts of a manifest, and words for commands. The only user of Jinja2.

There are no blocks and no comments, so shell text survives. Names alone (`{{ src.stem }}`) are answered
here; anything more is a Jinja2 expression in a sandbox with little in it and a limit on every size.
It knows paths as texts only.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from .paths import quoted, relative, resolve
from .patterns import escape

if TYPE_CHECKING:
    from .expressions import Compiled

EXPRESSION_MAX = 2000
TEXT_MAX = 1024 * 1024
ITEMS_MAX = 100_000
WORDS_BYTES_MAX = 64 * 1024 * 1024
BRACKETS_MAX = 40

Variables: TypeAlias = Mapping[str, Any]

_NAMES = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)\s*")
_WORDS_OF_JINJA = frozenset("true false none True False None not and or in is if else".split())
_GLUE = r"[A-Za-z0-9_./=:,+@%-]*"
_GLUE_BEFORE = re.compile(_GLUE + r"\Z")
_GLUE_AFTER = re.compile(_GLUE)


class BadTemplate(ValueError):
    """What is wrong with a text, for the message at its key."""

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


class Raw(str):
    """Text that a shell string takes as it is."""

    __slots__ = ()


class Value(str):
    """A path or another text with a path's attributes: `name stem suffix parent with_suffix() relative_to()`.

    `path` is its spelling in the manifest; with a `view` (folder and cwd) it reads as seen from there.
    An `exact` one came from a path that stands there, so characters of patterns in it mean themselves.
    """

    __slots__ = ("exact", "path", "view")
    path: str
    view: tuple[str, str] | None
    exact: bool

    def __new__(cls, path: str, view: tuple[str, str] | None = None, exact: bool = False) -> Value:
        shown = path if view is None or view[0] == view[1] else relative(resolve(path, view[0]), view[1])
        self = super().__new__(cls, shown.removesuffix("/") if len(shown) > 1 else shown)
        self.path = path
        self.view = view
        self.exact = exact
        return self

    def _like(self, path: str, *, here: bool = False) -> Value:
        return Value(path, self.view if here else None, self.exact)

    @property
    def _plain(self) -> str:
        return self.path.removesuffix("/") if len(self.path) > 1 else self.path

    @property
    def name(self) -> Value:
        return self._like(self._plain.rpartition("/")[2])

    @property
    def suffix(self) -> Value:
        name = self._plain.rpartition("/")[2]
        dot = name.rfind(".")
        return self._like(name[dot:] if 0 < dot < len(name) - 1 else "")

    @property
    def stem(self) -> Value:
        name = self._plain.rpartition("/")[2]
        return self._like(name[: len(name) - len(self.suffix)] if self.suffix else name)

    @property
    def parent(self) -> Value:
        return self._like(self._plain.rpartition("/")[0] or ".", here=True)

    def with_suffix(self, suffix: str) -> Value:
        if suffix and (not suffix.startswith(".") or "/" in suffix or suffix == "."):
            raise BadTemplate(f"with_suffix wants a suffix such as .o, not {quoted(suffix)}")
        plain = self._plain
        return self._like(plain[: len(plain) - len(self.suffix)] + suffix, here=True)

    def relative_to(self, directory: str) -> Value:
        above = (directory.path if isinstance(directory, Value) else str(directory)).removesuffix("/")
        if above == ".":
            return self._like(self._plain)
        if self._plain != above and not self._plain.startswith(above + "/"):
            raise BadTemplate(f"{quoted(self._plain)} is not below {quoted(above)}")
        return self._like(self._plain[len(above) + 1 :] or ".")


ATTRIBUTES = frozenset({"name", "stem", "suffix", "parent"})
METHODS = frozenset({"with_suffix", "relative_to"})


class Named(list[Any]):
    """A list whose parts may have names: `inputs`, `inputs.code`."""

    def __init__(self, items: Sequence[Any], names: Mapping[str, Any]) -> None:
        super().__init__(items)
        self.names = names


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
        from .expressions import compile_expression

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
    found: frozenset[str] = frozenset()
    for part in parse(text):
        if isinstance(part, Expression):
            found |= part.roots()
    return found


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


def as_text(value: Any, expression: str) -> str:
    """How a scalar reads in a command."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    if value is None:
        raise BadTemplate(f"{{{{ {expression} }}}} is none")
    kind = "a table" if isinstance(value, dict) else "a list" if isinstance(value, list | tuple) else "no value"
    raise BadTemplate(f"{{{{ {expression} }}}} is {kind} where a text is due")


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
    parts = parse(text)
    if all(isinstance(part, str) for part in parts):
        return [text]
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
    _check_size(found)
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
    parts = parse(text)
    filled = []
    for part in parts:
        if isinstance(part, str):
            filled.append(part)
            continue
        value = part.value(variables)
        items = value if isinstance(value, list | tuple) else [value]
        filled.append(" ".join(as_text(item, part.text) for item in items))
    _check_size(filled)
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
    _check_size(filled)
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
                f"{{{{ {expression} }}}} stands inside {quote} quotes of the shell, and its value {quoted(plain)} needs quotes of its own",
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


def _check_size(texts: Sequence[str]) -> None:
    if len(texts) > ITEMS_MAX:
        raise BadTemplate(f"more than {ITEMS_MAX:,} items")
    if sum(map(len, texts)) > WORDS_BYTES_MAX:
        raise BadTemplate(f"longer than {WORDS_BYTES_MAX:,} characters")


def render_variables(
    raw: Mapping[str, Any], fixed: Variables, fail: Callable[[str, BadTemplate], Exception]
) -> dict[str, Any]:
    """Variables that speak of variables, filled in in the order that this takes. `fail` words an error at a variable."""
    done: dict[str, Any] = {}
    pending = [(name, False) for name in reversed(raw)]
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


# Commands: a recipe is all that a command is made from, as JSON

SHELLS = {"bash": ("bash", "-euo", "pipefail", "-c"), "sh": ("/bin/sh", "-eu", "-c")}


@dataclass(frozen=True, slots=True)
class Recipe:
    """`each` holds foreach variables; `inputs` and `outputs` are (name, one, paths): workspace paths of one entry.

    A late path is written as `[pattern]`, a list of one, until it is known.
    """

    command: str | Sequence[str]
    shell: str
    folder: str
    cwd: str
    variables: Mapping[str, Any]
    each: Mapping[str, Any]
    paths: Sequence[str]
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    depfile: str | None

    def argv(self, found: Mapping[str, Sequence[str]] | None = None) -> tuple[tuple[str, ...], str]:
        """The argv, and the command as a person would type it. Raises BadTemplate."""
        return self.argv_with(self.names(found or {}))

    def argv_with(self, variables: Variables) -> tuple[tuple[str, ...], str]:
        """The same with `names()` at hand."""
        if isinstance(self.command, str):
            text = shell_text(self.command, variables)
            return (*SHELLS[self.shell], text), text
        argv = [word for item in self.command for word in words(item, variables)]
        _check_size(argv)
        return tuple(argv), shlex.join(argv)

    def names(self, found: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Every variable of a command, paths as seen from `cwd`."""
        view = (self.folder, self.cwd)
        names: dict[str, Any] = dict(self.variables)
        for name, value in self.each.items():
            names[name] = each_value(value, view if name in self.paths else None)
        names["inputs"] = _named(self.inputs, self.cwd, found)
        names["outputs"] = outputs = _named(self.outputs, self.cwd, found)
        if len(outputs) == 1:
            names["output"] = outputs[0]
        if self.depfile is not None:
            names["depfile"] = Value("//" + self.depfile, (".", self.cwd)) if self.cwd != "." else Value(self.depfile)
        return names


def each_value(value: Any, view: tuple[str, str] | None, exact: bool = False) -> Any:
    """A foreach value as expressions see it: every text with a path's attributes."""
    if isinstance(value, str):
        return Value(value, view, exact)
    if isinstance(value, dict):
        return {name: each_value(item, None) for name, item in value.items()}
    return [each_value(item, None) for item in value] if isinstance(value, list) else value


def _named(entries: Sequence[Any], cwd: str, found: Mapping[str, Sequence[str]]) -> Named:
    listed: dict[str, Value] = {}
    names: dict[str, Any] = {}
    for name, one, paths in entries:
        mine: dict[str, Value] = {}
        for path in paths:
            late = not isinstance(path, str)
            for known in found[path[0]] if late else (path,):
                mine[known] = listed.get(known) or seen_from(known, cwd)
        listed.update(mine)
        if name is not None:
            values = list(mine.values())
            names[name] = values[0] if one and len(values) == 1 else [*names.get(name, []), *values]
    return Named(list(listed.values()), names)


def seen_from(path: str, cwd: str) -> Value:
    """A workspace path as a value that reads as seen from `cwd`."""
    return Value(path) if cwd == "." else Value("//" + path, (".", cwd))


def render_late(late: str, found: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], str]:
    """The argv and the shown text of `Instance.late`, now that inputs are known.

    `found` maps the `path` of each late Input to the workspace paths that it turned out to be, sorted.
    """
    recipe = Recipe(**json.loads(late))
    wanted = {path[0] for _, _, paths in recipe.inputs for path in paths if not isinstance(path, str)}
    return recipe.argv({path: list(found.get(path, ())) for path in wanted})


def late_json(recipe: Recipe, used: frozenset[str]) -> str:
    """A recipe as JSON, with those variables that its command speaks of."""
    fields = {name: getattr(recipe, name) for name in Recipe.__dataclass_fields__}
    fields["variables"] = {name: value for name, value in recipe.variables.items() if name in used}
    return json.dumps(fields, ensure_ascii=False, sort_keys=True)


def limited(values: Iterator[Any]) -> list[Any]:
    """What a filter yields, as a list of limited length."""
    found = list(itertools.islice(values, ITEMS_MAX + 1))
    if len(found) > ITEMS_MAX:
        raise BadTemplate(f"more than {ITEMS_MAX:,} items")
    return found
