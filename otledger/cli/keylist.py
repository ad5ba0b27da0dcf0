"""What the commands about signing keys print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from otledger.cli.output import Paint, note, out, out_json, table
from otledger.keymaking import ChainKeys
from otledger.record import format_time


def say_made(made: ChainKeys, folder: Path, *, json: bool) -> None:
    """Print the public key that signs now; where the private one lies is said on stderr."""
    if json:
        out_json(to_dict(made))
        return
    out(str(made.verifiers[-1]))
    note(f"this is the public key of {made.machine}: keep it where nobody of this host can change it; the private one")
    note(f"is in {folder / made.ledger}, 0600; check with: otledger verify --key '{made.verifiers[0]}'")


def say_list(found: Sequence[ChainKeys], *, json: bool) -> None:
    """Print the chains with their keys."""
    if json:
        out_json([to_dict(one) for one in found])
        return
    head = ["machine", "chain", "key", "keys", "records signed", "at"]
    for line in table(head, [_row(one) for one in found], right=(3, 4), paint=Paint(sys.stdout)):
        out(line)


def to_dict(one: ChainKeys) -> dict[str, Any]:
    """Give a chain's keys as plain JSON values."""
    signed = one.signed
    return {
        "machine": one.machine,
        "ledger": one.ledger,
        "key": str(one.verifiers[-1]) if one.verifiers else None,
        "key_ids": [key.id.hex() for key in one.verifiers],
        "epoch": one.epoch or None,
        "signed_size": signed.size if signed is not None else None,
        "signed_at": format_time(signed.time) if signed is not None else None,
    }


def _row(one: ChainKeys) -> list[str]:
    signed = one.signed
    return [
        one.machine,
        one.ledger,
        one.verifiers[-1].id.hex() if one.verifiers else "none",
        str(len(one.verifiers)),
        f"{signed.size:,}" if signed is not None else "",
        format_time(signed.time)[:19] + "Z" if signed is not None else "",
    ]
