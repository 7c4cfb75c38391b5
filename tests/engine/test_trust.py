"""Whose answers a build takes: signing writers, readers with a policy, and everybody who would like to be believed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from person import MANIFEST, Person
from project import Ran

pytestmark = pytest.mark.userns


@pytest.fixture
def ci(tmp_path: Path) -> Person:
    person = Person(tmp_path, "ci")
    person.configure("[trust]\nsign = true\n")
    return person


@pytest.fixture
def laptop(tmp_path: Path, ci: Person) -> Person:
    ci.run("keys", "new")
    person = Person(tmp_path, "laptop")
    person.trusts(ci)
    person.configure('[trust]\naccept = ["ci"]\n')
    return person


@pytest.fixture
def stranger(tmp_path: Path) -> Person:
    return Person(tmp_path, "stranger")


UNTRUSTED = "record is signed by nobody you trust"


def test_a_laptop_takes_only_what_its_ci_signed(ci: Person, laptop: Person, stranger: Person) -> None:
    assert stranger.hello()[0] == "ran"
    assert laptop.hello() == ("ran", UNTRUSTED)
    assert ci.hello()[0] == "hit"
    ci.forget()
    assert ci.hello("--cache", "wo")[0] == "ran"
    laptop.forget()
    assert laptop.hello() == ("hit", "restored from the store")
    assert laptop.read("b.txt") == "hello\n"


def test_a_poisoned_record_reaches_nobody_who_asks_for_signatures(
    ci: Person, laptop: Person, stranger: Person, tmp_path: Path
) -> None:
    """The record of the request itself is exchanged for one that says something else, whole in all its digests."""
    stranger.hello()
    poison = Person(tmp_path / "elsewhere", "poison")
    poison.write("a.txt", "hello\n")
    poison.hello()
    lie = _record_with_another_output(poison, stranger)
    assert lie != "hello\n"
    stranger.forget()
    assert stranger.hello()[0] == "hit" and stranger.read("b.txt") == lie  # The control: he has no policy.
    assert laptop.hello() == ("ran", UNTRUSTED)
    assert laptop.read("b.txt") == "hello\n"
    ci.configure('[trust]\nsign = true\naccept = ["local"]\n')
    assert ci.hello() == ("ran", UNTRUSTED)
    laptop.forget()
    assert laptop.hello()[0] == "hit" and laptop.read("b.txt") == "hello\n"
    for person in (ci, laptop):  # Their journals name the signed record, not everybody's.
        assert person.run("replay").code == 0


def _record_with_another_output(poison: Person, victim: Person) -> str:
    """Files, in the shared store, a well-made record of the victim's request whose output is another."""
    program = """
import sys
from pathlib import Path
from typing import Any
from dataclasses import replace
from requiem_build.core.digest import Digest
from requiem_build.core.entries import File
from requiem_build.core.request import parse_request
from requiem_build.core.result import make_result
from requiem_build.store.layout import Store
store = Store(Path(sys.argv[1]))
for kept in list(store.records):
    request = parse_request(kept.request)
    digest = store.objects.put(b"poison")
    result = make_result(request, exit_code=0, termination="exited", stdout=kept.result.stdout,
                         stderr=kept.result.stderr, outputs={"b.txt": File(digest, 6)})
    store.records.set_aside(request.digest)
    store.records.publish(request, result, replace(kept.record, result_digest=result.digest))
"""
    ran = victim.run("-c", program, str(victim.shared), program=(sys.executable,))
    assert ran.code == 0, ran.err
    return "poison"


def test_what_was_accepted_under_another_policy_is_asked_again(ci: Person, laptop: Person, stranger: Person) -> None:
    stranger.hello()
    laptop.configure("")
    assert laptop.hello()[0] == "hit"
    assert laptop.hello()[0] == "fresh"
    laptop.configure('[trust]\naccept = ["ci"]\n')
    assert laptop.hello() == ("ran", UNTRUSTED)
    assert laptop.hello()[0] == "fresh"  # It was run here, under this policy.
    assert laptop.run("build").err.startswith("nothing to do")


