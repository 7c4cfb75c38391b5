"""What the docs show is true: sessions are run, manifests are planned, links lead somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from project import SOURCE, Project

from requiem_build.engine import settings

PAGES = [SOURCE / "README.md", SOURCE / "CHANGELOG.md", *sorted((SOURCE / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_every_test_that_is_named_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (SOURCE / "docs/testing.md").read_text()))
    code = "".join(path.read_text() for path in (SOURCE / "tests").rglob("*.py"))
    there = set(re.findall(r"def (test_\w+)\(", code)) | {path.stem for path in (SOURCE / "tests").rglob("*.py")}
    ranges = {name for name in named if re.fullmatch(r"test_r\d\d", name)}  # "test_r03 to test_r13"
    assert len(named) > 200 and named - there - ranges == set()


def test_every_setting_is_documented() -> None:
    page = (SOURCE / "docs/guide/settings.md").read_text()
    wanted = {key for keys in settings._KEYS.values() for key in keys} | {f"[{name}" for name in settings._OPEN_TABLES}
    assert {name for name in wanted if name not in page} == set()
    code = "".join(path.read_text() for path in (SOURCE / "requiem_build").rglob("*.py"))
    variables = set(re.findall(r"environment(?:\.get\(|\[)\"((?:REQUIEM|XDG|NO|FORCE)_[A-Z_]+)\"", code))
    assert len(variables) >= 7 and {name for name in variables if name not in page} == set()


@pytest.mark.userns
@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", ["start.md", "store.md", "proof.md"])
def test_the_guides_sessions_run_as_shown(project: Project, tmp_path: Path, page: str) -> None:
    run_sessions(SOURCE / "docs/guide" / page, project, with_command(project, tmp_path))


@pytest.mark.userns
def test_the_sessions_about_the_sandbox_run_as_shown(project: Project, tmp_path: Path) -> None:
    page = SOURCE / "docs/guide/sandbox.md"
    project.write("requiem.toml", blocks(page, "toml")[0])
    run_sessions(page, project, with_command(project, tmp_path))


@pytest.mark.userns
@pytest.mark.gcc
def test_the_sessions_about_why_run_as_shown(project: Project, tmp_path: Path) -> None:
    page = SOURCE / "docs/guide/why.md"
    project.write("requiem.toml", blocks(page, "toml")[0])
    run_sessions(page, project, with_command(project, tmp_path))


@pytest.mark.userns
@pytest.mark.skipif(shutil.which("strace") is None and not os.environ.get("CI"), reason="needs strace")
def test_the_sessions_about_observing_run_as_shown(project: Project, tmp_path: Path) -> None:
    page = SOURCE / "docs/guide/observe.md"
    project.write("requiem.toml", blocks(page, "toml")[0])
    run_sessions(page, project, with_command(project, tmp_path))


def with_command(project: Project, tmp_path: Path) -> dict[str, str]:
    """An environment in whose PATH `requiem` is this very checkout."""
    command = tmp_path / "bin/requiem"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m requiem_build "$@"\n')
    command.chmod(0o755)
    environment = project.environment()
    environment["PATH"] = f"{command.parent}:{environment['PATH']}"
    return environment


@pytest.mark.userns
@pytest.mark.gcc
def test_the_sessions_about_the_system_run_as_shown(project: Project, tmp_path: Path) -> None:
    page = SOURCE / "docs/guide/system.md"
    manifest, added, *more = blocks(page, "toml")
    project.write("requiem.toml", manifest)
    project.write("main.c", blocks(page, "c")[0])
    project.write("report.py", "")
    project.write("Makefile", "report:\n\tpython3 report.py > report\n")
    shown = page.read_text().split(added)
    environment = with_command(project, tmp_path)
    for number, text in enumerate(shown):
        part = tmp_path / f"part{number}.md"
        part.write_text(text)
        run_sessions(part, project, environment)
        project.write("requiem.toml", manifest + added.replace("[steps.app]\n", ""))
    for text in more:
        project.write("requiem.toml", manifest + text)
        ran = project.run("list", "--json")
        assert ran.code == 0, ran.err


def run_sessions(page: Path, project: Project, environment: dict[str, str]) -> None:
    for session in blocks(page, "console"):
        lines = session.splitlines()
        typed = [line[2:] for line in lines if line.startswith("$ ")]
        shown = [line for line in lines if not line.startswith("$ ")]
        done = subprocess.run(
            ["bash", "-euxc", "\n".join(typed)], cwd=project.root, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        for line in shown:
            assert line in done.stdout + done.stderr


TRUST = SOURCE / "docs/guide/trust.md"


@pytest.mark.userns
def test_the_sessions_about_trust_run_as_shown(tmp_path: Path) -> None:
    """Each on the machine that it names; what one makes is brought to the others before the next."""
    machines = {name: Project(tmp_path / name) for name in ("any", "ci", "laptop")}
    command = tmp_path / "bin/requiem"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m requiem_build "$@"\n')
    command.chmod(0o755)
    for machine in machines.values():
        machine.manifest('[steps.hello]\ncommand = "echo hello > build/hello.txt"\noutputs = ["build/hello.txt"]\n')
    shown = re.findall(r"^```(console|toml) (\w+)\n(.*?)^```", TRUST.read_text(), re.M | re.S)
    assert len(shown) == len(re.findall(r"^```\w", TRUST.read_text(), re.M))
    for kind, name, text in shown:
        machine = machines[name]
        if kind == "toml":
            machine.write("../home/config/requiem/config.toml", text)
            continue
        environment = machine.environment({"REQUIEM_CAS_DIR": str(tmp_path / "cas")})
        environment["PATH"] = f"{command.parent}:{environment['PATH']}"
        lines = text.splitlines()
        typed = "\n".join(line[2:] for line in lines if line.startswith("$ "))
        done = subprocess.run(
            ["bash", "-euxc", typed], cwd=machine.root, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        for line in lines:
            assert line.startswith("$ ") or line in done.stdout + done.stderr
        for made in [*machine.root.glob("*.pem"), *machine.root.glob("*.json"), *machine.root.glob("*.tar")]:
            for other in machines.values():
                other.write(made.name, made.read_bytes())


def test_the_manifests_of_readme_and_guide_are_planned(project: Project) -> None:
    for name in ("name.txt", "notes.txt", "src/a.c", "requirements.lock", "plot.py", "data.csv"):
        project.write(name, "x\n")
    for page in (SOURCE / "README.md", SOURCE / "docs/guide/start.md"):
        for text in blocks(page, "toml"):
            head = "" if "[project]" in text else '[project]\nname = "x"\n'
            project.write("requiem.toml", head + text)
            ran = project.run("list", "--json")
            assert ran.code == 0, ran.err
