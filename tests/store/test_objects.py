"""Objects in good health: what goes in comes out, lies where the format says, and belongs to nobody else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from requiem_build.core.digest import EMPTY, object_digest
from requiem_build.core.errors import IntegrityError, MissingObject, Refused, RequestError, UsageError
from requiem_build.store.layout import Store

CONTENTS = [b"", b"\0", b"hello", b"x" * 1023, os.urandom(1024), b"a" * 100_000, os.urandom((1 << 20) + 7)]


@pytest.mark.parametrize("encoding", ["identity", "zstd"])
@pytest.mark.parametrize("content", CONTENTS, ids=len)
def test_what_was_put_comes_back(store: Store, content: bytes, encoding: str) -> None:
    digest = store.objects.put(content, encoding=encoding)
    assert store.objects.get(digest) == content
    assert store.objects.has(digest)
    assert store.objects.check(digest)
    assert store.objects.check(digest, len(content))
    assert not store.objects.check(digest, len(content) + 1)
    assert list(store.objects.verify()) == []


def test_names_are_what_b3sum_says_of_the_domain_and_the_bytes(store: Store, b3sum: str) -> None:
    for content in CONTENTS:
        digest = store.objects.put(content)
        judged = subprocess.run([b3sum, "--no-names"], input=b"cas:" + content, capture_output=True, check=True)
        assert judged.stdout.decode().strip() == digest


def test_an_object_lies_where_the_format_says_with_canonical_metadata(store: Store) -> None:
    digest = store.objects.put(b"hello")
    assert digest.startswith("888c953e")
    place = store.root / "v2" / "objects" / digest[:2] / digest[2:4]
    assert sorted(os.listdir(place)) == [digest, f"{digest}.meta"]
    assert (place / digest).read_bytes() == b"hello"
    assert (place / f"{digest}.meta").read_bytes() == (
        b'{"digest":"%b","encoding":"identity","original_size":5,"stored_blob_hash":"%b","stored_size":5}'
        % (digest.encode(), digest.encode())
    )
    assert os.listdir(store.root / "v2" / "tmp") == []


def test_a_compressed_object_says_so_and_hashes_what_is_stored(store: Store) -> None:
    content = b"again and " * 1000
    digest = store.objects.put(content, encoding="zstd")
    stored = Path(store.objects.path(digest)).read_bytes()
    meta = json.loads(Path(store.objects.path(digest) + ".meta").read_bytes())
    assert len(stored) < len(content) / 10
    assert meta == {
        "digest": digest,
        "encoding": "zstd",
        "original_size": len(content),
        "stored_blob_hash": object_digest(stored),
        "stored_size": len(stored),
    }


def test_what_zstd_does_not_make_smaller_is_stored_as_it_is(store: Store) -> None:
    digest = store.objects.put(os.urandom(1000), encoding="zstd")
    assert dict(store.objects.ls())[digest].encoding == "identity"


def test_modes_do_not_depend_on_the_umask_but_the_root_does(tmp_path: Path, run_python) -> None:
    program = """
