"""The checker accepts a right ledger and finds each kind of violation; the ledgers are built here by hand."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.checker import check

CHECKER = Path(__file__).with_name("checker.py")
LEDGER = "0190b2a4-0000-7000-8000-000000000001"
OTHER = "0190b2a4-0000-7000-8000-000000000002"
ZEROS = "0" * 64
OCTOBER, FIRST, SECOND, THIRD = "2026-10.jsonl", "2026-11.jsonl", "2026-11.1.jsonl", "2026-12.jsonl"
HEAD = ["specversion", "id", "source", "type", "time", "datacontenttype", "dataschema", "subject", "machine"]
HEAD += ["ipchash", "traceparent", "tracestate"]
TAIL = ["data", "synced", "seq", "prev"]

Json = dict[str, Any]
Edit = Callable[[str], str]


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def swap(old: str, new: str) -> Edit:
    """An edit that changes a text which is there once."""

    def edit(text: str) -> str:
        assert text.count(old) == 1
        return text.replace(old, new)

    return edit


def number(new: str) -> Edit:
    """An edit that puts something else where the data is 1."""
    return swap('"data":1', f'"data":{new}')


class Builder:
    """A partition in the making: every record is right, and in the chain, unless it is told otherwise."""

    def __init__(self, partition: Path) -> None:
        partition.mkdir(parents=True)
        self.partition, self.file = partition, partition / FIRST
        self.seq, self.head, self.count = 0, ZEROS, 0

    def add(self, kind: Any = "app.event", data: Any = None, edit: Edit = str, **members: Any) -> None:
        """A record with these `members` (None: without); `edit` changes its text before that is hashed."""
        self.count += 1
        record: Json = {"specversion": "1.0", "id": f"{self.count:032x}", "source": "/m1/app", "type": kind}
        record |= {"time": "2026-11-21T21:26:00.123456789Z", "machine": "m1", "data": data}
        record |= {"seq": self.seq, "prev": self.head} | members
        record = {name: value for name, value in record.items() if value is not None}
        head = {name: record.pop(name) for name in HEAD if name in record}
        tail = {name: record.pop(name) for name in TAIL if name in record}
        body = edit(compact(head | record | tail)[:-1]).encode(errors="surrogateescape")
        self.head, self.seq = hashlib.sha256(body).hexdigest(), tail["seq"] + 1
        self.write(body + f',"checksum":"sha256:{self.head}"}}\n'.encode())

    def write(self, content: bytes) -> None:
        with self.file.open("ab") as file:
            file.write(content)

    def segment(self, name: str = SECOND, more: Json | None = None, **members: Any) -> None:
        """Go on in a new segment, with a header whose data has `more`."""
        old, self.file = self.file, self.partition / name
        previous = {"segment": old.name, "size": old.stat().st_size} if old.exists() else None
        data = {"format": 1, "ledger": LEDGER, "previous": previous, "reason": "new"} | (more or {})
        self.add("otledger.segment", data, **members)

    def resource(self, kind: str = "resource", *, hashed: str | None = None, **others: Any) -> str:
        """Define one and return its digest, that of the text `hashed` where there is one."""
        text = hashed or compact({"kind": kind} | others)
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        self.add("otel.resource", {"digest": digest, "kind": kind} | others)
        return digest

    def signal(self, kind: str, /, **members: Any) -> None:
        """A span or a log, after its resource."""
        resource = self.resource(attributes={"service.name": "app"})
        self.add(kind, members | {"resource": resource})

    def checkpoint(self, size: int, head: str) -> None:
        self.add("otledger.checkpoint", {"size": size, "head": head})

    def check(self, count: int) -> list[Json]:
        """The partition is right and has so many records."""
        records = check(self.partition)
        assert len(records) == count
        return records


@pytest.fixture
def one(tmp_path: Path) -> Builder:
    """A partition with three records in one segment."""
    builder = Builder(tmp_path / "m1")
    builder.segment(FIRST)
    builder.add(data={"text": "hello"})
    builder.add(data=[1, 2.5, None], subject="s", synced=1)
    return builder


# What is right --------------------------------------------------------------------------------------------


def test_small(one: Builder) -> None:
    records = one.check(3)
    assert [record["seq"] for record in records] == [0, 1, 2]
    assert records[1]["data"] == {"text": "hello"}


def test_members(one: Builder) -> None:
    members: Json = {"datacontenttype": "t", "dataschema": "d", "subject": "", "ipchash": "i", "synced": 3}
    members |= {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "k=v"}
    members |= {"z": "s", "a0": True, "a" * 20: -(2**31), "origseq": 2**40, "otlinvalid": "why"}
    one.add("app.full", 'a "b", {[ ]} \\ \t é', **members)
    one.add(data=1, edit=number('"\\u2028\\u2029\\u0085\\ud83d\\ude00"'))
    assert one.check(5)[-1]["data"] == "\u2028\u2029\u0085😀"


def test_limits(one: Builder) -> None:
    deep: Any = 0
    for _ in range(99):
        deep = [deep]
    one.add(data=deep)
    size = one.file.stat().st_size
    one.add(data="")
    room = 2**24 - (one.file.stat().st_size - size)
    one.add(data="x" * room)
    one.check(6)


def test_telemetry(one: Builder) -> None:
    resource = one.resource(attributes={"service.name": "größe", "x": 1.5, "y": [True, -0.0]}, dropped=2)
    scope = one.resource("scope", name="lib", version="1", schema_url="u")
    head: Json = {
        "name": "n",
        "kind": "SERVER",
        "parent_span_id": "c" * 16,
        "parent_is_remote": True,
        "start": 1,
    }
    one.add("otel.span.start", head | {"resource": resource, "process": {"pid": 1}})
    link = {"trace_id": "a" * 32, "span_id": "b" * 16, "trace_flags": 1, "is_remote": True}
    body: Json = {"end": 2, "attributes": {"a": 1}, "events": [{"name": "e", "time": 2}, {"$cut": 9}]}
    body |= {"links": [link], "status": {"code": "ERROR", "description": "d"}, "dropped": {"links": 1}}
    one.add("otel.span.end", head | body | {"flags": 3, "resource": resource, "scope": scope})
    one.signal("otel.span.end", name="n", attributes={"$cut": 1}, events={"$cut": 2}, links={"$cut": 3})
    one.add("otel.span.end", {"$enc": {"alg": "a", "kid": "k", "nonce": "n", "ct": "c"}})
    one.signal("otel.log", timestamp=1, severity_number=9, severity_text="INFO", body=[], attributes={"a": 0})
    one.add("otel.metrics", [{"scopeMetrics": []}])
    one.check(13)


@pytest.mark.parametrize(("here", "there"), [("1e+16", "1e16"), ("\x7f", "\\u007f"), ("\x7f", "\\u2028")])
def test_digest_of_the_bytes_as_they_stand(one: Builder, here: str, there: str) -> None:
    """The compact JSON of the writer is not that of Python in every value."""
    value = 1e16 if here == "1e+16" else here
    text = compact({"kind": "scope", "attributes": {"x": value}}).replace(here, there)
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]
    data = {"digest": digest, "kind": "scope", "attributes": {"x": value}}
    one.add("otel.resource", data, edit=swap(here, there))
    one.check(4)


def test_control(one: Builder) -> None:
    one.checkpoint(3, one.head)
    one.checkpoint(1, one.check(4)[0]["checksum"].removeprefix("sha256:"))
    for name in ("recovery", "gap", "shredded", "archive"):
        one.add(f"otledger.{name}", {"segment": FIRST, "unknown": 1})
    one.check(9)


def test_segments(one: Builder) -> None:
    """Bytes beyond a size, a skipped segment, and newest files that are empty or torn count nothing."""
    first = one.head
    one.segment(SECOND, synced=3)
    size = one.file.stat().st_size
    one.segment(THIRD, {"previous": {"segment": SECOND, "size": size}})
    one.checkpoint(3, first)
    one.signal("otel.span.end", start=1, end=2)
    (one.partition / SECOND).write_bytes((one.partition / SECOND).read_bytes() + b"beyond\n{")
    (one.partition / "2026-11.2.jsonl").write_bytes(b"skipped\n")
    (one.partition / "2026-12.1.jsonl").write_bytes(b"")
    (one.partition / "2026-12.10.jsonl").write_bytes(b'{"specversion":"1.0"')
    for name in (".lock", "2026-13.jsonl", "2026-12.0.jsonl", "2027-01.jsonl.gz", "2027-01.jsonl~"):
        (one.partition / name).write_bytes(b"no segment\n")
    (one.partition / "quarantine").mkdir()
    one.check(8)


def test_segments_sort_by_number(one: Builder) -> None:
    one.segment("2026-11.2.jsonl")
    one.segment("2026-11.10.jsonl")
    one.check(5)


def test_new_chain(one: Builder) -> None:
    """seq, prev, synced and what a checkpoint means start again; ids do not."""
    one.segment(SECOND, {"ledger": OTHER}, seq=0, prev=ZEROS)
    one.add(synced=0)
    one.checkpoint(2, one.head)
    one.segment(THIRD, {"ledger": OTHER})
    assert [record["seq"] for record in one.check(7)] == [0, 1, 2, 0, 1, 2, 3]


def test_archived(one: Builder) -> None:
    """A segment that an archive record names may be absent; checkpoints may still be about its records."""
    head, absent = one.head, one.file
    one.segment(SECOND)
    one.checkpoint(2, "a" * 64)
    one.add("otledger.archive", {"segment": FIRST, "head": head})
    absent.unlink()
    assert [record["seq"] for record in one.check(3)] == [3, 4, 5]


def test_empty(tmp_path: Path) -> None:
    assert check(tmp_path) == []
    (tmp_path / FIRST).write_bytes(b'{"specversion"')
    assert check(tmp_path) == []


def test_torn_tail(one: Builder) -> None:
    """Cut anywhere, the whole lines before the cut count if a torn tail is welcome."""
    content = one.file.read_bytes()
    header = content.index(b"\n") + 1
    for end in range(len(content)):
        one.file.write_bytes(content[:end])
        assert len(check(one.partition, torn_tail_ok=True)) == content.count(b"\n", 0, end)
        if end > header and content[end - 1 : end] != b"\n":
            fails(one, "a torn line")


# What is wrong --------------------------------------------------------------------------------------------


def test_every_byte_counts(one: Builder) -> None:
    content = one.file.read_bytes()
    for index, byte in enumerate(content):
        one.file.write_bytes(content[:index] + bytes([byte ^ 1]) + content[index + 1 :])
        with pytest.raises(AssertionError):
            check(one.partition)


def test_message(one: Builder) -> None:
    offset = one.file.stat().st_size
    one.add(seq=7)
    with pytest.raises(AssertionError) as raised:
        check(one.partition)
    assert str(raised.value) == f"{one.file}: offset {offset}, seq 3: seq is 7"


def fails(builder: Builder, reason: str, *, torn_tail_ok: bool = False) -> None:
    """The partition is wrong for this reason; its path, which has the test's name in it, does not match."""
    with pytest.raises(AssertionError) as raised:
        check(builder.partition, torn_tail_ok=torn_tail_ok)
    assert re.search(reason, str(raised.value).removeprefix(f"{builder.partition}/"))


