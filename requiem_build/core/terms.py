"""A linked draft -> its instance: the terms on which it runs, from its keys."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from . import kinds, paths
from .commands import Link
from .drafts import Draft, list_words, one_line, telling
from .instance import Instance
from .paths import BadPath, quoted
from .patterns import by_bytes
from .policy import JOBSERVER_VARIABLE, MIB, Limits, Policy
from .texts import line, roots_of

LIMITS = ("timeout", "cpu_time", "memory", "processes", "open_files", "file_size", "output_size", "tmp")


def make_instance(link: Link, order: Mapping[str, int]) -> Instance:
    """The finished instance; `order` gives each name its place in the plan."""
    draft = link.draft
    step = draft.step
    values = step.values
    names = {**draft.names, **link.names}
    env = {}
    for name, text in values.get("env", {}).items():
        with telling(step, f"env.{name}", step.places["env"].at(name)):
            _refuse_late(link, text)
            env[name] = line(text, names)
    secrets = tuple(by_bytes(set(values.get("secrets", ()))))
    _refuse_twice(link, secrets, {*env, *values.get("pass_env", ())})
    if values.get("jobserver"):
        _refuse_makeflags(link, {*env, *secrets, *(name.rstrip("?") for name in values.get("pass_env", ()))})
    return Instance(
        name=draft.name,
        step=step.name,
        command=link.command,
        shown=link.shown,
        cwd=draft.cwd,
        stdin=link.stdin,
        inputs=tuple(link.inputs.values()),
        discover=link.discover,
        depfile=link.depfile,
        outputs=tuple(by_bytes(path for path, _ in draft.output_paths())),
        needs=tuple(sorted(link.needs, key=order.__getitem__)),
        after=tuple(sorted(link.after, key=order.__getitem__)),
        description=one_line(draft, "description", draft.names),
        tags=tuple(by_bytes({text for text, _ in list_words(draft, "tags")})),
        env=env,
        pass_env=tuple(by_bytes(set(values.get("pass_env", ())))),
        env_file=link.env_file,
        secrets=secrets,
        tools=tuple(by_bytes({text for text, _ in list_words(draft, "tools")})),
        roots=link.roots,
        policy=policy_of(draft),
        limits=limits_of(draft),
        lay_out=values.get("lay_out", True),
        cache=values.get("cache", True),
        retries=values.get("retries", 0),
        jobserver=values.get("jobserver", False),
        pool=link.pool,
        lock=link.lock,
        salt=one_line(draft, "salt", draft.names),
        require=values.get("require", ""),
        late=link.late,
    )


def _refuse_late(link: Link, text: str) -> None:
    if "{{" in text and "inputs" in roots_of(text) and any(item.late for item in link.inputs.values()):
        raise link.draft.step.places["env"].error(
            f"env of step {quoted(link.draft.name)} speaks of inputs that are only known after another step's run"
        )


def _refuse_twice(link: Link, secrets: tuple[str, ...], others: set[str]) -> None:
    """What `env` and `pass_env` give is in the key, and so known to whoever reads the store."""
    for name in secrets:
        if name in others or f"{name}?" in others:
            raise link.draft.step.places["secrets"].error(
                f"step {quoted(link.draft.name)} has {quoted(name)} among its secrets, and in env or pass_env too"
            )


def _refuse_makeflags(link: Link, names: set[str]) -> None:
    if JOBSERVER_VARIABLE in names:
        raise link.draft.step.places["jobserver"].error(
            f"step {quoted(link.draft.name)} has a jobserver, which gives it {JOBSERVER_VARIABLE}, and names that too"
        )


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
        values.get("system", "packages"),
        values.get("network", "none"),
        tuple(found),
        kinds.size_bytes(values.get("max_output_bytes", MIB)) or 0,
        values.get("clock", "real"),
        values.get("random", "real"),
    )


def limits_of(draft: Draft) -> Limits:
    return _limits(tuple(draft.step.values.get(key) for key in LIMITS))


@lru_cache(maxsize=4096)
def _policy(
    sandbox: str, system: str, network: str, path: tuple[str, ...], max_output_bytes: int, clock: str, random: str
) -> Policy:
    return Policy(
        sandbox=sandbox,
        system=system,
        network=network,
        path=path,
        max_output_bytes=max_output_bytes,
        clock=clock,
        random=random,
    )


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
