"""Collection and repair killed or refused at each system call (SQLite's way): what is kept is whole, the rest a miss.

A sample of the points in the ordinary suite, all of them with REQUIEM_EXHAUSTIVE=1.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from requiem_build.core.digest import object_digest
from requiem_build.core.entries import File, make_tree
from requiem_build.core.errors import MissingObject
from requiem_build.core.result import Captured, make_result
from requiem_build.store import gc
from requiem_build.store.audit import audit
from requiem_build.store.layout import Store

CALLS = ("openat", "write", "rename", "link", "unlink", "unlinkat", "mkdir", "rmdir", "chmod", "flock")
FAULTS = {
    "signal=KILL": CALLS,
    "error=ENOSPC": ("openat", "write", "rename", "link", "mkdir"),
    "error=EIO": CALLS,  # What cannot be *read* is damaged: test_audit.
    "error=EMFILE": ("openat",),
}
FEW = 4
"""How many points of each call and fault the ordinary suite tries."""

MARK = b"HERE IT BEGINS"
NEW, OLD = b"newest " * 3000, [b"old %d " % number * 3000 for number in range(3)]
PACKED = [b"packed %d" % number for number in range(20)]
SHARED = [b"shared %d " % number * 120 for number in range(20)]
"""A pack of which only the first is still wanted: it is written anew without the rest."""

BAD = b"damaged " * 100
BOUND = 90_000

PROGRAM = """
import os
from pathlib import Path
from requiem_build.core.errors import RequiemError
from requiem_build.store import gc
from requiem_build.store.audit import audit
from requiem_build.store.layout import Store
import requiem_build.store.packs, tempfile, selectors, json
store = Store(Path(sys.argv[1]))
try: os.write(999, {mark!r})
except OSError: pass
try:
    {action}
except RequiemError as error:
    print(error.exit_code)
    sys.exit(4)
print("done")
"""
ACTIONS = {
    "gc": f"with gc.alone(store, wait=False): gc.collect(store, gc.Bounds({BOUND}))",
    "repair": "audit(store, workers=1, repair=True)",
}


def record(
    store: Store, made: Callable[..., object], name: str, contents: list[bytes], there: tuple[bytes, ...] = ()
) -> None:
    """`there` are outputs that the store has already."""
    values = made(name)
    files = {f"{number}": File(store.objects.put(content), len(content)) for number, content in enumerate(contents)}
    files |= {f"there {number}": File(object_digest(content), len(content)) for number, content in enumerate(there)}
    tree, text = make_tree(files)
    store.objects.put(text)
    result = make_result(
        values.request,
        exit_code=0,
        termination="exited",
        stdout=Captured(store.objects.put(b"said"), 4),
        stderr=Captured(store.objects.put(b""), 0),
        outputs={"d/": tree},
    )
    store.records.publish(values.request, result, replace(values.record, result_digest=result.digest))


@pytest.fixture
def template(tmp_path: Path, made: Callable[..., object]) -> Path:
    """Old records and a pack that must go, damage, and a newest record that must stay whole whatever happens."""
    store = Store(tmp_path / "template")
    for contents in (PACKED, SHARED):
        packing = store.objects.packing()
        for content in contents:
            packing.add(content)
        packing.close()
    for number, content in enumerate(OLD):
        record(store, made, f"old{number}", [content])
    store.objects.put(BAD)
    for path in store.root.rglob("*"):
        if path.is_file():
            os.utime(path, (1e9, 1e9))
    bad = Path(store.objects.path(object_digest(BAD)))
    bad.chmod(0o644)
    bad.write_bytes(b"?" * len(BAD))
    harmed = store.records._path(made("old1").request.digest)
    os.chmod(harmed, 0o644)
    Path(harmed).write_bytes(b"{}")
    os.utime(harmed, (1e9, 1e9))
    record(store, made, "new", [NEW], (SHARED[0],))
    return store.root


def hold_the_invariants(root: Path, action: str, made: Callable[..., object], *, ended_well: bool) -> None:
    store = Store(root)
    newest = store.records.find(made("new").request.digest)
    assert newest is not None and store.missing(newest.result) == [], "what is kept is kept whole"
    assert store.objects.peek(object_digest(NEW)) == NEW
    assert store.objects.peek(object_digest(SHARED[0])) == SHARED[0]
    for content in (*OLD, *PACKED, *SHARED):  # What is there is right. To look is no use, which would keep it.
        with suppress(MissingObject):
            assert store.objects.peek(object_digest(content)) == content
    assert os.listdir(root / "v2/tmp") == [], "what the dead left is gone at the next opening"
    if ended_well and action == "gc":
        assert all(store.missing(kept.result) == [] for kept in store.records)
    gc.collect(store, gc.Bounds(BOUND))  # And again, without any repair by hand.
    assert [kept.record.request_digest for kept in store.records] == [made("new").request.digest]
    gone = {object_digest(content) for content in (*OLD, *PACKED, *SHARED[1:])}
    assert not gone & {digest for digest, _ in store.objects.ls()}
    assert [len(pack) for pack in store.objects.packs] == [1], "the pack was written anew, once"
    audit(store, workers=1, repair=True)
    again = audit(store, workers=1)
    assert again.ok and again.unanswerable == []
    assert os.listdir(root / "v2/tmp") == []


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("action", ACTIONS)
def test_killed_or_refused_at_each_system_call(
    strace: str,
    run_python: Callable[..., object],
    tmp_path: Path,
    template: Path,
    made: Callable[..., object],
    action: str,
    fault: str,
) -> None:
    program = PROGRAM.format(mark=MARK, action=ACTIONS[action])
    log = tmp_path / "log"

    def run(*options: str):
        root = tmp_path / "run"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(template, root, symlinks=True)
        return root, run_python(
            program, str(root), under=(strace, "-f", "--seccomp-bpf", "-qq", "-o", str(log), *options)
        )

    _, whole = run("-e", f"trace={','.join(CALLS)}")
    assert whole.stdout == "done\n", whole.stderr
    before, after = counts(log.read_text())
    points = [(call, nth) for call in FAULTS[fault] for nth in range(before.get(call, 0) + 1, after.get(call, 0) + 1)]
    assert len(points) > 20
    if not os.environ.get("REQUIEM_EXHAUSTIVE"):
        points = [point for call in CALLS for point in spread([p for p in points if p[0] == call])]
    hits = 0
    for call, nth in points:
        root, ended = run("-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={nth}")
        assert ended.returncode in (0, 4, -9, 137), f"{call} {nth}: {ended.stderr}"
        hits += ended.returncode != 0 or "INJECTED" in log.read_text()
        hold_the_invariants(root, action, made, ended_well=ended.returncode == 0)
    print(f"{len(points)} points, {hits} met")
    assert hits >= 3, f"only {hits} of {len(points)} runs met the fault"


def spread(points: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """A few of them, evenly, the first and the last among them."""
    if len(points) <= FEW:
        return points
    return [points[index * (len(points) - 1) // (FEW - 1)] for index in range(FEW)]


def counts(log: str) -> tuple[dict[str, int], dict[str, int]]:
    """How often the first process made each call up to the mark, and up to the end of the action."""
    before: dict[str, int] = {}
    so_far: dict[str, int] = {}
    first = log.split(maxsplit=1)[0]
    for line in log.splitlines():
        found = re.match(r"(\d+) +(\w+)\(", line)
        if found is None or found[1] != first:
            continue
        if found[2] == "write" and '"done' in line:
            break
        so_far[found[2]] = so_far.get(found[2], 0) + 1
        if MARK.decode() in line:
            before = dict(so_far)
    assert before
    return before, so_far
