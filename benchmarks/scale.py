"""What does Requiem cost when there is little to do in much? Next to Ninja, at 100 to 100,000 steps.

usage: python benchmarks/scale.py [noop edit touch plan list] [-n ROUNDS] [--sizes N...] [--dir DIR] [--write]

Both tools answer the same question in each round, one right after the other, each first in every other round; quoted
are the median of the rounds' ratios of wall time and the least of each. Peak memory is what the kernel counted
(ru_maxrss). Projects of up to 1,000 steps are really built by both; larger ones are made as a build leaves them:
`unspawned.py` for Requiem, and beyond 10,000 steps for Ninja outputs that are newer than their inputs, under a rule
that wants no log.
With --dir, projects that are there already are used again. Standard library only; needs ninja-build.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from graph import SHAPES, write_ninja, write_requiem
from run import REPOSITORY, command, machine
from sections import PAGE, write_section

OURS_BUILT_MAX = 1000
THEIRS_BUILT_MAX = 10_000
SIZES = (100, 1000, 10_000, 100_000)


@dataclass(frozen=True)
class Cost:
    wall_ms: float
    cpu_ms: float
    peak_mb: float


@dataclass(frozen=True)
class Kind:
    """One question: the shape it is asked of, what is changed before each round, the targets by size."""

    name: str
    shape: str
    says: str
    theirs: str
    targets: dict[int, float]
    change: Callable[[Path, int], None] | None = None
    foreach: bool = False
    sizes: tuple[int, ...] = SIZES


def edit_one(folder: Path, number: int) -> None:
    (folder / "src/1.txt").write_text(f"edit {number:06}\n")


def touch_one(folder: Path, number: int) -> None:
    os.utime(folder / "src/1.txt")


KINDS = (
    Kind("noop", "dag", "nothing to do", "the same", {1000: 2.3, 10_000: 0.8, 100_000: 0.6}),
    Kind("each", "indep", "nothing to do, one `foreach`", "the same", {}, foreach=True, sizes=(1000,)),
    Kind(
        "edit", "indep", "one source edited, one step runs", "the same", {10_000: 2.0}, edit_one, sizes=(1000, 10_000)
    ),
    Kind(
        "touch",
        "dag",
        "one source touched, nothing runs",
        "all behind it runs",
        {10_000: 0.05},
        touch_one,
        sizes=(1000, 10_000),
    ),
)


@dataclass
class Row:
    kind: Kind
    size: int
    ours: list[Cost] = field(default_factory=list)
    theirs: list[Cost] = field(default_factory=list)

    def ratio(self) -> float:
        return statistics.median(a.wall_ms / b.wall_ms for a, b in zip(self.ours, self.theirs, strict=True))

    def least(self) -> tuple[Cost, Cost]:
        return min(self.ours, key=lambda c: c.wall_ms), min(self.theirs, key=lambda c: c.wall_ms)


class Place:
    """Where projects lie, and how both tools are called in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        home = folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        self.env = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(REPOSITORY)}

    def project(self, kind: Kind, size: int) -> Path:
        """A project that both tools have built. Its name tells what it is."""
        folder = self.folder / f"{kind.shape}{'-foreach' if kind.foreach else ''}-{size}"
        if (folder / "ready").exists():
            return folder
        steps = SHAPES[kind.shape](size)
        write_requiem(folder / "requiem", steps, foreach=kind.foreach)
        write_ninja(folder / "ninja", steps, logged=size <= THEIRS_BUILT_MAX)
        if size > OURS_BUILT_MAX:
            self.run([sys.executable, str(Path(__file__).with_name("unspawned.py")), str(folder / "requiem")])
        for step in steps if size > THEIRS_BUILT_MAX else ():
            path = folder / "ninja" / step.output
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{step.output}\n")
        self.requiem(folder)
        self.ninja(folder)
        (folder / "ready").touch()
        return folder

    def requiem(self, folder: Path) -> Cost:
        return self.run([*command(), "-q", "-C", str(folder / "requiem"), "build", "-j", str(os.cpu_count())])

    def ninja(self, folder: Path) -> Cost:
        return self.run(["ninja", "--quiet", "-C", str(folder / "ninja"), "-j", str(os.cpu_count())])

    def run(self, words: Sequence[str]) -> Cost:
        begun = time.perf_counter()
        process = subprocess.Popen(words, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        wall_ms = (time.perf_counter() - begun) * 1000
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"error: {' '.join(words)} ended with {process.returncode}")
        return Cost(wall_ms, (used.ru_utime + used.ru_stime) * 1000, used.ru_maxrss / 1024)


