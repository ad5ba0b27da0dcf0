"""The crashes that a recorded story allows, of the process and of the machine, and those of whoever comes next."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from otledger import Draft, Journal, JournalError
from tests.faults.disk import Disk, State
from tests.faults.judge import LEDGER, Expected, Judge, in_other_boot, need
from tests.faults.recorder import Aside, Died, Entry, Foreign, Handed, Recorder, Synced, Told, Write
from tests.faults.tools import journal


class Diary:
    """Appends numbered events, and writes down what was handed in and what was acknowledged."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.count = 0

    def put(self, target: Journal, *numbers: int, size: int = 0) -> None:
        """Append them in one batch; what is refused is tried again, as long as it may take."""
        for _ in range(5):
            drafts = [self._draft(number, size) for number in numbers]
            self.recorder.note(Handed({str(draft.id): draft.data for draft in drafts}))
            try:
                receipts, done = target.append(drafts), True
            except JournalError as error:
                receipts, done = getattr(error, "receipts", []), False
            self.recorder.note(Told(tuple(receipts), target.config.durability == "disk"))
            if done:
                return
            numbers = numbers[len(receipts) :]

    def _draft(self, number: int, size: int) -> Draft:
        self.count += 1
        return Draft("app.event", {"n": number, "pad": f"{number:x}." * size}, id=f"{number}.{self.count}")

    def sync(self, target: Journal) -> None:
        for _ in range(5):
            try:
                target.sync()
            except JournalError:
                continue
            self.recorder.note(Synced())
            return

    def somebody_writes(self, segment: Path, line: bytes) -> None:
        """Append a line to a segment without the lock, as `echo >>` does."""
        self.recorder.note(Foreign(line))
        fd = os.open(segment, os.O_WRONLY | os.O_APPEND)
        os.write(fd, line)
        os.close(fd)

    def set_aside(self, target: Journal, name: str, data: bytes) -> None:
        kept = target.set_aside(name, data)
        self.recorder.note(Aside(kept, data))


Life = Callable[[Path, Diary], None]


@dataclass(frozen=True)
class Story:
    """What is recorded. `before` makes what is there when it begins, all of it durable."""

    live: Life
    before: Life | None = None
    bad_syncs: tuple[int, ...] = ()
    full_at: tuple[int, ...] = ()


@dataclass(frozen=True)
class Log:
    """What was recorded, and the disk and what was expected when it began."""

    begin: Disk
    expected: Expected
    entries: list[Entry]

    def disk_at(self, at: int, written: int = 0) -> Disk:
        """The disk before the entry at this place, which is a write if `written` bytes of it are done."""
        disk = self.begin.copy()
        for entry in self.entries[:at]:
            disk.follow(entry)
        if written:
            half = self.entries[at]
            assert isinstance(half, Write)
            disk.follow(replace(half, data=half.data[:written]))
        return disk


@dataclass
class Crash:
    """What a crash left before the entry at this place of the log: of the machine if `power`, else of the process."""

    at: int
    state: State
    power: bool
    expected: Expected
    written: int = 0
    """How much of the entry was done, if it is a write."""
    latest: Expected = field(init=False)
    """What was expected at the last place of the log at which a crash may leave the same."""

    def __post_init__(self) -> None:
        self.latest = self.expected

    def key(self) -> int:
        """What tells it from other crashes. After a power cut nobody believes `.lock`."""
        files = (item for item in self.state.files.items() if not (self.power and item[0].endswith("/.lock")))
        return hash((self.power, self.state.folders, tuple(sorted(files))))


