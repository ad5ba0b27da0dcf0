"""Whether a ledger can be written here: each look gives `ok`, `warn` or `bad`, and what to do. Changes nothing."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import pwd
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from otledger import clock
from otledger.cli.output import Paint, counted, out, safe, size_text
from otledger.config import ENVIRONMENT_PREFIX, Config
from otledger.errors import ConfigurationError, LedgerError
from otledger.folder import check_root, file_system, is_network
from otledger.identity import MACHINE_ID_FILES, host_hash, identity_file
from otledger.lock import WIDTH, PartitionLock, decode_state
from otledger.record import format_time, now_ns
from otledger.segment import LOCK_FILE, QUARANTINE, list_machines, list_segments, open_folder, read_chain

Level = Literal["ok", "warn", "bad"]

LOCK_PATIENCE = 1.0
"""Seconds after which a lock that stays taken is worth a word: a batch holds it for milliseconds."""
AHEAD = 60_000_000_000
"""Nanoseconds that a record's time may lie ahead of the clock."""
OTHER_VARIABLES = {"OTLEDGER_TRACEBACK"}


@dataclass(frozen=True, slots=True)
class Check:
    """What a look found. `remedy` says what to do, empty where nothing needs to be done."""

    level: Level
    subject: str
    finding: str
    remedy: str = ""


def examine(root: Path, machine: str | None) -> list[Check]:
    """Look at everything that a writer needs. `machine` is the partition that would be written."""
    try:
        config = Config.resolve(root=root, machine=machine)
    except ConfigurationError as error:
        return [Check("bad", "settings", str(error), "correct the variable or the option that it names")]
    checks = [*_settings(), *_identity(config), *_folder(config), *_file_system(config), *_space(config), *_clock()]
    if root.is_dir():
        for name in _machines(root):
            checks += _partition(config, name)
    return checks


def _settings() -> Iterator[Check]:
    known = {ENVIRONMENT_PREFIX + field.name.upper() for field in dataclasses.fields(Config)} | OTHER_VARIABLES
    given = sorted(name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX))
    for name in given:
        if name not in known:
            yield Check("warn", "settings", f"{name} is set, and there is no such setting", "correct or unset it")
    used = [f"{name}={os.environ[name]}" for name in given if name in known]
    yield Check("ok", "settings", ", ".join(used) or "no OTLEDGER_ variable is set: the defaults hold")


# Identity


def _identity(config: Config) -> Iterator[Check]:
    yield Check("ok", "identity", f"machine {config.machine}, host {host_hash()}")
    source = next((path for path in MACHINE_ID_FILES if Path(path).exists()), None)
    if source is not None:
        yield Check("ok", "identity", f"the host is known by {source}")
    elif identity_file().exists():
        yield Check("ok", "identity", f"the host is known by {identity_file()}")
    else:
        remedy = f"make {identity_file().parent} writable, or set XDG_STATE_HOME to a folder that stays"
        yield Check("warn", "identity", "no machine id and no identity file: only the host's name is left", remedy)


# The folder


def _folder(config: Config) -> Iterator[Check]:
    root = config.root
    if not os.path.lexists(root):
        yield _not_there_yet(root)
        return
    try:
        check_root(root, force=config.force)
    except LedgerError as error:
        yield Check("bad", "folder", str(error), "do what it says, or give another --root")
        return
    info = root.stat()
    mode = stat.S_IMODE(info.st_mode)
    finding = f"{root} is {mode:04o} and belongs to {_user(info.st_uid)}"
    if info.st_uid != os.geteuid():
        yield Check("warn", "folder", finding, f"it is not yours: let the owner write, or chown it to {_user()}")
    elif mode & 0o022:
        yield Check("warn", "folder", f"{finding}; others may replace what is inside", f"chmod go-w {root}")
    else:
        yield Check("ok", "folder", finding)


def _not_there_yet(root: Path) -> Check:
    above = next(folder for folder in root.absolute().parents if folder.exists())
    if os.access(above, os.W_OK | os.X_OK):
        return Check("ok", "folder", f"{root} is not there yet; the first event makes it")
    return Check(
        "bad", "folder", f"{root} is not there, and {above} is not writable", f"let {_user()} write to {above}"
    )


def _user(uid: int | None = None) -> str:
    uid = os.geteuid() if uid is None else uid
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"user {uid}"


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _file_system(config: Config) -> Iterator[Check]:
    kind = file_system(_existing(config.root)) or "unknown"
    if not is_network(kind):
        yield Check("ok", "file system", kind)
    elif config.force:
        yield Check("warn", "file system", f"{kind}: locks and syncs cannot be relied on, and force is set", "")
    else:
        yield Check("bad", "file system", f"{kind}: refused, locks and syncs cannot be relied on", "use a local disk")


def _space(config: Config) -> Iterator[Check]:
    info = os.statvfs(_existing(config.root))
    free = info.f_bavail * info.f_frsize
    finding = f"{size_text(free)} free; below {size_text(config.min_free)} new events are refused"
    if free < config.min_free:
        yield Check("bad", "space", finding, "free some space, or lower OTLEDGER_MIN_FREE")
    elif free < 10 * config.min_free:
        yield Check("warn", "space", finding, "free some space soon")
    elif info.f_files and info.f_favail < 100:
        yield Check("warn", "space", f"only {info.f_favail} files can be made", "remove files that nobody needs")
    else:
        yield Check("ok", "space", finding)


