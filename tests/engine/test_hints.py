"""A failure names the fix: in whatever words a program complains, and so that it can be pasted as it is printed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib

import pytest
from project import Project

pytestmark = pytest.mark.userns

SHELLS = {"dash": ["dash", "-c"], "bash": ["bash", "-c"], "busybox": ["busybox", "sh", "-c"]}
WAYS = ['cat < "{}"', '. "./{}"', 'read line < "{}"', 'cat "{}"', 'sort "{}"', 'sed p "{}"']


def hinted(err: str) -> dict[str, list[str]]:
    """For each failed step what the lines that are to be added would make its inputs, as TOML reads them."""
    found: dict[str, list[str]] = {}
    for told in err.split('error: step "')[1:]:
        lines = re.findall(r'is not an input of "\w+": inputs = (.*)', told)
        items = [tomllib.loads(f"x = {line.replace('..., ', '')}")["x"] for line in lines]
        found[told.split('"')[0]] = [path for item in items for path in item]
    return found


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_says_which_file_it_misses(project: Project, shell: str) -> None:
    if shutil.which(SHELLS[shell][0]) is None:
        pytest.skip(f"needs {shell}")
    names = ["in.txt", "two words", "it's"]
    text = ""
    expected: dict[str, list[str]] = {}
    for number, way in enumerate(WAYS):
        for also, name in enumerate(names):
            project.write(name, "")
            step = f"s{number}{also}"
            if "'" in name and not way.startswith(("cat <", "read")):
                continue  # Programs spell a quote in ways of their own.
            expected[step] = [name]
            text += f"[steps.{step}]\ncommand = {json.dumps([*SHELLS[shell], way.format(name)])}\n"
    project.manifest(text)
    ran = project.run("build", "-k")
    assert hinted(ran.err) == expected, ran.err


ODD = """it's a "step" $HOME"""


def test_what_is_to_be_typed_can_be_pasted(project: Project) -> None:
    project.manifest(f'[steps.{json.dumps(ODD)}]\ncommand = "true"\ninputs = ["unread"]\n')
    project.write("unread", "")
    observed = project.run("observe", ODD)
    (line,) = [line for line in observed.out.splitlines() if "requiem tighten" in line]
    words = shlex.split(line[line.index("(requiem") :].strip("()"))
    assert words == ["requiem", "tighten", ODD] and project.run(*words[1:]).out
    project.manifest(f'[steps.{json.dumps(ODD)}]\ncommand = "false"\n')
    refused = project.run("tighten", ODD)
    hint = refused.err[refused.err.index("requiem observe") :].split(" says")[0]
    assert shlex.split(hint) == ["requiem", "observe", ODD]
    added = project.run("add", f"{ODD} 2", "--", "true")
    assert shlex.split(added.err[added.err.index("requiem build") :]) == ["requiem", "build", f"{ODD} 2"]


def test_a_name_is_spelled_as_the_manifest_must_have_it(project: Project) -> None:
    name = 'a "quoted" [1] name'
    project.write(name, "")
    project.write("read.py", f"open({name!r})\n")
    project.manifest('[steps.a]\ncommand = "python3 read.py"\ninputs = ["read.py"]\n')
    failed = project.run("build")
    (line,) = [hint for hint in failed.err.splitlines() if "is not an input" in hint]
    item = line.split("inputs = ")[1].replace("...", '"read.py"')
    project.manifest(f'[steps.a]\ncommand = "python3 read.py"\ninputs = {item}\n')
    project.build()
    project.manifest('[steps.a]\ncommand = "python3 read.py"\ninputs = ["read.py"]\n')
    assert item.split(", ")[1] in project.run("observe", "a").out
