"""Everything that the command line prints for machines is what the schemas say."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from project import SOURCE, Project

pytestmark = pytest.mark.userns


def schema(name: str) -> Any:
    return json.loads(Path(SOURCE, "schemas", f"{name}.schema.json").read_text())


def test_reports_journals_and_errors_are_what_their_schemas_say(project: Project) -> None:
    project.manifest("""
        [steps.good]
        command = "echo 1 > a.txt"
        outputs = ["a.txt"]
        [steps.bad]
        command = "exit 1"
        [steps.after]
        needs = ["bad"]
        command = "true"
    """)
    reports = [
        project.build("-n").report,
        project.build("-k", expect=1).report,
        project.build("-k", expect=1).report,
        json.loads(project.run("build", "nope", "--json").out),
    ]
    for report in reports:
        jsonschema.validate(report, schema("report"))
    for name in ("request", "result", "record"):
        jsonschema.validate(json.loads(project.run("show", name, "good").out), schema(name))
    lines = 0
    for run in (project.root / ".cas/runs").iterdir():
        journal = project.run("cas", "get", json.loads(run.read_text())["journal"]).out
        for line in journal.splitlines():
            jsonschema.validate(json.loads(line), schema("event"))
            lines += 1
    assert lines > 10


@pytest.mark.userns
def test_doctor_says_what_its_schema_says(project: Project) -> None:
    ran = project.run("--json", "doctor")
    assert ran.code in (0, 4), ran.err
    jsonschema.validate(json.loads(ran.out), schema("doctor"))
    assert json.loads(ran.out)["divergences"] is None  # There is no project.
    for wrong in ({"threshold": 0}, {"min_level": "high"}, {"keys": [{"id": "x"}]}, {"configuration": "relative"}):
        document = json.loads(ran.out)
        document["signing"] |= wrong
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, schema("doctor"))


@pytest.mark.userns
def test_doctor_tells_of_divergences_and_whose_they_are(project: Project) -> None:
    project.manifest("""
        [steps.odd]
        command = "head -c 8 /dev/urandom > odd.bin"
        outputs = ["odd.bin"]
        [steps.even]
        command = "echo x > even.txt"
        outputs = ["even.txt"]
    """)
    assert "divergences" not in project.run("doctor").out  # There is no store yet.
    assert json.loads(project.run("doctor", "even", "--json").out)["steps"][0]["divergences"] == []
    project.build()
    assert json.loads(project.run("doctor", "--json").out)["divergences"] == []
    assert re.search(r"divergences +none in the store", project.run("doctor").out)
    later = [project.build("--cache", "wo").step("odd") for _ in range(2)]

    document = json.loads(project.run("doctor", "--json").out)
    jsonschema.validate(document, schema("doctor"))
    (told,) = document["divergences"]
    results = sorted(step["result_digest"] for step in later)
    assert told == {"request_digest": later[0]["request_digest"], "results": results, "steps": ["odd"]}
    assert re.search(
        r"divergences +2 in the store: 1 request gave .*, of odd \(requiem why odd\)", project.run("doctor").out
    )

    seen = {name: project.run("doctor", name, "--json") for name in ("odd", "even")}
    for name, diverged in (("odd", [told]), ("even", [])):
        document = json.loads(seen[name].out)
        jsonschema.validate(document, schema("view"))
        assert document["steps"][0]["divergences"] == diverged
    assert "other results of the same request: 2 (requiem why odd)" in project.run("doctor", "odd").out
    assert "diverged" not in project.run("doctor", "even").out

    shutil.rmtree(project.root / ".cas/runs")  # Nothing says any more whose it was.
    (told,) = json.loads(project.run("doctor", "--json").out)["divergences"]
    assert told["results"] == results and told["steps"] == []
