"""Ids of events, traces and spans, as hex text, from pools of the system's random bits.

A forked child begins with empty pools, so it never gives out an id of its parent.
"""

from __future__ import annotations

import os

_spans: list[str] = []
_traces: list[str] = []
_events: list[str] = []
_prefix = (-1, "")
"""A millisecond, and the digits that ids of that millisecond begin with."""
_VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))


def event_id(ns: int) -> str:
    """Give a UUIDv7 (RFC 9562) for the instant `ns`, as 32 lower-case hex digits."""
    global _prefix
    millisecond, prefix = _prefix
    if millisecond != ns // 1_000_000:
        millisecond = ns // 1_000_000
        # 48 bits of time, the version, and 12 bits that are random for each millisecond.
        prefix = f"{millisecond & 0xFFFFFFFFFFFF:012x}7{span_id()[:3]}"
        _prefix = millisecond, prefix
    try:
        return prefix + _events.pop()
    except IndexError:
        _events.extend(_VARIANT[run[0]] + run[1:] for run in _random(16))
        return prefix + _events.pop()


def span_id() -> str:
    """Give 16 random lower-case hex digits that are not all zero."""
    try:
        return _spans.pop()
    except IndexError:
        _spans.extend(_random(16))
        return _spans.pop()


def trace_id() -> str:
    """Give 32 random lower-case hex digits that are not all zero."""
    try:
        return _traces.pop()
    except IndexError:
        _traces.extend(_random(32))
        return _traces.pop()


def _random(length: int) -> list[str]:
    digits = os.urandom(4096).hex()
    zeros = "0" * length
    return [run for i in range(0, len(digits), length) if (run := digits[i : i + length]) != zeros]


def _after_fork() -> None:
    for pool in (_spans, _traces, _events):
        pool.clear()


os.register_at_fork(after_in_child=_after_fork)
