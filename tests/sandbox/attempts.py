"""Ways out of a step, numbered as in docs/escapes.md: what is tried, and what a strict step gets for it.

Each is tried without the sandbox too (the control), where it must succeed, or the test would prove nothing. `HERE`
controls run as whoever runs the tests. `POWERS` controls run as root of namespaces of their own, which every user
can have: only the sandbox stands between an attempt and what such a root may do. `ROOT` controls need the real one.
"""

from __future__ import annotations

from dataclasses import dataclass

HERE, POWERS, ROOT = "here", "powers", "root"

PRELUDE = """
import ctypes, errno, fcntl, os, platform, resource, signal, socket, stat, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
SECRET = sys.argv[1]
PARENT = os.getppid()
def call(x86, arm, *arguments):
    # Every argument is as wide as a register, or what lies above an int is anything.
    wide = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = libc.syscall(x86 if X86 else arm, *wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result
def read(path):
    with open(path, "rb") as file:
        file.read(1)
def fresh(path="/tmp/requiem-attempt"):
    open(path, "w").close()
    return path
def attempt():
    ATTEMPT
try:
    attempt()
    print("DONE")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@dataclass(frozen=True)
class Attempt:
    number: int
    what: str
    code: str
    gets: str
    where: str = HERE
    control: str | None = None
    """What is done instead where nothing stops it: with a preparation, or a probe that harms nobody."""
    control_gets: str = "DONE"
    host_may_refuse: bool = False
    """Some hosts forbid it to everyone: then there is no control, and the test says so."""


_CHILD = """
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        {}
    finally:
        os.kill(child, 9); os.waitpid(child, 0)
"""

_TERMINAL = """
    import pty
    if os.fork() == 0:
        os.setsid()
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, 0x540E, 0)
        try:
            fcntl.ioctl(follower, 0x5412, b"x")
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.wait()[1])
    if code:
        raise OSError(code, "")