@pytest.mark.parametrize(
    ("reason", "content"),
    [
        ("torn line", b'{"specversion":"1.0"'),
        ("does not end in", b"\n"),
        ("does not end in", b"\r\n"),
        ("does not end in", b"not JSON\n"),
        ("does not end in", b'{"specversion":"1.0"}\n'),
    ],
)
def test_foreign_bytes(one: Builder, reason: str, content: bytes) -> None:
    one.write(content)
    fails(one, reason)


@pytest.mark.parametrize(
    ("reason", "old", "new"),
    [
        ("wrong checksum", b"hello", b"hallo"),
        ("wrong checksum", b"hello", b"\\u0068ello"),
        ("wrong checksum", b'"hello"}', b'"hello"} '),
        ("does not end in", b'"}\n', b'"}\r\n'),
        ("does not end in", b'"}\n', b'"} \n'),
        ("does not end in", b',"checksum":"sha256:', b',"checksum":"SHA256:'),
    ],
)
def test_changed_bytes(one: Builder, reason: str, old: bytes, new: bytes) -> None:
    content = one.file.read_bytes()
    assert old in content
    one.file.write_bytes(content.replace(old, new))
    fails(one, reason)


def test_lines_that_are_missing_or_change_places(one: Builder) -> None:
    header, first, second = one.file.read_bytes().splitlines(keepends=True)
    for lines in ((header, second), (header, second, first), (header, first, first, second), (first, second)):
        one.file.write_bytes(b"".join(lines))
        fails(one, "seq is|does not begin")


