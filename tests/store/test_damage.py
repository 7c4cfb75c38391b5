"""Objects that were harmed: never wrong bytes, never an error beyond a miss, and a put repairs (invariant 7)."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from requiem_build.core.canonical import encode_plain
from requiem_build.core.digest import Digest, object_digest
from requiem_build.core.errors import CorruptObject, IntegrityError, MissingObject
from requiem_build.store import objects, quarantine, reading
from requiem_build.store.layout import Store
from requiem_build.store.place import Place

CONTENT = b"what was stored, " * 20
NAME = object_digest(CONTENT)
MISS = (MissingObject, CorruptObject)


def blob(store: Store, digest: Digest = NAME) -> Path:
    return Path(store.objects.path(digest))


def meta(store: Store, digest: Digest = NAME) -> Path:
    return Path(store.objects.path(digest) + ".meta")


def overwrite(path: Path, content: bytes) -> None:
    """In place, as root or a disk would: the same inode."""
    os.chmod(path, 0o644)
    path.write_bytes(content)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def expect_miss_and_repair(store: Store, content: bytes = CONTENT, *, quarantined: bool = True) -> None:
    """Every way to read says miss, twice; then a put makes it whole; then all is well with the store."""
    digest = object_digest(content)
    with pytest.raises(MISS):
        store.objects.get(digest)
    assert bool(os.listdir(store.root / "v2" / "quarantine")) == quarantined
    for read in (store.objects.get, store.objects.file):
        with pytest.raises(MISS):
            read(digest)
    assert not store.objects.check(digest)
    assert not store.objects.has(digest)
    assert store.objects.put(content) == digest
    assert store.objects.get(digest) == content
    assert Path(store.objects.file(digest)).read_bytes() == content
    assert list(store.objects.verify()) == []
    assert os.listdir(store.root / "v2" / "tmp") == []


# -- C01: bits -------------------------------------------------------------------------------------------


def test_c01_a_bit_flipped_in_the_blob_is_a_miss_and_quarantined(store: Store) -> None:
    store.objects.put(CONTENT)
    overwrite(blob(store), bytes([CONTENT[0] ^ 1]) + CONTENT[1:])
    assert store.objects.has(NAME)  # It looks only at sizes.
    with pytest.raises(CorruptObject, match="do not give its name"):
        store.objects.get(NAME)
    expect_miss_and_repair(store)


def test_c01_file_finds_a_change_after_it_was_verified(store: Store) -> None:
    """C26: root edits a materialised object in place; its ctime tells."""
    store.objects.put(CONTENT)
    store.objects.file(NAME)
    overwrite(blob(store), CONTENT[:-1] + b"!")
    with pytest.raises(CorruptObject):
        store.objects.file(NAME)
    expect_miss_and_repair(store)


@pytest.mark.parametrize("encoding", ["identity", "zstd"])
def test_c01_no_flipped_byte_anywhere_ever_gives_wrong_bytes(
    tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"small and again, " * 6
    store = Store(tmp_path / "cas")
    monkeypatch.setattr(reading, "TRIES_S", (0.0,))  # Nobody writes beside us: no second look.
    monkeypatch.setattr(quarantine, "SETTLE_S", 0.0)
    digest = store.objects.put(content, encoding=encoding)
    assert dict(store.objects.ls())[digest].encoding == encoding
    kept = {path: path.read_bytes() for path in (blob(store, digest), meta(store, digest))}
    flips = 0
    for path, good in kept.items():
        for at in range(len(good)):
            for mask in (0x01, 0x80, 0xFF):
                for other, whole in kept.items():
                    other.unlink(missing_ok=True)
                    other.write_bytes(whole)
                path.write_bytes(good[:at] + bytes([good[at] ^ mask]) + good[at + 1 :])
                with pytest.raises(CorruptObject):
                    store.objects.get(digest)
                flips += 1
    assert flips > 3 * 200


# -- C02, C03, C04: sizes and names ----------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["identity", "zstd"])
@pytest.mark.parametrize("keep", [0, 1, -1])
def test_c02_a_truncated_object_is_a_miss(store: Store, encoding: str, keep: int) -> None:
    store.objects.put(CONTENT, encoding=encoding)
    overwrite(blob(store), blob(store).read_bytes()[:keep])
    assert not store.objects.has(NAME)
    expect_miss_and_repair(store)


SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"


@pytest.mark.parametrize("encoding", ["identity", "zstd"])
@pytest.mark.parametrize(
    "tail",
    [b"\0", b"garbage", zstandard.ZstdCompressor().compress(b"more"), SKIPPABLE],
    ids=["nul", "text", "frame", "skip"],
)
def test_c03_whatever_follows_an_object_makes_it_corrupt(store: Store, encoding: str, tail: bytes) -> None:
    store.objects.put(CONTENT, encoding=encoding)
    overwrite(blob(store), blob(store).read_bytes() + tail)
    expect_miss_and_repair(store)


def with_frame(store: Store, frame: bytes, content: bytes = CONTENT, original_size: int | None = None) -> Digest:
    """An object whose metadata agrees with its stored bytes, whatever they are: a hostile writer's."""
    digest = object_digest(content)
    store.objects.put(content)
    overwrite(blob(store, digest), frame)
    facts = {
        "digest": digest,
        "encoding": "zstd",
        "original_size": len(content) if original_size is None else original_size,
        "stored_size": len(frame),
        "stored_blob_hash": object_digest(frame),
    }
    overwrite(meta(store, digest), encode_plain(facts))
    return digest


