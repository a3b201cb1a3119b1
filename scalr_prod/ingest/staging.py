# SPDX-License-Identifier: Apache-2.0
"""Staging: parse and validate a log and its item file into Parquet files, before the lake's tables are touched.

Files of a log are parsed in tasks of `scalr_prod.compute`, which read some files each. This process reads tables, queries, and what
custom readers read.
"""

from __future__ import annotations

import functools
from contextlib import closing
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc

from scalr_prod.compute import ShuffleFolder, TaskRound, run_rounds
from scalr_prod.core.partitioned import sample_stride
from scalr_prod.errors import EmptyInput
from scalr_prod.ingest.column_mapping import ColumnSelection
from scalr_prod.ingest.column_parsers import (
    IdParser,
    common_id_type,
    first_true_index,
    parse_booleans,
    parse_numbers,
    parse_texts,
    select_column,
)
from scalr_prod.ingest.log_limits import TIME_REASONS, LeftOutRows, TimeBounds, TypeWeights
from scalr_prod.ingest.sources.readers import files_reader, log_source, read_path
from scalr_prod.ingest.sources.sql import read_query
from scalr_prod.ingest.timestamp_parser import TimestampParser
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_ID, EVENT_TIMESTAMP, ITEM_ID, RECOMMENDED_BY, USER_ID

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Generator, Mapping, Sequence
    from pathlib import Path

    from duckdb import DuckDBPyConnection

    from scalr_prod.config import DomainSettings, ItemColumns, LogColumns, Settings
    from scalr_prod.ingest.column_parsers import CellOrigin
    from scalr_prod.ingest.log_tasks import LogTasks
    from scalr_prod.ingest.sources.files import FilesReader, LogFiles
    from scalr_prod.ingest.sources.protocol import Batch, LogSource


#: Columns of the rows that are left out.
LEFT_OUT_COLUMNS = [EVENT_ID, CREATED_TIMESTAMP, "position"]
#: Columns of the users' answers; the time of an answer of a file of consents is null.
CONSENT_COLUMNS = [USER_ID, EVENT_TIMESTAMP, "consent"]
#: Bits of a row's position within a part of the log.
_PART_BITS = 40
_LARGEST_FLOAT32 = 3.4028234663852886e38


