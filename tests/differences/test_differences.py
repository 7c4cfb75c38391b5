"""Two versions of one file: where they differ, made by real tools."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import tarfile
import zipfile
import zlib
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requiem_build.core.differences.base import Difference, first_difference
from requiem_build.core.differences.compare import compare


def made(tmp_path: Path, command: str, *variants: str) -> list[bytes]:
    """What a command leaves in `out`, run in a fresh directory for each variant (shell words put before it)."""
    found = []
    for number, before in enumerate(variants):
        folder = tmp_path / str(number)
        folder.mkdir()
        subprocess.run(["bash", "-euc", f"{before}\n{command}"], cwd=folder, check=True)
        found.append((folder / "out").read_bytes())
    return found


def one(then: bytes, now: bytes) -> Difference:
    found = compare(then, now)
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("kind", ["gnu", "pax", "ustar"])
def test_a_tar_member_differs_in_its_mtime(tmp_path: Path, kind: str) -> None:
    command = (
        f"tar --format={kind} --pax-option=delete=atime,delete=ctime -cf out a b"
        if kind == "pax"
        else f"tar --format={kind} -cf out a b"
    )
    then, now = made(tmp_path, command, *(f"echo 1 > a; echo 2 > b; touch -d @{t} b; touch -d @5 a" for t in (10, 20)))
    found = one(then, now)
    assert found.place == ("member b", "mtime") and (found.then, found.now) == ("10", "20") and found.betrays == "clock"


def test_a_tar_member_differs_in_mode_owner_or_order(tmp_path: Path) -> None:
    def tar(names: str, **fields: int) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name in names:
                member = tarfile.TarInfo(name * 150)  # Long names have a member of their own before them.
                for key, value in fields.items():
                    setattr(member, key, value)
                archive.addfile(member)
        return buffer.getvalue()

    assert [f.place[1] for f in compare(tar("a", mode=0o644), tar("a", mode=0o600))] == ["mode"]
    assert one(tar("a", uid=1), tar("a", uid=2)).betrays == "uid and HOME"
    order = one(tar("ab"), tar("ba"))
    assert order.place == ("order of members",) and order.betrays == "order"
    assert one(tar("a"), tar("ab")).place == (f"member {'b' * 150}",)


def test_a_nested_archive_is_opened(tmp_path: Path) -> None:
    command = "touch -d @9 x; tar --mtime=@9 -cf in.tar x; gzip -n in.tar; touch -d @9 in.tar.gz; zip -qX out.zip in.tar.gz; mv out.zip out"
    then, now = made(tmp_path, command, "echo first > x", "echo other > x")
    found = one(then, now)
    assert found.place == ("member in.tar.gz", "gzip content", "member x", "line 1")
    assert (found.then, found.now, found.offset) == ("first", "other", 0)


def test_zip_and_ar_members_have_dates_and_modes(tmp_path: Path) -> None:
    then, now = made(
        tmp_path,
        "zip -qX out.zip a; mv out.zip out",
        "echo 1 > a; touch -d @1000000000 a",
        "echo 1 > a; touch -d @1000000010 a",
    )
    assert one(then, now).place == ("member a", "mtime")
    (tmp_path / "ar").mkdir()
    then, now = made(
        tmp_path / "ar", "ar rcU out a", "echo 1 > a; touch -d @10 a", "echo 1 > a; touch -d @20 a; chmod 600 a"
    )
    assert [(f.place, f.betrays) for f in compare(then, now)] == [
        (("member a", "mtime"), "clock"),
        (("member a", "mode"), "umask"),
    ]


def test_a_gzip_header_is_told_apart_from_what_it_holds() -> None:
    then, now = (gzip.compress(b"text\n", mtime=t) for t in (1, 2))
    assert one(then, now).place == ("gzip header", "mtime")
    assert one(gzip.compress(b"aab\n", mtime=1), gzip.compress(b"aac\n", mtime=1)).place == ("gzip content", "line 1")
    assert one(gzip.compress(b"a" * 999, 1, mtime=1), gzip.compress(b"a" * 999, 9, mtime=1)).place[0] == "gzip header"


@pytest.mark.gcc
def test_elf_files_differ_by_section(tmp_path: Path) -> None:
    then, now = made(
        tmp_path, "gcc -c x.c -o out", "echo 'int f(void){return 1;}' > x.c", "echo 'int f(void){return 2;}' > x.c"
    )
    assert one(then, now).place == ("section .text",)
    (tmp_path / "g").mkdir()
    then, now = made(tmp_path / "g", "gcc -g -c x.c -o out", *["echo 'int f(void){return 1;}' > x.c"] * 2)
    assert {f.betrays for f in compare(then, now)} == {"workspace path"}


@pytest.mark.gcc
def test_where_strings_of_debug_information_lie_hangs_on_the_workspace_too(tmp_path: Path) -> None:
    """gcc writes them in the order of their hashes: another path may turn them, and then relocations differ."""
    words = [f"echo 'int f(void){{return 1;}}' > x.c; map=$PWD=/place/{letter}" for letter in "abcdefgh"]
    found = [
        compare(then, now)
        for then, now in pairwise(made(tmp_path, "gcc -g -fdebug-prefix-map=$map -c x.c -o out", *words))
    ]
    assert {difference.betrays for each in found for difference in each} == {"workspace path"}
    places = {difference.place for each in found for difference in each}
    assert ("section .rela.debug_info",) in places, "the case is among them"


def test_compiled_python_holds_the_date_of_its_source(tmp_path: Path) -> None:
    command = "env -u SOURCE_DATE_EPOCH python3 -m compileall -q -b m.py; mv m.pyc out"
    then, now = made(tmp_path, command, "echo x=1 > m.py; touch -d @10 m.py", "echo x=1 > m.py; touch -d @20 m.py")
    assert one(then, now).place == ("pyc header", "mtime of the source")


def test_a_picture_differs_by_chunk() -> None:
    def picture(second: int, text: bytes) -> bytes:
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
            (b"tIME", struct.pack(">H5B", 2026, 1, 2, 3, 4, second)),
            (b"tEXt", b"Software\0" + text),
            (b"IDAT", zlib.compress(bytes(2))),
            (b"IEND", b""),
        ]
        sealed = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
        return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)

    found = one(picture(5, b"x"), picture(6, b"x"))
    assert found.place == ("chunk tIME",) and found.betrays == "clock"
    assert (found.then, found.now) == ("2026-01-02 03:04:05", "2026-01-02 03:04:06")
    found = one(picture(5, b"made 2026-01-02"), picture(5, b"made 2026-01-03"))
    assert found.place == ("chunk tEXt", "line 2") and found.betrays == "clock"
    assert compare(picture(5, b"x"), picture(5, b"x")[:40])


def test_a_chunk_of_a_picture_is_told_by_its_number_and_is_there_though_it_is_empty() -> None:
    def picture(text: bytes, *kinds: bytes) -> bytes:
        chunks = [(b"tEXt", text), *((kind, b"same") for kind in kinds), (b"IEND", b"")]
        sealed = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
        return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)

    assert one(picture(b"short", *[b"IDAT"] * 3), picture(b"longer", *[b"IDAT"] * 3)).place[0] == "chunk tEXt"
    found = one(picture(b"x"), picture(b"x")[:-12])
    assert (found.place, found.then, found.now) == (("chunk IEND",), "there", "absent")
    found = one(picture(b"x", b"IDAT"), picture(b"x", b"IDAT", b"IDAT"))
    assert (found.place, found.then, found.now) == (("chunk IDAT #2",), "absent", "there")


def test_json_and_text_name_their_place_and_what_it_betrays() -> None:
    then, now = (json.dumps({"a": [1, {"b": x}], "same": 1}).encode() for x in (1, 2))
    assert one(then, now).place == ("a", "[1]", "b")
    assert one(b'{"a":1,"b":2}', b'{"b":2,"a":1}').place == ("spelling of JSON",)
    assert one(b'["a","b"]', b'["b","a"]').betrays == "order"
    assert one(b"built 2026-01-02 10:20:30\n", b"built 2026-01-03 10:20:31\n").betrays == "clock"
    assert one(b"<object at 0x7f0011223344>\n", b"<object at 0x7f0011223355>\n").betrays == "address layout"
    assert one(b"in /tmp/ccA1b2C3.o\n", b"in /tmp/ccZ9y8X7.o\n").betrays == "randomness"
    assert one(b"a\nb\n", b"b\na\n").betrays == "order"
    found = one(b"\0\1\2\3", b"\0\1\2\4")
    assert found.place == ("bytes",) and found.offset == 3


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_the_first_difference_is_the_first(then: bytes, now: bytes) -> None:
    at = first_difference(then, now)
    assert then[:at] == now[:at] and (then == now or then[at : at + 1] != now[at : at + 1])


HEADS = [
    b"",
    b"PK\x03\x04",
    b"!<arch>\n",
    b"\x1f\x8b\x08",
    b"\x7fELF\x02\x01",
    b"{",
    b"\0" * 257 + b"ustar\x0000",
    b"\x89PNG\r\n\x1a\n",
]


@given(st.sampled_from(HEADS), st.binary(max_size=700), st.binary(max_size=700))
def test_hostile_bytes_are_never_an_error(head: bytes, then: bytes, now: bytes) -> None:
    then, now = head + then, head + now
    found = compare(then, now)
    assert bool(found) == (then != now)


def test_damaged_archives_are_never_an_error() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", os.urandom(300))
        archive.writestr("b", b"b" * 300)
    whole = [buffer.getvalue(), gzip.compress(b"x" * 500)]
    with open("/bin/true", "rb") as program:
        whole.append(program.read())
    for content in whole:
        for at in range(0, len(content), max(1, len(content) // 400)):
            damaged = content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]
            assert compare(content, damaged) and compare(content, content[:at])
