"""Writes a run's timeline for `build --timeline FILE` and `replay --timeline FILE`."""

from __future__ import annotations

import json
import os

from ..core.errors import EnvironmentFault, RequestError
from ..core.events import parse_event
from ..engine.journal import journal_lines
from ..engine.timeline import make_timeline
from ..store.layout import Store
from .globals import Globals


def write_timeline(shared: Globals, store: Store, run_id: str, file: str) -> None:
    """Raises IntegrityError for a run that is damaged, RequestError for a journal that is none, EnvironmentFault."""
    run = store.runs.get(run_id)
    try:
        timeline = make_timeline(parse_event(line) for line in journal_lines(store, run.journal))
    except RequestError as error:
        raise RequestError(f"the journal of run {run_id} cannot be read", facts=[("cause", error.what)]) from error
    path = os.path.join(shared.start, file)
    temporary = f"{path}.{os.getpid()}.part"
    try:
        with open(temporary, "w", encoding="utf-8") as target:
            json.dump(timeline, target, ensure_ascii=False, sort_keys=True)
            target.write("\n")
        os.replace(temporary, path)
    except OSError as error:
        raise EnvironmentFault(f'cannot write "{file}"', facts=[("cause", error.strerror or str(error))]) from error
