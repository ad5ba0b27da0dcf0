"""An independent checker of ledgers, written from docs/format.md alone; the numbers are its sections.

    python tests/checker.py ROOT

It shares no code with otledger, on purpose: what it accepts follows the page and not the program.
"""

import base64
import hashlib
import json
import re
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

MACHINE = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9._-]{0,62}")
SEGMENT = re.compile(r"([0-9]{4}-(?:0[1-9]|1[0-2]))(?:\.([1-9][0-9]*))?\.jsonl")
TAIL = re.compile(rb',"seq":(?:0|[1-9][0-9]*),"prev":"[0-9a-f]{64}"(,"checksum":"sha256:)([0-9a-f]{64})"\}\Z')
STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{9}Z")
ZEROS = "0" * 64

BEFORE = (
    *("specversion", "id", "source", "type", "time", "datacontenttype", "dataschema", "subject"),
    *("machine", "ipchash", "traceparent", "tracestate"),
)  # all of them strings; then come extensions, then orig… and otl…
AFTER = ("data", "synced", "seq", "prev", "checksum")
ALWAYS = {"specversion", "id", "source", "type", "time", "machine", "seq", "prev", "checksum"}
CONTROL = ("segment", "checkpoint", "sealed", "recovery", "gap", "key", "shredded", "archive")
TYPES = {f"otledger.{name}" for name in CONTROL}
TYPES |= {f"otel.{name}" for name in ("span.start", "span.end", "log", "metrics", "resource")}

# The members of telemetry in their order, each with its default (`...`: it has none).
Table = dict[str, Any]
EVENT: Table = {"name": ..., "time": ..., "attributes": {}, "dropped": 0}
LINK: Table = {"trace_id": ..., "span_id": ..., "trace_flags": 0, "is_remote": False, "trace_state": ""}
LINK |= {"attributes": {}, "dropped": 0}
STATUS: Table = {"code": "UNSET", "description": None}
DROPPED: Table = {"attributes": 0, "events": 0, "links": 0}
SPAN: Table = {"name": None, "kind": "INTERNAL", "parent_span_id": None, "parent_is_remote": False}
SPAN |= {"start": ..., "end": ..., "attributes": {}, "events": [], "links": [], "status": {}, "dropped": {}}
SPAN |= {"flags": ..., "resource": ..., "scope": None}
LOG: Table = dict.fromkeys(
    ("timestamp", "observed_timestamp", "severity_number", "severity_text", "body", "event_name")
)
LOG |= {"attributes": {}, "dropped": 0, "resource": ..., "scope": None}
TABLES = {"otel.span.start": SPAN, "otel.span.end": SPAN, "otel.log": LOG}
RESOURCE = ("digest", "kind", "name", "version", "schema_url", "attributes", "dropped")


def need(ok: object, reason: str) -> None:
    if not ok:
        raise AssertionError(reason)