def test_nothing_to_do_rests_on_the_keys_too(ci: Person, laptop: Person) -> None:
    ci.hello()
    assert laptop.hello()[0] == "hit"
    assert laptop.run("build").err.startswith("nothing to do")
    assert laptop.run("keys", "revoke", "ci").code == 0
    again = laptop.run("keys", "trust", "ci", str(ci.key()))
    assert again.code == 2 and "is revoked" in again.err, "never trusted again"
    plain = laptop.run("build")
    assert plain.code == 0 and "nothing to do" not in plain.err
    laptop.forget()
    assert laptop.hello() == ("ran", 'record is signed by the revoked key "ci"')


def test_a_prediction_asks_the_same_question(ci: Person, laptop: Person, stranger: Person) -> None:
    stranger.hello()
    assert laptop.hello("-n") == ("miss", UNTRUSTED)
    ci.configure('[trust]\nsign = true\naccept = ["local"]\n')
    assert ci.hello()[0] == "ran"
    assert laptop.hello("-n") == ("hit", "in the store")


def test_the_threshold_counts_distinct_keys(ci: Person, laptop: Person, tmp_path: Path) -> None:
    second = Person(tmp_path, "second")
    second.configure('[trust]\nsign = true\naccept = ["local"]\n')
    laptop.trusts(second)
    laptop.configure('[trust]\naccept = ["ci", "second"]\nthreshold = 2\n')
    ci.hello()
    assert laptop.hello() == ("ran", "record is signed by 1 of the 2 keys that you ask for")
    second.hello()
    laptop.forget()
    assert laptop.hello()[0] == "hit"


def test_a_level_is_asked_of_what_was_signed(ci: Person, laptop: Person) -> None:
    """The whole system was taken on trust, and the record says so: it confines nothing."""
    laptop.configure('[trust]\naccept = ["ci"]\nmin_level = "confined"\n')
    ci.manifest(MANIFEST.replace("command", 'system = "host"\n    command'))
    laptop.manifest(MANIFEST.replace("command", 'system = "host"\n    command'))
    ci.hello()
    assert laptop.hello() == ("ran", 'record is below the level "confined" that you ask for')


def test_discovered_inputs_are_found_by_signed_path_sets(ci: Person, laptop: Person, stranger: Person) -> None:
    for person in (ci, laptop, stranger):
        person.manifest("""
            [steps.hello]
            command = "cat include/a.h > b.txt; echo 'b.txt: include/a.h' > b.d"
            discover = ["include/*.h"]
            depfile = "b.d"
            outputs = ["b.txt"]
        """)
        person.write("include/a.h", "a\n")
        person.write("include/b.h", "b\n")
    stranger.hello()
    assert laptop.hello() == ("ran", UNTRUSTED)
    ci.configure('[trust]\nsign = true\naccept = ["local"]\n')
    assert ci.hello()[0] == "ran"
    laptop.forget()
    assert laptop.hello()[0] == "hit"


def test_records_show_their_signatures_and_what_they_are_worth(ci: Person, laptop: Person, stranger: Person) -> None:
    digest = ci.build().step("hello")["request_digest"]

    def told(person: Person) -> tuple[str, str]:
        exact, seen = person.run("show", "record", digest), person.run("show", "signatures", digest)
        assert json.loads(exact.out)["request_digest"] == digest
        return exact.err.strip(), json.loads(seen.out)["signatures"][0]["state"]

    key_id = json.loads(ci.run("keys", "list", "--json").out)["keys"][0]["id"]
    assert told(laptop) == (f"signed by ci ({key_id[:16]}): valid", "valid")
    assert told(stranger) == (f"signed by {key_id[:16]}: unknown key", "unknown key")
    laptop.run("keys", "revoke", "ci")
    assert told(laptop) == (f"signed by ci ({key_id[:16]}): revoked", "revoked")


