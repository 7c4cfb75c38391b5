"""Doctor's probe boots the sandbox for real; where it cannot boot, it says why and what to do."""

from __future__ import annotations

import os
import time

import pytest

from requiem_build.core.errors import SandboxUnavailable
from requiem_build.sandbox import linux, probe, probe_held


@pytest.mark.userns
def test_every_protection_that_strict_needs_is_proven_here():
    found = {capability.name: capability for capability in probe.probe()}
    optional = {"landlock", "constant pid", "hidden host paths", "frozen clock", "seeded randomness"}
    assert len(found) == 17
    assert [name for name, capability in found.items() if not capability.in_force and name not in optional] == []
    assert all(capability.detail for capability in found.values())


@pytest.mark.userns
def test_the_self_test_of_the_clock_is_honest():
    """Where nothing is held it says so, each way by its name."""
    if os.uname().machine != "x86_64":
        pytest.skip("there is no self-test, and it is refused")
    real = probe_held.ask()
    assert all(abs(real[way] - time.time()) < 100 for way in ("dynamic", "raw call", "static program"))
    assert real["vdso"] != 0
    assert probe_held._clock(real, real) == (False, "another date is seen by: dynamic, raw call, static program")
    assert probe_held._random(real, probe_held.ask())[0] is False
    frozen = probe_held.ask(clock="frozen")
    assert probe_held._clock(frozen, frozen)[0] is True
    assert probe_held._clock(frozen, {**frozen, "vdso": 1})[0] is False


def test_a_host_without_strict_gets_a_reason_and_a_way(monkeypatch):
    def refuse(**_):
        raise SandboxUnavailable("not here", facts=[("operation", "new_user")], hint="do this")

    monkeypatch.setattr(linux, "StrictSandbox", refuse)
    (capability,) = probe.probe()
    assert (capability.in_force, capability.detail, capability.how_to_get) == (
        False,
        "not here; operation: new_user",
        "do this",
    )
