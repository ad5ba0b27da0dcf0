"""Several ledgers of one process, forks, and processes that end in every way."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import otledger
from tests.conftest import Script

Json = dict[str, Any]
CheckAll = Callable[[Path], dict[str, list[Json]]]


@pytest.fixture
def events(root: Path, check_all: CheckAll) -> Callable[[], list[Json]]:
    """Give the callers' events of machine m1, as the checker reads them."""

    def read() -> list[Json]:
        records = check_all(root)["m1"]
        return [record for record in records if not record["type"].startswith(("otledger.", "otel."))]

    return read


Events = Callable[[], list[Json]]


@pytest.fixture(autouse=True)
def verified(root: Path) -> Iterator[None]:
    """What a test here wrote verifies."""
    yield
    assert otledger.verify(root).status <= otledger.Status.RECOVERED


def open_files(root: Path) -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{fd}")
            if path.startswith(str(root.resolve())):
                found.append(path)
    return sorted(found)


def writer_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("otledger-m")]


# One journal a process


async def test_ledgers_of_one_root_and_machine_share_a_journal(
    root: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with otledger.open(root, machine="m1", service="one") as one:
        await one.append("a", 0)
        threads, files = writer_threads(), open_files(root)
        assert len(threads) == 1
        assert files
        monkeypatch.chdir(root.parent)
        two = await otledger.open("ledger", machine="m1", service="two")
        with otledger.open_sync(root / ".." / "ledger", machine="m1", service="three") as three:
            await two.append("a", 1)
            three.append("a", 2)
            assert (writer_threads(), open_files(root)) == (threads, files)
        # The others go on.
        await two.append("a", 3)
        await one.append("a", 4)
        await two.aclose()
        with pytest.raises(otledger.LedgerClosed):
            await two.emit("late")
        with pytest.raises(otledger.LedgerClosed):
            three.emit("late")
        await one.append("a", 5)
        await one.emit("a", 6)
        assert (writer_threads(), open_files(root)) == (threads, files)
    assert (writer_threads(), open_files(root)) == ([], [])
    assert [event["data"] for event in events()] == list(range(7))
    assert [event["source"] for event in events()] == [
        *("/m1/one", "/m1/two", "/m1/three", "/m1/two", "/m1/one", "/m1/one", "/m1/one")
    ]


async def test_closing_one_of_two_writes_what_it_accepted(root: Path) -> None:
    async with otledger.open(root, machine="m1", flush_interval=60.0):
        two = await otledger.open(root, machine="m1")
        id = await two.emit("a")
        assert await two.aclose() == 0
        assert any(id in path.read_text() for path in (root / "m1").glob("*.jsonl"))


async def test_an_error_is_told_to_the_ledgers_that_are_open(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, list[BaseException]] = {"open": [], "closed": []}
    async with otledger.open(root, machine="m1") as one:
        one.on_error(told["open"].append)
        async with otledger.open(root, machine="m1") as two:
            two.on_error(told["closed"].append)
        real = os.write

        def write(fd: int, data: Any) -> int:
            if os.readlink(f"/proc/self/fd/{fd}").endswith(".jsonl"):
                raise OSError(28, "No space left on device")
            return real(fd, data)

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            with pytest.raises(otledger.JournalError):
                await one.append("a")
        await one.flush()
    assert told["open"]
    assert not told["closed"]


async def test_many_may_open_at_once(root: Path, events: Events) -> None:
    async def use(n: int) -> None:
        async with otledger.open(root, machine="m1") as ledger:
            await ledger.append("a", n)

    await asyncio.gather(*(use(n) for n in range(20)))
    assert sorted(event["data"] for event in events()) == list(range(20))
    assert (writer_threads(), open_files(root)) == ([], [])


async def test_the_stronger_durability_counts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = os.fdatasync
    async with otledger.open(root, machine="m1", durability="os", sync_interval=60.0) as weak:
        await weak.append("a")
        monkeypatch.setattr(os, "fdatasync", lambda fd: (calls.append(fd), real(fd))[1])
        await weak.append("b")
        assert not calls
        async with otledger.open(root, machine="m1", durability="disk") as strong:
            await strong.append("c")
            assert calls


async def test_other_machines_have_journals_of_their_own(root: Path, check_all: CheckAll) -> None:
    async with otledger.open(root, machine="m1") as one, otledger.open(root, machine="m2") as two:
        await one.append("a")
        await two.append("b")
        assert sorted(writer_threads()) == ["otledger-m1", "otledger-m2"]
    kinds = {machine: [record["type"] for record in records] for machine, records in check_all(root).items()}
    assert set(kinds) == {"m1", "m2"}
    assert "a" in kinds["m1"]
    assert "b" in kinds["m2"]


# Forks


def test_parent_and_child_both_go_on(root: Path, script: Script, events: Events, check_all: CheckAll) -> None:
    program = """
        import os, sys, otledger
        ledger = otledger.open_sync(sys.argv[1], machine="m1", flush_interval=60.0)
        ledger.append("parent", 0)
        for n in range(1, 10):
            ledger.emit("parent", n)  # still queued when the process forks
        pid = os.fork()
        if pid == 0:
            with ledger.span("in the child"):
                for n in range(50):
                    ledger.emit("child", n)
            assert ledger.append("child", 50).seq > 0
            assert ledger.health().accepted == 52, ledger.health()
            ledger.flush()
            os._exit(0)
        for n in range(10, 60):
            ledger.append("parent", n)
        with ledger.span("in the parent"):
            pass
        assert os.waitpid(pid, 0)[1] == 0
        ledger.append("parent", 60)
        assert ledger.close() == 0
    """
    process = script(program, root)
    assert process.wait(30) == 0
    stored = events()
    assert [event["data"] for event in stored if event["type"] == "parent"] == list(range(61))
    assert [event["data"] for event in stored if event["type"] == "child"] == list(range(51))
    ids = [event["id"] for event in stored]
    assert len(set(ids)) == len(ids)
    records = check_all(root)["m1"]
    ends = [record for record in records if record["type"] == "otel.span.end"]
    pids = {
        record["data"]["digest"]: record["data"]["attributes"].get("process.pid")
        for record in records
        if record["type"] == "otel.resource" and record["data"]["kind"] == "resource"
    }
    assert sorted(end["data"]["name"] for end in ends) == ["in the child", "in the parent"]
    # Each names its own process.
    assert len({pids[end["data"]["resource"]] for end in ends}) == 2
    assert len({end["traceparent"][3:35] for end in ends}) == 2


def test_a_span_that_is_open_across_a_fork(root: Path, script: Script, check_all: CheckAll) -> None:
    program = """
        import os, sys, otledger
        ledger = otledger.open_sync(sys.argv[1], machine="m1")
        with ledger.span("both") as span:
            ledger.flush()
            pid = os.fork()
            span.set_attribute("in", "parent" if pid else "child")
        ledger.flush()
        if pid == 0:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        ledger.close()
    """
    assert script(program, root).wait(30) == 0
    ends = [record for record in check_all(root)["m1"] if record["type"] == "otel.span.end"]
    assert {end["data"]["attributes"]["in"] for end in ends} == {"parent", "child"}
    assert len({end["data"]["resource"] for end in ends}) == 2


def test_forks_while_threads_write(root: Path, script: Script, events: Events) -> None:
    program = """
        import os, sys, threading, otledger
        ledger = otledger.open_sync(sys.argv[1], machine="m1")
        stop = threading.Event()
        counts = [0, 0]
        def work(which):
            while not stop.is_set():
                ledger.append(f"thread{which}", counts[which])
                counts[which] += 1
        threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
        for thread in threads:
            thread.start()
        pids = []
        for n in range(12):
            pid = os.fork()
            if pid == 0:
                ledger.append("child", n)
                os._exit(0)
            pids.append(pid)
        codes = [os.waitpid(pid, 0)[1] for pid in pids]
        stop.set()
        for thread in threads:
            thread.join()
        ledger.close()
        print(*counts, *codes)
    """
    process = script(program, root)
    found = [int(text) for text in process.communicate(timeout=40)[0].split()]
    assert process.returncode == 0
    assert found[2:] == [0] * 12
    stored = events()
    assert sorted(event["data"] for event in stored if event["type"] == "child") == list(range(12))
    for which in range(2):
        own = [event["data"] for event in stored if event["type"] == f"thread{which}"]
        assert own == list(range(found[which]))
        assert own


def test_a_fork_that_runs_no_hooks(root: Path, script: Script, events: Events) -> None:
    program = """
        import ctypes, os, sys, time, otledger
        ledger = otledger.open_sync(sys.argv[1], machine="m1", flush_interval=60.0)
        ledger.append("parent", 0)
        for n in range(1, 4):
            ledger.emit("parent", n)
        time.sleep(0.2)  # so that no other thread is in the middle of anything
        pid = ctypes.PyDLL(None).fork()  # as a server written in C does it
        name = "parent" if pid else "child"
        for n in range(10, 15):
            ledger.emit(name, n)
        ledger.flush()
        if pid == 0:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert ledger.close() == 0
    """
    assert script(program, root).wait(30) == 0
    stored = events()
    assert [event["data"] for event in stored if event["type"] == "parent"] == [0, 1, 2, 3, *range(10, 15)]
    assert [event["data"] for event in stored if event["type"] == "child"] == [*range(10, 15)]


@pytest.mark.parametrize("action", ["ledger.flush()", "ledger.close()", "ledger.append('child')"])
def test_a_fork_that_runs_no_hooks_writes_nothing_of_its_parents(
    root: Path, script: Script, events: Events, action: str
) -> None:
    program = f"""
        import ctypes, os, sys, time, otledger
        ledger = otledger.open_sync(sys.argv[1], machine="m1", flush_interval=60.0)
        for n in range(3):
            ledger.emit("parent", n)
        time.sleep(0.2)
        pid = ctypes.PyDLL(None).fork()
        if pid == 0:
            start = time.monotonic()
            {action}
            os._exit(time.monotonic() - start > 5)
        assert os.waitpid(pid, 0)[1] == 0
        assert ledger.close() == 0
    """
    assert script(program, root).wait(30) == 0
    stored = events()
    assert [event["data"] for event in stored if event["type"] == "parent"] == [0, 1, 2]
    assert [event["type"] for event in stored].count("child") == ("append" in action)


@pytest.mark.parametrize("fork", ["os.fork()", "ctypes.PyDLL(None).fork()"])
def test_parent_and_child_give_out_ids_of_their_own(root: Path, script: Script, fork: str) -> None:
    program = f"""
        import ctypes, os, sys, time, otledger
        ledger = otledger.open_sync(sys.argv[1], machine="m1", min_free=0)
        def ids():
            found = []
            for _ in range(5):
                with ledger.span("s") as span:
                    # The random digits alone: the others are the time.
                    found += [span.trace_id, span.span_id, ledger.emit("a")[-15:]]
            return found
        ids()
        ledger.flush()
        time.sleep(0.2)
        pid = {fork}
        os.write(1, (" ".join(ids()) + "\\n").encode())  # in one piece, whatever the other process writes
        if pid == 0:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        ledger.close()
    """
    process = script(program, root)
    first, second = (line.split() for line in process.communicate(timeout=30)[0].splitlines())
    assert process.returncode == 0
    assert len(set(first)) == len(set(second)) == 15
    assert set(first).isdisjoint(second)


def test_a_fork_of_an_asyncio_program(root: Path, script: Script, events: Events) -> None:
    program = """
        import asyncio, os, sys, time, otledger
        async def main():
            async with otledger.open(sys.argv[1], machine="m1") as ledger:
                await ledger.append("parent", 0)
                await ledger.emit("parent", 1)
                pid = os.fork()
                if pid == 0:
                    ledger.emit_nowait("child", 0)
                    while ledger.health().durable < 1:
                        time.sleep(0.01)
                    os._exit(0)
                code = await asyncio.to_thread(os.waitpid, pid, 0)
                assert code[1] == 0
                await ledger.append("parent", 2)
        asyncio.run(main())
    """
    process = script(program, root)
    assert process.wait(30) == 0
    stored = events()
    assert [event["data"] for event in stored if event["type"] == "parent"] == [0, 1, 2]
    assert [event["data"] for event in stored if event["type"] == "child"] == [0]


# Ends


@pytest.mark.parametrize("end", ["sys.exit()", "raise ZeroDivisionError", "pass"])
def test_a_program_that_forgets_to_close(root: Path, script: Script, events: Events, end: str) -> None:
    program = f"""
        import sys, otledger
        ledger = otledger.open_sync(sys.argv[1], machine="m1", flush_interval=60.0)
        for n in range(100):
            ledger.emit("a", n)
        sys.stderr = open("/dev/null", "w")
        {end}
    """
    process = script(program, root)
    process.wait(30)
    assert [event["data"] for event in events()] == list(range(100))


def test_what_is_recorded_while_the_program_ends(root: Path, script: Script, events: Events) -> None:
    program = """
        import atexit, sys, otledger
        def late(name):
            try:
                ledger.emit(name)
            except otledger.LedgerClosed:
                print(name)
        # Handlers are called in reverse order: this one after otledger's own.
        atexit.register(late, "before")
        ledger = otledger.open_sync(sys.argv[1], machine="m1", flush_interval=60.0)
        atexit.register(late, "after")
        ledger.emit("a")
    """
    out, err = script(program, root).communicate(timeout=30)
    assert (out, err) == ("before\n", None)
    assert [event["type"] for event in events()] == ["a", "after"]


def test_sigterm_under_an_asyncio_server(root: Path, script: Script, events: Events) -> None:
    program = """
        import asyncio, signal, sys, otledger
        async def main():
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
            async with otledger.open(sys.argv[1], machine="m1", flush_interval=60.0) as ledger:
                async def requests():
                    n = 0
                    while True:
                        print(await ledger.emit("request", n), flush=True)
                        n += 1
                        await asyncio.sleep(0.001)
                task = asyncio.create_task(requests())
                await stop.wait()
                task.cancel()
        asyncio.run(main())
    """
    process = script(program, root)
    assert process.stdout is not None
    ids = [process.stdout.readline().strip() for _ in range(50)]
    process.send_signal(signal.SIGTERM)
    # Not by communicate(), which passes over what readline() has in its buffer.
    ids += process.stdout.read().split()
    assert process.wait(30) == 0
    assert [event["id"] for event in events()] == ids
    assert len(ids) >= 50


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
@pytest.mark.parametrize("durability", ["disk", "os"])
def test_what_is_acknowledged_survives_the_process(
    root: Path, script: Script, events: Events, end: str, durability: str
) -> None:
    program = f"""
        import os, signal, sys, otledger
        ledger = otledger.open_sync(sys.argv[1], machine="m1", flush_interval=60.0, durability="{durability}")
        for n in range(50):
            receipt = ledger.append("a", n)
            print(receipt.id, receipt.seq, receipt.checksum, flush=True)
        ledger.start_span("unfinished")
        ledger.flush()
        ledger.emit("lost")
        {end}
    """
    process = script(program, root)
    lines = process.communicate(timeout=30)[0].splitlines()
    assert len(lines) == 50
    assert [f"{event['id']} {event['seq']} {event['checksum']}" for event in events()] == lines
    # And the next one goes on.
    with otledger.open_sync(root, machine="m1") as ledger:
        ledger.append("next")
    assert events()[-1]["type"] == "next"
    kinds = [record.type for record in otledger.Reader(root).records()]
    assert kinds.count("otel.span.start") == 1
    assert kinds.count("otel.span.end") == 0


def test_killed_at_any_moment(root: Path, script: Script, events: Events) -> None:
    program = """
        import sys, threading, otledger
        ledger = otledger.open_sync(sys.argv[1], machine="m1", durability="os")
        def work():
            while True:
                receipt = ledger.append("a", "x" * 2000)
                sys.stdout.write(f"{receipt.id}\\n")
                sys.stdout.flush()
        for _ in range(3):
            threading.Thread(target=work).start()
    """
    acknowledged = []
    for _ in range(4):
        process = script(program, root)
        assert process.stdout is not None
        acknowledged += [process.stdout.readline().strip() for _ in range(30)]
        process.kill()
        acknowledged += [line for line in process.communicate()[0].splitlines() if len(line) == 32]
    with otledger.open_sync(root, machine="m1"):
        pass
    stored = {event["id"] for event in events()}
    assert set(acknowledged) <= stored
    assert len(set(acknowledged)) >= 120


def test_several_processes_take_turns(root: Path, script: Script, events: Events) -> None:
    program = """
        import sys, otledger
        with otledger.open_sync(sys.argv[1], machine="m1", durability="os") as ledger:
            for n in range(200):
                ledger.append(sys.argv[2], n) if n % 10 == 0 else ledger.emit(sys.argv[2], n)
    """
    processes = [script(program, root, name) for name in "abcd"]
    assert [process.wait(40) for process in processes] == [0] * 4
    stored = events()
    for name in "abcd":
        assert [event["data"] for event in stored if event["type"] == name] == list(range(200))
