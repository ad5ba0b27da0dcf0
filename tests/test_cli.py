"""The command line, run as people run it: real processes on real ledgers."""

import asyncio
import contextlib
import hashlib
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

import otledger
from otledger import Draft
from otledger.cli import app
from otledger.cli.app import load_plugins
from otledger.cli.following import _Following
from otledger.cli.output import safe, safe_json
from otledger.filter import Filter
from otledger.follow import Cursor
from tests.checker import check

DOCS = Path(__file__).parents[1] / "docs" / "cli.md"
DATA = Path(__file__).with_name("data")
PACKAGE = str(Path(otledger.__file__).parents[1])
COMMAND = [sys.executable, "-m", "otledger"]
FORBIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]


def environment(**variables: str) -> dict[str, str]:
    # Without compiled files each of these many processes would compile otledger anew.
    given = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**given, "PYTHONPATH": PACKAGE, "PYTHONUTF8": "1", **variables}


@pytest.fixture
def cli(tmp_path: Path, root: Path) -> Run:
    """Runs the command line in an empty folder, on the ledger `root`."""

    def run(*args: object, input: str | bytes = "", **variables: str) -> Result:
        done = subprocess.run(
            [*COMMAND, *map(str, args)],
            input=input.encode() if isinstance(input, str) else input,
            capture_output=True,
            env=environment(**{"OTLEDGER_ROOT": str(root), **variables}),
            cwd=tmp_path,
            timeout=60,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        assert "Traceback" not in err
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    return run


def write(root: Path, *drafts: Draft, machine: str = "web1") -> Path:
    """Append drafts and give the segment."""
    with otledger.Journal(root, machine=machine, service="shop") as journal:
        journal.append(drafts)
    return sorted((root / machine).glob("*.jsonl"))[-1]


@pytest.fixture
def shop(root: Path) -> Path:
    """A ledger of two machines with six events."""
    hour = 3_600_000_000_000
    base = 1_790_000_000_000_000_000  # 2026-09-21T14:13:20Z
    turn = otledger.ipc_hash({"say": "hello"})
    write(
        root,
        Draft("order.placed", {"id": 1}, subject="tenant-1", time=base),
        Draft("order.paid", {"id": 1, "note": "Grüße"}, subject="tenant-1", time=base + hour),
        Draft("world.text", "hello", ipc_hash=turn, time=base + 3 * hour),
    )
    write(
        root,
        Draft("order.placed", {"id": 2}, subject="tenant-2", source="/elsewhere", time=base + 2 * hour),
        Draft("world.decision", {"ok": True}, ipc_hash=turn, time=base + 3 * hour - 1),
        Draft("note", None, extensions={"phase": "beta"}, time=base + 4 * hour),
        machine="web2",
    )
    return root


def types(done: Result) -> list[str]:
    return [json.loads(line)["type"] for line in done.stdout.splitlines()]


def one_line(done: Result) -> str:
    """The error of a command that failed: one line, with the program's name."""
    assert done.stdout == ""
    assert done.stderr.startswith("otledger: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


# What is there


load_plugins([])


def commands() -> Iterator[tuple[str, Any]]:
    group: Any = typer.main.get_command(app)
    for name, found in group.commands.items():
        inner = getattr(found, "commands", None)
        if inner is None:
            yield name, found
        else:
            yield from ((f"{name} {below}", command) for below, command in inner.items())


@pytest.mark.parametrize(
    ("name", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_and_option_is_documented(name: str, command: Any) -> None:
    text = DOCS.read_text()
    heading, _, rest = name.partition(" ")
    section = re.search(rf"^## otledger {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/cli.md has no section 'otledger {heading}'"
    assert f"otledger {name}" in section[1]
    assert f"{heading} {rest}".strip() in section[1]
    for parameter in command.params:
        for option in parameter.opts:
            if option.startswith("--") and option not in ("--help", "--install-completion", "--show-completion"):
                assert option in text, f"docs/cli.md does not name {option} of otledger {name}"


def test_help_of_every_command_has_examples_before_the_options(cli: Run) -> None:
    for name in ["", "import", "export", *(name for name, _ in commands())]:
        done = cli(*name.split(), "--help")
        assert done.returncode == 0
        before, _, after = done.stdout.partition("Options:")
        assert f"Examples:\n    otledger {name}".rstrip() in before, name
        assert after


def test_the_help_lists_the_commands_in_their_order(cli: Run) -> None:
    done = cli()
    assert done.returncode == 0
    assert done.stdout == cli("--help").stdout
    listed = re.findall(r"^  ([a-z][a-z-]+) ", done.stdout.partition("Commands:")[2], re.MULTILINE)
    assert listed == [
        *("demo", "log", "show", "tail", "trace", "spans", "turn", "turns", "pairs", "stats", "digest", "sql"),
        *("verify", "prove", "verify-proof", "witness", "archive", "repair", "keys", "machines", "doctor", "git"),
        *("index", "compact", "replay", "receive", "import", "export"),
    ]


def test_version(cli: Run) -> None:
    assert cli("--version").stdout == f"otledger {otledger.__version__}\n"


def test_the_entry_imports_nothing_but_typer() -> None:
    code = (
        "import sys, otledger, typer, typer.core; before = set(sys.modules); import otledger.cli;"
        "new = set(sys.modules) - before;"
        "print(sorted(name for name in new if not name.startswith('otledger.cli')));"
        "print([name for name in ('rich', 'pydantic', 'opentelemetry.sdk') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"


def test_import_otledger_does_not_import_typer() -> None:
    code = "import sys, otledger; print('typer' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [("otledger mac", "machines"), ("otledger import ev", "evledger"), ("otledger show --li", "--limit")],
)
def test_completion_of_names(cli: Run, words: str, expected: str) -> None:
    at = str(len(words.split()) - 1)
    done = cli(_OTLEDGER_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=at)
    assert done.stdout.split() == [expected]


def test_completion_of_machines(cli: Run, shop: Path) -> None:
    done = cli(_OTLEDGER_COMPLETE="complete_bash", COMP_WORDS="otledger show --machine we", COMP_CWORD="3")
    assert done.stdout.split() == ["web1", "web2"]


def test_the_completion_script_is_given(cli: Run) -> None:
    assert "_OTLEDGER_COMPLETE" in cli(_OTLEDGER_COMPLETE="source_bash").stdout


# Errors, the root, the terminal


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["shwo"], "see: otledger --help"),
        (["show", "--colour"], "see: otledger show --help"),
        (["show", "--limit", "x"], "see: otledger show --help"),
        (["show", "--limit", "-1"], "see: otledger show --help"),
        (["log"], "see: otledger log --help"),
        (["import"], "see: otledger import --help"),
        (["import", "evledger"], "see: otledger import evledger --help"),
        (["show", "--since", "yesterday"], "give 2h, 15m"),
        (["show", "--machine", "web9"], "there are: web1, web2"),
        (["show", "--root", ""], "--root is empty"),
        (["show", "--root", "nowhere"], "there is no ledger here"),
        (["tail", "--root", "nowhere"], "there is no ledger here"),
        (["verify", "--root", "nowhere"], "there is no ledger here"),
        (["machines", "--root", "nowhere"], "there is no ledger here"),
        (["export", "evledger", "out", "--root", "nowhere"], "there is no ledger here"),
        (["export", "evledger", "."], "nothing is overwritten"),
        (["import", "evledger", "nowhere"], "nowhere"),
        (["log", "a.b", "--data", "{"], "--data is no JSON"),
        (["log", "a.b", "--data", "NaN"], "--data is no JSON"),
        (["log", "a.b", "--data", '{"a": 1, "a": 2}'], "stands twice"),
        (["log", "a.b", "--data", "[" * 5000], "--data is no JSON"),
        (["log", "a.b", "--time", "soon"], "'soon' is no time"),
        (["log", "otledger.checkpoint"], "reserved"),
        (["log", "a.b", "--ext", "phase"], "NAME=VALUE"),
        (["log", "a.b", "--ext", "a=1", "--ext", "a=2"], "twice"),
        (["log", "a.b", "--ext", "seq=1"], "reserved"),
        (["log", "a.b", "--ext", "Phase=1"], "a-z and 0-9"),
        (["log", "a.b", "--machine", "../x"], "no valid name"),
        (["log", "-", "--data", "1"], "put it into the lines"),
        (["log", "a\x1b[31m.b"], "control character"),
        (["demo", "--evledger", "nowhere"], "nothing at this path"),
    ],
)
def test_an_error_is_one_line_with_a_remedy(cli: Run, shop: Path, args: list[str], expected: str) -> None:
    done = cli(*args)
    assert done.returncode == 2
    assert expected in one_line(done)
    assert not FORBIDDEN.search(done.stderr)
    check(shop / "web1")


@pytest.mark.parametrize("command", ["show", "tail", "verify", "machines"])
def test_a_root_that_is_a_file_or_a_symlink_is_refused(cli: Run, tmp_path: Path, shop: Path, command: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(shop)
    for name in ("file", "link"):
        done = cli(command, "--root", name)
        assert done.returncode == 2
        assert name in one_line(done)


def test_a_segment_that_is_a_folder_is_refused(cli: Run, shop: Path) -> None:
    (shop / "web1" / "2030-01.jsonl").mkdir()
    for command in ("show", "tail", "verify", "machines"):
        done = cli(command)
        assert done.returncode == 2
        assert "move it out of the ledger" in one_line(done)


def test_a_format_of_the_future_is_refused(cli: Run, shop: Path) -> None:
    segment = next((shop / "web1").glob("*.jsonl"))
    first, rest = segment.read_bytes().split(b"\n", 1)
    body = first.replace(b'"format":1', b'"format":2').rpartition(b',"checksum":')[0]
    checksum = hashlib.sha256(body).hexdigest().encode()
    segment.write_bytes(body + b',"checksum":"sha256:' + checksum + b'"}\n' + rest)
    for command in ("show", "tail", "verify", "machines"):
        done = cli(command)
        assert done.returncode == 3
        assert "use a newer otledger" in one_line(done)


def test_the_root_is_the_nearest_that_is_given(cli: Run, tmp_path: Path) -> None:
    for name in ("after", "before", "variable"):
        write(tmp_path / name, Draft(name))
    write(tmp_path / "ledger", Draft("default"))
    variable = str(tmp_path / "variable")
    assert types(cli("--root", "before", "show", "--json", "--root", "after", OTLEDGER_ROOT=variable)) == ["after"]
    assert types(cli("--root", "before", "show", "--json", OTLEDGER_ROOT=variable)) == ["before"]
    assert types(cli("show", "--json", OTLEDGER_ROOT=variable)) == ["variable"]
    assert types(cli("show", "--json", OTLEDGER_ROOT="")) == ["default"]


def on_terminal(*args: str, root: Path, **variables: str) -> str:
    """What a command writes to stdout if that is a terminal."""
    ours, theirs = pty.openpty()
    environ = environment(OTLEDGER_ROOT=str(root), TERM="xterm", **variables)
    environ.pop("NO_COLOR", None) if "NO_COLOR" not in variables else None
    process = subprocess.Popen([*COMMAND, *args], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    written = b""
    while True:
        try:
            block = os.read(ours, 65_536)
        except OSError:
            break
        if not block:
            break
        written += block
    os.close(ours)
    process.wait(30)
    return written.decode()


def test_colours_are_for_terminals_that_want_them(cli: Run, shop: Path) -> None:
    for command in ("show", "verify", "machines", "doctor"):
        assert "\x1b[" in on_terminal(command, root=shop)
        assert "\x1b[" not in on_terminal(command, root=shop, NO_COLOR="1")
        assert "\x1b[" not in cli(command).stdout


def test_json_on_a_terminal_is_escaped_and_means_the_same(cli: Run, root: Path) -> None:
    write(root, Draft("a.b", "\u202eevil\x9b31m"))
    seen = on_terminal("show", "--json", root=root)
    assert not FORBIDDEN.search(seen.replace("\r", ""))
    literal = cli("show", "--json").stdout
    assert "\u202e" in literal
    assert json.loads(seen) == json.loads(literal)


def test_progress_is_shown_on_a_terminal_only_for_what_lasts(root: Path) -> None:
    code = (
        "import sys, time; from otledger.cli.output import Progress\n"
        "with Progress('verify') as call:\n"
        "    for done in (1, 2):\n"
        "        time.sleep(float(sys.argv[1])); call and call(done, 2)\n"
    )
    for seconds, expected in (("0.01", False), ("0.7", True)):
        ours, theirs = pty.openpty()
        subprocess.run([sys.executable, "-c", code, seconds], stderr=theirs, env=environment(), check=True)
        os.close(theirs)
        seen = b""
        while True:
            try:
                seen += os.read(ours, 4096)
            except OSError:
                break
        os.close(ours)
        assert (b"100%" in seen) is expected
    done = subprocess.run([sys.executable, "-c", code, "0.7"], capture_output=True, env=environment(), check=True)
    assert done.stderr == b""


@pytest.mark.parametrize(
    "command",
    [
        *("show", "show --text a", "show --ipc-hash HASH", "turns", "turn HASH", "turn abab", "trace TRACE", "spans"),
        *("pairs", "stats", "digest", "verify", "index --rebuild", "sql 'select * from events'", "compact"),
    ],
)
def test_what_reads_much_shows_a_bar_which_makes_place_for_lines(root: Path, tmp_path: Path, command: str) -> None:
    settings: dict[str, Any] = {"machine": "web1", "service": "shop", "max_segment": 20_000}
    with otledger.open_sync(root, **settings) as ledger, ledger.turn("ab" * 32), ledger.span("work") as span:
        for n in range(60):
            ledger.append("job.start", {"id": n, "fill": "x" * 500})
    arguments = shlex.split(command.replace("HASH", "ab" * 32).replace("TRACE", span.trace_id))
    code = "import sys\nfrom otledger.cli import main, output\noutput.Progress.DELAY = 0.0\nmain()"
    environ = environment(OTLEDGER_ROOT=str(root), COLUMNS="200", NO_COLOR="1")
    seen = {}
    for terminal in (True, False):
        shutil.rmtree(root / "web1" / ".cache", ignore_errors=True)
        ours, theirs = pty.openpty()
        with (tmp_path / "out").open("wb") as file:
            stdout = theirs if terminal else file
            process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments], stdout=stdout, stderr=theirs, env=environ
            )
        os.close(theirs)
        seen[terminal] = b""
        with contextlib.suppress(OSError):
            while part := os.read(ours, 1 << 16):
                seen[terminal] += part
        os.close(ours)
        assert process.wait(60) in (0, 7)
        assert re.search(rb"[\w-]+ \[[#.]+\] +\d+% of ", seen[terminal])
    assert b"\x1b[K" not in (tmp_path / "out").read_bytes()
    # Nothing stands behind a bar in its line: what is left of the terminal is what was written.
    shown = re.sub(rb"\r\x1b\[K[\w-]+ \[[#.]+\] +\d+% of [\d.]+ \w+(?=\r\x1b\[K)", b"", seen[True])
    assert b"[#" not in shown
    assert b"[." not in shown


def test_a_reader_that_goes_away_ends_a_command_quietly(root: Path) -> None:
    write(root, *(Draft("a.b", "x" * 500) for _ in range(2000)))
    for command in ("show", "show --json", "tail -n 2000"):
        line = f"set -o pipefail; {sys.executable} -m otledger {command} | head -1"
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, env=environment(OTLEDGER_ROOT=str(root)), timeout=30
        )
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


def test_output_that_cannot_be_written_is_an_error(shop: Path) -> None:
    environ = environment(OTLEDGER_ROOT=str(shop))
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "show"], stdout=full, stderr=subprocess.PIPE, text=True, env=environ)
    assert done.returncode == 2
    assert done.stderr == "otledger: No space left on device; free some space (df -h)\n"


