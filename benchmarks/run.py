"""How fast is Requiem, measured against what it adds to: a plain spawn, and Ninja.

usage: python benchmarks/run.py [spawn noop cold restore] [-n ROUNDS] [--steps N] [--write]

Runs with the interpreter that Requiem is installed in. Both sides of a ratio are measured in one round, one right
after the other and each first in every other round, so what else the machine does hits both alike; quoted is the
median of the rounds' ratios. Every round has a fresh directory and nothing is deleted, since ext4 creates files
several times slower after a mass deletion. Standard library only; needs ninja-build.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from graph import layered, write_ninja, write_requiem
from sections import PAGE, write_section

REPOSITORY = Path(__file__).resolve().parents[1]
SPAWNS = 100
"""Pairs of one round of `spawn`: one pair alone takes but a few milliseconds."""


@dataclass(frozen=True)
class Cost:
    wall_ms: float
    cpu_ms: float
    """Of the process and of all that it has waited for."""


@dataclass(frozen=True)
class Pair:
    """One round: what was measured of Requiem, what it is held against, both in milliseconds."""

    ours_ms: float
    theirs_ms: float

    @property
    def ratio(self) -> float:
        return self.ours_ms / self.theirs_ms


@dataclass(frozen=True)
class Line:
    name: str
    ours: str
    theirs: str
    target: str
    met: Callable[[Sequence[Pair]], bool]


def median_ratio(pairs: Sequence[Pair]) -> float:
    return statistics.median(pair.ratio for pair in pairs)


LINES = (
    Line(
        "spawn",
        "what a strict step adds to the command itself",
        "`posix_spawn` of `/bin/true`",
        "at most 5x",
        lambda pairs: median_ratio(pairs) <= 5,
    ),
    Line(
        "noop",
        "build with nothing to do, CPU",
        "Ninja's, CPU",
        "at most 400 ms",
        lambda pairs: statistics.median(pair.ours_ms for pair in pairs) <= 400,
    ),
    Line(
        "cold",
        "first build, strict, all stored",
        "Ninja's first build",
        "at most 3x",
        lambda pairs: median_ratio(pairs) <= 3,
    ),
    Line(
        "restore",
        "build after all outputs are gone",
        "Ninja's first build",
        "at most 0.5x",
        lambda pairs: median_ratio(pairs) <= 0.5,
    ),
)


# A single step


def measure_spawn() -> Pair:
    """Sums of many pairs. `/bin/true` in the strict sandbox, less the same spawned plainly, against the plain spawn."""
    sys.path.insert(0, str(REPOSITORY))
    from requiem_build.core.policy import WORLD_ENVIRONMENT
    from requiem_build.sandbox.base import Job
    from requiem_build.sandbox.linux import StrictSandbox

    job = Job(["/bin/true"], WORLD_ENVIRONMENT)

    def plain() -> None:
        os.waitpid(os.posix_spawn("/bin/true", ["true"], dict(WORLD_ENVIRONMENT)), 0)

    with StrictSandbox() as sandbox:

        def strict() -> None:
            finished = sandbox.run(job)
            finished.close()
            assert finished.exit_code == 0

        for warm in (plain, strict):
            warm()
        taken = {plain: 0.0, strict: 0.0}
        for number in range(SPAWNS):
            for work in (plain, strict) if number % 2 else (strict, plain):
                begun = time.perf_counter()
                work()
                taken[work] += (time.perf_counter() - begun) * 1000 / SPAWNS
    return Pair(taken[strict] - taken[plain], taken[plain])


# A thousand steps

LOCALE = {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
"""Of every step's world. Ninja's commands get it too, as in most people's shells: to read it costs `cksum` a tenth."""


def command() -> list[str]:
    """As users start it: by the script that pip made beside this interpreter, if there is one."""
    script = Path(sys.executable).with_name("requiem")
    return [str(script)] if script.exists() else [sys.executable, "-m", "requiem_build"]


class Project:
    """One round's two checkouts, with a home of their own; facts of the machine are known (`warm_up`)."""

    def __init__(self, folder: Path, count: int, home: Path) -> None:
        self.ours, self.theirs = folder / "requiem", folder / "ninja"
        steps = layered(count)
        write_requiem(self.ours, steps)
        write_ninja(self.theirs, steps)
        self._env = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(REPOSITORY), **LOCALE}

    def requiem(self) -> Cost:
        jobs = str(os.cpu_count())
        return self._run([*command(), "-q", "-C", str(self.ours), "build", "-j", jobs])

    def ninja(self) -> Cost:
        return self._run(["ninja", "--quiet", "-C", str(self.theirs), "-j", str(os.cpu_count())])

    def lose_outputs(self) -> None:
        """Moved away, not deleted: see the top of this file."""
        (self.ours / "out").rename(self.ours.parent / "out.lost")

    def check(self) -> None:
        """Whoever is fast must also be right."""
        for path in sorted((self.theirs / "out").iterdir()):
            assert path.read_bytes() == (self.ours / "out" / path.name).read_bytes(), path

    def _run(self, command: list[str]) -> Cost:
        begun = time.perf_counter()
        process = subprocess.Popen(command, env=self._env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        wall_ms = (time.perf_counter() - begun) * 1000
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"error: {' '.join(command)} ended with {process.returncode}")
        return Cost(wall_ms, (used.ru_utime + used.ru_stime) * 1000)


