"""Discovered inputs end to end: which new, edited and vanished headers compile what, and what is refused."""

from __future__ import annotations

import json
import shutil

import jsonschema
import pytest
from project import SOURCE, Project

pytestmark = [pytest.mark.userns, pytest.mark.gcc]

MANIFEST = """
    [steps.compile]
    foreach.src = "src/*.c"
    command = ["gcc", "-Ifirst", "-Iinc", "-MMD", "-MF", "{{ depfile }}", "-c", "{{ src }}", "-o", "{{ output }}"]
    inputs = ["{{ src }}"]
    discover = ["**/*.h"]
    depfile = "build/{{ src.stem }}.d"
    outputs = ["build/{{ src.stem }}.o"]
"""


@pytest.fixture
def tree(project: Project) -> Project:
    project.write("src/a.c", '#include <stdio.h>\n#include "x.h"\nint a = X;\n')
    project.write("src/b.c", '#if __has_include("opt.h")\n#include "opt.h"\n#endif\nint b;\n')
    project.write("inc/x.h", "#define X 1\n")
    project.manifest(MANIFEST)
    assert project.build().counts == {"ran": 2}
    return project


def ran(project: Project) -> set[str]:
    return {name for name, state in project.build().states.items() if state == "ran"}


def test_an_unrelated_new_header_compiles_nothing_and_a_shadowing_one_does(tree: Project) -> None:
    tree.write("inc/unrelated.h", "\n")
    tree.write("inc/deep/x.h", "\n")
    assert tree.build().counts == {"fresh": 2}
    tree.write("first/x.h", "#define X 2\n")
    again = tree.build()
    assert again.states == {"compile:src/a.c": "ran", "compile:src/b.c": "fresh"}
    assert again.step("compile:src/a.c")["reason"] == "new discovered input first/x.h"
    tree.write("first/x.h", "#define X 3\n")
    assert ran(tree) == {"compile:src/a.c"}
    (tree.root / "first/x.h").unlink()
    assert tree.build().counts == {"hit": 1, "fresh": 1}


def test_what_was_only_asked_for_counts_when_it_comes_and_when_it_goes(tree: Project) -> None:
    tree.write("inc/opt.h", "int o;\n")
    assert ran(tree) == {"compile:src/b.c"}
    (tree.root / "inc/opt.h").unlink()
    assert tree.build().counts == {"hit": 1, "fresh": 1}


def test_a_header_with_the_name_of_a_system_header_compiles_all(tree: Project) -> None:
    tree.write("first/features.h", "#include_next <features.h>\n")
    again = tree.build()
    assert again.counts == {"ran": 2}
    assert "name of a system header" in again.step("compile:src/a.c")["reason"]


def test_the_request_holds_what_was_looked_for_and_is_what_its_schema_says(tree: Project) -> None:
    tree.write("requiem.toml", tree.read("requiem.toml").replace('"-Iinc"', '"-Iinc", "-I/usr/share"'))
    tree.build()
    text = tree.run("show", "request", "compile:src/a.c").out
    request = json.loads(text)
    jsonschema.validate(request, json.loads((SOURCE / "schemas/request.schema.json").read_text()))
    discovered = request["discovered"]
    assert discovered["inc/x.h"] != discovered["first/x.h"] == discovered["src/x.h"] == "absent"
    assert "//shadows:/usr/share" in discovered and "//discover" not in discovered
    tree.write("r.json", text)
    digest = tree.run("digest", "request", "r.json").out.strip()
    assert digest == tree.build().step("compile:src/a.c")["request_digest"]
    tree.write("r.json", text.replace("//shadows:/usr", "//shadow:/usr"))
    tree.refuse("digest", "request", "r.json")


def test_several_path_sets_are_known_newest_first_and_bounded(tree: Project) -> None:
    variants = [f'#include "h{number}.h"\n' for number in range(20)]
    for number in range(20):
        tree.write(f"inc/h{number}.h", f"int h{number};\n")
    for text in variants:  # Which header is read depends on another header alone: one request, many path sets.
        tree.write("inc/x.h", "#define X 1\n" + text)
        assert ran(tree) == {"compile:src/a.c"}
    for text in reversed(variants[-16:]):
        tree.write("inc/x.h", "#define X 1\n" + text)
        assert "ran" not in tree.build().counts
    sets = [
        json.loads(path.read_text())["sets"] for path in (tree.root / ".cas/records/paths").rglob("*") if path.is_file()
    ]
    assert max(map(len, sets)) == 16
    tree.write("inc/x.h", "#define X 1\n" + variants[0])
    assert ran(tree) == {"compile:src/a.c"}


def test_hits_by_any_of_several_path_sets_after_all_is_deleted(tree: Project) -> None:
    tree.write("first/x.h", "#define X 2\n")
    tree.build()
    (tree.root / "first/x.h").unlink()
    shutil.rmtree(tree.root / "build")
    shutil.rmtree(tree.root / ".requiem")
    assert tree.build().counts == {"hit": 2}


