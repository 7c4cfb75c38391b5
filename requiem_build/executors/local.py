"""Runs a request on this machine: in a sandbox of the level that the request says, never a weaker one.

It does not know the manifest or the workspace's state: bytes come from the store, results go there.
"""

from __future__ import annotations

import posixpath
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from ..core.digest import Digest
from ..core.entries import Entry, File, Link, Tree, parse_tree
from ..core.errors import EnvironmentFault, UsageError
from ..core.fields import replace
from ..core.patterns import compile_pattern, is_pattern, unescape
from ..core.policy import JOBSERVER_FLAGS, JOBSERVER_VARIABLE, WORKSPACE, Limits, leaks_of
from ..core.request import LISTING, SYSTEM_ROOT, Request, by_bytes
from ..core.result import Captured, make_result
from ..core.secrecy import PIECE_MIN, Masker
from ..sandbox.base import Finished, Job, Mount, Sandbox, Staged
from .base import Ran
from .blobs import EACH_MAX, Blobs
from .collect import Collector, NotCollected
from .depfile import parse_depfile
from .discovery import discovered_now, named_in_discovered, path_set, workspace_paths
from .slots import GiveBack, Slots
from .vanished import vanished

if TYPE_CHECKING:
    from ..sandbox.perturbation import Perturbation

SandboxFactory = Callable[[Request], Sandbox]
IDLE_MIN = 8
STAGED_BYTES_MAX = 32 * 1024 * 1024
_STAGED_BYTES_EACH = 300
"""Of the objects around a file's content, roughly."""


class Keep(Protocol):
    def __call__(
        self, request: Request, job: Job, finished: Finished, *, failed: bool, masker: Masker | None
    ) -> None: ...