def test_a_mistake_of_ours_is_one_line_too(shop: Path) -> None:
    code = "import otledger.cli, otledger.cli.survey as s; s.survey = lambda root: 1 / 0; otledger.cli.main()"
    environ = environment(OTLEDGER_ROOT=str(shop))
    done = subprocess.run([sys.executable, "-c", code, "machines"], capture_output=True, text=True, env=environ)
    assert done.returncode == 70
    assert done.stderr.startswith("otledger: a mistake in otledger: ZeroDivisionError: division by zero; ")
    assert done.stderr.count("\n") == 1
    environ["OTLEDGER_TRACEBACK"] = "1"
    done = subprocess.run([sys.executable, "-c", code, "machines"], capture_output=True, text=True, env=environ)
    assert "Traceback" in done.stderr


# log


def test_log_writes_an_event_and_prints_its_id(cli: Run, root: Path) -> None:
    turn = otledger.ipc_hash(1)
    done = cli(
        *("log", "order.placed", "--data", '{"id": 7, "text": "Grüße"}', "--subject", "tenant-1", "--source", "/me"),
        *("--ipc-hash", turn, "--ext", "phase=beta", "--ext", "n=3", "--ext", "on=true", "--ext", 'text="17"'),
        *("--time", "2026-11-21T03:00:00+01:00", "--id", "mine", "--machine", "web1"),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "mine\n", "")
    record = check(root / "web1")[1]
    expected = {
        "id": "mine", "source": "/me", "type": "order.placed", "time": "2026-11-21T02:00:00.000000000Z",
        "subject": "tenant-1", "machine": "web1", "ipchash": turn, "phase": "beta", "n": 3, "on": True, "text": "17",
        "data": {"id": 7, "text": "Grüße"},
    }  # fmt: skip
    assert expected.items() <= record.items()


