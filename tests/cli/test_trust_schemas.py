"""What the commands about trust print for machines is what their schemas say."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from project import SOURCE, Project

from requiem_build.core.errors import Interrupted
from requiem_build.store.bundle import header

pytestmark = pytest.mark.userns


def check(name: str, document: Any) -> None:
    schema = json.loads(Path(SOURCE, "schemas", f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)


def test_every_answer_fits_its_schema_and_requiem_prints_it(project: Project) -> None:
    project.manifest('[steps.hello]\ncommand = "echo hello > hello.txt"\noutputs = ["hello.txt"]\n')
    project.write("../home/config/requiem/config.toml", "[trust]\nsign = true\n")
    project.build()
    check("keys", json.loads(project.run("keys", "list", "--json").out))
    check("key", json.loads(project.run("keys", "new", "other", "--json").out))
    record = json.loads(project.run("show", "record", "hello").out)
    check("record", record)
    check("envelope", record["signatures"][0])
    check("signatures", json.loads(project.run("show", "signatures", "hello").out))
    check("envelope", json.loads(project.run("attest", "-o", "a.json").out or project.read("a.json")))
    for expect in (0, 3):
        ran = project.run("attest", "--verify", "a.json", "--json")
        assert ran.code == expect
        check("attest-verify", json.loads(ran.out))
        project.write("hello.txt", "changed\n")
    for words in ((), ("--key", "other")):
        check("pack", json.loads(project.run("pack", "-o", "run.tar", "--json", *words).out))
    with tarfile.open(project.root / "run.tar") as tar:
        member = tar.extractfile("bundle.json")
        assert member is not None
        check("bundle", json.load(member))
    project.write("../home/config/requiem/config.toml", '[trust]\naccept = ["other"]\n')
    ran = project.run("replay", "run.tar", "--json")
    assert ran.code == 3
    check("replay-bundle", json.loads(ran.out))
    check("unpack", json.loads(project.run("unpack", "run.tar", "--json").out))
    revoked = json.loads(project.run("keys", "revoke", "other", "--json").out)
    check("key-revoked", revoked)
    assert revoked["revoked"] in project.run("keys", "list", "--json").out
    signing = json.loads(project.run("doctor", "--json").out)["signing"]
    assert {(key["name"], key["revoked"]) for key in signing["keys"]} == {("local", False), ("other", True)}
    printed = project.run("schema").out.split()
    assert {"envelope", "bundle", "keys", "key", "signatures", "attest-verify"} <= set(printed)
    assert {path.name.removesuffix(".schema.json") for path in Path(SOURCE, "schemas").iterdir()} == set(printed)


def test_every_document_has_a_schema_of_its_name(project: Project) -> None:
    """Also those that a later command prints: whatever name stands in the code of the command line."""
    written = Path(SOURCE, "requiem_build")
    named = {
        name
        for path in (*written.glob("cli/*.py"), *written.glob("engine/*.py"))
        for name in re.findall(r'"requiem\.([a-z-]+)/1', path.read_text())
    }
    assert {"report", "init", "key-revoked", "schemas", "ratchet", "doctor"} <= named
    listed = json.loads(project.run("schema", "--json").out)
    check("schemas", listed)
    assert named <= set(listed["schemas"])
    for name in listed["schemas"]:
        if name in named:
            printed = json.loads(project.run("schema", name).out)
            jsonschema.Draft202012Validator.check_schema(printed)
            assert f'"requiem.{name}/1"' in json.dumps(printed), name


def test_init_and_ratchets_are_what_their_schemas_say(project: Project) -> None:
    made = json.loads(project.run("init", "--json").out)
    check("init", made)
    assert made["path"] == str(project.root / "requiem.toml")
    project.manifest('[steps.one]\ncommand = "true"\n')
    project.build()
    assert project.run("reproduce", "--ratchet", "levels.json").code == 0
    check("ratchet", json.loads(project.read("levels.json")))


def test_errors_logs_and_cleaning_are_what_their_schemas_say(project: Project) -> None:
    project.manifest('[steps.one]\ncommand = "echo said; echo 1 > a.txt"\noutputs = ["a.txt"]\n')
    project.build()
    log = json.loads(project.run("log", "one", "--json").out)
    check("log", log)
    assert log["stdout"] == "said\n"
    dry, real = (json.loads(project.run("clean", *words, "--json").out) for words in (["-n"], []))
    for cleaned in (dry, real):
        check("clean", cleaned)
        assert cleaned["removed"] == ["a.txt"]
    for words in (("log", "nope"), ("replay", "nope"), ("nope",), ("attest", "nope"), ("keys", "trust", "a", "nope")):
        ran = project.run(*words, "--json")
        assert ran.code == 2, ran.err
        check("error", json.loads(ran.out))
        assert json.loads(ran.out)["error"]["code"] == 2


def test_an_interrupt_leaves_a_document_whenever_it_comes(project: Project) -> None:
    """Before anything has begun it is written as bytes that were made ready; they are those of the real answer."""
    from requiem_build.__main__ import INTERRUPTED

    document = json.loads(INTERRUPTED)
    check("error", document)
    assert document["error"] == Interrupted(signal.SIGINT).as_json()
    with project.start("replay", "-", "--json", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(header("bundle.json", 60_000_000) + bytes(200_000))
        process.stdin.flush()  # More than a pipe holds: it is being read.
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        assert process.stdout is not None
        assert json.loads(process.stdout.read()) == document
    assert process.returncode == 130
