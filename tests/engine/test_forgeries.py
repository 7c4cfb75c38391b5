"""What a hostile writer of stores, bundles, envelopes and key files tries: each refused with its exit code, in words."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from person import Person

from requiem_build.store.bundle import header

pytestmark = pytest.mark.userns


@pytest.fixture
def ci(tmp_path: Path) -> Person:
    person = Person(tmp_path, "ci")
    person.configure("[trust]\nsign = true\n")
    person.hello()
    return person


def ring(person: Person) -> Path:
    return person.root.parent / "home/config/requiem/keys"


def refused(person: Person, *words: str, expect: int, says: str = "") -> str:
    """Refused with a code, an error line and no bug, in a moment."""
    ran = person.run(*words, timeout_s=60)
    assert ran.code == expect, f"{words}: exit {ran.code}\n{ran.out}{ran.err}"
    assert ran.err.startswith("error: ") or ran.out, ran.err
    assert "Traceback" not in ran.err and "a bug" not in ran.err, ran.err
    assert says in ran.out + ran.err, ran.out + ran.err
    return ran.err


def test_a_private_key_that_is_not_ones_own_alone_is_not_used(ci: Person, tmp_path: Path) -> None:
    path = ring(ci) / "own/local.pem"
    kept = tmp_path / "kept.pem"
    shutil.move(path, kept)

    def attempt(make: Callable[[], object], says: str) -> None:
        make()
        for words in (("build", "--cache", "wo"), ("attest",), ("pack", "-o", "run.tar")):
            refused(ci, *words, expect=2, says=says)
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def readable() -> None:
        shutil.copy(kept, path)
        path.chmod(0o644)

    attempt(readable, "can be read by others")
    attempt(lambda: path.symlink_to(kept), "it is a symlink")
    attempt(lambda: path.symlink_to("/nonexistent"), "it is a symlink")
    attempt(lambda: os.mkfifo(path), "it is a FIFO")
    attempt(path.mkdir, "it is a directory")
    attempt(lambda: path.write_bytes(os.urandom(100_000)), "at most")
    shutil.copy(kept, path)
    path.chmod(0o600)
    (ring(ci) / "own").chmod(0o777)
    refused(ci, "attest", expect=2, says="could be written by others")


def test_one_key_under_two_names_is_one(ci: Person) -> None:
    pem = str(ci.key())
    for name in ("a", "b"):
        assert ci.run("keys", "trust", name, pem).code == 0
    for accept in ('["a", "b"]', '["a", "local"]'):
        ci.configure(f"[trust]\naccept = {accept}\nthreshold = 2\n")
        refused(ci, "build", expect=2, says="asks for 2 distinct keys and accepts 1")
    key_id = json.loads(ci.run("keys", "list", "--json").out)["keys"][0]["id"]
    ci.configure(f'[trust]\naccept = ["a", "{key_id}"]\nthreshold = 2\n')
    refused(ci, "build", expect=2, says="accepts 1")


def test_an_attestation_that_is_bent_is_refused(ci: Person) -> None:
    assert ci.run("attest", "-o", "good.json").code == 0
    ci.run("keys", "trust", "ci", str(ci.key()))
    assert ci.run("attest", "--verify", "good.json").code == 0
    good = json.loads(ci.read("good.json"))
    statement = json.loads(base64.b64decode(good["payload"]))

    def payload(value: Any) -> dict[str, Any]:
        return {**good, "payload": base64.b64encode(json.dumps(value).encode()).decode()}

    outside = {**statement, "subject": [{**statement["subject"][0], "name": "../../../etc/passwd"}]}
    forged: list[Any] = [
        {**good, "payloadType": "application/vnd.requiem.record.v1+json"},
        {**good, "signatures": []},
        {**good, "signatures": good["signatures"] * 1000},
        {**good, "more": 1},
        payload({"a": 1}),
        payload(outside),
        payload({**statement, "predicateType": "https://example.org/other"}),
        [good],
        None,
    ]
    for value in forged:
        ci.write("bad.json", json.dumps(value))
        refused(ci, "attest", "--verify", "bad.json", expect=3)
    for content in (b"", b"\xff\xfe", b"[" * 200_000, b'{"payload":1}', b"0" * 1_000_000):
        ci.write("bad.json", content)
        refused(ci, "attest", "--verify", "bad.json", expect=3)
    os.mkfifo(ci.root / "pipe")
    for name in ("pipe", ".", "/dev/zero"):
        refused(ci, "attest", "--verify", name, expect=2, says="is not a file")
        refused(ci, "keys", "trust", "other", name, expect=2)


def tar_of(*members: tuple[str, bytes, bytes]) -> bytes:
    """An ordinary tar: (name, kind, content or link) each."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, kind, content in members:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            if kind == tarfile.REGTYPE:
                entry.size = len(content)
            else:
                entry.linkname = content.decode()
            tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def test_a_bundle_that_reaches_out_or_swells_is_refused(ci: Person) -> None:
    outside = ci.root.parent / "escaped"
    assert ci.run("pack", "-o", "good.tar").code == 0
    good = (ci.root / "good.tar").read_bytes()
    file, link, hard = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
    bundles = [
        tar_of(("../escaped", file, b"x")),
        tar_of((str(outside), file, b"x")),
        tar_of(("bundle.json", link, b"/etc/passwd")),
        tar_of(("bundle.json", file, b"{}"), ("objects/../../escaped", file, b"x")),
        tar_of(("objects", link, str(outside.parent).encode()), ("objects/escaped", file, b"x")),
        tar_of(("bundle.json", hard, b"seal.json")),
        header("bundle.json", 2**60),
        header("bundle.json", 60_000_000) + bytes(1000),
        header("bundle.json", 100) + b"[" * 100 + bytes(412),
        good + good,
        good[:-512],
        good.replace(b'"run":"', b'"run":"../', 1),
        b"\x1f\x8b" + bytes(100),
        bytes(10_240),
    ]
    for content in bundles:
        ci.write("bad.tar", content)
        for command in ("replay", "unpack"):
            ran = ci.run(command, "bad.tar")
            assert ran.code in (2, 3), f"{content[:60]!r}: {command} exit {ran.code}\n{ran.out}{ran.err}"
            assert "Traceback" not in ran.err and "a bug" not in ran.err, ran.err
    assert not outside.exists()


