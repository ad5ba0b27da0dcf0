"""Checking chunks in processes of their own, which cost an event loop in this one nothing.

A worker is `python -m otledger.chunks`. It needs nothing of the program that started it, so scripts without a
`__main__` guard work too.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import msgspec

from otledger.chunks import Chunk
from otledger.errors import LedgerError


def check_chunks(chunks: list[Chunk], processes: int) -> Iterator[Chunk]:
    """Give the chunks checked, in their order, by as many worker processes."""
    count = min(processes, len(chunks))
    command = [sys.executable, "-m", "otledger.chunks"]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) for _ in range(count)
    ]
    free: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def ask(chunk: Chunk) -> Chunk:
        worker = free.get()
        try:
            return _ask(worker, chunk)
        finally:
            free.put(worker)

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
