"""A host that refuses: every call fails once at each place, and is said in words (C12, C14, C18, C19, C29)."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from requiem_build.core.digest import object_digest
from requiem_build.core.errors import EnvironmentFault, UsageError
from requiem_build.store import files
from requiem_build.store.layout import Store

CONTENT = b"what is to be stored " * 50
LARGE = b"what is to be stored " * 100_000
CALLS = ("open", "write", "rename", "mkdir", "link", "close")


class Failing:
    """The system calls of one process: the N-th of a kind fails. `os` itself is not touched, only what `files` sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self.call = ""
        self.number = errno.ENOSPC
        self.real = {name: getattr(os, name) for name in CALLS}
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(name))

    def _wrap(self, name: str) -> Callable[..., object]:
        def called(*args: object, **options: object) -> object:
            if name == self.call and (name != "open" or args[1] & os.O_CREAT):
                self.left -= 1
                if self.left == 0:
                    if name == "close":
                        self.real[name](*args)
                    raise OSError(self.number, os.strerror(self.number), args[0] if isinstance(args[0], str) else None)
            return self.real[name](*args, **options)

        return called

    def nth(self, call: str, n: int, number: int) -> None:
        self.call, self.left, self.number = call, n, number

    def stop(self) -> bool:
        """Whether the failure took place."""
        self.call = ""
        return self.left <= 0


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Failing]:
    failing = Failing(monkeypatch)
    yield failing
    failing.stop()


def put_small(store: Store, values: SimpleNamespace) -> object:
    return store.objects.put(CONTENT)


def put_compressed(store: Store, values: SimpleNamespace) -> object:
    return store.objects.put(CONTENT, encoding="zstd")


def put_large(store: Store, values: SimpleNamespace) -> object:
    descriptor = values.descriptor
    return store.objects.put_file(descriptor)


def publish(store: Store, values: SimpleNamespace) -> object:
    return store.records.publish(values.request, values.result, values.record)


def diverge(store: Store, values: SimpleNamespace) -> object:
    return store.records.publish(values.request, values.other.result, values.other.record)


def add_paths(store: Store, values: SimpleNamespace) -> object:
    return store.records.add_path_set(values.request.digest, ("a", "b"))


def add_run(store: Store, values: SimpleNamespace) -> object:
    facts = {"workspace": "w", "when": "now", "ok": True, "exit_code": 0, "counts": {}}
    return store.runs.add("1", object_digest(b""), facts)


ACTIONS = [put_small, put_compressed, put_large, publish, diverge, add_paths, add_run]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EROFS, errno.EACCES, errno.EAGAIN])
@pytest.mark.parametrize("action", ACTIONS)
def test_each_call_that_fails_once_is_an_environment_fault_and_leaves_nothing(
    store: Store, tmp_path: Path, made, failing: Failing, action: Callable[..., object], number: int
) -> None:
    """SQLite's loop: fail the N-th call for N = 1, 2, ... until the operation ends; then do it again without harm."""
    values = made()
    values.other = made(text=b"another output")
    (tmp_path / "large").write_bytes(LARGE)
    values.descriptor = os.open(tmp_path / "large", os.O_RDONLY)
    failures = 0
    for call in CALLS:
        for n in range(1, 40):
            fresh = Store(tmp_path / f"{call}{n}")
            before = fresh.objects.put(b"stored before")
            if action is diverge:
                publish(fresh, values)
            failing.nth(call, n, number)
            try:
                action(fresh, values)
            except EnvironmentFault as fault:
                assert failing.stop()
                failures += 1
                assert fault.exit_code == 4
                assert "cause" in dict(fault.facts)
            else:
                if not failing.stop():
                    break
                assert call in ("close", "link", "mkdir"), "only what does not matter may fail unheard"
            assert os.listdir(fresh.root / "v2" / "tmp") == []
            assert fresh.objects.get(before) == b"stored before"
            for content in (CONTENT, LARGE):
                digest = object_digest(content)
                assert not fresh.objects.has(digest) or fresh.objects.get(digest) == content
            assert list(fresh.records.damaged()) == []
            action(fresh, values)
            assert list(fresh.objects.verify()) == []
            shutil.rmtree(fresh.root)
    os.close(values.descriptor)
    assert failures >= 3