def test_the_journal_holds_the_signed_record(ci: Person) -> None:
    ci.build()
    run = json.loads(next((ci.shared / "runs").iterdir()).read_text())
    lines = ci.run("cas", "get", run["journal"]).out.splitlines()
    records = [json.loads(line)["record"] for line in lines if '"step_finished"' in line]
    assert len(records[0]["signatures"]) == 1


def test_nothing_is_signed_unless_it_was_asked_for(stranger: Person) -> None:
    digest = stranger.build().step("hello")["request_digest"]
    assert json.loads(stranger.run("show", "record", digest).out)["signatures"] == []
    assert not (stranger.home / "config").exists()


# Where trust may come from


def test_a_manifest_with_trust_is_refused(laptop: Person) -> None:
    laptop.write("requiem.toml", '[project]\nname = "x"\n[trust]\naccept = ["mallory"]\n')
    refused = laptop.refuse("build")
    assert "a manifest does not say whom to trust: whoever can change it could then forge results" in refused.err
    laptop.write("sub/requiem.toml", '[project]\nname = "y"\n[trust]\nsign = true\n')
    laptop.write("requiem.toml", '[project]\nname = "x"\ninclude = ["sub"]\n')
    assert "does not say whom to trust" in laptop.refuse("build").err


def test_the_workspace_can_only_tighten(ci: Person, laptop: Person, tmp_path: Path) -> None:
    second = Person(tmp_path, "second")
    second.run("keys", "new")
    laptop.trusts(second)
    ci.hello()
    laptop.configure('[trust]\naccept = ["ci", "second"]\n')
    laptop.write("requiem.local.toml", '[trust]\naccept = ["second"]\n')
    assert laptop.hello() == ("ran", UNTRUSTED)
    laptop.forget()
    laptop.configure('[trust]\naccept = ["second"]\n')
    laptop.write("requiem.local.toml", '[trust]\naccept = ["ci", "second"]\nthreshold = 1\n')
    assert laptop.hello() == ("ran", UNTRUSTED)
    laptop.write("requiem.local.toml", '[trust]\naccept = ["ci"]\n')
    assert "accepts 0" in laptop.refuse("build").err
    laptop.write("requiem.local.toml", "[trust]\nsign = true\n")
    assert "does not say who signs" in laptop.refuse("build").err


