"""`otledger demo`, and the server that it plays with."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

import otledger
from otledger.demo.client import Answers, Requests, send, send_all
from otledger.demo.process import ServerFailed, ServerProcess
from otledger.replay import Replay
from otledger.turns import turn_of
from tests.checker import check

DATA = Path(__file__).with_name("data")
PACKAGE = str(Path(otledger.__file__).parents[1])


def demo(*args: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": PACKAGE, "PYTHONUTF8": "1", **variables}
    command = [sys.executable, "-m", "otledger", "demo", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)


def only_machine(root: Path) -> Path:
    (machine,) = root.iterdir()
    return machine


def test_demo_holds_without_any_set_up(tmp_path: Path) -> None:
    done = demo(TMPDIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    (root,) = tmp_path.iterdir()
    assert str(root) in done.stdout
    assert "FAILED" not in done.stdout
    assert "Everything held." in done.stdout
    assert "died, process" in done.stdout
    assert "\x1b" not in done.stdout
    for machine in root.iterdir():
        check(machine)


def test_demo_imports_the_predecessors(root: Path) -> None:
    done = demo(
        "--root", root, "--evledger", DATA / "evledger", "--pipeworks", DATA / "pipeworks", OTLEDGER_MACHINE="m"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "400 events into ci-1.import, laptop.import" in done.stdout
    assert "240 events into pipeworks.import" in done.stdout
    assert f"rm -r {root}" not in done.stdout
    assert {path.name for path in root.iterdir()} == {"ci-1.import", "laptop.import", "m", "pipeworks.import"}
    for machine in root.iterdir():
        check(machine)


def test_demo_can_be_repeated_on_its_ledger(root: Path) -> None:
    for _ in range(2):
        done = demo("--root", root)
        assert (done.returncode, done.stderr) == (0, "")


def test_demo_fails_on_a_ledger_that_is_damaged(root: Path) -> None:
    with otledger.Journal(root, machine="m", service="s") as journal:
        journal.append([otledger.Draft("a.one"), otledger.Draft("a.two")])
    segment = next((root / "m").glob("*.jsonl"))
    segment.write_bytes(segment.read_bytes().replace(b"a.one", b"a.0ne"))
    done = demo("--root", root)
    assert done.returncode == 1
    assert "FAILED  verify says TAMPERED" in done.stdout
    assert "Everything held" not in done.stdout


def test_demo_on_a_root_that_cannot_be_used_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = demo("--root", tmp_path / "file")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("otledger: the demo's server did not start: ")
    assert "is a file, and the ledger needs a folder" in line


async def test_the_server_promises_only_what_is_durable(root: Path) -> None:
    server = await ServerProcess.start(root)
    requests, answers = Requests(), Answers()
    try:
        await send_all(server.port, requests.mixed(12), answers, at_once=4)
        await server.kill()
    finally:
        await server.kill()
    assert (len(answers.orders), len(answers.turns), answers.unanswered) == (9, 3, 0)
    records = check(only_machine(root), torn_tail_ok=True)
    paid = {record["data"]["number"]: record["seq"] for record in records if record["type"] == "order.paid"}
    assert paid == {number: answer["seq"] for number, answer in answers.orders.items()}


async def test_a_turn_links_decision_text_and_spans(root: Path) -> None:
    server = await ServerProcess.start(root)
    try:
        answer = await send(server.port, Requests().say())
        server.terminate()
        assert await server.ended() == 0
    finally:
        await server.kill()
    turn = turn_of(otledger.Reader(root).records(), answer["turn"])
    assert turn is not None
    assert {"world.decision", "world.text"} <= {record.type for record in turn.records}
    replay = Replay()
    ended = [span for record in otledger.Reader(root).records() for span in replay.feed(record)]
    assert {span.name for span in ended if span.span_id in turn.span_ids} == {"decide", "narrate"}
    assert replay.unfinished() == []
    check(only_machine(root))


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /nowhere HTTP/1.1\r\n\r\n", 404),
        (b"nonsense\r\n\r\n", 400),
        (b"POST /order HTTP/1.1\r\nContent-Length: 4\r\n\r\nnope", 400),
        (b"POST /order HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"POST /order HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /order HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 200),
    ],
)
async def test_the_server_answers_whatever_comes(root: Path, raw: bytes, status: int) -> None:
    server = await ServerProcess.start(root)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(raw)
        answer = await reader.read()
        writer.close()
    finally:
        await server.kill()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    content = orjson.loads(body)
    assert content["state"] == "ok" if status == 200 else content["error"]


async def test_a_server_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServerFailed, match="otledger doctor --root"):
        await ServerProcess.start(tmp_path / "file")


def test_the_server_ends_with_the_demo(tmp_path: Path) -> None:
    # Where the demo is killed its server must not go on for ever.
    code = (
        "import asyncio, os, sys, json; from pathlib import Path; from otledger.demo.process import ServerProcess\n"
        "async def main():\n"
        "    server = await ServerProcess.start(Path(sys.argv[1]))\n"
        "    print(server.pid, flush=True); os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "ledger"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": PACKAGE},
    )
    assert done.returncode == -signal.SIGKILL
    wait_for_end(int(done.stdout))
    assert check(only_machine(tmp_path / "ledger"))


def wait_for_end(pid: int) -> None:
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(1000):
        # Whoever inherited it may not have waited for it yet.
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the server went on")
