"""Level `none` runs a step in the workspace itself: nobody's file is taken for one of the step's, and nothing is left."""

from __future__ import annotations

import subprocess

from project import Project

GENERATES = '[steps.a]\ncommand = "echo made > gen/made.txt"\noutputs = ["gen/*.txt"]\n'
NONE = ("--sandbox", "none")


def displaced(project: Project) -> dict[str, str]:
    top = project.root / ".requiem/displaced"
    return {path.name: path.read_text() for path in top.rglob("*") if path.is_file()}


# Whose files


def test_a_file_of_the_users_that_a_pattern_means_is_moved_aside_and_never_counts_as_made(project: Project) -> None:
    project.write("gen/mine.txt", "precious\n")
    project.write("gen/other.c", "untouched\n")
    project.manifest(GENERATES)
    ran = project.build(*NONE)
    assert displaced(project) == {"mine.txt": "precious\n"}
    assert "gen/mine.txt" in ran.report["warnings"][0]
    project.run("clean")
    assert not project.exists("gen/made.txt")
    assert project.read("gen/other.c") == "untouched\n"


def test_what_the_store_has_is_not_for_that_reason_ours(project: Project) -> None:
    project.write("src", "both\n")
    project.write("gen/mine.txt", "both\n")
    project.manifest(GENERATES + '[steps.b]\ncommand = "cat src"\ninputs = ["src"]\n')
    project.build("b")
    project.build("a", *NONE)
    assert displaced(project) == {"mine.txt": "both\n"}


def test_what_an_earlier_run_left_reaches_no_dependent_and_what_the_user_changed_is_kept(project: Project) -> None:
    project.manifest(
        '[vars]\nn = "one"\n'
        '[steps.a]\ncommand = "mkdir -p gen/d; echo {{ n }} > gen/d/{{ n }}.txt"\noutputs = ["gen/**/*.txt"]\n'
        '[steps.b]\ncommand = "ls gen/d > seen"\ninputs = ["@a"]\noutputs = ["seen"]\n'
    )
    project.build(*NONE)
    project.build(*NONE, "--set", "n=two")
    assert project.read("seen").split() == ["two.txt"]
    assert displaced(project) == {}
    project.write("gen/d/two.txt", "edited\n")
    project.build(*NONE)
    assert displaced(project) == {"two.txt": "edited\n"}


def test_a_tracked_file_that_a_pattern_means_is_refused_before_anything_changes(project: Project) -> None:
    project.write("mine.txt", "mine\n")
    project.write("gen/loose.txt", "loose\n")
    for command in (["git", "init", "-q"], ["git", "add", "mine.txt"]):
        subprocess.run(command, cwd=project.root, check=True)
    project.manifest('[steps.a]\ncommand = "echo new > made.txt"\noutputs = ["**/*.txt"]\n')
    assert "tracked by git" in project.refuse("build", *NONE).err
    assert project.read("mine.txt") == "mine\n" and project.exists("gen/loose.txt")


def test_the_users_own_files_are_not_told_as_made_and_undeclared(project: Project) -> None:
    project.write("mine", "mine\n")
    project.manifest('[steps.a]\ncommand = "echo x > out"\noutputs = ["out"]\n')
    assert "did not declare" not in project.run("build", "-v", *NONE).err
    project.manifest('[steps.a]\ncommand = "echo x > out"\noutputs = ["out", "never"]\n')
    assert "did not declare" not in project.run("build", *NONE).err
