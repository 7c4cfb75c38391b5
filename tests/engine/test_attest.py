"""Provenance and bills of materials, judged by other people's tools; and attestations that should not be believed."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage
from packageurl import PackageURL
from project import Project
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

pytestmark = pytest.mark.userns

MANIFEST = """
    [steps.compile]
    foreach.name = ["a", "b"]
    command = "cat src/{{ name }}.txt include/used.h > {{ output }}; echo '{{ output }}: include/used.h' > {{ depfile }}"
    inputs = ["src/{{ name }}.txt"]
    discover = ["include/*.h"]
    depfile = "build/{{ name }}.d"
    outputs = ["build/{{ name }}.o"]
    [steps.app]
    inputs = ["@compile", "data/"]
    command = "cat build/*.o data/* > {{ output }}"
    outputs = ["build/app"]
    [steps.pages]
    command = "mkdir -p pages/deep; cp build/app pages/deep/é; ln -s deep pages/link"
    inputs = ["build/app"]
    outputs = ["pages/"]
    [steps.test]
    inputs = ["build/app"]
    command = "test -s build/app"
    [steps.other]
    command = "echo other > other.txt"
    outputs = ["other.txt"]
"""


@pytest.fixture
def built(project: Project) -> Project:
    project.manifest(MANIFEST)
    for path in ("src/a.txt", "src/b.txt", "include/used.h", "include/unused.h", "data/one", "data/two"):
        project.write(path, f"{path}\n")
    project.build()
    return project


def sha256(project: Project, path: str) -> str:
    return hashlib.sha256((project.root / path).read_bytes()).hexdigest()


def statement(project: Project, *words: str) -> dict[str, Any]:
    ran = project.run("attest", *words, "--unsigned")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def names(value: dict[str, Any], kind: str) -> list[str]:
    found = value["predicate"]["buildDefinition"]["resolvedDependencies"]
    return [each["name"] for each in found if each["annotations"]["kind"] == kind]


def test_another_implementation_verifies_the_signature(built: Project) -> None:
    ran = built.run("attest", "app")
    envelope = Envelope.from_dict(json.loads(ran.out))
    pem = built.run("keys", "export").out.encode()
    key_id = json.loads(built.run("keys", "list", "--json").out)["keys"][0]["id"]
    assert envelope.verify([SSlibKey.from_crypto(load_pem_public_key(pem), keyid=key_id)], threshold=1)
    assert envelope.payload_type == "application/vnd.in-toto+json"
    builder = json.loads(envelope.payload)["predicate"]["runDetails"]["builder"]["id"]
    assert builder.endswith(f"#sha256:{key_id}")


def test_in_toto_reads_the_statement_and_slsa_the_predicate(built: Project) -> None:
    value = statement(built)
    theirs = Statement.copy_from_pb(json_format.ParseDict(value, StatementMessage()))
    theirs.validate()
    provenance = json_format.ParseDict(value["predicate"], Provenance())  # Refuses every unknown field.
    assert provenance.build_definition.build_type == "https://requiem.build/provenance/v1"
    assert len(provenance.build_definition.resolved_dependencies) > 5
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor

    for each in provenance.build_definition.resolved_dependencies:
        ResourceDescriptor.copy_from_pb(each).validate()


def test_subjects_are_what_was_made_file_by_file(built: Project) -> None:
    value = statement(built)
    digests = {each["name"]: each["digest"]["sha256"] for each in value["subject"]}
    assert sorted(digests) == ["other.txt", "pages/deep/é"]
    assert all(digest == sha256(built, path) for path, digest in digests.items())
    between = value["predicate"]["runDetails"]["byproducts"]
    assert [each["name"] for each in between] == ["build/a.o", "build/app", "build/b.o"]
    both = statement(built, "app", "pages")
    assert [each["name"] for each in both["subject"]] == ["build/app", "pages/deep/é"]
    assert [each["name"] for each in statement(built, "test", "app")["subject"]] == ["build/app"]


def test_the_read_set_is_all_that_was_read_and_nothing_else(built: Project) -> None:
    value = statement(built, "app")
    assert [each["name"] for each in value["subject"]] == ["build/app"]
    assert names(value, "source") == ["data/", "src/a.txt", "src/b.txt"]
    assert names(value, "discovered") == ["include/used.h"]
    assert names(value, "root") == ["/usr"]
    assert names(value, "tool") == ["bash"]
    found = value["predicate"]["buildDefinition"]["resolvedDependencies"]
    for each in found:
        if each["name"] in ("src/a.txt", "include/used.h"):
            assert each["digest"]["sha256"] == sha256(built, each["name"])
            own = built.run("digest", "object", each["name"]).out.strip()
            assert each["digest"]["requiem-cas-blake3-256"] == own
        assert "blake3" not in each["digest"]  # Ours has a domain in front: it is not that.
    steps = value["predicate"]["buildDefinition"]["internalParameters"]["steps"]
    assert [step["name"] for step in steps] == ["compile:a", "compile:b", "app"]
    report = {step["name"]: step for step in built.build().report["steps"]}
    assert all(step["request"] == report[step["name"]]["request_digest"] for step in steps)


def test_the_same_records_give_the_same_bytes(built: Project) -> None:
    assert built.run("attest").out == built.run("attest").out
    assert built.run("sbom").out == built.run("sbom").out


def test_what_was_not_built_is_not_attested(built: Project) -> None:
    built.manifest(MANIFEST + '\n    [steps.more]\n    command = "echo more > more"\n    outputs = ["more"]\n')
    assert 'step "more" has not been built here' in built.refuse("attest").err
    assert built.run("attest", "app").code == 0


def test_what_a_workspace_forgot_the_stores_journals_tell(built: Project, tmp_path: Path) -> None:
    """Its memory was deleted, or it is another user who asks: of the same checkout, with the same store."""
    unsigned = built.run("attest", "--unsigned", "app").out
    verdict = built.run("reproduce", "--json", "other")
    assert verdict.code == 0, verdict.err
    other = {"HOME": str(tmp_path / "other"), "XDG_CACHE_HOME": str(tmp_path / "other/cache")}
    asked = built.run("attest", "--unsigned", "app", env=other)
    assert (asked.code, asked.out) == (0, unsigned), asked.err
    assert built.run("reproduce", "other", "--json", env=other).code == 0
    shutil.rmtree(built.root / ".requiem")
    assert built.run("attest", "--unsigned", "app").out == unsigned
    assert built.run("sbom", "app").code == 0
    shutil.rmtree(built.root / ".requiem", ignore_errors=True)
    built.manifest(MANIFEST.replace("data/* > {{ output }}", "data/one > {{ output }}"))
    refused = built.refuse("attest", "app")
    assert 'step "app" was last built here under other settings, or before the manifest changed' in refused.err
    moved = Project(tmp_path / "moved")
    shutil.copytree(built.root, moved.root, dirs_exist_ok=True)
    shutil.rmtree(moved.root / ".requiem", ignore_errors=True)
    refused = moved.refuse("attest", "app")
    assert "has not been built here" in refused.err and "the journals of" in refused.err


def test_a_record_that_only_its_signer_filed_is_found(built: Project) -> None:
    built.write("../home/config/requiem/config.toml", "[trust]\nsign = true\n")
    built.build("--cache", "wo")
    wanted = json.loads(built.run("attest", "--unsigned", "other").out)["subject"]
    for path in (built.root / ".cas/records").glob("??/*"):
        path.unlink()
    assert json.loads(built.run("attest", "--unsigned", "other").out)["subject"] == wanted


def test_a_chain_whose_links_do_not_fit_is_not_attested(built: Project) -> None:
    built.write("src/a.txt", "changed\n")
    built.build("compile")
    refused = built.refuse("attest", "app")
    assert 'step "app" was built from another "build/a.o" than "compile:a" made last' in refused.err
    built.build("app")
    assert built.run("attest", "app").code == 0


def test_a_step_that_runs_each_time_is_not_attested(project: Project) -> None:
    project.manifest('[steps.now]\ncommand = "date > now"\noutputs = ["now"]\ncache = false\n')
    project.build()
    assert 'the store has no record of step "now"' in project.refuse("attest").err


# Verifying


def test_an_attestation_holds_where_the_files_are_the_ones(built: Project, tmp_path: Path) -> None:
    assert built.run("attest", "app", "other", "pages", "-o", "a.json").code == 0
    elsewhere = Project(tmp_path / "elsewhere")
    for path in ("build/app", "other.txt", "pages/deep/é"):
        elsewhere.write(path, (built.root / path).read_bytes())
    envelope = (built.root / "a.json").read_bytes()
    elsewhere.write("a.json", envelope)
    assert "signed by nobody you trust" in elsewhere.refuse("attest", "--verify", "a.json", expect=3).err
    built.run("keys", "export", "-o", str(elsewhere.root / "ci.pem"))
    elsewhere.run("keys", "trust", "ci", "ci.pem")
    ran = elsewhere.run("attest", "--verify", "a.json", "--json")
    assert ran.code == 0 and json.loads(ran.out)["signers"] == ["ci"]
    elsewhere.write("other.txt", "else\n")
    (elsewhere.root / "build/app").unlink()
    refused = elsewhere.refuse("attest", "--verify", "a.json", expect=3)
    assert '"other.txt" is another file' in refused.err and '"build/app" is not there' in refused.err
    elsewhere.run("keys", "revoke", "ci")
    assert "signed by nobody you trust" in elsewhere.refuse("attest", "--verify", "a.json", expect=3).err


def test_a_policy_says_whose_attestations_count(built: Project, tmp_path: Path) -> None:
    built.run("attest", "-o", "a.json")
    built.run("keys", "new", "other")
    built.write("../home/config/requiem/config.toml", '[trust]\naccept = ["other"]\n')
    assert "signed by nobody you trust" in built.refuse("attest", "--verify", "a.json", expect=3).err
    built.run("attest", "--key", "other", "-o", "a.json")
    assert built.run("attest", "--verify", "a.json").code == 0


def _resigned(built: Project, change: Any) -> dict[str, Any]:
    """The attestation with another statement, signed by the right key: only what it says is wrong."""
    from requiem_build.core.seal import STATEMENT_TYPE
    from requiem_build.core.seal import Envelope as Ours
    from requiem_build.store.keys import Keys

    value = json.loads(base64.b64decode(json.loads(built.run("attest").out)["payload"]))
    change(value)
    key = Keys(str(built.home / "config/requiem/keys")).signer()
    return key.sign(Ours(STATEMENT_TYPE, json.dumps(value).encode())).as_json()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.update(_type="x"), "not an in-toto Statement"),
        (lambda v: v.update(predicateType="x"), "not an in-toto Statement"),
        (lambda v: v.update(subject=[]), "speaks of nothing"),
        (lambda v: v["subject"][0].update(digest={}), "no sha256"),
        (lambda v: v["predicate"]["buildDefinition"].update(buildType="x"), "its buildType"),
        (lambda v: v["predicate"]["buildDefinition"]["externalParameters"].update(more=1), "externalParameters"),
        (lambda v: v.update(predicate={}), "no buildDefinition"),
    ],
)
def test_a_signed_statement_that_says_something_else_does_not_hold(built: Project, change: Any, said: str) -> None:
    built.write("a.json", json.dumps(_resigned(built, change)))
    assert said in built.refuse("attest", "--verify", "a.json", expect=3).err


def test_whatever_was_changed_since_it_was_signed_does_not_hold(built: Project) -> None:
    whole = json.loads(built.run("attest").out)
    payload = base64.b64decode(whole["payload"])

    def changed(**fields: Any) -> str:
        return json.dumps({**copy.deepcopy(whole), **fields})

    renamed = payload.replace(b'"other.txt"', b'"build/a.o"')
    flipped = bytes([payload[0] ^ 1]) + payload[1:]
    signature = whole["signatures"][0]
    for content in (
        changed(payload=base64.b64encode(renamed).decode()),
        changed(payload=base64.b64encode(flipped).decode()),
        changed(payloadType="application/vnd.requiem.record.v1+json"),
        changed(signatures=[]),
        changed(signatures=[{**signature, "sig": base64.b64encode(bytes(64)).decode()}]),
        changed(more=1),
        json.dumps(whole)[:-1] + ', "payload": "e30="}',
        "",
        "[]",
        "\0",
    ):
        built.write("a.json", content)
        assert built.run("attest", "--verify", "a.json").code == 3, content[:200]
    built.write("a.json", json.dumps(whole))
    assert built.run("attest", "--verify", "a.json").code == 0


# Bills of materials


def test_a_bill_is_what_cyclonedx_says(built: Project) -> None:
    ran = built.run("sbom", "-o", "bom.json")
    assert ran.code == 0, ran.err
    text = built.read("bom.json")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_a_bill_names_inputs_products_and_tools_with_their_packages(built: Project) -> None:
    bill = json.loads(built.run("sbom", "app").out)
    components = {each["bom-ref"].partition("@")[0]: each for each in bill["components"]}
    assert set(components) == {
        *("source:src/a.txt", "source:src/b.txt", "source:data/", "source:include/used.h"),
        *("output:build/a.o", "output:build/b.o", "tool:bash", "root:/usr"),
    }
    assert components["source:src/a.txt"]["hashes"] == [{"alg": "SHA-256", "content": sha256(built, "src/a.txt")}]
    assert [each["name"] for each in bill["metadata"]["component"]["components"]] == ["build/app"]
    if Path("/var/lib/dpkg/status").exists():
        url = PackageURL.from_string(components["tool:bash"]["purl"])
        assert (url.type, url.name) == ("deb", "bash") and components["tool:bash"]["version"] == url.version
    edges = {each["ref"]: each["dependsOn"] for each in bill["dependencies"]}
    assert edges["project"] == ["output:build/app"]
    assert {"output:build/a.o", "output:build/b.o", "source:data/"} <= set(edges["output:build/app"])
    assert {"source:src/a.txt", "source:include/used.h"} <= set(edges["output:build/a.o"])
    known = {"project", *edges, *(each["bom-ref"] for each in bill["components"])}
    assert {need for needs in edges.values() for need in needs} <= known
