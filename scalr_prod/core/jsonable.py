# SPDX-License-Identifier: Apache-2.0
"""Conversion of dataclasses to JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


class Jsonable:
    """A dataclass that can be written as JSON."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values by field, in the fields' order; times as ISO 8601."""
        return _field_values(self)


def _field_values(record: Any) -> dict[str, Any]:
    return {field.name: _json_value(getattr(record, field.name)) for field in fields(record)}


def _json_value(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value):
        return _field_values(value)
    if isinstance(value, Mapping):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value
