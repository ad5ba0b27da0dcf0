"""What goes to the terminal: escapes, colours, notes on stderr, tables, sizes and progress."""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from otledger.cli.app import BUG, CORRUPT, REFUSED, Failed, give_up_stdout

UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0, DEL, C1, bidi controls, line separators, lone surrogates: what could move the cursor or turn text around."""


def safe(text: str) -> str:
    """Give text that does nothing to a terminal: controls as escapes such as `\\x1b` and `\\u202e`."""
    return UNSAFE.sub(_escape, text)


def safe_json(text: str) -> str:
    """Give JSON text that means the same and does nothing to a terminal."""
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def out(line: str = "") -> None:
    """Write a line to stdout."""
    clear_bar()
    sys.stdout.write(line + "\n")


def out_json(value: Any) -> None:
    """Write a value to stdout as indented JSON."""
    import orjson

    text = orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode()
    out(safe_json_lines(text) if sys.stdout.isatty() else text)


def safe_json_lines(text: str) -> str:
    """Give JSON text of several lines that does nothing to a terminal."""
    return "\n".join(map(safe_json, text.split("\n")))


def note(text: str) -> None:
    """Write a line to stderr; what is inside cannot make it two."""
    clear_bar()
    try:
        sys.stdout.flush()
    except OSError:
        give_up_stdout()
    sys.stderr.write(f"otledger: {safe(text)}\n")


def explain(error: Exception) -> tuple[str, int]:
    """Give the line that says what went wrong and what to do, and the exit code."""
    from otledger.errors import FormatError, LedgerError

    if isinstance(error, Failed):
        return str(error), error.code
    if isinstance(error, LedgerError):
        return str(error), CORRUPT if isinstance(error, FormatError) else REFUSED
    if hasattr(error, "format_message"):
        return _explain_usage(error), REFUSED
    if isinstance(error, OSError):
        return _explain_os_error(error), REFUSED
    what = f"{type(error).__name__}: {error}"
    return f"a mistake in otledger: {what}; run it again with OTLEDGER_TRACEBACK=1 and report what it prints", BUG


def _explain_os_error(error: OSError) -> str:
    what = f"{error.filename}: {error.strerror or error}" if error.filename else str(error.strerror or error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{what}; free some space (df -h)"
    return f"{what}; see the path, its owner and its permissions (ls -ld)" if error.filename else what


def _explain_usage(error: Any) -> str:
    message = " ".join(str(error.format_message()).split()).rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message[:1].lower()}{message[1:]}; see: {context.command_path if context else 'otledger'} --help"


# Colours


class Paint:
    """Colours for a stream: on a terminal only, and never where NO_COLOR is set."""

    def __init__(self, stream: TextIO) -> None:
        self.on = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.on and text else text

    def bold(self, text: str) -> str:
        return self._in("1", text)

    def dim(self, text: str) -> str:
        return self._in("2", text)

    def red(self, text: str) -> str:
        return self._in("31", text)

    def green(self, text: str) -> str:
        return self._in("32", text)

    def yellow(self, text: str) -> str:
        return self._in("33", text)

    def cyan(self, text: str) -> str:
        return self._in("36", text)


# Tables and numbers


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), paint: Paint) -> list[str]:
    """Give the lines of a table; columns whose index is in `right` end flush. Content is escaped."""
    cells = [list(head), *([safe(cell) for cell in row] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(head))]
    lines = []
    for row in cells:
        padded = (
            cell.rjust(w) if at in right else cell.ljust(w)
            for at, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(padded).rstrip())
    return [paint.dim(lines[0]), *lines[1:]]


def size_text(count: float) -> str:
    """Give a number of bytes as people read it: `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration_text(ns: int) -> str:
    """Give a duration as people read it: `12.3 ms`."""
    if ns < 1_000_000:
        return f"{ns / 1000:.0f} µs"
    if ns < 1_000_000_000:
        return f"{ns / 1_000_000:.1f} ms"
    seconds = ns / 1_000_000_000
    return f"{seconds:.2f} s" if seconds < 60 else f"{seconds / 60:.1f} min"


def counted(count: int, one: str, many: str = "") -> str:
    """Give a number with its noun: `1 record`, `1,200 records`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


# Progress


class Progress:
    """A bar on stderr for what takes more than a second, on a terminal only. Use it as `with` and call it.

    Lines may be written meanwhile: the bar makes place for them.
    """

    WIDTH = 30
    DELAY = 1.0
    """Seconds before it is shown."""
    shown: Progress | None = None
    """The bar that stands on the terminal now."""

    def __init__(self, what: str, text: Callable[[float], str] = size_text) -> None:
        self._what = what
        self._text = text
        self._next = time.monotonic() + self.DELAY

    def __enter__(self) -> Callable[[float, float], None] | None:
        return self._draw if sys.stderr.isatty() else None

    def __exit__(self, *_: object) -> None:
        if Progress.shown is self:
            clear_bar()

    def _draw(self, done: float, total: float) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next, Progress.shown = now + 0.1, self
        part = min(1.0, done / total) if total else 1.0
        bar = ("#" * int(part * self.WIDTH)).ljust(self.WIDTH, ".")
        sys.stderr.write(f"\r\x1b[K{self._what} [{bar}] {part:4.0%} of {self._text(total)}")
        sys.stderr.flush()


def clear_bar() -> None:
    """Take the bar off the terminal, if there is one."""
    if Progress.shown is not None:
        Progress.shown = None
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
