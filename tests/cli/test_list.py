"""`requiem list`: expressions, and what would run if files changed, judged by what the next build then runs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import jsonschema
import pytest
from project import SOURCE, Project

pytestmark = [pytest.mark.userns]

MANIFEST = """
    [steps.compile]
    foreach.src = "src/*.c"
    command = ["gcc", "-Iinc", "-MMD", "-MF", "{{ depfile }}", "-c", "{{ src }}", "-o", "{{ output }}"]
    inputs = ["{{ src }}"]
    discover = ["inc/**/*.h"]
    depfile = "build/{{ src.stem }}.d"
    outputs = ["build/{{ src.stem }}.o"]
    [steps.app]
    inputs = ["@compile"]
    command = ["gcc", "{{ inputs }}", "-o", "{{ output }}"]
    outputs = ["build/app"]
    [steps.assets]
    inputs = ["assets/"]
    command = "ls -R assets > {{ output }}"
    outputs = ["build/assets.txt"]
    [steps.docs]
    inputs = ["docs/**/*.md", "!docs/draft/*.md"]
    command = "cat {{ inputs }} > {{ output }}"
    outputs = ["build/docs.txt"]
    env_file = "docs.env"
    stdin = "docs/in.txt"
    [steps.tool]
    command = ["tools/gen.sh", "{{ output }}"]
    outputs = ["build/tool.txt"]
    tags = ["slow"]
