"""The shape of a difference: where, what the two hold there, and what such a place usually betrays."""

from __future__ import annotations

from ..fields import dataclass, replace

FOUND_MAX = 20
"""Differences told of one pair of files; more would tell nothing more."""
SHOWN_MAX = 60


@dataclass(frozen=True, slots=True)
class Difference:
    """`place` leads inwards: member, field. `offset` is the first differing byte of that part, if it has one.

    `betrays` names what usually makes such a place differ (`clock`, `umask`, `uid and HOME`, `workspace path`,
    `randomness`, `order`), or is empty.
    """

    place: tuple[str, ...]
    then: str
    now: str
    offset: int | None = None
    betrays: str = ""

    def inside(self, *outer: str) -> Difference:
        return replace(self, place=(*outer, *self.place))

    def as_json(self) -> dict[str, object]:
        return {
            "betrays": self.betrays,
            "now": self.now,
            "offset": self.offset,
            "place": list(self.place),
            "then": self.then,
        }


class NotThisFormat(Exception):
    """The bytes are not what the module reads: the next one is asked."""


def first_difference(then: bytes, now: bytes) -> int:
    """The offset of the first byte that differs; the shorter length if one begins with the other."""
    low, high = 0, min(len(then), len(now))
    if then[:high] == now[:high]:
        return high
    while high - low > 1:  # Halving over memcmp: Python never looks at a single byte.
        middle = (low + high) // 2
        low, high = (middle, high) if then[low:middle] == now[low:middle] else (low, middle)
    return low


def shown(content: bytes, at: int) -> str:
    """A few bytes around an offset, as text where they are text."""
    piece = content[max(0, at - 8) : at + 24]
    if not piece:
        return "(ends)"
    if all(32 <= byte < 127 or byte in (9, 10, 13) for byte in piece):
        return repr(piece.decode("ascii"))[1:-1]
    return piece.hex(" ")


def differing(place: tuple[str, ...], then: object, now: object, betrays: str = "") -> Difference:
    return Difference(place, str(then)[:SHOWN_MAX], str(now)[:SHOWN_MAX], betrays=betrays)
