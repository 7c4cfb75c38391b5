"""What a step reads: sources, what others make, trees, references; and what is refused before anything runs."""

from __future__ import annotations

import pytest
from manifest.fakes import PROJECT, inputs_of, plan, refusal

from requiem_build.core.errors import ManifestError, SourceMissing
from requiem_build.core.instance import Input
from requiem_build.core.policy import Limits, Policy

MAKE = '[steps.make]\ncommand = "x"\noutputs = ["gen/a.h", "gen/b.h", "dist/"]\n'


def test_a_plain_path_is_a_source_or_depends_on_its_maker() -> None:
    made = plan(MAKE + '[steps.use]\ncommand = "y"\ninputs = ["src.c", "gen/a.h", "dist/x.js", "dist/"]\n', ["src.c"])
    assert made.instances["use"].inputs == (
        Input("src.c"),
        Input("gen/a.h", "make"),
        Input("dist/x.js", "make"),
        Input("dist/", "make"),
    )
    assert made.instances["use"].needs == ("make",)


def test_references_give_all_outputs_in_order_without_repeats() -> None:
    text = MAKE + '[steps.use]\ncommand = "cat {{ inputs }}"\ninputs = ["gen/b.h", "@make"]\nneeds = ["make"]\n'
    made = plan(text)
    assert inputs_of(made, "use") == ["gen/b.h", "gen/a.h", "dist/"]
    assert made.instances["use"].shown == "cat gen/b.h gen/a.h dist"


def test_needs_come_after_the_inputs_in_their_order() -> None:
    text = '[steps.b]\ncommand = "x"\noutputs = ["b"]\n[steps.a]\ncommand = "x"\noutputs = ["a"]\n'
    made = plan(text + '[steps.use]\ncommand = ["cat", "{{ inputs }}"]\ninputs = ["s"]\nneeds = ["b", "a"]\n', ["s"])
    assert made.instances["use"].command == ("cat", "s", "b", "a")
    assert made.instances["use"].needs == ("b", "a")


def test_one_instance_can_be_named() -> None:
    text = '[steps.c]\nforeach.s = ["x", "y"]\ncommand = "x"\noutputs = ["{{ s }}.o"]\n'
    made = plan(text + '[steps.use]\ncommand = "x"\ninputs = ["@c:y"]\n', targets=["use"])
    assert inputs_of(made, "use") == ["y.o"]
    assert list(made.instances) == ["c:y", "use"]


def test_an_instance_may_read_another_of_its_own_step() -> None:
    text = """
        [steps.fib]
        foreach.n = [0, 1, 2]
        command = "x"
        inputs = ["{{ ['@fib:' ~ (n - 1)] if n > 0 else [] }}"]
        outputs = ["fib/{{ n }}"]
    """
    made = plan(text)
    assert made.instances["fib:2"].needs == ("fib:1",)


def test_named_inputs_are_lists_or_one_path() -> None:
    text = (
        MAKE
        + """
        [steps.use]
        inputs = { code = "src/train.py", data = "@make", more = ["x", "y"] }
        command = [
            "run", "{{ inputs.code }}", "{{ inputs.code.stem }}", "-d{{ inputs.data }}", "{{ inputs.more[1] }}",
            "{{ inputs }}",
        ]
    """
    )
    made = plan(text, ["src/train.py", "x", "y"])
    everything = ("src/train.py", "gen/a.h", "gen/b.h", "dist", "x", "y")
    assert made.instances["use"].command == (
        "run", "src/train.py", "train", "-dgen/a.h", "-dgen/b.h", "-ddist", "y", *everything,
    )  # fmt: skip


def test_excludes_take_away_what_came_before_them() -> None:
    text = '[steps.a]\ncommand = "x"\ninputs = ["src/*.c", "lib.c", "!**/b.c", "src/sub/b.c"]\n'
    made = plan(text, ["src/a.c", "src/b.c", "src/sub/b.c", "lib.c"])
    assert inputs_of(made, "a") == ["src/a.c", "lib.c", "src/sub/b.c"]


