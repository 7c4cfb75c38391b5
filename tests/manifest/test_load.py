"""From text to Manifest: what is read, what is refused, and where every complaint points."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest
from manifest.fakes import PROJECT, load, refusal

from requiem_build.core.errors import ManifestError, NotBuiltYet, RequiemError, UnknownName
from requiem_build.core.manifest import load_manifest


def fact(error: RequiemError, label: str) -> str:
    return dict(error.facts)[label]


def test_m01_a_missing_manifest_is_named_and_init_is_hinted() -> None:
    with pytest.raises(ManifestError, match=r"no requiem\.toml") as caught:
        load_manifest(lambda path: None)
    assert caught.value.hint == "requiem init makes one"


def test_m02_bytes_that_are_not_utf8_are_named_with_their_offset() -> None:
    with pytest.raises(ManifestError, match="not UTF-8: byte 0xff at offset 12"):
        load_manifest({"requiem.toml": b"[project]\n# \xff\n"}.get)


def test_m03_a_byte_order_mark_changes_nothing() -> None:
    text = (PROJECT + '[steps.a]\ncommand = "true"\n').encode()
    plain = load_manifest({"requiem.toml": text}.get)
    marked = load_manifest({"requiem.toml": b"\xef\xbb\xbf" + text}.get)
    assert plain.steps["a"].values == marked.steps["a"].values


def test_m04_a_syntax_error_shows_the_line_and_a_caret() -> None:
    error = refusal('[steps.a]\ncommand = "true\n')
    assert fact(error, "manifest") == "requiem.toml:4:16"
    assert fact(error, "line") == 'command = "true\n' + " " * 15 + "^"


@pytest.mark.vectors
def test_m05_every_invalid_file_of_toml_test_is_a_manifest_error(vectors: Path) -> None:
    names = (vectors / "toml-test/tests/files-toml-1.0.0").read_text().split()
    invalid = [name for name in names if name.startswith("invalid/") and name.endswith(".toml")]
    assert len(invalid) == 499
    for name in invalid:
        content = (vectors / "toml-test/tests" / name).read_bytes()
        with pytest.raises(ManifestError):
            load_manifest({"requiem.toml": content}.get)


@pytest.mark.vectors
def test_m05_every_valid_file_of_toml_test_is_read_or_refused_as_a_manifest(vectors: Path) -> None:
    valid = sorted((vectors / "toml-test/tests/valid").rglob("*.toml"))
    assert len(valid) >= 205
    for path in valid:
        for content in (path.read_bytes(), path.read_bytes() + b'\n[project]\nname = "x"\n'):
            with contextlib.suppress(ManifestError):  # Anything else is a bug.
                load_manifest({"requiem.toml": content}.get)


@pytest.mark.parametrize("depth", [65, 500, 200_000])
@pytest.mark.parametrize("bracket", ["[", "{a="])
def test_m06_deep_nesting_is_refused_before_it_is_parsed(depth: int, bracket: str) -> None:
    error = refusal(f"[vars]\nx = {bracket * depth}")
    assert "nesting deeper than 64" in error.what


def test_m06_brackets_in_strings_and_comments_are_not_nesting() -> None:
    brackets = "[" * 200
    comment, strings = f"# {brackets}", [f'"{brackets}"', f"'''{brackets}'''", f'"""x\\"{brackets}"""', f"'{brackets}'"]
    text = "\n".join([comment, "[vars]", *(f"v{i} = {string}" for i, string in enumerate(strings))])
    assert load(text).steps == {}


def test_m06_deep_dotted_keys_are_refused_too() -> None:
    assert "nesting deeper than 64" in refusal("[vars]\n" + ".".join(["a"] * 5000) + " = 1\n").what


def test_m07_a_manifest_beyond_the_size_limit_is_refused_before_it_is_parsed() -> None:
    begun = time.process_time()
    error = refusal("[vars]\n" + "#" * 50_000_000)
    assert "too large" in error.what
    assert time.process_time() - begun < 5


