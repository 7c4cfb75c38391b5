"""SQLite's loop over whole operations: the N-th call of a kind fails or kills, for N = 1, 2, ... until they end.

The ordinary suite takes a few of each N; `REQUIEM_EXHAUSTIVE=1` takes them all.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from project import Project

from requiem_build.core.digest import object_digest
from requiem_build.store.layout import Store

EXHAUSTIVE = bool(os.environ.get("REQUIEM_EXHAUSTIVE"))
SAMPLES = 3
FAULTS = {"KILL": "signal=KILL", "ENOSPC": "error=ENOSPC", "EIO": "error=EIO"}
CALLS = ("write", "rename", "mkdir", "unlink", "link", "fsync", "syncfs")
KEPT = b"stored before " * 100
SMALL = [b"small %d" % number for number in range(20)]

PREPARE = """
import os
from pathlib import Path
from types import SimpleNamespace
from requiem_build.core.digest import object_digest
from requiem_build.core.errors import RequiemError
from requiem_build.core.policy import Policy
from requiem_build.core.request import Request
from requiem_build.core.result import Captured, Record, make_result
import requiem_build.store.layout as layout
import requiem_build.store.migrate as migrating
import zstandard, ctypes
root = Path(sys.argv[1])
small = [b"small %d" % number for number in range(20)]
def remember(store, name):
    text = name.encode() * 50
    store.objects.put(text); store.objects.put(b"")
    request = Request(command=(name,), env={}, inputs={}, outputs=(), policy=Policy(),
        platform={"os": "linux", "arch": "x"})
    result = make_result(request, exit_code=0, termination="exited", stdout=Captured(object_digest(text), len(text)),
        stderr=Captured(), outputs={})
    store.outbox.add(request, result, Record(request.digest, result.digest, "now", 1, "local", "host", "0", {}))
def pack(store):
    packing = store.objects.packing()
    for content in small: packing.add(content)
    packing.close()