def moved(name: str, before: str) -> Edit:
    """An edit that moves a member to the place before another one."""

    def edit(text: str) -> str:
        members: Json = json.loads(text + "}")
        names = [other for other in members if other != name]
        names.insert(names.index(before), name)
        return compact({name: members[name] for name in names})[:-1]

    return edit


@pytest.mark.parametrize(
    ("reason", "members"),
    [
        ("longer than 16 MiB", {"data": "x" * 2**24}),
        ("does not end in", {"edit": swap('"seq":3', '"seq":03')}),
        ("does not end in", {"edit": swap('"seq":3', '"seq":3.0')}),
        ("does not end in", {"prev": "A" * 64}),
        ("UnicodeDecodeError", {"subject": "\udcff"}),
        *(("U.0085", {"subject": character}) for character in "\u0085\u2028\u2029"),
        ("whitespace", {"edit": swap('{"specversion', '{ "specversion')}),
        ("whitespace", {"edit": swap('"specversion":', '"specversion": ')}),
        ("whitespace", {"data": 1, "edit": number("[1,\t2]")}),
        ("whitespace", {"data": 1, "edit": number("[1,2\r]")}),
        ("nested more", {"data": 1, "edit": number("[" * 100 + "]" * 100)}),
        ("nested more", {"data": 1, "edit": number('{"a":' * 100 + "1" + "}" * 100)}),
        ("nested more", {"data": 1, "edit": number("[" * 100_000)}),
        ("duplicate", {"data": 1, "edit": number('1,"data":1')}),
        ("duplicate", {"data": 1, "edit": number('[{"a":1,"\\u0061":2}]')}),
        ("NaN", {"data": float("nan")}),
        ("Infinity", {"data": [float("inf")]}),
        ("-Infinity", {"data": {"a": float("-inf")}}),
        *(
            ("JSONDecodeError", {"data": 1, "edit": number(literal)})
            for literal in ("[1,]", "01", '"\x01"', "'a'", '"\\x"', "}", "[", "1,", "")
        ),
        ("JSONDecodeError", {"edit": lambda text: "\ufeff" + text}),
    ],
)
def test_line(one: Builder, reason: str, members: Json) -> None:
    one.add(**members)
    fails(one, reason)


