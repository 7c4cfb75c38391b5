"""One store, several users: a shared root, hostile things in it, and one that cannot be written."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from requiem_build.core.digest import object_digest
from requiem_build.core.errors import CorruptObject, MissingObject
from requiem_build.store import files, gc
from requiem_build.store.audit import audit
from requiem_build.store.layout import Store

ROOT = Path(__file__).resolve().parents[2]
USERS = (61201, 61202)
GROUP = 61200

pytestmark = pytest.mark.root


PRELUDE = """
from pathlib import Path
from requiem_build.core.digest import object_digest
from requiem_build.store import gc
from requiem_build.store.layout import Store
store = Store(Path(root))
"""


def run_as(uid: int | None, program: str, root: Path, *, group: int = GROUP) -> SimpleNamespace:
    """A program as an ordinary user of the group, with a strict umask, in a fork: it needs no file of ours."""
    files._umask.cache_clear()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.umask(0o077)
            if uid is not None:
                os.setgroups([group])
                os.setgid(group)
                os.setuid(uid)
            told = io.StringIO()
            try:
                with contextlib.redirect_stdout(told):
                    exec(PRELUDE + program, {"root": str(root)})
                code = 0
            except BaseException as error:
                told.write(f"{type(error).__name__}: {error}")
            os.write(write, told.getvalue().encode())
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    return SimpleNamespace(returncode=os.waitstatus_to_exitcode(status), said=said)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A root of mode 2775 where ordinary users can get at it, as can this checkout and this interpreter."""
    base = Path(tempfile.mkdtemp(prefix="requiem-shared-"))
    base.chmod(0o755)
    root = base / "cas"
    root.mkdir()
    os.chown(root, 0, GROUP)
    root.chmod(0o2775)
    yield root
    shutil.rmtree(base)


def ok(done: SimpleNamespace) -> str:
    assert done.returncode == 0, done.said
    return str(done.said).strip()


def test_two_users_of_a_group_write_read_and_collect_one_store(shared: Path) -> None:
    first = ok(run_as(USERS[0], "print(store.objects.put(b'from the first'))", shared))
    second = ok(run_as(USERS[1], "print(store.objects.put(b'from the second'))", shared))
    for uid in (*USERS, None):
        for digest, content in ((first, "from the first"), (second, "from the second")):
            assert ok(run_as(uid, f"print(store.objects.get({digest!r}).decode())", shared)) == content
    for path in shared.rglob("*"):
        mode = path.lstat().st_mode & 0o7777
        assert mode == (0o2775 if path.is_dir() else 0o444) or path.name == "size", f"{path} {mode:o}"
        assert path.lstat().st_gid == GROUP
    ok(run_as(USERS[1], "gc.collect(store, gc.Bounds(0))", shared))
    assert list(Store(shared).objects.ls()) == [], "either may collect what the other left"
    ok(run_as(USERS[0], "store.growth.add(10, 10); assert store.growth.estimate().built_ms == 10", shared))


def test_a_use_by_another_user_is_noted(shared: Path) -> None:
    digest = ok(run_as(USERS[0], "print(store.objects.put(b'x'))", shared))
    meta = Path(Store(shared).objects.path(object_digest(b"x")) + ".meta")
    os.utime(meta, (1e9, 1e9))
    ok(run_as(USERS[1], f"store.objects.get({digest!r})", shared))
    assert meta.stat().st_mtime > 1.5e9 and meta.stat().st_uid == USERS[1]
    assert audit(Store(shared), workers=1).ok and os.listdir(shared / "v2/tmp") == []


def test_the_lease_of_one_user_binds_the_other(shared: Path) -> None:
    store = Store(shared)
    with store.lease():
        digest = store.objects.put(b"needed by a running build")
        ok(run_as(USERS[0], "gc.collect(store, gc.Bounds(0))", shared))
        assert store.objects.has(digest)


def test_who_is_not_of_the_group_reads_and_changes_nothing(shared: Path) -> None:
    digest = ok(run_as(USERS[0], "print(store.objects.put(b'x'))", shared))
    stranger = {"group": 61299}
    assert ok(run_as(USERS[1], f"print(store.objects.get({digest!r}))", shared, **stranger)) == "b'x'"
    before = sorted(map(str, shared.rglob("*")))
    for attempt in ("store.objects.put(b'y')", "gc.collect(store, gc.Bounds(0))"):
        refused = run_as(USERS[1], attempt, shared, **stranger)
        assert refused.returncode == 1 and "StoreRefused: permission refused" in refused.said
    assert sorted(map(str, shared.rglob("*"))) == before


def test_a_private_store_stays_private(shared: Path) -> None:
    private = shared.parent / "private"
    os.chown(shared.parent, USERS[0], GROUP)
    ok(run_as(USERS[0], "store.objects.put(b'x')", private))
    assert private.stat().st_mode & 0o777 == 0o700
    refused = run_as(USERS[1], "", private)
    assert refused.returncode == 1 and "StoreRefused: permission refused" in refused.said


