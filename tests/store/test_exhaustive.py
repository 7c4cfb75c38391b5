"""SQLite's loop over whole operations: the N-th call of a kind fails or kills, for N = 1, 2, ... until they end.

The ordinary suite takes a few of each N; `REQUIEM_EXHAUSTIVE=1` takes them all.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from project import REQUIEM, Project, Ran

from requiem_build.core.digest import object_digest
from requiem_build.store.layout import Store

EXHAUSTIVE = bool(os.environ.get("REQUIEM_EXHAUSTIVE"))
SAMPLES = 2
FAULTS = {
    "KILL": "signal=KILL:when={}",
    "ENOSPC": "error=ENOSPC:when={}",
    "EIO": "error=EIO:when={}",
    "EMFILE": "error=EMFILE:when={}",
    "ENOSPC from then on": "error=ENOSPC:when={}+",
    "EIO from then on": "error=EIO:when={}+",
}
CALLS = ("write", "rename", "mkdir", "unlink", "link", "fsync", "syncfs")
OPENING = ("openat", "pipe2", "socketpair", "dup", "epoll_create1", "memfd_create")
"""What a process with too many open files is refused."""
REFUSED = 44
"""How a program ends that was told so in words: it may not be able to write them."""
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
        f"except RequiemError as error:\n    os._exit({REFUSED} if error.exit_code == 4 else 1)\n"
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


def calls_of(fault: str) -> tuple[str, ...]:
    return OPENING if fault == "EMFILE" else CALLS


def opened_before(log: str, name: str) -> int:
    """How many files the first thread opened before one of this name: until then it only loads the program."""
    first = log.split(maxsplit=1)[0]
    opened = [line for line in log.splitlines() if re.match(rf"{first} +openat\(", line)]
    return next((number for number, line in enumerate(opened) if name in line), 0)


def sampled(fault: str, last: int, before: int = 0) -> Iterator[int]:
    numbers = range(before + 1, last + 1)
    samples = 1 if fault.endswith("on") else SAMPLES
    if EXHAUSTIVE or len(numbers) <= samples:
        yield from numbers
    else:
        yield from sorted({numbers[len(numbers) * part // samples] for part in range(samples)})


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

    calls = calls_of(fault)
    root, whole = run(0, "-e", f"trace={','.join(calls)}")
    assert whole.returncode == 0 and whole.stdout == "", whole.stderr
    hold(root, action)
    after, before = most_of_one_thread(log.read_text()), opened_before(log.read_text(), str(root))
    number = happened = 0
    for call in calls:
        for nth in sampled(fault, after.get(call, 0), before if call == "openat" else 0):
            number += 1
            root, ended = run(number, "-e", f"trace={call}", "-e", f"inject={call}:{FAULTS[fault].format(nth)}")
            happened += "INJECTED" in log.read_text() or ended.returncode in (-9, 137)
            assert ended.returncode in (0, REFUSED, -9, 137), f"{call} {nth}: {ended.stderr}"
            hold(root, action)
    print(f"{number} points, {happened} met")
    assert happened >= min(2, number), f"only {happened} of {number} faults happened"


# A whole build


MANIFEST = """
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
"""


def build_under(base: Path, log: Path, *options: str) -> tuple[Project, Ran]:
    project = Project(base)
    project.write("in.txt", "hello\n")
    project.manifest(MANIFEST)
    under = ("strace", "-f", "-qq", "-o", str(log), *options, sys.executable, "-m", "requiem_build")
    return project, project.run("build", "--mode", "repro", program=under, timeout_s=1000 if EXHAUSTIVE else 100)


@pytest.mark.timeout(7200 if EXHAUSTIVE else 240)
@pytest.mark.usefixtures("strace")
def test_g7_a_descriptor_refused_to_an_interpreter_that_starts_needs_no_repair(tmp_path: Path) -> None:
    """All other calls: `test_every_call.py`, in forks that have imported everything. Here modules are still to load."""
    fault = "EMFILE"
    log, calls = tmp_path / "log", calls_of(fault)
    project, whole = build_under(tmp_path / "run0", log, "-e", f"trace={','.join(calls)}")
    assert whole.code == 0, whole.err
    expected = project.read("out/two.txt")
    after, before = most_of_one_thread(log.read_text()), opened_before(log.read_text(), "requiem.toml")
    number = happened = 0
    wrong: list[str] = []
    for call in calls:
        for nth in sampled(fault, after.get(call, 0), before if call == "openat" else 0):
            number += 1
            inject = ("-e", f"trace={call}", "-e", f"inject={call}:{FAULTS[fault].format(nth)}")
            project, ended = build_under(tmp_path / f"run{number}", log, *inject)
            happened += "INJECTED" in log.read_text() or ended.code in (-9, 137)
            found = [f"{call} {nth}: {each}" for each in faults_after(project, ended, expected)]
            print(
                "\n".join(found or [f"{call} {nth} of {after.get(call, 0)}: well"]), flush=True
            )  # With `-s`, at once.
            wrong += found
            shutil.rmtree(project.base)
    assert wrong == [], "\n".join(wrong)
    assert happened >= min(2, number)


def faults_after(project: Project, ended: Ran, expected: str) -> Iterator[str]:
    """What is not as it should be when a build was killed or refused something, and when the next one ended."""
    told = f"exit {ended.code}, {ended.err[-1000:]}"
    if ended.code not in (0, 1, 4, -9, 137) or "Traceback" in ended.err:
        yield told
    if (project.root / ".cas" / "requiem-store").exists():
        store = Store(project.root / ".cas")
        for kept in store.records:
            if store.missing(kept.result):
                yield f"a record lacks its objects; {told}"
        for problem in store.objects.verify():
            if problem.reason != "its blob is missing":
                yield f"{problem}; {told}"
    again = project.run("build")
    if again.code != 0 or project.read("out/two.txt") != expected:
        yield f"the next build: exit {again.code}, {again.err[-1000:]}; {told}"
        return
    last = project.build()
    if last.counts != {"fresh": 3}:
        reasons = [f"{step['name']} {step['state']}: {step['reason']}" for step in last.report["steps"]]
        yield f"then {'; '.join(reasons)}; {told}"


@pytest.mark.timeout(3600 if EXHAUSTIVE else 240)
def test_c29_any_number_of_open_files_is_enough_or_says_so(tmp_path: Path) -> None:
    """From what lets an interpreter start at all up to what no build needs."""
    expected, wrong = "A\nB\n", []
    limits = range(8, 72) if EXHAUSTIVE else (8, 17, 21, 33)
    for limit in limits:
        project = Project(tmp_path / f"limit{limit}")
        project.write("in.txt", "a\n")
        project.manifest("""
            [steps.one]
            command = "tr a-z A-Z < in.txt > one.txt"
            inputs = ["in.txt"]
            outputs = ["one.txt"]
            [steps.many]
            command = "mkdir tree && for i in $(seq 20); do echo $i > tree/$i; done"
            outputs = ["tree/"]
            [steps.two]
            command = "test -f tree/20; cat one.txt > out/two.txt; echo B >> out/two.txt"
            inputs = ["one.txt", "tree/"]
            outputs = ["out/two.txt"]
        """)
        limited = ("prlimit", f"--nofile={limit}", *REQUIEM)
        ended = project.run("build", "-j", "2", program=limited)
        if ended.code == 4 and not re.search("too many open files|EMFILE|too few", ended.err, re.IGNORECASE):
            wrong.append(f"{limit}: {ended.err[-500:]}")
        wrong += [f"{limit}: {each}" for each in faults_after(project, ended, expected)]
    assert wrong == [], "\n".join(wrong)


def most_of_one_thread(log: str) -> dict[str, int]:
    """How often one thread made each call at most: strace counts for each thread."""
    most: dict[tuple[str, str], int] = {}
    for found in re.finditer(r"^(\d+) +(\w+)\(", log, re.MULTILINE):
        most[found[1], found[2]] = most.get((found[1], found[2]), 0) + 1
    return {call: max(n for (_, c), n in most.items() if c == call) for call in {c for _, c in most}}
