# SPDX-License-Identifier: Apache-2.0
"""Profiles of a log's columns: what kind of values each holds, and how its values relate to those of another column."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import numpy as np

from scalr_prod.core.timestamps import DAY_US
from scalr_prod.errors import BadValue
from scalr_prod.ingest import CellOrigin, IdParser, TimestampParser, select_column

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from scalr_prod.ingest import Batch, CellOrigin


#: Years of plausible times; numbers since 1970 are taken for times only if they fall between the second pair.
_YEARS: Final = (1900, 2100)
_EPOCH_YEARS: Final = (1990, datetime.now(UTC).year + 2)
#: Number of distinct values that decide whether a column is worth parsing as times.
_TRIED: Final = 50
#: Share of values with a space above which a column is words: names or free text.
_WORDS: Final = 0.2
#: A column determines another one if all but this share of its repeated values come with one value of the other.
_EXCEPTIONS: Final = 0.02
#: Smallest number of repeated values that can show that a column determines another one.
_REPEATED: Final = 10
#: A column depends on the user if two rows of a user agree this much more or less often than any two rows, ...
_EFFECT: Final = 0.2
#: ... and the difference is this many standard deviations of the number expected by chance.
_DEVIATIONS: Final = 5.0
#: Most integers between the smallest and the largest value for which counts of neighbours are compared.
_WIDEST: Final = 10_000_000
#: Variation of the counts of neighbouring integers, 1 for Poisson counts, below which they are a measurement's.
_SMOOTH: Final = 1.5
#: Shortest time of a log in which orders and sessions can be told from users, and their share that has to lie within a day.
_LONG_LOG: Final = 10 * DAY_US
_BRIEF: Final = 0.9
_DECIMAL: Final = r"^-?\d+[.,]\d+$"
_WHOLE: Final = r"^(0|-?[1-9]\d{0,17})$"
_WHOLE_FLOAT: Final = r"^(0|-?[1-9]\d{0,14})\.0$"
_FLOAT_DIGITS: Final = 2
_UNIT_NAMES: Final = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


_CLOCKS: Final = (" %H:%M:%S", " %H:%M", "")
_DAYS: Final = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d", "%m %d, %Y")
_OTHERS: Final = ("%Y%m%d", "%Y%m%d%H%M%S", "%d %b %Y", "%b %d, %Y")


def guess_timestamp_format(values: pa.Array, origin: CellOrigin, zone: str) -> tuple[str | None, list[str]]:
    """Return the first format that parses every value, and the other formats that do.

    If both orders parse the sample, the day comes before the month: 03/04/2024 is in April.

    Args:
        values: A column of text or whole numbers.
        origin: Its origin.
        zone: Time zone of its values.
    """
    fitting = []
    for pattern in (*(day + clock for day in _DAYS for clock in _CLOCKS), *_OTHERS):
        try:
            TimestampParser(zone, "", format=pattern).parse(values, origin)
        except BadValue:
            continue
        fitting.append(pattern)
    return (fitting[0], fitting[1:]) if fitting else (None, [])


@dataclass(frozen=True)
class TimeSpan:
    """Times of a column.

    Attributes:
        micros: Microseconds since 1970 of each distinct value.
        form: Their form, in words.
        is_epoch: Whether they are numbers since 1970, which ids may look like.
        days_only: Whether all of them are midnights.
    """

    micros: np.ndarray
    form: str
    is_epoch: bool
    days_only: bool

    @property
    def dates(self) -> tuple[str, str]:
        """The first and the last day (UTC)."""
        ends = self.micros.min(), self.micros.max()
        first, last = (np.datetime64(int(end), "us").astype("datetime64[D]") for end in ends)
        return str(first), str(last)

    @property
    def is_past(self) -> bool:
        """Whether no time is later than the ingest accepts."""
        return bool(self.micros.max() <= (datetime.now(UTC) + timedelta(days=1)).timestamp() * 1e6)


@dataclass(frozen=True)
class ParsedTimes:
    """A parsed time column.

    Attributes:
        times: ``timestamp[us, UTC]``.
        parser: The parser, with the unit that it found.
        format: The format that it needed; None: none.
        other_formats: Other formats that would also parse the column.
    """

    times: pa.Array
    parser: TimestampParser
    format: str | None
    other_formats: list[str]


@dataclass(frozen=True)
class Within:
    """How often two rows of the same user, from different times, hold the same value.

    Attributes:
        share: Share of such pairs of rows that agree.
        chance: Share of any pairs of rows that agree.
        pairs: Number of pairs.
    """

    share: float
    chance: float
    pairs: int

    @property
    def depends(self) -> bool | None:
        """Whether the column depends on the user, as an item does and a measurement does not; None: too few pairs to tell."""
        agreeing, expected = self.share * self.pairs, self.chance * self.pairs
        if abs(agreeing - expected) >= max(_EFFECT * expected, _DEVIATIONS * max(expected, 1.0) ** 0.5):
            return True
        return None if expected < _DEVIATIONS**2 else False


class ColumnProfile:
    """One column of a sample.

    Args:
        name: Its name.
        values: Its distinct values, without null.
        codes: For each row, the position of its value; -1 for null.
        times: Its values as times, if they are times.
        problem: Why it cannot hold ids, or None if it can.
    """

    def __init__(
        self, name: str, values: pa.Array, codes: np.ndarray, times: TimeSpan | None = None, problem: str | None = None
    ) -> None:
        self.name, self.codes, self.times, self.problem = name, codes, times, problem
        self._values = values

    @property
    def distinct(self) -> int:
        """Number of distinct values."""
        return len(self._values)

    @property
    def is_unique(self) -> bool:
        """Whether nearly every row has a value of its own: a row number, an order's or event's id, a free text."""
        return self.distinct >= _UNIQUE * len(self.codes)

    @functools.cached_property
    def texts(self) -> frozenset[str]:
        """Distinct values as text; whole numbers that a tool wrote as floats as whole numbers."""
        return frozenset(self._text.to_pylist())

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """Each distinct value as an integer, in the order of the codes; only if `integers` is there."""
        return np.asarray(self._text.cast("int64"))

    @functools.cached_property
    def _text(self) -> pa.Array:
        """`texts`, in the order of the codes."""
        import pyarrow.compute as pc

        text = self._values.cast("string")
        if self.distinct and pc.all(pc.match_substring_regex(text, _WHOLE_FLOAT)).as_py():
            text = pc.utf8_slice_codeunits(text, 0, -_FLOAT_DIGITS)
        return text

    @functools.cached_property
    def is_smooth(self) -> bool:
        """Whether neighbouring integers are equally frequent, as in a measurement: ids are not, since some are more popular.

        The mean squared difference between the counts of neighbours is that of Poisson counts.
        """
        if self.integers is None:
            return False
        low, high = int(self.integers[0]), int(self.integers[-1])
        if high - low > _WIDEST:
            return False
        counts = np.bincount(self.numbers[self.codes[self.codes >= 0]] - low).astype(np.float64)
        variation = ((counts[1:] - counts[:-1]) ** 2).sum() / max((counts[1:] + counts[:-1]).sum(), 1.0)
        return bool(variation < _SMOOTH)

    @functools.cached_property
    def integers(self) -> np.ndarray | None:
        """Distinct values as sorted integers, or None if there are others."""
        import pyarrow as pa
        import pyarrow.compute as pc

        text = pa.array(sorted(self.texts), pa.string())
        if not len(text) or not pc.all(pc.match_substring_regex(text, _WHOLE)).as_py():
            return None
        return np.sort(text.cast("int64").to_numpy(zero_copy_only=False))

    @functools.cached_property
    def is_words(self) -> bool:
        """Whether the values are names or sentences."""
        return sum(" " in text.strip() for text in self.texts) > _WORDS * max(len(self.texts), 1)

    @functools.cached_property
    def has_letters(self) -> bool:
        """Whether most values have a letter."""
        return sum(any(map(str.isalpha, text)) for text in self.texts) > len(self.texts) / 2

    @functools.cached_property
    def length(self) -> float:
        """Mean length of the distinct values."""
        return float(np.mean([len(text) for text in self.texts])) if self.texts else 0.0

    @functools.cached_property
    def is_code(self) -> bool:
        """Whether the values look like ids: text without spaces, or integers of one length or without large gaps."""
        if self.integers is None:
            return not self.is_words
        one_length = len({len(text) for text in self.texts}) == 1
        return one_length or len(self.integers) * 2 >= int(self.integers[-1]) - int(self.integers[0]) + 1

    def describe(self, shown: int = 3) -> str:
        """Return the number of distinct values, or the values if there are few."""
        if self.distinct <= shown:
            return f"{self.distinct} value{'s' if self.distinct > 1 else ''}: {', '.join(sorted(self.texts))[:60]}"
        return f"{self.distinct:,} values"


#: Share of distinct values above which a column counts as unique.
_UNIQUE: Final = 0.9


class LogProfile:
    """Columns of a sample of a log, and how they relate.

    Args:
        columns: The columns, in the order of the log.
        rows: Number of rows.
    """

    def __init__(self, columns: Sequence[ColumnProfile], rows: int) -> None:
        self.columns = {column.name: column for column in columns}
        self.rows = rows
        self._pairs: dict[tuple[str, str], np.ndarray] = {}

    @classmethod
    def from_sample(cls, sample: Batch, zone: str) -> LogProfile:
        """Profile every column of a sample.

        Args:
            sample: Rows of a log.
            zone: IANA zone of its naive times.
        """
        names = dict.fromkeys(sample.rows.schema.names)
        return cls([profile_column(sample, name, zone) for name in names], sample.rows.num_rows)

    def _distinct_pairs(self, first: str, second: str) -> np.ndarray:
        """Return the distinct pairs of values as codes, two columns."""
        key = (first, second)
        if key not in self._pairs:
            left, right = self.columns[first], self.columns[second]
            width = max(right.distinct, 1)
            known = (left.codes >= 0) & (right.codes >= 0)
            joined = _distinct(left.codes[known].astype(np.int64) * width + right.codes[known])
            self._pairs[key] = np.stack([joined // width, joined % width], axis=1)
        return self._pairs[key]

    def determines(self, first: str, second: str) -> bool:
        """Return whether a value of the first column comes with one value of the second.

        Only values with at least two rows count; without enough of them, nothing is determined.
        """
        left = self.columns[first]
        repeated = np.bincount(left.codes[left.codes >= 0], minlength=left.distinct) > 1
        if repeated.sum() < _REPEATED:
            return False
        pairs = self._distinct_pairs(first, second)
        return bool(repeated[pairs[:, 0]].sum() <= (1 + _EXCEPTIONS) * repeated.sum())

    def is_one_to_one(self, first: str, second: str) -> bool:
        """Return whether each of two columns determines the other."""
        return self.determines(first, second) and self.determines(second, first)

    def shared_by_users(self, name: str, user: str) -> float:
        """Return the share of a column's values with at least two rows that at least two users have."""
        column = self.columns[name]
        repeated = np.bincount(column.codes[column.codes >= 0], minlength=column.distinct) > 1
        users = np.bincount(self._distinct_pairs(name, user)[:, 0], minlength=column.distinct)
        return float((users[repeated] > 1).mean()) if repeated.any() else 0.0

    def within_users(self, name: str, user: str, time: str | None) -> Within:
        """Compare two rows of a user with any two rows.

        Args:
            name: The column.
            user: The user column.
            time: The time column; rows of a user at one time, such as the lines of an order, are not compared.
        """
        codes, users = (self.columns[one].codes.astype(np.int64) for one in (name, user))
        known = (codes >= 0) & (users >= 0)
        codes, users = codes[known], users[known]
        width = max(self.columns[name].distinct, 1)
        pairs, agreeing = _pair_count(users), _pair_count(users * width + codes)
        if time is not None:
            moments = users * self.columns[time].distinct + self.columns[time].codes[known]
            pairs -= _pair_count(moments)
            agreeing -= _pair_count(_renumber(moments) * width + codes)
        chance = _pair_count(codes) / max(len(codes) * (len(codes) - 1) / 2, 1)
        return Within(agreeing / pairs if pairs else 0.0, chance, int(pairs))

    def rises_within_users(self, name: str, user: str, time: str | None) -> bool:
        """Return whether an integer column rises with the time in the rows of each user: it counts, as visits or rows do."""
        column = self.columns[name]
        if time is None or column.integers is None:
            return False
        users, moments = self.columns[user].codes, self.columns[time]
        known = (users >= 0) & (column.codes >= 0)
        if moments.times is None:
            return False
        users, at, numbers = users[known], moments.times.micros[moments.codes[known]], column.numbers[column.codes[known]]
        order = np.lexsort((numbers, at, users))
        users, at, numbers = users[order], at[order], numbers[order]
        later = (users[1:] == users[:-1]) & (at[1:] > at[:-1])
        return int(later.sum()) >= _REPEATED and float((numbers[1:] > numbers[:-1])[later].mean()) > 1 - _EXCEPTIONS

    def is_brief(self, name: str) -> bool:
        """Return whether the rows of nearly every value lie within a day, in a log of many days: an order or a session."""
        times = max(
            (one.times.micros[one.codes] for one in self.columns.values() if one.times is not None), key=np.ptp, default=None
        )
        if times is None or np.ptp(times) < _LONG_LOG:
            return False
        codes = self.columns[name].codes
        first, last = (
            np.full(self.columns[name].distinct, np.iinfo(np.int64).max),
            np.zeros(self.columns[name].distinct, np.int64),
        )
        np.minimum.at(first, codes, times)
        np.maximum.at(last, codes, times)
        spans = (last - first)[np.bincount(codes, minlength=len(first)) > 1]
        return len(spans) >= _REPEATED and float((spans < DAY_US).mean()) >= _BRIEF

    def is_never_later(self, first: str, second: str) -> bool:
        """Return whether the first of two time columns is in no row later than the second, to the day if either holds days."""
        left, right = (self.columns[name] for name in (first, second))
        if left.times is None or right.times is None:
            return False
        known = right.codes >= 0
        gap = right.times.micros[right.codes[known]] - left.times.micros[left.codes[known]]
        slack = DAY_US if left.times.days_only or right.times.days_only else 0
        return bool((gap >= -slack).all())

    def is_sorted(self, name: str) -> bool:
        """Return whether the rows are in the order of a time column, ascending or descending."""
        column = self.columns[name]
        if column.times is None or (column.codes < 0).any():
            return False
        steps = np.diff(column.times.micros[column.codes])
        return bool((steps >= 0).all() or (steps <= 0).all())


