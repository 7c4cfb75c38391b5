"""Free job slots of a build are lent to steps that can use more than one; real make is the judge."""

from __future__ import annotations

import json
import os
import time

import pytest
from project import Project

from requiem_build.core.policy import JOBSERVER_DESCRIPTOR
from requiem_build.executors.slots import Slots
from requiem_build.sandbox import starting

pytestmark = [pytest.mark.userns, pytest.mark.gcc]

PATIENCE_S = 20

TOGETHER = """\
all: a b c d
a b c d:
\ttouch here.$@; n=0; until [ -e here.a -a -e here.b -a -e here.c -a -e here.d ]; do \\
\t  n=$$((n + 1)); [ $$n -lt 400 ] || exit 9; sleep 0.05; done
"""
"""Ends well only where all four run at once."""

ALONE = """\
all: a b c d
a b c d:
\tmkdir busy; sleep 0.02; rmdir busy
"""
"""Ends well only where one runs at a time."""

STEP = """
    [steps.all]
    command = ["make", "-s"]
    inputs = ["Makefile"]
    jobserver = {jobserver}
"""


@pytest.mark.parametrize("extra", ["", 'sandbox = "process"', 'timeout = "1m"', 'memory = "8GiB"', 'clock = "frozen"'])
def test_make_in_a_step_uses_the_slots_that_are_free(project: Project, extra: str) -> None:
    project.write("Makefile", TOGETHER)
    project.manifest(STEP.format(jobserver="true") + extra)
    ran = project.run("build", "-j", "4")
    assert ran.code == 0, ran.err
    assert "jobserver" not in ran.err


def test_the_control_without_it_make_runs_one_at_a_time(project: Project) -> None:
    project.write("Makefile", ALONE)
    project.manifest(STEP.format(jobserver="false"))
    assert project.run("build", "-j", "4").code == 0


@pytest.mark.parametrize("words", [("-j", "1"), ("--mode", "repro", "-j", "4")])
def test_where_there_is_one_slot_there_is_none_to_lend(project: Project, words: tuple[str, ...]) -> None:
    project.write("Makefile", ALONE)
    project.manifest(STEP.format(jobserver="true"))
    ran = project.run("build", *words)
    assert ran.code == 0 and "jobserver" not in ran.err, ran.err


def test_how_many_slots_there_are_is_in_no_digest(project: Project) -> None:
    project.write("Makefile", "all:\n\techo made > made\n")
    project.manifest(STEP.format(jobserver="true") + '    outputs = ["made"]\n')
    first = project.build("-j", "1").step("all")
    assert json.loads(project.run("show", "request", "all").out)["env"]["MAKEFLAGS"] == "-j --jobserver-auth=3,3"
    again = project.build("-j", "8", "--cache", "wo").step("all")
    assert (first["request_digest"], first["result_digest"]) == (again["request_digest"], again["result_digest"])
    request = project.write("request.json", project.run("show", "request", "all").out)
    ran = project.run("exec", str(request))
    assert ran.code == 0 and json.loads(ran.out)["stderr"]["size"] == 0, ran.out + ran.err


def test_steps_and_their_processes_together_keep_to_the_number_of_jobs(project: Project) -> None:
    """Level `process`, so that all of them can count in one place."""
    count = project.base / "count"
    count.mkdir()
    job = f"\tmkdir {count}/$$$$; ls {count} | wc -l >> {project.base}/seen; sleep 0.03; rmdir {count}/$$$$\n"
    project.write("Makefile", "T = 1 2 3 4 5 6 7 8 9 10 11 12\nall: $T\n$T:\n" + job)
    project.manifest("""
        [defaults]
        sandbox = "process"
        [steps.made]
        foreach.n = ["1", "2", "3", "4", "5"]
        command = ["make", "-s"]
        env.N = "{{ n }}"
        inputs = ["Makefile"]
        jobserver = true
    """)
    assert project.run("build", "-j", "3").code == 0
    seen = list(map(int, (project.base / "seen").read_text().split()))
    assert len(seen) == 60 and max(seen) == 3