@pytest.mark.parametrize(
    ("reason", "members"),
    [
        *((f"without .*{name}", {name: None}) for name in ("specversion", "id", "source", "time", "machine")),
        ("without .*type", {"kind": None}),
        ("out of order", {"edit": moved("source", "id")}),
        ("out of order", {"subject": "s", "edit": moved("machine", "subject")}),
        ("out of order", {"subject": "s", "dataschema": "d", "edit": moved("subject", "dataschema")}),
        ("out of order", {"ipchash": "i", "edit": moved("ipchash", "machine")}),
        ("out of order", {"ext": "e", "traceparent": "t", "edit": moved("ext", "traceparent")}),
        ("out of order", {"ext": "e", "data": 1, "edit": moved("data", "ext")}),
        ("out of order", {"origseq": 1, "ext": "e"}),
        ("out of order", {"otlinvalid": "o", "ext": "e"}),
        ("out of order", {"otlinvalid": "o", "data": 1, "edit": moved("data", "otlinvalid")}),
        ("out of order", {"synced": 2, "data": 1, "edit": moved("synced", "data")}),
        *((f"{name} is no string", {name: 1}) for name in HEAD if name != "type"),
        ("type is no string", {"kind": 1}),
        ("subject is no string", {"subject": "s", "edit": swap('"s"', "null")}),
        *(("no name of an extension", {name: "e"}) for name in ("Ext", "an_ext", "a" * 21, "", "é", "a\n")),
        ("no attribute name", {"orig_seq": 1}),
        *(("32-bit", {"ext": value}) for value in (2**31, -(2**31) - 1, 1.5, ["e"], {"e": 1})),
        ("32-bit", {"ext": "e", "edit": swap('"e"', "null")}),
        ("specversion is not", {"specversion": "1.1"}),
        *(("an empty", {name: ""}) for name in ("id", "source", "kind")),
        ("time is not", {"time": "2026-11-21T21:26:00.123456Z"}),
        ("time is not", {"time": "2026-11-21T21:26:00Z"}),
        ("time is not", {"time": "2026-11-21T21:26:00.123456789+00:00"}),
        ("time is not", {"time": "2026-11-21 21:26:00.123456789Z"}),
        ("time is not", {"time": "2026-11-21T21:26:00.12345678\u0669Z"}),
        ("ValueError", {"time": "2026-02-29T21:26:00.123456789Z"}),
        ("ValueError", {"time": "2026-11-21T24:26:00.123456789Z"}),
        ("another machine", {"machine": "m2"}),
        ("tracestate is empty", {"tracestate": ""}),
        ("data is null", {"data": 1, "edit": number("null")}),
        ("is reserved", {"kind": "otel.span.update"}),
        ("is reserved", {"kind": "otledger.x"}),
    ],
)
def test_members_wrong(one: Builder, reason: str, members: Json) -> None:
    one.add(**members)
    fails(one, reason)