def _clock() -> Iterator[Check]:
    now = format_time(now_ns())[:19] + "Z"
    if clock.synchronised():
        yield Check("ok", "clock", f"{now}, kept in time")
    else:
        remedy = "run an NTP client (timedatectl set-ntp true); times in the records are only as right as this clock"
        yield Check("warn", "clock", f"{now}, and the kernel says that nobody keeps it in time", remedy)


# Partitions


def _machines(root: Path) -> list[str]:
    try:
        return list_machines(root)
    except (LedgerError, OSError):
        # Why it cannot be listed was said when the folder was looked at.
        return []


def _partition(config: Config, name: str) -> Iterator[Check]:
    path = config.root / name
    try:
        folder = open_folder(path)
    except (LedgerError, OSError) as error:
        yield Check("bad", name, str(error), "see its owner and permissions")
        return
    try:
        yield from _modes(folder, path)
        yield _lock(folder, path, config)
        yield from _owner(folder, path, config)
        yield from _quarantine(path)
    except (LedgerError, OSError) as error:
        yield Check("bad", name, str(error), "see: otledger verify")
    finally:
        os.close(folder)


def _modes(folder: int, path: Path) -> Iterator[Check]:
    names = [str(name) for name in list_segments(folder)]
    names += [LOCK_FILE] if LOCK_FILE in os.listdir(folder) else []
    bad = False
    for name in names:
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        where = path / name
        if not stat.S_ISREG(info.st_mode):
            yield Check("bad", path.name, f"{where} is no regular file", "move it out of the ledger")
        elif info.st_mode & stat.S_IWOTH:
            yield Check("bad", path.name, f"everybody may write to {where}", f"chmod o-w {where}")
        elif not os.access(name, os.R_OK | os.W_OK, dir_fd=folder):
            yield Check("bad", path.name, f"{where} cannot be written by {_user()}", f"chown it to {_user()}")
        else:
            continue
        bad = True
    if not bad:
        yield Check("ok", path.name, f"{counted(len(names), 'file')} that only their owner may change")


def _lock(folder: int, path: Path, config: Config) -> Check:
    lock = PartitionLock(folder, path, config.file_mode)
    try:
        fd = os.open(LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        return Check("ok", path.name, "nobody has taken the lock here yet")
    try:
        if not _is_free(fd):
            holder = lock.holder()
            who = f"process {holder} ({_command(holder)})" if holder else "another process"
            finding = f"the lock is held by {who} for more than {LOCK_PATIENCE:.0f} s"
            return Check("warn", path.name, finding, "see what that process does; the lock is never broken")
        state = decode_state(os.pread(fd, WIDTH, 0))
    finally:
        os.close(fd)
    if state is not None and state.state != "idle":
        finding = f"the lock is free; its last holder, process {state.pid}, left the state {state.state!r}"
        return Check(
            "warn", path.name, finding, "the disk failed or the writer died: see dmesg; the next writer goes on"
        )
    last = f"; its last holder was process {state.pid}" if state is not None else ""
    return Check("ok", path.name, f"the lock is free{last}")


def _is_free(fd: int) -> bool:
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        time.sleep(0.01)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "of another user or container"


def _owner(folder: int, path: Path, config: Config) -> Iterator[Check]:
    from otledger.cli.survey import newest_record

    chain = read_chain(folder, path)
    if not chain.chained:
        yield Check("ok", path.name, "evledger's, without checksums: read-only; see otledger import evledger --help")
        return
    header = next((piece.header for piece in reversed(chain.pieces) if piece.header is not None), None)
    if header is not None and header.host != host_hash() and path.name == config.machine:
        finding = "its last writer was another host, or another identity of this one"
        remedy = "if both still run, give one another name by OTLEDGER_MACHINE; else it is taken over by the next event"
        yield Check("warn", path.name, finding, remedy)
    last = newest_record(folder, path, chain)
    if last is not None and last.time_ns > now_ns() + AHEAD:
        finding = f"its newest record says {last.time}, which is ahead of the clock"
        yield Check("warn", path.name, finding, "see which of the two is wrong")


def _quarantine(path: Path) -> Iterator[Check]:
    try:
        with os.scandir(path / QUARANTINE) as entries:
            found = [entry.stat(follow_symlinks=False).st_size for entry in entries]
    except FileNotFoundError:
        return
    if found:
        finding = f"{path / QUARANTINE} has {counted(len(found), 'file')}, {size_text(sum(found))}"
        remedy = f"see why by: otledger show --all --type otledger.recovery --machine {path.name}"
        yield Check("warn", path.name, f"{finding}: bytes that were set aside", remedy)


# Output


def to_dict(check: Check) -> dict[str, Any]:
    """Give a check as plain JSON values."""
    return asdict(check)


def print_checks(checks: list[Check]) -> None:
    """Print the checks, and under each what to do."""
    paint = Paint(sys.stdout)
    colour = {"ok": paint.green, "warn": paint.yellow, "bad": paint.red}
    width = max(len(check.subject) for check in checks)
    for check in checks:
        out(f"{colour[check.level](check.level.ljust(4))}  {check.subject.ljust(width)}  {safe(check.finding)}")
        if check.remedy:
            out(f"{'':4}  {'':{width}}  {paint.dim('→')} {safe(check.remedy)}")
