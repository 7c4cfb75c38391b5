"""How fast is the store, measured against `cp`, git and b3sum?

usage: python benchmarks/store.py [NAME ...] [-n ROUNDS] [--files N] [--size MIB] [--alone] [--write]

Both sides of a ratio are measured in one round, right after each other, and each first in every other round. Every
round has fresh directories and nothing is deleted, as in run.py. `store` is what a build does with a finished
step's outputs (hash, copy, publish), without the step, and without a sync, as `cp` and git have none; `synced` is
the same until it is on the disk, beside `cp` and `sync -f`. Sources lie in the page cache. `restore` is a whole
`requiem build` after the outputs were lost, from the start of the interpreter to its end. Standard library only;
needs git and b3sum. What restoring costs others is in peers.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from graph import layered, write_requiem
from run import machine, shown
from sections import PAGE, write_section

REPOSITORY = Path(__file__).resolve().parents[1]
Times = dict[str, float]
"""Milliseconds by who took them."""


@dataclass(frozen=True)
class Line:
    """One row: whose time is held against whose. `target` is None where nothing was promised."""

    group: str
    what: str
    ours: str
    theirs: str
    target: float | None = None


LINES = (
    Line("directory", "store {files} small files, one directory output", "store", "cp -r"),
    Line("directory", "store {files} small files, one directory output", "store", "git add+commit"),
    Line("directory", "store them and sync", "synced", "cp -r && sync"),
    Line("directory", "restore them", "restore", "cp -r once more"),
    Line("directory", "restore them", "restore", "git checkout"),
    Line("separate", "store {files} small files, each an output", "store", "cp -r"),
    Line("separate", "store {files} small files, each an output", "store", "git add+commit"),
    Line("separate", "store them and sync", "synced", "cp -r && sync"),
    Line("separate", "restore them", "restore", "cp -r once more"),
    Line("separate", "restore them", "restore", "git checkout"),
    Line("ingest", "store one file of {size} MiB", "store", "cp -r", 1 / 0.7),
    Line("ingest", "store it and sync", "synced", "cp -r && sync", 1 / 0.7),
    Line("large", "store one file of {size} MiB", "store", "git add+commit"),
    Line("large", "restore it", "restore", "cp -r once more"),
    Line("large", "restore it", "restore", "git checkout"),
    Line("hash", "hash {size} MiB", "hash", "b3sum, one thread"),
    Line("hash", "hash {size} MiB", "hash", "b3sum, all threads"),
)
GROUPS = tuple(dict.fromkeys(line.group for line in LINES))


PRIORITY: list[int] = []
"""With what policy of the scheduler things are timed, if not with the ordinary one."""


def timed(work: Callable[[], object]) -> float:
    for policy in PRIORITY:
        os.sched_setscheduler(0, policy, os.sched_param(1))  # Whatever it starts inherits this.
    begun = time.perf_counter()
    work()
    taken = (time.perf_counter() - begun) * 1000
    if PRIORITY:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return taken


def settle(folder: Path) -> None:
    """What was written before is not written out while something else is timed."""
    run("sync", "-f", folder, cwd=folder)


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> None:
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, command))} ended with {done.returncode}\n{done.stderr.decode()}")


class Round:
    """One round's directories. `home` has facts of the machine, which are known beforehand."""

    def __init__(self, folder: Path, home: Path, chosen: argparse.Namespace, *, ours_first: bool) -> None:
        self.folder, self.home, self.chosen, self.ours_first = folder, home, chosen, ours_first
        folder.mkdir()

    def requiem(self, place: Path) -> None:
        env = {"PATH": os.environ["PATH"], "HOME": str(self.home), "PYTHONPATH": str(REPOSITORY)}
        run(sys.executable, "-m", "requiem_build", "-q", "build", cwd=place, env=env)

    def in_turn(self, ours: Callable[[], Times], theirs: Callable[[], Times]) -> Times:
        first, second = (ours, theirs) if self.ours_first else (theirs, ours)
        return first() | second()

    # Files

    def small_files(self) -> Path:
        """`files` files of 100 bytes to 8 KiB in directories of a hundred; text, as sources and objects are."""
        chance = random.Random(self.chosen.files)
        source = self.folder / "source"
        for number in range(self.chosen.files):
            path = source / f"d{number // 100}" / f"f{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            line = f"{chance.random()} file {number}\n"
            path.write_text(line * (chance.randrange(100, 8192) // len(line) + 1))
        return source

    def large_file(self) -> Path:
        source = self.folder / "source"
        source.mkdir()
        with open(source / "large", "wb") as file:
            chance = random.Random(1)
            for _ in range(self.chosen.size):
                file.write(chance.randbytes(1 << 20))
        return source

    def files(self, source: Path, *, separate: bool) -> Times:
        """Storing and restoring what lies below a directory."""
        names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
        outputs = [f"out/{name}" for name in names] if separate else ["out/"]
        stored = self.in_turn(lambda: self.store(source, outputs), lambda: self.copy(source))
        return stored | self.in_turn(lambda: self.restore(source, outputs), lambda: self.git(source))

    def restore(self, source: Path, outputs: Sequence[str]) -> Times:
        place = self.folder / "requiem"
        place.mkdir()
        (place / "requiem.toml").write_text(
            f'[project]\nname = "benchmark"\n[roots.source]\npath = {json.dumps(str(source))}\n'
            f'[steps.copy]\nroots = ["source"]\ncommand = "cp -r {source}/. out/"\noutputs = {json.dumps(outputs)}\n'
        )
        self.requiem(place)
        (place / "out").rename(self.folder / "lost")
        settle(self.folder)
        restored = timed(lambda: self.requiem(place))
        same(source, place / "out")
        return {"restore": restored}

    def store(self, source: Path, outputs: Sequence[str]) -> Times:
        """What the executor does when all processes of a step are dead, and then what a build's end does."""
        from requiem_build.executors.blobs import Blobs
        from requiem_build.executors.collect import Collector
        from requiem_build.store.layout import Store

        workspace = self.folder / "step"
        workspace.mkdir()
        settle(self.folder)
        source.rename(workspace / "out")
        try:
            store = Store(self.folder / "cas")
            descriptor = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY)
            collector = Collector(Blobs(store.objects), descriptor)
            stored = timed(lambda: collector.collect(outputs, ()))
            os.close(descriptor)
            return {"store": stored, "synced": stored + timed(store.sync)}
        finally:
            (workspace / "out").rename(source)

    def copy(self, source: Path) -> Times:
        settle(self.folder)
        copied = timed(lambda: run("cp", "-r", source, self.folder / "copy", cwd=self.folder))
        synced = timed(lambda: settle(self.folder))
        same(source, self.folder / "copy")
        return {"cp -r": copied, "cp -r && sync": copied + synced}

    def git(self, source: Path) -> Times:
        repository = self.folder / "git"
        settle(self.folder)
        copied = timed(lambda: run("cp", "-r", source, repository, cwd=self.folder))
        run("git", "init", "-q", cwd=repository)
        run("git", "config", "gc.auto", "0", cwd=repository)

        def commit() -> None:
            run("git", "add", "-A", cwd=repository)
            run("git", "-c", "user.name=b", "-c", "user.email=b@b", "commit", "-qm", "all", cwd=repository)

        settle(self.folder)
        committed = timed(commit)
        for path in [path for path in repository.iterdir() if path.name != ".git"]:
            path.rename(self.folder / f"lost.{path.name}")
        settle(self.folder)
        checked_out = timed(lambda: run("git", "checkout", "-q", "--", ".", cwd=repository))
        return {
            "cp -r once more": copied,
            "git add+commit": committed,
            "git checkout": checked_out,
        }

    # Groups

    def directory(self) -> Times:
        return self.files(self.small_files(), separate=False)

    def separate(self) -> Times:
        return self.files(self.small_files(), separate=True)

    def large(self) -> Times:
        return self.files(self.large_file(), separate=True)

    def ingest(self) -> Times:
        source = self.large_file()
        return self.in_turn(lambda: self.store(source, ["out/large"]), lambda: self.copy(source))

    def hash(self) -> Times:
        from requiem_build.core.digest import Hasher

        path = self.large_file() / "large"
        path.read_bytes()  # In the page cache for all.

        def ours() -> None:
            hasher, buffer = Hasher(), memoryview(bytearray(1 << 20))
            with open(path, "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    hasher.update(buffer[:count])
            hasher.digest()

        def theirs() -> Times:
            one = timed(lambda: run("b3sum", "--num-threads", "1", "--no-mmap", path, cwd=self.folder))
            return {"b3sum, one thread": one, "b3sum, all threads": timed(lambda: run("b3sum", path, cwd=self.folder))}

        return self.in_turn(lambda: {"hash": timed(ours)}, theirs)


def same(expected: Path, found: Path) -> None:
    """Whoever is fast must also be right."""
    done = subprocess.run(["diff", "-r", str(expected), str(found)], capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"error: {expected} and {found} differ\n{done.stdout.decode()[:500]}")


# What it says


def table(found: dict[str, list[Times]], chosen: argparse.Namespace) -> Iterator[str]:
    yield "| | Requiem | held against | ratio: median (min to max) | target | met |"
    yield "|---|---|---|---|---|---|"
    for line in LINES:
        rounds = found.get(line.group, [])
        if not rounds:
            continue
        ratios = sorted(times[line.ours] / times[line.theirs] for times in rounds)
        median = statistics.median(ratios)
        ours, theirs = (statistics.median(times[who] for times in rounds) for who in (line.ours, line.theirs))
        what = line.what.format(files=f"{chosen.files:,}", size=f"{chosen.size:,}")
        met = "" if line.target is None else "yes" if median <= line.target else "**no**"
        target = "" if line.target is None else f"at most {line.target:.2f}x"
        yield (
            f"| {what} | {shown(ours)} | `{line.theirs}`: {shown(theirs)} "
            f"| {median:.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {target} | {met} |"
        )


TEXT = """## The store

    python benchmarks/store.py -n {rounds} --write

`store` is what happens to a finished step's outputs until they are in the store: each file is copied, and the copy
hashed. It syncs nothing, nor do `cp -r` and git; `sync` is `syncfs` on both sides, and nothing else waits to be
written out when something is timed. `restore` is a whole `requiem build` after the outputs were lost: every byte is
read from the store, hashed, compared and written. Small files are 100 bytes to 8 KiB. What was restored is compared
byte by byte.

Measured {when}, {rounds} rounds, on {machine}{alone}:

{table}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(GROUPS)}; all without one")
    parser.add_argument("-n", "--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=1024, help="of the large file, in MiB")
    parser.add_argument("--dir", type=Path, help="where to work; a new temporary directory, kept, without it")
    parser.add_argument("--alone", action="store_true", help="before everything else on a busy machine (root)")
    parser.add_argument("--write", action="store_true", help=f"write a section of {PAGE.relative_to(REPOSITORY)}")
    chosen = parser.parse_args()
    if chosen.alone:
        PRIORITY.append(os.SCHED_RR)
    wanted = chosen.names or GROUPS
    if unknown := set(chosen.names) - set(GROUPS):
        parser.error(f"no benchmark {unknown.pop()!r}; there are {', '.join(GROUPS)}")
    for tool in ("git", "b3sum"):
        if shutil.which(tool) is None:
            parser.error(f"{tool} is not here: apt install {tool}")
    sys.path.insert(0, str(REPOSITORY))
    folder = Path(tempfile.mkdtemp(prefix="requiem-store-", dir=chosen.dir))
    print(f"in {folder} (kept)", file=sys.stderr)
    home = folder / "home"
    home.mkdir()
    warm = folder / "warm-up"
    write_requiem(warm, layered(3))
    Round(folder / "warm", home, chosen, ours_first=True).requiem(warm)
    found: dict[str, list[Times]] = {name: [] for name in wanted}
    for number in range(chosen.rounds):
        for name in wanted:
            one = Round(folder / f"{name}{number}", home, chosen, ours_first=number % 2 == 0)
            times = getattr(one, name)()
            found[name].append(times)
            told = ", ".join(f"{who} {shown(taken)}" for who, taken in times.items())
            print(f"round {number + 1} of {chosen.rounds}, {name}: {told}", file=sys.stderr)
            if name in ("ingest", "large", "hash"):
                shutil.rmtree(one.folder)  # A few large files: that does not slow the file system down.
                settle(folder)
    print("\n".join(table(found, chosen)))
    if chosen.write:
        when = time.strftime("%Y-%m-%d", time.gmtime())
        text = TEXT.format(
            rounds=chosen.rounds,
            when=when,
            machine=machine(),
            alone=", everything timed at real-time priority" if PRIORITY else "",
            table="\n".join(table(found, chosen)),
        )
        write_section("store", text)
        print(f"wrote {PAGE}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