@pytest.mark.parametrize(
    ("reason", "members"),
    [
        ("seq is 4", {"seq": 4}),
        ("seq is 2", {"seq": 2}),
        ("prev is not", {"prev": "a" * 64}),
        ("is taken", {"id": f"{2:032x}"}),
        ("synced is not", {"synced": 0}),
        *(("synced is not", {"synced": value, "seq": 3}) for value in (4, True, "2", 2.0)),
    ],
)
@pytest.mark.parametrize("segment", [False, True])
def test_chain(one: Builder, reason: str, members: Json, segment: bool) -> None:
    """The chain goes on over segments."""
    (one.segment if segment else one.add)(**members)
    fails(one, reason)


def test_chain_begins_again_within_a_segment(one: Builder) -> None:
    one.add(seq=0, prev=ZEROS)
    fails(one, "seq is 0")


@pytest.mark.parametrize("members", [{"seq": 1}, {"prev": "a" * 64}])
def test_chain_begins_elsewhere(tmp_path: Path, members: Json) -> None:
    builder = Builder(tmp_path / "m1")
    builder.segment(**members)
    fails(builder, "first chain does not begin")


@pytest.mark.parametrize(
    ("reason", "data"),
    [
        ("size is not", {"size": 4, "head": "a" * 64}),
        ("size is not", {"size": 0, "head": ZEROS}),
        ("size is not", {"size": True, "head": ZEROS}),
        ("head is not", {"size": 2, "head": "a" * 64}),
        ("KeyError: 'head'", {"size": 2}),
        ("TypeError", None),
    ],
)
def test_checkpoint(one: Builder, reason: str, data: Any) -> None:
    one.add("otledger.checkpoint", data)
    fails(one, reason)


def test_checkpoint_of_an_earlier_chain(one: Builder) -> None:
    head = one.head
    one.segment(more={"ledger": OTHER}, seq=0, prev=ZEROS)
    one.add()
    one.checkpoint(1, head)
    fails(one, "head is not")


@pytest.mark.parametrize(
    ("reason", "data"),
    [
        ("format is not", {"format": 2}),
        ("format is not", {"format": True}),
        ("ValueError", {"ledger": "mine"}),
        ("another ledger", {"ledger": OTHER}),
        ("size is no size", {"previous": {"segment": FIRST, "size": 0}}),
        ("size is no size", {"previous": {"segment": FIRST, "size": "1"}}),
        ("shorter than", {"previous": {"segment": FIRST, "size": 2**20}}),
        ("cuts a line", {"previous": {"segment": FIRST, "size": 100}}),
        ("no earlier segment", {"previous": {"segment": THIRD, "size": 9}}),
        ("no earlier segment", {"previous": {"segment": SECOND, "size": 9}}),
        ("no earlier segment", {"previous": {"segment": "../m2/" + FIRST, "size": 9}}),
        ("no otledger.archive", {"previous": {"segment": OCTOBER, "size": 9}}),
        ("does not begin with seq 0", {"previous": None}),
        ("TypeError", {"previous": FIRST}),
    ],
)
def test_segment(one: Builder, reason: str, data: Json) -> None:
    one.segment(more=data)
    fails(one, reason)


def test_segment_begins_with_another_record(one: Builder) -> None:
    one.file = one.partition / SECOND
    one.add()
    fails(one, f"{SECOND}: offset 0, .*does not begin with otledger.segment")


def test_segment_record_within_a_segment(one: Builder) -> None:
    one.add("otledger.segment", {"format": 1, "ledger": LEDGER, "previous": None})
    fails(one, "within a segment")


def test_months_go_back(one: Builder) -> None:
    """The chain goes on in a file that sorts before, and comes back."""
    one.segment(OCTOBER)
    one.segment(THIRD)
    fails(one, f"{OCTOBER}: .*no earlier segment")


def test_new_chain_under_an_old_name(one: Builder) -> None:
    one.segment(seq=0, prev=ZEROS)
    fails(one, "an earlier one")


def test_damage_in_an_earlier_segment(one: Builder) -> None:
    one.segment()
    content = (one.partition / FIRST).read_bytes()
    (one.partition / FIRST).write_bytes(content.replace(b"hello", b"hallo"))
    fails(one, f"{FIRST}: .*seq 1: wrong checksum")