@dataclass
class StagedEvents:
    """A domain's log as Parquet files of one schema each; ids from untyped text are still strings.

    Attributes:
        origin: Its origin, for errors.
        left_out: Rows that were left out, by reason.
        user_ids: Parser of the user ids, with their type.
        item_ids: Parser of the item ids, with their type.
        parts: The Parquet files of each part of the log: paths in the folder that tasks write to.
        files: The same files on this machine, if this process sorts the log.
        left_out_files: Files of `LEFT_OUT_COLUMNS` of rows that were left out, see `EventParser`, on this machine.
        consent_files: Files of `CONSENT_COLUMNS`, from the log or from the domain's file of consents, on this machine.
        sample: Times of an even sample of the rows, µs, for `sample_bounds`.
        rows: Total number of rows.
        created_lifted: Rows whose created time was raised to their event time.
        unused_columns: Columns of the log that the settings do not map.
    """

    origin: str
    left_out: LeftOutRows
    user_ids: IdParser
    item_ids: IdParser
    parts: list[list[str]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    left_out_files: list[Path] = field(default_factory=list)
    consent_files: list[Path] = field(default_factory=list)
    sample: list[int] = field(default_factory=list)
    rows: int = 0
    created_lifted: int = 0
    unused_columns: list[str] = field(default_factory=list)


@dataclass
class StagedItems:
    """An item file as Parquet; ``row`` is the position in the input, which decides which of several rows is the last."""

    origin: str
    item_ids: IdParser = field(default_factory=IdParser)
    files: list[Path] = field(default_factory=list)
    rows: int = 0


class ParsedRows(NamedTuple):
    """What an `EventParser` found in some rows of a log."""

    user_ids: IdParser
    item_ids: IdParser
    event_ids: IdParser
    happened: TimestampParser
    known: TimestampParser
    left_out: Counter[str]
    created_lifted: int


class EventParser:
    """Parse a domain's log batch by batch into the lake's types; ids from untyped text are still strings.

    Args:
        section: The domain's settings.
        place: Their key below ``[domains]``.
        bounds: Bounds of the times; default: those of the settings, as of now.
        first_position: Position of the first row; positions order the rows of a log.
        on_left_out: Called with the rows of `LEFT_OUT_COLUMNS` that are left out, where the settings map event ids. Rows with an
            impossible time are not among them.
        on_consent: Called with the rows of `CONSENT_COLUMNS`, where the settings map the consent. The answer of an event that is left out
            counts, unless it has no user id or an impossible time.

    Attributes:
        user_ids: Parser of the user ids, with their type.
        item_ids: Parser of the item ids, with their type.
        created_lifted: Rows whose created time was raised to their event time.
        left_out: Rows that are left out, by reason.
    """

    def __init__(
        self,
        section: DomainSettings,
        place: str,
        *,
        bounds: TimeBounds | None = None,
        first_position: int = 0,
        on_left_out: Callable[[pa.RecordBatch], None] | None = None,
        on_consent: Callable[[pa.RecordBatch], None] | None = None,
    ) -> None:
        key = f"[domains.{place}] timezone"
        drops_missing = section.bad_ids == "drop"
        self.user_ids, self.item_ids = IdParser(drops_missing=drops_missing), IdParser(drops_missing=drops_missing)
        self.created_lifted = 0
        self.left_out = LeftOutRows(
            section.events or f"the query of [domains.{place}]", f"[domains.{place}]", section.max_left_out
        )
        self._limits = bounds or TimeBounds.from_settings(section, f"[domains.{place}]")
        self._types = TypeWeights.from_settings(section, f"[domains.{place}]")
        self._event_ids, self._rows = IdParser(), first_position
        self._on_left_out = on_left_out if section.columns.event_id is not None else None
        self._on_consent = on_consent if section.columns.consent is not None else None
        self._names = section.columns
        self._happened, self._known = (
            TimestampParser(section.timezone, key, format=section.timestamp_format) for _ in range(2)
        )

    def parse(self, batch: Batch) -> pa.RecordBatch:
        """Parse a batch: user, item, both times, weight and other mapped columns. Rows that are left out are counted.

        Raises:
            BadValue: A cell is invalid; names its column and row. Null ids are reported at the end, by `IdParser.ensure_no_nulls`.
        """
        names = self._names
        users = self.user_ids.parse(*select_column(batch, names.user), untyped=batch.untyped)
        items = self.item_ids.parse(*select_column(batch, names.item), untyped=batch.untyped)
        beyond: dict[str, pa.Array] = {}
        if self.user_ids.drops_missing:
            beyond = {"no_user_id": pc.is_null(users), "no_item_id": pc.is_null(items)}
        created = times = self._times(self._happened, batch, names.timestamp, beyond)
        if names.created is not None:
            created = self._times(self._known, batch, names.created, beyond)
        columns = {USER_ID: users, ITEM_ID: items, EVENT_TIMESTAMP: times, CREATED_TIMESTAMP: created}
        extras = self._extras(batch, beyond)
        type_weights = extras.pop("type_weight", pa.repeat(pa.scalar(1.0, pa.float32()), len(times)))
        columns |= {"weight": _weights(batch, names.weight, type_weights)} | extras
        keep = self._count_left_out(beyond, len(times))
        if names.created is not None:
            early = pc.less(created, times)
            self.created_lifted += pc.sum(pc.and_(keep, early)).as_py() or 0
            columns[CREATED_TIMESTAMP] = pc.if_else(early, times, created)
        if self._on_consent is not None and names.consent is not None:
            answers = [users, times, parse_booleans(*select_column(batch, names.consent))]
            unusable = (beyond[reason] for reason in ("no_user_id", *TIME_REASONS) if reason in beyond)
            usable = functools.reduce(pc.and_not, unusable, pc.is_valid(times))
            self._on_consent(pa.RecordBatch.from_arrays(answers, CONSENT_COLUMNS).filter(usable))
        rows = pa.RecordBatch.from_arrays(list(columns.values()), list(columns))
        if not beyond:
            return rows
        if self._on_left_out is not None:
            left = functools.reduce(
                pc.and_not, (beyond[reason] for reason in TIME_REASONS if reason in beyond), pc.invert(keep)
            )
            self._on_left_out(rows.select(LEFT_OUT_COLUMNS).filter(left))
        return rows.filter(keep)

    def parsed(self) -> ParsedRows:
        """Return what was found so far."""
        return ParsedRows(
            self.user_ids,
            self.item_ids,
            self._event_ids,
            self._happened,
            self._known,
            self.left_out.counts,
            self.created_lifted,
        )

    def add(self, later: ParsedRows) -> None:
        """Add what another parser found in the rows that follow.

        Raises:
            BadValue: The type of an id column, or the unit of epoch numbers, changes between files.
        """
        self.user_ids.add(later.user_ids)
        self.item_ids.add(later.item_ids)
        self._event_ids.add(later.event_ids)
        self._happened.add(later.happened)
        self._known.add(later.known)
        self.left_out.counts.update(later.left_out)
        self.created_lifted += later.created_lifted

    def warn_on_mixed_times(self) -> None:
        """Log a warning for each column that has times both with and without a UTC offset; call after the last batch."""
        for parser in (self._happened, self._known):
            parser.warn_on_mixed_times()

    def _times(self, reader: TimestampParser, batch: Batch, name: str, beyond: dict[str, pa.Array]) -> pa.Array:
        """Parse a column of times; those out of bounds are rejected, or added to ``beyond``."""
        values, place = select_column(batch, name)
        times = reader.parse(values, place)
        if not self._limits.drop:
            self._limits.ensure_within(times, place)
            return times
        for reason, rows in self._limits.out_of_bounds(times).items():
            beyond[reason] = pc.or_(rows, beyond[reason]) if reason in beyond else rows
        return times

    def _extras(self, batch: Batch, beyond: dict[str, pa.Array]) -> dict[str, pa.Array]:
        """Parse the mapped columns of `OPTIONAL_EVENT_COLUMNS`, with their helper columns."""
        names, size = self._names, batch.rows.num_rows
        columns: dict[str, pa.Array] = {}
        if names.event_id is not None:
            values, place = select_column(batch, names.event_id)
            ids = self._event_ids.parse(values, place, untyped=batch.untyped).cast(pa.string())
            if (at := first_true_index(pc.is_null(ids))) is not None:
                raise place.bad_value("null or empty event id", at=at, next_step="give each event an id, or map no event_id")
            columns |= {EVENT_ID: ids, "position": pa.array(range(self._rows, self._rows + size), pa.int64())}
        if names.event_type is not None:
            types = select_column(batch, names.event_type)
            columns["event_type"], columns["type_weight"], unknown = self._types.parse(*types)
            if unknown is not None:
                beyond["unknown_type"] = unknown
        if names.value is not None:
            columns["value"] = _finite(*select_column(batch, names.value))
        if names.recommended_by is not None:
            columns[RECOMMENDED_BY] = parse_texts(*select_column(batch, names.recommended_by))
        self._rows += size
        return columns

    def _count_left_out(self, beyond: dict[str, pa.Array], rows: int) -> pa.Array:
        """Return the mask of the rows that are kept, and count the others; a row with several reasons counts for the first."""
        keep = pa.repeat(pa.scalar(value=True), rows)
        for reason, left in beyond.items():
            self.left_out.counts[reason] += pc.sum(pc.and_(keep, left)).as_py() or 0
            keep = pc.and_not(keep, left)
        return keep


class ItemParser:
    """Parse a domain's item file batch by batch; ``row`` is the position in the input.

    Args:
        columns: The columns that the settings map.

    Attributes:
        item_ids: Parser of the item ids, with their type.
    """

    def __init__(self, columns: ItemColumns) -> None:
        self._names = columns
        self._rows = 0
        self.item_ids = IdParser()

    def parse(self, batch: Batch) -> pa.RecordBatch:
        """Parse a batch: item, title, category, value and row.

        Raises:
            BadValue: As for `EventParser.parse`.
        """
        names, size = self._names, batch.rows.num_rows
        items = self.item_ids.parse(*select_column(batch, names.item), untyped=batch.untyped)
        title, category = (_optional(batch, name, parse_texts, pa.string()) for name in (names.title, names.category))
        value = _optional(batch, names.value, _finite, pa.float64())
        row = pa.array(range(self._rows, self._rows + size), pa.int64())
        self._rows += size
        return pa.RecordBatch.from_arrays([items, title, category, value, row], [ITEM_ID, "title", "category", "value", "row"])


def open_events(
    settings: Settings, place: str, *, seen_columns: set[str] | None = None
) -> tuple[Generator[Batch, None, None], str]:
    """Open a domain's log: return its batches, read lazily, and its origin.

    Args:
        settings: The project's settings.
        place: Key of its settings below ``[domains]``.
        seen_columns: Filled with the log's columns while reading.
    """
    section = settings.domains[place]
    wanted = _event_columns(section, place, set() if seen_columns is None else seen_columns)
    if section.sql_source is not None:
        return read_query(*section.sql_source, wanted), f"the query of [domains.{place}]"
    origin, options = section.events or "", section.storage_options
    batches = read_path(settings, origin, wanted, format=section.format, version=section.version, storage_options=options)
    return batches, origin


def _event_columns(section: DomainSettings, place: str, seen: set[str]) -> ColumnSelection:
    names = section.columns
    nullable = tuple(filter(None, (names.value, names.consent, names.recommended_by)))
    return ColumnSelection(mapped_columns(names), f"domains.{place}.columns", nullable=nullable, seen_columns=seen)


def mapped_columns(names: LogColumns) -> tuple[str, ...]:
    """Return the log's columns that the settings map."""
    others = (
        names.created,
        names.weight,
        names.event_id,
        names.event_type,
        names.value,
        names.consent,
        names.recommended_by,
    )
    return names.user, names.item, names.timestamp, *filter(None, others)


def open_items(settings: Settings, place: str) -> Generator[Batch, None, None]:
    """Open a domain's item file, as `open_events` does.

    Columns that the settings map explicitly must exist; those with default names are read if they exist.
    """
    section = settings.domains[place]
    names = section.item_columns
    mapped = {key: getattr(names, key) for key in ("title", "category", "value")}
    explicit = tuple(name for key, name in mapped.items() if name and key in names.model_fields_set)
    others = tuple(name for name in mapped.values() if name and name not in explicit)
    wanted = ColumnSelection((names.item, *explicit), f"domains.{place}.item_columns", others, nullable=explicit)
    options = section.storage_options
    return read_path(settings, section.items or "", wanted, version=section.items_version, storage_options=options)


class FilesLog(NamedTuple):
    """A log of files, and what reads it."""

    source: LogSource
    reader: FilesReader


@dataclass(frozen=True)
class LogInput:
    """A log to stage, and what every task that parses a part of it needs to know.

    Attributes:
        section: The domain's settings.
        place: Their key below ``[domains]``.
        bounds: Bounds of the times.
        stride: Of how many rows one is in the sample of times.
        files: The log, if it consists of files; None: this process reads it.
    """

    section: DomainSettings
    place: str
    bounds: TimeBounds
    stride: int
    files: FilesLog | None = None

    def plan(self) -> list[LogFiles]:
        """Divide the log's files among tasks; no task: this process reads the log.

        Raises:
            InputError: No file matches, or it cannot be opened.
        """
        return [] if self.files is None else self.files.reader.plan(self.files.source)


class _ParsedPart(NamedTuple):
    """Rows that were parsed, and files that they were written to, as `StagedEvents` describes them."""

    number: int
    found: ParsedRows
    rows: int
    files: list[str]
    left_out_files: list[str]
    consent_files: list[str]
    sample: list[int]
    seen_columns: set[str]


def open_log_input(settings: Settings, place: str) -> LogInput:
    """Open a domain's log for staging.

    Raises:
        InputError: The file system cannot be opened.
    """
    section, key = settings.domains[place], f"[domains.{place}]"
    log = LogInput(section, place, TimeBounds.from_settings(section, key), sample_stride())
    if section.sql_source is not None:
        return log
    source = log_source(
        settings,
        section.events or "",
        _event_columns(section, place, set()),
        version=section.version,
        storage_options=section.storage_options,
    )
    reader = files_reader(source, section.format)
    return log if reader is None else replace(log, files=FilesLog(source, reader))


def stage_logs(
    settings: Settings,
    logs: Mapping[str, LogInput],
    files: Mapping[str, Sequence[LogFiles]],
    tasks: LogTasks,
    *,
    count: Callable[[int], None],
) -> dict[str, StagedEvents]:
    """Stage the logs of domains, reading each once. Files of all logs are read at the same time.

    Args:
        settings: The project's settings.
        logs: The logs, by settings key.
        files: What each task reads, by settings key; see `LogInput.plan`.
        tasks: Runs the tasks.
        count: Called with the number of rows of each batch, or of each part.

    Raises:
        InputError: A log cannot be read, is empty, lacks a column, or holds an invalid cell.
        ComputeError: A task failed.
    """
    works = [_stage_log(settings, log, files[place], tasks, count) for place, log in logs.items()]
    return dict(zip(logs, run_rounds(tasks.executor, works), strict=True))


def _stage_log(
    settings: Settings, log: LogInput, files: Sequence[LogFiles], tasks: LogTasks, count: Callable[[int], None]
) -> Generator[TaskRound, list[Any], StagedEvents]:
    """Yield the round that parses a log's files."""
    section, place = log.section, log.place
    if log.files is None:
        parts = [_parse_log(settings, log, tasks.folder, count)]
    else:
        shared = (some if tasks.executor.is_local else some.share(tasks.folder) for some in files)
        calls = ((log, log.files, tasks.folder, number, some) for number, some in enumerate(shared))
        parts = yield TaskRound(_parse_files, calls, lambda part: count(part.rows))
    parts.sort(key=attrgetter("number"))
    cells = EventParser(section, place)
    for part in parts:
        cells.add(part.found)
    staged = StagedEvents(
        section.events or f"the query of [domains.{place}]",
        cells.left_out,
        cells.user_ids,
        cells.item_ids,
        parts=[part.files for part in parts if part.files],
        left_out_files=tasks.fetch([path for part in parts for path in part.left_out_files]),
        consent_files=tasks.fetch([path for part in parts for path in part.consent_files]),
        sample=[time for part in parts for time in part.sample],
        rows=sum(part.rows for part in parts),
        created_lifted=cells.created_lifted,
        unused_columns=sorted({name for part in parts for name in part.seen_columns} - set(mapped_columns(section.columns))),
    )
    cells.warn_on_mixed_times()
    staged.user_ids.ensure_no_nulls()
    staged.item_ids.ensure_no_nulls()
    staged.left_out.ensure_within_limit(staged.rows)
    if not staged.rows:
        raise EmptyInput("has no rows", where=staged.origin, next_step=f"check what [domains.{place}] names")
    if section.consent is not None:
        staged.consent_files = _stage_consents(settings, place, tasks.local_folder, staged.user_ids)
    return staged


def _parse_files(
    _: DuckDBPyConnection, log: LogInput, named: FilesLog, folder: ShuffleFolder, number: int, files: LogFiles
) -> _ParsedPart:
    """Task: parse some files of a log.

    Raises:
        InputError: A file cannot be read, lacks a column, or holds an invalid cell.
    """
    batches = named.reader.read_files(named.source, files, folder)
    return _parse_batches(log, folder, number, batches)._replace(seen_columns=named.source.wanted.seen_columns)


def _parse_log(settings: Settings, log: LogInput, folder: ShuffleFolder, count: Callable[[int], None]) -> _ParsedPart:
    """Parse a log that is not divided among tasks."""
    seen: set[str] = set()
    batches, _ = open_events(settings, log.place, seen_columns=seen)
    return _parse_batches(log, folder, 0, batches, count)._replace(seen_columns=seen)


def _parse_batches(
    log: LogInput,
    folder: ShuffleFolder,
    number: int,
    batches: Generator[Batch, None, None],
    count: Callable[[int], None] = lambda _rows: None,
) -> _ParsedPart:
    """Parse the rows of a part, and write them."""
    # closing: on an invalid cell, the cursor or file is closed at once, not when the generator is collected.
    with closing(batches), _SchemaFiles(folder) as files, _SchemaFiles(folder) as left, _SchemaFiles(folder) as consents:
        cells = EventParser(
            log.section,
            log.place,
            bounds=log.bounds,
            first_position=number << _PART_BITS,
            on_left_out=left.write,
            on_consent=consents.write,
        )
        sample: list[int] = []
        parsed = 0
        for batch in batches:
            rows = cells.parse(batch)
            files.write(rows)
            sample += rows.column(EVENT_TIMESTAMP).cast(pa.int64()).to_numpy()[-parsed % log.stride :: log.stride].tolist()
            parsed += rows.num_rows
            count(rows.num_rows)
    return _ParsedPart(number, cells.parsed(), parsed, files.paths, left.paths, consents.paths, sample, set())


def _stage_consents(settings: Settings, place: str, folder: Path, log_users: IdParser) -> list[Path]:
    """Stage a domain's file of consents: `CONSENT_COLUMNS` without times.

    Raises:
        InputError: As for `stage_logs`; or its ids are of another type than those of the log.
    """
    section = settings.domains[place]
    path, users = section.consent or "", IdParser()
    wanted = ColumnSelection((section.columns.user, "consent"), f"domains.{place}.columns")
    batches = read_path(settings, path, wanted, storage_options=section.storage_options)
    with closing(batches), _SchemaFiles(ShuffleFolder(str(folder))) as files:
        for batch in batches:
            ids = users.parse(*select_column(batch, section.columns.user), untyped=batch.untyped)
            answers = parse_booleans(*select_column(batch, "consent"))
            times = pa.nulls(len(ids), pa.timestamp("us", tz="UTC"))
            files.write(pa.RecordBatch.from_arrays([ids, times, answers], CONSENT_COLUMNS))
    users.ensure_no_nulls()
    common_id_type("user", [log_users, users])
    if not files.paths:
        raise EmptyInput("has no rows", where=path, next_step=f"check what [domains.{place}] consent names")
    return [folder / each for each in files.paths]


def stage_items(settings: Settings, place: str, folder: Path) -> StagedItems | None:
    """Stage a domain's item file, reading it once; None if the settings name none.

    Raises:
        InputError: As for `stage_logs`.
    """
    section = settings.domains[place]
    if section.items is None:
        return None
    batches = open_items(settings, place)
    cells = ItemParser(section.item_columns)
    staged = StagedItems(section.items, cells.item_ids)
    with closing(batches), _SchemaFiles(ShuffleFolder(str(folder))) as files:
        for batch in batches:
            rows = cells.parse(batch)
            files.write(rows)
            staged.rows += rows.num_rows
    staged.files = [folder / path for path in files.paths]
    staged.item_ids.ensure_no_nulls()
    if not staged.rows:
        raise EmptyInput("has no rows", where=section.items, next_step=f"check or leave out [domains.{place}] items")
    return staged


def _weights(batch: Batch, name: str | None, type_weights: pa.Array) -> pa.Array:
    """Return the events' own weights times those of their types, in float32."""
    if name is None:
        return type_weights
    values, place = select_column(batch, name)
    weights = parse_numbers(values, place)
    good = pc.and_(pc.greater_equal(weights, 0.0), pc.less_equal(weights, _LARGEST_FLOAT32))
    at = first_true_index(pc.invert(pc.fill_null(good, fill_value=False)))
    if at is not None:
        weight = weights[at].as_py()
        raise place.bad_value(
            "null weight" if weight is None else f"weight {weight}",
            at=at,
            next_step="give finite weights of at least 0, or leave the column out (each event then weighs 1)",
        )
    products = pc.multiply(weights.cast(pa.float32(), safe=False), type_weights)
    lost = pc.and_(pc.equal(products, 0.0), pc.and_(pc.greater(weights, 0.0), pc.greater(type_weights, 0.0)))
    at = first_true_index(pc.or_(pc.is_inf(products), lost))
    if at is not None:
        raise place.bad_value(
            f"weight {weights[at].as_py():g}, times {type_weights[at].as_py():g} for its type, would be stored as {products[at]}",
            at=at,
            next_step="give weights between 1e-30 and 1e30, or 0",
        )
    return products


def _finite(values: pa.Array, place: CellOrigin) -> pa.Array:
    numbers = parse_numbers(values, place)
    numbers = pc.if_else(pc.is_nan(numbers), None, numbers)
    at = first_true_index(pc.is_inf(numbers))
    if at is not None:
        raise place.bad_value("infinite value", at=at, next_step="correct the value or leave it empty")
    return numbers


def _optional(batch: Batch, name: str | None, read: Callable[[pa.Array, CellOrigin], pa.Array], kind: pa.DataType) -> pa.Array:
    if name is None or name not in batch.rows.schema.names:
        return pa.nulls(batch.rows.num_rows, kind)
    return read(*select_column(batch, name))


class _SchemaFiles:
    """Writers of one Parquet file per schema; schemas differ if the id types do."""

    def __init__(self, folder: ShuffleFolder) -> None:
        self.folder = folder
        self.paths: list[str] = []
        self._writers: dict[tuple[str, ...], Any] = {}

    def write(self, batch: pa.RecordBatch) -> None:
        import pyarrow.parquet as pq

        key = tuple(str(kind) for kind in batch.schema.types)
        if key not in self._writers:
            self.paths.append(self.folder.new_path(".parquet"))
            self._writers[key] = pq.ParquetWriter(
                self.paths[-1], batch.schema, filesystem=self.folder.open(), compression="lz4", use_dictionary=False
            )
        self._writers[key].write_batch(batch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()
