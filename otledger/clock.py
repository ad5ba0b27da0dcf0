"""The month of append, and whether a clock that jumped ahead is believed (format, 1).

A month never goes back, so a clock that is wrong for a minute could pin a partition to a month far ahead.
"""

from __future__ import annotations

import ctypes
import time
from datetime import UTC, datetime

from otledger.lock import State

TOLERANCE = 60_000_000_000
"""How far, in nanoseconds, the clock may run ahead of the monotonic one before it counts as a jump."""

_UNSYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)


def boot_ns() -> int:
    """Give nanoseconds since boot, sleep included: the same for all processes of the host."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def month_of(ns: int) -> str:
    """Give the month of an instant as `2026-11`, in UTC."""
    return f"{datetime.fromtimestamp(ns // 1_000_000_000, UTC):%Y-%m}"


def synchronised() -> bool:
    """Tell whether the kernel's clock is kept in time by somebody (adjtimex(2))."""
    try:
        status: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(1024))
    except (OSError, AttributeError):
        return False
    return 0 <= status != _UNSYNCHRONISED


def is_believed(state: State, now: int, boot: int) -> bool:
    """Tell whether the clock's `now` is plausible after the last batch's clock and the time since.

    A jump ahead is believed if the clock is synchronised, or once it has lasted as long as it is far.
    """
    if not state.wall or state.monotonic > boot:
        return True
    since = boot - state.monotonic
    ahead = now - (state.wall + since)
    return ahead <= max(TOLERANCE, since) or synchronised()


def believed_month(state: State, now: int, boot: int) -> str:
    """Give the month in which a segment may be begun now."""
    if is_believed(state, now, boot):
        return month_of(now)
    return month_of(state.wall + boot - state.monotonic)


def note(state: State, now: int, boot: int) -> None:
    """Keep the clock of this batch as the reference for the next, if it is believed."""
    if is_believed(state, now, boot):
        state.wall, state.monotonic = now, boot