class LocalExecutor:
    """`boot(request)` makes a sandbox of the request's level and network. Idle strict ones are used again.

    No more than `jobs` steps run at once, however many threads ask: the others stage and collect meanwhile.
    """

    name = "local"

    def __init__(
        self,
        blobs: Blobs,
        boot: SandboxFactory,
        *,
        workspace: str,
        jobs: int = 1,
        list_undeclared: bool = False,
        maker: Callable[[str], str | None] = lambda _: None,
        admit: Callable[[], AbstractContextManager[None]] = nullcontext,
        admit_more: Callable[[], GiveBack | None] = lambda: lambda: None,
        secrets: Callable[[Sequence[str]], Mapping[str, str]] = lambda _: {},
        keep: Keep | None = None,
    ) -> None:
        """`maker(path)` names the step that declares to make a path; `admit()` waits until one more may run,
        `admit_more()` does not wait.

        `secrets(names)` gives the values of all of them, or raises. `keep` is shown what an ended step left, before it
        goes.
        """
        self.blobs = blobs
        self._boot = boot
        self._workspace = workspace
        self._list_undeclared = list_undeclared
        self._maker = maker
        self._admit = admit
        self._secrets = secrets
        self._keep = keep
        self._slots = Slots(jobs, admit_more)
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, ...], list[Sandbox]] = {}
        self._idle_max = max(IDLE_MIN, 2 * jobs)
        self._busy: set[Sandbox] = set()
        self._cancelled = False
        self._closed = False
        self._places: dict[Digest, threading.Lock] = {}
        self._staged: dict[tuple[str, Digest, bool], Staged] = {}
        """What steps were shown: mostly the next ones are shown the same, and are told so by the same objects."""
        self._staged_bytes = 0

    def execute(
        self, request: Request, offered: Mapping[str, Entry], limits: Limits, here: Perturbation | None = None
    ) -> Ran:
        """`here` is for results that are thrown away (`Job.here`)."""
        with self._alone(request):
            return self._execute(request, offered, limits, here)

    def _alone(self, request: Request) -> AbstractContextManager[object]:
        """The directory in which a step of the level `process` runs is its request's: one after the other in each."""
        if request.policy.sandbox != "process":
            return nullcontext()
        with self._lock:
            return self._places.setdefault(request.digest, threading.Lock())

    def _execute(
        self, request: Request, offered: Mapping[str, Entry], limits: Limits, here: Perturbation | None
    ) -> Ran:
        masker = masker_of(request, self._secrets)
        job = confide(self.job(request, offered, limits), masker)
        if here is not None:
            job = replace(job, here=here)
        self._slots.take()
        try:
            with self._admit(), self._with_slots(job) as job:
                sandbox = self._acquire(request)
                started = time.monotonic()
                try:
                    finished = sandbox.run(job)
                except BaseException as error:
                    self._release(request, sandbox, healthy=False)
                    gone = vanished(job, error) if isinstance(error, EnvironmentFault | OSError) else None
                    if gone is not None:
                        raise gone from error
                    raise
                duration_ms = round((time.monotonic() - started) * 1000)
        finally:
            self._slots.give_back()
        # What a step left lies in its sandbox until it is collected; another step may run in another meanwhile.
        try:
            finished = masked(finished, masker, request.policy.max_output_bytes)
            return self._conclude(request, offered, limits, job, finished, duration_ms, masker)
        finally:
            finished.close()
            self._release(request, sandbox, healthy=True)

    def _with_slots(self, job: Job) -> AbstractContextManager[Job]:
        return self._lent(job) if job.env.get(JOBSERVER_VARIABLE) == JOBSERVER_FLAGS else nullcontext(job)

    @contextmanager
    def _lent(self, job: Job) -> Iterator[Job]:
        with self._slots.loan() as pipe:
            yield replace(job, slots=pipe)

    # Sandboxes

    def _acquire(self, request: Request) -> Sandbox:
        kind = _kind(request)
        with self._lock:
            idle = self._idle.setdefault(kind, [])
            sandbox = idle.pop() if idle else None
            if sandbox is not None:
                self._busy.add(sandbox)
        if sandbox is None:
            sandbox = self._boot(request)
            with self._lock:
                self._busy.add(sandbox)
        return sandbox

    def _release(self, request: Request, sandbox: Sandbox, *, healthy: bool) -> None:
        superfluous: Sandbox | None = sandbox
        with self._lock:
            self._busy.discard(sandbox)
            kept = healthy and not self._cancelled and not self._closed
            if kept and request.policy.sandbox == "strict":
                kind = _kind(request)
                self._idle[kind] = [*self._idle.pop(kind, []), sandbox]  # The kind that was used last comes last.
                superfluous = self._one_too_many()
        if superfluous is not None:
            superfluous.close()

    def _one_too_many(self) -> Sandbox | None:
        """A build may have as many kinds of sandboxes as sets of tools: those that nobody used for longest go."""
        if sum(map(len, self._idle.values())) <= self._idle_max:
            return None
        return next(idle for idle in self._idle.values() if idle).pop(0)

    def cancel(self, *, kill: bool) -> None:
        self._cancelled = True
        for sandbox in tuple(self._busy):
            sandbox.cancel(kill=kill)

    def close(self) -> None:
        """Ends what is idle now; what is busy ends when its step has. Idempotent."""
        with self._lock:
            self._closed = True
            idle = [sandbox for pool in self._idle.values() for sandbox in pool]
            self._idle.clear()
        for sandbox in idle:
            sandbox.close()

    # Request -> job

    def job(self, request: Request, offered: Mapping[str, Entry], limits: Limits) -> Job:
        """What a sandbox is asked to do, without the values of secrets. Raises MissingObject."""
        staged: dict[str, Staged] = {}
        for path, entry in (*request.inputs.items(), *((p, e.as_input()) for p, e in offered.items())):
            if "digest" in entry:  # By far the most.
                staged.setdefault(path, self._stage_file(path, entry["digest"], entry["executable"]))
                continue
            for item in self._stage(path, entry):
                staged.setdefault(item.path, item)
        directories = {_relative_cwd(request.cwd, self._workspace)}
        for path in (*request.outputs, *([request.depfile] if request.depfile else ())):
            directories.add(_parent_of(path))
        return Job(
            command=request.command,
            env=request.env,
            cwd=_relative_cwd(request.cwd, self._workspace),
            stdin=self._stdin(request),
            staged=[staged[path] for path in by_bytes(set(staged))],
            directories=by_bytes(directories - {"", "."}),
            mounts=[self._mount(path) for path in by_bytes(set(request.roots)) if path != SYSTEM_ROOT],
            network=request.policy.network,
            max_output_bytes=request.policy.max_output_bytes,
            limits=limits,
        )

    def _stage(self, path: str, entry: Mapping[str, Any]) -> Iterator[Staged]:
        if "symlink" in entry:
            yield Staged(path, symlink=entry["symlink"])
        else:
            yield from self._stage_tree(path.rstrip("/"), entry["tree"])

    def _stage_file(self, path: str, digest: Any, executable: Any) -> Staged:
        known = self._staged.get((path, digest, executable))
        if known is not None:
            return known
        content = self.blobs.held(digest)
        if content is None:
            if (self.blobs.objects.size(digest) or 0) > EACH_MAX:
                return Staged(path, source=self.blobs.objects.file(digest), executable=executable)
            content = self.blobs.get(digest)
        staged = Staged(path, data=content, executable=executable)
        self._staged_bytes += len(content) + _STAGED_BYTES_EACH  # Two threads at once may lose one of them.
        if self._staged_bytes > STAGED_BYTES_MAX:
            self._staged.clear()
            self._staged_bytes = 0
        self._staged[path, digest, executable] = staged
        return staged

    def _stage_tree(self, top: str, digest: Digest) -> Iterator[Staged]:
        pending = [(top, digest)]
        for directory, tree in pending:
            yield Staged(directory)
            for name, entry in parse_tree(self.blobs.get(tree)):
                path = f"{directory}/{name}"
                match entry:
                    case Tree():
                        pending.append((path, entry.digest))
                    case Link():
                        yield Staged(path, symlink=entry.target)
                    case File():
                        yield self._stage_file(path, entry.digest, entry.executable)

    def _stdin(self, request: Request) -> bytes | str | None:
        if request.stdin is None:
            return None
        staged = self._stage_file("", request.stdin, False)
        return staged.data if staged.source is None else staged.source

    def _mount(self, path: str) -> Mount:
        if path.startswith("/"):
            return Mount(path, path)
        return Mount(posixpath.join(self._workspace, path), posixpath.join(WORKSPACE, path))

    # Finished job -> result

    def _conclude(
        self,
        request: Request,
        offered: Mapping[str, Entry],
        limits: Limits,
        job: Job,
        finished: Finished,
        duration_ms: int,
        masker: Masker | None,
    ) -> Ran:
        staged = {item.path for item in job.staged}
        collector = Collector(
            self.blobs,
            finished.workspace_fd,
            visible=[path for path in request.roots if path.startswith("/")] or [SYSTEM_ROOT],
            size_max=limits.output_size_bytes,
            masker=masker,
        )
        outputs: dict[str, Entry] = {}
        discovered: tuple[str, ...] | None = None
        termination, failure, undeclared = finished.termination, describe(finished, limits), []
        final = request
        if not failure and finished.changed:
            failure = f'changed its input "{finished.changed[0]}"'
        if not failure:
            try:
                outputs = collector.collect(request.outputs, staged)
                discovered = self._discovered(request, collector, offered)
            except NotCollected as missing:
                failure, termination = missing.what, missing.termination
                undeclared = collector.undeclared(request.outputs, staged)
        if self._keep is not None:
            self._keep(request, job, finished, failed=bool(failure), masker=masker)
        if self._list_undeclared and not undeclared:
            undeclared = collector.undeclared((*request.outputs, request.depfile or ""), staged)
        if masker is not None:  # A command, a link or a file can be named by it.
            failure, undeclared = masker.mask_text(failure), [masker.mask_text(path) for path in undeclared]
        if discovered is not None:
            final = request.with_discovered(discovered_now(discovered, offered))
            for path in discovered:
                named = named_in_discovered(path, offered)
                if named is not None:  # Every digest in a request is that of an object: a replay needs nothing else.
                    self.blobs.put(named)
        result = make_result(
            final,
            exit_code=finished.exit_code,
            termination=termination,
            stdout=self._captured(finished.stdout, finished.stdout_truncated),
            stderr=self._captured(finished.stderr, finished.stderr_truncated),
            outputs=outputs,
        )
        return Ran(
            request=final,
            result=result,
            failure=failure,
            discovered=discovered,
            stdout=finished.stdout,
            stderr=finished.stderr,
            undeclared=tuple(undeclared),
            duration_ms=duration_ms,
            protection=finished.protection,
            rusage=finished.rusage,
            leaks=leaks_of(request.policy),
            cancelled=finished.cancelled,
        )

    def _captured(self, content: bytes, truncated: bool) -> Captured:
        return Captured(self.blobs.put_cold(content), len(content), truncated)

    def _discovered(
        self, request: Request, collector: Collector, offered: Mapping[str, Entry]
    ) -> tuple[str, ...] | None:
        """The offered paths that the step's depfile names, and the marker for the list of all that were offered."""
        named = None if request.depfile is None else self._named(request.depfile, collector)
        if not request.discover:
            return None
        if named is None:
            return (*by_bytes(set(offered)), LISTING)
        if request.policy.sandbox != "strict":  # There the step sees nothing but what it may read.
            self._check_generated(request, named, offered)
        return path_set(request, named, offered, self.blobs.get, self._workspace)

    def _named(self, depfile: str, collector: Collector) -> Sequence[str]:
        """What a depfile names. Raises NotCollected for one that is missing, or that is none."""
        entry = collector.collect([depfile], ())[depfile]
        if not isinstance(entry, File):
            raise NotCollected(f'depfile "{depfile}" is not a file')
        try:
            return parse_depfile(self.blobs.get(entry.digest))
        except ValueError as error:
            raise NotCollected(f'depfile "{depfile}" cannot be read: {error}') from None

    def _check_generated(self, request: Request, named: Sequence[str], offered: Mapping[str, Entry]) -> None:
        """Refuses a file that another step makes and nobody declared: the next build could meet an old one."""
        for path in workspace_paths(request, named, self._workspace):
            own = any(path == o or (o.endswith("/") and path.startswith(o)) for o in request.outputs)
            declared = path in offered or any(path == i or path.startswith(i) for i in request.inputs if i[-1] == "/")
            if own or declared or path in request.inputs:
                continue
            maker = self._maker(path)
            if maker is not None:
                raise NotCollected(f'read "{path}", which step "{maker}" makes, without declaring it')


