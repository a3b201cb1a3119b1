# SPDX-License-Identifier: Apache-2.0
"""Rollback: remove a run's rows from the feature view and restore the rows that they had replaced, in one commit.

The feature view is the result of its publications in order, each in its own window. A rollback restores the view as if one of them had
not happened: the rows of the version before it, or, where those belong to a run that was rolled back since, of the version before that.
Rows come from the table's earlier versions, so that erased rows stay erased.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from scalr_prod.core.delta_log import arrow_schema
from scalr_prod.errors import LakeError, PublicationError
from scalr_prod.lake import CommitResult, retry_on_new_version, stale_since, window_sql
from scalr_prod.ledger import PublicationStatus
from scalr_prod.publication.commit import PublicationReport, open_run, rollback_key, update_online_store
from scalr_prod.publication.regions import RegionRows, ViewRegion, count_rows_by_run, published_region, stream_rows, subtract
from scalr_prod.schemas import Table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from datetime import datetime

    import pyarrow as pa

    from scalr_prod.config import Settings
    from scalr_prod.lake import Lake
    from scalr_prod.ledger import Ledger, Publication
    from scalr_prod.publication.commit import RunInView


logger = logging.getLogger(__name__)

_VIEW: Final = Table.SYNTHETIC_TARGET_EVENTS


def rollback_run(settings: Settings, run_id: str) -> PublicationReport:
    """Remove a run's rows from the feature view and restore the rows they had replaced, in one commit.

    Rows of runs that have been rolled back themselves are not restored.

    Raises:
        PublicationError: The run was never published.
        PublicationDisabled: Publication is switched off.
        CommitFailed: Nothing was written; safe to repeat.
        LedgerError: Another driver works on the run.
    """
    with open_run(settings, run_id) as run:
        run.confirm_pending()
        # A pending attempt was not committed: the publication it was to replace may be live.
        attempts = run.ledger.publications.find(run_id)
        last = next((attempt for attempt in reversed(attempts) if attempt.status is not PublicationStatus.PENDING), None)
        if last is None:
            raise PublicationError(
                f"the run is {run.ledger.runs.get(run_id).state.value}: it was never published",
                where=run.lake.uri(_VIEW),
                next_step=f"see its state: scalr runs show {run_id}",
            ).add_context(run_id=run_id)
        if last.status is PublicationStatus.ROLLED_BACK:
            report = PublicationReport.from_publication(last, "already_rolled_back", version=last.rollback_version, rows=0)
        else:
            report = _remove_run(run, last)
    logger.info("%s: %s, %d rows", run_id, report.outcome, report.rows)
    return replace(report, online=update_online_store(settings))


def _remove_run(run: RunInView, last: Publication) -> PublicationReport:
    run_id, lake, view = run.run_id, run.lake, run.view
    key = rollback_key(last)
    window = ViewRegion(last.start, last.end)
    rows: dict[str, int] = {}
    others: dict[str, int] = {}
    not_restored: list[str] = []
    recovered = view.transaction_version(key) is not None
    # Events removed from the log must not return to the view.
    replaced_runs = {name for record in run.ledger.publications.find(run_id) for name in record.replaced} - {run_id}
    stale = {
        name
        for name in replaced_runs
        if stale_since(lake, (spec := run.ledger.runs.get(name).spec).table_versions, spec.as_of) is not None
    }

    def attempt(version: int) -> CommitResult:
        nonlocal rows, others, not_restored
        run.ensure_enabled()
        rows = run.count_rows(window)
        others = run.count_rows(published_region(last))
        run.lease.check()
        plan, not_restored = (
            plan_restore(lake, run.ledger, last, version=version, stale_runs=stale) if rows.get(run_id) else (None, [])
        )
        if not rows.get(run_id) and not recovered:
            return CommitResult(_VIEW.value, version, written=False)
        if plan is None:
            return lake.delete(_VIEW, f"run_id = '{run_id}'", key=key, expected_version=version, opened=view)
        reader = plan.to_reader(arrow_schema(view))
        return lake.replace_where(_VIEW, reader, plan.predicate, key=key, expected_version=version, opened=view)

    commit = retry_on_new_version(lake, _VIEW, attempt, opened=view)
    if recovered:  # an earlier call removed them and exited before recording it
        rows, others = (
            count_rows_by_run(lake, region, version=commit.version - 1) for region in (window, published_region(last))
        )
    removed = rows.pop(run_id, 0)
    after = count_rows_by_run(lake, window, version=commit.version) if removed else {}
    restored = {name: count - rows.get(name, 0) for name, count in after.items() if count > rows.get(name, 0)}
    # Runs with rows in the region were published later, whether or not the ledger knows of them yet.
    later = {
        record.run_id for record in run.ledger.publications.superseding(last) if record.status is PublicationStatus.PUBLISHED
    }
    replaced_by = sorted(later | (others.keys() - {run_id}))
    outcome = "rolled_back" if removed else "replaced"
    cause = f"rollback: {removed} rows in version {commit.version}"
    if replaced_by:
        cause += f"; its window had been published again by {', '.join(replaced_by)}"
    if restored:
        cause += f"; brought back {', '.join(f'{count} of {name}' for name, count in sorted(restored.items()))}"
    recorded = run.ledger.publications.record_rollback(run_id, attempt=last.attempt, delta_version=commit.version, cause=cause)
    report = PublicationReport.from_publication(
        recorded, outcome, version=commit.version, rows=removed, replaced_by=replaced_by
    )
    return replace(report, restored=restored, not_restored=not_restored)


@dataclass(frozen=True)
class RestorePlan:
    """Rows to restore.

    Attributes:
        lake: The lake with the rows.
        selections: The rows to restore, and the rows of others that stay, see `predicate`.
        predicate: SQL condition of the rows to overwrite. It cannot test canary membership, so it also matches other users' rows,
            which are written back unchanged.
    """

    lake: Lake
    selections: Sequence[RegionRows]
    predicate: str

    def to_reader(self, schema: pa.Schema) -> pa.RecordBatchReader:
        """Return the rows as a stream, with the columns that the view has now."""
        import pyarrow as pa

        return pa.RecordBatchReader.from_batches(schema, stream_rows(self.lake, self.selections, schema))


def plan_restore(
    lake: Lake, ledger: Ledger, publication: Publication, *, version: int, stale_runs: Collection[str] = ()
) -> tuple[RestorePlan | None, list[str]]:
    """Plan which rows to restore when a publication's rows are removed from the view.

    Args:
        lake: The lake with the view.
        ledger: The project's ledger.
        publication: The publication to roll back; its rows are in the view.
        version: The view's version that the rollback follows.
        stale_runs: Runs whose rows are not restored.

    Returns:
        The plan, or None if there is nothing to restore; and the runs whose rows should be restored but whose files are gone.
    """
    published = [record for record in ledger.publications.find() if record.delta_version is not None]
    excluded = _rolled_back_runs(published) | {publication.run_id} | set(stale_runs)
    replaced_runs = {run for record in published if record.run_id == publication.run_id for run in record.replaced} - {
        publication.run_id
    }
    own_regions = _owned_regions(publication, published, version)
    selections = [selection for region in own_regions for selection in _rows_before(region, publication, published, excluded)]
    try:
        if {run for region in own_regions for run in count_rows_by_run(lake, region, version=version)} != {publication.run_id}:
            # Runs published later that the ledger does not know yet: earlier rows must not be restored beside theirs.
            return None, []
        restored_runs = {
            run for selection in selections for run in count_rows_by_run(lake, selection.region, version=selection.version)
        } - excluded
    except (LakeError, OSError) as error:  # a rollback must succeed even if the former rows cannot be read
        missing_runs = sorted(run for run in replaced_runs if run not in excluded)
        logger.warning("the rows that %s had replaced cannot be restored: %s", publication.run_id, error)
        return None, missing_runs
    missing_runs = sorted(run for run in replaced_runs if run in stale_runs)
    if not restored_runs:
        return None, missing_runs
    restored = [replace(selection, run_ids=sorted(restored_runs)) for selection in selections]
    windows = sorted({(region.start, region.end) for region in own_regions})
    predicate = " OR ".join(f"({window_sql(*window)})" for window in windows)
    return RestorePlan(
        lake,
        [*restored, *_rows_of_other_users(lake, publication, own_regions, windows, version)],
        f"{predicate} OR run_id = '{publication.run_id}'",
    ), missing_runs


def restore_source_versions(ledger: Ledger, *, since: datetime) -> list[int]:
    """Return the versions of the view that rollbacks of publications since then would restore rows from."""
    publications = ledger.publications.find()
    return [
        publication.base_version
        for publication in publications
        if (publication.replaced or publication.canary) and publication.created_at >= since
    ]


def _rolled_back_runs(published: Sequence[Publication]) -> set[str]:
    """Return the runs whose latest publication was rolled back."""
    latest = {
        publication.run_id: publication.status for publication in sorted(published, key=lambda publication: publication.attempt)
    }
    return {run for run, status in latest.items() if status is PublicationStatus.ROLLED_BACK}


def _owned_regions(publication: Publication, published: Sequence[Publication], version: int) -> list[ViewRegion]:
    """Return the regions of a publication that no later one had replaced at a version of the view."""
    regions = [published_region(publication)]
    for later in published:
        if (later.delta_version or 0) > (publication.delta_version or 0) and later.is_live_at(version):
            regions = subtract(regions, published_region(later))
    return regions


def _rows_before(
    region: ViewRegion, publication: Publication, published: Sequence[Publication], excluded: set[str]
) -> Iterator[RegionRows]:
    """Yield the rows of a region before a publication, without the runs in ``excluded``."""
    earlier = [other for other in published if other.is_live_at(publication.base_version)]
    rest = [region]
    for other in sorted(earlier, key=lambda other: other.delta_version or 0, reverse=True):
        covered = published_region(other)
        shared = [overlap for left in rest if (overlap := left.intersection(covered))]
        rest = subtract(rest, covered)
        for overlap in shared:
            if other.run_id in excluded:
                yield from _rows_before(overlap, other, published, excluded)
            else:
                yield RegionRows(publication.base_version, overlap)


def _rows_of_other_users(
    lake: Lake, last: Publication, own_regions: Sequence[ViewRegion], windows: Sequence[tuple[datetime, datetime]], version: int
) -> list[RegionRows]:
    """Return the rows of other users in the windows of a publication's regions: they stay."""
    other_regions = [ViewRegion(*window) for window in windows]
    for region in own_regions:
        other_regions = subtract(other_regions, region)
    row_runs = [
        (region, sorted(count_rows_by_run(lake, region, version=version).keys() - {last.run_id})) for region in other_regions
    ]
    return [RegionRows(version, region, runs) for region, runs in row_runs if runs]
