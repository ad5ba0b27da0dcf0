"""What the fuzzers and the review that went with them found, each as small as it can be told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import otledger
from otledger import Reader, Status
from otledger.batch import MAX_SEQ
from otledger.errors import ConfigurationError, FormatError
from otledger.follow import Cursor
from otledger.lock import decode_state
from otledger.predecessors import import_evledger
from otledger.record import parse
from tests.faults.fuzzing import at_most
from tests.faults.tools import (
    ZEROS,
    append_bytes,
    closed,
    lines_of,
    newest,
    offsets,
    partition,
    rechained,
    segment_names,
    snapshot,
)


@pytest.mark.parametrize("last", [MAX_SEQ - 1, MAX_SEQ, 10**18, 2**63 - 2, 2**63 - 1, 2**63, 10**19 - 1, 10**30])
@pytest.mark.parametrize("known", [True, False])
def test_numbers_beyond_what_is_read(last: int, known: bool, root: Path) -> None:
    """`verify` raised from 2^63 on, and the compiled stamp wrote past the end of a line that a writer made."""
    closed(root, 1, 2, 3)
    lines = lines_of(newest(root))[:-1]
    newest(root).write_bytes(b"".join(rechained(lines, last - len(lines) + 1, ZEROS)))
    if not known:
        (partition(root) / ".lock").unlink()
    for deep in (False, True):
        assert otledger.verify(root, deep=deep, processes=1).status in (Status.TAMPERED, Status.INCOMPLETE)
    before = snapshot(root)
    if last > MAX_SEQ + len(lines):
        # Nothing there is a record.
        closed(root, 4)
        assert otledger.verify(root).status is not Status.OK
        return
    if last <= MAX_SEQ:
        with pytest.raises(FormatError, match=f"{MAX_SEQ:,} is the last"):
            closed(root, 4)
        assert snapshot(root) == before
        assert len(segment_names(root)) == 1


def test_a_lock_file_nested_too_deep() -> None:
    assert decode_state(b'{"x":' + b"[" * 1019) is None


def test_a_cursor_nested_too_deep_or_no_text() -> None:
    for text in ("[" * 5000, '{"positions":' + "[" * 5000, "\udcff"):
        with pytest.raises(ConfigurationError, match="is no cursor"):
            Cursor.parse(text)


def test_an_import_whose_first_line_is_nested_too_deep(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old" / "m1"
    folder.mkdir(parents=True)
    (folder / "2026-09.jsonl").write_bytes(b"[" * 10_000 + b"]" * 10_000 + b"\n")
    report = import_evledger(root, folder.parent)
    [refused] = report.refused
    assert "nested too deep" in refused.reason


def test_a_payload_that_is_no_utf_8_is_no_record(root: Path) -> None:
    """The decoder looks at no payload: it was given out as a record, and raised when somebody used it."""
    closed(root, "abc")
    path = newest(root)
    path.write_bytes(path.read_bytes().replace(b'"abc"', b'"a\xffc"'))
    faults: list[FormatError] = []
    records = list(Reader(root).records(on_fault=faults.append))
    assert [fault.offset for fault in faults] == [offsets(lines_of(path))[1]]
    assert all(record.to_dict() for record in records)
    with pytest.raises(FormatError, match="not a record"):
        parse(lines_of(path)[1])


def test_a_number_that_nobody_can_read_is_an_error_of_ours(root: Path) -> None:
    closed(root, 12345)
    path = newest(root)
    path.write_bytes(path.read_bytes().replace(b'"data":12345', b'"data":1e999'))
    [record] = Reader(root).records(otledger.Filter(type="app.event"))
    assert record.extensions == {}
    with pytest.raises(FormatError, match="record 1 of m1 cannot be read"):
        record.to_dict()


def test_a_record_whose_end_is_none() -> None:
    line = b'{"id":"x","source":"s","type":"t","time":"t","machine":"m","seq":1,"x":"%b","checksum":"sha256:%b"}\n'
    record = parse(line % ("é".encode() * 40, b"0" * 64))
    assert "\ufffd" in record.prev
    assert record.checksum == "sha256:" + "0" * 64


def test_offsets_of_many_damaged_lines(root: Path) -> None:
    """Each was looked for from the beginning of its block; equal lines were all found at the first."""
    closed(root, 1)
    start = newest(root).stat().st_size
    append_bytes(newest(root), b"\n" * 3 + b"x\n" * 3)
    faults: list[FormatError] = []
    list(Reader(root).records(on_fault=faults.append))
    assert [fault.offset for fault in faults] == [start + at for at in (0, 1, 2, 3, 5, 7)]


def test_a_pipe_in_quarantine_holds_nobody_up(root: Path) -> None:
    closed(root, 1)
    append_bytes(newest(root), b"torn")
    closed(root, 2)
    [kept] = (partition(root) / "quarantine").iterdir()
    kept.unlink()
    os.mkfifo(kept)
    with at_most(20):
        report = otledger.verify(root)
    assert report.status is Status.INCOMPLETE
    assert "cannot be read" in str(report.faults[0])


def test_checkpoints_over_many_segments_cost_no_pass_each(root: Path) -> None:
    """Looking for a record begins in the segment that has it."""
    for number in range(130):
        closed(root, number, max_segment=1)
    assert len(segment_names(root)) > 120
    assert otledger.verify(root, processes=1).status is Status.OK


def test_a_span_with_a_number_beyond_64_bits_is_shown(root: Path) -> None:
    """`show` and `tail` ended with a mistake of otledger's own."""
    with otledger.open_sync(root, machine="m1") as ledger, ledger.span("work", attributes={"n": 2**70}):
        pass
    done = subprocess.run(
        [sys.executable, "-m", "otledger", "show", "--all", "--root", str(root)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert str(2**70) in done.stdout