def test_log_prints_a_receipt_as_json(cli: Run, root: Path) -> None:
    receipt = json.loads(cli("log", "a.b", "--machine", "web1", "--json").stdout)
    record = check(root / "web1")[1]
    assert "data" not in record
    assert {name: receipt[name] for name in ("id", "seq", "checksum", "machine")} == {
        name: record[name] for name in ("id", "seq", "checksum", "machine")
    }
    assert (root / "web1" / receipt["segment"]).exists()


def test_log_uses_the_default_root(cli: Run, tmp_path: Path) -> None:
    assert cli("log", "a.b", OTLEDGER_ROOT="", OTLEDGER_MACHINE="m").returncode == 0
    assert len(check(tmp_path / "ledger" / "m")) >= 2


def test_log_takes_json_lines_and_reports_the_bad_ones(cli: Run, root: Path) -> None:
    lines = [
        '{"type": "a.one", "data": {"big": 123456789012345678901234567890, "half": 0.5}}',
        "",
        "no json",
        '{"type": "a.two", "subject": "own", "time": "2026-01-02T03:04:05Z", "id": "x1", "extensions": {"n": 1}}',
        '{"type": "a.three", "time": 1795300000000000001, "source": "/s", "ipc_hash": "h", "data": null}',
        '{"type": "otel.span.end"}',
        '{"data": 1}',
        "[1]",
        '{"type": "a.b", "tpye": 1}',
        '{"type": "a.b", "time": "soon"}',
        '{"type": "a.b", "time": true}',
        '{"type": "a.b", "extensions": [1]}',
        '{"type": "a.b", "extensions": {"id": 1}}',
        '{"type": "a.b", "type": "a.c"}',
        '{"type": "a.b", "data": 1e999}',
        '{"type": 5}',
        '{"type": "a.b", "data": ' + "[" * 200 + "]" * 200 + "}",
        '{"type": "a.last"}',
    ]
    done = cli("log", "-", "--machine", "web1", "--subject", "default", input="\n".join(lines) + '\n{"torn')
    assert done.returncode == 2
    assert done.stdout == ""
    *bad, summary = done.stderr.splitlines()
    assert summary == "otledger: 4 events written, 14 lines refused"
    numbers = [re.match(r"otledger: line (\d+): ", line) for line in bad]
    assert [int(match[1]) for match in numbers if match] == [3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19]
    events = [record for record in check(root / "web1") if record["type"].startswith("a.")]
    assert [record["type"] for record in events] == ["a.one", "a.two", "a.three", "a.last"]
    assert [record["subject"] for record in events] == ["default", "own", "default", "default"]
    assert events[0]["data"] == {"big": {"$int": "123456789012345678901234567890"}, "half": 0.5}
    assert (events[1]["id"], events[1]["time"], events[1]["n"]) == ("x1", "2026-01-02T03:04:05.000000000Z", 1)
    assert (events[2]["time"][-10:], events[2]["source"], events[2]["ipchash"]) == ("000000001Z", "/s", "h")


