"""A job that could not be made ready because the store's files went away under it: a miss, not the host's fault."""

from __future__ import annotations

import os

from ..core.errors import EnvironmentFault, MissingObject
from ..sandbox.base import Job


def vanished(job: Job, error: EnvironmentFault | OSError) -> MissingObject | None:
    """What of the store the job was to be shown is gone, or was when it was shown; None if that was not it."""
    sources = [item.source for item in job.staged if item.source is not None]
    if isinstance(job.stdin, str):
        sources.append(job.stdin)
    told = [str(error), *(value for _, value in getattr(error, "facts", ()))]
    for source in sources:
        name = os.path.basename(source)
        if not os.path.exists(source) or any(name in text or source.startswith(text + "/") for text in told):
            return _gone(source)
    return None


def _gone(source: str) -> MissingObject:
    return MissingObject(f"the store does not hold object {os.path.basename(source)} any more")
