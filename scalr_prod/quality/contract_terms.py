# SPDX-License-Identifier: Apache-2.0
"""Terms of the Open Data Contract Standard (ODCS) that a log's settings translate to."""

from __future__ import annotations

import re
from typing import Any, Final

#: Release of the standard that is written; every 3.x is read.
API_VERSION: Final = "v3.1.0"
KIND: Final = "DataContract"
#: Name of the object with the log's columns, and of the one with the item file's.
EVENTS: Final = "events"
ITEMS: Final = "items"
#: Custom property of a column: its key in ``[domains.*.columns]`` or ``item_columns``.
ROLE: Final = "scalrRole"
#: Prefix of custom properties with a key of ``[domains.*]`` that the standard has no term for.
CUSTOM: Final = "scalr"
#: Format of a server whose files' format is detected when they are read.
DETECTED: Final = "detected"
#: Engine of custom quality rules.
ENGINE: Final = "great-expectations"
#: Keys that may hold secrets, which a contract neither gives nor takes.
SECRET_KEYS: Final = ("url", "storage_options")
#: Rule severities of the standard → those of a suite, and back.
SEVERITIES: Final = {"error": "critical", "warning": "warning", "info": "info"}

#: strptime → the standard's tokens, those of Java's DateTimeFormatter.
_TOKENS: Final = {"%Y": "yyyy", "%m": "MM", "%d": "dd", "%H": "HH", "%M": "mm", "%S": "ss", "%f": "SSSSSS"}


def to_contract_format(pattern: str) -> str | None:
    """Convert a strptime format to the standard's; None if it has a directive without a counterpart."""
    parts = re.split(r"(%.)", pattern)
    if any(part.startswith("%") and part not in _TOKENS for part in parts):
        return None
    return "".join(
        _TOKENS.get(part) or re.sub(r"[A-Za-z]+", lambda match: f"'{match[0]}'", part.replace("'", "''")) for part in parts
    )


def from_contract_format(pattern: str) -> str | None:
    """Convert a format of the standard to strptime's; None if it has a token without a counterpart."""
    names = {token: directive for directive, token in _TOKENS.items()}
    text = ""
    for part in _pieces(pattern):
        if part.startswith("'"):
            text += part[1:-1].replace("''", "'") or "'"
        elif part[0].isalpha():
            if part not in names:
                return None
            text += names[part]
        else:
            text += part.replace("%", "%%")
    return text


def custom_name(key: str) -> str:
    """Return the custom property of a key: ``ahead_days`` → ``scalrAheadDays``."""
    return CUSTOM + "".join(part.capitalize() for part in key.split("_"))


def custom_key(name: str) -> str | None:
    """Return the key of a custom property; None: the property is not this package's."""
    if not name.startswith(CUSTOM) or name == ROLE:
        return None
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name.removeprefix(CUSTOM)).lower()


def custom_properties(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return keys and values as custom properties."""
    return [{"property": custom_name(key), "value": value} for key, value in values.items()]


def _pieces(pattern: str) -> list[str]:
    """Split a format into quoted texts, runs of one letter, and other characters."""
    return [match[0] for match in re.finditer(r"'(?:[^']|'')*'|([A-Za-z])\1*|[^A-Za-z']", pattern)]
