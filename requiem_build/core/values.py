"""What expressions see of paths: texts with a path's attributes, and lists whose parts have names."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from .paths import quoted, relative, resolve

ITEMS_MAX = 100_000
Variables: TypeAlias = Mapping[str, Any]
TEXT_MAX = 128 * 1024
"""Linux takes no longer argument."""


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
        here = view is None or (view[0] == view[1] and not path.startswith("//"))
        shown = path if view is None or here else relative(resolve(path, view[0]), view[1])
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


def each_value(value: Any, view: tuple[str, str] | None, exact: bool = False) -> Any:
    """A foreach value as expressions see it: every text with a path's attributes."""
    if isinstance(value, str):
        return Value(value, view, exact)
    if isinstance(value, dict):
        return {name: each_value(item, None) for name, item in value.items()}
    return [each_value(item, None) for item in value] if isinstance(value, list) else value


def as_text(value: Any, expression: str) -> str:
    """How a scalar reads in a command. Raises BadTemplate for what is none, and for what no command can hold."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if not value.isprintable():
            _refuse_unspeakable(value, expression)
        return value
    if isinstance(value, int | float):
        return str(value)
    if value is None:
        raise BadTemplate(f"{{{{ {expression} }}}} is none")
    kind = "a table" if isinstance(value, dict) else "a list" if isinstance(value, list | tuple) else "no value"
    raise BadTemplate(f"{{{{ {expression} }}}} is {kind} where a text is due")


def _refuse_unspeakable(text: str, expression: str) -> None:
    """A line's end, a tab or an escape sequence may be meant; these cannot even be passed on."""
    bad = next((c for c in text if c == "\0" or "\ud800" <= c <= "\udfff"), None)
    if bad is not None:
        name = "a NUL character" if bad == "\0" else f"half of a character ({quoted(bad)[1:-1]})"
        raise BadTemplate(
            f"{{{{ {expression} }}}} gives a text with {name}", hint="no command, variable or path can hold it"
        )


def limited(values: Iterator[Any]) -> list[Any]:
    """What a filter yields, as a list of limited length."""
    found = list(itertools.islice(values, ITEMS_MAX + 1))
    if len(found) > ITEMS_MAX:
        raise BadTemplate(f"more than {ITEMS_MAX:,} items")
    return found
