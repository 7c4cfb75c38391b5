"""A run is what it says it was, or replay says what is not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from project import SOURCE, Project

from requiem_build.core import canonical
from requiem_build.core.digest import Digest
from requiem_build.core.errors import IntegrityError
from requiem_build.core.result import parse_result
from requiem_build.engine.journal import journal_lines
from requiem_build.engine.replay import Replayed, replay
from requiem_build.store import reading
from requiem_build.store.layout import Store

pytestmark = pytest.mark.userns

CHAIN = """
    [steps.one]
    command = "echo 1 > a.txt; echo said"
    inputs = ["in.txt"]
    outputs = ["a.txt"]
    [steps.two]
    command = "mkdir d; cp a.txt d/b.txt"
    inputs = ["a.txt"]
    outputs = ["d/"]
"""


def store_of(project: Project) -> Store:
    return Store(project.root / ".cas", read_only=True)


def check(project: Project, run: str) -> Replayed:
    return replay(store_of(project), run)


def built(project: Project, manifest: str = CHAIN, *arguments: str, expect: int = 0) -> str:
    project.write("in.txt", "hello\n")
    project.manifest(manifest)
    return str(project.build(*arguments, expect=expect).report["run"])


def test_a_run_holds_whether_its_steps_ran_were_hits_or_fresh(project: Project) -> None:
    runs = [built(project)]
    runs.append(project.build().report["run"])
    shutil.rmtree(project.root / "d")
    runs.append(project.build().report["run"])
    shutil.rmtree(project.root / ".requiem")
    runs.append(project.build().report["run"])
    for run in runs:
        ran = project.run("replay", run, "--json")
        assert ran.code == 0, ran.out
        assert ran.report["steps"] == 2 and ran.report["problems"] == []
    assert project.run("replay").err.startswith(f"run {runs[-1]} holds: 2 steps, ")


LONG = 8192
"""Bytes."""


def flip_each(project: Project, run: str, paths: list[Path]) -> int:
    """Flips a bit of every byte of files, one at a time, and demands that each is found. How many that were."""
    missed, flipped = [], 0
    for path in paths:
        content = path.read_bytes()
        path.chmod(0o644)
        # The list of a system's files is by far the longest, and read as one piece: of it some, others each second.
        every = 1 if len(content) < LONG or os.environ.get("REQUIEM_EXHAUSTIVE") else 16
        with open(path, "r+b", buffering=0) as file:
            for at in range(int(time.time()) % every, len(content), every):
                os.pwrite(file.fileno(), bytes([content[at] ^ 1]), at)
                try:
                    found = not check(project, run).ok
                except IntegrityError:  # A mark that is damaged is refused before anything is read.
                    found = True
                if not found:
                    missed.append((str(path.relative_to(project.root)), at, content[max(0, at - 20) : at + 5]))
                os.pwrite(file.fileno(), content[at : at + 1], at)
                flipped += 1
    assert missed == []
    assert check(project, run).ok
    return flipped


ONE = CHAIN.split("[steps.two]", maxsplit=1)[0]
MANY = "[steps.many]\ncommand = 'mkdir m; for i in $(seq 16); do echo $i > m/$i; done'\noutputs = ['m/']\n"


@pytest.mark.timeout(600)
def test_every_single_changed_byte_is_found(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "TRIES_S", (0.0,))  # Nobody else writes here: no reason to look again.
    run = built(project, ONE)
    skipped = {".gitignore", "CACHEDIR.TAG", "size"}  # No run rests on them; `size` is how large the store is, about.
    everything = [p for p in sorted((project.root / ".cas").rglob("*")) if p.is_file() and p.name not in skipped]
    assert flip_each(project, run, everything) > 4000


def test_every_single_changed_byte_of_a_pack_is_found(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "TRIES_S", (0.0,))
    run = built(project, MANY)
    assert flip_each(project, run, list((project.root / ".cas/v2/packs").iterdir())) > 800


def test_what_a_step_with_discover_read_is_part_of_the_proof(project: Project) -> None:
    project.write("inc/x.h", "x\n")
    run = built(
        project,
        '[steps.one]\ncommand = "cat in.txt inc/* > a.txt"\ninputs = ["in.txt"]\ndiscover = ["inc/*.h"]\noutputs = ["a.txt"]\n',
    )
    assert check(project, run).ok
    assert project.run("replay", "--execute").code == 0
    (sets,) = (project.root / ".cas/records/paths").rglob("*/*")
    sets.chmod(0o644)
    sets.write_bytes(sets.read_bytes().replace(b"inc/x.h", b"inc/y.h"))
    assert [problem.what for problem in check(project, run).problems] == [
        "what it read is not among the known path sets"
    ]


def relisted(project: Project, run: str, lines: list[bytes]) -> Replayed:
    """The run with another journal that its listing names rightly: only the journal's own sense can tell."""
    store = Store(project.root / ".cas")
    journal = store.objects.put(b"".join(line + b"\n" for line in lines))
    entry = project.root / ".cas/runs" / run
    before = entry.read_bytes()
    changed = json.loads(before) | {"journal": journal}
    entry.chmod(0o644)
    entry.write_bytes(canonical.encode_plain(changed))
    try:
        return replay(store, run)
    finally:
        entry.write_bytes(before)


