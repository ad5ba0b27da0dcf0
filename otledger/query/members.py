"""Places in a record that rules name: `subject`, an extension, or `data` and names below it."""

from __future__ import annotations

from typing import Any

from otledger.errors import ConfigurationError
from otledger.record import Record


def check_place(place: str) -> tuple[str, ...]:
    """Give the path of a place: `subject`, an extension's name, or `data` and names below it, by dots."""
    path = tuple(place.split("."))
    if not all(path) or (path[0] != "data" and len(path) > 1):
        raise ConfigurationError(f"{place!r} is no place in a record: give data.NAME, subject, or an extension's name")
    return path


def value_at(record: Record, path: tuple[str, ...]) -> Any:
    """Give what stands in a record under a path, None where there is nothing."""
    name = path[0]
    if name == "data":
        value = record.data
        for part in path[1:]:
            value = value.get(part) if isinstance(value, dict) else None
        return value
    if name == "ipc_hash":
        return record.ipc_hash
    return record.to_dict().get(name)
