"""A program that has otledger loaded and forks a process for each request, so that it is at work within milliseconds.

Requests are lines of JSON on its stdin. Each process leads a process group of its own, to be killed as one.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

REPOSITORY = Path(__file__).parents[2]


class Mother:
    """Runs such a program: a module that calls `serve`. `prefix` is a command under which all of them run."""

    def __init__(self, module: str, *arguments: str, prefix: Iterable[str] = ()) -> None:
        others = {name: value for name, value in os.environ.items() if not name.startswith("OTLEDGER_")}
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=others | {"PYTHONPATH": str(REPOSITORY)},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()

    def fork(self, **request: Any) -> int:
        """Have a process do what is asked. Gives its id."""
        return self._ask({"fork": request})

    def wait(self, pid: int) -> int:
        """Wait for the end of a process. Gives its exit code, or the negative of the signal that ended it."""
        return self._ask({"wait": pid})

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


# In the processes -------------------------------------------------------------------------------------------


def serve(work: Callable[..., None]) -> None:
    """Do what `Mother` asks: `work` gets the members of each request, in a process of its own."""
    children = []
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
            children.remove(request["wait"])
        else:
            answer = fork(partial(work, **request["fork"]), group=True)
            children.append(answer)
        print(answer, flush=True)
    # The test has ended, or was ended: so do they all.
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)


def fork(work: Callable[[], object], *, group: bool = False) -> int:
    """Do this in a process that dies with us. Gives its id; it exits with 1 where `work` raises."""
    pid = os.fork()
    if group:
        # In both: whichever comes first.
        os.setpgid(pid, pid)
    if pid == 0:
        status = 1
        try:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid
