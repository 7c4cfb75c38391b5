"""Official test data: BLAKE3, JCS (RFC 8785) and JSONTestSuite. Where it is and what it is: tests/conftest.py."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from requiem_build.core.canonical import encode, parse
from requiem_build.core.digest import Domain, Hasher, digest, object_digest
from requiem_build.core.errors import RequestError

pytestmark = pytest.mark.vectors


def test_blake3_gives_all_105_official_answers(vectors: Path) -> None:
    official = json.loads((vectors / "blake3" / "test_vectors.json").read_text())
    key, context = official["key"].encode(), official["context_string"]
    answers = 0
    for case in official["cases"]:
        content = bytes(n % 251 for n in range(case["input_len"]))
        for answer, hasher in (
            (case["hash"], blake3(content)),
            (case["keyed_hash"], blake3(content, key=key)),
            (case["derive_key"], blake3(content, derive_key_context=context)),
        ):
            assert hasher.hexdigest(length=len(answer) // 2) == answer
            answers += 1
        # Ours are the plain hash of prefix and content, in one piece or in many.
        assert object_digest(content) == digest(Domain.OBJECT, content) == blake3(b"cas:" + content).hexdigest()
        pieces = Hasher()
        for at in range(0, len(content), 1000):
            pieces.update(content[at : at + 1000])
        assert (pieces.digest(), pieces.size) == (object_digest(content), len(content))
    assert answers == 105


@pytest.mark.parametrize("name", ["arrays", "french", "structures", "unicode", "values", "weird"])
def test_r09_jcs_files_come_out_byte_for_byte(vectors: Path, name: str) -> None:
    folder = vectors / "jcs" / "testdata"
    value = parse((folder / "input" / f"{name}.json").read_bytes())
    assert encode(value) == (folder / "output" / f"{name}.json").read_bytes()
    assert encode(value).hex(" ") == " ".join((folder / "outhex" / f"{name}.txt").read_text().split())


def es6_numbers(readme: str) -> Iterator[float]:
    """The sequence of the JCS README: its static list, 2,000 serial ones, then a chain of SHA-256."""
    listed = re.search(r"BigUint64Array\(\[(.*?)\]\)", readme, re.DOTALL)
    assert listed is not None
    for text in re.findall(r"0x([0-9a-f]{16})n", listed[1]):
        yield struct.unpack(">d", bytes.fromhex(text))[0]
    for n in range(2000):
        yield struct.unpack(">d", (0x0010000000000000 + n).to_bytes(8, "big"))[0]
    block = bytes(32)
    while True:
        block = hashlib.sha256(block).digest()
        for number in struct.unpack("<4d", block):
            if number != 0 and number - number == 0:  # Neither zero nor NaN nor infinite.
                yield number


ES6 = {
    1_000: "be18b62b6f69cdab33a7e0dae0d9cfa869fda80ddc712221570f9f40a5878687",
    10_000: "b9f7a8e75ef22a835685a52ccba7f7d6bdc99e34b010992cbc5864cd12be6892",
    100_000: "22776e6d4b49fa294a0d0f349268e5c28808fe7e0cb2bcbe28f63894e494d4c7",
}


def test_r10_the_es6_number_sequence_is_spelled_as_the_readme_says(vectors: Path) -> None:
    readme = (vectors / "jcs" / "testdata" / "README.md").read_text()
    assert all(expected in readme for expected in ES6.values())
    sums = hashlib.sha256()
    for line, number in enumerate(es6_numbers(readme), 1):
        bits = struct.unpack(">Q", struct.pack(">d", number))[0]
        sums.update(b"%x,%b\n" % (bits, encode(number)))
        if line in ES6:
            assert sums.copy().hexdigest() == ES6[line], line
        if line == 100_000:
            break


def test_the_numbers_that_we_read_are_the_numbers_that_we_write(vectors: Path) -> None:
    readme = (vectors / "jcs" / "testdata" / "README.md").read_text()
    for count, number in enumerate(es6_numbers(readme)):
        text = encode(number)
        try:
            assert encode(parse(text)) == text
        except RequestError:  # Whole and beyond 2^53: spelled without a point, so it is an integer, and refused.
            assert number == int(number)
            assert abs(number) > 2**53 - 1
        if count == 5000:
            break


def test_r01_r02_jsontestsuite(vectors: Path) -> None:
    """y_ accepted but for duplicate keys, n_ refused, i_ either way; never any exception but ours."""
    seen = {"y": 0, "n": 0, "i": 0}
    wrong: list[str] = []
    for path in sorted((vectors / "JSONTestSuite" / "test_parsing").iterdir()):
        kind = path.name[0]
        seen[kind] += 1
        try:
            parse(path.read_bytes())
            accepted = True
        except RequestError as error:
            accepted = False
            assert error.exit_code == 2
        wanted = kind == "y" and "duplicated_key" not in path.name
        if kind != "i" and accepted != wanted:
            wrong.append(path.name)
    assert wrong == []
    assert seen == {"y": 95, "n": 188, "i": 35}


def test_jsontestsuite_transforms_are_read_exactly_or_refused(vectors: Path) -> None:
    for path in sorted((vectors / "JSONTestSuite" / "test_transform").iterdir()):
        content = path.read_bytes()
        try:
            value = parse(content)
        except RequestError:
            continue
        assert parse(encode(value)) == value
