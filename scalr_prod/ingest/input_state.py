# SPDX-License-Identifier: Apache-2.0
"""State of the files that an ingest reads, so that a dry run finds changed files without reading them."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.atomic_io import read_json, write_json
from scalr_prod.errors import UnreadableInput
from scalr_prod.ingest.sources.readers import list_files

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scalr_prod.config import Settings


_FILE: Final = "ingested.json"
#: File names that a reason shows.
_SHOWN: Final = 3
#: Settings that open an input and may hold secrets; the state holds no trace of them.
_SECRET: Final = {"url", "storage_options"}


def input_state(settings: Settings, places: Iterable[str]) -> dict[str, Any]:
    """Return by place what an ingest reads: a digest of the settings, and name, size and time of change of every file.

    ``files`` is None if files cannot show whether rows have changed: for a query, or a log reader of another package.
    """
    users = settings.users
    mapped = None if users.sql_source or users.map is None else (users.map, users.format, users.storage_options)
    found = {}
    for place in places:
        section = settings.domains[place]
        log = None if section.sql_source else (section.events or "", section.format, section.storage_options)
        consent = (section.consent, None, section.storage_options) if section.consent else ()
        inputs = [
            log,
            consent,
            mapped if users.is_configured else (),
            (section.items, None, section.storage_options) if section.items else (),
        ]
        files = [[] if one == () else None if one is None else _files(settings, *one) for one in inputs]
        chosen = [section.model_dump(mode="json", exclude=_SECRET), users.model_dump(mode="json", exclude=_SECRET)]
        if not section.requires_consent:  # a state from before this setting stays the same
            del chosen[0]["consent"], chosen[0]["columns"]["consent"]
        if section.columns.recommended_by is None:  # likewise
            del chosen[0]["columns"]["recommended_by"]
        found[place] = {
            "settings": hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest(),
            "files": None if None in files else [file for some in files for file in some or []],
        }
    return found


def record_input_state(settings: Settings, state: dict[str, Any]) -> None:
    """Record the state of what an ingest has read; other places keep theirs."""
    write_json(settings.home / _FILE, read_json(settings.home / _FILE) | state)


def changed_inputs(settings: Settings) -> dict[str, str] | None:
    """Return by place why an ingest would find something new; None: only the ingest itself can tell."""
    domains = settings.domains
    places = [place for domain in ("source", "target") for place in domains.log_keys(domain)]
    former, now = read_json(settings.home / _FILE), input_state(settings, places)
    reasons: dict[str, str] = {}
    for place, state in now.items():
        known = former.get(place)
        if known is None or state["files"] is None or known["files"] is None:
            continue
        if known["settings"] != state["settings"]:
            reasons[place] = f"[domains.{place}] or [users] changed"
        elif known["files"] != state["files"]:
            before = {tuple(file) for file in known["files"]}
            changed = [name for name, *others in state["files"] if (name, *others) not in before]
            reasons[place] = f"{_shorten(changed)} changed" if changed else "files are gone"
    is_known = all(former.get(place) and state["files"] is not None for place, state in now.items())
    return reasons if reasons or is_known else None


def _files(settings: Settings, *origin: Any) -> list[list[str]] | None:
    try:
        return list_files(settings, *origin)
    except UnreadableInput:  # the ingest says so
        return None


def _shorten(names: list[str]) -> str:
    shown, more = [name.rsplit("/", 1)[-1] for name in names[:_SHOWN]], len(names) - _SHOWN
    return ", ".join(shown) + (f" and {more} more files" if more > 0 else "")
