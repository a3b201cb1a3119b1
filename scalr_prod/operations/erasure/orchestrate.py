# SPDX-License-Identifier: Apache-2.0
"""Orchestration of an erasure: first the suppression list, then lake, files and online store, last the ledger record."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

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
    first_event_times,
    purge,
)
from scalr_prod.operations.erasure.trained_models import AffectedModel, affected_models, datasets_with, no_training_set_builds
from scalr_prod.schemas import Table, id_type_of
from scalr_prod.workspace import SuppressedId, SuppressionList, staging_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

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
        models: Versions of models that are trained on training sets and learned from rows of these users, as far as they are registered.
        proof: For each id its keyed hash, the time of the request, and what the suppression list keeps about it.
    """

    users: int
    items: int
    known: int
    removed: Mapping[str, int]
    translators: Sequence[int]
    retrain_by: datetime | None
    models: Sequence[AffectedModel]
    proof: Sequence[Mapping[str, Any]]

    def to_summary(self) -> dict[str, Any]:
        """Return what is printed without ``--json``: everything but the proof."""
        return {name: value for name, value in self.to_json().items() if name != "proof"}


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
    with (
        SuppressionList.open_for_update(settings) as suppressed,
        no_training_set_builds(settings.home),
        Ledger.open(settings) as ledger,
    ):
        _ensure_no_active_run(ledger)
        runs = {run.run_id for run in ledger.runs.find()}
        entries = suppressed.entries(kind)
        digests = [suppressed.digest(identifier, kind) for identifier in ids]
        pending = [digest for digest in digests if digest not in entries or not entries[digest].done]
        new = [identifier for identifier, digest in zip(ids, digests, strict=True) if digest not in entries]
        _warn_of_unknown_ids(lake, _SUBJECT_TYPES[kind](new), is_mapped=settings.users.is_configured)
        _record_intents(settings.home, lake, ledger, suppressed, _SUBJECT_TYPES[kind](ids))
        removed = _remove_everywhere(settings, lake, _SUBJECT_TYPES[kind](ids), purge_all=bool(pending))
        _ensure_no_active_run(ledger)
        if {run.run_id for run in ledger.runs.find()} - runs:
            raise LeaseHeld(
                f"a run was started during the erasure and may have read events of these {kind}s",
                where=ledger.address,
                next_step="repeat the command",
            )
        counts = {name: count for name, count in sorted(removed.items()) if count}
        _record_completion(ledger, suppressed, kind, pending, counts)
        return _build_report(settings, ledger, suppressed, kind, digests, known=len(ids) - len(pending), counts=counts)


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
            "publication is disabled: the view's rows are only hidden, and enabling it would restore files with the erased rows",
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


def _warn_of_unknown_ids(lake: Lake, subjects: Subjects, *, is_mapped: bool) -> None:
    """Say how many ids have no event; with a map of users, whose other ids need none, only if no id has one."""
    found: set[int | str] = set().union(*(find_ids(lake, table, subjects) for table in EVENT_TABLES[subjects.kind]))
    unknown = len(set(subjects.ids) - found)
    if unknown and not (is_mapped and found):
        logger.warning(
            "no event was found of %d of %d %ss: check the ids; later logs and runs leave them out all the same",
            *(unknown, len(subjects.ids), subjects.kind),
        )


def _record_intents(home: Path, lake: Lake, ledger: Ledger, suppressed: SuppressionList, subjects: Subjects) -> None:
    """Suppress ids, and record which translators and training sets were made from a user's events, before these are deleted."""
    kind, held = subjects.kind, dict[int | str, dict[str, tuple[int, ...]]]()
    first_events: dict[int | str, datetime] = {}
    if kind == "user":  # not of items: a translator that knows one becomes stale, and is prevented from proposing it
        first_events = first_event_times(lake, subjects)
        held = datasets_with(home, ledger.datasets.find(), subjects, first_events)
    translators = tuple(model.version for model in ledger.models.find())
    entries = []
    for identifier in subjects.ids:
        digest = suppressed.digest(identifier, kind)
        known = suppressed.entries(kind).get(digest)
        entry = known or SuppressedId(digest, datetime.now(UTC))
        # An earlier call may have been interrupted, and a translator trained or a training set built since; or a backup was restored.
        versions = entry.versions
        if identifier in first_events or (versions and not entry.done):
            versions = tuple(sorted({*versions, *translators}))
        datasets = {
            name: tuple(sorted({*entry.datasets.get(name, ()), *held.get(identifier, {}).get(name, ())}))
            for name in entry.datasets.keys() | held.get(identifier, {}).keys()
        }
        updated = replace(entry, versions=versions, datasets=datasets)
        if updated != known:
            entries.append(updated)
    if entries:
        suppressed.update(entries, kind)


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
    ledger: Ledger, suppressed: SuppressionList, kind: SuppressedKind, digests: Sequence[str], counts: dict[str, int]
) -> None:
    """Record in the ledger, then in the suppression list, that ids were erased; an interrupted call is repeated without a second record."""
    recorded = {change.key for change in ledger.changes.find(subject="forgotten")}
    entries = {digest: suppressed.entries(kind)[digest] for digest in digests}
    causes = {}
    for digest, entry in entries.items():
        datasets = entry.to_json()["datasets"]
        removed = {f"{kind}s": len(digests), "removed": counts} | ({"datasets": datasets} if datasets else {})
        causes[digest] = json.dumps(removed)
    ledger.changes.record_erasures({digest: cause for digest, cause in causes.items() if digest not in recorded})
    if entries:
        suppressed.update([replace(entry, done=True, removed=counts) for entry in entries.values()], kind)


def _build_report(
    settings: Settings,
    ledger: Ledger,
    suppressed: SuppressionList,
    kind: SuppressedKind,
    digests: Sequence[str],
    *,
    known: int,
    counts: dict[str, int],
) -> ErasureReport:
    entries = [suppressed.entries(kind)[digest] for digest in digests]
    versions = sorted({version for entry in entries for version in entry.versions})
    grace_days = settings.forgetting.grace_days
    deadlines = [
        deadline.at
        for version in versions
        if (deadline := suppressed.retraining_deadline(version, grace_days=grace_days)) is not None
    ]
    if versions:
        logger.info(
            "translator versions %s were trained on events of these users: train a new one", ", ".join(map(str, versions))
        )
    return ErasureReport(
        users=len(digests) if kind == "user" else 0,
        items=len(digests) if kind == "item" else 0,
        known=known,
        removed=counts,
        translators=versions,
        retrain_by=min(deadlines, default=None),
        models=affected_models(ledger, entries, grace_days=settings.forgetting.model_grace_days),
        proof=[{"digest": entry.digest} | entry.to_json() for entry in entries],
    )
