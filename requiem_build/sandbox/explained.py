"""What a sandbox will do with a job, in words, from the very operations that are applied. It applies nothing."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..core.fields import dataclass, field, replace
from ..core.policy import WORKSPACE, Limits, line_of
from . import syscalls
from .base import Job
from .cgroups import limits_left, wants_group
from .layout import plan_ceilings, plan_ceilings_without_mounts, plan_rlimits_without_namespaces
from .means import FRESH, LAYERED, REUSED, Terms, choose_means, plan_step, plan_worker
from .promises import NOT_ON_POSIX
from .seccomp import ARGUMENTS_REFUSED, refused_calls
from .trees import Trees
from .walls import Host, Operation

SECTIONS = ("view", "mounts", "network", "privileges", "refused", "limits")
Told = tuple[str, str, str]
"""A section, a subject and what holds of it."""

_NAMESPACES = (
    (syscalls.CLONE_NEWCGROUP, "cgroup"),
    (syscalls.CLONE_NEWIPC, "ipc"),
    (syscalls.CLONE_NEWNET, "network"),
    (syscalls.CLONE_NEWNS, "mount"),
    (syscalls.CLONE_NEWPID, "pid"),
    (syscalls.CLONE_NEWUTS, "uts"),
)


_MEANS = {
    REUSED: "a view that was reset and verified after the step before",
    FRESH: "a view of its own",
    LAYERED: "a view of its own above a layer of inputs that steps share",
}


@dataclass(frozen=True, slots=True)
class Explained:
    """`sections` says for people what is done: section -> (subject, words).

    `worker` and `step` are the very messages that a worker is sent: when it starts, and for the step. Both are empty
    below strict.
    """

    level: str
    means: str
    worker: Mapping[str, Any]
    step: Mapping[str, Any]
    sections: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)

    @property
    def operations(self) -> tuple[Operation, ...]:
        """What is applied, in order."""
        told = self.step
        return (*self.worker.get("operations", ()), *told.get("shelf", ()), *told.get("operations", ()))


def explain_strict(
    job: Job, host: Host, areas: Sequence[str], terms: Terms, *, cgroup: bool, layers_work: Callable[[], bool]
) -> Explained:
    """What is done with a job that is the first of its worker: a later one may find its layer of inputs made.

    `areas` are the host directories from which jobs may be shown something, as `StrictSandbox` has them. `cgroup`:
    limits are held in one, for steps that have such limits. `layers_work` is asked only if it counts.
    """
    grouped = cgroup and wants_group(job.limits)
    limited = replace(job, limits=limits_left(job.limits)) if grouped else job
    means = choose_means(limited, terms, grouped=grouped, layers_work=layers_work)
    tree = Trees().choose(job) if means == LAYERED else None
    worker = plan_worker(host, terms, means, areas)
    step = plan_step(limited, host, terms, means, areas, tree)
    told = Explained("strict", "", worker, step).operations[len(worker["operations"]) :]
    # What differs from step to step comes first.
    lines = [line for operation in (*told, *worker["operations"]) for line in tell(operation)]
    lines += _tell_hold(step.get("hold"))
    lines += _tell_refusals(host.machine)
    lines += _tell_limits(job, step, grouped=grouped, tmp="half of this machine's memory")
    if terms.network == "host":
        lines.append(("network", "host", "the host's own network, whole"))
    return Explained("strict", _MEANS[means], worker, step, _sorted(lines))


def _tell_hold(hold: tuple[int | None, bool] | None) -> Iterator[Told]:
    moment, seeded = hold or (None, False)
    if moment is not None:
        yield ("view", "clock", f"always {moment} seconds after 1970, for every program, by one that traces the step")
    if seeded:
        yield ("view", "randomness", "the same in each run: never make keys of it")


def explain_process(job: Job, scratch: str, *, cgroup: bool) -> Explained:
    grouped = cgroup and wants_group(job.limits)
    left = limits_left(job.limits) if grouped else job.limits
    held = {"rlimits": plan_rlimits_without_namespaces(left), "ceilings": plan_ceilings_without_mounts(left)}
    told: list[Told] = [
        ("view", "runs in", f"{scratch}/workspace, with copies of its inputs"),
        ("view", "HOME, TMPDIR", f"{scratch}/home, {scratch}/tmp"),
        *(("mounts", item.path, _input_words(item.data, item.source, item.symlink)) for item in job.staged),
        *(("mounts", mount.target, f"{mount.source} of the host, which could be written") for mount in job.mounts),
        ("network", "host", "the host's own network, whatever the step says"),
        *(("privileges", "not promised", words) for words in NOT_ON_POSIX),
        *_tell_limits(job, held, grouped=grouped, tmp="no limit of it: the host's file system"),
    ]
    return Explained("process", "a directory of its own on the host", {}, {}, _sorted(told))


def explain_none(job: Job) -> Explained:
    held = {"rlimits": plan_rlimits_without_namespaces(job.limits), "ceilings": plan_ceilings(job.limits)}
    here = replace(job, limits=replace(job.limits, tmp_bytes=None))
    limits = _tell_limits(here, held, grouped=False, tmp="your own: a step with a limit of it is refused")
    told: list[Told] = [
        ("view", "runs in", "the workspace itself, with your environment and terminal"),
        ("network", "host", "the host's own network"),
        ("privileges", "yours", "nothing is walled off, nothing is remembered"),
        *(line for line in limits if line[1] != "stdout, stderr"),
        ("limits", "stdout, stderr", "yours: nothing is kept"),
    ]
    return Explained("none", "no sandbox", {}, {}, _sorted(told))


def _sorted(told: Sequence[Told]) -> dict[str, tuple[tuple[str, str], ...]]:
    """By section. Of a path the first line holds: what is mounted for a step lies over what was made at boot."""
    found: dict[str, dict[tuple[str, str], None]] = {name: {} for name in SECTIONS}
    seen: set[str] = set()
    for section, subject, words in told:
        if section != "mounts" or subject not in seen:
            found[section][(subject, words)] = None
        if section == "mounts":
            seen.add(subject)
    return {name: tuple(lines) for name, lines in found.items()}


def tell(operation: Operation) -> Iterator[Told]:
    """What one operation means to the step; nothing for what only prepares others."""
    name, *arguments = operation
    words = _WORDS.get(name)
    if words is not None:
        yield from words(*arguments)
    elif name not in SILENT:
        yield ("view", name, " ".join(map(repr, arguments))[:200])


SILENT = frozenset(
    # They make the walls and leave nothing that a step could tell from what the others say.
    {
        "open_trees",
        "open_masks",
        "check_masked",
        "stage_trees",
        "private_mounts",
        "new_root",
        "enter_root",
        "enter_workspace",
    }
    | {"watch_tmp", "watch_shared", "borrow", "detach", "keep_one_capability", "drop_bounding_set"}
)


def _tell_namespaces(flags: int) -> Iterator[Told]:
    names = ", ".join(name for flag, name in _NAMESPACES if flags & flag)
    yield ("view", "namespaces" if flags & syscalls.CLONE_NEWPID else "its own alone", names)
    if flags & syscalls.CLONE_NEWNET:
        yield ("network", "none", "an empty network of its own: no interface of the host, no route out")


def _tell_tmpfs(path: str, options: str) -> Iterator[Told]:
    sizes = [option.partition("=")[2] for option in options.split(",") if option.startswith("size=")]
    most = f", at most {sizes[0]} bytes" if sizes else ""
    yield ("mounts", path, f"empty, writable, in memory, gone afterwards{most}")


def _input_words(content: bytes | None, source: str | None, link: str | None) -> str:
    if content is not None:
        return f"input, {len(content)} bytes"
    if source is not None:
        return "input, from the store"
    return "an empty directory" if link is None else f"input, a link to {link}"


def _tell_attached(_: int, target: str) -> Iterator[Told]:
    if target != "/dev/shm":  # There the store lies for a moment, while inputs are taken from it.
        yield ("mounts", target, "a root, read-only")


def _tell_layer(directories: Sequence[str], files: Sequence[tuple[str, bytes, int]]) -> Iterator[Told]:
    for path in directories:
        yield ("mounts", f"{WORKSPACE}/{path}", "a directory of inputs, writable above its layer")
    for path, content, _ in files:
        yield ("mounts", f"{WORKSPACE}/{path}", _input_words(content, None, None))


def _one(section: str, subject: str, words: str) -> Callable[..., Iterator[Told]]:
    """Words with `{0}`, `{1}`, ... for the operation's arguments."""

    def told(*arguments: Any) -> Iterator[Told]:
        yield (section, subject.format(*arguments), words.format(*arguments))

    return told


