"""Limits by a delegated cgroup v2. What its files do is the kernel's; what is written to them, and when, is tested here.

A plain directory stands for one, since few machines that run tests have a delegated one.
"""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path
from typing import Any

import pytest
from project import Project

from requiem_build.core.errors import EnvironmentFault
from requiem_build.core.policy import Limits
from requiem_build.sandbox.cgroups import Cgroups
from requiem_build.sandbox.linux import StrictSandbox
from requiem_build.sandbox.posix import ProcessSandbox

pytestmark = pytest.mark.userns
LIMITS = Limits(memory_bytes=300_000_000, processes=50)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "delegated"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "cgroup.controllers").write_text("cpu memory pids\n")
    return folder


def group_of(directory: Path) -> dict[str, str]:
    """The files of the one group that was made. The kernel would let it be removed; a plain directory stays."""
    (found,) = [path for path in directory.iterdir() if path.is_dir()]
    return {path.name: path.read_text() for path in found.iterdir()}


@pytest.mark.parametrize("level", ["strict", "process"])
def test_a_step_is_put_into_a_group_of_its_own_with_its_limits(
    level: str, directory: Path, tmp_path: Path, run_in: Any, python: str
) -> None:
    cgroups = Cgroups(str(directory))
    assert (directory / "cgroup.subtree_control").read_text() == "+memory +pids"
    made: Any = (
        StrictSandbox(cgroups=cgroups) if level == "strict" else ProcessSandbox(str(tmp_path / "scratch"), cgroups)
    )
    script = "import os, resource as r; print(r.getrlimit(r.RLIMIT_AS)[0], len(os.listdir('/proc/self/fd')))"
    with made as sandbox:
        step = run_in(sandbox, python, "-I", "-S", "-c", script, limits=LIMITS)
    assert step.out == f"{resource.RLIM_INFINITY} 4\n", "no address space limit, and no descriptor of the group"
    assert step.finished.protection["memory_limit"] == "cgroup2"
    files = group_of(directory)
    assert files.pop("cgroup.kill") == "1"
    assert files == {
        "memory.max": "300000000",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "50",
        "cgroup.procs": "0",
    }


def test_a_step_without_such_a_limit_has_no_group(directory: Path, run_in: Any) -> None:
    with StrictSandbox(cgroups=Cgroups(str(directory))) as sandbox:
        step = run_in(sandbox, "true", limits=Limits(timeout_ms=60_000))
    assert step.finished.exit_code == 0 and "memory_limit" not in step.finished.protection
    assert [path for path in directory.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("file", "line", "termination"),
    [("memory.events", "oom_kill 1", "memory"), ("pids.events", "max 3", "processes"), ("x", "oom_kill 1", "exited")],
)
def test_what_the_kernel_counted_names_the_limit(
    directory: Path, tmp_path: Path, run_in: Any, file: str, line: str, termination: str
) -> None:
    script = f"cd {directory}/requiem-*; echo low 0 > {file}; echo {line} >> {file}; exit 1"
    with ProcessSandbox(str(tmp_path / "scratch"), Cgroups(str(directory))) as sandbox:
        assert run_in(sandbox, "sh", "-c", script, limits=LIMITS).finished.termination == termination


def test_who_was_refused_a_process_and_went_on_has_not_failed(directory: Path, tmp_path: Path, run_in: Any) -> None:
    """As where the kernel's own limit of processes refuses it. Who was out of memory was killed."""
    script = f"cd {directory}/requiem-*; echo max 3 > pids.events"
    with ProcessSandbox(str(tmp_path / "scratch"), Cgroups(str(directory))) as sandbox:
        finished = run_in(sandbox, "sh", "-c", script, limits=LIMITS).finished
    assert (finished.exit_code, finished.termination) == (0, "exited")


def test_a_step_that_cannot_join_is_the_hosts_fault_and_does_not_run(directory: Path, run_in: Any) -> None:
    cgroups = Cgroups(str(directory))
    group = cgroups.make(LIMITS)
    assert group is not None
    os.close(group.procs)
    group.procs = os.open(os.devnull, os.O_RDONLY)
    cgroups.make = lambda _: group  # type: ignore[method-assign]
    with StrictSandbox(cgroups=cgroups) as sandbox, pytest.raises(EnvironmentFault) as caught:
        run_in(sandbox, "true", limits=LIMITS)
    assert "cannot join its cgroup" in str(caught.value.facts)


@pytest.mark.parametrize("harm", ["no controllers", "no cgroup", "nowhere"])
def test_a_directory_that_cannot_hold_limits_is_refused(harm: str, directory: Path, tmp_path: Path) -> None:
    place = directory
    if harm == "no controllers":
        (directory / "cgroup.controllers").write_text("hugetlb\n")
    elif harm == "no cgroup":
        (directory / "cgroup.controllers").unlink()
    else:
        place = tmp_path / "no/where"
    with pytest.raises(EnvironmentFault) as caught:
        Cgroups(str(place))
    assert caught.value.exit_code == 4 and "systemd-run" in (caught.value.hint or "")


def test_it_is_named_in_the_users_configuration_and_never_silently_left_out(project: Project, directory: Path) -> None:
    config = project.home / "config/requiem/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[limits]\ncgroup = "{directory}"\n')
    project.manifest('[steps.a]\ncommand = "true"\nmemory = "300MiB"\n')
    project.build()
    assert '"memory_limit":"cgroup2"' in project.run("show", "record", "a").out
    (directory / "cgroup.controllers").write_text("\n")
    assert "cannot hold limits" in project.refuse("build", "--cache", "off", expect=4).err
    config.unlink()
    project.build("--cache", "wo")
    config.write_text('[limits]\ncgroup = "relative"\n')
    assert re.search(r"limits\.cgroup is 'relative'", project.refuse("build").err)
