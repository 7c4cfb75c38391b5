"""The digest of the host's system changes when and only when what steps see of it changes."""

from __future__ import annotations

import os

import pytest

from requiem_build.core.errors import EnvironmentFault
from requiem_build.sandbox import stamped, system

STATUS = b"""Package: zlib1g
Status: install ok installed
Architecture: amd64
Version: 1:1.2.13

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0

Package: bash
Status: install ok installed
Description: shell
 Version: not a field
Architecture: amd64
Version: 5.2
"""

YESTERDAY = 1_600_000_000


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A small host of our own: dpkg, /usr/local and /etc."""
    root = tmp_path / "host"
    for folder in ("dpkg/info", "local/bin", "etc/alternatives", "etc/ssl"):
        (root / folder).mkdir(parents=True)
    (root / "dpkg/status").write_bytes(STATUS)
    (root / "local/bin/tool").write_bytes(b"tool")
    (root / "etc/alternatives/cc").symlink_to("/usr/bin/gcc")
    (root / "etc/passwd").write_text("not shown")
    (root / "etc/ssl/openssl.cnf").write_text("conf")
    monkeypatch.setattr(system, "DPKG", str(root / "dpkg"))
    monkeypatch.setattr(system, "_LOCAL", str(root / "local"))
    monkeypatch.setattr(stamped, "SETTLED_NS", 0)
    entries = system.etc_entries
    monkeypatch.setattr(system, "etc_entries", lambda: entries(str(root / "etc")))
    return root


def test_dpkg_status_is_read_by_hand():
    assert system.parse_dpkg(STATUS) == [b"bash 5.2 amd64", b"zlib1g 1:1.2.13 amd64"]


def test_apk_database_is_read_by_hand():
    assert system.parse_apk(b"C:Q1x\nP:musl\nV:1.2\nA:x86_64\n\nP:zlib\nV:1\n\n") == [
        b"musl 1.2 x86_64 Q1x",
        b"zlib 1  ",
    ]


def test_etc_shows_only_the_list(host):
    shown = [path.removeprefix(str(host)) for path in system.etc_entries()]
    assert shown == ["/etc/alternatives", "/etc/ssl/openssl.cnf"]


@pytest.mark.parametrize(
    "change",
    [
        lambda host: (host / "local/bin/tool").write_bytes(b"TOOL"),
        lambda host: (host / "local/bin/tool").chmod(0o755),
        lambda host: (host / "local/bin/new").write_bytes(b""),
        lambda host: (host / "local/empty").mkdir(),
        lambda host: (host / "local/link").symlink_to("bin"),
        lambda host: (host / "local/bin/tool").rename(host / "local/bin/moved"),
        lambda host: ((host / "etc/alternatives/cc").unlink(), (host / "etc/alternatives/cc").symlink_to("/x")),
        lambda host: (host / "etc/ssl/openssl.cnf").write_text("else"),
        lambda host: (host / "dpkg/status").write_bytes(STATUS.replace(b"5.2", b"5.3")),
    ],
)
def test_what_is_seen_changes_the_digest(change, host, tmp_path):
    cache = str(tmp_path / "cache")
    before = system.system_digest(cache)
    assert system.system_digest(cache) == before == system.system_digest(str(tmp_path / "other cache"))
    change(host)
    after = system.system_digest(cache)
    assert after != before
    assert after == system.system_digest(str(tmp_path / "third cache"))


def test_what_is_not_seen_does_not(host, tmp_path):
    before = system.system_digest(str(tmp_path))
    (host / "etc/passwd").write_text("changed")
    (host / "dpkg/status").write_bytes(STATUS.replace(b"Description: shell", b"Description: other"))
    os.utime(host / "local/bin/tool", (YESTERDAY, YESTERDAY))
    assert system.system_digest(str(tmp_path)) == before


def test_an_unchanged_system_is_not_read_again(host, tmp_path, monkeypatch):
    before = system.system_digest(str(tmp_path))
    read = open

    def only_what_is_remembered(path, *more, **options):
        assert os.path.basename(path).startswith("system."), f"{path} was read"
        return read(path, *more, **options)

    monkeypatch.setattr("builtins.open", only_what_is_remembered)
    assert system.system_digest(str(tmp_path)) == before


def test_a_young_file_is_read_each_time(host, tmp_path, monkeypatch):
    monkeypatch.setattr(stamped, "SETTLED_NS", 10**18)
    system.system_digest(str(tmp_path))
    opened = []
    read = open

    def watch(path, mode="r", **more):
        if "w" not in mode:
            opened.append(path)
        return read(path, mode, **more)

    monkeypatch.setattr("builtins.open", watch)
    system.system_digest(str(tmp_path))
    assert str(host / "local/bin/tool") in opened


@pytest.mark.parametrize("damage", [b"", b"garbage", b"0" * 64 + b"\n{}", None])
def test_a_damaged_memory_only_costs_time(damage, host, tmp_path):
    before = system.system_digest(str(tmp_path))
    for name in ("system.json", "system.whole.json"):
        memory = tmp_path / name
        memory.write_bytes(memory.read_bytes()[:-10] if damage is None else damage)
    assert system.system_digest(str(tmp_path)) == before


def test_a_memory_that_cannot_be_kept_is_no_error(host, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert system.system_digest(str(tmp_path / "file/cache")) == system.system_digest(str(tmp_path))


def test_without_a_package_database_it_says_so(host, monkeypatch, tmp_path):
    for name, value in (("DPKG", "/nowhere"), ("PACMAN", "/nowhere"), ("APK", ()), ("RPM", ())):
        monkeypatch.setattr(system, name, value or (("/nowhere",) if name in ("APK", "RPM") else value))
    with pytest.raises(EnvironmentFault, match="no package database"):
        system.system_digest(str(tmp_path))


def test_lookup_finds_what_the_path_gives():
    assert system.lookup("sh", ["/nowhere", "/usr/bin", "/bin"]) == "/usr/bin/sh"
    assert system.lookup("/bin/sh", []) == "/bin/sh"
    assert system.lookup("no-such-program", ["/usr/bin"]) is None


def test_package_of_knows_both_names_of_usr(host):
    (host / "dpkg/info/bash.list").write_text("/.\n/bin\n/bin/bash\n")
    (host / "dpkg/info/zlib1g-dev:amd64.list").write_text("/usr/include/zlib.h\n")
    assert system.package_of("/usr/bin/bash") == "bash"
    assert system.package_of("/bin/bash") == "bash"
    assert system.package_of("/usr/include/zlib.h") == "zlib1g-dev"
    assert system.package_of("/usr/include/zlib") is None
