"""The values behind tests/golden: each kind of document, plain and with everything that may be hard about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from requiem_build.core.digest import Digest, Domain, digest, object_digest
from requiem_build.core.entries import Entry, File, Link, Tree, make_tree
from requiem_build.core.policy import WORLD_ENVIRONMENT, Policy
from requiem_build.core.request import ABSENT, LISTING, Request
from requiem_build.core.result import Captured, Record, Result, make_result, make_trace
from requiem_build.store.encoding import ZSTD, Meta, plain_meta
from requiem_build.store.runs import Run

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"


def d(text: str) -> Digest:
    return object_digest(text.encode())


LINUX = {"os": "linux", "arch": "x86_64"}
HOSTILE = '"\\/\b\f\n\r\t\x01\x7f\x80\u2028\u2029é\ue000\ufffd\U0001f600'


def requests() -> dict[str, Request]:
    hello = Request(
        command=("cp", "greeting.txt", "out.txt"),
        env=dict(WORLD_ENVIRONMENT),
        inputs={"greeting.txt": File(d("hello"), 5).as_input()},
        outputs=("out.txt",),
        policy=Policy(),
        platform=LINUX,
        roots={"/usr": d("system")},
        tools={"cp": d("coreutils")},
    )
    compile_step = Request(
        command=("gcc", "-MMD", "-MF", "build/a.d", "-c", "src/a.c", "-o", "build/a.o"),
        env={**WORLD_ENVIRONMENT, "CC": "gcc"},
        inputs={"src/a.c": File(d("int a;"), 6).as_input()},
        outputs=("build/a.o",),
        policy=Policy(path=("node_modules/.bin",)),
        platform=LINUX,
        roots={"/usr": d("system"), "node_modules": d("modules")},
        tools={"gcc": d("gcc-12")},
        discover=("include/**/*.h", "src/*.h"),
        depfile="build/a.d",
    )
    discovered = compile_step.with_discovered(
        {"include/a.h": d("#define A"), "include/b.h": ABSENT, LISTING: d("[listing]")}
    )
    everything = Request(
        command=("sh", "-c", HOSTILE, "", " "),
        env={"EMPTY": "", "HOSTILE": HOSTILE, "Z": "1", "a": "2", "é": "3", "\ue000": "4", "\U0001f600": "5"},
        inputs={
            "bin/tool": File(d("tool"), 4, executable=True).as_input(),
            "data/": Tree(d("tree"), 3, 30).as_input(),
            "e\u0301": Link("é").as_input(),
            "é": File(d(""), 0).as_input(),
            "link": Link("../outside").as_input(),
            "\ue000": File(d("private"), 7).as_input(),
            "\U0001f600": File(d("astral"), 6).as_input(),
        },
        outputs=("z", "a", "dir/", "\U0001f600", "\ue000"),
        policy=Policy(
            sandbox="process",
            system="host",
            network="host",
            clock="frozen",
            random="seeded",
            path=("b", "a"),
            max_output_bytes=2**53 - 1,
        ),
        platform={"os": "linux", "arch": "aarch64"},
        cwd="src/deep",
        secrets=("TOKEN", "KEY"),
        stdin=d("input"),
        salt="again",
        roots={"/opt/sdk": d("sdk"), "/usr": d("system")},
        tools={"sh": d("dash")},
        discover=("b", "a"),
        discovered={},
    )
    empty = Request(command=("true",), env={}, inputs={}, outputs=(), policy=Policy(), platform=LINUX)
    return {
        "hello": hello,
        "compile": compile_step,
        "compile-discovered": discovered,
        "everything": everything,
        "empty": empty,
    }


def trees() -> dict[str, tuple[Tree, bytes]]:
    empty = make_tree({})
    inner = make_tree({"b.txt": File(d("b"), 1), "empty": empty[0]})
    outer: dict[str, Entry] = {
        "inner": inner[0],
        "tool": File(d("tool"), 4, executable=True),
        "Z": File(d("Z"), 1),
        "a-": File(d("a"), 1),
        "a": Link("inner/b.txt"),
        "é": Link("/absolute"),
        "\ue000": File(d("private"), 7),
        "\U0001f600": File(d("astral"), 6),
    }
    return {"empty": empty, "inner": inner, "outer": make_tree(outer)}


def results() -> dict[str, Result]:
    asked = requests()
    ok = make_result(
        asked["hello"],
        exit_code=0,
        termination="exited",
        stdout=Captured(),
        stderr=Captured(d("warning"), 7, truncated=True),
        outputs={"out.txt": File(d("hello"), 5)},
    )
    outputs: dict[str, Entry] = {
        "dir/": trees()["outer"][0],
        "z": Link("dir/tool"),
        "a": File(d("a"), 1, executable=True),
    }
    everything = make_result(
        asked["everything"],
        exit_code=0,
        termination="exited",
        stdout=Captured(d("out"), 3),
        stderr=Captured(),
        outputs=outputs,
    )
    killed = make_result(
        asked["empty"], exit_code=139, termination="signaled", stdout=Captured(), stderr=Captured(), outputs={}
    )
    return {"hello": ok, "everything": everything, "killed": killed}


def records() -> dict[str, Record]:
    found = results()
    plain = Record(
        request_digest=found["hello"].request_digest,
        result_digest=found["hello"].digest,
        when="2026-11-23T05:00:00.000Z",
        duration_ms=12,
        executor="local",
        host="builder-1",
        engine="1.0.0",
        protection={"level": "strict", "namespaces": ["mount", "pid", "user"], "landlock": 6, "seccomp": True},
    )
    full = Record(
        request_digest=found["everything"].request_digest,
        result_digest=found["everything"].digest,
        when="2026-11-23T05:00:00.000Z",
        duration_ms=0,
        executor="remote",
        host=HOSTILE,
        engine="1.0.0",
        protection={},
        leaks=("cpu model", "kernel version"),
        rusage={"user_ms": 1, "system_ms": 2, "max_rss_kib": 3},
        discovered=("include/a.h", "é.h"),
        asserted=("network",),
        signatures=({"keyid": "k", "sig": "c2ln"},),
    )
    return {"hello": plain, "everything": full}


def signed_record() -> Record:
    """With a key that everybody knows, so that the bytes are the same everywhere (Ed25519 has no randomness)."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from requiem_build.store import keys, seals

    secret = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    return seals.seal(records()["hello"], keys._key("golden", secret.public_key(), own=True, secret=secret))


