# SPDX-License-Identifier: Apache-2.0
"""Export of a log's contract in the Open Data Contract Standard: columns, limits and rules, from the settings of its domain."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.core.redaction import redact, redact_url
from scalr_prod.errors import SettingsError, TableNotFound
from scalr_prod.lake import Lake
from scalr_prod.quality.contract_terms import (
    API_VERSION,
    DETECTED,
    ENGINE,
    EVENTS,
    ITEMS,
    KIND,
    ROLE,
    SECRET_KEYS,
    SEVERITIES,
    custom_properties,
    to_contract_format,
)
from scalr_prod.quality.new_file import write_new_file
from scalr_prod.quality.suites import read_suite
from scalr_prod.schemas import ITEM_ID, USER_ID, Table, id_type_of

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from scalr_prod.config import DomainSettings, Settings
    from scalr_prod.schemas import IdType

#: Keys with a term of the standard; the others are custom properties.
_STANDARD: Final = {
    "name",
    "events",
    "format",
    "columns",
    "item_columns",
    "items",
    "timezone",
    "timestamp_format",
    "earliest",
    "bad_ids",
}
_LOGICAL: Final = {"int64": "integer", "string": "string"}
_DESCRIPTIONS: Final = {
    "user": "The user's id.",
    "item": "The item's id.",
    "timestamp": "When the event happened.",
    "created": "From when the row may be known.",
    "weight": "How much the event counts.",
    "event_id": "The event's id; a later row of the same id changes the event.",
    "event_type": "The event's type.",
    "value": "A number, such as the price paid.",
    "consent": "Whether the user consents to the use of source events; the latest event decides.",
    "recommended_by": "The model whose recommendation led to the event; empty where none did.",
    "title": "The item's title.",
    "category": "The item's category.",
}
_TYPES: Final = {"timestamp": "timestamp", "created": "timestamp", "weight": "number", "value": "number", "consent": "boolean"}


@dataclass(frozen=True)
class ContractExport(Jsonable):
    """A contract that was written.

    Attributes:
        path: The file.
        id: The contract's id; the same for the same project and log.
        columns: The log's columns.
        left_out: Settings of the domain that a contract does not hold, because they may be secret.
    """

    path: str
    id: str
    columns: tuple[str, ...]
    left_out: tuple[str, ...]


def export_contract(settings: Settings, place: str, path: Path, *, suite: str | None = None) -> ContractExport:
    """Write the contract of a domain's log as YAML; an existing file is not overwritten.

    Args:
        settings: The project's settings.
        place: Which log: ``source``, ``sources.<name>`` or ``target``.
        path: The file to write.
        suite: A suite whose expectations the contract has, too; see `read_suite`.

    Raises:
        SettingsError: There is no such log or suite.
        QualityError: The file exists, or cannot be written.
    """
    import yaml

    places = [*settings.domains.log_keys("source"), *settings.domains.log_keys("target")]
    if place not in places:
        raise SettingsError(
            f"there is no log {place!r}; there are: {', '.join(places)}", where="[domains]", next_step="name one of them"
        )
    section, left_out = _without_secrets(settings.domains[place], settings.secrets)
    entries = read_suite(suite, settings.base).entries if suite else ()
    contract = build_contract(
        section,
        project=settings.project_name,
        id_types=_id_types(settings, place),
        rules=[_custom_rule(one) for one in entries],
    )
    write_new_file(path, yaml.safe_dump(contract, sort_keys=False, allow_unicode=True, width=120))
    columns = tuple(one["name"] for one in contract["schema"][0]["properties"])
    return ContractExport(str(path), contract["id"], columns, left_out)


def build_contract(
    section: DomainSettings,
    *,
    project: str,
    id_types: dict[str, IdType] | None = None,
    rules: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the contract of a log.

    Args:
        section: The settings of its domain.
        project: The project's name.
        id_types: Types of ``user`` and ``item``, if they are known.
        rules: Quality rules of the whole log, in the standard's form.
    """
    named = section.model_dump(mode="json", exclude_defaults=True, exclude=_STANDARD | set(SECRET_KEYS))
    columns = {key: name for key, name in section.columns.model_dump().items() if name is not None}
    pattern = to_contract_format(section.timestamp_format) if section.timestamp_format else None
    if section.timestamp_format and pattern is None:
        named["timestamp_format"] = section.timestamp_format
    properties = [_property(key, name, (id_types or {}).get(key)) for key, name in columns.items()]
    by_role = dict(zip(columns, properties, strict=True))
    left_out = {"mustBe": 0} if section.bad_ids == "refuse" else _at_most(section.max_left_out)
    for key in ("user", "item"):
        by_role[key]["quality"] = [{"type": "library", "metric": "nullValues", **left_out}]
    by_role["timestamp"]["logicalTypeOptions"] = {
        **({"format": pattern} if pattern else {}),
        **({"minimum": section.earliest.isoformat()} if section.earliest else {}),
        **({"timezone": False, "defaultTimezone": section.timezone} if section.timezone else {"timezone": True}),
    }
    if "weight" in by_role:
        by_role["weight"]["logicalTypeOptions"] = {"minimum": 0}
    if section.types:
        known = {"mustBe": 0} if section.unknown_types == "refuse" else _at_most(section.max_left_out)
        valid = {"validValues": list(section.types)}
        by_role["event_type"]["quality"] = [{"type": "library", "metric": "invalidValues", "arguments": valid, **known}]
    schema = [_object(EVENTS, f"Events of the domain {section.name}.", properties) | ({"quality": rules} if rules else {})]
    if section.items is not None:
        items = {key: name for key, name in section.item_columns.model_dump().items() if name is not None}
        schema.append(
            _object(ITEMS, f"Items of the domain {section.name}.", [_property(key, name) for key, name in items.items()])
        )
    servers = [_server(EVENTS, section.events, section.format)] if section.events is not None else []
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"scalr:{project}/{section.name}")),
        "name": f"{section.name} events",
        "version": "1.0.0",
        "status": "active",
        "domain": section.name,
        "description": {"purpose": f"The log of {section.name} that the project {project} reads."},
        "servers": servers + ([_server(ITEMS, section.items, None)] if section.items is not None else []),
        "schema": schema,
        **({"customProperties": custom_properties(named)} if named else {}),
    }


