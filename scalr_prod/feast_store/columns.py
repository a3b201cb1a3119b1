# SPDX-License-Identifier: Apache-2.0
"""The columns of a source's table, by the names that Feast uses for them, and which of its clocks is the knowledge time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scalr_prod.errors import FeatureStoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from feast.data_source import DataSource

__all__ = ["KNOWLEDGE_TIME", "SourceColumns", "limited_by_creation", "source_columns"]

#: Tag of a feature view or a source. ``created`` (the default): a row is known from its creation time on. ``event``: the creation
#: time says when the row was loaded; the row is known from its event time on, and the creation time only breaks ties.
KNOWLEDGE_TIME = "knowledge_time"
_CHOICES = ("created", "event")


@dataclass(frozen=True)
class SourceColumns:
    """Names in Feast → columns of the table.

    Attributes:
        column_of: Renamed columns by their names in Feast: the source's ``field_mapping``, reversed.
        event: Column of the event time.
        created: Column of the creation time, if there is one.
    """

    column_of: Mapping[str, str]
    event: str
    created: str | None

    @property
    def clocks(self) -> list[str]:
        """The columns of both times, or of the event's where there is one alone."""
        return [self.event, *([self.created] if self.created else [])]

    def of(self, name: str) -> str:
        """The column that Feast calls ``name``."""
        return self.column_of.get(name, name)

    def in_table(self, rows: pa.Table) -> pa.Table:
        """Rows under the table's own names; Feast hands rows over under its names."""
        return rows.rename_columns([self.of(name) for name in rows.column_names])


def source_columns(source: DataSource) -> SourceColumns:
    """The columns of a source.

    Feast names the two timestamps as it names features: by the mapped name where ``field_mapping`` renames the column. A name
    that nothing is mapped to is the column itself.
    """
    column_of = {new: old for old, new in (source.field_mapping or {}).items()}
    created = source.created_timestamp_column or None
    return SourceColumns(
        column_of=column_of,
        event=column_of.get(source.timestamp_field, source.timestamp_field),
        created=column_of.get(created, created) if created else None,
    )


def limited_by_creation(where: str, *tags: Mapping[str, str] | None) -> bool:
    """Whether a row counts only from its creation time on; of several sets of tags the first that says so decides.

    Args:
        where: Name of the view or the source, for the error.
        tags: Tags, the most specific first.

    Raises:
        FeatureStoreError: The tag has another value than ``created`` or ``event``.
    """
    chosen = next((found[KNOWLEDGE_TIME] for found in tags if found and KNOWLEDGE_TIME in found), "created")
    if chosen not in _CHOICES:
        raise FeatureStoreError(
            f"the tag {KNOWLEDGE_TIME} is {chosen!r}; it is one of: {', '.join(_CHOICES)}",
            where=where,
            next_step="correct the tag in the feature view's definition, then run: feast apply",
        )
    return chosen == "created"
