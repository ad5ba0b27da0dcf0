"""What the tests of journal, recovery, verify and faults share: small ledgers, and ways to look at and damage them.

Nothing here asks otledger what a file holds: that is the checker's business.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import otledger
from otledger import Config, Draft, Journal, Receipt, Status
from tests.checker import check, parse, segments

MACHINE = "m1"
ZEROS = "0" * 64
GOOD = (Status.OK, Status.RECOVERED)
REPOSITORY = Path(__file__).parents[2]

Json = dict[str, Any]

TAIL = re.compile(rb'(,"synced":\d+)?,"seq":(\d+),"prev":"([0-9a-f]{64})","checksum":"sha256:([0-9a-f]{64})"\}\n\Z')


# Making ledgers ---------------------------------------------------------------------------------------------


def journal(root: Path, **settings: Any) -> Journal:
    """A journal of the machine `m1`. Checkpoints come only at a cut and at close, unless it is told otherwise."""
    config = Config.resolve(root=root, **{"machine": MACHINE, "service": "test", **settings})
    if "checkpoint_interval" not in settings:
        # Longer than may be set, and than any machine has been up.
        config = replace(config, checkpoint_interval=1e12)
    return Journal(config=config)


def put(target: Journal, *payloads: Any) -> list[Receipt]:
    """Append an event for each payload, each in a batch of its own."""
    return [receipt for payload in payloads for receipt in target.append([Draft("app.event", payload)])]


def put_batch(target: Journal, *payloads: Any) -> list[Receipt]:
    """Append the events in one batch."""
    return target.append([Draft("app.event", payload) for payload in payloads])


def closed(root: Path, *payloads: Any, **settings: Any) -> list[Receipt]:
    """A journal opened, given these events and closed."""
    with journal(root, **settings) as target:
        return put(target, *payloads)


def crashed(root: Path, copy: Path, *payloads: Any, **settings: Any) -> list[Receipt]:
    """Like `closed`, but `copy` is what a kill right after the last append would have left."""
    with journal(root, **settings) as target:
        receipts = put(target, *payloads)
        shutil.copytree(root, copy)
    return receipts


# Looking at them --------------------------------------------------------------------------------------------


def partition(root: Path) -> Path:
    return root / MACHINE


def segment_names(root: Path) -> list[str]:
    return list(segments(partition(root)))


def newest(root: Path) -> Path:
    return partition(root) / segment_names(root)[-1]


def lines_of(path: Path) -> list[bytes]:
    """The lines of a file, each with its LF but perhaps the last."""
    return [line for line in re.split(rb"(?<=\n)", path.read_bytes()) if line]


def record_of(line: bytes) -> Json:
    record: Json = json.loads(line)
    return record


def good_records(path: Path) -> list[Json]:
    """The records of a file that may be damaged: its lines that are right, each for itself."""
    found = []
    for line in lines_of(path):
        try:
            found.append(parse(line.removesuffix(b"\n"))[1])
        except (AssertionError, ValueError, RecursionError):
            continue
    return found


def offsets(lines: Iterable[bytes]) -> list[int]:
    """Where each line begins, and where the last one ends."""
    found = [0]
    for line in lines:
        found.append(found[-1] + len(line))
    return found


def sane(root: Path, *, allow: Iterable[Status] = GOOD, machine: str = MACHINE) -> list[Json]:
    """The records of a ledger that the independent checker and `verify` both accept."""
    records = check(root / machine)
    report = otledger.verify(root, processes=1, deep=True)
    assert report.status in tuple(allow), "\n".join(map(str, report.faults)) or str(report.status)
    if all(record["prev"] != ZEROS for record in records[1:]):
        assert report.records == len(records)
        assert report.machines[0].head == records[-1]["checksum"].removeprefix("sha256:")
    return records


def events(records: Iterable[Json]) -> list[Json]:
    """Those that are callers'."""
    return [record for record in records if not record["type"].startswith(("otledger.", "otel."))]


def payloads(records: Iterable[Json]) -> list[Any]:
    return [record.get("data") for record in events(records)]


def of_type(records: Iterable[Json], kind: str) -> list[Json]:
    return [record for record in records if record["type"] == kind]


def headers(records: Iterable[Json]) -> list[Json]:
    return [record["data"] for record in of_type(records, "otledger.segment")]


def holds(records: Iterable[Json], receipts: Iterable[Receipt]) -> None:
    """Each receipt's record is there, once, as the receipt says."""
    found = {record["id"]: record for record in records}
    for receipt in receipts:
        record = found[receipt.id]
        assert (record["seq"], record["checksum"]) == (receipt.seq, receipt.checksum)


class Told(dict[str, tuple[int, str]]):
    """What writers were told to be durable: `seq` and checksum by id."""

    def note(self, receipts: Iterable[Receipt]) -> None:
        for receipt in receipts:
            assert receipt.id not in self, "an id was given out twice"
            self[receipt.id] = receipt.seq, receipt.checksum


