"""What is fuzzed, and what has to hold for it: no crash, no hang, and never OK for what is damaged.

A target is a function of a bench and of chance. To add one, write it and put it into `TARGETS` with how many examples
of it the short campaign runs; the long one (fuzz_forever.py) takes all of them.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import otledger
from otledger import Journal, Reader, Status, runs, speed, values
from otledger.batch import ZEROS, check_line, stamp_plainly
from otledger.chunks import Chunk, check_chunk
from otledger.cli.output import UNSAFE, Paint
from otledger.cli.render import Renderer
from otledger.errors import ConfigurationError, EventRefused, FormatError, LedgerError
from otledger.follow import Cursor
from otledger.lock import decode_state
from otledger.predecessors import import_evledger, import_pipeworks
from otledger.record import DECODE_ERRORS, Encoder, Record, decode, decode_plainly, parse
from otledger.repair import Plan, plan
from tests.checker import check
from tests.faults.fuzzing import (
    BREACHES,
    NASTY_BYTES,
    NASTY_LINES,
    NASTY_VALUES,
    Chance,
    bent_record,
    damaged,
    pick,
    recomputed,
)
from tests.faults.tools import MACHINE, TAIL, append_bytes, edit_lock, journal, lines_of, newest, partition, put

GOOD = (Status.OK, Status.RECOVERED, Status.UNSEALED_TAIL)
DATA = Path(__file__).parents[1] / "data"
SEGMENT = re.compile(r"\d{4}-\d\d(\.\d+)?\.jsonl")

Files = dict[str, bytes]
"""The files of a partition, by their paths in it."""


# The ledgers that are damaged -------------------------------------------------------------------------------


def files_of(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if not path.is_dir()}


def make_plain(root: Path) -> None:
    """Three segments, checkpoints, spans, all kinds of values."""
    for number in range(3):
        with journal(root, max_segment=1 if number else 1 << 30, checkpoint_interval=0.0) as target:
            put(target, {"n": number, "t": "\u2028é\x1b[2J"}, [b"x", float("nan"), 2**70, {1, 2}], "text")
    with otledger.open_sync(root, machine=MACHINE, service="test", min_free=0, check=None) as ledger:
        with ledger.span("work", attributes={"a": 1}):
            ledger.emit("app.event", {"in": "a span"}, subject="s", ipc_hash="0" * 64, extensions={"ext": "x"})
        ledger.append("app.event", {"last": True})


def make_mended(root: Path) -> None:
    """One after a torn tail and after a failed sync: with quarantine, a fault segment, and bytes that do not count."""
    with journal(root) as target:
        put(target, 1, 2)
    append_bytes(newest(root), b'{"specversion":"1.0","id":"torn')
    with journal(root, durability="os") as target:
        put(target, 3)
        target.sync()
        put(target, 4, 5)
        edit_lock(root, state="failed")
        put(target, 6)


TEMPLATES: dict[str, Callable[[Path], None]] = {"plain": make_plain, "mended": make_mended}


class Bench:
    """A folder to work in, and the ledgers that are damaged there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # What a reader reports is looked at by the targets; the log would be megabytes.
        logging.getLogger("otledger").setLevel(logging.CRITICAL + 1)
        self.templates = {}
        for name, make in TEMPLATES.items():
            root = folder / f"template-{name}"
            make(root)
            check(partition(root))
            assert otledger.verify(root, processes=1, deep=True).status in GOOD
            self.templates[name] = files_of(partition(root))
        for name, source in (
            ("evledger", DATA / "evledger"),
            ("pipeworks", DATA / "pipeworks"),
            ("otlp", DATA / "otlp"),
        ):
            self.templates[name] = files_of(source)
        self.lines = [
            line for name in TEMPLATES for path, data in self.templates[name].items() if SEGMENT.fullmatch(path)
            for line in data.splitlines(keepends=True)
        ]  # fmt: skip

    def fresh(self, name: str = "ledger") -> Path:
        """A path where nothing is."""
        path = self.folder / name
        if path.exists():
            shutil.rmtree(path)
        return path

    def lay(self, files: Files, name: str = "ledger") -> Path:
        """A ledger of these files."""
        root = self.fresh(name)
        folder = partition(root)
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / path).write_bytes(data)
        root.chmod(0o700)
        return root


Target = Callable[[Bench, Chance], None]


