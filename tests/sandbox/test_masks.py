"""The host's own packages, really mounted: by each mechanism a step sees the same, and nothing else."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from requiem_build.core.errors import EnvironmentFault, SandboxUnavailable
from requiem_build.sandbox import masks, showing
from requiem_build.sandbox.base import Mount
from requiem_build.sandbox.distribution import Distribution
from requiem_build.sandbox.linux import StrictSandbox, SystemNotShown
from requiem_build.sandbox.masks import MECHANISMS, Shown, make_ready
from requiem_build.sandbox.packages.base import Places

pytestmark = [pytest.mark.userns, pytest.mark.gcc]

COMPILE = r"""
printf '#include <stdio.h>\nint main(void) { puts("made here"); return 0; }\n' > a.c
gcc -o a a.c && ./a && cc --version > /dev/null && ar --version > /dev/null && awk 'BEGIN { print "awk" }'
"""
TREE = "cd /; find usr etc -printf '%y %m %s %T@ %l %p\\n' | LC_ALL=C sort"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield (folder := tmp_path_factory.mktemp("views"))
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def host(cache: Path) -> Distribution:
    return Distribution(str(cache))


@pytest.fixture(scope="module")
def shown(host: Distribution, cache: Path) -> Callable[..., Shown]:
    """shown(mechanism, *names): ready, or skipped where this user cannot have that mechanism."""

    def shown(mechanism: str, *names: str) -> Shown:
        try:
            found = make_ready(host.view(names), host.places, str(cache / "masks"), mechanism)
            StrictSandbox(shown=found).close()
        except (OSError, SystemNotShown) as error:
            pytest.skip(f"{mechanism} cannot be had here: {error}")
        return found

    return shown


def test_some_mechanism_without_a_copy_is_to_be_had_here(host, cache):
    """Else all the rest could be skipped, and nobody would see it."""
    view = host.view(["bash"])
    found = showing.show(host, view.digest, ["/usr"], str(cache), lambda shown: (shown, StrictSandbox(shown=shown)))
    found[1].close()
    assert found[0].mechanism in ("redirects", "whiteouts")


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_view_of_a_compiler_compiles_and_links_and_lacks_the_rest(view, shown, run_in, mechanism):
    with StrictSandbox(shown=shown(mechanism, "gcc"), reuse=view == "reused") as sandbox:
        assert run_in(sandbox, "sh", "-c", COMPILE).out == "made here\nawk\n"
        missing = run_in(sandbox, "sh", "-c", "echo '#include <zlib.h>' | gcc -x c -E -")
        assert "zlib.h: No such file" in missing.err
        for path in ("/usr/bin/perl", "/usr/bin/python3", "/usr/local", "/opt", "/usr/include/zlib.h", "/usr/lib/jvm"):
            assert run_in(sandbox, "stat", path).finished.exit_code == 1, path
        assert "Read-only file system" in run_in(sandbox, "sh", "-c", "echo x > /usr/bin/ls").err
        assert sandbox.protection["system"] == mechanism


def test_a_package_is_there_when_asked_for(shown, run_in):
    with StrictSandbox(shown=shown("redirects", "gcc", "zlib1g-dev", "perl-base")) as sandbox:
        assert (
            run_in(sandbox, "sh", "-c", "echo '#include <zlib.h>' | gcc -x c -E - | grep -c zlibVersion").out == "1\n"
        )
        assert run_in(sandbox, "perl", "-e", "print 6 * 7").out == "42"


def test_every_mechanism_shows_the_same_to_the_byte_and_the_second(shown, run_in):
    trees = {}
    for mechanism in MECHANISMS:
        with StrictSandbox(shown=shown(mechanism, "gcc")) as sandbox:
            trees[mechanism] = sorted(
                # A size of a directory is its file system's own affair.
                " ".join(["d", "-", *line.split(" ")[3:]]) if line.startswith("d") else line
                for line in run_in(sandbox, "bash", "-c", TREE, max_output_bytes=1 << 26).out.splitlines()
            )
    first = trees["redirects"]
    assert len(first) > 3000
    for mechanism, tree in trees.items():
        assert tree == first, f"{mechanism}: {sorted(set(tree) ^ set(first))[:10]}"


def test_what_is_shown_has_the_content_of_the_host(shown, run_in):
    with StrictSandbox(shown=shown("redirects", "gcc")) as sandbox:
        said = run_in(sandbox, "sh", "-c", "cd /usr/include && md5sum stdio.h && sha256sum /usr/bin/bash").out
    for line in said.splitlines():
        digest, path = line.split()
        tool = "md5sum" if len(digest) == 32 else "sha256sum"
        done = subprocess.run([tool, Path("/usr/include", path)], capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == digest


def test_no_step_sees_where_the_mask_lies(shown, run_in, cache):
    with StrictSandbox(shown=shown("redirects", "bash")) as sandbox:
        mounts = run_in(sandbox, "cat", "/proc/self/mountinfo").out
    assert " /usr " in mounts
    assert str(cache) not in mounts


def test_the_linkers_cache_speaks_of_the_view_only(shown, run_in):
    with StrictSandbox(shown=shown("redirects", "bash", "libc-bin")) as sandbox:
        said = run_in(sandbox, "sh", "-c", "/sbin/ldconfig -p | sed -n 's/.* => //p' | xargs ls -d").finished
        listed = run_in(sandbox, "/sbin/ldconfig", "-p").out
    assert said.exit_code == 0, said.stderr
    assert "libc.so.6" in listed
    host = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    assert len(listed.splitlines()) < len(host.splitlines())


def test_a_root_below_usr_has_its_place(host, cache, run_in, tmp_path):
    view = host.view(["bash"])
    own = tmp_path / "own"
    own.mkdir(mode=0o755)
    (own / "tool").write_text("a tool of our own")
    point = "/usr/local/lib/own"
    shown = make_ready(view, host.places, str(cache / "masks"), "redirects", [point])
    with StrictSandbox(shown=shown, roots=[str(own)]) as sandbox:
        mounts = [Mount(str(own), point)]
        assert run_in(sandbox, "cat", f"{point}/tool", mounts=mounts).out == "a tool of our own"
        assert run_in(sandbox, "ls", "/usr/local", mounts=mounts).out == "lib\n"


def test_a_mask_is_made_once_and_again_when_what_it_shows_was_replaced(host, cache, monkeypatch):
    view = host.view(["bash"])
    first = make_ready(view, host.places, str(cache / "masks"), "redirects")
    monkeypatch.setattr(masks, "_publish", None)  # It is not made again.
    assert make_ready(view, host.places, str(cache / "masks"), "redirects") == first
    monkeypatch.undo()
    other = make_ready(masks.replace(view, stamps="0" * 64), host.places, str(cache / "masks"), "redirects")
    assert other.folder != first.folder


def test_what_is_installed_later_shows_through_no_redirect(tmp_path, host, cache):
    """The allow list at work, on a small tree of our own: see `test_whiteouts_are_renewed...` for the other way."""
    view = host.view(["bash"])
    shown = make_ready(view, host.places, str(cache / "masks"), "redirects")
    names = set(os.listdir(f"{shown.folder}/0/bin"))
    visible = {path.rpartition("/")[2] for path in (*view.files, *view.links) if path.startswith("/usr/bin/")}
    assert names == {name for name in visible if "/" not in name}


def test_whiteouts_are_renewed_when_a_directory_changes(tmp_path: Path) -> None:
    for name in ("usr/bin", "usr/lib"):
        (tmp_path / name).mkdir(parents=True)
    places = Places(str(tmp_path))
    view = masks.View("d" * 64, b"", (), ("/usr/bin",), (), {}, {}, {}, "s", ())
    before = masks._state(view, places, "whiteouts", ())
    assert masks._state(view, places, "redirects", ()) == masks._state(view, places, "copy", ())
    (tmp_path / "usr/bin/new").write_text("installed meanwhile")
    assert masks._state(view, places, "whiteouts", ()) != before


# Finding out what works


class Refusing:
    """Boots nothing: each mechanism in `bad` is refused, as a kernel would."""

    def __init__(self, *bad: str) -> None:
        self.bad = bad
        self.tried: list[str] = []

    def __call__(self, shown: Shown | None) -> str:
        assert shown is not None
        self.tried.append(shown.mechanism)
        if shown.mechanism in self.bad:
            raise SystemNotShown("the packages' view cannot be mounted", facts=[("error", "EINVAL: no")])
        return shown.mechanism


def test_a_mechanism_that_is_refused_is_not_tried_again(host, tmp_path):
    digest = host.view(["bash"]).digest
    boot = Refusing("redirects", "whiteouts")
    assert showing.show(host, digest, ["/usr"], str(tmp_path), boot) == "copy"
    assert boot.tried in (["redirects", "whiteouts", "copy"], ["redirects", "copy"])
    again = Refusing()
    assert showing.show(host, digest, ["/usr"], str(tmp_path), again) == "copy"
    assert again.tried == ["copy"]


def test_a_full_disk_is_not_remembered_as_a_refusal(host, tmp_path, monkeypatch):
    digest = host.view(["bash"]).digest

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space", "here")

    monkeypatch.setattr(masks, "_make_layer", full)
    with pytest.raises(SandboxUnavailable, match="cannot be shown"):
        showing.show(host, digest, ["/usr"], str(tmp_path), Refusing())
    monkeypatch.undo()
    boot = Refusing()
    assert showing.show(host, digest, ["/usr"], str(tmp_path), boot) == boot.tried[0] == "redirects"


def test_what_a_file_system_never_does_is_remembered(host, tmp_path, monkeypatch):
    digest = host.view(["bash"]).digest

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "no such thing")

    monkeypatch.setattr(os, "setxattr", unsupported)
    showing.show(host, digest, ["/usr"], str(tmp_path), Refusing())
    monkeypatch.undo()
    boot = Refusing()
    showing.show(host, digest, ["/usr"], str(tmp_path), boot)
    assert "redirects" not in boot.tried


def test_where_none_works_it_is_exit_4_with_the_way_out(host, tmp_path):
    with pytest.raises(SandboxUnavailable) as refused:
        showing.show(host, host.view(["bash"]).digest, ["/usr"], str(tmp_path), Refusing(*MECHANISMS))
    assert refused.value.exit_code == 4
    assert 'system = "host"' in (refused.value.hint or "")
    assert [label for label, _ in refused.value.facts] == list(MECHANISMS)


def test_a_mask_that_is_mounted_but_not_understood_is_found_out(shown):
    good = shown("redirects", "bash")
    for lie in (
        masks.replace(good, content=b"something else"),
        masks.replace(good, hidden="/usr/bin/bash"),
        masks.replace(good, mechanism="whiteouts"),  # Redirects are not followed by it: files are full of zeros.
    ):
        with pytest.raises(SystemNotShown):
            StrictSandbox(shown=lie).close()


def test_a_view_that_nobody_made_is_refused(host, tmp_path):
    with pytest.raises(EnvironmentFault, match="no longer what they were"):
        showing.show(host, "0" * 64, ["/usr"], str(tmp_path), Refusing())
