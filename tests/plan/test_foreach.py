"""Instances: their values, their names, and patterns over what other steps make."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest.fakes import PLATFORM, FakeListing, load, plan, refusal

from requiem_build.core.errors import ManifestError, RequiemError, SourceMissing
from requiem_build.core.plan import make_plan


def names(text: str, *paths: str, **options: str) -> list[str]:
    return list(plan(text, paths, **options).instances)


@pytest.mark.parametrize(
    ("foreach", "found"),
    [
        ('s = "src/*.c"', ["x:src/a.c", "x:src/b.c"]),
        ('s = ["src/*.c", "!src/a.c", "lit"]', ["x:lit", "x:src/b.c"]),
        ('s = ["src/*.c", "src/a*"]', ["x:src/a.c", "x:src/b.c"]),
        ("s = [3, 1, 2.5, true]", ["x:1", "x:2.5", "x:3", "x:true"]),
        ('py = ["3.9", "3.12"]', ["x:3.12", "x:3.9"]),
        ('b = [2]\na = ["y", "z"]', ["x:a=y,b=2", "x:a=z,b=2"]),
        ('t = [{ name = "n1", v = 1 }, { b = 2, a = "q" }]', ["x:a=q,b=2", "x:n1"]),
        ('s = "{{ many }}"', ["x:p", "x:src/a.c", "x:src/b.c"]),
        ('s = ["{{ one }}-{{ two }}"]', ["x:1-a", "x:1-b"]),
        ('s = "{{ range(2) }}"', ["x:0", "x:1"]),
        ('s = "{{ tables }}"', ["x:k=1", "x:k=2"]),
        ("s = []", []),
    ],
)
def test_instances_are_named_by_their_values(foreach: str, found: list[str]) -> None:
    text = '[vars]\nmany = ["src/*.c", "p"]\none = 1\ntwo = ["a", "b"]\ntables = [{ k = 1 }, { k = 2 }]\n'
    text += f'[steps.x]\ncommand = "x"\n[steps.x.foreach]\n{foreach}\n'
    assert names(text, "src/a.c", "src/b.c") == found


def test_tables_are_read_by_their_keys() -> None:
    text = '[steps.x]\nforeach.lib = [{ name = "a", src = "lib/a.c", deps = ["m", "z"] }]\n'
    text += 'command = ["cc", "{{ lib.src.stem }}", "-l{{ lib.deps }}"]\n'
    assert plan(text).instances["x:a"].command == ("cc", "a", "-lm", "-lz")


def test_a_pattern_in_a_table_is_a_pattern_where_it_is_used() -> None:
    text = '[steps.x]\nforeach.lib = [{ name = "a", srcs = "lib/*.c" }]\ninputs = ["{{ lib.srcs }}"]\ncommand = "x"\n'
    made = plan(text, ["lib/1.c", "lib/2.c"])
    assert [item.path for item in made.instances["x:a"].inputs] == ["lib/1.c", "lib/2.c"]


@pytest.mark.parametrize("values", ['["a", "a"]', '["1", 1]', '[{ name = "x" }, { name = "x", y = 1 }]'])
def test_two_instances_of_one_name_are_refused(values: str) -> None:
    assert "two instances are named" in refusal(f'[steps.x]\nforeach.s = {values}\ncommand = "x"\n').what


def test_a_pattern_without_a_match_is_refused() -> None:
    error = refusal('[steps.x]\nforeach.s = ["a", "src/*.c"]\ncommand = "x"\n')
    assert isinstance(error, SourceMissing)
    assert dict(error.facts)["key"] == "steps.x.foreach.s[1]"


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ('["src/*.c", "!src/*.c"]', "steps.x.foreach.s[1]"),
        ('["src/a.c", "src/*", "!**/a.c", "!**/b.c", "!lib/*"]', None),
        ('["src/*", "!**/a.c", "!**/b.c", "!lib/*"]', "steps.x.foreach.s[2]"),
        ('"{{ all }}"', "steps.x.foreach.s"),
    ],
)
def test_a_list_of_which_excludes_leave_nothing_is_refused(values: str, key: str | None) -> None:
    text = f'[vars]\nall = ["src/*", "!src/*"]\n[steps.x]\nforeach.s = {values}\ncommand = "x"\n'
    if key is None:  # A value that is no pattern is left.
        assert names(text, "src/a.c", "src/b.c") == ["x:src/a.c"]
        return
    error = refusal(text, ["src/a.c", "src/b.c"])
    assert isinstance(error, SourceMissing) and error.what.startswith('foreach of step "x": "!')
    assert dict(error.facts)["key"] == key


def test_what_is_left_once_all_has_settled_counts() -> None:
    text = """
        [steps.x]
        foreach.s = ["gen/*", "!gen/a"]
        command = "x"
        [steps.make]
        foreach.s = "src/*"
        command = "y"
        outputs = ["gen/{{ s.name }}"]
    """
    assert names(text, "src/a", "src/b", "gen/a") == ["x:gen/b", "make:src/a", "make:src/b"]
    assert "takes away all" in refusal(text, ["src/a", "gen/a", "gen/b/c"]).what


def test_when_decides_whether_an_instance_exists() -> None:
    text = """
        [steps.x]
        foreach.os = ["linux", "plan9"]
        when = "{{ os == platform.os }}"
        command = "x"
        [steps.off]
        when = false
        command = "x"
    """
    assert names(text) == ["x:linux"]


@pytest.mark.parametrize("when", ['"yes"', '"{{ 1 }}"', '"platform.os"', '"{{ nope }}"'])
def test_when_is_true_or_false(when: str) -> None:
    assert refusal(f'[steps.x]\nwhen = {when}\ncommand = "x"\n').exit_code == 2


def test_a_pattern_takes_in_what_other_steps_make() -> None:
    text = """
        [steps.strip]
        foreach.obj = "build/*.o"
        command = "strip {{ obj }} {{ output }}"
        inputs = ["{{ obj }}"]
        outputs = ["stripped/{{ obj.name }}"]
        [steps.cc]
        foreach.src = "src/*.c"
        command = "cc {{ src }} {{ output }}"
        inputs = ["{{ src }}"]
        outputs = ["build/{{ src.stem }}.o"]
    """
    clean = ["src/a.c", "src/b.c"]
    made = plan(text, clean)
    assert list(made.instances) == ["cc:src/a.c", "cc:src/b.c", "strip:build/a.o", "strip:build/b.o"]
    assert made.instances["strip:build/a.o"].needs == ("cc:src/a.c",)
    assert plan(text, [*clean, "build/a.o", "build/b.o", "stripped/a.o"]) == made


def test_a_used_checkout_gives_no_instance_for_ones_own_output() -> None:
    text = '[steps.x]\nforeach.s = "src/*.c"\ncommand = "x"\noutputs = ["src/{{ s.stem }}_gen.c"]\n'
    assert names(text, "src/a.c") == names(text, "src/a.c", "src/a_gen.c") == ["x:src/a.c"]


def test_a_failure_of_what_is_only_lying_about_does_not_last() -> None:
    text = """
        [steps.x]
        foreach.s = "**/*.txt"
        command = "x"
        outputs = ["out/{{ s.relative_to('in') }}"]
    """
    assert names(text, "in/a.txt") == ["x:in/a.txt"]
    assert names(text.replace("**/*.txt", "*/*.txt"), "in/a.txt", "out/a.txt") == ["x:in/a.txt"]
    assert "is not below" in refusal(text, ["in/a.txt", "other.txt"]).what


@pytest.mark.parametrize("length", [2, 40])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_chain_of_patterns_settles_in_any_order(length: int, backwards: bool) -> None:
    steps = [
        f'[steps.s{i}]\nforeach.x = "d{i}/*"\ncommand = "x"\n'
        f'inputs = ["{{{{ x }}}}"]\noutputs = ["d{i + 1}/{{{{ x.name }}}}"]\n'
        for i in range(length)
    ]
    made = plan("".join(reversed(steps) if backwards else steps), ["d0/a"])
    assert [name.partition(":")[0] for name in made.instances] == [f"s{i}" for i in range(length)]


def test_patterns_over_each_others_outputs_end_in_an_error() -> None:
    text = """
        [steps.a]
        foreach.x = "b/*"
        command = "x"
        outputs = ["a/{{ x.name }}1"]
        [steps.b]
        foreach.x = "a/*"
        command = "x"
        outputs = ["b/{{ x.name }}2"]
    """
    assert "never settles" in refusal(text, ["a/seed"]).what


def test_steps_whose_patterns_only_look_as_if_they_met_are_fine() -> None:
    text = """
        [steps.a]
        foreach.s = "a/*"
        command = "x"
        outputs = ["{{ s.with_suffix('.o') }}"]
        [steps.b]
        foreach.s = "b/*"
        command = "x"
        outputs = ["{{ s.with_suffix('.o') }}"]
    """
    for lying_about in ([], ["a/1.o", "b/2.o"]):
        assert names(text, "a/1.c", "b/2.c", *lying_about) == ["a:a/1.c", "b:b/2.c"]


def test_names_of_instances_have_no_control_characters() -> None:
    for value in ('"a\\nb"', '"a\\u001bb"', '{ name = "a\\u0007" }', '""'):
        assert refusal(f'[steps.x]\nforeach.s = [{value}]\ncommand = "x"\n').exit_code == 2
    assert refusal('[steps.x]\nforeach.s = "*"\ncommand = "x"\n', ["a\udcffb"]).what.isprintable()


def test_a_product_beyond_all_measure_is_refused_at_once() -> None:
    text = '[steps.x]\ncommand = "x"\n[steps.x.foreach]\n' + "".join(
        f'v{i} = "{{{{ range(100) }}}}"\n' for i in range(5)
    )
    assert "10,000,000,000 instances" in refusal(text).what


def test_variables_refer_to_variables_in_any_order() -> None:
    text = """
        [vars]
        b = "{{ a }}/{{ platform.os }}"
        a = "x"
        list = ["{{ more }}", "{{ b }}"]
        more = ["1", "2"]
        deep = { x = ["{{ a }}"] }
        [steps.s]
        command = ["echo", "{{ list }}", "{{ deep.x }}"]
    """
    assert plan(text).instances["s"].command == ("echo", "1", "2", "x/linux", "x")


def test_variables_that_refer_to_each_other_are_a_cycle() -> None:
    error = refusal('[vars]\na = "{{ b }}"\nb = "{{ c | upper }}"\nc = "{{ a }}"\n[steps.s]\ncommand = "x"\n')
    assert "a -> b -> c -> a" in error.what
    assert refusal('[vars]\na = "{{ a }}"\n[steps.s]\ncommand = "x"\n').exit_code == 2


def test_doubling_variables_do_not_fill_the_memory() -> None:
    text = '[vars]\nv0 = "xxxxxxxxxxxxxxxx"\n' + "".join(
        f'v{i} = "{{{{ v{i - 1} ~ v{i - 1} }}}}"\n' for i in range(1, 60)
    )
    assert "text longer" in refusal(text + '[steps.s]\ncommand = "x"\n').what
    lists = '[vars]\nv0 = ["x"]\n' + "".join(
        f'v{i} = ["{{{{ v{i - 1} }}}}", "{{{{ v{i - 1} }}}}"]\n' for i in range(1, 60)
    )
    assert "more than 100,000 items" in refusal(lists + '[steps.s]\ncommand = "x"\n').what


def test_a_plan_to_be_looked_at_needs_no_sources() -> None:
    text = """
        [steps.x]
        foreach.n = [2, 1]
        description = "Make {{ output }}"
        tags = ["t{{ n }}"]
        inputs = { one = "missing", more = ["src/*.c"] }
        command = ["x", "{{ inputs.one.name }}", "{{ inputs.more }}"]
        outputs = ["o{{ n }}"]
        [steps.none]
        foreach.s = ["src/*.c"]
        command = "x"
        [steps.emptied]
        inputs = ["here", "!here"]
        command = "x"
        [steps.g]
        needs = ["x", "none"]
    """
    missing: list[RequiemError] = []
    made = make_plan(load(text), [], FakeListing(["here"]), platform=PLATFORM, missing=missing)
    assert [(item.name, item.description, item.outputs, item.command) for item in made.instances.values()] == [
        ("x:1", "Make o1", ("o1",), ("x", "missing")),
        ("x:2", "Make o2", ("o2",), ("x", "missing")),
        ("emptied", "", (), made.instances["emptied"].command),
        ("g", "", (), ()),
    ]
    assert {error.what for error in missing} == {
        'foreach of step "none": nothing matches "src/*.c"',
        'inputs of step "emptied": "!here" takes away all that there is',
        *(f'step "x:{n}" reads "missing", which does not exist and no step makes' for n in (1, 2)),
        *(f'inputs of step "x:{n}": nothing matches "src/*.c"' for n in (1, 2)),
    }
    with pytest.raises(SourceMissing):
        make_plan(load(text), [], FakeListing(["here"]), platform=PLATFORM)


def test_what_is_wrong_with_the_manifest_itself_is_refused_also_there() -> None:
    text = '[steps.a]\ncommand = "x"\ninputs = ["gone", "@nobody"]\n'
    with pytest.raises(ManifestError):
        make_plan(load(text), [], FakeListing([]), platform=PLATFORM, missing=[])


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("abcd"),
        st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
        min_size=1,
        max_size=3,
    )
)
def test_several_variables_give_their_product(values: dict[str, list[int]]) -> None:
    text = '[steps.x]\ncommand = "x"\n[steps.x.foreach]\n' + "".join(
        f"{name} = {items}\n" for name, items in values.items()
    )
    expected = set()
    for chosen in itertools.product(*values.values()):
        pairs = sorted(zip(values, chosen, strict=True))
        expected.add("x:" + (str(chosen[0]) if len(pairs) == 1 else ",".join(f"{k}={v}" for k, v in pairs)))
    made = make_plan(load(text), [], FakeListing([]), platform=PLATFORM)
    assert list(made.instances) == sorted(expected)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans()), min_size=1, max_size=4))
def test_a_clean_and_a_used_checkout_plan_the_same(shape: list[tuple[int, int, bool]]) -> None:
    text = ""
    for index, (source, target, by_pattern) in enumerate(shape):
        outputs = f"d{target}/{index}-{{{{ x.name }}}}"
        values = f'"d{source}/*"' if by_pattern else f'["d{source}/0"]'
        text += f'[steps.s{index}]\nforeach.x = {values}\ncommand = "x"\noutputs = ["{outputs}"]\n'
        text += f'[steps.r{index}]\ncommand = "x {{{{ inputs }}}}"\ninputs = ["d{target}/*", "d0/0"]\n'
    sources = [f"d{number}/0" for number in range(5)]
    try:
        clean = plan(text, sources)
    except RequiemError as error:
        assert refusal(text, sources).what == error.what
        return
    assert plan(text, [*sources, *clean.declared]) == clean
    half = sorted(clean.declared)[::2]
    assert plan(text, [*sources, *half]) == clean