def lines_of(project: Project, run: str) -> list[bytes]:
    store = store_of(project)
    return list(journal_lines(store, store.runs.get(run).journal))


@pytest.mark.parametrize("mode", ["turbo", "repro"])
def test_a_journal_with_a_line_lost_doubled_or_swapped_is_found(project: Project, mode: str) -> None:
    run = built(project, CHAIN, "--mode", mode)
    lines = lines_of(project, run)
    assert relisted(project, run, lines).ok
    for at in range(len(lines)):
        without = relisted(project, run, [*lines[:at], *lines[at + 1 :]])
        started = json.loads(lines[at])["event"] == "step_started"
        assert started or not without.ok, lines[at]
        assert not relisted(project, run, [*lines[: at + 1], *lines[at:]]).ok, lines[at]
        cut = relisted(project, run, lines[:at])
        assert any("cut off" in problem.what for problem in cut.problems)
    steps = [at for at, line in enumerate(lines) if json.loads(line)["event"] == "step_finished"]
    swapped = list(lines)
    swapped[steps[0]], swapped[steps[1]] = lines[steps[1]], lines[steps[0]]
    assert any("needs" in problem.what for problem in relisted(project, run, swapped).problems)


def test_all_that_is_wrong_is_listed(project: Project) -> None:
    run = built(project)
    store = store_of(project)
    wrong = {}
    for kept in store.records:
        for captured in (kept.result.stdout, *kept.result.outputs.values()):
            if captured.size:
                wrong[captured.digest] = store.objects.path(captured.digest)
    for path in wrong.values():
        os.unlink(path)
    ran = project.run("replay", "--json")
    assert ran.code == 3
    named = {problem["where"].rsplit("/")[-1] for problem in ran.report["problems"]}
    assert named == set(wrong) and len(wrong) >= 3
    assert ran.report["run"] == run
    shown = project.run("replay")
    assert shown.code == 3 and 'step "one": output "a.txt": ' in shown.out and "problems" in shown.err


def test_a_damaged_listing_of_the_last_run_is_not_passed_over(project: Project) -> None:
    built(project)
    shutil.rmtree(project.root / ".requiem")
    run = project.build().report["run"]
    path = project.root / ".cas/runs" / run
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    ran = project.run("replay")
    assert ran.code == 3 and run in ran.err


def test_what_is_not_recorded_is_proven_by_the_journal_itself(project: Project) -> None:
    manifest = """
        [steps.each]
        command = "cat in.txt > a.txt"
        inputs = ["in.txt"]
        outputs = ["a.txt"]
        cache = false
        [steps.bad]
        command = "echo no >&2; exit 3"
        inputs = ["in.txt"]
        [steps.after]
        needs = ["bad"]
        command = "true"
    """
    run = built(project, manifest, "-k", expect=1)
    assert list((project.root / ".cas/records").glob("??/*")) == []
    ran = project.run("replay", "--execute", "--json")
    assert ran.code == 0, ran.out
    assert ran.report["executed"] == 2 and ran.report["steps"] == 3
    lines = lines_of(project, run)
    at = next(at for at, line in enumerate(lines) if b'"name":"bad"' in line and b"step_finished" in line)
    event = json.loads(lines[at])
    event["result"]["exit_code"] = 4
    lines[at] = canonical.encode_plain(event)
    assert {problem.step for problem in relisted(project, run, lines).problems} == {"bad"}
    event = json.loads(lines_of(project, run)[at])
    event["result"]["trace_digest"] = "0" * 64  # A result that is whole, and of other events.
    forged = parse_result(canonical.encode_plain(event["result"])).digest
    event["result_digest"] = event["record"]["result_digest"] = forged
    lines[at] = canonical.encode_plain(event)
    (found,) = relisted(project, run, lines).problems
    assert found.what.startswith("trace mismatch: ")