"""


@pytest.fixture
def built(project: Project) -> Project:
    project.write("src/a.c", '#include "a.h"\nint main(void) { return A; }\n')
    project.write("src/b.c", "int b;\n")
    project.write("inc/a.h", "#define A 0\n")
    project.write("inc/unused.h", "\n")
    project.write("assets/logo.txt", "x\n")
    project.write("docs/a.md", "a\n")
    project.write("docs/in.txt", "in\n")
    project.write("docs.env", "X=1\n")
    project.write("tools/gen.sh", '#!/bin/sh\necho x > "$1"\n', executable=True)
    project.manifest(MANIFEST)
    project.build()
    return project


def listed(project: Project, *arguments: str) -> dict[str, bool]:
    ran = project.run("list", "--json", *arguments)
    assert ran.code == 0, ran.err
    return {each["name"]: each["certain"] for each in json.loads(ran.out)["affected"]}


def certain(project: Project, *arguments: str) -> set[str]:
    return {name for name, sure in listed(project, *arguments).items() if sure}


EDITS: Mapping[str, tuple[Callable[[Path], object], set[str]]] = {
    "src/a.c": (lambda p: p.write_text('#include "a.h"\nint main(void) { return 2 * A; }\n'), {"compile:src/a.c"}),
    "inc/a.h": (lambda p: p.write_text("#define A 3\n"), {"compile:src/a.c"}),
    "inc/unused.h": (lambda p: p.write_text("// edited\n"), set()),
    "assets/logo.txt": (lambda p: p.write_text("y\n"), {"assets"}),
    "docs/a.md": (lambda p: p.write_text("b\n"), {"docs"}),
    "docs/in.txt": (lambda p: p.write_text("other\n"), {"docs"}),
    "docs.env": (lambda p: p.write_text("X=2\n"), {"docs"}),
    "tools/gen.sh": (lambda p: p.write_text('#!/bin/sh\necho y > "$1"\n'), {"tool"}),
}


@pytest.mark.gcc
@pytest.mark.parametrize("path", EDITS)
def test_who_reads_an_edited_file_runs(built: Project, path: str) -> None:
    edit, expected = EDITS[path]
    promised = listed(built, "--changed", path)
    assert {name for name, sure in promised.items() if sure} == expected
    edit(built.root / path)
    ran = {name for name, state in built.build().states.items() if state == "ran"}
    assert expected <= ran <= set(promised)


@pytest.mark.gcc
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("src/new.c", {"compile:src/new.c", "app"}),
        ("docs/deep/b.md", {"docs"}),
        ("docs/draft/x.md", set()),
        ("assets/more/new.txt", {"assets"}),
        ("assets/.git/x", set()),
        ("inc/unrelated.h", set()),
        ("inc/features.h", {"compile:src/a.c", "compile:src/b.c"}),
        ("other/x", set()),
    ],
)
def test_a_file_that_is_not_there_yet_runs_whose_patterns_it_would_match(
    built: Project, path: str, expected: set[str]
) -> None:
    assert certain(built, "--changed", path) == expected
    built.write(path, "int x;\n")
    ran = {name for name, state in built.build().states.items() if state == "ran"}
    assert ran == expected


@pytest.mark.gcc
def test_a_deleted_file_runs_who_read_it(built: Project) -> None:
    (built.root / "src/b.c").unlink()
    (built.root / "docs/a.md").rename(built.root / "docs/b.md")
    assert certain(built, "--changed", "src/b.c") == {"app"}
    assert certain(built, "--changed", "docs/a.md", "docs/b.md") == {"docs"}
    assert {name for name, state in built.build().states.items() if state == "ran"} == {"app", "docs"}


def test_a_manifest_runs_all(built: Project) -> None:
    assert len(certain(built, "--changed", "requiem.toml")) == 6
    assert len(certain(built, "--changed", "requiem.local.toml")) == 6


def git(project: Project, *arguments: str) -> None:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
    subprocess.run(command, cwd=project.root, check=True, capture_output=True)


@pytest.mark.gcc
def test_since_a_revision_names_what_the_next_build_runs(built: Project) -> None:
    (built.root / ".gitignore").write_text("build/\n")
    git(built, "init", "-q")
    git(built, "add", ".")
    git(built, "commit", "-qm", "one")
    assert listed(built, "--since", "HEAD") == {}
    built.write("inc/a.h", "#define A 4\n")
    built.write("inc/never.h", "\n")
    (built.root / "docs/a.md").rename(built.root / "docs/renamed.md")
    git(built, "add", "docs")
    built.write("src/new.c", "int n;\n")
    (built.root / "src/b.c").unlink()
    promised = listed(built, "--since", "HEAD")
    assert {n for n, sure in promised.items() if sure} == {"compile:src/a.c", "compile:src/new.c", "app", "docs"}
    git(built, "add", ".")
    git(built, "commit", "-qm", "two")
    assert listed(built, "--since", "HEAD~1") == promised
    assert {n for n, state in built.build().states.items() if state == "ran"} == set(promised)


@pytest.mark.gcc
def test_since_compares_the_manifests_plans_exactly(built: Project) -> None:
    git(built, "init", "-q")
    git(built, "add", "-A", ":!build")
    git(built, "commit", "-qm", "one")
    text = built.read("requiem.toml").replace("ls -R assets", "ls assets") + "# a comment\n"
    built.write("requiem.toml", text)
    assert certain(built, "--since", "HEAD") == {"assets"}
    assert {n for n, state in built.build().states.items() if state == "ran"} == {"assets"}
    built.write("requiem.toml", "[broken")
    git(built, "commit", "-qam", "broken")
    built.write("requiem.toml", text)
    assert len(certain(built, "--since", "HEAD")) == 6


def test_since_looks_at_the_workspace_within_a_larger_repository(project: Project) -> None:
    inner = Project(project.root, "inner")
    inner.write("a.txt", "1\n")
    inner.manifest("""
        [steps.x]
        command = "cat *.txt > o"
        inputs = ["*.txt"]
        outputs = ["o"]
    """)
    inner.build()
    project.write("outside.txt", "1\n")
    project.write(".gitignore", "o\n")
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "one")
    project.write("outside.txt", "2\n")
    project.write("b.txt", "2\n")
    assert listed(inner, "--since", "HEAD") == {}
    inner.write("b.txt", "2\n")
    assert listed(inner, "--since", "HEAD") == {"x": True}
    inner.write("requiem.toml", inner.read("requiem.toml").replace("cat", "sort"))
    git(inner, "add", "b.txt")
    git(inner, "commit", "-qm", "two")
    assert listed(inner, "--since", "HEAD") == {"x": True}


def test_what_is_listed_for_an_order_only_dependency_is_what_it_read(project: Project) -> None:
    project.write("in.txt", "1\n")
    project.manifest("""
        [steps.gen]
        command = "cat in.txt > gen/x.h; touch gen/y.h"
        inputs = ["in.txt"]
        outputs = ["gen/x.h", "gen/y.h"]
        [steps.reads]
        command = "cat gen/x.h > r.txt; echo 'r.txt: gen/x.h' > r.d"
        discover = ["gen/*.h"]
        depfile = "r.d"
        outputs = ["r.txt"]
        [steps.waits]
        command = "touch w.txt; echo 'w.txt:' > w.d"
        discover = ["gen/*.h"]
        depfile = "w.d"
        outputs = ["w.txt"]
    """)
    assert listed(project, "--changed", "in.txt") == {"gen": True, "reads": False, "waits": False}
    project.build()
    assert listed(project, "--changed", "in.txt") == {"gen": True, "reads": False}


@pytest.mark.parametrize("path", ["real/x.txt", "sdk/deep/data", "sdk/tool", "keyed.lock"])
def test_links_roots_and_tools_are_read_too(project: Project, path: str) -> None:
    project.write("real/x.txt", "1\n")
    os.symlink("real/x.txt", project.root / "link.txt")
    project.write("sdk/deep/data", "1\n")
    project.write("sdk/tool", "#!/bin/sh\necho 1\n", executable=True)
    project.write("keyed/any", "1\n")
    project.write("keyed.lock", "1\n")
    project.manifest("""
        [roots.sdk]
        path = "sdk"
        [roots.keyed]
        path = "keyed"
        key = ["keyed.lock"]
        [steps.link]
        command = "cat link.txt > l"
        inputs = ["link.txt"]
        outputs = ["l"]
        [steps.root]
        command = ["tool"]
        roots = ["sdk"]
        path = ["sdk"]
        [steps.keyed]
        command = "cat keyed/any > k"
        roots = ["keyed"]
        outputs = ["k"]
    """)
    project.build()
    promised = certain(project, "--changed", path)
    project.write(path, project.read(path) + "# more\n", executable=path.endswith("tool"))
    assert {name for name, state in project.build().states.items() if state == "ran"} == promised
    assert len(promised) == 1
    assert certain(project, "--changed", "keyed/any") == set()


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("src/.pytest_cache/x", {"cache"}),
        ("src/sub/__pycache__/x", set()),
        ("src/.hidden", {"tree"}),
        ("sdk/.x_cache/x", {"root"}),
        ("sdk/node_modules/x", {"root"}),
    ],
)
def test_trees_of_sources_leave_out_what_tools_keep_in_them_and_roots_do_not(
    project: Project, path: str, names: set[str]
) -> None:
    for each in ("src/.pytest_cache/x", "src/sub/__pycache__/x", "src/.hidden", "sdk/.x_cache/x", "sdk/node_modules/x"):
        project.write(each, "1\n")
    project.manifest("""
        [roots.sdk]
        path = "sdk"
        [steps.tree]
        command = "find src | sort"
        inputs = ["src/"]
        [steps.cache]
        command = "find src | sort"
        inputs = ["src/.pytest_cache/"]
        [steps.root]
        command = "find sdk | sort"
        roots = ["sdk"]
    """)
    project.build()
    assert project.run("log", "tree").out == "src\nsrc/.hidden\nsrc/sub\n"
    assert project.run("log", "cache").out == "src\nsrc/.pytest_cache\nsrc/.pytest_cache/x\n"
    assert project.run("log", "root").out == "sdk\nsdk/.x_cache\nsdk/.x_cache/x\nsdk/node_modules\nsdk/node_modules/x\n"
    assert certain(project, "--changed", path) == names
    project.write(path, "2\n")
    assert {name for name, state in project.build().states.items() if state == "ran"} == names


def test_steps_can_be_listed_although_a_source_is_missing(built: Project) -> None:
    before = built.run("list").out
    os.unlink(built.root / "assets/logo.txt")
    os.rmdir(built.root / "assets")
    os.unlink(built.root / "docs.env")
    built.refuse("build", "tool", "assets")
    for arguments in ([], ["list"]):
        ran = built.run(*arguments)
        assert (ran.code, ran.out) == (0, before)
        warnings = ran.err.splitlines()
        assert len(warnings) == 2 and all(line.startswith("warning: step ") for line in warnings)
        assert 'step "assets" reads "assets/", which does not exist' in ran.err
    answer = json.loads(built.run("list", "--json").out)
    jsonschema.validate(answer, json.loads((SOURCE / "schemas/list.schema.json").read_text()))
    assert {"assets", "app", "tool"} <= {each["name"] for each in answer["steps"]}
    assert built.run("list", "--tag", "slow").out == "tool\n"
    assert built.run("list", "inputs(assets)").out == "assets/\n"
    assert "does not exist" in built.refuse("list", "--changed", "src/a.c").err
    built.write("docs.env", "X=1\n")
    built.write("assets/logo.txt", "x\n")
    ran = built.run("list")
    assert (ran.out, ran.err) == (before, "")


def test_words_for_people_and_errors(built: Project) -> None:
    ran = built.run("list", "--changed", "assets/logo.txt", "docs/a.md")
    assert ran.out == "runs  assets  (reads assets/)\nruns  docs  (reads docs/a.md)\n"
    assert built.run("list", "-q", "--changed", "assets/logo.txt").out == "assets\n"
    assert "may   app  (needs compile:src/a.c)" in built.run("list", "--changed", "src/a.c").out
    ran = built.run("list", "--changed", "build/app")
    assert ran.out == "" and 'is made by "app"' in ran.err
    assert built.run("list", "deps(app)", "-", "app").out.split() == ["compile:src/a.c", "compile:src/b.c"]
    assert built.run("list", "rdeps(a.c)", cwd=built.root / "src").out.split() == ["compile:src/a.c", "app"]
    assert built.run("list", "--changed", "a.md", cwd=built.root / "docs").out.startswith("runs  docs")
    assert built.run("list", "*", "--tag", "slow").out == "tool\n"
    refused = built.refuse("list", "deps(ap)")
    assert "column 6" in refused.err and 'did you mean "app"' in refused.err
    built.refuse("list", "--changed")
    built.refuse("list", "--changed", "/etc/passwd")
    built.refuse("list", "--changed", "x", "--since", "HEAD")
    built.refuse("list", "--since", "HEAD", "app")
    assert (
        "not in a git repository"
        in built.refuse("list", "--since", "HEAD", env={"GIT_CEILING_DIRECTORIES": str(built.base)}).err
    )
    git(built, "init", "-q")
    assert "no revision" in built.refuse("list", "--since", "nope").err
    assert "no revision" in built.refuse("list", "--since", "--output=x").err
    assert not os.path.exists(built.root / "x")


def test_answers_for_machines_are_what_the_schema_says(built: Project) -> None:
    schema = json.loads((SOURCE / "schemas/list.schema.json").read_text())
    for arguments in ([], ["deps(app)"], ["inputs(app)"], ["--changed", "src/a.c"]):
        answer = json.loads(built.run("list", "--json", *arguments).out)
        jsonschema.validate(answer, schema)
    assert json.loads(built.run("list", "--json", "inputs(docs)").out)["files"] == ["docs/a.md", "docs/in.txt"]
    assert json.loads(built.run("schema", "list").out) == schema