def _without_secrets(section: DomainSettings, secrets: Collection[str]) -> tuple[DomainSettings, tuple[str, ...]]:
    """Return the settings without locations and queries that hold a secret, and the keys that the contract lacks for that reason."""
    values = {key: getattr(section, key) for key in ("events", "query", "items", "consent")}
    held = [key for key, value in values.items() if value and redact(redact_url(value), secrets) != value]
    emptied = [*held, *(["items_version"] if "items" in held else [])]
    left_out = (*(key for key in SECRET_KEYS if getattr(section, key)), *held)
    return section.model_copy(update=dict.fromkeys(emptied)), left_out


def _id_types(settings: Settings, place: str) -> dict[str, IdType]:
    """Return the types of the ids that were ingested; empty before the first ingest."""
    table = Table.TARGET_EVENTS if place == "target" else Table.SOURCE_EVENTS
    try:
        schema = Lake.open(settings).schema(table)
    except TableNotFound:
        return {}
    # With several sources, the lake's item ids have the domain's name in front.
    item = (
        {} if place.startswith("sources.") and settings.domains.has_several_sources else {"item": id_type_of(schema, ITEM_ID)}
    )
    return {"user": id_type_of(schema, USER_ID), **item}


def _object(name: str, description: str, properties: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": name,
        "logicalType": "object",
        "physicalType": "table",
        "description": description,
        "properties": properties,
    }


def _property(key: str, name: str, id_type: IdType | None = None) -> dict[str, Any]:
    kind = _LOGICAL[id_type] if id_type else _TYPES.get(key, None if key in {"user", "item"} else "string")
    return {
        "name": name,
        **({"logicalType": kind} if kind else {}),
        "description": _DESCRIPTIONS[key],
        "required": key in {"user", "item", "timestamp"},
        "customProperties": [{"property": ROLE, "value": key}],
    }


def _server(name: str, location: str, form: str | None) -> dict[str, Any]:
    form = form or DETECTED
    if "://" not in location:
        return {"server": name, "type": "local", "path": location, "format": form}
    kind = "s3" if location.startswith(("s3://", "s3a://")) else "custom"
    return {"server": name, "type": kind, "location": location, "format": form}


def _at_most(share: float) -> dict[str, Any]:
    return {"mustBeLessOrEqualTo": round(100 * share, 10), "unit": "percent"}


def _custom_rule(entry: Any) -> dict[str, Any]:
    """Return an expectation of a suite as a rule of the standard."""
    severity = next((ours for ours, theirs in SEVERITIES.items() if theirs == entry.get("severity", "critical")), "error")
    return {"type": "custom", "engine": ENGINE, "severity": severity, "implementation": dict(entry)}
