"""What a ledger can be told: one frozen dataclass, filled from arguments, the environment, defaults."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from otledger.errors import ConfigurationError

Durability = Literal["disk", "os"]
QueuePolicy = Literal["wait", "raise", "drop"]
StartupCheck = Literal["tail", "full"]

MACHINE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""What a machine may be called (format, 1); `..` is forbidden besides."""

DEFAULT_ROOT = "ledger"
_CHECKPOINTS = ("checkpoint_interval", "heartbeat_interval")
ENVIRONMENT_PREFIX = "OTLEDGER_"
LONGEST = 1_000_000
"""The longest interval, in seconds: what a thread can wait for has an end."""
GIB = 1 << 30
MIB = 1 << 20


def _own_keys() -> Path:
    from otledger.identity import default_keys

    return default_keys()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of a ledger.

    Durations are seconds, sizes are bytes. Every setting whose value is a word or a number can also be given
    as an environment variable, `OTLEDGER_` and its name in capitals (`OTLEDGER_FLUSH_INTERVAL=0.2`).
    """

    root: Path = Path(DEFAULT_ROOT)
    """The ledger's folder. `OTLEDGER_ROOT`."""
    machine: str = ""
    """The partition to append to; by default the host's name, made valid."""
    service: str = ""
    """Who emits; by default `OTEL_SERVICE_NAME`, then the program's name."""
    durability: Durability = "disk"
    """`disk`: acknowledged when fdatasync has returned. `os`: when the kernel has it; synced once a second."""
    flush_interval: float = 0.05
    """What is accepted is written at the latest after this time; at once where somebody waits."""
    sync_interval: float = 1.0
    """At durability `os`: how often a sync runs in the background."""
    queue_records: int = 50_000
    """How many records may be queued."""
    queue_bytes: int = 16 * MIB
    """How many bytes may be queued."""
    queue_policy: QueuePolicy = "wait"
    """What `emit` does when the queue is full: wait for `queue_timeout`, raise at once, or drop and count."""
    queue_timeout: float = 30.0
    """How long `emit` waits for a place in the queue before it raises `QueueFull`."""
    lock_timeout: float = 10.0
    """How long the lock may be held by another before whoever waits is told. It is never broken."""
    min_free: int = 64 * MIB
    """Below so much free space new events are refused and counted. 0 switches that off."""
    max_segment: int = GIB
    """The size at which the next segment is begun."""
    checkpoint_interval: float = 1.0
    """The least time between two checkpoint records."""
    heartbeat_interval: float = 600.0
    """How often a checkpoint is written while no records come, so that a cut tail shows. 0: never."""
    file_mode: int = 0o600
    """Permissions of files, whatever the umask; folders get the search bits besides."""
    check: StartupCheck | None = "tail"
    """The check at start: `tail` (since the last checkpoint), `full`, or None for what recovery needs."""
    strict: bool = False
    """Raise `LedgerDamaged` where the check at start finds damage, instead of logging it."""
    raise_errors: bool = False
    """Let `emit` raise the journal's error while writing fails. By default it goes on queueing."""
    forward: bool = True
    """Hand spans of the ledger that are sampled to the other processors of the OpenTelemetry SDK's provider, too."""
    keys: Path = field(default_factory=_own_keys)
    """The folder of the keys, outside the root; by default `$XDG_STATE_HOME/otledger/keys`. `OTLEDGER_KEYS`."""
    force: bool = False
    """Use the root although it is on a network file system or others may write to it."""
    processors: tuple[Callable[..., Any], ...] = ()
    """Callables over the draft of an event, in this order."""
    schemas: Mapping[str, Any] = field(default_factory=dict)
    """For a type: a JSON Schema (a mapping) or a pydantic model. Advisory."""

    @property
    def folder_mode(self) -> int:
        return self.file_mode | (self.file_mode & 0o444) >> 2

    @classmethod
    def resolve(cls, environ: Mapping[str, str] | None = None, **given: Any) -> Config:
        """Give the settings: `given` where it is not None, then the environment, then the defaults.

        `check` is the exception: None is a value of it, so it counts where it is given.
        Raises `ConfigurationError` for an unknown setting or a value that is not allowed.
        """
        environ = os.environ if environ is None else environ
        known = {f.name: f for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in known:
                raise ConfigurationError(f"there is no setting {name!r}; there are: {', '.join(known)}")
            if value is not None or name == "check":
                values[name] = value
        for name in known.keys() - values.keys() - {"processors", "schemas"}:
            text = environ.get(ENVIRONMENT_PREFIX + name.upper())
            if text:
                values[name] = _from_text(name, text)
        values["root"] = Path(values.get("root", DEFAULT_ROOT)).expanduser()
        try:
            values["processors"] = tuple(values.get("processors", ()))
        except TypeError:
            raise ConfigurationError("processors must be a list of callables, not one of them") from None
        values["service"] = values.get("service") or environ.get("OTEL_SERVICE_NAME") or program_name()
        if not values.get("machine"):
            from otledger.identity import default_machine

            values["machine"] = default_machine()
        if "keys" in values:
            values["keys"] = Path(values["keys"]).expanduser()
        config = cls(**values)
        config._check()
        return config

    def _check(self) -> None:
        check_machine(self.machine)
        _one_of("durability", self.durability, get_args(Durability))
        _one_of("queue_policy", self.queue_policy, get_args(QueuePolicy))
        _one_of("check", self.check, (*get_args(StartupCheck), None))
        for name in ("flush_interval", "sync_interval", "queue_timeout", "lock_timeout", *_CHECKPOINTS):
            _number(name, getattr(self, name), (int, float), least=0)
            if not getattr(self, name) <= LONGEST:
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}; it must be at most {LONGEST:,} seconds")
        for name, least in (("queue_records", 1), ("queue_bytes", 1), ("min_free", 0), ("max_segment", 1)):
            _number(name, getattr(self, name), (int,), least=least)
        if not 0o600 <= self.file_mode <= 0o666 or self.file_mode & 0o113:
            raise ConfigurationError(
                f"file_mode is {self.file_mode:#o}; allowed are 0o600, 0o640, 0o644, 0o660, 0o664:"
                " the owner reads and writes, others never write"
            )
        for processor in self.processors:
            if not callable(processor):
                raise ConfigurationError(f"a processor must be callable, and {processor!r} is not")


