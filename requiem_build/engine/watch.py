"""Builds, and builds again on every change that matters. Events only wake us up: content decides."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from ..core.errors import EnvironmentFault, RequiemError
from .report import Report
from .stamps import stamp_at
from .workspace import DOT

DEBOUNCE_MS = 80
CATCH_UP_MS = 500
_IGNORED = (DOT, ".cas", ".git", ".hg", ".svn", "__pycache__")


def is_no_news(report: Report | None) -> bool:
    """Whether all that the last build rested on is as it was: our own outputs and a log beside them wake us up too."""
    return report is not None and all(stamp_at(path) == stamp for path, stamp in report.rested_on.items())


class Watch:
    """`build` builds once and returns whether it was interrupted; `failed` is shown what could not even begin."""

    def __init__(
        self, root: str, build: Callable[[], bool], failed: Callable[[RequiemError], None], idle: Callable[[], None]
    ) -> None:
        self._root = root
        self._build = build
        self._failed = failed
        self._idle = idle
        self.stop = threading.Event()

    def run(self) -> None:
        """Until `stop` is set. Raises EnvironmentFault when the workspace cannot be watched."""
        import watchfiles

        if self.stop.is_set() or not self._round():
            return
        self._idle()
        caught_up = False
        try:
            for changes in watchfiles.watch(
                self._root,
                watch_filter=self._matters,
                debounce=DEBOUNCE_MS * 4,
                step=DEBOUNCE_MS,
                stop_event=self.stop,
                rust_timeout=CATCH_UP_MS,
                yield_on_timeout=True,
                raise_interrupt=False,
                ignore_permission_denied=True,
            ):
                if self.stop.is_set():
                    return
                if not changes and caught_up:
                    continue
                caught_up = True  # The first time-out looks for what changed before the watcher was ready.
                if not self._round():
                    return
        except OSError as error:
            raise EnvironmentFault(
                "cannot watch the workspace",
                facts=[("cause", str(error)), ("directory", self._root)],
                hint="raise the limit: sysctl fs.inotify.max_user_watches=524288",
            ) from error

    def _round(self) -> bool:
        try:
            return not self._build()
        except RequiemError as error:
            if error.exit_code >= 128:
                return False
            self._failed(error)
            return True

    def _matters(self, _: object, path: str) -> bool:
        """Not our own scratch. Our outputs do wake us up, and then there is nothing to do."""
        parts = os.path.relpath(path, self._root).split(os.sep)
        return not any(part in _IGNORED for part in parts)
