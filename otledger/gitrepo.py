"""The git program: running it, and making a ledger's root a repository whose files it never changes or merges."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from otledger.errors import LedgerError, RootError
from otledger.folder import make_folder
from otledger.segment import CACHE, LOCK_FILE, QUARANTINE, unfinished_name

ATTRIBUTES = (
    # Their bytes are what is signed: no line ends are changed, and two versions are never made one line by line.
    "*.jsonl -text merge=binary",
    f"**/{QUARANTINE}/** -text merge=binary",
)
IGNORED = (LOCK_FILE, f"{CACHE}/", unfinished_name("*"))
# What names a repository, or a part of one: a hook that calls us has these set for its own.
_PLACES = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_IMPLICIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX"),
    *("GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_GRAFT_FILE", "GIT_SHALLOW_FILE"),
    *("GIT_NO_REPLACE_OBJECTS", "GIT_REPLACE_REF_BASE", "GIT_QUARANTINE_PATH"),
)


class GitError(LedgerError):
    """The git program is missing, or has refused what it was asked."""


def git(folder: Path | None, *args: str, input: bytes = b"", env: dict[str, str] | None = None) -> bytes:
    """Run git in a folder and give what it prints. Raises `GitError` with what it says."""
    given = {name: value for name, value in os.environ.items() if name not in _PLACES}
    given |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", **(env or {})}
    command = ["git", *([] if folder is None else ["-C", str(folder)]), *args]
    try:
        done = subprocess.run(command, input=input, capture_output=True, env=given, check=False)
    except FileNotFoundError:
        raise GitError("the program git is not there; install it (apt install git)") from None
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split()) or f"exit code {done.returncode}"
        # Without settings such as `-c core.fsync=all`.
        words = [word for before, word in zip(("", *args), args, strict=False) if "-c" not in (before, word)]
        raise GitError(f"{folder or Path.cwd()}: git {words[0]}: {said}", path=folder)
    return done.stdout


@dataclass(frozen=True, slots=True)
class Initialized:
    """What `init` found and did."""

    root: Path
    repository: Path
    """The top of the work tree that the root is in."""
    created: bool
    """Whether there was none before."""
    changed: tuple[str, ...]
    """The files that got lines: `.gitattributes`, `.gitignore`."""


def init(root: Path, mode: int = 0o700) -> Initialized:
    """Make a ledger's root a git repository, or fit for the one that it is in; what is there already stays.

    Nothing is committed. Raises `GitError`, `RootError`.
    """
    make_folder(root, mode)
    top = _top(root)
    if top is None:
        git(root, "init", "--quiet")
    elif _is_ignored(root, top):
        raise GitError(
            f"{root} is ignored by the repository {top}; take it out of its .gitignore, or give the ledger a folder"
            " outside of it",
            path=root,
        )
    changed = [
        name
        for name, lines in ((".gitattributes", ATTRIBUTES), (".gitignore", IGNORED))
        if _add_lines(root / name, lines)
    ]
    return Initialized(root, _top(root) or root, top is None, tuple(changed))


def _top(root: Path) -> Path | None:
    try:
        return Path(os.fsdecode(git(root, "rev-parse", "--show-toplevel").removesuffix(b"\n")))
    except GitError as error:
        if "not a git repository" in str(error):
            return None
        raise


def _is_ignored(root: Path, top: Path) -> bool:
    if root.resolve() == top.resolve():
        return False
    try:
        git(top, "check-ignore", "--quiet", str(root.resolve()))
    except GitError as error:
        if "exit code 1" in str(error):
            return False
        raise
    return True


def _add_lines(path: Path, lines: tuple[str, ...]) -> bool:
    """Add the lines that a file does not have, at its end, so that they win. Tells whether there were such."""
    try:
        before = path.read_bytes() if path.exists() else b""
        there = {line.strip() for line in before.decode(errors="replace").splitlines()}
        missing = [line for line in lines if line not in there]
        if not missing:
            return False
        glue = b"\n" if before and not before.endswith(b"\n") else b""
        unfinished = path.with_name(f"{path.name}.new")
        unfinished.write_bytes(before + glue + "".join(f"{line}\n" for line in missing).encode())
        os.replace(unfinished, path)
    except OSError as error:
        raise RootError(
            f"{path}: cannot be written: {error.strerror}; see its owner and permissions", path=path
        ) from None
    return True
