# SPDX-License-Identifier: Apache-2.0
"""Rendering of a commented scalr.toml."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


_COMMENTS: Final = {
    "format": "its name does not tell its format",
    "timezone": "of times that name no zone",
    "timestamp_format": "of times that are not ISO 8601",
}


@dataclass(frozen=True)
class DomainSection:
    """The section of one domain.

    Attributes:
        place: ``source``, ``sources.<name>`` or ``target``.
        values: Keys of ``[domains.<place>]`` → values; ``columns`` and ``item_columns`` are mappings.
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
