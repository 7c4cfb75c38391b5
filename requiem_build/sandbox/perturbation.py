"""How a run's surroundings may differ from the fixed ones, to see whether a result depends on them.

Only runs whose results are thrown away take one: it is in no request and no digest.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..core.fields import dataclass, replace
from ..core.policy import GID, HOME, HOSTNAME, UID, USER, WORKSPACE, WORLD_ENVIRONMENT


@dataclass(frozen=True, slots=True)
class Perturbation:
    """The defaults are the world's own. `env` is laid over the step's environment.

    `clock` is a shift or a frozen moment as libfaketime spells it, None for the real clock; `library` is its
    path on this host. `held_random` gives every reader of the kernel's randomness the same bytes. `cpus` is how
    many processors the step may use. `newest_last` lists the staged files of each directory the other way round.
    `other_host` shows a made-up machine that always looks the same: kernel, processor, memory, uptime, room in
    temporary file systems. `first_pid` is the number of the step's first process. `own_view` changes nothing but
    that no view was shared with an earlier step.
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
    other_host: bool = False
    first_pid: int | None = None
    own_view: bool = False
    clock: str | None = None
    library: str = ""


STILL = Perturbation()
"""The fixed surroundings themselves."""


def of_worker(perturbation: Perturbation) -> Perturbation:
    """What of it a worker is booted with. The rest is done for each step, so that one worker serves several trials."""
    return replace(
        perturbation,
        env=STILL.env,
        umask=STILL.umask,
        newest_last=STILL.newest_last,
        addresses_vary=STILL.addresses_vary,
        first_pid=STILL.first_pid,
        own_view=STILL.own_view,
    )


def perturbed_environment(env: Mapping[str, str], perturbation: Perturbation) -> dict[str, str]:
    """A step's environment as the perturbation has it. What the step itself chose, the perturbation leaves alone."""
    here = dict(env)
    owned = {"HOME": perturbation.home, "USER": perturbation.user, "LOGNAME": perturbation.user}
    for name, value in {**owned, **dict(perturbation.env)}.items():
        if here.get(name) == WORLD_ENVIRONMENT.get(name):
            here[name] = value
    if "PATH" in here:
        here["PATH"] = ":".join(placed(entry, perturbation.workspace) for entry in here["PATH"].split(":"))
    return here


def placed(path: str, workspace: str) -> str:
    """Where a path of the sandbox lies when the workspace lies elsewhere."""
    inside = path == WORKSPACE or path.startswith(WORKSPACE + "/")
    return workspace + path[len(WORKSPACE) :] if inside else path


OTHER_HOST = {
    "/proc/diskstats": "",
    "/proc/filesystems": "nodev\ttmpfs\nnodev\tproc\n",
    "/proc/interrupts": "           CPU0\n",
    "/proc/loadavg": "0.00 0.01 0.05 1/10 100\n",
    "/proc/meminfo": "MemTotal:        4000000 kB\nMemFree:         1000000 kB\nMemAvailable:    2000000 kB\n"
    "Buffers:               0 kB\nCached:           500000 kB\nSwapTotal:             0 kB\n",
    "/proc/stat": "cpu  1 0 1 1 0 0 0 0 0 0\nintr 0\nctxt 1\nbtime 1000000000\nprocesses 1\n"
    "procs_running 1\nprocs_blocked 0\n",
    "/proc/sys/kernel/osrelease": "2.6.60-elsewhere\n",
    "/proc/sys/kernel/random/boot_id": "c7b2a9d4-31f0-4e5b-9c8d-2f6e1a0b7d35\n",
    "/proc/sys/kernel/version": "#1 elsewhere\n",
    "/proc/uptime": "1000.00 1000.00\n",
    "/proc/version": "Linux version 2.6.60-elsewhere (someone@elsewhere) (gcc version 1) #1 elsewhere\n",
    "/proc/vmstat": "nr_free_pages 1000\n",
}
"""Files of /proc that tell of the host and of what else runs on it: of one that never changes."""

OTHER_PROCESSOR = (
    "processor\t: {}\nvendor_id\t: GenuineElsewhere\nmodel name\t: Elsewhere 1\ncpu MHz\t\t: 1000.000\n"
    "cache size\t: 512 KB\nflags\t\t: fpu sse sse2\nbogomips\t: 2000.00\n\n"
)
"""One in /proc/cpuinfo, by its number."""
