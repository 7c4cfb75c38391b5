"""Requests from outside, and the laws of the canonical form: faults.md B2 (R01, R02, R09, R10: test_vectors)."""

from __future__ import annotations

import json
import resource
import time
from dataclasses import replace
from itertools import combinations

import hypothesis.strategies as st
import pytest
import rfc8785
from hypothesis import given, settings

from requiem_build.core.canonical import encode, encode_plain, parse
from requiem_build.core.digest import Domain, digest, object_digest, parse_digest
from requiem_build.core.entries import File, Tree, make_tree, parse_output, parse_tree
from requiem_build.core.errors import RequestError
from requiem_build.core.policy import Policy
from requiem_build.core.request import Request, parse_request

LINUX = {"os": "linux", "arch": "x86_64"}
PLAIN = Request(command=("true",), env={}, inputs={}, outputs=(), policy=Policy(), platform=LINUX)


@pytest.mark.parametrize(
    "text",
    ['{"a":1,"a":2}', '{"a":1,"\\u0061":2}', '[{"x":{"a":1,"b":2,"a":1}}]', '{"":1,"":1}', '{"é":1,"\\u00e9":1}'],
)
def test_r03_duplicate_keys_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="duplicate key"):
        parse(text.encode())


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1E400", "-1e999", "[1e309]"])
def test_r04_numbers_that_are_not_finite_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="not finite"):
        parse(text.encode())


@pytest.mark.parametrize(
    "number", [2**53, 2**53 + 1, -(2**53), 10**400, -(10**400), int("9" * 4000)], ids=lambda n: n % 97
)
def test_r05_integers_beyond_the_safe_range_are_refused_with_the_way_out(number: int) -> None:
    with pytest.raises(RequestError, match=r"2\^53-1") as raised:
        parse(str(number).encode())
    assert "string" in str(raised.value.hint)
    with pytest.raises(RequestError):
        encode(number)


def test_r05_five_thousand_digits_are_refused_in_no_time() -> None:
    with pytest.raises(RequestError):
        parse(b"9" * 5000)


def test_r05_the_largest_safe_integers_are_admitted() -> None:
    for number in (2**53 - 1, -(2**53 - 1), 0):
        assert encode_plain(parse(str(number).encode())) == str(number).encode()


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("-0", "0"), ("-0.0", "0"), ("1.0", "1"), ("1e2", "100"), ("56.0", "56"), ("1e21", "1e+21"), ("0.5e-7", "5e-8")],
)
def test_r06_numbers_have_one_spelling(text: str, canonical: str) -> None:
    assert encode(parse(text.encode())) == canonical.encode()


def test_r06_a_request_admits_integers_only() -> None:
    spelled = PLAIN.encoded.replace(b'"world":1', b'"world":1.0')
    with pytest.raises(RequestError, match="world"):
        parse_request(spelled)


@pytest.mark.parametrize(
    "content",
    [
        b'"\\ud800"',
        b'"\\udfff"',
        b'{"\\ud800":1}',
        b'["\\udc00\\ud800"]',
        b'"\xff"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"',
        '"a"'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b'"\\uD83D"',
    ],
    ids=repr,
)
def test_r07_what_is_not_unicode_text_in_utf8_is_refused(content: bytes) -> None:
    with pytest.raises(RequestError):
        parse(content)


def test_r07_the_place_of_bad_utf8_is_said() -> None:
    with pytest.raises(RequestError, match="at byte 7"):
        parse(b'{"ab": \xff}')


def test_r08_order_spaces_and_escapes_do_not_change_the_digest(all_requests) -> None:
    for request in all_requests.values():
        value = json.loads(request.encoded)
        backwards = dict(reversed(value.items()))
        for spelled in (
            json.dumps(backwards, indent=3),
            json.dumps(value, ensure_ascii=True),
            json.dumps(value, ensure_ascii=False, separators=(" ,\t", ":\n")),
        ):
            assert parse_request(spelled.encode()).digest == request.digest


def test_r11_composed_and_decomposed_letters_are_different() -> None:
    names = ("\u00e9", "e\u0301")
    requests = [replace(PLAIN, env={name: "1"}) for name in names] + [replace(PLAIN, salt=name) for name in names]
    assert len({request.digest for request in requests}) == 4
    both = replace(PLAIN, env=dict.fromkeys(names, "1"))
    assert parse_request(both.encoded).env == both.env


@pytest.mark.parametrize(
    "content",
    [b"", b" ", b"\n\t ", b"{}x", b"{} {}", b"{}\0", b"1 2", b"{", b"'a'", b"{a:1}", b"[1,]", b"//\n1", b"01", b"+1"],
)
def test_r12_what_is_not_one_document_is_refused(content: bytes) -> None:
    with pytest.raises(RequestError):
        parse(content)
    with pytest.raises(RequestError):
        parse_request(content)