def test_execute_demands_the_recorded_results(project: Project) -> None:
    built(
        project,
        """
        [steps.same]
        command = "cp in.txt a.txt"
        inputs = ["in.txt"]
        outputs = ["a.txt"]
        [steps.random]
        command = "head -c 16 /dev/urandom > r.bin; mkdir d; date +%s%N > d/when"
        outputs = ["r.bin", "d/"]
    """,
    )
    project.root.joinpath("in.txt").write_text("edited since\n")
    ran = project.run("replay", "--execute", "--json")
    assert ran.code == 3
    assert [(p["step"], p["what"]) for p in ran.report["problems"]] == [
        ("random", 'run again, output "d/" differs'),
        ("random", 'run again, output "r.bin" differs'),
    ]
    assert ran.report["executed"] == 2
    assert project.run("replay").code == 0


def snapshot(root: Path) -> list[tuple[str, int, int]]:
    return [
        (str(path), path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in sorted(root.rglob("*"))
        if path.name != "lock"
    ]


def test_replay_writes_nothing_and_works_where_nothing_can_be_written(project: Project) -> None:
    built(project)
    before = snapshot(project.root)
    assert project.run("replay", "--execute").code == 0
    (output,) = [p for p in (project.root / ".cas/v2/objects").rglob("*") if p.name.startswith("888c953e")] or [None]
    assert output is None
    assert snapshot(project.root) == before
    script = (
        f"mount --bind {project.root} {project.root} && mount -o remount,bind,ro {project.root} && cd {project.root} "
        f"&& ! touch x 2>/dev/null && {sys.executable} -m requiem_build replay --execute"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], env=project.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "2 run again" in done.stderr


def test_memory_stays_flat_whatever_the_journals_size(project: Project) -> None:
    run = built(project)
    lines = lines_of(project, run)
    at_ms = json.loads(lines[-1])["at_ms"]
    noise = canonical.encode_plain({"at_ms": at_ms, "event": "warned", "text": "x" * 4000})
    store = Store(project.root / ".cas")
    path = project.base / "journal"
    with open(path, "w+b") as file:
        for line in lines[:-1]:
            file.write(line + b"\n")
        for _ in range(20_000):
            file.write(noise + b"\n")
        file.write(lines[-1] + b"\n")
        file.flush()
        journal, size = store.objects.put_file(file.fileno())
    assert size > 64 << 20
    entry = project.root / ".cas/runs" / run
    entry.chmod(0o644)
    entry.write_bytes(canonical.encode_plain(json.loads(entry.read_bytes()) | {"journal": journal}))
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from requiem_build.engine.replay import replay\n"
        "from requiem_build.store.layout import Store\n"
        "store = Store(Path(sys.argv[1]), read_only=True)\n"
        "replay(store, sys.argv[3])\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), used + (24 << 20)))\n"
        "found = replay(store, sys.argv[2])\n"
        "assert found.ok and found.steps == 2, found.problems\n"
    )
    other = project.build().report["run"]
    done = subprocess.run(
        [sys.executable, "-c", program, str(project.root / ".cas"), run, other],
        env=project.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# The journal itself


def runs_of(project: Project) -> list[dict[str, object]]:
    return [json.loads(path.read_bytes()) for path in sorted((project.root / ".cas/runs").iterdir())]


def test_the_journal_of_a_failed_and_of_an_interrupted_run_is_listed(project: Project) -> None:
    built(
        project,
        '[steps.bad]\ncommand = "exit 1"\n[steps.slow]\ncommand = "touch started; exec sleep 30"\n',
        "bad",
        expect=1,
    )
    with project.start("build", "slow", "--sandbox", "none") as process:
        deadline = time.monotonic() + 20
        while not project.exists("started") and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert [(run["ok"], run["exit_code"]) for run in runs_of(project)] == [(False, 1), (False, 130)]
    for run in runs_of(project):
        assert check(project, str(run["run"])).problems == []
    assert list((project.root / ".requiem/tmp").iterdir()) == []


def test_the_journal_of_a_run_that_could_not_go_on_is_listed(project: Project) -> None:
    project.manifest('[steps.one]\ncommand = "true"\ntools = ["no-such-tool"]\n')
    project.refuse("build")
    (run,) = runs_of(project)
    assert (run["ok"], run["exit_code"]) == (False, 2)
    assert check(project, str(run["run"])).problems == []
    assert any(b"no-such-tool" in line for line in lines_of(project, str(run["run"])))


def test_the_manifest_is_in_the_store(project: Project) -> None:
    run = built(project)
    manifest = check(project, run).manifest["requiem.toml"]
    assert manifest is not None
    assert store_of(project).objects.get(Digest(manifest)) == (project.root / "requiem.toml").read_bytes()


def test_what_a_run_rests_on_survives_a_collection(project: Project) -> None:
    manifest = """
        [steps.each]
        command = "mkdir d; cat in.txt > d/a.txt"
        inputs = ["in.txt"]
        outputs = ["d/"]
        cache = false
        [steps.recorded]
        command = "cp in.txt b.txt"
        inputs = ["in.txt"]
        outputs = ["b.txt"]
    """
    run = built(project, manifest)
    long_ago = time.time() - 40 * 86400
    for path in (project.root / ".cas/v2").rglob("*"):
        if path.is_file():
            os.utime(path, (long_ago, long_ago))
    assert project.run("cas", "gc").code == 0
    assert check(project, run).problems == []


def test_a_signature_that_does_not_hold_and_a_damaged_record_of_any_writer_are_found(project: Project) -> None:
    project.write("../home/config/requiem/config.toml", '[trust]\nsign = true\naccept = ["local"]\n')
    run = built(project, ONE)
    assert project.run("replay").code == 0
    everybodys = next((project.root / ".cas/records").glob("[0-9a-f][0-9a-f]/*"))
    scoped = next((project.root / ".cas/records/signed").glob("*/[0-9a-f][0-9a-f]/*"))
    for path, old, new in (
        (scoped, b'"termination":"exited"', b'"termination":"exitex"'),
        (everybodys, b'"host":"', b'"host":"x'),
    ):
        content = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(content.replace(old, new, 1))
        assert not check(project, run).ok or project.run("replay").code == 3, path
        path.write_bytes(content)
    kept = json.loads(scoped.read_bytes())
    signature = kept["record"]["signatures"][0]["signatures"][0]
    signature["sig"] = ("B" if signature["sig"][0] == "A" else "A") + signature["sig"][1:]
    for path in (scoped, everybodys):
        path.chmod(0o644)
        path.write_bytes(canonical.encode_plain(kept))
    ran = project.run("replay")
    assert ran.code == 3 and "a signature of its record is invalid" in ran.out


# Timelines


def test_a_timeline_is_what_perfetto_documents(project: Project) -> None:
    """Trace Event Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU."""
    project.write("in.txt", "x")
    project.manifest(CHAIN + '[steps.other]\ncommand = "true"\n')
    assert project.run("build", "--timeline", "t.json").code == 0
    assert project.run("replay", "--timeline", "again.json").code == 0
    assert project.read("t.json") == project.read("again.json")
    document = json.loads(project.read("t.json"))
    events = document["traceEvents"]
    for event in events:
        assert {"name", "ph", "pid", "tid", "ts"} <= event.keys() and event["ts"] >= 0, event
        assert event["ph"] in "XibeM"
        assert event["ph"] != "X" or event["dur"] >= 0
        assert event["ph"] not in "be" or {"id", "cat"} <= event.keys()
        assert event["ph"] != "i" or event["s"] in "gpt"
    steps = {event["name"]: event for event in events if event["ph"] == "X"}
    assert steps.keys() == {"one", "two", "other"}
    assert steps["one"]["ts"] + steps["one"]["dur"] <= steps["two"]["ts"]
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert all(lanes[step["tid"]] == f"worker {step['tid']}" for step in steps.values())
    for one in steps.values():  # A worker does one thing at a time.
        for two in steps.values():
            if one is not two and one["tid"] == two["tid"]:
                assert one["ts"] + one["dur"] <= two["ts"] or two["ts"] + two["dur"] <= one["ts"]
    begun = [event["id"] for event in events if event["ph"] == "b"]
    assert begun == [event["id"] for event in events if event["ph"] == "e"]
    assert project.run("build", "--timeline", "hits.json").code == 0
    hits = [event for event in json.loads(project.read("hits.json"))["traceEvents"] if event["ph"] == "i"]
    assert {event["cat"] for event in hits} == {"fresh", "run"}
    project.refuse("build", "-n", "--timeline", "t.json")
    assert project.run("build", "--timeline", "no/such/t.json").code == 4


def documents(project: Project) -> Iterator[dict[str, object]]:
    yield project.run("replay", "--json").report
    shutil.rmtree(project.root / ".cas/v2/objects")
    yield project.run("replay", "--json").report


def test_replay_answers_as_its_schema_says(project: Project) -> None:
    built(project)
    schema = json.loads(Path(SOURCE, "schemas/replay.schema.json").read_text())
    for document in documents(project):
        jsonschema.validate(document, schema)
    assert not document["ok"]
