# SPDX-License-Identifier: Apache-2.0
"""Orchestration of an erasure: first the suppression list, then lake, files and online store, last the ledger record."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import ForgettingError, LeaseHeld
from scalr_prod.features import erase_entities
from scalr_prod.ingest import IdMapping
from scalr_prod.ledger import Ledger
from scalr_prod.operations.erasure.files import erase_from_files
from scalr_prod.operations.erasure.scrubbing import ItemSubjects, Subjects, UserSubjects
from scalr_prod.operations.erasure.tables import (
    AFFECTED_TABLES,
    DERIVED_FROM_ITEMS,
    EVENT_TABLES,
    count_rows,
    delete_rows,
    find_ids,
    purge,
)
from scalr_prod.schemas import Table, id_type_of
from scalr_prod.workspace import SuppressedId, SuppressionList, staging_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scalr_prod.config import Settings
    from scalr_prod.lake import Lake
    from scalr_prod.workspace import SuppressedKind


logger = logging.getLogger(__name__)

_SUBJECT_TYPES: Final[dict[SuppressedKind, type[Subjects]]] = {"user": UserSubjects, "item": ItemSubjects}
#: Maximum passes of deletion: an ingest in progress may add rows after a pass; ingests that start later skip erased ids.
_MAX_ROUNDS: Final = 3


@dataclass(frozen=True)
class ErasureReport(Jsonable):
    """Summary of what was removed; contains no user or item id.

    Attributes:
        users: Number of requested users.
        items: Number of requested items.
        known: How many of them had been erased before.
        removed: Number of removed rows, files or entries by location.
        translators: Versions trained on events of these users.
        retrain_by: Time (UTC) from which runs refuse these versions; None without such versions.
    """

    users: int
    items: int
    known: int
    removed: Mapping[str, int]
    translators: Sequence[int]
    retrain_by: datetime | None


def erase_users(settings: Settings, users: Sequence[int | str]) -> ErasureReport:
    """Erase users from everything that the project stores, and keep logs and runs from bringing them back.

    Repeat an interrupted call to finish it. Users who were erased before are searched for again.

    Args:
        settings: The project's settings.
        users: Their ids as in the event log.

    Raises:
        ForgettingError: No user is named; an id is not of the lake's type; or another process is erasing.
        LeaseHeld: A run is active, or was started meanwhile. What was erased so far stays erased.
        CommitFailed: A commit to the lake failed; safe to repeat.
        FeatureStoreError: The online store is unreachable; safe to repeat.
    """
    return _erase_ids(settings, users, "user")


def erase_items(settings: Settings, items: Sequence[int | str]) -> ErasureReport:
    """Erase items of the target domain from everything that the project stores, and keep them from coming back.

    Histories and statistics are rebuilt without their events. Everything else that depends on them becomes stale, as after a correction
    of events, and the next run rebuilds it. Until then, translators that know the items are prevented from proposing them.

    Args:
        settings: The project's settings.
        items: Their ids as in the target log.

    Raises:
        ForgettingError: As for `erase_users`.
        LeaseHeld: Likewise.
        CommitFailed: Likewise.
        FeatureStoreError: Likewise.
    """
    return _erase_ids(settings, items, "item")


def _erase_ids(settings: Settings, raw_ids: Sequence[int | str], kind: SuppressedKind) -> ErasureReport:
    from scalr_prod.lake import open_project_lake

    lake = open_project_lake(settings)
    ids = _parse_ids(SuppressionList.open(settings), lake, raw_ids, kind)
    if kind == "user":
        # Other ids of the same people: those that they would have in the lake under another user mapping.
        user_map = IdMapping.from_settings(settings)
        ids = ids if user_map is None else [*ids, *user_map.equivalent_ids(ids)]
    _ensure_publication_enabled(lake)
    with SuppressionList.open_for_update(settings) as suppressed, Ledger.open(settings) as ledger:
        _ensure_no_active_run(ledger)
        runs = {run.run_id for run in ledger.runs.find()}
        entries = suppressed.entries(kind)
        known = [
            identifier
            for identifier in ids
            if (entry := entries.get(suppressed.digest(identifier, kind))) is not None and entry.done
        ]
        pending = [identifier for identifier in ids if identifier not in set(known)]
        for identifier in pending:
            _record_intent(lake, ledger, suppressed, identifier, kind)
        removed = _remove_everywhere(settings, lake, _SUBJECT_TYPES[kind](ids), purge_all=bool(pending))
        _ensure_no_active_run(ledger)
        if {run.run_id for run in ledger.runs.find()} - runs:
            raise LeaseHeld(
                f"a run was started during the erasure and may have read events of these {kind}s",
                where=ledger.address,
                next_step="repeat the command",
            )
        counts = {name: count for name, count in sorted(removed.items()) if count}
        for identifier in pending:
            _record_completion(ledger, suppressed, identifier, kind, counts, subject_count=len(pending))
        return _build_report(suppressed, kind, ids, len(known), counts, grace_days=settings.forgetting.grace_days)


def _parse_ids(suppressed: SuppressionList, lake: Lake, raw_ids: Sequence[int | str], kind: SuppressedKind) -> list[int | str]:
    """Return the ids in the lake's type."""
    ids = list(dict.fromkeys(map(str, raw_ids)))
    if not ids or not all(map(str.strip, ids)):
        raise ForgettingError(
            f"no {kind} id given, or an id is empty",
            where=f"{kind}s",
            next_step=f"give {kind} ids, or a file with one id per line",
        )
    table = next((table for table in EVENT_TABLES[kind] if lake.exists(table)), None)
    if table is None or id_type_of(lake.schema(table), _SUBJECT_TYPES[kind].column) == "string":
        _reject_padded_ids(suppressed, lake, ids, kind)
        return [*ids]
    # Not int(): it accepts 12_5 for 125, and digits of other scripts.
    if invalid := [text for text in ids if not re.fullmatch(r"-?[0-9]{1,19}", text)]:
        raise ForgettingError(
            f"{invalid[0]!r} is not an integer; the lake's {kind} ids are integers",
            where=lake.uri(table),
            next_step=f"give {kind} ids as in the event log",
        )
    return [*dict.fromkeys(map(int, ids))]


