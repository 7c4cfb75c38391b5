"""What may a step see? Host and job become lists of operations, in pure functions. It applies nothing.

An operation is a tuple: the name of a method of `boot.Boot` (`plan_boot`, once for a worker), of `staging.Staging`
(`plan_staging`, once for a step) or of `staging.Preparation` (`plan_job`, likewise, in a view of its own), then its
arguments.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from ..core.errors import EnvironmentFault
from ..core.fields import dataclass, field, replace
from ..core.policy import INPUT_MTIME_S, WORKSPACE
from . import syscalls, system
from .base import Job, Mount, Staged
from .layout import plan_ceilings, plan_directories
from .perturbation import OTHER_HOST, OTHER_PROCESSOR, STILL, Perturbation, placed
from .trees import INPUTS_MIN, Choice

if TYPE_CHECKING:
    from .masks import Shown

Operation = tuple[Any, ...]

DROPPED_UID = 65533
"""Who a worker of root becomes before it does anything else: nobody, but not the `nobody` that others use."""

INPUT_MTIME_NS = INPUT_MTIME_S * 1_000_000_000

SHARED_VIEW_BYTES_MAX = 16 * 1024 * 1024
"""Inputs are written, not mounted, into a view that steps share: beyond this a view of its own is quicker."""

_TOP = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_DEVICE_LINKS = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
)
_PROC_READ_ONLY = ("sys", "irq", "bus", "fs", "sysrq-trigger")
_PROC_MASKED = ("kallsyms", "kcore", "key-users", "keys", "kmsg", "latency_stats", "sched_debug", "scsi", "timer_list")
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_UNLIMITED = -1
_LIMITS = (
    # What a step starts with: soft and hard, unless the engine's own hard limit is lower.
    ("RLIMIT_AS", _UNLIMITED, _UNLIMITED),
    ("RLIMIT_CORE", 0, 0),
    ("RLIMIT_CPU", _UNLIMITED, _UNLIMITED),
    ("RLIMIT_DATA", _UNLIMITED, _UNLIMITED),
    ("RLIMIT_FSIZE", _UNLIMITED, _UNLIMITED),
    ("RLIMIT_MEMLOCK", 64 * 1024, 64 * 1024),
    ("RLIMIT_MSGQUEUE", 0, 0),  # POSIX message queues would outlive their step, and nobody could list them.
    ("RLIMIT_NICE", 0, 0),
    ("RLIMIT_NOFILE", 1024, 16384),
    ("RLIMIT_NPROC", 16384, 16384),
    ("RLIMIT_RSS", _UNLIMITED, _UNLIMITED),
    ("RLIMIT_RTPRIO", 0, 0),
    ("RLIMIT_SIGPENDING", 16384, 16384),
    ("RLIMIT_STACK", 8 * 1024 * 1024, _UNLIMITED),
)

_EMPTY_DIRECTORIES = ("workspace", "tmp", "run", "var")
_STAGING = "/dev/shm"
"""Where a job's stores lie while it is prepared; the step's own /dev/shm is put there afterwards."""


@cache
def _held_bytes() -> bytes:
    """What stands for randomness where it is held: 1 MiB that look like nothing in particular."""
    return bytes((number * 167 + (number >> 8) * 13 + 89) & 0xFF for number in range(1 << 18)) * 4


def _etc(here: Perturbation) -> dict[str, str]:
    return {
        "/etc/passwd": (
            "root:x:0:0:root:/root:/bin/sh\n"
            f"{here.user}:x:{here.uid}:{here.gid}:{here.user}:{here.home}:/bin/sh\n"
            "nobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n"  # Who owns what belongs to the host.
        ),
        "/etc/group": f"root:x:0:\n{here.user}:x:{here.gid}:\nnogroup:x:65534:\n",
        "/etc/hosts": f"127.0.0.1 localhost {here.hostname}\n::1 localhost {here.hostname}\n",
    }


_CERTIFICATES = ("/etc/ssl/certs", "/etc/pki", "/etc/ca-certificates")


@dataclass(frozen=True, slots=True)
class Host:
    """What the plans depend on, read once."""

    machine: str
    drop_to: int | None
    """The uid to become, or None for someone who is not root."""
    top: tuple[tuple[str, str | None], ...]
    """/bin and its like that exist: name and, if it is a link, its target."""
    etc_files: Mapping[str, bytes]
    etc_directories: tuple[str, ...]
    certificates: tuple[str, ...]
    resolver: bytes
    landlock: int
    shown: Shown | None = None
    """A view of packages instead of all of /usr."""


def read_host(shown: Shown | None = None) -> Host:
    top = [
        (name, os.readlink(f"/{name}") if os.path.islink(f"/{name}") else None)
        for name in _TOP
        if os.path.lexists(f"/{name}")
    ]
    entries = system.etc_entries() if shown is None else ()
    abi = syscalls.landlock_abi()
    return Host(
        machine=os.uname().machine,
        drop_to=_uid_to_drop_to(os.geteuid(), read("/proc/self/uid_map")),
        top=tuple(top),
        etc_files={path: read(path) for path in entries if os.path.isfile(path)},
        etc_directories=tuple(path for path in entries if os.path.isdir(path)),
        certificates=tuple(path for path in _CERTIFICATES if os.path.isdir(path)),
        resolver=read("/etc/resolv.conf"),
        landlock=abi if abi >= 2 else 0,  # The first version would forbid every rename between directories.
        shown=shown,
    )


def read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _uid_to_drop_to(uid: int, uid_map: bytes) -> int | None:
    """Root drops its uid unless it is only the root of a user namespace that has no other."""
    if uid != 0:
        return None
    for line in uid_map.splitlines():
        inside, _, count = (int(word) for word in line.split())
        if inside <= DROPPED_UID < inside + count:
            return DROPPED_UID
    return None


def plan_boot(
    host: Host,
    areas: Sequence[str],
    network: str,
    filter_: bytes | None = None,
    here: Perturbation = STILL,
    frozen: bool = False,
) -> list[Operation]:
    """How a worker walls itself in. `areas` are the host directories from which jobs may be shown something.

    With a filter the worker makes the one view that all its steps share, and confines itself as every step is.
    """
    namespaces = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWUTS
    namespaces |= syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWCGROUP
    if network == "none":
        namespaces |= syscalls.CLONE_NEWNET
    plan: list[Operation] = []
    open_masks: list[Operation] = []
    if host.shown is not None:
        open_masks = [("open_masks", [f"{host.shown.folder}/{number}" for number, _ in enumerate(host.shown.tops)])]
    if host.drop_to is not None:
        plan += [("open_trees", list(areas)), *open_masks, ("drop_identity", host.drop_to)]
    plan += [
        ("core_filter", "33"),
        ("new_user", here.uid, here.gid),
        ("new_namespaces", namespaces),
        ("become_init",),
        ("hostname", here.hostname),
        ("private_mounts",),
        *(open_masks if host.drop_to is None else []),
        *([] if filter_ else [("stage_trees", list(areas))]),
        ("new_root",),
        *_plan_system(host, network, here),
        *_plan_clock(here),
        *_plan_devices(here),
        *_plan_proc(),
        *_plan_facts(here, frozen),
        ("date", INPUT_MTIME_NS),
        ("enter_root",),
    ]
    if network == "none":
        plan.append(("loopback",))
    plan += [
        *(("limit", name, soft, hard) for name, soft, hard in _LIMITS),
        ("drop_bounding_set",),
        ("no_new_privileges",),
    ]
    return plan if filter_ is None else [*plan, *_plan_one_view(host.landlock, filter_)]


def _plan_one_view(landlock: int, filter_: bytes) -> list[Operation]:
    plan: list[Operation] = [
        ("tmpfs", WORKSPACE, "mode=0755"),
        ("tmpfs", "/tmp", "mode=1777"),
        ("tmpfs", "/dev/shm", "mode=1777"),
        ("fix_addresses",),
        ("keep_one_capability",),
    ]
    if landlock:
        plan.append(("landlock", landlock, _landlock_rules(landlock, WORKSPACE)))
    return [*plan, ("confine", filter_)]


def _plan_system(host: Host, network: str, here: Perturbation) -> list[Operation]:
    plan = _plan_packages(host.shown) if host.shown else [("bind", "/usr", "/usr")]
    for name, link in host.top:
        if link is not None:
            plan.append(("symlink", f"/{name}", link))
        elif host.shown is None:
            plan.append(("bind", f"/{name}", f"/{name}"))
    plan += [("directory", f"/{name}", 0o755) for name in _EMPTY_DIRECTORIES]
    if here.workspace != WORKSPACE:
        parts = here.workspace.strip("/").split("/")
        plan += [("directory", "/" + "/".join(parts[: depth + 1]), 0o755) for depth in range(len(parts))]
    plan.append(("symlink", "/var/tmp", "/tmp"))
    files = {path: text.encode() for path, text in _etc(here).items()} | dict(host.etc_files)
    directories = list(host.etc_directories)
    hosts = "files"
    if network == "host":
        hosts = "files dns"
        files["/etc/resolv.conf"] = host.resolver
        directories += host.certificates
    files["/etc/nsswitch.conf"] = f"passwd: files\ngroup: files\nhosts: {hosts}\n".encode()
    parents = {os.path.dirname(path) for path in (*files, *directories)}
    plan += [("directory", path, 0o755) for path in sorted({"/etc", *parents})]
    plan += [("file", path, content) for path, content in sorted(files.items())]
    plan += [("bind", path, path) for path in sorted(directories)]
    return plan + (_plan_etc(host.shown, set(files), parents, directories) if host.shown else [])


def _plan_packages(shown: Shown) -> list[Operation]:
    plan: list[Operation] = [("show_masked", number, shown.mechanism, top) for number, top in enumerate(shown.tops)]
    return [*plan, ("check_masked", shown.present, shown.content, shown.hidden)]


def _plan_etc(shown: Shown, made: set[str], parents: set[str], bound: Sequence[str]) -> list[Operation]:
    """The packages' own files of /etc, where the world has not made others and the host's are not shown whole."""
    paths = [
        path
        for path in (*shown.etc_files, *shown.etc_links)
        if path not in made and not any(path.startswith(f"{folder}/") for folder in bound)
    ]
    above: set[str] = set()
    for path in paths:
        parts = path.split("/")
        above.update("/".join(parts[:depth]) for depth in range(3, len(parts)))
    plan: list[Operation] = [("directory", path, 0o755) for path in sorted(above - parents - {"/etc"})]
    for path in sorted(paths):
        if path in shown.etc_links:
            plan.append(("symlink", path, shown.etc_links[path]))
        else:
            content, executable = shown.etc_files[path]
            plan.append(("file", path, content, 0o755 if executable else 0o644))
    return plan


def _plan_clock(here: Perturbation) -> list[Operation]:
    """Another clock for every program that is dynamically linked."""
    if here.clock is None:
        return []
    return [
        ("bind", here.library, "/run/clock"),
        ("file", "/etc/ld.so.preload", b"/run/clock\n"),
        ("file", "/etc/faketimerc", here.clock.encode() + b"\n"),
    ]


def _plan_facts(here: Perturbation, frozen: bool) -> list[Operation]:
    """Facts of the host in /proc that are the world's, each covered once.

    The C library counts processors in its `stat` where /sys is absent.
    """
    files: dict[str, bytes] = {_BOOT_ID: b"00000000-0000-4000-8000-000000000000\n"}
    if here.other_host:
        files |= {path: text.encode() for path, text in OTHER_HOST.items() if os.path.exists(path)}
    if here.other_host or here.cpus is not None:
        count = here.cpus or len(os.sched_getaffinity(0))
        content = files.get("/proc/stat") or read("/proc/stat")
        lines = [line for line in content.split(b"\n") if not re.match(rb"cpu\d", line)]
        shown = [b"cpu%d 1 0 1 1 0 0 0 0 0 0" % number for number in range(count)]
        files["/proc/stat"] = b"\n".join([*lines[:1], *shown, *lines[1:]])
        if here.other_host:
            files["/proc/cpuinfo"] = "".join(OTHER_PROCESSOR.format(number) for number in range(count)).encode()
    if frozen:
        content = files.get("/proc/stat") or read("/proc/stat")
        files["/proc/stat"] = re.sub(rb"(?m)^btime .*$", b"btime %d" % INPUT_MTIME_S, content)
    if here.held_random:
        files["/proc/sys/kernel/random/uuid"] = b"0e2d1f6a-95c4-4b7e-8a31-5d7c60f2b948\n"
    return [("cover", path, content) for path, content in sorted(files.items())]


def _plan_devices(here: Perturbation) -> list[Operation]:
    real = [name for name in _DEVICES if not (here.held_random and name.endswith("random"))]
    held = [name for name in _DEVICES if name not in real]
    return [
        ("directory", "/dev", 0o755),
        *(("device", name) for name in real),
        *(("file", f"/dev/{name}", _held_bytes()) for name in held),
        *(("symlink", path, target) for path, target in _DEVICE_LINKS),
        ("directory", "/dev/shm", 0o755),
        ("terminals", INPUT_MTIME_NS),
    ]


def _plan_proc() -> list[Operation]:
    return [
        ("proc",),
        ("sysctl", "user/max_user_namespaces", "0"),
        *(("read_only", f"/proc/{name}") for name in _PROC_READ_ONLY),
        *(("mask", f"/proc/{name}") for name in _PROC_MASKED),
    ]


@dataclass(slots=True)
class _Shown:
    """What of one area a job shows: whole, as a root; or parts of it."""

    whole: list[Mount] = field(default_factory=list)
    parts: list[tuple[str, Mount]] = field(default_factory=list)
    files: list[tuple[str, Staged]] = field(default_factory=list)
    stdin: str | None = None


def plan_job(
    job: Job, areas: Sequence[str], landlock: int, here: Perturbation = STILL, tree: Choice | None = None
) -> list[Operation]:
    """How the view of one step is made. Raises EnvironmentFault for a source outside of all areas."""
    shown = _sort_by_area(job, areas)
    if here.newest_last:
        for what in shown.values():
            what.files.reverse()
    borrowed, attached = _plan_areas(shown, here)
    room = ",size=3g,nr_inodes=300k" if here.other_host else ""
    tmp = _tmp_options(job.limits.tmp_bytes) + (room if job.limits.tmp_bytes is None else "")
    if job.backdrop is not None:
        borrowed.append((len(borrowed), find_area(job.backdrop, areas), False))
    plan: list[Operation] = [("borrow", borrowed)] if borrowed else []
    plan += [
        ("new_namespaces", syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC),
        *(
            [("hide_trees",), ("tmpfs", here.workspace, f"mode=0755{room}")]
            if tree is None
            else [("lay_tree", tree.number, here.workspace, f"mode=0755{room}")]
        ),
        ("enter_workspace" if job.backdrop is None else "enter_upper", here.workspace),
        ("tmpfs", "/tmp", tmp),
        ("watch_tmp", "/tmp"),
        ("scratch", here.home, 0o755),
    ]
    shared = [("tmpfs", "/dev/shm", tmp), ("watch_shared", "/dev/shm")]
    made = (here.home, "/tmp", "/dev/shm")
    if job.backdrop is None:
        plan += plan_staging(job, (*attached, *shared), made, here, tree)
    else:
        plan += plan_staging(job, (), made[:2], here)
        plan += [("hide", path) for path in job.hidden]
        plan += [
            ("attach", len(borrowed) - 1, _STAGING),
            ("show_backdrop", _STAGING, here.workspace),
            ("detach", _STAGING),
            *attached,
            *shared,
        ]
    if landlock:
        plan.append(("landlock", landlock, _landlock_rules(landlock, here.workspace)))
    return plan + _plan_perturbation(here)


def _tmp_options(size: int | None) -> str:
    """Of /tmp and of /dev/shm. Names take memory too: as many as there would be of files of 1 KiB."""
    return "mode=1777" if size is None else f"mode=1777,size={size},nr_inodes={max(1024, size // 1024)}"


def plan_staging(
    job: Job,
    shown: Sequence[Operation] = (),
    made: Sequence[str] = (),
    here: Perturbation = STILL,
    tree: Choice | None = None,
) -> list[Operation]:
    """How the inputs of one step come into its workspace.

    `shown` is done when the directories are there; `made` are directories that it then dates too. What lies in a
    `tree` is there already.
    """
    if tree is not None:
        job = replace(job, staged=tree.rest)
    directories = plan_directories(job)
    if tree is not None:
        directories = [path for path in directories if path not in tree.directories]
        made = [*made, *_touched(job, directories, tree.directories)]
    if here.newest_last:
        directories = sorted(sorted(directories, reverse=True), key=lambda path: path.count("/"))
    plan: list[Operation] = [("make_directory", path, 0o755) for path in directories]
    plan += shown
    links = []
    for item in sorted(job.staged, key=_by_path, reverse=here.newest_last):
        if item.data is not None:
            plan.append(("write", item.path, item.data, 0o555 if item.executable else 0o444, INPUT_MTIME_NS))
        elif item.symlink is not None:
            links.append(("link", item.path, item.symlink, INPUT_MTIME_NS))
    # Links come last, so that nothing is ever staged through one.
    plan += links
    plan.append(("date", [*directories, ".", *made], INPUT_MTIME_NS))
    if isinstance(job.stdin, bytes):
        plan.append(("stdin_bytes", job.stdin))
    return plan


def _touched(job: Job, directories: Sequence[str], known: frozenset[str]) -> list[str]:
    """Directories of a tree in which something is made for this step alone, and which look changed by that."""
    places = [*directories, *(item.path for item in job.staged)]
    places += [mount.target[len(WORKSPACE) + 1 :] for mount in job.mounts if mount.target.startswith(WORKSPACE + "/")]
    return sorted({os.path.dirname(path) for path in places} & known)


def plan_shelf(tree: Choice | None) -> list[Operation]:
    """What a worker does with its shelf before a job: methods of `shelf.Shelf`."""
    if tree is None:
        return []
    plan: list[Operation] = [("drop", number) for number in tree.dropped]
    if tree.made_of is not None:
        files = [(i.path, i.data, 0o555 if i.executable else 0o444) for i in tree.made_of if i.data is not None]
        plan.append(("put", tree.number, sorted(tree.directories), files, INPUT_MTIME_NS))
    return plan


def wants_tree(job: Job) -> bool:
    """Whether a job has so many inputs that a view of its own above a shared tree is quicker than any other."""
    return not job.fresh and job.backdrop is None and len(job.staged) >= INPUTS_MIN


def fits_one_view(job: Job) -> bool:
    """Whether a job can run in a view that it shares with others: all that it is shown is small and in memory."""
    if (
        job.fresh
        or job.backdrop is not None
        or job.mounts
        or isinstance(job.stdin, str)
        or job.limits.tmp_bytes is not None
    ):
        return False
    if plan_ceilings(job.limits):  # A worker that gave up its rights does not see what a step hides in /proc.
        return False
    if any(item.source is not None for item in job.staged):
        return False
    return sum(len(item.data) for item in job.staged if item.data is not None) <= SHARED_VIEW_BYTES_MAX


def _plan_perturbation(here: Perturbation) -> list[Operation]:
    """The last things before the command starts, so that they change nothing of how its view is made."""
    plan: list[Operation] = []
    if here.addresses_vary:
        plan.append(("vary_addresses",))
    if here.other_host:
        plan.append(("other_kernel",))
    if here.first_pid is not None:
        plan.append(("number_processes", here.first_pid))
    if here.cpus is not None:
        plan.append(("use_processors", here.cpus))
    if here.umask != STILL.umask:
        plan.append(("set_umask", here.umask))
    return plan


def _landlock_rules(abi: int, workspace: str) -> list[tuple[str, int]]:
    all_rights = syscalls.landlock_rights(abi)
    return [
        ("/", syscalls.LANDLOCK_READ),
        ("/proc", syscalls.LANDLOCK_READ | syscalls.LANDLOCK_WRITE_FILE),
        ("/dev", all_rights),
        ("/tmp", all_rights),
        (workspace, all_rights),
    ]


def _by_path(item: Staged) -> str:
    return item.path


def job_sources(job: Job) -> list[str]:
    """Every host path of which the job is shown something."""
    sources = [os.path.normpath(mount.source) for mount in job.mounts]
    sources += [item.source for item in job.staged if item.source is not None]
    sources += [job.backdrop] if job.backdrop is not None else []
    return [*sources, job.stdin] if isinstance(job.stdin, str) else sources


def find_area(source: str, areas: Sequence[str]) -> int:
    """The area in which a host path lies, the innermost if several."""
    best = -1
    for number, area in enumerate(areas):
        inside = source == area or source.startswith(area.rstrip("/") + "/")
        if inside and (best < 0 or len(area) > len(areas[best])):
            best = number
    if best < 0:
        raise EnvironmentFault(
            "the sandbox was not told of a directory that a step needs",
            facts=[("path", source), ("known", ", ".join(areas) or "none")],
        )
    return best


def _sort_by_area(job: Job, areas: Sequence[str]) -> dict[int, _Shown]:
    shown: dict[int, _Shown] = {}

    def locate(source: str) -> tuple[_Shown, str]:
        number = find_area(source, areas)
        return shown.setdefault(number, _Shown()), os.path.relpath(source, areas[number])

    for mount in sorted(job.mounts, key=lambda mount: mount.target):
        _check_target(mount.target)
        found, inside = locate(os.path.normpath(mount.source))
        if inside == ".":
            found.whole.append(mount)
        else:
            found.parts.append((inside, mount))
    for item in sorted(job.staged, key=_by_path):
        if item.source is not None:
            found, inside = locate(item.source)
            found.files.append((inside, item))
    if isinstance(job.stdin, str):
        found, found.stdin = locate(job.stdin)
    return dict(sorted(shown.items()))


def _check_target(target: str) -> None:
    first = target.split("/")[1] if target.startswith("/") else ""
    if not first or first in ("proc", "dev", "sys") or os.path.normpath(target) != target or target == WORKSPACE:
        raise EnvironmentFault("a root cannot be shown there", facts=[("path", target)])


def _plan_areas(shown: Mapping[int, _Shown], here: Perturbation) -> tuple[list[tuple[int, int, bool]], list[Operation]]:
    """(slot, area, hidden) for each copy of an area's mount that is needed, and what is done with them."""
    borrowed: list[tuple[int, int, bool]] = []
    plan: list[Operation] = []
    for area, what in shown.items():
        for mount in what.whole:
            borrowed.append((len(borrowed), area, mount.source != mount.target))
            plan.append(("attach", len(borrowed) - 1, placed(mount.target, here)))
        if not (what.parts or what.files or what.stdin):
            continue
        borrowed.append((len(borrowed), area, True))
        plan.append(("attach", len(borrowed) - 1, _STAGING))
        plan += [("show_tree", f"{_STAGING}/{inside}", placed(mount.target, here)) for inside, mount in what.parts]
        for inside, item in what.files:
            mode = 0o555 if item.executable else 0o444
            plan.append(("show_file", f"{_STAGING}/{inside}", item.path, mode, INPUT_MTIME_NS))
        if what.stdin is not None:
            plan.append(("stdin_file", f"{_STAGING}/{what.stdin}"))
        plan.append(("detach", _STAGING))
    return borrowed, plan
