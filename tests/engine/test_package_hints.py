"""What a step lacks because nobody asked for its package is named by the error, with the line to add: by real tools."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from project import REQUIEM, Project

from requiem_build.engine.package_hints import _is_foreign

pytestmark = [pytest.mark.userns, pytest.mark.gcc, pytest.mark.timeout(300)]


def said(line: str) -> str:
    """The keys of a step that fails with the words of a program which is not here."""
    return f"command = '''cat >&2 <<'EOF'\n{line}\nEOF\nfalse'''"


FAILURES = {
    # step: (its keys, something of the host that it needs, what the hint says)
    "bash": ("""command = 'x=per; "${x}l" -e 1'""", "/usr/bin/perl", 'perl is in perl-base'),
    "dash": ("""shell = "sh"\ncommand = 'x=per; "${x}l" -e 1'""", "/usr/bin/perl", 'perl is in perl-base'),
    "env": ("""command = 'x=per; env "${x}l" -e 1'""", "/usr/bin/perl", 'perl is in perl-base'),
    "xargs": ("""command = 'x=per; echo 1 | xargs "${x}l" -e 1'""", "/usr/bin/perl", 'perl is in perl-base'),
    "timeout": ("""command = 'x=per; timeout 9 "${x}l" -e 1'""", "/usr/bin/perl", 'perl is in perl-base'),
    "subprocess": (
        """command = ["python3", "-c", "import subprocess; subprocess.run(['gcc'])"]""",
        "/usr/bin/python3", "gcc is in gcc",
    ),
    "make": ("""command = "printf 'all:\\n\\tgcc -c x.c\\n' | make -f -" """, "/usr/bin/make", "gcc is in gcc"),
    "make-shell": ("""command = "printf 'all:\\n\\tgcc -c x.c; true || false && gcc\\n' | make -f -" """,
                   "/usr/bin/make", "gcc is in gcc"),
    "perl-exec": ("""command = "perl -we 'exec \\"gcc\\" or die'" """, "/usr/bin/perl", "gcc is in gcc"),
    "perl-module": ("""command = "/usr/bin/perl -MCPAN -e 1" """, "/usr/share/perl/5.36/CPAN.pm",
                    "CPAN.pm is in perl-modules-5.36"),
    "python-module": ("""command = "python3 -c 'import jedi'" """, "/usr/lib/python3/dist-packages/jedi",
                      "jedi is in python3-jedi"),
    "venv": ("""command = "python3 -m venv x" """, "/usr/lib/python3.11/ensurepip", "ensurepip is in python3.11-venv"),
    "header": ("""command = "echo '#include <zlib.h>' | gcc -E -" """, "/usr/include/zlib.h",
               "zlib.h is in zlib1g-dev"),
    "library": ("""command = "echo 'int main;' | gcc -x c - -lz -o x" """, "/usr/include/zlib.h",
                "z is in zlib1g-dev"),
    "pkg-config": ("""command = "pkg-config --cflags --print-errors zlib" """, "/usr/bin/pkg-config",
                   "zlib is in zlib1g-dev"),
    "shared": ("""command = "echo 'x: error while loading shared libraries: libstdc++.so.6: cannot' >&2; false" """,
               "/usr/share/doc/libstdc++6", "libstdc++.so.6 is in libstdc++6"),
    "cmake": (said('unable to find a build program corresponding to "Ninja".'), "/usr/bin/ninja",
              "Ninja is in ninja-build"),
    "cmake-compiler": (said("CMAKE_C_COMPILER not set, after EnableLanguage"), "/usr/bin/gcc",
                       "CMAKE_C_COMPILER is in gcc"),
    "cmake-package": (said("Could NOT find ZLIB (missing: ZLIB_LIBRARY)"), "/usr/include/zlib.h",
                      "ZLIB is in zlib1g-dev"),
    "configure": (said("configure: error: no acceptable C compiler found in $PATH"), "/usr/bin/gcc",
                  "no acceptable C compiler is in gcc"),
    "meson": (said("ERROR: Could not detect Ninja v1.8.2 or newer"), "/usr/bin/ninja", "Ninja is in ninja-build"),
    "file": ("""command = "cat /usr/share/zoneinfo/UTC" """, "/usr/share/zoneinfo/UTC", "UTC is in tzdata"),
}  # fmt: skip
DEBIAN = pytest.mark.skipif(not Path("/var/lib/dpkg/status").exists(), reason="these packages are Debian's")


@DEBIAN
def test_each_kind_of_failure_names_the_line_to_add(project: Project) -> None:
    there = {name: case for name, case in FAILURES.items() if os.path.exists(case[1])}
    assert len(there) > 10
    project.manifest("".join(f"[steps.{name}]\n{keys}\n" for name, (keys, _, _) in there.items()))
    ran = project.run("build", "-k")
    assert ran.code == 1
    told = {}
    for part in ran.err.split("error: step ")[1:]:
        told[part.partition('"')[2].partition('"')[0]] = part
    assert told.keys() == there.keys()
    for name, (_, _, hint) in there.items():
        package = hint.rpartition(" ")[2]
        line = f'{hint}, which the step does not see: tools = [..., "{package}"]'
        assert line in told[name], told[name]


def test_a_library_for_other_programs_than_the_hosts_own_is_named_last() -> None:
    own = f"/usr/lib/{os.uname().machine}-linux-gnu/libz.so.1"
    assert not any(map(_is_foreign, (own, "/usr/lib/libz.so.1", "/usr/lib64/libz.so.1")))
    assert all(map(_is_foreign, ("/usr/lib32/libz.so.1", "/usr/libx32/libz.so.1", "/usr/lib/s390x-linux-gnu/libz.so")))


@DEBIAN
def test_where_nothing_can_be_named_the_error_says_how_to_find_out(project: Project) -> None:
    words = "unable to locate the thing"
    project.manifest(f'[steps.a]\ncommand = "echo {words} >&2; exit 1"\n')
    assert "hint: requiem observe a says what it looked for" in project.run("build").err
    project.manifest('[steps.a]\ncommand = "x=per; ${x}l -e 1"\n')
    told = project.run("build").err
    assert "perl is in perl-base" in told and "requiem observe" not in told, told


@DEBIAN
def test_the_line_that_an_error_says_is_all_that_it_takes(project: Project) -> None:
    keys, _, _ = FAILURES["bash"]
    project.manifest(f'[steps.a]\n{keys}\ntools = ["perl-base"]\n')
    assert project.build().counts == {"ran": 1}


def local(project: Project) -> tuple[str, ...]:
    """The command line on this host with a /usr/local of the project's own."""
    script = 'mount --bind "$0" /usr/local && exec "$@"'
    return ("unshare", "-Urm", "sh", "-c", script, str(project.base / "local"), *REQUIEM)


