"""Keys: official vectors, other tools' opinion of our files, and files that nobody should believe."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from requiem_build.core.errors import EnvironmentFault, UnknownName, UsageError
from requiem_build.store.keys import Key, Keys, Verifier, public_pem


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(str(tmp_path / "keys"))


@pytest.mark.vectors
def test_ed25519_gives_all_151_official_answers(vectors: Path) -> None:
    """Among them signatures that are malleated, cut, of a low order or with a foreign hash."""
    official = json.loads((vectors / "wycheproof" / "ed25519_test.json").read_text())
    answers = {"valid": 0, "invalid": 0}
    for group in official["testGroups"]:
        verifier = Verifier([Key("k", "k", bytes.fromhex(group["publicKey"]["pk"]))])
        for case in group["tests"]:
            held = verifier.holds("k", bytes.fromhex(case["msg"]), bytes.fromhex(case["sig"]))
            assert held == (case["result"] == "valid"), (case["tcId"], case["comment"])
            answers[case["result"]] += 1
    assert answers == {"valid": 88, "invalid": 63}


def test_a_key_is_what_openssl_says_it_is(keys: Keys, tmp_path: Path) -> None:
    key = keys.new("local")
    (tmp_path / "public.pem").write_bytes(public_pem(key))
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", tmp_path / "public.pem", "-outform", "der"],
        capture_output=True,
        check=True,
    ).stdout
    assert hashlib.sha256(der).hexdigest() == key.key_id
    private = subprocess.run(
        ["openssl", "pkey", "-in", f"{keys.directory}/own/local.pem", "-pubout"], capture_output=True, check=True
    ).stdout
    assert private == public_pem(key)


def test_a_key_made_by_openssl_signs_and_is_trusted(keys: Keys, tmp_path: Path) -> None:
    own = tmp_path / "keys/own"
    own.mkdir(parents=True, mode=0o700)
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", own / "ci.pem"], check=True)
    (own / "ci.pem").chmod(0o600)
    assert Keys(str(tmp_path / "other")).trust("ci", public_pem(keys.signer("ci"))).key_id == keys.named("ci").key_id


def test_the_private_file_is_its_owners_alone(keys: Keys) -> None:
    old = os.umask(0)
    try:
        keys.new("local")
    finally:
        os.umask(old)
    path = Path(keys.directory, "own", "local.pem")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    for mode in (0o640, 0o604, 0o644, 0o660):
        path.chmod(mode)
        with pytest.raises(UsageError, match=r"read by others|written by others"):
            keys.signer()
        with pytest.raises(UsageError):
            keys.all()


def test_a_trusted_key_that_others_may_write_is_not_believed(keys: Keys, tmp_path: Path) -> None:
    keys.trust("ci", public_pem(Keys(str(tmp_path / "ci")).new("local")))
    path = Path(keys.directory, "trusted", "ci.pem")
    path.chmod(0o666)
    with pytest.raises(UsageError, match="could be written by others"):
        keys.all()
    path.chmod(0o644)
    path.parent.chmod(0o777)
    with pytest.raises(UsageError, match="could be written by others"):
        keys.all()
    path.parent.chmod(0o755)
    assert [key.name for key in keys.all()] == ["ci"]


def test_a_link_or_a_pipe_in_a_keys_place_is_refused_and_not_waited_for(keys: Keys, tmp_path: Path) -> None:
    keys.new("local")
    path = Path(keys.directory, "own", "local.pem")
    path.rename(tmp_path / "elsewhere.pem")
    path.symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(UsageError, match="is not a key"):
        keys.all()
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(UsageError, match="is not a key"):
        keys.all()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-o", "a\nb", "x" * 65, "é"])
def test_a_name_never_leaves_the_directory(keys: Keys, name: str) -> None:
    with pytest.raises(UsageError, match="not a name"):
        keys.new(name)
    assert not Path(keys.directory).exists()


def test_other_keys_are_refused(keys: Keys, tmp_path: Path) -> None:
    for algorithm in ("ed448", "x25519", "RSA"):
        made = subprocess.run(["openssl", "genpkey", "-algorithm", algorithm], capture_output=True, check=True).stdout
        public = subprocess.run(["openssl", "pkey", "-pubout"], input=made, capture_output=True, check=True).stdout
        with pytest.raises(UsageError, match="not an Ed25519 key"):
            keys.trust("x", public)
        with pytest.raises(UsageError, match="not a public key"):
            keys.trust("x", made)
    for junk in (b"", b"\0", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        with pytest.raises(UsageError, match="not a public key"):
            keys.trust("x", junk)


def test_one_name_is_one_key(keys: Keys, tmp_path: Path) -> None:
    mine = keys.new("local")
    theirs = Keys(str(tmp_path / "other")).new("local")
    with pytest.raises(UsageError, match="already"):
        keys.trust("local", public_pem(theirs))
    with pytest.raises(UsageError, match="already"):
        keys.new("local")
    keys.trust("ci", public_pem(theirs))
    keys.trust("ci", public_pem(theirs))
    assert [(key.name, key.key_id) for key in keys.all()] == [("local", mine.key_id), ("ci", theirs.key_id)]


def test_a_revoked_key_neither_signs_nor_comes_back(keys: Keys, tmp_path: Path) -> None:
    keys.new("local")
    theirs = Keys(str(tmp_path / "other")).new("local")
    keys.trust("ci", public_pem(theirs))
    assert keys.revoke("ci") == theirs.key_id
    keys.revoke("ci")
    keys.revoke("local")
    assert all(key.revoked for key in keys.all())
    with pytest.raises(UsageError, match="is revoked"):
        keys.signer()
    unknown = Keys(str(tmp_path / "third")).new("local")
    keys.revoke(unknown.key_id)
    with pytest.raises(UsageError, match="is revoked"):
        keys.trust("third", public_pem(unknown))
    with pytest.raises(UnknownName):
        keys.revoke("nobody")


def test_keys_made_at_once_are_one_key(keys: Keys) -> None:
    found: list[str] = []

    def make() -> None:
        found.append(keys.signer().key_id)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
    assert os.listdir(f"{keys.directory}/own") == ["local.pem"]


def test_without_cryptography_it_says_what_to_install(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(EnvironmentFault) as refused:
        keys.signer()
    assert refused.value.exit_code == 4 and refused.value.hint == "pip install 'requiem-build[sign]'"
    assert not Path(keys.directory).exists()
