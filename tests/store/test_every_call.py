"""SQLite's loop over whole command lines: the N-th call of each kind fails or kills, for N = 1, 2, ... until they end.

The ordinary suite takes a point of each fault. `REQUIEM_EXHAUSTIVE=1` takes all of them; if it names a directory,
each point is written down there and one that was well is not tried again, so that the loop may be gone on with.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import faulting
import pytest
from faulting import ENGINE, OTHERS, Ended, Fault, Point
from project import Project

from requiem_build.core.digest import object_digest
from requiem_build.store.layout import Store

EXHAUSTIVE = os.environ.get("REQUIEM_EXHAUSTIVE", "")
SPACE = ("write", "fsync", "rename", "mkdir", "link", "create")
CHANGES = ("write", "fsync", "rename", "mkdir", "unlink", "link")
FAULTS = {
    "KILL": (Fault(None), (*CHANGES, "create")),
    "ENOSPC": (Fault(errno.ENOSPC), SPACE),
    "EIO": (Fault(errno.EIO), CHANGES),
    "EMFILE": (Fault(errno.EMFILE), ("open",)),
    "ENOSPC from then on": (Fault(errno.ENOSPC, onward=True), SPACE),
    "EIO from then on": (Fault(errno.EIO, onward=True), CHANGES),
}

MANIFEST = """
    [defaults]
    sandbox = "{level}"
    [steps.one]
    command = '''
        tr a-z A-Z < in.txt > out/one.txt; mkdir tree; cp in.txt tree/1; ln -s 1 tree/link
        for i in $(cat list); do echo $i > tree/$i; done'''
    inputs = ["in.txt", "list"]
    outputs = ["out/one.txt", "tree/"]
    [steps.two]
    command = "cat out/one.txt tree/* > out/two.txt"
    inputs = ["out/one.txt", "tree/"]
    outputs = ["out/two.txt"]
"""
KEPT = [b"stored before " * 100, *(b"small %d" % number for number in range(20))]
PACKED = 17
"""So many small files of one directory lie in a pack."""
LARGE = b"what is put " * 200_000


@dataclass(frozen=True)
class Operation:
    """`prepare` makes the workspace; `after` demands what is special to it, before anything else is run."""

    words: tuple[str, ...]
    prepare: Callable[[Project], None]
    after: Callable[[Project], Iterator[str]] = lambda _: iter(())
    again: tuple[str, ...] = ()
    """What is run once more before the next build, and must succeed."""
    text: str = "hello\n"
    others: bool = True
    """Whether other processes than the engine's have a part in it."""
    kinds: tuple[str, ...] = faulting.KINDS
    """What is not tried already by another operation."""


def plain(project: Project, level: str = "process", files: int = 2) -> None:
    project.write("in.txt", "hello\n")
    project.write("list", "".join(f"{10 + number}\n" for number in range(files)))
    project.manifest(MANIFEST.format(level=level))


def strict(project: Project) -> None:
    plain(project, "strict", PACKED)


def durable(project: Project) -> None:
    plain(project)
    (project.home / "config" / "requiem").mkdir(parents=True)
    (project.home / "config" / "requiem" / "config.toml").write_text('[store]\ndurability = "full"\n')


def built(project: Project, files: int = 2) -> None:
    plain(project, files=files)
    assert project.run("build").code == 0


def edited(project: Project) -> None:
    """Every output changes."""
    built(project)
    project.write("in.txt", "other\n")


def outputs_are_whole(project: Project) -> Iterator[str]:
    """Each path is old or new, never partial, and what stood there is not away for a moment."""
    texts = ("hello\n", "other\n") if project.read("in.txt") == "other\n" else ("hello\n",)
    listed = project.read("list")
    place = project.root
    for path, wanted in (
        ("out/one.txt", {text.upper() for text in texts}),
        ("out/two.txt", {text.upper() + text + listed + text for text in texts}),
    ):
        found = (place / path).read_text() if (place / path).exists() else None
        if found not in wanted and (found is not None or len(texts) == 2):
            yield f"{path} is {found!r}"
    tree = {path.name: path.read_text() for path in (place / "tree").iterdir()} if (place / "tree").exists() else None
    lines = listed.splitlines()
    trees = [{"1": text, "link": text, **{line: f"{line}\n" for line in lines}} for text in texts]
    if tree not in trees and (tree is not None or len(texts) == 2):
        yield f"tree is {tree}"


