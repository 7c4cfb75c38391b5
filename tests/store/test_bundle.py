"""Bundles, byte by byte: what tar says of them, every byte changed, and what an attacker would rather send."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requiem_build.core.canonical import encode_plain, parse
from requiem_build.core.digest import object_digest
from requiem_build.core.errors import IntegrityError
from requiem_build.store.bundle import (
    CONTENTS,
    END,
    SEAL,
    Contents,
    Damaged,
    Member,
    Reader,
    Writer,
    _seal,
    header,
)
from requiem_build.store.keys import Key, Keys, Verifier

RUN = "20261125T000000Z-abcdef"


def member(content: bytes, name: str = "") -> Member:
    digest = object_digest(content)
    return Member(name or f"objects/{digest}", digest, len(content))


PARTS = {
    each.name: content
    for content, each in sorted(
        [*((c, member(c)) for c in (b"", b"one", b"x" * 512, b"y" * 700))], key=lambda pair: pair[1].name
    )
} | {"records/0.json": b'{"a":1}', f"runs/{RUN}": b"{}"}


def contents_of(parts: dict[str, bytes]) -> Contents:
    return Contents(
        RUN, {"requiem.toml": None}, tuple(Member(name, object_digest(c), len(c)) for name, c in parts.items())
    )


def written(parts: dict[str, bytes] = PARTS, key: Key | None = None) -> bytes:
    contents = contents_of(parts)
    file = io.BytesIO()
    writer = Writer(file, contents, None if key is None else key.sign(contents.envelope()))
    for each in contents.members:
        writer.add(each, iter([parts[each.name]]))
    writer.finish()
    return file.getvalue()


def read(content: bytes) -> dict[str, bytes]:
    return {each.name: b"".join(pieces) for each, pieces in Reader(io.BytesIO(content)).members()}


@pytest.fixture
def key(tmp_path: Path) -> Key:
    return Keys(str(tmp_path / "keys")).signer()


def test_what_is_written_is_read() -> None:
    assert read(written()) == PARTS
    assert written() == written()


def test_any_tar_reads_it(tmp_path: Path, key: Key) -> None:
    path = tmp_path / "run.tar"
    path.write_bytes(written(key=key))
    listed = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True)
    assert listed.stderr == "" and listed.stdout.splitlines() == [CONTENTS, SEAL, *PARTS, END]
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xf", path, "-C", tmp_path / "out"], check=True)
    assert all((tmp_path / "out" / name).read_bytes() == content for name, content in PARTS.items())
    with tarfile.open(path) as tar:
        for item in tar:
            assert (item.mtime, item.uid, item.gid, item.mode, item.isreg()) == (0, 0, 0, 0o444, True)


@given(size=st.one_of(st.integers(0, 2**53 - 1), st.sampled_from([8**11 - 1, 8**11])))
def test_every_header_is_what_pythons_tar_would_read(size: int) -> None:
    info = tarfile.TarInfo.frombuf(header("objects/" + "a" * 64, size), "utf-8", "strict")
    assert (info.name, info.size, info.mtime, info.mode, info.type) == ("objects/" + "a" * 64, size, 0, 0o444, b"0")


def test_every_byte_counts(key: Key) -> None:
    whole = written(key=key)
    for position in range(len(whole)):
        for flip in (0x01, 0x80):
            changed = bytearray(whole)
            changed[position] ^= flip
            with pytest.raises(Damaged):
                read(bytes(changed))


def test_every_cut_and_every_tail_counts() -> None:
    whole = written()
    for length in range(0, len(whole), 7):
        with pytest.raises(Damaged):
            read(whole[:length])
    for tail in (b"\0", b"x", bytes(512), bytes(10240), whole):
        with pytest.raises(Damaged):
            read(whole + tail)


def test_its_signatures_are_over_everything(key: Key) -> None:
    reader = Reader(io.BytesIO(written(key=key)))
    assert Verifier([key]).signers(reader.envelope) == {key.key_id}
    assert Reader(io.BytesIO(written())).envelope.signatures == ()
    # Another list under the same signature: well-formed, and signed by nobody.
    other = {**PARTS, "records/0.json": b'{"a":2}'}
    stolen = replace(contents_of(other).envelope(), signatures=reader.envelope.signatures)
    assert Verifier([key]).signers(stolen) == set()


# What an attacker would rather send: whole by all digests


def hand_made(list_: bytes, members: list[tuple[bytes, bytes]], seal: bytes | None = None) -> bytes:
    """A bundle of any headers and contents, with the digests that belong to them."""
    body = b""
    for head, content in [
        (header(CONTENTS, len(list_)), list_),
        (header(SEAL, len(seal or _seal(list_, None))), seal or _seal(list_, None)),
        *members,
    ]:
        body += head + content + bytes(-len(content) % 512)
    end = object_digest(body).encode()
    return body + header(END, 64) + end + bytes(448) + bytes(1024)


def listing(*rows: list[object], run: str = RUN) -> bytes:
    return encode_plain(
        {"hash": "blake3-256", "manifest": {}, "members": list(rows), "run": run, "schema": "requiem.bundle/1"}
    )


RUN_ROW: list[object] = [f"runs/{RUN}", object_digest(b"{}"), 2]
RUN_PART = (header(f"runs/{RUN}", 2), b"{}")
ONE = member(b"one")
ONE_ROW: list[object] = [ONE.name, ONE.digest, 3]


def test_the_hand_made_one_is_read_as_a_control() -> None:
    content = hand_made(listing(ONE_ROW, RUN_ROW), [(header(ONE.name, 3), b"one"), RUN_PART])
    assert read(content) == {ONE.name: b"one", f"runs/{RUN}": b"{}"}


def test_bytes_that_are_not_those_of_their_digest_are_refused() -> None:
    with pytest.raises(Damaged, match="not those of its digest"):
        read(hand_made(listing(ONE_ROW, RUN_ROW), [(header(ONE.name, 3), b"two"), RUN_PART]))


def test_nothing_hides_in_the_padding() -> None:
    body = hand_made(listing(ONE_ROW, RUN_ROW), [(header(ONE.name, 3), b"one" + b"hidden".ljust(509, b"\0")), RUN_PART])
    with pytest.raises(Damaged, match="should be fixed"):
        read(body)


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "objects/../../evil", "objects/x", "runs/..", "records/a.json", "", "a\0b", "é"]
)
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    head = header(name if name.isascii() else "x", 3)
    with pytest.raises(Damaged):
        read(hand_made(listing([name, ONE.digest, 3], RUN_ROW), [(head, b"one"), RUN_PART]))
    with pytest.raises(Damaged):
        read(hand_made(listing(ONE_ROW, RUN_ROW), [(head, b"one"), RUN_PART]))


def changed_header(position: int, content: bytes) -> bytes:
    """The right header but for some field, with the checksum that belongs to it."""
    head = bytearray(header(ONE.name, 3))
    head[position : position + len(content)] = content
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


@pytest.mark.parametrize(
    ("position", "content"),
    [
        *((156, kind) for kind in (b"1", b"2", b"3", b"5", b"6", b"L", b"x", b"g", b"S", b"\0")),
        (157, b"/etc/passwd"),
        (345, b"../.."),
        (100, b"0004755"),
        (136, b"00000000001"),
        (257, b"ustar  \0"),
        (124, b"\x80" + bytes(10) + b"\3"),
    ],
)
def test_a_header_that_says_something_else_is_refused(position: int, content: bytes) -> None:
    with pytest.raises(Damaged, match="another member"):
        read(hand_made(listing(ONE_ROW, RUN_ROW), [(changed_header(position, content), b"one"), RUN_PART]))


@pytest.mark.parametrize(
    "rows",
    [
        [ONE_ROW, ONE_ROW, RUN_ROW],
        [RUN_ROW, ONE_ROW],
        [ONE_ROW],
        [ONE_ROW, RUN_ROW, RUN_ROW],
        [ONE_ROW, [f"runs/{RUN}x", object_digest(b"{}"), 2]],
        [[ONE.name, object_digest(b"two"), 3], RUN_ROW],
        [[ONE.name, ONE.digest, -1], RUN_ROW],
        [[ONE.name, ONE.digest, True], RUN_ROW],
        [[ONE.name, ONE.digest, 3, 4], RUN_ROW],
        [["records/1.json", object_digest(b"{}"), 2], RUN_ROW],
    ],
)
def test_a_list_that_is_out_of_order_is_refused(rows: list[list[object]]) -> None:
    parts = [(header(str(row[0]), 3 if str(row[0]).startswith("objects") else 2), b"one"[:3]) for row in rows]
    with pytest.raises(Damaged):
        read(hand_made(listing(*rows), parts))


def test_a_size_that_nobody_has_room_for_costs_nothing() -> None:
    """It is told before anything is set aside: no more is ever held than what was really sent."""
    huge: list[object] = [ONE.name, ONE.digest, 2**53 - 1]
    with pytest.raises(Damaged, match="ends too early"):
        read(hand_made(listing(huge, RUN_ROW), [(header(ONE.name, 2**53 - 1), b"one"), RUN_PART]))
    for size in (64 * 1024 * 1024 + 1, 8**11 - 1):
        with pytest.raises(Damaged, match="no bundle"):
            Reader(io.BytesIO(header(CONTENTS, size) + b"{}"))


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(schema="requiem.bundle/2"),
        lambda v: v.update(more=1),
        lambda v: v.pop("manifest"),
        lambda v: v.update(manifest={"requiem.toml": "x"}),
        lambda v: v.update(manifest=[]),
        lambda v: v.update(members={}),
        lambda v: v.update(run=1),
        lambda v: v.update(hash="sha256"),
    ],
)
def test_a_list_of_another_shape_is_refused(change: Callable[[dict], object]) -> None:
    value = parse(listing(RUN_ROW))
    change(value)
    with pytest.raises(Damaged):
        read(hand_made(encode_plain(value), [RUN_PART]))


def test_spellings_that_are_not_the_one_are_refused() -> None:
    plain = listing(RUN_ROW)
    for content in (plain + b"\n", plain.replace(b":", b": "), plain[:-1] + b',"run":"x"}'):
        with pytest.raises(Damaged):
            read(hand_made(content, [RUN_PART]))
    seal = _seal(plain, None)
    for content in (seal + b" ", seal.replace(b'"signatures":[]', b'"signatures":[{}]'), _seal(b"{}", None), b"{}"):
        with pytest.raises(Damaged):
            read(hand_made(plain, [RUN_PART], content))


def test_what_changes_while_it_is_packed_is_noticed() -> None:
    contents = contents_of({ONE.name: b"one", f"runs/{RUN}": b"{}"})
    writer = Writer(io.BytesIO(), contents, None)
    with pytest.raises(IntegrityError, match="changed while it was packed"):
        writer.add(contents.members[0], iter([b"two"]))
