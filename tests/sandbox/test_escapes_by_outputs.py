"""What a step leaves for its runner: nothing in an output's place opens, blocks, fills or leads away from the build."""

from __future__ import annotations

import os
import stat
import subprocess
import time

import pytest

pytestmark = pytest.mark.userns


def one_step(project, script: str, outputs: str, more: str = "") -> None:
    project.write("in/a", "input\n")
    project.manifest(
        f"""
        [steps.s]
        command = '''{script}'''
        inputs = ["in/a"]
        outputs = [{outputs}]
        {more}
        """
    )


def failure(project) -> str:
    ran = project.build(expect=1)
    return ran.report["steps"][0]["reason"] + ran.err


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../etc/passwd", "/workspace/../etc/passwd"])
@pytest.mark.parametrize("declared", ["out", "tree/"])
def test_72_a_link_out_of_the_workspace_is_no_output(project, target, declared):
    place = "tree/x" if declared == "tree/" else "out"
    one_step(project, f"mkdir -p tree; ln -s {target} {place}", f'"{declared}"')
    assert "outside of the workspace" in failure(project)
    assert not project.exists(place)


def test_72_nothing_is_taken_through_a_linked_directory(project):
    one_step(project, "rmdir d; ln -s /etc d", '"d/passwd"')
    assert "was not produced" in failure(project)


@pytest.mark.parametrize(
    "special",
    ["mkfifo {}", "python3 -c 'import socket; socket.socket(1).bind(\"{}\")'", "mkdir -p {}; rmdir {}; mkfifo {}"],
)
@pytest.mark.parametrize("declared", ["out", "tree/"])
def test_73_a_special_file_is_no_output_and_is_not_waited_for(project, special, declared):
    place = "tree/x" if declared == "tree/" else "out"
    one_step(project, f"mkdir -p tree; {special.replace('{}', place)}", f'"{declared}"')
    assert "neither a file" in failure(project)


def test_73_a_device_cannot_be_made_and_a_whiteout_is_no_output(project):
    one_step(project, "mknod out b 8 0 || mknod out c 1 3 || echo refused > out", '"out"')
    project.build()
    assert project.read("out") == "refused\n"
    one_step(project, "mknod out c 0 0", '"out"')  # Linux lets everyone make one.
    assert "neither a file" in failure(project)
    if os.geteuid() == 0:
        place = project.base / "device"
        subprocess.run(["mknod", str(place), "b", "8", "0"], check=True)
        assert stat.S_ISBLK(place.stat().st_mode)


def test_88_a_sparse_terabyte_hits_its_limit_before_it_is_read(project):
    one_step(project, "truncate -s 1T out", '"out"', 'output_size = "10MiB"')
    report = project.build(expect=1).report
    assert report["steps"][0]["termination"] == "output_size"


def test_88_a_sparse_file_is_an_output_like_any_other(project):
    one_step(project, "truncate -s 50M out; echo end >> out", '"out"')
    project.build()
    assert os.path.getsize(project.root / "out") == 50 * 1024 * 1024 + 4


def test_89_a_hard_link_of_an_input_is_no_way_to_change_it(project):
    one_step(project, "ln in/a out; chmod 777 out", '"out"')
    assert 'changed its input "in/a"' in failure(project)
    assert project.read("in/a") == "input\n"


def test_90_odd_names_are_kept_or_refused(project):
    script = "mkdir t; cd t; touch -- -rf .hidden 'a b' $'new\\nline' $(printf x%.0s {1..255})"
    one_step(project, script, '"t/"')
    project.build()
    assert set(os.listdir(project.root / "t")) == {"-rf", ".hidden", "a b", "new\nline", "x" * 255}


def test_90_a_name_that_is_not_utf_8_is_refused(project):
    one_step(project, "mkdir t; touch t/$'\\xff'", '"t/"')
    assert "UTF-8" in failure(project)


def test_91_a_closed_directory_is_opened_and_taken(project):
    one_step(project, "mkdir -p t/a/b; echo x > t/a/b/c; chmod 0 t/a/b/c t/a/b t/a", '"t/"')
    project.build()
    assert project.read("t/a/b/c") == "x\n"


