"""Processors: callables over the draft of an event, run before anything is queued."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import date, time
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from otledger.record import Draft

Processor = Callable[[Draft], Draft | None]

REDACTED = "[redacted]"


def redact(
    keys: Iterable[str] = (), patterns: Iterable[str | re.Pattern[str]] = (), *, replacement: str = REDACTED
) -> Processor:
    """Give a processor that hides secrets in `data`, `subject` and extensions.

    A member whose key is one of `keys` (in any case, at any depth) has its value replaced; in every string,
    also in keys, each match of `patterns` is. What the payload holds elsewhere is not touched, nor the
    caller's own object. Raises `re.error` for a pattern that is none.
    """
    hidden = frozenset(key.lower() for key in keys)
    compiled = [re.compile(pattern) for pattern in patterns]

    def clean_text(text: str) -> str:
        for pattern in compiled:
            text = pattern.sub(lambda _: replacement, text)
        return text

    def clean_key(key: Any) -> Any:
        cleaned = clean(key)
        cleaned = tuple(cleaned) if isinstance(cleaned, list) else cleaned
        try:
            hash(cleaned)
        except TypeError:
            return clean_text(repr(key))
        return cleaned

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return clean_text(value)
        if isinstance(value, Mapping):
            return {
                clean_key(key): replacement if isinstance(key, str) and key.lower() in hidden else clean(item)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple | set | frozenset):
            items = [clean(item) for item in value]
            return type(value)(items) if type(value) in (list, tuple, set, frozenset) else items
        if isinstance(value, bytes | bytearray | memoryview):
            return clean_text(bytes(value).decode("latin-1")).encode("latin-1", "replace")
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, Enum):
            return clean(value.value)
        plain = _as_mapping(value)
        if plain is not None:
            return clean(plain)
        # What is stored as its repr.
        text = repr(value)
        cleaned = clean_text(text)
        return value if cleaned == text else cleaned

    def processor(draft: Draft) -> Draft:
        extensions = {name: replacement if name in hidden else clean(value) for name, value in draft.extensions.items()}
        subject = None if draft.subject is None else clean_text(draft.subject)
        return replace(draft, data=clean(draft.data), subject=subject, extensions=extensions)

    return processor


_PLAIN = (type(None), bool, int, float, Decimal, date, time, UUID)


def _as_mapping(value: Any) -> Any:
    """Give the members of a dataclass or model, so that a secret in one is found; None for anything else."""
    if isinstance(value, type):
        return None
    if hasattr(type(value), "__dataclass_fields__"):
        return {name: getattr(value, name) for name in type(value).__dataclass_fields__}
    return value.model_dump() if hasattr(type(value), "model_dump") else None
