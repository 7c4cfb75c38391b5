"""How does Requiem compare with other build tools and task runners? The same steps, the same questions.

usage: python benchmarks/peers.py [TOOL ...] [-n ROUNDS] [--sizes N...] [--tools DIR] [--write]

In each round every tool does everything once, in another order each time, in a fresh directory; a ratio is
Requiem's wall time through the other tool's of the same round, and quoted is the median of the rounds. Each tool's own
program is called directly (not through npm, npx or a script that looks for it), with as many jobs as there are
processors, and with its cache where it has one; nothing waits to be written out. After each question the outputs are
compared with what they must be. Only Requiem isolates what it runs. `--tools` is where the others are installed, from
PyPI and npm, if they are not there yet; Ninja comes from Debian.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from graph import Step, independent, layered, write_ninja, write_requiem, write_sources
from others import write_doit, write_moon, write_task, write_turbo, write_wireit
from run import LOCALE, REPOSITORY, command, machine
from sections import PAGE, write_section

JOBS = str(os.cpu_count())
PYTHON = ("doit==0.37.0", "go-task-bin==3.54.0")
NODE = ("turbo@2.11.11", "@moonrepo/cli@2.5.5", "wireit@0.14.13")


@dataclass(frozen=True)
class Tool:
    """How a project is written for it, and how it is called: argv, and what its environment has besides."""

    name: str
    write: Callable[[Path, Sequence[Step]], None]
    argv: Callable[[Path], list[str]]
    env: Callable[[Path, Path], Mapping[str, str]] = lambda tools, folder: {}
    slow: bool = False
    """Minutes at a thousand steps: there it is asked in the first round only."""


def one(tools: Path, pattern: str) -> str:
    """The one file there that matches."""
    found = sorted(tools.glob(pattern))
    if not found:
        sys.exit(f"error: no {pattern} in {tools}")
    return str(found[0])


TOOLS = (
    Tool("requiem", write_requiem, lambda tools: [*command(), "-q", "build", "-j", JOBS]),
    Tool("ninja", write_ninja, lambda tools: ["ninja", "--quiet", "-j", JOBS]),
    Tool("doit", write_doit, lambda tools: [str(tools / "venv/bin/doit"), "-n", JOBS, "-P", "thread"]),
    Tool("task", write_task, lambda tools: [str(tools / "venv/bin/task"), "--silent", "-C", JOBS, "all"]),
    Tool(
        "turbo",
        write_turbo,
        lambda tools: [
            one(tools, "node_modules/@turbo/*/bin/turbo"),
            *("run", "all", "--cache", "local:rw", "--output-logs", "none", "--no-daemon", "--concurrency", JOBS),
        ],
        lambda tools, folder: {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "TURBO_TELEMETRY_DISABLED": "1"},
    ),
    Tool(
        "wireit",
        write_wireit,
        lambda tools: ["node", str(tools / "node_modules/wireit/bin/wireit.js")],
        lambda tools, folder: {
            "npm_lifecycle_event": "all",
            "npm_package_json": str(folder / "package.json"),
            "npm_config_user_agent": "npm/10.0.0",
            "WIREIT_PARALLEL": JOBS,
            "WIREIT_CACHE": "local",
            "WIREIT_LOGGER": "quiet-ci",
        },
    ),
    Tool(
        "moon",
        write_moon,
        lambda tools: [
            one(tools, "node_modules/@moonrepo/core-*/moon"),
            *("run", "root:all", "--quiet", "--concurrency", JOBS),
        ],
        slow=True,
    ),
)


# What is asked


def nothing(folder: Path, number: int) -> None:
    """Changes nothing."""


def touch(folder: Path, number: int) -> None:
    os.utime(folder / "src/0.txt")


def edit(folder: Path, number: int) -> None:
    (folder / "src/0.txt").write_text("edited\n")


def revert(folder: Path, number: int) -> None:
    (folder / "src/0.txt").write_text("source src/0.txt\n")


def lose(folder: Path, number: int) -> None:
    """Moved away, not deleted, which would slow the file system down; only Requiem and Ninja make the directory."""
    (folder / "out").rename(folder.parent / f"lost.{folder.name}.{number}")
    (folder / "out").mkdir()


@dataclass(frozen=True)
class Question:
    name: str
    says: str
    change: Callable[[Path, int], None]
    edited: bool = False


RIPPLES = (
    Question("cold", "first build", nothing),
    Question("noop", "nothing to do", nothing),
    Question("touch", "a source touched", touch),
    Question("ripple", "a source edited, most steps behind it", edit, edited=True),
    Question("back", "the edit taken back", revert),
    Question("lost", "all outputs lost", lose),
)
SMALL = (Question("first", "", nothing), Question("edit", "a source edited, one step behind it", edit, edited=True))
SHAPES = ((layered, RIPPLES), (independent, SMALL))
TARGETS = {("lost", 1000, "turbo"): 0.05}


# Measuring


@dataclass
class Place:
    folder: Path
    tools: Path
    home: Path = field(init=False)

    def __post_init__(self) -> None:
        self.home = self.folder / "home"
        self.home.mkdir(parents=True)

    def round(self, names: Sequence[Tool], size: int, number: int) -> dict[str, dict[str, float]]:
        """Milliseconds by question, then by tool. Nobody is always first."""
        turned = [*names[number % len(names) :], *names[: number % len(names)]]
        taken: dict[str, dict[str, float]] = {}
        for shape, questions in SHAPES:
            steps = shape(size)
            folders = {tool.name: self.folder / f"{size}-{number}-{shape.__name__}" / tool.name for tool in turned}
            for tool in turned:
                self.write(tool, folders[tool.name], steps)
            expected: dict[bool, dict[str, bytes]] = {}
            for question in questions:
                for tool in turned:
                    folder = folders[tool.name]
                    question.change(folder, number)
                    taken.setdefault(question.name, {})[tool.name] = self.timed(tool, folder)
                    made = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
                    if made != expected.setdefault(question.edited, made) or len(made) != size:
                        sys.exit(f"error: {tool.name} made something else after {question.name!r}: {folder}")
        return taken

    def write(self, tool: Tool, folder: Path, steps: Sequence[Step]) -> None:
        if tool.write not in (write_requiem, write_ninja):
            write_sources(folder, steps)
        tool.write(folder, steps)
        (folder / "out").mkdir()

    def timed(self, tool: Tool, folder: Path) -> float:
        env = {"PATH": os.environ["PATH"], "HOME": str(self.home), "PYTHONPATH": str(REPOSITORY)}
        env |= {**LOCALE, **tool.env(self.tools, folder)}
        argv = tool.argv(self.tools)
        os.sync()  # Requiem waits until its store is on the disk: not also for what others wrote before.
        begun = time.perf_counter()
        done = subprocess.run(argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        taken_ms = (time.perf_counter() - begun) * 1000
        if done.returncode:
            said = (done.stdout + done.stderr).decode(errors="replace")[-2000:]
            sys.exit(f"error: {tool.name} ended with {done.returncode} in {folder}\n{said}")
        return taken_ms


def install(tools: Path) -> None:
    """What is not there yet, from PyPI and npm."""
    tools.mkdir(parents=True, exist_ok=True)
    if not (tools / "venv/bin/doit").exists():
        subprocess.run([sys.executable, "-m", "venv", str(tools / "venv")], check=True)
        subprocess.run([str(tools / "venv/bin/pip"), "install", "-q", *PYTHON], check=True)
    if not (tools / "node_modules/wireit").exists():
        (tools / "package.json").write_text('{"name": "tools", "version": "0.0.0", "private": true}\n')
        subprocess.run(["npm", "install", "--silent", "--no-fund", "--no-audit", *NODE], cwd=tools, check=True)


# What it says

Found = dict[int, list[dict[str, dict[str, float]]]]
"""By size, a round each."""


def table(found: Found, names: Sequence[str]) -> Iterator[str]:
    others = [name for name in names if name != "requiem"]
    yield f"| | steps | Requiem | {' | '.join(others)} |"
    yield f"|---|---|---|{'---|' * len(others)}"
    for question in (*RIPPLES, *SMALL):
        for size, rounds in found.items():
            if question.says:
                cells = [cell(rounds, question.name, size, other) for other in others]
                ours = statistics.median(one_round[question.name]["requiem"] for one_round in rounds)
                yield f"| {question.says} | {size:,} | {shown(ours)} | {' | '.join(cells)} |"


def cell(rounds: Sequence[dict[str, dict[str, float]]], question: str, size: int, other: str) -> str:
    pairs = [(taken[question]["requiem"], taken[question][other]) for taken in rounds if other in taken[question]]
    if not pairs:
        return ""
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    text = f"{ratio:.2f}x" if ratio >= 0.1 else f"{ratio:.3f}x"
    if (target := TARGETS.get((question, size, other))) is not None:
        text += f" (target {target:g}: {'met' if ratio <= target else '**missed**'})"
    return f"{text} of {shown(statistics.median(theirs for _, theirs in pairs))}"


def shown(value_ms: float) -> str:
    return f"{value_ms:.0f} ms" if value_ms < 1000 else f"{value_ms / 1000:.1f} s"


def page(found: Found, names: Sequence[str]) -> str:
    rounds = " and ".join(f"{len(rounds)} rounds at {size:,} steps" for size, rounds in found.items())
    return f"""## Next to others

    python benchmarks/peers.py --write

