"""The local executor's sandboxes: none outlives it, however busy they are when it ends."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from requiem_build.core.digest import object_digest
from requiem_build.core.errors import EnvironmentFault
from requiem_build.core.policy import WORLD_ENVIRONMENT, Limits, Policy
from requiem_build.core.request import SYSTEM_ROOT, Request
from requiem_build.executors.base import Ran
from requiem_build.executors.blobs import Blobs
from requiem_build.executors.local import LocalExecutor
from requiem_build.sandbox.base import Sandbox
from requiem_build.sandbox.linux import StrictSandbox
from requiem_build.sandbox.posix import ProcessSandbox
from requiem_build.store.layout import Store

pytestmark = pytest.mark.userns


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[Blobs]:
    yield Blobs(Store(tmp_path / "store").objects)


def request_of(*command: str, level: str = "strict") -> Request:
    system = {SYSTEM_ROOT: object_digest(b"the host's")}
    policy = Policy(sandbox=level, system="host")
    platform = {"os": "linux", "arch": os.uname().machine}
    return Request(command, dict(WORLD_ENVIRONMENT), {}, (), policy, platform, roots=system)


def workers() -> set[str]:
    return set(subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("level", ["strict", "process"])
def test_what_is_busy_when_it_is_closed_ends_with_its_step(level: str, blobs: Blobs, tmp_path: Path) -> None:
    begun = threading.Event()
    go_on = threading.Event()

    def boot(_: Request) -> Sandbox:
        made: Sandbox = StrictSandbox() if level == "strict" else ProcessSandbox(str(tmp_path / "scratch"))
        run = made.run

        def held(job):  # type: ignore[no-untyped-def]
            begun.set()
            assert go_on.wait(60)
            return run(job)

        made.run = held  # type: ignore[method-assign]
        return made

    before = workers()
    executor = LocalExecutor(blobs, boot, workspace=str(tmp_path))
    ran: list[Ran] = []
    thread = threading.Thread(
        target=lambda: ran.append(executor.execute(request_of("echo", "done", level=level), {}, Limits()))
    )
    thread.start()
    assert begun.wait(60)
    executor.close()
    go_on.set()
    thread.join()
    assert ran[0].stdout == b"done\n"
    assert {pid for pid in workers() - before if is_worker(pid)} == set()


def is_worker(pid: str) -> bool:
    try:
        return b"walls" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_what_is_idle_is_closed_at_once_and_closing_is_repeatable(blobs: Blobs, tmp_path: Path) -> None:
    executor = LocalExecutor(blobs, lambda _: StrictSandbox(), workspace=str(tmp_path), jobs=2)
    assert executor.execute(request_of("true"), {}, Limits()).result.exit_code == 0
    (kept,) = [sandbox for pool in executor._idle.values() for sandbox in pool]
    executor.close()
    executor.close()
    with pytest.raises(AssertionError):
        kept.run(None)  # type: ignore[arg-type]


def test_what_the_host_refused_is_known_to_whoever_tells_it(blobs: Blobs, tmp_path: Path) -> None:
    """The hint hangs on it: the cause of a refusal was lost on its way."""

    def boot(_: Request) -> Sandbox:
        made = ProcessSandbox(str(tmp_path / "scratch"))
        made._stage = staged_on_a_full_disk  # type: ignore[method-assign]
        return made

    executor = LocalExecutor(blobs, boot, workspace=str(tmp_path))
    with pytest.raises(EnvironmentFault) as raised:
        executor.execute(request_of("true", level="process"), {}, Limits())
    executor.close()
    assert isinstance(raised.value.__cause__, OSError) and raised.value.__cause__.errno == errno.ENOSPC
    assert [label for label, _ in raised.value.facts] == ["cause"]


def staged_on_a_full_disk(_: object) -> dict[str, tuple[int, int, int, int, int]]:
    raise OSError(errno.ENOSPC, "No space left on device")