import os
os.umask(0o077)
from pathlib import Path
from requiem_build.store.layout import Store
store = Store(Path(sys.argv[1]))
store.objects.put(b"hello")
store.objects.put(b"a" * 5000, encoding="zstd")
"""
    assert run_python(program, str(tmp_path / "cas")).returncode == 0
    assert (tmp_path / "cas").stat().st_mode & 0o777 == 0o700
    below = list((tmp_path / "cas" / "v2").rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in below if path.is_dir()} == {0o755}
    assert {path.stat().st_mode & 0o777 for path in below if not path.is_dir() and path.name != "size"} == {0o444}


def test_a_shard_left_private_by_a_killed_process_is_opened(store: Store) -> None:
    digest = object_digest(b"hello")
    shard = Path(store.objects.path(digest)).parent
    shard.mkdir(parents=True, mode=0o700)
    store.objects.put(b"hello")
    assert shard.stat().st_mode & 0o777 == 0o755


def test_an_absent_object_is_missing_not_an_error(store: Store) -> None:
    digest = object_digest(b"never stored")
    assert not store.objects.has(digest)
    assert not store.objects.check(digest)
    for read in (store.objects.get, store.objects.file, lambda name: store.objects.copy_to(name, -1)):
        with pytest.raises(MissingObject):
            read(digest)


def test_r18_what_is_no_digest_is_never_used_as_a_path(store: Store) -> None:
    good = store.objects.put(b"hello")
    for name in (
        "../../requiem-store",
        good.upper(),
        good[:63],
        good + "0",
        f"sha256:{good}",
        "",
        "g" * 64,
        good + "\n",
    ):
        assert not store.objects.has(name)
        assert not store.objects.check(name)
        with pytest.raises(RequestError, match="not a BLAKE3-256 digest"):
            store.objects.get(name)


# -- files in --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 5000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_a_file_is_copied_into_a_fresh_inode(store: Store, tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    content = os.urandom(size)
    source.write_bytes(content)
    digest, stored = store.objects.put_path(str(source))
    assert (digest, stored) == (object_digest(content), size)
    kept = store.objects.path(digest)
    assert os.stat(kept).st_ino != source.stat().st_ino
    assert os.stat(kept).st_nlink == source.stat().st_nlink == 1
    assert os.stat(kept).st_mode & 0o777 == 0o444
    assert store.objects.get(digest) == content
    assert os.listdir(store.root / "v2" / "tmp") == []


@pytest.mark.parametrize("size", [100, 3_000_000])
def test_a_file_is_read_from_its_beginning_wherever_the_descriptor_stands(
    store: Store, tmp_path: Path, size: int
) -> None:
    (tmp_path / "source").write_bytes(b"b" * size)
    descriptor = os.open(tmp_path / "source", os.O_RDONLY)
    os.lseek(descriptor, 50, os.SEEK_SET)
    assert store.objects.put_file(descriptor) == (object_digest(b"b" * size), size)
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == 50
    os.close(descriptor)


@pytest.mark.parametrize("size", [100, 3_000_000])
def test_a_file_of_another_size_or_above_the_limit_is_refused_and_leaves_nothing(
    store: Store, tmp_path: Path, size: int
) -> None:
    (tmp_path / "source").write_bytes(b"b" * size)
    descriptor = os.open(tmp_path / "source", os.O_RDONLY)
    with pytest.raises(Refused):
        store.objects.put_file(descriptor, size_max=size - 1)
    with pytest.raises(IntegrityError, match="changed while"):
        store.objects.put_file(descriptor, expect_size=size + 1)
    assert store.objects.put_file(descriptor, expect_size=size, size_max=size)[1] == size
    os.close(descriptor)
    assert os.listdir(store.root / "v2" / "tmp") == []
    assert store.objects.stats().objects == 1


def test_only_regular_files_are_stored_and_a_fifo_is_not_waited_for(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/passwd")
    for name in ("fifo", "link", ".", "absent"):
        with pytest.raises(UsageError):
            store.objects.put_path(str(tmp_path / name))
    for path in ("/dev/zero", "/dev/null"):
        with pytest.raises(UsageError, match="device"):
            store.objects.put_path(path)


def test_a_path_below_a_directory_descriptor_is_stored(store: Store, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"hello")
    directory = os.open(tmp_path, os.O_RDONLY)
    assert store.objects.put_path("source", dir_fd=directory)[0] == object_digest(b"hello")
    os.close(directory)


def test_a_file_that_claims_no_size_is_read_to_its_end(store: Store) -> None:
    digest, size = store.objects.put_path("/proc/self/limits")  # st_size is 0
    assert size == len(store.objects.get(digest)) > 0


# -- files out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["identity", "zstd"])
@pytest.mark.parametrize("content", CONTENTS, ids=len)
def test_copy_to_writes_every_byte(store: Store, tmp_path: Path, content: bytes, encoding: str) -> None:
    digest = store.objects.put(content, encoding=encoding)
    with open(tmp_path / "out", "wb") as file:
        store.objects.copy_to(digest, file.fileno())
    assert (tmp_path / "out").read_bytes() == content
    assert os.stat(tmp_path / "out").st_ino != os.stat(store.objects.path(digest)).st_ino


@pytest.mark.parametrize("encoding", ["identity", "zstd"])
def test_file_is_the_plain_blob_and_stays_an_object(store: Store, encoding: str) -> None:
    content = b"again and " * 500_000
    digest = store.objects.put(content, encoding=encoding)
    for _ in range(2):
        path = store.objects.file(digest)
        assert os.path.isabs(path)
        assert Path(path).read_bytes() == content
        assert os.stat(path).st_mode & 0o777 == 0o444
    assert store.objects.get(digest) == content
    assert list(store.objects.verify()) == []
    assert dict(store.objects.ls())[digest].encoding == "identity"


def test_file_reads_a_hot_object_once_in_a_process(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = store.objects.put(b"hello")
    store.objects.file(digest)
    monkeypatch.setattr(store.objects, "_reading", lambda _: pytest.fail("read again"))
    store.objects.file(digest)


def test_get_refuses_what_is_larger_than_its_caller_expects_and_keeps_the_object(store: Store) -> None:
    digest = store.objects.put(b"a" * 5000, encoding="zstd")
    with pytest.raises(IntegrityError, match="larger"):
        store.objects.get(digest, size_max=4999)
    assert store.objects.get(digest, size_max=5000) == b"a" * 5000


def test_putting_again_writes_nothing(store: Store, below) -> None:
    digest = store.objects.put(b"hello")
    before = os.stat(store.objects.path(digest))
    files = below(store.root)
    assert store.objects.put(b"hello") == store.objects.put(b"hello", encoding="zstd") == digest
    assert os.stat(store.objects.path(digest)) == before
    assert below(store.root) == files


def test_ls_and_stats_count_what_is_there(store: Store) -> None:
    store.objects.put(b"hello")
    store.objects.put(b"")
    store.objects.put(b"z" * 10_000, encoding="zstd")
    listed = dict(store.objects.ls())
    assert sorted(listed) == list(listed)
    assert listed[EMPTY].original_size == 0
    stats = store.objects.stats()
    assert (stats.objects, stats.original_bytes, stats.compressed) == (3, 10_005, 1)
    assert stats.stored_bytes < 100


def test_c32_a_store_deleted_during_a_build_is_made_again_by_the_next_put(store: Store) -> None:
    first = store.objects.put(b"first")
    shutil.rmtree(store.root)
    assert not store.objects.has(first)
    second = store.objects.put(b"second")
    assert store.objects.put(b"first") == first
    assert store.objects.get(first) == b"first"
    assert store.objects.get(second) == b"second"
    assert Store(store.root).objects.get(first) == b"first"
