"""Steps that share a view one after the other are kept apart: whatever one leaves, the next one cannot tell."""

from __future__ import annotations

import os
import tempfile

import pytest

from requiem_build.sandbox import attendant, reused
from requiem_build.sandbox.base import Job, Staged
from requiem_build.sandbox.linux import StrictSandbox

pytestmark = pytest.mark.userns

LOOK = (
    "stat -c '%n %a %u' /dev/pts /dev/pts/ptmx; script -qec 'tty' /dev/null; ls -laR --time-style=full-iso /workspace /tmp /dev/shm | grep -v '^total'; cat /proc/sysvipc/*; "
    "getfattr -d -m - /workspace /tmp /tmp/home /dev/shm 2>/dev/null; "
    "lsattr -d /workspace /tmp /tmp/home /dev/shm 2>/dev/null; "
    "ulimit -a; umask; pwd; cat /proc/net/tcp /proc/net/unix | wc -l; "
    "cat /proc/net/dev /proc/net/ip6_flowlabel; kill -0 1; echo $?; echo /proc/[0-9]*; nice; taskset -p $$"
)


IMPORT = "from walls.{module} import main"


@pytest.fixture(scope="module", params=["dates tell", "dates tell nothing"])
def one_worker(request):
    """One sandbox; the second as on kernels before Linux 6.13."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "dates tell nothing":
            older = f"from walls import reused; reused._ctime_tells = lambda _: False\n{IMPORT}"
            assert IMPORT in attendant._START
            patch.setattr(attendant, "_START", attendant._START.replace(IMPORT, older))
        with StrictSandbox() as sandbox:
            yield sandbox


@pytest.fixture
def look(run_in, one_worker):
    return lambda: run_in(one_worker, "bash", "-c", LOOK, staged=[Staged("in/a", data=b"a")]).out


AS_BEFORE = (
    "import os\n"
    "def dated(path, change):\n"
    "    seen = os.stat(path)\n"
    "    change(path)\n"
    "    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))\n"
)
"""What looks, but for its ctime, as if nothing had happened."""

PYTHON_ATTEMPTS = {
    "an attribute of the home": AS_BEFORE + "dated('/tmp/home', lambda path: os.setxattr(path, 'user.left', b'here'))",
    "an attribute of the shared memory": (
        AS_BEFORE + "dated('/dev/shm', lambda path: os.setxattr(path, 'user.left', b'here'))"
    ),
    "a flag of the home": (
        AS_BEFORE + "import fcntl\n"
        "dated('/tmp/home', lambda path: fcntl.ioctl(os.open(path, 0), 0x40086602, b'\\x40' + bytes(7)))"
    ),
    "rights for what will be made in the shared memory": (
        AS_BEFORE + "dated('/dev/shm', lambda path: os.setxattr(path, 'system.posix_acl_default', bytes.fromhex("
        "'0200000001000700ffffffff04000500ffffffff20000500ffffffff')))"
    ),
    "shared memory of System V": "import ctypes; ctypes.CDLL(None).shmget(42, 4096, 0o1666)",
    "semaphores of System V": "import ctypes; ctypes.CDLL(None).semget(42, 1, 0o1666)",
    "a queue of System V": "import ctypes; ctypes.CDLL(None).msgget(42, 0o1666)",
    "an attribute of the workspace": "import os; os.setxattr('/workspace', 'user.left', b'here')",
    "a flag of the workspace": "import fcntl, os; fcntl.ioctl(os.open('/workspace', 0), 0x40086602, b'\\x40' + bytes(7))",
    "a datagram": (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0)); "
        "s.sendto(b'x', s.getsockname())"
    ),
    "a flow label": (
        "import socket, struct; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.setsockopt(41, 32, "
        "socket.inet_pton(socket.AF_INET6, '::1') + struct.pack('!I', 0x12345) "
        "+ struct.pack('BBHHHI', 0, 255, 1, 120, 120, 0))"
    ),
    "a connection": (
        "import socket; a = socket.create_server(('127.0.0.1', 4711)); "
        "b = socket.create_connection(('127.0.0.1', 4711)); c = a.accept()[0]; c.close(); b.close()"
    ),
    "a list of rights": (
        "import os; os.setxattr('/tmp', 'system.posix_acl_default', bytes.fromhex("
        "'0200000001000700ffffffff04000500ffffffff20000500ffffffff'))"
    ),
    "a mode, its date as before": AS_BEFORE
    + "for path in ('/tmp', '/tmp/home', '/dev/shm'): dated(path, lambda path: os.chmod(path, 0o711))",
    "a file, the directory's date as before": (
        AS_BEFORE
        + "for path in ('/tmp', '/tmp/home', '/dev/shm'): dated(path, lambda path: open(path + '/left', 'w').close())"
    ),
    "another home, all dates as before": (
        AS_BEFORE + "dated('/tmp', lambda path: (os.rename('/tmp/home', '/tmp/old'), os.mkdir('/tmp/home', 0o755), "
        "os.utime('/tmp/home', ns=(0, 0)), os.rmdir('/tmp/old')))"
    ),
    "the limits of the worker": (
        "import ctypes, struct; ctypes.CDLL(None).prlimit(1, 7, struct.pack('QQ', 16, 16), None)"
    ),
    "the scheduling of the worker": (
        "import os\n"
        "for work in (lambda: os.setpriority(os.PRIO_PROCESS, 1, 9), lambda: os.setpriority(os.PRIO_USER, 0, 9), "
        "lambda: os.sched_setaffinity(1, {0})):\n"
        "    try: work()\n"
        "    except OSError: pass"
    ),
}
ATTEMPTS = {
    "nothing": "true",
    "the multiplexer of terminals": "chmod 0 /dev/pts/ptmx /dev/pts; touch -d 2001-01-01 /dev/pts/ptmx /dev/pts",
    "files": "echo x | tee /workspace/left /tmp/left /tmp/home/left /dev/shm/left in/left",
    "hidden and odd names": "cd /tmp; touch .hidden -- -rf $'new\\nline' $'\\xff'; ln -s / away; mkfifo pipe",
    "closed directories": "mkdir -p /tmp/a/b /workspace/a/b; touch /tmp/a/b/c; chmod 0 /tmp/a/b /tmp/a /workspace/a",
    "other modes": "chmod 700 /workspace; chmod 777 /tmp /dev/shm; chmod 0 /tmp/home in",
    "no home": "rm -rf /tmp/home; ln -s /workspace /tmp/home",
    "moved inputs": "mv in out; mkdir in; echo b > in/a",
    "a changed input": "chmod u+w in/a; echo b > in/a",
    "other dates": "touch -d 2001-01-01 /workspace /tmp /tmp/home /dev/shm",
    "a very deep directory": "cd /tmp; for i in $(seq 150); do mkdir dddddddddd; cd dddddddddd; done",
    "a daemon": "(setsid sleep 1000 >/dev/null 2>&1 &); (setsid bash -c 'trap \"\" TERM; sleep 1000' &)",
    "signals at the worker": "kill -STOP 1; kill -KILL 1; kill -TERM 1; kill -INT 1; true",
    "a failure": "echo x > /tmp/left; kill -9 $$",
}


@pytest.mark.parametrize("name", [*ATTEMPTS, *PYTHON_ATTEMPTS])
def test_the_next_step_cannot_tell_what_the_last_one_did(name, look, run_in, one_worker, python):
    first = look()
    assert "in/a" in first or "/workspace/in" in first
    command = ("bash", "-c", ATTEMPTS[name]) if name in ATTEMPTS else (python, "-I", "-S", "-c", PYTHON_ATTEMPTS[name])
    step = run_in(one_worker, *command, staged=[Staged("in/a", data=b"a")])
    assert step.finished.protection["view"] == "reused"
    assert look() == first


def test_what_cannot_be_taken_back_costs_the_worker_its_life(run_in, one_worker, python):
    """The positive control of the test above: each of these is really done, and really found."""
    for name in list(PYTHON_ATTEMPTS)[: list(PYTHON_ATTEMPTS).index("a connection") + 1]:
        before = one_worker._reused
        step = run_in(one_worker, python, "-I", "-S", "-c", PYTHON_ATTEMPTS[name])
        if step.finished.exit_code:
            assert name.startswith("an attribute of"), step.err  # Not every kernel lets a tmpfs have one.
            continue
        run_in(one_worker, "true")
        assert one_worker._reused is not before, name


def test_what_is_known_of_a_place_by_its_dates_alone():
    folder = tempfile.mkdtemp(dir="/dev/shm")
    place = reused.Place(folder, 10**18)
    if not place.ctime_tells:
        pytest.skip("this kernel counts dates in ticks")
    settled_ns = os.stat(folder).st_ctime_ns
    assert not place.is_untouched(settled_ns)  # What came in the same tick might have the same date.
    assert place.is_untouched(settled_ns + 1)
    seen = os.stat(folder)
    os.chmod(folder, 0o711)
    os.chmod(folder, 0o700)
    os.utime(folder, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert not place.is_untouched(settled_ns + 1)
    place.settle()
    assert place.is_untouched(os.stat(folder).st_ctime_ns + 1)
    place.close()
    os.rmdir(folder)


def test_what_can_be_taken_back_does_not(run_in, one_worker):
    run_in(one_worker, "true")
    before = one_worker._reused
    for script in ATTEMPTS.values():
        run_in(one_worker, "bash", "-c", script, staged=[Staged("in/a", data=b"a")])
    run_in(one_worker, "true")
    assert one_worker._reused is before


def test_a_step_that_leaves_very_much_costs_the_worker_its_life(run_in, one_worker):
    before = one_worker._reused
    run_in(one_worker, "bash", "-c", f"cd /tmp; seq {reused.FILES_MAX + 5} | xargs touch")
    assert run_in(one_worker, "ls", "-A", "/tmp").out == "home\n"
    assert one_worker._reused is not before


def test_a_step_that_nests_very_deeply_costs_the_worker_its_life(run_in, one_worker, python):
    before = one_worker._reused
    deep = f"import os\nfor _ in range({reused.DEPTH_MAX + 5}): os.mkdir('d'); os.chdir('d')"
    run_in(one_worker, python, "-I", "-S", "-c", deep)
    assert run_in(one_worker, "ls", "-A").out == ""
    assert one_worker._reused is not before


def test_a_worker_grows_old(run_in, strict, monkeypatch):
    sandbox = strict(reuse=True)
    first = sandbox._reused
    for _ in range(reused.JOBS_MAX):
        run_in(sandbox, "true")
    assert sandbox._reused is first
    run_in(sandbox, "true")
    assert sandbox._reused is not first


def test_what_is_large_or_lies_on_the_host_gets_a_view_of_its_own(run_in, strict, make_object, tmp_path):
    sandbox = strict(store=str(tmp_path / "store"), reuse=True)
    large = make_object("store/large", b"L" * 200_000)
    for fields, view in (
        ({}, "reused"),
        ({"staged": [Staged("large", source=large)]}, "fresh"),
        ({"stdin": large}, "fresh"),
        ({"stdin": b"small"}, "reused"),
        ({"fresh": True}, "fresh"),
    ):
        assert run_in(sandbox, "true", **fields).finished.protection["view"] == view


def test_the_workspace_can_be_read_until_it_is_given_back(strict):
    sandbox = strict(reuse=True)
    job = Job(["sh", "-c", "echo mine > out"], {"PATH": "/usr/bin:/bin"})
    finished = sandbox.run(job)
    assert os.listdir(finished.workspace_fd) == ["out"]
    finished.close()
    after = sandbox.run(Job(["ls"], {"PATH": "/usr/bin:/bin"}))
    assert after.stdout == b""
    after.close()
