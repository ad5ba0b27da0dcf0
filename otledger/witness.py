"""Reading what a witness keeps: the newest signed note of each chain, where its writer cannot reach it (format, 7).

    notes = otledger.witness.read_place("/mnt/elsewhere")     # also "git+/srv/notes.git", "tsa+http://tsa.example/#/mnt/stamped"
    notes["otledger/<UUID>"].commitment.size

What is kept, and when a note is accepted, is in witnessing.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from otledger.errors import ConfigurationError
from otledger.witnesses.kept import KnownKey, Place, RefusedNote, Stamp, WitnessedNote, WitnessError

__all__ = ["KnownKey", "Place", "RefusedNote", "Stamp", "WitnessError", "WitnessedNote", "open_place", "read_place"]


def read_place(place: str | Path, *, ca: Path | None = None) -> Mapping[str, WitnessedNote]:
    """Give the note that a place has of each chain, by origin, with what it refused.

    Each note is signed by the last of its `keys`, and each of these is named by the one before; whether the first is
    the chain's own is for the caller to know. `ca`: the authority's certificates, PEM, which a stamp must lead to; by
    default those of `OTLEDGER_TSA_CA`; without them stamps are not looked at. Raises `WitnessError` where the place is
    not there, cannot be read, or holds what no witness left.
    """
    opened = open_place(place, ca=ca)
    if not opened.is_there():
        raise WitnessError(f"{opened}: no witness's place is there; is it mounted, or mistyped?", path=str(place))
    found = {}
    for origin in opened.origins():
        entry = opened.newest(origin)
        if entry is not None:
            found[origin] = replace(entry, refused=opened.refused(origin))
    return found


def open_place(place: str | Path, *, git: bool = False, ca: Path | None = None) -> Place:
    """Give the place that a text names: a folder, `git+<path>[#<branch>]`, `tsa+<http address>#<folder>`.

    `git`: the text is the path of a git repository. Raises `ConfigurationError`.
    """
    text = os.fspath(place)
    if text.startswith("tsa+"):
        address, _, folder = text.removeprefix("tsa+").partition("#")
        from otledger.witnesses.timestamp import TimestampPlace

        return TimestampPlace(address, _path(folder, text), ca or _ca_of_environment())
    if git or text.startswith("git+"):
        path, _, branch = text.removeprefix("git+").removeprefix("file://").partition("#")
        from otledger.witnesses.git import BRANCH, GitPlace

        return GitPlace(_path(path, text), branch or BRANCH)
    if "://" in text:
        raise ConfigurationError(
            f"no place of a witness: {text[:200]!r}; there are: a folder, git+/path/of/a/repository,"
            " tsa+http://authority/path#/folder/of/the/tokens"
        )
    from otledger.witnesses.folder import FolderPlace

    return FolderPlace(_path(text, text))


def _path(text: str, whole: str) -> Path:
    if not text:
        raise ConfigurationError(
            f"the place {whole[:200]!r} names no folder; a timestamp needs one: tsa+http://…#/folder"
        )
    return Path(text).expanduser().absolute()


def _ca_of_environment() -> Path | None:
    given = os.environ.get("OTLEDGER_TSA_CA")
    return Path(given).expanduser() if given else None