def test_c12_no_space_says_what_is_needed_and_what_is_free(store: Store, failing: Failing) -> None:
    failing.nth("write", 1, errno.ENOSPC)
    with pytest.raises(EnvironmentFault, match="no space left while storing") as raised:
        store.objects.put(CONTENT)
    facts = dict(raised.value.facts)
    assert object_digest(CONTENT) in raised.value.what
    assert facts["needs"] == f"{len(CONTENT)} bytes"
    assert "bytes" in facts["free"]
    assert "REQUIEM_CAS_DIR" in str(raised.value.hint)


@pytest.mark.root
@pytest.mark.parametrize("options", ["size=256k", "nr_inodes=60"])
def test_c12_a_full_disk_loses_nothing_and_leaves_no_temporary_file(tmpfs, options: str) -> None:
    store = Store(tmpfs(options) / "cas")
    stored: list[bytes] = []
    with pytest.raises(EnvironmentFault, match="no space left") as raised:
        for number in range(200):
            content = b"%d" % number * 4000
            store.objects.put(content)
            stored.append(content)
    assert len(stored) > 3
    assert "free" in dict(raised.value.facts)
    assert os.listdir(store.root / "v2" / "tmp") == []
    assert all(store.objects.get(object_digest(content)) == content for content in stored)
    half = [problem.reason for problem in store.objects.verify()]
    assert half in ([], ["its blob is missing"])