"""

_MOVE = "call(429, 429, {}, b'', -100, b'/tmp', 4)"
_TMPFS = "call(165, 40, b'none', b'/tmp', b'tmpfs', 0, 0)"

ATTEMPTS = (
    Attempt(1, "a file that no step declared", "read(SECRET)", "ENOENT"),
    Attempt(2, "the passwords of the host", "read('/etc/shadow')", "ENOENT", ROOT),
    Attempt(3, "the home of root", "os.listdir('/root')", "ENOENT", ROOT),
    Attempt(4, "upwards, out of the workspace", "read('../' * 40 + SECRET[1:])", "ENOENT"),
    Attempt(5, "the environment of the worker", "read(f'/proc/{PARENT}/environ')", "ENOENT"),
    Attempt(6, "the worker's root directory", "read(f'/proc/{PARENT}/root{SECRET}')", "ENOENT"),
    Attempt(7, "the state of the worker", "read(f'/proc/{PARENT}/status')", "ENOENT"),
    Attempt(8, "the parents of the working directory", "os.stat('/proc/self/cwd' + '/..' * 40 + SECRET)", "ENOENT"),
    Attempt(10, "write to /usr", "os.unlink(fresh('/usr/requiem-attempt'))", "EROFS", ROOT),
    Attempt(11, "write to /etc", "os.unlink(fresh('/etc/requiem-attempt'))", "EROFS", ROOT),
    Attempt(18, "core_pattern", "os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY)", "EACCES", ROOT),
    Attempt(
        19,
        "the keys of the kernel's console",
        "os.open('/proc/sysrq-trigger', os.O_WRONLY)",
        "EROFS|ENOENT|EACCES",
        ROOT,
        host_may_refuse=True,
    ),
    Attempt(20, "the last pid", "os.open('/proc/sys/kernel/ns_last_pid', os.O_WRONLY)", "EROFS", ROOT),
    Attempt(21, "mount", _TMPFS, "EPERM", POWERS),
    Attempt(
        22,
        "umount",
        "call(166, 39, b'/tmp', 2)",
        "EPERM",
        POWERS,
        control=f"{_TMPFS}; call(166, 39, b'/tmp', 2)",
    ),
    Attempt(23, "a user namespace", "call(272, 97, 0x10000000)", "EPERM", host_may_refuse=True),
    Attempt(
        24,
        "a child in a user namespace",
        "call(56, 220, 0x10000000 | 17, 0, 0, 0, 0) or os._exit(0)",
        "EPERM",
        host_may_refuse=True,
    ),
    Attempt(25, "enter a namespace", "call(308, 268, os.open('/proc/self/ns/uts', 0), 0)", "EPERM", POWERS),
    Attempt(26, "chroot", "os.chroot('/tmp')", "EPERM", POWERS),
    Attempt(
        27,
        "pivot_root",
        "os.chdir('/tmp'); call(155, 41, b'.', b'.')",
        "EPERM",
        POWERS,
        control=f"{_TMPFS}; os.chdir('/tmp'); call(155, 41, b'.', b'.')",
    ),
    Attempt(28, "copy a mount: open_tree", "call(428, 428, -100, b'/proc/self', 1)", "EPERM", POWERS),
    Attempt(
        28,
        "put a mount elsewhere: move_mount",
        _MOVE.format(0),
        "EPERM",
        POWERS,
        control="tree = call(428, 428, -100, b'/tmp', 1); " + _MOVE.format("tree"),
    ),
    Attempt(28, "a new file system: fsopen", "call(430, 430, b'tmpfs', 0)", "EPERM", POWERS),
    Attempt(
        28,
        "attributes of a mount: mount_setattr",
        "call(442, 442, -100, b'/', 0, struct.pack('=QQQQ', 2, 0, 0, 0), 32)",
        "EPERM",
        POWERS,
    ),
    Attempt(29, "be traced", "call(101, 117, 0, 0, 0, 0)", "EPERM"),
    Attempt(
        30, "trace another process", _CHILD.format("call(101, 117, 16, child, 0, 0)"), "EPERM", host_may_refuse=True
    ),
    Attempt(
        31,
        "read the memory of a process",
        "b = ctypes.create_string_buffer(8); v = struct.pack('QQ', ctypes.addressof(b), 8); "
        "call(310, 270, os.getpid(), v, 1, v, 1, 0)",
        "EPERM",
    ),
    Attempt(33, "the kernel's keyrings", "call(250, 219, 0, -3, 1)", "EPERM"),
    Attempt(33, "a key for later steps", "call(248, 217, b'user', b'requiem-attempt', b'x', 1, -3)", "EPERM"),
    Attempt(
        34,
        "a BPF map",
        "call(321, 280, 0, struct.pack('=5I', 2, 4, 4, 1, 0) + bytes(124), 72)",
        "EPERM",
        ROOT,
        host_may_refuse=True,
    ),
    Attempt(
        35,
        "perf_event_open",
        "call(298, 241, struct.pack('IIQ', 1, 128, 0) + bytes(112), 0, -1, -1, 0)",
        "EPERM",
        host_may_refuse=True,
    ),
    Attempt(36, "userfaultfd", "call(323, 282, 1)", "EPERM", host_may_refuse=True),
    Attempt(37, "io_uring", "call(425, 425, 1, bytes(120))", "ENOSYS", host_may_refuse=True),
    Attempt(38, "the internet", "socket.create_connection(('192.0.2.1', 80), 3)", "ENETUNREACH", control="pass"),
    Attempt(41, "a raw socket", "socket.socket(2, 3, 1)", "EPERM", POWERS),
    Attempt(41, "a netlink socket", "socket.socket(16, 3, 0)", "EAFNOSUPPORT"),
    Attempt(41, "a packet socket", "socket.socket(17, 3, 0)", "EAFNOSUPPORT", POWERS),
    Attempt(41, "a socket to the hypervisor", "socket.socket(40, 1, 0)", "EAFNOSUPPORT", host_may_refuse=True),
    Attempt(41, "a socket of the kernel's ciphers", "socket.socket(38, 5, 0)", "EAFNOSUPPORT", host_may_refuse=True),
    Attempt(
        45,
        "a device",
        "os.mknod('/tmp/requiem-attempt', 0o600 | stat.S_IFBLK, os.makedev(8, 0)); os.unlink('/tmp/requiem-attempt')",
        "EPERM",
        ROOT,
    ),
    Attempt(47, "set-uid by chmod", "p = fresh(); os.chmod(p, 0o4755); os.unlink(p)", "EPERM"),
    Attempt(47, "set-gid by fchmod", "p = fresh(); os.fchmod(os.open(p, 0), 0o2755); os.unlink(p)", "EPERM"),
    Attempt(
        47,
        "set-uid by open",
        "os.close(os.open('/tmp/requiem-attempt', os.O_CREAT | os.O_WRONLY, 0o4755)); os.unlink('/tmp/requiem-attempt')",
        "EPERM",
    ),
    Attempt(
        47,
        "set-uid by a name of no file",
        "os.close(os.open('/tmp', os.O_TMPFILE | os.O_WRONLY, 0o4755))",
        "EPERM",
        host_may_refuse=True,
    ),
    Attempt(
        47,
        "set-uid by mknod",
        "call(133, 33, *(() if X86 else (-100,)), b'/tmp/requiem-s', 0o104755, 0); os.unlink('/tmp/requiem-s')",
        "EPERM",
    ),
    Attempt(48, "give a file to root", "p = fresh(); os.chown(p, 0, 0); os.unlink(p)", "EINVAL", POWERS),
    Attempt(49, "become root", "os.setuid(0)", "EINVAL", POWERS),
    Attempt(51, "another host name", "socket.sethostname('elsewhere')", "EPERM", POWERS),
    # No clock is set: for the monotonic one the kernel says EINVAL to whoever gets that far.
    Attempt(52, "set a clock", "call(227, 112, 1, struct.pack('qq', 1, 0))", "EPERM", control_gets="EINVAL"),
    # Without the magic numbers nothing is restarted.
    Attempt(53, "restart the machine", "call(169, 142, 0, 0, 0, 0)", "EPERM", ROOT, control_gets="EINVAL"),
    Attempt(54, "type on the caller's terminal", _TERMINAL, "EPERM", host_may_refuse=True),
    Attempt(
        75, "a file by its number", "call(304, 265, 3, bytes(32), 0)", "EPERM", ROOT, control_gets="EBADF|EINVAL|ESTALE"
    ),
    Attempt(76, "watch the host's files: fanotify", "call(300, 262, 0, 0)", "EPERM", ROOT, host_may_refuse=True),
    Attempt(
        77,
        "limits of the worker",
        "resource.prlimit(PARENT, resource.RLIMIT_NOFILE, resource.prlimit(PARENT, resource.RLIMIT_NOFILE))",
        "EPERM",
    ),
    Attempt(81, "real-time scheduling", "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))", "EPERM", ROOT),
    Attempt(82, "lock all memory", "call(151, 230, 1)", "ENOMEM|EPERM", ROOT),
    Attempt(84, "another personality", "call(135, 92, 0x0400000)", "EPERM"),
)
