"""Verdicts beside the records: one file a request, sealed by its own digest. One that is damaged counts as none.

<root>/verdicts/AB/<request digest>               what builds on any host earned; anybody can write it
<root>/verdicts/signed/<key id>/AB/<request digest>   what one key says of its own runs: a DSSE envelope around one
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from ..core import canonical
from ..core.digest import Digest, parse_digest
from ..core.errors import RequestError
from ..core.seal import VERDICT_TYPE, Envelope, parse_envelope
from ..core.verdict import Verdict, parse_verdict
from .files import NotAFile, Scratch, ensure_directory, fault, read_small
from .keys import Key, Verifier
from .layout import Store


class Verdicts:
    """The verdicts of a store."""

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
        self._write(self._path(verdict.request_digest), verdict.encoded, verdict)

    def _write(self, path: str, content: bytes, verdict: Verdict) -> None:
        try:
            folder = self._base
            ensure_directory(folder)
            for name in os.path.relpath(os.path.dirname(path), self._base).split("/"):
                folder = f"{folder}/{name}"
                ensure_directory(folder)
            temporary = self._scratch.write(content)
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

    # -- signed ---------------------------------------------------------------------------------------------

    def keep_signed(self, verdict: Verdict, key: Key) -> None:
        """Replaces what the key said of the request before. Raises EnvironmentFault."""
        if self._refusal is not None:
            raise self._refusal
        envelope = key.sign(Envelope(VERDICT_TYPE, verdict.encoded))
        content = canonical.encode_plain(envelope.as_json())
        self._write(self._signed_path(key.key_id, verdict.request_digest), content, verdict)

    def signed_by(
        self, key_ids: Iterable[str], request_digest: Digest, result_digest: Digest, verifier: Verifier
    ) -> dict[str, Verdict]:
        """What each of these keys says of this very result: of those whose signature holds and that are not revoked."""
        found = {}
        for key_id in key_ids:
            envelope = self.envelope(key_id, request_digest)
            if envelope is None or {each.key_id for each in envelope.signatures} != {key_id}:
                continue  # Its keyid proves nothing, but nothing in the file is left to chance.
            if key_id not in verifier.signers(envelope):
                continue
            verdict = verdict_in(envelope)
            if verdict is not None and (verdict.request_digest, verdict.result_digest) == (
                request_digest,
                result_digest,
            ):
                found[key_id] = verdict
        return found

    def envelope(self, key_id: str, request_digest: Digest) -> Envelope | None:
        """What is filed as the word of a key, its signature not yet looked at."""
        with suppress(OSError, NotAFile, ValueError, RequestError):
            content = read_small(self._signed_path(key_id, request_digest), canonical.BYTES_MAX)
            if content is not None:
                envelope = parse_envelope(canonical.parse(content))
                return envelope if canonical.encode_plain(envelope.as_json()) == content else None
        return None if self._below is None else self._below.envelope(key_id, request_digest)

    def paths(self) -> list[str]:
        """Every file that stands where a verdict may, signed ones too."""
        return sorted(os.path.join(folder, name) for folder, _, names in os.walk(self._base) for name in names)

    def is_whole(self, path: str) -> bool:
        """Whether one of `paths` is what its place says, but for whether its signature holds."""
        parts = os.path.relpath(path, self._base).split("/")
        if not (len(parts) == 2 or (len(parts) == 4 and parts[0] == "signed")):
            return False
        *scope, shard, name = parts
        verdict = None
        with suppress(OSError, NotAFile, ValueError, RequestError):
            content = read_small(path, canonical.BYTES_MAX)
            if content is not None and scope:
                envelope = self.envelope(scope[-1], Digest(name))
                verdict = None if envelope is None else verdict_in(envelope)
            elif content is not None:
                verdict = parse_verdict(content)
        return verdict is not None and verdict.request_digest == name and shard == name[:2]

    def _signed_path(self, key_id: str, request_digest: Digest) -> str:
        name = parse_digest(request_digest)
        return f"{self._base}/signed/{parse_digest(key_id)}/{name[:2]}/{name}"


def verdict_in(envelope: Envelope) -> Verdict | None:
    """The verdict that an envelope is around; None for one around anything else."""
    if envelope.payload_type != VERDICT_TYPE:
        return None
    with suppress(RequestError, ValueError):
        return parse_verdict(envelope.payload)
    return None
