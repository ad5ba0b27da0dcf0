"""Ids of events, traces and spans, as hex text, from pools of the system's random bits.

A forked child begins with empty pools, so it never gives out an id of its parent.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from os import getpid

from otledger import speed

_pid = getpid()
"""The process that the pools are of: a fork from C may run no hooks."""
_spans: list[str] = []
_traces: list[str] = []
_events: list[str] = []


def event_prefix(millisecond: int) -> str:
    """Give what ids of events of a millisecond since the epoch begin with: 17 digits of a UUIDv7 (RFC 9562).

    They hold the time, the version, 12 random bits, and the variant.
    """
    return f"{millisecond & 0xFFFFFFFFFFFF:012x}7{_span_id()[:3]}8"


def event_rest() -> str:
    """Give the 15 random digits that follow the prefix of an event's id.

    Looks not for a fork without hooks: `event_prefix` does, once a millisecond.
    """
    try:
        return _events.pop()
    except IndexError:
        return _refill(_events, 15)


def _span_id() -> str:
    if getpid() != _pid:
        _after_fork()
    try:
        return _spans.pop()
    except IndexError:
        return _refill(_spans, 16)


def _trace_id() -> str:
    if getpid() != _pid:
        _after_fork()
    try:
        return _traces.pop()
    except IndexError:
        return _refill(_traces, 32)


span_id: Callable[[], str] = speed.span_id or _span_id
"""Gives 16 random lower-case hex digits that are not all zero."""
trace_id: Callable[[], str] = speed.trace_id or _trace_id
"""Gives 32 random lower-case hex digits that are not all zero."""


def _refill(pool: list[str], length: int) -> str:
    """Fill a pool, and give an id that was never in it: other threads may empty it at once."""
    fresh = _random(length)
    own = fresh.pop()
    pool.extend(fresh)
    return own


def _random(length: int) -> list[str]:
    digits = os.urandom(4096).hex()
    runs = [digits[i : i + length] for i in range(0, len(digits) - length + 1, length)]
    zeros = "0" * length
    return [run for run in runs if run != zeros] if zeros in runs else runs


def _after_fork() -> None:
    global _pid
    _pid = getpid()
    for pool in (_spans, _traces, _events):
        pool.clear()


os.register_at_fork(after_in_child=_after_fork)
