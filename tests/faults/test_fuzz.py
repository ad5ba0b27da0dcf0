"""Readers under fire: thousands of damaged files, lines and requests; no crash, no hang, and never OK for damage.

An example that fails is named by its target, seed and number, and is the same when it is run again.
"""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import otledger
from otledger import Status, speed
from otledger.batch import check_line
from otledger.recovery import inspect
from otledger.segment import open_folder, read_chain
from tests.faults.conftest import Say
from tests.faults.fuzz_targets import DATA, TARGETS, Bench
from tests.faults.fuzzing import BREACHES, DEEP, Dice, Hung, at_most, recomputed
from tests.faults.tools import (
    REPOSITORY,
    append_bytes,
    closed,
    environment,
    lines_of,
    newest,
    partition,
    rechained,
    restamp,
    run_python,
)

MEMORY = Path("/dev/shm")
LEAST = 5_000
"""Examples of the short campaign in all."""
FUZZ_SECONDS = int(os.environ.get("OTLEDGER_TEST_FUZZ_SECONDS", "600"))
"""How long atheris looks at one target. Read here, as no test sees such a setting."""
SECONDS = 20.0
"""What one example may take at most: a thousand times what it does take."""


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    folder = tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None, prefix="otledger-fuzz-")
    try:
        level = logging.getLogger("otledger").level
        yield Bench(Path(folder))
        logging.getLogger("otledger").setLevel(level)
    finally:
        shutil.rmtree(folder)


def run(bench: Bench, name: str, count: int, seed: str) -> None:
    target, _ = TARGETS[name]
    for number in range(count):
        try:
            with at_most(SECONDS):
                target(bench, Dice((name, seed, number)))
        except (Exception, Hung) as error:
            pytest.fail(f"{name}, seed {seed!r}, example {number}: {type(error).__name__}: {error}", pytrace=True)


def test_the_short_campaign_is_as_long_as_it_says() -> None:
    assert sum(count for _, count in TARGETS.values()) >= LEAST


@pytest.mark.parametrize("name", TARGETS)
def test_examples(name: str, bench: Bench, campaign: str, say: Say) -> None:
    seed, count = "short", TARGETS[name][1]
    if campaign == "long":
        seed, count = os.urandom(4).hex(), count * 40
    run(bench, name, count, seed)
    say(f"{name}: {count:,} examples, seed {seed}", examples=count)


@pytest.mark.parametrize("name", BREACHES)
def test_each_breach_of_the_format_is_seen_by_a_deep_look(name: str, tmp_path: Path) -> None:
    """Where somebody computed every checksum anew, and nobody knows what was there before."""
    root = tmp_path / "ledger"
    closed(root, *({"n": n} for n in range(3)))
    (partition(root) / ".lock").unlink()
    lines = lines_of(newest(root))
    assert otledger.verify(root, deep=True).status is Status.OK
    newest(root).write_bytes(b"".join(recomputed(lines, 2, BREACHES[name](lines[2]))))
    report = otledger.verify(root, deep=True)
    assert report.status is Status.TAMPERED, name
    assert report.faults[0].seq == 2


# What must not take the memory or the time --------------------------------------------------------------------


def valid(body: bytes) -> bytes:
    """A line that follows nothing, with a right checksum."""
    zeros = b"0" * 64
    return restamp(body + b',"seq":0,"prev":"%b","checksum":"sha256:%b"}\n' % (zeros, zeros))