def test_r13_huge_and_deep_documents_are_refused_by_limits() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RequestError, match="too large"):
        parse(b" " * (65 << 20))
    for deep in (
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 129 + b"]" * 129,
        b"[{}" * 200,
        b'[{"a":' * 65 + b"1" + b"}]" * 65,
    ):
        with pytest.raises(RequestError, match="nesting"):
            parse(deep)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_r13_depth_counts_levels_and_not_brackets() -> None:
    assert parse(b"[" * 128 + b"]" * 128)
    assert parse(b"[" + b"[],{}," * 10_000 + b'"[[[["]')
    text = json.dumps(["[" * 500, '\\"[{' * 500, {"a": "]" * 500}])
    assert parse(text.encode()) == json.loads(text)


def test_r13_hostile_strings_do_not_make_the_depth_scan_slow() -> None:
    started = time.process_time()
    for hostile in (b"[" * 200 + b'"' + b'\\"' * 2_000_000, b'[{"' * 300_000, b'"' * 4_000_000 + b"[" * 200):
        with pytest.raises(RequestError):
            parse(hostile)
    assert time.process_time() - started < 10


def test_r13_a_million_keys_are_read_within_bounds() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content = b"{" + b",".join(b'"%d":0' % n for n in range(1_000_000)) + b"}"
    assert len(parse(content)) == 1_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_r14_unknown_missing_and_newer_fields_are_named(sample) -> None:
    value = sample().as_json()
    for name in value:
        with pytest.raises(RequestError, match=name):
            parse_request(encode_plain({key: item for key, item in value.items() if key != name}))
    with pytest.raises(RequestError, match="unknown field 'comand'"):
        parse_request(encode_plain({**value, "comand": []}))
    for newer in ({**value, "schema": "requiem.request/2"}, {"schema": "requiem.request/9", "new": 1}):
        with pytest.raises(RequestError, match="schema") as raised:
            parse_request(encode_plain(newer))
        assert raised.value.hint == "it may be made by a newer requiem"


def test_r14_a_list_that_is_not_sorted_is_refused(sample) -> None:
    value = sample().as_json()
    for name in ("outputs", "secrets", "discover"):
        for wrong in (list(reversed(value[name])), value[name] + value[name][-1:]):
            with pytest.raises(RequestError, match="unsorted"):
                parse_request(encode_plain({**value, name: wrong}))


def test_r16_the_same_bytes_in_three_domains_have_three_names_and_no_boundary_moves() -> None:
    bodies = [b"", b"a:b", b":", b"cas:", b"req:", b"req:a:b", b"res:req:", b"s:x"]
    names = {(domain, body): digest(domain, body) for domain in Domain for body in bodies}
    assert len(set(names.values())) == len(names)
    for one, other in combinations([domain.value for domain in Domain], 2):
        assert not one.startswith(other)
        assert len(one) == len(other)  # So prefix and body can be cut in one way only.


def test_r17_a_name_that_is_not_utf8_cannot_be_in_a_request_or_a_tree() -> None:
    name = b"caf\xff".decode("utf-8", "surrogateescape")
    for write in (
        lambda: replace(PLAIN, outputs=(name,)).encoded,
        lambda: replace(PLAIN, env={name: ""}).encoded,
        lambda: make_tree({name: File(object_digest(b""), 0)}),
    ):
        with pytest.raises((RequestError, UnicodeEncodeError)):
            write()


@pytest.mark.parametrize(
    "text",
    [
        "A" * 64,
        "0" * 63,
        "0" * 65,
        "g" * 64,
        "../" + "0" * 61,
        "sha256:" + "0" * 64,
        "",
        " " + "0" * 63,
        "0" * 64 + "\n",
        "０" * 64,
    ],
)
def test_r18_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="not a BLAKE3-256 digest"):
        parse_digest(text)
    spelled = encode_plain({**PLAIN.as_json(), "stdin": text})
    with pytest.raises(RequestError):
        parse_request(spelled)


# -- laws ------------------------------------------------------------------------------------------------

TRICKY = st.sampled_from(
    ["\ue000", "\uffff", "\U0001f600", "\U0010ffff", "\ud7ff", "é", "\x7f", "\0", '"', "\\", "/", "a", "\u2028"]
)
texts = st.one_of(st.text(max_size=8), st.lists(TRICKY, max_size=4).map("".join))
integers = st.integers(-(2**53 - 1), 2**53 - 1)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), integers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=5)),
    max_leaves=20,
)


@given(values)
@settings(max_examples=400, deadline=None)
def test_the_fast_encoder_spells_as_rfc_8785(value: object) -> None:
    assert encode_plain(value) == rfc8785.dumps(value)
    assert parse(encode_plain(value)) == value


