"""SQL over a ledger, through DuckDB: read-only, within a time and a memory, on no files but the ledger's."""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otledger.errors import ConfigurationError, FormatError, QueryError
from otledger.hooks import Progress
from otledger.query.extents import extents
from otledger.query.needs import needed

if TYPE_CHECKING:
    import duckdb
    import polars
    import pyarrow as pa

    from otledger.query.scanning import Lines

TIMEOUT = 300.0
MEMORY = 192 << 20
"""Bytes that DuckDB may take. With all else around it a process stays below 600 MB."""
LEAST_MEMORY = 16 << 20
SPILL = 20 << 30
"""Bytes that a query may put on the disk where its memory does not suffice."""
FETCH = 2048
"""Rows that are fetched at a time."""
BATCH = 16_384
"""Rows that a record batch has, about."""
THREADS = 4
"""Each thread of DuckDB takes memory of its own."""
_SETTINGS = {
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
}
_VIEWS = "events, spans, traces, turns, machines"
_EXPLAIN = re.compile(r"\s*explain(\s+analyze)?\s", re.IGNORECASE)


def sql(
    root: str | Path,
    query: str,
    parameters: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    machines: Sequence[str] | None = None,
    timeout: float | None = TIMEOUT,
    memory: int = MEMORY,
    cache: bool = True,
    progress: Progress | None = None,
) -> Result:
    """Run one SELECT over the views events, spans, traces, turns and machines (docs/sql.md).

    `parameters` are for `?` or `$name` in it. `timeout` is in seconds, from the call to the last row; None: no limit.
    `memory` is in bytes; beyond it DuckDB uses the disk, or gives up. With `cache`, skeletons of closed segments are
    used, and those that are missing are made by a process in the background. `progress` is called, from any thread,
    with the bytes that the scan at work has done and those that it has to do.

    What is written from now on is not seen. Raises `QueryError` for SQL that is wrong, writes or loads files, and where
    the rows are asked for if they take too much; `ConfigurationError` where a package is missing; `RootError` where
    there is no ledger.
    """
    if memory < LEAST_MEMORY:
        raise ConfigurationError(f"memory is {memory} bytes: a query needs {LEAST_MEMORY} at least")
    if timeout is not None and timeout <= 0:
        raise ConfigurationError(f"timeout is {timeout} s: it must be more than 0")
    duckdb = needed("duckdb")
    needed("pyarrow.dataset")
    from otledger.query.scanning import Lines
    from otledger.query.views import TABLE, statements

    found = extents(root, machines)
    lines = Lines(found, cache=cache, progress=progress)
    session = _Session(duckdb, Path(root), lines, timeout, memory)
    try:
        session.check(query)
        session.connection.register(TABLE, lines)
        for statement in statements(found, query):
            session.connection.execute(statement)
        session.connection.execute("set lock_configuration = true")
        return Result(session, query, parameters)
    except BaseException:
        session.close()
        raise


class _Session:
    """A DuckDB of its own for one query."""

    def __init__(self, duckdb: Any, root: Path, lines: Lines, timeout: float | None, memory: int) -> None:
        self.lines = lines
        self._duckdb = duckdb
        self._root = root
        self._timeout = timeout
        self._memory = memory
        self.expired = threading.Event()
        # Of this user only: what is spilled is what the ledger holds.
        self._spill = tempfile.mkdtemp(prefix="otledger-sql-")
        self.connection: duckdb.DuckDBPyConnection = duckdb.connect(":memory:", config=_SETTINGS)
        self._timers: list[threading.Timer] = []
        self.close = weakref.finalize(self, _close, self.connection, self._spill, self._timers)
        limits = {
            "threads": str(min(THREADS, os.cpu_count() or 1)),
            "memory_limit": f"{memory}B",
            "temp_directory": self._spill,
            "max_temp_directory_size": f"{SPILL}B",
        }
        # The last one forbids to set the others.
        for name, value in {**limits, "TimeZone": "UTC", "enable_external_access": "false"}.items():
            self.connection.execute(f"set {name} = $${value}$$")

    def check(self, query: str) -> None:
        """Raise `QueryError` unless the query is one statement that only reads."""
        parsed = self._parse(query)
        if len(parsed) != 1:
            raise QueryError(f"the SQL has {len(parsed)} statements; give one")
        kind = parsed[0].type.name
        explained = _EXPLAIN.match(query) if kind == "EXPLAIN" else None
        if explained is not None:
            kind = "".join(each.type.name for each in self._parse(query[explained.end() :]))
        if kind != "SELECT":
            raise QueryError(
                f"{kind} is not allowed: a ledger is only read, by one SELECT (or DESCRIBE, SUMMARIZE, EXPLAIN) over"
                f" the views {_VIEWS}"
            )

    def _parse(self, query: str) -> list[Any]:
        try:
            return list(self.connection.extract_statements(query))
        except self._duckdb.Error as error:
            raise self.explained(error) from None

    def begin(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] | None) -> duckdb.DuckDBPyRelation:
        """Begin the time, and give the query, bound and not run yet."""
        if self._timeout is not None:
            timer = threading.Timer(self._timeout, _expire, (self.expired, self.connection))
            timer.daemon = True
            self._timers.append(timer)
            timer.start()
        given = {} if parameters is None else {"params": parameters}
        relation: duckdb.DuckDBPyRelation = self.call(functools.partial(self.connection.sql, query, **given))
        return relation

    def call(self, function: Any, *arguments: Any) -> Any:
        """Call DuckDB. What it raises comes as an error of otledger that says what to do."""
        try:
            if self.expired.is_set():
                raise self._duckdb.InterruptException("expired")
            return function(*arguments)
        except self._duckdb.Error as error:
            raise self.explained(error) from None
        except RuntimeError as error:
            # So DuckDB passes on what a scan raised.
            if self.lines.error is None:
                raise
            raise self.explained(error) from None

    def explained(self, error: Exception) -> Exception:
        """Give the error that tells a user what DuckDB's means."""
        duckdb = self._duckdb
        if self.expired.is_set():
            return QueryError(
                f"the query was not done after {self._timeout:g} s; ask for less, by `where time > …` say, or give it"
                " more time (--timeout)"
            )
        if self.lines.error is not None:
            return self.lines.error
        if isinstance(error, duckdb.OutOfMemoryException | duckdb.OperationalError) and "memory" in str(error).lower():
            return QueryError(
                f"the query needs more than its {self._memory >> 20} MB of memory; ask for less, or give it more"
                " (--memory)"
            )
        if isinstance(error, duckdb.PermissionException):
            return QueryError(
                f"SQL reads the ledger and nothing else, no file, network or extension ({_sentence(error)})"
            )
        return QueryError(f"the SQL is not right: {_sentence(error)}")

    def make_skeletons(self) -> None:
        """Have those made in the background that were missing."""
        if self.lines.missing:
            from otledger.query.compacting import compact_soon

            compact_soon(self._root, list(self.lines.missing))


