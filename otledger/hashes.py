"""Hashes of 32 bytes as control records and proofs hold them: base64 (format, 5)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

MOST = 64
"""Hashes in a list: more than the edge or a path of any tree has."""


def encode_hash(node: bytes) -> str:
    """Give a hash as text."""
    return base64.b64encode(node).decode()


def encode_hashes(nodes: Iterable[bytes]) -> list[str]:
    """Give hashes as texts."""
    return [encode_hash(node) for node in nodes]


def hash_of(text: object) -> bytes | None:
    """Give the hash of a text; None for anything else."""
    if not isinstance(text, str) or len(text) != 44:
        return None
    try:
        node = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return node if len(node) == 32 else None


def hashes_of(texts: object) -> list[bytes] | None:
    """Give the hashes of a list of texts, no longer than a path; None for anything else."""
    if not isinstance(texts, list) or len(texts) > MOST:
        return None
    found = [node for node in map(hash_of, texts) if node is not None]
    return found if len(found) == len(texts) else None


def decode_hashes(texts: object) -> list[bytes]:
    """Give the hashes of a list of texts. Raises ValueError for anything else."""
    found = hashes_of(texts)
    if found is None:
        raise ValueError("no list of hashes in base64")
    return found