# Damage, and whether it has to be seen ----------------------------------------------------------------------


@dataclasses.dataclass
class Damage:
    """A partition whose bytes are no longer those that were written."""

    files: Files
    seen: bool
    """Whether `verify` must not call it good."""
    deep: bool = False
    """Whether only a deep look can see it."""


def damage(bench: Bench, chance: Chance) -> Damage:
    files = dict(bench.templates[pick(chance, list(TEMPLATES))])
    if chance.number(0, 3) == 0:
        return _forged(files, chance)
    segments = [name for name in files if SEGMENT.fullmatch(name)]
    name = pick(chance, segments)
    before = files[name]
    files[name] = damaged(before, chance)
    known = chance.number(0, 3) > 0
    if not known:
        del files[".lock"]
    return Damage(files, _has_to_be_seen(before, files[name], _counted(files, segments, name), name, known))


def _forged(files: Files, chance: Chance) -> Damage:
    """A line that breaks the format or says nonsense, with every checksum from there on computed anew."""
    name = max((name for name in files if SEGMENT.fullmatch(name)), key=_order)
    lines = files[name].splitlines(keepends=True)
    known = chance.number(0, 1) == 1
    events = [at for at, line in enumerate(lines) if b'"type":"app.event"' in line and b',"data":' in line]
    if events and chance.number(0, 1):
        at = pick(chance, events)
        new, deep = BREACHES[pick(chance, list(BREACHES))](lines[at]), True
    else:
        at, deep = chance.number(0, len(lines) - 1), False
        new = bent_record(lines[at], chance)
    begin = TAIL.search(lines[0])
    assert begin is not None
    from tests.faults.tools import rechained

    changed = rechained([*lines[:at], new, *lines[at + 1 :]], int(begin[2]), begin[3].decode())
    before = files[name]
    files[name] = b"".join(changed)
    if not known:
        del files[".lock"]
    # Whoever remembers the last record that was acknowledged sees any other in its place.
    return Damage(files, files[name] != before and (known or deep), deep and not known)


def _order(name: str) -> tuple[str, int]:
    month, _, rest = name.partition(".")
    return month, int(rest.removesuffix("jsonl").rstrip(".") or 0)


def _counted(files: Files, segments: list[str], name: str) -> int | None:
    """How many bytes of a segment count, by the header of the segment after it; None: all."""
    for later in segments:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            previous = json.loads(files[later].partition(b"\n")[0])["data"]["previous"]
            if previous is not None and previous["segment"] == name:
                return int(previous["size"])
    return None


def _has_to_be_seen(before: bytes, after: bytes, counted: int | None, name: str, known: bool) -> bool:
    if before[:counted] == after[:counted]:
        # The same, or bytes that do not count: behind the end that the next segment names.
        return counted is None and before != after
    last = counted is None
    # Of whole records at the end nobody knows who has only the file; a whole file less is as if it never was.
    forgotten = last and not known and before.startswith(after) and (not after or after.endswith(b"\n"))
    return not forgotten


# The readers ------------------------------------------------------------------------------------------------


def verifying(bench: Bench, chance: Chance) -> None:
    """`verify` ends with a report or with an error of ours, and never calls damage good."""
    found = damage(bench, chance)
    root = bench.lay(found.files)
    for deep in (False, True):
        try:
            report = otledger.verify(root, processes=1, deep=deep, tail=False)
        except LedgerError:
            continue
        json.dumps(report.to_dict())
        "\n".join(map(str, report.faults)).encode("utf-8", "surrogatepass")
        if found.seen and (deep or not found.deep):
            assert report.status not in GOOD, f"{report.status} for a damaged ledger (deep={deep})"
        if report.status is Status.OK and deep:
            # Whoever reads the format from its page alone must agree, but for what it says of telemetry.
            with contextlib.suppress(AssertionError):
                check(partition(root))
    with contextlib.suppress(LedgerError):
        otledger.verify(root, processes=1, tail=True)


def look_at(record: Record) -> None:
    """Use everything that a record offers."""
    with contextlib.suppress(*DECODE_ERRORS):
        _ = record.data
        _ = record.trace_id, record.span_id
    assert isinstance(record.time_ns, int)
    _ = record.checksum, record.prev
    with contextlib.suppress(FormatError):
        record.to_dict()
    _ = record.extensions
    for long in (False, True):
        shown = Renderer(Paint(io.StringIO()), mark=lambda record: "[encrypted]", long=long).line(record)
        assert not UNSAFE.search(shown), "a control character reaches the terminal"