def test_m07_an_integer_of_many_digits_is_too_large() -> None:
    assert refusal("[vars]\nx = " + "9" * 5000).what == "integer too large"
    assert "64 bits" in refusal("[vars]\nx = " + "9" * 30).what
    assert "whole number" in refusal("[steps.a]\nretries = " + "9" * 30).what


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ('[steps.a]\ncommand = "x"\ncommand = "y"\n', "requiem.toml:4:1"),
        ("[steps.a]\n[steps.b]\n[steps.a]\n", "requiem.toml:3:1"),
        ("[vars]\nx = 1\n[steps.a]\n[vars]\n", "requiem.toml:3:1"),
    ],
)
def test_m08_what_is_defined_twice_names_both_places(text: str, first: str) -> None:
    error = refusal(text)
    assert "defined twice" in error.what
    assert fact(error, "first") == first


def test_m09_an_unknown_key_names_the_nearest() -> None:
    error = refusal('[steps.x]\nimputs = ["a"]\n')
    assert error.what == 'unknown key "imputs" in step "x"'
    assert error.hint == 'did you mean "inputs"?'
    assert fact(error, "manifest") == "requiem.toml:4:1"
    assert fact(error, "key") == "steps.x.imputs"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[step.a]\n", '"steps"'),
        ('command = "x"\n', "key of a step"),
        ("[tenant]\n", None),
        ("[profiles.x]\nvar = {}\n", '"vars"'),
        ('[roots.x]\npaht = "a"\n', '"path"'),
    ],
)
def test_m09_unknown_tables_are_refused(text: str, hint: str | None) -> None:
    head = "" if text.startswith("command") else PROJECT
    error = refusal(text + ("" if head else PROJECT), head=head)
    assert "unknown" in error.what
    assert hint is None or hint in str(error.hint)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("inputs = 3", "wants a list of paths"),
        ('inputs = "a.c"', 'wants a list of paths such as ["src/a.c"]'),
        ("inputs = [3]", "wants a string, not an integer"),
        ("command = 1979-05-27", "not a date or time"),
        ("command = nan", "not the float nan"),
        ("env = { A = inf }", "wants a string, not the float inf"),
        ("env = { A = 4 }", "wants a string, not an integer"),
        ('env = { "A=B" = "x" }', 'cannot name an environment variable: "A=B"'),
        ('pass_env = ["A=B"]', 'cannot name an environment variable: "A=B"'),
        ("description = 1979-05-27T07:32:00Z", "not a date or time"),
        ("cache = 1", "wants true or false"),
        ('cache = "true"', "wants true or false"),
        ('sandbox = "strct"', "wants one of"),
        ("foreach = 3", "wants a table"),
        ("foreach = { src = 1979-05-27 }", "not a date or time"),
        ('foreach = { "a-b" = [1] }', "no name for a variable"),
        ("foreach = { inputs = [1] }", "meaning of its own"),
        ("timeout = 10", "wants a duration"),
        ('timeout = "10x"', "wants a duration"),
        ('timeout = "-1s"', "wants a duration"),
        ('timeout = "0s"', "wants a duration"),
        ('timeout = "999999999h"', "wants a duration"),
        ("timeout = nan", "wants a duration"),
        ("memory = -1", "wants a size"),
        ("memory = 1e9", "wants a size"),
        ('memory = "10x"', "wants a size"),
        ('memory = "1GB"', "wants a size"),
        ("memory = 0", "from 1"),
        ("retries = -1", "from 0 to 100"),
        ("retries = true", "wants a whole number"),
        ("processes = 0", "from 1"),
        ('command = "a\\u0000b"', "NUL"),
        ('inputs = ["..."  , "a", "..."]', "more than once"),
        ('inputs = ["a\\u001b[31m"]', "control character"),
    ],
)
def test_m10_a_value_of_the_wrong_kind_says_what_is_wanted(line: str, wanted: str) -> None:
    error = refusal(f"[steps.x]\n{line}\n")
    assert wanted in error.what
    assert isinstance(error, ManifestError)
    assert fact(error, "key").startswith("steps.x." + line.split(" ", maxsplit=1)[0])
    assert fact(error, "manifest").startswith("requiem.toml:4:")