def check_machine(name: object) -> str:
    """Give the name back if a machine may be called so (format, 1); raise `ConfigurationError` if not."""
    if not isinstance(name, str) or not MACHINE.fullmatch(name) or ".." in name:
        raise ConfigurationError(
            f"machine {str(name)[:100]!r} is no valid name: 1 to 63 of a-z 0-9 . _ -, the first a letter or a"
            " digit, and no '..'; give another by machine=, --machine or OTLEDGER_MACHINE"
        )
    return name


def program_name() -> str:
    """Give a name for the running program: its script, its module's folder, or `python`."""
    path = Path(sys.argv[0]) if sys.argv and sys.argv[0] not in ("", "-c", "-m") else None
    if path is None:
        return "python"
    return path.parent.name if path.stem == "__main__" else path.stem or "python"


def _from_text(name: str, text: str) -> Any:
    kind = _KINDS[name]
    try:
        if kind is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        if name == "check" and text.lower() == "none":
            return None
        return int(text, 8) if name == "file_mode" else kind(text)
    except (ValueError, KeyError):
        variable = ENVIRONMENT_PREFIX + name.upper()
        raise ConfigurationError(f"{variable}={text!r} cannot be read as {kind.__name__}") from None


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}")


def _number(name: str, value: Any, kinds: tuple[type, ...], *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, kinds) or not value >= least:  # type: ignore[operator]
        raise ConfigurationError(f"{name} is {value!r}; it must be a number of at least {least}")


_KINDS: dict[str, type] = {
    **dict.fromkeys(("root", "keys", "machine", "service", "durability", "queue_policy", "check"), str),
    **dict.fromkeys(("flush_interval", "sync_interval", "queue_timeout", "lock_timeout", *_CHECKPOINTS), float),
    **dict.fromkeys(("queue_records", "queue_bytes", "min_free", "max_segment", "file_mode"), int),
    **dict.fromkeys(("strict", "raise_errors", "forward", "force"), bool),
}
