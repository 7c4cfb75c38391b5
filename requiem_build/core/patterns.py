"""Patterns: which paths a text such as `src/**/*.c` means, and the walk that finds them without listing everything.

`*` and `?` stay within a name, `**` is whole names, `[...]` a class; a leading dot must be written, and
what nobody means (NEVER) must be written out. `[*]`, `[?]` and `[[]` are the characters themselves.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Protocol, TypeAlias

from .fields import dataclass
from .listing import Listing
from .paths import ROOT

NEVER = frozenset(
    {".git", ".hg", ".svn", ".requiem", ".cas", "node_modules", ".venv", "venv", "__pycache__", ".DS_Store"}
)
OWN = frozenset({".requiem", ".cas"})
"""Requiem's own directories, which nothing reads."""

_NEVER_CACHE = re.compile(r"\..*_cache", re.DOTALL)
_ESCAPED = re.compile(r"\[([*?\[])\]")
_MAGIC = re.compile(r"[*?\[]")

Segment: TypeAlias = "str | re.Pattern[str] | None"
"""A literal name, a wildcard for one name, or `**`."""


class BadPattern(ValueError):
    """Worded to follow the pattern: `"a**" ...`."""


class Tree(Protocol):
    """What a walk needs: `dir` is entered; `file` and `link` match; `tree` (a directory output) matches as a whole."""

    def children(self, directory: str) -> Mapping[str, str]: ...

    def has_source(self, directory: str) -> bool: ...


def is_pattern(text: str) -> bool:
    return _MAGIC.search(text) is not None and _MAGIC.search(_ESCAPED.sub("", text)) is not None


def escape(text: str) -> str:
    """The pattern that means exactly this path."""
    return _MAGIC.sub(lambda match: f"[{match.group()}]", text) if _MAGIC.search(text) else text


def unescape(text: str) -> str:
    """The path that a text without real wildcards means."""
    return _ESCAPED.sub(r"\1", text) if "[" in text else text


@dataclass(frozen=True, slots=True)
class Pattern:
    """Calling it says whether it means a path; a path of a directory ends in `/`."""

    text: str
    segments: tuple[Segment, ...]
    directories: bool

    @property
    def prefix(self) -> str:
        """The directory that every match lies in, as far as it is written out."""
        return "/".join(self._literal()) or ROOT

    def _literal(self) -> list[str]:
        found: list[str] = []
        for segment in self.segments[:-1]:
            if not isinstance(segment, str):
                break
            found.append(segment)
        return found

    def __call__(self, path: str) -> bool:
        if path.endswith("/") != self.directories:
            return False
        states = self._closure((0,))
        for name in path.removesuffix("/").split("/"):
            states = self._after(states, name)
            if not states:
                return False
        return len(self.segments) in states

    def _closure(self, states: Iterable[int]) -> frozenset[int]:
        found = set(states)
        pending = list(found)
        for state in pending:
            if state < len(self.segments) and self.segments[state] is None and state + 1 not in found:
                found.add(state + 1)
                pending.append(state + 1)
        return frozenset(found)

    def _after(self, states: frozenset[int], name: str) -> frozenset[int]:
        following = []
        hidden: bool | None = None
        for state in states:
            if state == len(self.segments):
                continue
            segment = self.segments[state]
            if isinstance(segment, str):
                if segment == name:
                    following.append(state + 1)
                continue
            if hidden is None:
                hidden = is_never(name)
            if hidden:
                continue
            if segment is None:
                if name[0] != ".":
                    following.append(state)
            elif segment.fullmatch(name):
                following.append(state + 1)
        return self._closure(following)

    def walk(self, tree: Tree) -> Iterator[str]:
        """Every match, in no order. Only directories that can lead to one are listed."""
        literal = self._literal()
        for index, name in enumerate(literal):
            if tree.children("/".join(literal[:index]) or ROOT).get(name) != "dir":
                return
        pending = [("/".join(literal), self._closure((len(literal),)))]
        while pending:
            directory, states = pending.pop()
            for name, kind in tree.children(directory or ROOT).items():
                following = self._after(states, name)
                if not following:
                    continue
                path = f"{directory}/{name}" if directory else name
                if len(self.segments) in following and self._is_wanted(kind, path, tree):
                    yield path + ("/" if self.directories else "")
                if kind == "dir":
                    pending.append((path, following))

    def _is_wanted(self, kind: str, path: str, tree: Tree) -> bool:
        if self.directories:
            return kind == "tree" or (kind == "dir" and tree.has_source(path))
        return kind in ("file", "link")


def never_in(path: str, but: Collection[str] = ()) -> str | None:
    """The first name on a path that no pattern enters, if there is one `but` these."""
    return next((name for name in path.split("/") if name and is_never(name) and name not in but), None)


