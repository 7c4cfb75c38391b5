"""Bytes and digests that must never change by accident: `pytest --update-golden` writes them anew for review."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest

from requiem_build.core.canonical import encode, encode_plain, parse
from requiem_build.core.digest import Domain, digest
from requiem_build.core.entries import parse_tree
from requiem_build.core.errors import RequestError
from requiem_build.core.request import parse_request
from requiem_build.core.result import parse_record, parse_result
from requiem_build.store.encoding import Malformed, parse_meta

DOMAINS = {"request": Domain.REQUEST, "result": Domain.RESULT}


def test_every_document_has_its_golden_bytes_and_digest(
    golden, golden_folder: Path, pytestconfig: pytest.Config
) -> None:
    if pytestconfig.getoption("--update-golden"):
        for name, (content, _) in golden.items():
            (golden_folder / name).parent.mkdir(parents=True, exist_ok=True)
            (golden_folder / name).write_bytes(content)
        digests = {name: name_digest for name, (_, name_digest) in sorted(golden.items())}
        (golden_folder / "digests.json").write_text(json.dumps(digests, indent=2) + "\n")
    kept = json.loads((golden_folder / "digests.json").read_text())
    assert sorted(kept) == sorted(golden)
    for name, (content, name_digest) in golden.items():
        assert (golden_folder / name).read_bytes() == content, name
        assert kept[name] == name_digest, name


def test_golden_digests_are_what_b3sum_says(golden_folder: Path) -> None:
    """An independent judge of the bytes on disk: no code of ours is asked."""
    b3sum = shutil.which("b3sum")
    if b3sum is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("NOT TESTED: needs b3sum (apt install b3sum)")
    for name, name_digest in json.loads((golden_folder / "digests.json").read_text()).items():
        prefix = {"request": b"req:", "result": b"res:"}.get(name.split("/")[0], b"cas:")
        content = prefix + (golden_folder / name).read_bytes()
        judged = subprocess.run([b3sum, "--no-names"], input=content, capture_output=True, check=True)
        assert judged.stdout.decode().strip() == name_digest, name


def test_golden_documents_are_canonical_by_an_independent_encoder(golden) -> None:
    for name, (content, _) in golden.items():
        assert encode(parse(content)) == content, name


def test_what_is_read_back_is_what_was_written(all_requests, all_results, all_records, all_trees) -> None:
    for request in all_requests.values():
        assert parse_request(request.encoded).encoded == request.encoded
        assert parse_request(request.encoded).digest == request.digest
    for result in all_results.values():
        assert parse_result(result.encoded) == result
    for record in all_records.values():
        assert parse_record(parse(record.encoded)) == record
    for tree, content in all_trees.values():
        children = parse_tree(content)
        assert [name for name, _ in children] == sorted((name for name, _ in children), key=str.encode)
        assert digest(Domain.OBJECT, content) == tree.digest


def test_a_tree_counts_all_below_it(all_trees) -> None:
    assert (all_trees["empty"][0].files, all_trees["empty"][0].size) == (0, 0)
    assert (all_trees["inner"][0].files, all_trees["inner"][0].size) == (1, 1)
    assert (all_trees["outer"][0].files, all_trees["outer"][0].size) == (8, 20)


# -- schemas ---------------------------------------------------------------------------------------------

KINDS = ("request", "result", "record", "meta")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, golden, schemas_folder: Path):
    schema = json.loads((schemas_folder / f"{request.param}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    documents = {name: parse(content) for name, (content, _) in golden.items() if name.startswith(request.param)}
    assert documents
    return request.param, jsonschema.Draft202012Validator(schema), documents


def test_every_golden_document_fits_its_schema(kind) -> None:
    _, validator, documents = kind
    for name, document in documents.items():
        assert [error.message for error in validator.iter_errors(document)] == [], name


def mutations(document: dict[str, object]):
    """Each field gone, of another type, and one unknown field more; and the same inside the first level of objects."""
    yield "more", {**document, "unknown": 1}
    for name, value in document.items():
        yield f"-{name}", {key: other for key, other in document.items() if key != name}
        for wrong in ([], {}, 1.5, True, None, "wrong\0"):
            if type(wrong) is not type(value):
                yield f"{name}={wrong!r}", {**document, name: wrong}


ACCEPTED_NULLS = {"depfile", "discovered", "stdin"}


def refused_by_us(kind: str, document: dict[str, object]) -> bool:
    try:
        if kind == "request":
            parse_request(encode(document))
        elif kind == "result":
            parse_result(encode(document))
        elif kind == "record":
            parse_record(parse(encode(document)))
        else:
            parse_meta(encode(document), document["digest"], 0)
    except (RequestError, Malformed, KeyError):
        return True
    return False


def test_mutated_documents_are_refused_by_the_schema_and_by_us(kind) -> None:
    name, validator, documents = kind
    tried = 0
    for document in documents.values():
        for what, mutated in mutations(document):
            field, _, value = what.partition("=")
            if value == "None" and field in ACCEPTED_NULLS:
                continue
            if (name, field, value) in {("request", "discovered", "{}"), ("record", "discovered", "[]")}:
                continue  # Nothing was read: a state of its own, beside null.
            assert not validator.is_valid(mutated), what
            assert refused_by_us(name, mutated), what
            tried += 1
    assert tried > 30


@pytest.mark.parametrize(
    ("kind_name", "change"),
    [
        ("request", {"schema": "requiem.request/2"}),
        ("request", {"command": []}),
        ("request", {"world": 2}),
        ("request", {"inputs": {"../x": {"symlink": "y"}}}),
        ("request", {"inputs": {"/x": {"symlink": "y"}}}),
        ("request", {"inputs": {"a//b": {"symlink": "y"}}}),
        ("request", {"inputs": {"a": {"tree": "0" * 64}}}),
        ("request", {"inputs": {"a/": {"symlink": "b"}}}),
        ("request", {"inputs": {"a": {"symlink": ""}}}),
        ("request", {"inputs": {"a": {"symlink": "b\0"}}}),
        ("request", {"inputs": {"a\0b": {"symlink": "c"}}}),
        ("request", {"inputs": {"a": {"digest": "0" * 63, "executable": False}}}),
        ("request", {"inputs": {"a": {"digest": "A" * 64, "executable": False}}}),
        ("request", {"inputs": {"a": {"digest": "0" * 64, "executable": 1}}}),
        ("request", {"outputs": ["."]}),
        ("request", {"outputs": ["a/../b"]}),
        ("request", {"cwd": ""}),
        ("request", {"cwd": "a/../.."}),
        ("request", {"depfile": "../d"}),
        ("request", {"env": {"A=B": "c"}}),
        ("request", {"env": {"": "c"}}),
        ("request", {"stdin": "sha256:" + "0" * 64}),
        ("request", {"discovered": {"a": "gone"}}),
        ("request", {"platform": {"os": "linux"}}),
        ("request", {"policy": {}}),
        ("result", {"schema": "requiem.result/2"}),
        ("result", {"termination": "finished"}),
        ("result", {"exit_code": True}),
        ("result", {"outputs": {"/abs": {"symlink": "x"}}}),
        ("result", {"outputs": {"a": {"digest": "0" * 64, "size": -1, "executable": False}}}),
        ("result", {"outputs": {"a": {"digest": "0" * 64, "executable": False}}}),
        ("result", {"stdout": {"digest": "0" * 64, "size": 1}}),
        ("record", {"schema": "requiem.record/2"}),
        ("record", {"duration_ms": -1}),
        ("record", {"leaks": [1]}),
        ("record", {"signatures": ["x"]}),
        ("record", {"rusage": {"a": "b"}}),
        ("meta", {"encoding": "lz4"}),
        ("meta", {"original_size": -1}),
        ("meta", {"algorithm": "sha256"}),
    ],
    ids=str,
)
def test_what_breaks_a_rule_is_refused_by_the_schema_and_by_us(
    kind_name: str, change: dict[str, object], golden, schemas_folder: Path
) -> None:
    schema = json.loads((schemas_folder / f"{kind_name}.schema.json").read_text())
    name = "meta/identity.json" if kind_name == "meta" else f"{kind_name}/everything.json"
    document = {**parse(golden[name][0]), **change}
    assert not jsonschema.Draft202012Validator(schema).is_valid(document)
    assert refused_by_us(kind_name, document)


# -- trees from outside ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tree",
    [
        {},
        [["a"]],
        [["a", {}]],
        [["..", {"symlink": "x"}]],
        [[".", {"symlink": "x"}]],
        [["", {"symlink": "x"}]],
        [["a/b", {"symlink": "x"}]],
        [["a\0", {"symlink": "x"}]],
        [["b", {"symlink": "x"}], ["a", {"symlink": "x"}]],
        [["a", {"symlink": "x"}], ["a", {"symlink": "x"}]],
        [["a", {"symlink": ""}]],
        [["a", {"tree": "0" * 64, "files": 1}]],
        [[1, {"symlink": "x"}]],
    ],
    ids=str,
)
def test_a_tree_that_could_leave_its_place_or_be_spelled_in_two_ways_is_refused(tree: object) -> None:
    with pytest.raises(RequestError):
        parse_tree(encode_plain(tree))


def test_a_tree_with_spaces_is_refused(all_trees) -> None:
    with pytest.raises(RequestError, match="canonical"):
        parse_tree(all_trees["outer"][1] + b"\n")
