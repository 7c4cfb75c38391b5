"""Each perturbation reaches the step, and nothing else of what it sees changes."""

from __future__ import annotations

import os
import time

import pytest

from requiem_build.core.policy import WORLD_ENVIRONMENT
from requiem_build.engine.trials import find_clock_library
from requiem_build.sandbox.base import Job, Staged
from requiem_build.sandbox.linux import StrictSandbox
from requiem_build.sandbox.perturbation import STILL, Perturbation, perturbed_environment

pytestmark = pytest.mark.userns

LOOK = r"""
echo "hash $(python3 -c 'print(hash("a"))')"
echo "env $(env | grep -v -e ^PWD -e ^_ -e ^SHLVL | sort | tr '\n' ' ')"
echo "id $(id)"
echo "home $HOME $(ls -d ~)"
echo "host $(uname -n) $(cat /etc/hosts | tr '\n' ' ')"
echo "umask $(umask)"
echo "cwd $(pwd) $(touch written && echo writable)"
echo "order $(ls -U | tr '\n' ' ') $(ls -U d | tr '\n' ' ')"
echo "cpus $(nproc) $(python3 -c 'import os; print(os.cpu_count())')"
echo "addresses $(head -n 1 /proc/self/maps)"
echo "random $(head -c 8 /dev/urandom | od -An -tx1) $(python3 -c 'import os; print(os.urandom(4).hex())') $(cat /proc/sys/kernel/random/uuid)"
echo "day $(date +%F)"
echo "host-facts $(uname -r) $(cat /proc/version) $(grep MemTotal /proc/meminfo) $(df -k --output=size . | tail -n 1)"
echo "pid $$"
"""


def look(here: Perturbation) -> dict[str, str]:
    staged = [Staged(path, data=b"x") for path in ("a", "b", "d/a", "d/b")]
    with StrictSandbox(perturbation=here) as sandbox:
        finished = sandbox.run(Job(["bash", "-c", LOOK], WORLD_ENVIRONMENT, staged=staged))
    os.close(finished.workspace_fd)
    assert finished.exit_code == 0 and finished.stderr == b"" and finished.changed == (), finished
    return dict(line.split(" ", 1) for line in finished.stdout.decode().splitlines())


@pytest.fixture(scope="module")
def still() -> dict[str, str]:
    return look(STILL)


def test_two_runs_of_the_still_surroundings_differ_in_nothing_but_randomness(still: dict[str, str]) -> None:
    again = look(STILL)
    assert {name for name in still if still[name] != again[name]} <= {"random", "day"}


@pytest.mark.parametrize(
    ("here", "changes"),
    [
        (Perturbation(env=(("PYTHONHASHSEED", "4711"),)), {"hash", "env"}),
        (Perturbation(env=(("TZ", "XYZ-13:45"), ("OTHER", "1"))), {"env", "day"}),
        (Perturbation(uid=4321, gid=4321, user="someone"), {"id", "env"}),
        (Perturbation(home="/tmp/someone"), {"home", "env"}),
        (Perturbation(hostname="elsewhere"), {"host"}),
        (Perturbation(umask=0o077), {"umask"}),
        (Perturbation(workspace="/elsewhere/and/deeper"), {"cwd"}),
        (Perturbation(newest_last=True), {"order"}),
        (Perturbation(cpus=1), {"cpus"}),
        (Perturbation(addresses_vary=True), {"addresses"}),
        (Perturbation(other_host=True), {"host-facts"}),
        (Perturbation(first_pid=4711), {"pid"}),
        (Perturbation(own_view=True), set()),
    ],
    ids=lambda value: " ".join(sorted(value)) if isinstance(value, set) else "",
)
def test_a_perturbation_changes_what_it_says_and_nothing_else(
    still: dict[str, str], here: Perturbation, changes: set[str]
) -> None:
    if here.cpus == 1 and len(os.sched_getaffinity(0)) == 1:
        pytest.skip("one processor has no fewer")
    seen = look(here)
    differing = {name for name in still if still[name] != seen[name]}
    assert differing - {"random", "day"} == changes - {"day"}
    assert "writable" in seen["cwd"]


def test_randomness_can_be_held() -> None:
    assert look(Perturbation(held_random=True))["random"] == look(Perturbation(held_random=True))["random"]


def test_a_made_up_host_never_changes() -> None:
    """Uptime, load and free memory are others each time on a real one."""
    command = "cat /proc/uptime /proc/loadavg /proc/meminfo /proc/stat /proc/cpuinfo; uname -a; df ."
    seen = []
    for _ in range(2):
        with StrictSandbox(perturbation=Perturbation(other_host=True)) as sandbox:
            finished = sandbox.run(Job(["bash", "-c", command], WORLD_ENVIRONMENT))
        os.close(finished.workspace_fd)
        assert finished.exit_code == 0 and b"elsewhere" not in finished.stderr
        seen.append(finished.stdout)
    assert seen[0] == seen[1]


def test_the_clock_can_be_moved_and_frozen_and_nothing_else_changes() -> None:
    library = find_clock_library()
    if library is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs libfaketime")
    control = look(Perturbation(clock="+0d", library=library))
    moved = look(Perturbation(clock="+400d", library=library))
    assert moved["day"] == time.strftime("%F", time.gmtime(time.time() + 400 * 86400))
    assert {name for name in control if control[name] != moved[name]} == {"day", "random"}
    assert look(Perturbation(clock="2001-02-03 04:05:06", library=library))["day"] == "2001-02-03"


def test_what_a_step_chose_itself_is_left_alone() -> None:
    env = {**WORLD_ENVIRONMENT, "TZ": "Europe/Berlin", "HOME": "/workspace/home", "PATH": "/workspace/bin:/usr/bin"}
    here = Perturbation(env=(("TZ", "XYZ-1"), ("NEW", "1")), home="/tmp/x", user="y", workspace="/w")
    seen = perturbed_environment(env, here)
    assert (seen["TZ"], seen["HOME"], seen["USER"], seen["NEW"]) == ("Europe/Berlin", "/workspace/home", "y", "1")
    assert seen["PATH"] == "/w/bin:/usr/bin"
