"""The view of a set of packages: what counts changes its digest, and nothing else does."""

from __future__ import annotations

import json
import os
import py_compile
from pathlib import Path

import pytest
import small_host
from small_host import TOOLS, Made

from requiem_build.core.digest import object_digest
from requiem_build.core.errors import EnvironmentFault
from requiem_build.sandbox import distribution as distributions
from requiem_build.sandbox import parts, visible
from requiem_build.sandbox.distribution import Distribution
from requiem_build.sandbox.visible import View


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make(tmp_path / "host")


def make(root: Path, packages: tuple[Made, ...] = TOOLS) -> Path:
    small_host.lay_out(root, packages)
    small_host.dpkg(root, packages)
    return root


@pytest.fixture
def look(tmp_path: Path):
    """look(root, *names): a new command of the user's each time, with one cache."""

    def look(root: Path, *names: str) -> View:
        return Distribution(str(tmp_path / "cache"), str(root)).view(names)

    return look


def without_sums(root: Path, name: str) -> None:
    (root / f"var/lib/dpkg/info/{name}.md5sums").unlink()


def test_only_the_closure_is_visible(root, look):
    view = look(root, "compile")
    assert [package.id for package in view.packages] == ["assembler", "bash", "compiler", "libc", "mawk"]
    assert "/usr/bin/compile" in view.files
    assert "/usr/lib/compiler/one" in view.files
    assert view.links["/usr/bin/cc"] == "compile"
    assert not {"/usr/bin/htop", "/usr/lib/compiler/two"} & set(view.files)
    assert view.etc_files["/etc/cc.conf"] == (b"c", False)


def test_the_digest_is_that_of_the_document(root, look):
    view = look(root, "compile")
    assert object_digest(view.document) == view.digest
    assert json.loads(view.document)["schema"] == "requiem.system/1"


def test_names_of_programs_and_of_packages_mean_the_same(root, look):
    assert look(root, "compile").digest == look(root, "compiler").digest == look(root, "cc").digest
    assert look(root, "/usr/bin/compile", "compile").digest == look(root, "compile").digest
    assert look(root).digest == look(root, "nothing-of-that-name").digest != look(root, "compile").digest


def test_two_hosts_with_the_same_packages_give_the_same_digest(tmp_path, look):
    one = make(tmp_path / "one")
    other = make(tmp_path / "other/deeper", tuple(reversed(TOOLS)))
    assert look(one, "compile").digest == look(other, "compile").digest


def test_two_roots_of_a_real_distribution_give_the_same_digests(look):
    """With `REQUIEM_ROOTS=A:B`, two directories that `debootstrap --variant=minbase` made; it needs a network."""
    roots = os.environ.get("REQUIEM_ROOTS", "").split(":")
    if len(roots) != 2:
        pytest.skip("needs REQUIEM_ROOTS")
    for name in ("bash", "perl", "apt"):
        one, other = look(Path(roots[0]), name), look(Path(roots[1]), name)
        assert len(one.files) > 1000
        assert one.document == other.document


def test_an_unrelated_package_changes_nothing(root, look):
    before = look(root, "compile").digest
    more = (*TOOLS, Made("htop-extras", {"/usr/lib/compiler/three": "3", "/usr/bin/extra": "x"}, needs=("compiler",)))
    make(root, more)
    assert look(root, "compile").digest == before
    assert look(root, "extra").digest != before


def replaced(name: str, **changes: object) -> tuple[Made, ...]:
    return tuple(Made(**{**vars(each), **changes}) if each.name == name else each for each in TOOLS)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["compiler", "assembler", "libc", "bash"])
def test_another_version_of_anything_in_the_closure_counts(root, look, name):
    before = look(root, "compile").digest
    make(root, replaced(name, version="1.1"))
    assert look(root, "compile").digest != before


def test_a_rebuild_under_the_same_version_counts(root, look):
    before = look(root, "compile").digest
    make(root, replaced("assembler", files={"/usr/bin/assemble": "another"}))
    assert look(root, "compile").digest != before


def test_a_file_that_is_not_its_packages_counts_by_its_content(root, look):
    view = look(root, "compile")
    assert view.changed == ()
    tool = root / "usr/bin/assemble"
    tool.write_text("assembly!")  # Of another length, and later in the same length: both are seen.
    first = look(root, "compile")
    assert first.changed == ("/usr/bin/assemble",)
    tool.write_text("assembled")
    second = look(root, "compile")
    assert len({view.digest, first.digest, second.digest}) == 3
    tool.write_text("assemble")
    assert look(root, "compile").digest == view.digest


