"""Opening a store: made where nothing is, opened where one is, and nothing else is ever taken for one."""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from requiem_build.core.entries import File, Link, Tree, make_tree
from requiem_build.core.errors import EnvironmentFault, IntegrityError, UsageError
from requiem_build.core.result import Captured, make_result
from requiem_build.store.layout import Store


def test_a_new_store_bears_its_mark_and_keeps_out_of_git_and_backups(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "down" / ".cas"
    Store(root)
    assert sorted(os.listdir(root)) == [".gitignore", "CACHEDIR.TAG", "records", "requiem-store", "runs", "v2"]
    assert sorted(os.listdir(root / "v2")) == ["objects", "packs", "quarantine", "size", "tmp"]
    assert json.loads((root / "requiem-store").read_bytes()) == {"format": 2, "hash": "blake3-256"}
    assert (root / ".gitignore").read_bytes() == b"*\n"
    assert (root / "CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")


def test_opening_again_changes_nothing_and_finds_everything(store: Store, below) -> None:
    digest = store.objects.put(b"hello")
    before = below(store.root)
    assert Store(store.root).objects.get(digest) == b"hello"
    assert Store(store.root, read_only=True).objects.get(digest) == b"hello"
    assert below(store.root) == before


def test_an_empty_directory_becomes_a_store_and_a_link_to_one_is_followed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    digest = Store(tmp_path / "link").objects.put(b"hello")
    assert Store(tmp_path / "empty").objects.get(digest) == b"hello"


@pytest.mark.parametrize("name", ["README", ".git", "src/main.c", "v2x"])
def test_a_directory_of_somebody_else_is_refused_untouched(tmp_path: Path, name: str, below) -> None:
    (tmp_path / "home" / name).parent.mkdir(parents=True)
    (tmp_path / "home" / name).write_bytes(b"mine")
    for read_only in (False, True):
        with pytest.raises(UsageError, match="not a store and not empty") as raised:
            Store(tmp_path / "home", read_only=read_only)
        assert raised.value.exit_code == 2
    assert below(tmp_path) == [f"home/{name}"]


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError):
        Store(tmp_path / "file")
    with pytest.raises((UsageError, EnvironmentFault)):
        Store(tmp_path / "file" / "below")


def test_reading_only_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no store"):
        Store(tmp_path / "cas", read_only=True)
    assert not (tmp_path / "cas").exists()


def test_c10_the_older_layout_is_refused_with_the_way_to_migrate(tmp_path: Path) -> None:
    (tmp_path / "cas" / "objects" / "ab" / "cd").mkdir(parents=True)
    with pytest.raises(IntegrityError, match="v1") as raised:
        Store(tmp_path / "cas")
    assert raised.value.hint == "requiem cas migrate"
    assert os.listdir(tmp_path / "cas") == ["objects"]


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ('{"format":3,"hash":"blake3-256"}', "store format v3 is newer"),
        ('{"format":2,"hash":"sha256"}', "sha256, not blake3-256"),
        ('{"format":1,"hash":"sha256"}', "older format v1"),
        ('{"format":"2","hash":"blake3-256"}', "v2 is newer"),
        ("[]", "damaged"),
        ('{"format":2}', "damaged"),
        ("{" * 3000, "damaged"),
        ("x" * 5000, "damaged"),
    ],
)
def test_c10_a_mark_of_another_format_is_never_read_as_ours(store: Store, mark: str, message: str) -> None:
    (store.root / "requiem-store").unlink()
    (store.root / "requiem-store").write_text(mark)
    for read_only in (False, True):
        with pytest.raises(IntegrityError, match=message) as raised:
            Store(store.root, read_only=read_only)
        assert raised.value.exit_code == 3


def test_a_newer_writer_may_add_to_the_mark(store: Store) -> None:
    (store.root / "requiem-store").unlink()
    (store.root / "requiem-store").write_text('{"durability":"batch","format":2,"hash":"blake3-256"}')
    Store(store.root)