def _distinct(keys: np.ndarray) -> np.ndarray:
    """Return the sorted distinct integers; faster than `numpy.unique`, which hashes."""
    ordered = np.sort(keys)
    return ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))] if len(ordered) else ordered


def _renumber(keys: np.ndarray) -> np.ndarray:
    """Return the position of each integer among the distinct ones."""
    return np.searchsorted(_distinct(keys), keys)


def _pair_count(keys: np.ndarray) -> float:
    """Return the number of pairs of rows with the same key."""
    ordered = np.sort(keys)
    ends = np.flatnonzero(np.concatenate((ordered[1:] != ordered[:-1], [True]))) if len(ordered) else ordered
    sizes = np.diff(ends, prepend=-1).astype(np.float64)
    return float((sizes * (sizes - 1) / 2).sum())


def profile_column(sample: Batch, name: str, zone: str) -> ColumnProfile:
    """Profile a column of a sample, as `LogProfile.from_sample` does each."""
    import pyarrow as pa

    values, origin = select_column(sample, name)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_nested(values.type) or pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        return ColumnProfile(name, pa.array([], "string"), np.full(len(values), -1), problem="lists, structures or bytes")
    try:
        encoded = values.dictionary_encode()
        distinct = encoded.dictionary
        distinct.cast("string").validate(full=True)
    except (pa.ArrowException, UnicodeError):
        return ColumnProfile(name, pa.array([], "string"), np.full(len(values), -1), problem="values of no plain type")
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    times = _times(distinct, origin, zone) if len(distinct) > 1 and (codes >= 0).all() else None
    return ColumnProfile(name, distinct, codes, times, _id_problem(values, distinct, origin, untyped=sample.untyped))