def test_log_reports_lines_as_json(cli: Run, root: Path) -> None:
    done = cli("log", "-", "--machine", "web1", "--json", input=b'{"type":"a.b"}\n\xff\n{"type":"a.c"}\n')
    assert done.returncode == 2
    report = json.loads(done.stdout)
    assert (report["written"], report["not_written"], report["refused"][0]["line"]) == (2, 0, 2)


def test_log_writes_what_came_while_the_pipe_is_open(cli: Run, root: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "log", "-", "--machine", "web1"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(OTLEDGER_ROOT=str(root)),
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b'{"type": "a.early"}\n')
        process.stdin.flush()
        wait_for(lambda: root.exists() and "a.early" in cli("show").stdout)
        process.stdin.write(b'{"type": "a.late"}\n')
        process.stdin.flush()
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    written = [record["type"] for record in check(root / "web1")]
    assert [type for type in written if type.startswith("a.")] == ["a.early", "a.late"]


def test_log_warns_of_damage_and_writes_all_the_same(cli: Run, root: Path) -> None:
    segment = write(root, Draft("a.one"), Draft("a.two"))
    segment.write_bytes(segment.read_bytes().replace(b"a.one", b"a.0ne"))
    done = cli("log", "a.three", "--machine", "web1")
    assert done.returncode == 0
    assert "a.three" in cli("show").stdout
    assert all(line.startswith("otledger: ") for line in done.stderr.splitlines())


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


# show


def test_show_merges_the_machines_by_time(cli: Run, shop: Path) -> None:
    done = cli("show", "--json")
    assert done.stderr == ""
    expected = ["order.placed", "order.paid", "order.placed", "world.decision", "world.text", "note"]
    assert types(done) == expected
    stored = b"".join(path.read_bytes() for path in shop.glob("*/*.jsonl"))
    assert all(f"{line}\n".encode() in stored for line in done.stdout.splitlines())
    assert len(types(cli("show", "--json", "--all"))) == stored.count(b"\n")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--type", "order.*"], 3),
        (["--type", "order.p?id"], 1),
        (["--source", "/elsewhere"], 1),
        (["--subject", "tenant-1"], 2),
        (["--machine", "web2"], 3),
        (["--machine", "web2", "--machine", "web1", "--machine", "web2"], 6),
        (["--ipc-hash", otledger.ipc_hash({"say": "hello"})], 2),
        (["--since", "2026-09-21T15:13:20Z"], 5),
        (["--until", "2026-09-21T15:13:20Z"], 1),
        (["--text", "GRÜSSE"], 0),
        (["--text", "hello"], 1),
        (["--type", "order.*", "--machine", "web1", "--text", "1"], 2),
        (["--since", "1s"], 0),
        (["--trace", "0" * 31 + "1"], 0),
    ],
)
def test_show_takes_conditions(cli: Run, shop: Path, options: list[str], expected: int) -> None:
    done = cli("show", "--json", *options)
    assert len(types(done)) == expected
    assert done.returncode == (0 if expected else 1)
    assert done.stderr == ""


