"""A step that tells all it can see tells the same whoever runs it, wherever, however, and by whichever means."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.userns

SOURCE = Path(__file__).resolve().parents[2]

TELL = r"""
import ctypes, locale, os, platform, resource, signal, socket, sys, time
say = lambda *what: print(*what)
say("who", os.getresuid(), os.getresgid(), os.getgroups(), os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0))
say("where", os.getcwd(), socket.gethostname(), socket.getfqdn(), platform.node())
say("env", sorted(os.environ.items()))
say("umask", oct(os.umask(0o22)))
say("locale", locale.setlocale(locale.LC_ALL, ""), locale.getpreferredencoding(), time.tzname, time.timezone)
say("strings", sys.getfilesystemencoding(), hash("text"), sys.flags.hash_randomization)
say("addresses", id(object()), ctypes.addressof(ctypes.c_int.in_dll(ctypes.CDLL(None), "optind")))
say("descriptors", sorted(os.listdir("/proc/self/fd")), [os.readlink(f"/proc/self/fd/{n}").split(":")[0] for n in (0, 1, 2)])
say("terminals", [os.isatty(n) for n in (0, 1, 2)], os.path.exists("/dev/tty"))
say("stdin", sys.stdin.buffer.read())
for name in sorted(dir(resource)):
    if name.startswith("RLIMIT_"):
        say(name, resource.getrlimit(getattr(resource, name)))
