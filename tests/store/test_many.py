"""Many processes and threads in one store, without a lock (C21)."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from requiem_build.core.digest import object_digest
from requiem_build.core.errors import CorruptObject, MissingObject
from requiem_build.store.layout import Store

FORK = multiprocessing.get_context("fork")
CONTENTS = [b"%d again and " % number * 200 for number in range(40)]


def at_once(work: Callable[..., object], arguments: list[tuple[object, ...]]) -> None:
    """Runs `work(barrier, *arguments)` in that many processes, all released together; each must end with 0."""
    barrier = FORK.Barrier(len(arguments))
    processes = [FORK.Process(target=work, args=(barrier, *some)) for some in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(arguments)


def put_all(barrier, root: Path, encoding: str) -> None:
    store = Store(root)
    barrier.wait()
    for content in CONTENTS:
        digest = store.objects.put(content, encoding=encoding)
        assert store.objects.get(digest) == content


@pytest.mark.parametrize("encodings", [("identity",), ("identity", "zstd")], ids=len)
def test_c21_eight_processes_put_the_same_digests_at_once(tmp_path: Path, encodings: tuple[str, ...]) -> None:
    root = tmp_path / "cas"
    at_once(put_all, [(root, encodings[number % len(encodings)]) for number in range(8)])
    store = Store(root)
    assert [digest for digest, _ in store.objects.ls()] == sorted(object_digest(content) for content in CONTENTS)
    assert list(store.objects.verify()) == []
    assert os.listdir(root / "v2" / "tmp") == os.listdir(root / "v2" / "quarantine") == []


def put_and_delete(barrier, root: Path, number: int) -> None:
    store = Store(root)
    barrier.wait()
    for content in CONTENTS * 3:
        digest = store.objects.put(content)
        if number == 0:
            for path in (store.objects.path(digest), store.objects.path(digest) + ".meta"):
                if os.path.exists(path):
                    os.unlink(path)
            continue
        with suppress(MissingObject, CorruptObject):  # A put between the two deletions loses its metadata: a miss.
            assert store.objects.get(digest) == content


def test_c22_putting_and_reading_beside_a_deleter_is_whole_or_a_miss(tmp_path: Path) -> None:
    at_once(put_and_delete, [(tmp_path / "cas", number) for number in range(4)])
    store = Store(tmp_path / "cas")
    for content in CONTENTS:
        assert store.objects.get(store.objects.put(content)) == content
    assert list(store.objects.verify()) == []


def publish_one(barrier, root: Path, values) -> None:
    store = Store(root)
    barrier.wait()
    store.records.publish(values.request, values.result, values.record)


def test_of_many_publishers_one_is_first_and_the_others_diverge(tmp_path: Path, made) -> None:
    root = tmp_path / "cas"
    all_values = [made(text=b"result %d" % (number % 4)) for number in range(8)]
    at_once(publish_one, [(root, values) for values in all_values])
    store = Store(root)
    first = store.records.find(all_values[0].request.digest)
    assert first is not None
    others = {values.result.digest for values in all_values} - {first.result.digest}
    assert {kept.result.digest for kept in store.records.divergences()} == others
    assert len(others) == 3
    assert os.listdir(root / "v2" / "tmp") == []


def add_sets(barrier, root: Path, digest, number: int) -> None:
    store = Store(root)
    barrier.wait()
    for turn in range(30):
        store.records.add_path_set(digest, (f"{number}", f"{turn}"))


def test_path_sets_of_processes_at_once_are_never_torn(tmp_path: Path) -> None:
    digest = object_digest(b"a request")
    at_once(add_sets, [(tmp_path / "cas", digest, number) for number in range(4)])
    sets = Store(tmp_path / "cas").records.path_sets(digest)
    assert 1 <= len(sets) <= 16
    assert sets[0][1] == "29"


def test_threads_share_one_store(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(store.objects.put, CONTENTS * 8))
        assert list(pool.map(store.objects.get, digests)) == CONTENTS * 8
    assert len(set(digests)) == len(CONTENTS)


def test_two_stores_of_one_process_never_share_temporary_names(store: Store) -> None:
    other = Store(store.root)
    names = [opened._scratch.name() for _ in range(50) for opened in (store, other)]
    assert len(set(names)) == 100


def test_a_fork_does_not_share_temporary_names(store: Store) -> None:
    mine = store._scratch.name()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, store._scratch.name().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 200).decode()
    assert theirs.split(".")[1] == str(child) != mine.split(".")[1] == str(os.getpid())
