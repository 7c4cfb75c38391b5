"""What a step did (Result), and the claim that this request gave it (Record)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from . import canonical
from .digest import EMPTY, Digest, Domain, digest, is_digest, object_digest
from .entries import Entry, parse_output
from .errors import RequestError
from .fields import dataclass, field, replace
from .request import Request, is_workspace_path

SCHEMA = "requiem.result/1"
RECORD_SCHEMA = "requiem.record/1"

TERMINATIONS = (
    "exited",
    "signaled",
    "timeout",
    "cpu_time",
    "memory",
    "processes",
    "open_files",
    "file_size",
    "output_size",
    "tmp",
    "not_found",
)


@dataclass(frozen=True, slots=True)
class Captured:
    """One stream: the digest and bytes of what was kept; `truncated` if the step wrote more."""

    digest: Digest = EMPTY
    size: int = 0
    truncated: bool = False

    def as_json(self) -> dict[str, object]:
        return {"digest": self.digest, "size": self.size, "truncated": self.truncated}


@dataclass(frozen=True)
class Result:
    """`exit_code` is the command's own, or 128 + N after signal N, or 127 if it was not found."""

    request_digest: Digest
    exit_code: int
    termination: str
    stdout: Captured
    stderr: Captured
    outputs: Mapping[str, Entry]
    trace_digest: Digest

    @property
    def ok(self) -> bool:
        return self.exit_code == 0 and self.termination == "exited"

    def as_json(self) -> dict[str, object]:
        return {
            "exit_code": self.exit_code,
            "outputs": {path: entry.as_output() for path, entry in self.outputs.items()},
            "request_digest": self.request_digest,
            "schema": SCHEMA,
            "stderr": self.stderr.as_json(),
            "stdout": self.stdout.as_json(),
            "termination": self.termination,
            "trace_digest": self.trace_digest,
        }

    @cached_property
    def encoded(self) -> bytes:
        return canonical.encode_plain(self.as_json())

    @cached_property
    def digest(self) -> Digest:
        return digest(Domain.RESULT, self.encoded)


def make_trace(request: Request, exit_code: int, termination: str, outputs: Mapping[str, Entry]) -> bytes:
    """The canonical list of what happened, without times or hosts: the same on every machine."""
    happened: list[tuple[str, dict[str, object]]] = [
        ("request", {"digest": request.digest}),
        ("policy", {"policy": request.policy.as_json()}),
        ("exit", {"exit_code": exit_code, "termination": termination}),
        ("outputs", {"outputs": {path: entry.as_output() for path, entry in outputs.items()}}),
    ]
    return canonical.encode_plain(
        [{"data": facts, "seq": number, "type": kind} for number, (kind, facts) in enumerate(happened)]
    )


def make_result(
    request: Request,
    *,
    exit_code: int,
    termination: str,
    stdout: Captured,
    stderr: Captured,
    outputs: Mapping[str, Entry],
) -> Result:
    assert termination in TERMINATIONS
    trace = make_trace(request, exit_code, termination, outputs)
    return Result(request.digest, exit_code, termination, stdout, stderr, dict(outputs), object_digest(trace))


_RESULT_FIELDS = frozenset(Result.__match_args__) | {"schema"}


def parse_result(content: bytes) -> Result:
    """A result from outside. Raises RequestError that names the field."""
    value = canonical.parse(content)
    if not isinstance(value, dict) or value.keys() != _RESULT_FIELDS:
        raise RequestError(f"a result must hold exactly {', '.join(sorted(_RESULT_FIELDS))}")
    if value["schema"] != SCHEMA:
        raise RequestError(f"result schema {value['schema']!r} is not {SCHEMA!r}")
    for name in ("request_digest", "trace_digest"):
        if not is_digest(value[name]):
            raise RequestError(f"result.{name} is not a digest")
    if type(value["exit_code"]) is not int or value["termination"] not in TERMINATIONS:
        raise RequestError("result.exit_code or result.termination is not valid")
    outputs = value["outputs"]
    if not isinstance(outputs, dict) or not all(is_workspace_path(path) for path in outputs):
        raise RequestError("result.outputs must map workspace paths to entries")
    return Result(
        request_digest=Digest(value["request_digest"]),
        exit_code=value["exit_code"],
        termination=value["termination"],
        stdout=_captured(value["stdout"]),
        stderr=_captured(value["stderr"]),
        outputs={path: parse_output(entry) for path, entry in outputs.items()},
        trace_digest=Digest(value["trace_digest"]),
    )