def warm_up(folder: Path) -> Path:
    """A home in which Requiem has looked at this machine once: the digests of its system are remembered there."""
    home = folder / "home"
    home.mkdir()
    Project(folder / "warm-up", 3, home).requiem()
    return home


def measure_builds(folder: Path, count: int, home: Path, *, ours_first: bool) -> dict[str, Pair]:
    project = Project(folder, count, home)

    def both() -> tuple[Cost, Cost]:
        if ours_first:
            ours = project.requiem()
            return ours, project.ninja()
        theirs = project.ninja()
        return project.requiem(), theirs

    ours_cold, theirs_cold = both()
    project.check()
    ours_noop, theirs_noop = both()
    project.lose_outputs()
    restore = project.requiem()
    project.check()
    return {
        "noop": Pair(ours_noop.cpu_ms, theirs_noop.cpu_ms),
        "cold": Pair(ours_cold.wall_ms, theirs_cold.wall_ms),
        "restore": Pair(restore.wall_ms, theirs_cold.wall_ms),
    }


# What it says


def table(found: dict[str, list[Pair]]) -> Iterator[str]:
    yield "| | Requiem | held against | ratio: median (min to max) | target | met |"
    yield "|---|---|---|---|---|---|"
    for line in LINES:
        pairs = found.get(line.name)
        if pairs:
            ratios = sorted(pair.ratio for pair in pairs)
            ours, theirs = (
                statistics.median(side) for side in zip(*((p.ours_ms, p.theirs_ms) for p in pairs), strict=True)
            )
            yield (
                f"| `{line.name}` | {line.ours}: {shown(ours)} | {line.theirs}: {shown(theirs)} "
                f"| {median_ratio(pairs):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
                f"| {line.target} | {'yes' if line.met(pairs) else '**no**'} |"
            )


def shown(value_ms: float) -> str:
    return f"{value_ms:.2f} ms" if value_ms < 10 else f"{value_ms:.0f} ms"


def machine() -> str:
    ninja = subprocess.run(["ninja", "--version"], check=False, capture_output=True, text=True).stdout.strip()
    try:
        models = [row for row in Path("/proc/cpuinfo").read_text().splitlines() if row.startswith("model name")]
        processor = models[0].partition(": ")[2]
    except (OSError, IndexError):
        processor = platform.machine()
    return (
        f"{os.cpu_count()} cores of {processor}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, Ninja {ninja}"
    )


def page(found: dict[str, list[Pair]], rounds: int, count: int) -> str:
    text = """# Performance

Requiem promises that every answer can be proven; this page says what that costs. Times of one machine say little, so
each is held against a measure that was taken in the same round, right before or after it: a plain spawn of a process,
and Ninja, which neither isolates nor remembers.

To repeat it, on a machine that does nothing else (needs `ninja-build`):

    python benchmarks/run.py -n {rounds} --write

`spawn` adds up {spawns} pairs a round, straight at the sandbox. The others build {count} steps of `cksum` in layers,
each reading three outputs of the layer before, with as many jobs as there are cores; every round has fresh
directories and an empty store, and both tools' outputs are compared byte by byte. `cold` is sandboxed strictly, and
every input and output is hashed and stored. `noop` is processor time of the whole process, from start to end.
`restore` lays out every output from the store. Facts of the machine (the digest of its system) are known beforehand.

Measured {when}, {rounds} rounds, on {machine}:

{table}

`python benchmarks/realworld/lua.py` shows the same of a real program: Debian's `lua5.4`, edit by edit, next to Ninja.
"""
    return text.format(
        rounds=rounds,
        spawns=SPAWNS,
        count=f"{count:,}",
        when=time.strftime("%Y-%m-%d", time.gmtime()),
        machine=machine(),
        table="\n".join(table(found)),
    )


def main() -> int:
    names = [line.name for line in LINES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all without one")
    parser.add_argument("-n", "--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--dir", type=Path, help="where to build; a new temporary directory, kept, without it")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(REPOSITORY)}")
    chosen = parser.parse_args()
    wanted = chosen.names or names
    for name in wanted:
        if name not in names:
            parser.error(f"no benchmark {name!r}; there are {', '.join(names)}")
    if chosen.write and set(wanted) != set(names):
        parser.error("--write wants all of them")
    if shutil.which("ninja") is None:
        parser.error("ninja is not here: apt install ninja-build")

    folder = Path(tempfile.mkdtemp(prefix="requiem-benchmark-", dir=chosen.dir))
    print(f"in {folder} (kept)", file=sys.stderr)
    found: dict[str, list[Pair]] = {name: [] for name in wanted}
    home = warm_up(folder)
    for number in range(chosen.rounds):
        measured = {"spawn": measure_spawn()} if "spawn" in wanted else {}
        if set(wanted) - {"spawn"}:
            measured |= measure_builds(folder / str(number), chosen.steps, home, ours_first=number % 2 == 0)
        for name in wanted:
            found[name].append(measured[name])
        said = ", ".join(f"{name} {measured[name].ratio:.2f}x" for name in wanted)
        print(f"round {number + 1} of {chosen.rounds}: {said}", file=sys.stderr)
    print("\n".join(table(found)))
    if chosen.write:
        write_section("builds", page(found, chosen.rounds, chosen.steps))
        print(f"wrote {PAGE}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
