"""Doctor's probe boots the sandbox for real; where it cannot boot, it says why and what to do."""

from __future__ import annotations

import pytest

from requiem_build.core.errors import SandboxUnavailable
from requiem_build.sandbox import probe


@pytest.mark.userns
def test_every_protection_that_strict_needs_is_proven_here():
    found = {capability.name: capability for capability in probe.probe()}
    optional = {"landlock", "constant pid", "hidden host paths"}
    assert len(found) == 15
    assert [name for name, capability in found.items() if not capability.in_force and name not in optional] == []
    assert all(capability.detail for capability in found.values())


def test_a_host_without_strict_gets_a_reason_and_a_way(monkeypatch):
    def refuse(**_):
        raise SandboxUnavailable("not here", facts=[("operation", "new_user")], hint="do this")

    monkeypatch.setattr(probe, "StrictSandbox", refuse)
    (capability,) = probe.probe()
    assert (capability.in_force, capability.detail, capability.how_to_get) == (
        False,
        "not here; operation: new_user",
        "do this",
    )
