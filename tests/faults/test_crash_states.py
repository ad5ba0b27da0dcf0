"""Crash states from recorded system calls: of every place in a story what a kill or a power cut may leave.

Each state is made in a folder of its own and recovered, and held against all that was promised; see judge.py for
the promises, disk.py for what a disk may forget, stories.py for what was recorded.
"""

from itertools import count
from typing import Any

import pytest

from otledger.segment import unfinished_name
from tests.faults.conftest import Say
from tests.faults.crashes import Campaign, Story
from tests.faults.disk import State
from tests.faults.judge import LEDGER, Judge, Lost, account
from tests.faults.stories import STORIES, NeverDied, one_dies

LENGTHS = {
    "short": {"draws": 1, "most": 50, "second_lives": 2},
    "long": {"draws": 30, "most": 3000, "second_lives": 14},
}
LEAST = {"short": 150, "long": 3000}
"""How many different states each story has to give, and is judged by."""
ALL = {"short": 5000, "long": 100_000}


@pytest.mark.parametrize("story", STORIES)
def test_crashes_of_a_story(judge: Judge, story: str, campaign: str, say: Say) -> None:
    length = LENGTHS[campaign]
    states = Campaign(judge, draws=length["draws"], most=length["most"])
    states.run(STORIES[story], second_lives=length["second_lives"])
    say(f"{story}: {judge.count} states, {states.seconds} of a second life", states=judge.count, again=states.seconds)
    assert judge.count >= LEAST[campaign]


def test_the_stories_are_enough(campaign: str) -> None:
    assert len(STORIES) * LEAST[campaign] >= ALL[campaign]


def test_events_that_only_a_draft_has_are_missed() -> None:
    line = b'{"specversion":"1.0","id":"%s","type":"app.event"}\n'
    draft, segment = f"{LEDGER}/m1/{unfinished_name('0' * 32)}", f"{LEDGER}/m1/2026-11.jsonl"
    left = State({segment: line % b"one", draft: line % b"one" + line % b"two"})
    account(State({segment: line % b"one", draft: line % b"one"}), left, copied=True)
    account(left, left, copied=False)
    with pytest.raises(Lost, match="in no segment"):
        account(left, left, copied=True)


@pytest.mark.parametrize("bad_sync", [False, True])
@pytest.mark.parametrize("settings", [{}, {"durability": "os"}, {"max_segment": 1000}], ids=str)
def test_one_process_dies_and_another_goes_on(
    judge: Judge, settings: dict[str, Any], bad_sync: bool, campaign: str, say: Say
) -> None:
    """In each of its calls, before it or in the middle; the other has its files open."""
    states = Campaign(judge, draws=1, most={"short": 8, "long": 300}[campaign], kills=False)
    deaths = 0
    for at in count(1):
        try:
            for half in (False, True):
                states.run(Story(one_dies(at, half=half, **settings), bad_syncs=(4,) if bad_sync else ()))
                deaths += 1
        except NeverDied:
            break
    say(f"one dies, {settings}{', a sync fails' if bad_sync else ''}: {deaths} deaths, {judge.count} states")
    assert deaths >= 8
