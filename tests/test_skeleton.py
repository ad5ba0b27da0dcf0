"""Skeletons: the same answers with and without, whatever was done to them; made in bounded steps, or not at all."""

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from otledger import Reader
from otledger.batch import ZEROS, stamp
from otledger.errors import ConfigurationError, FormatError, RootError
from otledger.query import compacting, rows, skeleton
from otledger.query.compacting import compact
from tests.conftest import Script
from tests.generated import START, naive, part, text_of, write

NAMES = tuple(name for name in rows.COLUMNS if name not in ("data", "extensions"))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write(tmp_path / "ledger", count=20)


def read(root: Path, names: tuple[str, ...] = NAMES, **options: Any) -> list[tuple[Any, ...]]:
    """All rows of `skeleton.columns`."""
    return [row for block in skeleton.columns(root, names, **options) for row in zip(*block, strict=True)]


def files(root: Path) -> list[Path]:
    return sorted(root.glob("*/.cache/*.parquet"))


def used(root: Path) -> bool:
    """Whether the skeletons are used: else all closed segments would be named as missing one."""
    with Reader(root).sql("select count(*) from events") as result:
        list(result)
        return not result._session.lines.missing


# Columns


def test_columns_are_those_of_the_lines(made: Path) -> None:
    few = ("machine", "seq", "id", "type", "segment", "offset", "size", "time_text")
    wanted = [
        (r["machine"], r["seq"], r["id"], r["type"], *r["at"], r["time"])
        for r in naive(made)
    ]  # fmt: skip
    assert read(made, few) == wanted
    before = read(made)
    list(compact(made))
    assert read(made) == before == read(made, cache=False)
    assert read(made, few) == wanted
    assert used(made)
    assert read(made, ("id",), machines=["m2"]) == [(r["id"],) for r in naive(made, machines=("m2",))]


@pytest.mark.parametrize(
    ("since", "until"),
    [(START + 10**10, None), (None, START + 10**10), (START + 10**10, START + 5 * 10**10 + 1), (5, 4)],
)
def test_a_window_is_of_times(made: Path, since: int | None, until: int | None) -> None:
    def inside(time: int | None) -> bool:
        return time is not None and (since is None or since <= time) and (until is None or time < until)

    names = ("time_ns", "seq", "type")
    wanted = [row for row in read(made, names) if inside(row[0])]
    assert read(made, names, since=since, until=until) == wanted
    list(compact(made))
    assert read(made, names, since=since, until=until) == wanted


def test_an_unknown_column_is_told(made: Path) -> None:
    with pytest.raises(ConfigurationError, match="no column 'nosuch'; there are: machine, seq"):
        read(made, ("nosuch",))


def test_a_damaged_line_is_raised_or_handed_on_from_both(made: Path) -> None:
    path = made / "m2" / "2026-09.1.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"seq":', b'"sEq":', 3).replace(b'"sEq":', b'"seq":', 1))
    told: list[list[FormatError]] = []
    for _ in range(2):
        with pytest.raises(FormatError, match=r"2026-09\.1\.jsonl, offset \d+: not a record: .*`seq`"):
            read(made)
        told.append([])
        assert len(read(made, ("id",), on_fault=told[-1].append)) == len(naive(made))
        list(compact(made))
    assert used(made)
    assert [(str(f), f.offset) for f in told[0]] == [(str(f), f.offset) for f in told[1]]
    assert len(told[0]) == 2


# Trust


def test_what_is_made_says_what_it_was_made_from(made: Path) -> None:
    done = list(compact(made))
    assert [(each.machine, each.segment) for each in done] == [
        (machine, segment) for machine in ("m1", "m2") for segment in ("2026-09.jsonl", "2026-09.1.jsonl")
    ]
    assert all(each.made and each.skeleton > 0 for each in done)
    assert [(each.made, each.skeleton) for each in compact(made)] == [(False, each.skeleton) for each in done]
    for path in files(made):
        origin = msgspec.json.decode(pq.read_metadata(path).metadata[skeleton.METADATA])
        segment = path.parent.parent / origin["seal"]["segment"]
        assert origin["version"] == skeleton.VERSION
        assert origin["seal"]["modified"] == segment.stat().st_mtime_ns
        assert origin["rows"] == pq.read_metadata(path).num_rows
        assert not {"data", "prev", "checksum"} & set(pq.read_schema(path).names)
        assert path.stat().st_mode & 0o777 == segment.stat().st_mode & 0o666
    assert {path.name for path in made.glob("*/.cache/*")} == {path.name for path in files(made)} | {"compact.lock"}


