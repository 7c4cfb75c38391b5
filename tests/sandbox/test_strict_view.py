"""What a strict step sees: its inputs, the world, and nothing of the host."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from requiem_build.core.errors import EnvironmentFault
from requiem_build.core.policy import INPUT_MTIME_S, Limits
from requiem_build.sandbox import keeper
from requiem_build.sandbox.base import Mount, Staged

pytestmark = pytest.mark.userns


@pytest.fixture
def closed_folder():
    """A directory below one that only its owner may enter: for root, what /root is."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o700)
    inner = top / "project"
    inner.mkdir()
    inner.chmod(0o755)
    yield inner
    shutil.rmtree(top)


def test_an_undeclared_file_is_absent(go, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("undeclared")
    assert subprocess.run(["cat", secret], capture_output=True).stdout == b"undeclared"
    step = go("cat", str(secret))
    assert step.finished.exit_code == 1
    assert "No such file or directory" in step.err


def test_the_root_holds_only_the_world(go):
    assert set(go("ls", "-A", "/").out.split()) <= {
        *("bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "tmp", "usr", "var"),
        "workspace",
    }


def test_no_file_of_the_hosts_users_is_shown(go):
    step = go("ls", "/etc/shadow", "/etc/environment", "/etc/profile", "/etc/resolv.conf", "/root", "/home", "/sys")
    assert step.out == ""
    assert step.err.count("No such file or directory") == 7
    assert "builder:x:1000:1000" in go("cat", "/etc/passwd").out


def test_inputs_have_their_content_mode_and_one_date(go):
    staged = [
        Staged("src/a.c", data=b"int a;\n"),
        Staged("run.sh", data=b"#!/bin/sh\necho ran\n", executable=True),
        Staged("link", symlink="src/a.c"),
        Staged("empty"),
    ]
    step = go("sh", "-c", "./run.sh; cat link; stat -c '%n %a %Y %F' src/a.c run.sh empty src", staged=staged)
    date = INPUT_MTIME_S
    assert step.out == (
        "ran\nint a;\n"
        f"src/a.c 444 {date} regular file\nrun.sh 555 {date} regular file\n"
        f"empty 755 {date} directory\nsrc 755 {date} directory\n"
    )


def test_directories_exist_before_the_step(go):
    step = go("sh", "-c", "echo x > build/deep/out", directories=["build/deep"])
    assert step.files == {"build/deep/out": b"x\n"}


def test_a_step_starts_in_its_own_directory(go):
    assert go("pwd", cwd="a/b").out == "/workspace/a/b\n"


def test_stdin_is_given_bytes_or_nothing(go):
    assert go("cat", stdin=b"from the plan").out == "from the plan"
    assert go("sh", "-c", "cat; readlink /proc/self/fd/0").out == "/dev/null\n"


def test_large_sources_are_shown_without_a_copy_and_cannot_be_written(strict, run_in, make_object, tmp_path):
    large = make_object("store/aa/large", b"L" * 300_000)
    sandbox = strict(store=str(tmp_path / "store"))
    step = run_in(
        sandbox,
        *(
            "sh",
            "-c",
            "wc -c < in/large; echo no > in/large; rm -f in/large; chmod 777 in/large; df --output=fstype in/large",
        ),
        staged=[Staged("in/large", source=large)],
    )
    assert step.out.split() == ["300000", "Type", "overlay"]
    assert step.err.count("Read-only file system") == 2
    assert "Device or resource busy" in step.err
    assert step.finished.changed == ()
    assert Path(large).read_bytes() == b"L" * 300_000


def test_a_source_with_another_mode_or_date_is_copied(strict, run_in, make_object, tmp_path):
    program = make_object("store/program", b"#!/bin/sh\necho hello\n", mode=0o444)
    sandbox = strict(store=str(tmp_path / "store"))
    staged = [Staged("tool", source=program, executable=True)]
    step = run_in(sandbox, "sh", "-c", "./tool; stat -c '%a %Y' tool", staged=staged)
    assert step.out == f"hello\n555 {INPUT_MTIME_S}\n"


def test_stdin_can_be_a_file_of_the_store(strict, run_in, make_object, tmp_path):
    given = make_object("store/given", b"from the store")
    step = run_in(strict(store=str(tmp_path / "store")), "sh", "-c", "cat; readlink /proc/self/fd/0", stdin=given)
    assert step.out == "from the store/given\n"


def test_a_source_outside_of_what_was_announced_is_a_fault(strict, run_in, make_object, tmp_path):
    elsewhere = make_object("elsewhere", b"x")
    sandbox = strict(store=str(tmp_path / "store"))
    with pytest.raises(EnvironmentFault, match="not told of a directory"):
        run_in(sandbox, "true", staged=[Staged("a", source=elsewhere)])


def test_roots_are_read_only_at_their_places_and_only_for_their_step(strict, run_in, tmp_path):
    sdk = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        sdk.chmod(0o755)
        (sdk / "tool").write_text("#!/bin/sh\necho tool\n")
        (sdk / "tool").chmod(0o755)
        modules = tmp_path / "node_modules"
        modules.mkdir()
        (modules / "m").write_text("module")
        sandbox = strict(roots=[str(sdk), str(modules)])
        target = f"/opt/{sdk.name}"
        mounts = [Mount(str(sdk), target), Mount(str(modules), "/workspace/node_modules")]
        script = f"{target}/tool; cat node_modules/m; touch {target}/x; rm node_modules/m"
        step = run_in(sandbox, "sh", "-c", script, mounts=mounts)
        assert step.out == "tool\nmodule"
        assert step.err.count("Read-only file system") == 2
        assert run_in(sandbox, "ls", "/opt").err == "ls: cannot access '/opt': No such file or directory\n"
    finally:
        shutil.rmtree(sdk)


def test_a_part_of_a_root_can_be_shown(strict, run_in, tmp_path):
    (tmp_path / "root/inner").mkdir(parents=True)
    (tmp_path / "root/inner/file").write_text("x")
    sandbox = strict(roots=[str(tmp_path / "root")])
    mounts = [
        Mount(str(tmp_path / "root/inner"), "/workspace/inner"),
        Mount(str(tmp_path / "root/inner/file"), "/srv/one"),
    ]
    assert run_in(sandbox, "cat", "inner/file", "/srv/one", mounts=mounts).out == "xx"


def test_a_root_that_is_made_later_or_replaced_is_seen_as_it_is(strict, run_in, tmp_path):
    root = tmp_path / "venv"
    sandbox = strict(roots=[str(root)])
    mounts = [Mount(str(root), "/workspace/venv")]
    with pytest.raises(EnvironmentFault, match="does not exist"):
        run_in(sandbox, "true", mounts=mounts)
    for content in ("first", "second"):
        root.mkdir()
        (root / "file").write_text(content)
        assert run_in(sandbox, "cat", "venv/file", mounts=mounts).out == content
        root.rename(tmp_path / content)


def test_a_closed_parent_directory_hides_nothing_from_the_sandbox(strict, run_in, make_object, closed_folder):
    large = make_object("store/large", b"L" * 200_000, folder=closed_folder)
    (closed_folder / "node_modules").mkdir()
    (closed_folder / "node_modules/m").write_text("module")
    sandbox = strict(roots=[str(closed_folder / "node_modules")], store=str(closed_folder / "store"))
    step = run_in(
        sandbox,
        *("sh", "-c", "wc -c < large; cat node_modules/m"),
        staged=[Staged("large", source=large)],
        mounts=[Mount(str(closed_folder / "node_modules"), "/workspace/node_modules")],
    )
    assert step.out == "200000\nmodule"


def test_mountinfo_names_no_path_of_the_host(strict, run_in, make_object, closed_folder):
    large = make_object("store/large", b"L" * 200_000, folder=closed_folder)
    (closed_folder / "node_modules").mkdir()
    sandbox = strict(roots=[str(closed_folder / "node_modules")], store=str(closed_folder / "store"))
    if not sandbox.protection["host_paths_hidden"]:
        pytest.skip("this kernel has no overlay for user namespaces")
    step = run_in(
        sandbox,
        *("sh", "-c", "cat /proc/self/mountinfo; ls -l /proc/self/fd"),
        staged=[Staged("large", source=large)],
        stdin=large,
        mounts=[Mount(str(closed_folder / "node_modules"), "/workspace/node_modules")],
    )
    assert "/workspace/node_modules" in step.out
    assert closed_folder.parent.name not in step.out


SURVEY = """
pwd; id; hostname; echo $$ $PPID; umask; env | sort; ls -la -I proc / /etc . src /tmp /tmp/home
cat /etc/hosts; cat /proc/self/personality 2>/dev/null; ulimit -n; grep Sig /proc/self/status | grep -v SigQ; kill -0 1; echo $?; ls -la --time-style=full-iso /dev | grep -v pts
"""


def test_two_checkouts_and_two_workers_see_the_same_bytes(strict, run_in, make_object, tmp_path):
    seen = []
    for place in ("one", "a/rather/longer/path"):
        large = make_object(f"{place}/store/large", b"L" * 200_000)
        sandbox = strict(store=str(tmp_path / place / "store"))
        staged = [Staged("src/a", data=b"a"), Staged("src/large", source=large), Staged("b", symlink="src/a")]
        for _ in range(2):
            seen.append(run_in(sandbox, "sh", "-c", SURVEY, staged=staged, directories=["out"]).out)
    assert "/workspace\n" in seen[0]
    assert len(set(seen)) == 1


def test_addresses_do_not_vary(go, python, unconfined):
    script = "print(id(object()), [line.split()[0] for line in open('/proc/self/maps') if 'stack' in line])"
    command = (python, "-I", "-S", "-c", script)
    assert unconfined(*command) != unconfined(*command)
    assert go(*command).out == go(*command).out


def test_only_the_steps_own_processes_are_visible(go):
    assert os.path.exists("/proc/1/status")
    step = go("sh", "-c", "ls /proc/1; ls /proc | grep -c '^[0-9]'")
    assert "No such file" in step.err
    assert int(step.out) <= 4


def test_the_host_network_shows_the_hosts_resolver(strict, run_in):
    sandbox = strict(network="host")
    step = run_in(sandbox, "cat", "/etc/resolv.conf", network="host")
    assert step.finished.stdout == Path("/etc/resolv.conf").read_bytes()
    interfaces = Path("/proc/net/dev").read_text().count(":")
    assert run_in(sandbox, "grep", "-c", ":", "/proc/net/dev", network="host").out == f"{interfaces}\n"
    with pytest.raises(EnvironmentFault, match="network"):
        run_in(sandbox, "true")


@pytest.mark.parametrize("clock", ["real", "frozen"])
def test_a_terminal_of_its_own(clock, strict, run_in):
    """Whatever else would do: a view that steps share has none to give, and a keeper passes it on."""
    if clock == "frozen" and os.uname().machine not in keeper.MACHINES:
        pytest.skip("nothing can be held on this processor")
    shown: list[bytes] = []

    def on_terminal(other_side: int) -> None:
        def read() -> None:
            with suppress(OSError), open(other_side, "rb", buffering=0) as terminal:
                os.write(other_side, b"typed\n")
                while piece := terminal.read(4096):
                    shown.append(piece)

        threads.append(threading.Thread(target=read, daemon=True))
        threads[0].start()

    threads: list[threading.Thread] = []
    script = (
        "tty; read -r word; set -- $(cat /proc/self/stat); echo $word $(($7 != 0)) > said; test -t 0 -a -t 1 -a -t 2"
    )
    step = run_in(strict(clock=clock), "bash", "-c", script, on_terminal=on_terminal, limits=Limits(timeout_ms=20_000))
    threads[0].join(20)
    assert step.finished.exit_code == 0, b"".join(shown)
    assert step.files["said"] == b"typed 1\n", "it is the one that controls the step"
    assert b"/dev/pts/0" in b"".join(shown) and step.out == ""