def test_eight_openers_at_once_make_one_store(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: Store(tmp_path / "cas"), range(8)))
    digest = stores[0].objects.put(b"hello")
    assert all(store.objects.get(digest) == b"hello" for store in stores)
    assert os.listdir(tmp_path / "cas" / "v2" / "tmp") == []


def test_one_store_serves_two_opened_at_once(store: Store) -> None:
    other = Store(store.root)
    assert other.objects.get(store.objects.put(b"here")) == b"here"
    assert store.objects.get(other.objects.put(b"there")) == b"there"


# -- what a result needs ---------------------------------------------------------------------------------


def tree_result(store: Store, made, *, depth: int = 3):
    """A result with a file, a link and a tree of `depth` directories, all of it stored."""
    file = File(store.objects.put(b"content"), 7)
    tree, content = make_tree({"file": file, "link": Link("file")})
    for level in range(depth):
        store.objects.put(content)
        other = File(store.objects.put(b"level %d" % level), 7)
        tree, content = make_tree({"again": tree, "file": other})
    store.objects.put(content)
    request = made().request
    return make_result(
        request,
        exit_code=0,
        termination="exited",
        stdout=Captured(store.objects.put(b"said"), 4),
        stderr=Captured(store.objects.put(b""), 0),
        outputs={"out": file, "result": tree},
    )


def test_nothing_is_missing_of_a_whole_result(store: Store, made) -> None:
    assert store.missing(tree_result(store, made)) == []


def test_each_absent_object_is_named_wherever_it_lies(store: Store, made) -> None:
    result = tree_result(store, made)
    for digest, _ in list(store.objects.ls()):
        path = store.objects.path(digest)
        os.rename(path, path + ".away")
        assert store.missing(result) == [digest]
        os.rename(path + ".away", path)


def test_a_tree_that_is_no_tree_is_missing(store: Store, made) -> None:
    result = tree_result(store, made)
    wrong = Tree(store.objects.put(b"[not a tree]"), 1, 1)
    assert store.missing(type(result)(**{**vars_of(result), "outputs": {"result": wrong}})) == [wrong.digest]


def vars_of(result) -> dict[str, object]:
    return {name: getattr(result, name) for name in type(result).__dataclass_fields__}


def test_a_thousand_nested_directories_are_walked_without_recursion(store: Store, made) -> None:
    assert store.missing(tree_result(store, made, depth=1000)) == []


def test_stats_count_everything(store: Store, made) -> None:
    one = made()
    store.records.publish(one.request, one.result, one.record)
    digest = store.objects.put(b"hello")
    store.runs.add("1", digest, {"workspace": "w", "when": "now", "ok": True, "exit_code": 0, "counts": {}})
    found = store.stats()
    assert (found.objects.objects, found.records, found.runs, found.divergences) == (1, 1, 1, 0)
    assert (found.quarantined, found.temporary) == (0, 0)


def test_importing_the_store_loads_neither_zstandard_nor_rfc8785(run_python) -> None:
    program = """
import requiem_build.store.layout
print(sorted({"zstandard", "rfc8785", "networkx", "typer"} & set(sys.modules)))
"""
    assert run_python(program).stdout == "[]\n"


def test_the_store_imports_only_the_core() -> None:
    folder = Path(__file__).resolve().parents[2] / "requiem_build" / "store"
    found = subprocess.run(["grep", "-rhoE", r"^from \.\.[a-z_]+", str(folder)], capture_output=True, text=True)
    assert set(found.stdout.split()) == {"from", "..core"}


@pytest.mark.parametrize("left", [b"", b"\0" * 36])
def test_a_mark_whose_bytes_a_power_cut_took_is_made_again(tmp_path: Path, left: bytes) -> None:
    store = Store(tmp_path / "cas")
    digest = store.objects.put(b"hello")
    mark = store.root / "requiem-store"
    mark.unlink()
    mark.write_bytes(left)
    assert Store(store.root).objects.get(digest) == b"hello"
    assert json.loads(mark.read_bytes()) == {"format": 2, "hash": "blake3-256"}
    mark.unlink()
    mark.write_bytes(left)
    (store.root / "somebody's").write_bytes(b"")
    with pytest.raises(UsageError, match="not empty"):
        Store(store.root)
