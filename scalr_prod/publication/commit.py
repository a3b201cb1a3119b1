# SPDX-License-Identifier: Apache-2.0
"""Exactly-once publication of a run: one atomic commit replaces the run's window in the feature view.

The ledger records the intent before the commit and the outcome after it. After a crash between the two, the commit's key in the lake's
log shows whether the commit happened.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Self

from scalr_prod.core.delta_log import arrow_schema
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import PublicationDisabled, PublicationError
from scalr_prod.lake import CommitResult, Lake, check_exclusive_commits, open_project_lake, retry_on_new_version, stale_since
from scalr_prod.ledger import PublicationStatus, RunState
from scalr_prod.publication.accepted_rows import (
    accepted_files,
    count_accepted_rows,
    ensure_no_erased_ids,
    stream_accepted_rows,
    write_accepted_rows,
)
from scalr_prod.publication.provenance import write_provenance
from scalr_prod.publication.regions import RegionRows, ViewRegion, count_rows_by_run, published_region, stream_rows
from scalr_prod.schemas import SOURCE_COLUMNS, Table
from scalr_prod.workspace import Canary, ensure_consent_not_withdrawn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from deltalake import DeltaTable

    from scalr_prod.config import Settings
    from scalr_prod.lake import TableFile
    from scalr_prod.ledger import Lease, Ledger, Publication, RunSpec


logger = logging.getLogger(__name__)

_VIEW: Final = Table.SYNTHETIC_TARGET_EVENTS
_PUBLISHABLE: Final = frozenset({RunState.VALIDATED, RunState.PUBLISHED, RunState.ROLLED_BACK})
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

    @classmethod
    def from_publication(
        cls,
        publication: Publication,
        outcome: str,
        *,
        version: int | None = None,
        rows: int | None = None,
        replaced_by: Sequence[str] = (),
    ) -> Self:
        """Report on a publication; ``version`` and ``rows`` default to those that it committed."""
        return cls(
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


def publish(settings: Settings, run_id: str) -> PublicationReport:
    """Publish a validated run: its accepted rows replace the rows of its window in the feature view.

    With ``[experiment] canary`` it is published for that share of users only; rows of other users in the window stay. Nothing changes if
    the run is published for all these users already. If it was rolled back or replaced later, it is published again; if it is published
    for fewer users, the others are added.

    Args:
        settings: The project's settings.
        run_id: A validated run.

    Raises:
        PublicationError: The run was not validated, was rejected, or its accepted files are not the audited ones; or its source events
            have been replaced since.
        PublicationDisabled: Publication is switched off.
        LakeError: The lake's store would lose commits; nothing was written.
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
        is_widening: Whether the run is published for a share of these users already. Later runs may have replaced some of its rows.
    """
    check_exclusive_commits(Lake.open(settings))
    with open_run(settings, run_id) as run:
        last, outcome = run.confirm_pending()
        is_gone = last is not None and (run.confirm_rollback(last) or run.is_lost(last))
        live = None if last is None or is_gone or (not is_widening and run.is_superseded(last)) else last
        if live is not None and _covers(live, canary):
            report = PublicationReport.from_publication(live, outcome)
        else:
            report = _commit_run(settings, run, canary, live)
    logger.info("%s: %s, %d rows in version %s", run_id, report.outcome, report.rows, report.delta_version)
    return replace(report, online=update_online_store(settings))


def rollback_key(publication: Publication) -> str:
    """Return the key of the commit that rolls a publication back."""
    return f"rollback:{publication.run_id}:{publication.attempt}"


@dataclass(frozen=True)
class RunInView:
    """A run and the feature view to which it is published or from which it is removed, while this process holds the run's lease.

    Attributes:
        run_id: The run.
        lake: The lake with the view.
        view: The view's table.
        ledger: The project's ledger.
        lease: The run's lease.
    """

    run_id: str
    lake: Lake
    view: DeltaTable
    ledger: Ledger
    lease: Lease

    def ensure_enabled(self) -> None:
        """Ensure that publication is enabled.

        Raises:
            PublicationDisabled: It is switched off.
        """
        if self.lake.hidden_version(_VIEW, opened=self.view) is not None:
            raise PublicationDisabled(
                "publication is switched off: the feature view reads as empty and cannot be changed",
                where=self.lake.uri(_VIEW),
                next_step="switch it on, then repeat the command: scalr publication enable",
            ).add_context(run_id=self.run_id)

    def confirm_pending(self) -> tuple[Publication | None, str]:
        """Return the run's live publication, or None, after confirming an attempt that was committed but not recorded."""
        attempts = self.ledger.publications.find(self.run_id)
        outcome = "already_published"
        if attempts and attempts[-1].status is PublicationStatus.PENDING:
            last = attempts.pop()
            if self.view.transaction_version(last.key) is not None:
                version = self.lake.commit_version(_VIEW, last.key)
                last = self.ledger.publications.confirm(
                    self.run_id,
                    attempt=last.attempt,
                    delta_version=self.view.version() if version is None else version,
                    rows=last.rows,
                    cause="publish: found in the lake's log after an interruption",
                )
                attempts.append(last)
                outcome = "recovered"
        return (attempts[-1] if attempts and attempts[-1].status is PublicationStatus.PUBLISHED else None), outcome

    def confirm_rollback(self, publication: Publication) -> bool:
        """Return whether a publication's rollback was committed; record it if a process ended before doing so."""
        key = rollback_key(publication)
        if self.view.transaction_version(key) is None:
            return False
        version = self.lake.commit_version(_VIEW, key)
        self.ledger.publications.record_rollback(
            self.run_id,
            attempt=publication.attempt,
            delta_version=self.view.version() if version is None else version,
            cause="rollback: found in the lake's log after an interruption",
        )
        return True

    def is_lost(self, publication: Publication) -> bool:
        """Return whether the view's table is another one than a publication was committed to: its folder was removed, or restored."""
        lost = self.view.transaction_version(publication.key) is None
        if lost:
            logger.warning("%s: the view's table does not hold its publication any more: it is published again", self.run_id)
        return lost

    def is_superseded(self, publication: Publication) -> bool:
        """Return whether other runs have replaced rows of a publication.

        The view is checked as well as the ledger, because another run's commit may not be recorded yet.
        """
        if self.view.version() == publication.delta_version:
            return False
        rows = self.count_rows(published_region(publication))
        own_rows = rows.pop(publication.run_id, 0)
        return own_rows != publication.rows and bool(rows or self.ledger.publications.superseding(publication))

    def count_rows(self, region: ViewRegion) -> dict[str, int]:
        """Count the view's rows of a region by run."""
        return count_rows_by_run(self.lake, region, opened=self.view)


