"""Runs remembered requests again, beside the store: what they make is compared and thrown away, never remembered.

It knows requests and the store, not steps. A sandbox is booted once for each way in which requests are run.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..core.digest import Digest
from ..core.entries import Entry, File, Link
from ..core.errors import EnvironmentFault, Interrupted, MissingObject, RequiemError
from ..core.fields import replace
from ..core.instance import Instance, Root
from ..core.policy import Limits
from ..core.request import ABSENT, SYSTEM_ROOT, Request, is_read
from ..core.result import Result, make_result
from ..executors.base import Ran
from ..executors.blobs import Blobs
from ..executors.local import LocalExecutor
from ..sandbox.base import Sandbox
from ..sandbox.perturbation import STILL, Perturbation, of_worker
from ..store.files import Scratch
from ..store.layout import Store
from ..store.objects import Objects
from ..store.place import Place
from .site import Site, boot_sandbox, host_platform, make_scratch
from .stamps import Stamps
from .surroundings import surroundings_of

NO_LIMITS = Limits()
AT_ONCE_MAX = 64


class CannotRerun(Exception):
    """Why a request cannot be run again here, in words that follow "not run again:"."""


class Beside(Objects):
    """The objects of a store, and beside them those of runs that are thrown away. The store is never written."""

    def __init__(self, first: Objects, own: Path) -> None:
        Store(own)  # Makes what a store consists of.
        super().__init__(Place(f"{own}/v2", Scratch(f"{own}/v2/tmp")))
        self._first = first

    def size(self, digest: Digest) -> int | None:
        own = super().size(digest)
        return self._first.size(digest) if own is None else own

    def _is_own(self, digest: Digest) -> bool:
        return super().size(digest) is not None

    def get(self, digest: Digest, *, size_max: int | None = None) -> bytes:
        if self._is_own(digest):
            return super().get(digest, size_max=size_max)
        return self._first.get(digest, size_max=size_max)

    def copy_to(self, digest: Digest, fd: int) -> None:
        if self._is_own(digest):
            super().copy_to(digest, fd)
        else:
            self._first.copy_to(digest, fd)

    def file(self, digest: Digest) -> str:
        """A plain file. What the store keeps compressed or cannot be bound is first copied to our own side."""
        if not self._is_own(digest):
            with contextlib.suppress(EnvironmentFault):
                return self._first.file(digest)
            with tempfile.TemporaryFile() as plain:
                self._first.copy_to(digest, plain.fileno())
                super().put_file(plain.fileno())
        return super().file(digest)


class Rerunner:
    """`with` a scratch store that vanishes. `roots` are the present manifest's, for those that are keyed by files."""

    def __init__(self, site: Site, store: Store, roots: Mapping[str, Root]) -> None:
        self._site = site
        self._store = store
        self._scratch = make_scratch(site, outside=True)
        self.blobs = Blobs(Beside(store.objects, Path(self._scratch.path, "store")))
        self.blobs.put(b"")
        stamps = Stamps()
        self._surroundings = surroundings_of(site, roots, stamps, {})
        self._stamps = stamps
        self._roots = {self._surroundings.root_path(root): root for root in roots.values()}
        self._executors: dict[tuple[Perturbation, tuple[str, ...], bool], LocalExecutor] = {}
        self._keeper = True
        """Whether randomness is held by answering who asks for it. Else by refusing it, which some cannot bear."""
        self._signal: int | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Rerunner:
        return self

    def __exit__(self, *_: object) -> None:
        for executor in self._executors.values():
            executor.close()
        self._scratch.close()

    def interrupt(self, number: int) -> None:
        """From a signal handler: ends what runs and starts nothing more."""
        self._signal = number
        for executor in tuple(self._executors.values()):
            executor.cancel(kill=False)

    def raise_if_interrupted(self) -> None:
        if self._signal is not None:
            raise Interrupted(self._signal)

    # May it be run here?

    def check(self, request: Request) -> None:
        """Raises CannotRerun if this host does not have what the request names."""
        if dict(request.platform) != host_platform():
            raise CannotRerun(f"it is for another platform, {dict(request.platform)}")
        if request.policy.sandbox == "none":
            raise CannotRerun("sandbox none runs in the workspace itself")
        if request.secrets:
            raise CannotRerun(f"its secrets are not kept: {', '.join(request.secrets)}")
        if request.policy.sandbox != "strict" and not request.cwd.startswith(self._site.root):
            raise CannotRerun(f"below strict it is bound to the directory {request.cwd}")
        probe = Instance("rerun", "rerun", request.command, "", policy=request.policy, tools=tuple(request.tools))
        others = set(request.roots) - {SYSTEM_ROOT}
        try:
            system = self._surroundings.system_root(probe, request.command, others)
            for path, digest in request.roots.items():
                if (system if path == SYSTEM_ROOT else self._root(path)) != digest:
                    raise CannotRerun(f'the root "{path}" is not what it was')
            found = self._surroundings.tools_of(probe, request.command, others)
        except RequiemError as error:
            raise CannotRerun(error.what) from error
        for name, digest in request.tools.items():
            if found.get(name) != digest:
                raise CannotRerun(f'the tool "{name}" is not what it was')

    def _root(self, path: str) -> Digest | None:
        if path in self._roots and self._roots[path].producer is None:
            probe = Instance("rerun", "rerun", (), "", roots=(self._roots[path].name,))
            with contextlib.suppress(RequiemError):
                return self._surroundings.roots_of(probe, {})[0].digest
        tree = self._stamps.tree(os.path.join(self._site.root, path), special_ok=True)
        return None if tree is None else tree.digest

    # Running

    def run(self, request: Request, perturbation: Perturbation = STILL, limits: Limits = NO_LIMITS) -> Ran:
        """Runs a request once more. Of what `discover` offered it sees exactly what it is known to have read.

        The result is of the very request, so that equal deeds have equal digests. Raises CannotRerun or, for a
        sandbox that fails, EnvironmentFault.
        """
        self.raise_if_interrupted()
        try:
            offered = offered_of(request, self.blobs)
            ran = self._execute(replace(request, discovered=None), offered, limits, perturbation)
        except MissingObject as error:
            raise CannotRerun(error.what) from error
        self.raise_if_interrupted()
        return replace(ran, request=request, result=of_request(request, ran.result))

    def _execute(
        self, request: Request, offered: Mapping[str, Entry], limits: Limits, perturbation: Perturbation
    ) -> Ran:
        here = None if perturbation == STILL else perturbation

        def execute(*, seeded: bool) -> Ran:
            return self._executor(request, of_worker(perturbation), seeded).execute(request, offered, limits, here)

        if not (perturbation.held_random and self._keeper):
            return execute(seeded=False)
        try:
            return execute(seeded=True)
        except EnvironmentFault:
            self.raise_if_interrupted()
            ran = execute(seeded=False)
            self._keeper = False  # That was it: nobody may trace here, or not on such a processor.
            return ran

    def _executor(self, request: Request, perturbation: Perturbation, seeded: bool) -> LocalExecutor:
        roots = tuple(os.path.join(self._site.root, path) for path in request.roots if path != SYSTEM_ROOT)
        key = (perturbation, roots, seeded)

        def boot(asked: Request) -> Sandbox:
            if seeded:
                asked = replace(asked, policy=replace(asked.policy, random="seeded"))
            return boot_sandbox(asked, self._site, self._store, [*roots, self._scratch.path], perturbation)

        with self._lock:
            if key not in self._executors:
                self._executors[key] = LocalExecutor(self.blobs, boot, workspace=self._site.root, jobs=AT_ONCE_MAX)
            return self._executors[key]


