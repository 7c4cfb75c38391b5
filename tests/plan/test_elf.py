"""What a program asks the dynamic linker for, read as `readelf` reads it; and no bytes are any trouble."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from requiem_build.core.elf import HEAD, asking, kind_of

PLACES = ("/usr/bin", "/usr/lib", f"/usr/lib/{os.uname().machine}-linux-gnu", "/usr/lib64", "/usr/lib32")


def reading(content: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, size: content[offset : offset + size]


def programs() -> list[Path]:
    found: list[Path] = []
    for place in PLACES:
        there = sorted(Path(place).iterdir()) if os.path.isdir(place) else []
        found += [path for path in there if path.is_file() and not path.is_symlink()][:120]
    return found


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_programs_and_libraries_ask_for_what_readelf_says() -> None:
    seen = 0
    for path in programs():
        told = asking(reading(path.read_bytes()))
        if told is None:
            continue
        said = subprocess.run(["readelf", "-dW", path], capture_output=True, text=True, check=False).stdout
        named = [line.partition("[")[2].partition("]")[0] for line in said.splitlines() if "(NEEDED)" in line]
        assert list(told.names) == named, path
        seen += bool(named)
    assert seen > 20


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("wide", [True, False])
def test_every_width_and_byte_order(order: str, wide: bool) -> None:
    """By hand: head, two segments (all of it at 0x1000, the dynamic one), entries, names."""
    segment = 56 if wide else 32
    head_size = 64 if wide else 52
    entries = [(1, 1), (1, 6), (5, 0), (0, 0)]
    at = head_size + 2 * segment
    packed = b"".join(struct.pack(order + ("QQ" if wide else "II"), *entry) for entry in entries)
    strings = b"\0a.so\0b.so.1\0"
    size = at + len(packed) + len(strings)
    packed = packed.replace(
        struct.pack(order + ("QQ" if wide else "II"), 5, 0),
        struct.pack(order + ("QQ" if wide else "II"), 5, 0x1000 + at + len(packed)),
    )
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    if wide:
        head = ident + struct.pack(order + "HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
        load = struct.pack(order + "IIQQQQQQ", 1, 4, 0, 0x1000, 0x1000, size, size, 0)
        dynamic = struct.pack(order + "IIQQQQQQ", 2, 4, at, 0x1000 + at, 0x1000 + at, len(packed), len(packed), 0)
    else:
        head = ident + struct.pack(order + "HHIIIIIHHHHHH", 3, 62, 1, 0, 52, 0, 0, 52, 32, 2, 0, 0, 0)
        load = struct.pack(order + "IIIIIIII", 1, 0, 0x1000, 0x1000, size, size, 4, 0)
        dynamic = struct.pack(order + "IIIIIIII", 2, at, 0x1000 + at, 0x1000 + at, len(packed), len(packed), 4, 0)
    told = asking(reading(head + load + dynamic + packed + strings))
    assert told is not None
    assert told.kind == (2 if wide else 1, 1 if order == "<" else 2, 62)
    assert told.names == ("a.so", "b.so.1")


@given(st.binary(max_size=300), st.binary(max_size=300))
@settings(max_examples=500)
def test_any_bytes_are_read_to_their_end(head: bytes, more: bytes) -> None:
    for content in (head, b"\x7fELF\x02\x01" + head + more, b"\x7fELF\x01\x02" + head + more):
        told = asking(reading(content))
        assert (told is None) == (kind_of(content[:HEAD]) is None)


@given(st.integers(0, 4095), st.integers(0, 255))
@settings(max_examples=300)
def test_a_damaged_program_asks_for_names_or_nothing(at: int, value: int) -> None:
    content = bytearray(Path("/bin/sh").resolve().read_bytes()[:20_000])
    content[at] = value
    told = asking(reading(bytes(content)))
    assert told is None or all(name and "/" not in name for name in told.names)
