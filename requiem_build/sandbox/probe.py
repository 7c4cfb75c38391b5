"""What protection can this host really give? Found out by booting the sandbox and attacking it from inside.

It believes no version number and no setting: each capability is in force if the attempt against it failed here
and now. It does not print anything.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.errors import EnvironmentFault, SandboxUnavailable
from ..core.fields import dataclass, replace
from ..core.policy import HOSTNAME, UID, WORLD_ENVIRONMENT
from .base import Job, Mount
from .cgroups import Cgroups
from .promises import no_strict

if TYPE_CHECKING:
    from .linux import StrictSandbox


@dataclass(frozen=True, slots=True)
class Capability:
    name: str
    in_force: bool
    detail: str
    how_to_get: str = ""
    """What the person at this host can do about it; empty if there is nothing to do."""


_ATTEMPTS = r"""
import ctypes, errno, json, os, platform, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
x86 = platform.machine() == "x86_64"
def attempt(work):
    try:
        return str(work())
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
    return "done"
def loopback():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), 5).close()
    return "connected"
def status(name):
    with open("/proc/self/status") as file:
        return next(line.split()[1] for line in file if line.startswith(name))
seen = {
    "undeclared": attempt(lambda: os.stat(sys.argv[1])),
    "worker": attempt(lambda: os.listdir("/proc/1")),
    "usr": attempt(lambda: open("/usr/requiem-probe", "w")),
    "tmp": sorted(os.listdir("/tmp")),
    "outside": attempt(lambda: socket.create_connection(("192.0.2.1", 80), 2)),
    "loopback": attempt(loopback),
    "who": [os.getuid(), os.getgid(), socket.gethostname(), os.getpid()],
    "seccomp": status("Seccomp:"),
    "privileges": [status("NoNewPrivs:"), status("CapBnd:"), status("CapEff:")],
    "unshare": attempt(lambda: call(272 if x86 else 97, 0x10000000)),
    "keyctl": attempt(lambda: call(250 if x86 else 219, 0, -3, 0)),
    "io_uring": attempt(lambda: call(425, 1, bytes(120))),
    "netlink": attempt(lambda: socket.socket(16, 3, 0)),
}
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.close(1)
        os.close(2)
        import signal
        signal.pause()
    os._exit(0)
print(json.dumps(seen))
"""


def probe() -> list[Capability]:
    """One entry for each protection, strict first. Takes about a second."""
    if sys.platform != "linux":
        from .probe_process import probe_process

        refusal = no_strict(sys.platform)
        reason = dict(refusal.facts)["reason"]
        strict = Capability("strict", False, f"{refusal.what}: {reason}", refusal.hint or "")
        return [strict, *(Capability(*found) for found in probe_process())]
    try:
        return _probe_strict()
    except SandboxUnavailable as refusal:
        why = "; ".join((refusal.what, *(f"{label}: {text}" for label, text in refusal.facts)))
        return [Capability("strict", False, why, refusal.hint or "")]
    except EnvironmentFault as fault:
        why = "; ".join((fault.what, *(f"{label}: {text}" for label, text in fault.facts)))
        return [Capability("strict", False, why, "report this: the sandbox boots but does not work")]


def probe_limits(cgroup: str | None) -> Capability:
    """By what memory and processes of a step are limited. `cgroup` is the directory of the user's configuration."""
    otherwise = "memory by rlimit for each process, and all of a step looked at 20 times a second"
    how = "name a cgroup v2 directory that is delegated to you in your configuration: [limits] cgroup = PATH"
    if cgroup is None:
        return Capability("limits by cgroup", False, otherwise, how)
    try:
        Cgroups(cgroup)
    except EnvironmentFault as fault:
        return Capability("limits by cgroup", False, "; ".join(f"{name}: {text}" for name, text in fault.facts), how)
    return Capability("limits by cgroup", True, f"memory and processes, in {cgroup}")


