"""What a compile's answer rests on, judged by gcc itself: whenever preprocessing gives something else, the key is another."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from requiem_build.core.digest import Digest, object_digest
from requiem_build.core.entries import Entry, File, Link
from requiem_build.core.patterns import matches_any
from requiem_build.core.policy import WORLD_ENVIRONMENT, Policy
from requiem_build.core.request import LISTING, SHADOWS, Request
from requiem_build.executors.depfile import parse_depfile
from requiem_build.executors.discovery import discovered_now, path_set

pytestmark = pytest.mark.gcc

Files = Mapping[str, str]
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]


@pytest.fixture(params=["gcc", "clang"])
def compiler(request: pytest.FixtureRequest) -> str:
    """Each compiler as the judge. Without clang that is told, and fails in CI."""
    if request.param not in COMPILERS:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"NOT TESTED: {request.param} is not installed")
    return str(request.param)


@dataclass(frozen=True)
class Compile:
    """One preprocessing of `src/main.c` in a tree of headers, all of which `discover` matches."""

    flags: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    compiler: str = "gcc"
    discover: tuple[str, ...] = ("**/*.h", "**/*.gch")
    depfile: str = "-MMD"

    @property
    def command(self) -> tuple[str, ...]:
        return (self.compiler, *self.flags, self.depfile, "-MF", "out.d", "-E", "src/main.c", "-o", "out.i")

    def run(self, files: Files) -> tuple[int, bytes, bytes]:
        """Exit code, output and depfile, from a directory that holds exactly these files."""
        with tempfile.TemporaryDirectory() as top:
            root = Path(top)
            for path, content in files.items():
                full = root / path
                full.parent.mkdir(parents=True, exist_ok=True)
                if content.startswith("-> "):
                    full.symlink_to(content[3:])
                else:
                    full.write_text(content)
                    os.utime(full, (315619200, 315619200))
            env = {**WORLD_ENVIRONMENT, **self.env}
            done = subprocess.run(self.command, cwd=root, env=env, capture_output=True)
            out, dep = root / "out.i", root / "out.d"
            code = out.read_bytes() if out.exists() else b""
            return done.returncode, code + done.stderr, dep.read_bytes() if dep.exists() else b""

    def paths(self, files: Files, depfile: bytes) -> tuple[str, ...]:
        contents = {object_digest(text.encode()): text.encode() for text in files.values()}
        entries = {path: entry(text) for path, text in files.items()}
        request = Request(
            command=self.command,
            env={**WORLD_ENVIRONMENT, **self.env},
            inputs={path: e.as_input() for path, e in entries.items() if not matches_any(self.discover, path)},
            outputs=("out.i",),
            policy=Policy(),
            platform={},
            discover=self.discover,
            depfile="out.d",
        )
        return path_set(request, parse_depfile(depfile), self.offered(files), contents.__getitem__, "/workspace")

    def offered(self, files: Files) -> dict[str, Entry]:
        return {path: entry(text) for path, text in files.items() if matches_any(self.discover, path)}


def entry(text: str) -> Entry:
    return Link(text[3:]) if text.startswith("-> ") else File(Digest(object_digest(text.encode())), len(text))


@dataclass
class Judged:
    """The same compile before and after an edit: whether gcc gives something else, and whether the key is another."""

    other_output: bool
    other_key: bool
    derived: bool


def judge(compile_: Compile, before: Files, after: Files) -> Judged:
    code, output, depfile = compile_.run(before)
    assert code == 0, output.decode()
    paths = compile_.paths(before, depfile)
    keys = [discovered_now(paths, compile_.offered(files)) for files in (before, after)]
    again = compile_.run(after)
    return Judged(again[:2] != (code, output), keys[0] != keys[1], LISTING not in paths)


MAIN = '#include "x.h"\nint main(void) { return X; }\n'
X = "#define X 1\n"


def added(
    path: str, text: str = "#define X 2\n", *, flags: Sequence[str] = (), main: str = MAIN, **kwargs: object
) -> Judged:
    files = {"src/main.c": main, "inc/x.h": X, "inc/deep/y.h": "int y;\n"}
    env = kwargs.pop("env", {})
    assert isinstance(env, dict)
    files |= kwargs.pop("files", {})  # type: ignore[arg-type]
    compile_ = Compile(tuple(flags) or ("-Ifirst", "-Iinc", "-Ilast"), env, **kwargs)  # type: ignore[arg-type]
    return judge(compile_, files, {**files, path: text})


@pytest.mark.parametrize(
    ("path", "flags"),
    [
        ("src/x.h", []),
        ("first/x.h", []),
        ("first/x.h", ["-iquote", "first", "-Iinc"]),
        ("first/x.h", ["-iquotefirst", "-I", "inc"]),
        ("first/x.h", ["-Ifirst/", "-I./inc"]),
        ("first/x.h", ["-Isrc/../first", "-Iinc"]),
        ("first/x.h", ["-Wp,-iquote,first", "-Iinc"]),
        ("first/x.h", ["-Xpreprocessor", "-Ifirst", "-Xpreprocessor", "-Iinc"]),
    ],
)
def test_a_new_header_that_shadows_another_is_seen(path: str, flags: list[str], compiler: str) -> None:
    judged = added(path, flags=flags, compiler=compiler)
    assert judged.other_output and judged.other_key and judged.derived


def test_an_unrelated_new_header_is_not_seen(compiler: str) -> None:
    for path in ("inc/new.h", "first/new.h", "src/deep/x.h", "elsewhere/x.h", "inc/deep/x.h", "x.h"):
        judged = added(path, compiler=compiler)
        assert not judged.other_output and not judged.other_key and judged.derived, path


@pytest.mark.parametrize(
    ("main", "files", "path", "text"),
    [
        ('#if __has_include("opt.h")\nint a;\n#endif\n', {}, "inc/opt.h", "\n"),
        ("#ifdef __has_include\n#if __has_include(<opt.h>)\nint a;\n#endif\n#endif\n", {}, "last/opt.h", "\n"),
        ('#include "x.h"\n', {"inc/x.h": "#include_next <x.h>\n", "last/x.h": "int l;\n"}, "last/x.h", "int m;\n"),
        ('#include "deep/y.h"\n', {"inc/deep/y.h": '#include "z.h"\n', "inc/z.h": "int z;\n"}, "inc/deep/z.h", "int q;\n"),
        ('#include "deep/../x.h"\n', {"first/deep/z.h": "\n"}, "first/x.h", "int q;\n"),
        ('#include "deep/../x.h"\n', {"first/x.h": "int f;\n"}, "first/deep/any.h", "\n"),
        ('#include "../inc/x.h"\n', {}, "inc/x.h", "int q;\n"),
        ("# /* why */ include /* not */ <x.h>\n", {}, "first/x.h", "int q;\n"),
        ("%:include <x.h>\n", {}, "first/x.h", "int q;\n"),
        ("#inc\\\nlude \"x\\\n.h\"\n", {}, "first/x.h", "int q;\n"),
        ("#define HEADER <x.h>\n#include HEADER\n", {}, "first/x.h", "int q;\n"),
        ("#define HEADER ANOTHER\n#define ANOTHER <x.h>\n#include HEADER\n", {}, "first/x.h", "int q;\n"),
        ("#define HEADER(x) <x.h>\n#include HEADER(x)\n", {}, "first/x.h", "int q;\n"),
        ('#include "x.h"\n#include HEADER\n', {"inc/x.h": '#define /**/ HEADER /**/ "deep/y.h" // why\n'}, "first/deep/y.h", "int q;\n"),
        ("#include <inttypes.h>\n#ifdef PRId64\n#define STR(x) <x.h>\n#define HEADER STR(x)\n#include HEADER\n#endif\n", {}, "first/x.h", "int q;\n"),
        ("#define HAS(x) __has_include(x)\n#if HAS(<opt.h>)\nint a;\n#endif\n", {}, "first/opt.h", "\n"),
        ("#include <stdio.h>\n", {}, "inc/features.h", "#include_next <features.h>\nint f;\n"),
        ("#include <stdint.h>\n", {}, "inc/bits/wordsize.h", "#define __WORDSIZE 64\nint w;\n"),
        ("#include <stdio.h>\n", {"inc/features.h": "#include_next <features.h>\n"}, "inc/features.h", "#include_next <features.h>\nint g;\n"),
        ("#include <stdio.h>\n", {"inc/features.h": '#include "mine.h"\n#include_next <features.h>\n', "inc/mine.h": "\n"}, "inc/mine.h", "int g;\n"),
        ("#define _GNU_SOURCE\n#include <sys/stat.h>\n", {}, "inc/linux/stat.h", "int linux_stat;\n"),
        ('#include "s.h"\n', {"inc/s.h": '#pragma GCC system_header\n#include "t.h"\n', "inc/t.h": "int t;\n"}, "inc/t.h", "int u;\n"),
        (
            '#include "p/o.h"\n#include "q/o.h"\n',
            {"inc/p/o.h": "#pragma once\nint o;\n", "inc/q/o.h": "#pragma once\nint o;\n"},
            "inc/q/o.h",
            "#pragma once\nint q;\n",
        ),
        ('#pragma GCC dependency "dep.h"\n', {"inc/dep.h": "\n"}, "inc/dep.h", None),
    ],
)  # fmt: skip
def test_whatever_a_text_looks_for_is_seen(main: str, files: dict[str, str], path: str, text: str | None) -> None:
    before = {"src/main.c": main, "inc/x.h": X, "inc/deep/y.h": "int y;\n", **files}
    after = {p: t for p, t in before.items() if p != path} | ({} if text is None else {path: text})
    judged = judge(Compile(("-Ifirst", "-Iinc", "-Ilast")), before, after)
    assert judged.other_output and judged.other_key


@pytest.mark.parametrize(
    ("flags", "env", "files"),
    [
        (["-Iinc", "-include", "forced.h"], {}, {"inc/forced.h": "int f;\n"}),
        (["-Iinc", "-includeforced.h"], {}, {"inc/forced.h": "int f;\n"}),
        (["-Iinc", "-imacros", "forced.h", "-DY=X"], {}, {"inc/forced.h": "#define X 7\n"}),
        (["@args"], {}, {"args": "-Iinc -include 'forced.h'", "inc/forced.h": "int f;\n"}),
    ],
)
def test_forced_headers_are_looked_for_in_the_working_directory_first(
    flags: list[str], env: dict[str, str], files: dict[str, str]
) -> None:
    for path in ("forced.h", "inc/forced.h"):
        judged = added(
            path, "int g;\n#define X 8\n", flags=flags, env=env, files=files, main="int main(void);\nint x = X;\n"
        )
        assert judged.other_output and judged.other_key and judged.derived


@pytest.mark.parametrize(
    ("flags", "env"),
    [
        (["-isystem", "first", "-isystem", "inc"], {}),
        (["-idirafter", "first", "-idirafterinc"], {}),
        ([], {"CPATH": "first:inc"}),
        ([], {"C_INCLUDE_PATH": "first:inc"}),
        (["@sub/args"], {}),
    ],
)
def test_every_way_to_name_a_directory_is_known(flags: list[str], env: dict[str, str]) -> None:
    files = {"sub/args": '-I"first" "-I" inc\n'}
    for path, text in (("first/x.h", "#define X 2\n"), ("inc/x.h", "#define X 3\n")):
        judged = added(
            path, text, flags=flags or ["-DNOTHING"], env=env, files=files, main=MAIN.replace('"x.h"', "<x.h>")
        )
        assert judged.other_output and judged.other_key and judged.derived, path
    assert not added("first/unrelated.h", flags=flags or ["-DNOTHING"], env=env, files=files).other_key


def test_what_a_header_of_the_systems_kind_includes_is_read_though_not_reported() -> None:
    files = {"sys/s.h": '#include "t.h"\n', "sys/t.h": "int t;\n", "src/main.c": "#include <s.h>\n"}
    judged = judge(Compile(("-isystem", "sys")), files, {**files, "sys/t.h": "int u;\n"})
    assert judged.other_output and judged.other_key and judged.derived


@pytest.mark.parametrize("flag", ["-DHEADER=<x.h>", '-DHEADER="x.h"', "-DHEADER=ANOTHER"])
def test_a_macro_of_the_command_may_name_the_header(flag: str) -> None:
    judged = added("first/x.h", flags=("-Ifirst", "-Iinc", flag, "-DANOTHER=<x.h>"), main="#include HEADER\n")
    assert judged.other_output and judged.other_key and judged.derived == (flag != "-DHEADER=ANOTHER")


def test_a_macro_that_nobody_defines_includes_nothing() -> None:
    main = MAIN + "#ifdef USER_HEADER\n#include USER_HEADER\n#endif\n"
    judged = added("first/new.h", main=main)
    assert judged.derived and not judged.other_key
    assert added("first/x.h", main=main).other_key


def test_links_to_headers_are_followed() -> None:
    files = {"src/main.c": MAIN, "inc/x.h": "-> ../real/y.h", "real/y.h": X, "real/z.h": "int z;\n"}
    for path, text in (("real/y.h", "#define X 2\n"), ("inc/x.h", "-> ../real/z.h")):
        judged = judge(Compile(("-Iinc",)), files, {**files, path: text})
        assert judged.other_output and judged.other_key
    files = {"src/main.c": MAIN, "inc": "-> real", "real/x.h": X}
    for path, text in (("real/x.h", "#define X 2\n"), ("src/x.h", "#define X 3\n")):
        judged = judge(Compile(("-Iinc",)), files, {**files, path: text})
        assert judged.other_output and judged.other_key


def test_where_it_cannot_be_derived_the_list_stands_in() -> None:
    files = {"src/main.c": MAIN, "inc/x.h": X}
    for command in (
        ("ccache", "gcc", "-Iinc", "-MMD", "-MF", "out.d", "-c", "src/main.c"),
        ("bash", "-euo", "pipefail", "-c", "gcc -Iinc -MMD -MF out.d -c src/main.c"),
        ("tools/gcc", "-Iinc", "-MMD", "-MF", "out.d", "-c", "src/main.c"),
        ("gcc", "-Iinc", "-MMD", "-MF", "out.d", "src/main.c"),
        ("gcc", "-Iinc", "--sysroot=/x", "-c", "src/main.c"),
        ("gcc", "-Iinc", "-I/opt/x", "-c", "src/main.c"),
        ("gcc", "-Iinc", "@nowhere", "-c", "src/main.c"),
    ):
        contents = {object_digest(text.encode()): text.encode() for text in files.values()}
        request = Request(
            command, WORLD_ENVIRONMENT, {"src/main.c": entry(MAIN).as_input()}, (), Policy(), {}, discover=("inc/*.h",)
        )
        paths = path_set(request, ["src/main.c", "inc/x.h"], {"inc/x.h": entry(X)}, contents.__getitem__, "/workspace")
        assert paths == ("inc/x.h", LISTING), command


@pytest.mark.skipif(os.path.exists("/usr/include/tbb"), reason="the system has what its headers ask for")
def test_what_system_headers_ask_for_and_the_system_has_not_is_looked_for() -> None:
    """libstdc++ asks `__has_include(<tbb/tbb.h>)`."""
    files = {"src/main.c": "#include <version>\n"}
    compile_ = Compile(("-Ifirst", "-x", "c++", "-std=c++17", "-dD"))
    judged = judge(compile_, files, {**files, "first/tbb/tbb.h": "\n"})
    assert judged.other_output and judged.other_key and judged.derived
    assert not judge(compile_, files, {**files, "first/tbb/other.h": "\n"}).other_key


def test_names_of_the_system_cost_one_marker() -> None:
    compile_ = Compile(("-Ifirst", "-Iinc"), discover=("**/*.h",))
    files = {"src/main.c": "#include <stdio.h>\n#include <stdlib.h>\n", "inc/x.h": X}
    paths = compile_.paths(files, compile_.run(files)[2])
    assert SHADOWS in paths and len(paths) < 20, paths


# The oracle

DIRECTORIES = ("src", "inc", "inc/sub", "other", "sys")
NAMES = ("a.h", "b.h", "sub/a.h", "stdint.h", "features.h")
LINES = (
    '#include "{}"',
    "#include <{}>",
    "#include_next <{}>",
    '#if __has_include("{}")\nint has_{};\n#endif',
    '#if 0\n#include "{}"\n#endif',
    '#ifdef A_H\n#include "{}"\n#endif',
    "#ifdef __cplusplus\n#include <{}>\n#endif",
    "// {}",
)
HEADS = ("#pragma once\n", "#ifndef {0}\n#define {0}\n", "#pragma GCC system_header\n#pragma once\n")

texts = st.lists(st.tuples(st.sampled_from(LINES), st.sampled_from(NAMES)), max_size=3)
headers = st.dictionaries(
    st.builds(lambda d, n: f"{d}/{n}", st.sampled_from(DIRECTORIES), st.sampled_from(NAMES)),
    st.tuples(st.sampled_from(HEADS), texts, st.integers(0, 2)),
    max_size=7,
)
options = st.lists(
    st.tuples(st.sampled_from(("-I", "-iquote", "-isystem", "-idirafter")), st.sampled_from((*DIRECTORIES, "gone"))),
    max_size=4,
)


def header(path: str, head: str, lines: list[tuple[str, str]], number: int) -> str:
    guard = f"A_H_{number}" if number else "A_H"
    body = "\n".join(line.format(name, number) for line, name in lines)
    end = "\n#endif\n" if head.startswith("#ifndef") else "\n"
    return f"{head.format(guard)}{body}\nint n{number};{end}"


@st.composite
def stories(draw: st.DrawFn) -> tuple[Compile, dict[str, str], list[dict[str, str]]]:
    made = draw(headers)
    files = {path: header(path, *parts) for path, parts in made.items()}
    files["src/main.c"] = "\n".join(line.format(name, 9) for line, name in draw(texts)) + '\n#include "a.h"\n'
    files.setdefault("inc/a.h", "#pragma once\nint a;\n")
    flags = [word for option, directory in draw(options) for word in (option, directory)] + ["-Iinc"]
    env = draw(st.sampled_from(({}, {"CPATH": "other"}, {"C_INCLUDE_PATH": "sys"})))
    compile_ = Compile(
        tuple(flags), env, draw(st.sampled_from(COMPILERS)), depfile=draw(st.sampled_from(("-MMD", "-MD")))
    )
    edits = []
    for _ in range(3):
        path = f"{draw(st.sampled_from((*DIRECTORIES, 'gone')))}/{draw(st.sampled_from((*NAMES, 'unrelated.h')))}"
        new = dict(files)
        if path in new and draw(st.booleans()):
            del new[path]
        else:
            new[path] = header(path, draw(st.sampled_from(HEADS)), draw(texts), draw(st.integers(0, 3)))
        edits.append(new)
    return compile_, files, edits


@settings(max_examples=int(os.environ.get("REQUIEM_DISCOVERY_EXAMPLES", "60")), deadline=None)
@given(stories())
def test_whenever_gcc_gives_something_else_the_key_is_another(
    story: tuple[Compile, dict[str, str], list[dict[str, str]]],
) -> None:
    compile_, files, edits = story
    code, output, depfile = compile_.run(files)
    assume(code == 0)
    paths = compile_.paths(files, depfile)
    before = discovered_now(paths, compile_.offered(files))
    event("derived" if LISTING not in paths else "listed")
    for edited in edits:
        same_key = discovered_now(paths, compile_.offered(edited)) == before
        if same_key:
            assert compile_.run(edited)[:2] == (code, output), (compile_, files, edited, paths)
        event(f"same key: {same_key}")


def unrelated() -> Iterator[str]:
    yield from (f"{directory}/unrelated.h" for directory in DIRECTORIES)


@settings(max_examples=25, deadline=None)
@given(stories())
def test_a_header_that_nobody_names_never_changes_the_key(
    story: tuple[Compile, dict[str, str], list[dict[str, str]]],
) -> None:
    compile_, files, _ = story
    code, _, depfile = compile_.run(files)
    assume(code == 0)
    paths = compile_.paths(files, depfile)
    assume(LISTING not in paths)
    for path in unrelated():
        assert discovered_now(paths, compile_.offered({**files, path: "int u;\n"})) == discovered_now(
            paths, compile_.offered(files)
        )