@pytest.mark.parametrize("value", ["nan", "inf", "1979-05-27", "[1, [nan]]", "{ a = { b = 07:32:00 } }"])
def test_m10_variables_are_never_dates_or_numbers_that_are_none(value: str) -> None:
    assert refusal(f"[vars]\nx = {value}\n").exit_code == 2


NAMES_THAT_WORK = ["a", "build-all", "C++", "Größe", "日本", "a.b", "a,b=c", "🙂", "n" * 200]
NAMES_THAT_DO_NOT = [
    "",
    "a/b",
    "a:b",
    "@a",
    "-a",
    "!a",
    ".a",
    "a*",
    "a?",
    "[a]",
    " a",
    "a ",
    "a\nb",
    "a\x1b[31m",
    "n" * 201,
    "a\u202eb",
]


@pytest.mark.parametrize("name", NAMES_THAT_WORK)
def test_m24_plain_names_are_names(name: str) -> None:
    assert list(load(f'[steps.{json.dumps(name, ensure_ascii=False)}]\ncommand = "true"\n').steps) == [name]


@pytest.mark.parametrize("name", NAMES_THAT_DO_NOT)
def test_m24_other_names_are_refused_and_shown_escaped(name: str) -> None:
    error = refusal(f"[steps.{json.dumps(name, ensure_ascii=False)}]\n")
    assert "the name" in error.what
    assert error.what.isprintable()


@pytest.mark.vectors
def test_m24_no_naughty_string_reaches_the_terminal_raw(vectors: Path) -> None:
    naughty = json.loads((vectors / "blns/blns.json").read_text(encoding="utf-8"))
    assert len(naughty) == 515
    accepted = 0
    for name in naughty:
        try:
            load(f'[steps.{json.dumps(name, ensure_ascii=False)}]\ncommand = "true"\n')
            accepted += 1
            assert name.isprintable()
        except ManifestError as error:
            assert error.what.isprintable()
            assert all(line.isprintable() for _, text in error.facts for line in text.split("\n"))
    assert accepted > 100


def test_only_project_and_its_name_are_required() -> None:
    assert load("").steps == {}
    assert "no [project]" in refusal("[vars]\n", head="").what
    assert "has no name" in refusal("", head="[project]\n").what


@pytest.mark.parametrize("spec", [">=0.1", ">=0.0.1,<2", "~=0.1", "!=9", "0.1.0"])
def test_a_range_of_versions_that_holds_us_is_fine(spec: str) -> None:
    load("", head=PROJECT + f'requiem = "{spec}"\n')


@pytest.mark.parametrize("spec", [">=99", "<0.1", "==0.0.1", "!=0.1.0", "~=98.1"])
def test_a_range_of_versions_without_us_is_refused(spec: str) -> None:
    error = refusal("", head=PROJECT + f'requiem = "{spec}"\n')
    assert "wants requiem" in error.what


def test_a_range_of_versions_that_is_none_is_refused() -> None:
    assert "no range" in refusal("", head=PROJECT + 'requiem = "new"\n').what


# Layers


LAYERS = """
    [defaults]
    timeout = "1m"
    inputs = ["d"]
    env = { A = "defaults", B = "defaults" }

    [templates.base]
    inputs = ["base", "..."]
    env = { B = "base", C = "base" }

    [templates.more]
    extends = "base"
    inputs = ["...", "more"]
    timeout = "3m"

    [profiles.ci.defaults]
    timeout = "2m"
    tags = ["ci"]
    inputs = ["ci", "..."]

    [steps.plain]
    command = "true"

    [steps.both]
    extends = "more"
    inputs = ["first", "...", "last"]
    env = { C = "step" }
    command = "true"
"""


def test_defaults_templates_and_the_step_lie_over_each_other() -> None:
    step = load(LAYERS).steps["both"]
    assert step.values["inputs"] == ["first", "base", "d", "more", "last"]
    assert step.values["env"] == {"A": "defaults", "B": "base", "C": "step"}
    assert step.values["timeout"] == "3m"


def test_a_profile_lies_over_defaults_and_below_templates() -> None:
    steps = load(LAYERS, profile="ci").steps
    assert steps["plain"].values["timeout"] == "2m"
    assert steps["plain"].values["inputs"] == ["ci", "d"]
    assert steps["both"].values["timeout"] == "3m"
    assert steps["both"].values["inputs"] == ["first", "base", "ci", "d", "more", "last"]


