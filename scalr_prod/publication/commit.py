# SPDX-License-Identifier: Apache-2.0
"""Exactly-once publication of a run: one atomic commit replaces the run's window in the feature view.

The ledger records the intent before the commit and the outcome after it. After a crash between the two, the commit's key in the lake's
log shows whether the commit happened.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeVar

from scalr_prod.core.delta_log import arrow_schema
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import CommitFailed, PublicationDisabled, PublicationError
from scalr_prod.lake import CommitResult, Lake, open_project_lake, stale_since
from scalr_prod.ledger import PublicationStatus, RunState
from scalr_prod.publication.accepted_rows import accepted_files, count_accepted_rows, ensure_no_erased_ids, stream_accepted_rows
from scalr_prod.publication.regions import RegionRows, ViewRegion, count_rows_by_run, published_region, stream_rows
from scalr_prod.publication.rollback import plan_restore
from scalr_prod.schemas import Table
from scalr_prod.workspace import Canary

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from deltalake import DeltaTable

    from scalr_prod.config import Settings
    from scalr_prod.ledger import Lease, Ledger, Publication, RunSpec

__all__ = ["PublicationReport", "publish", "publish_for", "retry_on_conflict", "rollback_run", "update_online_store"]

Outcome = TypeVar("Outcome")

logger = logging.getLogger(__name__)

_VIEW: Final = Table.SYNTHETIC_TARGET_EVENTS
_PUBLISHABLE: Final = frozenset({RunState.VALIDATED, RunState.PUBLISHED, RunState.ROLLED_BACK})
#: Maximum attempts of one commit against other publishers; each failure means that another one succeeded.
_ATTEMPTS: Final = 50
_LEASE_WAIT_S: Final = 90.0


@dataclass(frozen=True)
class PublicationReport(Jsonable):
    """Report the result of a publication or a rollback.

    Attributes:
        run_id: The run.
        outcome: ``published``, ``widened`` (it was published for fewer users), ``already_published``, ``recovered`` (an earlier call
            committed it and exited before recording it), ``rolled_back``, ``already_rolled_back`` or ``replaced`` (nothing to
            remove: other runs replaced its window).
        attempt: Number of this publication of the run.
        table: The feature view's table.
        delta_version: The Delta version that the commit made.
        rows: Rows published or removed.
        replaced: Rows removed from its window by the publication, by run.
        replaced_by: Runs that have since been published over this one's window.
        restored: Rows restored by a rollback, which the run had replaced, by run.
        not_restored: Runs whose rows could not be restored, since the files of that table version are gone.
        online: Whether the online store was updated.
        canary: Share of users that it is published for; None: all.
    """

    run_id: str
    outcome: str
    attempt: int
    table: str
    delta_version: int | None
    rows: int
    replaced: Mapping[str, int] = field(default_factory=dict)
    replaced_by: Sequence[str] = ()
    restored: Mapping[str, int] = field(default_factory=dict)
    not_restored: Sequence[str] = ()
    online: bool = False
    canary: float | None = None


def publish(settings: Settings, run_id: str) -> PublicationReport:
    """Publish a validated run: its accepted rows replace the rows of its window in the feature view.

    With ``[experiment] canary`` it is published for that share of users only; rows of other users in the window stay. Publishing a
    published run changes nothing; a run that was rolled back or replaced since is published again, and one published for fewer users
    than configured is widened.

    Args:
        settings: The project's settings.
        run_id: A validated run.

    Raises:
        PublicationError: The run was not validated, was rejected, or its accepted files are not the audited ones; or its source events
            have been replaced since.
        PublicationDisabled: Publication is switched off.
        CommitFailed: Nothing was written; safe to repeat.
        CommitOutcomeUnknown: The commit may have happened; repeating the call finds out.
        LedgerError: Another driver works on the run.
    """
    return publish_for(settings, run_id, Canary.from_settings(settings))


def publish_for(settings: Settings, run_id: str, canary: Canary | None, *, is_widening: bool = False) -> PublicationReport:
    """Publish a run as `publish` does, for the users of a canary; None: for all users.

    Args:
        settings: The project's settings.
        run_id: A validated run.
        canary: The users to publish for.
        is_widening: Whether it widens a publication for fewer users, whose rows later runs may have replaced in part.
    """
    from scalr_prod.ledger import Ledger

    lake = open_project_lake(settings)
    with Ledger.open(settings) as ledger, ledger.leases.hold(run_id, wait_s=_LEASE_WAIT_S) as lease:
        _ensure_audited(ledger, run_id)
        view = lake.open_table(_VIEW)
        _ensure_enabled(lake, view, run_id)
        last, outcome = _confirm_pending(lake, ledger, view, run_id)
        standing = None if last is None or (not is_widening and _is_superseded(lake, ledger, view, last)) else last
        if standing is not None and _covers(standing, canary):
            report = _report(standing, outcome)
        else:
            report = _commit_run(settings, lake, view, ledger, lease, run_id, canary, standing)
    logger.info("%s: %s, %d rows in version %s", run_id, report.outcome, report.rows, report.delta_version)
    return replace(report, online=update_online_store(settings))


def rollback_run(settings: Settings, run_id: str) -> PublicationReport:
    """Remove a run's rows from the feature view and restore the rows they had replaced, in one commit.

    Rows of runs that have been rolled back themselves are not restored.

    Raises:
        PublicationError: The run was never published.
        PublicationDisabled: Publication is switched off.
        CommitFailed: Nothing was written; safe to repeat.
        LedgerError: Another driver works on the run.
    """
    from scalr_prod.ledger import Ledger

    lake = open_project_lake(settings)
    with Ledger.open(settings) as ledger, ledger.leases.hold(run_id, wait_s=_LEASE_WAIT_S) as lease:
        _ensure_audited(ledger, run_id)
        view = lake.open_table(_VIEW)
        _ensure_enabled(lake, view, run_id)
        _confirm_pending(lake, ledger, view, run_id)
        # A pending attempt was not committed: the publication it was to replace may be live.
        last = next(
            (attempt for attempt in ledger.publications.find(run_id)[::-1] if attempt.status is not PublicationStatus.PENDING),
            None,
        )
        if last is None:
            raise PublicationError(
                f"the run is {ledger.runs.get(run_id).state.value}: it was never published",
                where=lake.uri(_VIEW),
                next_step=f"see its state: scalr runs show {run_id}",
            ).add_context(run_id=run_id)
        if last.status is PublicationStatus.ROLLED_BACK:
            report = _report(last, "already_rolled_back", version=last.rollback_version, rows=0)
        else:
            report = _remove_run(lake, view, ledger, lease, last)
    logger.info("%s: %s, %d rows", run_id, report.outcome, report.rows)
    return replace(report, online=update_online_store(settings))


def _ensure_enabled(lake: Lake, view: DeltaTable, run_id: str) -> None:
    if lake.hidden_version(_VIEW, opened=view) is not None:
        raise PublicationDisabled(
            "publication is switched off: the feature view reads as empty and cannot be changed",
            where=lake.uri(_VIEW),
            next_step="switch it on, then repeat the command: scalr publication enable",
        ).add_context(run_id=run_id)


def _ensure_audited(ledger: Ledger, run_id: str) -> None:
    state = ledger.runs.get(run_id).state
    if state is RunState.REJECTED:
        raise PublicationError("the gate rejected this run", where="ledger", next_step=f"see why: scalr validate {run_id}")
    if state not in _PUBLISHABLE:
        raise PublicationError(
            f"the run is {state.value}, not validated", where="ledger", next_step=f"resume it: scalr runs resume {run_id}"
        )


def _confirm_pending(lake: Lake, ledger: Ledger, view: DeltaTable, run_id: str) -> tuple[Publication | None, str]:
    """Return the run's live publication, or None, after confirming an attempt that was committed but not recorded."""
    attempts = ledger.publications.find(run_id)
    outcome = "already_published"
    if attempts and attempts[-1].status is PublicationStatus.PENDING:
        last = attempts.pop()
        if view.transaction_version(last.key) is not None:
            version = lake.commit_version(_VIEW, last.key)
            last = ledger.publications.confirm(
                run_id,
                attempt=last.attempt,
                delta_version=view.version() if version is None else version,
                rows=last.rows,
                cause="publish: found in the lake's log after an interruption",
            )
            attempts.append(last)
            outcome = "recovered"
    return (attempts[-1] if attempts and attempts[-1].status is PublicationStatus.PUBLISHED else None), outcome


