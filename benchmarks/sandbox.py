"""What does a strict step cost, next to a plain spawn and to bubblewrap with the same profile, and what do inputs cost?

usage: python benchmarks/sandbox.py [warm fresh throughput inputs] [-n ROUNDS] [--write]

Everything of a round is measured one right after the other, so what else the machine does hits all alike; quoted is
the median of the rounds' ratios. `warm` is a worker's view that is reset, `fresh` a view of its own for each step.
`inputs` runs through the executor: a request whose inputs are in the store, to a result that is in the store;
`new` inputs were never shown before, `same` ones by the step before. Nothing is deleted, since ext4 creates files
several times slower after a mass deletion. Standard library only; needs bubblewrap for what is held against it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from run import Pair, machine, median_ratio, shown
from sections import PAGE, write_section

from requiem_build.core.digest import Digest, object_digest
from requiem_build.core.policy import WORKSPACE, WORLD_ENVIRONMENT, Limits, Policy
from requiem_build.core.request import Request
from requiem_build.executors.blobs import Blobs
from requiem_build.executors.local import LocalExecutor
from requiem_build.sandbox.base import Job
from requiem_build.sandbox.linux import StrictSandbox
from requiem_build.sandbox.seccomp import make_filter
from requiem_build.store.layout import Store

REPOSITORY = Path(__file__).resolve().parents[1]
PARTS = ("warm", "fresh", "throughput", "inputs")
SPAWNS = 40
"""Of one round: a single one takes but a millisecond."""

COUNTS = (10, 100, 1_000, 10_000)
WORKERS = 2


@dataclass(frozen=True)
class Row:
    what: str
    ours: str
    theirs: str
    target: str
    met: bool | None


# Ways to run /bin/true


def plain() -> None:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], dict(WORLD_ENVIRONMENT), setsid=True), 0)


def strict(sandbox: StrictSandbox) -> Callable[[], None]:
    job = Job(["/bin/true"], WORLD_ENVIRONMENT)

    def run() -> None:
        finished = sandbox.run(job)
        finished.close()
        assert finished.exit_code == 0

    return run


def bubblewrap(filter_path: Path) -> Callable[[], None]:
    """The same walls: namespaces, a read-only system, a hermetic root, no capability, the same filter."""
    program = shutil.which("bwrap")
    assert program is not None
    arguments = [program, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    arguments += ["--uid", "1000", "--gid", "1000", "--hostname", "requiem", "--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            arguments += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            arguments += ["--ro-bind", f"/{name}", f"/{name}"]
    arguments += ["--dir", "/etc", "--ro-bind", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    arguments += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--dir", "/tmp/home", "--tmpfs", WORKSPACE]
    for name, value in WORLD_ENVIRONMENT.items():
        arguments += ["--setenv", name, value]
    arguments += ["--remount-ro", "/", "--chdir", WORKSPACE, "--seccomp", "9", "/bin/true"]

    def run() -> None:
        rules = os.open(filter_path, os.O_RDONLY)
        actions = [(os.POSIX_SPAWN_DUP2, rules, 9)]
        pid = os.posix_spawn(program, arguments, {}, file_actions=actions)
        os.close(rules)
        assert os.waitpid(pid, 0)[1] == 0

    return run


def alternately(ways: Sequence[Callable[[], None]], times: int) -> list[float]:
    """Milliseconds of each way, once and again in turn; the order turns round."""
    taken = [0.0] * len(ways)
    for number in range(times):
        order = range(len(ways)) if number % 2 else reversed(range(len(ways)))
        for index in order:
            begun = time.perf_counter()
            ways[index]()
            taken[index] += (time.perf_counter() - begun) * 1000 / times
    return taken


def at_once(ways: Sequence[Callable[[], None]], each: int) -> float:
    """Milliseconds a step, when as many threads as there are ways run theirs at the same time."""

    def body(way: Callable[[], None]) -> None:
        for _ in range(each):
            way()

    threads = [threading.Thread(target=body, args=(way,)) for way in ways]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - begun) * 1000 / (each * len(ways))


# Inputs


class Inputs:
    """A store, an executor on it, and requests with many small inputs."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "store")
        self.blobs = Blobs(self.store.objects)
        self._serial = 0
        self.executor = LocalExecutor(
            self.blobs,
            lambda _: StrictSandbox(store=str(self.store.root)),
            workspace=str(folder),
        )

    def request(self, count: int) -> Request:
        """Its inputs were never seen before."""
        self._serial += 1
        inputs: dict[str, dict[str, object]] = {}
        for number in range(count):
            content = b"/* %d of %d */\n" % (number, self._serial) * 40
            self.blobs.put(content)
            inputs[f"src/{number % 50}/{number}.h"] = {"digest": object_digest(content), "executable": False}
        return Request(
            command=("/bin/true",),
            env=WORLD_ENVIRONMENT,
            inputs=inputs,
            outputs=(),
            roots={"/usr": Digest("0" * 64)},
            policy=Policy(),
            platform={"os": "linux", "arch": os.uname().machine},
        )

    def run(self, request: Request) -> None:
        ran = self.executor.execute(request, {}, Limits())
        assert not ran.failure, ran.failure


def measure_inputs(inputs: Inputs, count: int, *, again: int = 5) -> tuple[float, float, float]:
    """Milliseconds of the first step with these inputs, of one of the following, and of a plain spawn."""
    request = inputs.request(count)
    first = alternately([lambda: inputs.run(request)], 1)[0]
    following, spawn = alternately([lambda: inputs.run(request), plain], again)
    return first, following, spawn


# What it says


