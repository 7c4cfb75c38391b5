"""Our classes of values are the standard library's, as far as anybody can tell: it is the judge."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from typing import Any, ClassVar

import pytest

from requiem_build.core import fields as ours

OPTIONS = [
    {"frozen": True, "slots": True},
    {"frozen": True},
    {"slots": True},
    {},
    {"frozen": True, "eq": False},
    {"slots": True, "eq": False},
    {"frozen": True, "slots": True, "order": True},
]


def pair(options: dict[str, bool]) -> list[Any]:
    """The same class, made by us and by the library."""
    found = []
    for made in (ours, dataclasses):

        class Base:
            kind: ClassVar[str] = "base"

            @property
            def both(self) -> str:
                return f"{self.a} {self.b}"  # type: ignore[attr-defined]

        class Point(Base):
            a: int
            b: str = "b"
            c: list[int] = made.field(default_factory=list)  # type: ignore[attr-defined]
            d: tuple[int, ...] = ()

        found.append(made.dataclass(**options)(Point))  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_they_are_made_compared_and_shown_alike(options: dict[str, bool]) -> None:
    mine, theirs = pair(options)
    for arguments, named in (((1,), {}), ((1, "x", [2]), {}), ((), {"a": 1, "d": (3,)}), ((2,), {"c": [5]})):
        value, twin = mine(*arguments, **named), theirs(*arguments, **named)
        assert repr(value) == repr(twin) or not options.get("eq", True)
        assert value.both == twin.both and value.kind == twin.kind
        assert (value == mine(*arguments, **named)) == (twin == theirs(*arguments, **named))
        assert (value == mine(9)) == (twin == theirs(9)) and value != twin
        assert mine(1).c is not mine(1).c
    for wrong in (((), {}), ((1, 2, 3, 4, 5), {}), ((1,), {"z": 1}), ((1,), {"a": 1})):
        for kind in (mine, theirs):
            with pytest.raises(TypeError):
                kind(*wrong[0], **wrong[1])
    assert (mine.__hash__ is None) == (theirs.__hash__ is None)
    assert mine.__match_args__ == theirs.__match_args__
    assert hasattr(mine(1), "__dict__") == hasattr(theirs(1), "__dict__")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_frozen_stays(options: dict[str, bool]) -> None:
    for kind in pair(options):
        value = kind(1)
        if not options.get("frozen"):
            value.a = 2
            assert value.a == 2
            continue
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.a = 2
        with pytest.raises(dataclasses.FrozenInstanceError):
            del value.a


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_library_takes_them_for_its_own(options: dict[str, bool]) -> None:
    mine, theirs = pair(options)
    assert [field.name for field in dataclasses.fields(mine)] == [field.name for field in dataclasses.fields(theirs)]
    value = mine(1, "x")
    assert dataclasses.asdict(value) == dataclasses.asdict(theirs(1, "x"))
    assert dataclasses.replace(value, a=3).a == ours.replace(value, a=3).a == 3
    assert ours.replace(value, a=3).b == "x"
    assert copy.copy(value).b == "x" and copy.deepcopy(value).c == []


@ours.dataclass(frozen=True, slots=True)
class Kept:
    a: int
    b: tuple[str, ...] = ("x",)


@ours.dataclass(frozen=True, slots=True)
class More(Kept):
    c: str = "c"

    def __post_init__(self) -> None:
        if self.c == "bad":
            raise ValueError(self.c)


@ours.dataclass(slots=True)
class Counted:
    name: str
    count: int = ours.field(default=0, init=False)
    seen: set[str] = ours.field(default_factory=set, init=False)


def test_they_are_inherited_matched_hashed_and_pickled() -> None:
    assert More(1) == More(1, ("x",), "c") != Kept(1)
    assert {More(1): 1}[More(1)] == 1 and hash(Kept(1)) == hash(Kept(1))
    assert pickle.loads(pickle.dumps(More(2, c="d"))) == More(2, c="d")
    with pytest.raises(ValueError, match="bad"):
        More(1, c="bad")
    match More(4):
        case Kept(a, b):
            assert (a, b) == (4, ("x",))


def test_a_field_without_init_is_no_parameter() -> None:
    counted = Counted("n")
    counted.seen.add("x")
    assert (counted.count, Counted("m").seen) == (0, set())
    with pytest.raises(TypeError):
        Counted("n", 1)  # type: ignore[call-arg]
    assert Counted.__match_args__ == ("name",)


def test_a_build_imports_no_dataclasses_of_the_library() -> None:
    code = (
        "import sys, requiem_build.cli.app, requiem_build.cli.running, requiem_build.core.plan\n"
        "print(sorted({'dataclasses', 'inspect', 'click', 'networkx', 'jinja2'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"
