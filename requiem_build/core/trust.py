"""Whose word is enough: a policy over verified signatures. Knows no cryptography; it is told whose signatures hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from . import canonical
from .digest import object_digest
from .fields import dataclass
from .result import Record
from .verdict import LEVELS, Verdict

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
        """How many keys must be accepted for anything to be enough."""
        return max(self.threshold, 2) if self.min_level == LEVELS[3] else self.threshold

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


Verdicts = Callable[[Record], Mapping[str, Verdict]]
"""What keys say of a record's result after running its request again: key id -> its verdict, the signature checked."""


def choose(claims: Iterable[Claim], policy: HitPolicy, verdicts: Verdicts = lambda _: {}) -> int | str:
    """Which claim answers, as its index, or why none does. No more claims are taken than are needed.

    Distinct accepted keys are counted for each result; the first result that has enough of them answers. Two keys
    that signed records of one result are `reproduced-elsewhere`; one key and the verdict of another are as well.
    """
    confined = policy.min_level != LEVELS[0]
    signers: dict[str, set[str]] = {}
    first: dict[str, int] = {}
    unconfined, short = False, ""
    for index, claim in enumerate(claims):
        valid = claim.signers & policy.accept.keys()
        if valid and confined and not is_confined(claim.record):
            unconfined = True
        elif valid:
            result = claim.record.result_digest
            counted = signers.setdefault(result, set())
            counted |= valid
            first.setdefault(result, index)
            if len(counted) >= policy.threshold:
                short = _shortfall(policy, claim.record, counted, verdicts)
                if not short:
                    return first[result]
    if short:
        return short
    if signers:
        most = max(len(counted) for counted in signers.values())
        return f"record is signed by {most} of the {policy.distinct_min} keys that you ask for"
    return f'record is below the level "{LEVELS[1]}" that you ask for' if unconfined else UNTRUSTED


def _shortfall(policy: HitPolicy, record: Record, signers: set[str], verdicts: Verdicts) -> str:
    """Why a confined result that enough keys signed is below the level all the same; empty if it is not.

    One accepted key that saw another result takes back what all others earned.
    """
    rank = LEVELS.index(policy.min_level)
    if rank < LEVELS.index("reproduced"):
        return ""
    said = {key: verdict for key, verdict in verdicts(record).items() if key in policy.accept}
    against = sorted(policy.accept[key] for key, verdict in said.items() if verdict.differs)
    if against:
        return f'record came out otherwise when "{against[0]}" ran it again'
    again = {key for key, verdict in said.items() if verdict.agreed}
    agreeing = len(signers | again)
    if rank == LEVELS.index("reproduced"):
        enough = bool(again) or agreeing > 1
        return "" if enough else f'record is below the level "{policy.min_level}" that you ask for'
    return "" if agreeing > 1 else f"record is signed by {agreeing} of the {policy.distinct_min} keys that you ask for"
