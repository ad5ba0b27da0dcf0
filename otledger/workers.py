"""Checking chunks in several processes.

A worker is `python -m otledger.chunks`. It needs nothing of the program that started it, so scripts without a
`__main__` guard work too. Compiled code checks in a thread of this process as well: it is at work at once, and holds up
no other thread. Code in Python would, an event loop's too.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

import msgspec

from otledger import speed
from otledger.chunks import Chunk, check_chunk
from otledger.errors import LedgerError


def check_chunks(chunks: list[Chunk], processes: int) -> Iterator[Chunk]:
    """Give the chunks checked, in their order, by as many processes."""
    count = min(processes, len(chunks))
    own = speed.check is not None
    command = [sys.executable, "-m", "otledger.chunks"]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) for _ in range(count - own)
    ]
    free: SimpleQueue[Callable[[Chunk], Chunk]] = SimpleQueue()
    for worker in workers:
        free.put(partial(_ask, worker))
    if own:
        free.put(check_chunk)

    def ask(chunk: Chunk) -> Chunk:
        check = free.get()
        try:
            return check(chunk)
        finally:
            free.put(check)

    try:
        with ThreadPoolExecutor(count) as pool:
            yield from pool.map(ask, chunks)
    finally:
        for worker in workers:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.close()
            worker.stdout.close()
            worker.wait()


def _ask(worker: subprocess.Popen[bytes], chunk: Chunk) -> Chunk:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(msgspec.json.encode(chunk) + b"\n")
    size = worker.stdout.read(8)
    if len(size) < 8:
        raise LedgerError(f"{chunk.path}: the process that checked it ended; is there enough memory?")
    left = int.from_bytes(size, "big")
    blocks = []
    while left:
        block = worker.stdout.read(left)
        if not block:
            raise LedgerError(f"{chunk.path}: the process that checked it ended; is there enough memory?")
        blocks.append(block)
        left -= len(block)
    return msgspec.json.decode(b"".join(blocks), type=Chunk)
