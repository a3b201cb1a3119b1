# SPDX-License-Identifier: Apache-2.0
"""Protocol of gate rules: a version, and the rules for a run.

A plug-in gate rule is a class with these two members, named in ``[quality] rules``. docs/guides/plugins.md has a complete example.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scalr_prod.config import QualitySettings
    from scalr_prod.ledger import ModelVersion, RunSpec


@dataclass(frozen=True)
class RowRule:
    """A condition that every row must meet.

    Attributes:
        name: Names the rule in reports, and its column in the judged rows: lower-case letters, digits and ``_``.
        description: The requirement, in a sentence.
        holds: DuckDB expression over a row; null counts as broken. In a run it can use the candidate ``c``, its source event ``s``
            (``found``), its item ``i`` (``found``, ``first_seen``) and the user's own consumption of the item ``u``
            (``first_consumed``), all as known by the run's ``as_of``, and the views ``source_events``, ``target_events`` and
            ``target_items``.
    """

    name: str
    description: str
    holds: str


@dataclass(frozen=True)
class FigureRule:
    """A bound on one figure of a whole run: ``low <= figure <= high``; a null figure breaks it.

    A rule on a share or distribution names its sample's size in ``sample``, so that small runs are not judged by chance.

    Attributes:
        name: Names the rule in reports.
        description: The requirement, in a sentence.
        figure: Name of the figure in the gate's report.
        low: Lower bound, inclusive; None: no bound.
        high: Upper bound, inclusive; None: no bound.
        sample: Name of the figure with the sample's size; None: the rule is always judged.
        min_sample: Smallest sample that is judged; a smaller one is reported as not judged, which does not reject the run.
        query: DuckDB query that returns a new figure, one number, from the views ``judged`` (the candidates with ``accepted`` and a
            column for each row rule), ``source_events``, ``target_events`` and ``target_items``. None: the gate already measures it.
    """

    name: str
    description: str
    figure: str
    low: float | None = None
    high: float | None = None
    sample: str | None = None
    min_sample: float = 0
    query: str | None = None

    def is_judged(self, figures: Mapping[str, Any]) -> bool:
        """Return whether the run's sample is large enough."""
        return self.sample is None or (figures[self.sample] or 0) >= self.min_sample


@dataclass(frozen=True)
class AuditedRun:
    """Facts of a run that rules may depend on.

    Attributes:
        spec: The run.
        quality: ``[quality]``.
        sources: Names of the source domains.
        exclude_consumed: Whether the run excludes items that a user has already consumed.
        events_per_source_event: The run's limit of events per source event.
        translator: The ledger's record of its translator's training; None if there is none.
        popularity_buckets: Number of popularity buckets that `bucket_distance` compares.
        reference: Id of the previously published run that the figures ``drift_…`` compare with, or None if there are no such figures.
    """

    spec: RunSpec
    quality: QualitySettings
    sources: tuple[str, ...]
    exclude_consumed: bool
    events_per_source_event: int
    translator: ModelVersion | None
    popularity_buckets: int = 10
    reference: str | None = None


class GateRule(Protocol):
    """One or more related rules; instantiated without arguments."""

    #: Increase it when a rule or figure changes: runs judged by another version are judged again.
    version: int

    def rules(self, run: AuditedRun) -> Sequence[RowRule | FigureRule]:
        """Return the rules for a run, under names that no other gate rule uses.

        Args:
            run: The run, with its window, mode, tables and settings.

        Returns:
            Conditions on rows, and bounds on figures.
        """