def reading(bench: Bench, chance: Chance) -> None:
    """The reader gives records that stand in the files, reports the rest, and raises nothing but `FormatError`."""
    found = damage(bench, chance)
    root = bench.lay(found.files)
    there = b"".join(data for name, data in found.files.items() if SEGMENT.fullmatch(name))
    faults: list[FormatError] = []
    try:
        records = list(Reader(root).records(on_fault=faults.append))
    except FormatError:
        # A version of the format that nobody knows.
        return
    for record in records:
        assert record.line in there
        look_at(record)
    with contextlib.suppress(FormatError):
        list(Reader(root).records(otledger.Filter(type="app.*", text="text", since=0)))


def parsing(bench: Bench, chance: Chance) -> None:
    """One line, in every way that a line is read."""
    line = pick(chance, bench.lines)
    what = chance.number(0, 4)
    if what == 0:
        line = pick(chance, NASTY_LINES) + b"\n"
    elif what == 1:
        line = bent_record(line, chance)
    else:
        line = damaged(line, chance)
    tail = check_line(line)
    body, _, rest = line.rpartition(b',"checksum":"sha256:')
    by_hand = rest == hashlib.sha256(body).hexdigest().encode() + b'"}\n' and TAIL.search(line) is not None
    assert (tail is not None) == by_hand, "the rule of the format's page says otherwise"
    with contextlib.suppress(FormatError):
        look_at(parse(line))
    with contextlib.suppress(*DECODE_ERRORS):
        values.loads(line)


def checking(bench: Bench, chance: Chance) -> None:
    """The compiled check of lines finds what the one in Python finds."""
    data = damaged(b"".join(bench.lines), chance)
    path = bench.folder / "lines"
    path.write_bytes(data)
    start, end = sorted((chance.number(0, len(data)), chance.number(0, len(data))))
    start = pick(chance, (0, start))
    seq = pick(chance, (-1, 0, 5))
    kept = speed.check
    found = []
    for function in (kept, None):
        speed.check = function
        try:
            found.append(check_chunk(Chunk(str(path), start, end, seq, ZEROS.decode() if seq >= 0 else "")))
        finally:
            speed.check = kept
    assert found[0] == found[1]


def decoding(bench: Bench, chance: Chance) -> None:
    """The compiled decoder and index find in lines what those in Python find."""
    some = [pick(chance, bench.lines) for _ in range(chance.number(1, 4))]
    what = chance.number(0, 5)
    if what == 0:
        some.append(pick(chance, NASTY_LINES) + b"\n")
    elif what == 1:
        some[0] = bent_record(some[0], chance)
    block = b"".join(some) if what == 2 else damaged(b"".join(some), chance)
    for line in block.splitlines(keepends=True):
        found = []
        for function in (decode, decode_plainly):
            try:
                record = function(line)
                found.append(repr([record.raw, *(getattr(record, name) for name in _READ)]))
            except DECODE_ERRORS as error:
                found.append(repr(error))
        assert found[0] == found[1]
    kept = runs._cell, speed.order
    encoded = []
    for runs._cell, speed.order in (kept, (None, None)):
        builder = runs.Builder(0)
        try:
            builder.add(block + b"\n")
            builder.add(some[0])
        finally:
            runs._cell, speed.order = kept
        encoded.append(builder.encode(runs.Stamp(0, 0, bytes(16))))
    assert encoded[0] == encoded[1]


_READ = [name for name in Record.__struct_fields__ if name != "stored"]


# Opening ----------------------------------------------------------------------------------------------------


def _was_cut(name: str, before: bytes, after: bytes, kept: str, rest: bytes) -> bool:
    """Whether a segment was cut at one place, and everything behind it is what this file in the quarantine has."""
    place, _, digest = kept.removeprefix(f"{name}.").partition(".")
    if not kept.startswith(f"{name}.") or not place.isdigit():
        return False
    assert hashlib.sha256(rest).hexdigest().startswith(digest)
    return before == before[: int(place)] + rest and after.startswith(before[: int(place)])