def crashes(log: Log, chance: Random, *, draws: int) -> Iterator[Crash]:
    """What crashes may leave at each place of the log; `draws` is how many of many states are drawn by lot.

    Where a process died in it, only what comes after: as if it lived, the crashes before are another story's.
    """
    disk, expected = log.begin.copy(), log.expected
    since = max((at for at, entry in enumerate(log.entries) if isinstance(entry, Died)), default=0)
    more = True
    for at in range(len(log.entries) + 1):
        if more and at >= since:
            yield Crash(at, disk.after_kill(), False, expected)
            for state in disk.after_power_cut(chance, draws):
                yield Crash(at, state, True, expected)
        if at == len(log.entries):
            return
        entry = log.entries[at]
        if isinstance(entry, Write) and len(entry.data) > 1 and at >= since:
            for length in sorted({1, len(entry.data) // 2, len(entry.data) - 1}):
                yield Crash(at, log.disk_at(at, length).after_kill(), False, expected, length)
        before, expected = expected, expected.after(entry)
        more = disk.follow(entry) or expected is not before


class Campaign:
    """Records stories, and judges their crashes: of each life at most `most`, but every kill of a story if `kills`."""

    def __init__(self, judge: Judge, *, draws: int, most: int = 1 << 60, kills: bool = True) -> None:
        self.judge = judge
        self.draws = draws
        self.most = most
        self.kills = kills
        self.seconds = 0
        """How many states were left by a crash in a recovery, or in what came after one."""

    def run(self, story: Story, *, second_lives: int = 0) -> Log:
        """Judge the crashes of a story; from `second_lives` of them another process goes on, and crashes as well."""
        log = self.record(story)
        different = _each_place_in_turn(self._different(log), self.judge.chance)
        kills = [crash for crash in different if self.kills and not crash.power]
        others = [crash for crash in different if not self.kills or crash.power]
        chosen = [*kills, *others[: self.most]]
        self._judge(log, chosen)
        for crash in _each_place_in_turn(chosen, self.judge.chance)[:second_lives]:
            self.go_on(log, crash)
        return log

    def record(self, story: Story) -> Log:
        top = self.judge.folder / "story"
        top.mkdir()
        expected = Expected()
        try:
            if story.before is not None:
                with Recorder(top) as recorder:
                    story.before(top / LEDGER, Diary(recorder))
                for entry in [*recorder.log, Synced()]:
                    expected = expected.after(entry)
            begin = Disk(State.read(top))
            with Recorder(top, bad_syncs=story.bad_syncs, full_at=story.full_at) as recorder:
                story.live(top / LEDGER, Diary(recorder))
            log = Log(begin, expected, recorder.log)
            seen = log.disk_at(len(log.entries)).after_kill()
            need(seen == State.read(top), "the log does not tell all that was done")
            return log
        finally:
            shutil.rmtree(top)

    def go_on(self, log: Log, crash: Crash) -> None:
        """Let another process go on from what a crash left, and judge the crashes then."""
        begin = in_other_boot(crash.state) if crash.power else crash.state
        disk = Disk(begin) if crash.power else log.disk_at(crash.at, crash.written)
        expected = replace(crash.expected, told=crash.expected.durable) if crash.power else crash.expected
        top = self.judge.folder / "second"
        top.mkdir()
        try:
            begin.write(top)
            with Recorder(top) as recorder:
                second_life(top / LEDGER, Diary(recorder))
        finally:
            shutil.rmtree(top)
        before = self.judge.count
        second = Log(disk, expected, recorder.log)
        different = self._different(second)
        self._judge(second, _each_place_in_turn(different, self.judge.chance)[: self.most], crash)
        self.seconds += self.judge.count - before

    def kills_after(self, log: Log, kind: type) -> list[Crash]:
        """The kills right after calls of a kind."""
        places = [at for at, entry in enumerate(log.entries, 1) if isinstance(entry, kind)]
        return [crash for crash in self._different(log) if crash.at in places and not crash.power]

    def _different(self, log: Log) -> list[Crash]:
        different: dict[int, Crash] = {}
        for crash in crashes(log, self.judge.chance, draws=self.draws):
            different.setdefault(crash.key(), crash).latest = crash.expected
        return list(different.values())

    def _judge(self, log: Log, chosen: list[Crash], first: Crash | None = None) -> None:
        for crash in chosen:
            # What a killed process left unsynced may be lost in a power cut later.
            if first is None:
                before = log.begin.after_kill()
            else:
                before = first.state if first.power or not crash.power else State()
            try:
                self.judge.judge(
                    crash.state,
                    may=crash.expected,
                    must=crash.latest,
                    power=crash.power,
                    before=before,
                    copied=not (crash.power or (first is not None and first.power)),
                )
            except AssertionError as error:
                _tell(error, log, crash, first)
                raise


def second_life(root: Path, diary: Diary) -> None:
    target = journal(root)
    diary.put(target, 1001)
    diary.put(target, 1002, 1003, size=60)
    target.close()


def _each_place_in_turn(crashes: list[Crash], chance: Random) -> list[Crash]:
    """In an order by lot, in which each place of the log comes as often as the others."""
    chance.shuffle(crashes)
    places: dict[tuple[int, bool], int] = {}
    ranked = []
    for crash in crashes:
        place = crash.at, crash.power
        places[place] = places.get(place, 0) + 1
        ranked.append((places[place], crash))
    return [crash for _, crash in sorted(ranked, key=lambda pair: pair[0])]


def _tell(error: AssertionError, log: Log, crash: Crash, first: Crash | None) -> None:
    """Add to an error what was done, and what the crash left."""
    life = "the life after a " + ("power cut" if first.power else "kill") if first is not None else "the story"
    error.add_note(f"a {'power cut' if crash.power else 'kill'} at {crash.at} of {life}, of which went before:")
    for at, entry in enumerate(log.entries[: crash.at]):
        error.add_note(f"  {at} {repr(entry)[:200]}")
    for path, content in sorted(crash.state.files.items()):
        error.add_note(f"  left: {path}, {len(content)} bytes")