def test_an_inherited_item_keeps_the_place_where_it_was_written() -> None:
    error = load(LAYERS).steps["both"].places["inputs"].at(2).error("here")
    assert fact(error, "key") == "defaults.inputs[0]"


def test_an_inherited_list_that_does_not_exist_is_empty() -> None:
    step = load('[steps.a]\ninputs = ["...", "x"]\n').steps["a"]
    assert step.values["inputs"] == ["x"]


def test_the_lowest_list_of_all_inherits_nothing() -> None:
    steps = load('[defaults]\ninputs = ["...", "x"]\n[steps.a]\n[steps.b]\ninputs = ["...", "y"]\n').steps
    assert steps["a"].values["inputs"] == ["x"] and steps["b"].values["inputs"] == ["x", "y"]


@pytest.mark.parametrize(
    ("below", "above", "value"),
    [
        ('env_file = "a.env"', 'env_file = ["...", "b.env"]', ["a.env", "b.env"]),
        ('inputs = { code = "a" }', 'inputs = { code = ["b", "..."] }', {"code": ["b", "a"]}),
        ('foreach.src = "*.c"', 'foreach.src = ["...", "!b.c"]', {"src": ["*.c", "!b.c"]}),
    ],
)
def test_one_inherited_path_is_a_list_of_one(below: str, above: str, value: object) -> None:
    step = load(f"[defaults]\n{below}\n[steps.a]\n{above}\n").steps["a"]
    key = below[: below.index(" ")].partition(".")[0]
    assert step.values[key] == value


def test_one_inherited_path_keeps_its_place() -> None:
    step = load('[defaults]\nenv_file = "a"\n[steps.a]\nenv_file = ["b", "..."]\n').steps["a"]
    assert fact(step.places["env_file"].at(1).error("here"), "key") == "defaults.env_file"


@pytest.mark.parametrize(
    ("below", "above", "key", "what"),
    [
        ('command = "cc"', 'command = ["...", "-c"]', "command[0]", "a text for the shell"),
        ('inputs = ["a"]', 'inputs = { code = ["b", "..."] }', "inputs.code[1]", "a list without names"),
        ('inputs = { code = ["a"] }', 'inputs = ["...", "b"]', "inputs[0]", "a table of named ones"),
        ('outputs = ["a"]', 'outputs = { code = ["..."] }', "outputs.code[0]", "a list without names"),
    ],
)
def test_what_cannot_be_inherited_into_a_list_is_refused_at_its_key(
    below: str, above: str, key: str, what: str
) -> None:
    error = refusal(f'[templates.t]\n{below}\n[steps.a]\nextends = "t"\n{above}\n')
    assert error.exit_code == 2 and error.what.endswith(f"what is inherited is {what}") and error.hint
    assert fact(error, "key") == f"steps.a.{key}"
    assert fact(error, "manifest").startswith("requiem.toml:7:")
    assert fact(error, "inherited").startswith("requiem.toml:4:")


def test_a_table_without_inherited_lists_replaces_a_list() -> None:
    step = load('[defaults]\ninputs = ["a"]\n[steps.a]\ninputs = { code = ["b"] }\n').steps["a"]
    assert step.values["inputs"] == {"code": ["b"]}


def test_an_unknown_template_or_profile_names_the_nearest() -> None:
    assert refusal('[templates.objects]\n[steps.a]\nextends = "object"\n').hint == 'did you mean "objects"?'
    with pytest.raises(UnknownName) as caught:
        load("[profiles.release.vars]\nx = 1\n", profile="relase")
    assert caught.value.hint == 'did you mean "release"?'


def test_templates_that_extend_each_other_are_a_cycle_in_order() -> None:
    error = refusal('[templates.a]\nextends = "b"\n[templates.b]\nextends = "a"\n[steps.s]\nextends = "a"\n')
    assert error.what.endswith("a -> b -> a")


