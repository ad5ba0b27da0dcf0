"""A witness's place that is a git repository: a commit for each note, on a branch of its own.

The tree of the branch has `<UUID of the chain>/note.json`, the newest note, and `<UUID>/refused/`. The branch is moved
by git from the commit that was read to the new one, or not at all; work trees and the index are never touched.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from otledger.folder import make_folder
from otledger.gitrepo import GitError, git
from otledger.notes import origin_of
from otledger.witnesses.kept import MOST_REFUSED, RefusedNote, WitnessedNote, WitnessError, chain_of

BRANCH = "witness"
TRIES = 60
"""How often a commit is tried whose branch others move, or have locked: for some seconds."""
# By default a commit may be lost with the power. Git before 2.36 does not know this setting.
_DURABLE = ("-c", "core.fsync=all", "-c", "gc.auto=0")
_AUTHOR = {
    "GIT_AUTHOR_NAME": "otledger witness",
    "GIT_AUTHOR_EMAIL": "witness@otledger.invalid",
    "GIT_COMMITTER_NAME": "otledger witness",
    "GIT_COMMITTER_EMAIL": "witness@otledger.invalid",
}


class GitPlace:
    """Notes on a branch of a repository. Where there is no repository a bare one is made when the first note comes."""

    def __init__(self, path: Path, branch: str = BRANCH) -> None:
        self.path = path
        self.branch = branch
        self._ref = f"refs/heads/{branch}"

    def __str__(self) -> str:
        return f"git+{self.path}" + (f"#{self.branch}" if self.branch != BRANCH else "")

    def is_there(self) -> bool:
        """Tell whether there is such a repository, with the branch."""
        return bool(self._tip())

    def origins(self) -> list[str]:
        """Give the chains of which there is a note, sorted."""
        tip = self._tip()
        files = self._files(tip) if tip else []
        return sorted(origin_of(name.partition("/")[0]) for name in files if name.endswith("/note.json"))

    def newest(self, origin: str) -> WitnessedNote | None:
        """Give the note that the branch has of a chain."""
        tip = self._tip()
        return self._read(tip, origin) if tip else None

    def history(self, origin: str) -> Iterator[WitnessedNote]:
        """Give all the notes that were accepted, the oldest first. Raises `WitnessError` where one is missing."""
        if not self._tip():
            return
        path = f"{chain_of(origin)}/note.json"
        commits = self._git("log", "--reverse", "--format=%H", self._ref, "--", path).decode().split()
        before, number = "", 0
        for commit in commits:
            entry = self._read(commit, origin)
            if entry is None or (entry.number, entry.previous) != (number, before):
                where = f"{self.path}: commit {commit}"
                raise WitnessError(f"{where}: this is not note {number}, which follows the one before", path=self.path)
            before, number = entry.digest, number + 1
            yield entry

    def put(self, entry: WitnessedNote) -> bool:
        """Make `entry` the newest, durable on return, if its number is the next one; else give False."""
        said = entry.commitment
        message = f"{entry.machine}: {said.size} records of {said.origin}\n\n{entry.note}"
        path = f"{chain_of(entry.origin)}/note.json"

        def is_next(tip: str) -> bool:
            there = self._read(tip, entry.origin) if tip else None
            return entry.number == (0 if there is None else there.number + 1)

        return self._commit(path, entry.encode(), message, is_next)

    def refuse(self, origin: str, refused: RefusedNote) -> None:
        """Keep a refused note, once."""
        folder = f"{chain_of(origin)}/refused/"

        def is_new(tip: str) -> bool:
            there = [name for name in self._files(tip) if name.startswith(folder)] if tip else []
            return f"{folder}{refused.name}.json" not in there and len(there) < MOST_REFUSED

        message = f"{refused.machine}: a note of {origin} is refused\n\n{refused.reason}\n\n{refused.note}"
        self._commit(f"{folder}{refused.name}.json", refused.encode(), message, is_new)

    def refused(self, origin: str) -> tuple[RefusedNote, ...]:
        """Give the refused notes of a chain, oldest first."""
        tip = self._tip()
        folder = f"{chain_of(origin)}/refused/"
        names = [name for name in self._files(tip) if name.startswith(folder)] if tip else []
        found = [RefusedNote.decode(self._show(tip, name), f"{self}: {name}") for name in names]
        return tuple(sorted(found, key=lambda refused: refused.taken))

    def _commit(self, path: str, content: bytes, message: str, wanted: Callable[[str], bool]) -> bool:
        self._make()
        for attempt in range(TRIES):
            tip = self._tip()
            if not wanted(tip):
                return False
            tree = self._tree(tip, path, content)
            parent = ["-p", tip] if tip else []
            commit = self._git("commit-tree", tree, *parent, input=message.encode(), env=_AUTHOR).decode().strip()
            try:
                # Moves the branch only if it still is where it was read.
                self._git("update-ref", "-m", "witness", self._ref, commit, tip, env=_AUTHOR)
            except WitnessError as error:
                # "cannot lock ref …: is at …", "Unable to create ….lock: File exists"
                if attempt == TRIES - 1 or "lock" not in str(error):
                    raise
                time.sleep(random.uniform(0, 0.2))
                continue
            return True
        raise AssertionError("unreachable")

    def _tree(self, tip: str, path: str, content: bytes) -> str:
        blob = self._git("hash-object", "-w", "--stdin", input=content).decode().strip()
        with tempfile.TemporaryDirectory(prefix="otledger-") as folder:
            index = {"GIT_INDEX_FILE": f"{folder}/index"}
            if tip:
                self._git("read-tree", tip, env=index)
            self._git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", env=index)
            return self._git("write-tree", env=index).decode().strip()

    def _make(self) -> None:
        if not self._exists():
            make_folder(self.path, 0o755)
            self._git("init", "--quiet", "--bare")
            self._git("symbolic-ref", "HEAD", self._ref)
        if self._git("rev-parse", "--is-bare-repository").strip() != b"true":
            # The file, as git fails where no branch is checked out.
            head = Path(os.fsdecode(self._git("rev-parse", "--absolute-git-dir").strip())) / "HEAD"
            if head.read_text().strip() == f"ref: {self._ref}":
                why = (
                    f"{self.path}: the branch {self.branch} is checked out there; give another: git+{self.path}#BRANCH"
                )
                raise WitnessError(why, path=self.path)

    def _exists(self) -> bool:
        if not self.path.is_dir():
            return False
        try:
            git(self.path, "rev-parse", "--git-dir")
        except GitError as error:
            if "not a git repository" in str(error):
                return False
            raise WitnessError(str(error), path=self.path) from None
        return True

    def _tip(self) -> str:
        """Give the commit that the branch is at; empty where there is none yet."""
        if not self._exists():
            return ""
        return self._git("for-each-ref", "--format=%(objectname)", self._ref).decode().strip()

    def _files(self, tip: str) -> list[str]:
        return (
            self._git("ls-tree", "-r", "-z", "--name-only", "--full-tree", tip)
            .decode(errors="replace")
            .split("\0")[:-1]
        )

    def _read(self, commit: str, origin: str) -> WitnessedNote | None:
        name = f"{chain_of(origin)}/note.json"
        if not self._git("ls-tree", "--full-tree", commit, "--", name):
            return None
        return WitnessedNote.decode(self._show(commit, name), origin, f"{self}, commit {commit[:12]}: {name}")

    def _show(self, commit: str, name: str) -> bytes:
        return self._git("cat-file", "blob", f"{commit}:{name}")

    def _git(self, *args: str, input: bytes = b"", env: dict[str, str] | None = None) -> bytes:
        try:
            return git(self.path, *_DURABLE, *args, input=input, env=env)
        except GitError as error:
            raise WitnessError(str(error), path=self.path) from None
