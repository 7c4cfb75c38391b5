"""`system = "packages"` from the command line: real builds that see packages only, and what makes them run again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from project import REQUIEM, SOURCE, Project

pytestmark = [pytest.mark.userns, pytest.mark.gcc, pytest.mark.timeout(300)]

HELLO = '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n'
ZIP = "#include <zlib.h>\nint main(void) { return zlibVersion() == 0; }\n"
MANIFEST = """
    [defaults]
    system = "packages"
    [steps.hello]
    command = ["gcc", "hello.c", "-o", "hello"]
    inputs = ["hello.c"]
    outputs = ["hello"]
    [steps.said]
    command = "./hello | awk '{ print toupper($0) }' > said.txt"
    inputs = ["hello"]
    outputs = ["said.txt"]
"""
STATUS = Path("/var/lib/dpkg/status")


@pytest.fixture
def hello(project: Project) -> Project:
    if not STATUS.exists():
        pytest.skip("these builds are Debian's")
    project.manifest(MANIFEST)
    project.write("hello.c", HELLO)
    project.write("zip.c", ZIP)
    return project


def step(project: Project, name: str, command: str, more: str = "") -> None:
    text = project.read("requiem.toml") + f"\n[steps.{name}]\ncommand = {json.dumps(command)}\n{more}\n"
    project.write("requiem.toml", text)


@pytest.fixture
def elsewhere(hello: Project) -> Callable[[str], tuple[str, ...]]:
    """elsewhere(status): the command line on the same host with another list of packages, in a mount namespace."""

    def program(status: str) -> tuple[str, ...]:
        other = hello.base / "status"
        other.write_text(status)
        mount = f'mount --bind {other} {STATUS} && exec "$@"'
        return ("unshare", "-Urm", "sh", "-c", mount, "sh", *REQUIEM)

    return program


def test_a_program_is_compiled_linked_and_run_and_is_then_up_to_date(hello: Project) -> None:
    assert hello.build().counts == {"ran": 2}
    assert hello.read("said.txt") == "HELLO\n"
    assert hello.build().counts == {"fresh": 2}
    assert "nothing to do" in hello.run("build").err


def test_what_nobody_asked_for_is_absent_and_the_error_names_its_package(hello: Project) -> None:
    step(hello, "zip", "gcc zip.c -lz -o zip", 'inputs = ["zip.c"]\noutputs = ["zip"]\ntools = ["gcc"]')
    hello.write("Makefile", "all:\n\tperl -e 1\n")
    step(hello, "perl", "make", 'inputs = ["Makefile"]')
    step(hello, "link", "gcc hello.c -lz -o link", 'inputs = ["hello.c"]\noutputs = ["link"]\ntools = ["gcc"]')
    ran = hello.run("build", "-k")
    assert ran.code == 1
    assert 'hint: zlib.h is in zlib1g-dev, which the step does not see: tools = [..., "zlib1g-dev"]' in ran.err
    assert "hint: z is in zlib1g-dev" in ran.err
    assert 'hint: perl is in perl-base, which the step does not see: tools = [..., "perl-base"]' in ran.err
    assert "outside of the step's PATH" not in ran.err


def test_what_was_asked_for_is_there_by_the_name_of_a_program_or_a_package(hello: Project) -> None:
    step(hello, "zip", "gcc zip.c -lz -o zip", 'inputs = ["zip.c"]\noutputs = ["zip"]\ntools = ["cc", "zlib1g-dev"]')
    step(hello, "perl", "perl -e 'print 1' > one", 'outputs = ["one"]\ntools = ["perl"]')
    assert hello.build().counts == {"ran": 4}
    request = json.loads(hello.run("show", "request", "zip").out)
    assert sorted(request["tools"]) == ["bash", "cc", "gcc", "zlib1g-dev"]
    assert request["policy"]["system"] == "packages"


def test_a_tool_that_is_nothing_here_is_exit_2_with_the_nearest(hello: Project) -> None:
    step(hello, "bad", "true", 'tools = ["zlib1g-devel"]')
    refused = hello.refuse("build", "bad")
    assert 'asks for the tool "zlib1g-devel"' in refused.err
    assert "did you mean 'zlib1g-dev'" in refused.err


def test_nothing_of_the_system_is_taken_on_trust(hello: Project) -> None:
    hello.build("hello")
    record = json.loads(hello.run("show", "record", "hello").out)
    assert record["asserted"] == []
    assert record["protection"]["system"] in ("redirects", "whiteouts", "copy")


def test_the_list_of_packages_is_an_object_that_the_request_names(hello: Project) -> None:
    hello.build("hello")
    request = json.loads(hello.run("show", "request", "hello").out)
    document = json.loads(hello.run("cas", "get", request["roots"]["/usr"]).out)
    assert document["schema"] == "requiem.system/1"
    names = [package[0] for package in document["packages"]]
    assert {"gcc", "libc6-dev", "bash"} <= set(names)
    assert "perl-base" not in names
    jsonschema.validate(document, json.loads((SOURCE / "schemas/system.schema.json").read_text()))


def test_below_strict_a_step_sees_the_host_and_the_request_says_so(hello: Project) -> None:
    hello.build("hello", "--sandbox", "process")
    request = json.loads(hello.run("show", "request", "hello").out)
    assert request["policy"]["system"] == "host"
    assert "system" in json.loads(hello.run("show", "record", "hello").out)["asserted"]


def test_an_unrelated_package_runs_nothing_again(hello: Project, elsewhere: Callable[[str], tuple[str, ...]]) -> None:
    hello.build()
    stanza = "Package: htop-of-another-kind\nStatus: install ok installed\nArchitecture: amd64\nVersion: 3.2\n\n"
    report = hello.build(program=elsewhere(stanza + STATUS.read_text()))
    assert report.counts == {"fresh": 2}


def test_an_upgraded_compiler_is_a_miss_that_names_it(
    hello: Project, elsewhere: Callable[[str], tuple[str, ...]]
) -> None:
    hello.build()
    changed, name, version, _ = upgraded(STATUS.read_text())
    program = elsewhere(changed)
    said = hello.run("build", "-n", "--json", program=program)
    report = json.loads(said.out)
    hello_step = next(each for each in report["steps"] if each["name"] == "hello")
    assert (hello_step["state"], hello_step["reason"]) == ("miss", f"package {name} {version} -> {version}.1")
    assert f"package {name} {version} -> {version}.1" in hello.run("why", "hello", program=program).out
    cache = {"XDG_CACHE_HOME": str(hello.base / "new-cache")}  # What it was made with is read from the store.
    assert f"package {name} {version} -> {version}.1" in hello.run("why", "hello", program=program, env=cache).out


def upgraded(status: str) -> tuple[str, str, str, str]:
    """The same packages with another version of the compiler: (status, its name, version before, version after)."""
    found = re.search(r"^Package: gcc-(\d+)\n(?:.+\n)*?Version: (.+)\n", status, re.M)
    assert found is not None
    version = found[2]
    stanza = found[0].replace(f"Version: {version}\n", f"Version: {version}.1\n")
    return status[: found.start()] + stanza + status[found.end() :], f"gcc-{found[1]}", version, f"{version}.1"


def test_a_system_that_changed_under_a_step_is_not_remembered_under_its_old_name(
    hello: Project, elsewhere: Callable[[str], tuple[str, ...]]
) -> None:
    status = STATUS.read_text()
    program = elsewhere(status)
    after, name, _, version = upgraded(status)
    (hello.base / "after").write_text(after)
    step(hello, "upgrade", f"cat {hello.base}/after > {STATUS}", 'sandbox = "none"\nneeds = ["hello"]')
    step(hello, "late", "gcc --version > late.txt", 'tools = ["gcc"]\nneeds = ["upgrade"]\noutputs = ["late.txt"]')
    early = 'tools = ["gcc"]\noutputs = ["early.txt"]'
    step(hello, "early", "gcc --version > early.txt", early + '\nneeds = ["hello"]')
    hello.write("requiem.toml", hello.read("requiem.toml").replace('needs = ["hello"]\n', 'needs = ["early"]\n', 1))
    report = hello.build("late", program=program).report
    assert 'input "/usr" of "late" changed during the build: trying once more' in report["warnings"]
    versions = {}
    for each in ("early", "late"):
        request = json.loads(hello.run("show", "request", each).out)
        document = json.loads(hello.run("cas", "get", request["roots"]["/usr"]).out)
        versions[each] = {package[0]: package[1] for package in document["packages"]}[name]
    assert versions == {"early": version.removesuffix(".1"), "late": version}


def test_the_policy_is_told_with_the_packages_in_it(hello: Project) -> None:
    said = hello.run("build", "--explain-policy", "hello")
    assert said.code == 0, said.err
    assert re.search(r"/usr +the packages of its command and tools only, by \w+", said.out + said.err)


def test_doctor_shows_what_a_step_sees(hello: Project) -> None:
    hello.build("hello")
    request = json.loads(hello.run("show", "request", "hello").out)
    said = hello.run("doctor", "hello", "--json")
    assert said.code == 0, said.err
    document = json.loads(said.out)
    jsonschema.validate(document, json.loads((SOURCE / "schemas/view.schema.json").read_text()))
    (seen,) = document["steps"]
    assert seen["digest"] == request["roots"]["/usr"]
    assert seen["files"] > 1000
    assert {k: v for k, v in _named(seen, "gcc").items() if k != "version"} == {"architecture": "amd64", "name": "gcc"}
    text = hello.run("doctor", "hello").out
    assert 'hello: system = "packages"' in text
    assert re.search(r"^    gcc +\d", text, re.M)
    assert hello.refuse("doctor", "nobody").code == 2


def _named(seen: dict[str, list[dict[str, str]]], name: str) -> dict[str, str]:
    return next(package for package in seen["packages"] if package["name"] == name)


def test_a_request_is_run_again_by_itself(hello: Project) -> None:
    hello.build("hello")
    hello.write("request.json", hello.run("show", "request", "hello").out)
    said = hello.run("exec", "request.json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["exit_code"] == 0
    checked = hello.run("replay", "--execute")
    assert checked.code == 0, checked.out + checked.err


def test_steps_with_other_tools_run_beside_each_other(hello: Project) -> None:
    for number, tool in enumerate(["perl", "gcc", "zlib1g-dev", "perl-base", "libc6-dev"] * 2):
        step(
            hello,
            f"s{number}",
            f"ls /usr/bin | wc -l > {number}.txt",
            f'outputs = ["{number}.txt"]\ntools = ["{tool}"]',
        )
    hello.build("s*", "-j", "4")
    counted = [hello.read(f"{number}.txt") for number in range(10)]
    assert counted[:5] == counted[5:]
    assert len(set(counted)) > 1


def test_another_kind_of_view_is_no_change_of_thousands_of_packages(hello: Project) -> None:
    hello.build("hello")
    hello.manifest(MANIFEST.replace('system = "packages"', 'system = "host"'))
    assert hello.build("-n", "hello").step("hello")["reason"] == "system packages -> host"


def test_the_programs_that_a_shells_text_names_are_found_without_being_declared(hello: Project) -> None:
    step(
        hello,
        "chain",
        "VALUE=$(perl -e 'print 6 * 7'); if gcc -c hello.c -o h.o && $NM h.o | sort > nm.txt; then echo $VALUE > v; fi",
        'inputs = ["hello.c"]\noutputs = ["nm.txt", "v"]\nenv = { NM = "nm -g" }',
    )
    hello.build("chain")
    assert hello.read("v") == "42\n"
    assert " T main" in hello.read("nm.txt")
    request = json.loads(hello.run("show", "request", "chain").out)
    assert sorted(request["tools"]) == ["bash", "gcc", "nm", "perl"]  # What every step sees is not named.
    seen = json.loads(hello.run("doctor", "chain", "--json").out)["steps"][0]
    assert seen["digest"] == request["roots"]["/usr"]
    assert (
        hello.build("chain", "--mode", "repro", "--cache", "off").step("chain")["request_digest"]
        == (hello.build("-n", "chain").step("chain")["request_digest"])
    )
    assert hello.run("replay", "--execute").code == 0


def test_words_that_are_no_program_of_a_package_add_nothing(hello: Project) -> None:
    step(hello, "words", "helper() { true; }; helper; no-such-thing || true; zlib1g-dev || :", "outputs = []")
    hello.build("words")
    assert list(json.loads(hello.run("show", "request", "words").out)["tools"]) == ["bash"]


def test_what_a_script_of_the_workspace_is_run_by_is_found(hello: Project) -> None:
    hello.write("tools/gen.pl", "#!/usr/bin/perl\nprint 7 * 6;\n", executable=True)
    hello.write("tools/gen", "#!/usr/bin/env perl\nprint 7 * 6;\n", executable=True)
    step(hello, "text", "./tools/gen.pl > a; cd tools; ./gen > ../b || exit 3", 'outputs = ["a"]\ninputs = ["tools/"]')
    text = hello.read("requiem.toml") + '\n[steps.argv]\ncommand = ["tools/gen"]\n'
    hello.write("requiem.toml", text)
    hello.build("text", "argv")
    assert hello.read("a") == "42"
    request = json.loads(hello.run("show", "request", "argv").out)
    assert sorted(request["tools"]) == ["perl"]
    hello.write("tools/gen", "#!/bin/sh\ntrue\n", executable=True)
    hello.build("argv")
    assert json.loads(hello.run("show", "request", "argv").out)["tools"] == {}
