"""The compiled hot path against the same in Python, and how it is built."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otledger import merkle, speed, values
from otledger.batch import ZEROS, checksum_of, stamp_plainly
from otledger.chunks import Chunk, check_chunk
from otledger.errors import EventRefused
from otledger.record import Encoder, parse, parse_time

PACKAGE = Path(speed.__file__).parent

compiled = pytest.mark.skipif(speed.event is None, reason="the hot path is not compiled here, or OTLEDGER_PURE is set")
hashing = pytest.mark.skipif(speed.stamp is None, reason="not compiled here, or no SHA-256 instructions")


@pytest.mark.skipif(bool(os.environ.get("OTLEDGER_PURE")), reason="asked to stay in Python")
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_it_is_built_where_there_is_a_compiler() -> None:
    from otledger import _decode, _speed

    for module in (_speed, _decode):
        source = PACKAGE / f"{module.__name__.rpartition('.')[2]}.c"
        if source.exists():
            assert module.source == hashlib.sha256(source.read_bytes()).hexdigest(), "build it again: pip install -e ."


def test_without_it_everything_works(tmp_path: Path) -> None:
    script = (
        "from otledger import speed, open_sync, verify\n"
        "assert speed.event is speed.stamp is speed.check is speed.encode_plain is speed.telemetry is None\n"
        "assert speed.Decoder is None\n"
        "with open_sync('L', machine='m', service='s', min_free=0) as ledger:\n"
        "    with ledger.span('work'):\n"
        "        ledger.emit('a', {'n': [1, None, 'ä']})\n"
        "report = verify('L')\n"
        "assert not report.faults and report.records == 4 + 2, report\n"
    )
    env = {**os.environ, "OTLEDGER_PURE": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Stamping and checking


@hashing
@given(st.lists(st.binary(max_size=400)), st.integers(0, 2**62), st.binary(min_size=32, max_size=32))
def test_stamps_are_equal(parts: list[bytes], seq: int, prev: bytes) -> None:
    assert speed.stamp is not None
    assert speed.stamp(parts, seq, prev.hex().encode()) == stamp_plainly(parts, seq, prev.hex().encode())


@hashing
def test_stamps_are_equal_for_each_length() -> None:
    assert speed.stamp is not None
    # Padding depends on the length modulo 64; blocks end at every place.
    parts = [bytes([length % 251]) * length for length in range(300)]
    for seq in (0, 9, 99, 999_999_999_999_999_990, 2**63 - 400):
        assert speed.stamp(parts, seq, ZEROS) == stamp_plainly(parts, seq, ZEROS)
    large = [os.urandom(5 << 20)]
    assert speed.stamp(large, 7, ZEROS) == stamp_plainly(large, 7, ZEROS)


@hashing
@pytest.mark.parametrize(
    "arguments",
    [
        *[
            ((b"",), 0, ZEROS),
            ([b"", "text"], 0, ZEROS),
            ([b""], -1, ZEROS),
            ([b""], 2**63, ZEROS),
            ([b""], 0, b"short"),
        ],
        # A number that wraps around has more digits than there is room for.
        *[([b""] * 3, 2**63 - 2, ZEROS), ([b""] * 500, 2**63 - 1, ZEROS)],
    ],
)
def test_stamp_refuses_what_it_cannot_read(arguments: Any) -> None:
    assert speed.stamp is not None
    with pytest.raises((TypeError, ValueError, OverflowError)):
        speed.stamp(*arguments)


@hashing
def test_stamp_takes_the_list_as_it_was() -> None:
    assert speed.stamp is not None
    stop = threading.Event()
    parts = [b"x" * 2000] * 2000

    def change() -> None:
        while not stop.is_set():
            parts.append(b"y")
            parts.pop()
            parts[0] = bytes(2000)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(30):
            lines = speed.stamp(parts, 0, ZEROS)
            assert len(lines) in (2000, 2001)
            assert b"".join(lines).count(b"\n") == len(lines)
    finally:
        stop.set()
        thread.join()


@hashing
def test_check_stops_where_numbers_end() -> None:
    assert speed.check is not None
    lines = stamp_plainly([b'{"a":1'] * 4, 2**63 - 2, ZEROS)
    stop, count, _, _ = speed.check(b"".join(lines), 0, 10_000, 2**63 - 2, ZEROS)
    assert (stop, count) == (len(lines[0]), 1)


@hashing
@given(st.lists(st.binary(max_size=90), max_size=70), st.integers(0, 300), st.data())
def test_nodes_are_equal(parts: list[bytes], seq: int, data: st.DataObject) -> None:
    assert speed.grow is not None
    lines = stamp_plainly(parts, seq, ZEROS)
    # A tree is grown from lines as they stand in a block, also in two steps.
    clean = [line[:-1].replace(b"\n", b" ") + b"\n" for line in lines]
    block, cut = b"".join(clean), data.draw(st.integers(0, len(clean)))
    middle = sum(map(len, clean[:cut]))
    whole = speed.grow(block, 0, len(block), seq, b"")
    assert whole == merkle.grow_plainly(block, 0, len(block), seq, b"")
    first = speed.grow(block, 0, middle, seq, b"")
    assert speed.grow(block, middle, len(block), seq + cut, first) == whole
    rest = merkle.grow_plainly(block, middle, len(block), seq + cut, b"")
    assert merkle.join(first, seq + cut, rest) == whole
    if seq == 0:
        tree = merkle.Tree()
        for line in clean:
            tree.add(merkle.leaf_hash(checksum_of(line)))
        assert merkle.tree_of(whole).edge == tree.edge
        assert merkle.nodes_of(tree) == whole


@hashing
@pytest.mark.parametrize(
    "arguments",
    [
        *[(b"no line", 0, 7, 0, b""), (b"x" * 100 + b"\n", 0, 101, 0, b""), (b"", 0, 1, 0, b""), (b"", 0, 0, -1, b"")],
        *[(b"", 0, 0, 0, b"node"), (b"", 0, 0, 0, bytes(33 * 200)), ("", 0, 0, 0, b""), (b"a" * 90, -1, 90, 0, b"")],
    ],
)
def test_grow_refuses_what_it_cannot_read(arguments: Any) -> None:
    assert speed.grow is not None
    with pytest.raises((TypeError, ValueError)):
        speed.grow(*arguments)


@compiled
@pytest.mark.parametrize("room", [-1, 1001, 2**40])
def test_a_payload_cannot_take_the_whole_stack(room: int) -> None:
    assert speed.encode_plain is not None
    loop: Any = []
    loop.append(loop)
    with pytest.raises(ValueError, match="room"):
        speed.encode_plain(loop, room)


@compiled
def test_other_interpreters_of_a_process_stay_in_python() -> None:
    script = (
        "import contextlib, threading\n"
        "try:\n"
        "    import _interpreters as more\n"
        "except ImportError:\n"
        "    import _xxsubinterpreters as more\n"
        "from otledger.record import Encoder\n"
        "Encoder('m', 's').event('a', {'b': 1})\n"
        "for _ in range(3):\n"
        "    other = more.create()\n"
        "    # What these refuse is their business.\n"
        "    with contextlib.suppress(Exception):\n"
        "        more.run_string(other, 'from otledger import speed; assert speed.event is None')\n"
        "    more.destroy(other)\n"
        "    assert Encoder('m', 's').event('a', {'b': 1})[1].endswith(b'{\"b\":1}')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def ledger_bytes(count: int = 60) -> bytes:
    encoder = Encoder("m", "s")
    parts = [
        encoder.telemetry("otledger.gap", 1_000_000_000, "{}")
        if n % 7 == 3
        else encoder.event("a.b", {"n": n, "t": "x" * n})[1]
        for n in range(count)
    ]
    return b"".join(stamp_plainly(parts, 0, ZEROS))


def findings(
    path: Path, content: bytes, start: int, end: int, seq: int, monkeypatch: pytest.MonkeyPatch | None
) -> Chunk:
    path.write_bytes(content)
    chunk = Chunk(str(path), start, end, seq, ZEROS.decode() if seq == 0 else "")
    if monkeypatch is None:
        return check_chunk(chunk)
    with monkeypatch.context() as patch:
        patch.setattr(speed, "check", None)
        return check_chunk(chunk)


DAMAGES = {
    "none": lambda text: text,
    "torn": lambda text: text[:-30],
    "no end": lambda text: text[:-1],
    "flipped": lambda text: text[:5000] + bytes([text[5000] ^ 1]) + text[5001:],
    "line out": lambda text: b"".join(line for n, line in enumerate(text.splitlines(True)) if n != 20),
    "line twice": lambda text: b"".join(line * (1 + (n == 20)) for n, line in enumerate(text.splitlines(True))),
    "swapped": lambda text: b"".join(sorted(text.splitlines(True), key=lambda line: b'"seq":30,' in line)),
    "empty lines": lambda text: text.replace(b"\n", b"\n\n", 3),
    "foreign": lambda text: text.replace(b"\n", b'\n{"a":1}\n', 1),
    "zeros": lambda text: text + bytes(5000),
    "all zeros": lambda text: bytes(len(text)),
    "overlong": lambda text: text + b"x" * ((16 << 20) + 5) + b"\n" + text[-300:],
    "recomputed": lambda text: text.replace(b'"n":20', b'"n":21'),
    "other seq": lambda text: text.replace(b',"seq":20,', b',"seq":21,'),
}


@hashing
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("seq", [0, -1])
@pytest.mark.parametrize("block", [None, 700])
def test_checks_are_equal(
    damage: str, seq: int, block: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = DAMAGES[damage](ledger_bytes())
    if block is not None:
        if len(content) > 1 << 20:
            pytest.skip("a long line in small blocks takes long, and shows nothing more")
        monkeypatch.setattr("otledger.chunks.BLOCK", block)
    for start, end in ((0, len(content)), (0, 9000), (4000, 9001), (4000, len(content))):
        due = seq if start == 0 else -1
        ours = findings(tmp_path / "f", content, start, end, due, None)
        plain = findings(tmp_path / "f", content, start, end, due, monkeypatch)
        if damage == "overlong":
            # Into how many pieces it is cut depends on where reading began.
            ours.bad, plain.bad = ours.bad[:1], plain.bad[:1]
        assert ours == plain
    if damage == "none":
        assert ours.controls
        assert not ours.bad


# Payloads and parts

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text() | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


@compiled
@given(plain_values)
@example({"$a": 1})
@example({"": 1})
@example({"$a": 1, "b": 2})
@example({"a": "\u2028\x85\u2029"})
@example({"a": "é\u2027\u202aÂ"})
@example([float("nan")])
@example("\ud800")
def test_payloads_are_equal(value: Any) -> None:
    assert speed.encode_plain is not None
    ours = speed.encode_plain(value, values.MAX_DEPTH)
    kept, speed.encode_plain = speed.encode_plain, None
    try:
        in_python = values.encode(value)
    finally:
        speed.encode_plain = kept
    assert ours is None or ours == in_python
    if not isinstance(value, bytes | float) and values._is_plain(value, values.MAX_DEPTH):
        # Nothing that orjson can write and readers can split is left to Python.
        exotic = ours is None and not any(mark in repr(in_python) for mark in ("\\u0085", "\\u2028", "\\u2029", "$"))
        assert not exotic or in_python == b"{}"


@compiled
@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_depth_is_bounded_as_in_python(kind: type) -> None:
    assert speed.encode_plain is not None

    def nested(levels: int) -> Any:
        value: Any = 1
        for _ in range(levels):
            value = {"a": value} if kind is dict else kind([value])
        return value

    assert speed.encode_plain(nested(values.MAX_DEPTH), values.MAX_DEPTH) == values.encode(nested(values.MAX_DEPTH))
    assert speed.encode_plain(nested(values.MAX_DEPTH + 1), values.MAX_DEPTH) is None
    loop: Any = []
    loop.append(loop)
    assert speed.encode_plain(loop, values.MAX_DEPTH) is None


PART = re.compile(r'("id":")([0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15})(")')


@compiled
@given(
    st.text(min_size=1, max_size=20, alphabet=st.characters(blacklist_categories=("Cs", "Cc"))),
    plain_values,
    st.integers(0, 253_402_300_799_999_999_999) | st.integers(-(2**70), 2**70),
    st.sampled_from([None, "/elsewhere", "é"]),
    st.sampled_from([None, "tenant", "ß"]),
)
def test_parts_are_equal(type: str, data: Any, ns: int, source: str | None, subject: str | None) -> None:
    encoder = Encoder("m", "s")

    def make() -> tuple[str, bytes] | str:
        try:
            return encoder.event(type, data, ns, source, subject)
        except EventRefused as error:
            return str(error)

    ours = make()
    kept, speed.event = speed.event, None
    try:
        in_python = make()
    finally:
        speed.event = kept
    if isinstance(ours, str) or isinstance(in_python, str):
        assert ours == in_python
        return
    (own_id, own), (_, other) = ours, in_python
    assert PART.sub(r"\1\3", own.decode()) == PART.sub(r"\1\3", other.decode())
    assert f'"id":"{own_id}"' in own.decode()


@compiled
def test_ids_and_times() -> None:
    encoder = Encoder("m", "s")
    made = [encoder.event("a", n) for n in range(3000)]
    assert len({id for id, _ in made}) == 3000
    [line] = stamp_plainly([made[-1][1]], 0, ZEROS)
    record = parse(line)
    assert parse_time(record.time) == record.time_ns
    assert int(record.id[:12], 16) == record.time_ns // 1_000_000
    for id, _ in made:
        assert id[12] == "7"
        assert id[16] in "89ab"


@compiled
def test_a_forked_child_gives_out_other_ids() -> None:
    encoder = Encoder("m", "s")
    encoder.event("a", 1)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(write, encoder.event("a", 1)[0][17:].encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    child = os.read(read, 100).decode()
    os.close(read)
    os.close(write)
    assert len(child) == 15
    assert child not in {encoder.event("a", 1)[0][17:] for _ in range(500)}


@compiled
def test_a_part_that_is_too_large_is_refused_as_in_python() -> None:
    encoder = Encoder("m", "s")
    with pytest.raises(EventRefused, match="a line has at most"):
        encoder.event("a", "x" * (16 << 20))
    fits = (16 << 20) - 330 - len(encoder.event("a", "")[1])
    assert len(encoder.event("a", "x" * fits)[1]) == (16 << 20) - 330
    with pytest.raises(EventRefused, match="a line has at most"):
        encoder.event("a", "x" * (fits + 1))


# The build


@pytest.fixture
def hook() -> Any:
    pytest.importorskip("hatchling", reason="the build runs in an environment of its own")
    path = Path(__file__).parent.parent / "hatch_build.py"
    if not path.exists():
        pytest.skip("no sources here")
    import importlib.util

    spec = importlib.util.spec_from_file_location("hatch_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_compiler_that_fails_is_no_error(hook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    assert "No such file" in hook.compile_module(PACKAGE / "_speed.c", tmp_path / "x.so")
    monkeypatch.setenv("CC", "false")
    assert hook.compile_module(PACKAGE / "_speed.c", tmp_path / "x.so")
    assert not list(tmp_path.iterdir())
