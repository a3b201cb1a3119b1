# SPDX-License-Identifier: Apache-2.0
"""Guess of each log's columns, time format and zone, checked by parsing a sample as the ingest does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from scalr_prod.apps.onboarding.column_profiles import LogProfile, parse_times, profile_column
from scalr_prod.apps.onboarding.evidence import LEAST_USERS, Inference, infer_columns
from scalr_prod.apps.onboarding.log_request import LogRequest
from scalr_prod.apps.onboarding.log_samples import EVIDENCE_ROWS, NAMES_ROWS, read_sample
from scalr_prod.apps.onboarding.names import EVENT_ROLES, ITEM_ROLES, has_known_name, match_columns, normalize_name
from scalr_prod.core.redaction import redact_url
from scalr_prod.errors import BadValue, ColumnNotFound
from scalr_prod.ingest import IdParser, TimestampParser, parse_numbers, select_column

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from scalr_prod.config import Settings
    from scalr_prod.ingest import Batch, CellOrigin


@dataclass(frozen=True)
class LogGuess:
    """Guess of how to read a log.

    Attributes:
        place: See `LogRequest`.
        columns: Role → column.
        available_columns: All columns of the log.
        settings: Further keys of ``[domains.<domain>]``: ``format``, ``timezone``, ``timestamp_format``.
        time_description: Description of its times.
        notes: Choices between several possibilities.
        evidence: Column → what its values show, if names did not give all roles.
        by_values: Roles that the values decided.
        title: The column of the items' names, if the log has one and its names did not give all roles.
    """

    place: str
    columns: Mapping[str, str]
    available_columns: Sequence[str]
    settings: Mapping[str, str]
    time_description: str
    notes: Sequence[str] = ()
    evidence: Mapping[str, str] = field(default_factory=dict)
    by_values: frozenset[str] = frozenset()
    title: str | None = None

    def evidence_rows(self) -> list[dict[str, str]]:
        """Return the evidence as a table: columns with a role first."""
        roles = {column: role for role, column in self.columns.items()} | ({self.title: "title"} if self.title else {})
        ordered = [*roles, *(column for column in self.evidence if column not in roles)] if self.evidence else []
        return [{"column": column, "role": roles.get(column, "-"), "values": self.evidence[column]} for column in ordered]


@dataclass(frozen=True)
class ItemGuess:
    """Guess of how to read an item file: role → column, and all of its columns."""

    columns: Mapping[str, str]
    available_columns: Sequence[str]


def guess_logs(base: Settings, requests: Sequence[LogRequest], *, decisive: bool) -> dict[str, LogGuess]:
    """Guess how to read each log from its first rows: by the names of its columns, else by the values of all logs.

    Args:
        base: Any settings; relative paths start from their folder.
        requests: The logs, and what the user specified; the target is last, if there is one.
        decisive: Raise where the values leave several possibilities; otherwise the likeliest is taken, and noted.

    Raises:
        InputError: A log does not exist, cannot be read, or has no row.
        ColumnNotFound: No column fits some roles, or several do; names the roles of all logs, the existing columns, and the options
            to name them.
        BadValue: No time column can be parsed; says what was found.
    """
    drafts: dict[str, _Draft] = {}
    errors: list[ColumnNotFound] = []
    for request in requests:
        try:
            drafts[request.place] = _by_name(base, request)
        except ColumnNotFound as error:
            errors.append(error)
    incomplete = [draft for draft in drafts.values() if draft.missing]
    if incomplete and not errors:
        _by_values(base, _reference_last(drafts))
    errors += filter(None, (draft.error(decisive=decisive) for draft in incomplete))
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ColumnNotFound(
            "; ".join(f"{error.where}: {error.found}" for error in errors),
            where=" and ".join(str(error.where) for error in errors),
            next_step="; ".join(str(error.next_step) for error in errors),
        )
    *sources, target = drafts.values()
    if not target.request.is_open:
        for source in sources:
            _note_no_common_user(base, source, target)
    return {place: draft.guess() for place, draft in drafts.items()}


@dataclass
class _Draft:
    """A guess in the making.

    Attributes:
        request: The log.
        sample: Its first rows.
        format: The format, if its name does not determine it.
        columns: Role → column.
        notes: Role → choice between several possibilities.
        missing: Role → the error if the values do not show it either.
        inference: What the values show, or None if the names gave everything.
        kept: Roles whose columns the user or their names gave.
    """

    request: LogRequest
    sample: Batch
    format: dict[str, str]
    columns: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    missing: dict[str, ColumnNotFound] = field(default_factory=dict)
    inference: Inference | None = None
    kept: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        """All columns."""
        return list(dict.fromkeys(self.sample.rows.schema.names))

    def error(self, *, decisive: bool) -> ColumnNotFound | None:
        """Return the error for roles without a column, or with several if the guess has to be decisive, or None if there are none."""
        unsure = self.inference.unsure if self.inference is not None and decisive else {}
        if not self.missing and not unsure:
            return None
        found = [error.found for error in self.missing.values()]
        found += [f"{' and '.join(columns)} may be the {_ROLE_NAMES[role]}" for role, columns in unsure.items()]
        listed = "; ".join(found) + f"; there are: {', '.join(self.names)}"
        if self.inference is not None:
            evidence = self.inference.evidence
            told = list(evidence) if self.missing else [column for columns in unsure.values() for column in columns]
            listed += "; by their values: " + ", ".join(f"{column} ({evidence[column]})" for column in told[:_LISTED])
        steps = [str(error.next_step) for error in self.missing.values()]
        steps += [f"name it: {_option(self.request, role)}" for role in unsure]
        return ColumnNotFound(listed, where=redact_url(self.request.location), next_step="; ".join(steps))

    def guess(self) -> LogGuess:
        """Return the guess; every role has its column."""
        request, place = self.request, self.request.place
        notes = [f"[{place}] {role}: {note} ({_option(request, role)})" for role, note in self.notes.items()]
        times, settings = _times(self.sample, self.columns["timestamp"], request, notes)
        columns = {role: self.columns[role] for role in EVENT_ROLES}
        settings = {**self.format, **settings}
        if self.inference is None:
            return LogGuess(place, columns, self.names, settings, times, tuple(notes))
        return LogGuess(
            place,
            columns,
            self.names,
            settings,
            times,
            tuple(notes),
            self.inference.evidence,
            frozenset(self.inference.columns) - self.kept,
            self.inference.title,
        )


def _by_name(base: Settings, request: LogRequest) -> _Draft:
    """Find the columns of a log by their names.

    Raises:
        InputError: As `guess_logs`; also if a column that the user named does not exist.
    """
    draft = _Draft(request, *read_sample(base, request))
    _check_header(draft.names, request)
    # Columns that the user named come first, so that no guess takes them.
    for role in sorted(EVENT_ROLES, key=lambda role: role not in request.columns):
        try:
            draft.columns[role] = _column(role, draft)
        except ColumnNotFound as error:
            draft.missing[role] = error
    wrong = draft.error(decisive=True) if draft.missing.keys() & request.columns.keys() else None
    if wrong is not None:
        raise wrong
    return draft


def _reference_last(drafts: Mapping[str, _Draft]) -> dict[str, _Draft]:
    """Order drafts so that the log which the users of all others are compared with is last: the target, or else one without a gap."""
    complete = [place for place, draft in drafts.items() if draft.request.is_open and not draft.missing]
    last = complete[-1:]
    return {place: drafts[place] for place in (*(place for place in drafts if place not in last), *last)}


def _by_values(base: Settings, drafts: Mapping[str, _Draft]) -> None:
    """Complete the columns of logs by the values of larger samples of all logs.

    A column that the user named, and a time or a user whose name is known, are kept. An ending such as ``_id`` proves nothing here.
    """
    named, profiles = {}, {}
    for place, draft in drafts.items():
        draft.sample, _ = read_sample(base, draft.request, rows=EVIDENCE_ROWS)
        profiles[place] = LogProfile.from_sample(draft.sample, draft.request.timezone or "UTC")
        named[place] = {
            role: column
            for role, column in draft.columns.items()
            if not draft.missing or role in draft.request.columns or _is_told(role, column, profiles[place])
        }
    found = infer_columns(profiles, named)
    for place, draft in drafts.items():
        if not draft.missing:
            continue
        inference = draft.inference = found[place]
        kept = dict(named[place])
        for role, column in draft.columns.items():  # a known name is kept if nothing better was found
            if role not in inference.columns and has_known_name(role, column) and column not in inference.columns.values():
                kept[role] = inference.columns[role] = column
        draft.kept = frozenset(kept)
        draft.notes = {role: note for role, note in draft.notes.items() if role in kept} | inference.notes
        draft.notes |= {
            role: f"{inference.columns[role]} was taken, but is not certain; {' or '.join(others)} would do too"
            for role, columns in inference.unsure.items()
            if (others := [column for column in columns if column != inference.columns[role]] or ["another column"])
        }
        draft.columns = inference.columns
        draft.missing = {role: error for role, error in draft.missing.items() if role not in inference.columns}
        draft.missing |= {
            role: _not_found(role, draft.request) for role in EVENT_ROLES if role not in {*inference.columns, *draft.missing}
        }


def _note_no_common_user(base: Settings, source: _Draft, target: _Draft) -> None:
    """Add a note to a source if neither its sample nor a larger one shares a user with the target."""
    for rows in (NAMES_ROWS, EVIDENCE_ROWS):
        (source_users, source_rows), (target_users, target_rows) = (
            _read_users(base, draft, rows) for draft in (source, target)
        )
        if source_users & target_users:
            return
    note = (
        f"none of the {len(source_users):,} users of its first {source_rows:,} rows is among the {len(target_users):,} users of the "
        f"target's first {target_rows:,} rows, and logs without a common user are refused: name columns with the same ids, or map the "
        "ids as docs/guides/users-and-domains.md says"
    )
    source.notes["user"] = "; ".join(filter(None, (source.notes.get("user"), note)))


def _read_users(base: Settings, draft: _Draft, rows: int) -> tuple[frozenset[str], int]:
    """Return the users of a log's first rows, and how many rows were read."""
    sample = draft.sample
    if NAMES_ROWS <= sample.rows.num_rows < rows:  # there may be more
        sample, _ = read_sample(base, draft.request, rows=rows)
    return profile_column(sample, draft.columns["user"], "UTC").texts, sample.rows.num_rows