def is_never(name: str) -> bool:
    """Names that only a literal segment reaches."""
    return name in NEVER or (name[0] == "." and _NEVER_CACHE.fullmatch(name) is not None)


@lru_cache(maxsize=16384)
def compile_pattern(text: str) -> Pattern:
    """A workspace-relative pattern, without a leading `!`. Raises BadPattern."""
    segments: list[Segment] = []
    for part in text.removesuffix("/").split("/"):
        if part == "**":
            if not segments or segments[-1] is not None:
                segments.append(None)
        elif "**" in part:
            raise BadPattern("holds ** beside other characters: it stands for whole names")
        elif is_pattern(part):
            segments.append(_wildcard(part))
        else:
            segments.append(unescape(part))
    if segments[-1] is None:
        segments.append(_wildcard("*"))
    return Pattern(text, tuple(segments), text.endswith("/"))


def _wildcard(part: str) -> re.Pattern[str]:
    """What stands between two stars is found at its first place and kept there, so time stays linear in the name."""
    pieces = [""]
    at = 0
    while at < len(part):
        character = part[at]
        at += 1
        if character == "*":
            pieces.append("")
        elif character == "?":
            pieces[-1] += "."
        elif character == "[":
            body, at = _class(part, at)
            pieces[-1] += body
        else:
            pieces[-1] += re.escape(character)
    first, *middle = pieces
    last = f".*{middle.pop()}" if middle else ""
    visible = "" if part[0] == "." else r"(?!\.)"
    return re.compile(visible + first + "".join(f"(?>.*?{piece})" for piece in middle if piece) + last, re.DOTALL)


def _class(part: str, at: int) -> tuple[str, int]:
    """`[a-z]`, `[!a]`; a `]` right after the bracket is itself."""
    negated = part.startswith("!", at)
    start = at + negated
    end = part.find("]", start + 1)
    if end < 0:
        raise BadPattern("holds a [ that nothing closes: [[] is the character itself")
    items: list[str] = []
    body = part[start:end]
    index = 0
    while index < len(body):
        if body[index + 1 : index + 2] == "-" and index + 2 < len(body):
            low, high = body[index], body[index + 2]
            if low > high:
                raise BadPattern(f"holds the empty range {low}-{high}")
            items.append(f"{re.escape(low)}-{re.escape(high)}")
            index += 3
        else:
            items.append(re.escape(body[index]))
            index += 1
    return f"[{'^' if negated else ''}{''.join(items)}]", end + 1


def by_bytes(paths: Iterable[str]) -> list[str]:
    return sorted(paths, key=lambda path: path.encode("utf-8", "surrogateescape"))


def matches_any(patterns: Sequence[str], path: str) -> bool:
    """Whether a list of `discover` patterns means a path: one that includes, and none that excludes."""
    included = False
    for text in patterns:
        if text.startswith("!"):
            if compile_pattern(text[1:])(path):
                return False
        elif not included:
            included = compile_pattern(text)(path)
    return included


def lead_into(patterns: Sequence[str], directory: str) -> bool:
    """Whether a `discover` pattern is written for what lies in a directory, whose path ends in `/`."""
    wanted = (compile_pattern(text).prefix for text in patterns if not text.startswith("!"))
    return any(f"{prefix}/".startswith(directory) for prefix in wanted)


def select(patterns: Sequence[str], tree: Tree) -> list[str]:
    """What a list of `discover` patterns means in a tree, sorted by bytes."""
    found: dict[str, None] = {}
    excludes = [compile_pattern(text[1:]) for text in patterns if text.startswith("!")]
    for text in patterns:
        if not text.startswith("!"):
            found.update(dict.fromkeys(compile_pattern(text).walk(tree)))
    return by_bytes(path for path in found if not any(exclude(path) for exclude in excludes))


class _Undeclared:
    """A listing without anything that steps declare to make."""

    def __init__(self, listing: Listing, declared: Mapping[str, str]) -> None:
        self._listing = listing
        self._made = {unescape(path.removesuffix("/")) for path in declared if not is_pattern(path)}
        self._matchers = [compile_pattern(path) for path in declared if is_pattern(path)]

    def children(self, directory: str) -> Mapping[str, str]:
        prefix = "" if directory == ROOT else directory + "/"
        return {
            name: kind
            for name, kind in self._listing.children(directory).items()
            if (path := prefix + name) not in self._made
            and path not in OWN
            and (kind == "dir" or not any(made(path) for made in self._matchers))
        }

    def has_source(self, directory: str) -> bool:
        return True


def match_sources(patterns: Sequence[str], listing: Listing, declared: Mapping[str, str]) -> list[str]:
    """The source files that `discover` patterns mean, sorted by bytes: nothing that any step declares to make."""
    return select(patterns, _Undeclared(listing, declared))
