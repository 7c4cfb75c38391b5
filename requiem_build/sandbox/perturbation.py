"""How a run's surroundings may differ from the fixed ones, to see whether a result depends on them.

Only runs whose results are thrown away take one: it is in no request and no digest.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..core.fields import dataclass
from ..core.policy import GID, HOME, HOSTNAME, UID, USER, WORKSPACE, WORLD_ENVIRONMENT


@dataclass(frozen=True, slots=True)
class Perturbation:
    """The defaults are the world's own. `env` is laid over the step's environment.

    `clock` is a shift or a frozen moment as libfaketime spells it, None for the real clock; `library` is its
    path on this host. `held_random` gives every reader of the kernel's randomness the same bytes. `cpus` is how
    many processors the step may use. `newest_last` lists the staged files of each directory the other way round.
    """

    env: tuple[tuple[str, str], ...] = ()
    uid: int = UID
    gid: int = GID
    user: str = USER
    home: str = HOME
    hostname: str = HOSTNAME
    umask: int = 0o022
    workspace: str = WORKSPACE
    newest_last: bool = False
    cpus: int | None = None
    addresses_vary: bool = False
    held_random: bool = False
    clock: str | None = None
    library: str = ""


STILL = Perturbation()
"""The fixed surroundings themselves."""


def perturbed_environment(env: Mapping[str, str], perturbation: Perturbation) -> dict[str, str]:
    """A step's environment as the perturbation has it. What the step itself chose, the perturbation leaves alone."""
    here = dict(env)
    owned = {"HOME": perturbation.home, "USER": perturbation.user, "LOGNAME": perturbation.user}
    for name, value in {**owned, **dict(perturbation.env)}.items():
        if here.get(name) == WORLD_ENVIRONMENT.get(name):
            here[name] = value
    if "PATH" in here:
        here["PATH"] = ":".join(placed(entry, perturbation) for entry in here["PATH"].split(":"))
    return here


def placed(path: str, perturbation: Perturbation) -> str:
    """Where a path of the sandbox lies when the workspace lies elsewhere."""
    inside = path == WORKSPACE or path.startswith(WORKSPACE + "/")
    return perturbation.workspace + path[len(WORKSPACE) :] if inside else path