def everything_told_is_there(root: Path, told: Told, *, exact: bool) -> tuple[Status, list[Json]]:
    """Verify what a crash left, recover, and look up what was acknowledged. At `os` numbers may have changed.

    Gives what `verify` said before the recovery, and the records after it.
    """
    before = Status.OK
    if (root / MACHINE).exists():
        report = otledger.verify(root, processes=1)
        before = report.status
        assert before in (*GOOD, Status.INCOMPLETE), report.faults
    closed(root, "after the crash")
    records = sane(root)
    there = {record["id"]: (record["seq"], record["checksum"]) for record in records}
    assert len(there) == len(records), "a record was written twice"
    assert told.keys() <= there.keys(), "an acknowledged record is lost"
    assert not exact or told.items() <= there.items(), "a receipt was not true"
    assert payloads(records)[-1] == "after the crash"
    return before, records


def snapshot(root: Path) -> dict[str, bytes]:
    """All files of a ledger but `.lock`."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def all_bytes(root: Path) -> int:
    return sum(map(len, snapshot(root).values()))


# Changing them ----------------------------------------------------------------------------------------------


def restamp(line: bytes, *, seq: int | None = None, prev: str | None = None) -> bytes:
    """The line with another number or predecessor, perhaps, and the checksum that its bytes now have."""
    match = TAIL.search(line)
    assert match is not None, line[-300:]
    body = line[: match.start(2)] + b"%d" % (int(match[2]) if seq is None else seq)
    body += b',"prev":"%b"' % (match[3] if prev is None else prev.encode())
    return body + b',"checksum":"sha256:%b"}\n' % hashlib.sha256(body).hexdigest().encode()


def edited(line: bytes, old: bytes, new: bytes) -> bytes:
    """The line with one text changed, and the checksum that it then has."""
    assert line.count(old) == 1, (old, line)
    return restamp(line.replace(old, new))


def rechained(lines: Iterable[bytes], seq: int = 0, prev: str = ZEROS) -> list[bytes]:
    """The lines as somebody writes them who can compute the whole chain anew."""
    made = []
    for line in lines:
        made.append(restamp(line, seq=seq, prev=prev))
        seq, prev = seq + 1, made[-1][-67:-3].decode()
    return made


def without_checkpoints(root: Path) -> None:
    """Make other records of the checkpoints, in all segments, so that there is none. `.lock` is wrong then."""
    seq, prev = 0, ZEROS
    for name in segment_names(root):
        path = partition(root) / name
        lines = [
            line.replace(b'"type":"otledger.checkpoint"', b'"type":"appevent.checkpoint"') for line in lines_of(path)
        ]
        lines = rechained(lines, seq, prev)
        seq, prev = seq + len(lines), lines[-1][-67:-3].decode()
        path.write_bytes(b"".join(lines))


def append_bytes(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def lock_state(root: Path) -> Json:
    state: Json = json.loads((partition(root) / ".lock").read_bytes())
    return state


def edit_lock(root: Path, **members: Any) -> None:
    """Change `.lock` in place."""
    state = json.dumps(lock_state(root) | members).encode()
    (partition(root) / ".lock").write_bytes(state.ljust(1023) + b"\n")


def _keep(root: Path) -> None:
    pass


def _other_boot(root: Path) -> None:
    edit_lock(root, boot="00000000-0000-0000-0000-000000000000")


def _missing(root: Path) -> None:
    (partition(root) / ".lock").unlink()


def _garbage(root: Path) -> None:
    (partition(root) / ".lock").write_bytes(bytes(range(256)) * 4)


LOCKS: dict[str, Callable[[Path], None]] = {
    "this boot": _keep,
    "another boot": _other_boot,
    "missing": _missing,
    "garbage": _garbage,
}
"""In which states `.lock` may be when a process opens a ledger."""
UNBELIEVED = [name for name in LOCKS if name != "this boot"]


# Processes and mounts ---------------------------------------------------------------------------------------


def run_python(
    code: str, *args: object, prefix: Iterable[str] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, perhaps under another command, and wait for its end."""
    command = [*prefix, sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, env=environment(), **options
    )


@contextmanager
def python(code: str, *args: object, prefix: Iterable[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """A script that runs meanwhile; at the end it is killed if it still runs."""
    command = [*prefix, sys.executable, "-c", code, *map(str, args)]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def environment() -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("OTLEDGER_")}
    return others | {"PYTHONPATH": str(REPOSITORY)}


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.002)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


STRACE = shutil.which("strace")
needs_strace = pytest.mark.skipif(STRACE is None, reason="strace is not installed (apt-get install strace)")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: changes the user, or mounts")


def never_trusted_again(log: str) -> int:
    """Check in strace's log that nothing was done to a segment whose sync had failed. Gives how many had."""
    failed: set[str] = set()
    for row in log.splitlines():
        match = re.search(r"\b(fdatasync|fsync|write|ftruncate)\(\d+<([^>]*\.jsonl)>", row)
        if match is None:
            continue
        assert match[2] not in failed, row
        if match[1] in ("fdatasync", "fsync") and " = -1 EIO" in row:
            failed.add(match[2])
    return len(failed)


@contextmanager
def mounted(at: Path, *command: str) -> Iterator[Path]:
    """A file system mounted at `at`; skips where that is not permitted."""
    at.mkdir()
    done = subprocess.run(["mount", *command, str(at)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)