def test_a_segment_that_changed_is_read_again(made: Path) -> None:
    list(compact(made))
    path = made / "m1" / "2026-09.jsonl"
    old = path.stat()
    content = path.read_bytes()
    changes = {
        "a byte in the midst": content.replace(b"t.1", b"t.9", 1),
        "shorter": content[: len(content) // 2],
        "its last line": content[:-40] + b"0" + content[-39:],
    }
    for what, changed in changes.items():
        path.write_bytes(changed)
        if what != "a byte in the midst":
            os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
        assert read(made, ("id", "type")) == [(r["id"], r["type"]) for r in naive(made)], what
        path.write_bytes(content)
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
        assert used(made)


def test_another_cap_is_another_segment(made: Path) -> None:
    list(compact(made))
    path = made / "m1" / "2026-09.1.jsonl"
    _, _, rest = path.read_bytes().partition(b"\n")
    old = naive(made)
    size = next(r for r in old if r["at"][:2] == ("2026-09.jsonl", 0))["at"][2]
    header = part("m1", "otledger.segment", text_of(START), "again", {
        "format": 1, "ledger": "l", "host": "h", "epoch": 1, "reason": "new",
        "previous": {"segment": "2026-09.jsonl", "size": size},
    })  # fmt: skip
    path.write_bytes(stamp([header], 1, ZEROS)[0] + rest)
    assert len(naive(made)) < len(old)
    assert read(made, ("id",)) == [(r["id"],) for r in naive(made)]
    assert not used(made)


def test_no_flipped_byte_gives_another_answer(made: Path) -> None:
    list(compact(made))
    wanted = read(made, cache=False)
    path = files(made)[0]
    content = path.read_bytes()
    random_ = random.Random(5)
    for at in [0, 5, len(content) - 1, len(content) - 9, *random_.sample(range(len(content)), 40)]:
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << random_.randrange(8))]) + content[at + 1 :])
        assert read(made) == wanted, at
        assert not used(made)
    for other in (b"", b"PAR1", content[:-1], content + b"x"):
        path.write_bytes(other)
        assert read(made) == wanted
    assert sum(each.made for each in compact(made)) == 1
    assert path.read_bytes() == content


