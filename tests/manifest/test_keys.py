"""One table of keys: checks, the JSON Schema, the example and the reference agree."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest.fakes import PLATFORM, PROJECT, FakeListing, load

from requiem_build.core import keys, kinds
from requiem_build.core.errors import ManifestError, NotBuiltYet
from requiem_build.core.manifest import load_manifest
from requiem_build.core.plan import make_plan
from requiem_build.core.policy import Limits, Policy
from requiem_build.core.schema import manifest_schema, manifest_schema_text

ROOT = Path(__file__).resolve().parent.parent.parent
DESIGN = """description tags extends foreach when command stdin cwd shell inputs discover depfile needs outputs lay_out
    tools roots path env pass_env secrets env_file sandbox system network clock random max_output_bytes
    timeout cpu_time memory processes open_files file_size output_size tmp
    cache retries pool persistent ready lock require salt"""


def test_a_step_has_exactly_the_keys_of_the_design() -> None:
    later = {"jobserver"}  # docs/decisions/0054-jobserver-server.md
    assert sorted(keys.STEP) == sorted({*DESIGN.split(), *later})


def test_the_schema_file_is_what_the_table_gives() -> None:
    assert (ROOT / "schemas/manifest.schema.json").read_text(encoding="utf-8") == manifest_schema_text()


def test_the_schema_is_one_and_every_property_has_words() -> None:
    schema = manifest_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for name, part in schema["$defs"]["step"]["properties"].items():
        assert part["title"] == name
        assert part["description"]


def manifests() -> list[Path]:
    return [ROOT / "requiem.toml.example", *sorted((ROOT / "examples").glob("*/requiem.toml"))]


@pytest.mark.parametrize("path", manifests(), ids=lambda path: path.parent.name)
def test_the_schema_admits_every_manifest_of_ours(path: Path) -> None:
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(manifest_schema()).validate(tables)


def test_the_example_loads_and_plans() -> None:
    content = (ROOT / "requiem.toml.example").read_bytes()
    sources = ["src/main.c", "src/util.c", "include/util.h", "data/table.csv", "pages/index.md", "pages/about.md"]
    for profile, tests in ((None, 2), ("ci", 4)):
        manifest = load_manifest({"requiem.toml": content}.get, profile=profile)
        plan = make_plan(manifest, [], FakeListing(sources), platform=PLATFORM)
        assert [name for name in plan.instances if name.startswith("compile")] == [
            "compile:src/main.c",
            "compile:src/util.c",
        ]
        assert sum(name.startswith("test:") for name in plan.instances) == tests
        assert "checks" in plan.instances


def test_the_reference_speaks_of_every_key_and_table() -> None:
    text = (ROOT / "docs/manifest.md").read_text(encoding="utf-8")
    for table in (keys.STEP, keys.PROJECT, keys.ROOT, keys.STORE):
        for name, key in table.items():
            default = f"| `{key.default}` |" if key.default else "|  |"
            rows = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
            assert any(key.says in row and row.endswith(default) for row in rows), name
    for name in keys.TABLES:
        assert f"`[{name}" in text


SAMPLES: dict[str, tuple[list[str], list[str]]] = {
    "command": (['"x"', '["x"]'], ["1", "[1]", "{}"]),
    "inputs": (["[]", '{ a = "x", b = ["y"] }'], ["1", "{ a = 1 }"]),
    "foreach": (["{ a = [1, 2.5, true, { x = 1 }] }", '{ a = "x" }'], ["[]", "{ a = 1 }", "{ a = [[1]] }"]),
    "when": (["true", '"{{ x }}"'], ["1"]),
    "timeout": (['"1s"'], ["1", '"1"', '"-1s"']),
    "memory": (["1", '"1MiB"'], ["-1", "0", "1.5", '"1MB"']),
    "env": (['{ A = "x" }'], ["{ A = 1 }", "[]"]),
    "sandbox": (['"none"'], ['"x"', "1"]),
    "retries": (["0", "100"], ["101", "-1", "1.5"]),
    "env_file": (['"x"', '["x"]'], ["1"]),
    "salt": (['""', '"2"'], ["2", "[]"]),
}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_schema_and_checks_say_the_same(name: str) -> None:
    validator = jsonschema.Draft202012Validator(manifest_schema())
    good, bad = SAMPLES[name]
    for value in [*good, *bad]:
        text = f"[steps.s]\n{name} = {value}\n"
        assert validator.is_valid(tomllib.loads(PROJECT + text)) == (value in good), value
        if value in good:
            load(text)
        else:
            with pytest.raises(ManifestError):
                load(text)


VALUES = st.recursive(
    st.none().map(lambda _: "x") | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(keys.STEP)), VALUES)
def test_every_check_answers_for_every_value(name: str, value: Any) -> None:
    problem = keys.STEP[name].kind.check(value)
    assert problem is None or problem.what


@given(st.integers(-10, 10**14), st.sampled_from(["ms", "s", "m", "h", "", "d", "x"]))
def test_durations_are_positive_and_limited(number: int, unit: str) -> None:
    found = kinds.duration_ms(f"{number}{unit}")
    if found is not None:
        assert found == number * kinds.UNITS_MS[unit]
        assert 0 < found <= kinds.DURATION_MS_MAX


def test_every_policy_and_limit_has_its_key() -> None:
    stems = {field.name.removesuffix("_ms").removesuffix("_bytes") for field in dataclasses.fields(Limits)}
    assert stems <= set(keys.STEP)
    assert {field.name for field in dataclasses.fields(Policy)} <= set(keys.STEP)


def test_keys_of_later_versions_are_marked_in_the_schema() -> None:
    properties = manifest_schema()["$defs"]["step"]["properties"]
    for name, key in keys.STEP.items():
        assert properties[name]["description"].endswith("Not built yet.") == key.later
    with pytest.raises(NotBuiltYet):
        load("[steps.s]\npersistent = true\n")


def test_the_schema_file_is_plain_json() -> None:
    json.loads((ROOT / "schemas/manifest.schema.json").read_text(encoding="utf-8"))