def is_int(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


@contextmanager
def at(path: Path, offset: int, seq: object) -> Iterator[None]:
    """Tell where a violation stands."""
    try:
        yield
    except (AssertionError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        raise AssertionError(f"{path}: offset {offset}, seq {seq}: {reason}") from error


# Lines (2) ------------------------------------------------------------------------------------------------


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    need(len(dict(pairs)) == len(pairs), "duplicate members")
    return dict(pairs)


def constant(literal: str) -> None:
    raise AssertionError(f"{literal} is not JSON")


def parse(line: bytes) -> tuple[str, dict[str, Any]]:
    """The text and the record of a line, without its LF; what can be told of one line alone is checked."""
    need(len(line) < 16 * 2**20, "the line is longer than 16 MiB")
    tail = TAIL.search(line, max(0, len(line) - 256))
    if tail is None:
        raise AssertionError("the line does not end in seq, prev and checksum")
    sha256 = hashlib.sha256(line[: tail.start(1)]).hexdigest()
    need(tail[2].decode() == sha256, f"wrong checksum: the bytes before it have {sha256}")
    text = line.decode("utf-8")
    need(not re.search("[\u0085\u2028\u2029]", text), "a raw U+0085, U+2028 or U+2029")
    bare = STRING.sub("", text)
    need(not re.search(r"\s", bare), "whitespace outside strings")
    depth = accumulate(1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[\]{}]", bare))
    need(max(depth, default=0) <= 100, "nested more than 100 deep")
    return text, json.loads(text, object_pairs_hook=unique, parse_constant=constant)


# Records (3) ----------------------------------------------------------------------------------------------


def rank(name: str) -> int:
    """The place of a member in the order of the table."""
    if name in BEFORE:
        return BEFORE.index(name)
    if name in AFTER:
        return 100 + AFTER.index(name)
    return 51 if name.startswith(("orig", "otl")) else 50


def check_members(record: dict[str, Any], machine: str) -> None:
    need(record.keys() >= ALWAYS, f"without {sorted(ALWAYS - record.keys())}")
    ranks = [rank(name) for name in record]
    need(ranks == sorted(ranks), f"out of order: {', '.join(record)}")
    for name, value in record.items():
        if name in BEFORE:
            need(isinstance(value, str), f"{name} is no string")
        elif rank(name) == 50:
            need(re.fullmatch(r"[a-z0-9]{1,20}", name), f"{name!r} is no name of an extension")
            small = is_int(value, -(2**31), 2**31 - 1)
            need(isinstance(value, str | bool) or small, f"{name} is no string, boolean or 32-bit integer")
        elif rank(name) == 51:
            need(re.fullmatch(r"[a-z0-9]+", name), f"{name!r} is no attribute name")
    need(record["specversion"] == "1.0", "specversion is not 1.0")
    need(record["id"] and record["source"] and record["type"], "an empty id, source or type")
    need(TIME.fullmatch(record["time"]), "time is not in UTC with nine digits of fraction")
    datetime.fromisoformat(record["time"][:19])  # ValueError: no such instant
    need(record["machine"] == machine, "another machine's record")
    need(record.get("tracestate") != "", "tracestate is empty")
    need(record.get("data", 0) is not None, "data is null")
    reserved = record["type"].startswith(("otel.", "otledger."))
    need(not reserved or record["type"] in TYPES, f"the type {record['type']} is reserved")


# Telemetry (4) --------------------------------------------------------------------------------------------


def is_opaque(value: Any) -> bool:
    return isinstance(value, dict) and list(value) in (["$cut"], ["$enc"])


def check_table(value: Any, table: Table) -> None:
    """Members in their order, none equal to its default. Others may stand anywhere (8)."""
    need(isinstance(value, dict), "no object where one should be")
    if not is_opaque(value):
        known = [name for name in value if name in table]
        need(known == [name for name in table if name in value], f"out of order: {', '.join(known)}")
        for name in known:
            same = type(value[name]) is type(table[name]) and value[name] == table[name]
            need(not same, f"{name} equals its default")


def check_signal(data: Any, table: Table, defined: dict[str, str]) -> None:
    """A span or a log; `defined` has the kinds of the digests that the segment has defined so far."""
    check_table(data, table)
    for name, inner in (("events", EVENT), ("links", LINK)) if table is SPAN else ():
        for entry in [] if is_opaque(data.get(name)) else data.get(name, []):
            check_table(entry, inner)
    for name, inner in (("status", STATUS), ("dropped", DROPPED)) if table is SPAN else ():
        check_table(data.get(name, {}), inner)
    need("resource" in data, "no resource")
    for name in ("resource", "scope"):
        need(name not in data or defined.get(data[name]) == name, f"its {name} is not defined before it")


def check_resource(data: Any, text: str) -> None:
    need(list(data) == [name for name in RESOURCE if name in data], f"out of order: {', '.join(data)}")
    need(data["kind"] in ("resource", "scope"), "kind is neither resource nor scope")
    others = {name: value for name, value in data.items() if name != "digest"}
    start = text.index(',"data":{') + len(',"data":')  # a string cannot hold this: its quotes are escaped
    literal = text[start : json.JSONDecoder().raw_decode(text, start)[1]]
    forms = (  # they differ where two programs write a float differently, or in U+0085 and the like
        json.dumps(others, separators=(",", ":"), ensure_ascii=False),
        "{" + literal.removeprefix('{"digest":"' + data["digest"] + '",'),
    )
    digests = [hashlib.sha256(form.encode()).hexdigest()[:32] for form in forms]
    need(data["digest"] in digests, f"wrong digest: the other members have {digests[0]}")


# The tree (7) ---------------------------------------------------------------------------------------------


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class Leaves:
    """The leaves of a chain from its beginning; roots and paths as RFC 6962 defines them in 2.1, and no faster."""

    def __init__(self) -> None:
        self.hashes: list[bytes] = []
        self.whole: dict[tuple[int, int], bytes] = {}  # roots of perfect subtrees, which never change

    def add(self, checksum: str) -> None:
        self.hashes.append(hashlib.sha256(b"\x00" + bytes.fromhex(checksum)).digest())

    def root(self, low: int, high: int) -> bytes:
        """The root over the leaves from one number up to, and without, another."""
        if high - low < 2:
            return self.hashes[low] if high > low else hashlib.sha256(b"").digest()
        if (low, high) not in self.whole:
            middle = low + half(high - low)
            found = node(self.root(low, middle), self.root(middle, high))
            if 2 * (middle - low) != high - low:
                return found
            self.whole[low, high] = found
        return self.whole[low, high]

    def edge(self, low: int, high: int) -> list[bytes]:
        """The roots of the perfect subtrees, left to right."""
        if high - low < 1:
            return []
        largest = 1 << (high - low).bit_length() - 1
        return [self.root(low, low + largest), *self.edge(low + largest, high)]

    def path(self, low: int, high: int) -> list[bytes]:
        """The audit path of the last leaf, leaf to root."""
        if high - low < 2:
            return []
        middle = low + half(high - low)
        return [*self.path(middle, high), self.root(low, middle)]


def half(count: int) -> int:
    """The largest power of two below."""
    return 1 << (count - 1).bit_length() - 1


def hashes(texts: list[str]) -> list[bytes]:
    found = [base64.b64decode(text, validate=True) for text in texts]
    need(all(len(each) == 32 for each in found), "a hash has not 32 bytes")
    return found


def check_tree(leaves: Leaves | None, data: Any, *, edge: bool) -> None:
    """Root, edge and path of a control record; without the leaves, where segments are absent, their form alone."""
    size = data["size"]
    root, path, perfect = hashes([data["root"]])[0], hashes(data["path"]), hashes(data["edge"]) if edge else []
    if leaves is not None:
        need(root == leaves.root(0, size), f"root is not that of the first {size} records")
        need(path == leaves.path(0, size), f"path is not that of the last of {size} records")
        need(perfect == leaves.edge(0, size) or not edge, f"edge is not that of a tree of {size}")


def check_note(note: str, key: str, origin: str, data: Any) -> list[str]:
    """A signed note over a tree, by this key. Returns the lines behind origin, size and root."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    name, id, encoded = key.split("+", 2)
    public = base64.b64decode(encoded, validate=True)
    need(name == origin, "the key is another chain's")
    need(len(public) == 33 and public[0] == 1, "the key is none of Ed25519")
    need(id == hashlib.sha256(name.encode() + b"\n" + public).hexdigest()[:8], "the key's id is not its hash")
    match = re.fullmatch(r"(.*\n)\n\u2014 (\S+) (\S+)\n", note, re.DOTALL)
    assert match, "no signed note"
    lines = match[1].split("\n")
    need(lines[:3] == [origin, str(data["size"]), data["root"]], "the note is about another tree")
    need(all(lines[3:-1]), "an empty line in the note's text")
    value = base64.b64decode(match[3], validate=True)
    need((match[2], value[:4].hex()) == (name, id), f"the note is signed by {value[:4].hex()}, and {id} is due")
    try:
        Ed25519PublicKey.from_public_bytes(public[1:]).verify(value[4:], match[1].encode())
    except InvalidSignature:
        raise AssertionError("the note's signature is wrong") from None
    return lines[3:-1]


# Partitions (1, 5, 6) -------------------------------------------------------------------------------------


def sort_key(name: str) -> tuple[str, int] | None:
    match = SEGMENT.fullmatch(name)
    return (match[1], int(match[2] or 0)) if match else None


def segments(partition: Path) -> dict[str, tuple[str, int]]:
    """The segments in a folder, oldest first, and what they sort by."""
    keys = ((entry.name, sort_key(entry.name)) for entry in partition.iterdir() if entry.is_file())
    return dict(sorted(((name, key) for name, key in keys if key), key=lambda item: item[1]))


def first_line(path: Path) -> bytes | None:
    """The first line without its LF, if there is a whole one."""
    with path.open("rb") as file:
        line = file.readline()
    return line[:-1] if line.endswith(b"\n") else None


def is_unchained(partition: Path) -> bool:
    """Whether these are the lines of an evledger ledger (8)."""
    lines = [line for name in segments(partition) if (line := first_line(partition / name)) is not None]
    return bool(lines) and not any(b'"checksum"' in line for line in lines)


def check_header(record: dict[str, Any]) -> tuple[str, int] | None:
    """The segment before this one, and how many of its bytes count."""
    need(record.get("type") == "otledger.segment", "a segment does not begin with otledger.segment")
    data = record["data"]
    need(is_int(data["format"], 1, 1), "format is not 1")
    uuid.UUID(data["ledger"])  # ValueError: no UUID
    previous = data["previous"]
    if previous is None:
        return None
    need(is_int(previous["size"], 1, 2**63), "previous.size is no size")
    return previous["segment"], previous["size"]


def walk(partition: Path) -> tuple[list[tuple[Path, int | None]], str | None]:
    """The segments that count, oldest first, with how many of their bytes (None: all); then the one before
    them, if it is absent. A newest file without one whole line, empty or torn, counts nothing.
    """
    keys = segments(partition)
    name = next((name for name in reversed(keys) if first_line(partition / name) is not None), None)
    size = None
    chain: list[tuple[Path, int | None]] = []
    while name in keys:
        path = partition / name
        chain.insert(0, (path, size))
        with at(path, 0, "?"):
            previous = check_header(parse(first_line(path) or b"")[1])
            before = sort_key(previous[0]) if previous else ("", 0)
            need(before and before < keys[name], "previous names no earlier segment")
        name, size = previous or (None, None)
    return chain, name


class Chain:
    """What the lines so far say about the next one."""

    def __init__(self, machine: str, absent: str | None) -> None:
        self.machine, self.absent = machine, absent
        self.records: list[dict[str, Any]] = []
        self.ids: set[str] = set()
        self.ledgers: list[str] = []
        self.defined: dict[str, str] = {}  # digest -> kind, in this segment
        self.closed: dict[str, tuple[int, str]] = {}  # size and SHA-256 of each segment so far
        self.restart(0, ZEROS)

    def restart(self, seq: int, head: str) -> None:
        self.seq, self.head, self.synced = seq, head, 0
        self.checksums: dict[int, str] = {}
        self.leaves = Leaves() if seq == 0 else None
        self.covered = 0
        self.key: str | None = None  # which signs
        self.announced: str | None = None  # which shall sign after it

    def begin(self, record: dict[str, Any]) -> None:
        """A segment begins, its header checked by now: in the same chain, or with a new one."""
        self.defined = {}
        seq, prev, ledger = record["seq"], record["prev"], record["data"]["ledger"]
        if (seq, prev) == (0, ZEROS) or (self.absent and not self.ledgers):
            need(ledger not in self.ledgers, "a new chain under the name of an earlier one")
            self.ledgers.append(ledger)
            self.restart(seq, prev)
        need(self.ledgers, "the first chain does not begin with seq 0 and a prev of zeros")
        need(ledger == self.ledgers[-1], "another ledger, but no new chain")

    def add(self, line: bytes, *, first: bool) -> None:
        text, record = parse(line)
        check_members(record, self.machine)
        kind: str = record["type"]
        data: Any = record.get("data")
        seq: int = record["seq"]
        if first:
            self.begin(record)
        need(first or kind != "otledger.segment", "otledger.segment within a segment")
        need(seq == self.seq, f"seq is {seq}")
        need(record["prev"] == self.head, "prev is not the checksum of the record before")
        need(record["id"] not in self.ids, f"the id {record['id']} is taken")
        if "synced" in record:
            need(is_int(record["synced"], self.synced, seq), f"synced is not within {self.synced} and seq")
            self.synced = record["synced"]
        if kind == "otledger.checkpoint":
            need(is_int(data["size"], 1, seq), "the checkpoint's size is not within 1 and seq")
            head = self.checksums.get(data["size"] - 1, data["head"])  # none from an absent segment
            need(data["head"] == head, f"the checkpoint's head is not the checksum of {data['size'] - 1}")
            self.check_checkpoint(data)
        elif kind == "otledger.key":
            need(is_int(data["size"], 0, seq), "the key's size is not within 0 and seq")
            self.check_key(data)
        elif kind == "otledger.sealed":
            known = self.closed.get(data["segment"])
            need(known or self.absent, f"{data['segment']} is no segment before this one")
            need(known in (None, (data["size"], data["sha256"])), f"{data['segment']} has {known}")
        elif kind == "otel.resource":
            check_resource(data, text)
            self.defined[data["digest"]] = data["kind"]
        elif kind in TABLES and not is_opaque(data):
            check_signal(data, TABLES[kind], self.defined)
        self.head = self.checksums[seq] = record["checksum"].removeprefix("sha256:")
        if self.leaves is not None:
            self.leaves.add(self.head)
        self.seq += 1
        self.ids.add(record["id"])
        self.records.append(record)

    def check_checkpoint(self, data: Any) -> None:
        """The tree and the note of a checkpoint, where it has them."""
        tree = {"root", "edge", "path"} & data.keys()
        need(len(tree) in (0, 3), f"of the tree only {sorted(tree)}")
        if tree:
            need(data["size"] > self.covered, f"{data['size']} records, and {self.covered} had a tree before")
            self.covered = data["size"]
            check_tree(self.leaves, data, edge=True)
        if "refused" in data:
            need(not tree and "note" not in data, "refused, and signed")
            refused = data["refused"]
            need(is_int(refused["size"], 1, 2**63) and hashes([refused["root"]]), "refused is no tree")
            need(refused["root"] in refused["note"].split("\n"), "refused is another note's")
        if "note" in data:
            need(tree, "a note without a tree")
            need(self.key or self.leaves is None, "a note, and no key has begun")
            if self.key:
                more = check_note(data["note"], self.key, f"otledger/{self.ledgers[-1]}", data)
                need(len(more) < 2 and all(line.startswith("next ") for line in more), "an extension that is not known")
                self.announced = more[0].removeprefix("next ") if more else None

    def check_key(self, data: Any) -> None:
        """A key begins: the one before it has signed that, or there is none."""
        need(data["old"] == self.key or self.leaves is None, f"old is not {self.key}")
        need(data["new"] != data["old"], "new is old")
        need(self.announced in (None, data["new"]), f"new is not the key that was announced, {self.announced}")
        check_tree(self.leaves, data, edge=False)
        if data["old"] is None:
            need(data["signature"] is None, "signed by no key")
        else:
            more = check_note(data["signature"], data["old"], f"otledger/{self.ledgers[-1]}", data)
            need(more == [f"key {data['new']}"], "the old key has signed something else")
        self.key, self.announced = data["new"], None


def check(partition: Path, *, torn_tail_ok: bool = False) -> list[dict[str, Any]]:
    """The records of a partition that count, in order. Raises AssertionError at the first violation."""
    counted, absent = walk(partition)
    chain = Chain(partition.name, absent)
    for path, size in counted:
        content = path.read_bytes()
        *lines, rest = content[:size].split(b"\n")
        offset = 0
        for line in lines:
            with at(path, offset, chain.seq):
                chain.add(line, first=offset == 0)
            offset += len(line) + 1
        with at(path, offset, chain.seq):
            need((size or 0) <= len(content), f"shorter than the {size} bytes that its successor names")
            need(not rest or size is None, "the previous.size of its successor cuts a line")
            need(not rest or torn_tail_ok, "a torn line")
        if size is not None:
            chain.closed[path.name] = size, hashlib.sha256(content[:size]).hexdigest()
    if absent is not None:  # then an archive record has to account for it
        archives = [record["data"] for record in chain.records if record["type"] == "otledger.archive"]
        heads = [data["head"] for data in archives if data["segment"] == absent]
        with at(partition / absent, 0, "?"):
            need(chain.records[0]["prev"] in heads, "absent, and no otledger.archive fits")
    return chain.records


def main(root: Path) -> int:
    failed = False
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and MACHINE.fullmatch(folder.name):
            try:
                unchained = is_unchained(folder)
                verdict = "unchained, skipped" if unchained else f"ok, {len(check(folder))} records"
            except AssertionError as error:
                failed, verdict = True, f"FAILED: {error}"
            print(f"{folder.name}: {verdict}")
    return int(failed)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
