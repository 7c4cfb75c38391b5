"""What a strict step must not be able to do. Each attempt succeeds outside, or the test would prove nothing."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

pytestmark = pytest.mark.userns

PRELUDE = """
import ctypes, errno, os, platform, resource, socket, stat, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
def call(x86, arm, *arguments):
    result = libc.syscall(x86 if X86 else arm, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result
def attempt():
    ATTEMPT
try:
    attempt()
    print("DONE")
except OSError as error:
    print(errno.errorcode[error.errno])
"""

ATTEMPTS = {
    # name: (what is tried, what a step gets)
    "unshare": ("call(272, 97, 0x10000000)", "EPERM"),
    "clone into a namespace": ("call(56, 220, 0x10000000 | 17, 0, 0, 0, 0) or os._exit(0)", "EPERM"),
    "mount": ("call(272, 97, 0x10020000); call(165, 40, b'none', b'/tmp', b'tmpfs', 0, None)", "EPERM"),
    "ptrace": ("call(101, 117, 0, 0, 0, 0)", "EPERM"),
    "keyctl": ("call(250, 219, 0, -3, 1)", "EPERM"),
    "add_key": ("call(248, 217, b'user', b'requiem-test', b'x', 1, -3)", "EPERM"),
    "io_uring": ("call(425, 425, 1, bytes(120))", "ENOSYS"),
    "netlink": ("socket.socket(16, 3, 0)", "EAFNOSUPPORT"),
    "vsock": ("socket.socket(40, 1, 0)", "EAFNOSUPPORT"),
    "alg": ("socket.socket(38, 5, 0)", "EAFNOSUPPORT"),
    "set-uid by chmod": (
        "open('/tmp/requiem-suid', 'w').close(); os.chmod('/tmp/requiem-suid', 0o4755); os.unlink('/tmp/requiem-suid')",
        "EPERM",
    ),
    "set-gid by fchmod": (
        "f = open('/tmp/requiem-sgid', 'w'); os.unlink('/tmp/requiem-sgid'); os.fchmod(f.fileno(), 0o2755)",
        "EPERM",
    ),
    "set-uid by open": (
        "os.close(os.open('/tmp/requiem-open', os.O_CREAT | os.O_WRONLY, 0o4755)); os.unlink('/tmp/requiem-open')",
        "EPERM",
    ),
    "limits of another process": (
        "p = os.getppid(); resource.prlimit(p, resource.RLIMIT_NOFILE, resource.prlimit(p, resource.RLIMIT_NOFILE))",
        "EPERM",
    ),
    "personality": ("call(135, 92, 0)", "EPERM"),
    "userfaultfd": ("call(323, 282, 1)", "EPERM"),
    "perf_event_open": ("call(298, 241, struct.pack('IIQ', 1, 128, 0) + bytes(112), 0, -1, -1, 0)", "EPERM"),
    "memory of a process": (
        "b = bytes(8); v = struct.pack('QQ', id(b), 8); call(310, 270, os.getpid(), v, 1, v, 1, ctypes.c_long(0))",
        "EPERM",
    ),
}
ONLY_ROOT = {
    "raw socket": ("socket.socket(2, 3, 1)", "EPERM"),
    "packet socket": ("socket.socket(17, 3, 0)", "EAFNOSUPPORT"),
    "chroot": ("os.chroot('/')", "EPERM"),
    "device node": (
        "os.mknod('/tmp/requiem-node', 0o600 | stat.S_IFBLK, os.makedev(8, 0)); os.unlink('/tmp/requiem-node')",
        "EPERM",
    ),
    "hostname": ("socket.sethostname(socket.gethostname())", "EPERM"),
    "a file in /usr": ("open('/usr/requiem-test', 'w').close(); os.unlink('/usr/requiem-test')", "EROFS"),
    "a file in /etc": ("open('/etc/requiem-test', 'w').close(); os.unlink('/etc/requiem-test')", "EROFS"),
    "core_pattern": ("os.close(os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY))", "EACCES"),
    "ns_last_pid": ("os.close(os.open('/proc/sys/kernel/ns_last_pid', os.O_WRONLY))", "EROFS"),
    "the first process": ("os.close(os.open('/proc/1/status', os.O_RDONLY))", "ENOENT"),
    "the disk": ("os.close(os.open('/dev/requiem-disk', os.O_RDONLY))", "ENOENT"),
}

RAISES_UNDER_OLD_KERNELS = {"userfaultfd", "perf_event_open", "io_uring", "alg", "vsock", "unshare", "mount"}
"""A host may forbid these itself; then there is no control, and the test says so."""


def command(python: str, attempt: str) -> tuple[str, ...]:
    return (python, "-I", "-S", "-c", PRELUDE.replace("ATTEMPT", attempt))


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_step_cannot(name, go, python, unconfined):
    attempt, refusal = ATTEMPTS[name]
    control = unconfined(*command(python, attempt)).strip()
    if name in RAISES_UNDER_OLD_KERNELS and control != "DONE":
        pytest.skip(f"this host refuses it to everyone: {control}")
    assert control == "DONE"
    assert go(*command(python, attempt)).out.strip() == refusal


@pytest.mark.root
@pytest.mark.parametrize("name", ONLY_ROOT)
def test_even_a_step_of_root_cannot(name, go, python, unconfined):
    attempt, refusal = ONLY_ROOT[name]
    if name == "the disk":
        disk = os.stat(next(path for path in ("/", "/usr") if os.path.exists(path))).st_dev
        os.mknod("/dev/requiem-disk", 0o600 | 0o060000, disk)
    try:
        if name != "the disk":
            assert unconfined(*command(python, attempt)).strip() == "DONE"
        else:
            assert os.path.exists("/dev/requiem-disk")
        assert go(*command(python, attempt)).out.strip() == refusal
    finally:
        if name == "the disk":
            os.unlink("/dev/requiem-disk")


def test_foreign_system_call_numbers_end_the_step(go, python):
    if os.uname().machine != "x86_64":
        pytest.skip("only x86_64 has a second table of numbers")
    step = go(*command(python, "libc.syscall(0x40000000 + 39)"))
    assert (step.finished.termination, step.finished.signal) == ("signaled", 31)


def test_the_network_ends_at_loopback(go, python):
    attempt = """
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        server = socket.socket(family); server.bind((address, 0)); server.listen()
        socket.create_connection(server.getsockname()[:2]).close()
    print("loopback")
    socket.create_connection(("192.0.2.1", 80), 3)
    """
    assert go(*command(python, attempt)).out.split() == ["loopback", "ENETUNREACH"]


def test_a_server_of_the_host_is_out_of_reach(go, python, unconfined):
    with socket.create_server(("127.0.0.1", 0)) as server:
        attempt = f"socket.create_connection({server.getsockname()!r}, 3)"
        assert unconfined(*command(python, attempt)).strip() == "DONE"
        assert go(*command(python, attempt)).out.strip() == "ECONNREFUSED"


@pytest.mark.parametrize("network", ["none", "host"])
def test_an_abstract_socket_of_the_host_is_out_of_reach(network, strict, run_in, python, unconfined):
    sandbox = strict(network=network)
    if network == "host" and not isinstance(sandbox.protection["landlock"], int):
        pytest.skip("needs Landlock")
    name = f"\0requiem-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        attempt = f"socket.socket(socket.AF_UNIX).connect(chr(0) + {name[1:]!r})"
        assert unconfined(*command(python, attempt)).strip() == "DONE"
        step = run_in(sandbox, *command(python, attempt), network=network)
        assert step.out.strip() == ("ECONNREFUSED" if network == "none" else "EPERM")


def test_a_step_has_no_capability_and_cannot_get_one(go):
    status = dict(line.split(":", 1) for line in go("cat", "/proc/self/status").out.splitlines())
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"
    assert status["Groups"].split() in ([], ["1000"])


def test_a_step_inherits_no_descriptor_and_no_variable(strict, run_in, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "leak")
    opened = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(opened, True)
    try:
        control = subprocess.run(["sh", "-c", "ls /proc/self/fd; env"], capture_output=True, close_fds=False)
        assert str(opened).encode() in control.stdout.split()
        assert b"SECRET_TOKEN" in control.stdout
        step = run_in(strict(), "sh", "-c", "ls /proc/self/fd; env")
        numbers = [int(word) for word in step.out.split() if word.isdigit()]
        assert numbers == [0, 1, 2, 3]  # The last is the listing itself.
        assert "SECRET_TOKEN" not in step.out
    finally:
        os.close(opened)


def test_what_one_step_leaves_the_next_does_not_find(go, python):
    leave = """
    for folder in ("/tmp", "/tmp/home", "/dev/shm", "/workspace"):
        open(folder + "/left", "w").write("x")
    assert libc.shmget(4242, 4096, 0o1666) >= 0
    assert libc.shmget(4242, 4096, 0o666) >= 0
    open("/tmp/sealed", "w").close(); os.mkdir("/tmp/home/closed", 0)
    """
    look = """
    print(sorted(os.listdir("/tmp") + os.listdir("/tmp/home") + os.listdir("/dev/shm") + os.listdir("/workspace")))
    print(libc.shmget(4242, 4096, 0o666))
    """
    assert go(*command(python, leave)).out == "DONE\n"
    assert go(*command(python, look)).out == "['home']\n-1\nDONE\n"


def test_signals_and_priorities_of_a_step_do_not_reach_the_worker(go, python):
    attempt = """
    for number in (9, 15, 19, 2):
        try: os.kill(1, number)
        except OSError: pass
    for work in (lambda: os.setpriority(os.PRIO_PROCESS, 1, 15), lambda: os.sched_setaffinity(1, {0})):
        try: work(); print("reached")
        except OSError: pass
    """
    before = go("sh", "-c", "nice; grep Cpus_allowed_list /proc/self/status").out
    assert go(*command(python, attempt)).out == "DONE\n"
    assert go("sh", "-c", "nice; grep Cpus_allowed_list /proc/self/status").out == before


def test_a_lingering_connection_does_not_hold_a_port_of_the_next_step(go, python):
    attempt = """
    server = socket.socket(); server.bind(("127.0.0.1", 4567)); server.listen()
    client = socket.create_connection(("127.0.0.1", 4567)); peer, _ = server.accept()
    peer.close(); client.recv(1); client.close()
    """
    assert go(*command(python, attempt)).out == "DONE\n"
    assert go(*command(python, attempt)).out == "DONE\n"


def test_the_control_of_the_lingering_connection_fails_in_one_place(go, python):
    attempt = """
    for _ in range(2):
        server = socket.socket(); server.bind(("127.0.0.1", 4567)); server.listen()
        client = socket.create_connection(("127.0.0.1", 4567)); peer, _ = server.accept()
        peer.close(); client.recv(1); client.close(); server.close()
    """
    assert go(*command(python, attempt)).out == "EADDRINUSE\n"


def test_terminal_injection_is_refused_and_there_is_no_terminal(go, python):
    attempt = """
    import pty, fcntl
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, 0x5412, b"x")
    """
    assert go(*command(python, attempt)).out == "EPERM\n"
    assert "No such file" in go("cat", "/dev/tty").err


def test_a_step_cannot_date_the_devices_of_the_host(go, unconfined):
    assert unconfined("sh", "-c", "touch /dev/null && echo DONE") == "DONE\n"
    step = go("sh", "-c", "touch /dev/null; echo x > /dev/null && head -c 4 /dev/zero | wc -c")
    assert "Read-only file system" in step.err
    assert step.out == "4\n"
    # What covers the kernel's own files is a device of the host, too.
    before = os.stat("/dev/null").st_mtime_ns
    assert "Read-only file system" in go("touch", "/proc/timer_list").err
    assert os.stat("/dev/null").st_mtime_ns == before