def test_show_limit_gives_the_last_ones(cli: Run, shop: Path) -> None:
    every = types(cli("show", "--json"))
    for limit in (0, 1, 3, 4, 6, 100):
        assert types(cli("show", "--json", "--limit", limit)) == (every[-limit:] if limit else [])
    assert types(cli("show", "--json", "--limit", 2, "--type", "order.*")) == ["order.paid", "order.placed"]


def test_show_limit_reads_across_segments_and_long_lines(cli: Run, root: Path) -> None:
    for n in range(12):
        with otledger.Journal(root, machine="web1", service="s", max_segment=1500) as journal:
            journal.append([Draft("a.b", n), Draft("a.long", "x" * (3 << 20 if n == 6 else 10))])
    assert len(list((root / "web1").glob("*.jsonl"))) > 3
    every = cli("show", "--json").stdout.splitlines()
    assert cli("show", "--json", "--limit", 13).stdout.splitlines() == every[-13:]
    assert cli("show", "--json", "--limit", 500).stdout.splitlines() == every


def test_show_as_text(cli: Run, shop: Path) -> None:
    first, *_, last = cli("show").stdout.splitlines()
    assert first == '2026-09-21T14:13:20.000Z  web1  order.placed  tenant-1  {"id":1}'
    assert last == "2026-09-21T18:13:20.000Z  web2  note"
    long = cli("show", "--long", "--limit", 1).stdout
    assert "2026-09-21T18:13:20.000000000Z" in long
    assert "phase=beta" in long
    assert f"turn={otledger.ipc_hash({'say': 'hello'})[:12]}" in cli("show").stdout
    assert f"turn={otledger.ipc_hash({'say': 'hello'})} " in cli("show", "--long").stdout


def test_show_as_text_of_spans_and_large_payloads(cli: Run, root: Path) -> None:
    with otledger.open_sync(root, machine="web1", service="shop") as ledger:
        with pytest.raises(ZeroDivisionError), ledger.span("charge", attributes={"amount": 12}):
            raise ZeroDivisionError
        ledger.append("a.large", "y" * 5000)
    spans, large = cli("show", "--type", "otel.span.end").stdout, cli("show", "--type", "a.large").stdout
    assert re.search(r"otel\.span\.end  charge  [\d.]+ (ms|µs)  ERROR  \{\"amount\":12\}", spans)
    assert "5,002 bytes; all of it by --json" in large
    assert len(large) < 2200


def test_show_on_a_damaged_ledger_gives_what_can_be_read(cli: Run, shop: Path) -> None:
    segment = next((shop / "web1").glob("*.jsonl"))
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join((*lines[:1], b"\x00" * 100 + b"\n", *lines[1:2], b'{"half": \n', *lines[2:])))
    bad = {len(lines[0]), len(lines[0]) + 101 + len(lines[1])}
    for options in ([], ["--limit", 100], ["--all"]):
        done = cli("show", "--json", *options)
        assert done.returncode == 3
        assert done.stdout.count('"order.') == 3
        reported = re.findall(rf"^otledger: {segment}, offset (\d+): .*otledger verify$", done.stderr, re.MULTILINE)
        assert {int(offset) for offset in reported} == bad
        assert len(reported) == done.stderr.count("\n")


def test_show_passes_over_a_torn_end(cli: Run, shop: Path) -> None:
    segment = next((shop / "web1").glob("*.jsonl"))
    with segment.open("ab") as file:
        file.write(b'{"specversion":"1.0","id":')
    for command in (["show"], ["show", "--limit", 50], ["tail"]):
        done = cli(*command, "--json")
        assert (done.returncode, len(types(done)), done.stderr) == (0, 6, "")


def test_thousands_of_damaged_lines_are_counted_not_listed(cli: Run, shop: Path) -> None:
    with next((shop / "web1").glob("*.jsonl")).open("ab") as file:
        file.write(b"nonsense\n" * 5000)
    done = cli("show")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 101
    assert "otledger verify" in done.stderr.splitlines()[-1]


# Escapes

EVIL = "\x1b[31m\x07\x7f\x9b2J\u202egnp.exe\u2066\u200f\u2028\x85\r\x08\n"


def evil_partition(root: Path) -> Path:
    """Lines with controls in every field, as only somebody else would write them."""
    folder = root / "evil"
    folder.mkdir(parents=True)
    record = {
        "specversion": "1.0", "id": f"id{EVIL}", "source": f"/s{EVIL}", "type": f"t{EVIL}", "time": f"2026{EVIL}",
        "datacontenttype": EVIL, "dataschema": EVIL, "subject": f"sub{EVIL}", "machine": f"evil{EVIL}",
        "ipchash": f"turn{EVIL}", "traceparent": f"00-{EVIL}", "tracestate": EVIL, f"ext{EVIL}": f"value{EVIL}",
        "data": {f"key{EVIL}": f"value{EVIL}"}, "seq": 0,
    }  # fmt: skip
    span = {**record, "type": "otel.span.end", "seq": 1}
    span["data"] = {
        "name": f"n{EVIL}",
        "start": 1,
        "end": 2,
        "attributes": {f"a{EVIL}": EVIL},
        "status": {"code": EVIL},
    }
    start = {**span, "type": "otel.span.start", "seq": 2}
    lines = [json.dumps(line, ensure_ascii=False) for line in (record, span, start)]
    (folder / "2026-11.jsonl").write_bytes("\n".join((*lines, f'{{"bad{EVIL}"'.replace("\n", ""), "")).encode())
    return folder


