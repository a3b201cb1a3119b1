# SPDX-License-Identifier: Apache-2.0
"""Reports and records as JSON: a dataclass says its fields by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

__all__ = ["Jsonable"]


class Jsonable:
    """A dataclass that can be written as JSON."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values by field, in the fields' order; times as ISO 8601."""
        return _by_field(self)


def _by_field(record: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(record, field.name)) for field in fields(record)}


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value):
        return _by_field(value)
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value
