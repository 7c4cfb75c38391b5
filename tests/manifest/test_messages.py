"""Messages, whole, as they are shown: `pytest --update-golden` writes them anew for review."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifest.fakes import refusal, shown

MESSAGES = Path(__file__).parent / "messages"

CASES = {
    "unknown-key": '[steps.compile]\ncommand = "cc"\nimputs = ["a.c"]\n',
    "wrong-type": '[steps.compile]\ninputs = "a.c"\n',
    "syntax": '[steps.compile]\ncommand = ["cc"\noutputs = []\n',
    "defined-twice": '[steps.compile]\ncommand = "cc"\n\n[steps.compile]\ncommand = "gcc"\n',
    "missing-source": '[steps.compile]\ncommand = "cc"\ninputs = [\n  "src/a.c",\n  "src/util.c",\n]\n',
    "unknown-step": '[steps.compile]\ncommand = "cc"\n[steps.link]\ncommand = "ld"\ninputs = ["@compil"]\n',
    "cycle": "".join(
        f'[steps.{name}]\ncommand = "x"\nneeds = ["{need}"]\n' for name, need in (("a", "b"), ("b", "c"), ("c", "a"))
    ),
    "two-makers": '[steps.a]\ncommand = "x"\noutputs = ["out"]\n[steps.b]\ncommand = "x"\noutputs = ["out"]\n',
    "inside-a-tree": '[steps.a]\ncommand = "x"\noutputs = ["out/"]\n[steps.b]\ncommand = "x"\noutputs = ["out/b"]\n',
    "leaves-the-workspace": '[steps.a]\ncommand = "x"\noutputs = ["../out"]\n',
    "undefined": '[vars]\ncflags = "-O2"\n[steps.a]\ncommand = ["cc", "{{ cflag }}"]\n',
    "shell-quotes": '[vars]\nname = "it is"\n[steps.a]\ncommand = "echo \\"{{ name }}\\""\n',
    "not-built-yet": '[steps.a]\ncommand = "x"\npersistent = true\n',
    "terminal-escape": '[steps.a]\n"in\\u001b[31mputs" = []\n',
    "inherited": '[templates.objects]\ncommand = "cc"\ninputs = ["nowhere.c"]\n'
    '[steps.a]\nextends = "objects"\ninputs = ["...", "src/a.c"]\n',
    "inherited-text": '[defaults]\ncommand = "cc -c"\n[steps.a]\ncommand = ["...", "-O2"]\n',
    "nul": '[vars]\nv = "a\\u0000b"\n[steps.a]\ncommand = "echo {{ v }}"\n',
    "store-path": '[store]\npath = "/var/cas"\n',
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_message_is_the_golden_one(name: str, pytestconfig: pytest.Config) -> None:
    text = shown(refusal(CASES[name], ["src/a.c", "src/utils.c"]))
    golden = MESSAGES / f"{name}.txt"
    if pytestconfig.getoption("--update-golden"):
        golden.write_text(text, encoding="utf-8")
    assert golden.read_text(encoding="utf-8") == text


def test_a_manifest_without_a_project_says_how_it_begins() -> None:
    error = refusal('[steps.a]\ncommand = "true"\n', head="")
    text = shown(error)
    assert error.what == "requiem.toml has no [project]" and "\n  key:" not in text
    assert text.endswith('hint: begin it with two lines: [project] and name = "..."\n')


def test_every_golden_message_has_its_case() -> None:
    assert {path.stem for path in MESSAGES.glob("*.txt")} == set(CASES)
