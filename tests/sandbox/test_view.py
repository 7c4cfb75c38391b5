"""The plans of a view are decided by pure functions: what they say can be read without any kernel."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest

from requiem_build.core.errors import EnvironmentFault
from requiem_build.core.policy import WORLD_ENVIRONMENT, Limits
from requiem_build.sandbox.base import Job, Mount, Staged
from requiem_build.sandbox.boot import Boot
from requiem_build.sandbox.layout import plan_directories, plan_rlimits
from requiem_build.sandbox.linux import how_to_get
from requiem_build.sandbox.staging import Preparation
from requiem_build.sandbox.view import plan_job
from requiem_build.sandbox.walls import Host, plan_boot

HOST = Host(
    machine="x86_64",
    drop_to=65533,
    top=(("bin", "usr/bin"), ("lib", None)),
    etc_files={"/etc/ld.so.cache": b"cache", "/etc/ssl/openssl.cnf": b"conf"},
    etc_directories=("/etc/alternatives",),
    certificates=("/etc/ssl/certs",),
    resolver=b"nameserver 192.0.2.1\n",
    landlock=7,
)

JOB = Job(["true"], WORLD_ENVIRONMENT)

FULL = replace(
    JOB,
    stdin="/store/in",
    staged=[Staged("b", data=b"b"), Staged("a/l", symlink="../b"), Staged("big", source="/store/big"), Staged("d")],
    mounts=[
        Mount("/opt/sdk", "/opt/sdk"),
        Mount("/home/me/p/venv", "/workspace/venv"),
        Mount("/opt/sdk/part", "/srv/part"),
    ],
    directories=["out/deep"],
)
AREAS = ["/home/me/p/venv", "/opt/sdk", "/store"]


def verbs(plan):
    return [operation[0] for operation in plan]


@pytest.mark.parametrize(
    ("plan", "applier"),
    [
        (plan_boot(HOST, AREAS, "none"), Boot),
        (plan_boot(HOST, [], "host"), Boot),
        (plan_job(FULL, AREAS, 7), Preparation),
        (plan_job(replace(FULL, stdin=b"x"), AREAS, 0), Preparation),
    ],
)
def test_every_operation_is_a_method_of_the_worker_with_these_arguments(plan, applier):
    for verb, *arguments in plan:
        inspect.signature(getattr(applier, verb)).bind(None, *arguments)


def test_root_opens_its_directories_before_it_drops_its_identity():
    plan = plan_boot(HOST, AREAS, "none")
    assert plan[:3] == [("open_trees", AREAS), ("drop_identity", 65533), ("core_filter", "33")]
    assert "open_trees" not in verbs(plan_boot(replace(HOST, drop_to=None), AREAS, "none"))


def test_only_the_closed_network_has_a_loopback_of_its_own():
    assert "loopback" in verbs(plan_boot(HOST, [], "none"))
    assert "loopback" not in verbs(plan_boot(HOST, [], "host"))


def test_only_the_host_network_shows_resolver_and_certificates():
    closed, open_ = plan_boot(HOST, [], "none"), plan_boot(HOST, [], "host")
    assert ("file", "/etc/resolv.conf", HOST.resolver) in open_
    assert ("bind", "/etc/ssl/certs", "/etc/ssl/certs") in open_
    assert not any("resolv" in str(operation) or "certs" in str(operation) for operation in closed)


def test_a_plan_is_the_same_whatever_the_order_of_its_parts():
    turned = replace(FULL, staged=FULL.staged[::-1], mounts=FULL.mounts[::-1])
    assert plan_job(turned, AREAS, 7) == plan_job(FULL, AREAS, 7)


def test_namespaces_come_after_borrowing_and_landlock_last():
    found = verbs(plan_job(FULL, AREAS, 7))
    assert found[:3] == ["borrow", "new_namespaces", "hide_trees"]
    assert found[-1] == "landlock"
    assert "landlock" not in verbs(plan_job(FULL, AREAS, 0))


def test_a_job_without_sources_borrows_nothing():
    assert verbs(plan_job(JOB, AREAS, 7))[0] == "new_namespaces"


def test_roots_elsewhere_than_on_the_host_are_hidden():
    (_, borrowed), *_ = plan_job(FULL, AREAS, 7)
    whole = {area: hidden for _, area, hidden in borrowed[:2]}
    assert whole == {0: True, 1: False}


def test_links_are_made_after_everything_that_could_go_through_them():
    found = verbs(plan_job(FULL, AREAS, 7))
    last_file = max(place for place, verb in enumerate(found) if verb in ("write", "show_file", "make_directory"))
    assert found.index("link") > last_file


@pytest.mark.parametrize("target", ["/workspace", "/proc/x", "/dev/x", "/sys", "relative", "/", "/opt/../etc"])
def test_a_root_is_not_shown_just_anywhere(target):
    with pytest.raises(EnvironmentFault):
        plan_job(replace(JOB, mounts=[Mount("/opt/sdk", target)]), AREAS, 7)


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../b", ""])
def test_an_input_outside_of_the_workspace_is_a_bug(path):
    with pytest.raises(AssertionError):
        plan_job(replace(JOB, staged=[Staged(path, data=b"")]), AREAS, 7)


def test_directories_come_parents_first_and_once():
    assert plan_directories(replace(FULL, cwd="a/work")) == ["a", "a/work", "d", "out", "out/deep"]


def test_a_similar_name_is_not_the_same_area():
    with pytest.raises(EnvironmentFault):
        plan_job(replace(JOB, staged=[Staged("a", source="/store2/a")]), AREAS, 7)


def test_cpu_time_is_rounded_up_and_has_a_last_word():
    assert plan_rlimits(Limits(cpu_time_ms=1500)) == [(0, 2, 3)]


@pytest.mark.parametrize(
    ("number", "settings", "contained", "words"),
    [
        (28, {"user/max_user_namespaces": b"0"}, False, "user.max_user_namespaces"),
        (1, {"kernel/unprivileged_userns_clone": b"0"}, False, "unprivileged_userns_clone=1"),
        (13, {"kernel/apparmor_restrict_unprivileged_userns": b"1"}, False, "AppArmor"),
        (1, {}, True, "seccomp=unconfined"),
        (38, {}, False, "kernel from 5.12"),
        (1, {}, False, "may not make"),
    ],
)
def test_the_hint_is_for_this_host(number, settings, contained, words):
    assert words in how_to_get(number, settings, contained)