@contextmanager
def open_run(settings: Settings, run_id: str) -> Iterator[RunInView]:
    """Open an audited run for a change of the feature view, and hold its lease for the block.

    Raises:
        PublicationError: The run was not validated, or was rejected.
        PublicationDisabled: Publication is switched off.
        LedgerError: Another driver works on the run.
    """
    from scalr_prod.ledger import Ledger

    lake = open_project_lake(settings)
    with Ledger.open(settings) as ledger, ledger.leases.hold(run_id, wait_s=_LEASE_WAIT_S) as lease:
        _ensure_audited(ledger, run_id)
        run = RunInView(run_id, lake, lake.open_table(_VIEW), ledger, lease)
        run.ensure_enabled()
        yield run


def _ensure_audited(ledger: Ledger, run_id: str) -> None:
    state = ledger.runs.get(run_id).state
    if state is RunState.REJECTED:
        raise PublicationError("the gate rejected this run", where="ledger", next_step=f"see why: scalr validate {run_id}")
    if state not in _PUBLISHABLE:
        raise PublicationError(
            f"the run is {state.value}, not validated", where="ledger", next_step=f"resume it: scalr runs resume {run_id}"
        )


def _covers(live: Publication, canary: Canary | None) -> bool:
    """Return whether a publication covers all of these users already."""
    published_for = Canary.from_publication(live.canary)
    if published_for is None or canary is None:
        return published_for is None
    if published_for.salt != canary.salt:
        raise PublicationError(
            "the users that the run is published for were selected with another key",
            where="[experiment] key",
            next_step="publish it for all users, or withdraw it: scalr publication widen, scalr publication withdraw",
        ).add_context(run_id=live.run_id)
    return canary.is_subset_of(published_for)


