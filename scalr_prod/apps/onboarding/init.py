# SPDX-License-Identifier: Apache-2.0
"""Plan of `scalr init`: from logs to a scalr.toml that the ingest can read."""

from __future__ import annotations

import json
import os
import re
import shlex
import tomllib
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.apps.onboarding.databases import resolve_log
from scalr_prod.apps.onboarding.guess import ItemGuess, LogGuess, guess_items, guess_logs
from scalr_prod.errors import EmptyInput, SettingsError
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, USER_ID

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scalr_prod.apps.onboarding.log_request import LogRequest
    from scalr_prod.config import Settings
    from scalr_prod.schemas import IdType


_SHOWN: Final = 5


_COMMENTS: Final = {
    "format": "its name does not show its format",
    "timezone": "of times that name no zone",
    "timestamp_format": "of times that are not ISO 8601",
}


@dataclass(frozen=True)
class DomainSection:
    """The section of one domain.

    Attributes:
        place: ``source``, ``sources.<name>`` or ``target``.
        values: Keys of ``[domains.<domain>]`` → values; ``columns`` and ``item_columns`` are mappings.
        comments: Lines above the section.
        has_secret_url: Whether the URL holds a password, and is left to the environment.
    """

    place: str
    values: Mapping[str, Any]
    comments: tuple[str, ...]
    has_secret_url: bool

    def render_lines(self) -> list[str]:
        """Return the lines of the section."""
        lines = [f"# {comment}" for comment in self.comments] + [f"[domains.{self.place}]"]
        for key, value in self.values.items():
            if key == "url" and self.has_secret_url:
                variable = f"SCALR_DOMAINS__{self.place.upper().replace('.', '__')}__URL"
                lines.append(f"# url: holds a password, so give it by the environment: {variable}")
            else:
                comment = f"  # {_COMMENTS[key]}" if key in _COMMENTS else ""
                lines.append(f"{key} = {_toml(value)}{comment}")
        return lines


def render_toml(domains: list[DomainSection], name: str) -> str:
    """Render the complete file; keys at their default are left out.

    Args:
        domains: Sources and target.
        name: The file's name.
    """
    named = "" if name == "scalr.toml" else f" --config {shlex.quote(name)}"
    lines = [
        "# Written by `scalr init`. Only [domains] is needed; all else has a default: see the README and docs/guides/your-data.md.",
        f"# Look again: scalr doctor --config {shlex.quote(name)}    Go on: scalr ingest{named}, or everything at once: scalr run{named}",
    ]
    for domain in domains:
        lines += ["", *domain.render_lines()]
    lines += [
        "",
        "# [project]",
        '# name = "…"                      # default: from the domains\' names',
        '# home = ".scalr"                 # where everything that is made lies',
        "",
        "# [generation]",
        '# contexts = "users"              # "events": translate every source event at its own time',
        "# events_per_source_event = 20    # how many synthetic events each user may get",
        '# mode = "backfill"               # "causal" for a daily window',
        "",
        "# [serving]",
        '# scorer = "triton"               # "local": without a server',
        "",
    ]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@dataclass(frozen=True)
class DomainPlan:
    """One domain, as the ingest would read it with the settings to write.

    Attributes:
        request: The user's request.
        name: The domain's name.
        log_guess: Guess of how to read its log.
        item_guess: Guess of how to read its item file.
        items_location: Location of the item file.
        rows: The first rows as the ingest reads them: user, item, time (UTC, ISO 8601).
    """

    request: LogRequest
    name: str
    log_guess: LogGuess
    item_guess: ItemGuess | None
    items_location: str | None
    rows: Sequence[Mapping[str, str]] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON."""
        return {
            "name": self.name,
            "columns": dict(self.log_guess.columns),
            "there": list(self.log_guess.available_columns),
            "times": self.log_guess.time_description,
            **self.log_guess.settings,
            "item_columns": dict(self.item_guess.columns) if self.item_guess else None,
            "evidence": self.log_guess.evidence_rows(),
            "rows": [dict(row) for row in self.rows],
        }


@dataclass(frozen=True)
class InitPlan:
    """The scalr.toml to write, and how it reads the logs.

    Attributes:
        config: Path of the file.
        domains: Place → domain: ``source`` or each ``sources.<name>``, then ``target``.
        text: Content of the file.
    """

    config: Path
    domains: Mapping[str, DomainPlan]
    text: str

    @property
    def notes(self) -> list[str]:
        """Choices between several possibilities."""
        found = [note for domain in self.domains.values() for note in domain.log_guess.notes]
        *sources, target = [(domain.request.location, domain.request.query) for domain in self.domains.values()]
        return [*found, "[target] log: it is the source's log, too (--target)"] if target in sources else found

    def write(self, *, force: bool = False) -> None:
        """Write the file atomically.

        Args:
            force: Overwrite an existing file.

        Raises:
            SettingsError: The file exists, or cannot be written; nothing was written.
        """
        draft = self.config.with_name(f".{self.config.name}.{os.getpid()}")
        try:
            self.config.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(self.text, encoding="utf-8")
            ensure_not_overwriting(self.config, force=force)
            draft.replace(self.config)
        except OSError as error:
            raise SettingsError(
                f"cannot be written: {error.strerror}", where=str(self.config), next_step="name another file: --config FILE"
            ) from error
        finally:
            with suppress(OSError):  # its parent may not be a folder
                draft.unlink(missing_ok=True)

    def to_summary(self) -> dict[str, Any]:
        """Return the plan for display: how each log is read, with its first five rows."""
        shown: dict[str, Any] = {}
        for place, one in self.domains.items():
            shown[place] = {
                "name": one.name,
                "log": one.request.query or one.request.location,
                "columns": ", ".join(f"{role} = {column}" for role, column in one.log_guess.columns.items()),
                "times": one.log_guess.time_description,
                **({"evidence": rows} if (rows := one.log_guess.evidence_rows()) else {}),
                "first rows": [dict(row) for row in one.rows],
            }
            if one.item_guess is not None:
                shown[place]["items"] = one.items_location
                shown[place]["item columns"] = ", ".join(
                    f"{role} = {column}" for role, column in one.item_guess.columns.items()
                )
        for number, note in enumerate(self.notes, 1):
            shown[f"note {number}"] = note
        following = f"scalr evaluate --quick --config {self.config} (does it help?), or scalr run --config {self.config}"
        return shown | {"settings": str(self.config), "next": following}

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON, nested as the settings are."""
        content: dict[str, Any] = {}
        for place, domain in self.domains.items():
            _section(content, place).update(domain.to_json())
        return {
            "config": str(self.config),
            **content,
            "notes": self.notes,
            "next": f"scalr run --config {self.config}",
        }


