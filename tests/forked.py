"""Command lines run in forks of a process that has imported Requiem already: what they cost is what they do.

An interpreter that starts and imports everything takes longer than most builds of tests. Each command still has a
process of its own, with its environment, directory, descriptors and ending, and comes in by the package's own door.
With REQUIEM_TESTS_FORK=0, and so with `tests/run --whole`, an interpreter is started each time.
"""

from __future__ import annotations

import array
import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

WANTED = os.environ.get("REQUIEM_TESTS_FORK") != "0" and sys.platform == "linux"
SOURCE = str(Path(__file__).resolve().parent.parent)
HEEDED = ("LANG", "LC_", "PYTHON", "COVERAGE", "LD_")
"""Variables that an interpreter heeds when it starts."""
SLOW = ("networkx", "jinja2", "zstandard", "rfc8785", "cryptography.hazmat.primitives.asymmetric.ed25519", "tomllib")
MESSAGE_MAX = 128 << 10


def would_do(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a fork does the same as an interpreter that is started."""
    heeded = {name: value for name, value in environment.items() if name.startswith(HEEDED)}
    usual = {"PYTHONPATH": SOURCE, **({"LANG": os.environ["LANG"]} if "LANG" in os.environ else {})}
    return WANTED and heeded == usual and "--allow-hash-fallback" not in arguments


def run(
    arguments: Sequence[str], cwd: str, environment: Mapping[str, str], timeout_s: float, read_only: str = ""
) -> tuple[int, bytes, bytes]:
    """Exit code (negative: by that signal), stdout and stderr. Raises TimeoutExpired, when it has been killed.

    `read_only`: a directory that for this command lies on a file system that cannot be written (as root).
    """
    mask = os.umask(0)
    os.umask(mask)
    words = json.dumps([["requiem", *arguments], cwd, dict(environment), mask, read_only]).encode()
    assert len(words) <= MESSAGE_MAX
    pipes = [os.pipe() for _ in range(3)]
    try:
        socket.send_fds(_server(os.getpid()), [words], [writing for _, writing in pipes])
    finally:
        for _, writing in pipes:
            os.close(writing)
    told, out, err = _read_all([reading for reading, _ in pipes], arguments, timeout_s)
    _, status = array.array("q", told)
    return os.waitstatus_to_exitcode(status), out, err


@cache
def _server(pid: int) -> socket.socket:
    """The line to the one of this process: it ends when that is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {name: os.environ[name] for name in ("LANG", "PATH") if name in os.environ}
    command = [sys.executable, __file__, str(theirs.fileno())]
    process = subprocess.Popen(command, env={**environment, "PYTHONPATH": SOURCE}, cwd="/", pass_fds=[theirs.fileno()])
    theirs.close()
    atexit.register(_end, ours, process)
    return ours


def _end(line: socket.socket, process: subprocess.Popen[bytes]) -> None:
    line.close()
    process.wait()


def _read_all(descriptors: Sequence[int], arguments: Sequence[str], timeout_s: float) -> list[bytes]:
    """What comes out of each until all are at their end: nothing that was started may hold them open."""
    found = {descriptor: bytearray() for descriptor in descriptors}
    end = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, selectors.EVENT_READ)
        try:
            while selector.get_map():
                ready = selector.select(end - time.monotonic())
                if time.monotonic() > end:
                    pid = array.array("q", bytes(found[descriptors[0]][:8]))
                    os.kill(pid[0], signal.SIGKILL)
                    raise subprocess.TimeoutExpired(list(arguments), timeout_s)
                for key, _ in ready:
                    content = os.read(key.fd, 1 << 16)
                    found[key.fd] += content
                    if not content:
                        selector.unregister(key.fd)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
    return [bytes(content) for content in found.values()]


# The server


def serve(line: socket.socket, tend: Callable[..., None]) -> None:
    """Each message with its descriptors is tended in a fork of its own."""
    preload()
    while True:
        words, descriptors, _, _ = socket.recv_fds(line, MESSAGE_MAX, 3)
        if not words:
            os._exit(0)
        if os.fork() == 0:
            line.close()
            tend(words, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def preload() -> None:
    import importlib
    import pkgutil

    import requiem_build

    for found in pkgutil.walk_packages(requiem_build.__path__, "requiem_build."):
        if not found.name.endswith("__main__"):
            with suppress(ImportError):
                importlib.import_module(found.name)
    for name in SLOW:
        with suppress(ImportError):
            importlib.import_module(name)


def tend(words: bytes, told: int, out: int, err: int) -> None:
    """Starts one command and tells its number, then how it ended."""
    pid = os.fork()
    if pid == 0:
        os.close(told)
        become(words, out, err)
    for descriptor in (out, err):
        os.close(descriptor)
    os.write(told, array.array("q", [pid]).tobytes())
    os.write(told, array.array("q", [os.waitpid(pid, 0)[1]]).tobytes())
    os._exit(0)


def become(words: bytes, out: int, err: int) -> None:
    """As an interpreter that has just been started with `-m requiem_build`, from there to its end."""
    import runpy
    import threading
    import traceback

    argv, cwd, environment, mask, read_only = json.loads(words)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, out, err)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.umask(mask)
    if read_only:
        close(read_only)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    code = 0
    try:
        runpy.run_module("requiem_build", run_name="__main__", alter_sys=True)
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def close(directory: str) -> None:
    """As `unshare -m`, `mount --bind` and `mount -o remount,bind,ro` do. Raises OSError."""
    import ctypes

    libc, name = ctypes.CDLL(None, use_errno=True), os.fsencode(directory)
    new_namespace, read_only, remount, bind, private = 0x20000, 1, 32, 4096, 0x44000
    calls = (
        lambda: libc.unshare(new_namespace),
        lambda: libc.mount(None, b"/", None, ctypes.c_ulong(private), None),
        lambda: libc.mount(name, name, None, ctypes.c_ulong(bind), None),
        lambda: libc.mount(None, name, None, ctypes.c_ulong(remount | bind | read_only), None),
    )
    for call in calls:
        if call() != 0:
            raise OSError(ctypes.get_errno(), directory)


if __name__ == "__main__":
    sys.path.pop(0)  # The tests' own modules are no part of a command's world.
    serve(socket.socket(fileno=int(sys.argv[1])), tend)