_RLIMITS = {
    "RLIMIT_CORE": "core dumps (bytes)",
    "RLIMIT_MEMLOCK": "locked memory (bytes)",
    "RLIMIT_NICE": "priority above others",
    "RLIMIT_NOFILE": "open files (soft)",
    "RLIMIT_NPROC": "processes and threads",
    "RLIMIT_RTPRIO": "real-time priority",
    "RLIMIT_SIGPENDING": "signals that wait",
    "RLIMIT_STACK": "stack (bytes)",
    "RLIMIT_MSGQUEUE": "message queues (bytes)",
}


def _tell_limit(name: str, soft: int, _: int) -> Iterator[Told]:
    if soft >= 0:
        yield ("limits", _RLIMITS[name], f"{soft}, as for every step")


_WORDS: Mapping[str, Callable[..., Iterator[Told]]] = {
    "drop_identity": _one("privileges", "on the host", "user {0}, who owns nothing; root is given up before all else"),
    "new_user": _one("view", "user", "{0}, group {1}"),
    "new_namespaces": _tell_namespaces,
    "become_init": _one("view", "processes", "it sees its own only; when it ends, all of them do"),
    "hostname": _one("view", "host name", "{0}"),
    "bind": _one("mounts", "{1}", "{0} of the host, read-only"),
    "symlink": _one("mounts", "{0}", "a link to {1}"),
    "directory": _one("mounts", "{0}", "an empty directory, read-only"),
    "show_masked": _one("mounts", "{2}", "the packages of its command and tools only, by {1}, read-only"),
    "file": lambda path, content, *_: iter(
        [("mounts", path, f"made for the sandbox, {len(content)} bytes, read-only")]
    ),
    "device": _one("mounts", "/dev/{0}", "the device"),
    "terminals": _one("mounts", "/dev/pts", "terminals of its own"),
    "proc": _one("mounts", "/proc", "of its own processes"),
    "sysctl": _one("privileges", "/proc/sys/{0}", "{1}"),
    "read_only": _one("mounts", "{0}", "read-only"),
    "mask": _one("mounts", "{0}", "empty"),
    "cover": _one("mounts", "{0}", "other content than the host's"),
    "date": lambda *_: iter([("view", "dates", "1980-01-02, of all that was made for it")]),
    "loopback": _one("network", "loopback", "works inside: servers and clients of one step reach each other"),
    "limit": _tell_limit,
    "core_filter": lambda _: iter(()),
    "hide_trees": lambda: iter(()),
    "put": lambda _, directories, files, __: _tell_layer(directories, files),
    "lay_tree": lambda *_: iter([("mounts", WORKSPACE, "many inputs, as one layer that steps share, below its own")]),
    "no_new_privileges": _one("privileges", "capabilities", "none, and no program can gain any"),
    "tmpfs": _tell_tmpfs,
    "fix_addresses": _one("view", "addresses", "the same in each run"),
    "landlock": lambda abi, rules: iter(
        [("refused", "writing", "anywhere but in " + ", ".join(path for path, _ in rules if path != "/"))]
    ),
    "confine": lambda _: iter(()),  # Its words are those of the filter's tables.
    "attach": _tell_attached,
    "show_tree": _one("mounts", "{1}", "a root, read-only"),
    "show_file": _one("mounts", WORKSPACE + "/{1}", "input, from the store, read-only"),
    "scratch": _one("mounts", "{0}", "empty, writable, gone afterwards"),
    "make_directory": _one("mounts", WORKSPACE + "/{0}", "an empty directory, writable"),
    "write": lambda path, content, *_: iter([("mounts", f"{WORKSPACE}/{path}", _input_words(content, None, None))]),
    "link": lambda path, target, _: iter([("mounts", f"{WORKSPACE}/{path}", _input_words(None, None, target))]),
    "stdin_bytes": lambda content: iter([("view", "stdin", f"{len(content)} bytes")]),
    "stdin_file": _one("view", "stdin", "a file of the store"),
}

