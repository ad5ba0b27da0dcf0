"""Ids of events, traces and spans, as hex text, from a pool of the system's random bits.

A forked child begins with an empty pool, so it never gives out an id of its parent.
"""

from __future__ import annotations

import os

_pool: list[str] = []
"""Runs of 16 random hex digits."""
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
    digits = span_id()
    return prefix + _VARIANT[digits[0]] + digits[1:]


def span_id() -> str:
    """Give 16 random lower-case hex digits that are not all zero."""
    try:
        return _pool.pop()
    except IndexError:
        return _refill()


def trace_id() -> str:
    """Give 32 random lower-case hex digits that are not all zero."""
    return span_id() + span_id()


def _refill() -> str:
    digits = os.urandom(4096).hex()
    zeros = "0" * 16
    _pool.extend(run for i in range(0, len(digits), 16) if (run := digits[i : i + 16]) != zeros)
    return _pool.pop()


os.register_at_fork(after_in_child=_pool.clear)
