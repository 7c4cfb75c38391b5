"""A build of N trivial steps, written for Requiem and for Ninja. The same N gives the same graph, always."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

READS = 3
"""How many outputs of the layer before each step reads."""


@dataclass(frozen=True)
class Step:
    inputs: tuple[str, ...]
    output: str

    @property
    def command(self) -> str:
        return f"cksum {' '.join(self.inputs)} > {self.output}"


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


def write_requiem(folder: Path, steps: Sequence[Step]) -> None:
    tables = [
        f"[steps.s{number}]\n"
        f'command = ["/bin/sh", "-c", {json.dumps(step.command)}]\n'
        f"inputs = {json.dumps(step.inputs)}\n"
        f"outputs = [{json.dumps(step.output)}]\n"
        for number, step in enumerate(steps)
    ]
    _write(folder, "requiem.toml", "\n".join(['[project]\nname = "benchmark"\n', *tables]), steps)


def write_ninja(folder: Path, steps: Sequence[Step]) -> None:
    edges = [f"build {step.output}: sh {' '.join(step.inputs)}\n  command = {step.command}" for step in steps]
    _write(folder, "build.ninja", "\n".join(["rule sh\n  command = $command", *edges, ""]), steps)


def _write(folder: Path, name: str, text: str, steps: Sequence[Step]) -> None:
    (folder / "src").mkdir(parents=True)
    (folder / name).write_text(text)
    for step in steps:
        for path in step.inputs:
            if path.startswith("src/"):
                (folder / path).write_text(f"source {path}\n")
