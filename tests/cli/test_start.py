"""How `requiem` starts where it was installed: a script of our own, in real virtual environments."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from project import SOURCE, Project

pytestmark = pytest.mark.userns

SCRIPT = SOURCE / "bin/requiem"
OTHERS = Path(sysconfig.get_path("purelib"))
"""Where this interpreter has what we need of others."""


class Installed:
    """A virtual environment as an installer leaves it; `site` leaves a mark in it whenever an interpreter has it."""

    def __init__(self, folder: Path, *, editable: bool = False) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.packages = next(folder.glob("lib/python3.*/site-packages"))
        for each in OTHERS.iterdir():
            if each.suffix != ".pth" and each.name not in ("requiem_build", "sitecustomize.py", "__pycache__"):
                (self.packages / each.name).symlink_to(each)
        if editable:
            (self.packages / "requiem_build/schemas").mkdir(parents=True)  # What is not where it is found.
            (self.packages / "_editable_impl_requiem_build.pth").write_text(str(SOURCE))
        else:
            (self.packages / "requiem_build").symlink_to(SOURCE / "requiem_build")
        (self.packages / "told.pth").write_text(f"import os; os.close(os.open({str(self.mark)!r}, os.O_CREAT))\n")
        shutil.copy(SCRIPT, folder / "bin/requiem")
        self.make_program("requiem-build", f"#!{folder}/bin/python\nfrom requiem_build.__main__ import main\nmain()\n")

    @property
    def mark(self) -> Path:
        return self.folder / "site-was-here"

    @property
    def command(self) -> str:
        return str(self.folder / "bin/requiem")

    def make_program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def had_site(self) -> bool:
        had = self.mark.exists()
        self.mark.unlink(missing_ok=True)
        return had


@pytest.fixture(params=["installed", "editable"])
def installed(request: pytest.FixtureRequest, tmp_path: Path) -> Installed:
    return Installed(tmp_path / "venv", editable=request.param == "editable")


@pytest.fixture
def plain(tmp_path: Path) -> Installed:
    return Installed(tmp_path / "venv")


@pytest.fixture
def settled(project: Project) -> Project:
    """Built, and old enough that its stamps are believed."""
    project.write("name.txt", "world\n")
    project.manifest("""
        [steps.hello]
        command = "cat name.txt > out.txt"
        inputs = ["name.txt"]
        outputs = ["out.txt"]
    """)
    project.build()
    time.sleep(0.05)  # Past the clock tick in which nothing that was just written can be believed.
    project.run("build")
    return project


def run(words: list[str], project: Project, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    environment = project.environment(env)
    if env is None or "PYTHONPATH" not in env:
        del environment["PYTHONPATH"]
    done = subprocess.run(words, cwd=cwd or project.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


def test_nothing_to_do_is_said_before_there_is_a_site(installed: Installed, settled: Project) -> None:
    installed.had_site()
    assert run([installed.command, "build"], settled) == "nothing to do: 1 step up to date\n"
    assert not installed.had_site()
    assert run([installed.command, "--version"], settled).startswith("requiem ")
    assert not installed.had_site()


def test_whatever_else_is_done_has_all_that_an_interpreter_has(installed: Installed, settled: Project) -> None:
    settled.write("name.txt", "you\n")
    installed.had_site()
    assert "built: 1 ran" in run([installed.command, "build"], settled)
    assert installed.had_site()
    assert settled.read("out.txt") == "you\n"
    assert "hello" in run([installed.command, "list"], settled)
    assert installed.had_site()


def test_what_it_finds_is_what_an_ordinary_start_finds(installed: Installed, settled: Project) -> None:
    """The same modules from the same places, in the same order, once site has come."""
    (installed.packages / "requiem_probe.py").write_text(
        "import sys, os, atexit\n"
        "atexit.register(lambda: print(sys.path, sys.prefix, sys.modules['requiem_build'].__file__))\n"
    )
    (installed.packages / "zz-probe.pth").write_text("import requiem_probe\n")
    (installed.packages / "AA-first.pth").write_text(f"{installed.folder}\n")

    def found(name: str) -> str:
        return run([f"{installed.folder}/bin/{name}", "list"], settled).splitlines()[-1]

    # An ordinary script's own directory comes first; ours has none in the way.
    assert found("requiem") == found("requiem-build").replace(f"['{installed.folder}/bin', ", "[", 1)


def test_a_no_op_imports_next_to_nothing(installed: Installed, settled: Project) -> None:
    python = str(installed.folder / "bin/python")
    told = run([python, "-SP", "-X", "importtime", installed.command, "build"], settled)
    found = {line.rsplit("|", 1)[1].strip() for line in told.splitlines() if line.startswith("import time:")}
    assert "requiem_build.engine.quick" in found
    slow = {
        "site",
        "os",
        "re",
        "enum",
        "functools",
        "collections",
        "_collections_abc",
        "struct",
        "typing",
        "__future__",
    }
    assert not slow & found
    ours = {name for name in found if name.startswith("requiem_build")}
    assert ours == {f"requiem_build{name}" for name in ("", ".__main__", ".engine", ".engine.quick", ".engine.sealed")}


def test_it_is_found_however_it_is_called(plain: Installed, settled: Project, tmp_path: Path) -> None:
    plain.had_site()
    links = tmp_path / "local bin"
    links.mkdir()
    (links / "requiem").symlink_to("../venv/bin/requiem")
    (links / "again").symlink_to("requiem")
    path = f"{plain.folder}/bin{os.pathsep}{os.environ['PATH']}"
    there = ["-C", str(settled.root), "build"]
    for words, cwd, env in (
        ([str(links / "requiem")], None, {}),
        ([str(links / "again")], None, {}),
        (["./requiem"], plain.folder / "bin", {}),
        (["bin/requiem"], plain.folder, {}),
        (["sh", "requiem"], plain.folder / "bin", {}),
        (["sh", "-c", 'requiem "$@"', "sh"], None, {"PATH": path}),
    ):
        assert run([*words, *there], settled, env, cwd) == "nothing to do: 1 step up to date\n", words
        assert not plain.had_site(), words


def test_names_and_words_may_hold_anything(settled: Project, tmp_path: Path) -> None:
    folder = tmp_path / "a 'b' \"c\" $d"
    Installed(folder)
    settled.write("it's *.txt", "x")
    assert run([str(folder / "bin/requiem"), "build"], settled) == "nothing to do: 1 step up to date\n"
    words = [str(folder / "bin/requiem"), "digest", "object", "it's *.txt"]
    assert run(words, settled) == settled.run("digest", "object", "it's *.txt").out


def test_pythonpath_comes_first_as_ever(plain: Installed, settled: Project, tmp_path: Path) -> None:
    other = tmp_path / "other/requiem_build"
    shutil.copytree(SOURCE / "requiem_build", other, ignore=shutil.ignore_patterns("__pycache__"))
    (other / "__init__.py").write_text('__version__ = "9.9"\n')
    for name in ("requiem", "requiem-build"):
        told = run([f"{plain.folder}/bin/{name}", "--version"], settled, {"PYTHONPATH": str(other.parent)})
        assert told == "requiem 9.9\n"


def test_outside_of_a_virtual_environment_the_installers_command_is_asked(settled: Project, tmp_path: Path) -> None:
    """There nobody but the installer knows which interpreter it installed for."""
    programs = tmp_path / "usr/bin"
    programs.mkdir(parents=True)
    shutil.copy(SCRIPT, programs / "requiem")
    (programs / "python").symlink_to("/bin/false")
    (programs / "requiem-build").write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    (programs / "requiem-build").chmod(0o755)
    assert run([str(programs / "requiem"), "build", "a b", ""], settled) == "<build><a b><>"


def test_what_is_not_where_it_most_often_is_is_found_as_ever(
    plain: Installed, settled: Project, tmp_path: Path
) -> None:
    """By a .pth file that only site reads; and where BLAKE3 is missing, the error is that of ever."""
    (plain.packages / "requiem_build").unlink()
    (plain.packages / "requiem_build/schemas").mkdir(parents=True)  # As an editable install has them.
    (plain.packages / "elsewhere.pth").write_text(str(SOURCE))
    plain.had_site()
    assert run([plain.command, "build"], settled) == "nothing to do: 1 step up to date\n"
    assert plain.had_site()
    (plain.packages / "blake3").unlink()
    environment = settled.environment()
    del environment["PYTHONPATH"]
    done = subprocess.run([plain.command, "build"], cwd=settled.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 4 and "the hash primitive BLAKE3 cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_installed_here_is_this_script() -> None:
    """An installer leaves a script out if there is a command of its own with that name."""
    installed = Path(sys.executable).with_name("requiem")
    if not installed.exists():
        pytest.skip("not installed beside this interpreter")
    assert installed.read_bytes() == SCRIPT.read_bytes()
    assert os.access(installed, os.X_OK)
    commands = importlib.metadata.entry_points(group="console_scripts", module="requiem_build.__main__")
    assert [each.name for each in commands] == ["requiem-build"]


@pytest.mark.parametrize("whence", ["a private home", "the PATH"])
def test_an_interpreter_that_no_step_can_see_builds(tmp_path: Path, whence: str) -> None:
    """A workers' interpreter need not lie where the step that it runs could look: pyenv's lies below a home of 0700."""
    if whence == "the PATH":
        python = shutil.which("python3") or ""
        asked = subprocess.run(
            [python, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True
        )
        if os.path.realpath(python) == os.path.realpath(sys.executable) or asked.stdout.strip() != str(
            sys.version_info[:2]
        ):
            pytest.skip("the PATH has no other interpreter of this version")
    else:
        home = tmp_path / "private"
        home.mkdir(0o700)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--copies", home / "venv"], check=True)
        python = str(home / "venv/bin/python")
    project = Project(tmp_path)
    project.write("a.c", "int main(void) { return 0; }\n")
    project.manifest("""
        [steps.compile]
        command = ["gcc", "a.c", "-o", "a"]
        inputs = ["a.c"]
        outputs = ["a"]
        [steps.run]
        command = "./a && id -un > who"
        inputs = ["a"]
        outputs = ["who"]
    """)
    for states in ({"compile": "ran", "run": "ran"}, {"compile": "fresh", "run": "hit"}):
        ran = project.run(
            "build",
            "--json",
            program=(python, "-m", "requiem_build"),
            env={"PYTHONPATH": f"{SOURCE}:{OTHERS}"},
        )
        assert (ran.code, ran.states) == (0, states), ran.err
        assert project.read("who") == "builder\n"
        (project.root / "who").unlink()
