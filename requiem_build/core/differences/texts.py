"""Text and JSON: the first lines or values that differ, and what their words betray."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from .base import SHOWN_MAX, Difference, NotThisFormat, differing, first_difference

JSON_MAX = 8 * 1024 * 1024
DEPTH_MAX = 100
LINES_SHOWN = 3

Compare = Callable[[bytes, bytes], list[Difference]]

_CLOCK = re.compile(
    r"\b(19|20)\d\d[-/.]?[01]\d[-/.]?[0-3]\d|\b[012]?\d:[0-5]\d(:[0-5]\d)?\b|\b1[6-9]\d{8}(\d{3}|\d{6}|\d{9})?\b"
    r"|\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun|Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b"
)
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,16}\b")
_UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\b", re.I)


_TEMPORARY = re.compile(r"/tmp/[\w.-]{6,}")
_HEX = re.compile(r"\b(?=[0-9]*[a-f])[0-9a-f]{16,}\b", re.I)
_KINDS = (
    ("randomness", _UUID),
    ("address layout", _ADDRESS),
    ("clock", _CLOCK),
    ("randomness", _TEMPORARY),
    ("randomness", _HEX),
)


def betrayed(then: str, now: str) -> str:
    """What usually makes two such texts differ, by what stands in both."""
    for kind, pattern in _KINDS:
        here, there = (tuple(match.group() for match in pattern.finditer(text)) for text in (then, now))
        if here and here != there:
            return kind
    return ""


def compare_json(then: bytes, now: bytes, _: Compare) -> list[Difference]:
    if max(len(then), len(now)) > JSON_MAX or then.lstrip()[:1] not in (b"{", b"["):
        raise NotThisFormat
    try:
        found = list(_values((), json.loads(then), json.loads(now)))
    except (ValueError, RecursionError) as error:
        raise NotThisFormat from error
    return found[:20] or [differing(("spelling of JSON",), "one", "another", "order")]


def _values(place: tuple[str, ...], then: Any, now: Any) -> Iterator[Difference]:
    pending = [(place, then, now)]
    for place, then, now in pending:  # noqa: PLR1704 - grows while it is walked: no recursion over data
        if len(place) > DEPTH_MAX:
            continue
        if isinstance(then, dict) and isinstance(now, dict):
            for key in sorted(then.keys() | now.keys()):
                pending.append(((*place, str(key)), then.get(key, _ABSENT), now.get(key, _ABSENT)))
        elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
            if then != now and sorted(map(repr, then)) == sorted(map(repr, now)):
                yield differing((*place, "order of items"), then, now, "order")
                continue
            pending += [((*place, f"[{i}]"), a, b) for i, (a, b) in enumerate(zip(then, now, strict=True))]
        elif then != now:
            yield differing(place or ("value",), then, now, betrayed(str(then), str(now)))


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def compare_text(then: bytes, now: bytes, _: Compare) -> list[Difference]:
    if b"\0" in then[:8192] or b"\0" in now[:8192]:
        raise NotThisFormat
    try:
        before, after = then.decode("utf-8").splitlines(), now.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise NotThisFormat from error
    if before != after and sorted(before) == sorted(after):
        at = next(i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)
        return [_line(at, before, after, then, now, "order")]
    longer = max(len(before), len(after))
    places = (at for at in range(longer) if before[at : at + 1] != after[at : at + 1])
    found = [_line(at, before, after, then, now) for at, _ in zip(places, range(LINES_SHOWN), strict=False)]
    return found or [differing(("line ends",), "one kind", "another kind")]


def _line(at: int, before: list[str], after: list[str], then: bytes, now: bytes, betrays: str = "") -> Difference:
    a, b = (lines[at] if at < len(lines) else "(ends)" for lines in (before, after))
    cut = max(0, first_difference(a.encode(), b.encode()) - SHOWN_MAX // 2)
    return Difference(
        (f"line {at + 1}",),
        a[cut : cut + SHOWN_MAX],
        b[cut : cut + SHOWN_MAX],
        first_difference(then, now),
        betrays or betrayed(a, b),
    )
