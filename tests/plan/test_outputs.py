"""What a step makes: no path twice, none inside another, none where it must not be."""

from __future__ import annotations

import json

import pytest
from manifest.fakes import inputs_of, plan, refusal

from requiem_build.core.errors import ManifestError
from requiem_build.core.instance import Input
from requiem_build.core.templates import render_late


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("../x", "leaves the workspace"),
        ("/etc/x", "leaves the workspace"),
        ("a/../../x", "leaves the workspace"),
        ("//../x", "leaves the workspace"),
        ("~/x", "leaves the workspace"),
        (".", "whole workspace"),
        ("./", "whole workspace"),
        ("a/..", "whole workspace"),
        ("a\0b", "NUL"),
        ("a\nb", "control character"),
        ("a\x1b[0m", "control character"),
        ("", "is empty"),
        (".requiem/x", "reserved path"),
        (".git/config", "reserved path"),
        ("sub/.git/config", "reserved path"),
        (".GIT/config", "reserved path"),
        (".cas/x", "reserved path"),
        (".cas/", "reserved path"),
        ("a\\b", "backslash"),
        ("x" * 300, "longer than a path"),
        ("!x", "begins with !"),
        ("@x", "begins with @"),
        ("a/**b", "**"),
    ],
)
def test_m14_an_output_is_a_plain_path_of_the_workspace(path: str, what: str) -> None:
    error = refusal(f'[steps.a]\ncommand = "x"\noutputs = [{json.dumps(path)}]\n')
    assert what in error.what
    assert error.what.isprintable()
    assert dict(error.facts)["key"] == "steps.a.outputs[0]"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("x", "x"),
        ("x", "./x"),
        ("d/", "d/"),
        ("d/", "d/x"),
        ("d/x", "d/"),
        ("d", "d/x"),
        ("d/", "d/e/*.c"),
        ("gen/*.c", "gen/x.c"),
        ("gen/*.c", "gen/*.c"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_m13_outputs_of_two_steps_never_meet(first: str, second: str, swapped: bool) -> None:
    one, two = (second, first) if swapped else (first, second)
    error = refusal(f'[steps.a]\ncommand = "x"\noutputs = ["{one}"]\n[steps.b]\ncommand = "x"\noutputs = ["{two}"]\n')
    assert '"a"' in error.what
    assert '"b"' in error.what


def test_m13_instances_of_one_step_do_not_share_an_output() -> None:
    error = refusal('[steps.c]\nforeach.s = ["a/x.c", "b/x.c"]\ncommand = "x"\noutputs = ["{{ s.stem }}.o"]\n')
    assert error.what == 'steps "c:a/x.c" and "c:b/x.c" both make "x.o"'


@pytest.mark.parametrize(("one", "two"), [("Foo", "foo"), ("\\u00e9", "e\\u0301")])
def test_m16_names_that_some_file_systems_take_for_one_are_a_warning(one: str, two: str) -> None:
    made = plan(f'[steps.a]\ncommand = "x"\noutputs = ["{one}"]\n[steps.b]\ncommand = "x"\noutputs = ["{two}"]\n')
    assert len(made.warnings) == 1
    assert "collide on case-insensitive or normalising file systems" in made.warnings[0]


def test_every_declared_output_is_known_also_of_what_is_not_wanted() -> None:
    text = '[steps.a]\ncommand = "x"\noutputs = ["a", "d/", "p/*"]\n[steps.b]\ncommand = "x"\noutputs = ["b"]\n'
    made = plan(text, targets=["b"])
    assert list(made.instances) == ["b"]
    assert made.declared == {"a": "a", "d/": "a", "p/*": "a", "b": "b"}


LATE = """
    [steps.gen]
    command = "x"
    outputs = ["gen/*.c", "gen/list.txt"]
    [steps.cc]
    foreach.opt = ["-O2"]
    cwd = "build"
    inputs = ["main.c", "@gen"]
    command = ["cc", "{{ opt }}", "{{ flags }}", "-I{{ inputs }}", "-o", "{{ output }}"]
    outputs = ["build/out"]
    [steps.text]
    inputs = { srcs = "gen/*.c", one = "main.c" }
    command = "cat {{ inputs.srcs }} {{ inputs.one.stem }} {{ inputs }}"
    [vars]
    flags = ["-a b"]
    unused = "x"
"""


def test_what_matches_an_output_pattern_is_known_late() -> None:
    made = plan(LATE, ["main.c", "gen/stale.c"])
    cc = made.instances["cc:-O2"]
    assert cc.inputs == (Input("main.c"), Input("gen/*.c", "gen", late=True), Input("gen/list.txt", "gen"))
    assert cc.command == ()
    assert not cc.is_group
    assert "unused" not in cc.late
    argv, shown = render_late(cc.late, {"gen/*.c": ["gen/a.c", "gen/b c.c"]})
    assert argv == (
        "cc",
        "-O2",
        "-a b",
        "-I../main.c",
        "-I../gen/a.c",
        "-I../gen/b c.c",
        "-I../gen/list.txt",
        "-o",
        "out",
    )
    assert shown.startswith("cc -O2 '-a b' -I../main.c")


def test_a_late_string_command_is_quoted_like_any_other() -> None:
    text = plan(LATE, ["main.c"]).instances["text"]
    argv, shown = render_late(text.late, {"gen/*.c": ["gen/b c.c"]})
    assert shown == "cat 'gen/b c.c' main 'gen/b c.c' main.c"
    assert argv == ("bash", "-euo", "pipefail", "-c", shown)


def test_a_command_that_does_not_speak_of_late_inputs_is_ready() -> None:
    text = '[steps.g]\ncommand = "x"\noutputs = ["g/*"]\n[steps.u]\ncommand = ["ls", "g"]\ninputs = ["@g"]\n'
    made = plan(text)
    assert made.instances["u"].command == ("ls", "g")
    assert made.instances["u"].late == ""
    assert inputs_of(made, "u") == ["g/*"]


def test_a_command_cannot_speak_of_outputs_that_are_patterns() -> None:
    assert "is a pattern" in refusal('[steps.g]\ncommand = "x {{ outputs }}"\noutputs = ["g/*"]\n').what


def test_a_path_that_an_output_pattern_means_comes_from_its_step() -> None:
    made = plan('[steps.g]\ncommand = "x"\noutputs = ["g/*.c"]\n[steps.u]\ncommand = "y"\ninputs = ["g/a.c"]\n')
    assert made.instances["u"].inputs == (Input("g/a.c", "g"),)


def test_what_goes_wrong_late_is_still_the_manifests_error() -> None:
    text = (
        '[steps.g]\ncommand = "x"\noutputs = ["g/*"]\n[steps.u]\ncommand = "cat \\"{{ inputs }}\\""\ninputs = ["@g"]\n'
    )
    late = plan(text).instances["u"].late
    assert render_late(late, {"g/*": ["g/plain"]})[1] == 'cat "g/plain"'
    with pytest.raises(ManifestError, match='the command of step "u"'):
        render_late(late, {"g/*": ["g/with space"]})


def test_a_late_command_has_its_program_among_the_inputs() -> None:
    text = (
        '[steps.g]\ncommand = "x"\noutputs = ["g/*"]\n[steps.u]\ncommand = ["./run", "{{ inputs }}"]\ninputs = ["@g"]\n'
    )
    assert inputs_of(plan(text, ["run"]), "u") == ["g/*", "run"]
