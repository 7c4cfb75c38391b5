"""Windows and macOS: what they promise is kept, the rest is refused. Nothing that only Linux has is needed for it.

macOS is played: its name, and none of the calls that it lacks, in every process of ours. Windows code runs for real under
Wine where there is one and `REQUIEM_WINDOWS_PYTHON` names a python.exe (embeddable CPython for Windows).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from project import SOURCE, Project

from requiem_build.sandbox.win_names import batch_refusal, name_refusal

LACKING = {
    "darwin": "pidfd_open memfd_create sched_getaffinity sched_setaffinity setns unshare listxattr eventfd pipe2 "
    "copy_file_range setresuid setresgid",
    "win32": "pidfd_open memfd_create sched_getaffinity setns unshare listxattr eventfd pipe2 fork geteuid getuid uname "
    "posix_spawn openpty mkfifo O_NOFOLLOW O_DIRECTORY O_NONBLOCK O_CLOEXEC",
}
BLOCKED = {"darwin": "", "win32": "fcntl resource termios tty pwd grp"}


def pretence(system: str) -> str:
    """Python text that makes an interpreter look like one on another system."""
    return textwrap.dedent(f"""
        import importlib.abc, os, sys
        import json, logging, shutil, subprocess, tempfile, threading  # What the library itself imports by the true name.
        class Absent(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name in {BLOCKED[system].split()}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Absent())
        for name in {BLOCKED[system].split()}:
            sys.modules.pop(name, None)
        for name in {LACKING[system].split()}:
            if hasattr(os, name):
                delattr(os, name)
        if hasattr(os, "posix_spawn"):
            real = os.posix_spawn
            def spawn(*arguments, **options):
                if options.get("setsid"):
                    raise NotImplementedError
                return real(*arguments, **options)
            os.posix_spawn = spawn
        sys.platform = {system!r}
    """)


@pytest.fixture
def mac(project: Project, tmp_path: Path) -> list[str]:
    """The command line, and every process that it starts with its own interpreter, on macOS."""
    (tmp_path / "pretence.py").write_text(pretence("darwin"))
    # The processes that mind steps are started as `python -I -S -W ignore -c CODE`.
    inner = f"import sys; exec(open({str(tmp_path / 'pretence.py')!r}).read()); exec(sys.argv[-1])"
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable} -IS\nimport os, sys\nos.execv({sys.executable!r}, [{sys.executable!r}, '-I', '-S', '-W', 'ignore', '-c', {inner!r}, sys.argv[-1]])\n"
    )
    python.chmod(0o755)
    start = tmp_path / "start.py"
    start.write_text(
        f"exec(open({str(tmp_path / 'pretence.py')!r}).read())\nsys.executable = {str(python)!r}\n"
        "from requiem_build.__main__ import main\nsys.exit(main())\n"
    )
    return [sys.executable, "-c", f"exec(open({str(start)!r}).read())"]


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_what_must_import_everywhere_imports(system: str) -> None:
    modules = ["", ".core.policy", ".core.errors", ".core.observation", ".sandbox.base", ".sandbox.promises"]
    modules += [".sandbox.layout", ".sandbox.ending", ".sandbox.windows", ".sandbox.win_jobs", ".sandbox.win_names"]
    modules += [".sandbox.probe", ".sandbox.probe_process", ".sandbox.strace"]
    if system == "darwin":
        modules += [".sandbox.posix", ".sandbox.minder", ".engine.build", ".engine.observing", ".cli.app", ".cli.shell"]
        modules += [".sandbox.linux", ".sandbox.worker"]
    code = pretence(system) + "\n".join(f"import requiem_build{name}" for name in modules)
    done = subprocess.run([sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_build_on_macos_at_level_process(project: Project, mac: list[str]) -> None:
    first, second = (f"{number}.{os.getpid()}" for number in (3117, 3118))  # Nobody else's.
    project.manifest(f"""
        [steps.a]
        command = "cat in > out; (sleep {first} &); echo said"
        inputs = ["in"]
        outputs = ["out"]
        open_files = 200
        [steps.bad]
        command = "sleep {second}"
        timeout = "500ms"
    """)
    project.write("in", "text\n")
    built = project.run("build", "a", "--sandbox", "process", program=mac)
    assert built.code == 0, built.err
    assert project.read("out") == "text\n"
    again = project.run("build", "a", "--sandbox", "process", program=mac)
    assert "nothing to do" in again.err or "fresh" in again.err
    failed = project.run("build", "bad", "--sandbox", "process", program=mac)
    assert failed.code == 1 and "timed out" in failed.err
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


def test_strict_on_macos_is_refused_with_the_reason_and_the_way_out(project: Project, mac: list[str]) -> None:
    project.manifest('[steps.a]\ncommand = "echo ran > out"\noutputs = ["out"]\n')
    refused = project.refuse("build", program=mac, expect=4)
    assert "strict cannot be had on macOS" in refused.err and "namespaces" in refused.err
    assert "--sandbox process" in refused.err and not project.exists("out")


def test_doctor_on_macos_tries_the_level_process_and_says_what_it_cannot(project: Project, mac: list[str]) -> None:
    ran = project.run("doctor", "--json", program=mac)
    assert ran.code == 4, ran.err
    found = {item["name"]: item for item in ran.report["capabilities"]}
    assert not found["strict"]["in_force"] and found["process"]["in_force"], ran.out
    assert found["staged directory"]["in_force"] and found["fixed environment"]["in_force"]
    assert any("network is closed" in item["detail"] for item in ran.report["capabilities"])


# Windows


@pytest.mark.parametrize(
    "path", ["con", "a/NUL.txt", "com1.log", "a:b", "a<b", "x.", "x ", "dir /y", "a\\b", "a\nb", "lpt¹", "a/../b"]
)
def test_names_that_mean_something_else_on_windows_are_refused(path: str) -> None:
    assert name_refusal([path], [])


def test_names_that_are_one_name_on_windows_are_refused() -> None:
    assert name_refusal(["src/A.c", "src/a.c"], []) and name_refusal(["Src/x", "src/y"], [])
    assert not name_refusal(["src/a.c", "src/b.c", "console", "com10", ".git"], ["build", "."])


def test_what_a_batch_file_would_read_anew_is_refused() -> None:
    assert batch_refusal("x.BAT", ['a"&calc']) and batch_refusal("x.cmd", ["%PATH%"])
    assert not batch_refusal("x.exe", ['a"&calc']) and not batch_refusal("x.bat", ["plain", "a b"])


SCRIPT = r"""
import sys
sys.path.insert(0, {source!r})
import os, threading, time
from requiem_build.core.errors import EnvironmentFault, SandboxUnavailable
from requiem_build.core.policy import WORLD_ENVIRONMENT, Limits
from requiem_build.sandbox.base import Job, Staged
from requiem_build.sandbox.win_jobs import lives
from requiem_build.sandbox.windows import WindowsSandbox

