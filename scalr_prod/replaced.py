# SPDX-License-Identifier: Apache-2.0
"""What a publication had replaced: the rows that a rollback brings back.

The feature view is what its publications give, one after the other, each in its own window. A rollback makes it what it would be
without one of them: the rows of the version before, and, where those were of a run that has been rolled back since, of the version
before that. Rows come from the table's own former versions, so that what was erased before stays erased.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scalr_prod.contracts import EVENT_TIMESTAMP, Table
from scalr_prod.errors import LakeError
from scalr_prod.lake import window_sql
from scalr_prod.ledger import PublicationStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from datetime import datetime
    from typing import TypeAlias

    import pyarrow as pa
    import pyarrow.dataset as ds

    from scalr_prod.lake import Lake
    from scalr_prod.ledger import Ledger, Publication

    #: Instants ``[start, end)``.
    Piece: TypeAlias = tuple[datetime, datetime]

__all__ = ["Former", "restored_by", "restoring_versions"]

logger = logging.getLogger(__name__)

_VIEW: Final = Table.SYNTHETIC_TARGET_EVENTS


@dataclass(frozen=True)
class Former:
    """Rows to bring back.

    Attributes:
        lake: Where they are.
        parts: Versions of the table, and the piece of the window that each gives.
        runs: The runs whose rows are brought back.
        predicate: SQL: the rows that they take the place of, and they themselves.
    """

    lake: Lake
    parts: Sequence[tuple[int, Piece]]
    runs: Sequence[str]
    predicate: str

    def rows(self) -> pa.RecordBatchReader:
        """The rows as a stream."""
        import pyarrow as pa

        schema = self.lake.schema(_VIEW)
        # Opened here: inside of the stream, the library that writes it is at work and cannot open a table.
        pieces = [(self.lake.dataset(_VIEW, version=version), piece) for version, piece in self.parts]

        def batches() -> Iterator[pa.RecordBatch]:
            for dataset, piece in pieces:
                for batch in dataset.to_batches(filter=_within(piece, self.runs)):
                    columns = [  # a version of a former package may lack a column
                        batch.column(field.name).cast(field.type)
                        if field.name in batch.schema.names
                        else pa.nulls(len(batch), field.type)
                        for field in schema
                    ]
                    yield pa.RecordBatch.from_arrays(columns, schema=schema)

        return pa.RecordBatchReader.from_batches(schema, batches())


def restored_by(
    lake: Lake, ledger: Ledger, last: Publication, *, version: int, without: Collection[str] = ()
) -> tuple[Former | None, list[str]]:
    """What comes back when a publication's rows are taken out of the view.

    Args:
        lake: Where they are.
        ledger: The project's.
        last: The publication; its rows are there.
        version: The view's version that the rollback follows.
        without: Runs whose rows stay out.

    Returns:
        The rows, None where there are none; and the runs whose rows should be there, but whose files are gone.
    """
    made = [one for one in ledger.publications() if one.delta_version is not None]
    out = _rolled_back(made) | {last.run_id} | set(without)
    own = _owned(last, made, version)
    parts = [part for piece in own for part in _before(piece, last, made, out)]
    try:
        if {run for piece in own for run in _runs_in(lake, version, piece)} != {last.run_id}:
            # Others were published without the ledger's knowledge: after this one, so that nothing of before may stand beside them.
            return None, []
        found = {run for at, piece in parts for run in _runs_in(lake, at, piece)} - out
    except (LakeError, OSError) as error:  # an emergency: the run goes out whether or not the former rows can be read
        lost = sorted(run for run in last.replaced if run not in out)
        logger.warning("what %s had replaced cannot be brought back: %s", last.run_id, error)
        return None, lost
    lost = sorted(run for run in last.replaced if run in without)
    if not found:
        return None, lost
    windows = " OR ".join(f"({window_sql(*piece)})" for piece in own)
    return Former(lake, parts, sorted(found), f"{windows} OR run_id = '{last.run_id}'"), lost


def restoring_versions(ledger: Ledger, *, since: datetime) -> list[int]:
    """Versions of the view that rollbacks of the publications since then would bring rows back from."""
    return [one.base_version for one in ledger.publications() if one.replaced and one.created_at >= since]


def _rolled_back(made: Sequence[Publication]) -> set[str]:
    """Runs whose latest publication was rolled back."""
    latest = {one.run_id: one.status for one in sorted(made, key=lambda one: one.attempt)}
    return {run for run, status in latest.items() if status is PublicationStatus.ROLLED_BACK}


def _owned(one: Publication, made: Sequence[Publication], version: int) -> list[Piece]:
    """The pieces of a publication's window that no later one holds, as of a version of the view."""
    pieces = [(one.start, one.end)]
    for later in made:
        if (later.delta_version or 0) > (one.delta_version or 0) and _in_force(later, version):
            pieces = [rest for piece in pieces for rest in _without(piece, (later.start, later.end))]
    return pieces


def _before(piece: Piece, one: Publication, made: Sequence[Publication], out: set[str]) -> Iterator[tuple[int, Piece]]:
    """The versions that give a piece of the view as it was before a publication, without the runs that are ``out``."""
    below = [former for former in made if _in_force(former, one.base_version)]
    rest = [piece]
    for former in sorted(below, key=lambda former: former.delta_version or 0, reverse=True):
        shared = [both for left in rest if (both := _common(left, (former.start, former.end)))]
        rest = [left for whole in rest for left in _without(whole, (former.start, former.end))]
        for both in shared:
            if former.run_id in out:
                yield from _before(both, former, made, out)
            else:
                yield one.base_version, both


def _in_force(one: Publication, version: int) -> bool:
    """Whether a publication had been made, and not been rolled back, at a version of the view."""
    return (one.delta_version or 0) <= version and (one.rollback_version is None or one.rollback_version > version)


def _common(one: Piece, other: Piece) -> Piece | None:
    start, end = max(one[0], other[0]), min(one[1], other[1])
    return (start, end) if start < end else None


def _without(piece: Piece, taken: Piece) -> list[Piece]:
    start, end = piece
    left, right = (start, min(end, taken[0])), (max(start, taken[1]), end)
    return [(a, b) for a, b in (left, right) if a < b]


def _runs_in(lake: Lake, version: int, piece: Piece) -> set[str]:
    import pyarrow.compute as pc

    found: set[str] = set()
    for batch in lake.dataset(_VIEW, version=version).to_batches(columns=["run_id"], filter=_within(piece)):
        found.update(pc.unique(batch.column(0)).to_pylist())
    return found


def _within(piece: Piece, runs: Sequence[str] | None = None) -> ds.Expression:
    import pyarrow.compute as pc

    moment = pc.field(EVENT_TIMESTAMP)
    inside = (moment >= piece[0]) & (moment < piece[1])
    return inside if runs is None else inside & pc.field("run_id").isin(list(runs))
