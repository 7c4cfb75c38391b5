"""What the commands about trust print for machines is what their schemas say."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from project import SOURCE, Project

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
    printed = project.run("schema").out.split()
    assert {"envelope", "bundle", "keys", "key", "signatures", "attest-verify"} <= set(printed)
    assert {path.name.removesuffix(".schema.json") for path in Path(SOURCE, "schemas").iterdir()} == set(printed)