def _what_else_is_wrong(root: Path, files: Files, chance: Chance) -> None:
    """A word of the last holder that is wrong, of another boot or tells of a failed sync; an unfinished successor."""
    what = chance.number(0, 5)
    if what == 0:
        (partition(root) / ".lock").write_bytes(damaged(files.get(".lock", b"{}"), chance))
    elif what <= 3 and ".lock" in files:
        edit_lock(root, **pick(chance, ({"state": "syncing"}, {"state": "failed"}, {"boot": "another"})))
    elif what == 4:
        name = max((name for name in files if SEGMENT.fullmatch(name)), key=_order)
        month, number = _order(name)
        header = files[name].partition(b"\n")[0]
        rest = pick(chance, (b"", header[: chance.number(0, len(header))], b'{"a":1}\n', bytes(500)))
        (partition(root) / f"{month}.{number + 1}.jsonl").write_bytes(rest)


def as_planned(planned: Plan, before: Files, after: Files) -> None:
    """What opening did is what `otledger repair` said that it would do."""
    kinds = [step.kind for step in planned.steps]
    # That a host takes over another's ledger is no repair: it is told of only where there is more to do.
    after = {name: data for name, data in after.items() if name in before or b'"reason":"moved"}' not in data}
    changed = {name for name in after if name != ".lock" and before.get(name) != after[name]}
    segments = {name for name in changed if SEGMENT.fullmatch(name)}
    kept = {name.removeprefix("quarantine/") for name in changed - segments}
    cut = [step for step in planned.steps if step.kind in ("cut", "header") and step.bytes]
    foretold = {f"{step.segment}.{step.offset}." for step in cut}
    known = {name.removeprefix("quarantine/") for name in before}
    assert all(any(name.startswith(prefix) for prefix in foretold) for name in kept), (kept, planned.steps)
    assert all(any(name.startswith(prefix) for name in kept | known) for prefix in foretold), (kept, planned.steps)
    assert bool(segments - before.keys()) == ("segment" in kinds) or not before, (segments, planned.steps)
    assert bool(changed) == bool(kinds) or not any(SEGMENT.fullmatch(name) for name in before), (changed, planned.steps)


def recovering(bench: Bench, chance: Chance) -> None:
    """A writer opens what is damaged, or refuses; every byte is kept, appending goes on, and it stays as it is."""
    found = damage(bench, chance)
    root = bench.lay(found.files)
    _what_else_is_wrong(root, found.files, chance)
    planned, said = None, files_of(partition(root))
    found.files = said
    with contextlib.suppress(LedgerError):
        [planned] = plan(root)
    assert files_of(partition(root)) == said, "a plan changed something"
    try:
        with journal(root) as target:
            opened = files_of(partition(root))
            [receipt] = put(target, "after")
    except LedgerError:
        return
    assert planned is not None, "it can be opened, and not planned"
    as_planned(planned, said, opened)
    after = files_of(partition(root))
    aside = {name.removeprefix("quarantine/"): data for name, data in after.items() if name.startswith("quarantine/")}
    for name, before in found.files.items():
        if SEGMENT.fullmatch(name):
            assert after[name].startswith(before) or any(
                _was_cut(name, before, after[name], *one) for one in aside.items()
            )
        elif name.startswith("quarantine/"):
            assert after[name] == before
    lines = b"".join(data for name, data in after.items() if SEGMENT.fullmatch(name))
    assert lines.count(receipt.checksum.encode()) == 1
    report = otledger.verify(root, processes=1)
    with journal(root):
        pass
    again = files_of(partition(root))
    for name, data in after.items():
        if name != ".lock":
            assert again[name] == data, f"{name}: another opening changed it"
    assert otledger.verify(root, processes=1).status == report.status


def remembering(bench: Bench, chance: Chance) -> None:
    """What `.lock` and cursors hold is believed or not, and never raises anything else."""
    text = damaged(bench.templates["plain"][".lock"], chance)
    decode_state(text)
    names = ('{"m1":["2026-11.jsonl",0]}', '{"m1":["2026-11.1.jsonl",99]}')
    cursor = damaged(pick(chance, names).encode(), chance).decode("utf-8", "surrogateescape")
    with contextlib.suppress(ConfigurationError):
        Cursor.parse(cursor)


# Imports ----------------------------------------------------------------------------------------------------


