"""A build of N trivial steps, written for Requiem and for Ninja. The same N gives the same graph, always."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

READS_MAX = 64
PER_FILE = 20_000
"""Steps of one manifest file; more are divided over files that the first includes."""
READS = 3
"""How many outputs of the layer before each step reads."""


@dataclass(frozen=True)
class Step:
    inputs: tuple[str, ...]
    output: str

    @property
    def command(self) -> str:
        """A command line has its limits: of very many inputs it reads the first."""
        return f"cksum {' '.join(self.inputs[:READS_MAX])} > {self.output}"


def layered(count: int) -> list[Step]:
    """Layers of about sqrt(N) steps; the first reads a source each, every other one three outputs of the layer before.

    `cksum` keeps outputs small and lets every change ripple on.
    """
    chance = random.Random(count)
    width = max(READS, math.isqrt(count))
    steps: list[Step] = []
    for number in range(count):
        begin = number // width * width
        before = steps[begin - width : begin] if begin else []
        inputs = sorted(step.output for step in chance.sample(before, READS)) if before else [f"src/{number}.txt"]
        steps.append(Step(tuple(inputs), f"out/{number}.txt"))
    return steps


def independent(count: int) -> list[Step]:
    """Each step reads a source of its own: the shape in which one edit runs one step."""
    return [Step((f"src/{number}.txt",), f"out/{number}.txt") for number in range(count)]


def wide(count: int) -> list[Step]:
    """The same, and a last step that reads all that the others made."""
    steps = independent(count - 1)
    return [*steps, Step(tuple(step.output for step in steps), f"out/{count - 1}.txt")]


def chain(count: int) -> list[Step]:
    """Each step reads what the one before it made."""
    return [Step((f"out/{n - 1}.txt" if n else "src/0.txt",), f"out/{n}.txt") for n in range(count)]


SHAPES = {"dag": layered, "indep": independent, "wide": wide, "chain": chain}


def write_requiem(folder: Path, steps: Sequence[Step], *, foreach: bool = False) -> None:
    """One table a step; or with `foreach`, for the shape `indep`, one for all."""
    if foreach:
        text = (
            '[steps.sum]\nforeach.src = "src/*.txt"\n'
            'command = ["/bin/sh", "-c", "cksum {{ src }} > {{ output }}"]\n'
            'inputs = ["{{ src }}"]\noutputs = ["out/{{ src.name }}"]\n'
        )
        _write(folder, "requiem.toml", '[project]\nname = "benchmark"\n' + text, steps)
        return
    tables = [
        f"[steps.s{number}]\n"
        f'command = ["/bin/sh", "-c", {json.dumps(step.command)}]\n'
        f"inputs = {json.dumps(step.inputs)}\n"
        f"outputs = [{json.dumps(step.output)}]\n"
        for number, step in enumerate(steps)
    ]
    files = [tables[first : first + PER_FILE] for first in range(0, len(tables), PER_FILE)]
    names = [f"part{number}.toml" for number in range(1, len(files))]
    head = f'[project]\nname = "benchmark"\ninclude = {json.dumps(names)}\n'
    _write(folder, "requiem.toml", "\n".join([head, *files[0]]), steps)
    for name, part in zip(names, files[1:], strict=True):
        (folder / name).write_text("\n".join(['[project]\nname = "benchmark"\n', *part]))


def write_ninja(folder: Path, steps: Sequence[Step], *, logged: bool = True) -> None:
    """Without `logged`, outputs that are newer than their inputs are right though Ninja did not make them."""
    edges = [f"build {step.output}: sh {' '.join(step.inputs)}\n  command = {step.command}" for step in steps]
    rule = "rule sh\n  command = $command" + ("" if logged else "\n  generator = 1")
    _write(folder, "build.ninja", "\n".join([rule, *edges, ""]), steps)


def _write(folder: Path, name: str, text: str, steps: Sequence[Step]) -> None:
    write_sources(folder, steps)
    (folder / name).write_text(text)


def write_sources(folder: Path, steps: Sequence[Step]) -> None:
    """What the steps read and none makes, in a new folder."""
    (folder / "src").mkdir(parents=True)
    for step in steps:
        for path in step.inputs:
            if path.startswith("src/"):
                (folder / path).write_text(f"source {path}\n")