@pytest.mark.parametrize(
    "args",
    [
        ["show"],
        ["show", "--long", "--all"],
        ["show", "--limit", "9"],
        ["tail", "--long"],
        ["machines"],
        ["verify", "--deep"],
        ["doctor"],
        ["show", "--machine", EVIL.strip("\n")],
        ["import", "evledger", EVIL],
        ["show", "--since", EVIL],
        ["show", "--root", EVIL],
        [EVIL],
        ["show", f"--{EVIL}"],
    ],
)
def test_control_characters_are_escaped(cli: Run, root: Path, args: list[str]) -> None:
    evil_partition(root)
    done = cli(*args)
    assert not FORBIDDEN.search(done.stdout)
    assert not FORBIDDEN.search(done.stderr)
    assert done.stdout + done.stderr


def test_what_is_escaped_can_still_be_read(cli: Run, root: Path) -> None:
    evil_partition(root)
    text = cli("show", "--long").stdout
    for field in ("id", "/s", "t", "sub", "evil", "turn", "value"):
        assert rf"{field}\x1b[31m\x07\x7f\x9b2J\u202egnp.exe\u2066\u200f\u2028\x85\r\x08\n" in text
    assert r"key\u001b[31m\u0007\x7f\x9b2J\u202e" in text


def test_raw_escapes_nothing(cli: Run, root: Path) -> None:
    evil_partition(root)
    assert f"sub{EVIL}" in cli("show", "--raw").stdout


def test_the_escapes_leave_other_text_alone() -> None:
    text = "Grüße, 老陳, עברית, 👩‍💻 — ok"
    assert safe(text) == safe_json(text) == text
    assert safe("\ud800") == "\\ud800"
    for code in (
        *range(0x20),
        *range(0x7F, 0xA0),
        0x61C,
        0x200E,
        0x200F,
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
    ):
        assert not FORBIDDEN.search(safe(chr(code)))
        assert json.loads(f'"{safe_json(chr(code))}"') == chr(code)


# tail


def test_tail_gives_the_last_ten(cli: Run, root: Path) -> None:
    write(root, *(Draft("a.b", n) for n in range(30)))
    every = cli("show", "--json").stdout.splitlines()
    assert cli("tail", "--json").stdout.splitlines() == every[-10:]
    assert cli("tail", "--json", "-n", 3).stdout.splitlines() == every[-3:]
    assert cli("tail", "-n", 0).returncode == 1