def _importing(bench: Bench, chance: Chance, kind: str, take: Callable[[Path, Path], Any], machines: str) -> None:
    files = dict(bench.templates[kind])
    name = pick(chance, list(files))
    # A few lines are enough to go wrong.
    text = b"".join(files[name].splitlines(keepends=True)[: chance.number(1, 6)])
    source = bench.fresh("source") / name
    source.parent.mkdir(parents=True)
    data = damaged(text, chance)
    if chance.number(0, 2) == 0:
        line = pick(chance, text.splitlines())
        with contextlib.suppress(ValueError):
            from tests.faults.fuzzing import bent, text_of

            data = text_of(bent(json.loads(line), chance)) + b"\n" + text
    source.write_bytes(data)
    root = bench.fresh()
    try:
        report = take(root, bench.folder / "source" if kind != "otlp" else source)
    except LedgerError:
        return
    for refused in report.refused:
        kept = refused.kept_as.read_bytes()
        assert data[refused.offset : refused.offset + len(kept)] == kept
    found = otledger.verify(root, processes=1, deep=True)
    assert found.status is Status.OK, found.faults
    for folder in root.glob(machines):
        check(folder)


def importing_evledger(bench: Bench, chance: Chance) -> None:
    """What an import makes of a damaged evledger ledger is whole, and what it refused is kept."""
    _importing(bench, chance, "evledger", import_evledger, "*.import")


def importing_pipeworks(bench: Bench, chance: Chance) -> None:
    """The same of PipeWorks' files."""
    _importing(bench, chance, "pipeworks", import_pipeworks, "*.import")


def importing_otlp(bench: Bench, chance: Chance) -> None:
    """The same of OTLP/JSON lines."""
    from otledger_opentelemetry.importing import import_otlp

    _importing(bench, chance, "otlp", import_otlp, "*.import")


def receiving(bench: Bench, chance: Chance) -> None:
    """A request of OTLP, in JSON or protobuf, is read or refused."""
    from otledger_opentelemetry import otlp, otlp_json
    from otledger_opentelemetry.receiver import Refused, parse, unpack

    kind = pick(chance, list(otlp.SIGNALS))
    text = pick(chance, [line for data in bench.templates["otlp"].values() for line in data.splitlines()])
    as_json = chance.number(0, 1) == 1
    body = text
    if not as_json:
        for name in otlp.SIGNALS:
            with contextlib.suppress(ValueError):
                body = otlp_json.loads(text, otlp.SIGNALS[name].request).SerializeToString()
                break
    body = damaged(body, chance)
    with contextlib.suppress(Refused):
        unpack(body, pick(chance, ("", "gzip", "deflate")), 1 << 20)
    with contextlib.suppress(Refused):
        message = parse(kind, body, json=as_json)
        list(otlp.entries(message, kind, lambda _: None, lambda *_: None))


# The compiled part ------------------------------------------------------------------------------------------


def some_value(chance: Chance, room: int = 5) -> Any:
    """A payload of all kinds of values, some that no JSON has a word for."""
    what = chance.number(0, 9 if room else 6)
    if what == 0:
        return pick(chance, NASTY_VALUES)
    if what == 1:
        return chance.number(-(2**66), 2**66)
    if what == 2:
        return pick(chance, (float("nan"), float("inf"), 0.1, -0.0, 1e308, 5e-324))
    if what == 3:
        return pick(chance, NASTY_BYTES)
    if what == 4:
        return pick(chance, ("\ud800", "$a", "é", "\u2028", "", "\x00", "\U0001f600"))
    if what <= 6:
        return chance.octets(chance.number(0, 20)).decode("latin-1")
    items = [some_value(chance, room - 1) for _ in range(chance.number(0, 3))]
    if what == 7:
        return items
    if what == 8:
        return tuple(items)
    keys = [pick(chance, ("a", "$a", "", "\u2029", 1, None, "\ud800", "b")) for _ in items]
    return dict(zip(keys, items, strict=True))


def in_python(function: str, do: Callable[[], Any]) -> Any:
    """What something gives without one of the compiled functions."""
    kept = getattr(speed, function)
    setattr(speed, function, None)
    try:
        return do()
    finally:
        setattr(speed, function, kept)


IDS = re.compile(rb'"id":"[0-9a-f]{32}"')


