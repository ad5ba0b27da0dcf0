"""Reading what does not count: bytes that caps leave out, and segments that no other names (format, 6)."""

from __future__ import annotations

from otledger.batch import Tail, check_line
from otledger.segment import ChainCheck, Piece, SegmentName, is_foreign, line_at, lines, read_header
from otledger.verifying.files import Files
from otledger.verifying.findings import Findings
from otledger.verifying.report import Status


class Excluded:
    """Checks that nothing was put where readers do not look: records that were durable, or claimed a place."""

    def __init__(self, files: Files, found: Findings) -> None:
        self.files = files
        self.found = found

    def check(self, seq: int) -> None:
        """Look at all that the partition's chain leaves out. `seq`: the number that is due at its end."""
        chain, sizes = self.files.chain, self.files.sizes
        successors = {piece.header.previous: piece for piece in chain.pieces if piece.header is not None}
        for piece in chain.pieces:
            if piece.size is not None and piece.size < sizes[piece.name]:
                self._bytes(piece.name, piece.size, successors.get(str(piece.name)))
        for name in chain.skipped:
            later = [piece for piece in chain.pieces if piece.name > name]
            self._skipped(name, later[0] if later else None)
            if not later and self.files.size(name):
                reason = "no valid record in the segment; the next writer sets its bytes aside"
                self.found.fault(Status.INCOMPLETE, str(name), 0, seq, reason)
        if any(piece.header is not None and piece.header.reason == "fault" for piece in chain.pieces):
            self.found.raise_to(Status.RECOVERED)

    def _bytes(self, name: SegmentName, start: int, successor: Piece | None) -> None:
        """Read what stands beyond the end that the next segment names.

        What has numbers that the records that count have is another writer's: only where a sync had failed it may be
        the same writer's, who wrote again what was not durable.
        """
        header = successor.header if successor is not None else None
        reason = header.reason if header is not None else ""
        before, rival = -1, ChainCheck(-1, b"")
        if successor is not None and header is not None and reason != "fault":
            tail = self.files.first_tail(successor.name)
            before, rival = header.seq, ChainCheck(header.seq, tail.prev if tail is not None else b"")
        first: int | None = None
        with self.files.opened(name) as fd:
            for offset, line in lines(fd, start):
                tail = check_line(line)
                if tail is None:
                    if reason == "damage" and is_foreign(line):
                        self._fault(Status.TAMPERED, name, offset, None, "a line that is not otledger's")
                    continue
                if (
                    reason == "damage"
                    or isinstance(rival.take(line), Tail)
                    or (0 <= tail.seq < before and self.files.is_other_record(str(name), offset, tail.seq))
                ):
                    why = f"a record with seq {tail.seq} beyond the segment's end, and another has that number"
                    self._fault(Status.FORK, name, offset, tail.seq, why)
                elif first is not None and (tail.synced or 0) > first:
                    why = "records that were durable stand beyond the end that the next segment names"
                    self._fault(Status.TAMPERED, name, offset, first, why)
                    return
                first = tail.seq if first is None else first

    def _skipped(self, name: SegmentName, later: Piece | None) -> None:
        """Read a segment that no other names: its creation failed, or two hosts went on from the same place."""
        with self.files.opened(name) as fd:
            header = read_header(line_at(fd, 0), self.files.path / str(name))
        host = later.header.host if later is not None and later.header is not None else ""
        if header is not None and host and header.host != host:
            why = f"the segment goes on from the same place as {later.name if later else ''}, which another host began"
            self._fault(Status.FORK, name, 0, header.seq, why)
        else:
            self._bytes(name, 0, None)

    def _fault(self, status: Status, name: SegmentName, offset: int, seq: int | None, reason: str) -> None:
        self.found.fault(status, str(name), offset, seq, reason)
