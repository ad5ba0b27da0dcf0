"""Ledgers that are made to be hard to read, and a reader too simple to be wrong."""

import json
import random
import re
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from otledger.batch import ZEROS, checksum_of, stamp

Json = dict[str, Any]
START = 1_790_000_000_000_000_000
"""2026-09-21T14:13:20Z."""
SEGMENT = re.compile(r"(\d{4}-\d\d)(?:\.(\d+))?\.jsonl")


def naive(root: Path, *, machines: tuple[str, ...] | None = None) -> list[Json]:
    """All records that count: by machine, by segment, by line."""
    found = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if machines is not None and folder.name not in machines:
            continue
        files = {(m[1], int(m[2] or 0)): p for p in folder.iterdir() if (m := SEGMENT.fullmatch(p.name))}
        caps = {}
        for path in files.values():
            first = json.loads(path.read_bytes().partition(b"\n")[0])
            if first["type"] == "otledger.segment" and first["data"]["previous"]:
                caps[first["data"]["previous"]["segment"]] = first["data"]["previous"]["size"]
        for _, path in sorted(files.items()):
            offset = 0
            for line in path.read_bytes()[: caps.get(path.name)].split(b"\n")[:-1]:
                try:
                    record = json.loads(line)
                    assert isinstance(record["seq"], int)
                except (ValueError, KeyError, TypeError):
                    pass
                else:
                    found.append({**record, "at": (path.name, offset, len(line) + 1), "line": line})
                offset += len(line) + 1
    return found


def text_of(ns: int) -> str:
    """RFC 3339, by hand."""
    days, rest = divmod(ns // 10**9, 86_400)
    day = date(1970, 1, 1) + timedelta(days)
    return f"{day}T{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}.{ns % 10**9:09}Z"


def part(machine: str, type: str, time: str, id: str, data: Any = None, **members: Any) -> bytes:
    """A line up to its `seq`."""
    head = {"specversion": "1.0", "id": id, "source": f"/{machine}/test", "type": type, "time": time}
    head |= {name: members.pop(name) for name in ("subject", "dataschema") if name in members}
    text = json.dumps(head | {"machine": machine} | members, ensure_ascii=False, separators=(",", ":"))[:-1]
    if data is not None:
        text += ',"data":' + json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.encode()


ODD = [
    ("x.plain", {"id": 1, "text": "Zoë 老陳 \u2028 \\ \" '"}),
    ("x.text", "only text"),
    ("x.number", 12.5),
    ("x.list", [1, [2, {"a": None}]]),
    ("x.bool", False),
    ("x.nothing", None),
    ("x.large", {"$int": "99999999999999999999999"}),
    ("x.digits", {"n": 2**70, "name": "no span", "start": 5}),
    ("otel.future", {"name": "not known yet"}),
    ("otledger.future", {"size": "not known yet"}),
    ("otel.span.end", "no object"),
    ("otel.span.start", {"name": None, "kind": 7, "status": 3, "start": "soon", "parent_span_id": 9}),
    ("x.nul", "a\u0000b"),
]
TIMES = ["9999-12-31T23:59:59.123456789Z", "0001-01-01T00:00:00.000000001Z", "yesterday", "2026-09-21T16:13:20+02:00"]


def events(machine: str, random: random.Random, count: int) -> list[bytes]:
    """Parts: spans in traces that interleave, some without an end, some ended twice; turns; what is odd."""
    parts = []

    def id() -> str:
        return f"{random.getrandbits(128):032x}"

    for n in range(count):
        trace, ns = id(), START + n * 7_000_000_000 + random.randrange(10**9)
        turn = {"ipchash": f"{random.randrange(count // 3):064x}"} if n % 3 else {}
        parent = None
        for depth in range(random.randrange(1, 4)):
            span = f"{random.getrandbits(64):016x}"
            context = {"traceparent": f"00-{trace}-{span}-01"}
            data = {"name": f"step {depth}", "start": ns + depth, "attributes": {"n": n}}
            if parent:
                data["parent_span_id"] = parent
            if random.random() < 0.3:
                parts.append(part(machine, "otel.span.start", text_of(ns + depth), id(), data, **turn, **context))
            if random.random() < 0.9:
                ended = {**data, "end": ns + 10**6 + depth, "status": {"code": random.choice(("OK", "ERROR"))}}
                for _ in range(1 + (random.random() < 0.1)):
                    when = text_of(ns + 10**6 + depth)
                    parts.append(part(machine, "otel.span.end", when, id(), ended, **turn, **context))
            parts.append(
                part(
                    machine,
                    f"t.{n % 7}",
                    text_of(ns),
                    id(),
                    {"n": n},
                    subject=f"s{n % 5}",
                    **turn,
                    **context,
                    phase="x",
                )
            )
            parent = span
    for type, data in ODD:
        parts.append(part(machine, type, text_of(START), id(), data, extra=True, count=3))
    for time in TIMES:
        parts.append(part(machine, "x.time", time, id(), {}))
    random.shuffle(parts)
    return parts


def write(root: Path, *, seed: int = 1, machines: tuple[str, ...] = ("m1", "m2"), count: int = 60) -> Path:
    """A ledger: three segments a machine, the second with a cap in the midst of the first, the last one torn."""
    for machine in machines:
        random_ = random.Random(f"{seed} {machine}")
        folder = root / machine
        folder.mkdir(parents=True)
        parts = events(machine, random_, count)
        seq, prev, previous = 0, ZEROS, None
        third = len(parts) // 3
        for name, own in (("2026-09", parts[:third]), ("2026-09.1", parts[third:-third]), ("2026-10", parts[-third:])):
            header = part(machine, "otledger.segment", text_of(START), f"{machine} {seq}", _header(previous))
            lines = stamp([header, *own], seq, prev)
            content = b"".join(lines)
            seq, prev = seq + len(lines), checksum_of(lines[-1])
            previous = (f"{name}.jsonl", len(content))
            # What a failed disk left: it does not count, or is no whole line.
            lost = part(machine, "x.lost", text_of(START), f"lost {name}", {})
            content += b"".join(stamp([lost] * 3, seq, prev)) if name == "2026-09" else lost
            (folder / f"{name}.jsonl").write_bytes(content)
    return root


def _header(previous: tuple[str, int] | None) -> Json:
    named = None if previous is None else {"segment": previous[0], "size": previous[1]}
    return {"format": 1, "ledger": "l", "host": "h", "epoch": 1, "previous": named, "reason": "new"}