def ensure_not_overwriting(config: Path, *, force: bool) -> None:
    """Ensure that no existing file is overwritten without ``force``.

    Raises:
        SettingsError: The file exists.
    """
    if config.exists() and not force:
        raise SettingsError(
            "already exists and was not changed",
            where=str(config),
            next_step="name another file with --config, or give --force to overwrite it",
        )


def plan_init(
    config: Path,
    requests: Sequence[LogRequest],
    *,
    items: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    decisive: bool = True,
) -> InitPlan:
    """Plan a scalr.toml: guess how to read the logs, and read their first rows as the ingest will.

    Args:
        config: Path of the scalr.toml; nothing is written.
        requests: Requests for the source or each of several sources, then for the target.
        items: Place → item file.
        names: Place → name of the domain; default: from the file's name.
        decisive: Raise where the values of the logs leave several possibilities; otherwise the likeliest is taken, and noted.

    Raises:
        InputError: A log or item file does not exist, cannot be read, or has no matching column; lists the existing columns, and the
            option to give.
        BadValue: The user ids of the logs have incompatible types.
        SettingsError: A domain name or a time zone is invalid.
    """
    base = config.absolute().parent
    absolute = [resolve_log(log_request) for log_request in requests]
    # Settings without a log: they fix the base folder of paths and validate the time zone.
    blank: dict[str, Any] = {}
    for one in absolute:
        _section(blank, one.place).update({"events": "none", "timezone": one.timezone})
        if not one.value_prefix:
            _section(blank, one.place)["name"] = one.place
    empty = build_settings({"domains": blank}, base, option="--timezone")
    domain_names = _names(absolute, dict(names or {}))
    item_files = {place: _absolute_path(location) for place, location in (items or {}).items()}
    found: dict[str, DomainPlan] = {}
    guesses = guess_logs(empty, absolute, decisive=decisive)
    for one in absolute:
        log, location = guesses[one.place], item_files.get(one.place)
        described = guess_items(empty, location, log.columns["item"]) if location else None
        # The log's own names of items; an item file has no query and no format of its own.
        if location is None and log.title is not None and one.query is None and "format" not in log.settings:
            location = one.location
            described = ItemGuess({"item": log.columns["item"], "title": log.title}, log.available_columns)
        found[one.place] = DomainPlan(one, domain_names[one.place], log, described, location)
    text = render_toml([_domain(one, base) for one in found.values()], _one_line(config.name))
    sections = tomllib.loads(text)
    for one in absolute:  # the file leaves URLs with a secret to the environment
        if one.query is not None:
            _section(sections["domains"], one.place)["url"] = one.location
    settings = build_settings(sections, base, option="--source-name, --target-name")
    rows = _read(settings)
    return InitPlan(config, {place: replace(one, rows=rows[place]) for place, one in found.items()}, text)


def _section(domains: dict[str, Any], place: str) -> dict[str, Any]:
    """Return the keys of a place below ``[domains]``; created if missing."""
    for key in place.split("."):
        domains = domains.setdefault(key, {})
    return domains


def build_settings(sections: dict[str, Any], base: Path, *, option: str) -> Settings:
    """Build the settings of a request; their errors name the option, unless an environment variable is the cause.

    Raises:
        SettingsError: A value is invalid.
    """
    from scalr_prod.config import settings_from_dict

    try:
        return settings_from_dict(sections, base=base)
    except SettingsError as error:
        if error.where != "the settings":
            raise
        raise SettingsError(error.found, where=option, next_step="correct the option") from error


