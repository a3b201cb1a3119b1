# SPDX-License-Identifier: Apache-2.0
"""What a gate rule is to the gate: a version, and the rules that it puts to a run.

A gate rule of your own is a class with these two; name it in ``[quality] rules``. See docs/plugins.md for a whole one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.ledger import ModelVersion, RunSpec
    from scalr_prod.sections import QualitySettings

__all__ = ["AuditedRun", "FigureRule", "GateRule", "RowRule"]


@dataclass(frozen=True)
class RowRule:
    """A condition that every row must meet.

    Attributes:
        name: Names the rule in reports, and its column in the judged rows: lower-case letters, digits and ``_``.
        says: What it asks for, in a sentence.
        holds: DuckDB expression over a row; null counts as broken. In a run it sees the candidate ``c``, its source event ``s``
            (``found``), its item ``i`` (``found``, ``first_seen``) and the user's own consumption of the item ``u``
            (``first_consumed``), all as known by the run's ``as_of``; and the views ``source_events``, ``target_events`` and
            ``target_items``.
    """

    name: str
    says: str
    holds: str


@dataclass(frozen=True)
class FigureRule:
    """A bound on one figure of a run as a whole: ``low <= figure <= high`` where given; a null figure breaks it.

    Attributes:
        name: Names the rule in reports.
        says: What it asks for, in a sentence.
        figure: Name of the figure, among those of the gate's report.
        low: The least it may be.
        high: The most it may be.
        query: DuckDB query that gives a figure of your own, one number, from the views ``judged`` (the candidates with ``accepted`` and a
            column for each row rule), ``source_events``, ``target_events`` and ``target_items``. None: the gate measures it already.
    """

    name: str
    says: str
    figure: str
    low: float | None = None
    high: float | None = None
    query: str | None = None


@dataclass(frozen=True)
class AuditedRun:
    """What rules may depend on.

    Attributes:
        spec: The run.
        quality: ``[quality]``.
        sources: Names of the source domains.
        exclude_consumed: Whether the run was asked to leave out what a user had.
        events_per_source_event: The most that it was asked for.
        translator: What the ledger recorded when its translator was trained; None where it has no record.
        reference: Id of the run published before that the figures ``drift_…`` compare it with; None: there are no such figures.
    """

    spec: RunSpec
    quality: QualitySettings
    sources: tuple[str, ...]
    exclude_consumed: bool
    events_per_source_event: int
    translator: ModelVersion | None
    reference: str | None = None


class GateRule(Protocol):
    """One or several rules that belong together; made without arguments."""

    #: Raise it when a rule or a figure comes to something else: runs that were judged by another version are judged again.
    version: int

    def rules(self, run: AuditedRun) -> Sequence[RowRule | FigureRule]:
        """The rules for a run, under names that no other gate rule gives.

        Args:
            run: Its window, mode, tables and settings.

        Returns:
            Conditions on rows, and bounds of figures.
        """