def lost(project: Project) -> None:
    built(project, PACKED)
    shutil.rmtree(project.root / "tree")
    shutil.rmtree(project.root / "out")


def with_put(project: Project) -> None:
    built(project)
    project.write("large.bin", LARGE)


def put_is_whole(project: Project) -> Iterator[str]:
    digest = object_digest(LARGE)
    store = Store(project.root / ".cas", read_only=True)
    if store.objects.has(digest) and store.objects.peek(digest) != LARGE:
        yield "what was put is torn"


def grown(project: Project) -> None:
    """Three generations of results, and what nobody wants."""
    plain(project)
    for text in ("first\n", "second\n", "hello\n"):
        project.write("in.txt", text)
        assert project.run("build").code == 0
    store = Store(project.root / ".cas")
    packing = store.objects.packing()
    for content in KEPT[1:]:
        packing.add(content)
    packing.close()
    store.objects.put(KEPT[0])
    old = [path for path in store.root.rglob("*") if path.is_file()][::2]
    for path in old:
        os.utime(path, (1e9, 1e9))


def damaged(project: Project) -> None:
    """A loose object, a pack and a record."""
    grown(project)
    store = Store(project.root / ".cas")
    record = next(path for path in (store.root / "records").rglob("*") if path.is_file())
    (pack, *_) = (store.root / "v2" / "packs").iterdir()
    for path in (Path(store.objects.path(object_digest(KEPT[0]))), pack, record):
        content = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(content[:-1] + b"?")


def of_format_1(project: Project) -> None:
    plain(project)
    for content in KEPT[:5]:
        name = hashlib.sha256(content).hexdigest()
        path = project.root / ".cas" / "objects" / name[:2] / name[2:4] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def all_are_kept(project: Project) -> Iterator[str]:
    """Every old object is still in its old place or already in its new one."""
    place = project.root / ".cas"
    left = {path.read_bytes() for path in (place / "objects").rglob("*") if path.is_file()}
    for content in KEPT[:5]:
        digest = object_digest(content)
        loose = place / "v2" / "objects" / digest[:2] / digest[2:4] / digest
        if content not in left and not (loose.is_file() and loose.read_bytes() == content):
            yield f"{content[:20]!r} is lost"


OPERATIONS = {
    "build": Operation(("build", "--mode", "repro"), plain, outputs_are_whole),
    "build strict": Operation(("build", "--mode", "repro"), strict, outputs_are_whole),
    "build durable": Operation(("build", "--mode", "repro"), durable, others=False, kinds=("fsync",)),
    "build after an edit": Operation(("build",), edited, outputs_are_whole, text="other\n"),
    "build restores": Operation(("build",), lost, outputs_are_whole, others=False),
    "put": Operation(("cas", "put", "large.bin"), with_put, put_is_whole, ("cas", "put", "large.bin"), others=False),
    "gc": Operation(
        ("cas", "gc", "--max-age", "1000h"), grown, again=("cas", "gc", "--max-age", "1000h"), others=False
    ),
    "verify --repair": Operation(("cas", "verify", "--repair"), damaged, again=("cas", "verify")),
    "migrate": Operation(("cas", "migrate"), of_format_1, all_are_kept, ("cas", "migrate"), others=False),
}


def has_others(operation: Operation, fault: str) -> bool:
    """An interpreter that starts, and a step's own programs, open much before and beside what is ours."""
    return operation.others and not (fault == "EMFILE" and "build" in operation.words)


