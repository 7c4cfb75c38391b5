"""One expansion of a step, fully rendered: all that the engine needs to know of the manifest."""

from __future__ import annotations

from collections.abc import Mapping

from .fields import dataclass, field
from .policy import Limits, Policy


@dataclass(frozen=True, slots=True)
class Input:
    """Something an instance reads.

    `path` is relative to the workspace's root and ends in `/` if it is a whole directory.
    `producer` is the instance that makes it (the path itself, or a directory above it), or None for
    a source. With `late`, `path` is a pattern over what the producer will turn out to have made.
    """

    path: str
    producer: str | None = None
    late: bool = False


@dataclass(frozen=True, slots=True)
class Root:
    """A read-only tree outside the inputs. `path` is workspace-relative or absolute (`~` expanded by the engine).

    `key` lists the files that stand for its content; empty means every file counts.
    `producer` is the instance whose directory output it is, or None.
    """

    name: str
    path: str
    key: tuple[str, ...] = ()
    producer: str | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """Paths are relative to the workspace's root, sorted where order means nothing, without repeats."""

    name: str
    step: str
    command: tuple[str, ...]
    """The argv, with the shell already in front of a string command; empty for a group."""
    shown: str
    """The command as a person would type it: what messages print."""
    cwd: str = "."
    stdin: Input | None = None
    inputs: tuple[Input, ...] = ()
    """In the order of `{{ inputs }}`, then what counts without being listed (a program of the workspace)."""
    discover: tuple[str, ...] = ()
    depfile: str | None = None
    outputs: tuple[str, ...] = ()
    """As declared: a file, `dir/` for a whole directory, or a pattern that is evaluated after the run."""
    needs: tuple[str, ...] = ()
    """Instances whose results it uses, in plan order."""
    after: tuple[str, ...] = ()
    """Instances that only come first: makers of what `discover` matches."""
    description: str = ""
    tags: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    pass_env: tuple[str, ...] = ()
    env_file: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    policy: Policy = field(default_factory=Policy)
    limits: Limits = field(default_factory=Limits)
    lay_out: bool = True
    cache: bool = True
    retries: int = 0
    jobserver: bool = False
    pool: str | None = None
    lock: tuple[str, ...] = ()
    salt: str = ""
    require: str = ""
    """The level that its result must have earned for a build to end well; outside the key."""
    late: str = ""
    """JSON of the unrendered command and its variables, when the command needs `late` inputs; else empty."""

    @property
    def is_group(self) -> bool:
        return not self.command and not self.late


@dataclass(frozen=True)
class Plan:
    """The wanted instances, dependencies first, in the one order of DESIGN's "Plan order"."""

    instances: Mapping[str, Instance]
    roots: Mapping[str, Root] = field(default_factory=dict)
    pools: Mapping[str, int] = field(default_factory=dict)
    declared: Mapping[str, str] = field(default_factory=dict)
    """Every output that the whole manifest declares -> its instance: also of those not wanted now."""
    warnings: tuple[str, ...] = ()

    def dependents(self) -> dict[str, list[str]]:
        """Who waits for whom, in plan order."""
        found: dict[str, list[str]] = {name: [] for name in self.instances}
        for name, instance in self.instances.items():
            for need in dict.fromkeys((*instance.needs, *instance.after)):
                found[need].append(name)
        return found
