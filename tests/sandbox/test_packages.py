"""Package databases: whatever the kind, the same small host gives the same closure, contents and owners."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import small_host
from hypothesis import given
from hypothesis import strategies as st
from small_host import TOOLS, Made

from requiem_build.core.errors import SandboxUnavailable
from requiem_build.sandbox import ldcache
from requiem_build.sandbox.packages import dpkg
from requiem_build.sandbox.packages.base import Database, Package
from requiem_build.sandbox.packages.choose import open_database
from requiem_build.sandbox.packages.closure import Installed, companions

KINDS = ["dpkg", "pacman", "apk", "rpm"]


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    return made_database(request.param, tmp_path, TOOLS)


def made_database(kind: str, base: Path, packages: tuple[Made, ...]) -> Database:
    root = base / "host"
    small_host.lay_out(root, packages)
    if kind == "rpm":
        if not small_host.can_make_rpms():
            if os.environ.get("CI"):
                pytest.fail("CI must run this test, but it needs rpmbuild")
            pytest.skip("needs rpmbuild")
        small_host.rpm(root, packages, base)
    else:
        make: Callable[..., None] = getattr(small_host, kind)
        make(root, packages)
    found = open_database(str(root))
    assert found.kind == kind
    return found


def test_every_kind_tells_the_same_packages(database: Database) -> None:
    found = database.packages()
    assert sorted(found) == ["assembler", "bash", "compiler", "libc", "mawk", "stranger"]
    assert sorted(found["compiler"].needs) == [("assembler",), ("libc",)]  # rpm sorts them.
    assert "1.0" in found["compiler"].version


def test_every_kind_tells_the_same_closure(database: Database) -> None:
    installed = Installed(database.packages())
    assert [package.id for package in installed.closure(["compiler"])] == ["assembler", "compiler", "libc"]
    assert [package.id for package in installed.find("awk")] == ["mawk"]
    assert installed.find("no-such-thing") == []


def test_every_kind_tells_what_belongs_to_a_package(database: Database) -> None:
    contents = database.contents(database.packages()["compiler"])
    files = {path for path in contents.paths if path in TOOLS[3].files}
    assert files == set(TOOLS[3].files)
    algorithm, _, digest = contents.sums["/usr/bin/compile"].partition(":")
    done = subprocess.run([f"{algorithm}sum"], input=b"compile", capture_output=True, check=True)
    assert done.stdout.split()[0].decode() == digest, "the sum is that of the content, by another tool"
    assert "/usr/bin/cc" not in contents.sums, "a link has no content of its own"
    assert contents.record


def test_every_kind_knows_owners_and_endings(database: Database) -> None:
    assert database.owners(["/usr/bin/compile", "/usr/bin/htop", "/usr/bin/nobody"]) == {
        "/usr/bin/compile": "compiler",
        "/usr/bin/htop": "stranger",
    }
    assert ("/usr/lib/compiler/two", "stranger") in database.ending("/two")


def test_a_host_without_a_database_is_exit_4_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable) as refused:
        open_database(str(tmp_path))
    assert refused.value.exit_code == 4
    assert "package database" in (refused.value.hint or "")


# dpkg

STATUS = """\
Package: dpkg
Status: install ok installed
Architecture: amd64
Version: 1.21

Package: libz
Status: install ok installed
Multi-Arch: same
Architecture: amd64
Version: 1:1.2.13
Provides: libz-api (= 1), libz-dbg

Package: libz
Status: install ok installed
Multi-Arch: same
Architecture: i386
Version: 1:1.2.13

