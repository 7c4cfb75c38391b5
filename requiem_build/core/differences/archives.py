"""Archives: tar, zip and ar. What two of them hold, member by member, in order; contents are compared further on."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator

from ..fields import dataclass, field
from .base import Difference, NotThisFormat, differing

MEMBER_MAX = 64 * 1024 * 1024
MEMBERS_MAX = 100_000

Compare = Callable[[bytes, bytes], list[Difference]]

_BETRAYS = {"mtime": "clock", "mode": "umask", "uid": "uid and HOME", "gid": "uid and HOME", "uname": "uid and HOME"}
_BETRAYS |= {"gname": "uid and HOME", "atime": "clock", "ctime": "clock"}


@dataclass(frozen=True, slots=True)
class Member:
    """`content` is unpacked; `facts` are the fields of its header."""

    name: str
    content: bytes
    facts: dict[str, str] = field(default_factory=dict)


def compare_archives(then: bytes, now: bytes, compare: Compare) -> list[Difference]:
    """Raises NotThisFormat unless both are archives of one kind."""
    for read in (read_zip, read_ar, read_tar):
        try:
            return list(_compare(read(then), read(now), compare))
        except (NotThisFormat, struct.error, ValueError, IndexError, zlib.error):
            continue
    raise NotThisFormat


def _compare(then: list[Member], now: list[Member], compare: Compare) -> Iterator[Difference]:
    before, after = {member.name: member for member in then}, {member.name: member for member in now}
    for name in before.keys() ^ after.keys():
        yield differing((f"member {name}",), _presence(name in before), _presence(name in after))
    order_then = [member.name for member in then if member.name in after]
    order_now = [member.name for member in now if member.name in before]
    if order_then != order_now:
        at = next(i for i, (a, b) in enumerate(zip(order_then, order_now, strict=False)) if a != b)
        yield differing(("order of members",), order_then[at], order_now[at], "order")
    for member in then:
        other = after.get(member.name)
        if other is None:
            continue
        for name, value in member.facts.items():
            if other.facts.get(name) != value:
                place = (f"member {member.name}", name)
                yield differing(place, value, other.facts.get(name), _BETRAYS.get(name, ""))
        if member.content != other.content:
            yield from (found.inside(f"member {member.name}") for found in compare(member.content, other.content))


def _presence(there: bool) -> str:
    return "there" if there else "absent"


# tar (POSIX.1-2001 ustar, pax and GNU long names)


def read_tar(content: bytes) -> list[Member]:
    if len(content) < 512 or content[257:262] != b"ustar":
        raise NotThisFormat
    members: list[Member] = []
    at, extended = 0, dict[str, str]()
    while at + 512 <= len(content) and len(members) < MEMBERS_MAX:
        head = content[at : at + 512]
        if not any(head):
            break
        size = _octal(head[124:136])
        body = content[at + 512 : at + 512 + min(size, MEMBER_MAX)]
        at += 512 + (size + 511) // 512 * 512
        kind = head[156:157]
        if kind == b"L":
            extended["path"] = body.rstrip(b"\0").decode("utf-8", "replace")
            continue
        if kind in b"xg":
            extended |= _pax_fields(body)
            continue
        prefix = _text(head[345:500]) if head[257:265] == b"ustar\x0000" else ""
        name = extended.pop("path", "") or (f"{prefix}/" if prefix else "") + _text(head[:100])
        facts = {
            "mode": f"{_octal(head[100:108]):o}",
            "uid": str(_octal(head[108:116])),
            "gid": str(_octal(head[116:124])),
            "mtime": str(_octal(head[136:148])),
            "kind": _text(kind),
            "link": _text(head[157:257]),
            "uname": _text(head[265:297]),
            "gname": _text(head[297:329]),
            **extended,  # A pax header speaks for the fields that it names, with more digits.
        }
        extended = {}
        members.append(Member(name, body, facts))
    return members


def _pax_fields(body: bytes) -> dict[str, str]:
    """The records `LENGTH key=value` of a pax header."""
    found, at = {}, 0
    while at < len(body) and b" " in body[at : at + 20]:
        length = int(body[at:].split(b" ", 1)[0])
        key, _, value = body[at : at + length].split(b" ", 1)[-1].rstrip(b"\n").partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        at += max(length, 1)
    return found


def _text(field_bytes: bytes) -> str:
    return field_bytes.split(b"\0")[0].decode("utf-8", "replace")


def _octal(field_bytes: bytes) -> int:
    if field_bytes[:1] == b"\x80":
        return int.from_bytes(field_bytes[1:], "big")
    return int(field_bytes.strip(b" \0") or b"0", 8)


# zip (PKWARE's APPNOTE): the central directory and the members it points to


def read_zip(content: bytes) -> list[Member]:
    end = content.rfind(b"PK\x05\x06", max(0, len(content) - 65_557))
    if content[:2] != b"PK" or end < 0:
        raise NotThisFormat
    count, _, at = struct.unpack_from("<HII", content, end + 10)
    members = []
    for _ in range(min(count, MEMBERS_MAX)):
        head = struct.unpack_from("<4s6H3I5H2I", content, at)
        (_, made_by, _, flags, method, time, date, _, packed, size, names, extras, comments, _, _, mode, place) = head
        name = content[at + 46 : at + 46 + names].decode("utf-8", "replace")
        extra = content[at + 46 + names : at + 46 + names + extras]
        at += 46 + names + extras + comments
        facts = {
            "mtime": f"{(date >> 9) + 1980}-{date >> 5 & 15:02}-{date & 31:02}"
            f" {time >> 11:02}:{time >> 5 & 63:02}:{(time & 31) * 2:02}",
            "mode": f"{mode >> 16:o}",
            "method": str(method),
            "flags": str(flags),
            "made by": str(made_by),
            **_extra_fields(extra),
        }
        members.append(Member(name, _unpacked(content, place, method, packed, size), facts))
    return members


def _extra_fields(extra: bytes) -> dict[str, str]:
    found, at = {}, 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        name = {0x5455: "mtime (extended)", 0x7875: "uid and gid"}.get(kind, f"extra {kind:#06x}")
        found[name] = extra[at + 4 : at + 4 + size].hex()
        at += 4 + size
    return found


_BETRAYS["mtime (extended)"] = "clock"
_BETRAYS["uid and gid"] = "uid and HOME"


def _unpacked(content: bytes, place: int, method: int, packed: int, size: int) -> bytes:
    names, extras = struct.unpack_from("<HH", content, place + 26)
    body = content[place + 30 + names + extras :][:packed]
    if method != 8:
        return body
    return zlib.decompressobj(-15).decompress(body, min(size + 1, MEMBER_MAX))


# ar (as ranlib(1) and dpkg write it)


def read_ar(content: bytes) -> list[Member]:
    if not content.startswith(b"!<arch>\n"):
        raise NotThisFormat
    members: list[Member] = []
    at, names = 8, b""
    while at + 60 <= len(content) and len(members) < MEMBERS_MAX:
        head = content[at : at + 60]
        size = int(head[48:58])
        body = content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
        name = head[:16].decode("ascii", "replace").rstrip()
        if name == "//":
            names = body
            continue
        if name.startswith("/") and name[1:].isdigit():
            name = names[int(name[1:]) :].split(b"/\n")[0].decode("utf-8", "replace")
        facts = {
            "mtime": head[16:28].decode().strip(),
            "uid": head[28:34].decode().strip(),
            "gid": head[34:40].decode().strip(),
            "mode": head[40:48].decode().strip(),
        }
        members.append(Member({"/": "symbol table"}.get(name, name.removesuffix("/")), body, facts))
    return members