def _covers(standing: Publication, canary: Canary | None) -> bool:
    """Return whether a publication covers all of these users already."""
    published_for = Canary.from_publication(standing.canary)
    if published_for is None or canary is None:
        return published_for is None
    if published_for.salt != canary.salt:
        raise PublicationError(
            "the users that the run is published for were selected with another key",
            where="[experiment] key",
            next_step="publish it for all users, or withdraw it: scalr publication widen, scalr publication withdraw",
        ).add_context(run_id=standing.run_id)
    return canary <= published_for


def _is_superseded(lake: Lake, ledger: Ledger, view: DeltaTable, publication: Publication) -> bool:
    """Return whether other runs replaced rows of the window; a commit not yet in the ledger shows in the view."""
    if view.version() == publication.delta_version:
        return False
    rows = count_rows_by_run(lake, published_region(publication), opened=view)
    return rows.pop(publication.run_id, 0) != publication.rows and bool(rows or ledger.publications.superseding(publication))


def _commit_run(
    settings: Settings,
    lake: Lake,
    view: DeltaTable,
    ledger: Ledger,
    lease: Lease,
    run_id: str,
    canary: Canary | None,
    standing: Publication | None,
) -> PublicationReport:
    spec = ledger.runs.get(run_id).spec
    _ensure_not_stale(lake, spec)
    files, rows = accepted_files(settings, run_id)
    ensure_no_erased_ids(settings, run_id, files)
    users = frozenset[Canary]() if canary is None else frozenset({canary})
    rows = rows if canary is None else count_accepted_rows(files, canary)
    region = ViewRegion(spec.start, spec.end, users)
    other_regions = [ViewRegion(spec.start, spec.end, excluded_canaries=users)] if users else []

    def attempt(version: int) -> tuple[Publication, CommitResult]:
        _ensure_enabled(lake, view, run_id)
        intent = ledger.publications.record_intent(
            run_id,
            base_version=version,
            rows=rows,
            replaced=count_rows_by_run(lake, region, opened=view),
            canary=None if canary is None else canary.to_json(),
            widens=None if standing is None else standing.attempt,
        )
        lease.check()
        reader = _rows_to_commit(lake, view, files, canary, [RegionRows(version, piece) for piece in other_regions])
        commit = lake.replace_window(
            _VIEW, reader, start=spec.start, end=spec.end, key=intent.key, expected_version=version, opened=view
        )
        return intent, commit

    intent, commit = retry_on_conflict(lake, view, attempt)
    replaced = ", ".join(f"{count} of {name}" for name, count in sorted(intent.replaced.items())) or "nothing"
    audience = "" if canary is None else f" of {100 * canary.share:.3g} % of users"
    done = ledger.publications.confirm(
        run_id,
        attempt=intent.attempt,
        delta_version=commit.version,
        rows=rows,
        cause=f"publish: {rows} rows{audience} in version {commit.version}, replacing {replaced}",
    )
    return _report(done, "published" if standing is None else "widened")