def offered_of(request: Request, blobs: Blobs) -> dict[str, Entry]:
    """What a request is known to have read of what `discover` offered. Raises MissingObject, CorruptObject."""
    found = (request.discovered or {}).items()
    return {path: _discovered(Digest(each), blobs) for path, each in found if is_read(path) and each != ABSENT}


def _discovered(digest: Digest, blobs: Blobs) -> Entry:
    """A path set names files by their content, and links by their own canonical object."""
    content = blobs.get(digest)
    if content.startswith(b'{"symlink":'):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return Link(json.loads(content)["symlink"])
    return File(digest, len(content))


def of_request(request: Request, result: Result) -> Result:
    """The same deeds as the result of another request, so that equal deeds have equal digests."""
    return make_result(
        request,
        exit_code=result.exit_code,
        termination=result.termination,
        stdout=result.stdout,
        stderr=result.stderr,
        outputs=result.outputs,
    )


def explain_difference(then: Result, now: Result) -> Iterator[str]:
    """In what two results of one request differ, one thing each."""
    for what in ("exit_code", "termination"):
        if getattr(then, what) != getattr(now, what):
            yield f"{what.replace('_', ' ')} was {getattr(then, what)} and is {getattr(now, what)}"
    for stream in ("stdout", "stderr"):
        if getattr(then, stream) != getattr(now, stream):
            yield f"{stream} differs"
    for path in sorted(then.outputs.keys() | now.outputs.keys()):
        if then.outputs.get(path) != now.outputs.get(path):
            gone = "is missing now" if path not in now.outputs else "is new" if path not in then.outputs else "differs"
            yield f'output "{path}" {gone}'
