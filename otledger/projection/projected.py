"""The database of a projection: its position, its transactions, and how a fresh one takes its place."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from otledger.errors import ConfigurationError, ProjectionError

Setup = str | Callable[[sqlite3.Connection], object]
"""SQL statements, or a function that executes them."""

TIMEOUT = 30.0
"""Seconds for which another connection may hold the database."""

_TABLES = (
    "CREATE TABLE IF NOT EXISTS otledger_projection (name TEXT PRIMARY KEY, version TEXT, records TEXT) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS otledger_position (projection TEXT, machine TEXT, seq INTEGER, checksum TEXT,"
    " segment TEXT, start INTEGER, PRIMARY KEY (projection, machine)) WITHOUT ROWID",
)

_TRANSACTION = ("BEGIN IMMEDIATE", "COMMIT", "ROLLBACK")
_SAVEPOINT = ("SAVEPOINT otledger", "RELEASE otledger", "ROLLBACK TO otledger")

_OF_THE_DISK = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space (df -h)",
    sqlite3.SQLITE_IOERR: "reading or writing failed; see the disk and its space (df -h, dmesg)",
    sqlite3.SQLITE_BUSY: f"another connection held the database for more than {TIMEOUT:.0f} seconds; let it commit",
    sqlite3.SQLITE_LOCKED: "another statement holds a table of the database; let it end",
    sqlite3.SQLITE_READONLY: "the database cannot be written to; see its owner and permissions (ls -l)",
    sqlite3.SQLITE_CANTOPEN: "the database cannot be opened; see the folder, its owner and permissions (ls -ld)",
    sqlite3.SQLITE_CORRUPT: "the database is damaged; remove it, and it is built anew",
    sqlite3.SQLITE_NOTADB: "this is no SQLite database; give another path, or remove it",
}


@dataclass(frozen=True, slots=True)
class Position:
    """The last record of a machine that a database holds the effect of."""

    machine: str
    seq: int
    checksum: str
    """As the record has it; of an evledger record, which has none, `sha256:` and the SHA-256 of its line."""
    segment: str
    start: int
    """Where its line begins in the segment: a hint for finding it again."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a database says it was made of."""

    version: str
    records: str
    """Which records are projected."""


class Store:
    """A projection's part of a SQLite database. One thread at a time may use it."""

    def __init__(self, name: str, connection: sqlite3.Connection, path: Path | None) -> None:
        self.connection = connection
        self.path = path
        self._name = name
        self._held = False

    @property
    def shown(self) -> str:
        """The database, for messages."""
        return str(self.path) if self.path is not None else "the database of the given connection"

    def prepare(self, identity: Identity, setup: Setup | None) -> Identity | None:
        """Give what the database was made of. Where it is new, make its tables and give None."""
        known = self._identity()
        if known is None:
            with self.transaction():
                # Another process may have been quicker.
                known = self._identity()
                if known is None:
                    for statement in _TABLES:
                        self.connection.execute(statement)
                    self._make(identity, setup)
        return known

    def _identity(self) -> Identity | None:
        if self._name not in self._names():
            return None
        row = self.connection.execute(
            "SELECT version, records FROM otledger_projection WHERE name = ?", (self._name,)
        ).fetchone()
        return Identity(*row)

    def own(self) -> None:
        """Make sure that the file is this projection's, or empty, and set it up. Raises `ProjectionError`."""
        names = self._names()
        if self._name not in names and (names or self._has_tables()):
            whose = f"of the projection {', '.join(map(repr, names))}" if names else "of something else"
            raise ProjectionError(f"{self.path} is the database {whose}; give {self._name!r} another", path=self.path)
        # Readers go on while it is written to. What a power failure takes is taken from the ledger again.
        _patiently(lambda: self.connection.execute("PRAGMA journal_mode = WAL"))
        self.connection.execute("PRAGMA synchronous = NORMAL")

    def _make(self, identity: Identity, setup: Setup | None) -> None:
        self.connection.execute(
            "INSERT OR REPLACE INTO otledger_projection VALUES (?, ?, ?)",
            (self._name, identity.version, identity.records),
        )
        with self.guarded():
            _run(self.connection, setup)

    def _names(self) -> list[str]:
        exists = self.connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'otledger_projection'").fetchone()
        if exists is None:
            return []
        return [name for (name,) in self.connection.execute("SELECT name FROM otledger_projection")]

    def _has_tables(self) -> bool:
        return self.connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is not None

    # Positions

    def positions(self) -> dict[str, Position]:
        """Give how far the database has come with each machine."""
        rows = self.connection.execute(
            "SELECT machine, seq, checksum, segment, start FROM otledger_position WHERE projection = ? ORDER BY 1",
            (self._name,),
        )
        return {row[0]: Position(*row) for row in rows}

    def move(self, position: Position) -> None:
        """Note how far the database has come, within a transaction."""
        self.connection.execute(
            "INSERT OR REPLACE INTO otledger_position VALUES (?, ?, ?, ?, ?, ?)",
            (self._name, position.machine, position.seq, position.checksum, position.segment, position.start),
        )

    # Transactions

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is done inside, or nothing of it. Within `held` it is a part of that transaction."""
        if self.connection.in_transaction and not self._held:
            raise ProjectionError(f"{self.shown} has a transaction open; commit it before the projection goes on")
        begin, commit, undo = _SAVEPOINT if self._held else _TRANSACTION
        self.connection.execute(begin)
        try:
            yield
            self.connection.execute(commit)
        except BaseException:
            # SQLite has ended it itself where the disk was full.
            if self.connection.in_transaction:
                self.connection.execute(undo)
            raise

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make one transaction of all that follow inside."""
        with self.transaction():
            self._held = True
            try:
                yield
            finally:
                self._held = False

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Refuse a COMMIT or ROLLBACK inside: it would part the change from the position."""
        self.connection.set_authorizer(_no_transactions)
        try:
            yield
        finally:
            self.connection.set_authorizer(None)

    # Rebuilding

    def reset(self, identity: Identity, reset: Setup | None, setup: Setup | None) -> None:
        """Empty a caller's tables and forget the positions, within a transaction."""
        with self.guarded():
            _run(self.connection, reset)
        self.connection.execute("DELETE FROM otledger_position WHERE projection = ?", (self._name,))
        self._make(identity, setup)

    @contextmanager
    def fresh(self) -> Iterator[Store]:
        """Give an empty database beside this one; what is in it on leaving replaces what is in this one at once.

        Whoever reads this one sees all of the old, then all of the new. An error leaves the old.
        """
        assert self.path is not None
        part = self.path.with_name(f"{self.path.name}.rebuild")
        part.unlink(missing_ok=True)
        connection = _connect(part)
        try:
            # It is thrown away after a crash, so nothing in it has to reach the disk.
            connection.execute("PRAGMA journal_mode = MEMORY")
            connection.execute("PRAGMA synchronous = OFF")
            (size,) = self.connection.execute("PRAGMA page_size").fetchone()
            connection.execute(f"PRAGMA page_size = {size:d}")
            yield Store(self._name, connection, part)
            self._take(connection)
        finally:
            connection.close()
            part.unlink(missing_ok=True)

    def _take(self, connection: sqlite3.Connection) -> None:
        deadline = time.monotonic() + TIMEOUT

        def look(status: int, _remaining: int, _total: int) -> None:
            if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and time.monotonic() > deadline:
                raise ProjectionError(f"{self.shown}: {_OF_THE_DISK[sqlite3.SQLITE_BUSY]}", path=self.path)

        # SQLite writes all pages in one transaction: a copy that is cut short changes nothing.
        connection.backup(self.connection, progress=look)

    def close(self) -> None:
        """Close the database."""
        self.connection.close()