GOOD = zstandard.ZstdCompressor(write_checksum=True).compress(CONTENT)


@pytest.mark.parametrize(
    "frame",
    [
        GOOD[:-1],
        GOOD[:-4],
        GOOD[:-9],
        GOOD[:4],
        GOOD[:9],
        GOOD + b"\0",
        GOOD + GOOD,
        GOOD + SKIPPABLE,
        SKIPPABLE + GOOD,
        b"\x1f\x8b" + GOOD[2:],
        b"\x27" + GOOD[1:],
        zstandard.ZstdCompressor().compress(CONTENT[:-1]),
        zstandard.ZstdCompressor().compress(CONTENT + b"!"),
        b"",
    ],
    ids=range(14),
)
def test_c03_a_damaged_frame_is_corrupt_even_if_its_metadata_agrees(store: Store, frame: bytes) -> None:
    digest = with_frame(store, frame)
    with pytest.raises(CorruptObject):
        store.objects.get(digest)
    expect_miss_and_repair(store)


def test_c03_a_frame_without_checksum_or_size_is_read_and_proved_by_its_name(store: Store) -> None:
    frame = zstandard.ZstdCompressor(write_checksum=False, write_content_size=False).compress(CONTENT)
    digest = with_frame(store, frame)
    assert store.objects.get(digest) == CONTENT


def test_a_frame_of_many_blocks_is_read(store: Store, tmp_path: Path) -> None:
    content = b"".join(random.Random(7).randbytes(1000) * 2 for _ in range(1500))
    frame = zstandard.ZstdCompressor(level=19, write_checksum=True).compress(content)
    digest = with_frame(store, frame, content)
    assert store.objects.get(digest) == content
    with open(tmp_path / "out", "wb") as file:
        store.objects.copy_to(digest, file.fileno())
    assert (tmp_path / "out").read_bytes() == content


def test_c04_a_good_object_under_another_name_is_corrupt(store: Store) -> None:
    other = b"another content of any size"
    store.objects.put(CONTENT)
    other_name = store.objects.put(other)
    overwrite(blob(store), other)
    overwrite(meta(store), meta(store, other_name).read_bytes())
    expect_miss_and_repair(store)
    assert store.objects.get(other_name) == other


def test_c04_a_good_object_of_the_same_size_under_another_name_is_corrupt(store: Store) -> None:
    store.objects.put(CONTENT)
    overwrite(blob(store), CONTENT[::-1])
    expect_miss_and_repair(store)


# -- C05, C06: halves ------------------------------------------------------------------------------------


def change_meta(**changes: object) -> Callable[[Path], object]:
    facts: dict[str, object] = {
        "digest": NAME,
        "encoding": "identity",
        "original_size": len(CONTENT),
        "stored_size": len(CONTENT),
        "stored_blob_hash": NAME,
    }
    facts.update(changes)
    return lambda path: path.write_bytes(encode_plain({k: v for k, v in facts.items() if v != "gone"}))


HALVES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "huge": lambda path: subprocess.run(["truncate", "-s", "100M", str(path)], check=True),
    "not json": lambda path: path.write_bytes(b"digest"),
    "not utf-8": lambda path: path.write_bytes(b"\xff\xfe"),
    "a list": lambda path: path.write_bytes(b"[]"),
    "deep": lambda path: path.write_bytes(b"[" * 4000),
    "wrong size": change_meta(original_size=len(CONTENT) + 1, stored_size=len(CONTENT) + 1),
    "two sizes": change_meta(original_size=len(CONTENT) + 1),
    "negative": change_meta(original_size=-1),
    "float size": lambda path: path.write_bytes(encode_plain({"original_size": 5.5, "digest": NAME})),
    "wrong encoding": change_meta(encoding="zstd"),
    "c10 unknown encoding": change_meta(encoding="lz4"),
    "encoding is a list": change_meta(encoding=["identity"]),
    "wrong hash": change_meta(stored_blob_hash=object_digest(b"x")),
    "wrong digest": change_meta(digest=object_digest(b"x")),
    "c11 another algorithm": change_meta(algorithm="sha256"),
    "field gone": change_meta(stored_size="gone"),
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a directory": lambda path: path.mkdir(),
    "a fifo": os.mkfifo,
}


