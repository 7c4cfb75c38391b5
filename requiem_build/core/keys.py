"""Every key of a manifest, once: what it may hold and what it means. Checks, JSON Schema and reference read this.

It knows the shape of values (kinds.py), not their effect.
"""

from __future__ import annotations

from collections.abc import Mapping

from .fields import dataclass
from .kinds import (
    ANYTHING,
    BOOLEAN,
    COMMAND,
    CONDITION,
    COUNT,
    DURATION,
    EACH,
    ENVIRONMENT,
    ENVIRONMENT_NAMES,
    FILES,
    LEVEL,
    NAME,
    NAMES,
    PATHS,
    SECRET_NAMES,
    SIZE,
    SIZE_OR_NOTHING,
    TEXT,
    Kind,
    choice,
    count,
)
from .policy import CLOCKS, DURABILITIES, LEVELS, NETWORKS, RANDOMS, SYSTEMS

SHELLS = ("bash", "sh")


@dataclass(frozen=True, slots=True)
class Key:
    kind: Kind
    says: str
    default: str = ""
    templates: bool = False
    """Whether `{{ }}` is filled in it."""
    later: bool = False
    """Named in the design, not in this version: refused unless its value is one of `now`."""
    now: tuple[object, ...] = ()


STEP: Mapping[str, Key] = {
    "description": Key(TEXT, "One line for people: `requiem list` and messages show it.", templates=True),
    "tags": Key(NAMES, "Words to choose steps by: `requiem build --tag slow`.", "[]", templates=True),
    "extends": Key(NAME, "The template whose keys this one starts from."),
    "foreach": Key(EACH, "One instance for each value; several variables give their product.", templates=True),
    "when": Key(CONDITION, "Whether the instance exists at all.", "true", templates=True),
    "command": Key(
        COMMAND,
        "What runs: a list is an argv, a string is for the shell. Without it the step is a group.",
        templates=True,
    ),
    "stdin": Key(NAME, "The file that the command reads as standard input; else it is empty.", templates=True),
    "cwd": Key(NAME, "The directory that the command runs in.", '"."', templates=True),
    "shell": Key(choice(SHELLS), "What runs a string command: `bash -euo pipefail -c` or `/bin/sh -eu -c`.", '"bash"'),
    "inputs": Key(
        PATHS,
        "Files, patterns, `dir/` trees and `@step` that the step reads. It sees nothing else of the workspace.",
        "[]",
        templates=True,
    ),
    "discover": Key(
        NAMES,
        "Patterns of files that the step may read: visible, and in the key only once it has read them.",
        "[]",
        templates=True,
    ),
    "depfile": Key(NAME, "Where the command writes what it read (Makefile syntax, as `gcc -MMD -MF`).", templates=True),
    "needs": Key(NAMES, "Steps that come first, and whose outputs follow the inputs.", "[]", templates=True),
    "outputs": Key(PATHS, "Files, `dir/` trees and patterns that the step makes.", "[]", templates=True),
    "lay_out": Key(BOOLEAN, "Whether outputs are put into the workspace, or only kept in the store.", "true"),
    "tools": Key(NAMES, "Programs or packages that the step uses beside its own.", "[]", templates=True),
    "roots": Key(NAMES, "Read-only trees, by their names in `[roots]`.", "[]"),
    "path": Key(
        NAMES, "Directories that stand before PATH: relative to the manifest, absolute, or `~/`.", "[]", templates=True
    ),
    "env": Key(ENVIRONMENT, "Environment variables of the step.", "{}", templates=True),
    "pass_env": Key(
        ENVIRONMENT_NAMES,
        "Variables of the caller that the step sees; their values count. `NAME` must be there, `NAME?` may be.",
        "[]",
    ),
    "secrets": Key(
        SECRET_NAMES,
        "Variables of the caller that the step sees and whose values nobody else does: masked, and in no key.",
        "[]",
    ),
    "env_file": Key(FILES, "Files of `NAME=value` lines that add to `env`.", "[]", templates=True),
    "sandbox": Key(choice(LEVELS), "The level of protection.", '"strict"'),
    "system": Key(
        choice(SYSTEMS),
        "What the step sees of /usr: the packages of its command and `tools` only, or all that the host has.",
        '"packages"',
    ),
    "network": Key(choice(NETWORKS), "Whether the step reaches the network.", '"none"'),
    "clock": Key(choice(CLOCKS), "What time it is for the step.", '"real"'),
    "random": Key(choice(RANDOMS), "Where the step's randomness comes from.", '"real"'),
    "max_output_bytes": Key(
        SIZE_OR_NOTHING, "How much of stdout, and of stderr, is kept; more is cut and marked.", '"1MiB"'
    ),
    "timeout": Key(DURATION, "How long the step may take by the clock on the wall."),
    "cpu_time": Key(DURATION, "How much processor time it may use."),
    "memory": Key(SIZE, "How much memory it may use."),
    "processes": Key(COUNT, "How many processes and threads it may have at once."),
    "open_files": Key(COUNT, "How many files each process may have open."),
    "file_size": Key(SIZE, "How large one file may become."),
    "output_size": Key(SIZE, "How large all outputs together may be."),
    "tmp": Key(SIZE, "How much fits into /tmp and HOME."),
    "cache": Key(BOOLEAN, "Whether results are remembered; `false` runs the step each time.", "true"),
    "salt": Key(
        TEXT, "A text that counts and does nothing else: a new one runs the step anew, once.", '""', templates=True
    ),
    "retries": Key(count(0, 100), "How often a failed command is tried again.", "0"),
    "jobserver": Key(
        BOOLEAN, "Whether the build's free job slots are lent to the step: for make, cargo and others.", "false"
    ),
    "pool": Key(NAME, "The pool of `[pools]` whose places it shares."),
    "persistent": Key(BOOLEAN, "A process that stays while others use it.", "false", later=True, now=(False,)),
    "ready": Key(ANYTHING, "How a persistent step says that it is ready.", later=True),
    "lock": Key(
        NAMES,
        "Inputs that pin what the network gives; with them a step that uses it is remembered.",
        "[]",
        templates=True,
    ),
    "require": Key(LEVEL, "How far its result must be proven for a build to end well."),
}

