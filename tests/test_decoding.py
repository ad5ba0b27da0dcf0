"""The compiled decoder of lines against msgspec's: the same records, the same refusals."""

from __future__ import annotations

import json
import re
import tracemalloc
from array import array
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import otledger
from otledger import replayed, runs, speed
from otledger.decoding import decoder
from otledger.record import DECODE_ERRORS, Record, decode, decode_plainly, format_time, parse_time
from otledger.replayed import ReplayedSpan

pytestmark = pytest.mark.skipif(speed.Decoder is None, reason="not compiled here, or OTLEDGER_PURE is set")


def fields(found: msgspec.Struct) -> list[Any]:
    """Give the values of a record's members, as a reader sees them."""
    values = [getattr(found, name) for name in found.__struct_fields__]
    return [bytes(value) if isinstance(value, msgspec.Raw) else value for value in values]


def outcome(decode: Any, line: bytes) -> Any:
    try:
        found = decode(line)
        return found if found is None else fields(found)
    except DECODE_ERRORS as error:
        return repr(error)


def same(line: bytes) -> None:
    """Check that both ways give the same of a line."""
    assert outcome(decode, line) == outcome(decode_plainly, line)
    ours, plain = outcome(replayed._decode, line), outcome(replayed._decode_maybe, line)
    assert repr(ours) == repr(plain)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Lines of all kinds, as otledger writes them."""
    root = tmp_path_factory.mktemp("lines")
    with otledger.open_sync(root, machine="m", service="s", min_free=0) as ledger:
        turn = otledger.ipc_hash("turn")
        for n in range(5):
            ledger.emit("order.placed", {"id": n, "price": 1.5e-7, "note": 'a \\ "quoted" text\n'}, subject="t")
        ledger.emit(
            "a", {"deep": [[{"a": None}, True, False, -0.0, 10**30, "\u00fc\u2028\ud83d\ude00"]]}, subject="\u00fc"
        )
        ledger.emit("a", None, ipc_hash=turn, extensions={"phase": "beta", "flag": True, "n": -3})
        ledger.emit("a", "\ud800")
        with ledger.span("charge", attributes={"amount": 12, "bank": "\u00e4"}) as span:
            ledger.flush()
            span.add_event("retry", {"n": 1})
            ledger.emit("inside", {})
        with pytest.raises(ZeroDivisionError), ledger.span("broken"):
            raise ZeroDivisionError("no")
    return b"".join(path.read_bytes() for path in sorted((root / "m").glob("*.jsonl"))).splitlines(keepends=True)


def test_lines_as_they_are_written_are_read_without_help(lines: list[bytes]) -> None:
    """The fallback is asked only where a member that is read has an escape."""
    asked = []
    ours = decoder(Record, lambda line: asked.append(line) or decode_plainly(line))  # type: ignore[func-returns-value]
    for line in lines:
        assert fields(ours(line)) == fields(decode_plainly(line))
    assert asked == [line for line in lines if b"\\ud800" in line]
    assert len(lines) > 14
    asked.clear()
    spans = decoder(ReplayedSpan, asked.append, types=replayed._SPAN_TYPES)  # type: ignore[arg-type]
    assert [spans(line) is not None for line in lines] == [b'"type":"otel.span.' in line for line in lines]
    assert not asked


def test_real_lines(lines: list[bytes]) -> None:
    for line in lines:
        same(line)
        same(line[:-1])
        for end in range(len(line)):
            same(line[:end])
    for path in Path(__file__).parent.joinpath("data").rglob("*.jsonl"):
        for line in path.read_bytes().splitlines(keepends=True)[:50]:
            same(line)


@given(data=st.data())
def test_damaged_lines(data: st.DataObject, lines: list[bytes]) -> None:
    line = bytearray(data.draw(st.sampled_from(lines)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(line) - 1))
        length = data.draw(st.sampled_from([0, 1, 1, 1, 2, 9]))
        line[at : at + length] = data.draw(
            st.binary(max_size=2)
            | st.sampled_from(
                [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b" ", b"null", b"0", b"-", b"1e5", b"\n"]
            )
            | st.sampled_from(
                [b'"seq":1,', b'"data":1,', b'"":1,', b'"x":[1],', b"\\u00e4", b"\\ud800", b"\xc3\xa4", b"\xff"]
            )
        )
        if not line:
            break
    same(bytes(line))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
members = {
    **dict.fromkeys(("id", "source", "type", "time", "machine"), st.text(max_size=20)),
    "seq": st.integers(),
    "data": values | st.fixed_dictionaries({"start": st.integers(), "name": st.text(max_size=5), "status": values}),
}
optional = {
    **dict.fromkeys(
        ("subject", "ipchash", "traceparent", "datacontenttype", "dataschema"), st.text(max_size=5) | values
    ),
    **dict.fromkeys(("synced", "specversion", "", "$line", "$trace", "otlcut", "prev"), values),
}


@given(
    st.fixed_dictionaries(members, optional=optional).flatmap(lambda found: st.permutations(list(found.items()))),
    st.booleans(),
    st.booleans(),
)
def test_generated_objects(found: list[tuple[str, Any]], ascii: bool, spaces: bool) -> None:
    text = json.dumps(dict(found), ensure_ascii=ascii, separators=None if spaces else (",", ":"))
    same(text.encode("utf-8", "surrogatepass") + b"\n")


HEAD = b'{"id":"i","source":"s","type":"otel.span.end","time":"t","machine":"m","traceparent":"00-0-0-01","seq":'


@given(st.from_regex(rb"\A[-+0-9.eE]{1,25}\Z"))
@example(b"0")
@example(b"00")
@example(b"-0")
@example(b"999999999999999999")
@example(b"1000000000000000000")
@example(b"-9223372036854775808")
@example(b"9223372036854775808")
@example(b"1" * 400)
@example(b"1.0")
@example(b"1.")
@example(b"1e2")
@example(b"")
def test_numbers(number: bytes) -> None:
    same(HEAD + number + b',"data":{"start":1}}\n')
    same(HEAD + b'1,"data":{"start":' + number + b"}}\n")
    same(HEAD + b'1,"data":{"x":' + number + b',"start":1}}\n')


@pytest.mark.parametrize("levels", [1, 50, 61, 62, 63, 64, 65, 500, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_depth(levels: int, opening: bytes, closing: bytes) -> None:
    nested = opening * levels + b"1" + closing * levels
    same(HEAD + b'1,"data":' + nested + b"}\n")
    same(HEAD + b'1,"x":' + nested + b',"data":{"start":1}}\n')
    same(HEAD + b'1,"data":' + opening * levels)


@pytest.mark.parametrize("given", [bytearray(HEAD), memoryview(HEAD), "text", None])
def test_what_is_no_bytes_object_goes_the_other_way(given: Any) -> None:
    asked: list[Any] = []
    decoder(Record, asked.append)(given)  # type: ignore[arg-type]
    assert asked == [given]


def test_what_it_cannot_make_is_refused() -> None:
    class Tracked(msgspec.Struct):
        line: Any = b""

    with pytest.raises(ValueError, match="garbage"):
        decoder(Tracked, Tracked)  # type: ignore[arg-type]
    assert speed.Decoder is not None
    with pytest.raises(ValueError, match="can be set"):
        speed.Decoder(Record, ((b"id", 0, False, ReplayedSpan.__dict__["seq"], ...),), None, None, (), ())


def run_of(blocks: list[bytes]) -> bytes:
    builder = runs.Builder(0)
    for block in blocks:
        builder.add(block)
    return builder.encode(runs.Stamp(0, 0, b"0" * 16))


def same_run(*blocks: bytes) -> None:
    """Check that an index is the same, whoever finds what is in the lines."""
    ours = run_of(list(blocks))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_cell", None)
        patch.setattr(speed, "order", None)
        assert run_of(list(blocks)) == ours


def test_indexes_of_real_lines(lines: list[bytes]) -> None:
    usual = [line for line in lines if b"\\ud800" not in line]
    assert decode.cell(b"".join(usual), 7)[0] == len(usual) > 10  # type: ignore[attr-defined]
    same_run(*lines)
    same_run(b"".join(lines), *lines[::-1], lines[0] * 3)


@given(data=st.data())
def test_indexes_of_damaged_lines(data: st.DataObject, lines: list[bytes]) -> None:
    picked = data.draw(st.lists(st.sampled_from(lines), min_size=1, max_size=4))
    block = bytearray(b"".join(picked))
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(block) - 1))
        length = data.draw(st.sampled_from([0, 1, 1, 2]))
        block[at : at + length] = data.draw(
            st.binary(max_size=2)
            | st.sampled_from([b'"seq":1,', b'"id":null,', b'"ipchash":"h",', b'"traceparent":null,'])
            | st.sampled_from([b"\n", b"\xc3\xa4"])
        )
    same_run(bytes(block) + b"\n", *picked)


INSTANT = re.compile(r"\A[0-2]\d{3}-[01]\d-[0-3]\dT[0-2]\d:[0-6]\d:[0-6]\d\.\d{9}Z\Z", re.ASCII)


@given(st.text("0123456789-:TZ.+z", max_size=31) | st.from_regex(INSTANT))
@example("2024-02-29T00:00:00.000000000Z")
@example("2023-02-29T00:00:00.000000000Z")
@example("0000-01-01T00:00:00.000000000Z")
@example("9999-12-31T23:59:59.999999999Z")
@example("2026-01-01T00:00:60.000000000Z")
def test_indexes_of_odd_times(time: str) -> None:
    line = b'{"id":"i","source":"s","type":"a","time":"%s","machine":"m","seq":1}\n'
    around = (line % at for at in (b"1970-01-02T00:00:00.000000000Z", b"9999-12-31T23:59:59.999999999Z"))
    same_run(line % time.encode(), (line % time.encode()).join(around))


@pytest.mark.parametrize(
    "more",
    [
        b'"id":"other",',
        b'"ipchash":"one","ipchash":"two",',
        b'"ipchash":null,"traceparent":null,',
        b'"ipchash":"one","ipchash":null,',
        b'"ipchash":1,',
        b'"traceparent":"00-short",',
        b'"traceparent":"00-%s",' % "\u00fc".encode() * 40,
        b'"traceparent":"%s",' % (b"0" * 20 + "\u00fc".encode() * 40),
        b'"x":"\xff",',
        b'"x":"\\ud800",',
        b'"x": 1,',
        b'"":1,',
        b'"subject":"\\n",',
    ],
)
def test_indexes_of_odd_members(more: bytes, lines: list[bytes]) -> None:
    same_run(lines[5], lines[5].replace(b"{", b"{" + more, 1) + lines[6])


@given(st.text("0123456789-:TZ.+z", max_size=31) | st.from_regex(INSTANT))
@example("1677-12-31T23:59:59.999999999Z")
@example("1678-01-01T00:00:00.000000000Z")
@example("1678-03-01T00:00:00.000000000Z")
@example("1900-02-28T00:00:00.000000001Z")
@example("2000-02-29T12:34:56.789012345Z")
@example("2261-12-31T23:59:59.999999999Z")
@example("2262-12-31T23:59:59.999999999Z")
def test_instants_are_equal(text: str) -> None:
    assert speed.instant is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "instant", None)
        plain = parse_time(text)
    assert speed.instant(text) in (None, plain)
    assert parse_time(text) == plain


@given(st.integers(-(10**19), 10**19))
def test_instants_of_all_days(ns: int) -> None:
    assert speed.instant is not None
    text = format_time(ns)
    assert parse_time(text) == ns
    # Only the 29th of February, and what 64 bits do not hold, are left to Python.
    assert speed.instant(text) == ns or text[5:10] == "02-29" or not 1678 <= int(text[:4]) <= 2261


@given(st.lists(st.integers(0, 2**42 - 1), max_size=300))
def test_keys_are_sorted(keys: list[int]) -> None:
    assert speed.order is not None
    packed = array("Q", keys + keys[::3])
    assert array("Q", speed.order(packed.tobytes())).tolist() == sorted(set(keys))


def test_nothing_is_kept_of_lines_that_are_unusual(lines: list[bytes]) -> None:
    """A record that is given up half-way frees what it has."""
    bad = [line[:end] for line in lines for end in range(0, len(line), 7)]

    def work() -> None:
        for line in bad:
            for each in (decode, replayed._decode):
                try:
                    each(line)
                except DECODE_ERRORS:
                    continue
            decode.cell(line, 1)  # type: ignore[attr-defined]

    work()
    tracemalloc.start()
    try:
        work()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(5):
            work()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000