def test_a_header_that_changes_while_the_step_runs_is_never_remembered_under_the_old_key(project: Project) -> None:
    project.write("inc/x.h", "1\n")
    there = project.base
    project.manifest(f"""
        [steps.slow]
        command = "touch {there}/begun; while [ ! -e {there}/go ]; do sleep 0.01; done; cat inc/x.h > o; echo 'o: inc/x.h' > d"
        discover = ["inc/*.h"]
        depfile = "d"
        outputs = ["o"]
        sandbox = "process"
    """)
    process = project.start("build")
    while not (there / "begun").exists():
        assert process.poll() is None
    project.write("inc/x.h", "2\n")
    (there / "go").touch()
    process.communicate(timeout=60)
    assert project.read("o") == "1\n"  # What was hashed is what it was shown.
    assert project.build().counts == {"ran": 1}
    assert project.read("o") == "2\n"
    project.write("inc/x.h", "1\n")
    assert project.build().counts == {"hit": 1}
    assert project.read("o") == "1\n"


GENERATED = """
    [steps.generate]
    command = "mkdir -p gen/inc/deep && sed 's/^/#define /' words > gen/inc/x.h && echo '#define Y 1' > gen/inc/deep/y.h"
    inputs = ["words"]
    outputs = ["gen/"]
    [steps.compile]
    command = ["gcc", "-Igen/inc", "-MMD", "-MF", "{{ depfile }}", "-c", "a.c", "-o", "{{ output }}"]
    inputs = ["a.c"]
    discover = ["gen/inc/**/*.h", "!**/y.h"]
    depfile = "build/a.d"
    outputs = ["build/a.o"]
"""


def test_headers_in_a_directory_that_another_step_makes_are_found_and_count_each(project: Project) -> None:
    project.write("a.c", '#include "x.h"\nint a = X;\n')
    project.write("words", "X 1\n")
    project.manifest(GENERATED)
    assert project.build().counts == {"ran": 2}
    assert project.build().counts == {"fresh": 2}
    project.write("words", "X 2\n")
    assert project.build().states == {"generate": "ran", "compile": "ran"}
    shutil.rmtree(project.root / "gen")
    shutil.rmtree(project.root / "build")
    assert project.run("build").code == 0 and project.exists("gen/inc/deep/y.h")
    project.write("a.c", '#include "x.h"\n#include "deep/y.h"\nint a = X;\n')
    assert "y.h" in project.build(expect=1).step("compile")["reason"] + project.run("build").err
    project.write("a.c", '#include "x.h"\nint a = X;\n')
    project.write("words", "X 2\nUNUSED 1\n")
    project.manifest(GENERATED.replace("> gen/inc/x.h", "| head -n 1 > gen/inc/x.h"))
    assert project.build().states == {"generate": "ran", "compile": "fresh"}


def test_what_a_compile_read_is_in_its_request_and_enough_to_run_it_alone(tree: Project) -> None:
    shown = tree.run("show", "request", "compile:src/a.c").out
    tree.write("request.json", shown)
    result = tree.run("show", "result", "compile:src/a.c").out
    (tree.root / "inc/x.h").unlink()
    ran = tree.run("exec", "request.json")
    assert (ran.code, json.loads(ran.out)) == (0, json.loads(result)), ran.err
    tree.write("request.json", json.dumps({**json.loads(shown), "discovered": None}))
    assert "show request" in tree.refuse("exec", "request.json", expect=4).err


def test_a_depfile_that_is_not_there_fails_the_step_also_if_nothing_can_be_discovered(project: Project) -> None:
    project.manifest("""
        [steps.s]
        command = "touch out"
        depfile = "s.d"
        outputs = ["out"]
    """)
    assert "s.d" in project.build(expect=1).err + project.run("build").err
    project.manifest("""
        [steps.s]
        command = "touch out; echo 'out: /usr/include/stdio.h' > {{ depfile }}"
        depfile = "s.d"
        outputs = ["out"]
    """)
    assert project.build().counts == {"ran": 1}


def test_an_undeclared_generated_header_is_refused_at_every_level(project: Project) -> None:
    project.write("m.c", '#include "gen.h"\nint m = G;\n')
    project.manifest("""
        [steps.gen]
        command = "echo '#define G 1' > build/gen.h"
        outputs = ["build/gen.h"]
        [steps.m]
        command = ["gcc", "-Ibuild", "-MMD", "-MF", "m.d", "-c", "m.c", "-o", "m.o"]
        inputs = ["m.c"]
        discover = ["inc/*.h"]
        depfile = "m.d"
        outputs = ["m.o"]
    """)
    hint = '"build/gen.h" exists but is not an input of "m": inputs = [..., "build/gen.h"]'
    failed = project.build("--mode", "repro", expect=1)  # The hint is about what is there: `gen` comes first.
    assert failed.states == {"gen": "ran", "m": "failed"} and hint in failed.err
    failed = project.build("--mode", "repro", "--sandbox", "none", expect=1)
    assert 'step "m" failed: read "build/gen.h", which step "gen" makes, without declaring it' in failed.err
    assert hint in failed.err
    project.write(
        "requiem.toml", project.read("requiem.toml").replace('discover = ["inc/*.h"]', 'discover = ["build/*.h"]')
    )
    assert project.build("--sandbox", "none").states["m"] == "ran"
    assert project.build().states["m"] == "ran"
