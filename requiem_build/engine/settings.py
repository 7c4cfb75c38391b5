"""The user's own configuration file, then the environment: machine paths live here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..core.errors import EnvironmentFault, UsageError
from ..core.fields import dataclass, field
from ..core.policy import DURABILITIES, LEVELS

_KEYS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "store": {"path": (str,), "durability": (str,), "max_size": (str, int)},
    "limits": {"cgroup": (str,)},
    "build": {"jobs": (int,), "max_load": (float, int), "min_memory": (str,), "mode": (str,), "sandbox": (str,)},
}
_OPEN_TABLES = ("roots", "secrets", "trust")


@dataclass(frozen=True, slots=True)
class Settings:
    store_path: str | None = None
    durability: str | None = None
    store_size_max: int | None = None
    """In bytes. For the store that is really used, a manifest's wish counts only without it."""
    jobs: int | None = None
    max_load: float | None = None
    """The load average from which on no further step is started while one runs."""
    min_memory: int | None = None
    """Bytes that must be available for a further step to be started while one runs."""
    mode: str | None = None
    sandbox: str | None = None
    roots: Mapping[str, Any] = field(default_factory=dict)
    trust: Mapping[str, Any] = field(default_factory=dict)
    cgroup: str | None = None
    """A cgroup v2 directory of the user's own, in which limits of memory and processes are held."""
    secrets: Mapping[str, Any] = field(default_factory=dict)
    """Name -> the file that holds the value."""


def config_path(environment: Mapping[str, str]) -> str:
    base = environment.get("XDG_CONFIG_HOME", "")
    if not base.startswith("/"):
        base = os.path.join(environment.get("HOME") or os.path.expanduser("~"), ".config")
    return os.path.join(base, "requiem", "config.toml")


def load_settings(environment: Mapping[str, str]) -> Settings:
    """Raises UsageError that names the file for an unknown key or a bad value."""
    path = config_path(environment)
    value = _read(path)
    for table, keys in value.items():
        if table in _OPEN_TABLES and isinstance(keys, dict):
            continue  # Each has a reader of its own.
        if table not in _KEYS or not isinstance(keys, dict):
            raise _unknown(path, table, [*_KEYS, *_OPEN_TABLES])
        for key, item in keys.items():
            if key not in _KEYS[table]:
                raise _unknown(path, f"{table}.{key}", [f"{table}.{name}" for name in _KEYS[table]])
            if type(item) not in _KEYS[table][key]:
                raise UsageError(
                    f"{table}.{key} must be {_KEYS[table][key][0].__name__}, not {type(item).__name__}",
                    facts=[("configuration", path)],
                )
    store, build = value.get("store", {}), value.get("build", {})
    sandbox = environment.get("REQUIEM_SANDBOX") or build.get("sandbox")
    if sandbox is not None and sandbox not in LEVELS:
        place = "REQUIEM_SANDBOX" if environment.get("REQUIEM_SANDBOX") else path
        raise UsageError(f"sandbox level {sandbox!r} is none of {', '.join(LEVELS)}", facts=[("set in", place)])
    durability = store.get("durability")
    if durability is not None and durability not in DURABILITIES:
        raise UsageError(
            f"store.durability is {durability!r}, none of {', '.join(DURABILITIES)}", facts=[("configuration", path)]
        )
    return Settings(
        durability=durability,
        store_path=environment.get("REQUIEM_CAS_DIR") or store.get("path"),
        store_size_max=_size_max(store.get("max_size"), path),
        jobs=_jobs(environment.get("REQUIEM_JOBS"), build.get("jobs")),
        max_load=_load(build.get("max_load"), path),
        min_memory=_memory(build.get("min_memory"), path),
        mode=build.get("mode"),
        sandbox=sandbox,
        roots=value.get("roots", {}),
        trust=value.get("trust", {}),
        secrets=value.get("secrets", {}),
        cgroup=_cgroup(value.get("limits", {}).get("cgroup"), path),
    )


def _read(path: str) -> dict[str, Any]:
    if not os.path.lexists(path):
        return {}
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError("the user's configuration is not a file", facts=[("configuration", path)])
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            "the user's configuration is not valid TOML", facts=[("configuration", path), ("cause", str(error))]
        ) from error
    except OSError as error:
        raise EnvironmentFault(
            "the user's configuration cannot be read", facts=[("configuration", path), ("cause", error.strerror or "")]
        ) from error


def _cgroup(value: str | None, path: str) -> str | None:
    if value is not None and not value.startswith("/"):
        raise UsageError(f"limits.cgroup is {value!r}, not an absolute path", facts=[("configuration", path)])
    return value


def _size_max(value: int | str | None, path: str) -> int | None:
    if value is None:
        return None
    from ..core.kinds import size_bytes

    found = size_bytes(value)
    if not found:
        raise UsageError(
            f"store.max_size is {value!r}, not a size", facts=[("configuration", path)], hint='write "10GiB"'
        )
    return found


def _unknown(path: str, key: str, known: list[str]) -> UsageError:
    import difflib

    near = difflib.get_close_matches(key, known, 1)
    hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(known)}"
    return UsageError(f'unknown key "{key}" in the user\'s configuration', facts=[("configuration", path)], hint=hint)


def _jobs(text: str | None, configured: int | None) -> int | None:
    if text is None:
        if configured is not None and not 0 < configured <= 4096:
            raise UsageError(f"build.jobs in the user's configuration is {configured}, not from 1 to 4096")
        return configured
    if not text.isdigit() or not 0 < int(text) <= 4096:
        raise UsageError(f"REQUIEM_JOBS is {text!r}, not a number of jobs from 1 to 4096")
    return int(text)


def _load(configured: float | None, path: str) -> float | None:
    if configured is not None and not 0 < configured < 1e6:
        raise UsageError(f"build.max_load is {configured}, not a load average", facts=[("configuration", path)])
    return configured


def _memory(configured: str | None, path: str) -> int | None:
    if configured is None:
        return None
    from ..core.kinds import size_bytes

    found = size_bytes(configured)
    if found is None:
        raise UsageError(
            f"build.min_memory is {configured!r}, not a size", facts=[("configuration", path)], hint='such as "2GiB"'
        )
    return found