@DEBIAN
def test_a_program_of_no_package_has_two_ways_out_and_both_lead_there(project: Project) -> None:
    project.write("../local/bin/tool-of-mine", "#!/usr/bin/env perl\nprint 6 * 7;\n", executable=True)
    steps = (
        '[steps.argv]\ncommand = ["tool-of-mine"]\n[steps.text]\ncommand = "tool-of-mine > out"\noutputs = ["out"]\n'
    )
    project.manifest(steps)
    lines = (
        "hint: /usr/local/bin/tool-of-mine belongs to no package, so the step does not see it: "
        '[roots.local] path = "/usr/local", then roots = ["local"] in the step; or system = "host"'
    )
    said = project.run("build", "-k", program=local(project))
    assert (said.code, said.err.count(lines)) == (1, 2), said.err
    project.manifest('[steps.a]\ncommand = "true"\ntools = ["tool-of-mine"]\n')
    assert lines in project.refuse("build", program=local(project)).err
    project.manifest(steps + '[defaults]\nroots = ["local"]\n[roots.local]\npath = "/usr/local"\n')
    assert project.build(program=local(project)).counts == {"ran": 2}
    assert project.read("out") == "42"
    tools = json.loads(project.run("show", "request", "text").out)["tools"]
    assert sorted(name for name in tools if "/" not in name) == ["bash", "tool-of-mine"]
    project.manifest(steps + '[defaults]\nsystem = "host"\n')
    assert project.build(program=local(project)).counts == {"ran": 2}