EVENT = b'{"specversion":"1.0","id":"x","source":"s","type":"t","time":"2026-11-21T00:00:00.000000000Z","machine":"m1"'
MIB = 1 << 20
HUGE = {
    "a line of 10 MB": lambda: valid(EVENT + b',"data":"' + b"x" * (10 * MIB) + b'"'),
    "a line of 10 MB of escapes": lambda: valid(EVENT + b',"data":"' + b"\\u2028" * (10 * MIB // 6) + b'"'),
    "a line of 10 MB that is no JSON": lambda: b"x" * (10 * MIB) + b"\n",
    "a line of 50 MB": lambda: b"x" * (50 * MIB) + b"\n",
    "50 MB of zeros": lambda: bytes(50 * MIB),
    "200,000 lines of nothing": lambda: b"\n" * 200_000,
    "10,000 deep": lambda: valid(EVENT + b',"data":' + DEEP),
    "a million deep": lambda: valid(EVENT + b',"data":' + b"[" * MIB),
    "a million deep, of another": lambda: b'{"specversion":"1.0","data":' + b'{"a":' * MIB + b"\n",
    "a number of a million digits": lambda: valid(EVENT + b',"data":' + b"9" * MIB),
    "a large number of a million digits": lambda: valid(EVENT + b',"data":{"$int":"' + b"9" * MIB + b'"}'),
    "a decimal with a large exponent": lambda: valid(EVENT + b',"data":{"$decimal":"1e999999999"}'),
    "300,000 members": lambda: valid(EVENT + b"".join(b',"m%d":1' % n for n in range(300_000))),
    "300,000 members, one twice": lambda: valid(EVENT + b"".join(b',"m%d":1' % n for n in range(300_000)) + b',"m1":1'),
    "200,000 lines of nothing much": lambda: b"x\n" * 200_000,
}
FINE = {
    *("a line of 10 MB", "a line of 10 MB of escapes", "a large number of a million digits"),
    *("a decimal with a large exponent", "300,000 members"),
}
"""What is a record, however large."""
BENT = {"10,000 deep", "a million deep", "a number of a million digits", "300,000 members, one twice"}
"""What only a deep look tells from a record."""
READ = """
import contextlib, json, logging, sys, time
from pathlib import Path
import otledger
from otledger.errors import LedgerError
from otledger.predecessors import import_evledger, import_pipeworks
from otledger_opentelemetry.importing import import_otlp
from tests.faults.fuzz_targets import look_at
from tests.faults.tools import closed
logging.getLogger("otledger").addHandler(logging.NullHandler())
logging.getLogger("otledger").propagate = False

def use(what, root):
    if what in ("verify", "deep"):
        return str(otledger.verify(root, processes=1, deep=what == "deep").status)
    if what == "read":
        for record in otledger.Reader(root).records(on_fault=lambda fault: None):
            look_at(record)
    elif what == "open":
        closed(root, "after")
    else:
        for take in (import_evledger, import_pipeworks, import_otlp):
            with contextlib.suppress(LedgerError):
                take(root.parent / f"{root.name}-{take.__name__}", root / take.__name__)

for root in map(Path, sys.argv[2:]):
    status, began = None, time.process_time()
    with contextlib.suppress(LedgerError):
        status = use(sys.argv[1], root)
    # Not getrusage: that begins with what the parent had.
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024
    print(json.dumps([status, time.process_time() - began, peak]), flush=True)
"""
MOST_MIB = 300
"""A line of 16 MiB is held whole, decoded, and once more as text."""
MOST_SECONDS = 20.0
"""Of the processor's time, for each."""
FIRST = {
    "import_evledger": ("m1/2026-09.jsonl", "evledger/laptop/2026-09.jsonl"),
    "import_pipeworks": ("x.jsonl", "pipeworks/pipeworks_web.jsonl"),
    "import_otlp": ("", "otlp/sdk_traces.jsonl"),
}
"""Where each import finds its source, and whose first line says that it is one."""


def lay_sources(root: Path, data: bytes) -> None:
    for name, (place, sample) in FIRST.items():
        path = root / name / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((DATA / sample).read_bytes().partition(b"\n")[0] + b"\n" + data + b"\n")


@pytest.fixture(scope="module")
def huge_ledgers(bench: Bench) -> list[Path]:
    roots = [bench.folder / f"huge{number}" for number in range(len(HUGE))]
    for root, make in zip(roots, HUGE.values(), strict=True):
        closed(root, 1)
        lines = lines_of(newest(root))
        huge = make()
        # With a right checksum it is the next record: only a deep look may find something.
        new = rechained([*lines, huge])[-1] if check_line(huge) else huge
        append_bytes(newest(root), new)
        (partition(root) / ".lock").unlink()
    return roots


# The last one changes them.
@pytest.mark.parametrize("what", ["verify", "deep", "read", "open"])
def test_no_ledger_takes_the_memory_or_the_time(what: str, huge_ledgers: list[Path]) -> None:
    use(what, huge_ledgers)


def test_no_source_of_an_import_takes_the_memory_or_the_time(bench: Bench) -> None:
    # Each line that is refused is kept in a file of its own, and synced.
    names = [name for name in HUGE if "200,000 lines of nothing much" not in name]
    roots = [bench.folder / f"source{number}" for number in range(len(names))]
    for root, name in zip(roots, names, strict=True):
        lay_sources(root, HUGE[name]())
    use("import", roots)
    assert len(list(bench.folder.glob("source*-import_*"))) == 3 * len(names)


def use(what: str, roots: list[Path]) -> None:
    done = run_python(READ, what, *roots)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"the {len(answers) + 1}th of {list(HUGE)}: {done.stderr[-2000:]}"
    for name, (status, seconds, peak) in zip(HUGE, answers, strict=len(roots) == len(HUGE)):
        print(f"{name}: {status}, {seconds:.2f} s, {peak} MiB")
        if status is not None:
            good = name in (FINE if what == "deep" else FINE | BENT)
            assert status == ("OK" if good else "TAMPERED"), name
        assert seconds < MOST_SECONDS, name
        assert peak < MOST_MIB, name


def repeated(count: int, *, twice: bool) -> bytes:
    """A header, then as many checkpoints that name records which are not there; or everything twice."""
    kind = b'"otledger.checkpoint"' if not twice else b'"t"'
    line = valid(EVENT.replace(b'"t"', kind) + b',"data":{"size":7,"head":"x"}')
    lines = rechained([line] * count)
    return b"".join(lines) * (1 + twice)


@pytest.mark.parametrize("twice", [False, True], ids=["wrong checkpoints", "the file twice"])
def test_the_time_grows_with_the_file_and_not_with_its_square(twice: bool, root: Path) -> None:
    closed(root, 1)
    seconds = []
    for count in (1_000, 4_000):
        newest(root).write_bytes(repeated(count, twice=twice))
        (partition(root) / ".lock").unlink(missing_ok=True)
        began = time.process_time()
        assert otledger.verify(root, processes=1).status is Status.TAMPERED
        inspect_all(root)
        seconds.append(time.process_time() - began)
    assert seconds[1] < 8 * seconds[0] + 0.5, seconds


def inspect_all(root: Path) -> None:
    fd = open_folder(partition(root))
    try:
        inspect(fd, partition(root), read_chain(fd, partition(root)), None)
    finally:
        os.close(fd)


# Long ---------------------------------------------------------------------------------------------------------


def forever(*arguments: str, seconds: float, **env: str) -> str:
    command = [sys.executable, "-m", "tests.faults.fuzz_forever", *arguments]
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "exporters")])
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment() | {"PYTHONPATH": path} | env, capture_output=True, text=True,
        timeout=seconds,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout + done.stderr


SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
COMPILED = ["encoding", "misusing", "checking", "decoding"]


def sanitize(folder: Path) -> str:
    """Build the compiled parts with sanitizers into a folder; give what has to be loaded before the interpreter."""
    compiler = shutil.which("gcc")
    sources = sorted(Path(speed.__file__).parent.glob("_*.c"))
    if compiler is None or not sources:
        pytest.skip("needs gcc (apt-get install gcc) and the sources")
    include = f"-I{sysconfig.get_path('include')}"
    for source in sources:
        build = folder / f"{source.stem}{sysconfig.get_config_var('EXT_SUFFIX')}"
        command = [compiler, *SANITIZERS, "-fPIC", "-shared", include, str(source), "-o", str(build)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot build with sanitizers: {done.stderr[-300:]}")
    libraries = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return ":".join(libraries)


@pytest.mark.skipif(speed.stamp is None, reason="not compiled here, or no SHA-256 instructions")
def test_the_compiled_part_under_sanitizers(campaign: str, tmp_path: Path, say: Say) -> None:
    """Memory errors and undefined behaviour in the compiled part end the process."""
    if campaign != "long":
        pytest.skip("runs in the long campaign: --campaign long")
    preload = sanitize(tmp_path)
    count = 50_000
    shown = forever(
        "--dice",
        ",".join(COMPILED),
        str(count),
        seconds=3600,
        OTLEDGER_SPEED=str(tmp_path),
        LD_PRELOAD=preload,
        # The interpreter frees little at its end; its own allocator would hide what ours does wrong.
        ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1",
        PYTHONMALLOC="malloc",
    )
    assert all(f"{name} {count}" in shown for name in COMPILED)
    say(f"{', '.join(COMPILED)}: {count:,} examples each under sanitizers", examples=count * len(COMPILED))


@pytest.mark.parametrize("name", TARGETS)
def test_atheris(name: str, campaign: str, tmp_path: Path, say: Say) -> None:
    """For each target ten minutes, or what OTLEDGER_TEST_FUZZ_SECONDS says."""
    if campaign != "long":
        pytest.skip("runs in the long campaign: --campaign long")
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed (pip install atheris)")
    shown = forever(
        name, f"-max_total_time={FUZZ_SECONDS}", "-timeout=60", "-rss_limit_mb=2048", "-max_len=4096",
        f"-artifact_prefix={tmp_path}/", str(tmp_path), seconds=FUZZ_SECONDS * 3 + 120,
    )  # fmt: skip
    runs = [line for line in shown.splitlines() if line.startswith("Done ")]
    assert runs, shown[-3000:]
    say(f"{name}: {runs[-1]}", runs=runs[-1])