def rows(found: dict[str, list[tuple[float, ...]]]) -> Iterator[Row]:
    for name, what in (("warm", "a step in a warm worker"), ("fresh", "a step with a view of its own")):
        if name in found:
            pairs = [Pair(ours, theirs) for ours, theirs, _ in found[name]]
            yield _row(what, pairs, "`posix_spawn`", *(("at most 2x", 2.0) if name == "warm" else ("", None)))
            pairs = [Pair(ours, theirs) for ours, _, theirs in found[name] if theirs]
            if pairs:
                yield _row(what, pairs, "`bwrap`", "", None)
    if "throughput" in found:
        for index, (name, target) in enumerate((("warm", "at least 4x as many"), ("fresh", "")), start=1):
            pairs = [Pair(taken[index], taken[0]) for taken in found["throughput"]]
            what = f"{WORKERS} workers, {name}, a step"
            yield _row(what, pairs, f"{WORKERS} at once of `bwrap`", target, 0.25 if target else None)
    for count in COUNTS:
        key = f"inputs {count}"
        if key in found:
            for index, kind in enumerate(("new", "same")):
                times = sorted(taken[index] for taken in found[key])
                spawn = statistics.median(taken[2] for taken in found[key])
                middle = statistics.median(times)
                target = "at most 30 ms" if count == 1000 else ""
                yield Row(
                    f"{count:,} {kind} inputs, a step",
                    f"{shown(middle)} ({shown(times[0])} to {shown(times[-1])})",
                    f"`posix_spawn`: {shown(spawn)}",
                    target,
                    middle <= 30 if target else None,
                )


def _row(what: str, pairs: Sequence[Pair], against: str, target: str, most: float | None) -> Row:
    ratios = sorted(pair.ratio for pair in pairs)
    ours, theirs = (statistics.median(side) for side in zip(*((p.ours_ms, p.theirs_ms) for p in pairs), strict=True))
    return Row(
        f"{what}: {median_ratio(pairs):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        shown(ours),
        f"{against}: {shown(theirs)}",
        target,
        None if most is None else median_ratio(pairs) <= most,
    )


def table(found: dict[str, list[tuple[float, ...]]]) -> Iterator[str]:
    yield "| | Requiem | held against | target | met |"
    yield "|---|---|---|---|---|"
    for row in rows(found):
        met = "" if row.met is None else "yes" if row.met else "**no**"
        yield f"| {row.what} | {row.ours} | {row.theirs} | {row.target} | {met} |"


def page(found: dict[str, list[tuple[float, ...]]], rounds: int) -> str:
    return f"""## The sandbox

    python benchmarks/sandbox.py -n {rounds} --write

What one strict step of `/bin/true` costs, all walls up, next to `posix_spawn` of the same and to bubblewrap with the
same profile and the same seccomp filter. Inputs are files of about 800 bytes in 50 directories, declared one by one,
from a request to its stored result; `new` ones this store has never shown to a step, `same` ones the step before
had too, the median of five. The plain spawn beside each time says how busy the machine was.

Measured {time.strftime("%Y-%m-%d", time.gmtime())}, {rounds} rounds, on {machine()}:

{chr(10).join(table(found))}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PARTS)}; all without one")
    parser.add_argument("-n", "--rounds", type=int, default=7)
    parser.add_argument("--dir", type=Path, help="where the stores are; a new temporary directory, kept, without it")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(REPOSITORY)}")
    chosen = parser.parse_args()
    wanted = chosen.names or list(PARTS)
    for name in wanted:
        if name not in PARTS:
            parser.error(f"no benchmark {name!r}; there are {', '.join(PARTS)}")
    folder = Path(tempfile.mkdtemp(prefix="requiem-sandbox-", dir=chosen.dir))
    print(f"in {folder} (kept)", file=sys.stderr)
    found: dict[str, list[tuple[float, ...]]] = {}
    for number in range(chosen.rounds):
        for name, taken in measure(wanted, folder / str(number)):
            found.setdefault(name, []).append(taken)
        print(f"round {number + 1} of {chosen.rounds}", file=sys.stderr)
    print("\n".join(table(found)))
    if chosen.write:
        write_section("sandbox", page(found, chosen.rounds))
        print(f"wrote {PAGE}", file=sys.stderr)
    return 0


def measure(wanted: Sequence[str], folder: Path) -> Iterator[tuple[str, tuple[float, ...]]]:
    folder.mkdir()
    rules = folder / "filter"
    rules.write_bytes(make_filter(os.uname().machine) or b"")
    wrapped = [bubblewrap(rules)] if shutil.which("bwrap") else []
    for name in ("warm", "fresh"):
        if name in wanted:
            with StrictSandbox(reuse=name == "warm") as sandbox:
                ways = [strict(sandbox), plain, *wrapped]
                alternately(ways, 3)
                yield name, (*alternately(ways, SPAWNS), 0.0)[:3]
    if "throughput" in wanted and wrapped:
        with contextlib.ExitStack() as open_:
            boxes = {
                reuse: [open_.enter_context(StrictSandbox(reuse=reuse)) for _ in range(WORKERS)]
                for reuse in (True, False)
            }
            yield (
                "throughput",
                (
                    at_once(wrapped * WORKERS, SPAWNS),
                    *(at_once([strict(box) for box in boxes[reuse]], SPAWNS * 2) for reuse in (True, False)),
                ),
            )
    if "inputs" in wanted:
        inputs = Inputs(folder)
        try:
            for few in (1, 64):  # Each kind of worker is there.
                inputs.run(inputs.request(few))
            for count in COUNTS:
                yield f"inputs {count}", measure_inputs(inputs, count)
        finally:
            inputs.executor.close()


if __name__ == "__main__":
    sys.exit(main())