def golden_bytes() -> dict[str, tuple[bytes, Digest]]:
    """Path below tests/golden -> its bytes, and the digest under which Requiem knows them."""
    found: dict[str, tuple[bytes, Digest]] = {}
    for name, request in requests().items():
        found[f"request/{name}.json"] = (request.encoded, request.digest)
    for name, result in results().items():
        found[f"result/{name}.json"] = (result.encoded, result.digest)
    for name, record in records().items():
        found[f"record/{name}.json"] = (record.encoded, object_digest(record.encoded))
    signed = signed_record().encoded
    found["record/signed.json"] = (signed, object_digest(signed))
    for name, (tree, content) in trees().items():
        found[f"tree/{name}.json"] = (content, tree.digest)
    trace = make_trace(requests()["hello"], 0, "exited", results()["hello"].outputs)
    found["trace/hello.json"] = (trace, results()["hello"].trace_digest)
    zstd = Meta(d("hello"), ZSTD, 100_000, 1234, d("frame")).encoded
    for name, content in (("identity", plain_meta(d("hello"), 5)), ("zstd", zstd)):
        found[f"meta/{name}.json"] = (content, object_digest(content))
    run = Run("20261123T050000Z-1", "w", "2026-11-23T05:00:00Z", True, 0, d("journal"), {"ran": 1, "hit": 2})
    found["run/first.json"] = (run.encoded, object_digest(run.encoded))
    return found


@pytest.fixture(scope="session")
def golden() -> dict[str, tuple[bytes, Digest]]:
    return golden_bytes()


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def schemas_folder() -> Path:
    return SCHEMAS


@pytest.fixture
def sample() -> Callable[[], Request]:
    """The request that has everything, for mutations."""
    return lambda: requests()["everything"]


@pytest.fixture
def all_requests() -> dict[str, Request]:
    return requests()


@pytest.fixture
def all_results() -> dict[str, Result]:
    return results()


@pytest.fixture
def all_records() -> dict[str, Record]:
    return records()


@pytest.fixture
def all_trees() -> dict[str, tuple[Tree, bytes]]:
    return trees()


@pytest.fixture
def in_domain() -> Callable[[Domain, bytes], Digest]:
    return digest