def test_a_chain_of_many_templates_needs_no_recursion() -> None:
    text = "".join(f'[templates.t{i}]\nextends = "t{i + 1}"\ninputs = ["i{i}", "..."]\n' for i in range(800))
    step = load(text + '[templates.t800]\n[steps.s]\nextends = "t0"\n').steps["s"]
    assert len(step.values["inputs"]) == 800


@pytest.mark.parametrize(
    "line",
    [
        "persistent = true",
        'ready = "x"',
    ],
)
def test_what_is_not_built_yet_is_exit_4(line: str) -> None:
    with pytest.raises(NotBuiltYet) as caught:
        load(f"[steps.a]\n{line}\n")
    assert caught.value.exit_code == 4
    assert fact(caught.value, "manifest").startswith("requiem.toml:4:")


@pytest.mark.parametrize(
    "line", ['clock = "real"', 'random = "real"', 'system = "host"', "persistent = false", "secrets = []"]
)
def test_asking_for_what_there_is_is_fine(line: str) -> None:
    load(f"[steps.a]\n{line}\n")


# Variables


def test_set_takes_toml_where_it_can_and_text_where_not() -> None:
    text = "[vars]\na = 1\nb = 1\nc = 1\nd = 1\ne = 1\nt = { x = { y = 1, z = 2 } }\n"
    sets = {"a": "[1, 2]", "b": "-O2 -g", "c": "true", "d": "2024-01-01", "e": "1\nf = 2", "t.x.y": "3"}
    variables = load(text + "[steps.s]\n", sets=sets).steps["s"].scope.variables
    assert variables == {
        "a": [1, 2],
        "b": "-O2 -g",
        "c": True,
        "d": "2024-01-01",
        "e": "1\nf = 2",
        "t": {"x": {"y": 3, "z": 2}},
    }


@pytest.mark.parametrize("name", ["cflag", "t.z", "cflags.x", "", "t."])
def test_set_of_an_unknown_variable_is_refused(name: str) -> None:
    with pytest.raises(UnknownName) as caught:
        load("[vars]\ncflags = 1\nt = { x = 1 }\n", sets={name: "1"})
    assert caught.value.exit_code == 2


def test_set_of_an_unknown_variable_names_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        load("[vars]\ncflags = 1\n", sets={"cflag": "1"})
    assert caught.value.hint == 'did you mean "cflags"?'


def test_variables_come_from_files_profiles_and_the_command_line_in_this_order() -> None:
    head = PROJECT + 'vars_files = ["v.toml", "v.json"]\n'
    text = "[vars]\na = 1\nb = 1\nc = 1\nd = 1\n[profiles.p.vars]\nc = 3\nd = 3\n[steps.s]\n"
    files = {"v.toml": "b = 2\n", "v.json": '{"c": 2}'}
    manifest = load(text, files, head=head, profile="p", sets={"d": "4"})
    assert manifest.steps["s"].scope.variables == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert set(manifest.files) == {"requiem.toml", "requiem.local.toml", "v.toml", "v.json"}


def test_a_file_of_variables_that_is_missing_or_broken_is_refused_at_its_place() -> None:
    head = PROJECT + 'vars_files = ["v.json"]\n'
    for files in ({}, {"v.json": "[1]"}, {"v.json": "{"}, {"v.json": '{"a": NaN}'}):
        assert fact(refusal("", head=head, files=files), "key") == "project.vars_files[0]"


# requiem.local.toml, user's roots, store


def test_the_local_file_merges_tables_and_replaces_all_else() -> None:
    text = '[vars]\na = [1]\nb = 1\n[steps.s]\ncommand = "true"\nenv = { A = "1", B = "1" }\n'
    local = '[vars]\na = [2]\n[steps.s]\nenv = { B = "2" }\n[store]\npath = "~/store"\nmax_size = "1GiB"\n'
    manifest = load(text, {"requiem.local.toml": local})
    assert manifest.steps["s"].scope.variables == {"a": [2], "b": 1}
    assert manifest.steps["s"].values["env"] == {"A": "1", "B": "2"}
    assert manifest.store == {"path": "~/store", "max_size": 1024**3}


def test_a_complaint_about_the_local_file_names_it() -> None:
    error = refusal("[steps.s]\n", files={"requiem.local.toml": '[steps.s]\nimputs = ["a"]\n'})
    assert fact(error, "manifest") == "requiem.local.toml:2:1"


