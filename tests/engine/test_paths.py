"""Paths that lead astray: links, special files, modes and names, as inputs, as outputs and as Requiem's own."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from project import Project

pytestmark = pytest.mark.userns


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory beside the workspace that nothing may be written to or deleted from."""
    folder = tmp_path / "outside"
    (folder / "tmp").mkdir(parents=True)
    for name in ("lock", "tmp/mine", "memory", "noop"):
        (folder / name).write_text("precious")
    return folder


def untouched(folder: Path) -> bool:
    files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    return files == dict.fromkeys(("lock", "tmp/mine", "memory", "noop"), "precious")


@pytest.mark.parametrize("command", [["build"], ["build", "-n"], ["clean"], ["list"], ["why", "a"]])
def test_requiems_own_directory_is_never_a_link(project: Project, outside: Path, command: list[str]) -> None:
    os.symlink(outside, project.root / ".requiem")
    project.manifest('[steps.a]\ncommand = "echo 1 > o"\noutputs = ["o"]\n')
    assert '.requiem" is a symlink' in project.refuse(*command).err
    assert untouched(outside)


@pytest.mark.parametrize("name", ["tmp", "staged", "displaced"])
def test_nor_are_the_directories_that_are_emptied(project: Project, outside: Path, name: str) -> None:
    project.manifest('[steps.a]\ncommand = "echo 1 > o"\noutputs = ["o"]\n')
    project.write("o", "mine")
    (project.root / ".requiem").mkdir()
    os.symlink(outside, project.root / ".requiem" / name)
    assert "is a symlink" in project.refuse("build").err
    assert untouched(outside)


@pytest.mark.parametrize("output", ["out/a", "out/sub/a", "out/sub/", "out/*.txt"])
def test_an_output_behind_a_link_is_refused_before_any_step_runs(project: Project, outside: Path, output: str) -> None:
    os.symlink(outside, project.root / "out")
    project.manifest(
        f'[steps.first]\ncommand = "echo 1 > first"\noutputs = ["first"]\n'
        f'[steps.x]\ncommand = "true"\ninputs = ["first"]\noutputs = ["{output}"]\n'
    )
    ran = project.refuse("build")
    assert "behind a symlink" in ran.err and "leads to" in ran.err
    assert not project.exists("first") and untouched(outside)


def test_what_is_only_kept_in_the_store_may_lie_behind_a_link(project: Project, outside: Path) -> None:
    os.symlink(outside, project.root / "out")
    project.manifest('[steps.x]\ncommand = "echo 1 > out/a"\noutputs = ["out/a"]\nlay_out = false\n')
    project.build()
    assert untouched(outside)


# Inputs


@pytest.mark.parametrize(
    ("links", "ok"),
    [
        ({"l": "f"}, True),
        ({"l": "m", "m": "d/n", "d/n": "../f"}, True),
        ({"l": "./f"}, True),
        ({"l": "gone"}, False),
        ({"l": "l"}, False),
        ({"l": "m", "m": "l"}, False),
        ({"l": "/etc/hostname"}, False),
        ({"l": "../outside/lock"}, False),
        ({"l": "d/../../outside/lock"}, False),
        ({"l": "m", "m": "/etc/hostname"}, False),
    ],
)
def test_an_input_that_is_a_link(project: Project, outside: Path, links: dict[str, str], ok: bool) -> None:
    project.write("f", "content\n")
    (project.root / "d").mkdir()
    for path, target in links.items():
        os.symlink(target, project.root / path)
    project.manifest('[steps.a]\ncommand = "cat l"\ninputs = ["l"]\n')
    if ok:
        project.build()
        assert project.run("log", "a").out == "content\n"
        project.write("f", "other\n")
        assert project.build().states == {"a": "ran"}, "what a link leads to counts"
    else:
        project.refuse("build")


@pytest.mark.parametrize("kind", ["pipe", "socket", pytest.param("device", marks=pytest.mark.root), "unreadable"])
def test_an_input_that_is_no_file(project: Project, kind: str, request: pytest.FixtureRequest) -> None:
    path = project.root / "i"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        request.addfinalizer(server.close)
        here = os.getcwd()
        os.chdir(project.root)  # A socket's path is short.
        server.bind("i")
        os.chdir(here)
    elif kind == "device":
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
    else:
        path.write_text("x")
        path.chmod(0)
        if os.geteuid() == 0:
            pytest.skip("root reads everything")
    project.manifest('[steps.a]\ncommand = "cat i"\ninputs = ["i"]\n')
    ran = project.run("build")
    assert ran.code in (2, 4) and ran.err.startswith("error: ") and '"' in ran.err
    assert "Traceback" not in ran.err