def _captured(value: Any) -> Captured:
    valid = isinstance(value, dict) and value.keys() == {"digest", "size", "truncated"}
    if not valid or not is_digest(value["digest"]) or type(value["size"]) is not int or value["size"] < 0:
        raise RequestError("a captured stream is not {digest, size, truncated}")
    if not isinstance(value["truncated"], bool):
        raise RequestError("a captured stream's `truncated` is not true or false")
    return Captured(Digest(value["digest"]), value["size"], value["truncated"])


@dataclass(frozen=True)
class Record:
    """This request gave this result: who, when, under which protection. Not part of any digest."""

    request_digest: Digest
    result_digest: Digest
    when: str
    duration_ms: int
    executor: str
    host: str
    engine: str
    protection: Mapping[str, object]
    leaks: tuple[str, ...] = ()
    rusage: Mapping[str, int] = field(default_factory=dict)
    discovered: tuple[str, ...] | None = None
    asserted: tuple[str, ...] = ()
    signatures: tuple[Mapping[str, object], ...] = ()

    @cached_property
    def digest(self) -> Digest:
        """Names the claim: the `cas:` digest of its canonical bytes without signatures, which may be added later."""
        return object_digest((replace(self, signatures=()) if self.signatures else self).encoded)

    def as_json(self) -> dict[str, object]:
        return {
            "asserted": list(self.asserted),
            "discovered": None if self.discovered is None else list(self.discovered),
            "duration_ms": self.duration_ms,
            "engine": self.engine,
            "executor": self.executor,
            "host": self.host,
            "leaks": list(self.leaks),
            "protection": dict(self.protection),
            "request_digest": self.request_digest,
            "result_digest": self.result_digest,
            "rusage": dict(self.rusage),
            "schema": RECORD_SCHEMA,
            "signatures": [dict(signature) for signature in self.signatures],
            "when": self.when,
        }

    @cached_property
    def encoded(self) -> bytes:
        return canonical.encode_plain(self.as_json())


_RECORD_FIELDS = frozenset(Record.__match_args__) | {"schema"}


def parse_record(value: Any) -> Record:
    """A record's JSON value. Raises RequestError if it is not one of this version."""
    if not isinstance(value, dict) or value.keys() != _RECORD_FIELDS:
        raise RequestError(f"a record must hold exactly {', '.join(sorted(_RECORD_FIELDS))}")
    if value["schema"] != RECORD_SCHEMA:
        raise RequestError(f"record schema {value['schema']!r} is not {RECORD_SCHEMA!r}")
    texts = ("when", "executor", "host", "engine")
    lists = ("leaks", "asserted", "signatures")
    if not (is_digest(value["request_digest"]) and is_digest(value["result_digest"])):
        raise RequestError("a record's digests are not digests")
    if not all(isinstance(value[name], str) for name in texts) or not all(isinstance(value[n], list) for n in lists):
        raise RequestError("a record's texts or lists are not of their type")
    if type(value["duration_ms"]) is not int or value["duration_ms"] < 0:
        raise RequestError("a record's duration_ms is not a whole number")
    if not isinstance(value["protection"], dict) or not isinstance(value["rusage"], dict):
        raise RequestError("a record's protection or rusage is not an object")
    if not all(isinstance(text, str) for name in ("leaks", "asserted") for text in value[name]):
        raise RequestError("a record's leaks or asserted are not texts")
    if not all(isinstance(signature, dict) for signature in value["signatures"]):
        raise RequestError("a record's signatures are not objects")
    if not all(type(number) is int for number in value["rusage"].values()):
        raise RequestError("a record's rusage holds more than whole numbers")
    discovered = value["discovered"]
    if discovered is not None and not (isinstance(discovered, list) and all(isinstance(p, str) for p in discovered)):
        raise RequestError("a record's discovered is not a list of paths")
    return Record(
        request_digest=Digest(value["request_digest"]),
        result_digest=Digest(value["result_digest"]),
        when=value["when"],
        duration_ms=value["duration_ms"],
        executor=value["executor"],
        host=value["host"],
        engine=value["engine"],
        protection=value["protection"],
        leaks=tuple(value["leaks"]),
        rusage=value["rusage"],
        discovered=None if discovered is None else tuple(discovered),
        asserted=tuple(value["asserted"]),
        signatures=tuple(value["signatures"]),
    )
