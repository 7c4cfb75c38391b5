"""Verdicts beside the records: one file a request, sealed by its own digest. One that is damaged counts as none."""

from __future__ import annotations

import os
from contextlib import suppress

from ..core import canonical
from ..core.digest import Digest, parse_digest
from ..core.errors import RequestError
from ..core.verdict import Verdict, parse_verdict
from .files import NotAFile, Scratch, ensure_directory, fault, read_small
from .layout import Store


class Verdicts:
    """The verdicts of a store, below `verdicts/AB/<request digest>`."""

    def __init__(self, store: Store) -> None:
        self._base = f"{store.root}/verdicts"
        self._scratch = Scratch(f"{store.root}/v2/tmp")
        self._refusal = store.refusal
        self._below = None if store.below is None else Verdicts(store.below)

    def find(self, request_digest: Digest, result_digest: Digest) -> Verdict | None:
        """What was earned by this very result of the request."""
        with suppress(OSError, NotAFile, ValueError, RequestError):
            content = read_small(self._path(request_digest), canonical.BYTES_MAX)
            if content is not None:
                verdict = parse_verdict(content)
                if (verdict.request_digest, verdict.result_digest) == (request_digest, result_digest):
                    return verdict
        return None if self._below is None else self._below.find(request_digest, result_digest)

    def keep(self, verdict: Verdict) -> None:
        """Replaces what was known. Raises EnvironmentFault."""
        if self._refusal is not None:
            raise self._refusal
        path = self._path(verdict.request_digest)
        try:
            ensure_directory(self._base)
            ensure_directory(os.path.dirname(path))
            temporary = self._scratch.write(verdict.encoded)
            try:
                os.rename(temporary, path)
            except BaseException:
                self._scratch.discard(temporary)
                raise
        except OSError as error:
            raise fault(error, f"keeping the verdict of request {verdict.request_digest}", self._base) from error

    def _path(self, request_digest: Digest) -> str:
        name = parse_digest(request_digest)
        return f"{self._base}/{name[:2]}/{name}"
