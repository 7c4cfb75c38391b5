"""`requiem shell STEP`: look around where a step runs."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from ..core.errors import Interrupted, UsageError
from ..core.fields import replace
from .console import plain, stdin_pieces, write_bytes, write_err
from .globals import Globals
from .observe import build_needed
from .running import heeding_signals, make_options, parse_sets

if TYPE_CHECKING:
    from ..engine.rehearsal import Part, Stage
    from ..sandbox.base import Finished, Job

CAPTURED_MAX = 64 * 1024 * 1024
LISTED_MAX = 20


@click.command()
@click.argument("step")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
@click.option("--sandbox", "sandbox", help="strict, process or none, instead of the step's own level.")
@click.option("--profile", "profile", help="Use [profiles.NAME].")
@click.option("--set", "set_", multiple=True, help="Set a variable: NAME=VALUE.")
@click.pass_context
def command(
    context: click.Context,
    step: str,
    words: tuple[str, ...],
    sandbox: str | None,
    profile: str | None,
    set_: tuple[str, ...],
) -> int:
    """Open a shell in the sandbox of a step, or run one command there. Nothing of it is remembered."""
    from ..engine.keeping import wanted
    from ..engine.rehearsal import Stage, set_scene

    shared: Globals = context.obj
    keep = bool(wanted(shared.environment))
    options = make_options(shared, mode="turbo", jobs=None, profile=profile, sets=parse_sets(set_), sandbox=sandbox)
    scene = set_scene(options, step, lambda wanted: build_needed(wanted, shared))
    if len(scene.parts) > 1:
        names = ", ".join(part.instance.name for part in scene.parts[:5])
        raise UsageError(f'"{step}" is {len(scene.parts)} instances', facts=[("instances", names)], hint="name one")
    part = scene.parts[0]
    with heeding_signals() as heed, Stage(scene.site, options.environment) as stage:
        heed(stage.interrupt)
        finished, made = _run(stage, part, words, shared, keep=keep)
    if stage.signal is not None:
        raise Interrupted(stage.signal)
    if finished.reason:
        write_err(f"error: {plain(finished.reason)}\n")
    if made and not shared.quiet:
        more = f" and {len(made) - LISTED_MAX} more" if len(made) > LISTED_MAX else ""
        write_err(f"dropped: {', '.join(plain(path) for path in made[:LISTED_MAX])}{more}\n")
    return finished.exit_code


def _run(
    stage: Stage, part: Part, words: tuple[str, ...], shared: Globals, *, keep: bool
) -> tuple[Finished, list[str]]:
    """How it ended, and what it left, both without secrets. A terminal shows them as the step's shell does."""
    from ..engine.keeping import Keeper
    from ..engine.rehearsal import left_behind
    from ..executors.local import confide, masked

    masker = stage.masker(part)
    job = confide(_job(stage.job(part), part, words, shared), masker)
    sandbox = stage.boot(part.request)
    attached = part.request.policy.sandbox != "none" and _has_terminal()
    if attached:
        with _terminal() as proxy:
            finished = sandbox.run(replace(job, on_terminal=proxy))
    else:
        finished = sandbox.run(job)
    try:
        finished = masked(finished, masker, CAPTURED_MAX)
        write_bytes(finished.stdout)
        sys.stderr.buffer.write(finished.stderr)
        sys.stderr.flush()
        made = left_behind(finished, job) if part.request.policy.sandbox != "none" else []
        if keep:
            name = part.instance.name
            keeper = Keeper(stage.site.dot, "all", lambda _: name, lambda text: write_err(f"{plain(text)}\n"))
            keeper(part.request, job, finished, failed=True, masker=masker)
    finally:
        finished.close()
    return finished, made if masker is None else [masker.mask_text(path) for path in made]


def _has_terminal() -> bool:
    return sys.stdin is not None and os.isatty(0) and os.isatty(1)


def _job(job: Job, part: Part, words: tuple[str, ...], shared: Globals) -> Job:
    """The step's own, with another command. A person at a shell is not held to the step's time."""
    if words:
        return replace(job, command=words, max_output_bytes=CAPTURED_MAX)
    env = {**job.env, "PS1": f"[{part.instance.name}] \\w\\$ "}
    if "TERM" in shared.environment:
        env["TERM"] = shared.environment["TERM"]
    shell = "bash" if part.request.policy.sandbox != "strict" or os.path.exists("/usr/bin/bash") else "sh"
    own = _has_terminal() or part.request.policy.sandbox == "none"
    stdin = job.stdin if own else b"".join(stdin_pieces())
    flags = ["--norc", "-i"] if shell == "bash" and _has_terminal() else []
    return replace(
        job,
        command=(shell, *flags),
        env=env,
        stdin=stdin,
        limits=replace(job.limits, timeout_ms=None),
        max_output_bytes=CAPTURED_MAX,
    )


@contextmanager
def _terminal() -> Iterator[_Proxy]:
    """The user's terminal in raw mode while a proxy carries it; whatever happens, it is given back as it was."""
    import termios
    import tty

    before = termios.tcgetattr(0)
    proxy = _Proxy()
    resized = signal.signal(signal.SIGWINCH, lambda *_: proxy.resize())
    tty.setraw(0)
    try:
        yield proxy
    finally:
        proxy.end()
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, resized)


class _Proxy:
    """Carries bytes between the user's terminal and that of the step, in a thread, until the step's is gone."""

    def __init__(self) -> None:
        self._other = -1
        self._thread: threading.Thread | None = None
        self._wake, self._waker = os.pipe()

    def __call__(self, other: int) -> None:
        self._other = other
        self.resize()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def resize(self) -> None:
        import fcntl
        import struct
        import termios

        if self._other >= 0:
            size = shutil.get_terminal_size()
            with suppress(OSError):
                fcntl.ioctl(self._other, termios.TIOCSWINSZ, struct.pack("HHHH", size.lines, size.columns, 0, 0))

    def _carry(self) -> None:
        import select

        poll = select.poll()
        for descriptor in (0, self._other, self._wake):
            poll.register(descriptor, select.POLLIN)
        with suppress(OSError):  # The step's side is gone.
            while True:
                ready = [descriptor for descriptor, _ in poll.poll()]
                if self._other in ready:
                    _write(1, os.read(self._other, 65536))
                elif self._wake in ready:
                    return
                if 0 in ready:
                    typed = os.read(0, 65536)
                    if typed:
                        _write(self._other, typed)
                    else:
                        poll.unregister(0)

    def end(self) -> None:
        os.write(self._waker, b"x")
        if self._thread is not None:
            self._thread.join()
        for descriptor in (self._wake, self._waker, self._other):
            if descriptor >= 0:
                os.close(descriptor)
        self._other = -1


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