@pytest.mark.parametrize("settled", [True, False])
def test_a_change_is_seen_however_old_its_memory(root, look, settled, monkeypatch):
    if settled:
        monkeypatch.setattr(distributions, "SETTLED_NS", -(10**12))
    before = look(root, "compile")
    assert look(root, "compile") == before
    (root / "usr/bin/assemble").write_text("assembly!")
    assert look(root, "compile").digest != before.digest
    (root / "etc/cc.conf").write_text("another")
    assert look(root, "compile").etc_files["/etc/cc.conf"] == (b"another", False)


def test_a_remembered_view_is_the_same_in_every_part(root, look, monkeypatch):
    monkeypatch.setattr(distributions, "SETTLED_NS", -(10**12))
    made = look(root, "compile")
    monkeypatch.setattr(Distribution, "_made", None)  # It is not made again.
    again = look(root, "compile")
    assert [p.version for p in again.packages] == [p.version for p in made.packages]
    for name in ("digest", "document", "files", "links", "directories", "etc_files", "etc_links", "stamps", "watched"):
        assert getattr(again, name) == getattr(made, name), name


def test_a_damaged_memory_is_made_again(root, look, tmp_path, monkeypatch):
    monkeypatch.setattr(distributions, "SETTLED_NS", -(10**12))
    made = look(root, "compile")
    for kept in (tmp_path / "cache/views").iterdir():
        content = kept.read_bytes()
        kept.write_bytes(content[:-9] + b"x" + content[-8:])
    assert look(root, "compile").digest == made.digest


def test_what_no_sum_covers_counts_by_content(root, look):
    without_sums(root, "libc")
    before = look(root, "compile").digest
    (root / "usr/lib/libc.so").write_text("another C library")
    assert look(root, "compile").digest != before


def test_a_listed_file_that_is_absent_counts(root, look):
    before = look(root, "compile").digest
    (root / "usr/lib/compiler/one").unlink()
    view = look(root, "compile")
    assert view.digest != before
    assert json.loads(view.document)["absent"] == ["/usr/lib/compiler/one"]


def test_compiled_python_counts_where_its_source_is_visible(root, look):
    packages = (*TOOLS, Made("python-thing", {"/usr/lib/python3/thing.py": "x = 1\n", "/usr/bin/thing": "t"}))
    make(root, packages)
    folder = root / "usr/lib/python3"
    (folder / "stranger.py").write_text("y = 2\n")
    before = look(root, "thing").digest
    py_compile.compile(str(folder / "stranger.py"), str(folder / "__pycache__/stranger.cpython-311.pyc"))
    assert look(root, "thing").digest == before, "its source is not visible"
    py_compile.compile(str(folder / "thing.py"), str(folder / "__pycache__/thing.cpython-311.pyc"))
    view = look(root, "thing")
    assert "/usr/lib/python3/__pycache__/thing.cpython-311.pyc" in view.files
    assert "/usr/lib/python3/__pycache__/stranger.cpython-311.pyc" not in view.files
    assert view.digest != before


def test_alternatives_are_shown_where_what_they_lead_to_is(root, look):
    (root / "etc/alternatives").mkdir(parents=True)
    (root / "usr/bin/awk").symlink_to("/etc/alternatives/awk")
    (root / "etc/alternatives/awk").symlink_to("/usr/bin/mawk")
    (root / "usr/bin/top").symlink_to("/etc/alternatives/top")
    (root / "etc/alternatives/top").symlink_to("/usr/bin/htop")
    for name in ("awk", "top"):
        (root / f"var/lib/dpkg/alternatives/{name}").write_text(f"auto\n/usr/bin/{name}\n\n\n")
    view = look(root, "compile")
    assert view.links["/usr/bin/awk"] == "/etc/alternatives/awk"
    assert view.etc_links == {"/etc/alternatives/awk": "/usr/bin/mawk"}
    assert "/usr/bin/top" not in view.links
    (root / "etc/alternatives/awk").unlink()
    (root / "etc/alternatives/awk").symlink_to("/usr/bin/compile")
    assert look(root, "compile").digest != view.digest


