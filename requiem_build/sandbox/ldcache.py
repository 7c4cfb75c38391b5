"""The dynamic linker's cache (`ld.so.cache`), cut down to the libraries that are visible. It reads no file.

The host's own lists every library that is installed, which `ldconfig -p` and Python's ctypes would show to a step.
Layout: glibc's `cache_file_new`, as of 2.2: a header of 48 bytes, entries of 24, then the strings.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

_MAGIC = b"glibc-ld.so.cache1.1"
_HEADER = struct.Struct("=20sIIB3xI12x")
_ENTRY = struct.Struct("=iIIIQ")
_LITTLE_ENDIAN = 2


def cut_down(content: bytes, is_visible: Callable[[str], bool]) -> bytes | None:
    """None for a cache of another kind: without one the linker looks into its own directories.

    Libraries for special processors (glibc-hwcaps) are left out: what is found is then the same on every machine.
    """
    read = _read(content)
    if read is None:
        return None
    entries, flags = read
    kept = [entry for entry in entries if is_visible(entry[2].decode("utf-8", "surrogateescape"))]
    return _written(kept, flags or _LITTLE_ENDIAN)


def places_of(content: bytes) -> dict[str, list[str]]:
    """Each library's name -> the paths at which the linker finds it, the first of each kind of program first."""
    found: dict[str, list[str]] = {}
    for _, name, path in (_read(content) or ([], 0))[0]:
        found.setdefault(name.decode("utf-8", "surrogateescape"), []).append(path.decode("utf-8", "surrogateescape"))
    return found


def _read(content: bytes) -> tuple[list[tuple[int, bytes, bytes]], int] | None:
    """(kind, name, path) of each entry that is for every processor, and the cache's flags."""
    start = content.find(_MAGIC)
    if start < 0:
        return None
    cache = content[start:]
    try:
        _, count, _, flags, _ = _HEADER.unpack_from(cache)
        entries = [_ENTRY.unpack_from(cache, _HEADER.size + number * _ENTRY.size) for number in range(count)]
    except struct.error:
        return None
    return [
        (kind, _string(cache, key), _string(cache, value)) for kind, key, value, _, special in entries if special == 0
    ], flags


def _string(cache: bytes, at: int) -> bytes:
    return cache[at : cache.find(b"\0", at)]


def _written(entries: list[tuple[int, bytes, bytes]], flags: int) -> bytes:
    """The order is kept: the linker searches by halves."""
    at = _HEADER.size + len(entries) * _ENTRY.size
    table, strings = b"", b""
    for kind, key, value in entries:
        key_at, value_at = at + len(strings), at + len(strings) + len(key) + 1
        strings += key + b"\0" + value + b"\0"
        table += _ENTRY.pack(kind, key_at, value_at, 0, 0)
    return _HEADER.pack(_MAGIC, len(entries), len(strings), flags, 0) + table + strings
