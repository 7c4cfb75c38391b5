"""What does one strict step cost over a plain posix_spawn? A script for people, not a test: `python cost_probe.py [N]`.

Both are run in turn, so that whatever else the machine does hits both alike; the ratio is taken pair by pair.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from requiem_build.core.policy import WORLD_ENVIRONMENT, Limits
from requiem_build.sandbox.base import Job, Staged
from requiem_build.sandbox.linux import StrictSandbox


def plain() -> None:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], WORLD_ENVIRONMENT, setsid=True), 0)


def timed_ms(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1000


def main(rounds: int) -> None:
    begun = time.perf_counter()
    with StrictSandbox() as sandbox:
        print(f"boot                    {(time.perf_counter() - begun) * 1000:8.1f} ms")

        def strict(job: Job) -> Callable[[], None]:
            return lambda: sandbox.run(job).close()

        inputs = tuple(Staged(f"src/{number}.c", data=b"x" * 2000) for number in range(10))
        kinds = {
            "posix_spawn": plain,
            "strict": strict(Job(["true"], WORLD_ENVIRONMENT)),
            "strict, 10 inputs": strict(Job(["true"], WORLD_ENVIRONMENT, staged=inputs)),
            "strict, a limit (fork)": strict(Job(["true"], WORLD_ENVIRONMENT, limits=Limits(open_files=256))),
        }
        for work in kinds.values():
            work()
        taken = [{name: timed_ms(work) for name, work in kinds.items()} for _ in range(rounds)]
    for name in kinds:
        times = sorted(row[name] for row in taken)
        ratio = statistics.median(row[name] / row["posix_spawn"] for row in taken)
        print(f"{name:22} min {times[0]:6.2f}  median {statistics.median(times):6.2f} ms  paired {ratio:5.2f}x")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
