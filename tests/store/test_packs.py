"""Packs: many small objects in one file, each proved by its own name."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from requiem_build.core.digest import Digest, object_digest
from requiem_build.core.errors import CorruptObject, MissingObject
from requiem_build.store.layout import Store
from requiem_build.store.packs import MAGIC, OBJECT_MAX, make_index

SMALL = [b"small file %d\n" % number * 3 for number in range(40)]
GOLDEN = (
    b"requiem-pack/1\n\n"
    b"\x02\0\0\0\0\0\0\0"
    + bytes.fromhex(object_digest(b"")) + b"\x78\0\0\0\0\0\0\0" + b"\0\0\0\0\0\0\0\0"
    + bytes.fromhex(object_digest(b"hello")) + b"\x78\0\0\0\0\0\0\0" + b"\x05\0\0\0\0\0\0\0"
    + b"hello"
)  # fmt: skip


def pack(store: Store, contents: list[bytes] = SMALL) -> Path:
    packing = store.objects.packing()
    for content in contents:
        assert packing.add(content) == object_digest(content)
    packing.close()
    (found,) = (store.root / "v2" / "packs").iterdir()
    return found


def loose(store: Store) -> list[str]:
    return [path.name for path in (store.root / "v2" / "objects").rglob("*") if path.is_file()]


def damage(path: Path, content: bytes) -> None:
    os.chmod(path, 0o644)
    path.write_bytes(content)


def test_golden_bytes_of_a_pack(store: Store) -> None:
    name = store.objects.packs.write({object_digest(b"hello"): b"hello", object_digest(b""): b""})
    path = store.root / "v2" / "packs" / name
    assert path.read_bytes() == GOLDEN
    assert name == object_digest(GOLDEN[:-5])
    assert path.stat().st_mode & 0o777 == 0o444
    assert store.objects.get(object_digest(b"hello")) == b"hello"
    assert store.objects.get(object_digest(b"")) == b""


def test_everything_sees_through_a_pack(store: Store) -> None:
    pack(store)
    assert loose(store) == []
    fresh = Store(store.root)
    for content in SMALL:
        digest = object_digest(content)
        assert fresh.objects.has(digest)
        assert fresh.objects.size(digest) == len(content)
        assert fresh.objects.get(digest) == content
        assert fresh.objects.check(digest, len(content))
        assert not fresh.objects.check(digest, len(content) + 1)
        with pytest.raises(CorruptObject, match="larger"):
            fresh.objects.get(digest, size_max=len(content) - 1)
    listed = list(fresh.objects.ls())
    assert [digest for digest, _ in listed] == sorted(object_digest(content) for content in SMALL)
    assert sum(meta.original_size for _, meta in listed) == sum(map(len, SMALL))
    stats = fresh.objects.stats()
    assert (stats.objects, stats.packed, stats.packs) == (40, 40, 1)
    assert list(fresh.objects.verify()) == []
    with pytest.raises(MissingObject):
        fresh.objects.get(object_digest(b"not in the pack"))


def test_file_gives_a_packed_object_a_blob_of_its_own(store: Store) -> None:
    pack(store)
    digest = object_digest(SMALL[7])
    assert Path(store.objects.file(digest)).read_bytes() == SMALL[7]
    assert sorted(loose(store)) == [digest, f"{digest}.meta"]
    assert [found for found, _ in store.objects.ls()].count(digest) == 1


def test_copy_to_reads_from_a_pack(store: Store, tmp_path: Path) -> None:
    pack(store)
    with open(tmp_path / "out", "wb") as file:
        store.objects.copy_to(object_digest(SMALL[3]), file.fileno())
    assert (tmp_path / "out").read_bytes() == SMALL[3]


def test_few_files_are_not_worth_a_pack_and_known_ones_are_not_packed_again(store: Store) -> None:
    packing = store.objects.packing()
    for content in SMALL[:10]:
        packing.add(content)
    packing.close()
    assert not list((store.root / "v2" / "packs").iterdir())
    assert len(loose(store)) == 20
    pack(store)  # The other thirty.
    (found,) = store.objects.packs
    assert len(found) == 30
    packing = Store(store.root).objects.packing()
    for content in SMALL:
        packing.add(content)
    packing.close()
    assert len(list((store.root / "v2" / "packs").iterdir())) == 1


def test_packs_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("requiem_build.store.objects.PACK_BYTES_MAX", 500)
    packing = store.objects.packing()
    for content in SMALL:
        packing.add(content)
    packing.close()
    packs = list(store.objects.packs)
    assert len(packs) > 2
    assert sum(map(len, packs)) == 40
    assert all(store.objects.get(object_digest(content)) == content for content in SMALL)


def test_every_flipped_byte_is_a_miss_of_that_object_alone(tmp_path: Path) -> None:
    contents = [b"%02d" % number for number in range(16)]
    for at in range(16, 16 + 8 + 16 * 48 + 32, 7):
        store = Store(tmp_path / f"cas{at}")
        path = pack(store, contents)
        whole = path.read_bytes()
        head = len(make_index(dict.fromkeys(map(object_digest, contents), b"..")))
        damage(path, whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        for _ in range(2):  # And it stays so for the next process.
            fresh = Store(store.root)
            good = []
            for content in contents:
                try:
                    assert fresh.objects.get(object_digest(content)) == content
                    good.append(content)
                except MissingObject:
                    assert not fresh.objects.has(object_digest(content))
            assert len(good) == (0 if at < head else 15)
        assert [p for p in fresh.objects.verify() if p.digest is not None] == []


@pytest.mark.parametrize("cut", [1, 30, 10_000, 0])
def test_a_pack_that_was_cut_off_keeps_what_is_whole(store: Store, cut: int) -> None:
    path = pack(store)
    whole = path.read_bytes()
    damage(path, whole[: -cut or None] if cut < len(whole) else b"")
    fresh = Store(store.root)
    named = {problem.digest for problem in fresh.objects.verify()}
    good = {content for content in SMALL if fresh.objects.check(object_digest(content))}
    if cut >= len(whole):
        assert named == {None} and not good
    else:
        assert named == {object_digest(content) for content in SMALL if content not in good}
        assert len(good) == {0: 40, 1: 39, 30: 39}.get(cut, len(good))
    list(fresh.objects.verify(repair=True))
    assert list(Store(store.root).objects.verify()) == []
    assert all(Store(store.root).objects.check(object_digest(content)) for content in good)


def test_verify_names_exactly_the_damaged_and_repair_keeps_the_others(store: Store) -> None:
    path = pack(store)
    whole = bytearray(path.read_bytes())
    (found,) = store.objects.packs
    bad = []
    for digest, offset, _ in list(found.items())[::9]:
        whole[offset] ^= 1
        bad.append(digest)
    damage(path, bytes(whole))
    fresh = Store(store.root)
    assert [problem.digest for problem in fresh.objects.verify()] == bad
    assert [problem.digest for problem in fresh.objects.verify()] == bad, "nothing was changed"
    list(fresh.objects.verify(repair=True))
    assert list(Store(store.root).objects.verify()) == []
    kept = {digest for digest, _ in Store(store.root).objects.ls()}
    assert kept == {object_digest(content) for content in SMALL} - set(bad)
    assert any(name.endswith(".pack") for name in os.listdir(store.root / "v2" / "quarantine"))


def test_a_damaged_object_is_stored_again_whatever_the_pack_is_called(store: Store) -> None:
    path = pack(store)
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    damage(path, bytes(whole))
    again = Store(store.root)
    lost = [content for content in SMALL if not again.objects.check(object_digest(content))]
    assert len(lost) == 1
    packing = again.objects.packing()
    for content in SMALL:
        packing.add(content)
    packing.close()
    fresh = Store(store.root)
    assert all(fresh.objects.get(object_digest(content)) == content for content in SMALL)


@pytest.mark.parametrize("damaged", ["the loose one", "the packed one"])
def test_of_two_copies_the_good_one_is_given(store: Store, damaged: str) -> None:
    content = SMALL[3]
    digest = store.objects.put(content)
    store.objects.packs.write({object_digest(each): each for each in SMALL})
    path = Path(store.objects.path(digest))
    if damaged == "the packed one":
        (path,) = (store.root / "v2" / "packs").iterdir()
    whole = path.read_bytes()
    damage(path, whole.replace(content, content[:-2] + b"?\n"))
    fresh = Store(store.root)
    assert fresh.objects.get(digest) == content
    assert fresh.objects.check(digest)
    assert Path(fresh.objects.file(digest)).read_bytes() == content
    assert all(fresh.objects.get(object_digest(each)) == each for each in SMALL)


def test_a_list_that_lies_gives_misses(store: Store) -> None:
    """A hostile writer can name a pack after its list; what the list claims still proves nothing."""
    digest = object_digest(SMALL[0])
    for offset, size in ((0, 5), (1 << 60, 5), (72, OBJECT_MAX + 1), (72, 1 << 63), (72, len(SMALL[1]))):
        index = MAGIC + struct.pack("<Q", 1) + struct.pack("<32sQQ", bytes.fromhex(digest), offset, size)
        (store.root / "v2" / "packs" / object_digest(index)).write_bytes(index + SMALL[1])
    fresh = Store(store.root)
    with pytest.raises(MissingObject):
        fresh.objects.get(digest)
    assert not fresh.objects.has(digest)


@pytest.mark.parametrize("kind", ["link", "directory", "fifo", "name", "huge count"])
def test_what_is_no_pack_is_never_opened_as_one(store: Store, tmp_path: Path, kind: str) -> None:
    path = pack(store)
    content = path.read_bytes()
    name = Digest(path.name)
    path.unlink()
    if kind == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "name":
        path.with_name("f" * 64).write_bytes(content)
    else:
        path.write_bytes(MAGIC + struct.pack("<Q", 1 << 40))
    fresh = Store(store.root)
    assert not fresh.objects.has(object_digest(SMALL[0]))
    assert len(list(fresh.objects.verify())) == 1
    list(fresh.objects.verify(repair=True))
    assert list(Store(store.root).objects.verify()) == []
    assert name == path.name


def test_a_pack_of_another_process_is_found_and_a_deleted_one_is_a_miss(store: Store) -> None:
    digest = object_digest(SMALL[0])
    assert not store.objects.has(digest)
    path = pack(Store(store.root))
    assert store.objects.get(digest) == SMALL[0]
    path.unlink()
    fresh = Store(store.root)
    with pytest.raises(MissingObject):
        fresh.objects.get(digest)


def test_a_read_only_store_reads_around_damage_and_changes_nothing(store: Store) -> None:
    path = pack(store)
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    damage(path, bytes(whole))
    reader = Store(store.root, read_only=True)
    good = [content for content in SMALL if reader.objects.check(object_digest(content))]
    assert len(good) == 39
    assert path.read_bytes() == bytes(whole)
    assert not os.listdir(store.root / "v2" / "quarantine")