# Outputs


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("mkfifo o", "neither a file"),
        ("python3 -c 'import socket; socket.socket(1).bind(\"o\")'", "neither a file"),
        ("mkdir o", "is a directory"),
        ("ln -s /etc/passwd o", "outside of the workspace"),
        ("ln -s ../x o", "outside of the workspace"),
        ("mkdir d; ln -s d/../../x o", "outside of the workspace"),
        ("true", "was not produced"),
        ("truncate -s 1T o", "output_size"),
        ("for i in 1 2 3 4 5 6 7 8 9; do head -c 200000 /dev/zero > d.$i; done; touch o", "output_size"),
    ],
)
def test_an_output_that_cannot_be_kept_fails_in_words(project: Project, command: str, words: str) -> None:
    project.manifest(
        f"[steps.a]\ncommand = '''{command}'''\n"
        f'outputs = ["o"{", " + chr(34) + "d.*" + chr(34) if "d.$i" in command else ""}]\noutput_size = "1MiB"\n'
    )
    ran = project.build(expect=1)
    assert words in ran.err


def test_modes_that_mean_power_are_cleared(project: Project) -> None:
    project.manifest("""
        [steps.a]
        command = "echo 1 > o; chmod 0777 o; echo 2 > p; chmod 0 p; mkdir d; echo 3 > d/x; chmod 0 d; chmod +t ."
        outputs = ["o", "p", "d/"]
    """)
    project.build()
    assert [oct((project.root / path).stat().st_mode & 0o7777) for path in ("o", "p")] == ["0o755", "0o644"]
    assert project.read("d/x") == "3\n"


def test_set_uid_cannot_even_be_made(project: Project) -> None:
    project.manifest('[steps.a]\ncommand = "touch o; chmod u+s o"\noutputs = ["o"]\n')
    assert "Operation not permitted" in project.build(expect=1).err
    ran = project.run("build", "--sandbox", "process")
    assert ran.code == 0 and (project.root / "o").stat().st_mode & 0o7000 == 0


@pytest.mark.parametrize("name", ["a\nb", "a\tb", " ", "'", '"', "$HOME", "-rf", "\x1b[31m", "ü", "*", "a" * 255])
def test_a_hostile_name_in_a_directory_output_is_only_a_name(project: Project, name: str) -> None:
    project.write("name", name.encode())
    project.manifest(
        "[steps.a]\ncommand = '''mkdir d; echo x > \"d/$(cat name; echo .)\"'''\ninputs = [\"name\"]\noutputs = [\"d/\"]\n"
    )
    if len(name) == 255:
        project.build(expect=1)
        return
    ran = project.build()
    assert os.listdir(project.root / "d") == [name + "."]
    assert "\x1b[31m" not in ran.err
    (project.root / "d" / (name + ".")).unlink()
    assert project.build().states == {"a": "hit"}


def test_a_name_that_is_not_utf8_fails_in_words(project: Project) -> None:
    project.manifest("""[steps.a]\ncommand = "mkdir d; touch d/$'\\\\xff'"\noutputs = ["d/"]\n""")
    assert "not UTF-8" in project.build(expect=1).err


def test_what_a_step_writes_elsewhere_changes_nothing(project: Project, outside: Path) -> None:
    project.write("src", "s")
    where = [str(outside / "lock"), str(project.home / "x"), str(project.root / "src"), str(project.root / ".cas/x")]
    project.manifest(
        "[steps.a]\ncommand = '''for f in "
        + " ".join(json.dumps(path) for path in where)
        + "; do echo bad > \"$f\" || true; done'''\n"
    )
    project.build()
    assert untouched(outside) and project.read("src") == "s"
    assert not project.exists(".cas/x") and not (project.home / "x").exists()


@pytest.mark.parametrize("keys", ["", 'system = "host"', 'sandbox = "process"'])
@pytest.mark.parametrize("place", ["{home}/sdk", "{workspace}/sdk"])
def test_a_directory_of_the_path_may_lie_in_the_home(project: Project, place: str, keys: str) -> None:
    """Also where the workspace itself does: there a step sees it at its own place."""
    home = project.home if "home" in place else project.base
    sdk = Path(place.format(home=project.home, workspace=project.root))
    (sdk / "bin").mkdir(parents=True)
    (sdk / "bin/sdk-tool").write_text("#!/bin/sh\necho one\n")
    (sdk / "bin/sdk-tool").chmod(0o755)
    written = f"~/{sdk.relative_to(home)}"
    project.manifest(f"""
        [defaults]
        roots = ["sdk"]
        path = ["{written}/bin"]
        {keys}
        [roots.sdk]
        path = "{written}"
        [steps.named]
        command = ["sdk-tool"]
        tools = ["sdk-tool"]
        [steps.by-shell]
        command = "sdk-tool; echo $PATH"
    """)
    environment = {"HOME": str(home)}
    project.build(env=environment)
    assert project.run("log", "named").out == "one\n"
    assert "~" not in project.run("log", "by-shell").out
    request = json.loads(project.run("show", "request", "named", env=environment).out)
    assert request["policy"]["path"] == ["sdk/bin" if home != project.home else f"{home}/sdk/bin"]
    (sdk / "bin/sdk-tool").write_text("#!/bin/sh\necho two\n")
    assert set(project.build(env=environment).states.values()) == {"ran"}