def _rows_to_commit(
    lake: Lake, view: DeltaTable, files: Sequence[Path], canary: Canary | None, stay: Sequence[RegionRows]
) -> pa.RecordBatchReader:
    """Return the rows to commit: the run's, and those of other users that stay."""
    import pyarrow as pa

    schema = arrow_schema(view)
    other_rows = stream_rows(lake, stay, schema)
    return pa.RecordBatchReader.from_batches(schema, chain(stream_accepted_rows(files, schema, canary), other_rows))


def _ensure_not_stale(lake: Lake, spec: RunSpec) -> None:
    """Refuse a run whose events were replaced in the log: neither a late publication nor a repeated one restores them."""
    since = stale_since(lake, spec.table_versions, spec.as_of)
    if since is not None:
        which = (
            "events" if since.year == 1 else f"events from {since.isoformat()} on"
        )  # replaced at all times, for example by an erasure of items
        raise PublicationError(
            f"{which} that the run was generated from have been replaced since",
            where=lake.root,
            next_step="generate a run from the current events: scalr run",
        ).add_context(run_id=spec.run_id)


def _remove_run(lake: Lake, view: DeltaTable, ledger: Ledger, lease: Lease, last: Publication) -> PublicationReport:
    run_id = last.run_id
    key = f"rollback:{run_id}:{last.attempt}"
    window = ViewRegion(last.start, last.end)
    rows: dict[str, int] = {}
    others: dict[str, int] = {}
    not_restored: list[str] = []
    recovered = view.transaction_version(key) is not None
    # Events removed from the log must not return to the view.
    replaced_runs = {name for record in ledger.publications.find(run_id) for name in record.replaced} - {run_id}
    stale = {
        name
        for name in replaced_runs
        if stale_since(lake, (spec := ledger.runs.get(name).spec).table_versions, spec.as_of) is not None
    }

    def attempt(version: int) -> CommitResult:
        nonlocal rows, others, not_restored
        _ensure_enabled(lake, view, run_id)
        rows = count_rows_by_run(lake, window, opened=view)
        others = count_rows_by_run(lake, published_region(last), opened=view)
        lease.check()
        plan, not_restored = (
            plan_restore(lake, ledger, last, version=version, stale_runs=stale) if rows.get(run_id) else (None, [])
        )
        if not rows.get(run_id) and not recovered:
            return CommitResult(_VIEW.value, version, written=False)
        if plan is None:
            return lake.delete(_VIEW, f"run_id = '{run_id}'", key=key, expected_version=version, opened=view)
        reader = plan.to_reader(arrow_schema(view))
        return lake.replace_where(_VIEW, reader, plan.predicate, key=key, expected_version=version, opened=view)

    commit = retry_on_conflict(lake, view, attempt)
    if recovered:  # an earlier call removed them and exited before recording it
        rows, others = (
            count_rows_by_run(lake, piece, version=commit.version - 1) for piece in (window, published_region(last))
        )
    removed = rows.pop(run_id, 0)
    after = count_rows_by_run(lake, window, version=commit.version) if removed else {}
    restored = {name: count - rows.get(name, 0) for name, count in after.items() if count > rows.get(name, 0)}
    # Runs with rows in the region were published later, whether or not the ledger knows of them yet.
    later = {record.run_id for record in ledger.publications.superseding(last) if record.status is PublicationStatus.PUBLISHED}
    replaced_by = sorted(later | (others.keys() - {run_id}))
    outcome = "rolled_back" if removed else "replaced"
    cause = f"rollback: {removed} rows in version {commit.version}"
    if replaced_by:
        cause += f"; its window had been published again by {', '.join(replaced_by)}"
    if restored:
        cause += f"; brought back {', '.join(f'{count} of {name}' for name, count in sorted(restored.items()))}"
    done = ledger.publications.record_rollback(run_id, attempt=last.attempt, delta_version=commit.version, cause=cause)
    report = _report(done, outcome, version=commit.version, rows=removed, replaced_by=replaced_by)
    return replace(report, restored=restored, not_restored=not_restored)


