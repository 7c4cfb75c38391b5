"""Whom this user trusts and who signs here: `[trust]` of his configuration, tightened by requiem.local.toml.

Trust roots are keys in the user's own directory. A workspace can name fewer of them or ask for more, never the
contrary: whoever can write a file into a checkout must not be able to weaken what its reader demands.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..core.entries import Entry
from ..core.errors import UsageError
from ..core.fields import dataclass, replace
from ..core.request import Request
from ..core.result import Record
from ..core.trust import HitPolicy
from ..core.verdict import LEVELS
from ..executors.discovery import discovered_now
from ..store.keys import LOCAL, Key, Keys, Verifier
from ..store.layout import Store
from ..store.seals import SealedRecords, seal
from .settings import config_path
from .workspace import read_regular

LOCAL_FILE = "requiem.local.toml"
_KEYS = ("accept", "threshold", "min_level", "sign")


@dataclass(frozen=True, slots=True)
class Wish:
    """What one place asks for. `accept` is None where it says nothing of whom to trust."""

    accept: tuple[str, ...] | None = None
    threshold: int = 1
    min_level: str = LEVELS[0]
    sign: str | None = None

    def tightened(self, other: Wish) -> Wish:
        """Both wishes at once: fewer keys, more of them, a higher level."""
        if self.accept is None or other.accept is None:
            accept = other.accept if self.accept is None else self.accept
        else:
            accept = tuple(name for name in self.accept if name in other.accept)
        level = max(self.min_level, other.min_level, key=LEVELS.index)
        return replace(self, accept=accept, threshold=max(self.threshold, other.threshold), min_level=level)


@dataclass(frozen=True, slots=True)
class Trust:
    """`policy` is None where any record may answer, `key` where nothing is signed."""

    policy: HitPolicy | None
    key: Key | None
    verifier: Verifier
    directory: str

    @property
    def digest(self) -> str:
        return "" if self.policy is None else self.policy.digest

    def view(self, store: Store) -> Store:
        """The store as this trust lets it be seen and written."""
        return store.with_records(SealedRecords(store, self.verifier, self.policy, self.key))

    def why_refused(self, view: Store, request: Request, offered: Mapping[str, Entry]) -> str:
        """Why a record that is there did not answer a request; empty if there was none."""
        records, asked = view.records, [request]
        assert isinstance(records, SealedRecords)
        if request.discover:
            sets = records.path_sets(request.digest)
            asked = [request.with_discovered(discovered_now(paths, offered)) for paths in sets]
        return next((why for each in asked if (why := records.why_not(each.digest))), "")

    def seal(self, record: Record) -> Record:
        return record if self.key is None else seal(record, self.key)

    def paths(self) -> list[str]:
        """Every path whose change may change this."""
        folders = [self.directory, *(f"{self.directory}/{name}" for name in ("own", "trusted", "revoked"))]
        files = [
            os.path.join(folder, name) for folder in folders if os.path.isdir(folder) for name in os.listdir(folder)
        ]
        return sorted({*folders, *files})


def keys_of(environment: Mapping[str, str]) -> Keys:
    """The user's keys, beside his configuration."""
    return Keys(os.path.join(os.path.dirname(config_path(environment)), "keys"))


def load_trust(table: Mapping[str, Any], root: str | None, environment: Mapping[str, str]) -> Trust | None:
    """What applies in the workspace `root`, or outside of any; None if neither a policy nor signing was asked for.

    Raises UsageError for a wish that cannot be met, EnvironmentFault where signatures cannot be checked here.
    """
    wish = wish_of(table, root, environment)
    if wish.accept is None and wish.sign is None:
        return None
    keys = keys_of(environment)
    key = None if wish.sign is None else keys.signer(wish.sign)
    policy = None if wish.accept is None else _policy(wish, wish.accept, keys)
    return Trust(policy, key, Verifier(keys.all() if policy is not None else []), keys.directory)


def wish_of(table: Mapping[str, Any], root: str | None, environment: Mapping[str, str]) -> Wish:
    """What the user's configuration asks for, tightened by the workspace. Raises UsageError."""
    wish = parse_wish(table, config_path(environment))
    local = None if root is None else _local_table(root)
    if local is not None:
        more = parse_wish(local, LOCAL_FILE)
        if more.sign is not None:
            raise UsageError(
                f"{LOCAL_FILE} does not say who signs", hint=f"put [trust] sign into {config_path(environment)}"
            )
        wish = wish.tightened(more)
    return wish


def parse_wish(table: Mapping[str, Any], place: str) -> Wish:
    """One `[trust]` table. Raises UsageError that names its place."""
    facts = [("set in", place)]
    for name in table:
        if name not in _KEYS:
            raise UsageError(f'unknown key "trust.{name}"', facts=facts, hint="known: " + ", ".join(_KEYS))
    accept, threshold = table.get("accept"), table.get("threshold", 1)
    level, sign = table.get("min_level", LEVELS[0]), table.get("sign", False)
    if accept is not None and not (isinstance(accept, list) and all(isinstance(name, str) for name in accept)):
        raise UsageError("trust.accept is not a list of names of keys", facts=facts)
    if accept is not None and not accept:
        raise UsageError(
            "trust.accept is empty: nobody could ever be trusted", facts=facts, hint="leave it out to trust everybody"
        )
    if type(threshold) is not int or threshold < 1:
        raise UsageError(f"trust.threshold is {threshold!r}, not a number of keys from 1 on", facts=facts)
    if level not in LEVELS:
        raise UsageError(f"trust.min_level is {level!r}, which is none of {', '.join(LEVELS)}", facts=facts)
    if not isinstance(sign, bool | str):
        raise UsageError("trust.sign is neither true, false nor the name of a key", facts=facts)
    if accept is None and (threshold > 1 or level != LEVELS[0]):
        raise UsageError("trust asks for signatures and accepts no key", facts=facts, hint='add accept = ["NAME"]')
    chosen = LOCAL if sign is True else sign or None
    return Wish(None if accept is None else tuple(dict.fromkeys(accept)), threshold, level, chosen)


def _policy(wish: Wish, names: tuple[str, ...], keys: Keys) -> HitPolicy:
    found = {key.key_id: key for key in (keys.named(name) for name in names)}
    policy = HitPolicy({i: key.name for i, key in found.items() if not key.revoked}, wish.threshold, wish.min_level)
    if policy.distinct_min > len(found):
        raise UsageError(
            f"trust asks for {policy.distinct_min} distinct keys and accepts {len(found)}",
            facts=[("accepted", ", ".join(names) or "none that the configuration and requiem.local.toml both name")],
        )
    return policy


def _local_table(root: str) -> Mapping[str, Any] | None:
    content = read_regular(os.path.join(root, LOCAL_FILE))
    if content is None or b"trust" not in content:
        return None
    import tomllib

    try:
        table = tomllib.loads(content.decode("utf-8")).get("trust")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
        return None  # The manifest's reader says it better.
    if table is not None and not isinstance(table, dict):
        raise UsageError("trust is not a table", facts=[("set in", LOCAL_FILE)])
    return table
