"""Payloads: what is stored for each kind of value, what comes back, and that nothing raises or crashes."""

import contextlib
import dataclasses
import enum
import functools
import json
import math
import sys
import uuid
from collections import ChainMap, OrderedDict, UserDict, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, localcontext
from fractions import Fraction
from types import MappingProxyType
from typing import Any
from unittest.mock import MagicMock
from zoneinfo import ZoneInfo

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otledger import values
from otledger.values import MAX_DEPTH, TooDeep, decode, encode, escape_separators, loads

NAN, INF = float("nan"), float("inf")
ID = uuid.UUID("0190b2a4-0000-7000-8000-000000000001")


# Helpers


def refuse(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "repeated members"
    return dict(pairs)


def strict(raw: bytes) -> Any:
    """Parse as the format demands: UTF-8, no constants, no repeated members, none of the three separators."""
    assert not any(mark in raw.decode() for mark in "\x85\u2028\u2029\n")
    return json.loads(raw.decode(), parse_constant=refuse, object_pairs_hook=unique)


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def shape(value: Any) -> Any:
    """What two values have in common exactly if they are the same: NaN is NaN, and 0.0, -0.0, 0, False differ."""
    kind = type(value)
    if kind is dict:
        return kind, [(shape(key), shape(item)) for key, item in value.items()]
    if kind in (list, tuple):
        return kind, [shape(item) for item in value]
    if kind is set:
        return kind, sorted(map(repr, map(shape, value)))
    return kind, hex(value) if kind is int else repr(value)


def nest(count: int, wrap: Callable[[Any], Any], value: Any) -> Any:
    return functools.reduce(lambda inner, _: wrap(inner), range(count), value)


# Kinds


class Text(str):
    """A string that lies about itself."""

    __slots__ = ()

    def __str__(self) -> str:
        return "a lie"

    def startswith(self, *args: Any) -> bool:
        raise OSError

    def __getitem__(self, key: Any) -> str:
        raise OSError


class Whole(int):
    def __str__(self) -> str:
        return "a lie"


class Real(float):
    pass


class Map(dict[Any, Any]):
    def items(self) -> Any:
        raise OSError


class Row(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise OSError


class Blob(bytes):
    def __bytes__(self) -> bytes:
        raise OSError


class Crowd(set[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise OSError


class Price(Decimal):
    def __str__(self) -> str:
        return "a lie"


class Moment(datetime):
    pass


class Ident(uuid.UUID):
    pass


Pair = namedtuple("Pair", "left right")


class Color(enum.Enum):
    RED = "red"
    BLOB = b"blob"
    NAN = NAN
    PAIR = (1, b"2")
    NESTED = Whole(5)


class Name(enum.StrEnum):
    ANN = "ann"
    DOLLAR = "$x"


class Level(enum.IntEnum):
    HIGH = 3


class Bits(enum.Flag):
    ONE = 1
    TWO = 2


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 2
    _private: Any = 3
    scale: dataclasses.InitVar[int] = 1

    def __post_init__(self, scale: int) -> None:
        self.extra = scale


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Any
    _private: int = 3
    y: Any = dataclasses.field(init=False)


@dataclasses.dataclass
class Mixed(Slotted):
    z: int = 9


class Derived(Point):
    pass


class Many(Mapping[Any, Any]):
    """A map in which a key may stand more than once, as in a web form."""

    def __init__(self, *pairs: tuple[Any, Any]) -> None:
        self.pairs = pairs

    def __getitem__(self, key: Any) -> Any:
        return dict(self.pairs)[key]

    def __iter__(self) -> Iterator[Any]:
        return iter([key for key, _ in self.pairs])

    def __len__(self) -> int:
        return len(self.pairs)

    def items(self) -> Any:
        return self.pairs


def full(value: Any) -> Any:
    value.y = 5
    return value


class Zone(tzinfo):
    def __init__(self, offset: Any) -> None:
        self.offset = offset

    def utcoffset(self, when: datetime | None) -> timedelta | None:
        if isinstance(self.offset, Exception):
            raise self.offset
        return self.offset  # type: ignore[no-any-return]

    def dst(self, when: datetime | None) -> None:
        return None

    def tzname(self, when: datetime | None) -> None:
        return None


# Value, what is stored, what comes back (where it is not the value itself).
TABLE: list[tuple[Any, ...]] = [
    (None, "null"),
    (True, "true"),
    (1.5, "1.5"),
    (-0.0, "-0.0"),
    ("a\"b\\\n{null", r'"a\"b\\\n{null"'),
    ({}, "{}"),
    ([], "[]"),
    ({"a": [1, None, {"b": "c"}]}, '{"a":[1,null,{"b":"c"}]}'),
    (b"\x00\xff", '{"$bytes":"AP8="}'),
    (b"", '{"$bytes":""}'),
    (bytearray(b"a"), '{"$bytes":"YQ=="}', b"a"),
    (memoryview(b"abcd")[::2], '{"$bytes":"YWM="}', b"ac"),
    (memoryview(b"abcd").cast("H"), '{"$bytes":"YWJjZA=="}', b"abcd"),
    (Blob(b"a"), '{"$bytes":"YQ=="}', b"a"),
    (NAN, '{"$float":"NaN"}'),
    (-NAN, '{"$float":"NaN"}', NAN),
    (INF, '{"$float":"Infinity"}'),
    (-INF, '{"$float":"-Infinity"}'),
    ({"a": INF, "b": 1}, '{"a":{"$float":"Infinity"},"b":1}'),
    ((-INF, 1), '[{"$float":"-Infinity"},1]', [-INF, 1]),
    (Real(1.5), "1.5", 1.5),
    (Real("inf"), '{"$float":"Infinity"}', INF),
    (2**64 - 1, "18446744073709551615"),
    (-(2**63), "-9223372036854775808"),
    (2**64, '{"$int":"18446744073709551616"}'),
    (-(2**63) - 1, '{"$int":"-9223372036854775809"}'),
    (10**5000, '{"$int":"1' + "0" * 5000 + '"}'),
    (Whole(5), "5", 5),
    (Whole(2**64), '{"$int":"18446744073709551616"}', 2**64),
    (Decimal("12.30"), '{"$decimal":"12.30"}'),
    (Decimal("-0E+3"), '{"$decimal":"-0E+3"}'),
    (Decimal("sNaN12"), '{"$decimal":"sNaN12"}'),
    (Decimal("-Infinity"), '{"$decimal":"-Infinity"}'),
    (Price("1.0"), '{"$decimal":"1.0"}', Decimal("1.0")),
    ({1}, '{"$set":[1]}'),
    (set(), '{"$set":[]}'),
    (frozenset([b"a"]), '{"$set":[{"$bytes":"YQ=="}]}', {b"a"}),
    (Crowd([1]), '{"$set":[1]}', {1}),
    ({frozenset([1])}, '{"$set":[{"$set":[1]}]}', [{1}]),
    ({(1, 2)}, '{"$set":[[1,2]]}', [[1, 2]]),
    ({Decimal("0.1")}, '{"$set":[{"$decimal":"0.1"}]}'),
    ("\ud800x", '{"$str":"7aCAeA=="}'),
    ("\ud83d\ude00", '{"$str":"7aC97biA"}'),
    (Text("\ud800x"), '{"$str":"7aCAeA=="}', "\ud800x"),
    (Text("x"), '"x"', "x"),
    ("\x85\u2028\u2029é😀", '"\\u0085\\u2028\\u2029é😀"'),
    ({"\u2028": b"\x85"}, '{"\\u2028":{"$bytes":"hQ=="}}'),
    ({1: "a"}, '{"$map":[[1,"a"]]}'),
    ({None: 1, True: 2, 1.5: 3}, '{"$map":[[null,1],[true,2],[1.5,3]]}'),
    ({"a": 1, 2: {"b": b""}}, '{"$map":[["a",1],[2,{"b":{"$bytes":""}}]]}'),
    ({"\ud800": 1}, '{"$map":[[{"$str":"7aCA"},1]]}'),
    ({"$bytes": "YQ=="}, '{"$map":[["$bytes","YQ=="]]}'),
    ({"$": 1}, '{"$map":[["$",1]]}'),
    ({Text("$x"): 1}, '{"$map":[["$x",1]]}', {"$x": 1}),
    ({"$a": 1, "b": 2}, '{"$a":1,"b":2}'),
    ({"$a": 1, "$b": 2}, '{"$a":1,"$b":2}'),
    ({"$map": [[1, 2]], "$set": b""}, '{"$map":[[1,2]],"$set":{"$bytes":""}}'),
    ({"$map": {"$map": 1}}, '{"$map":[["$map",{"$map":[["$map",1]]}]]}'),
    ({"a": {"$x": NAN}}, '{"a":{"$map":[["$x",{"$float":"NaN"}]]}}'),
    ({NAN: 1, float("nan"): 2}, '{"$map":[[{"$float":"NaN"},1],[{"$float":"NaN"},2]]}'),
    ({(1, 2): 3}, '{"$map":[[[1,2],3]]}', [([1, 2], 3)]),
    ({frozenset(): 3}, '{"$map":[[{"$set":[]},3]]}', [(set(), 3)]),
    ({Text("a"): 1, "b": 2}, '{"a":1,"b":2}', {"a": 1, "b": 2}),
    ({Name.ANN: 1}, '{"ann":1}', {"ann": 1}),
    ({Name.DOLLAR: 1}, '{"$map":[["$x",1]]}', {"$x": 1}),
    ({Color.RED: 1, "red": 2}, '{"$map":[["red",1],["red",2]]}', [("red", 1), ("red", 2)]),
    (Many(("a", 1), ("a", 2)), '{"$map":[["a",1],["a",2]]}', [("a", 1), ("a", 2)]),
    (Many(("a", 1), (Text("a"), 2)), '{"$map":[["a",1],["a",2]]}', [("a", 1), ("a", 2)]),
    (Many((1, "i"), (True, "b")), '{"$map":[[1,"i"],[true,"b"]]}', [(1, "i"), (True, "b")]),
    (Many(("a", 1), ("b", 2)), '{"a":1,"b":2}', {"a": 1, "b": 2}),
    (Map(a=b""), '{"a":{"$bytes":""}}', {"a": b""}),
    (OrderedDict(b=1, a=NAN), '{"b":1,"a":{"$float":"NaN"}}', {"b": 1, "a": NAN}),
    (MappingProxyType({"a": 1}), '{"a":1}', {"a": 1}),
    (UserDict({1: 2}), '{"$map":[[1,2]]}', {1: 2}),
    (ChainMap({"a": 1}, {"a": 2}), '{"a":1}', {"a": 1}),
    (Row([b""]), '[{"$bytes":""}]', [b""]),
    ((1, (2, "x")), '[1,[2,"x"]]', [1, [2, "x"]]),
    ((1, b""), '[1,{"$bytes":""}]', [1, b""]),
    (Pair(1, NAN), '[1,{"$float":"NaN"}]', [1, NAN]),
    (Color.RED, '"red"', "red"),
    (Color.BLOB, '{"$bytes":"YmxvYg=="}', b"blob"),
    (Color.NAN, '{"$float":"NaN"}', NAN),
    (Color.PAIR, '[1,{"$bytes":"Mg=="}]', [1, b"2"]),
    (Color.NESTED, "5", 5),
    (Name.ANN, '"ann"', "ann"),
    (Level.HIGH, "3", 3),
    (Bits.ONE | Bits.TWO, "3", 3),
    (Point(1), '{"x":1,"y":2,"extra":1}', {"x": 1, "y": 2, "extra": 1}),
    (Point(NAN, [b""]), '{"x":{"$float":"NaN"},"y":[{"$bytes":""}],"extra":1}', {"x": NAN, "y": [b""], "extra": 1}),
    (Derived(1), '{"x":1,"y":2,"extra":1}', {"x": 1, "y": 2, "extra": 1}),
    (full(Slotted(1)), '{"x":1,"y":5}', {"x": 1, "y": 5}),
    (Slotted(None), '{"x":null}', {"x": None}),
    (full(Mixed(1)), '{"z":9,"x":1,"y":5}', {"z": 9, "x": 1, "y": 5}),
    (datetime.fromisoformat("2026-11-21T21:26:00.5"), '"2026-11-21T21:26:00.500000"', "2026-11-21T21:26:00.500000"),
    (datetime.fromisoformat("0001-01-01T00:00:00Z"), '"0001-01-01T00:00:00+00:00"', "0001-01-01T00:00:00+00:00"),
    (Moment(2026, 7, 1, tzinfo=ZoneInfo("Europe/Berlin")), '"2026-07-01T00:00:00+02:00"', "2026-07-01T00:00:00+02:00"),
    (date(2026, 11, 21), '"2026-11-21"', "2026-11-21"),
    (time(1, 2, 3, 4), '"01:02:03.000004"', "01:02:03.000004"),
    (time(1, 2, 3, 45678), '"01:02:03.045678"', "01:02:03.045678"),
    (ID, f'"{ID}"', str(ID)),
    (Ident(int=5), '"00000000-0000-0000-0000-000000000005"', "00000000-0000-0000-0000-000000000005"),
    ({"id": ID, "n": None}, f'{{"id":"{ID}","n":null}}', {"id": str(ID), "n": None}),
    (range(3), '{"$repr":"range: range(0, 3)"}', {"$repr": "range: range(0, 3)"}),
    (deque([1]), '{"$repr":"collections.deque: deque([1])"}', {"$repr": "collections.deque: deque([1])"}),
    (1j, '{"$repr":"complex: 1j"}', {"$repr": "complex: 1j"}),
    (Point, "{\"$repr\":\"type: <class 'tests.test_values.Point'>\"}", ...),
    (Fraction(1, 2), '{"$repr":"fractions.Fraction: Fraction(1, 2)"}', ...),
    (time(1, tzinfo=UTC), '{"$repr":"datetime.time: datetime.time(1, 0, tzinfo=datetime.timezone.utc)"}', ...),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[1][:60])
def test_table(row: tuple[Any, ...]) -> None:
    value, text = row[:2]
    back = value if len(row) == 2 else row[2]
    raw = encode(value)
    if back is ...:
        text, back = str(text).replace("tests.test_values", __name__), strict(raw)
    assert raw == text.encode()
    strict(raw)
    assert shape(loads(raw)) == shape(decode(json.loads(raw))) == shape(back)
    # Inside other values it is stored and comes back in the same way.
    assert encode({"k": [value], "l": b""}) == b'{"k":[%b],"l":{"$bytes":""}}' % raw
    assert shape(loads(encode([value, {1: value}]))) == shape([back, {1: back}])


# Properties

surrogates = st.text(st.characters(categories=["Cs", "L", "Zl", "Zp", "Cc"]), max_size=5)
texts = st.one_of(st.text(max_size=8), surrogates, st.sampled_from(["$", "$map", "$bytes", "\x85\u2028\u2029", "null"]))
integers = st.one_of(st.integers(), st.sampled_from([2**63, -(2**63), 2**64 - 1, 2**64, -(2**63) - 1]))
decimals = st.decimals().filter(lambda number: not number.is_snan())
scalars = st.one_of(st.none(), st.booleans(), integers, st.floats(), texts, st.binary(max_size=8), decimals)
anything = st.recursive(
    st.one_of(scalars, st.sets(scalars, max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(texts, inner, max_size=3),
        st.dictionaries(scalars, inner, max_size=3),
        st.builds(lambda name, item: {"$" + name: item}, texts, inner),
    ),
    max_leaves=12,
)
finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), finite, st.text()),
    lambda inner: st.one_of(
        st.lists(inner),
        st.dictionaries(st.text().filter(lambda name: not name.startswith("$")), inner),
    ),
    max_leaves=30,
)


@given(anything)
def test_what_is_stored_comes_back(value: Any) -> None:
    raw = encode(value, on_repr=lambda: pytest.fail("no $repr is needed"))
    strict(raw)
    assert shape(loads(raw)) == shape(decode(orjson.loads(raw))) == shape(value)


@given(anything)
def test_storing_again_what_came_back_gives_the_same_text(value: Any) -> None:
    raw = encode(loads(encode(value)))
    assert shape(loads(raw)) == shape(value)


@given(plain)
def test_the_fast_way_is_the_slow_way(value: Any) -> None:
    assert values._is_plain(value, MAX_DEPTH)
    assert encode(value) == escape_separators(orjson.dumps(values._build(value, MAX_DEPTH, None)))
    assert shape(loads(encode(value))) == shape(strict(encode(value))) == shape(value)


@given(plain, st.sampled_from([b"", NAN, 2**64, {1: 2}, "\ud800", {"$x": 1}, object(), Text("x")]))
def test_one_value_that_is_not_plain_leaves_the_others_as_they_are(value: Any, odd: Any) -> None:
    assert encode([value, odd]) == b"[%b,%b]" % (encode(value), encode(odd))


offsets = st.timedeltas(timedelta(hours=-23), timedelta(hours=23))
zones = st.one_of(st.none(), st.timezones(), st.builds(timezone, offsets))


# orjson 3.13 leaves out a zero of these, which makes another time of them.
times = st.times().filter(lambda value: not 10_000 <= value.microsecond < 100_000)


@given(st.tuples(st.datetimes(timezones=zones), st.dates(), times, st.uuids()))
def test_what_orjson_writes_is_written_as_orjson_writes_it(parts: tuple[Any, ...]) -> None:
    for value in (*parts, parts, Point(*parts[:2]), full(Slotted(parts[0])), Color.RED, Level.HIGH):
        assert encode(value) == orjson.dumps(value)


# Depth


@pytest.mark.parametrize(
    ("levels", "wrap"),
    [
        (1, lambda inner: [inner]),
        (1, lambda inner: (inner,)),
        (1, lambda inner: Row([inner])),
        (1, lambda inner: {"a": inner}),
        (1, lambda inner: MappingProxyType({"a": inner})),
        (1, Point),
        (2, lambda inner: ([inner],)),
        (2, lambda inner: {"a": (inner,)}),
        (2, lambda inner: frozenset([inner])),
        (3, lambda inner: {1: inner}),
        (3, lambda inner: {"$a": inner}),
    ],
)
@pytest.mark.parametrize(
    ("leaf", "leaf_levels"),
    [(0, 0), ("]" * 99, 0), (NAN, 1), (b"", 1), ("\ud800", 1), (2**64, 1), (Decimal(1), 1), (3j, 1), (frozenset(), 2)],
)  # fmt: skip
def test_depth(levels: int, wrap: Callable[[Any], Any], leaf: Any, leaf_levels: int) -> None:
    for count in range(80 // levels, 102 // levels):
        value = nest(count, wrap, leaf)
        if count * levels + leaf_levels <= MAX_DEPTH:
            assert depth(strict(encode(value))) == count * levels + leaf_levels
        else:
            with pytest.raises(TooDeep, match="98 levels"):
                encode(value)


@pytest.mark.parametrize("count", [97, 98, 99, 100, 101])
@pytest.mark.parametrize("empty", [[], {}, ()])
def test_an_empty_container_is_a_level(count: int, empty: Any) -> None:
    value = nest(count - 1, lambda inner: [inner], empty)
    if count <= MAX_DEPTH:
        assert depth(strict(encode(value))) == count
    else:
        with pytest.raises(TooDeep):
            encode(value)


def test_a_depth_beyond_any_stack() -> None:
    with pytest.raises(TooDeep):
        encode(nest(100_000, lambda inner: (inner,), ()))
    with pytest.raises(TooDeep):
        encode({"a": b"", "b": nest(100_000, lambda inner: [inner], [])})


def test_wide_is_not_deep() -> None:
    value = [[{"a": [(), {1, 2}]}]] * 5000
    assert depth(strict(encode(value))) == 6


class Self(enum.Enum):
    A = 1

    @property
    def value(self) -> Any:
        return self


def cycles() -> Iterator[Any]:
    """Values that contain themselves, each in another way."""
    row: list[Any] = []
    row += [row, row]
    yield row
    yield {"a": row}
    table: dict[Any, Any] = {}
    table |= {"a": table, "b": table}
    yield table
    yield MappingProxyType(table)
    numbered: dict[Any, Any] = {}
    numbered[1] = [numbered]
    yield numbered
    knot: tuple[Any, ...] = ([],)
    knot[0].append(knot)
    yield knot
    point = Point(1)
    point.x = point
    yield point
    slotted = Slotted(1)
    slotted.x = [slotted]
    yield slotted
    yield Self.A


@pytest.mark.parametrize("value", list(cycles()), ids=lambda value: type(value).__name__)
def test_a_cycle(value: Any) -> None:
    with pytest.raises(TooDeep):
        encode(value)


def test_a_caller_that_has_used_up_the_stack() -> None:
    value = nest(60, lambda inner: [inner], NAN)
    outcomes: set[Any] = set()

    def fall() -> None:
        with contextlib.suppress(RecursionError):
            fall()
        try:
            outcomes.add(encode(value))
        except TooDeep as error:
            outcomes.add(type(error))
        except RecursionError:  # not from inside encode(): there was no place to call it
            assert sys.exc_info()[2].tb_next is None  # type: ignore[union-attr]

    fall()
    assert outcomes == {TooDeep, encode(value)}


# Values that do harm


def bad(name: str, **members: Any) -> Any:
    return type(name, (), members)()


def fail(*_: Any) -> Any:
    raise OSError("no")


def endless(self: Any) -> str:
    return repr(self)


class Broken(enum.Enum):
    A = 1

    @property
    def value(self) -> Any:
        raise OSError


class Meta(type):
    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise OSError


class Hidden(metaclass=Meta):
    def __repr__(self) -> str:
        return "hidden"


class Failing(Many):
    items = fail


class Strange:
    __class__ = property(fail)

    def __repr__(self) -> str:
        return "strange"


released = memoryview(bytearray(b"a"))
released.release()

HARM: list[tuple[Any, str]] = [
    (bad("Raises", __repr__=fail), "tests.test_values.Raises: <repr() raised OSError>"),
    (bad("Endless", __repr__=endless), "tests.test_values.Endless: <repr() raised RecursionError>"),
    (bad("Number", __repr__=lambda _: 5), "tests.test_values.Number: <repr() raised TypeError>"),
    (bad("Lies", __repr__=lambda _: Text("x")), "tests.test_values.Lies: x"),
    (bad("Lone", __repr__=lambda _: "a\ud800b"), "tests.test_values.Lone: a\\ud800b"),
    (bad("Long", __repr__=lambda _: "é" * 1001), "tests.test_values.Long: " + "é" * 1000),
    (bad("Lines", __repr__=lambda _: "\u2028\x00"), "tests.test_values.Lines: \u2028\x00"),
    (bad("Attributes", __getattr__=fail, __repr__=lambda _: "x"), "tests.test_values.Attributes: x"),
    (Hidden(), "object: hidden"),
    (Strange(), "tests.test_values.Strange: strange"),
    (Failing(("a", 1)), "tests.test_values.Failing: <"),
    (Broken.A, "tests.test_values.Broken: <Broken.A: 1>"),
    (uuid.UUID.__new__(uuid.UUID), "uuid.UUID: <repr() raised AttributeError>"),
    (released, "memoryview: <released memory"),
    (datetime.min.replace(tzinfo=Zone(OSError())), "datetime.datetime: datetime.datetime(1, 1, 1, 0, 0, tzinfo=<"),
    (datetime.min.replace(tzinfo=Zone(5)), "datetime.datetime: datetime.datetime(1, 1, 1, 0, 0, tzinfo=<"),
    (MagicMock(spec=dict), "unittest.mock.MagicMock: <MagicMock spec='dict'"),
    ((number for number in range(3)), "generator: <generator object"),
]  # fmt: skip


@pytest.mark.parametrize("row", HARM, ids=lambda row: row[1][:60])
def test_a_value_that_does_harm(row: tuple[Any, str]) -> None:
    value, text = row
    calls: list[None] = []
    raw = encode({"k": [value, b""], "l": None}, on_repr=lambda: calls.append(None))
    stored = strict(raw)["k"][0]
    assert stored["$repr"].startswith(text.replace("tests.test_values", __name__))
    assert stored.keys() == {"$repr"}
    assert len(stored["$repr"].partition(": ")[2]) <= 1000
    assert len(calls) == 1
    assert loads(raw) == {"k": [stored, b""], "l": None}


def test_a_generator_is_not_consumed() -> None:
    numbers = (number for number in range(3))
    encode([numbers])
    assert list(numbers) == [0, 1, 2]


def test_an_unset_slot_is_left_out_and_an_unknown_zone_is_none() -> None:
    assert encode([Slotted(1)]) == b'[{"x":1}]'
    assert encode(datetime.min.replace(tzinfo=Zone(None))) == b'"0001-01-01T00:00:00"'


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (object(), 1),
        ({"a": object(), "b": [object(), {object()}], "c": NAN}, 3),
        ({object(): object()}, 2),
        ({object(): 1, "a": (1, 2)}, 1),
        (Point(object(), Color.RED), 1),
        (deque([object(), object()]), 1),
        ([1, None, "null", {"$x": NAN}, b"", {1: 2}], 0),
    ],
)
def test_each_repr_is_counted_once(value: Any, count: int) -> None:
    calls: list[None] = []
    raw = encode(value, on_repr=lambda: calls.append(None))
    assert len(calls) == raw.count(b'{"$repr":') == count
    assert encode(value) == raw


def test_what_on_repr_raises_passes() -> None:
    with pytest.raises(KeyError, match="mine"):
        encode([object()], on_repr=lambda: {}["mine"])  # type: ignore[index]


def test_an_interrupt_passes() -> None:
    def interrupt(_: Any) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(bad("Interrupted", __repr__=interrupt))


# Reading what others wrote


@pytest.mark.parametrize(
    "text",
    [
        '{"$bytes":"YQ"}',
        '{"$bytes":"Y Q=="}',
        '{"$bytes":"YQ==YQ=="}',
        '{"$bytes":"é"}',
        '{"$bytes":null}',
        '{"$bytes":[1]}',
        '{"$float":"nan"}',
        '{"$float":"1.5"}',
        '{"$float":1.5}',
        '{"$int":""}',
        '{"$int":"-"}',
        '{"$int":"+5"}',
        '{"$int":" 5"}',
        '{"$int":"5\\n"}',
        '{"$int":"1_000"}',
        '{"$int":"٣"}',
        '{"$int":5}',
        '{"$decimal":"abc"}',
        '{"$decimal":""}',
        '{"$decimal":"1_0"}',
        '{"$decimal":" 1"}',
        '{"$decimal":"1e9999999999999999999999"}',
        '{"$decimal":5}',
        '{"$decimal":[0,[1],0]}',
        '{"$set":"abc"}',
        '{"$set":{"a":1}}',
        '{"$str":"gICA"}',
        '{"$str":"x"}',
        '{"$map":{"a":1}}',
        '{"$map":[1]}',
        '{"$map":["ab"]}',
        '{"$map":[[1,2],[3]]}',
        '{"$map":[[1,2,3]]}',
        '{"$enc":{"alg":"x","ct":{"$bytes":"YQ=="}}}',
        '{"$cut":5}',
        '{"$repr":"x: y"}',
        '{"$":{"$int":"5"}}',
        '{"$unknown":{"$bytes":"YQ=="}}',
        '{"$bytes":"YQ==","b":1}',
        '{"a":1,"$int":"5"}',
        '"$bytes"',
    ],
)
def test_what_is_unknown_or_malformed_comes_back_unchanged(text: str) -> None:
    plain = json.loads(text)
    with localcontext() as context:
        context.clear_traps()
        assert loads(text.encode()) == plain
        assert decode([plain]) == [plain]
    # And as a user's value it is kept apart from what it looks like.
    assert shape(loads(encode(plain))) == shape(plain)


def test_a_member_beside_others_is_decoded_on_its_own() -> None:
    assert loads(b'{"$a":{"$int":"5"},"b":[{"$bytes":"YQ=="}]}') == {"$a": 5, "b": [b"a"]}


def test_spaces_and_escapes_of_other_writers() -> None:
    assert loads(b'{ "$bytes" : "YQ==" }') == b"a"
    assert loads(b'{"\\u0024bytes":"YQ=="}') == b"a"
    assert loads(b'["\\u0041$", "$5", "\\\\"]') == ["A$", "$5", "\\"]


def test_numbers_are_exact() -> None:
    assert shape(loads(b"[123456789012345678901234567890,-0.0,1.0,18446744073709551616]")) == shape(
        [123456789012345678901234567890, -0.0, 1.0, 18446744073709551616]
    )
    digits = "-" + "123456789" * 2000
    assert encode(loads(b'{"$int":"%b"}' % digits.encode())) == b'{"$int":"%b"}' % digits.encode()
    assert loads(b'{"$int":"-007"}') == -7
    nan = loads(b'{"$float":"NaN"}')
    assert isinstance(nan, float)
    assert math.isnan(nan)


def test_keys_that_repeat_give_the_pairs() -> None:
    assert shape(loads(b'{"$map":[[1,2],[1.0,3]]}')) == shape([(1, 2), (1.0, 3)])
    assert shape(loads(b'{"$map":[["a",2],["a",{"$int":"3"}]]}')) == shape([("a", 2), ("a", 3)])
    assert loads(b'{"$map":[[{"$decimal":"sNaN"},1]]}') != {}
    assert loads(b'{"$map":[]}') == {}


def test_new_containers_are_given() -> None:
    stored = {"a": [{"b": 1}]}
    back: Any = decode(stored)
    assert back == stored
    back["a"][0]["b"] = 2
    assert stored == {"a": [{"b": 1}]}


@pytest.mark.parametrize("raw", [b"", b"{", b"NaN", b"'a'", b"\xff", b'"\xff"', b"1e999", b"1 2"])
def test_no_json_is_an_error(raw: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        loads(raw)


def test_separators_in_a_text_that_is_json_already() -> None:
    text = '{"a\x85":"\u2028\u2029 é 中 ‧ \u202a"}'
    raw = escape_separators(text.encode())
    assert strict(raw) == json.loads(text)
    assert raw.decode() == '{"a\\u0085":"\\u2028\\u2029 é 中 ‧ \u202a"}'
    assert escape_separators(b'{"a":1}') == b'{"a":1}'
