"""Format 1 to format 2: every object is proved, none is lost, damage is kept aside and said."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path

import jsonschema
import pytest
from project import SOURCE, Project

from requiem_build.core.digest import object_digest
from requiem_build.core.errors import Busy, EnvironmentFault, IntegrityError, UsageError
from requiem_build.store import migrate as migrating
from requiem_build.store.layout import Store
from requiem_build.store.migrate import migrate

CONTENTS = [b"", b"hello", b"old \0 bytes", os.urandom(3 << 20), *(b"small %d" % number for number in range(30))]


def put_v1(root: Path, content: bytes, name: str = "") -> Path:
    name = name or hashlib.sha256(content).hexdigest()
    path = root / "objects" / name[:2] / name[2:4] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    for content in CONTENTS:
        put_v1(tmp_path / "cas", content)
    return tmp_path / "cas"


def everything_is_there(root: Path) -> None:
    store = Store(root)
    assert list(store.objects.verify()) == []
    for content in CONTENTS:
        assert store.objects.get(object_digest(content)) == content
    names = dict(line.split() for line in (root / "v1-names").read_text().splitlines())
    assert names == {hashlib.sha256(content).hexdigest(): object_digest(content) for content in CONTENTS}
    assert not (root / "objects").exists()
    assert os.listdir(root / "v2" / "tmp") == []


def test_every_object_goes_over(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrating, "_BATCH_OBJECTS", 7)
    told = []
    done = migrate(old, lambda so_far: told.append(so_far.moved))
    assert (done.moved, done.bytes, done.aside) == (len(CONTENTS), sum(map(len, CONTENTS)), [])
    assert told == [7, 14, 21, 28, 34]
    everything_is_there(old)
    assert migrate(old).moved == 0, "there is nothing left to do"


def test_nothing_that_others_can_write_to_is_taken_over(old: Path, tmp_path: Path) -> None:
    path = put_v1(old, b"hello")
    os.link(path, tmp_path / "in a workspace")
    migrate(old)
    (tmp_path / "in a workspace").write_bytes(b"HELLO")
    everything_is_there(old)


def test_damage_is_reported_and_kept_aside(old: Path) -> None:
    bad = put_v1(old, b"these are other bytes", hashlib.sha256(b"these bytes").hexdigest())
    foreign = bad.parent / "x.tmp"
    foreign.write_bytes(b"?")
    misplaced = put_v1(old, b"hello").rename(bad.parent / hashlib.sha256(b"hello").hexdigest())
    put_v1(old, b"hello")
    (old / "objects" / "note").write_bytes(b"")
    linked = put_v1(old, b"linked")
    linked.unlink()
    linked.symlink_to("/etc/passwd")
    done = migrate(old)
    assert {one.path for one in done.aside} == {
        str(path.relative_to(old)) for path in (bad, foreign, misplaced, linked, old / "objects" / "note")
    }
    kept = next(one for one in done.aside if one.path.endswith(bad.name))
    assert (old / kept.kept).read_bytes() == b"these are other bytes"
    assert kept.reason == "its bytes do not give its name"
    everything_is_there(old)


def test_a_half_migrated_store_is_not_opened_and_goes_on(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_v1(old, b"bad", "00" * 32)
    monkeypatch.setattr(migrating, "_BATCH_OBJECTS", 5)

    class Died(Exception):
        pass

    def die(so_far: object) -> None:
        raise Died

    with pytest.raises(Died):
        migrate(old, die)
    with pytest.raises(IntegrityError, match="older format"):
        Store(old)
    with open(old / "v1-names", "ab") as file:
        file.write(b"0123 torn")
    done = migrate(old)
    assert done.moved == len(CONTENTS) - 5
    assert (done.aside, len(done.earlier)) == ([], 1), "what the first one set aside is said again"
    everything_is_there(old)


def test_one_process_at_a_time(old: Path) -> None:
    held = os.open(old, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(Busy):
        migrate(old)
    os.close(held)
    migrate(old)


def test_an_object_that_is_written_to_meanwhile_stops_it(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put_v1(old, b"changing")
    real = migrating._sha256

    def meddle(descriptor: int) -> str:
        found = real(descriptor)
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            path.write_bytes(b"CHANGING")
        return found

    monkeypatch.setattr(migrating, "_sha256", meddle)
    with pytest.raises(EnvironmentFault, match="being written"):
        migrate(old)
    assert path.read_bytes() == b"CHANGING"


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "x"
    with pytest.raises(UsageError):
        migrate(place)
    place.mkdir()
    with pytest.raises(UsageError):
        migrate(place)
    (place / "mine").touch()
    with pytest.raises(UsageError):
        migrate(place)
    store = Store(tmp_path / "newer")
    (store.root / "requiem-store").unlink()
    (store.root / "requiem-store").write_text('{"format":3,"hash":"blake3-256"}')
    with pytest.raises(IntegrityError, match="newer"):
        migrate(store.root)


def test_the_session_of_a_user(project: Project) -> None:
    project.manifest("")
    cas = project.root / ".cas"
    for content in CONTENTS:
        put_v1(cas, content)
    put_v1(cas, b"bad", "ab" * 32)
    refused = project.refuse("cas", "ls", expect=3)
    assert "hint: requiem cas migrate" in refused.err
    ran = project.run("cas", "migrate", "--json")
    assert ran.code == 3, ran.err
    jsonschema.validate(ran.report, json.loads((Path(SOURCE) / "schemas/cas-migrate.schema.json").read_text()))
    assert ran.report["moved"] == len(CONTENTS)
    assert [one["path"] for one in ran.report["damaged"]] == [f"objects/ab/ab/{'ab' * 32}"]
    assert project.run("cas", "get", object_digest(b"hello")).out == "hello"
    assert project.run("cas", "verify").code == 0
    assert project.run("cas", "migrate").code == 0
    everything_is_there(cas)
