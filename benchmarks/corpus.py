"""Make a ledger of a given size: `python -m benchmarks.corpus /tmp/corpus/1gb --size 1GB`.

Written by otledger's own Journal over a simulated clock, so that it verifies, has a segment a month, and can be
made again: one seed gives the same ids, times and payloads. What a ledger of read-path.md's kind has: traces local
in time, half a dozen spans each, some of them with a start record, a few without their end; plain events in them,
pairs of starts and ends among those; turns of about 14 records; records of about 593 bytes.
"""

import argparse
import hashlib
import random
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import orjson

START = datetime(2026, 7, 1, 0, 5, tzinfo=UTC)
SECOND = 1_000_000_000
DAY = 86_400 * SECOND
STAMP = 178
"""Bytes that the journal adds to a part, about."""
BATCH = 512
UNITS = {"": 1, "KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}

_OPERATIONS = ("chat.turn", "axis.resolve", "llm.call", "tool.run", "store.write", "http.request", "queue.publish")
_TEXT = (
    "the ledger keeps what happened and in which order it happened so that anybody can say later what it was that the"
    " machine did and prove that nobody has changed the record since then"
)
_WORDS = _TEXT.split()


@dataclass(slots=True)
class Clock:
    """The time that the journal is told."""

    ns: int
    boot: int = field(default_factory=time.monotonic_ns)

    def set(self, ns: int) -> None:
        """Go on to `ns`; never back."""
        if ns > self.ns:
            self.boot += ns - self.ns
            self.ns = ns


@dataclass(frozen=True, slots=True)
class _Chance:
    """The source of all that is random in one machine's partition."""

    rng: random.Random

    def hex(self, digits: int) -> str:
        return f"{self.rng.getrandbits(digits * 4) or 1:0{digits}x}"

    def text(self, words: int) -> str:
        at = self.rng.randrange(len(_WORDS) - words)
        return " ".join(_WORDS[at : at + words])

    def short(self) -> int:
        """Nanoseconds that a piece of work takes."""
        return int(self.rng.lognormvariate(0, 1) * 4_000_000) + 50_000


class Story:
    """Makes the parts of traces, one after the other."""

    def __init__(self, encoder: Any, chance: _Chance, resource: str, scope: str) -> None:
        self._encoder = encoder
        self._chance = chance
        self._named = f',"resource":"{resource}","scope":"{scope}"'
        self._turns = 0

    def trace(self, start: int) -> list[tuple[int, bytes]]:
        """Give the parts of one trace and the times at which they are appended."""
        rng, chance = self._chance.rng, self._chance
        trace, turn = chance.hex(32), None
        if rng.random() < 0.93:
            self._turns += 1
            turn = hashlib.sha256(f"{self._encoder.source}{self._turns}".encode()).hexdigest()
        subject = f"world-{rng.randrange(12)}"
        found: list[tuple[int, bytes]] = []
        spans: list[tuple[str, int]] = []
        root, now = chance.hex(16), start
        for _ in range(rng.choice((4, 5, 5, 6, 6))):
            parent = rng.choice(spans)[0] if spans and rng.random() < 0.4 else root
            span, begun = chance.hex(16), now
            spans.append((span, begun))
            for _ in range(rng.choice((0, 1, 1, 2, 2))):
                now += chance.short()
                found.append((now, self._event(now, trace, span, turn, subject)))
            if rng.random() < 0.12:
                found += self._pair(now, trace, span, turn, subject)
            now += chance.short()
            self._span(found, trace, span, parent, turn, begun, now)
        self._span(found, trace, root, None, turn, start, now + 40_000)
        return found

    def _span(
        self, found: list[tuple[int, bytes]], trace: str, span: str, parent: str | None, turn: str | None, *at: int
    ) -> None:
        rng, (start, end) = self._chance.rng, at
        name = rng.choice(_OPERATIONS[1:]) if parent else _OPERATIONS[0]
        members = (f',"ipchash":"{turn}"' if turn else "") + f',"traceparent":"00-{trace}-{span}-01"'
        above = f',"parent_span_id":"{parent}"' if parent else ',"kind":"SERVER"'
        head = f'{{"name":"{name}"{above},"start":{start}'
        failed = ',"status":{"code":"ERROR","description":"timed out"}' if rng.random() < 0.01 else ""
        attributes = orjson.dumps({"tokens": rng.randrange(4000)}).decode()
        roll = rng.random()
        if roll < 0.04:
            process = ',"process":{"pid":4711,"started":1,"boot":"00000000-0000-0000-0000-000000000000"}}'
            data = f'{head},"attributes":{attributes}{self._named}{process}'
            # Written when the span has been open for a while: behind records of later times.
            found.append(
                (min(end, start + 50_000_000), self._encoder.telemetry("otel.span.start", start, data, members))
            )
        if roll >= 0.002:
            data = f'{head},"end":{end},"attributes":{attributes}{failed}{self._named}}}'
            found.append((end, self._encoder.telemetry("otel.span.end", end, data, members)))

    def _event(self, ns: int, trace: str, span: str, turn: str | None, subject: str) -> bytes:
        rng, chance = self._chance.rng, self._chance
        type = rng.choice(("chat.translation", "chat.mechanical_resolution", "order.placed", "llm.answer"))
        payload: dict[str, Any] = {"id": rng.randrange(1 << 30), "text": chance.text(2)}
        if type == "chat.mechanical_resolution":
            payload["deltas"] = {"trust": rng.random() - 0.5, "fear": rng.random() - 0.5}
        return self._put(type, payload, ns, trace, span, turn, subject)

    def _pair(self, ns: int, trace: str, span: str, turn: str | None, subject: str) -> Iterator[tuple[int, bytes]]:
        key = {"id": self._chance.rng.randrange(1 << 40), "tool": "search"}
        took = self._chance.short()
        yield ns, self._put("tool.start", key, ns, trace, span, turn, subject)
        if self._chance.rng.random() < 0.9:
            yield ns + took, self._put("tool.end", {**key, "ok": True}, ns + took, trace, span, turn, subject)

    def _put(
        self, type: str, data: dict[str, Any], ns: int, trace: str, span: str, turn: str | None, subject: str
    ) -> bytes:
        members = f',"traceparent":"00-{trace}-{span}-01"'
        part: bytes = self._encoder.event(type, data, ns, None, subject, turn, members)[1]
        return part


def _simulate(start: int, seed: int) -> tuple[Clock, _Chance]:
    """Give this process a clock and random bits of its own; for a process that does nothing else."""
    from otledger import clock, ids, journal, record

    own, chance = Clock(start), _Chance(random.Random(seed))
    journal.now_ns = record.now_ns = lambda: own.ns
    clock.boot_ns = lambda: own.boot

    def bits(length: int) -> list[str]:
        return [chance.hex(length) for _ in range(4096 * 2 // length)]

    ids._random = bits
    return own, chance


def write(root: str, machine: str, size: int, months: int, seed: int) -> tuple[int, int]:
    """Write one machine's partition in this process. Gives how many records and bytes of it there are."""
    begin = int(START.timestamp()) * SECOND
    clock, chance = _simulate(begin, seed)
    from otledger.journal import Batch, Journal, Resource
    from otledger.record import Draft

    own = Resource.make("resource", orjson.dumps({"service.name": "game", "host.name": machine}))
    scope = Resource.make("scope", b"{}", name="otledger.corpus", version="1")
    resources = {each.digest: each for each in (own, scope)}
    length = months * 30 * DAY
    done = 0
    with Journal(root, machine=machine, service="game", durability="os", min_free=0) as journal:
        story = Story(journal.encoder, chance, own.digest, scope.digest)
        due: list[tuple[int, bytes]] = []
        while done < size:
            at = begin + length * done // size
            for _ in range(chance.rng.randrange(1, 9)):
                # Some traces run at the same time, and their records stand among each other's.
                due += (found := story.trace(at + chance.rng.randrange(SECOND // 10)))
                done += sum(len(part) + STAMP for _, part in found)
            if len(due) >= BATCH:
                due.sort(key=lambda each: each[0])
                clock.set(due[-1][0])
                journal.write(Batch([part for _, part in due], resources))
                due = []
        records = journal.append([Draft("corpus.made", {"seed": seed})])[0].seq + 1
    partition = Path(root) / machine
    # The simulated time since boot means nothing to the next writer: as in a ledger that was copied here.
    (partition / ".lock").unlink()
    sizes = [path.stat().st_size for path in partition.glob("*.jsonl")]
    return records, sum(sizes)


def make(root: Path, size: int, *, machines: int = 1, months: int = 4, seed: int = 1) -> tuple[int, int]:
    """Make a ledger of about `size` bytes, each machine in a process of its own. Gives records and bytes."""
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        raise SystemExit(f"{root} is not empty; remove it first, or give another folder")
    names = [f"m{number}" for number in range(1, machines + 1)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(write, str(root), name, size // machines, months, seed * 1000 + at)
                   for at, name in enumerate(names)]  # fmt: skip
        made = [future.result() for future in futures]
    return sum(records for records, _ in made), sum(written for _, written in made)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB|)", text.upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give 500MB, 1GB, 5GB")
    return int(float(match[1]) * UNITS[match[2]])


def main() -> None:
    """Make what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.corpus", description=__doc__)
    parser.add_argument("root", type=Path, help="the new ledger's folder")
    parser.add_argument("--size", type=_size, default=UNITS["GB"], help="how large, such as 50MB (1GB)")
    parser.add_argument("--machines", type=int, default=1, help="how many partitions share the size (1)")
    parser.add_argument("--months", type=int, default=4, help="how many months the records are spread over (4)")
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other records (1)")
    given = parser.parse_args()
    started = time.perf_counter()
    records, size = make(given.root, given.size, machines=given.machines, months=given.months, seed=given.seed)
    took = time.perf_counter() - started
    print(f"{given.root}: {records:,} records, {size:,} bytes, in {took:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