def _expire(expired: threading.Event, connection: Any) -> None:
    expired.set()
    connection.interrupt()


def _close(connection: Any, spill: str, timers: list[threading.Timer]) -> None:
    for timer in timers:
        timer.cancel()
        # It holds the connection, and DuckDB complains on stderr about one that is there when the interpreter ends.
        if timer is not threading.current_thread():
            timer.join()
    connection.close()
    shutil.rmtree(spill, ignore_errors=True)


def _sentence(error: Exception) -> str:
    """Give the first sentence of what DuckDB says, without the name of its error and the drawing of the place."""
    text = re.split(r"\n\s*\n|\nLINE \d+:|\nCandidate|\n\t", str(error), maxsplit=1)[0]
    text = re.sub(r"^(?:\w+ )+Error: ", "", text)
    return " ".join(text.split()).rstrip(".")


class Result:
    """The rows of a query, once: as tuples by iterating, as Arrow, or as a polars data frame.

    Rows are made as they are asked for. Close it, or use it as `with`, where not all are fetched.
    """

    def __init__(self, session: _Session, query: str, parameters: Sequence[Any] | Mapping[str, Any] | None) -> None:
        self._session = session
        self._run = functools.partial(session.connection.execute, query, *([] if parameters is None else [parameters]))
        self._relation = session.begin(query, parameters)
        self.columns: tuple[str, ...] = tuple(self._relation.columns)
        """The names of the columns."""
        self.types: tuple[str, ...] = tuple(map(str, self._relation.types))
        """DuckDB's names of their types."""

    @property
    def faults(self) -> list[FormatError]:
        """The lines that are no records and were passed over, in what was read so far; at most a hundred."""
        return self._session.lines.faults.listed

    @property
    def fault_count(self) -> int:
        """How many such lines there are."""
        return self._session.lines.faults.count

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        self._session.call(self._run)
        while found := self._session.call(self._session.connection.fetchmany, FETCH):
            yield from found
        self.close()

    @property
    def schema(self) -> pa.Schema:
        """The columns as Arrow has them. JSON is text there."""
        return self._reader.schema

    @functools.cached_property
    def _reader(self) -> pa.RecordBatchReader:
        return self._session.call(self._relation.to_arrow_reader, BATCH)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Give the rows as record batches."""
        reader = self._reader
        while (batch := self._session.call(next, reader, None)) is not None:
            yield batch
        self.close()

    def to_arrow(self) -> pa.Table:
        """Give all rows as a pyarrow table."""
        table = self._session.call(self._reader.read_all)
        self.close()
        return table

    def to_polars(self) -> polars.DataFrame:
        """Give all rows as a polars data frame. Raises `ConfigurationError` where polars is not installed."""
        frame: polars.DataFrame = needed("polars", "polars").from_arrow(self.to_arrow())
        return frame

    def close(self) -> None:
        """End the query; what was not fetched is gone. Doing it twice does no harm."""
        if self._session.close.alive:
            self._session.close()
            self._session.make_skeletons()

    def __enter__(self) -> Result:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


__all__ = ["LEAST_MEMORY", "MEMORY", "TIMEOUT", "Result", "sql"]
