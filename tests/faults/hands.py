"""A process with a ledger open, which does what it is told over a socket: somebody else's hands, to be killed.

As a program it is the mother of such processes: it has otledger loaded and forks one for each line of JSON on stdin.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import otledger
from otledger import clock, writer
from otledger.errors import LedgerError

REPOSITORY = Path(__file__).parents[2]


class Hands:
    """One process. Give it orders with `do`; end it with `kill`."""

    def __init__(self, mother: "Mother", pid: int, connection: socket.socket) -> None:
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


class Mother:
    """Starts processes that have otledger loaded already."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "socket")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._path)
        self._listener.listen(1)
        self._listener.settimeout(30)
        others = {name: value for name, value in os.environ.items() if not name.startswith("OTLEDGER_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.hands", self._path],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=others | {"PYTHONPATH": str(REPOSITORY)},
        )

    def __enter__(self) -> "Mother":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()

    def start(self) -> Hands:
        pid = self._ask({})
        connection, _ = self._listener.accept()
        connection.settimeout(60)
        return Hands(self, pid, connection)

    def wait(self, pid: int) -> None:
        self._ask({"wait": pid})

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


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


def mother(path: str) -> None:
    children = []
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitpid(request["wait"], 0)[0]
            children.remove(answer)
        else:
            answer = os.fork()
            if answer == 0:
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
                try:
                    serve(path)
                finally:
                    os._exit(0)
            children.append(answer)
        print(answer, flush=True)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    mother(sys.argv[1])
