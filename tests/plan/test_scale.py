"""The work for a plan grows as the plan does, and no depth of it needs recursion."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable

import pytest

from requiem_build.core.frontier import Frontier, critical_path_first
from requiem_build.core.instance import Plan
from requiem_build.core.manifest import load_manifest
from requiem_build.core.plan import make_plan
from requiem_build.engine.journal import places_of

SMALL, LARGE = 400, 1600


class Sources:
    def __init__(self, count: int) -> None:
        self._names = {f"{number}.txt": "file" for number in range(count)}

    def children(self, directory: str) -> dict[str, str]:
        return {".": {"src": "dir"}, "src": self._names}.get(directory, {})

    def kind(self, path: str) -> str | None:
        return "file" if path.removeprefix("src/") in self._names else None

    def is_program(self, path: str) -> bool:
        return False


def chain(count: int) -> str:
    return "".join(
        f'[steps.s{n}]\ncommand = ["c"]\ninputs = ["{f"out/{n - 1}" if n else "src/0.txt"}"]\noutputs = ["out/{n}"]\n'
        for n in range(count)
    )


def layered(count: int) -> str:
    chance = random.Random(count)
    lines = []
    for n in range(count):
        pool = [f"out/{before}" for before in range(max(0, n - 40), n)]
        inputs = chance.sample(pool, 3) if len(pool) > 3 else [f"src/{n}.txt"]
        lines.append(f'[steps.s{n}]\ncommand = ["c"]\ninputs = {json.dumps(inputs)}\noutputs = ["out/{n}"]\n')
    return "".join(lines)


def wide(count: int) -> str:
    return (
        '[steps.s]\nforeach.src = "src/*.txt"\ncommand = ["c"]\ninputs = ["{{ src }}"]\n'
        'outputs = ["out/{{ src.stem }}"]\n[steps.all]\ncommand = ["c"]\ninputs = ["@s"]\noutputs = ["all"]\n'
    )


def plan(text: str, count: int) -> Plan:
    content = ('[project]\nname = "p"\n' + text).encode()
    manifest = load_manifest({"requiem.toml": content}.get)
    return make_plan(manifest, (), Sources(count), platform={"os": "linux", "arch": "x"})  # type: ignore[arg-type]


def run(made: Plan) -> int:
    """All that a build does with a plan besides its steps."""
    frontier = Frontier(made, critical_path_first(made, {}))
    places_of(made)
    taken = 0
    while (name := frontier.take()) is not None:
        frontier.finish(name, ok=True)
        taken += 1
    return taken


def calls_of(work: Callable[[], object]) -> int:
    """How many functions it calls: what time grows with, and the same on every machine."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("shape", [chain, layered, wide], ids=lambda shape: shape.__name__)
def test_the_work_grows_no_faster_than_the_plan(shape: Callable[[int], str]) -> None:
    few, many = (calls_of(lambda size=size: run(plan(shape(size), size))) for size in (SMALL, LARGE))  # type: ignore[misc]
    assert many < 1.25 * few * LARGE / SMALL


def test_a_chain_of_20000_steps_is_planned_and_walked() -> None:
    made = plan(chain(20_000), 1)
    assert run(made) == 20_000
    assert places_of(made)["s19999"] == (19_999, (19_998,))
