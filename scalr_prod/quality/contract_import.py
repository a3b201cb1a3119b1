# SPDX-License-Identifier: Apache-2.0
"""Import of a contract in the Open Data Contract Standard: settings of a domain, and a suite of its other rules."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import ValidationError

from scalr_prod.config import DomainSettings, ItemColumns, LogColumns
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import QualityError, SettingsError, UnreadableInput
from scalr_prod.plugins import READERS
from scalr_prod.quality.contract_rules import suite_entry, type_entries
from scalr_prod.quality.contract_terms import DETECTED, EVENTS, ITEMS, KIND, ROLE, SECRET_KEYS, custom_key, from_contract_format
from scalr_prod.quality.new_file import write_new_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

#: Parts that identify or describe a contract or a column, and set nothing.
_DESCRIPTIVE: Final = {
    "apiVersion",
    "kind",
    "id",
    "name",
    "version",
    "status",
    "domain",
    "description",
    "contractCreatedTs",
    "dataProduct",
}
_OF_OBJECT: Final = {"id", "name", "physicalName", "physicalType", "logicalType", "businessName", "description"}
_OF_COLUMN: Final = {*_OF_OBJECT, "examples"}
#: Keys that other parts of a contract give, or that no contract may give.
_TAKEN: Final = {"name", "events", "format", "columns", "item_columns", "items", *SECRET_KEYS}
#: A URL that no contract holds; it stands in where the settings are checked.
_PLACEHOLDER: Final = "sqlite://"


@dataclass(frozen=True)
class ContractImport(Jsonable):
    """What a contract says in the terms of this project.

    Attributes:
        place: The log that the settings are for: ``source``, ``sources.<name>`` or ``target``.
        settings: Keys and values of its section of scalr.toml.
        toml: The section as text.
        expectations: Rules that settings do not express, as expectations of a suite.
        not_expressed: Parts of the contract that neither the settings nor a suite can express.
    """

    place: str
    settings: Mapping[str, Any]
    toml: str
    expectations: Sequence[Mapping[str, Any]]
    not_expressed: Sequence[str]


@dataclass
class _ContractReader:
    """A contract while it is read."""

    settings: dict[str, Any] = field(default_factory=dict)
    expectations: list[dict[str, Any]] = field(default_factory=list)
    not_expressed: list[str] = field(default_factory=list)

    def note(self, part: str) -> None:
        if part not in self.not_expressed:
            self.not_expressed.append(part)

    def note_unknown(self, values: Mapping[str, Any], known: set[str], where: str = "") -> None:
        """Note the keys that are not known, unless their value says nothing."""
        for key, value in values.items():
            if key not in known and value not in (None, False, -1, "", [], {}):
                self.note(f"{where}{key}")


def import_contract(
    path: Path, *, place: str = "target", columns: Mapping[str, str] | None = None, schema_object: str | None = None
) -> ContractImport:
    """Read a contract, and return the settings and rules that follow from it. Nothing is written.

    Args:
        path: The contract, in YAML or JSON.
        place: The log that the settings are for.
        columns: Role → column, such as ``user`` → ``customer``, where the contract does not have them.
        schema_object: Name of the object with the events, where there are several.

    Raises:
        UnreadableInput: The file is missing, or is no contract of the standard's version 3.
        SettingsError: The contract has no column of users, items or times, or a value that the settings refuse.
    """
    contract = _read(path)
    if not re.fullmatch(r"source|target|sources\.[A-Za-z_][A-Za-z0-9_]{0,63}", place):
        raise SettingsError(f"there is no log {place!r}", where="--log", next_step="name source, target, or sources.<name>")
    reading = _ContractReader()
    reading.note_unknown(contract, {*_DESCRIPTIVE, "servers", "schema", "customProperties"})
    events = _events_object(contract, schema_object, str(path))
    reading.note_unknown(events, {*_OF_OBJECT, "properties", "quality"}, f"schema.{events.get('name')}.")
    own = {}
    for index, entry in enumerate(_mappings(contract, "customProperties")):
        key = custom_key(str(entry.get("property")))
        if key in DomainSettings.model_fields and key not in _TAKEN:
            own[key] = entry.get("value")
        else:
            reading.note(f"customProperties.{entry.get('property', index)}")
    reading.settings["name"] = contract.get("domain") or contract.get("name") or path.stem
    _read_servers(contract, reading)
    _read_columns(events, dict(columns or {}), reading, str(path))
    for number, rule in enumerate(_mappings(events, "quality")):
        _add_rule(rule, None, f"schema.{events.get('name')}.quality[{number}]", reading)
    for other in _mappings(contract, "schema"):
        if other is events:
            continue
        if other.get("name") == ITEMS and "items" in reading.settings:
            defaults = ItemColumns().model_dump()
            roles = {role: _column_name(one) for one in _mappings(other, "properties") if (role := _role(one)) in defaults}
            if named := {role: name for role, name in roles.items() if defaults[role] != name}:
                reading.settings["item_columns"] = named
        else:
            reading.note(f"schema.{other.get('name')}")
    reading.settings |= own
    settings = _checked(reading, str(path))
    return ContractImport(place, settings, render_section(place, settings), reading.expectations, reading.not_expressed)


def write_contract_suite(path: Path, found: ContractImport) -> str:
    """Write the rules that settings do not express as a suite for `scalr quality check`; an existing file is not overwritten.

    Args:
        path: A YAML file.
        found: The contract.

    Returns:
        The path.

    Raises:
        QualityError: There is no such rule, or the file exists or cannot be written.
    """
    import yaml

    if not found.expectations:
        raise QualityError("the contract has no rule for a suite", where=str(path), next_step="leave out --suite")
    text = yaml.safe_dump({"name": path.stem, "expectations": [dict(one) for one in found.expectations]}, sort_keys=False)
    write_new_file(path, text)
    return str(path)


def render_section(place: str, settings: Mapping[str, Any]) -> str:
    """Return the settings of a log as a section of scalr.toml."""
    values = {key: value for key, value in settings.items() if not (key == "name" and place.startswith("sources."))}
    plain = [f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
    lines = [f"[domains.{place}]", *plain]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += ["", f"[domains.{place}.{key}]", *(f"{json.dumps(name)} = {_toml(one)}" for name, one in value.items())]
    return "\n".join(lines) + "\n"


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableInput(
            f"cannot be read as a contract: {reason}", where=str(path), next_step="name a YAML or JSON file"
        ) from error
    version = str(content.get("apiVersion")) if isinstance(content, dict) else ""
    if not isinstance(content, dict) or content.get("kind") != KIND or not version.startswith("v3."):
        raise UnreadableInput(
            f"is no contract of the Open Data Contract Standard 3: kind must be {KIND}, and apiVersion v3.…",
            where=str(path),
            next_step="convert it to version 3 of the standard",
        )
    return content


def _mappings(parent: Mapping[str, Any], key: str) -> Iterator[dict[str, Any]]:
    """Yield the mappings of a list; whatever else stands there is no part of the standard."""
    found = parent.get(key)
    return (one for one in (found if isinstance(found, list) else []) if isinstance(one, dict))


def _events_object(contract: Mapping[str, Any], name: str | None, where: str) -> dict[str, Any]:
    objects = list(_mappings(contract, "schema"))
    named = [one for one in objects if one.get("name") == (name or EVENTS)]
    chosen = named or (objects if name is None and len(objects) == 1 else [])
    if len(chosen) != 1:
        names = ", ".join(str(one.get("name")) for one in objects) or "none"
        raise SettingsError(
            f"it is not known which object of the schema has the events; there are: {names}",
            where=where,
            next_step="name it: --object",
        )
    return chosen[0]


def _read_servers(contract: Mapping[str, Any], reading: _ContractReader) -> None:
    """Take the locations of the log and of the item file."""
    servers = list(_mappings(contract, "servers"))
    items = next((one for one in servers if one.get("server") == ITEMS), None)
    log = next((one for one in servers if one.get("server") == EVENTS), None) or next(
        (one for one in servers if one is not items), None
    )
    for key, server in (("events", log), ("items", items)):
        if server is None:
            continue
        location = server.get("path") or server.get("location")
        if not isinstance(location, str):
            reading.note(f"servers.{server.get('server')} ({server.get('type')})")
            continue
        reading.settings[key] = location
        form = server.get("format")
        if form not in (None, DETECTED) and key == "events":
            if READERS.find_problem(str(form)) is None:
                reading.settings["format"] = form
            else:
                reading.note(f"servers.{server.get('server')}.format ({form})")
        reading.note_unknown(
            server,
            {"id", "server", "type", "description", "environment", "path", "location", "format"},
            f"servers.{server.get('server')}.",
        )
    for server in servers:
        if server is not log and server is not items:
            reading.note(f"servers.{server.get('server')}")


def _read_columns(events: Mapping[str, Any], given: dict[str, str], reading: _ContractReader, where: str) -> None:
    """Take the columns' roles and constraints."""
    columns = {_column_name(one): one for one in _mappings(events, "properties")}
    roles = _column_roles(columns, given, f"{where}, schema.{events.get('name')}")
    defaults = LogColumns().model_dump()
    if named := {role: name for role, name in roles.items() if defaults.get(role) != name}:
        reading.settings["columns"] = named
    by_name = {name: role for role, name in roles.items()}
    for name, column in columns.items():
        _read_column(column, name, by_name.get(name), f"schema.{events.get('name')}.{name}.", reading)


