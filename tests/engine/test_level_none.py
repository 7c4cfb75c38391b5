"""Level `none` runs a step in the workspace itself: nobody's file is taken for one of the step's, and nothing is left."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable

import pytest
from project import REQUIEM, Project

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


# Processes, and the terminal


class AtTerminal:
    """A build whose terminal is ours to type into; it leads the session, and is in the foreground."""

    def __init__(self, project: Project, *arguments: str) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(project.root)
            os.execvpe(REQUIEM[0], [*REQUIEM, *arguments], project.environment())
        self.said = ""

    def reads(self, words: str) -> bool:
        end = time.monotonic() + 30
        while words not in self.said and time.monotonic() < end:
            if select.select([self.terminal], [], [], 0.1)[0]:
                try:
                    self.said += os.read(self.terminal, 4096).decode()
                except OSError:  # Nobody has it open any more.
                    return words in self.said
        return words in self.said

    def types(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def ends(self) -> int:
        self.reads("\0")  # All that is left.
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.terminal)
        return code


def eventually(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 30
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def sleeping(marker: str) -> int:
    return len(subprocess.run(["pgrep", "-f", f"^sleep {marker}"], capture_output=True).stdout.split())


def test_an_interactive_step_reads_from_the_terminal(project: Project) -> None:
    project.manifest(
        '[steps.a]\ncommand = "echo Name?; read -r name < /dev/tty; echo Hello $name; read -r; echo $REPLY"\n'
    )
    build = AtTerminal(project, "build", *NONE)
    assert build.reads("Name?")
    build.types("Ada\n")
    assert build.reads("Hello Ada")
    build.types("from stdin\n")
    assert build.ends() == 0, build.said
    assert "from stdin" in build.said


@pytest.mark.parametrize("limit", ["", 'memory = "4GiB"\n'])
def test_ctrl_c_reaches_an_interactive_step_and_leaves_nothing(project: Project, limit: str) -> None:
    marker = f"76541.{os.getpid()}"
    # What the terminal sends comes first; that the build asks it to end as well must not be what ends it.
    command = f"trap '' TERM; trap 'echo asked; exit 3' INT; (setsid sleep {marker} &); echo begun; sleep {marker}"
    project.manifest(f'[steps.a]\ncommand = "{command}"\n{limit}')
    build = AtTerminal(project, "build", *NONE)
    assert build.reads("begun") and eventually(lambda: sleeping(marker) == 2)
    build.types("\x03")
    assert build.ends() == 130, build.said
    assert "asked" in build.said and sleeping(marker) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_build_that_is_ended_leaves_no_process_of_a_step(project: Project, number: int) -> None:
    marker = f"76540.{os.getpid()}"
    project.manifest(f'[steps.a]\ncommand = "(setsid sleep {marker} &); sleep {marker} & sleep {marker}; echo"\n')
    with project.start("build", *NONE) as build:
        assert eventually(lambda: sleeping(marker) == 3)
        build.send_signal(number)
        build.communicate(timeout=30)
    assert build.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert eventually(lambda: sleeping(marker) == 0)


# What the step says of itself


def test_what_the_step_says_holds_beside_the_callers_environment(project: Project) -> None:
    project.write("tools/say", '#!/bin/sh\necho "$TZ $LANG $MINE" > out\n', executable=True)
    project.manifest("""
        [roots.t]
        path = "tools"
        [steps.a]
        command = ["say"]
        roots = ["t"]
        path = ["tools"]
        env = { TZ = "UTC" }
        outputs = ["out"]
    """)
    project.build(*NONE, env={"TZ": "Europe/Berlin", "LANG": "de_DE.UTF-8", "MINE": "yes"})
    assert project.read("out") == "UTC de_DE.UTF-8 yes\n"


def test_a_limit_that_cannot_be_held_here_is_refused_and_the_explanation_says_so(project: Project) -> None:
    project.manifest('[steps.a]\ncommand = "touch out"\noutputs = ["out"]\ntmp = "1MiB"\nopen_files = 50\n')
    assert 'tmp = "1MiB" cannot be had at the level none' in project.refuse("build", *NONE, expect=4).err
    assert not project.exists("out")
    told = project.run("build", "--explain-policy", "a", *NONE).out
    assert "open_files = 50" in told and "a step with a limit of it is refused" in told
