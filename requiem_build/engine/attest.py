"""A target's provenance as other tools read it: an in-toto Statement with a SLSA predicate, signed as DSSE.

It claims what the records say and nothing more: the read set is what the steps could see, not what they may have.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from .. import __version__
from ..core import canonical
from ..core.digest import HASH
from ..core.errors import IntegrityError, RequestError
from ..core.fields import dataclass
from ..core.seal import STATEMENT_TYPE, Envelope, parse_envelope
from ..store.keys import Key, Verifier
from .lineage import Content, Lineage
from .options import Options

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://requiem.build/provenance/v1"
EXTERNAL = ("manifest", "profile", "sets", "targets")

CAS = f"requiem-cas-{HASH}"
"""BLAKE3-256 of `cas:` and the bytes: not plain BLAKE3, so it must not be named so."""
TREE = f"requiem-tree-{HASH}"
ROOT = f"requiem-root-{HASH}"


def descriptor(content: Content) -> dict[str, object]:
    """One resource: a name, every digest that is known, and what it was to the build."""
    own = ROOT if content.kind == "root" else TREE if content.is_tree else CAS
    digest = {own: str(content.digest)}
    if content.sha256 is not None:
        digest["sha256"] = content.sha256
    return {"annotations": {"kind": content.kind}, "digest": digest, "name": content.path}


def statement(lineage: Lineage, options: Options, key: Key | None) -> dict[str, object]:
    """The Statement as a JSON value, the same whenever it is made of the same records by the same key."""
    subjects = [_subject(content) for content in lineage.outputs(lineage.targets)]
    if not subjects:
        raise RequestError("there is nothing to attest: the target has no outputs")
    between = tuple(name for name in lineage.links if name not in lineage.targets)
    return {
        "_type": STATEMENT,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "manifest": dict(lineage.manifest),
                    "profile": options.profile,
                    "sets": dict(options.sets),
                    "targets": list(lineage.targets),
                },
                "internalParameters": {"absent": lineage.absent(), "steps": _steps(lineage)},
                "resolvedDependencies": [descriptor(content) for content in lineage.read_set()],
            },
            "runDetails": {
                "builder": {"id": _builder(key), "version": {"requiem": __version__}},
                "byproducts": [descriptor(content) for content in lineage.outputs(between)],
                "metadata": {"finishedOn": max(link.record.when for link in lineage.links.values())},
            },
        },
        "predicateType": PREDICATE,
        "subject": subjects,
    }


def _subject(content: Content) -> dict[str, object]:
    if content.sha256 is None:
        raise IntegrityError(
            f'the store has lost "{content.path}"', facts=[("object", content.digest)], hint="requiem build"
        )
    return {"digest": {CAS: str(content.digest), "sha256": content.sha256}, "name": content.path}


def _steps(lineage: Lineage) -> list[dict[str, object]]:
    return [
        {
            "asserted": list(link.record.asserted),
            "engine": link.record.engine,
            "executor": link.record.executor,
            "name": name,
            "protection": dict(link.record.protection),
            "request": str(link.record.request_digest),
            "result": str(link.record.result_digest),
        }
        for name, link in lineage.links.items()
    ]


def _builder(key: Key | None) -> str:
    """Who vouches: a key, since a name alone could be anybody's."""
    return f"{BUILD_TYPE}/builder" + (f"#sha256:{key.key_id}" if key is not None else "")


def attest(lineage: Lineage, options: Options, key: Key) -> bytes:
    """The signed envelope, canonical JSON."""
    payload = canonical.encode(statement(lineage, options, key))
    return canonical.encode_plain(key.sign(Envelope(STATEMENT_TYPE, payload)).as_json()) + b"\n"


# Verifying, without workspace, store or network


@dataclass(frozen=True, slots=True)
class Verdict:
    """`problems` is empty if all is well; `signers` are the names of the keys that count."""

    signers: tuple[str, ...]
    subjects: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]


def verify(content: bytes, verifier: Verifier, accept: frozenset[str], base: str) -> Verdict:
    """Whether an accepted key signed this provenance, and the files at `base` are those it speaks of.

    Raises IntegrityError for what is no attestation of ours at all.
    """
    try:
        envelope = parse_envelope(canonical.parse(content))
        if envelope.payload_type != STATEMENT_TYPE:
            raise RequestError(f"its payload is {envelope.payload_type[:80]!r}, not {STATEMENT_TYPE!r}")
        value = canonical.parse(envelope.payload)
        subjects = _read_subjects(value)
        problems = _expectations(value)
    except RequestError as error:
        raise IntegrityError("this is not an attestation of Requiem", facts=[("cause", error.what)]) from error
    signers = sorted(verifier.signers(envelope) & accept)
    if not signers:
        problems.insert(0, "it is signed by nobody you trust")
    states = [(name, _state(os.path.join(base, name), digests)) for name, digests in subjects]
    problems += [f'"{name}" is {state}' for name, state in states if state != "as attested"]
    return Verdict(tuple(verifier.keys[signer].name for signer in signers), tuple(states), tuple(problems))


def _read_subjects(value: Any) -> list[tuple[str, Mapping[str, str]]]:
    if not isinstance(value, dict) or value.get("_type") != STATEMENT or value.get("predicateType") != PREDICATE:
        raise RequestError("its payload is not an in-toto Statement with SLSA provenance")
    subjects = value.get("subject")
    if not isinstance(subjects, list) or not subjects:
        raise RequestError("it speaks of nothing")
    found = []
    for subject in subjects:
        valid = isinstance(subject, dict) and isinstance(subject.get("name"), str)
        if not valid or not isinstance(subject.get("digest"), dict) or "sha256" not in subject["digest"]:
            raise RequestError("a subject has no name or no sha256")
        found.append((subject["name"], subject["digest"]))
    return found


def _expectations(value: Mapping[str, Any]) -> list[str]:
    """What a verifier must look at besides the signature (SLSA, Verifying artifacts): nothing unknown may slip by."""
    try:
        definition = value["predicate"]["buildDefinition"]
        build_type, external = definition["buildType"], definition["externalParameters"]
    except (KeyError, TypeError) as error:
        raise RequestError("its predicate has no buildDefinition") from error
    problems = []
    if build_type != BUILD_TYPE:
        problems.append(f"its buildType is {str(build_type)[:80]!r}, not {BUILD_TYPE!r}")
    elif not isinstance(external, dict) or tuple(sorted(external)) != EXTERNAL:
        problems.append("its externalParameters are not exactly " + ", ".join(EXTERNAL))
    return problems


def _state(path: str, digests: Mapping[str, str]) -> str:
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "not there"
    return "as attested" if found == digests["sha256"] else "another file"