def test_torn_line_that_counts(one: Builder) -> None:
    """Whatever is said of the newest segment, in an earlier one it is wrong."""
    one.write(b'{"specversion"')
    one.segment()
    fails(one, "cuts a line", torn_tail_ok=True)


@pytest.mark.parametrize("archive", [None, {"segment": OCTOBER}, {"head": "a" * 64}])
def test_absent_segment(one: Builder, archive: Json | None) -> None:
    head, absent = one.head, one.file
    one.segment()
    if archive:
        one.add("otledger.archive", {"segment": FIRST, "head": head} | archive)
    absent.unlink()
    fails(one, f"{FIRST}: .*no otledger.archive fits")


# Telemetry that is wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "resource"),
    [
        ("wrong digest", {"hashed": "{}"}),
        ("wrong digest", {"hashed": '{"kind": "resource", "name": "n"}', "name": "n"}),
        ("kind is neither", {"kind": "other"}),
        ("out of order", {"version": "1", "name": "n"}),
        ("out of order", {"unknown": "1"}),
    ],
)
def test_resource(one: Builder, reason: str, resource: Json) -> None:
    one.resource(**resource)
    fails(one, reason)


@pytest.mark.parametrize("kind", ["otel.span.start", "otel.span.end", "otel.log"])
def test_digests(one: Builder, kind: str) -> None:
    resource, scope = one.resource(), one.resource("scope")
    one.add(kind, {"resource": resource, "scope": scope})
    one.check(6)
    size = one.file.stat().st_size
    for data, reason in (
        ({}, "no resource"),
        ({"resource": "a" * 32}, "its resource is not defined"),
        ({"resource": scope}, "its resource is not defined"),
        ({"resource": resource, "scope": resource}, "its scope is not defined"),
        ({"resource": ["a"]}, "TypeError"),
        (None, "no object"),
        (["resource"], "no object"),
    ):
        one.seq, one.head = 6, one.check(6)[-1]["checksum"].removeprefix("sha256:")
        one.add(kind, data)
        fails(one, reason)
        one.file.write_bytes(one.file.read_bytes()[:size])


def test_digest_of_an_earlier_segment(one: Builder) -> None:
    resource = one.resource()
    one.segment()
    one.add("otel.span.end", {"resource": resource})
    fails(one, "its resource is not defined")


def test_digest_that_is_defined_later(one: Builder) -> None:
    digest = hashlib.sha256(b'{"kind":"resource"}').hexdigest()[:32]
    one.add("otel.log", {"resource": digest})
    assert one.resource() == digest
    fails(one, "its resource is not defined")


@pytest.mark.parametrize(
    ("reason", "span"),
    [
        ("out of order", {"kind": "SERVER", "name": "n"}),
        ("out of order", {"status": {"code": "OK"}, "links": [{}]}),
        ("out of order", {"end": 2, "start": 1}),
        ("out of order", {"scope": "s"}),
        ("out of order", {"events": [{"time": 1, "name": "n"}]}),
        ("out of order", {"links": [{"span_id": "b", "trace_id": "a"}]}),
        ("out of order", {"status": {"description": "d", "code": "OK"}}),
        ("out of order", {"dropped": {"links": 1, "events": 1}}),
        ("name equals", {"name": None}),
        ("kind equals", {"kind": "INTERNAL"}),
        ("parent_span_id equals", {"parent_span_id": None}),
        ("parent_is_remote equals", {"parent_is_remote": False}),
        ("attributes equals", {"attributes": {}}),
        ("events equals", {"events": []}),
        ("links equals", {"links": []}),
        ("status equals", {"status": {}}),
        ("dropped equals", {"dropped": {}}),
        ("attributes equals", {"events": [{"name": "e", "time": 1, "attributes": {}}]}),
        ("dropped equals", {"events": [{"name": "e", "time": 1}, {"name": "e", "time": 1, "dropped": 0}]}),
        ("trace_flags equals", {"links": [{"trace_id": "a", "trace_flags": 0}]}),
        ("is_remote equals", {"links": [{"is_remote": False}]}),
        ("trace_state equals", {"links": [{"trace_state": ""}]}),
        ("attributes equals", {"links": [{"attributes": {}}]}),
        ("dropped equals", {"links": [{"dropped": 0}]}),
        ("code equals", {"status": {"code": "UNSET", "description": "d"}}),
        ("description equals", {"status": {"code": "OK", "description": None}}),
        *((f"{name} equals", {"dropped": {name: 0}}) for name in ("attributes", "events", "links")),
        ("no object", {"events": ["e"]}),
        ("no object", {"status": "OK"}),
    ],
)
def test_span(one: Builder, reason: str, span: Json) -> None:
    one.signal("otel.span.end", **span)
    fails(one, reason)