def retry_on_conflict(lake: Lake, view: DeltaTable, attempt: Callable[[int], Outcome]) -> Outcome:
    """Retry a commit on the view's current version, to which ``view`` is moved, after a conflict with another writer."""
    tried = 0
    while True:
        tried += 1
        version = lake.open_current(_VIEW, view).version()
        try:
            return attempt(version)
        except CommitFailed:
            # The view has not changed: it was no conflict, and another attempt would not help.
            if tried == _ATTEMPTS or lake.open_current(_VIEW, view).version() == version:
                raise
            time.sleep(random.uniform(0.0, 0.02 * tried))  # noqa: S311 - jitter, not a secret


def _report(
    publication: Publication,
    outcome: str,
    *,
    version: int | None = None,
    rows: int | None = None,
    replaced_by: Sequence[str] = (),
) -> PublicationReport:
    return PublicationReport(
        run_id=publication.run_id,
        outcome=outcome,
        attempt=publication.attempt,
        table=_VIEW.value,
        delta_version=publication.delta_version if version is None else version,
        rows=publication.rows if rows is None else rows,
        replaced=dict(publication.replaced),
        replaced_by=list(replaced_by),
        canary=None if publication.canary is None else publication.canary["share"],
    )


def update_online_store(settings: Settings) -> bool:
    """Update the online store if ``[publication] online`` is set; a repeated call finishes an interrupted update.

    Returns:
        Whether ``[publication] online`` is set.
    """
    if not settings.publication.online:
        return False
    from scalr_prod.features import apply_feature_repo, materialize

    apply_feature_repo(settings)
    materialize(settings)
    return True