_EACH = {
    resource.RLIMIT_CPU: "cpu_time",
    resource.RLIMIT_AS: "memory",
    resource.RLIMIT_NPROC: "processes",
    resource.RLIMIT_NOFILE: "open_files",
    resource.RLIMIT_FSIZE: "file_size",
}
_BY_ENGINE = {
    "timeout": "then TERM, 2 s later KILL, to every process",
    "output_size": "all outputs together, when they are kept",
    "tmp": "of /tmp with HOME, and of /dev/shm",
}
_TOGETHER = {"cpu_ms": "cpu_time", "memory": "memory", "processes": "processes", "tmp": "tmp"}


def _tell_refusals(machine: str) -> Iterator[Told]:
    for error, names in refused_calls(machine).items():
        yield ("refused", error, ", ".join(names))
    for call, words in ARGUMENTS_REFUSED.items():
        yield ("refused", call, words)


def _tell_limits(job: Job, step: Mapping[str, Any], *, grouped: bool, tmp: str) -> Iterator[Told]:
    """Those that are set, with who holds them; then those that are not. `step` is what its worker is told."""
    held: dict[str, list[str]] = {}
    for which, _, _ in step["rlimits"]:
        held.setdefault(_EACH[which], []).append("each process, by the kernel")
    for name in step["ceilings"].keys() & _TOGETHER.keys():
        held.setdefault(_TOGETHER[name], []).append("all together, looked at 20 times a second")
    if grouped:
        held |= {name: ["all together, by the kernel in a cgroup"] for name in ("memory", "processes")}
    for key, value in job.limits.items().items():
        words = held.get(key) or [_BY_ENGINE.get(key, "")]
        yield ("limits", line_of(key, value), "; ".join(word for word in words if word))
    yield ("limits", "stdout, stderr", f"the first {job.max_output_bytes} bytes of each are kept")
    if job.limits.tmp_bytes is None:
        yield ("limits", "/tmp", tmp)
    missing = [key for key in LIMIT_KEYS if key not in job.limits.items() and key != "tmp"]
    if missing:
        yield ("limits", "no limit of", ", ".join(missing))


LIMIT_KEYS = tuple(Limits(*[1] * len(Limits.__slots__)).items())


def existing(paths: Sequence[str]) -> list[str]:
    """Of the directories that a sandbox is told of those that are there, as it orders them."""
    return [path for path in sorted({os.path.normpath(path) for path in paths}) if os.path.exists(path)]