def _column_roles(columns: Mapping[str, Mapping[str, Any]], given: dict[str, str], where: str) -> dict[str, str]:
    """Return role → column: as given, else as the contract says, else by the usual names."""
    usual = {role: name for role, name in LogColumns().model_dump().items() if name in columns}
    named = {role: name for name, column in columns.items() if (role := _role(column)) in LogColumns.model_fields}
    found = usual | named | given
    for role in ("user", "item", "timestamp", *given):
        if found.get(role) not in columns:
            raise SettingsError(
                f"no column of the contract is known to be the {role}; there are: {', '.join(columns) or 'none'}",
                where=where,
                next_step=f"name it: --column {role}=NAME",
            )
    return found


def _read_column(column: Mapping[str, Any], name: str, role: str | None, at: str, reading: _ContractReader) -> None:
    """Take a column's constraints: those that are settings, and the others as expectations."""
    reading.note_unknown(column, {*_OF_COLUMN, "required", "unique", "logicalTypeOptions", "quality", "customProperties"}, at)
    for entry in _mappings(column, "customProperties"):
        if entry.get("property") != ROLE:
            reading.note(f"{at}customProperties.{entry.get('property')}")
    asked = column.get("logicalTypeOptions")
    options = dict(asked) if isinstance(asked, dict) else {}
    if role == "timestamp":
        _read_times(options, at, reading)
    elif role == "weight" and options.get("minimum") == 0:
        del options["minimum"]  # ingest requires it of every log
    # Ingest refuses null in the first three.
    required = bool(column.get("required")) and role not in {"user", "item", "timestamp"}
    entries, unknown = type_entries(name, options, required=required, unique=bool(column.get("unique")))
    reading.expectations += entries
    for key in unknown:
        reading.note(f"{at}logicalTypeOptions.{key}")
    for number, rule in enumerate(_mappings(column, "quality")):
        if not _read_limit(rule, role, reading):
            _add_rule(rule, name, f"{at}quality[{number}]", reading)