Package: tool
Status: hold ok installed
Architecture: all
Version: 2
Depends: libz (>= 1:1.2) | libng, helper:any [amd64], python3:any (>= 3.1)
Pre-Depends: base

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: halfway
Status: install ok half-configured
Architecture: amd64
Version: 1
"""


def test_a_status_file_is_read_as_dpkg_means_it() -> None:
    found = dpkg.parse_status(STATUS)
    assert list(found) == ["dpkg", "libz", "libz:i386", "tool"], "a foreign architecture has its name in the id"
    assert found["tool"].needs == (("base",), ("libz", "libng"), ("helper",), ("python3",))
    assert found["libz"].provides == ("libz-api", "libz-dbg")


def test_a_need_is_met_by_the_own_architecture() -> None:
    packages = dpkg.parse_status(STATUS)
    packages["app:i386"] = Package("app:i386", "app", "1", "i386", (("libz",),))
    packages["app"] = Package("app", "app", "1", "amd64", (("libz",),))
    installed = Installed(packages)
    assert [each.id for each in installed.closure(["app:i386"])] == ["app:i386", "libz:i386"]
    assert [each.id for each in installed.closure(["app"])] == ["app", "libz"]


def test_names_are_canonical_where_bin_is_a_link(tmp_path: Path) -> None:
    packages = (Made("coreutils", {"/bin/ls": "ls"}),)
    root = tmp_path / "host"
    small_host.lay_out(root, (Made("x", {"/usr/bin/ls": "ls"}),))
    small_host.dpkg(root, packages)
    database = open_database(str(root))
    assert "/usr/bin/ls" in database.contents(database.packages()["coreutils"]).paths
    assert database.owners(["/usr/bin/ls"]) == {"/usr/bin/ls": "coreutils"}


def test_a_diverted_file_lies_aside_and_its_place_has_another_owner(tmp_path: Path) -> None:
    packages = (
        Made("bash", {"/usr/bin/sh": "bash"}),
        Made("ash", {"/usr/bin/sh": "ash", "/usr/bin/ash": "ash"}),
        Made("vi", {"/usr/bin/vi": "vi"}),
    )
    root = tmp_path / "host"
    small_host.lay_out(root, packages)
    aside = "/usr/bin/sh\n/usr/bin/sh.distrib\nash\n/usr/bin/vi\n/usr/bin/vi.mine\n:\n"
    small_host.dpkg(root, packages, aside)
    database = open_database(str(root))
    found = database.packages()
    assert "/usr/bin/sh.distrib" in database.contents(found["bash"]).paths
    assert "/usr/bin/sh" not in database.contents(found["bash"]).paths
    assert "/usr/bin/sh" in database.contents(found["ash"]).paths
    asked = ["/usr/bin/sh", "/usr/bin/sh.distrib", "/usr/bin/vi", "/usr/bin/vi.mine"]
    assert database.owners(asked) == {
        "/usr/bin/sh": "ash",
        "/usr/bin/sh.distrib": "bash",
        "/usr/bin/vi.mine": "vi",  # What the administrator put in its place belongs to nobody.
    }


def test_a_group_of_alternatives_tells_its_links() -> None:
    text = "auto\n/usr/bin/awk\nawk.1.gz\n/usr/share/man/man1/awk.1.gz\n\n/usr/bin/mawk\n5\n/usr/share/man/mawk.gz\n\n"
    assert dpkg.parse_alternatives(text) == ["/usr/bin/awk", "/usr/share/man/man1/awk.1.gz"]


# Closure

NAMES = st.sampled_from("abcdefgh")
GRAPHS = st.dictionaries(NAMES, st.lists(st.lists(NAMES, min_size=1, max_size=3), max_size=4), min_size=1)


@given(GRAPHS, st.data())
def test_a_closure_is_closed_and_minimal(graph: dict[str, list[list[str]]], data: st.DataObject) -> None:
    packages = {n: Package(n, n, "1", "amd64", tuple(map(tuple, needs))) for n, needs in graph.items()}
    wanted = data.draw(st.lists(st.sampled_from(sorted(graph)), min_size=1))
    found = [package.id for package in Installed(packages).closure(wanted)]
    assert found == sorted(set(found))
    assert set(wanted) <= set(found)
    reached = set(wanted)
    for _ in graph:
        for name in tuple(reached):
            for group in graph[name]:
                there = [need for need in group if need in graph]
                assert not there or there[0] in found
                reached.update(there[:1])
    assert reached == set(found)


def test_companions_are_found_by_what_a_name_is() -> None:
    assert "libc6-dev" in companions("gcc")
    assert "libc6-dev" in companions("gcc-12")
    assert "libc6-dev" in companions("clang-14")
    assert companions("gcc-12-base") == ()
    assert companions("python3-minimal") == ("python3",)


# The linker's cache


def test_the_linkers_cache_is_cut_down_to_what_is_visible(tmp_path: Path) -> None:
    with open("/etc/ld.so.cache", "rb") as file:
        whole = file.read()
    cut = ldcache.cut_down(whole, lambda path: "/libc.so." in path)
    assert cut is not None
    (tmp_path / "cache").write_bytes(cut)
    environment = {"PATH": "/usr/sbin:/sbin:/usr/bin", "LC_ALL": "C"}
    listed = ["ldconfig", "-p", "-C", str(tmp_path / "cache")]
    said = subprocess.run(listed, env=environment, capture_output=True, text=True, check=True).stdout
    lines = [line for line in said.splitlines() if "=>" in line]
    assert lines
    assert all("libc.so." in line for line in lines)
    assert ldcache.cut_down(cut, lambda _: True) == cut


@given(st.binary(max_size=200))
def test_what_is_no_linkers_cache_is_none(noise: bytes) -> None:
    assert ldcache.cut_down(noise, lambda _: True) is None
    found = ldcache.cut_down(b"glibc-ld.so.cache1.1" + noise, lambda _: False)
    assert found is None or found.startswith(b"glibc-ld.so.cache1.1")
