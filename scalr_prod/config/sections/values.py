# SPDX-License-Identifier: Apache-2.0
"""Value types and checks shared by several sections."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

if TYPE_CHECKING:
    from scalr_prod.plugins import PluginGroup


def _aware(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("is a naive timestamp: add its zone, for example 2024-05-01T00:00:00Z")
    return value


def text_of_form(pattern: str, form: str) -> AfterValidator:
    """Return the check that a text matches a pattern; the error has its form in words, and does not repeat the text."""

    def check(value: str) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError(f"must be {form}")
        return value

    return AfterValidator(check)


def check_plugin_names(group: PluginGroup, names: tuple[str, ...], also_allowed: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Check that each plug-in exists and is named once; returns the names."""
    if len(set(names)) != len(names):
        raise ValueError(f"names a {group.kind} twice: name each once")
    for name in names:
        if name not in also_allowed and (problem := group.find_problem(name)) is not None:
            raise ValueError(problem)
    return names


def _web(value: str) -> str:
    """Check that a URL can be parsed; errors do not repeat it, since it may contain a password."""
    try:
        parts = urlsplit(value)
        has_host = parts.hostname and parts.port != 0 and parts.netloc.count("@") == value.count("@") <= 1
    except ValueError:
        has_host = False
    if not has_host:
        raise ValueError("is not a server URL: in a user or password, write [ ] @ : / ? # as %5B %5D %40 %3A %2F %3F %23")
    return value


def _open(value: str) -> str:
    """Check that an address is safe to link to: no user or password."""
    if "@" in value:
        raise ValueError("contains a user or password, which everybody who opens the page would see: leave it out")
    return value


Instant = Annotated[datetime, AfterValidator(_aware)]
WebAddress = Annotated[
    str, text_of_form(r"https?://\S+", "an address that begins with http:// or https://"), AfterValidator(_web)
]
PageAddress = Annotated[WebAddress, AfterValidator(_open)]
Identifier = Annotated[str, text_of_form(r"[A-Za-z_][A-Za-z0-9_]*", "letters, digits and '_', no digit first")]
Weight = Annotated[float, Field(ge=0)]
