"""How does a worker wall itself in? The host becomes a list of operations, in pure functions. It applies nothing.

An operation is a tuple: the name of a method of `boot.Boot`, then its arguments. What a step is shown inside these
walls is decided by `view.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from ..core.fields import dataclass
from ..core.policy import INPUT_MTIME_S, WORKSPACE
from . import syscalls, system
from .perturbation import OTHER_HOST, OTHER_PROCESSOR, STILL, Perturbation

if TYPE_CHECKING:
    from .masks import Shown

Operation = tuple[Any, ...]

DROPPED_UID = 65533
"""Who a worker of root becomes before it does anything else: nobody, but not the `nobody` that others use."""

INPUT_MTIME_NS = INPUT_MTIME_S * 1_000_000_000

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
        plan.append(("landlock", landlock, landlock_rules(landlock, WORKSPACE)))
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


def landlock_rules(abi: int, workspace: str) -> list[tuple[str, int]]:
    all_rights = syscalls.landlock_rights(abi)
    return [
        ("/", syscalls.LANDLOCK_READ),
        ("/proc", syscalls.LANDLOCK_READ | syscalls.LANDLOCK_WRITE_FILE),
        ("/dev", all_rights),
        ("/tmp", all_rights),
        (workspace, all_rights),
    ]
