"""Steps that are really traced: what they used is found, whatever they are, and nothing of it is remembered."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from project import SOURCE, Project

from requiem_build.engine.observing import Links

pytestmark = [
    pytest.mark.userns,
    pytest.mark.skipif(shutil.which("strace") is None and not os.environ.get("CI"), reason="needs strace"),
]


def schema(name: str) -> Any:
    return json.loads(Path(SOURCE, "schemas", f"{name}.schema.json").read_text())


def observe(project: Project, step: str, *flags: str, expect: int = 0) -> dict[str, Any]:
    ran = project.run("observe", step, "--json", *flags)
    assert ran.code == expect, ran.err
    jsonschema.validate(ran.report, schema("observe"))
    (seen,) = ran.report["steps"]
    return dict(seen)


def add(project: Project, name: str, *command: str) -> str:
    """Adds a step, and what `add` promises: it builds at once, and then there is nothing to do."""
    ran = project.run("add", name, "--json", "--", *command)
    assert ran.code == 0, ran.err
    jsonschema.validate(ran.report, schema("add"))
    assert project.build(name).step(name)["state"] == "ran"
    assert "nothing to do" in project.run("build", name).err
    return str(ran.report["block"])


def store_of(project: Project) -> list[str]:
    return sorted(str(path) for path in (project.root / ".cas/records").rglob("*"))


def left_over(project: Project) -> list[str]:
    """Processes that were started here and still run, the tracer among them."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            here = entry.name.isdigit() and os.readlink(entry / "cwd").startswith(str(project.root))
            command = (entry / "cmdline").read_bytes() if here else b""
        except OSError:
            continue
        if command or project.root.name.encode() in command:
            found.append(command.decode(errors="replace"))
    return found


C = """
    [steps.gen]
    command = "echo '#define G 3' > build/g.h"
    outputs = ["build/g.h"]
    [steps.compile]
    command = ["gcc", "-Iinclude", "-Ibuild", "-c", "src/a.c", "-o", "build/a.o"]
    inputs = ["src/*.c", "README", "build/g.h", "old/"]
    outputs = ["build/a.o"]
"""


@pytest.fixture
def c_project(project: Project) -> Project:
    project.manifest(C)
    project.write("src/a.c", '#include "x.h"\n#include <g.h>\nint main(void) { return X + G; }\n')
    project.write("include/x.h", "#define X 0\n")
    project.write("README", "read me\n")
    project.write("old/thing", "old\n")
    return project


@pytest.mark.gcc
def test_an_undeclared_header_is_found_and_what_is_never_read(c_project: Project) -> None:
    seen = observe(c_project, "compile")
    assert [(each["path"], each["how"]) for each in seen["undeclared"]] == [("include/x.h", ["read"])]
    assert seen["undeclared"][0]["line"] == 'inputs = [..., "include/x.h"]'
    assert seen["unused"] == ["README", "old/"]
    assert {"src/x.h", "include/g.h"} <= set(seen["absent"])
    assert seen["made"] == [] and seen["exit_code"] == 0 and seen["view"] == "workspace"


@pytest.mark.gcc
def test_what_the_sandbox_hides_is_told_where_nothing_else_is_shown(c_project: Project) -> None:
    seen = observe(c_project, "compile", "--declared", expect=1)
    assert seen["view"] == "declared" and "exited with 1" in seen["failure"]
    assert [(each["path"], each["hidden"]) for each in seen["undeclared"]] == [("include/", True)]
    c_project.write("include/y.h", "")
    c_project.manifest(C.replace('"README"', '"include/y.h"'))
    seen = observe(c_project, "compile", "--declared", expect=1)
    assert [(each["path"], each["hidden"]) for each in seen["undeclared"]] == [("include/x.h", True)]


@pytest.mark.gcc
def test_an_observed_run_is_never_remembered(c_project: Project) -> None:
    c_project.build("gen")
    before = store_of(c_project)
    observe(c_project, "compile")
    assert store_of(c_project) == before
    assert not c_project.exists("build/a.o")
    assert c_project.build("-n", "compile").step("compile")["state"] == "miss"


@pytest.mark.gcc
@pytest.mark.parametrize("judge", [["patch", "-p1"], ["git", "apply"]])
def test_tighten_prints_a_patch_that_makes_the_declaration_exact(c_project: Project, judge: list[str]) -> None:
    ran = c_project.run("tighten", "compile")
    assert ran.code == 0, ran.err
    subprocess.run(judge, cwd=c_project.root, input=ran.out.encode(), check=True, capture_output=True)
    assert 'inputs = ["src/*.c", "build/g.h", "include/x.h"]' in c_project.read("requiem.toml")
    seen = observe(c_project, "compile")
    assert seen["clean"]
    assert c_project.build("compile").step("compile")["state"] == "ran"
    again = c_project.run("tighten", "compile", "--json")
    jsonschema.validate(again.report, schema("tighten"))
    assert again.report["patch"] == ""


