"""A process with a ledger open, which does what it is told over a socket: somebody else's hands, to be killed.

As a program it is the mother of such processes.
"""

import json
import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import otledger
from otledger import clock, writer
from otledger.errors import LedgerError
from tests.faults import mothers
from tests.faults.mothers import Mother


class Hands:
    """One process. Give it orders with `do`; end it with `kill`."""

    def __init__(self, mother: Mother, pid: int, connection: socket.socket) -> None:
        self._mother, self.pid = mother, pid
        self._connection = connection
        self._file = connection.makefile("rw")

    def do(self, order: str, **what: Any) -> Any:
        """Have an order done and give its answer. Raises `LedgerError` where that failed with one."""
        self._file.write(json.dumps({"order": order, **what}) + "\n")
        self._file.flush()
        answer = json.loads(self._file.readline())
        if "error" in answer:
            raise LedgerError(answer["error"])
        return answer["done"]

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._mother.wait(self.pid)
        self._file.close()
        self._connection.close()


class Crew(Mother):
    """Starts such processes. `folder` is for their socket."""

    def __init__(self, folder: Path) -> None:
        path = str(folder / "socket")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(1)
        self._listener.settimeout(30)
        super().__init__("tests.faults.hands", path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        super().__exit__(kind, error, trace)

    def start(self) -> Hands:
        pid = self.fork()
        connection, _ = self._listener.accept()
        connection.settimeout(60)
        return Hands(self, pid, connection)


# In the processes -------------------------------------------------------------------------------------------


class Worker:
    """Does what it is told, with a ledger of its own and a clock that can be set."""

    def __init__(self) -> None:
        self._time_ns, self._boot_ns = time.time_ns, clock.boot_ns
        # A full disk is tried again soon.
        writer.FIRST_PAUSE, writer.LONGEST_PAUSE = 0.002, 0.01

    def set_clock(self, wall: int, boot: int) -> None:
        time.time_ns = lambda: self._time_ns() + wall
        clock.boot_ns = lambda: self._boot_ns() + boot

    def open(self, root: str, **settings: Any) -> None:
        self.ledger = otledger.open_sync(root, machine="m1", service="hands", min_free=0, check=None, **settings)

    def emit(self, payload: Any) -> str:
        return self.ledger.emit("app.event", payload)

    def append(self, payload: Any) -> dict[str, Any]:
        receipt = self.ledger.append("app.event", payload)
        assert receipt is not None
        return {"id": receipt.id, "seq": receipt.seq, "checksum": receipt.checksum}

    def span(self, payload: Any) -> None:
        with self.ledger.span("work", attributes={"n": str(payload)}):
            self.ledger.emit("app.event", payload)

    def flush(self, timeout: float) -> None:
        self.ledger.flush(timeout)

    def fork(self, payload: Any) -> dict[str, Any]:
        """Have a child of ours append with the ledger that it inherits."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            os.write(write, json.dumps(self.append(payload)).encode())
            self.ledger.close(10)
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as file:
            answer: dict[str, Any] = json.load(file)
        assert os.waitpid(pid, 0)[1] == 0
        return answer

    def close(self) -> int:
        return self.ledger.close(20)


def serve(path: str) -> None:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    worker = Worker()
    with connection, connection.makefile("rw") as file:
        for line in file:
            request = json.loads(line)
            try:
                answer = {"done": getattr(worker, request.pop("order"))(**request)}
            except (LedgerError, TimeoutError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            file.write(json.dumps(answer) + "\n")
            file.flush()


if __name__ == "__main__":
    mothers.serve(partial(serve, sys.argv[1]))