def masker_of(request: Request, secrets: Callable[[Sequence[str]], Mapping[str, str]]) -> Masker | None:
    """None for a request without secrets. Raises what `secrets` raises, and UsageError for one that is in the key."""
    if not request.secrets:
        return None
    values = secrets(request.secrets)
    assert values.keys() == set(request.secrets)
    masker = Masker(values)
    told = masker.held_in(request.encoded)
    if told is not None and len(values[told]) >= PIECE_MIN:
        raise UsageError(
            f'the value of the secret "{told}" is also written in the command, a variable or a path of its step',
            hint="it would be in the key, and so known to whoever reads the store: use the variable instead",
        )
    return masker


def confide(job: Job, masker: Masker | None) -> Job:
    """The job with its secrets, and with so much more of its output as it takes to mask what the cut goes through."""
    if masker is None:
        return job
    env = {**job.env, **masker.values}
    return replace(job, env=env, max_output_bytes=job.max_output_bytes + masker.tail)


def masked(finished: Finished, masker: Masker | None, most: int) -> Finished:
    """What a step wrote, without its secrets: before anything of it is stored or shown."""
    if masker is None:
        return finished
    return replace(
        finished,
        stdout=masker.mask(finished.stdout, most),
        stderr=masker.mask(finished.stderr, most),
        stdout_truncated=finished.stdout_truncated or len(finished.stdout) > most,
        stderr_truncated=finished.stderr_truncated or len(finished.stderr) > most,
    )