"""

ACTIONS = {
    "pack": "pack(store)",
    "batch": "[remember(store, name) for name in 'abc']; store.outbox.flush()",
    "full": "[remember(store, name) for name in 'ab']; pack(store); store.outbox.flush()",
    "repack": "[store.objects.check(object_digest(content)) for content in small]",
    "migrate": "migrating._BATCH_OBJECTS = 4; migrating.migrate(root)",
}


def program(action: str) -> str:
    level = "full" if action == "full" else "batch"
    opened = "" if action == "migrate" else f"store = layout.Store(root, durability={level!r}); "
    return (
        f"{PREPARE}\ntry:\n    {opened}{ACTIONS[action]}\n"
        "except RequiemError as error:\n    os.write(1, b'refused %d\\n' % error.exit_code)\n"
    )


def prepare(root: Path, action: str) -> None:
    root.parent.mkdir()
    if action == "migrate":
        for content in (KEPT, *SMALL):
            name = hashlib.sha256(content).hexdigest()
            path = root / "objects" / name[:2] / name[2:4] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return
    store = Store(root)
    store.objects.put(KEPT)
    if action == "repack":
        packing = store.objects.packing()
        for content in SMALL:
            packing.add(content)
        packing.close()
        (path,) = (root / "v2" / "packs").iterdir()
        whole = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(whole[:-1] + b"?")


def hold(root: Path, action: str) -> None:
    if action == "migrate":
        left = [path for path in (root / "objects").rglob("*") if path.is_file()]
        reached = {object_digest(path.read_bytes()) for path in left}
        if not (root / "requiem-store").exists():
            from requiem_build.store.migrate import migrate

            assert migrate(root).aside == []
        assert not left or reached
    store = Store(root)
    assert store.objects.get(object_digest(KEPT)) == KEPT
    for content in SMALL:
        digest = object_digest(content)
        if store.objects.has(digest):
            good = store.objects.check(digest)
            assert good or action == "repack"
        else:
            assert action != "migrate", "an old object is lost"
    for kept in store.records:
        assert store.missing(kept.result) == []
        assert store.objects.check(kept.result.stdout.digest)
    assert list(store.records.damaged()) == []
    assert [problem for problem in store.objects.verify() if problem.reason != "its blob is missing"] == []
    assert os.listdir(root / "v2" / "tmp") == []


def sampled(last: int) -> Iterator[int]:
    numbers = range(1, last + 1)
    if EXHAUSTIVE or len(numbers) <= SAMPLES:
        yield from numbers
    else:
        yield from sorted({numbers[len(numbers) * part // SAMPLES] for part in range(SAMPLES)})


@pytest.mark.timeout(3600 if EXHAUSTIVE else 240)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("action", ACTIONS)
def test_c15_a_fault_at_each_call_leaves_no_half(
    strace: str, run_python: Callable[..., object], tmp_path: Path, action: str, fault: str
) -> None:
    log, text = tmp_path / "log", program(action)

    def run(number: int, *options: str):
        root = tmp_path / f"run{number}" / "cas"
        prepare(root, action)
        return root, run_python(text, str(root), under=(strace, "-f", "-qq", "-o", str(log), *options))

    root, whole = run(0, "-e", f"trace={','.join(CALLS)}")
    assert whole.returncode == 0 and whole.stdout == "", whole.stderr
    hold(root, action)
    after = most_of_one_thread(log.read_text())
    number = happened = 0
    for call in CALLS:
        for nth in sampled(after.get(call, 0)):
            number += 1
            root, ended = run(number, "-e", f"trace={call}", "-e", f"inject={call}:{FAULTS[fault]}:when={nth}")
            happened += "INJECTED" in log.read_text() or ended.returncode in (-9, 137)
            assert ended.returncode in (0, -9, 137), f"{call} {nth}: {ended.stderr}"
            assert ended.stdout in ("", "refused 4\n"), ended.stdout
            hold(root, action)
    assert happened >= min(3, number), f"only {happened} of {number} faults happened"


# A whole build


@pytest.mark.timeout(3600 if EXHAUSTIVE else 240)
@pytest.mark.parametrize("fault", FAULTS)
def test_g7_a_fault_at_each_call_of_a_build_needs_no_repair(strace: str, tmp_path: Path, fault: str) -> None:
    log = tmp_path / "log"

    def run(number: int, *options: str):
        project = Project(tmp_path / f"run{number}")
        project.write("in.txt", "hello\n")
        project.manifest("""
            [defaults]
            sandbox = "process"
            [steps.one]
            command = "tr a-z A-Z < in.txt > out/one.txt"
            inputs = ["in.txt"]
            outputs = ["out/one.txt"]
            [steps.many]
            command = "mkdir tree && for i in $(seq 20); do echo $i > tree/$i; done"
            outputs = ["tree/"]
            [steps.two]
            command = "cat out/one.txt tree/* > out/two.txt"
            inputs = ["out/one.txt", "tree/"]
            outputs = ["out/two.txt"]
        """)
        under = (strace, "-f", "-qq", "-o", str(log), *options, sys.executable, "-m", "requiem_build")
        return project, project.run("build", "--mode", "repro", program=under)

    project, whole = run(0, "-e", f"trace={','.join(CALLS)}")
    assert whole.code == 0, whole.err
    expected = project.read("out/two.txt")
    after = most_of_one_thread(log.read_text())
    number = happened = 0
    for call in CALLS:
        for nth in sampled(after.get(call, 0)):
            number += 1
            project, ended = run(number, "-e", f"trace={call}", "-e", f"inject={call}:{FAULTS[fault]}:when={nth}")
            where = f"{call} {nth}: exit {ended.code}\n{ended.err}"
            happened += "INJECTED" in log.read_text() or ended.code in (-9, 137)
            assert ended.code in (0, 1, 4, -9, 137), where
            assert "Traceback" not in ended.err, where
            if (project.root / ".cas" / "requiem-store").exists():
                store = Store(project.root / ".cas")
                for kept in store.records:
                    assert store.missing(kept.result) == [], where
                for problem in store.objects.verify():
                    assert problem.reason == "its blob is missing", where
            again = project.run("build")
            assert again.code == 0, f"{where}\nthen: {again.err}"
            assert project.read("out/two.txt") == expected
            assert project.build().counts == {"fresh": 3}, where
    assert happened >= min(3, number)


def most_of_one_thread(log: str) -> dict[str, int]:
    """How often one thread made each call at most: strace counts for each thread."""
    most: dict[tuple[str, str], int] = {}
    for found in re.finditer(r"^(\d+) +(\w+)\(", log, re.MULTILINE):
        most[found[1], found[2]] = most.get((found[1], found[2]), 0) + 1
    return {call: max(n for (_, c), n in most.items() if c == call) for call in {c for _, c in most}}