@pytest.mark.parametrize("harm", HALVES.values(), ids=HALVES.keys())
def test_c05_an_object_with_wrong_metadata_is_a_miss(store: Store, harm: Callable[[Path], object]) -> None:
    store.objects.put(CONTENT)
    replace(meta(store), harm)
    assert not store.objects.has(NAME)
    expect_miss_and_repair(store)


def test_c05_an_object_without_metadata_is_a_miss(store: Store) -> None:
    store.objects.put(CONTENT)
    meta(store).unlink()
    assert not store.objects.has(NAME)
    expect_miss_and_repair(store)


def test_c05_metadata_spelled_in_another_way_is_not_metadata(store: Store) -> None:
    store.objects.put(CONTENT)
    overwrite(meta(store), meta(store).read_bytes() + b"\n")
    expect_miss_and_repair(store)


def test_c06_metadata_without_a_blob_is_a_miss_and_no_damage_to_a_reader(store: Store) -> None:
    store.objects.put(CONTENT)
    blob(store).unlink()
    assert not store.objects.has(NAME)
    expect_miss_and_repair(store, quarantined=False)


@pytest.mark.parametrize("harm", HALVES.values(), ids=HALVES.keys())
def test_put_repairs_without_a_read_before_it(store: Store, harm: Callable[[Path], object]) -> None:
    store.objects.put(CONTENT)
    replace(meta(store), harm)
    assert store.objects.put(CONTENT) == NAME
    assert store.objects.get(NAME) == CONTENT
    assert list(store.objects.verify()) == []


# -- C07, C08: no files ----------------------------------------------------------------------------------

NO_FILES: dict[str, Callable[[Path], object]] = {
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a dangling link": lambda path: path.symlink_to("/nowhere"),
    "a directory": lambda path: (path.mkdir(), (path / "in").write_bytes(b"x")),
    "a fifo": os.mkfifo,
    "a socket": lambda path: os.mknod(path, 0o140644),
}


@pytest.mark.parametrize("harm", NO_FILES.values(), ids=NO_FILES.keys())
@pytest.mark.parametrize("read_first", [True, False])
def test_c07_what_is_no_file_is_never_read_followed_or_deleted_through(
    store: Store, harm: Callable[[Path], object], read_first: bool
) -> None:
    store.objects.put(CONTENT)
    replace(blob(store), harm)
    passwd = Path("/etc/passwd").read_bytes()
    assert not store.objects.has(NAME)
    if read_first:
        expect_miss_and_repair(store)
    store.objects.put(CONTENT)
    assert store.objects.get(NAME) == CONTENT
    assert Path("/etc/passwd").read_bytes() == passwd


@pytest.mark.root
def test_c07_a_device_is_never_read(store: Store) -> None:
    store.objects.put(CONTENT)
    replace(blob(store), lambda path: os.mknod(path, 0o020666, os.makedev(1, 5)))  # /dev/zero
    expect_miss_and_repair(store)


def test_c07_a_link_to_the_right_bytes_is_corrupt_all_the_same(store: Store, tmp_path: Path) -> None:
    store.objects.put(CONTENT)
    (tmp_path / "right").write_bytes(CONTENT)
    replace(blob(store), lambda path: path.symlink_to(tmp_path / "right"))
    expect_miss_and_repair(store)
    assert (tmp_path / "right").read_bytes() == CONTENT


