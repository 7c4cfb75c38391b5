"""What a machine found out by running steps again, carried to another one by its signature; and forgeries of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from pathlib import Path

import pytest
from person import MANIFEST, Person

from requiem_build.core import canonical
from requiem_build.core.fields import replace
from requiem_build.core.seal import parse_envelope
from requiem_build.core.verdict import parse_verdict
from requiem_build.store.layout import Store
from requiem_build.store.verdicts import verdict_in

pytestmark = pytest.mark.userns

BELOW = 'record is below the level "reproduced" that you ask for'

REFILE = """
import sys
from requiem_build.core.fields import replace
from pathlib import Path
from requiem_build.store.keys import Keys, Verifier
from requiem_build.store.layout import Store
from requiem_build.store.seals import seal
from requiem_build.core.request import parse_request
store, key = Store(Path(sys.argv[1])), Keys(sys.argv[2]).signer()
scope = store.signed_records(key.key_id)
for kept in list(scope):
    record = seal(replace(kept.record, asserted=(), signatures=()), key)
    scope.set_aside(record.request_digest)
    scope.publish(parse_request(kept.request), kept.result, record)
"""
"""Files what a key signed anew, as a build signs it whose system is taken from packages: with nothing on trust."""


def builds(person: Person) -> None:
    """Builds, and signs that nothing was taken on trust."""
    person.configure('[trust]\nsign = true\naccept = ["local"]\n')
    person.hello()
    refiled = person.run("-c", REFILE, str(person.shared), str(keys(person)), program=(sys.executable,))
    assert refiled.code == 0, refiled.err


def keys(person: Person) -> Path:
    return person.root.parent / "home/config/requiem/keys"


def asks(person: Person, text: str) -> tuple[str, str]:
    """What a build takes under a policy, the workspace's own memory aside."""
    person.configure(f"[trust]\n{text}\n")
    person.forget()
    return person.hello()


@pytest.fixture
def ci(tmp_path: Path) -> Person:
    person = Person(tmp_path, "ci")
    builds(person)
    return person


@pytest.fixture
def laptop(tmp_path: Path, ci: Person) -> Person:
    person = Person(tmp_path, "laptop")
    person.trusts(ci)
    return person


REPRODUCED = 'accept = ["ci"]\nmin_level = "reproduced"'


def word(person: Person) -> Path:
    """The file of the person's signed verdict."""
    key_id = json.loads(person.run("keys", "list", "--json").out)["keys"][0]["id"]
    (path,) = (person.shared / "verdicts/signed" / key_id).glob("*/*")
    return path


def reproduce(person: Person, expect: int = 0) -> None:
    ran = person.run("reproduce", "--json")
    assert ran.code == expect, ran.out + ran.err


def test_a_record_is_taken_once_its_builder_signed_that_it_reproduces(ci: Person, laptop: Person) -> None:
    assert asks(laptop, 'accept = ["ci"]\nmin_level = "confined"') == ("hit", "restored from the store")
    assert asks(laptop, REPRODUCED) == ("ran", BELOW)
    reproduce(ci)
    assert asks(laptop, REPRODUCED) == ("hit", "restored from the store")
    laptop.run("keys", "revoke", "ci")
    assert asks(laptop, REPRODUCED)[0] == "ran"


def test_what_was_not_signed_is_nobodys_word(ci: Person, laptop: Person) -> None:
    """Whoever can write the store can write verdicts into it."""
    ci.configure('[trust]\naccept = ["local"]\n')
    reproduce(ci)
    assert list((ci.shared / "verdicts").glob("*/*")) and not (ci.shared / "verdicts/signed").exists()
    assert asks(laptop, REPRODUCED) == ("ran", BELOW)


def test_nobody_signs_on_what_stands_in_the_store(ci: Person) -> None:
    """A key vouches for runs of its own, and not for those that an unsigned verdict tells of."""
    ci.configure('[trust]\naccept = ["local"]\n')
    reproduce(ci)
    (path,) = (ci.shared / "verdicts").glob("??/*")
    path.chmod(0o644)
    told = parse_verdict(path.read_bytes())
    path.write_bytes(replace(told, agreed={**told.agreed, "elsewhere": 99}).encoded)
    ci.configure("[trust]\nsign = true\n")
    ci.forget()
    ci.hello()
    reproduce(ci)
    envelope = parse_envelope(canonical.parse(word(ci).read_bytes()))
    said = verdict_in(envelope)
    assert said is not None and said.agreed and "elsewhere" not in said.agreed