def test_tighten_keeps_what_is_partly_used_and_what_others_inherit(project: Project) -> None:
    project.manifest("""
        [templates.t]
        inputs = ["unread"]
        [steps.a]
        extends = "t"
        command = "cat data/1 > out"
        inputs = ["...", "data/*", "tree/"]
        outputs = ["out"]
        [steps.b]
        foreach.x = ["1", "2"]
        command = "cat data/{{ x }}"
        inputs = ["data/1", "data/2", "unread"]
    """)
    for name in ("unread", "data/1", "data/2", "tree/x"):
        project.write(name, name)
    ran = project.run("tighten", "a", "--json")
    assert ran.report["removed"] == ["tree/"] and "templates.t.inputs[0]" in ran.report["notes"][0]
    assert project.run("tighten", "b", "--json").report["removed"] == ["unread"]


def test_a_step_that_sees_packages_and_a_clock_that_stands_is_observed(project: Project) -> None:
    project.manifest(
        """
        [steps.a]
        command = "test ! -e /usr/bin/gcc; cat in.txt > out.txt; cat more.txt"
        inputs = ["in.txt", "idle.txt"]
        outputs = ["out.txt"]
        system = "packages"
        clock = "frozen"
        """
    )
    for name in ("in.txt", "idle.txt", "more.txt"):
        project.write(name, "text\n")
    seen = observe(project, "a")
    assert "more.txt" in json.dumps(seen) and "idle.txt" in json.dumps(seen)


DEBIAN = pytest.mark.skipif(not Path("/var/lib/dpkg/status").exists(), reason="these packages are Debian's")
SILENT = (
    "p=per; m=not-a-program; for d in /usr/bin /usr/sbin; do test -e $d/$m; done; test -x /usr/bin/${p}l || exit 3\n"
)
"""It looks for perl, and ends without a word where there is none."""


@DEBIAN
def test_what_lies_in_a_package_that_it_does_not_see_is_named(project: Project) -> None:
    project.write("find.sh", SILENT)
    project.manifest('[steps.a]\ncommand = ["sh", "find.sh"]\ninputs = ["find.sh"]\n')
    lacking = {"line": 'tools = [..., "perl-base"]', "package": "perl-base", "path": "/usr/bin/perl"}
    assert observe(project, "a", expect=1)["packages"] == [lacking]
    told = project.run("observe", "a").out
    assert 'in a package that the step does not see:\n  /usr/bin/perl  tools = [..., "perl-base"]\n' in told
    project.manifest('[steps.a]\ncommand = ["sh", "find.sh"]\ninputs = ["find.sh"]\ntools = ["perl-base"]\n')
    seen = observe(project, "a")
    assert seen["packages"] == [] and seen["clean"]


@DEBIAN
@pytest.mark.gcc
def test_a_command_that_does_not_say_what_it_lacks_is_added_all_the_same(project: Project) -> None:
    """What it looked for before it ended is tried; what it then made no use of is left out again."""
    project.manifest("")
    in_vain = SILENT.replace("|| exit", "|| { test -e /usr/bin/${p%per}gcc; exit").replace("3\n", "3; }\n")
    project.write("go.sh", in_vain + "${p}l -e 'print 42' > out\n")
    block = add(project, "q", "sh", "go.sh")
    assert 'tools = ["perl-base"]' in block and project.read("out") == "42", block


def test_a_failed_step_is_not_tightened(project: Project) -> None:
    project.manifest('[steps.a]\ncommand = "exit 3"\ninputs = ["x"]\n')
    project.write("x", "x")
    project.refuse("tighten", "a", expect=1)
    assert observe(project, "a", expect=1)["unused"] == []


# What a command turns out to be


def test_python_with_imports_is_added(project: Project) -> None:
    project.manifest("")
    project.write("main.py", "from pkg import a\nimport os\nos.makedirs('out')\nopen('out/r', 'w').write(a.f())\n")
    project.write("pkg/__init__.py", "")
    project.write("pkg/a.py", "from . import b\ndef f(): return open('data/x y').read() + b.C\n")
    project.write("pkg/b.py", "C = 'c'\n")
    project.write("pkg/unused.py", "")
    project.write("data/x y", "text\n")
    project.write("pkg/__pycache__/b.cpython-311.pyc", "stale")
    block = add(project, "py", "/usr/bin/python3", "main.py")
    for name in ("main.py", "pkg/__init__.py", "pkg/a.py", "pkg/b.py", "data/x y"):
        assert f'"{name}"' in block
    assert "unused" not in block and "pycache" not in block and 'outputs = ["out/"]' in block
    assert project.read("out/r") == "text\nc"