def _reject_padded_ids(suppressed: SuppressionList, lake: Lake, ids: Sequence[str], kind: SuppressedKind) -> None:
    """Reject ids with surrounding blanks that do not exist: a blank makes it another id than the one without.

    Raises:
        ForgettingError: There is no such id.
    """
    padded = [text for text in ids if text != text.strip()]
    if not padded:
        return
    known = set(suppressed.suppressed_ids(padded, kind)).union(
        *(find_ids(lake, table, _SUBJECT_TYPES[kind](padded)) for table in EVENT_TABLES[kind])
    )
    unknown = [text for text in padded if text not in known]
    if unknown:
        raise ForgettingError(
            f"an id has leading or trailing blanks, and the lake has no such {kind}: {unknown[0]!r} ({len(unknown)} in all)",
            where=f"{kind}s",
            next_step=f"give {kind} ids exactly as in the event log",
        )


def _ensure_publication_enabled(lake: Lake) -> None:
    view = Table.SYNTHETIC_TARGET_EVENTS
    if lake.exists(view) and lake.hidden_version(view) is not None:
        raise ForgettingError(
            "publication is disabled: erased rows would come back from the files of the feature view that are set aside",
            where=lake.uri(view),
            next_step="run scalr publication enable, repeat the command, then run scalr publication disable",
        )


def _ensure_no_active_run(ledger: Ledger) -> None:
    held = ledger.leases.active()
    if held:
        run_id, owner = next(iter(held.items()))
        raise LeaseHeld(
            f"{owner} works on this run, which may have read events that are to be erased",
            where=ledger.address,
            next_step="wait until it has ended or stop it, then repeat the command",
        ).add_context(run_id=run_id)


