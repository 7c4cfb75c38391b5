"""A value's one canonical JSON spelling (RFC 8785), and the strict reader of JSON from outside.

`encode` admits every JSON value. `encode_plain` is the fast spelling of what Requiem itself writes
(no floats); a property test holds the two equal.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from .errors import RequestError

INTEGER_MAX = 2**53 - 1
DEPTH_MAX = 128
BYTES_MAX = 64 * 1024 * 1024

_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
)


def _plain_encoder() -> Callable[[object], str]:
    """`_ENCODER.encode`, but what it makes anew for each value (half of the time of a small one) is made once."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return _ENCODER.encode
    escape = json.encoder.encode_basestring
    pieces = make(None, _ENCODER.default, escape, None, ":", ",", True, False, False)
    return lambda value: "".join(pieces(value, 0))


_PLAIN = _plain_encoder()


def encode(value: object) -> bytes:
    """The canonical bytes of any JSON value. Raises RequestError for what JSON cannot carry exactly."""
    import rfc8785

    try:
        return rfc8785.dumps(value)  # type: ignore[arg-type]
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise RequestError(f"not canonical JSON: {error}") from error
    except RecursionError as error:
        raise RequestError("not canonical JSON: nesting too deep") from error


def encode_plain(value: object) -> bytes:
    """The canonical bytes of a value without floats whose integers are within +/-(2^53-1).

    The standard encoder spells such values as RFC 8785 does, but sorts keys by code point instead
    of UTF-16 unit: the two differ only where a character is U+D800 or above.
    """
    text = _PLAIN(value)
    if not text.isascii() and max(text) >= "\ud800":
        return encode(value)
    return text.encode("utf-8")


def parse(content: bytes) -> Any:
    """The value of one strict JSON document. Raises RequestError with the offset where it is known.

    Refused: more than 64 MiB, nesting beyond 128, duplicate keys, NaN and infinities, integers
    beyond +/-(2^53-1), lone surrogates, anything but UTF-8, and a byte order mark.
    """
    if len(content) > BYTES_MAX:
        raise RequestError(f"JSON document of {len(content)} bytes is too large", hint=f"the limit is {BYTES_MAX}")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"JSON is not UTF-8 at byte {error.start}") from error
    if text.startswith("\ufeff"):
        raise RequestError("JSON begins with a byte order mark")
    _check_depth(content)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_pairs,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
    except json.JSONDecodeError as error:
        raise RequestError(
            f"invalid JSON: {error.msg}", facts=[("at", f"line {error.lineno} column {error.colno}")]
        ) from error
    if "\\u" in text or "\\U" in text:
        _refuse_surrogates(value)
    return value


def _check_depth(content: bytes) -> None:
    """Nesting by a scan outside strings: the recursive parser must never see hostile depth."""
    if content.count(b"[") + content.count(b"{") <= DEPTH_MAX:
        return
    brackets = _STRING.sub(b"", content).translate(None, _NO_BRACKETS)
    for _ in range(DEPTH_MAX):  # Each pass takes off the innermost pairs: as many passes as levels.
        size = len(brackets)
        brackets = _PAIR.sub(b"", brackets)
        if len(brackets) == size:
            break
    if b"[" in brackets or b"{" in brackets:
        raise RequestError(f"JSON nesting deeper than {DEPTH_MAX}, or brackets without an end")


_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
"""A string, or one without an end up to the end: it always matches from its quote on, so the scan is linear."""
_PAIR = re.compile(rb"\[\]|\{\}")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RequestError(f"duplicate key {key!r} in JSON")
            seen.add(key)
    return found


def _integer(literal: str) -> int:
    if len(literal) > 17 or abs(int(literal)) > INTEGER_MAX:
        raise RequestError(f"integer {literal[:24]} is outside +/-(2^53-1)", hint="write it as a string")
    return int(literal)


def _finite(literal: str) -> float | int:
    number = float(literal)
    if not math.isfinite(number):
        raise RequestError(f"number {literal[:24]} is not finite")
    return number


def _no_constant(name: str) -> Any:
    raise RequestError(f"number not finite: {name}")


def _refuse_surrogates(value: Any) -> None:
    """Escapes can spell half of a surrogate pair, which no UTF-8 can carry."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            try:
                item.encode("utf-8")
            except UnicodeEncodeError as error:
                raise RequestError("lone surrogate in JSON") from error
        elif isinstance(item, dict):
            pending.extend(item)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
