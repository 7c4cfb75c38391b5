"""What a build promises, told with real builds in the strict sandbox."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from project import Project

pytestmark = pytest.mark.userns

TWO_STEPS = """
    [steps.upper]
    command = "tr a-z A-Z < in.txt > out/upper.txt"
    inputs = ["in.txt"]
    outputs = ["out/upper.txt"]

    [steps.count]
    command = "wc -c < out/upper.txt > out/count.txt"
    inputs = ["@upper"]
    outputs = ["out/count.txt"]
"""


@pytest.fixture
def two(project: Project) -> Project:
    project.write("in.txt", "hello\n")
    project.manifest(TWO_STEPS)
    return project


def test_a_second_build_runs_nothing(two: Project) -> None:
    assert two.build().counts == {"ran": 2}
    assert two.build().counts == {"fresh": 2}
    assert two.read("out/upper.txt") == "HELLO\n"


def test_deleted_outputs_are_restored_without_running(two: Project) -> None:
    two.build()
    shutil.rmtree(two.root / "out")
    assert two.build().counts == {"hit": 2}
    assert two.read("out/count.txt").strip() == "6"


def test_a_step_whose_inputs_did_not_change_does_not_run(two: Project) -> None:
    two.build()
    two.write("in.txt", "HELLO\n")  # Other bytes, the same upper case: early cutoff.
    again = two.build()
    assert again.states == {"upper": "ran", "count": "fresh"}
    assert again.step("upper")["reason"] == "input in.txt changed"


def test_going_back_to_old_content_is_a_hit(two: Project) -> None:
    two.build()
    two.write("in.txt", "other\n")
    two.build()
    two.write("in.txt", "hello\n")
    assert "ran" not in two.build().counts
    assert two.read("out/upper.txt") == "HELLO\n"


def test_eight_quick_edits_of_one_size_are_never_stale(two: Project) -> None:
    for letter in "abcdefgh":
        two.write("in.txt", letter * 5 + "\n")
        two.build()
        assert two.read("out/upper.txt") == letter.upper() * 5 + "\n"


def test_an_edit_that_keeps_size_and_mtime_is_noticed(two: Project) -> None:
    two.build()
    path = two.root / "in.txt"
    before = path.stat()
    path.write_text("jello\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert two.build().states["upper"] == "ran"


def test_both_modes_and_two_checkouts_ask_and_answer_the_same(tmp_path: Path) -> None:
    digests = []
    for name, mode in (("a", "turbo"), ("bb/cc", "repro")):
        project = Project(tmp_path / name.replace("/", "-"), name)
        project.write("in.txt", "hello\n")
        project.manifest(TWO_STEPS)
        report = project.build("--mode", mode).report
        digests.append([(s["name"], s["request_digest"], s["result_digest"]) for s in report["steps"]])
    assert digests[0] == digests[1]


def test_a_failure_skips_only_its_dependents_and_is_not_remembered(project: Project) -> None:
    project.manifest("""
        [steps.bad]
        command = "echo oops >&2; exit 3"
        outputs = ["bad.txt"]
        [steps.after]
        command = "cat bad.txt > after.txt"
        inputs = ["@bad"]
        outputs = ["after.txt"]
        [steps.good]
        command = "echo fine > good.txt"
        outputs = ["good.txt"]
    """)
    ran = project.build("-k", expect=1)
    assert ran.states == {"bad": "failed", "after": "skipped", "good": "ran"}
    assert ran.step("bad")["exit_code"] == 3
    assert 'step "bad" failed: exited with 3' in ran.err and "oops" in ran.err
    assert project.build("-k", expect=1).states == {"bad": "failed", "after": "skipped", "good": "fresh"}


def test_a_missing_declared_output_fails_and_names_what_was_made_instead(project: Project) -> None:
    project.manifest("""
        [steps.x]
        command = "echo 1 > wrong.txt"
        outputs = ["right.txt"]
    """)
    ran = project.build(expect=1)
    assert 'declared output "right.txt" was not produced' in ran.err
    assert "wrong.txt" in ran.step("x")["warnings"][0]
    assert not project.exists("wrong.txt")


def test_an_undeclared_file_is_absent_and_the_error_names_the_line_to_add(project: Project) -> None:
    project.write("data/numbers.txt", "1\n")
    project.manifest("""
        [steps.x]
        command = "cat data/numbers.txt > out.txt"
        outputs = ["out.txt"]
    """)
    ran = project.build(expect=1)
    assert 'warning: the command of "x" names "data/numbers.txt"' in ran.err
    assert 'hint: "data/numbers.txt" exists but is not an input of "x": inputs = [..., "data/numbers.txt"]' in ran.err


def test_a_foreign_file_at_an_outputs_place_is_moved_aside(two: Project) -> None:
    two.write("out/upper.txt", "mine\n")
    ran = two.build()
    assert two.read("out/upper.txt") == "HELLO\n"
    moved = list((two.root / ".requiem/displaced").rglob("upper.txt"))
    assert [path.read_text() for path in moved] == ["mine\n"]
    assert any("moved to" in warning for warning in ran.report["warnings"])


def test_a_file_that_git_tracks_is_never_replaced(two: Project) -> None:
    two.write("out/upper.txt", "mine\n")
    for command in (["git", "init", "-q"], ["git", "add", "out"]):
        subprocess.run(command, cwd=two.root, check=True)
    assert "tracked by git" in two.refuse("build").err
    assert two.read("out/upper.txt") == "mine\n"
    assert not two.exists("out/count.txt")


def test_a_file_that_git_tracks_hinders_no_step_that_lays_nothing_out(project: Project) -> None:
    text = '[steps.a]\ncommand = "echo x > out"\noutputs = ["out"]\nlay_out = false\n'
    project.write("out", "theirs\n")
    for command in (["git", "init", "-q"], ["git", "add", "out"]):
        subprocess.run(command, cwd=project.root, check=True)
    project.manifest(text)
    assert "tracked by git" in project.refuse("build", "--sandbox", "none").err  # There it writes to the file itself.
    project.manifest(text + 'sandbox = "none"\n')
    assert "tracked by git" in project.refuse("build").err
    project.manifest(text)
    assert project.build().states == {"a": "ran"}
    assert project.read("out") == "theirs\n"


def test_a_file_of_ours_gives_way_to_a_directory_output(project: Project) -> None:
    def manifest(made: str, outputs: str) -> None:
        project.manifest(f'[steps.a]\ncommand = "mkdir -p out; echo x > {made}"\noutputs = [{outputs}]\n')

    project.manifest('[steps.a]\ncommand = "echo x > out"\noutputs = ["out"]\n')
    for made, outputs in (("out/f", '"out/f"'), ("out/f", '"out/"'), ("out/g", '"out/"'), ("out/f", '"out/f"')):
        project.build()
        manifest(made, outputs)
        assert not [each for each in project.build().report["warnings"] if "moved to" in each]
        assert project.read(made) == "x\n" and os.listdir(project.root / "out") == [made[4:]]


@pytest.mark.parametrize(
    ("before", "made"), [("out/", "out"), ("out/f", "out"), ("out/*.txt", "out"), ("d/out/", "d/out")]
)
def test_a_directory_of_ours_gives_way_to_a_file_output(project: Project, before: str, made: str) -> None:
    def manifest(command: str, output: str) -> None:
        project.manifest(f'[steps.a]\ncommand = "{command}"\noutputs = ["{output}"]\n')

    into = f"mkdir -p {made}/e; echo x > {made}/f; echo x > {made}/f.txt"
    manifest(into, before)
    project.build()
    manifest(f"mkdir -p d; echo new > {made}", made)
    assert not [each for each in project.build().report["warnings"] if "moved to" in each]
    assert project.read(made) == "new\n" and not project.exists(".requiem/displaced")
    assert "nothing to do" in [project.run("build").err, project.run("build").err][1]
    manifest(into, before)
    project.build()
    project.write(f"{made}/mine", "mine\n")
    project.write(f"{made}/{'f.txt' if before.endswith('.txt') else 'f'}", "edited\n")
    manifest(f"mkdir -p d; echo newer > {made}", made)
    assert len(project.build().report["warnings"]) == 2
    moved = {path.read_text() for path in (project.root / ".requiem/displaced").rglob("*") if path.is_file()}
    assert moved == {"mine\n", "edited\n"} and project.read(made) == "newer\n"


def test_an_edited_output_is_moved_aside_and_restored(two: Project) -> None:
    two.build()
    two.write("out/upper.txt", "edited\n")
    assert two.build().states == {"upper": "hit", "count": "fresh"}
    assert two.read("out/upper.txt") == "HELLO\n"
    assert [p.read_text() for p in (two.root / ".requiem/displaced").rglob("upper.txt")] == ["edited\n"]


def test_outputs_of_vanished_steps_are_removed_if_nobody_changed_them(two: Project) -> None:
    two.manifest(
        TWO_STEPS + '\n[steps.extra]\ncommand = "echo 1 > out/a.txt; echo 2 > out/b.txt"\n'
        'outputs = ["out/a.txt", "out/b.txt"]\n'
    )
    two.build()
    two.write("out/b.txt", "edited\n")
    two.manifest(TWO_STEPS)
    two.build()
    assert not two.exists("out/a.txt")
    assert two.read("out/b.txt") == "edited\n"


def test_clean_takes_away_exactly_what_was_made(two: Project) -> None:
    two.write("out/notes.txt", "mine\n")
    two.build()
    two.write("out/count.txt", "edited\n")
    ran = two.run("clean")
    assert ran.code == 0 and 'kept "out/count.txt"' in ran.err
    assert not two.exists("out/upper.txt")
    assert two.read("out/notes.txt") == "mine\n" and two.read("out/count.txt") == "edited\n"
    assert two.read("in.txt") == "hello\n"


def test_clean_without_memory_trusts_only_the_store(two: Project) -> None:
    two.build()
    shutil.rmtree(two.root / ".requiem")
    two.write("out/count.txt", "edited\n")
    assert two.run("clean").code == 0
    assert not two.exists("out/upper.txt") and two.exists("out/count.txt")


def test_a_directory_output_is_exact(project: Project) -> None:
    project.write("n.txt", "3")
    project.manifest("""
        [steps.many]
        command = "mkdir -p gen/sub gen/empty; for i in $(seq $(cat n.txt)); do echo $i > gen/sub/$i.txt; done; ln -s 1.txt gen/sub/link; touch gen/run; chmod +x gen/run"
        inputs = ["n.txt"]
        outputs = ["gen/"]
        [steps.one]
        command = "cat gen/sub/2.txt > two.txt"
        inputs = ["gen/sub/2.txt"]
        outputs = ["two.txt"]
        [steps.all]
        command = "ls -R gen > all.txt"
        inputs = ["gen/"]
        outputs = ["all.txt"]
    """)
    project.build()
    assert project.read("two.txt") == "2\n"
    assert os.readlink(project.root / "gen/sub/link") == "1.txt"
    assert os.access(project.root / "gen/run", os.X_OK) and (project.root / "gen/empty").is_dir()
    project.write("n.txt", "2")
    assert project.build().states == {"many": "ran", "one": "fresh", "all": "ran"}
    assert not project.exists("gen/sub/3.txt")
    project.write("gen/sub/1.txt", "edited\n")
    assert project.build().states["many"] == "hit"
    assert project.read("gen/sub/1.txt") == "1\n"
    shutil.rmtree(project.root / "gen")
    assert project.build().states["many"] == "hit"


def test_outputs_by_pattern_are_what_the_step_made(project: Project) -> None:
    project.write("n.txt", "3")
    project.manifest("""
        [steps.split]
        command = "for i in $(seq $(cat n.txt)); do echo $i > parts/$i.txt; done"
        inputs = ["n.txt"]
        outputs = ["parts/*.txt"]
        [steps.join]
        command = "cat {{ inputs }} > joined.txt"
        inputs = ["@split"]
        outputs = ["joined.txt"]
    """)
    project.build()
    assert project.read("joined.txt") == "1\n2\n3\n"
    project.write("n.txt", "2")
    project.build()
    assert project.read("joined.txt") == "1\n2\n"
    assert not project.exists("parts/3.txt")
    assert project.build().counts == {"fresh": 2}


def test_equal_requests_of_one_run_are_run_once(project: Project) -> None:
    project.manifest(
        """
        [steps.make]
        foreach.name = ["a", "b", "c"]
        command = "sleep 0.2; echo same; echo x > out.txt"
        salt = "s"
    """.replace('salt = "s"', "")
    )
    ran = project.build("-j", "3", "-v")
    assert sorted(ran.counts.items()) == [("hit", 2), ("ran", 1)]
    assert any(s["reason"].startswith("same request as make:") for s in ran.report["steps"])


def test_equal_steps_that_run_each_time_do_not_disturb_each_other(project: Project) -> None:
    project.manifest("""
        [steps.each]
        foreach.n = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"]
        command = "touch left && sleep 0.02 && test -f left"
        sandbox = "process"
        cache = false
    """)
    assert project.build("-j", "8").counts == {"ran": 10}


def test_cache_modes_read_and_write_as_they_say(two: Project) -> None:
    assert two.build("--cache", "off").counts == {"ran": 2}
    shutil.rmtree(two.root / "out")
    assert two.build("--cache", "ro").counts == {"ran": 2}
    assert two.build("--cache", "wo").counts == {"ran": 2}
    shutil.rmtree(two.root / "out")
    assert two.build("--cache", "ro").counts == {"hit": 2}
    assert two.build("--cache", "off").counts == {"ran": 2}


@pytest.mark.parametrize("mode", ["off", "wo"])
def test_what_runs_since_no_answer_is_wanted_says_so(two: Project, mode: str) -> None:
    for words in ([], [], ["-n"]):
        steps = two.build("--cache", mode, *words).report["steps"]
        assert {step["reason"] for step in steps if step["state"] != "unknown"} == {f"--cache {mode}: every step runs"}


def test_steps_that_may_not_be_remembered_run_each_time_and_say_why(project: Project) -> None:
    project.manifest("""
        [steps.never]
        command = "date > a.txt"
        outputs = ["a.txt"]
        cache = false
        [steps.net]
        command = "echo 1 > b.txt"
        outputs = ["b.txt"]
        network = "host"
    """)
    project.build()
    again = project.build()
    assert again.counts == {"ran": 2}
    assert again.step("never")["reason"] == "cache = false: it runs each time"
    assert "without lock" in again.step("net")["reason"]
    assert "nothing to do" not in project.run("build").err


def test_a_dry_run_predicts_and_changes_nothing(two: Project) -> None:
    assert two.build("-n").states == {"upper": "miss", "count": "unknown"}
    assert not two.exists("out")
    two.build()
    assert two.build("-n").states == {"upper": "fresh", "count": "fresh"}
    shutil.rmtree(two.root / "out")
    assert two.build("-n").states == {"upper": "hit", "count": "hit"}
    assert not two.exists("out")


def test_a_corrupt_object_is_quarantined_and_made_again(two: Project) -> None:
    two.build()
    shutil.rmtree(two.root / "out")
    for path in (two.root / ".cas/v2/objects").rglob("*"):
        if path.is_file() and path.suffix != ".meta" and path.read_bytes() == b"HELLO\n":
            path.chmod(0o644)
            path.write_bytes(b"JELLO\n")
    assert two.build().code == 0
    assert two.read("out/upper.txt") == "HELLO\n"
    assert two.run("cas", "verify").code == 0


def test_a_lost_store_costs_time_and_nothing_else(two: Project) -> None:
    two.build()
    shutil.rmtree(two.root / ".cas")
    two.write("in.txt", "hello there\n")
    assert two.build().code == 0
    assert two.read("out/upper.txt") == "HELLO THERE\n"


def test_a_new_reader_of_a_fresh_output_finds_it_though_the_store_lost_it(two: Project) -> None:
    two.build()
    shutil.rmtree(two.root / ".cas")
    two.manifest(
        TWO_STEPS + '\n[steps.third]\ncommand = "cat out/upper.txt > third.txt"\n'
        'inputs = ["@upper"]\noutputs = ["third.txt"]\n'
    )
    assert two.build().states["third"] == "ran"
    assert two.read("third.txt") == "HELLO\n"


def test_stdin_environment_and_cwd_reach_the_step(project: Project) -> None:
    project.write("sub/in.txt", "from stdin")
    project.write("vars.env", "FROM_FILE='file value'\n# comment\n")
    project.manifest("""
        [defaults]
        env = { COMMON = "all" }
        [steps.x]
        command = "cat > ../out.txt; echo \\" $COMMON $OWN $FROM_FILE $PASSED ${SECRET:-none} $PWD\\" >> ../out.txt"
        cwd = "sub"
        stdin = "//sub/in.txt"
        env = { OWN = "own" }
        env_file = ["//vars.env"]
        pass_env = ["PASSED"]
        outputs = ["//out.txt"]
    """)
    project.build(env={"PASSED": "yes", "SECRET": "no"})
    assert project.read("out.txt") == "from stdin all own file value yes none /workspace/sub\n"
    assert project.build(env={"PASSED": "yes", "SECRET": "changed"}).counts == {"fresh": 1}
    assert project.build(env={"PASSED": "other"}).step("x")["reason"] == "variable PASSED changed"


def test_a_root_is_seen_keyed_and_searched(project: Project) -> None:
    project.write("tools/bin/greet", "#!/bin/sh\necho hi $1\n", executable=True)
    project.manifest("""
        [roots.tools]
        path = "tools"
        [steps.x]
        command = ["greet", "you"]
        roots = ["tools"]
        path = ["tools/bin"]
    """)
    project.build()
    assert "hi you" in project.run("log", "x").out
    assert project.build().counts == {"fresh": 1}
    project.write("tools/bin/greet", "#!/bin/sh\necho hello $1\n", executable=True)
    assert project.build().states == {"x": "ran"}


def test_a_limit_that_is_hit_is_named(project: Project) -> None:
    project.manifest("""
        [steps.slow]
        command = "sleep 30"
        timeout = "300ms"
        [steps.big]
        command = "head -c 100000 /dev/zero > big.bin"
        outputs = ["big.bin"]
        output_size = "10KiB"
    """)
    ran = project.build("-k", expect=1)
    assert ran.step("slow")["termination"] == "timeout"
    assert ran.step("big")["termination"] == "output_size"
    assert "timed out after 0.3 s" in ran.err


def test_flooded_output_is_cut_and_marked(project: Project) -> None:
    project.manifest("""
        [steps.x]
        command = "head -c 3000000 /dev/zero | tr '\\\\0' a"
        max_output_bytes = 1000
    """)
    ran = project.build()
    assert ran.step("x")["warnings"] == ["captured output was cut at max_output_bytes"]
    assert '"size":1000,"truncated":true' in project.run("show", "result", "x").out


def test_retries_run_again_and_then_give_up(project: Project) -> None:
    project.manifest("""
        [steps.x]
        command = "exit 7"
        retries = 2
    """)
    assert project.build(expect=1).states == {"x": "failed"}


def test_a_step_that_changes_its_input_fails(project: Project) -> None:
    project.write("a.txt", "1")
    project.manifest("""
        [steps.x]
        command = "chmod u+w a.txt; echo 2 > a.txt"
        inputs = ["a.txt"]
    """)
    ran = project.build(expect=1)
    assert 'changed its input "a.txt"' in ran.err
    assert project.read("a.txt") == "1"


def test_symlinks_are_followed_inside_and_refused_outside(project: Project) -> None:
    project.write("real.txt", "x\n")
    os.symlink("real.txt", project.root / "link.txt")
    project.manifest('[steps.x]\ncommand = "cat link.txt > out.txt"\ninputs = ["link.txt"]\noutputs = ["out.txt"]\n')
    project.build()
    assert project.read("out.txt") == "x\n"
    os.unlink(project.root / "link.txt")
    os.symlink("/etc/passwd", project.root / "link.txt")
    assert "out of the workspace" in project.refuse("build").err


def test_an_output_behind_a_symlink_writes_nothing_outside(project: Project, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    os.symlink(outside, project.root / "out")
    project.manifest('[steps.x]\ncommand = "echo 1 > out/a.txt"\noutputs = ["out/a.txt"]\n')
    assert "behind a symlink" in project.refuse("build").err
    assert list(outside.iterdir()) == []


def test_a_tool_that_is_nowhere_is_refused_and_a_command_that_is_not_found_fails(project: Project) -> None:
    project.manifest('[steps.x]\ncommand = "true"\ntools = ["no-such-tool"]\n')
    assert "no-such-tool" in project.refuse("build").err
    project.manifest('[steps.x]\ncommand = ["no-such-program"]\n')
    ran = project.build(expect=1)
    assert ran.step("x")["termination"] == "not_found"


def test_a_divergent_result_is_told_and_the_first_one_stays(project: Project) -> None:
    project.manifest('[steps.x]\ncommand = "cat /proc/sys/kernel/random/uuid > id.txt"\noutputs = ["id.txt"]\n')
    project.build()
    first = project.read("id.txt")
    ran = project.build("--cache", "wo")
    assert ran.step("x")["warnings"] == ["gave another result than before for the same request"]
    os.unlink(project.root / "id.txt")
    project.build()
    assert project.read("id.txt") == first


def test_a_large_input_is_shown_without_a_copy_and_looks_like_any_other(project: Project) -> None:
    project.write("big.bin", b"x" * 3_000_000)
    project.write("small.bin", b"x")
    project.manifest("""
        [steps.x]
        command = "stat -c '%n %s %a %Y' big.bin small.bin; grep -c ' /workspace/big.bin ' /proc/self/mountinfo"
        inputs = ["big.bin", "small.bin"]
    """)
    project.build()
    assert project.run("log", "x").out.split("\n")[:3] == [
        "big.bin 3000000 444 315619200",
        "small.bin 1 444 315619200",
        "1",
    ]