def _read_times(options: dict[str, Any], at: str, reading: _ContractReader) -> None:
    """Take zone, format and earliest time from a timestamp's options, and remove them there."""
    zone = options.pop("defaultTimezone", None)
    has_zone = options.pop("timezone", None)
    if zone is not None and not has_zone:
        try:
            reading.settings["timezone"] = ZoneInfo(str(zone)).key
        except (ZoneInfoNotFoundError, ValueError):
            reading.note(f"{at}logicalTypeOptions.defaultTimezone")
    pattern = options.pop("format", None)
    if pattern is not None:
        converted = from_contract_format(str(pattern)) or ""
        if not converted.startswith("%Y-%m-%d"):  # ISO 8601 is read without a format
            if "%Y" not in converted or "%f" in converted:
                reading.note(f"{at}logicalTypeOptions.format")
            else:
                reading.settings["timestamp_format"] = converted
    if (minimum := options.pop("minimum", None)) is not None:
        try:
            moment = datetime.fromisoformat(str(minimum))  # YAML may have read it as a date
        except ValueError:
            reading.note(f"{at}logicalTypeOptions.minimum")
            return
        own = ZoneInfo(reading.settings["timezone"]) if "timezone" in reading.settings else UTC
        reading.settings["earliest"] = (moment if moment.tzinfo else moment.replace(tzinfo=own)).isoformat()