@pytest.mark.parametrize(
    ("inputs", "key", "owner"),
    [
        ('["src/*.c", "!src/*"]', "inputs[1]", "inputs of"),
        ('["src/*.c", "!src/a.c", "!src/b.c", "!lib.c"]', "inputs[2]", "inputs of"),
        ('["lib.c", "!lib.c"]', "inputs[1]", "inputs of"),
        ('{ code = ["src/*", "!src/*"], more = "lib.c" }', "inputs.code[1]", "inputs.code of"),
        ('{ code = ["src/*"], more = ["lib.c", "!src/*"] }', "inputs.more[1]", "inputs.code of"),
    ],
)
def test_a_list_of_which_excludes_leave_nothing_is_refused(inputs: str, key: str, owner: str) -> None:
    error = refusal(f'[steps.a]\ncommand = "x"\ninputs = {inputs}\n', ["src/a.c", "src/b.c", "lib.c"])
    assert isinstance(error, SourceMissing) and error.hint
    assert error.what.startswith(f'{owner} step "a": "!') and dict(error.facts)["key"] == f"steps.a.{key}"


@pytest.mark.parametrize(
    "keys",
    [
        'inputs = ["src/*.c", "!src/*", "lib.c"]',
        'inputs = ["src/*.c", "!src/*", "src/b.c"]',
        'inputs = ["!src/*"]',
        'inputs = ["@none", "!src/*"]',
        "inputs = []",
        'discover = ["src/*.c", "!src/*"]',
    ],
)
def test_excludes_may_leave_little_or_have_nothing_to_take(keys: str) -> None:
    none = '[steps.none]\nwhen = false\ncommand = "x"\n'
    assert plan(f'{none}[steps.a]\ncommand = "x"\n{keys}\n', ["src/a.c", "src/b.c", "lib.c"]).instances["a"]


def test_matches_are_sorted_by_bytes() -> None:
    made = plan('[steps.a]\ncommand = "x"\ninputs = ["*"]\n', ["é", "z", "Z", "a", "\U0001f600", "\uffee"])
    assert inputs_of(made, "a") == ["Z", "a", "z", "é", "\uffee", "\U0001f600"]


def test_patterns_match_outputs_of_others_and_never_ones_own() -> None:
    text = MAKE + '[steps.use]\ncommand = "x"\ninputs = ["gen/*"]\noutputs = ["gen/own.h"]\n'
    for lying_about in ([], ["gen/a.h", "gen/own.h", "dist/x"]):
        assert inputs_of(plan(text, lying_about), "use") == ["gen/a.h", "gen/b.h"]


def test_a_pattern_without_a_match_is_refused() -> None:
    error = refusal('[steps.a]\ncommand = "x"\ninputs = ["src/*.c"]\n')
    assert isinstance(error, SourceMissing)
    assert "nothing matches" in error.what


def test_m17_a_pattern_that_only_matches_its_own_output_matches_nothing() -> None:
    error = refusal('[steps.a]\ncommand = "x"\ninputs = ["*.o"]\noutputs = ["a.o"]\n', ["a.o", ".cas/x.o"])
    assert "nothing matches" in error.what


def test_m17_the_store_is_never_matched_and_never_named() -> None:
    made = plan('[steps.a]\ncommand = "x"\ninputs = ["**/*"]\n', ["a", ".cas/b", ".requiem/c", "d/node_modules/e"])
    assert inputs_of(made, "a") == ["a"]
    for path in (".cas/b", ".requiem/c"):
        assert "reserved" in refusal(f'[steps.a]\ncommand = "x"\ninputs = ["{path}"]\n', [path]).what