def test_every_changed_byte_makes_it_nobodys_word(ci: Person, laptop: Person) -> None:
    reproduce(ci)
    path = word(ci)
    content = path.read_bytes()
    program = """
import sys
from pathlib import Path
from requiem_build.core.digest import Digest
from requiem_build.store.keys import Keys, Verifier
from requiem_build.store.layout import Store
from requiem_build.store.verdicts import Verdicts, verdict_in
path, verifier = Path(sys.argv[2]), Verifier(Keys(sys.argv[3]).all())
verdicts = Verdicts(Store(Path(sys.argv[1])))
content, key_id = path.read_bytes(), path.parent.parent.name
path.chmod(0o644)
result = verdict_in(verdicts.envelope(key_id, Digest(path.name))).result_digest
said = lambda: verdicts.signed_by([key_id], Digest(path.name), result, verifier)
assert said()[key_id].agreed
for at in range(len(content)):
    for mask in (1, 128):
        path.write_bytes(content[:at] + bytes([content[at] ^ mask]) + content[at + 1:])
        if said():
            print("believed with byte", at, "changed", content[at - 20:at + 20], file=sys.stderr)
            sys.exit(1)
path.write_bytes(content)
"""
    ran = laptop.run("-c", program, str(ci.shared), str(path), str(keys(laptop)), program=(sys.executable,))
    assert ran.code == 0, ran.err
    at = random.randrange(len(content))
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert asks(laptop, REPRODUCED) == ("ran", BELOW)


def test_nor_is_what_others_put_into_its_place(ci: Person, laptop: Person, tmp_path: Path) -> None:
    mallory = Person(tmp_path, "mallory")
    mallory.configure("[trust]\nsign = true\n")
    mallory.hello()
    reproduce(ci)
    path = word(ci)
    genuine = json.loads(path.read_bytes())
    reproduce(mallory)
    forged = word(mallory).read_bytes()
    signatures = [{**genuine["signatures"][0], "keyid": json.loads(forged)["signatures"][0]["keyid"]}]
    other = {**genuine, "payloadType": "application/vnd.requiem.record.v1+json"}
    record = next((ci.shared / "records/signed" / path.parent.parent.name).glob("??/*"))
    envelope = json.loads(record.read_bytes())["record"]["signatures"][0]
    path.chmod(0o644)

    def spelled(value: object) -> bytes:
        """As Requiem writes it: nothing is refused for its spelling."""
        return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()

    assert spelled(genuine) == path.read_bytes(), "the control"
    for content in (
        forged,
        spelled({**json.loads(forged), "signatures": genuine["signatures"]}),
        spelled(other),
        spelled(envelope),
        spelled({**genuine, "signatures": []}),
        spelled({**genuine, "signatures": signatures}),
        b"",
        b"[" * 100_000,
    ):
        path.write_bytes(content)
        assert asks(laptop, REPRODUCED) == ("ran", BELOW), content[:80]
    os.unlink(path)
    path.symlink_to("/etc/passwd")
    assert asks(laptop, REPRODUCED) == ("ran", BELOW)


def test_one_key_that_saw_it_come_out_otherwise_takes_it_back(tmp_path: Path) -> None:
    ci, laptop = Person(tmp_path, "ci"), Person(tmp_path, "laptop")
    for person in (ci, laptop):
        person.manifest(MANIFEST.replace("cat a.txt > b.txt", "head -c 9 /dev/urandom > b.txt"))
    builds(ci)
    laptop.trusts(ci)
    reproduce(ci, expect=3)
    assert asks(laptop, REPRODUCED) == ("ran", 'record came out otherwise when "ci" ran it again')


def test_elsewhere_is_a_record_of_one_key_and_the_word_of_another(ci: Person, laptop: Person, tmp_path: Path) -> None:
    second = Person(tmp_path, "second")
    second.trusts(ci)
    laptop.trusts(second)
    elsewhere = 'accept = ["ci", "second"]\nmin_level = "reproduced-elsewhere"'
    assert asks(laptop, elsewhere) == ("ran", "record is signed by 1 of the 2 keys that you ask for")
    reproduce(ci)
    assert asks(laptop, elsewhere)[0] == "ran", "one key twice is one"
    second.configure('[trust]\nsign = true\naccept = ["ci"]\n')
    assert second.hello()[0] == "hit"
    reproduce(second)
    assert asks(laptop, elsewhere)[0] == "hit"