def test_the_manifest_itself_does_not_say_where_the_store_lies() -> None:
    error = refusal('[store]\npath = "/tmp/x"\n')
    assert "requiem.local.toml" in str(error.hint)


def test_roots_of_the_user_replace_the_manifests() -> None:
    text = '[roots.venv]\npath = ".venv"\nkey = ["lock"]\n'
    assert load(text).roots["venv"].key == ("lock",)
    manifest = load(text, user_roots={"venv": {"path": "~/venv"}, "sdk": {"path": "/opt/sdk"}})
    assert (manifest.roots["venv"].path, manifest.roots["sdk"].path) == ("~/venv", "/opt/sdk")


@pytest.mark.parametrize("path", ["../x", ".", "/a/../b", "a\\u0007"])
def test_a_root_that_is_no_plain_path_is_refused(path: str) -> None:
    assert refusal(f'[roots.x]\npath = "{path}"\n').exit_code == 2


# Includes


def test_included_steps_have_their_folder_in_front_and_follow_the_own() -> None:
    head = PROJECT + 'include = ["libs/a", "libs/b/more.toml", "extra.toml"]\n'
    inner = PROJECT + '[steps.x]\ncommand = "true"\n'
    files = {"libs/a/requiem.toml": inner, "libs/b/more.toml": inner, "extra.toml": PROJECT + "[steps.y]\n"}
    manifest = load("[steps.own]\n", files, head=head)
    assert list(manifest.steps) == ["own", "libs/a/x", "libs/b/x", "y"]


def test_an_include_has_its_own_defaults_templates_and_variables() -> None:
    head = PROJECT + 'include = ["lib"]\n'
    files = {"lib/requiem.toml": PROJECT + '[vars]\na = 2\n[steps.x]\ncommand = "true"\n'}
    manifest = load('[vars]\na = 1\n[defaults]\ntimeout = "1m"\n[templates.t]\n', files, head=head)
    assert "timeout" not in manifest.steps["lib/x"].values
    assert manifest.steps["lib/x"].scope.variables == {"a": 2}
    files["lib/requiem.toml"] += 'extends = "t"\n'
    assert "no template" in refusal("[templates.t]\n", files=files, head=head).what


def test_includes_that_include_each_other_are_a_cycle() -> None:
    head = PROJECT + 'include = ["a"]\n'
    files = {
        "a/requiem.toml": PROJECT + 'include = ["../b"]\n',
        "b/requiem.toml": PROJECT + 'include = ["//a"]\n',
    }
    error = refusal("", files=files, head=head)
    assert error.what.endswith("a/requiem.toml -> b/requiem.toml -> a/requiem.toml")


def test_a_manifest_that_two_include_is_read_once() -> None:
    head = PROJECT + 'include = ["a", "b"]\n'
    inner = PROJECT + 'include = ["//c"]\n'
    files = {"a/requiem.toml": inner, "b/requiem.toml": inner, "c/requiem.toml": PROJECT + "[steps.x]\n"}
    assert list(load("", files, head=head).steps) == ["c/x"]


@pytest.mark.parametrize("path", ["../other", "/etc", "missing", "libs/*", "", "."])
def test_an_include_that_leaves_or_is_missing_is_refused_at_its_place(path: str) -> None:
    error = refusal("", head=PROJECT + f'include = ["{path}"]\n')
    assert fact(error, "key") == "project.include[0]"


def test_includes_have_a_depth_limit() -> None:
    files = {f"d{i}/requiem.toml": PROJECT + f'include = ["//d{i + 1}"]\n' for i in range(60)}
    assert "nest deeper" in refusal("", files=files, head=PROJECT + 'include = ["d0"]\n').what


def test_two_manifests_of_one_folder_cannot_have_one_step_twice() -> None:
    error = refusal("[steps.x]\n", files={"b.toml": PROJECT + "[steps.x]\n"}, head=PROJECT + 'include = ["b.toml"]\n')
    assert "two steps are named" in error.what
    assert fact(error, "first").startswith("requiem.toml:")