def test_91_ten_thousand_entries_are_taken(project):
    one_step(project, "mkdir t; cd t; seq 10000 | xargs touch", '"t/"')
    project.build()
    assert len(os.listdir(project.root / "t")) == 10_000


@pytest.mark.parametrize("outputs", ['"t/"', '"t/**/end"', '"missing"'])
def test_91_a_directory_too_deep_to_name_fails_the_step(project, outputs):
    deep = (
        "import os; os.makedirs('t', exist_ok=True); os.chdir('t')\n"
        "for _ in range(600): os.mkdir('d' * 10); os.chdir('d' * 10)\n"
        "open('end', 'w').close()\n"
    )
    project.write("deep.py", deep)
    project.manifest(
        f"""
        [steps.s]
        command = ["/usr/bin/python3", "deep.py"]
        inputs = ["deep.py"]
        outputs = [{outputs}]
        """
    )
    assert ("too deep" in failure(project)) == (outputs != '"missing"')


def test_92_set_id_and_sticky_bits_are_no_part_of_an_output(project):
    """The filter refuses them; where a bit could be set all the same, only the executable one would be taken."""
    one_step(project, "echo x > out; chmod 755 out; chmod 4755 out || chmod 1755 out", '"out"')
    project.build()
    assert stat.S_IMODE((project.root / "out").stat().st_mode) & 0o7000 == 0
    assert os.access(project.root / "out", os.X_OK)


def test_93_what_a_daemon_writes_later_is_not_in_the_output(project):
    script = "echo first > out; (setsid sh -c 'while :; do echo more >> out; sleep 0.01; done' > /dev/null 2>&1 &); sleep 0.1"
    one_step(project, script, '"out"')
    project.build()
    digest = project.run("digest", "object", "out").out.strip()
    report = project.build().report
    assert report["steps"][0]["state"] == "fresh"
    assert project.run("cas", "get", digest).out == project.read("out")


def test_97_an_edit_during_a_step_is_not_seen_and_not_lost(project):
    marker = f"76432.{os.getpid()}"
    one_step(project, f"sleep {marker} || true; cat in/a > out", '"out"')
    process = project.start("build")
    wanted = ["pgrep", "-f", f"^sleep {marker}"]
    end = time.monotonic() + 30
    while not (found := subprocess.run(wanted, capture_output=True).stdout.split()):
        assert time.monotonic() < end
    project.write("in/a", "edited\n")
    os.kill(int(found[0]), 9)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert project.read("out") == "input\n"
    following = project.start("build")
    while not (found := subprocess.run(wanted, capture_output=True).stdout.split()):
        assert time.monotonic() < end
    os.kill(int(found[0]), 9)
    following.communicate(timeout=60)
    assert project.read("out") == "edited\n"


@pytest.mark.parametrize("target", ["/etc/passwd", "../../elsewhere"])
def test_98_an_input_that_links_out_of_the_workspace_is_refused(project, target):
    project.write("in/a", "x")
    os.symlink(target, project.root / "in/out")
    (project.base / "elsewhere").write_text("secret")
    project.manifest(
        """
        [steps.s]
        command = "cat in/out > o"
        inputs = ["in/out"]
        outputs = ["o"]
        """
    )
    ran = project.run("build")
    assert ran.code in (1, 2), ran.err
    assert "secret" not in ran.err and not project.exists("o")


@pytest.mark.parametrize("declared", ["in/loop", "in/", "in/*"])
def test_99_an_input_that_links_to_itself_is_an_error_and_no_hang(project, declared):
    project.write("in/a", "x")
    os.symlink("loop", project.root / "in/loop")
    project.manifest(
        f"""
        [steps.s]
        command = "cat in/loop > o"
        inputs = ["{declared}"]
        outputs = ["o"]
        """
    )
    ran = project.run("build", timeout_s=60)
    assert ran.code in (1, 2), ran.err
    assert ran.code == 1 or ran.err.startswith("error: ")