PROJECT: Mapping[str, Key] = {
    "name": Key(NAME, "The project's name."),
    "requiem": Key(NAME, 'Versions of Requiem that this manifest is for: ">=1.0", ">=1.2,<2".'),
    "default": Key(NAMES, "What a plain `requiem build` builds; without it everything.", "all instances"),
    "include": Key(NAMES, "Other manifests: folders with a requiem.toml, or .toml files.", "[]"),
    "vars_files": Key(NAMES, "TOML or JSON files whose values are laid over `[vars]`.", "[]"),
}

ROOT: Mapping[str, Key] = {
    "path": Key(NAME, "A directory: relative to the manifest, absolute, or `~/`."),
    "key": Key(NAMES, "Files that stand for its content, such as a lock file; without it every file counts.", "[]"),
}

STORE: Mapping[str, Key] = {
    "durability": Key(choice(DURABILITIES), "When results survive a power cut.", '"batch"'),
    "max_size": Key(SIZE, "How large the store may become before what is oldest is dropped."),
    "path": Key(NAME, "Where the store lies. Only in requiem.local.toml or in the user's configuration.", '".cas"'),
}

POOL = Key(COUNT, "How many of its steps may run at once.")

TABLES: Mapping[str, str] = {
    "project": "The project: its name, what is built by default, what else belongs to it.",
    "vars": "Variables for templates.",
    "defaults": "Keys that every step starts from.",
    "templates": "Keys for `extends`, by name.",
    "profiles": "Other defaults and variables, by name: `requiem build --profile NAME`.",
    "steps": "The steps, by name.",
    "roots": "Read-only trees outside the inputs, by name.",
    "pools": "How many steps of a kind may run at once, by name.",
    "store": "The store of objects and records.",
}