def test_whatever_lies_in_a_scopes_place_is_passed_by_or_told(ci: Person) -> None:
    """Whoever can write the store can put anything there; it answers nobody, and nobody waits for it."""
    store = ci.shared
    signed, verdicts = store / "records/signed", store / "verdicts/signed"
    (signed / "x").mkdir()
    (signed / "file").write_text("x")
    (signed / "link").symlink_to("/etc")
    os.mkfifo(signed / "pipe")
    (verdicts / "zzz/ab").mkdir(parents=True)
    (verdicts / "zzz/ab/cd").write_text("bad")
    (verdicts / ("0" * 64)).symlink_to("/etc")
    (store / "verdicts/aa").symlink_to("/etc/passwd")
    os.mkfifo(store / "verdicts/bb")
    for words, codes in (
        (("replay",), (0,)),
        (("build", "--json"), (0,)),
        (("cas", "verify"), (3,)),
        (("cas", "stats"), (0,)),
        (("cas", "gc"), (0,)),
        (("pack", "-o", "run.tar"), (0,)),
        (("reproduce",), (0,)),
        (("show", "signatures", "hello"), (0,)),
        (("cas", "verify", "--repair"), (3,)),
        (("cas", "verify"), (0,)),
    ):
        ran = ci.run(*words)
        assert ran.code in codes, f"{words}: {ran.code}\n{ran.out}{ran.err}"
        assert "Traceback" not in ran.err and "a bug" not in ran.err, ran.err
    assert Path("/etc/passwd").exists()
