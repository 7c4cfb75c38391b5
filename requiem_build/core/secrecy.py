"""Which variables look like secrets, and how a secret's value is found and masked in what a step wrote. Pure.

It knows values only while it is asked about them: nothing here is stored or shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from .fields import dataclass

MASK = b"***"
VALUE_MIN = 4
"""In bytes. A shorter value would be masked wherever these letters happen to stand, and so give itself away."""
VALUE_MAX = 64 * 1024
PIECE_MIN = 8
"""In bytes: shorter lines, or shorter pieces of an encoding, are too often in a text by chance."""

_LIKE = (
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|PRIVATE|AUTH(?!OR)|SESSION|COOKIE|SIGNATURE"
    r"|(^|_)PASS(_|$)|_PWD$|(^|_)PAT$|KEYS?$|_KEYS?_|API_?KEY|^AWS_|^AZURE_|^VAULT_"
)


def looks_secret(name: str) -> bool:
    """Whether a variable of this name is likely to hold a secret: no pattern lets it through, no message shows it."""
    return re.search(_LIKE, name, re.IGNORECASE) is not None


def spellings(value: str) -> frozenset[bytes]:
    """How a value may come out: plain, line by line, in URLs, JSON, shell quotes, hexadecimal and base64."""
    import json
    from urllib.parse import quote, quote_plus

    plain = value.encode("utf-8", "surrogateescape")
    lines = {line.strip() for line in plain.splitlines()}
    found = {plain, *(line for line in lines if len(line) >= PIECE_MIN and not line.startswith(b"-----"))}
    text = plain.decode("utf-8", "replace")
    for spelled in (
        quote(plain, safe=""),
        quote(plain),
        quote_plus(plain),
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        value.replace("'", "'\\''"),
    ):
        found.add(spelled.encode("utf-8", "surrogateescape"))
    found |= {quote(plain, safe="").lower().encode()} if b"%" in quote(plain, safe="").encode() else set()
    encoded = {plain.hex().encode(), plain.hex().upper().encode(), *_base64(plain)}
    return frozenset(found | {piece for piece in encoded if len(piece) >= PIECE_MIN})


def _base64(plain: bytes) -> Iterator[bytes]:
    """What of its base64 is the same whatever stands around it: at each of the three places in a group."""
    import base64

    for before in range(3):
        padded = base64.b64encode(b"\0" * before + plain)
        first = (before * 8 + 5) // 6
        last = (before + len(plain)) * 8 // 6
        yield padded[first:last]
        yield padded[first:last].translate(bytes.maketrans(b"+/", b"-_"))


@dataclass(frozen=True)
class Masker:
    """The secrets of one step, by name. `tail`: how many bytes beyond a cut it takes to mask what is cut."""

    values: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Masker({', '.join(self.values)})"

    @cached_property
    def _spelled(self) -> tuple[tuple[bytes, str], ...]:
        return tuple(sorted((piece, name) for name, value in self.values.items() for piece in spellings(value)))

    @property
    def tail(self) -> int:
        return max((len(piece) for piece, _ in self._spelled), default=1) - 1

    def mask(self, content: bytes, most: int | None = None) -> bytes:
        """With `***` for each secret; of no more than the first `most` bytes of `content`.

        With `tail` more bytes in `content` than `most`, no beginning of a secret is left at the cut.
        """
        end = len(content) if most is None else min(most, len(content))
        pieces = []
        at = 0
        for begin, until in _merged(self._spans(content)):
            if begin >= end:
                break
            pieces += [content[at:begin], MASK]
            at = until
        pieces.append(content[at : max(at, end)])
        return b"".join(pieces)[:end]

    def mask_text(self, text: str) -> str:
        return self.mask(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")

    def held_in(self, content: bytes) -> str | None:
        """The name of a secret that these bytes hold."""
        return next((name for piece, name in self._spelled if piece in content), None)

    def held_in_pieces(self, pieces: Iterable[bytes]) -> str | None:
        """The same for content that comes piece by piece."""
        before = b""
        for piece in pieces:
            found = self.held_in(before + piece)
            if found is not None:
                return found
            before = (before + piece)[-self.tail :] if self.tail else b""
        return None

    def _spans(self, content: bytes) -> list[tuple[int, int]]:
        spans = []
        for piece, _ in self._spelled:
            at = content.find(piece)
            while at >= 0:
                spans.append((at, at + len(piece)))
                at = content.find(piece, at + 1)
        return sorted(spans)


def _merged(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Spans that overlap or touch become one: the rest of a half-masked secret would tell."""
    begin = until = -1
    for first, last in spans:
        if first > until:
            if until >= 0:
                yield begin, until
            begin, until = first, last
        else:
            until = max(until, last)
    if until >= 0:
        yield begin, until