@given(st.dictionaries(TRICKY, integers, min_size=2, max_size=10))
@settings(max_examples=200, deadline=None)
def test_keys_are_sorted_by_utf16_units(value: dict[str, int]) -> None:
    """U+1F600 is D83D DE00 in UTF-16 and comes before U+E000: code point order has it the other way round."""
    keys = list(json.loads(encode_plain(value)))
    assert keys == sorted(value, key=lambda key: key.encode("utf-16-be"))


names = st.text(st.characters(codec="utf-8", exclude_characters="\0/="), min_size=1, max_size=6).filter(
    lambda name: name not in (".", "..")
)
digests = st.integers(0, 50).map(lambda n: object_digest(b"%d" % n))
plain_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
requests = st.builds(
    Request,
    command=st.lists(plain_text, min_size=1, max_size=4).map(tuple),
    env=st.dictionaries(names, plain_text, max_size=4),
    inputs=st.dictionaries(
        names, st.one_of(st.builds(lambda d, x: {"digest": d, "executable": x}, digests, st.booleans())), max_size=4
    ),
    outputs=st.lists(names, max_size=4).map(tuple),
    policy=st.builds(
        Policy, path=st.lists(plain_text, max_size=2).map(tuple), max_output_bytes=st.integers(0, 2**53 - 1)
    ),
    platform=st.just(LINUX),
    cwd=st.one_of(st.just("."), names),
    secrets=st.lists(names, max_size=3).map(tuple),
    stdin=st.one_of(st.none(), digests),
    roots=st.dictionaries(names.map(lambda name: "/" + name), digests, max_size=2),
    tools=st.dictionaries(names, digests, max_size=2),
    discover=st.lists(plain_text, max_size=3).map(tuple),
    depfile=st.one_of(st.none(), names),
    salt=plain_text,
    discovered=st.one_of(st.none(), st.dictionaries(names, digests, max_size=3)),
)


@given(requests)
@settings(max_examples=200, deadline=None)
def test_a_request_read_back_is_the_same_request(request: Request) -> None:
    again = parse_request(request.encoded)
    assert again.encoded == request.encoded == rfc8785.dumps(request.as_json())
    assert again.digest == request.digest
    assert again.as_json() == request.as_json()


@given(requests, requests)
@settings(max_examples=200, deadline=None)
def test_r15_two_requests_share_bytes_only_if_they_are_equal(one: Request, other: Request) -> None:
    assert (one.digest == other.digest) == (one.as_json() == other.as_json())


CHANGES: dict[str, object] = {
    "command": ("false",),
    "env": {"NEW": "1"},
    "inputs": {"new": {"symlink": "x"}},
    "outputs": ("new",),
    "policy": Policy(network="host", max_output_bytes=1),
    "platform": {"os": "plan9", "arch": "x86_64"},
    "cwd": "elsewhere",
    "secrets": ("NEW",),
    "stdin": object_digest(b"new"),
    "roots": {"/new": object_digest(b"new")},
    "tools": {"new": object_digest(b"new")},
    "discover": ("new",),
    "depfile": "new.d",
    "salt": "new",
    "discovered": {"new": "absent"},
    "world": 2,
}


def test_r15_a_change_in_any_one_field_changes_the_digest(all_requests) -> None:
    assert set(CHANGES) == set(Request.__dataclass_fields__)
    for request in all_requests.values():
        seen = {request.digest}
        for name, new in CHANGES.items():
            seen.add(replace(request, **{name: new}).digest)
        assert len(seen) == 1 + len(CHANGES)


def test_r15_a_change_in_any_one_policy_field_changes_the_digest() -> None:
    changes = {
        "sandbox": "none",
        "system": "host",
        "network": "host",
        "clock": "frozen",
        "random": "seeded",
        "path": ("x",),
        "max_output_bytes": 1,
    }
    assert set(changes) == set(Policy.__dataclass_fields__)
    seen = {replace(PLAIN, policy=Policy(**{name: new})).digest for name, new in changes.items()}
    assert len(seen) == len(changes)
    assert PLAIN.digest not in seen


def test_items_that_move_between_neighbours_change_the_digest() -> None:
    commands = [("a", "b"), ("ab",), ("a b",), ("a", "", "b"), ("a,b",), ('a","b',), ("b", "a")]
    assert len({replace(PLAIN, command=command).digest for command in commands}) == len(commands)


@given(
    st.dictionaries(
        names.filter(lambda n: n not in (".", "..")), st.builds(File, digests, st.integers(0, 2**40)), max_size=6
    )
)
@settings(max_examples=150, deadline=None)
def test_a_tree_read_back_is_the_same_tree(children: dict[str, File]) -> None:
    tree, content = make_tree(children)
    assert dict(parse_tree(content)) == children
    assert content == rfc8785.dumps(json.loads(content))
    assert tree == Tree(object_digest(content), len(children), sum(child.size for child in children.values()))
    assert parse_output(tree.as_output()) == tree
