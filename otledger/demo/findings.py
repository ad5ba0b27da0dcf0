"""What the demo's ledger holds, and whether that is what the server promised."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from otledger.cli.output import counted, table
from otledger.cli.report import report_lines
from otledger.cli.waterfall import turn_lines
from otledger.demo.client import Answers
from otledger.demo.page import Page
from otledger.errors import RootError
from otledger.filter import Filter
from otledger.identity import boot_id, process_state
from otledger.reader import Reader
from otledger.record import format_time
from otledger.replay import Replay, ReplayedSpan
from otledger.turns import Turn, turn_of
from otledger.verifier import Status, verify

TYPES_SHOWN = 20
SPANS_SHOWN = 8
GOOD = (Status.OK, Status.UNSEALED_TAIL, Status.RECOVERED)


def open_spans(root: Path, since: int) -> list[tuple[ReplayedSpan, str]]:
    """Give the spans that began after `since` and have not ended, each with what became of its process."""
    replay = Replay()
    try:
        for record in Reader(root).records(Filter(type="otel.span.*", since=since)):
            replay.feed(record)
    except RootError:
        # The ledger is not there before the first batch.
        return []
    return [(span, process_state(span.process, boot_id())) for span in replay.unfinished()]


class Findings:
    """Reads the ledger and holds it against the answers that the clients got."""

    def __init__(self, root: Path, began: int, answers: Answers) -> None:
        self._root = root
        self._began = began
        self._answers = answers
        self._reader = Reader(root)
        self._report = verify(root)

    def check(self, page: Page) -> None:
        """Check that nothing confirmed is missing, that what was open shows, and that the chain is whole."""
        page.step("Compare the ledger with the answers", "read back from the files")
        paid = self._paid()
        confirmed = self._answers.orders
        right = sum(paid[number] == [(answer["seq"], answer["checksum"])] for number, answer in confirmed.items())
        page.check(
            right == len(confirmed),
            f"{right} of {counted(len(confirmed), 'confirmed order')} found, each once, with its number and checksum",
        )
        unconfirmed = sum(number not in confirmed for number in paid)
        if unconfirmed:
            page.say(f"    {counted(unconfirmed, 'order')} besides: on the disk, and the answer died with the server")
        known = {record.ipc_hash for record in self._reader.records(Filter(type="world.text", since=self._began))}
        missing = sum(turn not in known for turn in self._answers.turns)
        page.check(missing == 0, f"all {counted(len(self._answers.turns), 'answered turn')} found")
        spans = open_spans(self._root, self._began)
        died = bool(spans) and all(state == "died" for _, state in spans)
        page.check(died, f"{counted(len(spans), 'span')} begun and not ended, all of the process that was killed")
        page.check(self._report.status in GOOD, f"verify says {self._report.status}")

    def _paid(self) -> dict[int, list[tuple[int, str]]]:
        paid: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for record in self._reader.records(Filter(type="order.paid", since=self._began)):
            paid[record.data["number"]].append((record.seq, record.checksum))
        return paid

    # For the reader

    def tell(self, page: Page) -> None:
        """Show what was recorded, what was left open, one turn, and what `verify` says."""
        page.section("What was recorded")
        page.lines(self._counts(page))
        page.section("Unfinished spans: begun, and never ended")
        page.lines(self._unfinished(page))
        turn = self._turn()
        if turn is not None:
            page.section(f"One turn: what carries the ipc_hash {turn.ipc_hash[:16]}…, in the spans where it happened")
            page.lines(turn_lines(turn))
        page.section("otledger verify")
        page.lines(report_lines(self._report, page.paint))

    def _counts(self, page: Page) -> Iterator[str]:
        counts = Counter(record.type for record in self._reader.records())
        rows = [(f"{count:,}", type) for type, count in counts.most_common(TYPES_SHOWN)]
        yield from table(("records", "type"), rows, right=(0,), paint=page.paint)
        if len(counts) > TYPES_SHOWN:
            yield f"and {len(counts) - TYPES_SHOWN} more types"

    def _unfinished(self, page: Page) -> Iterator[str]:
        spans = open_spans(self._root, self._began)
        parents = {span.parent_span_id for span, _ in spans}
        leaves = [(span, state) for span, state in spans if span.span_id not in parents]
        by_id: dict[str | None, ReplayedSpan] = {span.span_id: span for span, _ in spans}
        rows = [
            (_path(span, by_id), _attributes(span), format_time(span.start)[11:23], f"{state}, process {_pid(span)}")
            for span, state in leaves[:SPANS_SHOWN]
        ]
        yield from table(("span", "attributes", "began", "what became of it"), rows, paint=page.paint)
        if len(leaves) > SPANS_SHOWN:
            yield f"and {len(leaves) - SPANS_SHOWN} more"

    def _turn(self) -> Turn | None:
        if not self._answers.turns:
            return None
        records = self._reader.records(Filter(ipc_hash=self._answers.turns[0], since=self._began))
        return turn_of(records, self._answers.turns[0])


def _path(span: ReplayedSpan, by_id: Mapping[str | None, ReplayedSpan]) -> str:
    names = [span.name]
    parent = span.parent_span_id
    while parent in by_id:
        names.append(by_id[parent].name)
        parent = by_id[parent].parent_span_id
    return " > ".join(reversed(names))


def _pid(span: ReplayedSpan) -> str:
    return str(span.process.get("pid")) if span.process else "unknown"


def _attributes(span: ReplayedSpan) -> str:
    return " ".join(f"{name}={value}" for name, value in span.attributes.items())
