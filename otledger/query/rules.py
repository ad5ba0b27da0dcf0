"""The rules of a digest: what a TOML file of them may say, and what is said of one that is wrong."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from fnmatch import translate
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from otledger.errors import ConfigurationError
from otledger.filter import parse_when
from otledger.pairs import check_key
from otledger.query.members import check_place, value_at
from otledger.record import Record

DEFAULT = Path(__file__).with_name("digest.toml")
DURATION = "duration"
"""Where a rule says so of a place, it is how many seconds a span or a pair lasted."""

Types = str | list[str]
Severity = Literal["info", "warn", "alert"]
Positive = Annotated[int, Meta(ge=1)]


class _Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    pass


class Match(_Strict, frozen=True, kw_only=True):
    """Records of some types, in which some places hold some values."""

    type: Types
    where: dict[str, bool | int | float | str] = {}

    def places(self) -> list[str]:
        """Give the places that are looked at."""
        return list(self.where)

    def test(self) -> Callable[[Record], bool]:
        """Give a test of a record."""
        matches = type_test(self.type)
        where = [(check_place(place), value) for place, value in self.where.items()]

        def meets(record: Record) -> bool:
            return matches(record.type) and all(holds(value_at(record, place), value) for place, value in where)

        return meets


class Sum(Match, frozen=True, kw_only=True):
    """Numbers that are added up."""

    name: str
    fields: list[str]

    def places(self) -> list[str]:
        return [*self.where, *self.fields]


class Recent(Match, frozen=True, kw_only=True):
    """The newest records of a kind."""

    name: str
    show: list[str] = []
    limit: Positive = 5

    def places(self) -> list[str]:
        return [*self.where, *self.show]


class _Rule(Match, frozen=True, kw_only=True, tag_field="kind"):
    name: str
    severity: Severity = "warn"
    show: list[str] = []

    def places(self) -> list[str]:
        return [*self.where, *self.show]


class Each(_Rule, frozen=True, kw_only=True, tag="each"):
    """Every record that matches."""


class Spike(_Rule, frozen=True, kw_only=True, tag="spike"):
    """`count` records within a time."""

    count: Positive
    within: str
    by: str | None = None

    def places(self) -> list[str]:
        return [*self.where, *self.show, *([self.by] if self.by else [])]


class Outlier(_Rule, frozen=True, kw_only=True, tag="outlier"):
    """A number above a multiple of the median."""

    value: str
    factor: Annotated[float, Meta(gt=0)] = 3.0
    least: Positive = 5
    by: str | None = None

    def places(self) -> list[str]:
        own = [] if self.value == DURATION else [self.value]
        return [*self.where, *self.show, *own, *([self.by] if self.by else [])]


class Without(_Rule, frozen=True, kw_only=True, tag="without"):
    """A record that lacks another one before it."""

    needs: list[Match]
    undone_by: list[Match] = []
    at_first: bool = False
    by: str | None = None

    def places(self) -> list[str]:
        others = [place for match in (*self.needs, *self.undone_by) for place in match.places()]
        return [*self.where, *self.show, *others, *([self.by] if self.by else [])]


Rule = Each | Spike | Outlier | Without


class Rules(_Strict, frozen=True, kw_only=True):
    """All that a file of rules says."""

    limit: Positive = 20
    pairs: str = "data.id"
    """What links the start and the end of a pair."""
    sum: list[Sum] = []
    recent: list[Recent] = []
    rule: list[Rule] = []


def load(path: str | Path | None = None) -> Rules:
    """Give the rules of a file; the default ones of no file.

    Raises `ConfigurationError`, which names the file, the line and the key that is wrong.
    """
    path = Path(path) if path is not None else DEFAULT
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}; give a file of rules") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is no text in UTF-8: {error.reason} at byte {error.start}") from None
    try:
        rules = msgspec.convert(tomllib.loads(text), Rules)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: is no TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise ConfigurationError(_located(path, text, str(error))) from None
    _check(path, text, rules)
    return rules


def _check(path: Path, text: str, rules: Rules) -> None:
    for section, entries in (("sum", rules.sum), ("recent", rules.recent), ("rule", rules.rule)):
        names: set[str] = set()
        for index, entry in enumerate(entries):
            if entry.name in names:
                _refuse(path, text, (section, index, "name"), f"there are two called {entry.name!r}")
            names.add(entry.name)
            for place in entry.places():
                try:
                    check_place(place)
                except ConfigurationError as error:
                    _refuse(path, text, (section, index, _key_of(entry, place)), str(error))
            if isinstance(entry, Spike) and seconds(entry.within) is None:
                why = f"{entry.within!r} is no time; give 90s, 15m, 1h or 2d"
                _refuse(path, text, (section, index, "within"), why)
    try:
        check_key(rules.pairs)
    except ConfigurationError as error:
        _refuse(path, text, (None, 0, "pairs"), str(error))


def _key_of(entry: Match, place: str) -> str:
    """Give the key of an entry under which a place stands."""
    for key in ("fields", "show", "value", "by"):
        found = getattr(entry, key, None)
        if found == place or (isinstance(found, list) and place in found):
            return key
    return "where" if place in entry.where else "needs"


def seconds(text: str) -> float | None:
    """Give a length of time such as 90s or 1h in seconds, None for what is none."""
    try:
        length = -parse_when(text, 0) / 1e9
    except ConfigurationError:
        return None
    return length if length > 0 else None


def as_list(types: Types) -> list[str]:
    """Give one or several patterns as a list."""
    return [types] if isinstance(types, str) else types


def type_test(types: Types) -> Callable[[str], bool]:
    """Give a test of a type by one or several shell patterns."""
    matches = re.compile("|".join(map(translate, as_list(types))) or r"(?!)").match
    return lambda type: matches(type) is not None


def holds(value: Any, wanted: Any) -> bool:
    """Tell whether a value is the wanted one. For true, text such as "true", "yes" and "1" will do."""
    if wanted is True:
        return value is True or (isinstance(value, str) and value.strip().lower() in ("true", "yes", "1"))
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


# Where it is wrong

_PLACE = re.compile(r" - at `(?:key )?\$\.?([a-z_]*)(?:\[(\d+)\])?(?:\.([a-z_]+))?.*`")
_FIELD = re.compile(r"(?:unknown|missing required) field `([^`]+)`")


def _located(path: Path, text: str, message: str) -> str:
    place = _PLACE.search(message)
    field = _FIELD.search(message)
    section, index, key = place.groups() if place is not None else (None, None, None)
    if index is None:
        section, key = None, section or None
    if field is not None:
        key = key or field[1]
    reason = message[: place.start()] if place is not None else message
    line = _line_of(text, section, int(index or 0), key)
    return f"{path}, line {line}{f', {key}' if key else ''}: {reason[:1].lower()}{reason[1:]}{_known(section, message)}"


def _known(section: str | None, message: str) -> str:
    if "unknown field" in message:
        entries: dict[str | None, tuple[Any, ...]] = {None: (Rules,), "sum": (Sum,), "recent": (Recent,)}
        kinds = entries.get(section, (Each, Spike, Outlier, Without))
        if "needs[" in message or "undone_by[" in message:
            section, kinds = None, (Match,)
        known = dict.fromkeys(name for kind in kinds for name in kind.__struct_fields__)
        return f"; there are: {', '.join(['kind', *known] if section == 'rule' else known)}"
    return "; kinds are: each, spike, outlier, without" if "Invalid value" in message else ""


def _refuse(path: Path, text: str, place: tuple[str | None, int, str], why: str) -> None:
    section, index, key = place
    raise ConfigurationError(f"{path}, line {_line_of(text, section, index, key)}, {key}: {why}")


def _line_of(text: str, section: str | None, index: int, key: str | None) -> int:
    """Give the line of a key in the entry with that index of a section, or of what is nearest to it."""
    header = None if section is None else re.compile(rf"\s*\[\[\s*{re.escape(section)}\s*\]\]")
    assignment = None if key is None else re.compile(rf"""\s*["']?{re.escape(key)}["']?[\s.]*[=\[\].]""")
    current, best = -1, 1
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("["):
            if header is None and not (key and re.match(rf"\s*\[+\s*{re.escape(key)}\b", line)):
                continue
            if header is None:
                return number
            current = current + 1 if header.match(line) else current if current < index else index + 1
            best = number if current == index else best
        elif (current == index or header is None) and assignment is not None and assignment.match(line):
            return number
    return best
