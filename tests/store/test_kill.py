"""`kill -9` at each system call of a write, until it ends (C15; SQLite's way): never a half that is believed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from requiem_build.core.digest import object_digest
from requiem_build.store.layout import Store

CALLS = ("openat", "write", "rename", "link", "unlink", "mkdir", "chmod", "fchmod")
MARK = b"HERE IT BEGINS"

PREPARE = """
import os
from pathlib import Path
from types import SimpleNamespace
import requiem_build.store.layout as layout
from requiem_build.core.digest import object_digest
from requiem_build.core.entries import File
from requiem_build.core.policy import Policy
from requiem_build.core.request import Request
from requiem_build.core.result import Captured, Record, make_result
if {zstd}: import zstandard
root = Path(sys.argv[1])
kept = b"stored before " * 100
wanted = b"stored now " * 100
large = b"stored large " * 200_000
platform = {{"os": "linux", "arch": "x"}}
request = Request(command=("true",), env={{}}, inputs={{}}, outputs=(), policy=Policy(), platform=platform)
def publish(store, text):
    result = make_result(request, exit_code=0, termination="exited", stdout=Captured(object_digest(text), len(text)),
        stderr=Captured(), outputs={{}})
    record = Record(request.digest, result.digest, "now", 1, "local", "host", "0", {{}})
    return store.records.publish(request, result, record)
{setup}
try: os.write(999, {mark!r})
except OSError: pass
{action}
print("done")
"""

OPEN = "store = layout.Store(root); store.objects.put(kept)\n"

ACTIONS: dict[str, tuple[str, str]] = {
    "open": ("", "layout.Store(root)"),
    "put": (OPEN, "store.objects.put(wanted)"),
    "put over a half": (
        OPEN + "store.objects.put(wanted); os.unlink(store.objects.path(object_digest(wanted)) + '.meta')",
        "store.objects.put(wanted)",
    ),
    "put zstd": (
        OPEN + "store.objects.put(wanted[:50] * 30, encoding='zstd')",
        "store.objects.put(wanted, encoding='zstd')",
    ),
    "put a large file": (
        OPEN + "(root.parent / 'large').write_bytes(large); fd = os.open(root.parent / 'large', os.O_RDONLY)",
        "store.objects.put_file(fd)",
    ),
    "make plain": (OPEN + "store.objects.put(wanted, encoding='zstd')", "store.objects.file(object_digest(wanted))"),
    "quarantine": (
        OPEN + "store.objects.put(wanted); p = store.objects.path(object_digest(wanted)); os.chmod(p, 0o600);"
        "open(p, 'r+b').write(b'?')",
        "store.objects.check(object_digest(wanted))",
    ),
    "publish": (OPEN + "store.objects.put(wanted)", "publish(store, wanted)"),
    "publish over damage": (
        OPEN + "store.objects.put(wanted); publish(store, wanted); p = store.records._path(request.digest);"
        "os.chmod(p, 0o600); open(p, 'r+b').write(b'?')",
        "publish(store, wanted)",
    ),
    "diverge": (OPEN + "publish(store, kept); store.objects.put(wanted)", "publish(store, wanted)"),
    "path set": (
        OPEN + "store.records.add_path_set(request.digest, ('a',))",
        "store.records.add_path_set(request.digest, ('b',))",
    ),
    "run": (
        OPEN + "facts = {'workspace': 'w', 'when': 'now', 'ok': True, 'exit_code': 0, 'counts': {}}",
        "store.runs.add('1', object_digest(kept), facts)",
    ),
}

KEPT, WANTED, LARGE = b"stored before " * 100, b"stored now " * 100, b"stored large " * 200_000


def hold_the_invariants(root: Path, action: str) -> None:
    store = Store(root)  # Opens without any repair by hand (G7).
    damaged = action in ("quarantine", "put over a half")  # The action began with damage.
    if action != "open":
        assert store.objects.get(object_digest(KEPT)) == KEPT  # G4: nothing else is lost.
    if action == "make plain":
        assert store.objects.get(object_digest(WANTED)) == WANTED
    for content in (WANTED, LARGE):  # G1: what is there is right.
        digest = object_digest(content)
        assert damaged or not store.objects.has(digest) or store.objects.get(digest) == content
    for problem in store.objects.verify():
        assert damaged or problem.reason == "its blob is missing", problem
    assert action == "publish over damage" or list(store.records.damaged()) == []
    for kept in store.records:  # G2: a record is whole, and the first one stays.
        assert kept.record.result_digest == kept.result.digest
        assert action != "diverge" or kept.result.stdout.digest == object_digest(KEPT)
        assert store.records.path_sets(kept.record.request_digest) in ([], [("a",)], [("b",), ("a",)])
    assert all(run.run == "1" for run in store.runs)
    assert os.listdir(root / "v2" / "tmp") == []  # G6: what the dead process left is gone.
    assert sorted(os.listdir(root)) == [".gitignore", "CACHEDIR.TAG", "records", "requiem-store", "runs", "v2"]
    for content in (KEPT, WANTED, LARGE):  # And a put repairs whatever was torn.
        if not store.objects.check(store.objects.put(content)):
            store.objects.put(content)
        assert store.objects.get(object_digest(content)) == content
    assert list(store.objects.verify()) == []


@pytest.mark.parametrize("action", ACTIONS)
def test_c15_killed_at_each_system_call(
    strace: str, run_python: Callable[..., object], tmp_path: Path, action: str
) -> None:
    setup, act = ACTIONS[action]
    program = PREPARE.format(setup=setup, action=act, mark=MARK, zstd="zstd" in setup + act)
    log = tmp_path / "log"

    def run(number: int, *options: str):
        root = tmp_path / f"run{number}" / "cas"
        root.parent.mkdir()
        return root, run_python(program, str(root), under=(strace, "-f", "-qq", "-o", str(log), *options))

    _, whole = run(0, "-e", f"trace={','.join(CALLS)}")
    assert whole.stdout == "done\n", whole.stderr
    before, after = counts(log.read_text())
    number = killed = 0
    for call in CALLS:
        for nth in range(before.get(call, 0) + 1, after.get(call, 0) + 1):
            number += 1
            root, ended = run(number, "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={nth}")
            killed += ended.returncode in (-9, 137)
            hold_the_invariants(root, action)
    assert killed >= 3, f"only {killed} of {number} runs were killed: the injection does not work"


def counts(log: str) -> tuple[dict[str, int], dict[str, int]]:
    """How often each call was made up to the mark (the mark's own included), and up to the end of the action."""
    before: dict[str, int] = {}
    so_far: dict[str, int] = {}
    for line in log.splitlines():
        found = re.match(r"(?:\d+ +)?(\w+)\(", line)
        if found is None:
            continue
        if found[1] == "write" and '"done' in line:
            break
        so_far[found[1]] = so_far.get(found[1], 0) + 1
        if MARK.decode() in line:
            before = dict(so_far)
    assert before
    return before, so_far


def test_temporary_files_of_the_living_stay(store: Store) -> None:
    descriptor, path = store._scratch.create()
    os.close(descriptor)
    Store(store.root)
    assert os.path.exists(path)
    store._scratch.discard(path)


@pytest.mark.parametrize(
    ("name", "age_s", "goes"),
    [
        ("own host, dead", 0, True),
        ("own host, number reused", 0, True),
        ("other host", 0, False),
        ("other host", 4000, True),
        ("unknown", 0, False),
        ("unknown", 4000, True),
    ],
)
def test_temporary_files_of_the_dead_go_and_of_strangers_after_an_hour(
    store: Store, name: str, age_s: int, goes: bool
) -> None:
    here = store._scratch.name().split(".")[0]
    names = {
        "own host, dead": f"{here}.99999999.5.0",
        "own host, number reused": f"{here}.{os.getpid()}.5.0",
        "other host": f"{'0' * 12}.{os.getpid()}.5.0",
        "unknown": "somebody-else.tmp",
    }
    path = store.root / "v2" / "tmp" / names[name]
    path.write_bytes(b"left")
    now = path.stat().st_mtime
    os.utime(path, (now - age_s, now - age_s))
    Store(store.root)
    assert path.exists() != goes
