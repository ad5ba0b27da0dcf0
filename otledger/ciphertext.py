"""Payloads as ciphertext and back: authenticated encryption under a key that the key's id commits to (format, 3).

Pure but for the nonce, which is random.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import struct
from base64 import b64decode, b64encode
from typing import Any

CHACHA20, AES_GCM = "ChaCha20-Poly1305", "AES-256-GCM"
ALGORITHMS = (CHACHA20, AES_GCM)
KEY_BYTES = 32
NONCE_BYTES = 12
"""Random for each record, so that a key is good for 2^32 records (NIST SP 800-38D, 8.3)."""

OPENING = b'{"$enc":'
"""What a payload that is ciphertext begins with. No payload of a caller is stored so (values.py)."""

_KID = re.compile(r"[0-9a-f]{64}", re.ASCII)


def is_kid(text: object) -> bool:
    """Tell whether this may be the id of a key; nothing else may become the name of a file."""
    return isinstance(text, str) and _KID.fullmatch(text) is not None


def kid_of(alg: str, secret: bytes) -> str:
    """Give a key's id: SHA-256 of a label, the algorithm and the key, 64 hex digits.

    Neither cipher commits to its key by itself: a ciphertext can be made that opens under two. The id does, since
    no second key has it.
    """
    return hashlib.sha256(f"otledger subject key\n{alg}\n".encode() + secret).hexdigest()


def bound(*texts: str) -> bytes:
    """Give texts as bytes that no other texts give: how many, then each with its length (PASETO's PAE)."""
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    return struct.pack("<Q", len(parts)) + b"".join(struct.pack("<Q", len(part)) + part for part in parts)


class Cipher:
    """A key, ready to seal and open payloads. Raises ValueError for a key or algorithm that is none."""

    __slots__ = ("_aead", "alg", "kid")

    def __init__(self, alg: str, secret: bytes) -> None:
        # Half of what `import otledger` costs, and most programs encrypt nothing.
        from cryptography.hazmat.primitives.ciphers import aead

        if alg not in ALGORITHMS:
            raise ValueError(f"{alg!r} is no algorithm; there are: {', '.join(ALGORITHMS)}")
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(secret)}")
        self.alg = alg
        self.kid = kid_of(alg, secret)
        self._aead = aead.ChaCha20Poly1305(secret) if alg == CHACHA20 else aead.AESGCM(secret)

    def __repr__(self) -> str:
        return f"Cipher({self.alg}, kid={self.kid})"

    def seal(self, payload: bytes, *, id: str, type: str, subject: str) -> bytes:
        """Give the JSON of a payload's ciphertext, bound to the record that it stands in."""
        nonce = os.urandom(NONCE_BYTES)
        text = self._aead.encrypt(nonce, payload, bound(id, type, subject))
        return b'%b{"alg":"%b","kid":"%b","nonce":"%b","ct":"%b"}}' % (
            OPENING,
            self.alg.encode(),
            self.kid.encode(),
            b64encode(nonce),
            b64encode(text),
        )

    def open(self, content: dict[str, Any], *, id: str, type: str, subject: str) -> bytes | None:
        """Give the payload that was sealed; None where anything of it, or of the record, is another's."""
        from cryptography.exceptions import InvalidTag

        try:
            if content["alg"] != self.alg or not hmac.compare_digest(content["kid"], self.kid):
                return None
            nonce, text = b64decode(content["nonce"], validate=True), b64decode(content["ct"], validate=True)
            return self._aead.decrypt(nonce, text, bound(id, type, subject)) if len(nonce) == NONCE_BYTES else None
        except (InvalidTag, KeyError, TypeError, ValueError):
            return None


def content_of(value: Any) -> dict[str, Any] | None:
    """Give what stands in `$enc` of a decoded payload, None where it is no such object."""
    content = value.get("$enc") if type(value) is dict and len(value) == 1 else None
    return content if type(content) is dict and is_kid(content.get("kid")) else None
