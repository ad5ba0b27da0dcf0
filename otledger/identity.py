"""Which machine this is: a readable name, a hash that binds the partition to the host, the boot, its processes.

The identity lives outside every ledger, so that a copied ledger does not carry it along.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import uuid
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
BOOT_ID_FILE = "/proc/sys/kernel/random/boot_id"


def default_machine() -> str:
    """Give the host's name, made a valid machine name (format, 1)."""
    return valid_machine(socket.gethostname().split(".")[0])


def valid_machine(name: str) -> str:
    """Give `name` with what a machine's name may not hold replaced, `machine` if nothing is left."""
    name = re.sub(r"[^a-z0-9._-]+", "-", name.lower())
    name = re.sub(r"\.{2,}", ".", name).lstrip("._-")[:63]
    return name or "machine"


@cache
def boot_id() -> str:
    """Give an id that changes with every boot of this host."""
    try:
        return Path(BOOT_ID_FILE).read_text().strip()
    except OSError:
        # Without /proc nothing in .lock may be believed by another process; see lock.py.
        return f"unknown-{uuid.uuid4().hex}"


def identity_file() -> Path:
    """Give the file outside the ledger in which this user's identity on this host is kept."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state) / "otledger" / "identity"


def default_keys() -> Path:
    """Give the folder of this user's keys, outside of every ledger's root. `OTLEDGER_KEYS` or `--keys` name another."""
    return identity_file().parent / "keys"


def keys_folder(given: Path | str | None = None) -> Path:
    """Give the folder of the keys: `given`, `OTLEDGER_KEYS`, or this user's own."""
    return Path(given or os.environ.get("OTLEDGER_KEYS") or default_keys()).expanduser().absolute()


@cache
def host_hash() -> str:
    """Give the hash that binds a partition to this host: 32 hex digits of a SHA-256.

    It covers the operating system's machine id, or the identity file's random id where there is none; it is
    stable for every user and process of the host, and tells nothing about it.
    """
    return hashlib.sha256(b"otledger host\n" + _machine_id().encode()).hexdigest()[:32]


def _machine_id() -> str:
    for path in MACHINE_ID_FILES:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if re.fullmatch(r"[0-9a-f]{32}", text):
            return text
    return _own_id()


def _own_id() -> str:
    path = identity_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    except OSError:
        # A host that has no machine id and no writable home: the name is all that is left.
        return socket.gethostname()
    with os.fdopen(fd, "w") as file:
        own = uuid.uuid4().hex
        file.write(own + "\n")
    return own


def process_state(process: Mapping[str, Any] | None, boot: str) -> str:
    """Tell what became of the process of an unfinished span: `running`, `died`, or `unknown`.

    `boot` is this host's boot id: only a process of this host can be asked after. Another boot is `unknown`
    too, for the record does not say whether it was of this host.
    """
    if not process or process.get("boot") != boot:
        return "unknown"
    try:
        with open(f"/proc/{int(process['pid'])}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except FileNotFoundError:
        return "died"
    except (OSError, KeyError, TypeError, ValueError):
        return "unknown"
    # A number that was given to another process since then, or a process that nobody has waited for yet.
    if int(fields[19]) != process.get("started") or fields[0] in (b"Z", b"X"):
        return "died"
    return "running"
