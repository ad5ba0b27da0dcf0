"""What otledger is compared with, each used as its documentation recommends for speed.

A function takes the folder to write to and how many events, and returns figures; `rate` is events
a second, with everything handed to the kernel before the clock stops. Imports stand inside the
functions, so that each process loads what it measures and nothing else.
"""

import asyncio
import os
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from .payload import ATTRIBUTES, MACHINE, SOURCE, TYPE, payloads

Figures = dict[str, float]


def _open(folder: Path, name: str = "events.jsonl") -> int:
    return os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def _envelope() -> dict[str, object]:
    """Return a record in which only `data` changes."""
    return {
        "specversion": "1.0",
        "id": "0" * 32,
        "source": SOURCE,
        "type": TYPE,
        "time": "2026-01-01T00:00:00.000000000Z",
        "machine": MACHINE,
        "data": None,
        "seq": 123456,
        "prev": "0" * 64,
        "checksum": "sha256:" + "0" * 64,
    }


def floor(folder: Path, n: int) -> Figures:
    """Serialise and hash whole lines, and write 128 at a time: the least that a hashed ledger has to do."""
    from orjson import dumps

    file = _open(folder)
    envelope = _envelope()
    batch: list[bytes] = []
    add = batch.append
    started = time.perf_counter()
    for data in payloads(n):
        envelope["data"] = data
        line = dumps(envelope)
        sha256(line).hexdigest()
        add(line)
        # 60 KB: beyond malloc's mmap threshold a batch costs twice as much.
        if len(batch) == 128:
            add(b"")
            os.write(file, b"\n".join(batch))
            batch.clear()
    os.write(file, b"\n".join([*batch, b""]))
    return {"rate": n / (time.perf_counter() - started)}


def write_and_sync(folder: Path, n: int) -> Figures:
    """Serialise, hash, write and fdatasync each line."""
    from orjson import dumps

    file = _open(folder)
    os.fsync(file)
    envelope = _envelope()
    started = time.perf_counter()
    for data in payloads(n):
        envelope["data"] = data
        line = dumps(envelope)
        sha256(line).hexdigest()
        os.write(file, line + b"\n")
        os.fdatasync(file)
    return {"rate": n / (time.perf_counter() - started)}


def structlog(folder: Path, n: int) -> Figures:
    """Use structlog's performance page: native bound logger, orjson, bytes, cached, bound locally."""
    import logging

    import orjson
    import structlog

    with (folder / "events.jsonl").open("wb") as file:
        structlog.configure(
            cache_logger_on_first_use=True,
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.format_exc_info,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(serializer=orjson.dumps),
            ],
            logger_factory=structlog.BytesLoggerFactory(file),
        )
        info = structlog.get_logger().bind().info
        started = time.perf_counter()
        for data in payloads(n):
            info(TYPE, **data)
        return {"rate": n / (time.perf_counter() - started)}


def logging_orjson(folder: Path, n: int) -> Figures:
    """Use stdlib logging with the optimisations of its how-to, and orjson."""
    import logging

    import orjson

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            line = {"time": record.created, "level": record.levelname, "type": record.msg}
            line["data"] = record.__dict__["data"]
            return orjson.dumps(line).decode()

    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    vars(logging)["logAsyncioTasks"] = False
    handler = logging.FileHandler(folder / "events.jsonl")
    handler.setFormatter(Formatter())
    logger = logging.getLogger("bench")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    info = logger.info
    started = time.perf_counter()
    for data in payloads(n):
        info(TYPE, extra={"data": data})
    return {"rate": n / (time.perf_counter() - started)}


def eliot(folder: Path, n: int) -> Figures:
    """Log eliot messages to a binary file."""
    import eliot

    with (folder / "events.jsonl").open("wb") as file:
        eliot.to_file(file)
        log = eliot.log_message
        started = time.perf_counter()
        for data in payloads(n):
            log(message_type=TYPE, **data)
        return {"rate": n / (time.perf_counter() - started)}