class Following:
    """A running `tail -f`, with what it has written so far."""

    def __init__(self, root: Path, *args: object) -> None:
        self._process = subprocess.Popen(
            [*COMMAND, "tail", "-f", "--json", *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(OTLEDGER_ROOT=str(root)),
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        os.set_blocking(self._process.stderr.fileno(), False)
        self.text = self.error = b""

    def complains(self) -> bool:
        assert self._process.stderr is not None
        self.error += self._process.stderr.read() or b""
        return self.error.endswith(b"\n")

    def types(self) -> list[str]:
        assert self._process.stdout is not None
        self.text += self._process.stdout.read() or b""
        return [json.loads(line)["type"] for line in self.text.split(b"\n")[:-1]]

    def wait_for(self, *expected: str) -> None:
        wait_for(lambda: self.types() == list(expected))

    def end(self, signal: int) -> tuple[int, str]:
        self._process.send_signal(signal)
        code = self._process.wait(20)
        assert self._process.stderr is not None
        assert self._process.stdout is not None
        with self._process.stdout, self._process.stderr:
            return code, (self.error + (self._process.stderr.read() or b"")).decode()


def test_tail_follows_until_ctrl_c(root: Path) -> None:
    write(root, Draft("a.one"), Draft("a.two"))
    following = Following(root, "-n", 1)
    following.wait_for("a.two")
    write(root, Draft("a.three"))
    following.wait_for("a.two", "a.three")
    write(root, Draft("b.new"), machine="web2")
    following.wait_for("a.two", "a.three", "b.new")
    assert following.end(signal.SIGINT) == (130, "")


def test_tail_follows_over_damage(root: Path) -> None:
    segment = write(root, Draft("a.one"))
    following = Following(root)
    following.wait_for("a.one")
    with segment.open("ab") as file:
        file.write(b"nonsense\n")
    # The next to write cuts it off: nobody has seen it who looks afterwards.
    wait_for(following.complains)
    write(root, Draft("a.two"))
    following.wait_for("a.one", "a.two")
    code, error = following.end(signal.SIGINT)
    assert code == 130
    assert "nonsense" not in error
    assert error.count("\n") >= 1
    assert all(line.startswith("otledger: ") for line in error.splitlines())


def test_tail_keeps_its_place_in_a_file(cli: Run, root: Path, tmp_path: Path) -> None:
    cursor = tmp_path / "place"
    write(root, *(Draft("a.old", n) for n in range(3)))
    assert types(cli("tail", "--cursor", cursor, "--json", "-n", 2)) == ["a.old", "a.old"]
    assert cli("tail", "--cursor", cursor).returncode == 1
    write(root, Draft("a.one"))
    write(root, Draft("b.one"), machine="web2")
    assert types(cli("tail", "--cursor", cursor, "--json")) == ["a.one", "b.one"]
    following = Following(root, "--cursor", cursor)
    write(root, Draft("a.two"))
    following.wait_for("a.two")
    assert following.end(signal.SIGTERM) == (143, "")
    write(root, Draft("a.three"))
    before = cursor.read_text()
    following = Following(root, "--cursor", cursor)
    following.wait_for("a.three")
    # Ended before that, it shows the record again.
    wait_for(lambda: cursor.read_text() != before)
    assert following.end(signal.SIGINT)[0] == 130
    assert cli("tail", "--cursor", cursor).stdout == ""
    assert [path.name for path in tmp_path.iterdir() if "place" in path.name] == ["place"]


async def test_tail_saves_its_last_place_when_the_one_before_is_saved(root: Path) -> None:
    shown: list[str] = []
    saved: list[Cursor] = []
    saving, two_at_once = threading.Event(), threading.Event()

    def save(cursor: Cursor) -> None:
        if saving.is_set():
            two_at_once.set()
        saving.set()
        two_at_once.wait(0.5)
        saved.append(cursor)

    printer: Any = SimpleNamespace(record=lambda record: shown.append(record.type))
    keeper: Any = SimpleNamespace(save=save)
    write(root, Draft("a.one"))
    following = _Following(root, Cursor(), Filter(), None, printer, set())
    task = asyncio.create_task(following.run(keeper))
    async with asyncio.timeout(20):
        while not saving.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        write(root, Draft("a.two"))
        while "a.two" not in shown:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert len(saved) == 2
    assert saved[0].positions["web1"] < saved[1].positions["web1"]


def test_tail_shows_again_what_its_reader_did_not_take(root: Path, tmp_path: Path, cli: Run) -> None:
    cursor = tmp_path / "place"
    write(root, Draft("a.one"))
    cli("tail", "--cursor", cursor)
    write(root, *(Draft("a.b", "x" * 500) for _ in range(2000)))
    line = f"{sys.executable} -m otledger tail --cursor {cursor} --json | head -1"
    subprocess.run(["bash", "-c", line], capture_output=True, env=environment(OTLEDGER_ROOT=str(root)), check=True)
    assert len(types(cli("tail", "--cursor", cursor, "--json"))) == 2000


@pytest.mark.parametrize("content", ["", "nonsense", '{"positions":{"../x":["2026-11.jsonl",0]}}'])
def test_tail_refuses_a_cursor_that_is_none(cli: Run, shop: Path, tmp_path: Path, content: str) -> None:
    cursor = tmp_path / "place"
    cursor.write_text(content)
    done = cli("tail", "--cursor", cursor)
    assert done.returncode == 2
    assert "remove it to begin anew" in one_line(done)
    assert cursor.read_text() == content


# verify


def tampered(root: Path) -> None:
    segment = write(root, Draft("a.one"), Draft("a.two"))
    segment.write_bytes(segment.read_bytes().replace(b"a.one", b"a.0ne"))


def forked(root: Path) -> None:
    segment = write(root, Draft("a.one"))
    copy = root.with_name("copy")
    shutil.copytree(root, copy)
    common = segment.stat().st_size
    write(root, Draft("a.here"))
    theirs = write(copy, Draft("a.there"))
    with segment.open("ab") as file:
        file.write(theirs.read_bytes()[common:])


def incomplete(root: Path) -> None:
    shutil.copytree(DATA / "evledger" / "laptop", root / "laptop")


def recovered(root: Path) -> None:
    segment = write(root, Draft("a.one"))
    with segment.open("ab") as file:
        file.write(b'{"specversion":"1.0","id":')
    write(root, Draft("a.two"))


def fine(root: Path) -> None:
    write(root, Draft("a.one"))


@pytest.mark.parametrize(
    ("make", "status", "code"),
    [
        (fine, "OK", 0),
        (tampered, "TAMPERED", 3),
        (forked, "FORK", 4),
        (incomplete, "INCOMPLETE", 5),
        (recovered, "RECOVERED", 6),
    ],
)
def test_verify_says_what_is_wrong_and_where(
    cli: Run, root: Path, make: Callable[[Path], None], status: str, code: int
) -> None:
    make(root)
    done = cli("verify")
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.splitlines()[0].split() == ["machine", "status", "records", "bytes", "head"]
    assert status in done.stdout.splitlines()[1]
    assert done.stdout.splitlines()[-1].startswith(f"{status}: ")
    quiet = cli("verify", "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (code, "", "")
    report = json.loads(cli("verify", "--json", "--deep", "--processes", 2).stdout)
    assert report["status"] == status
    for fault in report["machines"][0]["faults"]:
        assert f"offset {fault['offset']}" in done.stdout
        assert fault["reason"] in done.stdout


def test_verify_of_what_is_expected(cli: Run, shop: Path) -> None:
    assert cli("verify", "--machine", "web1", "--tail").returncode == 0
    assert cli("verify", "--expect", "web1", "--expect", "web2").returncode == 0
    done = cli("verify", "--expect", "web3")
    assert done.returncode == 5
    assert "web3" in done.stdout


def test_verify_of_nothing_is_no_success(cli: Run, root: Path) -> None:
    root.mkdir()
    done = cli("verify")
    assert done.returncode == 1
    assert "nothing was verified" in one_line(done)


# machines, doctor


def test_machines(cli: Run, shop: Path) -> None:
    shutil.copytree(DATA / "evledger" / "laptop", shop / "laptop")
    listed = json.loads(cli("machines", "--json").stdout)
    assert [machine["machine"] for machine in listed] == ["laptop", "web1", "web2"]
    laptop, web1, _ = listed
    records = check(shop / "web1")
    assert (laptop["chained"], laptop["segments"], laptop["records"], laptop["checkpoint"]) == (False, 2, 205, None)
    assert (web1["chained"], web1["segments"], web1["records"]) == (True, 1, len(records))
    assert (web1["first"], web1["last"]) == ("2026-09-21T14:13:20.000000000Z", "2026-09-21T17:13:20.000000000Z")
    assert web1["checkpoint"] == [r for r in records if r["type"] == "otledger.checkpoint"][-1]["data"]["size"]
    assert web1["bytes"] == sum(path.stat().st_size for path in (shop / "web1").glob("*.jsonl"))
    text = cli("machines").stdout.splitlines()
    assert len(text) == 4
    assert text[2].split()[:4] == ["web1", "yes", "1", str(len(records))]


def levels(done: Result) -> set[tuple[str, str]]:
    return {(found["level"], found["subject"]) for found in json.loads(done.stdout)}


def test_doctor_on_a_good_ledger_changes_nothing(cli: Run, shop: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in shop.rglob("*")}
    done = cli("doctor", "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    subjects = {"settings", "identity", "folder", "file system", "space", "clock", "web1", "web2"}
    assert {subject for _, subject in levels(done)} == subjects
    assert {path: path.stat().st_mtime_ns for path in shop.rglob("*")} == before
    text = cli("doctor").stdout
    assert f"ok    folder       {shop} is 0700" in text


def test_doctor_where_no_ledger_is_yet(cli: Run, root: Path) -> None:
    done = cli("doctor")
    assert done.returncode == 0
    assert "the first event makes it" in done.stdout
    assert not root.exists()


def everybody_writes(root: Path) -> None:
    root.chmod(0o777)


def segment_for_everybody(root: Path) -> None:
    next((root / "web1").glob("*.jsonl")).chmod(0o666)


def segment_is_a_folder(root: Path) -> None:
    (root / "web1" / "2030-01.jsonl").mkdir()


@pytest.mark.parametrize(
    ("make", "subject", "remedy"),
    [
        (everybody_writes, "folder", "chmod o-w"),
        (segment_for_everybody, "web1", "chmod o-w"),
        (segment_is_a_folder, "web1", "move it out"),
    ],
)
def test_doctor_finds_what_is_bad(
    cli: Run, shop: Path, make: Callable[[Path], None], subject: str, remedy: str
) -> None:
    make(shop)
    done = cli("doctor", "--json")
    assert done.returncode == 1
    assert ("bad", subject) in levels(done)
    assert remedy in done.stdout


def test_doctor_on_a_root_that_is_a_file(cli: Run, root: Path) -> None:
    root.write_text("")
    done = cli("doctor", "--json")
    assert done.returncode == 1
    assert ("bad", "folder") in levels(done)


def test_doctor_reads_the_settings(cli: Run, shop: Path) -> None:
    assert ("bad", "settings") in levels(cli("doctor", "--json", OTLEDGER_DURABILITY="paper"))
    assert ("bad", "settings") in levels(cli("doctor", "--json", OTLEDGER_MACHINE="../x"))
    assert ("warn", "settings") in levels(cli("doctor", "--json", OTLEDGER_DURABILTY="os"))
    assert ("bad", "space") in levels(cli("doctor", "--json", OTLEDGER_MIN_FREE=str(1 << 60)))


def test_doctor_names_who_holds_the_lock(cli: Run, shop: Path) -> None:
    code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code, shop / "web1" / ".lock"], stdin=-1, stdout=-1)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        done = cli("doctor")
        assert f"the lock is held by process {holder.pid} (" in done.stdout
        assert done.returncode == 0
    finally:
        holder.kill()
        holder.communicate()


def test_doctor_tells_of_another_host_and_of_quarantine(cli: Run, root: Path) -> None:
    recovered(root)
    assert any(path.name != ".lock" for path in (root / "web1" / "quarantine").iterdir())
    done = cli("doctor", "--json", "--machine", "web1")
    assert ("warn", "web1") in levels(done)
    assert "quarantine has 1 file" in done.stdout


# import, export


def test_import_and_export_give_the_predecessors_back(cli: Run, root: Path, tmp_path: Path) -> None:
    done = cli("import", "evledger", DATA / "evledger")
    assert (done.returncode, done.stderr) == (0, "")
    assert "400 events imported into ci-1.import, laptop.import" in done.stdout
    done = cli("import", "pipeworks", DATA / "pipeworks", "--json")
    assert json.loads(done.stdout)["imported"] == 240
    again = json.loads(cli("import", "pipeworks", DATA / "pipeworks", "--json").stdout)
    assert (again["imported"], again["already_there"]) == (0, 240)
    for machine in ("ci-1.import", "laptop.import", "pipeworks.import"):
        check(root / machine)

    done = cli("export", "evledger", "ev", "--machine", "laptop.import", "--machine", "ci-1.import")
    assert (done.returncode, done.stderr) == (0, "")
    for path in sorted((DATA / "evledger").glob("*/*.jsonl")):
        back = tmp_path / "ev" / path.relative_to(DATA / "evledger")
        assert objects(back) == objects(path)
    report = json.loads(cli("export", "pipeworks", "pw", "--world", "pipeworks_web", "--json").stdout)
    assert report["files"] == ["pw/pipeworks_web.jsonl"]
    back, given = tmp_path / "pw" / "pipeworks_web.jsonl", DATA / "pipeworks" / "pipeworks_web.jsonl"
    assert objects(back) == objects(given)


def objects(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_import_reports_bad_lines(cli: Run, root: Path, tmp_path: Path) -> None:
    given = tmp_path / "world.jsonl"
    lines = (DATA / "pipeworks" / "pipeworks_web.jsonl").read_bytes().splitlines(keepends=True)
    given.write_bytes(lines[0] + lines[1].replace(b"hello", b"hallo") + lines[2])
    done = cli("import", "pipeworks", given)
    assert done.returncode == 2
    assert done.stderr.startswith(f"otledger: {given}, offset {len(lines[0])}: ")
    assert done.stderr.count("\n") == 1
    assert "2 events imported" in done.stdout
    assert len(json.loads(cli("import", "pipeworks", given, "--json").stdout)["refused"]) == 1
    check(root / "pipeworks.import")


def test_import_refuses_what_is_no_such_ledger(cli: Run, tmp_path: Path) -> None:
    done = cli("import", "evledger", DATA / "pipeworks")
    assert done.returncode == 2
    assert "otledger import pipeworks" in one_line(done)


def test_export_of_nothing_says_so(cli: Run, shop: Path, tmp_path: Path) -> None:
    done = cli("export", "pipeworks", "pw")
    assert done.returncode == 2
    assert "nothing was written" in one_line(done)
    assert not (tmp_path / "pw").exists()
    assert cli("export", "pipeworks", "pw", "--everything").returncode == 0


def test_export_of_a_damaged_ledger_says_so(cli: Run, shop: Path) -> None:
    with next((shop / "web1").glob("*.jsonl")).open("ab") as file:
        file.write(b"nonsense\n")
    done = cli("export", "evledger", "ev")
    assert done.returncode == 3
    assert "6 events written" in done.stdout
    assert done.stderr.count("\n") == 1