def _is_told(role: str, column: str, profile: LogProfile) -> bool:
    """Return whether a column's known name decides its role, whatever its values; those of items are compared by their values."""
    return (
        role != "item"
        and has_known_name(role, column)
        and column in profile.columns
        and (role != "user" or profile.columns[column].distinct >= LEAST_USERS)
    )


def guess_items(base: Settings, location: str, item: str) -> ItemGuess:
    """Guess how to read an item file from its first rows.

    Args:
        base: As for `guess_logs`.
        location: A path, glob, folder or URL.
        item: The log's item column; a column of the same name is preferred.

    Raises:
        InputError: The file does not exist, cannot be read, or has no row.
        ColumnNotFound: No column fits the item.
    """
    sample, _ = read_sample(base, LogRequest("items", location))
    there = list(dict.fromkeys(sample.rows.schema.names))
    same = [name for name in there if normalize_name(name) == normalize_name(item)]
    fitting = same or match_columns("item", there)
    if not fitting:
        raise ColumnNotFound(
            f"no column looks like an item's id; there are: {', '.join(there)}",
            where=redact_url(location),
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


def _check_header(there: Sequence[str], asked: LogRequest) -> None:
    """Reject a file whose first line is data."""
    if sum(name.replace(".", "", 1).replace("-", "", 1).isdigit() for name in there) > len(there) // 2:
        raise ColumnNotFound(
            f"has no line of column names: it begins with {', '.join(there)[:100]}",
            where=redact_url(asked.location),
            next_step="put the names in a first line, for example user_id,item_id,timestamp",
        )


def _column(role: str, draft: _Draft) -> str:
    request, sample, there = draft.request, draft.sample, draft.names
    option = _option(request, role)
    named = request.columns.get(role)
    if named is not None:
        if named not in there:
            raise ColumnNotFound(f"no column '{named}'", where=redact_url(request.location), next_step=f"correct {option}")
        return named
    flat = [name for name in there if _is_flat(sample.rows.column(name))]
    fitting = match_columns(role, flat, list(draft.columns.values()))
    problems = {name: _problem(role, sample, name, request) for name in fitting}
    usable = [name for name, problem in problems.items() if problem is None]
    if not fitting:
        raise _not_found(role, request)
    error = problems[fitting[0]]
    if not usable and error is not None:
        looked = f" (in the first {NAMES_ROWS} rows, which are looked at)" if sample.rows.num_rows == NAMES_ROWS else ""
        raise BadValue(
            f"'{fitting[0]}' looks like the {_ROLE_NAMES[role]}, but {error.found}{looked}",
            where=error.where,
            next_step=f"{error.next_step}; or name another column: {option} (there are: {', '.join(there)})",
        )
    if len(usable) > 1:
        draft.notes[role] = f"{usable[0]} was taken; {', '.join(usable[1:])} would do too"
    return usable[0]


def _not_found(role: str, request: LogRequest) -> ColumnNotFound:
    found = f"no column looks like the {_ROLE_NAMES[role]}"
    return ColumnNotFound(found, where=redact_url(request.location), next_step=f"name it: {_option(request, role)}")


def _option(request: LogRequest, role: str) -> str:
    return f"--column {request.place}.{role}=NAME"


_ROLE_NAMES: Final = {"user": "user's id", "item": "item's id", "timestamp": "time of the event"}
#: Largest number of columns whose values are described in an error.
_LISTED: Final = 20


def _problem(role: str, sample: Batch, name: str, asked: LogRequest) -> BadValue | None:
    """Return the error of the ingest for a column in a role, or None if it can be read."""
    values, place = select_column(sample, name)
    try:
        if role == "timestamp":
            parse_times(values, place, asked.timezone or "UTC")
        else:
            ids = IdParser()
            ids.parse(values, place, untyped=sample.untyped)
            ids.ensure_no_nulls()
    except BadValue as error:
        return error
    return None


def _times(sample: Batch, name: str, asked: LogRequest, notes: list[str]) -> tuple[str, dict[str, str]]:
    """Return a description of a log's times, and the settings that they need."""
    values, place = select_column(sample, name)
    parsed = parse_times(values, place, asked.timezone or "UTC")
    reader, pattern, others = parsed.parser, parsed.format, parsed.other_formats
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
