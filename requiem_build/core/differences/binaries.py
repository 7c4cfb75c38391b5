"""Binary formats with parts: gzip and its like, ELF by sections, compiled Python, PNG chunks."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator

from .base import Difference, NotThisFormat, differing, first_difference, shown

CONTENT_MAX = 64 * 1024 * 1024
SECTIONS_MAX = 10_000

Compare = Callable[[bytes, bytes], list[Difference]]


def compare_gzip(then: bytes, now: bytes, compare: Compare) -> list[Difference]:
    if then[:3] != b"\x1f\x8b\x08" or now[:3] != b"\x1f\x8b\x08" or min(len(then), len(now)) < 18:
        raise NotThisFormat
    found = []
    times = [struct.unpack_from("<I", content, 4)[0] for content in (then, now)]
    if times[0] != times[1]:
        found.append(differing(("gzip header", "mtime"), times[0], times[1], "clock"))
    names = [_gzip_name(content) for content in (then, now)]
    if names[0] != names[1]:
        found.append(differing(("gzip header", "name"), names[0], names[1], "workspace path"))
    if then[8:10] != now[8:10]:
        found.append(differing(("gzip header", "level and system"), then[8:10].hex(), now[8:10].hex()))
    try:
        inner = [zlib.decompressobj(31).decompress(content, CONTENT_MAX) for content in (then, now)]
    except zlib.error as error:
        raise NotThisFormat from error
    if inner[0] != inner[1]:
        found += [each.inside("gzip content") for each in compare(*inner)]
    elif not found:
        found.append(differing(("gzip content",), "compressed one way", "compressed another way"))
    return found


def _gzip_name(content: bytes) -> str:
    flags, at = content[3], 10
    if flags & 4:
        at += 2 + struct.unpack_from("<H", content, at)[0]
    return content[at:].split(b"\0")[0].decode("latin-1") if flags & 8 else ""


# ELF (System V ABI): section by section

_SECTION_BETRAYS = {
    ".note.gnu.build-id": "",
    ".debug_str": "workspace path",
    ".debug_line_str": "workspace path",
    ".debug_info": "workspace path",
    ".debug_line": "workspace path",
    ".gnu.debuglink": "",
}


def compare_elf(then: bytes, now: bytes, _: Compare) -> list[Difference]:
    before, after = _sections(then), _sections(now)
    return list(_compare_sections(before, after))[:20] or [_plainly(("outside of sections",), then, now)]


def _compare_sections(before: dict[str, bytes], after: dict[str, bytes]) -> Iterator[Difference]:
    for name, content in before.items():
        other = after.get(name)
        if other is None:
            yield differing((f"section {name}",), "there", "absent", "randomness" if ".gnu.lto_" in name else "")
        elif other != content:
            told = name.removeprefix(".rela").removeprefix(".rel")  # Relocations move with what they relocate.
            yield _plainly((f"section {name}",), content, other, _SECTION_BETRAYS.get(told, ""))
    for name in after.keys() - before.keys():
        yield differing((f"section {name}",), "absent", "there", "randomness" if ".gnu.lto_" in name else "")


def _sections(content: bytes) -> dict[str, bytes]:
    if content[:4] != b"\x7fELF" or len(content) < 64 or content[5] not in (1, 2):
        raise NotThisFormat
    end = "<" if content[5] == 1 else ">"
    try:
        if content[4] == 2:
            (table,), (size, count, names_at) = (
                struct.unpack_from(end + "Q", content, 40),
                struct.unpack_from(end + "3H", content, 58),
            )
            heads = [struct.unpack_from(end + "IIQQQQ", content, table + size * i) for i in range(min(count, 10_000))]
        else:
            (table,), (size, count, names_at) = (
                struct.unpack_from(end + "I", content, 32),
                struct.unpack_from(end + "3H", content, 46),
            )
            heads = [struct.unpack_from(end + "IIIIII", content, table + size * i) for i in range(min(count, 10_000))]
        names = content[heads[names_at][4] :][: heads[names_at][5]]
    except (struct.error, IndexError) as error:
        raise NotThisFormat from error
    found: dict[str, bytes] = {}
    for name_at, kind, _, _, at, length in heads:
        name = names[name_at:].split(b"\0")[0].decode("utf-8", "replace")
        if kind not in (0, 8):  # SHT_NULL and SHT_NOBITS hold nothing in the file.
            found[name if name not in found else f"{name} ({at:#x})"] = content[at : at + length]
    return found


# Compiled Python: the header of PEP 552


def compare_pyc(then: bytes, now: bytes, compare: Compare) -> list[Difference]:
    if then[2:4] != b"\r\n" or now[:4] != then[:4] or min(len(then), len(now)) < 16:
        raise NotThisFormat
    found = []
    if then[8:12] != now[8:12] and then[4:8] == now[4:8] == b"\0\0\0\0":
        times = [struct.unpack_from("<I", content, 8)[0] for content in (then, now)]
        found.append(differing(("pyc header", "mtime of the source"), times[0], times[1], "clock"))
    if then[16:] != now[16:]:
        found.append(_plainly(("code",), then[16:], now[16:]))
    return found or [_plainly(("pyc header",), then, now)]


# PNG (W3C): chunk by chunk

_PNG = b"\x89PNG\r\n\x1a\n"


def compare_png(then: bytes, now: bytes, compare: Compare) -> list[Difference]:
    before, after = _chunks(then), _chunks(now)
    found = []
    for name in sorted(before.keys() | after.keys()):
        here, there = before.get(name), after.get(name)
        if here is None or there is None:
            states = ["absent" if side is None else "there" for side in (here, there)]
            found.append(differing((f"chunk {name}",), *states))
        elif here != there and name.startswith("tIME"):
            found.append(differing((f"chunk {name}",), _png_time(here), _png_time(there), "clock"))
        elif here != there and name.startswith(("tEXt", "iTXt")):
            lines = (content.replace(b"\0", b"\n") for content in (here, there))
            found += [each.inside(f"chunk {name}") for each in compare(*lines)]
        elif here != there:
            found.append(_plainly((f"chunk {name}",), here, there))
    return found or [_plainly(("outside of chunks",), then, now)]


def _chunks(content: bytes) -> dict[str, bytes]:
    if not content.startswith(_PNG):
        raise NotThisFormat
    found: dict[str, bytes] = {}
    count: Counter[str] = Counter()
    at = len(_PNG)
    while at + 12 <= len(content) and len(found) < SECTIONS_MAX:
        length, kind = struct.unpack_from(">I4s", content, at)
        name = kind.decode("latin-1")
        count[name] += 1
        found[name if count[name] == 1 else f"{name} #{count[name]}"] = content[at + 8 : at + 8 + length]
        at += 12 + length
    return found


def _png_time(content: bytes) -> str:
    if len(content) != 7:
        raise NotThisFormat
    year, month, day, hour, minute, second = struct.unpack(">H5B", content)
    return f"{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"


def _plainly(place: tuple[str, ...], then: bytes, now: bytes, betrays: str = "") -> Difference:
    at = first_difference(then, now)
    return Difference(place, shown(then, at), shown(now, at), at, betrays)
