# SPDX-License-Identifier: Apache-2.0
"""Id mapping of ``[users] map``: pairs of a source id and a target id, read and validated."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import pyarrow as pa

from scalr_prod.errors import BadValue, ColumnNotFound, EmptyInput
from scalr_prod.ingest.column_mapping import ColumnSelection
from scalr_prod.ingest.column_parsers import IdParser, select_column
from scalr_prod.ingest.rows import SQL_TYPES, count_rows
from scalr_prod.ingest.sources.readers import read_path
from scalr_prod.ingest.sources.sql import read_query

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from scalr_prod.config import Domains, Settings
    from scalr_prod.ingest.sources.protocol import Batch
    from scalr_prod.schemas import Domain, IdType


#: Prefix of the lake's ids of unmapped source users: without it they could collide with ids of other users in the target log.
UNMAPPED_PREFIX: Final = "source:"
#: The DuckDB table of the pairs: ``source`` and ``target``, as text.
MAPPING_TABLE: Final = "user_map"
_EXAMPLES: Final = 3
_SOURCE_NAMES: Final = ("source", "source_id", "source_user", "source_user_id", "from")
_TARGET_NAMES: Final = ("target", "target_id", "target_user", "target_user_id", "to")


@dataclass
class IdMapping:
    """Id mapping as read, before validation.

    Attributes:
        origin: Its origin, for errors.
        source_ids: Parser of the source ids, with their type.
        target_ids: Parser of the target ids, with their type.
        pairs: Two columns of ids, ``source`` and ``target``, batch by batch.
    """

    origin: str
    source_ids: IdParser = field(default_factory=IdParser)
    target_ids: IdParser = field(default_factory=IdParser)
    pairs: list[pa.Table] = field(default_factory=list)

    @classmethod
    def from_settings(cls, settings: Settings, *, read_all: bool = True) -> Self | None:
        """Read the mapping that the settings name; None if they name none.

        Args:
            settings: The project's settings.
            read_all: Read all of it; False: stop after the first pairs.

        Raises:
            UnreadableInput: It does not exist, or cannot be read.
            ColumnNotFound: It lacks a column, or its columns are ambiguous.
            BadValue: A cell is not an id.
            EmptyInput: It has no pair.
        """
        section = settings.users
        if not section.is_configured:
            return None
        named = section.columns.source, section.columns.target
        wanted = ColumnSelection(
            tuple(filter(None, named)), "users.columns", all_columns=not all(named), location="[users] map"
        )
        if section.sql_source is not None:
            batches, origin = read_query(*section.sql_source, wanted), "the query of [users]"
        else:
            origin = section.map or ""
            batches = read_path(settings, origin, wanted, format=section.format, storage_options=section.storage_options)
        mapping = cls(origin)
        with closing(batches):
            for batch in batches:
                mapping._add(batch, *_columns(settings, batch.rows.schema.names, origin))
                if not read_all and batch.rows.num_rows:
                    break
        if not any(len(pairs) for pairs in mapping.pairs):
            raise EmptyInput("has no pairs of ids", where=origin, next_step="check what [users] names")
        return mapping

    def _add(self, batch: Batch, source: str, target: str) -> None:
        ids = [
            reader.parse(*select_column(batch, name), untyped=batch.untyped)
            for reader, name in ((self.source_ids, source), (self.target_ids, target))
        ]
        self.pairs.append(pa.table([column.cast(pa.string()) for column in ids], names=["source", "target"]))

    def create_table(self, db: Any, source: IdType, target: IdType) -> tuple[int, int]:
        """Create the table of pairs, as text; return the number of pairs, and of rows that lack an id.

        Args:
            db: DuckDB connection.
            source: Common type of the source ids of mapping and logs.
            target: Common type of the target ids.

        Raises:
            BadValue: Source ids have several target ids; says how many, with examples.
        """
        db.register("read_pairs", pa.concat_tables(self.pairs))
        text = ", ".join(
            f"CAST(CAST({name} AS {SQL_TYPES[kind]}) AS VARCHAR) AS {name}"
            for name, kind in (("source", source), ("target", target))
        )
        db.execute(
            f"CREATE TEMP TABLE {MAPPING_TABLE} AS SELECT DISTINCT {text} FROM read_pairs WHERE source IS NOT NULL AND target IS NOT NULL"
        )
        without = count_rows(db, "FROM read_pairs WHERE source IS NULL OR target IS NULL")
        db.unregister("read_pairs")
        self._refuse_ambiguous(db)
        return count_rows(db, f"FROM {MAPPING_TABLE}"), without

    def _refuse_ambiguous(self, db: Any) -> None:
        db.execute(
            f"CREATE TEMP TABLE ambiguous AS SELECT source, list_sort(list(target)) AS targets "
            f"FROM {MAPPING_TABLE} GROUP BY source HAVING count(*) > 1"
        )
        users, both = db.sql(
            "SELECT count(*), count(*) FILTER (EXISTS (SELECT 1 FROM (SELECT unnest(targets) AS target) AS own JOIN "
            f"(SELECT target FROM {MAPPING_TABLE} GROUP BY target HAVING count(*) > 1) AS shared USING (target))) FROM ambiguous"
        ).fetchall()[0]
        if not users:
            return
        examples = db.sql(f"SELECT source, targets FROM ambiguous ORDER BY source LIMIT {_EXAMPLES}").fetchall()
        listed = "; ".join(f"{source!r} is {', '.join(map(repr, targets[:_EXAMPLES]))}" for source, targets in examples)
        shared = f", {both} of them with target ids that stand for several source ids" if both else ""
        raise BadValue(
            f"{users} source ids have several target ids{shared}: {listed}",
            where=self.origin,
            next_step="give each source id one target id; several source ids may have the same one",
        )

    def equivalent_ids(self, users: Iterable[int | str]) -> list[str]:
        """Return further ids of the same users in the lake: their targets, and ``source:<id>`` of what maps to these.

        Args:
            users: Ids as the lake has them.

        Raises:
            BadValue: One of their source ids has several target ids, so that it is not known who they are.
        """
        requested = {str(user) for user in users}
        targets = requested | {target for unmapped, target in self._iter_pairs() if unmapped in requested}
        # Several source ids may have one target id: from one of them, the others are two steps away.
        sources = dict.fromkeys(unmapped for unmapped, target in self._iter_pairs() if target in targets)
        for unmapped, target in self._iter_pairs():
            if unmapped in sources and target not in targets:
                raise BadValue(
                    f"the source id {unmapped.removeprefix(UNMAPPED_PREFIX)!r} has several target ids, such as {target!r}",
                    where=self.origin,
                    next_step="give each source id one target id; several source ids may have the same one",
                )
        return [user for user in dict.fromkeys([*targets, *sources]) if user not in requested]

    def _iter_pairs(self) -> Iterator[tuple[str, str]]:
        """Yield the pairs that have both ids: ``source:<id>``, and the target id."""
        for table in self.pairs:
            for pair in table.to_pylist():
                if pair["source"] is None or pair["target"] is None:
                    continue
                source, target = (
                    text.removesuffix(".0") if ids.all_integral_floats else text
                    for text, ids in ((pair["source"], self.source_ids), (pair["target"], self.target_ids))
                )
                yield f"{UNMAPPED_PREFIX}{source}", target


def _columns(settings: Settings, names: Sequence[str], origin: str) -> tuple[str, str]:
    """Return the mapping's source and target column: from the settings, else by name, else the one column that is left."""
    section = settings.users.columns
    source, target = (
        section.source or _find_column(names, _SOURCE_NAMES, settings.domains, "source"),
        section.target or _find_column(names, _TARGET_NAMES, settings.domains, "target"),
    )
    left = [name for name in names if name not in {source, target}]
    if len(left) == 1 and (source is None) != (target is None):
        source, target = source or left[0], target or left[0]
    if source is None or target is None or source == target:
        raise ColumnNotFound(
            f"cannot determine which column has the source's ids and which the target's; there are: {', '.join(names)}",
            where=origin,
            next_step='name them: columns = { source = "…", target = "…" } under [users] in scalr.toml',
        )
    return source, target


def _find_column(columns: Sequence[str], names: Sequence[str], domains: Domains, domain: Domain) -> str | None:
    """Return the only column whose name matches a domain's ids; None if there is none, or several."""
    sections = [domains[place] for place in domains.log_keys(domain)]
    known = {*names, *(section.columns.user for section in sections)}
    for section in sections:
        name = section.name
        known |= {name, f"{name}_id", f"{name}_user", f"{name}_user_id"}
    plain = {name.lower() for name in known}
    fitting = [name for name in columns if name.lower() in plain]
    return fitting[0] if len(fitting) == 1 else None
