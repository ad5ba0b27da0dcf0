"""The writers of this process: one for a root and machine, whoever opens it, and what becomes of them at a fork and
at the end."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from dataclasses import replace

from otledger.config import Config
from otledger.folder import check_root, make_folder
from otledger.writer import Writer

_writers: dict[tuple[int, int, str], Writer] = {}
_registry_lock = threading.Lock()


def acquire(config: Config) -> Writer:
    """Give the process's writer for the root and machine of `config`, opened. Blocks on the disk.

    Where one is open already its settings hold; only the stronger durability wins.
    Raises what `Journal.open` raises.
    """
    check_root(config.root, force=config.force)
    make_folder(config.root, config.folder_mode)
    info = os.stat(config.root)
    key = info.st_dev, info.st_ino, config.machine
    with _registry_lock:
        writer = _writers.get(key)
        if writer is None:
            writer = _writers[key] = Writer(config)
            if "multiprocessing.util" in sys.modules:
                # This may be such a child itself.
                _drain_at_end_of_child(writer)
        elif config.durability == "disk" and writer.config.durability == "os":
            writer.config = replace(writer.config, durability="disk")
            writer.journal.config = writer.config
        writer.users += 1
    try:
        # Not under the registry's lock: a disk that hangs here holds up no other ledger.
        writer.open()
    except BaseException:
        release(writer, 0.0)
        raise
    return writer


def release(writer: Writer, timeout: float) -> int:
    """Give a writer back, what is queued written; the last user closes it.

    Gives how many records were left unwritten.
    """
    with _registry_lock:
        writer.users -= 1
        others = writer.users > 0
        for key in [key for key, other in _writers.items() if other is writer and not others]:
            del _writers[key]
    return writer.drain(timeout) if others else writer.close(timeout)


def _after_fork() -> None:
    global _registry_lock
    _registry_lock = threading.Lock()
    processes = sys.modules.get("multiprocessing.util")
    for writer in _writers.values():
        writer.after_fork()
        if processes is not None:
            # A child of multiprocessing ends by os._exit, which runs no atexit. It forgets its parent's
            # finalizers just after this, and then calls what is registered here.
            processes.register_after_fork(writer, _drain_at_end_of_child)


def _drain_at_end_of_child(writer: Writer) -> None:
    from multiprocessing.util import Finalize

    Finalize(writer, writer.drain, args=(10.0,), exitpriority=0)


def _at_exit() -> None:
    for writer in list(_writers.values()):
        writer.close(10.0)
    _writers.clear()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
