"""Everything that the command line prints for machines is what the schemas say."""

from __future__ import annotations

import json
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
    for wrong in ({"threshold": 0}, {"min_level": "high"}, {"keys": [{"id": "x"}]}, {"configuration": "relative"}):
        document = json.loads(ran.out)
        document["signing"] |= wrong
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, schema("doctor"))
