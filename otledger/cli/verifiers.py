"""Public keys given on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from otledger.errors import ConfigurationError
from otledger.notes import NoteError, VerifierKey


def verifier_keys(given: Iterable[str]) -> list[VerifierKey]:
    """Give the keys of texts, and of files that hold one a line. Raises `ConfigurationError`."""
    return [key for text in given for key in _keys(text)]


def _keys(text: str) -> list[VerifierKey]:
    try:
        if text.startswith("otledger/") and "+" in text:
            return [VerifierKey.parse(text)]
        lines = Path(text).expanduser().read_text().splitlines()
        return [VerifierKey.parse(line) for line in lines if line.strip() and not line.startswith("#")]
    except (NoteError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--key: {error}") from None
    except OSError as error:
        why = f"--key {text[:200]!r} is no verifier key (otledger/<UUID>+…), and no file that can be read"
        raise ConfigurationError(f"{why}: {error.strerror}") from None