@pytest.mark.skipif(not os.path.exists("/usr/bin/node"), reason="needs node")
def test_node_and_a_directory_of_outputs(project: Project) -> None:
    project.manifest("")
    project.write("js/lib.js", "exports.x = 'hello'\n")
    project.write(
        "js/main.js",
        "const l = require('./lib'), fs = require('fs'); fs.mkdirSync('dist', {recursive: true});"
        "for (const i of [1, 2, 3, 4]) fs.writeFileSync(`dist/${i}.js`, l.x + i)\n",
    )
    block = add(project, "bundle", "node", "js/main.js")
    assert 'inputs = ["js/lib.js", "js/main.js"]' in block and 'outputs = ["dist/"]' in block


@pytest.mark.gcc
def test_a_compiler_with_a_depfile_is_added_with_discover(c_project: Project) -> None:
    c_project.build("gen")
    command = ["gcc", "-MMD", "-MF", "out/a.d", "-Iinclude", "-Ibuild", "-c", "src/a.c", "-o", "out/a.o"]
    block = add(c_project, "unit", *command)
    assert 'inputs = ["src/a.c"]' in block and 'depfile = "out/a.d"' in block
    assert 'discover = ["build/**/*.h", "include/**/*.h"]' in block and 'outputs = ["out/a.o"]' in block
    c_project.write("include/x.h", "#define X 1\n")
    assert c_project.build("unit").step("unit")["state"] == "ran"


@pytest.mark.gcc
def test_make_and_a_static_program_that_it_made(project: Project) -> None:
    project.manifest("")
    project.write(
        "s.c",
        '#include <fcntl.h>\n#include <unistd.h>\nint main(void) { char b[9]; int f = open("in/x", 0);'
        ' return read(f, b, 1) == 1 && creat("o/y", 0644) >= 0 ? 0 : 1; }\n',
    )
    project.write("Makefile", "prog: s.c\n\tgcc -static -o prog s.c\n")
    project.write("in/x", "x")
    block = add(project, "mk", "make")
    assert 'inputs = ["Makefile", "s.c"]\noutputs = ["prog"]' in block
    assert 'tools = ["gcc"]' in block, "what make runs is in no word of the command: it is found by trying"
    block = add(project, "run", "./prog")
    assert 'inputs = ["in/x"]' in block and 'outputs = ["o/y"]' in block


def test_a_pipeline_with_a_pattern_and_odd_names(project: Project) -> None:
    project.manifest("# a comment at the end")
    project.write("data/x y.txt", "b\n")
    project.write("data/q\"uo te's.txt", "a\n")
    block = add(project, "sorted", "cat data/* | sort > 'out \"put.txt'")
    assert project.read('out "put.txt') == "a\nb\n"
    assert "# a comment at the end" in project.read("requiem.toml")
    assert '"data/x y.txt"' in block or '"data/*"' in block


def test_what_forks_away_is_seen_and_ended(project: Project) -> None:
    project.manifest("")
    project.write("in", "x")
    add(project, "d", "(setsid sh -c 'cat in > a; : marker-of-this-test; exec sleep 500' &); sleep 0.5; cp in b")
    assert left_over(project) == []
    assert '"in"' in project.read("requiem.toml")


def test_templates_in_a_command_stay_text(project: Project) -> None:
    project.manifest("")
    add(project, "a", "sh", "-c", "echo '{{ x }}' > a")
    add(project, "b", "echo '{{ x }}' > b")
    assert project.read("a") == project.read("b") == "{{ x }}\n"


def test_old_outputs_do_not_stand_in_the_way(project: Project) -> None:
    project.manifest("")
    project.write("in", "1")
    project.write("log", "from an earlier run by hand\n")
    add(project, "a", "cat in >> log")
    assert project.read("log") == "1"


def test_what_changes_its_input_is_refused_and_nothing_is_written(project: Project) -> None:
    project.manifest("")
    project.write("f", "aaa\n")
    before = project.read("requiem.toml")
    ran = project.refuse("add", "a", "--", "sed -i s/a/b/ f && grep -q b f")
    assert '"f"' in ran.err
    project.refuse("add", "a", "--", "false", expect=1)
    assert project.read("requiem.toml") == before and project.read("f") == "aaa\n"


def test_names_that_no_manifest_can_hold_are_refused(project: Project) -> None:
    project.manifest("")
    for name in (b"bad\xff", b"bad\nline"):
        (project.root / os.fsdecode(name)).write_bytes(b"x")
        project.refuse("add", "a", "--", "cat bad* > out")
        (project.root / os.fsdecode(name)).unlink()


def test_a_step_that_is_there_and_a_broken_manifest_are_refused(project: Project) -> None:
    project.manifest('[steps.a]\ncommand = "true"\n')
    project.refuse("add", "a", "--", "true")
    project.refuse("add", "b")
    ran = project.run("add", "b", "-n", "--", "true")
    assert ran.code == 0 and "[steps.b]" in ran.out and "steps.b" not in project.read("requiem.toml")


