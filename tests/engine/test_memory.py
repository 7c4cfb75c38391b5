"""What a workspace remembers, written down whole or as what has changed since."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from requiem_build.engine import memory as memories
from requiem_build.engine.memory import Memory, Remembered

KEY = bytes(32)


def remembered(number: int) -> Remembered:
    return Remembered(f"{number:064x}", "b" * 64, {}, number, None, "")


def known(number: int):
    return ((number, 2, 3, 4, 5), False, ("d" * 64, number, False))


def as_told(memory: Memory) -> tuple:
    return (dict(memory.known), dict(memory.steps), memory.failed, memory.last_run)


@pytest.fixture
def dot(tmp_path: Path) -> str:
    """Remembers 1,000 steps."""
    memory = Memory()
    for number in range(1000):
        memory.steps[f"s{number}"] = remembered(number)
        memory.known[f"/p/{number}"] = known(number)
    memory.last_run = "first"
    memories.save(str(tmp_path), KEY, memory)
    return str(tmp_path)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_it_comes_back_as_it_was(dot: str, seed: int) -> None:
    chance = random.Random(seed)
    for run in range(12):
        memory = memories.load(dot, KEY)
        for _ in range(chance.choice((0, 1, 3, 40, 300))):
            where = chance.choice((memory.steps, memory.known))
            name = chance.choice(["new", *where]) if where else "new"
            if chance.random() < 0.4 and name in where:
                del where[name]
            else:
                where[name] = known(run) if where is memory.known else remembered(run)
        if chance.random() < 0.1:
            memory.known = dict(list(memory.known.items())[:5])
        memory.failed, memory.last_run = {"f": str(run)}, f"run {run}"
        expected = as_told(memory)
        for _ in range(chance.choice((1, 1, 2))):
            memories.save(dot, KEY, memory)
        assert as_told(memories.load(dot, KEY)) == expected


def test_little_is_written_where_little_changed(dot: str) -> None:
    whole = Path(dot, "memory").read_bytes()
    for number in range(3):
        memory = memories.load(dot, KEY)
        memory.steps[f"s{number}"] = remembered(7)
        memories.save(dot, KEY, memory)
    assert Path(dot, "memory").read_bytes() == whole
    assert Path(dot, "memory.later").stat().st_size < 1000 < len(whole)
    assert [memories.load(dot, KEY).steps[f"s{n}"].duration_ms for n in range(4)] == [7, 7, 7, 3]


def test_what_changed_belongs_to_one_memory_only(dot: str) -> None:
    """Someone restored the one and not the other, or the power failed between the two."""
    memory = memories.load(dot, KEY)
    memory.steps["s1"] = remembered(7)
    memories.save(dot, KEY, memory)
    shutil.copy(f"{dot}/memory.later", f"{dot}/kept")
    for number in range(500):
        memory.steps[f"s{number}"] = remembered(8)
    memories.save(dot, KEY, memory)
    assert not Path(dot, "memory.later").exists()
    shutil.copy(f"{dot}/kept", f"{dot}/memory.later")
    assert memories.load(dot, KEY).steps["s1"].duration_ms == 8
    Path(dot, "memory").unlink()
    assert dict(memories.load(dot, KEY).steps) == {}


@pytest.mark.parametrize("name", ["memory", "memory.later"])
def test_what_is_damaged_is_as_if_it_were_not_there(dot: str, name: str) -> None:
    memory = memories.load(dot, KEY)
    memory.steps["s1"] = remembered(7)
    memories.save(dot, KEY, memory)
    whole = Path(dot, name).read_bytes()
    for damaged in (b"", b"garbage", whole[:-1], whole[: len(whole) // 2], whole[:-9] + b"x" + whole[-8:]):
        Path(dot, name).write_bytes(damaged)
        steps = memories.load(dot, KEY).steps
        assert "s1" not in steps if name == "memory" else steps["s1"] == remembered(1)