@DEBIAN
def test_a_file_of_no_package_that_is_looked_for_is_named(project: Project) -> None:
    path = "/usr/local/lib/node_modules/npm/index.js"
    project.write("../local/lib/node_modules/npm/index.js", "")
    project.manifest(said(f"Error: Cannot find module '{path}'").replace("command", "[steps.a]\ncommand", 1))
    ways = '[roots.local] path = "/usr/local", then roots = ["local"] in the step; or system = "host"'
    told = project.run("build", program=local(project)).err
    assert f"hint: {path} belongs to no package, so the step does not see it: {ways}" in told, told
    project.manifest(f'[steps.a]\ncommand = "test ! -e {path}"\n')
    seen = json.loads(project.run("observe", "a", "--json", program=local(project)).out)["steps"][0]
    assert [(each["path"], each["line"]) for each in seen["outside"]] == [(path, ways)]


@DEBIAN
def test_a_tool_in_a_root_brings_what_it_is_run_by(project: Project) -> None:
    """A virtual environment's python is a link to the package's; a script says what runs it."""
    if not os.path.exists("/usr/bin/python3"):
        pytest.skip("needs Debian's python3")
    project.write("sdk/bin/gen", "#!/usr/bin/python3\nprint(6 * 7)\n", executable=True)
    (project.root / "sdk/bin/py").symlink_to("/usr/bin/python3")
    project.write("sdk/bin/more", "#!/usr/bin/env py\nprint(7 * 6)\n", executable=True)
    project.manifest(
        '[defaults]\nroots = ["sdk"]\npath = ["sdk/bin"]\n[roots.sdk]\npath = "sdk"\n'
        '[steps.script]\ncommand = ["gen"]\n[steps.link]\ncommand = ["py", "-c", "import json"]\n'
        '[steps.both]\ncommand = "more > out"\noutputs = ["out"]\n'
    )
    assert project.build().counts == {"ran": 3}
    assert project.read("out") == "42\n"
    assert project.run("replay", "--execute").code == 0


def test_without_a_database_of_packages_no_level_pretends_to_know_the_system(project: Project) -> None:
    project.manifest('[steps.a]\ncommand = "true"\n')
    empty = project.base / "empty"
    empty.mkdir()
    hidden = [path for path in ("/var/lib/dpkg", "/var/lib/pacman", "/lib/apk", "/var/lib/rpm") if os.path.isdir(path)]
    script = " && ".join(f"mount --bind {empty} {path}" for path in hidden) + ' && exec "$@"'
    program = ("unshare", "-Urm", "sh", "-c", script, "sh", *REQUIEM)
    refused = project.refuse("build", expect=4, program=program)
    assert "keep the distribution's package database" in refused.err
    refused = project.refuse("build", "--sandbox", "process", expect=4, program=program)
    assert "keep the distribution's package database" in refused.err


@DEBIAN
def test_what_is_refused_below_another_mount_is_not_refused_everywhere(project: Project) -> None:
    """With a mount of somebody else's below /usr no overlay can be had; without it the next build has one again."""
    project.manifest('[steps.plain]\ncommand = "true"\n')
    (project.base / "local").mkdir()

    def mechanism(**how: Any) -> str:
        project.build("--cache", "wo", env={"XDG_CACHE_HOME": str(project.base / "cache")}, **how)
        return str(json.loads(project.run("show", "record", "plain").out)["protection"]["system"])

    alone = mechanism()
    assert mechanism(program=local(project)) in ("copy", alone)
    assert mechanism() == alone
