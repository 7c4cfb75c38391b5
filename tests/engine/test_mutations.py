"""Any single byte changed anywhere is found: in the store of a signed and reproduced run, and in the run packed.

By default some bytes, chosen by REQUIEM_SEED, are changed; with REQUIEM_EXHAUSTIVE=1 every byte is.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from person import Person

from requiem_build.core.digest import Digest
from requiem_build.core.errors import IntegrityError, RequiemError
from requiem_build.engine.packing import Gatherer
from requiem_build.engine.replay import replay
from requiem_build.engine.unpacking import replay_bundle
from requiem_build.store import reading
from requiem_build.store.audit import audit
from requiem_build.store.keys import Keys, Verifier
from requiem_build.store.layout import Store
from requiem_build.store.verdicts import Verdicts, verdict_in

pytestmark = pytest.mark.userns

EXHAUSTIVE = bool(os.environ.get("REQUIEM_EXHAUSTIVE"))
SEED = os.environ.get("REQUIEM_SEED") or str(int(time.time()))
SAMPLED = 400
RESTS_ON_NOTHING = {".gitignore", "CACHEDIR.TAG", "size"}

MANIFEST = """
    [steps.one]
    command = "cat in.txt inc/used.h > a.txt; echo said; echo 'a.txt: inc/used.h' > d"
    inputs = ["in.txt"]
    discover = ["inc/*.h"]
    depfile = "d"
    outputs = ["a.txt"]
    [steps.two]
    command = "mkdir -p o/deep; cp a.txt o/deep; for i in $(seq 16); do echo $i > o/$i; done; ln -s deep o/link"
    inputs = ["a.txt"]
    outputs = ["o/"]
    [steps.three]
    command = "exit 3"
"""


@pytest.fixture
def signed(tmp_path: Path) -> Person:
    person = Person(tmp_path, "builder")
    person.configure("[trust]\nsign = true\n")
    person.manifest(MANIFEST)
    person.write("in.txt", "hello\n")
    person.write("inc/used.h", "used\n")
    person.write("inc/unused.h", "unused\n")
    person.build("-k", expect=1)
    ran = person.run("reproduce", "one")
    assert ran.code == 0, ran.err
    return person


def verifier_of(person: Person) -> Verifier:
    return Verifier(Keys(str(person.root.parent / "home/config/requiem/keys")).all())


def changes(size: int, sampled: float) -> Iterator[tuple[int, int]]:
    """Where and by which bits a file is changed."""
    if EXHAUSTIVE:
        yield from ((at, 1 << at % 8) for at in range(size))
        return
    choice = random.Random(SEED)
    for _ in range(max(1, round(sampled))):
        yield choice.randrange(size), 1 << choice.randrange(8)


def unnoticed(
    paths: list[Path], holds: Callable[[], bool], sampled: int = SAMPLED
) -> tuple[int, list[tuple[str, int, int, bytes]]]:
    """How many changes were made to files, and those of them after which all still held."""
    total = sum(path.stat().st_size for path in paths)
    missed, made = [], 0
    for path in paths:
        content = path.read_bytes()
        path.chmod(0o644)
        with open(path, "r+b", buffering=0) as file:
            for at, mask in changes(len(content), sampled * len(content) / total) if content else ():
                os.pwrite(file.fileno(), bytes([content[at] ^ mask]), at)
                if holds():
                    missed.append((path.name, at, mask, content[max(0, at - 20) : at + 5]))
                os.pwrite(file.fileno(), content[at : at + 1], at)
                made += 1
    return made, missed


@pytest.mark.timeout(7200 if EXHAUSTIVE else 300)
def test_every_byte_of_a_signed_runs_store_counts(
    signed: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "TRIES_S", (0.0,))  # Nobody else writes here: no reason to look again.
    (run,) = Store(signed.shared, read_only=True).runs
    verifier = verifier_of(signed)
    assert verifier.keys

    def holds() -> bool:
        try:
            store = Store(signed.shared, read_only=True)
            return replay(store, run.run, verifier=verifier).ok and (not orphans or not audit(store, workers=1).damaged)
        except IntegrityError:  # A mark that is damaged is refused before anything is read.
            return False

    orphans = False
    assert holds()
    files = [path for path in sorted(signed.shared.rglob("*")) if path.is_file() and not path.is_symlink()]
    proven = [
        path
        for path in files
        if path.name not in RESTS_ON_NOTHING and not {"verdicts", "tmp"} & set(path.relative_to(signed.shared).parts)
    ]
    assert any("signed" in path.parts for path in proven) and any("packs" in path.parts for path in proven)
    shutil.copytree(signed.shared, tmp_path / "copy")  # Gathering takes objects out of packs.
    used = {str(digest) for digest in Gatherer(Store(tmp_path / "copy")).gather(run.run).sizes}
    rest = [path for path in proven if "objects" in path.parts and path.name.removesuffix(".meta") not in used]
    made, missed = unnoticed([path for path in proven if path not in rest], holds)
    orphans = True  # A header that was offered and not read, and a depfile, are no part of the proof: `cas verify` is.
    more, missed_there = unnoticed(rest, holds, 50)
    made, missed = made + more, missed + missed_there
    for one in missed:
        print("not noticed", *one)
    print(f"{made} changes of {sum(path.stat().st_size for path in proven)} bytes in {len(proven)} files")
    assert missed == [], f"REQUIEM_SEED={SEED}"
    assert made >= SAMPLED // 2 and holds()


@pytest.mark.timeout(7200 if EXHAUSTIVE else 300)
def test_every_byte_of_a_verdict_counts(signed: Person) -> None:
    """A verdict that is damaged is none: the level falls, and nobody is told of runs that nobody made."""
    verdicts, verifier = Verdicts(Store(signed.shared, read_only=True)), verifier_of(signed)
    (plain,), (sealed,) = (
        sorted((signed.shared / "verdicts").glob("??/*")),
        sorted((signed.shared / "verdicts/signed").glob("*/*/*")),
    )
    key_id, request = sealed.parent.parent.name, Digest(plain.name)
    envelope = verdicts.envelope(key_id, request)
    verdict = None if envelope is None else verdict_in(envelope)
    assert verdict is not None and verdict.agreed and verdict.confirmed

    def holds_plain() -> bool:
        return verdicts.find(request, verdict.result_digest) is not None

    def holds_signed() -> bool:
        return bool(verdicts.signed_by([key_id], request, verdict.result_digest, verifier))

    for path, holds in ((plain, holds_plain), (sealed, holds_signed)):
        assert holds()
        _, missed = unnoticed([path], holds)
        assert missed == [], f"REQUIEM_SEED={SEED}"


@pytest.mark.timeout(7200 if EXHAUSTIVE else 300)
def test_every_byte_of_a_signed_pack_counts(signed: Person, tmp_path: Path) -> None:
    ran = signed.run("pack", "-o", "run.tar")
    assert ran.code == 0, ran.err
    content = (signed.root / "run.tar").read_bytes()
    verifier = verifier_of(signed)
    store = Store(tmp_path / "checked")
    assert replay_bundle(io.BytesIO(content), store, verifier, None).problems == []

    missed = []
    for at, mask in changes(len(content), SAMPLED):
        damaged = bytearray(content)
        damaged[at] ^= mask
        try:
            replay_bundle(io.BytesIO(bytes(damaged)), Store(tmp_path / "none"), verifier, None)
        except RequiemError:
            continue
        missed.append((at, mask, content[max(0, at - 20) : at + 5]))
    assert missed == [], f"REQUIEM_SEED={SEED}"
