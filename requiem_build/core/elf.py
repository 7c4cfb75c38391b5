"""Which libraries an ELF file asks the dynamic linker for, by name. It opens no file and knows no place of a library.

Layout: System V ABI, "Object Files", "Program Loading and Dynamic Linking".
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from .fields import dataclass

HEAD = 64
"""So many bytes at a file's beginning say what it is."""
_MAGIC = b"\x7fELF"
_LOAD, _DYNAMIC = 1, 2
_END, _NEEDED, _STRINGS = 0, 1, 5
_SEGMENTS_MAX = 256
_DYNAMIC_MAX = 64 << 10
_NAMES_MAX = 256
_NAME_MAX = 256
_OFFSET_MAX = 1 << 62

Read = Callable[[int, int], bytes]
"""(offset, size) -> the bytes there, fewer at the file's end."""
Kind = tuple[int, int, int]
"""Width, byte order and processor: what a program and its libraries have in common."""


@dataclass(frozen=True, slots=True)
class Asking:
    """`names` in the order in which the linker looks for them."""

    kind: Kind
    names: tuple[str, ...]


def kind_of(head: bytes) -> Kind | None:
    """None for what is no ELF file."""
    if len(head) < HEAD or head[:4] != _MAGIC or head[4] not in (1, 2) or head[5] not in (1, 2):
        return None
    (machine,) = struct.unpack_from("<H" if head[5] == 1 else ">H", head, 18)
    return (head[4], head[5], machine)


def asking(read: Read) -> Asking | None:
    """None for what is no ELF file; a damaged one, and one that is linked statically, asks for nothing."""

    def within(offset: int, size: int) -> bytes:
        return read(offset, size) if offset < _OFFSET_MAX else b""

    head = read(0, HEAD)
    kind = kind_of(head)
    if kind is None:
        return None
    try:
        return Asking(kind, tuple(_names(within, head, wide=kind[0] == 2, order="<" if kind[1] == 1 else ">")))
    except struct.error:
        return Asking(kind, ())


def _names(read: Read, head: bytes, *, wide: bool, order: str) -> list[str]:
    at, size, count = struct.unpack_from(order + ("32xQ14xHH" if wide else "28xI10xHH"), head)
    if size < (56 if wide else 32):
        return []
    table = read(at, size * min(count, _SEGMENTS_MAX))
    segments = [_segment(table, start, wide=wide, order=order) for start in range(0, len(table) - size + 1, size)]
    dynamic = next((segment for segment in segments if segment[0] == _DYNAMIC), None)
    if dynamic is None:
        return []
    content = read(dynamic[1], min(dynamic[3], _DYNAMIC_MAX))
    entry = struct.Struct(order + ("QQ" if wide else "II"))
    wanted: list[int] = []
    strings = None
    for tag, value in entry.iter_unpack(content[: len(content) // entry.size * entry.size]):
        if tag == _END:
            break
        if tag == _NEEDED and len(wanted) < _NAMES_MAX:
            wanted.append(value)
        elif tag == _STRINGS:
            strings = value
    if strings is None:
        return []
    loads = [(offset, address, length) for what, offset, address, length in segments if what == _LOAD]
    start = next(
        (strings - address + offset for offset, address, length in loads if 0 <= strings - address < length), -1
    )
    return [] if start < 0 else list(filter(None, (_string(read, start + offset) for offset in wanted)))


def _segment(table: bytes, at: int, *, wide: bool, order: str) -> tuple[int, int, int, int]:
    """(what, offset, address, length in the file)"""
    if wide:
        what, offset, address, length = struct.unpack_from(order + "I4xQQ8xQ", table, at)
    else:
        what, offset, address, length = struct.unpack_from(order + "III4xI", table, at)
    return what, offset, address, length


def _string(read: Read, at: int) -> str:
    """Empty for what is no name of a file."""
    text, end, _ = read(at, _NAME_MAX).partition(b"\0")
    return text.decode("utf-8", "surrogateescape") if end and b"/" not in text else ""
