"""What is signed, and how a signature is written down: DSSE envelopes over exact bytes. Knows no keys and no algorithm.

The verified bytes are the used bytes: an envelope is opened to its payload once, and nobody parses it again.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from .errors import RequestError
from .fields import dataclass, replace
from .result import Record

RECORD_TYPE = "application/vnd.requiem.record.v1+json"
VERDICT_TYPE = "application/vnd.requiem.verdict.v1+json"
PACK_TYPE = "application/vnd.requiem.pack.v1+json"
STATEMENT_TYPE = "application/vnd.in-toto+json"

SIGNATURES_MAX = 16
TEXT_MAX = 64 * 1024 * 1024
SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Signature:
    """`key_id` is a hint of whose it may be, never a proof."""

    key_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload of a named type and what was signed over both."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...] = ()

    @property
    def signed_bytes(self) -> bytes:
        """The pre-authentication encoding (DSSE v1): lengths in front, so that nothing runs together."""
        kind = self.payload_type.encode("utf-8")
        return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(self.payload), self.payload)

    def as_json(self) -> dict[str, object]:
        return {
            "payload": base64.b64encode(self.payload).decode("ascii"),
            "payloadType": self.payload_type,
            "signatures": [
                {"keyid": each.key_id, "sig": base64.b64encode(each.signature).decode("ascii")}
                for each in self.signatures
            ],
        }


def parse_envelope(value: Any) -> Envelope:
    """An envelope's JSON value. Raises RequestError for anything but one of at most 16 Ed25519 signatures."""
    if not isinstance(value, Mapping) or value.keys() != {"payload", "payloadType", "signatures"}:
        raise RequestError("an envelope must hold exactly payload, payloadType and signatures")
    kind, signatures = value["payloadType"], value["signatures"]
    if not isinstance(kind, str) or not isinstance(signatures, list) or len(signatures) > SIGNATURES_MAX:
        raise RequestError(
            f"an envelope's payloadType is no text, or its signatures are no list of at most {SIGNATURES_MAX}"
        )
    return Envelope(kind, _decode(value["payload"], "payload"), tuple(_signature(each) for each in signatures))


def _signature(value: Any) -> Signature:
    if not isinstance(value, Mapping) or not {"sig"} <= value.keys() <= {"sig", "keyid"}:
        raise RequestError("a signature must hold sig and perhaps keyid")
    key_id = value.get("keyid", "")
    if not isinstance(key_id, str):
        raise RequestError("a signature's keyid is no text")
    signature = _decode(value["sig"], "sig")
    if len(signature) != SIGNATURE_BYTES:
        raise RequestError(f"a signature is not {SIGNATURE_BYTES} bytes")
    return Signature(key_id, signature)


def _decode(text: object, name: str) -> bytes:
    """Base64 of either alphabet, as DSSE demands, but in its one spelling: no stray characters or bits."""
    if not isinstance(text, str) or not text.isascii() or len(text) > TEXT_MAX:
        raise RequestError(f"an envelope's {name} is not base64")
    plain = text.replace("-", "+").replace("_", "/") if "+" not in text and "/" not in text else text
    try:
        content = base64.b64decode(plain, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"an envelope's {name} is not base64") from error
    if base64.b64encode(content).decode("ascii") != plain:
        raise RequestError(f"an envelope's {name} is not base64 in its one spelling")
    return content


def signed_part(record: Record) -> bytes:
    """What a record's signatures are over: all of it but themselves, canonical."""
    return replace(record, signatures=()).encoded


def record_envelope(record: Record) -> Envelope:
    """The envelope that a builder signs."""
    return Envelope(RECORD_TYPE, signed_part(record))


def with_envelope(record: Record, envelope: Envelope) -> Record:
    """The record, signed once more."""
    return replace(record, signatures=(*record.signatures, envelope.as_json()))


def claims_of(record: Record) -> list[Envelope]:
    """A record's envelopes that are over this very record; others, and what is none, claim nothing."""
    wanted = signed_part(record)
    found = []
    for value in record.signatures[:SIGNATURES_MAX]:
        try:
            envelope = parse_envelope(value)
        except RequestError:
            continue
        if envelope.payload_type == RECORD_TYPE and envelope.payload == wanted:
            found.append(envelope)
    return found
