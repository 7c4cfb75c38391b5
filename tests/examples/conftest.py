"""A mark of its own for examples that fetch packages."""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "network: fetches packages; REQUIEM_OFFLINE=1 skips it, but never in CI")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("network") and os.environ.get("REQUIEM_OFFLINE"):
        if os.environ.get("CI"):
            pytest.fail("CI must run this test: REQUIEM_OFFLINE has no place there")
        pytest.skip("needs a network, and REQUIEM_OFFLINE is set")