def _commit_run(settings: Settings, run: RunInView, canary: Canary | None, live: Publication | None) -> PublicationReport:
    spec = run.ledger.runs.get(run.run_id).spec
    _ensure_not_stale(run.lake, spec)
    files, rows = accepted_files(settings, run.run_id)
    ensure_no_erased_ids(settings, run.run_id, files)
    ensure_consent_not_withdrawn(settings, spec.run_id, spec.settings)
    users = frozenset[Canary]() if canary is None else frozenset({canary})
    rows = rows if canary is None else count_accepted_rows(files, canary)
    if settings.publication.provenance == "separate":  # before the events: whoever reads an event finds its provenance
        write_provenance(settings, run.lake, run.run_id, files)
    region = ViewRegion(spec.start, spec.end, users)
    other_regions = [ViewRegion(spec.start, spec.end, excluded_canaries=users)] if users else []

    if set(SOURCE_COLUMNS) <= set(arrow_schema(run.view).names):
        logger.warning("the feature view still has the source columns of an earlier package version: scalr maintain moves them")

    def write_files() -> list[TableFile]:
        window = (spec.start, spec.end)
        return write_accepted_rows(settings, run.run_id, files, lake=run.lake, table=_VIEW, opened=run.view, window=window)

    def attempt(version: int) -> tuple[Publication, CommitResult]:
        run.ensure_enabled()
        intent = run.ledger.publications.record_intent(
            run.run_id,
            base_version=version,
            rows=rows,
            replaced=run.count_rows(region),
            canary=None if canary is None else canary.to_json(),
            widens=None if live is None else live.attempt,
        )
        run.lease.check()
        options: dict[str, Any] = {"start": spec.start, "end": spec.end, "key": intent.key}
        options |= {"expected_version": version, "opened": run.view}
        commit = None if other_regions else run.lake.replace_window_with_files(_VIEW, write_files, **options)
        if commit is None:
            reader = _rows_to_commit(run, files, canary, [RegionRows(version, other) for other in other_regions])
            commit = run.lake.replace_window(_VIEW, reader, **options)
        return intent, commit

    intent, commit = retry_on_new_version(run.lake, _VIEW, attempt, opened=run.view)
    replaced = ", ".join(f"{count} of {name}" for name, count in sorted(intent.replaced.items())) or "nothing"
    audience = "" if canary is None else f" of {100 * canary.share:.3g} % of users"
    confirmed = run.ledger.publications.confirm(
        run.run_id,
        attempt=intent.attempt,
        delta_version=commit.version,
        rows=rows,
        cause=f"publish: {rows} rows{audience} in version {commit.version}, replacing {replaced}",
    )
    return PublicationReport.from_publication(confirmed, "published" if live is None else "widened")


def _rows_to_commit(
    run: RunInView, files: Sequence[Path], canary: Canary | None, kept: Sequence[RegionRows]
) -> pa.RecordBatchReader:
    """Return the rows to commit: the run's, and those of other users, which are kept."""
    import pyarrow as pa

    schema = arrow_schema(run.view)
    other_rows = stream_rows(run.lake, kept, schema)
    return pa.RecordBatchReader.from_batches(schema, chain(stream_accepted_rows(files, schema, canary), other_rows))


def _ensure_not_stale(lake: Lake, spec: RunSpec) -> None:
    """Refuse a run whose source events were replaced since, so that no late or repeated publication brings outdated rows back."""
    since = stale_since(lake, spec.table_versions, spec.as_of)
    if since is not None:
        # Year 1: events of any time, for example after an erasure of items.
        which = "events" if since.year == 1 else f"events from {since.isoformat()} on"
        raise PublicationError(
            f"{which} that the run was generated from have been replaced since",
            where=lake.root,
            next_step="generate a run from the current events: scalr run",
        ).add_context(run_id=spec.run_id)


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
