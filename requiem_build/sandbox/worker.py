"""The process inside the walls: applies lists of operations and runs one step at a time. It decides nothing.

`linux.py` starts it with a bare interpreter (`-I -S`), tells it by operations how to wall itself in (`boot.py`),
and then sends jobs (`staging.py`, `processes.py`). It becomes PID 1 of its own namespaces, so whatever happens
to it ends everything it started.

For each job a thread that is thrown away afterwards takes private mount and IPC namespaces, stages the
inputs, gives up every right and spawns the command: on Linux all of these belong to the thread. Python is
never forked for a step without resource limits, because a fork of even a small interpreter costs more than
all the walls together.

These modules use the standard library only, and import everything before the first operation: the files of
the interpreter may lie where the unprivileged user of the worker cannot read them.
"""

from __future__ import annotations

import gc
import os
import socket
from typing import Any

from . import syscalls
from .boot import CHANNEL, Boot, open_socket_counts, raise_loopback
from .processes import Stream, Tree, Watch
from .staging import Preparation
from .starting import Refusal
from .threads import in_thread
from .wire import Channel


class Worker:
    """Takes jobs from the channel, one at a time, until the engine goes away."""

    def __init__(self, channel: Channel, boot: Boot, program: bytes | None) -> None:
        self.channel = channel
        self.boot = boot
        self.filter = None if program is None else syscalls.Filter(program)

    def serve(self) -> None:
        while True:
            kind, *rest = self.channel.receive()[0]
            if kind == "run":
                self._run(rest[0])
            # A late cancellation of a job that has already ended: nothing to do.

    def _run(self, job: dict[str, Any]) -> None:
        streams = (Stream(job["max_output_bytes"]), Stream(job["max_output_bytes"]))
        preparation = Preparation(self.boot, self.filter)
        failure: list[BaseException] = []
        in_thread(preparation.start, failure, job, streams[0].writer, streams[1].writer)
        for stream in streams:
            stream.close_writer()
        try:
            if failure and not isinstance(failure[0], Refusal):
                # What was mounted for the job went away with its thread; it only remains to say why.
                self.channel.send(("fault", repr(preparation.applying)[:400], *_cause(failure[0])))
            elif failure:
                reply = {"refused": str(failure[0]), "changed": []}
                self.channel.send(("ended", reply), preparation.workspace)
            else:
                self._follow(job, preparation, streams)
        finally:
            for stream in streams:
                stream.close()
            preparation.release()
            if preparation.workspace >= 0:
                os.close(preparation.workspace)
        preparation.remove_mountpoints()
        self._renew_network()

    def _follow(self, job: dict[str, Any], preparation: Preparation, streams: tuple[Stream, Stream]) -> None:
        watch = Watch(self.channel, job["number"], Tree(preparation.pid), streams)
        reply = watch.follow(job["timeout_ms"])
        reply["changed"] = preparation.changed()
        reply["tmp_full"] = _is_full(preparation.tmp)
        self.channel.send(("ended", reply), preparation.workspace)

    def _renew_network(self) -> None:
        """Connections that linger (TIME_WAIT, orphans) would hold ports of the next step."""
        if self.boot.sockets < 0:
            return
        counts = os.pread(self.boot.sockets, 4096, 0).split(b"\n")
        line = next((line for line in counts if line.startswith(b"TCP:")), b"").split()
        numbers = dict(zip(line[1::2], line[2::2], strict=False))
        if any(int(numbers.get(name, b"0")) for name in (b"inuse", b"orphan", b"tw")):
            syscalls.unshare(syscalls.CLONE_NEWNET)
            raise_loopback()
            os.close(self.boot.sockets)
            self.boot.sockets = open_socket_counts()


def _is_full(directory: int) -> bool:
    seen = os.fstatvfs(directory)
    return seen.f_blocks > 0 and seen.f_bavail * seen.f_frsize < 65536


def _cause(error: BaseException) -> tuple[int, str]:
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return error.errno or 0, f"{os.strerror(error.errno or 0)}{where}"
    return 0, f"{type(error).__name__}: {error}"


def main() -> None:
    os.closerange(CHANNEL + 1, 1 << 20)
    os.set_inheritable(CHANNEL, False)
    os.umask(0o022)
    channel = Channel(socket.socket(fileno=CHANNEL))
    try:
        setup = channel.receive()[0]
        engine = os.pidfd_open(setup["engine"])
        if os.getppid() != setup["engine"]:
            raise EOFError
        boot = Boot(engine)
        for operation in setup["operations"]:
            try:
                getattr(boot, operation[0])(*operation[1:])
            except BaseException as error:
                channel.send(("unavailable", repr(operation)[:400], *_cause(error)))
                raise EOFError from error
        channel.send(("ready", boot.facts))
        worker = Worker(channel, boot, setup["filter"])
        del setup
        gc.freeze()
        worker.serve()
    except EOFError:
        pass
    finally:
        os._exit(0)
