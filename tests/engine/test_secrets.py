"""Secrets: seen by the step, and by nobody else. What a step sees of the caller's environment, and what it is told."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from project import Project

from requiem_build.core.secrecy import Masker, looks_secret, spellings
from requiem_build.store.layout import Store

pytestmark = pytest.mark.userns

VALUE = "s3cr3t/Value+with=odd&chars"
SPELLINGS = [
    VALUE,
    urllib.parse.quote(VALUE, safe=""),
    base64.b64encode(VALUE.encode()).decode()[:-2],
    base64.b64encode(b"user:" + VALUE.encode()).decode()[8:-2],
    VALUE.encode().hex(),
]


def everywhere(project: Project) -> bytes:
    """Every byte that a build has left: the workspace with its store, the caches, and what lies in /tmp of ours."""
    found = []
    for top in (project.base, Path(project.environment()["XDG_CACHE_HOME"])):
        for folder, folders, files in os.walk(top):
            if "masks" in folders:
                folders.remove("masks")  # Thousands of the system's own files, made before any step runs.
            for name in files:
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink():
                    found.append(os.fsencode(str(path)) + b"\n" + path.read_bytes())
    return b"\n".join(found)


def decompressed(project: Project) -> bytes:
    """Every object as it was before the store compressed it."""
    objects = Store(project.root / ".cas").objects
    return b"\n".join(objects.get(digest) for digest, _ in objects.ls())


def assert_nowhere(project: Project, *told: str) -> None:
    left = everywhere(project) + decompressed(project) + "".join(told).encode()
    for spelled in SPELLINGS:
        assert spelled.encode() not in left


@pytest.mark.parametrize("level", ["strict", "process"])
def test_a_secret_reaches_the_step_and_nothing_else(project: Project, level: str) -> None:
    project.write(
        "say.py",
        "import base64, os, sys, urllib.parse\n"
        "t = os.environ['API_TOKEN']\n"
        "for stream in (sys.stdout, sys.stderr):\n"
        "    stream.write(t[:4]); stream.flush(); stream.write(t[4:] + '\\n')\n"
        "print(urllib.parse.quote(t, safe=''), base64.b64encode(t.encode()).decode(), t.encode().hex())\n"
        "print('Basic', base64.b64encode(b'user:' + t.encode()).decode())\n"
        "open('seen', 'w').write(str(len(t)))\n"
        "sys.exit('exit' in sys.argv)\n",
    )
    project.manifest("""
        [defaults]
        secrets = ["API_TOKEN"]
        [steps.good]
        command = ["python3", "say.py"]
        inputs = ["say.py"]
        outputs = ["seen"]
        [steps.bad]
        command = "python3 say.py exit; touch \\"undeclared-$API_TOKEN\\""
        inputs = ["say.py"]
        needs = ["good"]
        outputs = ["seen2"]
        [steps.named]
        command = "\\"$API_TOKEN\\""
        [steps.linked]
        command = "ln -s \\"/$API_TOKEN\\" l"
        outputs = ["l"]
    """)
    env = {"API_TOKEN": VALUE}
    ran = project.run("build", "-k", "-v", "--json", "--sandbox", level, "--timeline", "t.json", env=env)
    assert ran.states == {"good": "ran", "bad": "failed", "named": "failed", "linked": "failed"}
    assert project.read("seen") == str(len(VALUE))
    log = project.run("log", "good", env=env).out
    assert log.startswith("***\n") and "Basic " in log
    shown = [project.run(*words, env=env).out for words in (["why", "good"], ["show", "record", "good"], ["cas", "ls"])]
    assert_nowhere(project, ran.out, ran.err, log, *shown)
    request = project.run("show", "request", "good").out
    assert json.loads(request)["secrets"] == ["API_TOKEN"] and "API_TOKEN" not in json.loads(request)["env"]
    record = json.loads(project.run("show", "record", "good").out)
    assert "secret API_TOKEN" in record["asserted"]
    if level == "strict":
        assert project.build("--sandbox", level, "good", env={"API_TOKEN": "another-value"}).states == {"good": "fresh"}


def test_the_control_without_secrets_the_value_is_found(project: Project) -> None:
    project.manifest('[steps.a]\ncommand = "echo $API_TOKEN"\npass_env = ["API_TOKEN"]\n')
    project.build(env={"API_TOKEN": VALUE})
    assert VALUE.encode() in everywhere(project) + decompressed(project)


@pytest.mark.parametrize(
    "command",
    [
        "echo x$API_TOKEN > {}",
        "(head -c 1048570 /dev/zero; printf %s $API_TOKEN) > {}",
        "printf %s $API_TOKEN | base64 > {}",
        "(head -c 3000000 /dev/urandom; printf user:%s $API_TOKEN | base64 -w0) > {}",
        "mkdir d; touch d/$API_TOKEN; touch {}",
        "mkdir -p d/$API_TOKEN; touch {}",
        "mkdir d; ln -s x$API_TOKEN d/l; touch {}",
        'echo "{}: $API_TOKEN" > d.d; mkdir d; touch {}',
    ],
)
def test_an_output_that_holds_a_secret_fails_the_step_and_is_not_kept(project: Project, command: str) -> None:
    value = "plainsecretvalue0123"
    project.write("x.h", "")
    project.manifest(
        f"[steps.a]\ncommand = '''mkdir -p d; {command.replace('mkdir d;', '').format('o', 'o')}'''\n"
        'secrets = ["API_TOKEN"]\noutputs = ["o", "d/"]\n'
        + ('discover = ["*.h"]\ndepfile = "d.d"\n' if "d.d" in command else "")
    )
    ran = project.build(env={"API_TOKEN": value}, expect=1)
    assert 'the secret "API_TOKEN"' in ran.err
    left = everywhere(project) + decompressed(project)
    assert value.encode() not in left and base64.b64encode(value.encode())[:-2] not in left


def test_no_part_of_a_secret_is_left_where_output_is_cut(project: Project) -> None:
    project.manifest("""
        [steps.a]
        command = "printf '%s' 0123456$API_TOKEN$API_TOKEN; head -c 1000 /dev/zero"
        secrets = ["API_TOKEN"]
        max_output_bytes = 16
    """)
    ran = project.build(env={"API_TOKEN": "abcdefghijklmnop"})
    assert "captured output was cut" in ran.err
    assert project.run("log", "a").out.startswith("0123456***")
    assert b"abcd" not in project.run("log", "a").out.encode()


def test_a_secret_that_is_missing_is_told_before_anything_runs(project: Project) -> None:
    project.manifest("""
        [steps.first]
        command = "touch first"
        outputs = ["first"]
        [steps.publish]
        command = "test -n $API_TOKEN"
        secrets = ["API_TOKEN"]
        cache = false
        needs = ["first"]
    """)
    ran = project.refuse("build", env={"API_TOKN": "x"})
    assert 'the secret "API_TOKEN" is not set' in ran.err and "API_TOKN" in ran.err
    assert not project.exists("first")
    assert project.run("build", "-n").code == 0


def test_what_the_store_can_answer_needs_no_secret(project: Project) -> None:
    project.manifest('[steps.a]\ncommand = "touch o"\nsecrets = ["API_TOKEN"]\noutputs = ["o"]\n')
    project.build(env={"API_TOKEN": VALUE})
    (project.root / "o").unlink()
    ran = project.build("-v")
    assert ran.states == {"a": "hit"} and "only the store can answer" in ran.err
    project.refuse("build", "--cache", "off")


@pytest.mark.parametrize("value", ["abc", "", "x" * 70_000])
def test_a_value_that_cannot_be_kept_secret_is_refused(project: Project, value: str) -> None:
    project.manifest('[steps.a]\ncommand = "true"\nsecrets = ["API_TOKEN"]\n')
    ran = project.refuse("build", env={"API_TOKEN": value})
    assert "4 to 65536 bytes" in ran.err and (not value or value not in ran.err)


def test_a_secret_comes_from_a_file_that_the_users_configuration_names(project: Project) -> None:
    project.manifest('[steps.a]\ncommand = "echo ${#API_TOKEN} > o"\nsecrets = ["API_TOKEN"]\noutputs = ["o"]\n')
    config = project.home / "config/requiem/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[secrets]\nAPI_TOKEN = "~/token"\n')
    assert "cannot be read" in project.refuse("build", expect=4).err
    (project.home / "token").write_text("12345678\n")
    (project.home / "token").chmod(0o644)
    assert "chmod 600" in project.refuse("build").err
    (project.home / "token").chmod(0o600)
    project.build()
    assert project.read("o") == "8\n"


def test_a_value_that_is_written_elsewhere_in_the_request_is_refused(project: Project) -> None:
    project.manifest('[steps.a]\ncommand = "true"\nsecrets = ["API_TOKEN"]\npass_env = ["COPY"]\n')
    ran = project.refuse("build", env={"API_TOKEN": VALUE, "COPY": VALUE})
    assert 'the secret "API_TOKEN" is also written' in ran.err and VALUE not in ran.err


@pytest.mark.parametrize(
    "more", ['env = { API_TOKEN = "x" }', 'pass_env = ["API_TOKEN"]', 'pass_env = ["API_TOKEN?"]', 'env_file = "e"']
)
def test_a_secret_is_nothing_else_too(project: Project, more: str) -> None:
    project.write("e", "API_TOKEN=x\n")
    project.manifest(f'[steps.a]\ncommand = "true"\nsecrets = ["API_TOKEN"]\n{more}\n')
    assert "among its secrets, and in" in project.refuse("build", env={"API_TOKEN": VALUE}).err


def test_a_pattern_of_pass_env_gives_way_to_secrets(project: Project) -> None:
    project.manifest('[steps.a]\ncommand = "echo $MY_X"\nsecrets = ["MY_X"]\npass_env = ["MY_*"]\n')
    project.build(env={"MY_X": VALUE})
    assert "MY_X" not in json.loads(project.run("show", "request", "a").out)["env"]
    assert_nowhere(project)


def test_exec_takes_secrets_from_the_environment(project: Project) -> None:
    project.manifest('[steps.a]\ncommand = "echo $API_TOKEN"\nsecrets = ["API_TOKEN"]\n')
    project.build(env={"API_TOKEN": VALUE})
    project.write("r.json", project.run("show", "request", "a").out)
    assert "is not set" in project.refuse("exec", "r.json").err
    ran = project.run("exec", "r.json", env={"API_TOKEN": VALUE})
    assert ran.code == 0 and project.run("cas", "get", json.loads(ran.out)["stdout"]["digest"]).out == "***\n"


def test_the_environment_of_a_secret_is_no_other_users(project: Project) -> None:
    """Of nothing that runs, but the step, the value is among the arguments or in the environment."""
    project.manifest("""
        [steps.a]
        command = "touch began; while ! test -e go; do sleep 0.05; done"
        secrets = ["API_TOKEN"]
        cache = false
    """)
    with project.start("build", "--sandbox", "none", env={"API_TOKEN": VALUE}) as process:
        while not project.exists("began"):
            assert process.poll() is None
        told = subprocess.run(["ps", "-eo", "args"], capture_output=True).stdout
        project.write("go", "")
        process.communicate(timeout=60)
    assert VALUE.encode() not in told


# pass_env


def test_a_required_variable_that_is_missing_is_told_before_anything_runs(project: Project) -> None:
    project.manifest("""
        [steps.first]
        command = "touch first"
        outputs = ["first"]
        [steps.a]
        command = "echo ${CI_JOB-none} ${MAYBE-none}"
        pass_env = ["CI_JOB", "MAYBE?"]
        needs = ["first"]
    """)
    ran = project.refuse("build", env={"CI_JBO": "7"})
    assert 'step "a" passes the variable "CI_JOB", which is not set' in ran.err
    assert "nearest: CI_JBO" in ran.err and 'pass_env = ["CI_JOB?"]' in ran.err
    assert not project.exists("first")
    project.build(env={"CI_JOB": "7"})
    assert project.run("log", "a").out == "7 none\n"
    project.build(env={"CI_JOB": "7", "MAYBE": "m"})
    assert project.run("log", "a").out == "7 m\n"


def test_excludes_win_wherever_they_stand(project: Project) -> None:
    for line in ('["MY_*", "!MY_B"]', '["!MY_B", "MY_*"]'):
        project.manifest(f'[steps.a]\ncommand = "echo ${{MY_A-none}} ${{MY_B-none}}"\npass_env = {line}\n')
        project.build(env={"MY_A": "a", "MY_B": "b"})
        assert project.run("log", "a").out == "a none\n"


NAMES = """API_TOKEN SECRET MY_SECRET_X DB_PASSWORD PGPASSWORD DB_PASS MYSQL_PWD SSH_KEY API_KEY APIKEY KEY
    SIGNING_KEYS AWS_REGION AWS_PROFILE CREDENTIALS GITHUB_PAT SSH_AUTH_SOCK SESSION_ID AZURE_CLIENT VAULT_ADDR
    key passphrase NPM_token PRIVATE_X COOKIE"""
PLAIN_NAMES = "PATH CI HOME PWD OLDPWD CFLAGS KEYBOARD KEYMAP LANG TERM COMPASS GIT_AUTHOR_NAME PASSES PATTERN TZ"


def test_what_looks_like_a_secret() -> None:
    assert [name for name in NAMES.split() if not looks_secret(name)] == []
    assert [name for name in PLAIN_NAMES.split() if looks_secret(name)] == []


@pytest.mark.parametrize(
    ("command", "name", "key"),
    [
        ("echo $HELD_BACK", "HELD_BACK", "pass_env"),
        ("echo KeyError HELD_BACK; exit 1", "HELD_BACK", "pass_env"),
        (": ${DEPLOY_TOKEN:?not set}", "DEPLOY_TOKEN", "secrets"),
    ],
)
def test_a_variable_that_was_held_back_is_named(project: Project, command: str, name: str, key: str) -> None:
    project.manifest(f"[steps.a]\ncommand = '''{command}'''\n")
    ran = project.build(env={name: VALUE}, expect=1)
    assert f'"{name}" is set on this host but "a" does not see it: {key} = [..., "{name}"]' in ran.err
    assert VALUE not in ran.err + ran.out
    assert "does not see it" not in project.build(expect=1).err


# The masker itself


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.text(min_size=4, max_size=60), st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 120))
def test_whatever_surrounds_it_and_wherever_it_is_cut_nothing_of_a_secret_is_left(
    value: str, before: bytes, after: bytes, most: int
) -> None:
    plain = value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    masker = Masker({"X": plain})
    for spelled in spellings(plain):
        content = before + spelled + after
        assert masker.held_in(content) == "X"
        pieces = [content[at : at + 3] for at in range(0, len(content), 3)]
        assert masker.held_in_pieces(pieces) == "X"
        kept = masker.mask(content[: most + masker.tail], most)
        assert len(kept) <= most
        whole = masker.mask(content)
        assert kept == whole[: len(kept)]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.text("ab", min_size=4, max_size=8), min_size=1, max_size=3), st.text("ab", max_size=60))
def test_overlapping_secrets_leave_no_rest(values: list[str], text: str) -> None:
    masker = Masker({str(number): value for number, value in enumerate(values)})
    for part in masker.mask(text.encode()).split(b"***"):
        assert not any(value.encode() in part for value in values)


def test_a_multi_line_secret_is_masked_line_by_line() -> None:
    key = "-----BEGIN KEY-----\nAAAABBBBCCCCDDDD\nEEEEFFFFGGGGHHHH\n-----END KEY-----\n"
    assert Masker({"K": key}).mask(b"> EEEEFFFFGGGGHHHH\n-----END KEY-----\n") == b"> ***\n-----END KEY-----\n"


def test_a_masker_does_not_tell_its_secrets() -> None:
    assert "hunter2x" not in repr(Masker({"X": "hunter2x"}))