@pytest.mark.parametrize(
    ("reason", "log"),
    [
        ("out of order", {"observed_timestamp": 1, "timestamp": 1}),
        *((f"{name} equals", {name: None}) for name in ("timestamp", "severity_text", "body", "event_name")),
        ("attributes equals", {"attributes": {}}),
        ("dropped equals", {"dropped": 0}),
    ],
)
def test_log(one: Builder, reason: str, log: Json) -> None:
    one.signal("otel.log", **log)
    fails(one, reason)


# The tree (7) ---------------------------------------------------------------------------------------------


class Key:
    """A signing key of the chain."""

    def __init__(self, seed: int, name: str = f"otledger/{LEDGER}") -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        self.name, self.public = name, b"\x01" + self.private.public_key().public_bytes_raw()
        self.id = hashlib.sha256(name.encode() + b"\n" + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(self.public).decode()}"

    def note(self, *lines: object) -> str:
        text = "".join(f"{line}\n" for line in lines)
        signature = base64.b64encode(self.id + self.private.sign(text.encode())).decode()
        return f"{text}\n\u2014 {self.name} {signature}\n"


ORIGIN = f"otledger/{LEDGER}"
ONE, TWO = Key(1), Key(2)


def tree(one: Builder, size: int, *, edge: bool = True) -> Json:
    """Root, edge and path over the first records, by hand for up to four."""
    leaf = [hashlib.sha256(b"\0" + bytes.fromhex(r["checksum"][7:])).digest() for r in check(one.partition)[:size]]

    def up(*nodes: bytes) -> bytes:
        return hashlib.sha256(b"\1" + b"".join(nodes)).digest()

    if size == 1:
        root, perfect, path = leaf[0], leaf, []
    elif size == 2:
        root, perfect, path = up(*leaf), [up(*leaf)], [leaf[0]]
    elif size == 3:
        root, perfect, path = up(up(*leaf[:2]), leaf[2]), [up(*leaf[:2]), leaf[2]], [up(*leaf[:2])]
    else:
        assert size == 4
        root = up(up(*leaf[:2]), up(*leaf[2:]))
        perfect, path = [root], [leaf[2], up(*leaf[:2])]
    found: Json = {"size": size, "root": text_of(root), "path": list(map(text_of, path))}
    return found | ({"edge": list(map(text_of, perfect))} if edge else {})


def text_of(node: bytes) -> str:
    return base64.b64encode(node).decode()


def head_of(one: Builder, size: int) -> str:
    return str(check(one.partition)[size - 1]["checksum"][7:])


def seal(one: Builder, size: int, key: Key | None = None, *more: str, **members: Any) -> None:
    """A checkpoint with its tree, and with a note by `key`."""
    data = {"head": head_of(one, size)} | tree(one, size)
    if key is not None:
        data["note"] = key.note(ORIGIN, size, data["root"], *more)
    one.add("otledger.checkpoint", data | members)


def begin(one: Builder, key: Key, old: Key | None = None, /, size: int = 3, **members: Any) -> None:
    """A key's record."""
    data = {"old": None if old is None else str(old), "new": str(key)} | tree(one, size, edge=False)
    data["signature"] = old.note(ORIGIN, size, data["root"], f"key {key}") if old is not None else None
    one.add("otledger.key", data | members)


def test_trees(one: Builder) -> None:
    for size in (1, 2, 3, 4):
        seal(one, size)
    one.check(7)


def test_notes(one: Builder) -> None:
    begin(one, ONE)
    seal(one, 3, ONE)
    begin(one, TWO, ONE)
    seal(one, 4, TWO)
    one.add("otledger.checkpoint", {"size": 7, "head": one.head, "refused": {"size": 9} | refusal(one)})
    one.check(8)


def test_announced_key(one: Builder) -> None:
    begin(one, ONE)
    seal(one, 3, ONE, f"next {TWO}")
    begin(one, TWO, ONE)
    one.check(6)


def refusal(one: Builder) -> Json:
    root = tree(one, 4)["root"]
    return {"root": root, "note": ONE.note(ORIGIN, 9, root)}