def test_another_version_is_left_alone_and_not_used(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(skeleton, "VERSION", 99)
        patch.setattr(compacting, "VERSION", 99)
        list(compact(made))
    assert not used(made)
    assert read(made) == read(made, cache=False)
    # A whole Parquet file of somebody else under a right name.
    name = files(made)[0]
    foreign = made / "foreign.parquet"
    pq.write_table(pq.read_table(name).slice(0, 3), foreign)
    content = foreign.read_bytes()
    foreign.rename(name.with_name(f"2026-09.jsonl.{hashlib.sha256(content).hexdigest()[:32]}.parquet"))
    assert read(made) == read(made, cache=False)
    assert all(each.made for each in compact(made))
    assert used(made)


def test_the_cache_may_go_at_any_moment(made: Path) -> None:
    list(compact(made))
    wanted = read(made, cache=False)
    for how in ("before", "between"):
        blocks = skeleton.columns(made, NAMES)
        found = []
        if how == "between":
            found += list(zip(*next(blocks), strict=True))
        for folder in made.glob("*/.cache"):
            shutil.rmtree(folder)
        for block in blocks:
            found += list(zip(*block, strict=True))
        assert found == wanted
        list(compact(made))
    for odd in ("a file", "a link"):
        shutil.rmtree(made / "m1" / ".cache")
        (made / "m1" / ".cache").write_text("") if odd == "a file" else (made / "m1" / ".cache").symlink_to(made / "m2")
        assert read(made) == wanted
        with pytest.raises(RootError):
            list(compact(made))
        (made / "m1" / ".cache").unlink()
        list(compact(made))


# Making


def test_a_full_disk_loses_nothing_and_leaves_nothing(made: Path, script: Script) -> None:
    code = """
        import resource, sys
        from otledger import errors
        from otledger.query.compacting import compact
        import pyarrow.parquet
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        try:
            list(compact(sys.argv[1]))
        except errors.RootError as error:
            print(error)
    """
    out = script(code, made).communicate()[0]
    assert "the skeleton of 2026-09.jsonl cannot be written" in out
    assert "answered from the lines" in out
    assert [path.name for path in made.glob("*/.cache/*")] == ["compact.lock"]
    assert read(made) == read(made, cache=False)


def test_two_that_compact_at_once_make_each_skeleton_once(made: Path, script: Script) -> None:
    code = """
        import sys
        from otledger.query.compacting import compact
        sys.stdin.readline()
        print(sum(each.made for each in compact(sys.argv[1])))
    """
    both = [script(code, made) for _ in range(2)]
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert sum(int(process.communicate()[0]) for process in both) == 4
    assert len(files(made)) == 4


def large(root: Path) -> Path:
    """A closed segment large enough for the background, and an open one."""
    (root / "m1").mkdir(parents=True)
    header = part("m1", "otledger.segment", text_of(START), "h", {"format": 1, "ledger": "l", "previous": None})
    events = [part("m1", f"t.{n % 3}", text_of(START + n), f"{n}", {"fill": "x" * 4000}) for n in range(1500)]
    lines = stamp([header, *events], 0, ZEROS)
    (root / "m1" / "2026-09.jsonl").write_bytes(b"".join(lines))
    previous = {"segment": "2026-09.jsonl", "size": sum(map(len, lines))}
    header = part("m1", "otledger.segment", text_of(START), "i", {"format": 1, "ledger": "l", "previous": previous})
    (root / "m1" / "2026-10.jsonl").write_bytes(stamp([header], len(lines), lines[-1][-67:-3])[0])
    return root


def test_a_query_has_skeletons_made_in_the_background(tmp_path: Path, made: Path) -> None:
    root = large(tmp_path / "large")
    assert list(Reader(root).sql("select count(*) from events", cache=False)) == [(1502,)]
    assert not (root / "m1" / ".cache").exists()
    assert list(Reader(root).sql("select type, count(*) from events group by 1 order by 1")) == [
        ("otledger.segment", 2), ("t.0", 500), ("t.1", 500), ("t.2", 500),
    ]  # fmt: skip
    deadline = time.monotonic() + 30
    while not files(root):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert used(root)
    # What is small is not worth a process.
    assert list(Reader(made).sql("select count(*) from events")) == [(len(naive(made)),)]
    assert not files(made)


def test_a_segment_that_is_damaged_all_over_is_read_as_it_is(tmp_path: Path) -> None:
    root = large(tmp_path / "large")
    path = root / "m1" / "2026-09.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"seq":', b'"sEq":').replace(b'"sEq":', b'"seq":', 1))
    [done] = compact(root)
    assert (done.made, done.skeleton) == (False, 0)
    with Reader(root).sql("select count(*) from events") as result:
        assert list(result) == [(2,)]
        assert (result.fault_count, len(result.faults)) == (1500, 100)


def test_without_pyarrow_columns_come_from_the_lines(made: Path, script: Script) -> None:
    list(compact(made))
    code = """
        import sys
        sys.modules["pyarrow"] = None
        from otledger.query import skeleton
        print(sum(len(ids) for (ids,) in skeleton.columns(sys.argv[1], ["id"])))
    """
    assert int(script(code, made).communicate()[0]) == len(naive(made))


def test_the_command(made: Path) -> None:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "otledger", "compact", "--root", str(made), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("--machine", "m1", "--json")
    assert done.returncode == 0
    found = msgspec.json.decode(done.stdout)
    assert [(each["machine"], each["segment"], each["made"]) for each in found] == [
        ("m1", "2026-09.jsonl", True), ("m1", "2026-09.1.jsonl", True),
    ]  # fmt: skip
    states = [line.split("  ")[-1] for line in run().stdout.splitlines()[1:]]
    assert states == ["there already", "there already", "made", "made"]