def test_m18_a_missing_source_names_step_key_and_the_nearest_path() -> None:
    error = refusal('[steps.a]\ncommand = "x"\ninputs = ["src/main.c"]\n', ["src/mian.c"])
    assert isinstance(error, SourceMissing)
    assert error.what == 'step "a" reads "src/main.c", which does not exist and no step makes'
    assert dict(error.facts)["key"] == "steps.a.inputs[0]"
    assert error.hint == 'did you mean "src/mian.c"?'


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("src", "is a directory"),
        ("src/", None),
        ("a.c/", "is no directory"),
        ("pipe", "a pipe, a socket"),
        ("link", None),
    ],
)
def test_m18_an_input_is_of_the_kind_that_it_is_written_as(path: str, what: str | None) -> None:
    text, files = f'[steps.a]\ncommand = "x"\ninputs = ["{path}"]\n', ["src/a", "a.c", "pipe|", "link@"]
    if what is None:
        plan(text, files)
    else:
        assert what in refusal(text, files).what


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", ".", "./", "~/x", "a\\\\b", "@"])
def test_m14_inputs_stay_in_the_workspace(path: str) -> None:
    assert refusal(f'[steps.a]\ncommand = "x"\ninputs = ["{path}"]\n').exit_code == 2


def test_paths_are_put_into_their_plainest_spelling() -> None:
    made = plan(
        '[steps.a]\ncommand = "x"\ninputs = ["./src//a.c", "src/../b.c", "//b.c", "src/./"]\n', ["src/a.c", "b.c"]
    )
    assert inputs_of(made, "a") == ["src/a.c", "b.c", "src/"]


def test_a_tree_with_something_made_in_it_is_refused() -> None:
    error = refusal(MAKE + '[steps.use]\ncommand = "x"\ninputs = ["gen/"]\n', ["gen/hand.h"])
    assert error.what == 'step "use" reads the tree "gen/", and a step makes "gen/a.h" in it'


def test_a_pattern_into_a_directory_output_is_refused_with_the_way_out() -> None:
    error = refusal(MAKE + '[steps.use]\ncommand = "x"\ninputs = ["dist/*.js"]\n', ["dist/old.js"])
    assert 'read the whole "dist/"' in str(error.hint)


def test_one_path_is_not_input_and_output_of_one_step() -> None:
    error = refusal('[steps.a]\ncommand = "x"\ninputs = ["x"]\noutputs = ["x"]\n', ["x"])
    assert "both as input and as output" in error.what


@pytest.mark.parametrize("reference", ["@mak", "@make:x", "@//make2", "@libs/make"])
def test_m12_an_unknown_step_names_the_nearest(reference: str) -> None:
    error = refusal(MAKE + f'[steps.use]\ncommand = "x"\ninputs = ["{reference}"]\n')
    assert isinstance(error, ManifestError)
    if reference == "@mak":
        assert error.what == 'step "use" refers to the unknown step "mak"'
        assert error.hint == 'did you mean "make"?'


def test_m12_unknown_steps_in_needs_are_refused() -> None:
    error = refusal('[steps.use]\ncommand = "x"\nneeds = ["usr"]\n')
    assert dict(error.facts)["key"] == "steps.use.needs[0]"


# Groups


def test_a_group_gives_its_members_outputs() -> None:
    text = (
        MAKE
        + """
        [steps.headers]
        inputs = ["hand/*.h"]
        needs = ["make"]
        [steps.all]
        needs = ["headers"]
        [steps.use]
        command = "x {{ inputs }}"
        inputs = ["@all"]
    """
    )
    made = plan(text, ["hand/z.h"], ["use"])
    assert made.instances["headers"].is_group
    assert inputs_of(made, "use") == ["hand/z.h", "gen/a.h", "gen/b.h", "dist/"]
    assert made.instances["use"].needs == ("make", "headers", "all") or set(made.instances["use"].needs) == {
        "make",
        "all",
    }
    assert list(made.instances)[-1] == "use"


def test_a_group_has_no_outputs_of_its_own() -> None:
    assert "outputs and no command" in refusal('[steps.a]\noutputs = ["x"]\n').what


def test_needing_a_step_without_outputs_still_orders() -> None:
    made = plan('[steps.use]\ncommand = "x"\nneeds = ["check"]\n[steps.check]\ncommand = "y"\n')
    assert list(made.instances) == ["check", "use"]


def test_a_step_without_instances_gives_nothing() -> None:
    made = plan(
        '[steps.off]\nwhen = false\ncommand = "x"\noutputs = ["o"]\n[steps.use]\ncommand = "x"\ninputs = ["@off"]\n'
    )
    assert made.instances["use"].inputs == ()


