# SPDX-License-Identifier: Apache-2.0
"""Guess of a log's columns, time format and zone, checked by parsing a sample as the ingest does."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.apps.onboarding.names import EVENT_ROLES, ITEM_ROLES, match_columns, normalize_name
from scalr_prod.apps.onboarding.timestamp_formats import guess_timestamp_format
from scalr_prod.errors import BadValue, ColumnNotFound, EmptyInput, UnreadableInput
from scalr_prod.ingest import (
    ColumnSelection,
    IdParser,
    TimestampParser,
    format_suffix,
    parse_numbers,
    read_path,
    read_query,
    select_column,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from scalr_prod.config import Settings
    from scalr_prod.ingest import Batch, CellOrigin

__all__ = ["ItemGuess", "LogGuess", "LogRequest", "guess_items", "guess_log"]

#: Size of the sample: rows, and files of a folder.
_ROWS: Final = 10_000
_FILES: Final = 50
#: Ambiguous suffixes, and the usual format of such files.
_LIKELY_FORMAT: Final = {".json": "jsonl", ".txt": "csv", ".dat": "csv", ".log": "csv"}


@dataclass(frozen=True)
class LogRequest:
    """Request for one log: what the user specified.

    Attributes:
        place: ``source``, ``sources.<name>`` for each of several sources, or ``target``.
        location: A path, glob, folder or URL; with a query, a SQLAlchemy URL.
        query: SQL query.
        columns: Role → column, for roles that are not guessed.
        timezone: IANA zone of naive timestamps.
        table: The table that the query reads, if it was found in the database.
    """

    place: str
    location: str
    query: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    timezone: str | None = None
    table: str | None = None

    @property
    def option(self) -> str:
        """The option that names the log."""
        return "--target" if self.place == "target" else "--source"

    @property
    def value_prefix(self) -> str:
        """What values of its options begin with: ``NAME=`` where there are several sources."""
        name = self.place.partition(".")[2]
        return f"{name}=" if name else ""


@dataclass(frozen=True)
class LogGuess:
    """Guess of how to read a log.

    Attributes:
        place: See `LogRequest`.
        columns: Role → column.
        available_columns: All columns of the log.
        settings: Further keys of ``[domains.<place>]``: ``format``, ``timezone``, ``timestamp_format``.
        time_description: Description of its times.
        notes: Choices between several possibilities.
    """

    place: str
    columns: Mapping[str, str]
    available_columns: Sequence[str]
    settings: Mapping[str, str]
    time_description: str
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class ItemGuess:
    """Guess of how to read an item file: role → column, and all of its columns."""

    columns: Mapping[str, str]
    available_columns: Sequence[str]


def guess_log(base: Settings, request: LogRequest) -> LogGuess:
    """Guess how to read a log from its first rows.

    Args:
        base: Any settings; relative paths start from their folder.
        request: The log, and what the user specified.

    Raises:
        InputError: The log does not exist, cannot be read, or has no row.
        ColumnNotFound: No column fits some roles; names all of them, the existing columns, and the options to name them.
        BadValue: No time column can be parsed; says what was found.
    """
    sample, chosen = _sample(base, request)
    there = list(dict.fromkeys(sample.rows.schema.names))
    _check_header(there, request)
    notes: list[str] = []
    columns: dict[str, str] = {}
    # Columns that the user named come first, so that no guess takes them.
    missing: list[ColumnNotFound] = []
    for role in sorted(EVENT_ROLES, key=lambda role: role not in request.columns):
        try:
            columns[role] = _column(role, sample, there, request, list(columns.values()), notes)
        except ColumnNotFound as error:
            missing.append(error)
    if missing:
        known = _describe_columns(there)
        found = "; ".join(error.found.removesuffix(known) for error in missing) + known
        steps = "; ".join(str(error.next_step) for error in missing)
        raise ColumnNotFound(found, where=request.location, next_step=steps)
    times, settings = _times(sample, columns["timestamp"], request, notes)
    return LogGuess(
        request.place, {role: columns[role] for role in EVENT_ROLES}, there, {**chosen, **settings}, times, tuple(notes)
    )


def guess_items(base: Settings, location: str, item: str) -> ItemGuess:
    """Guess how to read an item file from its first rows.

    Args:
        base: As for `guess_log`.
        location: A path, glob, folder or URL.
        item: The log's item column; a column of the same name is preferred.

    Raises:
        InputError: The file does not exist, cannot be read, or has no row.
        ColumnNotFound: No column fits the item.
    """
    sample, _ = _sample(base, LogRequest("items", location))
    there = list(dict.fromkeys(sample.rows.schema.names))
    same = [name for name in there if normalize_name(name) == normalize_name(item)]
    fitting = same or match_columns("item", there)
    if not fitting:
        raise ColumnNotFound(
            f"no column looks like an item's id; there are: {', '.join(there)}",
            where=location,
            next_step="name the file's column of ids as the log does, or leave the file out",
        )
    columns = {"item": fitting[0]}
    for role in ITEM_ROLES:
        free = [name for name in match_columns(role, there, list(columns.values())) if _is_flat(sample.rows.column(name))]
        if role == "value":
            free = [name for name in free if _reads_numbers(sample, name)]
        if free:
            columns[role] = free[0]
    return ItemGuess(columns, there)


def _sample(base: Settings, asked: LogRequest) -> tuple[Batch, dict[str, str]]:
    """Read a sample with every column; return it, and the format if the name does not determine it."""
    option = "--items, --source-items or --target-items" if asked.place == "items" else asked.option
    everything = ColumnSelection((), f"domains.{asked.place}.columns", all_columns=True, location=option)
    if asked.query is not None:
        return _first(read_query(asked.location, asked.query, everything), "the query"), {}
    location = asked.location
    try:
        return _first(read_path(base, location, everything), location), {}
    except UnreadableInput:
        likely = _LIKELY_FORMAT.get(format_suffix(location))
        if likely is None or asked.place == "items":
            raise
    return _first(read_path(base, location, everything, format=likely), location), {"format": likely}


def _first(batches: Any, origin: str) -> Batch:
    import pyarrow as pa

    from scalr_prod.ingest import Batch

    found: list[Batch] = []
    with closing(batches):
        for batch in batches:
            # Files of a folder may differ in their types: the sample uses those with the first one's schema.
            if batch.rows.num_rows and (not found or batch.rows.schema.equals(found[0].rows.schema)):
                found.append(batch)
            if len(found) == _FILES or sum(one.rows.num_rows for one in found) >= _ROWS:
                break
    if not found:
        raise EmptyInput("holds no row", where=origin, next_step="name a file that holds rows")
    rows = pa.Table.from_batches([one.rows for one in found]).combine_chunks().slice(0, _ROWS).to_batches()[0]
    one_file = len({one.origin for one in found}) == 1
    return Batch(found[0].origin if one_file else origin, found[0].row, rows, found[0].untyped)


def _check_header(there: Sequence[str], asked: LogRequest) -> None:
    """Reject a file whose first line is data."""
    if sum(name.replace(".", "", 1).replace("-", "", 1).isdigit() for name in there) > len(there) // 2:
        raise ColumnNotFound(
            f"has no line of column names: it begins with {', '.join(there)[:100]}",
            where=asked.location,
            next_step="put the names in a first line, for example user_id,item_id,timestamp",
        )


def _column(role: str, sample: Batch, there: list[str], asked: LogRequest, taken: list[str], notes: list[str]) -> str:
    option = f"--column {asked.place}.{role}=NAME"
    named = asked.columns.get(role)
    if named is not None:
        if named not in there:
            raise ColumnNotFound(
                f"no column '{named}'{_describe_columns(there)}", where=asked.location, next_step=f"correct {option}"
            )
        return named
    fitting = match_columns(role, there, taken)
    problems = {name: _problem(role, sample, name, asked) for name in fitting}
    usable = [name for name, problem in problems.items() if problem is None]
    if not fitting:
        raise ColumnNotFound(
            f"no column looks like the {_ROLE_NAMES[role]}{_describe_columns(there)}",
            where=asked.location,
            next_step=f"name it: {option}",
        )
    error = problems[fitting[0]]
    if not usable and error is not None:
        looked = f" (in the first {_ROWS} rows, which are looked at)" if sample.rows.num_rows == _ROWS else ""
        raise BadValue(
            f"'{fitting[0]}' looks like the {_ROLE_NAMES[role]}, but {error.found}{looked}",
            where=error.where,
            next_step=f"{error.next_step}; or name another column: {option} (there are: {', '.join(there)})",
        )
    if len(usable) > 1:
        notes.append(f"[{asked.place}] {role}: {usable[0]} was taken; {', '.join(usable[1:])} would do too ({option})")
    return usable[0]


def _describe_columns(there: Sequence[str]) -> str:
    return f"; there are: {', '.join(there)}"


_ROLE_NAMES: Final = {"user": "user's id", "item": "item's id", "timestamp": "time of the event"}


def _problem(role: str, sample: Batch, name: str, asked: LogRequest) -> BadValue | None:
    """Return the error of the ingest for a column in a role; None: it can be read."""
    values, place = select_column(sample, name)
    try:
        if role == "timestamp":
            _read_times(values, place, asked.timezone or "UTC")
        else:
            ids = IdParser()
            ids.parse(values, place, untyped=sample.untyped)
            ids.ensure_no_nulls()
    except BadValue as error:
        return error
    return None


def _read_times(values: pa.Array, place: CellOrigin, zone: str) -> tuple[TimestampParser, str | None, list[str]]:
    """Return the parser of a time column, its format if it needs one, and other formats that would also work."""
    reader = TimestampParser(zone, "")
    try:
        reader.parse(values, place)
    except BadValue:
        pattern, others = guess_timestamp_format(values, place, zone)
        if pattern is None:
            raise
        return TimestampParser(zone, "", format=pattern), pattern, others
    return reader, None, []


def _times(sample: Batch, name: str, asked: LogRequest, notes: list[str]) -> tuple[str, dict[str, str]]:
    """Return a description of a log's times, and the settings that they need."""
    values, place = select_column(sample, name)
    reader, pattern, others = _read_times(values, place, asked.timezone or "UTC")
    settings = {}
    if pattern is not None:
        settings["timestamp_format"] = pattern
        if others:
            notes.append(
                f"[{asked.place}] timestamp: read as {pattern}; {', '.join(others)} would do too (timestamp_format in the file)"
            )
    if reader.unit is not None:
        unit = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}[reader.unit]
        return f"{unit} since 1970 (UTC)", settings
    if pattern is None and _has_zone(values, place):
        return "timestamps with a zone", settings
    settings["timezone"] = asked.timezone or "UTC"
    if asked.timezone is None:
        notes.append(f"[{asked.place}] timestamp: names no zone, and is taken as UTC (--timezone Europe/Paris)")
    return f"{'dates or ' if pattern is None else ''}local times in {settings['timezone']}", settings


def _has_zone(values: pa.Array, place: CellOrigin) -> bool:
    try:
        TimestampParser(None, "").parse(values, place)
    except BadValue:
        return False
    return True


def _is_flat(values: pa.Array) -> bool:
    import pyarrow as pa

    return not (pa.types.is_nested(values.type) or pa.types.is_binary(values.type))


def _reads_numbers(sample: Batch, name: str) -> bool:
    try:
        parse_numbers(*select_column(sample, name))
    except BadValue:
        return False
    return True