def sqlite(folder: Path, n: int) -> Figures:
    """Insert a row an event into a WAL database, 500 rows a commit."""
    import sqlite3

    import orjson

    database = sqlite3.connect(folder / "events.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    database.execute("CREATE TABLE event (seq INTEGER PRIMARY KEY, time INTEGER, type TEXT, data BLOB)")
    dumps, now = orjson.dumps, time.time_ns
    events = payloads(n)
    started = time.perf_counter()
    for begin in range(0, n, 500):
        rows = [(now(), TYPE, dumps(next(events))) for _ in range(begin, min(begin + 500, n))]
        database.execute("BEGIN")
        database.executemany("INSERT INTO event (time, type, data) VALUES (?, ?, ?)", rows)
        database.execute("COMMIT")
    return {"rate": n / (time.perf_counter() - started)}


def otel_logs(folder: Path, n: int) -> Figures:
    """Emit OpenTelemetry events through the batch processor to a JSON file.

    The queue holds all of them: with the default of 2,048 a tight loop loses most of its events.
    """
    from opentelemetry._logs import LogRecord, SeverityNumber
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, ConsoleLogRecordExporter

    with (folder / "events.jsonl").open("w") as file:
        exporter = ConsoleLogRecordExporter(file, lambda record: record.to_json(indent=None) + "\n")
        processor = BatchLogRecordProcessor(exporter, max_queue_size=n)
        provider = LoggerProvider(shutdown_on_exit=False)
        provider.add_log_record_processor(processor)
        emit = provider.get_logger("bench").emit
        started = time.perf_counter()
        for data in payloads(n):
            now = time.time_ns()
            emit(LogRecord(timestamp=now, severity_number=SeverityNumber.INFO, body=data, event_name=TYPE))
        processor.force_flush()
        elapsed = time.perf_counter() - started
    _expect_lines(folder / "events.jsonl", n)
    return {"rate": n / elapsed}


def otel_spans(folder: Path, n: int) -> Figures:
    """End OpenTelemetry spans through the batch processor to a JSON file; the queue holds all of them."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    with (folder / "events.jsonl").open("w") as file:
        exporter = ConsoleSpanExporter(out=file, formatter=lambda span: span.to_json(indent=None) + "\n")
        processor = BatchSpanProcessor(exporter, max_queue_size=n)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(processor)
        start_span = provider.get_tracer("bench").start_span
        started = time.perf_counter()
        for data in payloads(n):
            start_span(TYPE, attributes=data).end()
        processor.force_flush()
        elapsed = time.perf_counter() - started
    _expect_lines(folder / "events.jsonl", n)
    return {"rate": n / elapsed}


def _expect_lines(path: Path, n: int) -> None:
    with path.open("rb") as file:
        found = sum(1 for _ in file)
    if found != n:
        raise RuntimeError(f"{found:,} of {n:,} events reached the file")


def sdk_span_cpu(folder: Path, n: int) -> Figures:
    """Return the CPU time of an SDK span with four attributes and no processor, in µs."""
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("bench")
    started = time.process_time()
    for _ in range(n):
        with tracer.start_as_current_span("charge", attributes=ATTRIBUTES):
            pass
    return {"cpu_us": (time.process_time() - started) / n * 1e6}


def auditchain_append(folder: Path, n: int) -> Figures:
    """Await auditchain's `append` for each event."""
    from auditchain import AuditLog, JsonlBackend

    async def work() -> float:
        async with AuditLog(JsonlBackend(folder / "events.jsonl")) as log:
            started = time.perf_counter()
            for data in payloads(n):
                await log.append("bench", TYPE, metadata=data)
            return time.perf_counter() - started

    return {"rate": n / asyncio.run(work())}


def auditchain_append_many(folder: Path, n: int) -> Figures:
    """Await auditchain's `append_many` for 500 events at a time."""
    from auditchain import AuditLog, JsonlBackend

    async def work() -> float:
        async with AuditLog(JsonlBackend(folder / "events.jsonl")) as log:
            events = payloads(n)
            started = time.perf_counter()
            for begin in range(0, n, 500):
                await log.append_many([("bench", TYPE, "", next(events)) for _ in range(begin, min(begin + 500, n))])
            return time.perf_counter() - started

    return {"rate": n / asyncio.run(work())}


def evledger_append(folder: Path, n: int, size: int, times: int = 1) -> Figures:
    """Append `n` events to an evledger of `size` events, `times` times."""
    from evledger import LedgerStore, new_event

    def event(data: dict[str, Any]) -> Any:
        return new_event(source=SOURCE, type=TYPE, machine=MACHINE, data=data)

    # Written directly: by `append` the preparation would be quadratic.
    lines = [event(data).with_seq(seq).to_jsonl_line() + "\n" for seq, data in enumerate(payloads(size))]
    elapsed = 0.0
    for turn in range(times):
        partition = folder / str(turn) / MACHINE
        partition.mkdir(parents=True)
        (partition / f"{time.strftime('%Y-%m', time.gmtime())}.jsonl").write_text("".join(lines))
        store = LedgerStore(folder / str(turn))
        started = time.perf_counter()
        for data in payloads(n):
            store.append(event(data))
        elapsed += time.perf_counter() - started
    return {"rate": n * times / elapsed}


def evledger_read(folder: Path, root: str) -> Figures:
    """Count by type what evledger's `read_all` returns; it reads an otledger partition as it is."""
    from collections import Counter

    from evledger import LedgerStore

    started = time.perf_counter()
    result = LedgerStore(root).read_all()
    Counter(event.type for event in result.events)
    elapsed = time.perf_counter() - started
    if result.malformed:
        raise RuntimeError(f"evledger could not read {result.malformed:,} lines")
    return {"rate": len(result.events) / elapsed}


def _segments(root: str) -> list[Path]:
    return sorted((Path(root) / MACHINE).glob("*.jsonl"))


def pipeworks_verify(folder: Path, root: str, n: int) -> Figures:
    """Do to each of `n` lines what PipeWorks' verify does to the last one of a file."""
    import json
    from itertools import islice

    with _segments(root)[0].open() as file:
        started = time.perf_counter()
        size = count = 0
        for line in islice(file, n):
            envelope = json.loads(line)
            body = {key: value for key, value in envelope.items() if key != "checksum"}
            text = json.dumps(body, ensure_ascii=False, sort_keys=True).encode()
            # Never equal, since otledger hashes other bytes; the work is the same.
            _ = envelope["checksum"] == f"sha256:{sha256(text).hexdigest()}"
            size += len(line)
            count += 1
        elapsed = time.perf_counter() - started
    return {"mb_per_s": size / elapsed / 1e6, "rate": count / elapsed}


def sha256_blocks(folder: Path, root: str) -> Figures:
    """Hash the bytes of all segments in blocks of 1 MB."""
    block = bytearray(1 << 20)
    view = memoryview(block)
    size = 0
    started = time.perf_counter()
    for path in _segments(root):
        digest = sha256()
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                digest.update(view[:count])
                size += count
    elapsed = time.perf_counter() - started
    return {"seconds": elapsed, "mb_per_s": size / elapsed / 1e6}