@pytest.mark.parametrize("level", [1, 2])
def test_c08_nothing_is_written_or_moved_through_a_shard_that_leads_out(
    store: Store, tmp_path: Path, level: int
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    shard = blob(store).parents[2 - level]
    shard.parent.mkdir(parents=True, exist_ok=True)
    shard.symlink_to(outside)
    with pytest.raises(IntegrityError, match="not a directory") as raised:
        store.objects.put(CONTENT)
    assert raised.value.exit_code == 3
    assert list(outside.iterdir()) == []
    assert os.listdir(store.root / "v2" / "tmp") == []
    victim = outside / (blob(store).name if level == 2 else f"{NAME[2:4]}/{NAME}")
    victim.parent.mkdir(exist_ok=True)
    victim.write_bytes(b"somebody's file")
    with pytest.raises(CorruptObject):
        store.objects.get(NAME)
    assert victim.read_bytes() == b"somebody's file"
    assert [problem.reason for problem in store.objects.verify()] == ["it is no shard directory"]


# -- C09: bombs ------------------------------------------------------------------------------------------


def bomb(size: int) -> bytes:
    compressor = zstandard.ZstdCompressor(level=3).compressobj(size=size)
    piece = b"\0" * (1 << 20)
    return b"".join(compressor.compress(piece) for _ in range(size >> 20)) + compressor.flush()


def header_that_claims(size: int, window: bytes = b"") -> bytes:
    """A frame header with an 8-byte content size; a single segment unless a window descriptor is given."""
    descriptor = 0xC0 if window else 0xE0
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + window + size.to_bytes(8, "little")


EMPTY_BLOCK = b"\x01\x00\x00"
FULL_BLOCK = ((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"  # 128 KiB of zeros in four bytes.

LARGE = b"no bomb " * 150_000
BOMBS = {
    "1 GiB where 1 MB was said": (bomb(1 << 30), None),
    "no size in the header": (header_that_claims(0)[:4] + b"\x00\x58" + FULL_BLOCK * 4000 + EMPTY_BLOCK, None),
    "claims 1 TiB": (header_that_claims(1 << 40) + EMPTY_BLOCK, None),
    "claims 1 TiB and so does its metadata": (header_that_claims(1 << 40) + EMPTY_BLOCK, 1 << 40),
    "a window of 1 GiB": (header_that_claims(len(LARGE), b"\xa0") + EMPTY_BLOCK, None),
    "only empty blocks": (header_that_claims(len(LARGE), b"\x58") + b"\0\0\0" * 300_000 + EMPTY_BLOCK, None),
}


@pytest.mark.parametrize(("frame", "claimed"), BOMBS.values(), ids=BOMBS.keys())
def test_c09_a_bomb_stops_at_the_size_that_was_said(store: Store, frame: bytes, claimed: int | None) -> None:
    digest = with_frame(store, frame, LARGE, original_size=claimed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptObject):
        store.objects.get(digest)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 * 1024
    expect_miss_and_repair(store, LARGE)


def test_c09_a_frame_that_needs_128_mib_to_be_read_is_refused_even_if_it_is_right(store: Store) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    digest = with_frame(store, compressor.compress(LARGE) + compressor.flush(), LARGE)
    with pytest.raises(CorruptObject, match="larger window"):
        store.objects.get(digest)


# -- C17 and readers beside writers ----------------------------------------------------------------------


@pytest.mark.parametrize("which", ["blob", "meta", "both"])
def test_c17_a_put_repairs_zero_length_files_under_the_right_names(store: Store, which: str) -> None:
    """What a power cut leaves without fsync."""
    store.objects.put(CONTENT)
    for path, name in ((blob(store), "blob"), (meta(store), "meta")):
        if which in (name, "both"):
            overwrite(path, b"")
    assert not store.objects.has(NAME)
    assert store.objects.put(CONTENT) == NAME
    assert store.objects.get(NAME) == CONTENT


@pytest.mark.parametrize("content", [CONTENT, b"large" * 300_000], ids=len)
def test_c17_put_path_repairs_too(store: Store, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "source").write_bytes(content)
    digest, _ = store.objects.put_path(str(tmp_path / "source"))
    overwrite(blob(store, digest), b"")
    store.objects.put_path(str(tmp_path / "source"))
    assert store.objects.get(digest) == content


def test_c22_an_object_deleted_while_it_is_read_is_whole_or_a_miss(store: Store) -> None:
    """Delete between exists, open and read: never an error of another kind, never short bytes."""
    content = os.urandom(300_000)
    digest = object_digest(content)
    done = threading.Event()
    seen = {"whole": 0, "miss": 0}

    def read() -> None:
        while not done.is_set():
            try:
                assert store.objects.get(digest) == content
                seen["whole"] += 1
            except MissingObject:
                seen["miss"] += 1

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(20_000):  # Until both were seen, however the threads are scheduled.
        if turn >= 100 and min(seen.values()) > 0:
            break
        store.objects.put(content)
        store.objects.get(digest)
        blob(store, digest).unlink()
        meta(store, digest).unlink()
    done.set()
    reader.join()
    assert os.listdir(store.root / "v2" / "quarantine") == []
    assert min(seen.values()) > 0, seen


def test_readers_never_meet_a_half_while_the_encoding_changes(store: Store) -> None:
    content = b"again and " * 3000
    digest = object_digest(content)
    done = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        while not done.is_set():
            try:
                store.objects.get(digest)
            except BaseException as error:
                failures.append(error)
                return

    store.objects.put(content)
    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(100):
        store.objects._writer.put_new(digest, content, "zstd")
        store.objects.place.verified.clear()
        store.objects.file(digest)  # Makes it plain again.
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert os.listdir(store.root / "v2" / "quarantine") == []


def test_quarantine_takes_only_what_was_judged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader finds damage; before it acts, another process has repaired the object."""
    store.objects.put(CONTENT)
    overwrite(blob(store), b"?" * len(CONTENT))
    condemn = objects.condemn

    def late(place: Place, digest: Digest, bad: reading.Bad, **how: bool) -> CorruptObject:
        blob(store).unlink()
        store.objects.put(CONTENT)
        return condemn(place, digest, bad, **how)

    monkeypatch.setattr(objects, "condemn", late)
    with pytest.raises(CorruptObject):
        store.objects.get(NAME)
    assert store.objects.get(NAME) == CONTENT
    assert os.listdir(store.root / "v2" / "quarantine") == []


def test_the_state_between_two_encodings_is_the_object(store: Store) -> None:
    """Killed while zstd became plain, or plain became zstd: the plain bytes prove themselves (ADR 3)."""
    content = b"again and " * 1000
    digest = store.objects.put(content, encoding="zstd")
    replace(blob(store, digest), lambda path: path.write_bytes(content))
    assert store.objects.has(digest)
    assert store.objects.get(digest) == content
    assert list(store.objects.verify()) == []
    overwrite(blob(store, digest), content[:-1] + b"?")
    with pytest.raises(CorruptObject):
        store.objects.get(digest)


# -- C31: verify -----------------------------------------------------------------------------------------


def test_c31_verify_names_exactly_the_damaged_and_repairs_exactly_them(store: Store) -> None:
    rng = random.Random(31)
    digests = sorted(
        store.objects.put(rng.randbytes(rng.randrange(200)) + b"%d" % n, encoding="zstd" if n % 3 else "identity")
        for n in range(400)
    )
    damaged = sorted(rng.sample(digests, 12))
    harms: list[Callable[[Digest], object]] = [
        lambda d: overwrite(blob(store, d), b"?" * blob(store, d).stat().st_size),
        lambda d: overwrite(blob(store, d), blob(store, d).read_bytes()[:-1]),
        lambda d: blob(store, d).unlink(),
        lambda d: meta(store, d).unlink(),
        lambda d: overwrite(meta(store, d), b"{}"),
        lambda d: replace(blob(store, d), lambda path: path.symlink_to("/etc/passwd")),
    ]
    for n, digest in enumerate(damaged):
        harms[n % len(harms)](digest)
    (store.root / "v2" / "objects" / "README").write_bytes(b"?")
    (store.root / "v2" / "objects" / digests[0][:2] / "zz").mkdir()
    (blob(store, digests[0]).parent / "foreign").write_bytes(b"?")
    (blob(store, digests[0]).parent / digests[-1]).write_bytes(b"in another's shard")

    seen: list[tuple[int, int]] = []
    for _ in range(2):  # Nothing changes unless asked.
        problems = list(store.objects.verify(lambda *so_far: seen.append(so_far)))
        assert [problem.digest for problem in problems if problem.digest] == damaged
        assert len([problem for problem in problems if problem.digest is None]) == 4
    assert seen[399][0] == 400
    repaired = list(store.objects.verify(repair=True))
    assert repaired == problems
    assert list(store.objects.verify()) == []
    for digest in digests:
        assert store.objects.has(digest) == store.objects.check(digest) == (digest not in damaged)


def test_c31_verify_of_a_store_without_objects_is_empty(tmp_path: Path) -> None:
    store = Store(tmp_path / "cas")
    assert list(store.objects.verify()) == []


def test_a_damaged_object_in_a_read_only_store_is_a_miss_and_stays_where_it_is(store: Store, below) -> None:
    store.objects.put(CONTENT)
    overwrite(blob(store), b"?" * len(CONTENT))
    reader = Store(store.root, read_only=True)
    before = below(store.root)
    with pytest.raises(CorruptObject):
        reader.objects.get(NAME)
    assert [problem.digest for problem in reader.objects.verify(repair=True)] == [NAME]
    assert below(store.root) == before
