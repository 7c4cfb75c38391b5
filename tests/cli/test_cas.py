"""`requiem cas ls|stats|verify|gc` as a user types them; every JSON is what its schema says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from project import SOURCE, Project

pytestmark = pytest.mark.userns

TWO = """
    [steps.a]
    command = "seq 20000 > a.txt; echo said"
    outputs = ["a.txt"]
    [steps.b]
    command = "cp a.txt b.txt"
    inputs = ["a.txt"]
    outputs = ["b.txt"]
"""


@pytest.fixture
def built(project: Project) -> Project:
    project.manifest(TWO)
    project.build()
    return project


def answer(project: Project, *words: str, expect: int = 0) -> dict[str, Any]:
    """The JSON of `requiem cas WORDS --json`, which must fit its schema."""
    ran = project.run("cas", *words, "--json")
    assert ran.code == expect, ran.err
    document = json.loads(ran.out)
    name = document["schema"].removeprefix("requiem.").removesuffix("/1")
    assert name == f"cas-{words[0]}"
    jsonschema.validate(document, json.loads(Path(SOURCE, "schemas", f"{name}.schema.json").read_text()))
    return document


def test_stats_count_by_kind_and_tenant_and_tell_ratios_and_hits(built: Project) -> None:
    (built.root / "a.txt").unlink()
    (built.root / ".requiem/memory").unlink()
    assert built.build().counts == {"hit": 1, "fresh": 1}
    found = answer(built, "stats")
    kinds = found["kinds"]
    assert {name: kinds[name]["count"] for name in ("objects", "records", "runs")} == {
        "objects": 7,  # Also the manifest, for replay, and the list of packages that the steps saw.
        "records": 2,
        "runs": 2,
    }
    assert found["size"] == sum(kind["bytes"] for kind in kinds.values())
    assert found["tenants"]["default"]["bytes"] == found["size"] - sum(
        kinds[kind]["bytes"] for kind in ("quarantine", "temporary")
    )
    assert found["dedup_ratio"] == pytest.approx(2, abs=0.01), "both steps gave the same file"
    assert found["size_max"] == 10 << 30
    (day,) = found["days"].values()
    assert (day["runs"], day["hit"], day["ran"], day["fresh"], day["hit_rate"]) == (2, 1, 2, 1, 0.3333)
    shown = built.run("cas", "stats").out
    assert "10.0 GiB" in shown and "2.00x" in shown and "33% hits" in shown


def test_ls_filters_and_sorts(built: Project) -> None:
    everything = answer(built, "ls", "--kind", "all")["entries"]
    assert {row["kind"] for row in everything} == {"objects", "records", "runs"}
    by_size = answer(built, "ls", "--sort", "size")["entries"]
    assert [row["size"] for row in by_size] == sorted((row["size"] for row in by_size), reverse=True)
    assert by_size[0]["size"] == (built.root / "a.txt").stat().st_size
    name = by_size[0]["name"]
    assert answer(built, "ls", name[:8])["entries"] == [by_size[0]]
    assert built.run("cas", "ls", name[:8]).out.split()[0] == name
    used = [row["used"] for row in answer(built, "ls", "--sort", "used", "--kind", "records")["entries"]]
    assert used == sorted(used, reverse=True) and len(used) == 2
    built.refuse("cas", "ls", "--kind", "things")
    built.refuse("cas", "ls", "--sort", "colour")


def test_gc_says_what_goes_before_and_after(built: Project) -> None:
    said = answer(built, "gc", "--max-size", "1KiB", "--dry-run")
    assert said["dry_run"] and said["removed"]["records"] == 2 and said["freed_bytes"] > 100_000
    assert answer(built, "stats")["kinds"]["records"]["count"] == 2
    done = answer(built, "gc", "--max-size", "1KiB")
    assert {**done, "dry_run": True} == said
    assert answer(built, "stats")["size"] == 0
    assert "freed 0 B (nothing)" in built.run("cas", "gc").out
    for words in (["--max-size", "big"], ["--max-age", "old"]):
        built.refuse("cas", "gc", *words)
    (built.root / "b.txt").unlink()
    assert built.build().counts == {"fresh": 1, "ran": 1}, "what is gone costs a run"


def test_verify_names_the_damaged_with_exit_3_and_repair_lets_the_next_build_make_it_again(built: Project) -> None:
    assert answer(built, "verify")["damaged"] == []
    digest = built.run("cas", "put", "a.txt").out.strip()
    path = Path(built.run("cas", "path", digest).out.strip())
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = answer(built, "verify", expect=3)
    assert [one["digest"] for one in found["damaged"]] == [digest] and len(found["unanswerable"]) == 2
    plain = built.run("cas", "verify")
    assert plain.code == 3 and plain.out.startswith(digest) and "hint: requiem cas verify --repair" in plain.err
    repaired = answer(built, "verify", "--repair", expect=3)
    assert repaired["repaired"] and len(repaired["unanswerable"]) == 2
    assert answer(built, "verify")["ok"]
    (built.root / "a.txt").unlink()
    (built.root / "b.txt").unlink()
    assert built.build().counts == {"ran": 1, "hit": 1}, "the second gave the same bytes as the first"
    assert answer(built, "verify")["ok"]


def test_the_bound_comes_from_the_user_then_from_the_manifest_of_the_stores_own_workspace(built: Project) -> None:
    def bound(**env: str) -> int:
        return int(json.loads(built.run("cas", "stats", "--json", env=env).out)["size_max"])

    built.manifest('[store]\nmax_size = "3GiB"\n' + "\n".join(line[4:] for line in TWO.splitlines()))
    assert bound() == 3 << 30
    assert bound(REQUIEM_CAS_DIR=str(built.root / ".cas")) == 10 << 30, "it is not this workspace's own"
    config = built.home / "config/requiem/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[store]\nmax_size = "5GiB"\n')
    assert bound() == 5 << 30
    config.write_text("[store]\nmax_size = 4096\n")
    assert bound() == 4096
    config.write_text('[store]\nmax_size = "much"\n')
    built.refuse("cas", "stats")
    config.write_text("[store]\nmax_size = true\n")
    built.refuse("build")


def test_a_store_over_its_size_is_cleaned_after_the_build_that_made_it_so(project: Project) -> None:
    project.manifest("""
        [store]
        max_size = "1MiB"
        [vars]
        n = "0"
        [steps.a]
        command = "seq {{ n }} 60000 > a.txt"
        outputs = ["a.txt"]
    """)
    for number in range(8):  # Each adds a third of a MiB.
        project.build("--set", f"n={number}")
    (project.root / ".cas/v2/size").unlink()  # What was never counted is due, however quick the builds have been.
    project.build("--set", "n=11")
    assert answer(project, "stats")["size"] <= 1 << 20, "it was cleaned"
    assert answer(project, "verify")["ok"] and answer(project, "verify")["unanswerable"] == []
    (project.root / "a.txt").unlink()
    assert project.build("--set", "n=11").counts == {"hit": 1}, "what was used last is there"


def test_log_passes_over_a_run_whose_journal_is_gone(built: Project) -> None:
    (built.root / "a.txt").unlink()
    built.build()
    newest = sorted((built.root / ".cas/runs").iterdir())[-1]
    journal = json.loads(newest.read_text())["journal"]
    os.unlink(built.root / f".cas/v2/objects/{journal[:2]}/{journal[2:4]}/{journal}")
    assert built.run("log", "a").out == "said\n"


@pytest.mark.parametrize("size", [100, 5_000_000])
def test_put_mends_an_object_of_the_right_size_with_other_bytes(project: Project, size: int) -> None:
    """That a name exists, with the right size, says nothing of its bytes."""
    project.manifest("")
    project.write("file", b"0123456789" * (size // 10))
    digest = project.run("cas", "put", "file").out.strip()
    path = Path(project.run("cas", "path", digest).out.strip())
    assert path.name == digest
    path.chmod(0o644)
    path.write_bytes(b"9876543210" * (size // 10))
    assert project.run("cas", "put", "file").out.strip() == digest
    assert project.run("cas", "get", digest, "-o", "back").code == 0
    assert (project.root / "back").read_bytes() == (project.root / "file").read_bytes()
    assert project.run("cas", "verify").code == 0


def test_a_store_that_can_lie_nowhere_is_exit_4_and_says_what_to_change(project: Project) -> None:
    project.manifest('[steps.one]\ncommand = "true"\n')
    refused = project.refuse("build", env={"REQUIEM_CAS_DIR": "/proc/nowhere"}, expect=4)
    assert "path:  /proc/nowhere" in refused.err and "hint: say with REQUIEM_CAS_DIR" in refused.err