def _record_intent(
    lake: Lake, ledger: Ledger, suppressed: SuppressionList, identifier: int | str, kind: SuppressedKind
) -> None:
    """Suppress an id, and record which translators were trained on a user's events, before these are deleted."""
    digest = suppressed.digest(identifier, kind)
    if digest in suppressed.entries(kind):  # by an earlier, interrupted call
        return
    # Not of items: a translator that knows one becomes stale, and is prevented from proposing it.
    trained_on = kind == "user" and any(count_rows(lake, table, UserSubjects([identifier])) for table in EVENT_TABLES[kind])
    versions = tuple(model.version for model in ledger.models.find()) if trained_on else ()
    suppressed.add(SuppressedId(digest, datetime.now(UTC), versions), kind)


def _remove_everywhere(settings: Settings, lake: Lake, subjects: Subjects, *, purge_all: bool) -> Counter[str]:
    """Remove users or items from tables, files and the online store; return counts by location.

    Args:
        settings: The project's settings.
        lake: Its lake.
        subjects: Users or items to erase.
        purge_all: Also delete old versions of tables whose current version has none of their rows.
    """
    tables, removed = AFFECTED_TABLES[subjects.kind], Counter[str]()
    with staging_folder(settings, "forget"):
        pass  # deletes what killed processes had staged
    for round_ in range(_MAX_ROUNDS):
        everything = purge_all and round_ == 0
        deleted = {table: delete_rows(lake, table, subjects) for table in tables}
        if subjects.kind == "item" and (everything or any(deleted.values())):
            deleted |= _rebuild_histories(settings, lake)
        before = datetime.now(UTC)
        old = [table for table in deleted if lake.exists(table) and (deleted[table] or everything)]
        removed += Counter({table.value: count for table, count in deleted.items() if table in tables})
        removed["files of tables"] += sum(purge(lake, table, before=before) for table in old)
        removed += erase_from_files(settings.home, subjects, staged_parts=bool(old))
        if subjects.kind == "item":
            _refresh_online_store(settings)
        removed["online store"] += erase_entities(settings, subjects.column, subjects.ids)
        if not any(count_rows(lake, table, subjects) for table in tables):
            return removed
    raise ForgettingError(
        f"another process keeps adding events of the {subjects.kind}s",
        where=lake.root,
        next_step="stop all ingests, then repeat the command",
    )


def _rebuild_histories(settings: Settings, lake: Lake) -> dict[Table, int]:
    """Rebuild histories and statistics from the remaining events, unless there were none; return the rebuilt tables."""
    rebuilt = [table for table in DERIVED_FROM_ITEMS if lake.exists(table) and lake.dataset(table).count_rows()]
    if rebuilt:
        from scalr_prod.histories import build_histories

        build_histories(settings)
    return dict.fromkeys(rebuilt, 1)


def _refresh_online_store(settings: Settings) -> None:
    """Update a filled online store from the tables: its user histories contain items."""
    from scalr_prod.features import apply_feature_repo, has_been_materialized, materialize

    if has_been_materialized(settings.feast_repo):
        apply_feature_repo(settings)
        materialize(settings)


def _record_completion(
    ledger: Ledger,
    suppressed: SuppressionList,
    identifier: int | str,
    kind: SuppressedKind,
    counts: dict[str, int],
    *,
    subject_count: int,
) -> None:
    digest = suppressed.digest(identifier, kind)
    if digest not in {change.key for change in ledger.changes.find(subject="forgotten")}:
        ledger.changes.record_erasure(digest, cause=json.dumps({f"{kind}s": subject_count, "removed": counts}))
    suppressed.mark_done(digest, counts, kind)


def _build_report(
    suppressed: SuppressionList,
    kind: SuppressedKind,
    ids: Sequence[int | str],
    known: int,
    counts: dict[str, int],
    *,
    grace_days: float,
) -> ErasureReport:
    entries = suppressed.entries(kind)
    versions = sorted({version for identifier in ids for version in entries[suppressed.digest(identifier, kind)].versions})
    deadlines = [
        deadline.at
        for version in versions
        if (deadline := suppressed.retraining_deadline(version, grace_days=grace_days)) is not None
    ]
    if versions:
        logger.info(
            "translator versions %s were trained on events of these users: train a new one", ", ".join(map(str, versions))
        )
    users, items = (len(ids), 0) if kind == "user" else (0, len(ids))
    return ErasureReport(users, items, known, counts, versions, min(deadlines, default=None))