def _read_limit(rule: Mapping[str, Any], role: str | None, reading: _ContractReader) -> bool:
    """Take a rule that a setting expresses: ids that are there, and known event types."""
    metric, share = rule.get("metric"), _allowed_share(rule)
    if share is None:
        return False
    if role in {"user", "item"} and metric == "nullValues":
        if "mustBeLessOrEqualTo" in rule:
            reading.settings |= {"bad_ids": "drop", "max_left_out": share}
        return True
    arguments = rule.get("arguments")
    valid = arguments.get("validValues") if isinstance(arguments, dict) else None
    if role == "event_type" and metric == "invalidValues" and isinstance(valid, list) and valid:
        reading.settings["types"] = {str(value): 1.0 for value in valid}
        if "mustBeLessOrEqualTo" in rule:
            reading.settings |= {"unknown_types": "drop", "max_left_out": share}
        return True
    return False


def _allowed_share(rule: Mapping[str, Any]) -> float | None:
    """Return the share of rows that may break a rule; None: the rule has another form."""
    if rule.get("mustBe") == 0:
        return 0.0
    limit = rule.get("mustBeLessOrEqualTo")
    return round(float(limit) / 100, 12) if isinstance(limit, int | float) and rule.get("unit") == "percent" else None


def _add_rule(rule: Mapping[str, Any], column: str | None, at: str, reading: _ContractReader) -> None:
    entry = suite_entry(rule, column, share=_allowed_share(rule))
    if entry is None:
        reading.note(f"{at} ({rule.get('metric') or rule.get('rule') or rule.get('type') or 'no metric'})")
    else:
        reading.expectations.append(entry)


def _checked(reading: _ContractReader, where: str) -> dict[str, Any]:
    """Return the settings without defaults, as scalr.toml has them, after the same checks as there."""
    values = dict(reading.settings)
    if "query" in values:
        values |= {"url": _PLACEHOLDER}
        values.pop("events", None)
        reading.note("url of the query: a contract has no secrets, so give it by the settings or the environment")
    elif "events" not in values:
        values["events"] = ""
        reading.note("the log's location: set events")
    try:
        section = DomainSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise SettingsError(
            f"{key}: {first['msg']}" if key else first["msg"], where=where, next_step="correct the contract"
        ) from error
    dumped = section.model_dump(mode="json", exclude_defaults=True)
    dumped.pop("url", None)
    if not dumped.get("events"):
        dumped.pop("events", None)
    return dumped


def _role(column: Mapping[str, Any]) -> str | None:
    return next(
        (str(entry.get("value")) for entry in _mappings(column, "customProperties") if entry.get("property") == ROLE), None
    )


def _column_name(column: Mapping[str, Any]) -> str:
    return str(column.get("physicalName") or column.get("name"))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
