"""On what terms a step runs: its policy and its limits, from its keys."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from . import kinds, paths
from .drafts import Draft, list_words
from .paths import BadPath, quoted
from .policy import MIB, Limits, Policy

LIMITS = ("timeout", "cpu_time", "memory", "processes", "open_files", "file_size", "output_size", "tmp")


def policy_of(draft: Draft) -> Policy:
    values = draft.step.values
    found = []
    for text, place in list_words(draft, "path"):
        if text.startswith("~/") or (text.startswith("/") and not text.startswith("//")):
            found.append(text.rstrip("/") or "/")
            continue
        try:
            found.append(paths.resolve(text, draft.step.folder).rstrip("/"))
        except BadPath as error:
            raise place.error(f"path {quoted(text)} of step {quoted(draft.step.name)} {error}") from error
    return _policy(
        values.get("sandbox", "strict"),
        values.get("network", "none"),
        tuple(found),
        kinds.size_bytes(values.get("max_output_bytes", MIB)) or 0,
    )


def limits_of(draft: Draft) -> Limits:
    return _limits(tuple(draft.step.values.get(key) for key in LIMITS))


@lru_cache(maxsize=4096)
def _policy(sandbox: str, network: str, path: tuple[str, ...], max_output_bytes: int) -> Policy:
    return Policy(sandbox=sandbox, network=network, path=path, max_output_bytes=max_output_bytes)


@lru_cache(maxsize=4096)
def _limits(values: tuple[Any, ...]) -> Limits:
    timeout, cpu_time, memory, processes, open_files, file_size, output_size, tmp = values

    def size(value: int | str | None) -> int | None:
        return None if value is None else kinds.size_bytes(value)

    return Limits(
        timeout_ms=None if timeout is None else kinds.duration_ms(timeout),
        cpu_time_ms=None if cpu_time is None else kinds.duration_ms(cpu_time),
        memory_bytes=size(memory),
        processes=processes,
        open_files=open_files,
        file_size_bytes=size(file_size),
        output_size_bytes=size(output_size),
        tmp_bytes=size(tmp),
    )
