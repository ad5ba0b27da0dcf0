"""What the ledger holds: the events of a partition, otledger's own records and telemetry left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from otledger.errors import FormatError
from otledger.hooks import OnFault
from otledger.predecessors.evledger import SUFFIX
from otledger.reader import Reader
from otledger.record import RESERVED_TYPES, Record
from otledger.segment import list_machines


def partitions(root: Path) -> list[str]:
    """Give the names of the partitions, those of imports first. Raises `RootError` where there is no ledger."""
    return sorted(list_machines(root), key=lambda machine: (not machine.endswith(SUFFIX), machine))


def import_partitions(root: Path) -> list[str]:
    """Give the names of the partitions that imports wrote. Raises `RootError` where there is no ledger."""
    return [machine for machine in partitions(root) if machine.endswith(SUFFIX)]


def events(root: Path, machine: str, on_fault: OnFault) -> Iterator[Record]:
    """Give the events of a partition by `seq`. Lines that are no records go to `on_fault`."""
    for record in Reader(root).records(machines=[machine], on_fault=on_fault):
        if not record.type.startswith(RESERVED_TYPES):
            yield record


def imported(root: Path, machine: str) -> Iterator[Record]:
    """Give the events of a partition that an import wrote.

    What cannot be read, or was written by somebody else, is passed over: an import may add it again.
    """
    for record in events(root, machine, _pass_over):
        if record.checksum:
            yield record


def _pass_over(_: FormatError) -> None:
    pass
