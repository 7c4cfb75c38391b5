"""The programs that a command names, found without running it; bash is the judge of what really runs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from requiem_build.core import shelltext
from requiem_build.core.programs import interpreter, programs
from requiem_build.core.shelltext import simple_commands

ENV = {"CC": "ccache gcc", "LD": "ld.gold", "EMPTY": ""}

REAL = [
    ("python3 gen.py > out && gcc -c a.c", "python3 gcc"),
    ("make -j4 2>&1 | tee build.log; ninja", "make tee ninja"),
    ("A=b CC_=x perl -e 'print 1'", "perl"),
    ("$CC -c x.c; ${LD} -o x; ${AS:-as} y; \"$CC\" z", "ccache gcc ld.gold as"),
    ("CXX=g++; $CXX -c a.cc", "g++"),
    ("for cc in gcc clang; do $cc -c a.c & done; wait", "for gcc clang wait"),
    ("if ! test -f x; then gcc x; elif grep -q a b; then ld y; else ar z; fi", "test gcc grep ld ar"),
    ("while read -r line; do php \"$line\"; done < <(jq . x)", "read php jq"),
    ("until curl x; do sleep 1; done", "curl sleep"),
    ("cat <<EOF | gzip > x\npython3 no\nEOF\nperl -e 1", "cat gzip perl"),
    ("cat <<EOF\nat $(date) by `whoami` \"it's\nEOF\nld", "cat date whoami ld"),
    ("cat <<'EOF'\nat $(date)\nEOF\nld", "cat ld"),
    ("cat <<-E >o\n\truby no\n\tE\nlua x", "cat lua"),
    ("x=$(git rev-parse HEAD) && echo \"v $(sed -n 1p \"$(dirname x)/y\" | awk '{print $1}')\"",
     "git echo sed dirname awk"),
    ("find . -name '*.o' -exec strip {} + -exec nm {} \\; | xargs -n1 -P 4 -I {} objdump -d {}",
     "find strip nm xargs objdump"),
    ("timeout -k 5 10s nice -n 5 nohup env -i -u X A=b python3 x", "timeout nice nohup env python3"),
    ("exec env -S 'ruby -w' x", "exec env ruby"),
    ("time -p stdbuf -oL go build", "time stdbuf go"),
    ("case $(uname) in Linux) ld x;; (b|c) as;; *) clang y ;; esac; ninja", "case uname ld as clang ninja"),
    ("echo $((1 << 2)) && (( x << 1 )); cmake .", "echo cmake"),
    ("f() { cmake .; }; function g { meson x; }; f", "f cmake meson"),
    ("# perl no\nruby -e 'x # y' a#b # node no", "ruby"),
    ("bash -euo pipefail -c 'm4 x | bison'; sh -ec \"flex y\"", "bash m4 bison sh flex"),
    ("( cd x && tar cf - . ) | { cd y; zstd; }", "cd tar zstd"),
    ("a=(perl x); diff <(sort a) <(uniq b) > >(nl)", "diff sort uniq nl"),
    ("`which gcc` -c a.c `pkg-config --cflags z`", "which gcc pkg-config"),
    ("command -v ninja >/dev/null && eval \"rustc $x\"", "command ninja eval rustc"),
    ("trap 'killall x' EXIT; [[ -f x && $a =~ (x|y) ]] && go build", "trap killall go"),
    ("$SUDO make; ${EMPTY} ld; $(opts) x", "make ld opts"),
    ("/usr/bin/python3 x 2>/dev/null; ./tool/gen.sh; ../x", "/usr/bin/python3 ./tool/gen.sh ../x"),
    ("echo a \\\n  b; py\\\nthon3 c", "echo python3"),
    ("\"python3\" a; 'gcc' b; g''cc c; $'ld' d", "python3 gcc ld"),
    ("flock x -c 'rsync a b'", "flock rsync"),
    ("2>x cat; >y ls; <z >w wc", "cat ls wc"),
    ("echo 'it; perl' \"; ruby\" \\; node", "echo"),
    ("(( x = (1) )); ((gcc a); ld b); echo $((sed) | awk)", "gcc ld echo sed awk"),
    ("echo \"${x:-$(php y)}\" ${z:=`awk a`}", "echo php awk"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), REAL, ids=[text[:30] for text, _ in REAL])
def test_the_programs_of_a_shells_text(text: str, expected: str) -> None:
    found = programs(["bash", "-euo", "pipefail", "-c", text], ENV)
    assert found[0] == "bash"
    loose = {
        "for",
        "case",
        "b",
        "c",
        "Linux",
        *("[[", "]]", "=~", "x", "y"),
    }  # No programs: one name too many does no harm.
    assert set(found[1:]) - loose == set(expected.split()) - loose - {"bash"}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["gcc", "-c", "python3.c"], "gcc"),
        (["env", "A=b", "python3", "x"], "env python3"),
        (["/bin/sh", "-eu", "-c", "ld x"], "/bin/sh ld"),
        (["xargs", "-a", "list", "gcc"], "xargs gcc"),
        (["timeout", "--signal=KILL", "5", "make"], "timeout make"),
        (["timeout", "--signal", "KILL", "5", "make"], "timeout make"),
        (["bash", "run.sh", "gcc"], "bash"),
        (["chrt", "-r", "1", "ninja"], "chrt ninja"),
        (["env", "-S", "python3 -u", "x.py"], "env python3"),
        (["env"], "env"),
        (["nice"], "nice"),
    ],
)
def test_the_programs_of_an_argv(command: list[str], expected: str) -> None:
    assert programs(command, {}) == tuple(expected.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"#!/usr/bin/env python3\nimport x\n", "/usr/bin/env python3"),
        (b"#!/bin/bash -eu\ngcc\n", "/bin/bash"),
        (b"#! /usr/bin/perl -w", "/usr/bin/perl"),
        (b"#!/usr/bin/env -S python3 -u\n", "/usr/bin/env python3"),
        (b"#!\n", ""),
        (b"\x7fELF", ""),
        (b"#!\xff\xfe\n", "\ufffd\ufffd"),
    ],
)
def test_what_runs_a_script(line: bytes, expected: str) -> None:
    assert interpreter(line) == tuple(expected.split())


@given(st.text(alphabet="ab \n\t$(){}<>|&;'\"`\\#=!-E0", max_size=200))
@settings(max_examples=500)
def test_any_text_is_read_to_its_end(text: str) -> None:
    found = programs(["sh", "-c", text], {"a": "$a", "b": "env $b"})
    assert found == programs(["sh", "-c", text], {"a": "$a", "b": "env $b"})
    assert all(name and "\0" not in name and not set(name) & set(" \n\t$'\"`") for name in found)
    for words in simple_commands(text):
        assert words


_PIECES = (
    *("a", "gcc", "-c", "x=1", "2", "12", "a/b.c", "é", "^", "$x", "'q q'", '"d"', "(", ")", "#", "\\", "!", "{", "}"),
    *("if", "then", "for", "in", "do", "done", "case", "esac", "function", "time", "coproc"),
)
_BETWEEN = (
    *(" ", "  ", "\t", "", "\r", "\n", ">", ">>", "<", " > ", " 2> ", " 2>&1", " >&2 ", "<>", "<<", "1"),
    *("|", "||", "&&", " && ", ";", " ; ", ";;", "&", "|&"),
)


@given(st.lists(st.tuples(st.sampled_from(_PIECES), st.sampled_from(_BETWEEN)), min_size=1, max_size=7))
@settings(max_examples=2000)
def test_what_is_read_easily_is_read_the_same(pairs: list[tuple[str, str]]) -> None:
    text = "".join(piece + between for piece, between in pairs)
    easy = shelltext._read_easily(text)
    assert easy is None or easy == list(shelltext._read(text))


def test_what_most_steps_say_is_read_easily() -> None:
    text = "mkdir -p out && cksum a.txt b/c.txt > out/d 2>&1; gcc -O2 -DX=1 -c a.c -o a.o | tee log\ntrue"
    easy = shelltext._read_easily(text)
    assert easy is not None and easy == list(shelltext._read(text))


@pytest.mark.parametrize("piece", ["$(", '"$(', "`", "${", "$((", "<<a\n", "(", "'", '"', "case a in ", "\\", "a=("])
def test_what_never_ends_is_read_at_once(piece: str) -> None:
    assert programs(["sh", "-c", f"gcc; {piece * 20_000}"], {})[:2] == ("sh", "gcc")


SHELL_WORDS = st.sampled_from(["p1", "p2 a", "p3 'b c' \"d\"", "A=1 p4", "p5 > o", "{ p6; }", "( p7 )", "! p8"])
JOINED = st.sampled_from([" && ", " || ", "; ", " | ", "\n", " & "])
NESTED = st.sampled_from(
    ["{}", "( {} )", "echo $({})", 'echo "x $({}) y"', "if {}\nthen {}\nfi", "cat <<E\n$({})\nE", "eval '{}'", "({})"]
)


@given(st.lists(st.tuples(SHELL_WORDS, JOINED), min_size=1, max_size=5), st.lists(NESTED, max_size=2))
@settings(max_examples=60, deadline=None)
def test_whatever_bash_runs_was_named(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, str]], nests: list[str]
) -> None:
    """Every program that bash looks for when it runs the text is among the names; bash itself says which."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    text = "".join(command + joint for command, joint in parts).rstrip(" &|;\n")
    for nest in nests:
        if not ("'" in text and "'" in nest):
            text = nest.replace("{}", text)
    told = tmp_path_factory.mktemp("told")
    handler = f'command_not_found_handle() {{ echo "$1" >> {told}/ran; return 0; }}\n'
    path = str(Path(bash).parent)
    subprocess.run(
        [bash, "-c", handler + text],
        cwd=told,
        env={"PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    ran = set((told / "ran").read_text().split()) if (told / "ran").exists() else set()
    assert ran <= set(programs(["bash", "-c", text], {}))