def test_a_step_that_is_killed_with_its_slots_gives_them_back(project: Project) -> None:
    project.write("Makefile", TOGETHER)
    project.write(
        "hog.py", "import os, time\nfor _ in range(3):\n    os.read(3, 1)\nprint('all', flush=True)\ntime.sleep(600)\n"
    )
    project.manifest(
        STEP.format(jobserver="true")
        + """
        needs = ["hog"]
        [steps.hog]
        command = "timeout -s KILL 60 python3 hog.py || true"
        inputs = ["hog.py"]
        timeout = "2s"
        jobserver = true
    """.replace("|| true", "& sleep 1; kill -9 $$")
    )
    ran = project.run("build", "-j", "4", "-k")
    assert ran.code == 1
    project.manifest(
        STEP.format(jobserver="true")
        + """
        needs = ["hog"]
        [steps.hog]
        command = "python3 hog.py & until grep -q all out; do sleep 0.01; done; exit 0"
        inputs = ["hog.py"]
        jobserver = true
    """.replace("python3 hog.py &", "python3 hog.py > out &")
    )
    ran = project.run("build", "-j", "4")
    assert ran.code == 0, ran.err


def test_no_slot_can_be_invented(project: Project) -> None:
    project.write("Makefile", ALONE)
    project.manifest(
        STEP.format(jobserver="true")
        + """
        needs = ["liar"]
        [steps.liar]
        command = "printf '++++++++++++++++' >&3; sleep 0.2"
        jobserver = true
    """
    )
    ran = project.run("build", "-j", "1")
    assert ran.code == 0, ran.err


def test_another_makeflags_is_refused(project: Project) -> None:
    project.manifest('[steps.a]\ncommand = ["make"]\njobserver = true\nenv.MAKEFLAGS = "-k"\n')
    refused = project.refuse("build")
    assert "MAKEFLAGS" in refused.err and "steps.a" in refused.err
    project.manifest('[steps.a]\ncommand = ["make"]\njobserver = true\npass_env = ["MAKEFLAGS?"]\n')
    assert "MAKEFLAGS" in project.refuse("build").err


@pytest.mark.parametrize("given", ['env_file = ["flags"]', 'pass_env = ["MAKE*"]'])
def test_another_makeflags_is_refused_though_nobody_named_it(project: Project, given: str) -> None:
    project.write("flags", "MAKEFLAGS=-k\n")
    project.manifest(f'[steps.a]\ncommand = ["make", "--version"]\n{given}\njobserver = true\n')
    refused = project.run("build", env={"MAKEFLAGS": "-k"})
    assert refused.code == 2 and 'step "a"' in refused.err and "MAKEFLAGS" in refused.err, refused.err
    project.manifest(f'[steps.a]\ncommand = ["make", "--version"]\n{given}\n')
    assert project.run("build", env={"MAKEFLAGS": "-k"}).code == 0


def test_a_pattern_that_leaves_makeflags_out_goes_with_a_jobserver(project: Project) -> None:
    project.manifest(
        '[steps.a]\ncommand = ["make", "--version"]\njobserver = true\npass_env = ["MAKE*", "!MAKEFLAGS"]\n'
    )
    ran = project.run("build", env={"MAKEFLAGS": "-k"})
    assert ran.code == 0, ran.err


def test_workers_open_the_slots_where_makeflags_say() -> None:
    """They import nothing of the core, so the number stands in two places."""
    assert starting.SLOTS == JOBSERVER_DESCRIPTOR


# The lending itself


def eventually(happened) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_every_slot_comes_back_whatever_was_done_with_it() -> None:
    before = set(os.listdir("/proc/self/fd"))
    slots = Slots(3)
    slots.take()
    with slots.loan() as pipe:
        assert os.read(pipe, 1) == b"+"
        assert os.read(pipe, 1) == b"+"
        os.set_blocking(pipe, False)
        time.sleep(0.1)
        with pytest.raises(BlockingIOError):
            os.read(pipe, 1)
        os.write(pipe, b"a liar's bytes")
        eventually(lambda: slots._free.qsize() >= 1)
    slots.give_back()
    assert slots._free.qsize() == 3
    assert set(os.listdir("/proc/self/fd")) == before


def test_what_a_dead_step_had_taken_comes_back() -> None:
    slots = Slots(3)
    slots.take()
    with slots.loan() as pipe:
        assert os.read(pipe, 1) + os.read(pipe, 1) == b"++"
    slots.give_back()
    assert slots._free.qsize() == 3


def test_what_is_only_offered_goes_to_who_waits_for_it() -> None:
    slots = Slots(2)
    slots.take()
    with slots.loan():
        eventually(lambda: slots._free.qsize() == 0)  # It lies ready in the pipe.
        slots.take()
        slots.give_back()
    slots.give_back()
    assert slots._free.qsize() == 2


def test_nothing_is_lent_where_there_is_no_room() -> None:
    slots = Slots(2, lambda: None)
    slots.take()
    with slots.loan() as pipe:
        os.set_blocking(pipe, False)
        time.sleep(0.1)
        with pytest.raises(BlockingIOError):
            os.read(pipe, 1)
    slots.give_back()
    assert slots._free.qsize() == 2