def _id_problem(values: pa.Array, distinct: pa.Array, origin: CellOrigin, *, untyped: bool) -> str | None:
    """Return why a column cannot hold the ids of users or items, in a few words, or None if it can."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_boolean(values.type):
        return "true or false"
    if len(distinct) <= 1:
        return "one value"
    text = distinct.cast("string")
    matches = pc.match_substring_regex(text, _DECIMAL)
    whole = pc.match_substring_regex(text, _WHOLE_FLOAT)
    if pc.mean(matches).as_py() > 1 / 2 and not (untyped and pc.all(whole).as_py()):
        return "decimal numbers"
    ids = IdParser()
    try:
        ids.parse(distinct, origin, untyped=untyped)
        ids.ensure_no_nulls()
    except BadValue:
        return "empty cells" if ids.null_count else "values of no id's type"
    return "empty cells" if values.null_count else None


def parse_times(values: pa.Array, origin: CellOrigin, zone: str) -> ParsedTimes:
    """Parse a time column as the ingest does, in the format that it needs.

    Raises:
        BadValue: It cannot be parsed.
    """
    parser = TimestampParser(zone, "")
    try:
        return ParsedTimes(parser.parse(values, origin), parser, None, [])
    except BadValue:
        pattern, others = guess_timestamp_format(values, origin, zone)
        if pattern is None:
            raise
    parser = TimestampParser(zone, "", format=pattern)
    return ParsedTimes(parser.parse(values, origin), parser, pattern, others)


def _times(distinct: pa.Array, origin: CellOrigin, zone: str) -> TimeSpan | None:
    """Return distinct values as times of plausible years, or None if they are none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_boolean(distinct.type):
        return None
    if not (pa.types.is_timestamp(distinct.type) or pa.types.is_date(distinct.type)):
        first = distinct.slice(0, _TRIED)
        if not pc.all(pc.match_substring_regex(first.cast("string"), r"\d{2}")).as_py():
            return None
        try:  # most columns fail here, after a few values
            parse_times(first, origin, zone)
        except BadValue:
            return None
    try:
        parsed = parse_times(distinct, origin, zone)
    except BadValue:
        return None
    parser = parsed.parser
    micros = parsed.times.cast(pa.int64()).to_numpy(zero_copy_only=False)
    years = _YEARS if parser.unit is None else _EPOCH_YEARS
    low, high = (datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1e6 for year in years)
    if micros.min() < low or micros.max() >= high:
        return None
    form = parsed.format or (f"{_UNIT_NAMES[parser.unit]} since 1970" if parser.unit else "times")
    return TimeSpan(micros, form, parser.unit is not None, bool((micros % DAY_US == 0).all()))
