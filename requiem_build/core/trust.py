"""Whose word is enough: a policy over verified signatures. Knows no cryptography; it is told whose signatures hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from . import canonical
from .digest import object_digest
from .fields import dataclass
from .result import Record

LEVELS = ("unknown", "confined", "reproduced-elsewhere")
"""What a signed record can show, the weakest first."""

UNTRUSTED = "record is signed by nobody you trust"


@dataclass(frozen=True, slots=True)
class HitPolicy:
    """`accept` maps the id of each accepted key to its name; `threshold` counts distinct keys of them."""

    accept: Mapping[str, str]
    threshold: int = 1
    min_level: str = LEVELS[0]

    def __post_init__(self) -> None:
        assert self.threshold >= 1 and self.min_level in LEVELS

    @property
    def distinct_min(self) -> int:
        return max(self.threshold, 2) if self.min_level == "reproduced-elsewhere" else self.threshold

    @property
    def digest(self) -> str:
        """Names the policy: what was accepted under another one is asked again."""
        return object_digest(canonical.encode_plain([sorted(self.accept), self.threshold, self.min_level]))


@dataclass(frozen=True, slots=True)
class Claim:
    """One record of a request and the ids of all keys whose signature over it holds."""

    record: Record
    signers: frozenset[str]


def is_confined(record: Record) -> bool:
    """Whether the sandbox held everything that the result could come from, and nothing was taken on trust."""
    protection = record.protection
    return protection.get("level") == "strict" and protection.get("network") == "none" and not record.asserted


def choose(claims: Iterable[Claim], policy: HitPolicy) -> int | str:
    """Which claim answers, as its index, or why none does. No more claims are taken than are needed.

    Distinct accepted keys are counted for each result; the first result that has enough of them answers.
    """
    confined = policy.min_level != LEVELS[0]
    signers: dict[str, set[str]] = {}
    first: dict[str, int] = {}
    below = False
    for index, claim in enumerate(claims):
        valid = claim.signers & policy.accept.keys()
        if valid and confined and not is_confined(claim.record):
            below = True
        elif valid:
            result = claim.record.result_digest
            counted = signers.setdefault(result, set())
            counted |= valid
            first.setdefault(result, index)
            if len(counted) >= policy.distinct_min:
                return first[result]
    if signers:
        most = max(len(counted) for counted in signers.values())
        return f"record is signed by {most} of the {policy.distinct_min} keys that you ask for"
    return 'record is below the level "confined" that you ask for' if below else UNTRUSTED