def test_a_level_that_a_step_requires_can_be_earned_by_those_who_are_trusted(
    ci: Person, laptop: Person, tmp_path: Path
) -> None:
    for person in (ci, laptop):
        person.manifest(MANIFEST + '    require = "reproduced"\n')
    laptop.configure('[trust]\naccept = ["ci"]\n')
    ran = laptop.build(expect=6)
    assert ran.report["warnings"] == ['step "hello" must be reproduced, and is confined']
    reproduce(ci)
    laptop.forget()
    assert laptop.build().report["ok"]
    laptop.manifest(MANIFEST + '    require = "reproduced-elsewhere"\n')
    laptop.build(expect=6)
    second = Person(tmp_path, "second")
    builds(second)
    laptop.trusts(second)
    laptop.configure('[trust]\naccept = ["ci", "second"]\n')
    assert laptop.build().report["ok"], "two builders who agree"
    second.run("keys", "revoke", "local")
    laptop.run("keys", "revoke", "second")
    laptop.build(expect=6)


# Collection and use


def aged(paths: list[Path]) -> None:
    """As if nobody had used them for forty days."""
    old = time.time() - 40 * 86400
    for path in paths:
        os.utime(path, (old, old))


def files(below: Path, pattern: str) -> list[Path]:
    return [path for path in below.glob(pattern) if path.is_file()]


def test_a_verdict_lives_as_long_as_any_writers_record(ci: Person, laptop: Person) -> None:
    reproduce(ci)
    plain, signed = files(ci.shared / "records", "??/*"), files(ci.shared / "records/signed", "*/??/*")
    aged(plain)
    assert laptop.run("cas", "gc", "--max-age", "720h").code == 0
    assert not any(path.exists() for path in plain) and all(path.exists() for path in signed)
    assert asks(laptop, REPRODUCED)[0] == "hit"
    aged(files(ci.shared / "records", "??/*") + signed)
    assert laptop.run("cas", "gc", "--max-age", "720h").code == 0
    assert not any(path.exists() for path in signed)
    assert [path for path in (ci.shared / "verdicts").rglob("*") if path.is_file()] == []


def test_what_is_only_ever_fresh_is_used_in_every_scope_that_may_answer(ci: Person, laptop: Person) -> None:
    laptop.configure('[trust]\naccept = ["ci"]\n')
    laptop.build()
    records = files(ci.shared / "records", "??/*") + files(ci.shared / "records/signed", "*/??/*")
    aged(records)
    (laptop.root / ".requiem/used").unlink(missing_ok=True)
    assert laptop.build().counts == {"fresh": 1}
    assert [path for path in records if time.time() - path.stat().st_mtime > 86400] == []


ODD = [
    b"[]",
    b"3",
    b'{"event":"step_finished","state":"ran","name":["hello"],"request_digest":"a","result_digest":"b"}',
    b'{"event":"step_finished","state":"ran","name":"hello","request_digest":"../../x","result_digest":"b"}',
    b'{"event":"step_finished","state":"ran","name":"hello","request_digest":null,"result_digest":null}',
    b'{"event":"step_finished","state":["ran"],"name":"hello","request_digest":5,"result_digest":[]}',
    b'{"event":"step_finished","name":"hello"}',
]


@pytest.mark.parametrize("line", ODD, ids=range(len(ODD)))
def test_a_line_that_no_journal_holds_is_passed_by(ci: Person, line: bytes) -> None:
    """Whoever can write the store can add a run with such a journal."""
    store = Store(ci.shared)
    last = list(store.runs)[-1]
    journal = store.objects.put(store.objects.get(last.journal) + line + b"\n")
    told = {name: getattr(last, name) for name in ("counts", "exit_code", "ok", "when", "workspace")}
    store.runs.add("20991231T235959Z-00000abcd", journal, told)
    shutil.rmtree(ci.root / ".requiem")
    for words in (("log", "hello"), ("attest",), ("sbom",), ("reproduce", "--runs", "1"), ("why", "hello")):
        ran = ci.run(*words)
        assert ran.code == 0, f"{words}: {ran.code}\n{ran.out}{ran.err}"


def test_an_answer_is_one_document_also_where_a_step_cannot_be_run_again(ci: Person) -> None:
    ci.write("requiem.toml", ci.read("requiem.toml") + '[steps.new]\ncommand = "true"\n')
    ran = ci.run("reproduce", "new", "--json")
    assert ran.code == 4 and json.loads(ran.out)["ok"] is False
    assert '"new" was not run again' in ran.err