def measure(place: Place, kind: Kind, size: int, rounds: int) -> Row:
    folder = place.project(kind, size)
    row = Row(kind, size)
    os.sync()  # Requiem waits for its store to be on the disk: not also for what was made before.
    for number in range(rounds + 1):
        if kind.change is not None:
            for tool in ("requiem", "ninja"):
                kind.change(folder / tool, number)
        sides = [(row.ours, place.requiem), (row.theirs, place.ninja)]
        for costs, build in sides if number % 2 else reversed(sides):
            cost = build(folder)
            if number:  # The first round only warms up.
                costs.append(cost)
    return row


def measure_plan(place: Place, kind: Kind, size: int, words: Sequence[str], *, forget: bool) -> Cost:
    """`requiem list`, with the plan made anew or remembered: the best of three."""
    folder = place.project(kind, size) / "requiem"
    found = []
    for _ in range(3):
        plans = folder / ".requiem" / "plans"
        if forget and plans.exists():
            plans.rename(folder / ".requiem" / f"plans.{time.monotonic_ns()}")
        found.append(place.run([*command(), "-C", str(folder), *words]))
    return min(found, key=lambda cost: cost.cpu_ms)


def table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| | steps | Requiem, least | Ninja, least | ratio, median | target | met | peak memory: Requiem, Ninja |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        ours, theirs = row.least()
        target = row.kind.targets.get(row.size)
        met = "" if target is None else "yes" if row.ratio() <= target else "**no**"
        peaks = [max(cost.peak_mb for cost in costs) for costs in (row.ours, row.theirs)]
        yield (
            f"| {row.kind.says} (`{row.kind.shape}`) | {row.size:,} | {ours.wall_ms:.0f} ms | {theirs.wall_ms:.0f} ms "
            f"| {row.ratio():.2f}x | {'' if target is None else f'at most {target:g}x'} | {met} "
            f"| {peaks[0]:.0f} MB, {peaks[1]:.0f} MB |"
        )


def page(lines: Sequence[str], plans: Sequence[str], rounds: int) -> str:
    return f"""## Little to do in much

    python benchmarks/scale.py -n {rounds} --write

{__doc__.partition("usage:")[2].partition("--write]")[2].strip()}

Measured {time.strftime("%Y-%m-%d", time.gmtime())}, {rounds} rounds, on {machine()}, load average
{os.getloadavg()[1]:.1f} while measuring:

{chr(10).join(lines)}

Questions that need the whole plan, in processor time, least of three:

{chr(10).join(plans)}
"""


def main() -> int:
    names = [*(kind.name for kind in KINDS), "plan"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all without one")
    parser.add_argument("-n", "--rounds", type=int, default=9)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--dir", type=Path, help="where the projects lie; a new temporary directory without it")
    parser.add_argument("--write", action="store_true", help=f"write into {PAGE.relative_to(REPOSITORY)}")
    chosen = parser.parse_args()
    wanted = chosen.names or names
    if not set(wanted) <= set(names):
        parser.error(f"there are {', '.join(names)}")
    place = Place(chosen.dir or Path(tempfile.mkdtemp(prefix="requiem-scale-")))
    print(f"in {place.folder} (kept)", file=sys.stderr)
    rows = []
    for kind in KINDS:
        for size in chosen.sizes if kind.name in wanted else ():
            if size in kind.sizes:
                rows.append(measure(place, kind, size, chosen.rounds))
                print(list(table(rows[-1:]))[-1], file=sys.stderr)
    plans = ["| | steps | processor time | peak memory |", "|---|---|---|---|"]
    for size in chosen.sizes if "plan" in wanted else ():
        for says, words, forget in (
            ("`list`, the plan made anew", ["list"], True),
            ("`list`, the plan remembered", ["list"], False),
        ):
            cost = measure_plan(place, KINDS[0], size, words, forget=forget)
            plans.append(f"| {says} | {size:,} | {cost.cpu_ms:.0f} ms | {cost.peak_mb:.0f} MB |")
    lines = list(table(rows))
    print("\n".join([*lines, "", *plans]))
    if chosen.write:
        write_section("scale", page(lines, plans, chosen.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
