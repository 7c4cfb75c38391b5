"""The engine against a naive twin: for any graph, mode, order and history the answers are the same."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from project import Project

pytestmark = pytest.mark.userns

SEED = int(os.environ.get("REQUIEM_SEED", "20261123"))
GRAPHS = 3


def random_graph(seed: int) -> tuple[str, dict[str, str]]:
    """A manifest of 5 to 12 steps, each reading sources and outputs of earlier ones, and the sources."""
    chance = random.Random(seed)
    sources = {f"src/{i}.txt": f"source {i} of {seed}\n" for i in range(chance.randint(2, 5))}
    lines = []
    made: list[str] = []
    for i in range(chance.randint(5, 12)):
        pool = [*sources, *made]
        inputs = chance.sample(pool, min(len(pool), chance.randint(1, 3)))
        kind = chance.choice(["cat", "count", "dir"])
        output = f"out/d{i}/" if kind == "dir" else f"out/s{i}.txt"
        command = {
            "cat": "cat {{ inputs }} > {{ output }}; echo said >&2",
            "count": "cat {{ inputs }} | wc -c > {{ output }}",  # Early cutoff: edits of one size do not matter.
            "dir": "mkdir {{ output }}; cp {{ inputs }} {{ output }}",
        }[kind]
        listed = ", ".join(f'"{path}"' for path in inputs)
        lines.append(f"[steps.s{i}]\ncommand = '''{command}'''\ninputs = [{listed}]\noutputs = [\"{output}\"]\n")
        if kind != "dir":
            made.append(output)
    return "\n".join(lines), sources


def answers(ran: object) -> dict[str, tuple[str, str]]:
    return {s["name"]: (s["request_digest"], s["result_digest"]) for s in ran.report["steps"]}  # type: ignore[attr-defined]


def tree_of(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text() for path in sorted((root / "out").rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize("number", range(GRAPHS))
def test_every_mode_and_order_gives_the_same_digests(tmp_path: Path, number: int) -> None:
    manifest, sources = random_graph(SEED + number)
    found = []
    ways = (["--mode", "repro"], ["-j", "1"], ["-j", "4"], ["--shuffle", "a"], ["--shuffle", "b", "-j", "3"])
    for place, way in enumerate(ways):
        project = Project(tmp_path / str(place))
        project.manifest(manifest)
        for path, content in sources.items():
            project.write(path, content)
        found.append((answers(project.build(*way)), tree_of(project.root)))
    assert all(each == found[0] for each in found[1:])


@pytest.mark.parametrize("number", range(GRAPHS))
def test_always_gives_what_cached_gave_through_a_history_of_edits(tmp_path: Path, number: int) -> None:
    manifest, sources = random_graph(SEED + 100 + number)
    chance = random.Random(SEED + number)
    cached = Project(tmp_path / "cached")
    cached.manifest(manifest)
    for path, content in sources.items():
        cached.write(path, content)
    cached.build()
    for round_number in range(4):
        event = chance.choice(["edit", "same-size", "revert", "delete-outputs", "forget"])
        path = chance.choice(sorted(sources))
        if event == "edit":
            cached.write(path, f"edited in round {round_number}\n")
        elif event == "same-size":
            cached.write(path, sources[path].upper())
        elif event == "revert":
            cached.write(path, sources[path])
        elif event == "delete-outputs":
            shutil.rmtree(cached.root / "out")
        else:
            shutil.rmtree(cached.root / ".requiem")
        quick = cached.build()
        naive = Project(tmp_path / f"naive-{round_number}")
        subprocess.run(["cp", "-a", *(cached.root / n for n in ("requiem.toml", "src")), naive.root], check=True)
        slow = naive.build("--cache", "off", "--mode", "repro")
        assert answers(quick) == answers(slow), event
        assert tree_of(cached.root) == tree_of(naive.root), event


def test_a_second_checkout_with_the_same_store_runs_nothing(tmp_path: Path) -> None:
    manifest, sources = random_graph(SEED + 200)
    store = {"REQUIEM_CAS_DIR": str(tmp_path / "store")}
    trees = []
    for name in ("one", "two/deeper"):
        project = Project(tmp_path / name)
        project.manifest(manifest)
        for path, content in sources.items():
            project.write(path, content)
        ran = project.build(env=store)
        assert ("ran" in ran.counts) == (name == "one")
        trees.append(tree_of(project.root))
    assert trees[0] == trees[1]
