"""What patterns mean, held against other implementations on real trees."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest.fakes import FakeListing
from wcmatch import glob as wcglob

from requiem_build.core.patterns import (
    BadPattern,
    compile_pattern,
    escape,
    is_pattern,
    match_sources,
    matches_any,
    select,
    unescape,
)
from requiem_build.core.sources import Outputs, View


def walk(pattern: str, *paths: str) -> list[str]:
    return select([pattern], View(FakeListing(paths), Outputs()))


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("src/*.c", "src/a.c", True),
        ("src/*.c", "src/d/a.c", False),
        ("src/*.c", "src/.a.c", False),
        ("src/.*.c", "src/.a.c", True),
        ("src/?.c", "src/ab.c", False),
        ("src/[ab].c", "src/b.c", True),
        ("src/[!ab].c", "src/b.c", False),
        ("src/[!ab].c", "src/c.c", True),
        ("src/[a-c].c", "src/b.c", True),
        ("[.]a", ".a", False),
        ("[!x]a", ".a", False),
        ("**/*.c", "a.c", True),
        ("**/*.c", "x/y/a.c", True),
        ("**/*.c", "x/.y/a.c", False),
        ("**/.y/*.c", "x/.y/a.c", True),
        ("src/**", "src/a/b", True),
        ("src/**", "src", False),
        ("src/**/a", "src/a", True),
        ("src/**/b/**/a", "src/x/b/y/a", True),
        ("*", "node_modules", False),
        ("**", "x/node_modules/y", False),
        ("node_modules/*", "node_modules/y", True),
        ("**/__pycache__/*", "a/__pycache__/x", True),
        (".*_cache/x", ".mypy_cache/x", False),
        (".mypy_cache/x", ".mypy_cache/x", True),
        ("*.C", "a.c", False),
        ("a{b,c}", "ab", False),
        ("libs/*/", "libs/a/", True),
        ("libs/*/", "libs/a", False),
        ("a[*]", "a*", True),
        ("a[*]?", "a*b", True),
        ("a[*]?", "axb", False),
        ("*\n*", "a\nb", True),
    ],
)
def test_a_pattern_means_what_the_reference_says(pattern: str, path: str, matches: bool) -> None:
    assert compile_pattern(pattern)(path) is matches


@pytest.mark.parametrize("pattern", ["a**", "**b/x", "a/b**c", "a[b", "[z-a]", "[", "[!"])
def test_a_pattern_that_cannot_be_meant_is_refused(pattern: str) -> None:
    with pytest.raises(BadPattern):
        compile_pattern(pattern)


@given(st.text("ab*?[]!/.", min_size=1, max_size=8).filter(lambda text: "//" not in text and not text.endswith("/")))
def test_an_escaped_path_means_itself_only(path: str) -> None:
    assert not is_pattern(escape(path))
    assert unescape(escape(path)) == path
    assert compile_pattern(escape(path))(path)


@pytest.mark.parametrize("text", ["src/*.c", "a?", "[ab]", "a[*]*"])
def test_wildcards_make_a_pattern(text: str) -> None:
    assert is_pattern(text)


@pytest.mark.parametrize("text", ["src/a.c", "a]b", "a[*]", "[?][[]", "!a"])
def test_without_wildcards_it_is_a_path(text: str) -> None:
    assert not is_pattern(text)


def test_only_directories_that_can_lead_to_a_match_are_listed() -> None:
    listing = FakeListing(["src/a.c", "src/deep/b.c", "other/x.c", "third/y.c"])
    assert select(["src/*.c"], View(listing, Outputs())) == ["src/a.c"]
    assert set(listing.listed) == {".", "src"}


def test_symlinked_directories_are_matches_and_are_not_entered() -> None:
    assert walk("**/*", "a/x", "a/link@") == ["a/link", "a/x"]
    assert walk("a/link/*", "a/link@", "a/link/x") == []


def test_pipes_and_sockets_never_match() -> None:
    assert walk("*", "a", "pipe|") == ["a"]


def test_directories_match_where_a_source_stands_in_them() -> None:
    outputs = Outputs()
    outputs.add("libs/built/x.o", "s")
    outputs.add("libs/whole/", "s")
    view = View(FakeListing(["libs/a/x.c", "libs/b/deep/y.c", "libs/empty/", "libs/built/x.o"]), outputs)
    assert select(["libs/*/"], view) == ["libs/a/", "libs/b/", "libs/whole/"]


def test_what_steps_make_is_there_before_it_is_made() -> None:
    outputs = Outputs()
    for path in ("build/a.o", "dist/", "gen/*.h"):
        outputs.add(path, "s")
    used = ["src/a.c", "build/a.o", "build/stale.o", "dist/x", "gen/g.h", "gen/hand.txt"]
    clean = ["src/a.c", "build/stale.o", "gen/hand.txt"]
    for pattern in ("**/*", "build/*", "gen/*", "dist/*"):
        assert select([pattern], View(FakeListing(used), outputs)) == select(
            [pattern], View(FakeListing(clean), outputs)
        )
    assert select(["**/*"], View(FakeListing(used), outputs)) == [
        "build/a.o",
        "build/stale.o",
        "gen/hand.txt",
        "src/a.c",
    ]


def test_sources_are_what_no_step_makes() -> None:
    declared = {"build/a.h": "s", "dist/": "s", "gen/*.h": "s", "odd[*].h": "s"}
    listing = FakeListing(["src/a.h", "build/a.h", "dist/b.h", "gen/c.h", "odd*.h", ".cas/x.h", ".requiem/y.h"])
    assert match_sources(["**/*.h"], listing, declared) == ["src/a.h"]
    assert match_sources([".cas/*", ".requiem/*"], listing, declared) == []


def test_excludes_of_discover_always_win() -> None:
    listing = FakeListing(["a.h", "b.h"])
    for patterns in (["*.h", "!b.h"], ["!b.h", "*.h"]):
        assert match_sources(patterns, listing, {}) == ["a.h"]
        assert matches_any(patterns, "a.h")
        assert not matches_any(patterns, "b.h")


# Against wcmatch, on a real tree


NAMES = ["a", "b", "ab", ".a", "a.c", "c"]
TREE = st.sets(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join), min_size=1, max_size=10)
SEGMENTS = st.sampled_from(["*", "**", "a", "?", "[ab]", "[!a]", "*.c", ".*", "a*", "*b", ".a", "[a-b]*"])
PATTERN = st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join)


@settings(max_examples=150, deadline=None)
@given(TREE, PATTERN)
def test_matches_are_those_of_wcmatch_on_a_real_tree(paths: set[str], pattern: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        files = []
        for path in sorted(paths):
            full = root / path
            if any(parent.is_file() for parent in full.parents if parent != root) or full.exists():
                continue
            full.parent.mkdir(parents=True, exist_ok=True)
            full.write_text("")
            files.append(path)
        flags = wcglob.GLOBSTAR | wcglob.CASE | wcglob.FORCEUNIX
        theirs = wcglob.glob(pattern, flags=flags & ~wcglob.FORCEUNIX, root_dir=root)
        expected = sorted(path for path in set(theirs) if os.path.isfile(root / path))
        ours = select([pattern], View(FakeListing(files), Outputs()))
        assert ours == expected
        assert [path for path in sorted(files) if compile_pattern(pattern)(path)] == ours


def test_many_stars_take_no_endless_time() -> None:
    pattern = compile_pattern("*a" * 20 + "*b")
    assert not pattern("a" * 250)
    assert pattern("a" * 250 + "b")
    assert not compile_pattern("/".join(["**", "a"] * 20 + ["b"]))("/".join(["a"] * 200))
