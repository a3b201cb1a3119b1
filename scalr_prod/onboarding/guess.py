# SPDX-License-Identifier: Apache-2.0
"""A foreign log as it is understood: which columns, times of which kind and zone; checked by reading it as the ingest does."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import BadValue, ColumnNotFound, EmptyInput, UnreadableInput
from scalr_prod.ingest.cells import Ids, column_of, numbers
from scalr_prod.ingest.columns import Wanted
from scalr_prod.ingest.files import suffix_of
from scalr_prod.ingest.instants import Instants
from scalr_prod.ingest.readers import read_path
from scalr_prod.ingest.sql import read_query
from scalr_prod.onboarding.formats import guess_format
from scalr_prod.onboarding.names import ITEM_ROLES, ROLES, by_name, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from scalr_prod.ingest.cells import Place
    from scalr_prod.ingest.protocol import Batch
    from scalr_prod.settings import Settings

__all__ = ["Asked", "ItemGuess", "LogGuess", "guess_items", "guess_log"]

#: How much is looked at: rows, and files of a folder.
_ROWS: Final = 10_000
_FILES: Final = 50
#: Suffixes that name no format by themselves, and what such files mostly hold.
_UNSURE: Final = {".json": "jsonl", ".txt": "csv", ".dat": "csv", ".log": "csv"}


@dataclass(frozen=True)
class Asked:
    """What the user says of one log.

    Attributes:
        place: ``source`` or ``target``.
        location: A path, glob, folder or URL; or a SQLAlchemy URL, where there is a query.
        query: SQL.
        columns: Role → column, where the guess is not to decide.
        timezone: IANA zone of naive timestamps.
        table: The table that the query reads, where it was found in the database.
    """

    place: str
    location: str
    query: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    timezone: str | None = None
    table: str | None = None


@dataclass(frozen=True)
class LogGuess:
    """How a log is understood.

    Attributes:
        place: ``source`` or ``target``.
        columns: Role → column.
        there: All columns of the log.
        settings: What ``[domains.<place>]`` needs beside name, location and columns: ``format``, ``timezone``, ``timestamp_format``.
        times: What its times are, in words.
        notes: What was decided between several possibilities.
    """

    place: str
    columns: Mapping[str, str]
    there: Sequence[str]
    settings: Mapping[str, str]
    times: str
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class ItemGuess:
    """How an item file is understood: role → column, and the columns that are there."""

    columns: Mapping[str, str]
    there: Sequence[str]


def guess_log(base: Settings, asked: Asked) -> LogGuess:
    """Look at the first rows of a log.

    Args:
        base: Any settings: their folder is where relative paths start.
        asked: The log, and what is known of it.

    Raises:
        InputError: It is not there, cannot be read, or has no row.
        ColumnNotFound: No column fits a role; names those that are there, and the option that names one.
        BadValue: No column of times can be read; says what was found.
    """
    sample, chosen = _sample(base, asked)
    there = list(dict.fromkeys(sample.rows.schema.names))
    _check_header(there, asked)
    notes: list[str] = []
    columns: dict[str, str] = {}
    # What the user says comes first, so that no guess takes it away.
    for role in sorted(ROLES, key=lambda role: role not in asked.columns):
        columns[role] = _column(role, sample, there, asked, list(columns.values()), notes)
    times, settings = _times(sample, columns["timestamp"], asked, notes)
    return LogGuess(asked.place, {role: columns[role] for role in ROLES}, there, {**chosen, **settings}, times, tuple(notes))


def guess_items(base: Settings, location: str, item: str) -> ItemGuess:
    """Look at the first rows of an item file.

    Args:
        base: As for `guess_log`.
        location: A path, glob, folder or URL.
        item: The log's column of items: one of that name is taken.

    Raises:
        InputError: It is not there, cannot be read, or has no row.
        ColumnNotFound: No column fits the item.
    """
    sample, _ = _sample(base, Asked("items", location))
    there = list(dict.fromkeys(sample.rows.schema.names))
    same = [name for name in there if plain(name) == plain(item)]
    fitting = same or by_name("item", there)
    if not fitting:
        raise ColumnNotFound(
            f"no column looks like an item's id; there are: {', '.join(there)}",
            where=location,
            next_step="name the file's column of ids as the log does, or leave the file out",
        )
    columns = {"item": fitting[0]}
    for role in ITEM_ROLES:
        free = [name for name in by_name(role, there, list(columns.values())) if _is_flat(sample.rows.column(name))]
        if role == "value":
            free = [name for name in free if _reads_numbers(sample, name)]
        if free:
            columns[role] = free[0]
    return ItemGuess(columns, there)


def _sample(base: Settings, asked: Asked) -> tuple[Batch, dict[str, str]]:
    """The first rows, with every column, and the format where the name does not tell it."""
    option = "--items, --source-items or --target-items" if asked.place == "items" else f"--{asked.place}"
    everything = Wanted((), f"domains.{asked.place}.columns", whole=True, location=option)
    if asked.query is not None:
        return _first(read_query(asked.location, asked.query, everything), "the query"), {}
    location = asked.location
    try:
        return _first(read_path(base, location, everything), location), {}
    except UnreadableInput:
        unsure = _UNSURE.get(suffix_of(location))
        if unsure is None or asked.place == "items":
            raise
    return _first(read_path(base, location, everything, format=unsure), location), {"format": unsure}


def _first(batches: Any, origin: str) -> Batch:
    import pyarrow as pa

    from scalr_prod.ingest.protocol import Batch

    found: list[Batch] = []
    with closing(batches):
        for batch in batches:
            # Files of a folder may differ in their types: the sample is of those that are as the first one is.
            if batch.rows.num_rows and (not found or batch.rows.schema.equals(found[0].rows.schema)):
                found.append(batch)
            if len(found) == _FILES or sum(one.rows.num_rows for one in found) >= _ROWS:
                break
    if not found:
        raise EmptyInput("holds no row", where=origin, next_step="name a file that holds rows")
    rows = pa.Table.from_batches([one.rows for one in found]).combine_chunks().slice(0, _ROWS).to_batches()[0]
    one_file = len({one.origin for one in found}) == 1
    return Batch(found[0].origin if one_file else origin, found[0].row, rows, found[0].untyped)


def _check_header(there: Sequence[str], asked: Asked) -> None:
    """A file whose first line is data."""
    if sum(name.replace(".", "", 1).replace("-", "", 1).isdigit() for name in there) > len(there) // 2:
        raise ColumnNotFound(
            f"has no line of column names: it begins with {', '.join(there)[:100]}",
            where=asked.location,
            next_step="put the names in a first line, for example user_id,item_id,timestamp",
        )


def _column(role: str, sample: Batch, there: list[str], asked: Asked, taken: list[str], notes: list[str]) -> str:
    option = f"--column {asked.place}.{role}=NAME"
    named = asked.columns.get(role)
    if named is not None:
        if named not in there:
            raise ColumnNotFound(
                f"no column '{named}'; there are: {', '.join(there)}", where=asked.location, next_step=f"correct {option}"
            )
        return named
    fitting = by_name(role, there, taken)
    problems = {name: _problem(role, sample, name, asked) for name in fitting}
    usable = [name for name, problem in problems.items() if problem is None]
    if not fitting:
        raise ColumnNotFound(
            f"no column looks like the {_SAYS[role]}; there are: {', '.join(there)}",
            where=asked.location,
            next_step=f"name it: {option}",
        )
    error = problems[fitting[0]]
    if not usable and error is not None:
        looked = f" (in the first {_ROWS} rows, which are looked at)" if sample.rows.num_rows == _ROWS else ""
        raise BadValue(
            f"'{fitting[0]}' looks like the {_SAYS[role]}, but {error.found}{looked}",
            where=error.where,
            next_step=f"{error.next_step}; or name another column: {option} (there are: {', '.join(there)})",
        )
    if len(usable) > 1:
        notes.append(f"[{asked.place}] {role}: {usable[0]} was taken; {', '.join(usable[1:])} would do too ({option})")
    return usable[0]


_SAYS: Final = {"user": "user's id", "item": "item's id", "timestamp": "time of the event"}


def _problem(role: str, sample: Batch, name: str, asked: Asked) -> BadValue | None:
    """Why the ingest could not take a column in a role."""
    values, place = column_of(sample, name)
    try:
        if role == "timestamp":
            _read_times(values, place, asked.timezone or "UTC")
        else:
            ids = Ids()
            ids.read(values, place, untyped=sample.untyped)
            ids.refuse_nulls()
    except BadValue as error:
        return error
    return None


def _read_times(values: pa.Array, place: Place, zone: str) -> tuple[Instants, str | None, list[str]]:
    """The reader that takes a column of times, and the format where it needs one, with the formats that would do too."""
    reader = Instants(zone, "")
    try:
        reader.read(values, place)
    except BadValue:
        pattern, others = guess_format(values, place, zone)
        if pattern is None:
            raise
        return Instants(zone, "", format=pattern), pattern, others
    return reader, None, []


def _times(sample: Batch, name: str, asked: Asked, notes: list[str]) -> tuple[str, dict[str, str]]:
    """What a log's times are, in words, and the settings that they need."""
    values, place = column_of(sample, name)
    reader, pattern, others = _read_times(values, place, asked.timezone or "UTC")
    settings = {}
    if pattern is not None:
        settings["timestamp_format"] = pattern
        if others:
            notes.append(
                f"[{asked.place}] timestamp: read as {pattern}; {', '.join(others)} would do too (timestamp_format in the file)"
            )
    if reader.unit is not None:
        said = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}[reader.unit]
        return f"{said} since 1970 (UTC)", settings
    if pattern is None and _has_zone(values, place):
        return "timestamps with a zone", settings
    settings["timezone"] = asked.timezone or "UTC"
    if asked.timezone is None:
        notes.append(f"[{asked.place}] timestamp: names no zone, and is taken as UTC (--timezone Europe/Paris)")
    return f"{'dates or ' if pattern is None else ''}local times in {settings['timezone']}", settings


def _has_zone(values: pa.Array, place: Place) -> bool:
    try:
        Instants(None, "").read(values, place)
    except BadValue:
        return False
    return True


def _is_flat(values: pa.Array) -> bool:
    import pyarrow as pa

    return not (pa.types.is_nested(values.type) or pa.types.is_binary(values.type))


def _reads_numbers(sample: Batch, name: str) -> bool:
    try:
        numbers(*column_of(sample, name))
    except BadValue:
        return False
    return True