def open_store(name: str, into: Path | sqlite3.Connection) -> Store:
    """Open the database at a path, made if need be, or take a caller's connection.

    Raises `ConfigurationError` or `ProjectionError` where it cannot be used.
    """
    if isinstance(into, sqlite3.Connection):
        if getattr(into, "autocommit", None) is False:
            raise ConfigurationError(
                "the given connection has autocommit=False, so that it is always in a transaction;"
                " leave autocommit out, or give a path"
            )
        return Store(name, into, None)
    try:
        # Not made by SQLite, which would give it to everybody.
        os.close(os.open(into, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        why = f"{into}: cannot be opened: {error.strerror}; see the folder, its owner and permissions (ls -ld)"
        raise ProjectionError(why, path=into) from None
    store = Store(name, _connect(into), into)
    try:
        store.own()
    except BaseException as error:
        store.close()
        if isinstance(error, sqlite3.Error):
            raise ProjectionError(f"{into}: {of_the_disk(error) or error}", path=into) from error
        raise
    return store


def of_the_disk(error: BaseException) -> str | None:
    """Say what is wrong where the database, and not what was done with it, is the reason; else None."""
    code = getattr(error, "sqlite_errorcode", None)
    return _OF_THE_DISK.get(code & 0xFF) if isinstance(error, sqlite3.Error) and code is not None else None


def was_commit(error: BaseException) -> bool:
    """Tell whether a COMMIT or ROLLBACK was refused."""
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_AUTH


def _connect(path: Path) -> sqlite3.Connection:
    # One thread at a time is what the projection sees to.
    return sqlite3.connect(path, timeout=TIMEOUT, isolation_level=None, check_same_thread=False)


def _patiently(call: Callable[[], object]) -> None:
    """Call until the database is not locked: for a change of its mode SQLite itself waits for nobody."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            call()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _no_transactions(action: int, *_: object) -> int:
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_TRANSACTION else sqlite3.SQLITE_OK


def _run(connection: sqlite3.Connection, setup: Setup | None) -> None:
    if setup is None:
        return
    if not isinstance(setup, str):
        setup(connection)
        return
    # Not `executescript`, which commits first.
    statement = ""
    for part in setup.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip("; \t\n\r"):
                connection.execute(statement)
            statement = ""
    if statement.strip("; \t\n\r"):
        connection.execute(statement)