def test_links_of_the_workspace_are_followed_to_what_they_mean(project: Project) -> None:
    project.manifest("")
    project.write("real/f", "x")
    (project.root / "link").symlink_to("real")
    (project.root / "f2").symlink_to("real/f")
    block = add(project, "a", "cat link/f f2 > out")
    assert '"link"' in block and '"real/f"' in block


def test_the_walls_stand_while_a_step_is_observed(project: Project) -> None:
    """The tracer holds the step from outside: it may not trace others itself, and the host is out of its reach."""
    project.write(
        "t.py",
        (
            "import ctypes, os\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "print(libc.ptrace(16, 1, 0, 0), ctypes.get_errno(), os.getpid(), os.path.exists('/root'), os.getuid())\n"
            "open('t.py', 'a')\n"
        ),
    )
    project.manifest('[steps.t]\ncommand = ["/usr/bin/python3", "t.py"]\ninputs = ["t.py"]\n')
    before = project.read("t.py")
    ran = project.run("observe", "t")
    assert "PermissionError" in ran.err and project.read("t.py") == before
    plain = project.run("shell", "t", "--", "/usr/bin/python3", "t.py")
    assert plain.out.split() == ["-1", "1", "10", "False", "1000"]


def test_without_strace_the_way_to_it_is_named(project: Project, tmp_path: Path) -> None:
    from requiem_build.core.errors import EnvironmentFault
    from requiem_build.sandbox import strace

    present = shutil.which("strace")
    if present in ("/usr/bin/strace", "/bin/strace"):  # It is looked for there whatever PATH says.
        with pytest.MonkeyPatch.context() as patch, pytest.raises(EnvironmentFault) as refused:
            patch.setattr(os, "access", lambda *_: False)
            strace.find_strace()
        assert refused.value.exit_code == 4 and "install strace" in (refused.value.hint or "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_observation_leaves_nothing(project: Project, number: int) -> None:
    project.manifest('[steps.a]\ncommand = ": marker-of-this-test; touch started; exec sleep 300"\n')
    project.build("-n")
    with project.start("observe", "a") as process:
        while not any("strace" in each for each in left_over(project)):
            assert process.poll() is None
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert left_over(project) == []


def test_a_failure_points_to_observe_when_nothing_else_is_known(project: Project) -> None:
    project.manifest('[steps.a]\ncommand = "echo something was not found >&2; exit 1"\n')
    assert "requiem observe a" in project.run("build").err


def test_directories_deeper_than_any_recursion_are_no_trouble(deep: Project) -> None:
    deep.write("deep.py", "import os\nfor _ in range(1400):\n    os.mkdir('d')\n    os.chdir('d')\nopen('f', 'w')\n")
    deep.manifest('[steps.a]\ncommand = "python3 deep.py"\ninputs = ["deep.py"]\n')
    assert observe(deep, "a")["made"] == ["d/" * 1400 + "f"]
    added = deep.run("add", "-n", "b", "--", "python3", "deep.py")
    assert added.code in (0, 2) and "RecursionError" not in added.err, added.err


def test_what_is_on_the_way_of_many_paths_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.symlink("d", tmp_path / "l")
    looked: list[str] = []
    is_link = os.path.islink
    monkeypatch.setattr(os.path, "islink", lambda path: looked.append(path) or is_link(path))
    links = Links(str(tmp_path))
    for depth in range(200):
        path = "d/" * depth + "f"
        assert links.resolve(path) == [path] and links.resolve("l/" + path) == ["l", "d/" + path]
    without_the_link = [path for path in looked if not path.endswith("/l")]
    assert len(without_the_link) == len(set(without_the_link))


def test_a_step_that_is_observed_has_its_secrets_and_they_are_not_told(project: Project) -> None:
    project.manifest("""
        [steps.a]
        command = "test -n $MY_TOKEN; mkdir d-$MY_TOKEN; touch d-$MY_TOKEN/f out; cat no-$MY_TOKEN || true"
        inputs = ["unread"]
        outputs = ["out"]
        secrets = ["MY_TOKEN"]
    """)
    project.write("unread", "")
    environment = {"MY_TOKEN": "hush-hush"}
    ran = project.run("observe", "--json", "a", env=environment)
    assert ran.code == 0, ran.err
    told = ran.report["steps"][0]
    assert told["made"] == ["d-***/f"] and "no-***" in told["absent"] and told["unused"] == ["unread"]
    tightened = project.run("tighten", "a", env=environment)
    assert tightened.code == 0 and '-inputs = ["unread"]' in tightened.out
    for each in (ran, tightened, project.run("observe", "-v", "a", env=environment)):
        assert "hush-hush" not in each.out + each.err
