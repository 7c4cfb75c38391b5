"""How far a result is proven: a level that is earned, never claimed. Outside every digest.

    unknown < confined < reproduced(n) < reproduced-elsewhere

`unknown`: something in it is taken on trust. `confined`: it could see nothing but what its request names.
`reproduced(n)`: n more runs under other circumstances gave the same. `reproduced-elsewhere`: also on another host.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from . import canonical
from .digest import Digest, is_digest, object_digest
from .errors import RequestError
from .fields import dataclass, field
from .request import Request
from .result import Record

SCHEMA = "requiem.verdict/1"
LEVELS = ("unknown", "confined", "reproduced", "reproduced-elsewhere")
_TEXT = re.compile(r"(unknown|confined|reproduced|reproduced-elsewhere)(?:\(([1-9][0-9]{0,5})\))?")


@dataclass(frozen=True, slots=True, order=True)
class Level:
    """Ordered as the levels are. `runs` counts runs that agreed, and only matters from `reproduced` on."""

    rank: int
    runs: int = 0

    @property
    def name(self) -> str:
        return LEVELS[self.rank]

    def __str__(self) -> str:
        return f"{self.name}({self.runs})" if self.runs else self.name


def parse_level(text: str) -> Level:
    """`confined`, `reproduced`, `reproduced(3)`, ... Raises ValueError."""
    match = _TEXT.fullmatch(text)
    if match is None or (match[2] and not match[1].startswith("reproduced")):
        raise ValueError(f"{text!r} is none of {', '.join(LEVELS)}, reproduced(N)")
    return Level(LEVELS.index(match[1]), int(match[2] or 0))


def suffices(level: Level, wanted: Level) -> bool:
    """Whether a level is what is wanted, or higher. Where no number is wanted any number will do."""
    return level.rank >= wanted.rank and level.runs >= wanted.runs


@dataclass(frozen=True, slots=True)
class Verdict:
    """What speaks for one result of one request, and what against it.

    `agreed` counts the runs of each host that gave this result; `made_on` is the host of its record. `differs`
    names outputs that came out otherwise although nothing that the request fixes had changed. `confirmed`: a
    step with `discover` gave this result when it saw only what it is known to have read.
    """

    request_digest: Digest
    result_digest: Digest
    made_on: str
    when: str = ""
    agreed: Mapping[str, int] = field(default_factory=dict)
    differs: tuple[str, ...] = ()
    confirmed: bool = False
    varied: tuple[str, ...] = ()

    def level(self, request: Request, record: Record, here: str, *, vouched: bool = False) -> Level:
        """The level on the host `here`. `vouched`: a key that its reader trusts has signed the record."""
        if self.caps(request, record, here, vouched=vouched):
            return Level(0)
        if request.discover and not self.confirmed:
            return Level(0)
        runs = sum(self.agreed.values())
        if self.differs or not runs:
            return Level(1)
        elsewhere = any(host != self.made_on for host in self.agreed)
        return Level(3 if elsewhere else 2, runs)

    def caps(self, request: Request, record: Record, here: str, *, vouched: bool = False) -> list[str]:
        """Why nothing can be earned; empty if it can."""
        found = [f"asserted: {what}" for what in record.asserted]
        if request.policy.sandbox != "strict" or record.protection.get("level") != "strict":
            found.append(f"sandbox {request.policy.sandbox}")
        if request.policy.network != "none":
            found.append("network host")
        if request.policy.system == "host" and "system" not in record.asserted:
            found.append("system host")
        secrets = (f"secret {name}" for name in request.secrets)
        found += [secret for secret in secrets if secret not in record.asserted]
        if record.host != here and here not in self.agreed and not vouched:
            found.append(f"made on {record.host}, and not yet run here")
        return found

    def as_json(self) -> dict[str, object]:
        return {
            "agreed": dict(self.agreed),
            "confirmed": self.confirmed,
            "differs": list(self.differs),
            "made_on": self.made_on,
            "request_digest": self.request_digest,
            "result_digest": self.result_digest,
            "schema": SCHEMA,
            "varied": list(self.varied),
            "when": self.when,
        }

    @property
    def encoded(self) -> bytes:
        """With a digest of itself: a byte that changes makes it no verdict."""
        body = canonical.encode_plain(self.as_json())
        return canonical.encode_plain({**self.as_json(), "digest": object_digest(body)})


def parse_verdict(content: bytes) -> Verdict:
    """Raises RequestError for anything but a whole verdict."""
    value: Any = canonical.parse(content)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise RequestError("it is not a verdict of this version")
    try:
        verdict = Verdict(
            request_digest=Digest(value["request_digest"]),
            result_digest=Digest(value["result_digest"]),
            made_on=value["made_on"],
            when=value["when"],
            agreed=dict(value["agreed"]),
            differs=tuple(value["differs"]),
            confirmed=value["confirmed"],
            varied=tuple(value["varied"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError("a verdict's field is missing or not of its type") from error
    counted = all(isinstance(host, str) and type(n) is int and n > 0 for host, n in verdict.agreed.items())
    if not (counted and is_digest(verdict.request_digest) and verdict.encoded == content):
        raise RequestError("a verdict is damaged")
    return verdict