class Loop:
    """One operation under a kind of `fault`: each point in a copy of one prepared workspace, at the same path."""

    def __init__(self, base: Path, operation: Operation) -> None:
        self.operation, self.fault = operation, ""
        self.place, self.template = base / "run", base / "template"
        operation.prepare(Project(self.place))
        self.place.rename(self.template)

    def meet(self, point: Point | None, kinds: tuple[str, ...]) -> tuple[Project, Ended]:
        with suppress(FileNotFoundError):
            shutil.rmtree(self.place)
        subprocess.run(["cp", "-a", "--reflink=auto", str(self.template), str(self.place)], check=True)
        project = Project(self.place)
        fault = FAULTS[self.fault][0] if point else None
        return project, faulting.run(
            self.operation.words, str(project.root), project.environment(), kinds, point, fault
        )

    def points(self, whose: str, kinds: tuple[str, ...]) -> list[Point]:
        """In the ordinary suite one of them, of another kind for each operation."""
        _, whole = self.meet(None, kinds)
        assert whole.code in (0, 3), whole
        every = [
            Point(whose, kind, nth)
            for kind in kinds
            # What a fork opens first is its standard input, before it becomes a command.
            for nth in range(2 if kind == "open" else 1, whole.counts[whose, kind] + 1)
        ]
        if EXHAUSTIVE or len(every) <= 1:
            return every
        return [every[list(OPERATIONS.values()).index(self.operation) * len(every) // len(OPERATIONS)]]

    def kinds_for(self, point: Point, kinds: tuple[str, ...]) -> tuple[str, ...]:
        return kinds if FAULTS[self.fault][0].onward else (point.kind,)


class Written:
    """The points that were tried before: `REQUIEM_EXHAUSTIVE=DIRECTORY`."""

    def __init__(self, operation: str, fault: str) -> None:
        self.path = Path(EXHAUSTIVE) / f"{operation}.{fault}.jsonl".replace(" ", "-") if "/" in EXHAUSTIVE else None
        self.well: dict[str, bool] = {}
        if self.path is not None and self.path.exists():
            lines = [json.loads(line) for line in self.path.read_text().splitlines()]
            self.well = {line["point"]: line["met"] for line in lines if not line["wrong"]}

    def add(self, point: Point, ended: Ended, wrong: list[str]) -> None:
        line = {"point": str(point), "met": bool(ended.met), "code": ended.code, "wrong": wrong, "calls": ended.met[:3]}
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")


PAIRS = [
    (name, whose, fault)
    for name, operation in OPERATIONS.items()
    for whose in (ENGINE, OTHERS)
    for fault, (_, kinds) in FAULTS.items()
    if set(kinds) & set(operation.kinds) and (whose == ENGINE or has_others(operation, fault))
]
CASES = [(pair,) for pair in PAIRS] if EXHAUSTIVE else [tuple(p for p in PAIRS if p[0] == name) for name in OPERATIONS]


def called(case: tuple[tuple[str, str, str], ...]) -> str:
    name, whose, fault = case[0]
    return f"{whose}-{name}-{fault}" if EXHAUSTIVE else name


@pytest.mark.timeout(36000 if EXHAUSTIVE else 400)
@pytest.mark.skipif(not faulting.HERE, reason="numbers of system calls are known for x86-64 and 64-bit Arm")
@pytest.mark.parametrize("case", CASES, ids=called)
def test_g7_a_fault_at_each_call_needs_no_repair(tmp_path: Path, case: tuple[tuple[str, str, str], ...]) -> None:
    if not faulting.can_ask():
        pytest.skip("NOT TESTED: this kernel lets nobody ask about system calls")
    loop = Loop(tmp_path, OPERATIONS[case[0][0]])
    found = [wrong for name, whose, fault in case for wrong in met_by(loop, name, whose, fault)]
    assert found == [], "\n".join(found)


def met_by(loop: Loop, name: str, whose: str, fault: str) -> Iterator[str]:
    """All that went wrong at the points of one kind of fault."""
    kinds = tuple(kind for kind in FAULTS[fault][1] if kind in loop.operation.kinds)
    loop.fault = fault
    written = Written(f"{name}.{whose}", fault)
    number = met = 0
    for point in loop.points(whose, kinds):
        number += 1
        if str(point) in written.well:
            met += written.well[str(point)]
            continue
        project, ended = loop.meet(point, loop.kinds_for(point, kinds))
        while not (ended.met or EXHAUSTIVE) and point.nth > 1:  # How many calls there are is up to chance, too.
            point = replace(point, nth=point.nth // 2)  # noqa: PLW2901 - the point that is told is the one that was met
            project, ended = loop.meet(point, loop.kinds_for(point, kinds))
        wrong = list(wrongs(loop.operation, project, ended, FAULTS[fault][0], point))
        written.add(point, ended, wrong)
        met += bool(ended.met)
        yield from (f"{point}: {each}\n    at {ended.met[:3]}, exit {ended.code}, {ended.err[-700:]}" for each in wrong)
    print(f"{name}, {whose}, {fault}: {number} points, {met} met")
    if met < number * 0.8:
        yield f"only {met} of {number} faults happened"


def wrongs(operation: Operation, project: Project, ended: Ended, fault: Fault, point: Point) -> Iterator[str]:
    """What is not as it should be when a command line met a fault, and when the next ones ended."""
    yield from of_its_ending(operation, ended, fault, point)
    yield from of_its_store(operation, project)
    yield from operation.after(project)
    if operation.again:
        again = project.run(*operation.again)
        if again.code != 0 and "verify" not in operation.again:
            yield f"once more: exit {again.code}, {again.err[-700:]}"
        if "verify" in operation.again:
            project.run("cas", "verify", "--repair")
            if project.run("cas", "verify").code != 0:
                yield "a second repair leaves damage"
    following = project.run("build")
    expected = operation.text.upper() + operation.text + project.read("list") + operation.text
    if following.code != 0 or project.read("out/two.txt") != expected:
        yield f"the next build: exit {following.code}, {following.out[-300:]} {following.err[-700:]}"
        return
    last = project.build()
    if last.counts != {"fresh": 2}:
        yield "then " + "; ".join(f"{step['name']} {step['state']}: {step['reason']}" for step in last.report["steps"])
    yield from of_what_is_left(project)


def of_its_ending(operation: Operation, ended: Ended, fault: Fault, point: Point) -> Iterator[str]:
    if ended.left:
        yield "a process is left"
    if "Traceback" in ended.err or "a bug" in ended.err:
        yield "a traceback"
    mute = any(f"{call} pipe:" in told for told in ended.met for call in ("write", "writev"))
    usual = 3 if "verify" in operation.words else 0
    if not ended.met:
        if ended.code != usual:
            yield "another exit code without a fault"
    elif fault.number is None and point.whose == ENGINE:
        if ended.code != -9:
            yield "it was not killed"
    elif ended.code not in (usual, 4, *((1,) if point.whose == OTHERS or fault.onward else ())):
        yield "its exit code"
    elif ended.code == 4 and not mute and not ("error: " in ended.err and "  hint: " in ended.err):
        yield "an error without a hint"


def of_its_store(operation: Operation, project: Project) -> Iterator[str]:
    """Nothing torn is given as an answer, and every record has its objects; but for the damage that was done to it."""
    place = project.root / ".cas"
    if not (place / "requiem-store").exists():
        return
    if operation.prepare is damaged:
        return
    store = Store(place, read_only=True)
    for kept in store.records:
        if store.missing(kept.result):
            yield "a record lacks its objects"
    yield from (str(problem) for problem in store.objects.verify() if problem.reason != "its blob is missing")


def of_what_is_left(project: Project) -> Iterator[str]:
    with Store(project.root / ".cas").lease():
        pass  # Whoever comes next sweeps.
    for folder in (".cas/v2/tmp", ".cas/v2/leases", ".requiem/tmp", ".requiem/staged", ".requiem/displaced"):
        names = os.listdir(project.root / folder) if (project.root / folder).is_dir() else []
        if names:
            yield f"left in {folder}: {names[:5]}"
    with open("/proc/self/mounts") as file:
        if str(project.base) in file.read():
            yield "a mount is left"