def _read(settings: Settings) -> dict[str, list[dict[str, str]]]:
    """Read the first rows of the logs and item files with the ingest's own parsers and checks.

    Raises:
        InputError: The ingest would reject the input.
    """
    from scalr_prod.ingest import EventParser, ItemParser, common_id_type, open_events, open_items

    rows: dict[str, list[dict[str, str]]] = {}
    users = []
    for place in (*settings.domains.log_keys("source"), "target"):
        cells, item_cells = EventParser(settings.domains[place], place), ItemParser(settings.domains[place].item_columns)
        batches, origin = open_events(settings, place)
        shown: list[dict[str, Any]] = []
        with closing(batches):
            for batch in batches:
                read = cells.parse(batch)
                shown += read.slice(0, _SHOWN - len(shown)).select([USER_ID, ITEM_ID, EVENT_TIMESTAMP]).to_pylist()
                if len(shown) == _SHOWN:
                    break
        if not shown:
            raise EmptyInput("has no rows", where=origin, next_step="name a file that has rows")
        cells.user_ids.ensure_no_nulls()
        cells.item_ids.ensure_no_nulls()
        users.append(cells.user_ids)
        rows[place] = [
            {"user": str(row[USER_ID]), "item": str(row[ITEM_ID]), "time": row[EVENT_TIMESTAMP].isoformat()} for row in shown
        ]
        if settings.domains[place].items is not None:
            described = open_items(settings, place)
            with closing(described):
                first = next((batch for batch in described if batch.rows.num_rows), None)
            if first is not None:
                item_cells.parse(first)
            _show_as(common_id_type("item", [cells.item_ids, item_cells.item_ids]), rows[place], "item")
    kind = common_id_type("user", users)
    for shown_rows in rows.values():
        _show_as(kind, shown_rows, "user")
    return rows


def _show_as(kind: IdType, rows: list[dict[str, str]], role: str) -> None:
    """Show integers that were written as floats as the lake will hold them."""
    for row in rows:
        row[role] = row[role].removesuffix(".0") if kind == "int64" else row[role]


def _domain(one: DomainPlan, base: Path) -> DomainSection:
    asked, log = one.request, one.log_guess
    values: dict[str, Any] = {} if asked.value_prefix else {"name": one.name}
    if asked.query is not None:
        values |= {"url": asked.location, "query": asked.query}
    else:
        values["events"] = _shown(asked.location, base)
    values["columns"] = dict(log.columns)
    values |= log.settings
    if one.item_guess is not None and one.items_location is not None:
        values["items"] = _shown(one.items_location, base)
        values["item_columns"] = dict(one.item_guess.columns)
    read = {
        *log.columns.values(),
        *(one.item_guess.columns.values() if one.items_location == asked.location and one.item_guess else ()),
    }
    others = [column for column in log.available_columns if column not in read]
    comments = [f"{'Where events are wanted' if asked.place == 'target' else 'What users did where there are many events'}."]
    comments.append(f"Times: {log.time_description}.")
    comments += [
        f"{role} = {log.columns[role]}, by its values: {log.evidence[log.columns[role]]}."
        for role in log.columns
        if role in log.by_values
    ]
    comments += [note.split("] ", 1)[1] for note in log.notes]
    if others:
        comments.append(
            "Other columns, which are not read: "
            + ", ".join(others)
            + ". One of them may be columns.weight or columns.created."
        )
    return DomainSection(
        asked.place,
        values,
        tuple(map(_one_line, comments)),
        has_secret_url=asked.query is not None and _has_password(asked.location),
    )


def _one_line(text: str) -> str:
    """Replace control characters, which TOML comments cannot contain."""
    return re.sub(r"[\x00-\x1f\x7f]", " ", text)


def _has_password(url: str) -> bool:
    import sqlalchemy as sa

    parsed_url = sa.make_url(url)
    return parsed_url.password is not None or bool(parsed_url.query)


def _names(asked: Sequence[LogRequest], given: dict[str, str]) -> dict[str, str]:
    """Return the domains' names: as given, else from files or tables, else from folders if those differ, else the place.

    Each of several sources has the name that its place gives.
    """
    by_file = {one.place: _name(one.table or Path(one.location).name.split(".")[0]) for one in asked}
    by_folder = {one.place: _name(Path(one.location).parent.name) for one in asked}
    place = {one.place: one.place for one in asked}
    usable = [names for names in (by_file, by_folder) if all(names.values()) and len(set(names.values())) == len(asked)]
    if any(one.query is not None and one.table is None for one in asked):
        usable = []
    by_place = {one.place: one.value_prefix.removesuffix("=") for one in asked if one.value_prefix}
    return {**(usable[0] if usable else place), **given, **by_place}


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_. -]+", "_", text).strip("_. -")[:63].lower()


def _absolute_path(location: str) -> str:
    return location if "://" in location else str(Path(location).expanduser().absolute())


def _shown(location: str, base: Path) -> str:
    """Return a path relative to the settings' folder if it lies below it; else absolute."""
    path = Path(location)
    return path.relative_to(base).as_posix() if "://" not in location and path.is_relative_to(base) else location