# Programs, stdin, files of variables, locks


def test_a_program_of_the_workspace_is_an_input_without_being_declared() -> None:
    text = """
        [steps.tool]
        command = "x"
        outputs = ["build/tool"]
        [steps.a]
        command = ["build/tool", "x"]
        [steps.b]
        command = ["./run.sh"]
        [steps.c]
        cwd = "sub"
        command = ["../run.sh"]
        [steps.d]
        command = ["/usr/bin/env", "run.sh"]
        [steps.e]
        command = ["missing/run.sh"]
    """
    made = plan(text, ["run.sh", "sub/x"])
    assert made.instances["a"].inputs == (Input("build/tool", "tool"),)
    assert made.instances["a"].needs == ("tool",)
    assert inputs_of(made, "b") == inputs_of(made, "c") == ["run.sh"]
    assert inputs_of(made, "d") == inputs_of(made, "e") == []


def test_an_undeclared_program_is_not_among_inputs_in_the_command() -> None:
    made = plan('[steps.a]\ncommand = ["./run.sh", "{{ inputs }}"]\ninputs = ["x"]\n', ["run.sh", "x"])
    assert made.instances["a"].command == ("./run.sh", "x")
    assert inputs_of(made, "a") == ["x", "run.sh"]


def test_stdin_is_one_file_and_a_dependency() -> None:
    made = plan(MAKE + '[steps.a]\ncommand = "x"\nstdin = "gen/a.h"\n')
    assert made.instances["a"].stdin == Input("gen/a.h", "make")
    assert made.instances["a"].needs == ("make",)
    for text in ("@make", "dist/", "gen/*", "missing"):
        assert refusal(MAKE + f'[steps.a]\ncommand = "x"\nstdin = "{text}"\n').exit_code == 2


def test_files_of_variables_may_be_made_by_steps() -> None:
    made = plan(MAKE + '[steps.a]\ncommand = "x"\nenv_file = ["gen/a.h", ".env"]\n', [".env"])
    assert made.instances["a"].env_file == ("gen/a.h", ".env")
    assert made.instances["a"].needs == ("make",)


def test_a_lock_is_among_the_inputs() -> None:
    text = '[steps.a]\ncommand = "x"\nnetwork = "host"\nlock = ["package-lock.json"]\n'
    assert "not among its inputs" in refusal(text, ["package-lock.json"]).what
    made = plan(text + 'inputs = ["package-lock.json"]\n', ["package-lock.json"])
    assert made.instances["a"].lock == ("package-lock.json",)


# Discover


def test_discover_waits_for_what_makes_a_match_without_reading_it() -> None:
    text = (
        MAKE
        + """
        [steps.cc]
        command = "x"
        discover = ["gen/*.h", "include/**/*.h", "!gen/b.h"]
        outputs = ["gen/own.h"]
    """
    )
    made = plan(text, targets=["cc"])
    assert made.instances["cc"].after == ("make",)
    assert made.instances["cc"].needs == ()
    assert made.instances["cc"].discover == ("gen/*.h", "include/**/*.h", "!gen/b.h")
    assert list(made.instances) == ["make", "cc"]


def test_discover_into_a_directory_output_waits_for_its_maker() -> None:
    made = plan(MAKE + '[steps.cc]\ncommand = "x"\ndiscover = ["dist/**/*.h"]\n')
    assert made.instances["cc"].after == ("make",)


def test_what_is_needed_anyway_is_not_waited_for_twice() -> None:
    made = plan(MAKE + '[steps.cc]\ncommand = "x"\ninputs = ["gen/a.h"]\ndiscover = ["gen/*.h"]\n')
    assert (made.instances["cc"].needs, made.instances["cc"].after) == (("make",), ())


@pytest.mark.parametrize("pattern", ["@make", "gen/", "../x/*", "/x/*", "a**"])
def test_discover_wants_patterns_of_the_workspace(pattern: str) -> None:
    assert refusal(MAKE + f'[steps.cc]\ncommand = "x"\ndiscover = ["{pattern}"]\n').exit_code == 2


# Roots, pools, policy and limits