def encoding(bench: Bench, chance: Chance) -> None:
    """Payloads, parts and stamps are the same compiled and in Python, and nothing crashes on what is neither."""
    value = some_value(chance)
    if speed.encode_plain is None:
        return
    ours = speed.encode_plain(value, chance.number(0, 100))
    if ours is not None:
        assert ours == in_python("encode_plain", lambda: values.encode(value))
    encoder = Encoder(MACHINE, "test")
    texts = ("a.b", "é", "otledger.x", "", "x" * 2000, "\ud800", "a b", "\u2028")
    type, subject = pick(chance, texts), pick(chance, (None, *texts))
    ns = pick(chance, (0, 1, 10**18, 2**63 - 1, 2**63, -1, 253402300800 * 10**9, chance.number(-(2**70), 2**70)))

    def make() -> Any:
        try:
            return IDS.sub(b"", encoder.event(type, value, ns, None, subject)[1])
        except EventRefused as error:
            return str(error)

    assert make() == in_python("event", make)
    if speed.copy_flat is not None and isinstance(value, dict):
        copy = speed.copy_flat(value)
        assert copy is None or (copy == value and copy is not value) or value != value
    parts = [chance.octets(chance.number(0, 200)) for _ in range(chance.number(0, 5))]
    seq = pick(chance, (0, 9, 10**18 - 9, chance.number(0, 2**63 - 10)))
    if speed.stamp is not None:
        assert speed.stamp(parts, seq, ZEROS) == stamp_plainly(parts, seq, ZEROS)


def misusing(bench: Bench, chance: Chance) -> None:
    """The compiled functions refuse what they are not made for, and touch no memory of others."""
    if speed.event is None or speed.telemetry is None or speed.span is None:
        return
    odd: list[Any] = [None, "", "text", b"", b"bytes", 0, -1, 2**63 - 1, 2**64, 1.5, [], [b"x"], {}, {"a": "b"}, ZEROS]

    def some() -> Any:
        return some_value(chance, 2) if chance.number(0, 3) == 0 else pick(chance, odd)

    def call(function: Callable[..., Any] | None, *arguments: Any) -> None:
        if function is not None:
            with contextlib.suppress(TypeError, ValueError, OverflowError, UnicodeError, AttributeError):
                function(*arguments)

    block = damaged(b"".join(bench.lines[:6]), chance)
    call(speed.event, {"a": "head", "b": some()}, pick(chance, ["a", "b", some()]), some(), some(), some())
    call(speed.telemetry, some(), some(), some(), some())
    call(speed.stamp, [some() if chance.number(0, 9) == 0 else b"x"] * chance.number(0, 4), some(), ZEROS)
    call(speed.check, block, chance.number(-5, 2000), pick(chance, [some(), len(block)]), some(), ZEROS)
    call(speed.check, block, 0, len(block), pick(chance, (0, 2**63 - 1)), pick(chance, (ZEROS, b"short")))
    call(speed.copy_flat, some())
    texts = ["head", "before", "0" * 32, "0" * 16, 1, '"name"', "", 10**18, 10**18 + 1, {"a": 1}, ""]
    texts[chance.number(0, len(texts) - 1)] = some()
    call(speed.span, *texts)
    call(speed.span, *texts[: chance.number(0, 10)])
    call(speed.order, some())
    if speed.Decoder is not None:
        call(decode, some())
        call(decode.cell, some(), some())  # type: ignore[attr-defined]
        given = [Record, ((b"id", 0, False, Record.__dict__["id"], ...),), Record.__dict__["line"], None, (b"a",), ()]
        given[chance.number(0, 5)] = some()
        call(speed.Decoder, *given)


TARGETS: dict[str, tuple[Target, int]] = {
    "parsing": (parsing, 1500),
    "encoding": (encoding, 700),
    "misusing": (misusing, 500),
    "receiving": (receiving, 500),
    "checking": (checking, 500),
    "decoding": (decoding, 500),
    "verifying": (verifying, 600),
    "reading": (reading, 300),
    "recovering": (recovering, 300),
    "remembering": (remembering, 300),
    "importing evledger": (importing_evledger, 120),
    "importing pipeworks": (importing_pipeworks, 120),
    "importing otlp": (importing_otlp, 120),
}
"""Each target, and how many examples of it the short campaign runs."""

__all__ = ["GOOD", "MACHINE", "TARGETS", "Bench", "Journal", "Target", "lines_of", "recomputed"]
