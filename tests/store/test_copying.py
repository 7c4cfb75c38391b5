"""Large files are copied by one thread and hashed behind it by another: the name is always that of what was stored."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from requiem_build.core.digest import object_digest
from requiem_build.core.errors import CorruptObject, EnvironmentFault
from requiem_build.store.copying import _APART_MIN, _STEP
from requiem_build.store.layout import Store

LARGE = 3 * _APART_MIN + 12345


def pattern(size: int) -> bytes:
    """Bytes of which no two pieces are alike."""
    return b"".join(number.to_bytes(8, "little") for number in range(size // 8 + 1))[:size]


@pytest.mark.parametrize(
    "size", [_APART_MIN - 1, _APART_MIN, _APART_MIN + 1, 2 * _APART_MIN, 3 * _STEP, 3 * _STEP - 1, LARGE]
)
def test_a_file_of_any_size_is_stored_and_given_back(store: Store, tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(pattern(size))
    digest, stored = store.objects.put_path(str(source))
    assert (digest, stored) == (object_digest(pattern(size)), size)
    with open(tmp_path / "target", "wb+") as file:
        store.objects.copy_to(digest, file.fileno())
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == size, "whoever writes on writes behind it"
    assert (tmp_path / "target").read_bytes() == pattern(size)
    with open(tmp_path / "written only", "wb") as file:
        store.objects.copy_to(digest, file.fileno())
    assert (tmp_path / "written only").read_bytes() == pattern(size)


def test_the_position_of_the_source_does_not_matter(store: Store, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(pattern(LARGE))
    with open(tmp_path / "source", "rb") as file:
        os.lseek(file.fileno(), 1000, os.SEEK_SET)
        assert store.objects.put_file(file.fileno())[0] == object_digest(pattern(LARGE))


STORE_AND_GIVE_BACK = """
import os
from pathlib import Path
from requiem_build.core.digest import object_digest
from requiem_build.store.layout import Store
store, source = Store(Path(sys.argv[1])), sys.argv[2]
digest, _ = store.objects.put_path(source)
with open(source + ".back", "wb+") as file:
    store.objects.copy_to(digest, file.fileno())
content = Path(source).read_bytes()
assert digest == object_digest(content) and Path(source + ".back").read_bytes() == content
assert all(store.objects.check(digest) for digest, _ in store.objects.ls())
print("good")
"""


@pytest.mark.parametrize(
    "refused",
    [
        "copy_file_range:error=EXDEV",
        "copy_file_range:error=ENOSYS",
        "copy_file_range:error=EOPNOTSUPP:when=2",
        "copy_file_range:retval=0:when=2",
        "clone3:error=EAGAIN",
        "preadv,preadv2:error=EINTR:when=3",
    ],
)
def test_what_a_host_cannot_do_is_done_in_another_way(
    strace: str, run_python: Callable[..., object], tmp_path: Path, refused: str
) -> None:
    """Two file systems, an old kernel, one that sees the end too early, no more threads."""
    (tmp_path / "source").write_bytes(pattern(LARGE))
    log, call = tmp_path / "log", refused.split(":", maxsplit=1)[0]
    under = (strace, "-f", "-qq", "-o", str(log), "-e", f"trace={call}", "-e", f"inject={refused}")
    ended = run_python(STORE_AND_GIVE_BACK, str(tmp_path / "cas"), str(tmp_path / "source"), under=under)
    assert ended.stdout == "good\n", ended.stderr
    assert "INJECTED" in log.read_text()


def test_a_source_that_changes_all_the_time_is_stored_as_it_was_copied(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(pattern(LARGE))
    ended = threading.Event()

    def change() -> None:
        with open(path, "rb+", buffering=0) as file:
            number = 0
            while not ended.is_set():
                number += 1
                for at in range(0, LARGE, 100_000):
                    os.pwrite(file.fileno(), number.to_bytes(8, "big"), at)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        names = [store.objects.put_path(str(path))[0] for _ in range(20)]
    finally:
        ended.set()
        changing.join()
    assert len(set(names)) > 1, "nothing changed, so nothing was tried"
    fresh = Store(store.root)  # It believes nothing that the first one verified.
    assert all(fresh.objects.check(name) for name in names)


def test_a_damaged_large_object_is_given_to_nobody(
    store: Store, tmp_path: Path, writable: Callable[[str], Path]
) -> None:
    (tmp_path / "source").write_bytes(pattern(LARGE))
    digest, _ = store.objects.put_path(str(tmp_path / "source"))
    with open(writable(store.objects.path(digest)), "rb+") as blob:
        blob.seek(LARGE - 1)
        blob.write(b"?")
    with open(tmp_path / "target", "wb+") as file, pytest.raises(CorruptObject):
        store.objects.copy_to(digest, file.fileno())
    assert not store.objects.has(digest)


@pytest.mark.root
def test_a_full_disk_leaves_no_thread_and_no_file(tmpfs: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(pattern(LARGE))
    place = tmpfs("size=8m")
    store, threads = Store(place / "cas"), threading.active_count()
    with pytest.raises(EnvironmentFault, match="no space left"):
        store.objects.put_path(str(tmp_path / "source"))
    assert threading.active_count() == threads
    assert list((place / "cas/v2/tmp").iterdir()) == []
    whole = Store(tmp_path / "cas")
    digest, _ = whole.objects.put_path(str(tmp_path / "source"))
    with open(place / "target", "wb+") as file, pytest.raises(OSError, match="No space left"):
        whole.objects.copy_to(digest, file.fileno())
    assert whole.objects.check(digest), "the target's fault is not the object's"


CUT_SHORT = """
import os, threading
from pathlib import Path
from requiem_build.core.digest import object_digest
from requiem_build.core.errors import IntegrityError
from requiem_build.store.layout import Store
store, source, size = Store(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
done = threading.Event()
def cut():
    while not done.is_set():
        os.truncate(source, 0)
        os.truncate(source, size)
cutter = threading.Thread(target=cut)
cutter.start()
for _ in range(20):
    try: store.objects.put_path(source)
    except IntegrityError: pass
done.set()
cutter.join()
assert all(store.objects.check(digest) for digest, _ in store.objects.ls())
assert os.listdir(store.root / "v2/tmp") == []
"""


@pytest.mark.parametrize("size", [100_000, _APART_MIN - 1, LARGE])
def test_a_source_that_is_cut_short_while_it_is_hashed_kills_nobody(
    store: Store, tmp_path: Path, run_python: Callable[..., object], size: int
) -> None:
    source = tmp_path / "source"
    source.write_bytes(pattern(size))
    ended = run_python(CUT_SHORT, str(store.root), str(source), str(size))
    assert ended.returncode == 0, ended.stderr