WRONG = base64.b64encode(b"x" * 32).decode()


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("root is not that", {"root": WRONG}),
        ("path is not that", {"path": [WRONG]}),
        ("path is not that", {"path": []}),
        ("edge is not that", {"edge": [WRONG, WRONG]}),
        ("not 32 bytes", {"root": "eA=="}),
        ("Error", {"root": "!"}),
    ],
)
def test_wrong_tree(one: Builder, reason: str, change: Json) -> None:
    seal(one, 3, **change)
    fails(one, reason)


def test_part_of_a_tree(one: Builder) -> None:
    one.add("otledger.checkpoint", {"size": 3, "head": one.head, "root": WRONG})
    fails(one, "of the tree only")


def test_tree_goes_back(one: Builder) -> None:
    seal(one, 3)
    seal(one, 2)
    fails(one, "2 records, and 3 had a tree before")


def test_note_without_a_key(one: Builder) -> None:
    seal(one, 3, ONE)
    fails(one, "no key has begun")


@pytest.mark.parametrize(
    ("reason", "note"),
    [
        ("another tree", ONE.note(ORIGIN, 2, WRONG)),
        ("another tree", ONE.note(ORIGIN.upper(), 3, WRONG)),
        ("no signed note", "text"),
    ],
)
def test_wrong_note(one: Builder, reason: str, note: str) -> None:
    begin(one, ONE)
    seal(one, 3, note=note)
    fails(one, reason)


def test_note_of_another_key(one: Builder) -> None:
    begin(one, ONE)
    seal(one, 3, TWO)
    fails(one, f"signed by {TWO.id.hex()}, and {ONE.id.hex()} is due")


def test_wrong_signature(one: Builder) -> None:
    begin(one, ONE)
    root = tree(one, 3)["root"]
    other = ONE.note(ORIGIN, 4, root).rsplit("\n\n", 1)[1]
    seal(one, 3, note=f"{ORIGIN}\n3\n{root}\n\n{other}")
    fails(one, "signature is wrong")


def test_unknown_extension(one: Builder) -> None:
    begin(one, ONE)
    seal(one, 3, ONE, "what")
    fails(one, "an extension that is not known")


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("old is not", {"old": str(TWO)}),
        ("new is old", {"new": str(ONE)}),
        ("root is not that", {"root": WRONG}),
        ("path is not that", {"path": [WRONG]}),
        ("something else", {"new": str(Key(3))}),
        ("no signed note", {"signature": "x"}),
    ],
)
def test_wrong_key(one: Builder, reason: str, change: Json) -> None:
    begin(one, ONE)
    begin(one, TWO, ONE, **change)
    fails(one, reason)


def test_first_key_signed(one: Builder) -> None:
    begin(one, ONE, signature="x")
    fails(one, "signed by no key")


def test_another_key_than_announced(one: Builder) -> None:
    begin(one, ONE)
    seal(one, 3, ONE, f"next {TWO}")
    begin(one, Key(3), ONE)
    fails(one, "not the key that was announced")


def test_refused_and_signed(one: Builder) -> None:
    begin(one, ONE)
    seal(one, 3, ONE, refused=refusal(one) | {"size": 9})
    fails(one, "refused, and signed")


def test_sealed(one: Builder) -> None:
    one.segment(SECOND)
    content = (one.partition / FIRST).read_bytes()
    data = {"segment": FIRST, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    one.add("otledger.sealed", data)
    one.check(5)
    one.add("otledger.sealed", data | {"sha256": "0" * 64})
    fails(one, f"{FIRST} has")


def test_sealed_while_open(one: Builder) -> None:
    one.add("otledger.sealed", {"segment": FIRST, "size": 1, "sha256": "0" * 64})
    fails(one, "no segment before this one")


# The program ----------------------------------------------------------------------------------------------


def run(root: Path) -> tuple[int, list[str]]:
    done = subprocess.run([sys.executable, CHECKER, root], capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


def test_program(one: Builder) -> None:
    root = one.partition.parent
    for name in ("old", "empty", "M1", "a..b", ".cache"):
        (root / name).mkdir()
    (root / "old" / FIRST).write_bytes(b'{"specversion":"1.0","id":"1"}\n')
    (root / "m1.jsonl").write_bytes(b"no folder\n")
    lines = ["empty: ok, 0 records", "m1: ok, 3 records", "old: unchained, skipped"]
    assert run(root) == (0, lines)
    one.add(seq=7)
    code, lines = run(root)
    assert code == 1
    assert lines[1].startswith("m1: FAILED: ")
    assert lines[1].endswith("seq 3: seq is 7")


def test_program_needs_a_root() -> None:
    done = subprocess.run([sys.executable, CHECKER], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ROOT" in done.stderr