def test_requiem_local_toml_alone_makes_a_policy(laptop: Person, stranger: Person) -> None:
    stranger.hello()
    laptop.configure("")
    laptop.write("requiem.local.toml", '[trust]\naccept = ["ci"]\n')
    assert laptop.hello() == ("ran", UNTRUSTED)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("accept = []", "nobody could ever be trusted"),
        ('accept = "ci"', "not a list of names"),
        ('accept = ["nobody"]', 'no key "nobody"'),
        ('accept = ["ci"]\nthreshold = 0', "not a number of keys"),
        ('accept = ["ci"]\nthreshold = -1', "not a number of keys"),
        ('accept = ["ci"]\nthreshold = true', "not a number of keys"),
        ('accept = ["ci", "ci"]\nthreshold = 2', "asks for 2 distinct keys and accepts 1"),
        ('accept = ["ci"]\nmin_level = "perfect"', "is none of"),
        ('accept = ["ci"]\nmin_level = "reproduced-elsewhere"', "asks for 2 distinct keys and accepts 1"),
        ("threshold = 2", "accepts no key"),
        ('sign = "nobody"', 'no key "nobody" of your own'),
        ("sign = 1", "neither true, false nor the name"),
        ("acept = []", "unknown key"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused(laptop: Person, text: str, said: str) -> None:
    laptop.configure(f"[trust]\n{text}\n")
    refused = laptop.refuse("build")
    assert said in refused.err, refused.err


def test_without_cryptography_trust_that_is_required_is_an_error(laptop: Person, stranger: Person) -> None:
    hidden = laptop.base / "hidden/cryptography/__init__.py"
    hidden.parent.mkdir(parents=True)
    hidden.write_text("raise ImportError('not here')\n")
    path = f"{hidden.parent.parent}:{laptop.environment()['PYTHONPATH']}"

    def refused(person: Person, *words: str) -> Ran:
        return person.refuse(*words, expect=4, env={"PYTHONPATH": path})

    assert "pip install 'requiem-build[sign]'" in refused(laptop, "build").err
    assert "pip install 'requiem-build[sign]'" in refused(laptop, "keys", "new").err
    stranger.configure("[trust]\nsign = true\n")
    assert "pip install 'requiem-build[sign]'" in refused(stranger, "build").err
    stranger.configure("")
    assert stranger.run("build", env={"PYTHONPATH": path}).code == 0


# Keys on the command line


def test_keys_are_made_listed_exported_trusted_and_revoked(ci: Person, laptop: Person) -> None:
    rows = json.loads(laptop.run("keys", "list", "--json").out)["keys"]
    assert [(row["name"], row["kind"], row["revoked"]) for row in rows] == [("ci", "trusted", False)]
    made = json.loads(laptop.run("keys", "new", "mine", "--json").out)["key"]
    assert made["kind"] == "own" and (laptop.home / "config/requiem/keys/own/mine.pem").stat().st_mode & 0o777 == 0o600
    assert laptop.run("keys", "export", "mine").out.startswith("-----BEGIN PUBLIC KEY-----")
    assert "PRIVATE" not in laptop.run("keys", "export", "mine").out
    assert laptop.run("keys", "revoke", made["id"]).out.strip() == made["id"]
    assert f"mine             revoked  {made['id']}" in laptop.run("keys").out
    assert "already" in laptop.refuse("keys", "new", "mine").err
    assert re.search("known: +mine, ci", laptop.refuse("keys", "export", "nobody").err)


def test_a_private_key_that_others_can_read_is_refused(ci: Person) -> None:
    ci.build()
    (ci.home / "config/requiem/keys/own/local.pem").chmod(0o644)
    refused = ci.refuse("build", "--cache", "wo")
    assert "can be read by others: it is not used" in refused.err and "chmod 600" in refused.err


def test_doctor_says_who_signs_and_whom_is_trusted(ci: Person, laptop: Person, stranger: Person) -> None:
    def told(person: Person) -> tuple[str, dict[str, Any]]:
        return person.run("doctor").out, json.loads(person.run("doctor", "--json").out)["signing"]

    text, document = told(stranger)
    assert "off: no [trust] sign in" in text and '"local" is made on first use' in text
    assert "none: any record in the store answers" in text
    assert document["keys"] == [] and document["signs_with"] is None and document["accept"] is None
    assert not (stranger.root.parent / "home/config/requiem/keys").exists(), "asking makes no key"
    text, document = told(ci)
    key = json.loads(ci.run("keys", "list", "--json").out)["keys"][0]
    assert f"on, with the key local ({key['id'][:16]})" in text and document["signs_with"] == "local"
    laptop.configure('[trust]\naccept = ["ci"]\nmin_level = "reproduced"\n')
    text, document = told(laptop)
    assert "records signed by 1 of: ci, at level reproduced at least" in text
    assert document["accept"] == ["ci"] and document["keys"][-1]["name"] == "ci"
    laptop.run("keys", "revoke", "ci")
    assert "ci (" + key["id"][:16] + ", revoked)" in told(laptop)[0]
    laptop.configure('[trust]\naccept = "ci"\n')
    assert told(laptop)[1]["problem"] == "trust.accept is not a list of names of keys"


def test_a_local_key_is_made_on_first_use(stranger: Person) -> None:
    """Not before, once, and the same from then on."""
    ring = stranger.root.parent / "home/config/requiem/keys"
    stranger.hello()
    assert stranger.run("keys", "list").err == "no keys yet: requiem keys new\n" and not ring.exists()
    assert stranger.run("attest", "-o", "a.json").code == 0
    (made,) = (ring / "own").iterdir()
    assert made.name == "local.pem" and made.stat().st_mode & 0o777 == 0o600
    before = made.read_bytes()
    first = stranger.run("keys", "export").out
    assert stranger.run("attest", "-o", "b.json").code == 0 and stranger.run("keys", "export").out == first
    assert made.read_bytes() == before
