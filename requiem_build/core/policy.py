"""What a step may see and do (Policy, part of its request) and what can only make it fail (Limits, outside it)."""

from __future__ import annotations

from .fields import dataclass

WORLD = 1
"""The number of the fixed surroundings below; raised whenever any of them changes."""

JOBSERVER_DESCRIPTOR = 3
JOBSERVER_VARIABLE = "MAKEFLAGS"
JOBSERVER_FLAGS = f"-j --jobserver-auth={JOBSERVER_DESCRIPTOR},{JOBSERVER_DESCRIPTOR}"
"""That variable of a step with `jobserver`: the same in every run, however many slots there are."""

WORKSPACE = "/workspace"
BASE_PATH = "/usr/local/bin:/usr/bin:/bin"
UID = GID = 1000
USER = "builder"
HOSTNAME = "requiem"
INPUT_MTIME_S = 315_619_200  # 1980-01-02T00:00Z: zip and wheel refuse earlier years.
HOME = "/tmp/home"

WORLD_ENVIRONMENT = {
    "HOME": HOME,
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "LOGNAME": USER,
    "PATH": BASE_PATH,
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "SOURCE_DATE_EPOCH": str(INPUT_MTIME_S),
    "TMPDIR": "/tmp",
    "TZ": "UTC",
    "USER": USER,
}

KNOWN_LEAKS = (
    "cpu count",
    "cpu model",
    "dates in /dev/pts",
    "ids of System V objects",
    "inode numbers and directory offsets",
    "kernel version",
    "login uid, scheduling priority, and limits below the world's",
    "owner of large inputs",
    "readdir order",
    "sizes and link counts of directories",
    "uid of the worker in mountinfo and uid_map",
)

CLOCK_LEAKS = ("dates of files written during the step", "the processor's cycle counter")
RANDOM_LEAKS = ("the processor's own random numbers",)
"""What can be held of the clock and of randomness is held whole; this cannot be held, and is said."""

DURABILITIES = ("none", "batch", "full")
"""When results survive a power cut: no promise, after half a second or at the run's end, or before a step is done."""

LEVELS = ("strict", "process", "none")
SYSTEMS = ("packages", "host")
NETWORKS = ("none", "host")
CLOCKS = ("real", "frozen")
RANDOMS = ("real", "seeded")

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Policy:
    sandbox: str = "strict"
    system: str = "packages"
    network: str = "none"
    clock: str = "real"
    random: str = "real"
    path: tuple[str, ...] = ()
    max_output_bytes: int = MIB

    def as_json(self) -> dict[str, object]:
        return {
            "clock": self.clock,
            "max_output_bytes": self.max_output_bytes,
            "network": self.network,
            "path": list(self.path),
            "random": self.random,
            "sandbox": self.sandbox,
            "system": self.system,
        }


def leaks_of(policy: Policy) -> tuple[str, ...]:
    """What of the host a step may see although nothing of it is in its request."""
    clock = CLOCK_LEAKS if policy.clock == "frozen" else ()
    random = RANDOM_LEAKS if policy.random == "seeded" else ()
    return tuple(sorted({*KNOWN_LEAKS, *clock, *random}))


@dataclass(frozen=True, slots=True)
class Limits:
    """None means no limit. None of these is in a request: they cannot change a success."""

    timeout_ms: int | None = None
    cpu_time_ms: int | None = None
    memory_bytes: int | None = None
    processes: int | None = None
    open_files: int | None = None
    file_size_bytes: int | None = None
    output_size_bytes: int | None = None
    tmp_bytes: int | None = None

    def items(self) -> dict[str, int]:
        """Those that there are, by their keys in a manifest; times in milliseconds, sizes in bytes."""
        found = {name.removesuffix("_ms").removesuffix("_bytes"): getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in found.items() if value is not None}

    def line(self, key: str) -> str:
        """The limit as a manifest says it."""
        return line_of(key, self.items().get(key))


def line_of(key: str, value: int | None) -> str:
    """`memory = "64MiB"`; only the key where there is no value, as of /tmp, which the machine's memory limits."""
    if value is None:
        return key
    units = _DURATIONS if key in ("timeout", "cpu_time") else () if key in ("processes", "open_files") else _SIZES
    for size, unit in units:
        if value % size == 0:
            return f'{key} = "{value // size}{unit}"'
    return f"{key} = {value}"


_DURATIONS = ((3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms"))
_SIZES = ((1024 * MIB, "GiB"), (MIB, "MiB"), (1024, "KiB"))
