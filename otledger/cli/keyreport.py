"""What the commands about subjects' keys print."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import orjson

from otledger.cli.output import Paint, counted, note, out, out_json, safe, safe_json, table
from otledger.keyring import KeyFile
from otledger.shredding import Shredding


def say_shredding(shredding: Shredding, *, done: bool, json: bool) -> None:
    """Print what a shredding destroyed, or would."""
    for key in shredding.elsewhere:
        note(
            f"left: key {key.kid[:12]} of the same subject, for machine {key.machine} of {key.root}; see --machine and"
            " --root"
        )
    if json:
        out_json({"done": done and bool(shredding.kids), **shredding.to_dict()})
        return
    subject = safe(shredding.subject)
    if not shredding.kids:
        out(f"{subject} has no key for machine {shredding.machine} of this ledger: nothing to shred")
        return
    keys = counted(len(shredding.kids), "key")
    if done:
        told = "recorded before" if shredding.seq is None else f"recorded as seq {shredding.seq}"
        out(f"{keys} of {subject} destroyed, {told}; backups of the keys' folder still have it")
    else:
        out(f"{keys} of {subject} would be destroyed; do it with --yes:")
    for kid in shredding.kids:
        out(f"  {kid}")


def say_keys(keys: Sequence[KeyFile], *, everywhere: bool, json: bool) -> None:
    """Print keys, one a line, without what they are for."""
    if json:
        for key in keys:
            members = {
                "subject": key.subject,
                "kid": key.kid,
                "alg": key.alg,
                "created": key.created,
                "machine": key.machine,
                "root": key.root,
            }
            text = orjson.dumps(members).decode()
            out(safe_json(text) if sys.stdout.isatty() else text)
        return
    if not keys:
        out("no subject has a key here")
        return
    head = ["subject", "created", "cipher", "kid", *(["machine", "root"] if everywhere else [])]
    rows = [
        [key.subject, key.created, key.alg, key.kid, *([key.machine, key.root] if everywhere else [])] for key in keys
    ]
    for line in table(head, rows, paint=Paint(sys.stdout)):
        out(line)