def test_a_root_that_a_step_makes_is_needed() -> None:
    text = """
        [roots.venv]
        path = ".venv"
        key = ["lock.txt"]
        [roots.sdk]
        path = "/opt/sdk/"
        [steps.setup]
        command = "x"
        outputs = [".venv/"]
        [steps.use]
        command = "x"
        roots = ["venv", "sdk"]
        path = [".venv/bin", "/opt/sdk/bin", "~/bin"]
    """
    made = plan(text, targets=["use"])
    assert made.instances["use"].needs == ("setup",)
    assert made.instances["use"].roots == ("sdk", "venv")
    assert made.instances["use"].policy.path == (".venv/bin", "/opt/sdk/bin", "~/bin")
    assert made.roots["venv"].producer == "setup"
    assert (made.roots["sdk"].path, made.roots["sdk"].producer) == ("/opt/sdk", None)
    assert refusal(text + 'pool = "x"\n').exit_code == 2
    assert refusal(text.replace('["venv", "sdk"]', '["venw"]')).hint == 'did you mean "venv"?'


def test_policy_and_limits_come_from_the_keys() -> None:
    text = """
        [pools]
        heavy = 2
        [steps.a]
        command = "x"
        sandbox = "process"
        network = "host"
        max_output_bytes = "2KiB"
        timeout = "1500ms"
        cpu_time = "1h"
        memory = "1GiB"
        processes = 3
        open_files = 4
        file_size = 5
        output_size = 6
        tmp = "1MiB"
        retries = 2
        cache = false
        lay_out = false
        pool = "heavy"
        tags = ["b", "a", "a"]
        pass_env = ["TERM"]
        tools = ["make"]
        env = { A = "{{ platform.os }}-{{ platform.arch }}-{{ profile }}" }
    """
    a = plan(text, profile=None).instances["a"]
    assert a.policy == Policy(sandbox="process", network="host", max_output_bytes=2048)
    assert a.limits == Limits(1500, 3_600_000, 1024**3, 3, 4, 5, 6, 1024**2)
    assert (a.retries, a.cache, a.lay_out, a.pool, a.tags) == (2, False, False, "heavy", ("a", "b"))
    assert (a.pass_env, a.tools, dict(a.env)) == (("TERM",), ("make",), {"A": "linux-x86_64-"})


# Includes


def test_an_included_step_speaks_of_its_own_folder() -> None:
    head = PROJECT + 'include = ["libs/a", "libs/b"]\n'
    lib = (
        PROJECT
        + """
[steps.compile]
foreach.src = ["src/*.c", "//common/*.c"]
inputs = ["{{ src }}"]
command = ["cc", "{{ src }}", "-o", "{{ output }}"]
outputs = ["build/{{ src.stem }}.o"]
[steps.lib]
inputs = ["@compile"]
command = "ar {{ output }} {{ inputs }}"
outputs = ["build/lib.a"]
"""
    )
    user = (
        PROJECT + '[steps.use]\ncommand = "x {{ inputs }}"\n'
        'inputs = ["@//libs/a/lib", "@libs/a/lib", "//libs/a/build/lib.a", "../a/x"]\n'
    )
    root = '[steps.compile]\ncommand = "x {{ inputs }}"\ninputs = ["@libs/a/lib"]\n'
    files = {"libs/a/requiem.toml": lib, "libs/b/requiem.toml": user}
    made = plan(root, ["libs/a/src/x.c", "common/y.c", "libs/a/x"], files=files, head=head)
    own = made.instances["libs/a/compile:src/x.c"]
    assert (own.cwd, own.command, own.outputs) == (
        "libs/a",
        ("cc", "src/x.c", "-o", "build/x.o"),
        ("libs/a/build/x.o",),
    )
    shared = made.instances["libs/a/compile://common/y.c"]
    assert shared.command == ("cc", "../../common/y.c", "-o", "build/y.o")
    assert inputs_of(made, "libs/a/lib") == ["libs/a/build/y.o", "libs/a/build/x.o"]
    assert made.instances["libs/b/use"].shown == "x ../a/build/lib.a ../a/x"
    assert made.instances["compile"].shown == "x libs/a/build/lib.a"