HOSTILE: dict[str, Callable[[Path], None]] = {
    "a link to a secret": lambda path: path.symlink_to("/etc/shadow"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a FIFO": os.mkfifo,
    "a folder": lambda path: path.mkdir(),
    "a hard link to another file": lambda path: os.link("/etc/hostname", path),
    "nothing readable": lambda path: (path.write_bytes(b"x"), path.chmod(0))[0] and None,
    "a hundred gigabytes of nothing": lambda path: (path.touch(), os.truncate(path, 100 << 30))[1],
}


@pytest.mark.parametrize("half", ["", ".meta"])
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_things_in_an_objects_place_are_misses_and_do_no_harm(shared: Path, what: str, half: str) -> None:
    store = Store(shared)
    digest = store.objects.put(b"good")
    path = Path(store.objects.path(digest) + half)
    path.unlink()
    try:
        HOSTILE[what](path)
    except OSError as error:
        pytest.skip(f"this host cannot make {what}: {error}")
    program = (
        "from requiem_build.core.errors import MissingObject, CorruptObject\n"
        f"try: store.objects.get({digest!r}); print('read')\nexcept (MissingObject, CorruptObject): print('miss')\n"
        "store.objects.put(b'good')\n"
        f"try: assert store.objects.get({digest!r}) == b'good'\nexcept (MissingObject, CorruptObject): print('miss')\n"
        "gc.collect(store, gc.Bounds())"
    )
    done = run_as(USERS[0], program, shared)
    if "cannot be read" in done.said:  # It refuses to go by what it cannot read, and says which.
        assert str(digest) in done.said
    else:
        assert "miss" in ok(done)
    assert Path("/etc/hostname").exists() and Path("/etc/shadow").exists()
    store = Store(shared)
    assert store.objects.check(store.objects.put(b"good")) or store.objects.check(store.objects.put(b"good"))
    gc.collect(store, gc.Bounds(0))
    assert Path("/etc/shadow").exists()


def test_what_others_may_write_in_place_is_copied_before_it_is_shown(shared: Path) -> None:
    store = Store(shared)
    digest = store.objects.put(b"large" * 100_000)
    path = Path(store.objects.path(digest))
    path.chmod(0o666)
    os.chown(path, USERS[0], GROUP)
    before = path.stat().st_ino
    assert store.objects.file(digest) == str(path)
    found = path.stat()
    assert (found.st_uid, found.st_mode & 0o777) == (0, 0o444) and found.st_ino != before
    assert path.read_bytes() == b"large" * 100_000


def test_another_users_unreadable_record_ends_a_collection_rather_than_lose_what_it_keeps(shared: Path, made) -> None:
    store = Store(shared)
    values = made("a", b"output")
    for content in (b"output", b"said", b""):
        store.objects.put(content)
    store.records.publish(values.request, values.result, values.record)
    os.chmod(store.records._path(values.request.digest), 0)
    refused = run_as(USERS[0], "gc.collect(store, gc.Bounds(0))", shared)
    assert refused.returncode == 1 and "StoreRefused: permission refused" in refused.said
    assert store.objects.get(object_digest(b"output")) == b"output"


def test_a_read_only_file_system_answers_and_refuses_to_change(tmp_path: Path, made) -> None:
    """A real ext4, mounted read-only."""
    store = Store(tmp_path / "cas")
    values = made("a", b"output")
    for content in (b"output", b"said", b""):
        store.objects.put(content)
    store.records.publish(values.request, values.result, values.record)
    image, place = tmp_path / "image", tmp_path / "mount"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    if (
        shutil.which("mkfs.ext4") is None
        or subprocess.run(["mkfs.ext4", "-q", "-d", str(store.root), str(image)], capture_output=True).returncode
    ):
        pytest.skip("needs mkfs.ext4")
    if subprocess.run(["mount", "-o", "loop,ro", str(image), str(place)], capture_output=True).returncode:
        pytest.skip("needs loop devices")
    try:
        shown = Store(place)
        assert shown.refusal is not None
        kept = shown.records.find(values.request.digest)
        assert kept is not None and shown.missing(kept.result) == []
        assert shown.objects.get(object_digest(b"output")) == b"output"
        environment = {**os.environ, "REQUIEM_CAS_DIR": str(place), "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}

        def cas(*words: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "requiem_build", "cas", *words]
            return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)

        assert cas("verify").returncode == 0
        assert json.loads(cas("stats", "--json").stdout)["kinds"]["records"]["count"] == 1
        assert cas("gc", "--dry-run").returncode == 0
        for words in (["gc"], ["verify", "--repair"], ["put", __file__]):
            refused = cas(*words)
            assert refused.returncode == 4 and "Read-only file system" in refused.stderr
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_the_users_of_these_tests_are_nobody_elses() -> None:
    assert not [entry for entry in pwd.getpwall() if entry.pw_uid in USERS]
    assert issubclass(MissingObject, Exception) and issubclass(CorruptObject, Exception)
