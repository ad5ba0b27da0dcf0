"""A projection: a SQLite database that is kept equal to what the ledger holds.

def apply(connection, record):
    if record.type == "order.paid":
        connection.execute("INSERT INTO paid VALUES (?, ?)", (record.data["id"], record.time))

with otledger.Projection("paid", apply, "paid.db", root="ledger", setup="CREATE TABLE paid (id, time)") as paid:
    paid.catch_up_sync()
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Never, TypeVar

from otledger.config import DEFAULT_ROOT, check_machine
from otledger.errors import ProjectionError
from otledger.filter import Filter
from otledger.hooks import OnFault
from otledger.projection.applying import Apply, Count, Elsewhere, Plan, Run, Stale, batches, standing
from otledger.projection.places import open_partition
from otledger.projection.projected import Identity, Position, Setup, Store, of_the_disk, open_store
from otledger.segment import list_machines

if TYPE_CHECKING:
    import sqlite3

log = logging.getLogger("otledger")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """What a catch-up did."""

    read: int
    """Records that were read."""
    applied: int
    """Those of them that were handed to `apply`."""
    rebuilt: str | None
    """Why the database was built anew, or None if it went on from its position, or was new."""
    positions: dict[str, Position] = field(default_factory=dict)
    """How far the database has come with each machine."""


class Projection:
    """Keeps a SQLite database equal to the ledger, each record applied exactly once.

    `apply(connection, record)` makes the changes for one record. It must not commit. `into` is the path of a
    database that is this projection's alone, or a `sqlite3.Connection`; of a connection's database only what `setup`
    and `reset` name is touched. `setup`, SQL or a function of the connection, makes the tables in an empty
    database; `reset`, for a connection only, takes them away or empties them before `setup` runs again.
    `version` is the caller's: where it changes, the database is rebuilt. `filter` and `machines` choose records.
    A line that is no record stops the projection, or is handed to `on_fault` and passed over.

    A machine's records come in their order; between machines there is none.
    """

    def __init__(
        self,
        name: str,
        apply: Apply,
        into: str | Path | sqlite3.Connection,
        *,
        root: str | Path | None = None,
        version: int | str = 1,
        setup: Setup | None = None,
        reset: Setup | None = None,
        filter: Filter | None = None,
        machines: Sequence[str] | None = None,
        on_fault: OnFault | None = None,
    ) -> None:
        self.name = name
        self.root = Path(root or os.environ.get("OTLEDGER_ROOT") or DEFAULT_ROOT).expanduser()
        self._plan = Plan(name, apply, filter, on_fault)
        self._into = Path(into) if isinstance(into, str | os.PathLike) else into
        self._identity = Identity(str(version), repr(filter))
        self._setup, self._reset = setup, reset
        self._machines = None if machines is None else [check_machine(machine) for machine in machines]
        self._store: Store | None = None
        # Held while the database is used: a catch-up may be called from any thread.
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: ThreadPoolExecutor | None = None

    def __enter__(self) -> Projection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Projection:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def catch_up_sync(self) -> CaughtUp:
        """Apply what the ledger holds beyond the database's position; durable as SQLite has it on return.

        Where the position is not in the ledger, the database is rebuilt from the first record on; until that is
        done, others see the old one. Raises `ProjectionError` where `apply` raises or the database cannot be used,
        `FormatError` for a line that is no record; the database is then at the record before.
        """
        with self._lock:
            if self._store is None:
                self._store = open_store(self.name, self._into)
            with _explained(self.name, self._store):
                return self._catch_up(self._store)

    async def catch_up(self) -> CaughtUp:
        """Do as `catch_up_sync`, in a thread of its own. If it is cancelled it stops after the batch at hand."""
        return await self._in_thread(self.catch_up_sync)

    async def follow(self, on_step: Callable[[CaughtUp], object] | None = None) -> Never:
        """Catch up, and again whenever the ledger grows, until it is cancelled.

        `on_step` is told of the first catch-up, and of each that did something. Raises as `catch_up_sync`.
        """
        from otledger.follow import Watch

        watch = Watch()
        watched: set[Path] = set()
        first = True
        try:
            while True:
                for path in {self.root, *await self._in_thread(self._folders)} - watched:
                    watch.add(path)
                    watched.add(path)
                step = await self.catch_up()
                if on_step is not None and (first or step.read or step.rebuilt):
                    on_step(step)
                first = False
                if not step.read:
                    await watch.wait(_nothing)
        finally:
            await watch.aclose()

    def close(self) -> None:
        """Close the database, unless it is the caller's connection. A catch-up in another thread ends first."""
        self._stop.set()
        with self._lock:
            if self._store is not None and self._store.path is not None:
                self._store.close()
            self._store = None
        self._stop.clear()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    async def aclose(self) -> None:
        """Do as `close`, without holding up the event loop."""
        await asyncio.to_thread(self.close)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, f"otledger-projection-{self.name}")
        future = asyncio.get_running_loop().run_in_executor(self._thread, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # The database is not left while a thread is at work in it.
            self._stop.set()
            await asyncio.wait([future])
            self._stop.clear()
            if not future.cancelled():
                future.exception()
            raise

    def _folders(self) -> list[Path]:
        return [self.root / machine for machine in self._wanted_machines()]

    def _wanted_machines(self) -> list[str]:
        there = list_machines(self.root)
        return there if self._machines is None else [machine for machine in self._machines if machine in there]

    # Catching up

    def _catch_up(self, store: Store) -> CaughtUp:
        count = Count()
        why = None
        try:
            known = store.prepare(self._identity, self._setup)
            if known is not None:
                self._check(known)
            self._advance(store, count)
        except Stale as stale:
            why, count = str(stale), Count()
            self._rebuild(store, why, count)
        return CaughtUp(count.read, count.applied, why, store.positions())

    def _check(self, known: Identity) -> None:
        if known.version != self._identity.version:
            why = f"the database is of version {known.version}, and the projection is of version"
            raise Stale(f"{why} {self._identity.version}")
        if known.records != self._identity.records:
            raise Stale("the database was made with another filter")

    def _rebuild(self, store: Store, why: str, count: Count) -> None:
        log.warning("projection %r: %s; it is rebuilt from the ledger's beginning", self.name, why)
        try:
            if store.path is not None:
                with store.fresh() as fresh:
                    fresh.prepare(self._identity, self._setup)
                    self._advance(fresh, count, rebuilding=True)
                return
            if self._reset is None:
                raise ProjectionError(
                    f"projection {self.name!r} must be rebuilt ({why}), and its tables are in the caller's database:"
                    " give reset= to say how they are emptied, or a path instead of a connection"
                )
            with store.held():
                store.reset(self._identity, self._reset, self._setup)
                self._advance(store, count, rebuilding=True)
        except Stale as stale:
            raise ProjectionError(f"projection {self.name!r}: {stale}, during a rebuild; catch up again") from None

    def _advance(self, store: Store, count: Count, *, rebuilding: bool = False) -> None:
        """Apply what is new. Raises `Stale` where the ledger is another than the database's."""
        positions = store.positions()
        machines = self._wanted_machines()
        for machine in positions.keys() - set(machines):
            raise Stale(f"the database holds records of machine {machine}, which is not there or not wanted any more")
        for machine in machines:
            with open_partition(self.root, machine) as partition:
                if partition is None:
                    continue
                position = positions.get(machine)
                place = standing(partition, position)
                run = Run(self._plan, store, partition, position, place, count, rebuilding=rebuilding)
                for batch in batches(partition.stretches(place)):
                    if self._stop.is_set():
                        raise ProjectionError(f"projection {self.name!r} was stopped")
                    try:
                        run.take(batch)
                    except Elsewhere:
                        # What is left is for the next catch-up.
                        return


@contextmanager
def _explained(name: str, store: Store) -> Iterator[None]:
    """Say of the database's own errors what to do."""
    import sqlite3

    try:
        yield
    except sqlite3.Error as error:
        why = of_the_disk(error) or f"{type(error).__name__}: {error}"
        message = f"projection {name!r}: {store.shown}: {why}; it is as it was at its last position"
        raise ProjectionError(message, path=store.path) from error


def _nothing() -> None:
    """What there is to look at is looked at in the database's own thread."""