def test_values_are_printed_as_seen_from_cwd() -> None:
    text = """
        [steps.a]
        cwd = "sub/deep"
        foreach.src = "src/*.c"
        inputs = ["{{ src }}"]
        command = [
            "cc", "{{ src }}", "{{ src.relative_to('src') }}", "{{ src.parent }}",
            "{{ inputs }}", "{{ output }}", "{{ depfile }}",
        ]
        outputs = ["sub/{{ src.stem }}.o"]
        depfile = "{{ output }}.d"
    """
    a = plan(text, ["src/a.c"]).instances["a:src/a.c"]
    assert a.command == ("cc", "../../src/a.c", "a.c", "../../src", "../../src/a.c", "../a.o", "../a.o.d")
    assert (a.cwd, a.depfile) == ("sub/deep", "sub/a.o.d")


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_a_string_command_has_its_shell_in_front(shell: str) -> None:
    a = plan(f'[steps.a]\ncommand = "echo hi"\nshell = "{shell}"\n').instances["a"]
    expected = ("bash", "-euo", "pipefail", "-c") if shell == "bash" else ("/bin/sh", "-eu", "-c")
    assert (a.command, a.shown) == ((*expected, "echo hi"), "echo hi")


@pytest.mark.parametrize("command", ['""', '" "', "[]", '[""]', '["{{ x }}"]'])
def test_a_command_is_not_empty(command: str) -> None:
    assert "is empty" in refusal(f"[vars]\nx = []\n[steps.a]\ncommand = {command}\n").what


def test_output_is_the_one_output() -> None:
    text = '[steps.a]\ncommand = ["{{ output }}"]\noutputs = ["x", "y"]\n'
    assert '"output" is undefined' in refusal(text).what
    made = plan(
        '[steps.a]\ncommand = ["x", "{{ outputs.lib }}", "{{ outputs.all }}", "{{ outputs }}"]\n'
        'outputs = { lib = "l.a", all = ["y", "z"] }\n'
    )
    assert made.instances["a"].command == ("x", "l.a", "y", "z", "l.a", "y", "z")


def test_names_with_characters_of_patterns_stay_what_they_are() -> None:
    text = """
        [steps.cc]
        foreach.src = "src/*"
        inputs = ["{{ src }}"]
        command = ["cc", "{{ src }}", "{{ output }}"]
        outputs = ["o/{{ src.stem }}.o"]
        [steps.use]
        inputs = ["@cc", "@plain"]
        command = ["x", "{{ inputs }}"]
        [steps.plain]
        inputs = ["o/a[[]1].o"]
        command = ["x", "{{ inputs }}"]
        outputs = ["p"]
    """
    made = plan(text, ["src/a[1].c", "src/!b*.c", "src/@c?.c"])
    assert made.instances["cc:src/a[1].c"].inputs == (Input("src/a[1].c"),)
    assert made.instances["cc:src/a[1].c"].command == ("cc", "src/a[1].c", "o/a[1].o")
    assert made.instances["cc:src/a[1].c"].outputs == ("o/a[[]1].o",)
    assert made.instances["plain"].inputs == (Input("o/a[1].o", "cc:src/a[1].c"),)
    assert set(inputs_of(made, "use")) == {"o/a[1].o", "o/!b*.o", "o/@c?.o", "p"}


def test_instances_are_named_as_they_are_whatever_they_hold() -> None:
    text = """
        [steps.cc]
        foreach.src = "src/*"
        command = "x"
        outputs = ["o/{{ src.name }}.o"]
        [steps.use]
        foreach.src = "src/*"
        command = ["x", "{{ inputs }}"]
        inputs = ["@cc:{{ src }}"]
        needs = ["cc:{{ src }}"]
        tags = ["{{ src }}"]
        cwd = "{{ src.name }}"
    """
    made = plan(text, ["src/a[1].c"]).instances["use:src/a[1].c"]
    assert made.needs == ("cc:src/a[1].c",)
    assert (made.tags, made.cwd) == (("src/a[1].c",), "a[1].c")