def _probe_strict() -> list[Capability]:
    from .linux import StrictSandbox
    from .probe_held import probe_held

    python = os.path.realpath(sys.executable)
    # The interpreter of this program may lie anywhere: it is shown as a root where it is not part of /usr.
    prefix = os.path.realpath(sys.base_prefix)
    roots = [] if prefix.startswith("/usr") else [prefix]
    with tempfile.TemporaryDirectory() as outside, StrictSandbox(roots=roots) as sandbox:
        secret = os.path.join(outside, "undeclared")
        with open(secret, "w", encoding="utf-8") as file:
            file.write("a file that no step declared")
        command = [python, "-I", "-S", "-c", _ATTEMPTS, secret]
        mounts = [Mount(root, root) for root in roots]
        finished = sandbox.run(Job(command, WORLD_ENVIRONMENT, mounts=mounts))
        finished.close()
        if finished.exit_code != 0:
            said = finished.reason or finished.stderr.decode(errors="replace").strip()[-500:]
            raise EnvironmentFault("the probe failed inside the sandbox", facts=[("said", said)])
        found = _judge(json.loads(finished.stdout), finished.leftovers, finished.protection)
        return [*found, _probe_reset(sandbox), *(Capability(*held) for held in probe_held())]


def _probe_reset(sandbox: StrictSandbox) -> Capability:
    """Small steps share a view one after the other: does the second one see what the first one left?"""
    said = []
    for script in ("echo left | tee left /tmp/left /dev/shm/left", "cat left /tmp/left /dev/shm/left; ls /tmp; true"):
        finished = sandbox.run(Job(["/bin/sh", "-c", script], WORLD_ENVIRONMENT))
        finished.close()
        said.append((finished.stdout, finished.protection["view"]))
    apart = said == [(b"left\n", "reused"), (b"home\n", "reused")]
    return Capability("steps apart", apart, "what a step left: " + ("gone" if apart else "seen by the next"))


def _judge(seen: Mapping[str, Any], leftovers: int, protection: Mapping[str, object]) -> list[Capability]:
    from .staging import FIRST_PID

    uid, gid, host, pid = seen["who"]
    landlock = protection["landlock"]
    calls = ("unshare", "keyctl", "io_uring", "netlink")
    refused = all(seen[name] in ("EPERM", "ENOSYS", "EAFNOSUPPORT") for name in calls)
    no_new_privileges, bounding, effective = seen["privileges"]
    powerless = no_new_privileges == "1" and int(bounding, 16) == int(effective, 16) == 0
    found = [
        Capability("strict", True, "namespaces: " + ", ".join(_words(protection["namespaces"]))),
        Capability("undeclared files", seen["undeclared"] == "ENOENT", f"a file of the host: {seen['undeclared']}"),
        Capability("read-only system", seen["usr"] == "EROFS", f"writing to /usr: {seen['usr']}"),
        Capability("private /tmp", seen["tmp"] == ["home"], f"it holds {', '.join(seen['tmp'])}"),
        Capability("closed network", seen["outside"] == "ENETUNREACH", f"connecting outside: {seen['outside']}"),
        Capability("loopback", seen["loopback"] == "connected", f"connecting to 127.0.0.1: {seen['loopback']}"),
        Capability("fixed identity", (uid, gid, host) == (UID, UID, HOSTNAME), f"uid {uid}, gid {gid}, host {host}"),
        Capability("constant pid", pid == FIRST_PID, f"pid {pid}", "a kernel built with CONFIG_CHECKPOINT_RESTORE"),
        Capability("hidden worker", seen["worker"] == "ENOENT", f"listing /proc/1: {seen['worker']}"),
        Capability("whole tree ends", leftovers > 0, f"{leftovers} daemon killed"),
        Capability("no privileges", powerless, f"capabilities {effective}, no_new_privs {no_new_privileges}"),
        Capability(
            "seccomp",
            seen["seccomp"] == "2" and refused,
            ", ".join(f"{name}: {seen[name]}" for name in calls),
            "a kernel built with CONFIG_SECCOMP_FILTER",
        ),
        Capability(
            "landlock",
            bool(landlock),
            f"ABI {landlock}" if landlock else "absent: the mount view stands alone",
            "a kernel from 5.19 on with landlock in its list of security modules",
        ),
        Capability(
            "hidden host paths",
            bool(protection["host_paths_hidden"]),
            "by overlay" if protection["host_paths_hidden"] else "/proc/self/mountinfo shows where roots lie",
            "a kernel from 5.11 on with overlayfs",
        ),
    ]
    return [replace(one, how_to_get="") if one.in_force else one for one in found]


def _words(value: object) -> list[str]:
    return [str(word) for word in value] if isinstance(value, list) else []