def test_who_took_the_place_of_a_program_is_shown_in_it(root, look):
    packages = (*TOOLS, Made("other-assembler", {"/usr/bin/assemble": "other"}))
    small_host.lay_out(root, packages)
    (root / "usr/bin/assemble.plain").write_text("assemble")
    small_host.dpkg(root, packages, "/usr/bin/assemble\n/usr/bin/assemble.plain\nother-assembler\n")
    view = look(root, "compile")
    assert "other-assembler" in [package.id for package in view.packages]
    assert {"/usr/bin/assemble", "/usr/bin/assemble.plain"} <= set(view.files)
    assert view.changed == ()
    assert json.loads(view.document)["diversions"]


def test_who_the_host_is_stays_hidden(root, look):
    make(root, (*TOOLS, Made("base-passwd", {"/etc/passwd": "root", "/etc/hostname": "me", "/usr/bin/passwd": "p"})))
    view = look(root, "passwd")
    assert not {"/etc/passwd", "/etc/hostname"} & view.etc_files.keys()


@pytest.mark.parametrize("top", ["usr/local/bin", "opt/tool", "var/lib/thing"])
def test_what_lies_elsewhere_is_not_of_the_view(root, look, top):
    make(root, (*TOOLS, Made("odd", {f"/{top}/odd": "odd", "/usr/bin/odd": "odd"})))
    view = look(root, "odd")
    assert [path for path in view.files if "odd" in path] == ["/usr/bin/odd"]


def test_a_system_that_changed_is_known_to_have(root, tmp_path):
    one = Distribution(str(tmp_path / "cache"), str(root))
    assert one.is_unchanged()
    view = one.view(["compile"])
    assert one.is_unchanged()
    assert one.known(view.digest) is view
    make(root, replaced("assembler", version="2"))
    assert not one.is_unchanged()
    one.forget()
    assert one.known(view.digest) is None
    assert one.view(["compile"]).digest != view.digest
    assert one.is_unchanged()


def test_a_system_that_never_holds_still_is_exit_4(root, tmp_path, monkeypatch):
    one = Distribution(str(tmp_path / "cache"), str(root))
    count = iter(range(1000))

    def changing(self: Distribution) -> list[object]:
        return [(next(count), 0, 0, 0, 0)]

    monkeypatch.setattr(Distribution, "_looks_now", changing)
    with pytest.raises(EnvironmentFault, match="while they are looked at"):
        one.view(["compile"])


def test_two_views_are_told_apart_by_their_packages(root, look, tmp_path):
    before = look(root, "compile").digest
    make(root, replaced("assembler", version="1.0-15"))
    after = look(root, "compile").digest
    found = parts.differences(str(tmp_path / "cache"), before, after)
    assert [(each.kind, each.name, each.old, each.new) for each in found] == [("package", "assembler", "1.0", "1.0-15")]


def test_a_name_that_is_unknown_has_neighbours(root, tmp_path):
    one = Distribution(str(tmp_path / "cache"), str(root))
    assert one.resolve("compiller") == ()
    assert one.nearest("compiller")[0] == "compiler"
    assert "assemble" in one.nearest("assemblr")


def test_files_that_only_root_may_read_count_for_nothing(root, look):
    secret = root / "usr/lib/compiler/one"
    before = look(root, "compile")
    secret.chmod(0o640)
    view = look(root, "compile")
    assert view.changed == ()
    assert "/usr/lib/compiler/one" in view.files
    assert view.digest == before.digest


def test_paths_that_are_not_utf_8_have_a_place_in_the_document(root, look):
    name = os.fsdecode(b"/usr/lib/compiler/\xff")
    make(root, replaced("assembler", files={"/usr/bin/assemble": "assemble"}))
    place = os.fsencode(str(root)) + os.fsencode(name)
    with open(place, "wb") as file:
        file.write(b"x")
    with open(root / "var/lib/dpkg/info/assembler.list", "ab") as file:
        file.write(os.fsencode(name) + b"\n")
    view = look(root, "compile")
    assert name in view.files
    assert "/usr/lib/compiler/\\xff" in json.loads(view.document)["files"]


def test_every_part_of_the_document_is_there_whatever_the_host(tmp_path, look):
    root = make(tmp_path / "bare", TOOLS[:1])
    document = json.loads(look(root).document)
    assert sorted(document) == ["absent", "diversions", "files", "kind", "links", "packages", "rule", "schema"]
    assert document["rule"] == visible.RULE
