"""What changed inside of what changed: lines of a text, names in a directory. Bounded, and only for people."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ..core.digest import Digest, object_digest
from ..core.entries import Entry, Tree, parse_tree
from ..core.errors import RequiemError
from ..store.layout import Store
from .sealed import at_once
from .stamps import Stamps
from .workspace import left_out

BYTES_MAX = 1 << 20
LINES_MAX = 24
LINE_MAX = 160
COMPARED_MAX = 3000
"""Lines that differ, after what is the same at both ends: beyond it only their number is told."""
NAMES_MAX = 12


class Contents:
    """Old contents lie in the store; new ones there or in the workspace, where they must still have that digest."""

    def __init__(self, root: str, store: Store) -> None:
        self._root = root
        self._store = store

    def differences(self, path: str, old: Any, new: Any) -> list[str]:
        """Lines for a person about one input, by its entries in two requests; empty if nothing can be told."""
        before, after = _digest(old), _digest(new)
        if "tree" in (before[0], after[0]):
            return self._tree(path, before[1], after[1]) if before[0] == after[0] else []
        if not before[1] or not after[1]:
            return []
        if before[1] == after[1]:
            return ["its executable bit changed"]
        texts = [self._content(digest, path) for digest in (before[1], after[1])]
        if texts[0] is None or texts[1] is None:
            return []
        return text_differences(texts[0], texts[1])

    def _content(self, digest: str, path: str) -> bytes | None:
        with suppress(RequiemError, ValueError):
            if self._store.objects.has(Digest(digest)):
                return self._store.objects.get(Digest(digest))
        with suppress(OSError), open(os.path.join(self._root, path), "rb", opener=at_once) as file:
            content = file.read(BYTES_MAX + 1)
            if object_digest(content) == digest:
                return content
        return None

    def _tree(self, path: str, old: str, new: str) -> list[str]:
        here: dict[Digest, bytes] = {}
        with suppress(RequiemError):
            full = os.path.join(self._root, path.rstrip("/"))
            Stamps().tree(full, skip=left_out(path), keep_tree=here.__setitem__)

        def children(digest: str | None) -> Mapping[str, Entry]:
            if digest is None:
                return {}
            return dict(parse_tree(here.get(Digest(digest)) or self._store.objects.get(Digest(digest))))

        found: list[str] = []
        with suppress(RequiemError):
            for line in _names(path, old, new, children):
                if len(found) == NAMES_MAX:
                    found.append("and more")
                    break
                found.append(line)
        return found


def _names(path: str, old: str, new: str, children: Any) -> Iterator[str]:
    pending: list[tuple[str, str | None, str | None]] = [(path, old, new)]
    for prefix, before, after in pending:
        a, b = children(before), children(after)
        for name in sorted(a.keys() | b.keys()):
            x, y = a.get(name), b.get(name)
            if x == y:
                continue
            if isinstance(x, Tree) and isinstance(y, Tree):
                pending.append((f"{prefix}{name}/", x.digest, y.digest))
            else:
                yield f"{prefix}{name} " + ("is new" if x is None else "is gone" if y is None else "changed")


def _digest(entry: Any) -> tuple[str, str]:
    """(kind, digest) of an entry as a request spells it; discovered inputs are their digest alone."""
    if isinstance(entry, str):
        return ("file", entry)
    if isinstance(entry, Mapping):
        if "tree" in entry:
            return ("tree", str(entry["tree"]))
        return ("file", str(entry.get("digest", "")))
    return ("", "")


def text_differences(old: bytes, new: bytes) -> list[str]:
    """A short unified diff without its header, or one line where it would not help."""
    if len(old) > BYTES_MAX or len(new) > BYTES_MAX or b"\0" in old + new:
        return [f"{len(old)} -> {len(new)} bytes, not compared"]
    try:
        a, b = old.decode("utf-8").split("\n"), new.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        return [f"{len(old)} -> {len(new)} bytes, not text"]
    same = _same_ends(a, b)
    if len(a) + len(b) - 2 * sum(same) > COMPARED_MAX:
        return [f"{len(a)} -> {len(b)} lines, too many of them changed to be shown"]
    start = max(0, same[0] - 1)
    lines = list(
        difflib.unified_diff(a[start : len(a) - same[1] + 1], b[start : len(b) - same[1] + 1], lineterm="", n=1)
    )
    shown = [_moved(line, start).rstrip("\r") for line in lines[2:] if line != " "]
    if len(shown) > LINES_MAX:
        shown = [*shown[:LINES_MAX], f"... {len(shown) - LINES_MAX} more lines"]
    return [line if len(line) <= LINE_MAX else line[:LINE_MAX] + "..." for line in shown]


def _same_ends(a: list[str], b: list[str]) -> tuple[int, int]:
    """How many lines are equal at the beginning and, after these, at the end."""
    length = min(len(a), len(b))
    head = 0
    while head < length and a[head] == b[head]:
        head += 1
    tail = 0
    while tail < length - head and a[-1 - tail] == b[-1 - tail]:
        tail += 1
    return head, tail


def _moved(line: str, start: int) -> str:
    """A hunk's header with its line numbers counted from the text's beginning."""
    if not line.startswith("@@"):
        return line
    _, old, new, _ = line.split(" ", 3)
    return f"@@ {_shift(old, start)} {_shift(new, start)} @@"


def _shift(span: str, start: int) -> str:
    number, comma, count = span[1:].partition(",")
    return f"{span[0]}{int(number) + start}{comma}{count}"