def describe(finished: Finished, limits: Limits) -> str:
    """One line why a step failed; empty if its command succeeded."""
    match finished.termination:
        case "exited":
            return f"exited with {finished.exit_code}" if finished.exit_code else ""
        case "not_found":
            return finished.reason or "its command was not found"
        case "signaled":
            return f"killed by {signal_name(finished.signal)}"
        case "timeout":
            return f"timed out after {(limits.timeout_ms or 0) / 1000:g} s: {limits.line('timeout')}"
        case other:
            return f"hit its limit: {limits.line(other)}"


def signal_name(number: int | None) -> str:
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return f"signal {number}"


def _kind(request: Request) -> tuple[str, ...]:
    """Requests of one kind may run in one sandbox, one after the other."""
    policy = request.policy
    kind = (policy.sandbox, policy.network, policy.clock, policy.random)
    if policy.system == "host":
        return kind
    inside = [path for path in request.roots if path.startswith("/") and path != SYSTEM_ROOT]
    return (*kind, request.roots[SYSTEM_ROOT], *sorted(inside))


def _parent_of(path: str) -> str:
    """The directory that must exist before a declared output can be made."""
    if is_pattern(path):
        return compile_pattern(path).prefix
    return posixpath.dirname(unescape(path).rstrip("/"))


def _relative_cwd(cwd: str, workspace: str) -> str:
    if not cwd.startswith("/"):
        return cwd
    return posixpath.relpath(cwd, workspace)
