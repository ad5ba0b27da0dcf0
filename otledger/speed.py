"""The compiled hot path (`_speed.c`, `_decode.c`): where it was not built, each name is None, and Python does the same.

`OTLEDGER_PURE=1` in the environment leaves it alone.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable
from typing import Any

_compiled: Any = None
_decoding: Any = None
if not os.environ.get("OTLEDGER_PURE"):
    with contextlib.suppress(ImportError):
        _compiled = importlib.import_module("otledger._speed")
        _decoding = importlib.import_module("otledger._decode")

# Without the processor's SHA-256 instructions hashlib is faster.
_hashing = _compiled if _compiled is not None and _compiled.hashes else None

event: Callable[[dict[Any, str], Any, str, Any, int | None], tuple[str, bytes] | None] | None = getattr(
    _compiled, "event", None
)
"""Gives id and part of an event from heads and its key there, what stands before its payload, its payload, and its
time (None: now); None where the head is not known, or payload or time are none of the usual ones."""
telemetry: Callable[[str, str, str, int | None], bytes | None] | None = getattr(_compiled, "telemetry", None)
"""The same from a payload that is JSON already."""
span: Callable[[str, str, str, str, int, str, str, Any, Any, dict[str, Any], str], bytes | None] | None = getattr(
    _compiled, "span", None
)
"""Gives the part of an ended span from its head, what stands before the trace's header, trace and span id, flags,
name as JSON, members before its start, start, end, plain attributes, and members after these."""
copy_flat: Callable[[Any], dict[str, Any] | None] | None = getattr(_compiled, "copy_flat", None)
"""Gives a copy of a dict of texts, booleans and numbers, by names that are not empty; None of anything else."""
trace_id: Callable[[], str] | None = getattr(_compiled, "trace_id", None)
span_id: Callable[[], str] | None = getattr(_compiled, "span_id", None)
encode_plain: Callable[[Any, int], bytes | None] | None = getattr(_compiled, "encode_plain", None)
"""Gives a payload as JSON; None where `values` has to look at it."""
stamp: Callable[[list[bytes], int, bytes], list[bytes]] | None = getattr(_hashing, "stamp", None)
check: Callable[[bytes, int, int, int, bytes], tuple[int, int, bytes, list[int]]] | None = getattr(
    _hashing, "check", None
)
"""Goes over lines of a block between two offsets, as long as each is the one that is due (`seq`, `prev`).

Gives where it stopped, how many lines were right, the last one's checksum, and where otledger's own records are.
"""
grow: Callable[[bytes, int, int, int, bytes], bytes] | None = getattr(_hashing, "grow", None)
"""Does what `merkle.grow_plainly` does."""
Decoder: Callable[..., Callable[[bytes], Any]] | None = getattr(_decoding, "Decoder", None)
"""Makes a decoder of lines; see `otledger.decoding`."""
order: Callable[[bytes], bytes] | None = getattr(_decoding, "order", None)
"""Sorts 64-bit integers below 2^42, and leaves out those that are there twice."""
instant: Callable[[str], int | None] | None = getattr(_decoding, "instant", None)
"""Gives the nanoseconds since the epoch of a time as otledger writes it; None where `parse_time` has to look at it."""
