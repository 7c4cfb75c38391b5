"""What a caller may ask of a build: the flags of the command line, as data."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.fields import dataclass, field


@dataclass(frozen=True, slots=True)
class Options:
    """`start` is the directory that the user is in. `environment` is the host's, for `pass_env` and settings."""

    start: str
    environment: Mapping[str, str]
    manifest: str | None = None
    targets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    jobs: int | None = None
    max_load: float | None = None
    keep_going: bool = False
    dry_run: bool = False
    mode: str = "turbo"
    cache: str = "rw"
    sandbox: str | None = None
    explain: bool = False
    shuffle: str | None = None
    profile: str | None = None
    sets: Mapping[str, str] = field(default_factory=dict)
    wait: bool = True
    verbose: bool = False
    brief: bool = False
    """Steps that are fresh are only counted: then those that nothing points to need not be looked at one by one."""

    @property
    def variant(self) -> str:
        """Under what the outputs in the workspace were made: other variants' outputs are not stale, but theirs."""
        return repr((self.manifest, self.profile, sorted(self.sets.items())))
