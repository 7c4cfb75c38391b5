"""`requiem shell` and REQUIEM_KEEP: looking around where a step runs, and at what it left."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest
from project import REQUIEM, Project

pytestmark = pytest.mark.userns
PATIENCE_S = 60


@pytest.fixture
def step(project: Project) -> Project:
    project.manifest(
        """
        [steps.a]
        command = "cat in > out/x"
        cwd = "sub"
        inputs = ["in"]
        outputs = ["out/x"]
        env = { COLOUR = "green" }
        timeout = "1s"
    """.replace('inputs = ["in"]', 'inputs = ["//sub/in"]')
    )
    project.write("sub/in", "text\n")
    project.write("undeclared", "")
    return project


def test_one_command_runs_where_the_step_would(step: Project) -> None:
    ran = step.run("shell", "a", "--", "sh", "-c", "pwd; ls -R; echo $COLOUR; id -u; touch made; exit 7")
    assert ran.code == 7 and "dropped: sub/made" in ran.err
    assert ran.out.split() == ["/workspace/sub", ".:", "in", "green", "1000"]
    assert not step.exists("sub/made")
    assert step.build("-n", "a").step("a")["state"] == "miss"


def test_a_script_on_stdin_is_run(step: Project) -> None:
    done = subprocess.run(
        [*REQUIEM, "shell", "a"], cwd=step.root, env=step.environment(), input=b"cat in; exit 5\n", capture_output=True
    )
    assert (done.returncode, done.stdout) == (5, b"text\n")


def test_it_has_the_same_packages_and_the_same_clock_as_the_step(project: Project) -> None:
    project.manifest(
        """
        [steps.a]
        command = "test ! -e /usr/bin/gcc; date +%s > out.txt"
        outputs = ["out.txt"]
        system = "packages"
        clock = "frozen"
        """
    )
    ran = project.run("shell", "a", "--", "sh", "-c", "ls /usr/bin/gcc; date +%s")
    assert ran.out.split() == ["315619200"] and "/usr/bin/gcc" in ran.err, (ran.out, ran.err)
    assert project.build().counts == {"ran": 1}
    assert project.read("out.txt") == "315619200\n"


def test_what_cannot_be_is_said(step: Project) -> None:
    assert step.run("shell", "a", "--", "no-such-program").code == 127
    step.refuse("shell", "nope")


class Terminal:
    """A person at a terminal."""

    def __init__(self, project: Project, *arguments: str) -> None:
        self.pid, self.end = pty.fork()
        if self.pid == 0:
            os.chdir(project.root)
            os.execve(REQUIEM[0], [*REQUIEM, *arguments], {**project.environment(), "TERM": "dumb"})
        self.seen = b""

    def until(self, text: str) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while text.encode() not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.end], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.end, 65536)
                except OSError:
                    break
        before, _, self.seen = self.seen.partition(text.encode())
        return before.decode()

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def code(self) -> int:
        while True:
            try:
                if not os.read(self.end, 65536):
                    break
            except OSError:
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.parametrize(("level", "where"), [("strict", "/workspace/sub"), ("process", "/workspace/sub")])
def test_a_shell_has_a_terminal_of_its_own_with_job_control(step: Project, level: str, where: str) -> None:
    first, second = (f"{number}.{os.getpid()}" for number in (3000, 4000))  # Nobody else's.
    terminal = Terminal(step, "shell", "--sandbox", level, "a")
    terminal.until("$ " if os.geteuid() or level == "strict" else "# ")
    terminal.type("tty; pwd; stty size; echo e''nd\r")
    said = terminal.until("end")
    assert "/dev/pts/" in said and where in said and "not a tty" not in said
    terminal.type(f"sleep {first} & jobs; echo e''nd\r")
    assert "Running" in terminal.until("end")
    terminal.type(f"sleep {second}; echo e''nd $?\r")
    terminal.until("\n")
    deadline = time.monotonic() + PATIENCE_S
    while not running(second):
        assert time.monotonic() < deadline
    terminal.type("\x03")
    terminal.type("echo st''ill; exit 9\r")
    terminal.until("still")
    assert terminal.code() == 9
    assert not running(first) and not running(second)


def running(marker: str) -> bool:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes() == f"sleep\0{marker}\0".encode():
                    return True
            except OSError:
                continue
    return False


# REQUIEM_KEEP


def test_what_a_failed_step_left_is_kept_and_told(project: Project) -> None:
    project.manifest("""
        [steps.good]
        command = "echo 1 > g"
        outputs = ["g"]
        [steps.bad]
        command = "echo said; mkdir p; echo x > p/f; chmod 0 p/f p; mkfifo pipe; ln -s /etc/passwd l; cat big | wc -c; exit 3"
        inputs = ["big", "src/a"]
        [steps.low]
        sandbox = "process"
        command = "echo low > made; false"
        inputs = ["src/a"]
    """)
    project.write("big", b"x" * 300_000)
    project.write("src/a", "a")
    ran = project.run("build", "-k", env={"REQUIEM_KEEP": "1"})
    assert ran.code == 1 and 'what "bad" left is kept in .requiem/kept/bad' in ran.err
    kept = project.root / ".requiem/kept"
    assert sorted(item.name for item in kept.iterdir()) == ["bad", "low"]
    bad = kept / "bad/workspace"
    assert (bad / "p/f").read_text() == "x\n" and (bad / "big").stat().st_size == 300_000
    assert os.readlink(bad / "l") == "/etc/passwd" and not (bad / "pipe").exists()
    assert (kept / "bad/stdout").read_text() == "said\n300000\n"
    assert (kept / "low/workspace/made").read_text() == "low\n"
    (bad / "l").unlink()
    again = subprocess.run(["sh", kept / "low/run.sh"], capture_output=True)
    assert again.returncode == 1
    project.run("build", "-k", env={"REQUIEM_KEEP": "1"})  # The last time of each.
    assert (bad / "p/f").read_text() == "x\n"


def test_all_is_kept_on_request_and_nothing_without(project: Project) -> None:
    project.manifest('[steps.a]\ncommand = "echo 1 > g"\noutputs = ["g"]\n')
    project.build()
    assert not project.exists(".requiem/kept")
    project.build("--cache", "off", env={"REQUIEM_KEEP": "all"})
    assert project.read(".requiem/kept/a/workspace/g") == "1\n"
    project.refuse("build", "--cache", "off", env={"REQUIEM_KEEP": "maybe"})


def test_secrets_are_not_kept(project: Project) -> None:
    project.manifest("""
        [steps.a]
        command = '''
        echo "in $MY_TOKEN"; echo plain > plain; echo "x$MY_TOKEN" > content; printf %s "$MY_TOKEN" | base64 > spelled
        touch "name-$MY_TOKEN"; mkdir "dir-$MY_TOKEN"; touch "dir-$MY_TOKEN/inside"; ln -s "$MY_TOKEN" link
        { head -c 1048572 /dev/zero; echo "$MY_TOKEN"; } > cut
        false'''
        secrets = ["MY_TOKEN"]
    """)
    ran = project.run("build", env={"REQUIEM_KEEP": "1", "MY_TOKEN": "hush-hush"})
    kept = project.root / ".requiem/kept"
    assert [item.name for item in (kept / "a/workspace").iterdir()] == ["plain"]
    assert (kept / "a/stdout").read_text() == "in ***\n"
    assert "kept in .requiem/kept/a, without 6 of it, which hold a secret" in ran.err
    for path in kept.rglob("*"):
        assert "hush-hush" not in str(path)
        assert not path.is_file() or b"hush-hush" not in path.read_bytes()
    assert kept.stat().st_mode & 0o777 == 0o700


def test_a_shells_workspace_can_be_kept(step: Project) -> None:
    ran = step.run("shell", "a", "--", "touch", "made", env={"REQUIEM_KEEP": "1"})
    assert ran.code == 0 and step.exists(".requiem/kept/a/workspace/sub/made")


DEEP = "import os\nfor _ in range(1400):\n    os.mkdir('d')\n    os.chdir('d')\nopen('f', 'w').close()\n"


@pytest.mark.parametrize("level", ["strict", "process"])
def test_what_is_nested_deeper_than_any_recursion_is_kept_and_removed(deep: Project, level: str) -> None:
    deep.write("deep.py", DEEP)
    deep.manifest(f"""
        [steps.a]
        command = "mkdir locked; python3 deep.py; chmod 0 locked; false"
        inputs = ["deep.py"]
        sandbox = "{level}"
    """)
    for _ in range(2):  # What the first time left is removed.
        ran = deep.run("build", env={"REQUIEM_KEEP": "1"})
        assert ran.code == 1 and "kept in .requiem/kept/a\n" in ran.err, ran.err
        assert deep.exists(".requiem/kept/a/workspace/" + "d/" * 1400 + "f")
    shell = deep.run("shell", "a", "--", "python3", "deep.py")
    assert shell.code == 0 and "dropped: d/d/" in shell.err


def test_what_is_nested_too_deeply_to_be_named_is_told(deep: Project) -> None:
    deep.write("deep.py", DEEP.replace("'d'", "'d' * 100"))
    deep.manifest('[steps.a]\ncommand = "python3 deep.py; false"\ninputs = ["deep.py"]\n')
    ran = deep.run("build", env={"REQUIEM_KEEP": "1"})
    assert ran.code == 1 and "kept in .requiem/kept/a, without 1 of it, nested too deeply to be named" in ran.err
    assert deep.read(".requiem/kept/a/workspace/deep.py")


# Secrets


SECRET = {"MY_TOKEN": "hush-hush"}


@pytest.fixture
def secret(project: Project) -> Project:
    project.manifest("""
        [steps.first]
        command = "touch first"
        outputs = ["first"]
        [steps.a]
        command = "test -n $MY_TOKEN; touch made-$MY_TOKEN out; echo got $MY_TOKEN >&2"
        inputs = ["first"]
        outputs = ["out"]
        secrets = ["MY_TOKEN"]
    """)
    return project


@pytest.mark.parametrize("level", ["strict", "process"])
def test_a_shell_has_the_steps_secrets_and_does_not_tell_them(secret: Project, level: str) -> None:
    script = 'test "$MY_TOKEN" = hush-hush && echo "o $MY_TOKEN" && echo "e $MY_TOKEN" >&2 && touch "f-$MY_TOKEN"'
    environment = {**SECRET, "REQUIEM_KEEP": "1"}
    ran = secret.run("shell", "--sandbox", level, "a", "--", "sh", "-c", script, env=environment)
    assert ran.code == 0 and ran.out == "o ***\n"
    assert "e ***\n" in ran.err and "dropped: f-***" in ran.err and "without 1 of it" in ran.err
    assert "hush-hush" not in ran.err
    for path in (secret.root / ".requiem/kept").rglob("*"):
        assert "hush" not in str(path) and (path.is_dir() or b"hush" not in path.read_bytes())


def test_a_secret_that_is_not_set_is_named_before_anything_is_done(secret: Project) -> None:
    for words in (["shell", "a", "--", "true"], ["observe", "a"], ["tighten", "a"]):
        refused = secret.refuse(*words)
        assert 'the secret "MY_TOKEN" is not set' in refused.err and not secret.exists("first")


def test_what_is_to_be_kept_is_asked_before_anything_is_done(step: Project) -> None:
    refused = step.refuse("shell", "a", "--", "echo", "done", env={"REQUIEM_KEEP": "yes"})
    assert "REQUIEM_KEEP" in refused.err and refused.out == ""


def test_what_a_shell_wrote_is_told_also_if_it_cannot_be_kept(step: Project) -> None:
    step.write(".requiem/kept", "in the way")
    ran = step.run("shell", "a", "--", "echo", "told", env={"REQUIEM_KEEP": "1"})
    assert ran.code == 4 and ran.out == "told\n" and 'what "a" left cannot be kept' in ran.err


# What a killed one leaves


@pytest.mark.parametrize("after", ["shell", "build"])
def test_what_a_killed_shell_left_goes_with_the_next_command(project: Project, after: str) -> None:
    forever = str(100_000 + os.getpid())  # Nobody else's.
    project.manifest('[steps.a]\ncommand = "cat in > out"\ninputs = ["in"]\noutputs = ["out"]\n')
    project.write("in", b"x" * 2_000_000)  # So large that it lies in the scratch store.
    beside = project.root / ".requiem/beside"
    elsewhere = project.base / "temporary"
    elsewhere.mkdir()
    environment = {"TMPDIR": str(elsewhere)}
    with project.start("shell", "a", "--", "sleep", forever, env=environment) as killed:
        deadline = time.monotonic() + PATIENCE_S
        while not running(forever):
            assert time.monotonic() < deadline
        assert len(list(beside.iterdir())) == 1
        assert project.run("shell", "a", "--", "true", env=environment).code == 0
        assert len(list(beside.iterdir())) == 1  # It is still at work.
        killed.kill()
    while running(forever):
        assert time.monotonic() < deadline
    assert len(list(beside.iterdir())) == 1
    project.run(*(["build", "-n"] if after == "build" else ["shell", "a", "--", "true"]), env=environment)
    assert list(beside.iterdir()) == []
    assert list(elsewhere.iterdir()) == []