os.environ["SECRET_TOKEN"] = "undeclared"
with WindowsSandbox(r"C:\requiem-test") as sandbox:
    def run(code, **fields):
        return sandbox.run(Job([sys.executable, "-I", "-c", code], WORLD_ENVIRONMENT, **fields))
    def refused(**fields):
        try:
            run("1", **fields)
        except EnvironmentFault as fault:
            return fault.exit_code
    seen = run("import os; print(os.listdir('.'), open('src/a').read(), 'SECRET_TOKEN' in os.environ, os.environ['TZ'])",
               staged=[Staged("src/a", data=b"hi")])
    assert (seen.exit_code, seen.stdout) == (0, b"['src'] hi False UTC\r\n"), seen
    assert run("import sys; sys.exit(7)").exit_code == 7
    assert run("import sys; print(sys.stdin.read().upper())", stdin=b"abc").stdout == b"ABC\r\n"
    flood = run("import sys\nfor _ in range(3000): sys.stdout.write('x' * 1000)", max_output_bytes=100)
    assert (len(flood.stdout), flood.stdout_truncated) == (100, True)
    late = run("import time; time.sleep(600)", limits=Limits(timeout_ms=1500))
    assert late.termination == "timeout"
    quiet = "stdin=-3, stdout=-3, stderr=-3"
    left = run("import subprocess, sys; print(subprocess.Popen([sys.executable, '-I', '-c', 'import time; time.sleep(600)'], "
               + quiet + ").pid)")
    assert left.exit_code == 0 and not lives(int(left.stdout)), left
    changed = run("import os, stat; os.chmod('a', stat.S_IWRITE); open('a', 'w').write('other')", staged=[Staged("a", data=b"x")])
    assert changed.changed == ("a",)
    assert sandbox.run(Job(["no-such-program"], WORLD_ENVIRONMENT)).termination == "not_found"
    threading.Timer(1, lambda: sandbox.cancel(kill=True)).start()
    assert run("import time; time.sleep(600)").cancelled
    for bad in ("con", "a:b", "x."):
        assert refused(staged=[Staged(bad, data=b"")]) == 4
    assert refused(staged=[Staged("l", symlink="x")]) == 4 and refused(limits=Limits(open_files=9)) == 4
assert not os.path.exists(r"C:\requiem-test")
try:
    WindowsSandbox(r"C:\requiem-test", "strict")
except SandboxUnavailable as refusal:
    assert refusal.exit_code == 4 and "process" in refusal.hint
    print("all of it")
"""


@pytest.mark.wine
@pytest.mark.timeout(300)
def test_the_sandbox_of_windows_under_wine(tmp_path: Path) -> None:
    python = os.environ.get("REQUIEM_WINDOWS_PYTHON", "")
    wine = shutil.which("wine")
    assert wine
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("{source!r}", repr("Z:" + str(SOURCE).replace("/", "\\"))))
    done = subprocess.run(
        [wine, python, "Z:" + str(script).replace("/", "\\")],
        env={**os.environ, "WINEPREFIX": str(tmp_path / "prefix"), "WINEDEBUG": "-all"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert b"all of it" in done.stdout, done.stderr.decode(errors="replace")
