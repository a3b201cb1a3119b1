# SPDX-License-Identifier: Apache-2.0
"""Rollback plan: which rows a rollback of a publication restores.

The feature view is the result of its publications in order, each in its own window. A rollback restores the view as if one of them had
not happened: the rows of the version before it, or, where those belong to a run that was rolled back since, of the version before that.
Rows come from the table's earlier versions, so that erased rows stay erased.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scalr_prod.errors import LakeError
from scalr_prod.lake import window_sql
from scalr_prod.ledger import PublicationStatus
from scalr_prod.pieces import Part, Piece, piece_of, rows_by_run, stream

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from datetime import datetime

    import pyarrow as pa

    from scalr_prod.lake import Lake
    from scalr_prod.ledger import Ledger, Publication

__all__ = ["Former", "restored_by", "restoring_versions"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Former:
    """Rows to restore.

    Attributes:
        lake: The lake with the rows.
        parts: The rows to restore, and the rows of others that stay, see `predicate`.
        predicate: SQL: the rows to replace, including those written again. SQL cannot express canary membership, so rows of other
            users in the window are rewritten.
    """

    lake: Lake
    parts: Sequence[Part]
    predicate: str

    def rows(self, schema: pa.Schema) -> pa.RecordBatchReader:
        """Return the rows as a stream, with the columns that the view has now."""
        import pyarrow as pa

        return pa.RecordBatchReader.from_batches(schema, stream(self.lake, self.parts, schema))


def restored_by(
    lake: Lake, ledger: Ledger, last: Publication, *, version: int, without: Collection[str] = ()
) -> tuple[Former | None, list[str]]:
    """Plan which rows to restore when a publication's rows are removed from the view.

    Args:
        lake: The lake with the view.
        ledger: The project's ledger.
        last: The publication to roll back; its rows are in the view.
        version: The view's version that the rollback follows.
        without: Runs whose rows are not restored.

    Returns:
        The plan, or None if there is nothing to restore; and the runs whose rows should be restored but whose files are gone.
    """
    made = [one for one in ledger.publications() if one.delta_version is not None]
    out = _rolled_back(made) | {last.run_id} | set(without)
    taken = {run for one in made if one.run_id == last.run_id for run in one.replaced} - {last.run_id}
    own = _owned(last, made, version)
    parts = [part for piece in own for part in _before(piece, last, made, out)]
    try:
        if {run for piece in own for run in rows_by_run(lake, piece, version=version)} != {last.run_id}:
            # Runs published later that the ledger does not know yet: earlier rows must not be restored beside theirs.
            return None, []
        found = {run for part in parts for run in rows_by_run(lake, part.piece, version=part.version)} - out
    except (LakeError, OSError) as error:  # a rollback must succeed even if the former rows cannot be read
        lost = sorted(run for run in taken if run not in out)
        logger.warning("the rows that %s had replaced cannot be restored: %s", last.run_id, error)
        return None, lost
    lost = sorted(run for run in taken if run in without)
    if not found:
        return None, lost
    back = [replace(part, runs=sorted(found)) for part in parts]
    windows = sorted({(piece.start, piece.end) for piece in own})
    predicate = " OR ".join(f"({window_sql(*window)})" for window in windows)
    return Former(lake, [*back, *_beside(lake, last, own, windows, version)], f"{predicate} OR run_id = '{last.run_id}'"), lost


def restoring_versions(ledger: Ledger, *, since: datetime) -> list[int]:
    """Return the versions of the view that rollbacks of publications since then would restore rows from."""
    publications = ledger.publications()
    return [one.base_version for one in publications if (one.replaced or one.canary) and one.created_at >= since]


def _rolled_back(made: Sequence[Publication]) -> set[str]:
    """Return the runs whose latest publication was rolled back."""
    latest = {one.run_id: one.status for one in sorted(made, key=lambda one: one.attempt)}
    return {run for run, status in latest.items() if status is PublicationStatus.ROLLED_BACK}


def _owned(one: Publication, made: Sequence[Publication], version: int) -> list[Piece]:
    """Return the regions of a publication that no later one had replaced at a version of the view."""
    pieces = [piece_of(one)]
    for later in made:
        if (later.delta_version or 0) > (one.delta_version or 0) and _in_force(later, version):
            pieces = [rest for piece in pieces for rest in piece.without(piece_of(later))]
    return pieces


def _before(piece: Piece, one: Publication, made: Sequence[Publication], out: set[str]) -> Iterator[Part]:
    """Yield the rows of a region before a publication, without the runs in ``out``."""
    below = [former for former in made if _in_force(former, one.base_version)]
    rest = [piece]
    for former in sorted(below, key=lambda former: former.delta_version or 0, reverse=True):
        held = piece_of(former)
        shared = [both for left in rest if (both := left.common(held))]
        rest = [left for whole in rest for left in whole.without(held)]
        for both in shared:
            if former.run_id in out:
                yield from _before(both, former, made, out)
            else:
                yield Part(one.base_version, both)


def _beside(
    lake: Lake, last: Publication, own: Sequence[Piece], windows: Sequence[tuple[datetime, datetime]], version: int
) -> list[Part]:
    """Return the rows of other users in the windows of a publication's regions: they stay."""
    beside = [Piece(*window) for window in windows]
    for piece in own:
        beside = [rest for whole in beside for rest in whole.without(piece)]
    parts = [(piece, sorted(rows_by_run(lake, piece, version=version).keys() - {last.run_id})) for piece in beside]
    return [Part(version, piece, runs) for piece, runs in parts if runs]


def _in_force(one: Publication, version: int) -> bool:
    """Return whether a publication was committed, and not rolled back, at a version of the view."""
    return (one.delta_version or 0) <= version and (one.rollback_version is None or one.rollback_version > version)