def test_c14_short_writes_are_gone_on_with(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, content: write(fd, bytes(content[: max(1, len(content) // 3)])))
    (tmp_path / "large").write_bytes(LARGE)
    assert store.objects.get(store.objects.put(CONTENT)) == CONTENT
    assert store.objects.get(store.objects.put_path(str(tmp_path / "large"))[0]) == LARGE
    with open(tmp_path / "out", "wb") as file:
        store.objects.copy_to(object_digest(LARGE), file.fileno())
    assert (tmp_path / "out").read_bytes() == LARGE


def test_c14_a_write_of_nothing_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda *_: 0)
    with pytest.raises(EnvironmentFault):
        store.objects.put(CONTENT)


def test_c14_interrupted_calls_are_repeated(strace: str, run_python, tmp_path: Path) -> None:
    program = """
from pathlib import Path
from requiem_build.store.layout import Store
store = Store(Path(sys.argv[1]))
assert store.objects.get(store.objects.put(b"hello")) == b"hello"
print("done")
"""
    options = ("-qq", "-o", "/dev/null", "-e", "inject=write:error=EINTR:when=1+2")  # Every other write.
    ended = run_python(program, str(tmp_path / "cas"), under=(strace, *options))
    assert ended.stdout == "done\n", ended.stderr


@pytest.mark.root
def test_c18_a_store_on_a_read_only_file_system_reads_and_says_why_it_cannot_write(tmpfs, made) -> None:
    place = tmpfs("size=8m")
    store = Store(place / "cas")
    values = made()
    digest = store.objects.put(CONTENT)
    publish(store, values)
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    reader = Store(place / "cas")
    assert reader.refusal is not None
    assert reader.objects.get(digest) == CONTENT
    assert reader.objects.file(digest)
    assert reader.records.find(values.request.digest) is not None
    for write in (
        lambda: reader.objects.put(b"new"),
        lambda: add_paths(reader, values),
        lambda: add_run(reader, values),
    ):
        with pytest.raises(EnvironmentFault) as raised:
            write()
        assert {"path", "owner", "mode"} <= set(dict(raised.value.facts))
    assert reader.objects.put(CONTENT) == digest  # What is there need not be written.
    with pytest.raises(EnvironmentFault):
        Store(place / "new")


AS_NOBODY = """
import os
os.setgid(65534); os.setuid(65534)
from pathlib import Path
from requiem_build.core.errors import RequiemError
from requiem_build.store.layout import Store
try:
    store = Store(Path(sys.argv[1]))
    print(store.objects.get(sys.argv[2]))
    store.objects.put(b"new")
except RequiemError as error:
    print(error.exit_code, error.what, dict(error.facts))
"""


@pytest.fixture
def open_tmp(tmp_path: Path) -> Iterator[Path]:
    """A directory that another user can reach: pytest's own are private."""
    place = Path("/tmp") / f"requiem-open-{os.getpid()}"
    place.mkdir(mode=0o755)
    yield place
    shutil.rmtree(place)


@pytest.mark.root
def test_c19_the_store_of_another_user_names_path_owner_and_mode(open_tmp: Path, run_python) -> None:
    store = Store(open_tmp / "cas")
    digest = store.objects.put(b"hello")
    os.chmod(store.root, 0o700)
    private = run_as_nobody(run_python, store, digest)
    assert private.stdout.startswith("4 permission refused"), private.stdout + private.stderr
    assert "'owner': 'root of " in private.stdout
    assert "'mode': '0700'" in private.stdout
    os.chmod(store.root, 0o755)
    public = run_as_nobody(run_python, store, digest)
    assert public.stdout.splitlines()[0] == "b'hello'"
    assert public.stdout.splitlines()[1].startswith("4 permission refused while writing to the store"), public.stdout


def run_as_nobody(run_python, store: Store, digest: str):
    """The checkout may lie where nobody else can read: the program imports before it drops its rights."""
    program = "import requiem_build.store.layout, zstandard, json, rfc8785\n" + AS_NOBODY
    return run_python(program, str(store.root), digest)


@pytest.mark.root
def test_another_users_unreadable_object_is_a_miss(open_tmp: Path, run_python) -> None:
    store = Store(open_tmp / "cas")
    digest = store.objects.put(b"hello")
    os.chmod(store.objects.path(digest), 0o600)
    assert run_as_nobody(run_python, store, digest).stdout.startswith(f"2 object {digest} cannot be read")


def test_c29_too_many_open_files_is_a_fault_and_not_a_miss(store: Store) -> None:
    digest = store.objects.put(CONTENT)
    held, soft_hard = [], resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, soft_hard[1]))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        for use in (
            lambda: store.objects.get(digest),
            lambda: store.objects.put(b"new"),
            lambda: store.records.find(digest),
        ):
            with pytest.raises(EnvironmentFault, match="too many open files"):
                use()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, soft_hard)
    assert not store.objects.has(object_digest(b"new"))
    assert store.objects.get(digest) == CONTENT
    assert os.listdir(store.root / "v2" / "quarantine") == []


def test_a_bad_sector_is_a_miss(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = store.objects.put(CONTENT)
    read = os.read

    def broken(descriptor: int, size: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(digest):
            raise OSError(errno.EIO, "Input/output error")
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", broken)
    assert not store.objects.check(digest)
    monkeypatch.undo()
    assert len(os.listdir(store.root / "v2" / "quarantine")) == 2


def test_a_target_that_cannot_be_written_is_the_callers_affair(store: Store) -> None:
    digest = store.objects.put(CONTENT)
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space left"):
        store.objects.copy_to(digest, full)
    os.close(full)
    assert store.objects.get(digest) == CONTENT


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_a_file_system_without_links_still_publishes(
    store: Store, made, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Also one on which this file has as many as it may: 65,000 on ext4."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    values = made()
    publish(store, values)
    assert publish(store, made(text=b"other")).diverged
    found = store.records.find(values.request.digest)
    assert found is not None
    assert found.result == values.result
    assert [kept.result.digest for kept in store.records.divergences()] == [made(text=b"other").result.digest]
    assert files.link_new(str(store.root / "absent"), str(store.root / "requiem-store")) is False


def test_a_place_that_is_too_long_is_a_fault_with_words(tmp_path: Path) -> None:
    with pytest.raises((EnvironmentFault, UsageError)):
        Store(Path("/tmp/" + "d" * 5000))
    assert Store(tmp_path / "dépôt 日本 \U0001f980").objects.put(b"hello")