{__doc__.partition("--write]")[2].strip()}

Turbo, moon and wireit are made for tens of packages, and have all steps in one here; a hundred steps are nearer to
their use. Turbo starts a script by `npm run`, which takes a fifth of a second each time; here a small script stands in
for npm. Ninja, doit and task have no cache: after lost outputs or an edit that is taken back they run again.

Measured {time.strftime("%Y-%m-%d", time.gmtime())}, {rounds} (moon one at 1,000), on {machine()},
{", ".join((*PYTHON, *NODE))}:

{chr(10).join(table(found, names))}
"""


def main() -> int:
    known = [tool.name for tool in TOOLS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="TOOL", help=f"of {', '.join(known)}; all without one")
    parser.add_argument("-n", "--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--tools", type=Path, help="where the others are, or are to be, installed; a new directory")
    parser.add_argument("--dir", type=Path, help="where to build; a new temporary directory, kept, without it")
    parser.add_argument("--write", action="store_true", help=f"write into {PAGE.relative_to(REPOSITORY)}")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(known):
        parser.error(f"no tool {unknown.pop()!r}; there are {', '.join(known)}")
    wanted = [tool for tool in TOOLS if tool.name == "requiem" or not chosen.names or tool.name in chosen.names]
    for program, package in (("ninja", "ninja-build"), ("node", "nodejs"), ("npm", "npm"), ("git", "git")):
        if shutil.which(program) is None:
            parser.error(f"{program} is not here: apt install {package}")
    folder = Path(tempfile.mkdtemp(prefix="requiem-peers-", dir=chosen.dir))
    tools = (chosen.tools or folder / "tools").absolute()
    print(f"in {folder} (kept), others in {tools}", file=sys.stderr)
    install(tools)
    place = Place(folder, tools)
    place.round(wanted, 3, 0)  # Each has looked at this machine once.
    found: Found = {}
    for size in chosen.sizes:
        for number in range(chosen.rounds):
            asked = [tool for tool in wanted if not (tool.slow and size >= 1000 and number)]
            found.setdefault(size, []).append(place.round(asked, size, number))
            print(f"round {number + 1} of {chosen.rounds}, {size:,} steps", file=sys.stderr)
    names = [tool.name for tool in wanted]
    print("\n".join(table(found, names)))
    if chosen.write:
        write_section("peers", page(found, names))
        print(f"wrote {PAGE}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