for number in sorted(signal.valid_signals()):
    if number not in (32, 33):
        say(number, signal.getsignal(number), number in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
for line in open("/proc/self/status"):
    if line.split(":")[0] in ("Umask", "TracerPid", "Uid", "Gid", "Groups", "NStgid", "NSsid", "SigBlk", "SigCgt", "CapInh",
                              "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters"):
        say(line.strip())
for name in ("personality", "cgroup", "coredump_filter", "setgroups"):
    try:
        say(name, open(f"/proc/self/{name}").read())
    except OSError as error:
        say(name, error.errno)
for path in ("/etc/passwd", "/etc/group", "/etc/hosts", "/etc/nsswitch.conf", "/proc/sys/kernel/random/boot_id"):
    say(path, open(path).read())
for top in ("/", "/etc", "/dev", "/tmp", "/workspace", "/run", "/var"):
    for name in [".", *sorted(os.listdir(top))]:
        if top == "/" and name in ("proc", "usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"): continue
        if top == "/dev" and name in ("pts", "stdin", "stdout", "stderr", "fd"): continue
        seen = os.lstat(os.path.join(top, name))
        say(top, name, oct(seen.st_mode), seen.st_uid, seen.st_gid, seen.st_mtime_ns if top != "/dev" else "", "" if os.path.isdir(os.path.join(top, name)) else seen.st_nlink)
say("processes", sorted(int(name) for name in os.listdir("/proc") if name.isdigit()))
"""

DRIVER = """
import sys; sys.path.insert(0, sys.argv[1])
from requiem_build.core.policy import WORLD_ENVIRONMENT
from requiem_build.sandbox.base import Job, Staged
from requiem_build.sandbox.linux import StrictSandbox
staged = [Staged("src/a", data=b"a"), Staged("run", data=b"#!", executable=True), Staged("link", symlink="src/a"), Staged("d")]
staged += [Staged(f"many/{n}", data=b"%d" % n) for n in range(int(sys.argv[3]))]
with StrictSandbox(reuse=sys.argv[2] == "reused") as sandbox:
    for _ in range(2):
        job = Job(["/usr/bin/python3", "-S", "-c", sys.argv[4]], WORLD_ENVIRONMENT, staged=staged, stdin=b"given", directories=["out"])
        finished = sandbox.run(job)
        sys.stdout.buffer.write(finished.stdout + b"----" + finished.stderr)
        finished.close()
    sys.stdout.buffer.write(finished.protection["view"].encode())
"""


def sh(script: str) -> list[str]:
    return ["bash", "-c", script + '; exec "$@"', "x"]


CONDITIONS: dict[str, list[str]] = {
    "plainly": [],
    "another directory": ["env", "-C", "/"],
    "another umask": sh("umask 077"),
    "no environment": ["env", "-i"],
    "another environment": [
        "env",
        "LANG=de_DE.UTF-8",
        "LC_ALL=C",
        "TZ=Asia/Tokyo",
        "LD_BIND_NOW=1",
        "SECRET=x",
        "HOME=/",
        "PATH=/bin",
    ],
    "Python's variables": ["env", "PYTHONHASHSEED=7", "PYTHONUTF8=0", "PYTHONMALLOC=malloc", "SOURCE_DATE_EPOCH=1"],
    "lower limits": sh(
        "ulimit -S -n 256; ulimit -S -s 2048; ulimit -c unlimited 2>/dev/null; ulimit -S -t 500; ulimit -S -u 3000"
    ),
    "another stdin": sh("exec 0< /etc/passwd"),
    "no stdin": sh("exec 0<&-"),
    "extra descriptors": sh("exec 5< /etc/passwd 9< / 77< /dev/null"),
    "ignored signals": sh("trap '' INT TERM HUP PIPE USR1 CHLD"),
    "another session": ["setsid", "-w"],
    "one processor": ["taskset", "1"],
    "addresses that stay": ["setarch", "-R"],
    "another core filter": sh("echo 0x7f > /proc/self/coredump_filter"),
    "a batch": ["chrt", "-b", "0"],
    "a terminal": ["script", "-qec"],
    "another host": ["unshare", "--uts", "bash", "-c", 'hostname elsewhere; exec "$@"', "x"],
    "another user": ["setpriv", "--reuid", "4321", "--regid", "4321", "--clear-groups"],
}
ONLY_ROOT = ("another host", "another user")


def survey(condition: str, means: str, python: str, tmp_path: Path) -> bytes:
    before = CONDITIONS[condition]
    source = str(SOURCE)
    if condition == "another user":
        before = [*before, "env", f"HOME={tmp_path}"]
        source = readable_copy()
    command = [python, "-c", DRIVER, source, means.partition(",")[0], "100" if "many" in means else "0", TELL]
    if condition == "a terminal":
        script = tmp_path / "driver"
        out = tmp_path / "out"
        script.write_text(
            f"import subprocess, sys; sys.exit(subprocess.call({command!r}, stdout=open({str(out)!r}, 'wb')))"
        )
        ran = subprocess.run([*before, f"{python} {script}", "/dev/null"], capture_output=True, timeout=60)
        assert ran.returncode == 0, ran
        return out.read_bytes()
    ran = subprocess.run([*before, *command], capture_output=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@cache
def readable_copy() -> str:
    copy = Path(f"/var/tmp/requiem-test-source-{os.getpid()}")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(SOURCE / "requiem_build", copy / "requiem_build", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["chmod", "-R", "a+rX", str(copy)], check=True)
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    return str(copy)


def told(survey_: bytes) -> set[str]:
    """What the two steps said, without errors, and without the means."""
    first, second, rest = survey_.split(b"----")
    assert rest in (b"reused", b"fresh") and second.startswith(b"who"), survey_
    return {first.decode(), second.decode()}


@pytest.fixture(scope="module")
def plain(python_for_all) -> dict[str, str]:
    """What a step tells under no condition in particular, with few inputs and with many."""
    found = {}
    for means in ("reused", "reused, many"):
        (said,) = told(survey("plainly", means, python_for_all, Path("/nonexistent")))
        found[means.partition(",")[2]] = said
    return found


@pytest.fixture(scope="module")
def python_for_all() -> str:
    if not os.path.exists("/usr/bin/python3"):
        pytest.fail("these tests need /usr/bin/python3")
    return "/usr/bin/python3"


@pytest.mark.parametrize("means", ["reused", "fresh", "reused, many", "fresh, many"])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_step_sees_the_same_world(condition, means, plain, python_for_all, tmp_path):
    if condition in ONLY_ROOT and os.geteuid() != 0:
        pytest.skip("only root can bring that about")
    expected = plain[means.partition(",")[2]]
    seen = told(survey(condition, means, python_for_all, tmp_path))
    for said in seen:
        assert said.splitlines() == expected.splitlines()


def test_the_control_is_told_apart(python_for_all, tmp_path):
    """Without the sandbox the same program tells of each condition."""
    plain_ = subprocess.run([python_for_all, "-S", "-c", TELL], capture_output=True, stdin=subprocess.DEVNULL).stdout
    assert plain_.startswith(b"who")
    for condition in ("another directory", "another umask", "another environment", "lower limits", "ignored signals"):
        command = [*CONDITIONS[condition], python_for_all, "-S", "-c", TELL]
        assert subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).stdout != plain_
    assert sys.platform == "linux"
