"""The parts of one build, put together for what it looks at: executor, rebuilder, performer. It runs nothing itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from .. import __version__
from ..core.digest import Digest
from ..core.entries import Entry
from ..core.events import Listener, Warned
from ..core.fields import dataclass
from ..core.request import Request
from ..core.result import Record
from ..executors.base import Executor, Ran
from ..executors.blobs import Blobs
from ..executors.local import Keep, LocalExecutor
from ..sandbox.base import Sandbox
from ..store.layout import Store
from . import explain
from .journal import now_text
from .layout import Layout
from .memory import Memory
from .options import Options
from .rebuild import Always, Cached, Predicted, Rebuilder, Wanted
from .recollection import Recollection
from .requests import RequestMaker
from .scope import Scope
from .secrets import Secrets
from .site import Site, boot_sandbox, host_platform
from .step import Performer
from .surroundings import Surroundings
from .workspace import Workspace

if TYPE_CHECKING:
    from .admission import Admission
    from .trust import Trust

EXPLAINED_MAX = 20

Asked = Callable[[str, Request, Mapping[str, Entry]], None]
"""Told each step's request, and what `discover` offers to it, before it is answered."""


@dataclass(slots=True)
class Assembly:
    """`store` holds the objects; `view` is that store as far as its records are trusted, or all of it."""

    site: Site
    options: Options
    scope: Scope
    memory: Memory
    store: Store
    view: Store
    trust: Trust | None
    secrets: Secrets
    emit: Listener
    asked: Asked | None

    # What runs

    @contextmanager
    def executor(
        self, blobs: Blobs, surroundings: Surroundings, jobs: int, admission: Admission | None
    ) -> Iterator[Executor]:
        roots = [surroundings.host_path(root) for root in self.scope.planned.plan.roots.values()]

        def boot(request: Request) -> Sandbox:
            return boot_sandbox(request, self.site, self.store, roots)

        executor = LocalExecutor(
            blobs,
            boot,
            workspace=self.site.root,
            jobs=jobs,
            list_undeclared=self.options.verbose,
            maker=self._maker,
            admit=admission or nullcontext,
            admit_more=admission.try_enter if admission is not None else lambda: lambda: None,
            secrets=self.secrets.values,
            keep=self._keeper(),
        )
        try:
            yield executor
        finally:
            executor.close()
            if admission is not None:
                admission.close()

    def _maker(self, path: str) -> str | None:
        from ..core.query import Graph

        return Graph(self.scope.planned.plan).maker(path, ".")

    def _keeper(self) -> Keep | None:
        if not self.options.environment.get("REQUIEM_KEEP") or self.options.dry_run:
            return None
        from .keeping import Keeper, wanted

        which = wanted(self.options.environment)
        if not which:
            return None
        names: dict[str, str] = {}
        tell = self.asked

        def note(name: str, request: Request, offered: Mapping[str, Entry]) -> None:
            names[request.digest] = name
            if tell is not None:
                tell(name, request, offered)

        self.asked = note
        return Keeper(
            self.site.dot, which, lambda r: names.get(r.digest, r.digest[:12]), lambda t: self.emit(Warned(t))
        )

    # What decides

    def performer(
        self,
        places: Mapping[str, tuple[int, tuple[int, ...]]],
        workspace: Workspace,
        surroundings: Surroundings,
        layout: Layout,
        executor: Executor,
    ) -> Performer:
        """For the executor that `executor` gave; `places` are those of the scope."""
        options, blobs = self.options, workspace.blobs
        level = options.sandbox or self.site.settings.sandbox
        return Performer(
            instances=self.scope.instances,
            places=places,
            offers=self.scope.planned.offers,
            maker=RequestMaker(workspace, surroundings, host_platform(), level),
            workspace=workspace,
            store=self.store,
            recollection=self._recollection(layout, blobs),
            layout=layout,
            rebuilder=self._rebuilder(executor, blobs),
            emit=self.emit,
            always="" if options.cache in ("rw", "ro") else f"--cache {options.cache}: every step runs",
            dry_run=options.dry_run,
            verbose=options.verbose,
            asked=self.asked,
            known=self.scope.known(),
            environment=options.environment,
        )

    def _rebuilder(self, executor: Executor, blobs: Blobs) -> Rebuilder:
        if self.options.dry_run:
            return Predicted(self.view, blobs)
        always = Always(executor, self.view, self._recorder(), publish=self.options.cache in ("rw", "wo"))
        return Cached(self.view, blobs, always) if self.options.cache in ("rw", "ro") else always

    def _recorder(self) -> Callable[[Ran, Wanted], Record]:
        host, trust = os.uname().nodename, self.trust

        def record(ran: Ran, wanted: Wanted) -> Record:
            made = Record(
                request_digest=ran.request.digest,
                result_digest=ran.result.digest,
                when=now_text(),
                duration_ms=ran.duration_ms,
                executor="local",
                host=host,
                engine=__version__,
                protection=ran.protection,
                leaks=ran.leaks,
                rusage=ran.rusage,
                discovered=ran.discovered,
                asserted=wanted.asserted,
            )
            return made if trust is None or not ran.ok else trust.seal(made)

        return record

    def _recollection(self, layout: Layout, blobs: Blobs) -> Recollection:
        trust = self.trust
        return Recollection(
            self.memory,
            layout,
            blobs,
            self.store,
            self.options.variant,
            trust=trust.digest if trust is not None else "",
            why_refused=partial(trust.why_refused, self.view) if trust is not None else None,
            explain=self._explain,
            lost=self.scope.lost if self.asked is None else frozenset(),
            looked_at=self.scope.planned.plan.instances,
        )

    def _explain(self, old: Mapping[str, object], new: Mapping[str, object]) -> str:
        """The difference of two requests in a line: the first one, or with --explain all."""
        from .systems import system_changes

        shown_max = EXPLAINED_MAX if self.options.explain else 1
        known = system_changes(self.site.cache_home, lambda digest: self.store.objects.get(Digest(digest)))
        return explain.short_reason(old, new, known, shown_max=shown_max)
