# SPDX-License-Identifier: Apache-2.0
"""Mapping of Feast's names to table columns, and the choice of the knowledge time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from feast_delta.errors import DeltaStoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from feast.data_source import DataSource


#: ``event``: a row is known from its event time on, and its creation time only breaks ties, as in Feast's own stores. ``created``: a row is
#: known from its creation time on.
KnowledgeTime: TypeAlias = Literal["created", "event"]
#: Tag of a feature view or a source that sets its `KnowledgeTime`. The default is ``knowledge_time`` of ``offline_store``.
KNOWLEDGE_TIME = "knowledge_time"
_CHOICES = get_args(KnowledgeTime)


@dataclass(frozen=True)
class SourceColumns:
    """Columns of a source's table by their names in Feast.

    Attributes:
        mapped_columns: Name in Feast → column, for renamed columns: the source's ``field_mapping``, reversed.
        event: Column of the event time.
        created: Column of the creation time, or None.
    """

    mapped_columns: Mapping[str, str]
    event: str
    created: str | None

    @property
    def timestamp_columns(self) -> list[str]:
        """The event time column and, if there is one, the creation time column."""
        return [self.event, *([self.created] if self.created else [])]

    def column_name(self, name: str) -> str:
        """Return the column that Feast calls ``name``."""
        return self.mapped_columns.get(name, name)

    def rename_to_table(self, rows: pa.Table) -> pa.Table:
        """Rename Feast's columns to those of the table."""
        return rows.rename_columns([self.column_name(name) for name in rows.column_names])


def source_columns(source: DataSource) -> SourceColumns:
    """Return the columns of a source.

    Feast uses mapped names for the two timestamps too, if ``field_mapping`` renames them. A name without a mapping is the column
    itself.
    """
    column_of = {new: old for old, new in (source.field_mapping or {}).items()}
    created = source.created_timestamp_column or None
    return SourceColumns(
        mapped_columns=column_of,
        event=column_of.get(source.timestamp_field, source.timestamp_field),
        created=column_of.get(created, created) if created else None,
    )


def is_hidden_until_created(where: str, *tags: Mapping[str, str] | None, default: KnowledgeTime) -> bool:
    """Whether a row is visible only from its creation time on; the first set of tags that has the tag decides.

    Args:
        where: Name of the view or the source, for errors.
        tags: Tags, most specific first.
        default: Used if none has the tag.

    Raises:
        DeltaStoreError: The tag is neither ``created`` nor ``event``.
    """
    chosen = next((found[KNOWLEDGE_TIME] for found in tags if found and KNOWLEDGE_TIME in found), default)
    if chosen not in _CHOICES:
        raise DeltaStoreError(
            f"the tag {KNOWLEDGE_TIME} is {chosen!r}; it is one of: {', '.join(_CHOICES)}",
            where=where,
            next_step="correct the tag in the feature view's definition, then run: feast apply",
        )
    return chosen == "created"
