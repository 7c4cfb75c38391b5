"""`requiem build --explain-policy STEP`: what a step will see, may do and may use, before it runs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable

from ..engine.options import Options
from ..engine.policy import StepPolicy, explain_policy
from .console import plain, write_out
from .globals import Globals

SHOWN_MAX = 40
WIDTH = 110
HEADINGS = {
    "view": "what it finds",
    "mounts": "files",
    "network": "network",
    "privileges": "privileges",
    "refused": "refused system calls, and with which error",
    "limits": "limits",
}


def tell_policy(options: Options, step: str, shared: Globals) -> int:
    policy = explain_policy(options, step)
    if shared.json:
        write_out(json.dumps(policy.as_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        return 0
    write_out("\n".join(_lines(policy, SHOWN_MAX if not shared.verbose else None)) + "\n")
    return 0


def _lines(policy: StepPolicy, shown_max: int | None) -> Iterable[str]:
    explained = policy.explained
    more = f" (one of {policy.others + 1} instances)" if policy.others else ""
    yield plain(f"{policy.name}{more}: level {explained.level}, in {explained.means}")
    yield from (plain(f"not known yet: {item}") for item in policy.unknown)
    yield "\nenvironment: " + ("yours, and these" if explained.level == "none" else "only these")
    origins = {"world": "", "manifest": "env", "env_file": "env_file", "pass_env": "yours", "secret": "secret, masked"}
    for each in policy.environment:
        where = f"  ({origins[each.origin]})" if origins[each.origin] else ""
        yield plain(f"  {each.name}={each.value}{where}")
    for name, lines in explained.sections.items():
        if lines:
            yield f"\n{HEADINGS[name]}"
            yield from _section(lines, shown_max)


def _section(lines: tuple[tuple[str, str], ...], shown_max: int | None) -> Iterable[str]:
    width = min(36, max(len(subject) for subject, _ in lines))
    for subject, words in lines[:shown_max]:
        head = f"  {plain(subject).ljust(width)}  "
        text = textwrap.wrap(plain(words), WIDTH, break_long_words=False) or [""]
        yield head + ("\n" + " " * (width + 4)).join(text)
    if shown_max is not None and len(lines) > shown_max:
        yield f"  ... and {len(lines) - shown_max} more (-v shows all)"
