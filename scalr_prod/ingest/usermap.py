# SPDX-License-Identifier: Apache-2.0
"""The map that ``[users]`` names: pairs of a source id and a target id, read and checked."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import pyarrow as pa

from scalr_prod.errors import BadValue, ColumnNotFound, EmptyInput
from scalr_prod.ingest.cells import Ids, column_of
from scalr_prod.ingest.columns import Wanted
from scalr_prod.ingest.readers import read_path
from scalr_prod.ingest.rows import SQL_TYPES, count_of
from scalr_prod.ingest.sql import read_query

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scalr_prod.contracts import Domain, IdType
    from scalr_prod.ingest.protocol import Batch
    from scalr_prod.settings import Settings

__all__ = ["OWN", "PAIRS", "UserMap"]

#: What the lake's ids of source users begin with who are in no pair of the map: theirs may be the ids of others in the target log.
OWN: Final = "source:"
#: The DuckDB table of the pairs: ``source`` and ``target``, as text.
PAIRS: Final = "user_map"
_EXAMPLES: Final = 3
_SOURCE_NAMES: Final = ("source", "source_id", "source_user", "source_user_id", "from")
_TARGET_NAMES: Final = ("target", "target_id", "target_user", "target_user_id", "to")


@dataclass
class UserMap:
    """The map, read and not yet checked.

    Attributes:
        origin: Where it came from, for errors.
        source: What was learned of the source ids.
        target: Likewise of the target ids.
        pairs: Two columns of ids, ``source`` and ``target``, batch by batch.
    """

    origin: str
    source: Ids = field(default_factory=Ids)
    target: Ids = field(default_factory=Ids)
    pairs: list[pa.Table] = field(default_factory=list)

    @classmethod
    def read(cls, settings: Settings, *, whole: bool = True) -> Self | None:
        """The map that the settings name; None where they name none.

        Args:
            settings: The project's settings.
            whole: Read all of it; False: end with its first pairs.

        Raises:
            UnreadableInput: It is not there, or cannot be read.
            ColumnNotFound: It lacks a column, or it cannot be told which column is which.
            BadValue: A cell is no id.
            EmptyInput: It has no pair.
        """
        chosen = settings.users
        if not chosen.given:
            return None
        named = chosen.columns.source, chosen.columns.target
        wanted = Wanted(tuple(filter(None, named)), "users.columns", whole=not all(named), location="[users] map")
        if chosen.sql is not None:
            batches, origin = read_query(*chosen.sql, wanted), "the query of [users]"
        else:
            origin = chosen.map or ""
            batches = read_path(settings, origin, wanted, format=chosen.format, storage_options=chosen.storage_options)
        found = cls(origin)
        with closing(batches):
            for batch in batches:
                found._add(batch, *_columns(settings, batch.rows.schema.names, origin))
                if not whole and batch.rows.num_rows:
                    break
        if not any(len(one) for one in found.pairs):
            raise EmptyInput("holds no pair of ids", where=origin, next_step="check what [users] names")
        return found

    def _add(self, batch: Batch, source: str, target: str) -> None:
        ids = [
            reader.read(*column_of(batch, name), untyped=batch.untyped)
            for reader, name in ((self.source, source), (self.target, target))
        ]
        self.pairs.append(pa.table([one.cast(pa.string()) for one in ids], names=["source", "target"]))

    def load(self, db: Any, source: IdType, target: IdType) -> tuple[int, int]:
        """Make the table of pairs, of text; gives how many there are, and how many rows lack an id.

        Args:
            db: DuckDB connection.
            source: Type of the source ids, in which those of the map and of the logs are equal.
            target: Likewise of the target ids.

        Raises:
            BadValue: A source id has several target ids; says how many have, and names some.
        """
        db.register("read_pairs", pa.concat_tables(self.pairs))
        text = ", ".join(
            f"CAST(CAST({name} AS {SQL_TYPES[kind]}) AS VARCHAR) AS {name}"
            for name, kind in (("source", source), ("target", target))
        )
        db.execute(
            f"CREATE TEMP TABLE {PAIRS} AS SELECT DISTINCT {text} FROM read_pairs WHERE source IS NOT NULL AND target IS NOT NULL"
        )
        without = count_of(db, "FROM read_pairs WHERE source IS NULL OR target IS NULL")
        db.unregister("read_pairs")
        self._refuse_ambiguous(db)
        return count_of(db, f"FROM {PAIRS}"), without

    def _refuse_ambiguous(self, db: Any) -> None:
        db.execute(
            f"CREATE TEMP TABLE ambiguous AS SELECT source, list_sort(list(target)) AS targets "
            f"FROM {PAIRS} GROUP BY source HAVING count(*) > 1"
        )
        users, both = db.sql(
            "SELECT count(*), count(*) FILTER (EXISTS (SELECT 1 FROM (SELECT unnest(targets) AS target) AS own JOIN "
            f"(SELECT target FROM {PAIRS} GROUP BY target HAVING count(*) > 1) AS shared USING (target))) FROM ambiguous"
        ).fetchall()[0]
        if not users:
            return
        examples = db.sql(f"SELECT source, targets FROM ambiguous ORDER BY source LIMIT {_EXAMPLES}").fetchall()
        said = "; ".join(f"{source!r} is {', '.join(map(repr, targets[:_EXAMPLES]))}" for source, targets in examples)
        shared = f", {both} of them with target ids that stand for several source ids" if both else ""
        raise BadValue(
            f"{users} source ids have several target ids{shared}: {said}",
            where=self.origin,
            next_step="give each source id one target id; several source ids may have the same one",
        )

    def same_people(self, users: Iterable[int | str]) -> list[str]:
        """Ids by which the lake may hold some users, beside those given: ``source:<id>`` of what maps to one, and what such maps to.

        Args:
            users: Ids as the lake has them.
        """
        asked = {str(user) for user in users}
        found: list[str] = []
        for table in self.pairs:
            for pair in table.to_pylist():
                if pair["source"] is None or pair["target"] is None:
                    continue
                source, target = (
                    text.removesuffix(".0") if ids.floats else text
                    for text, ids in ((pair["source"], self.source), (pair["target"], self.target))
                )
                if target in asked:
                    found.append(f"{OWN}{source}")
                elif f"{OWN}{source}" in asked:
                    found.append(target)
        return [one for one in dict.fromkeys(found) if one not in asked]


def _columns(settings: Settings, there: Sequence[str], origin: str) -> tuple[str, str]:
    """The map's two columns: as the settings name them; else by their names; else, of two columns, the one that is left."""
    chosen = settings.users.columns
    source, target = (
        chosen.source or _named(there, _SOURCE_NAMES, settings, "source"),
        chosen.target or _named(there, _TARGET_NAMES, settings, "target"),
    )
    left = [name for name in there if name not in {source, target}]
    if len(left) == 1 and (source is None) != (target is None):
        source, target = source or left[0], target or left[0]
    if source is None or target is None or source == target:
        raise ColumnNotFound(
            f"it cannot be told which column holds the source's ids, and which the target's; there are: {', '.join(there)}",
            where=origin,
            next_step='name them: columns = { source = "…", target = "…" } under [users] in scalr.toml',
        )
    return source, target


def _named(there: Sequence[str], names: Sequence[str], settings: Settings, domain: Domain) -> str | None:
    """The only column that is called like a domain's ids."""
    domains = [settings.domains[place] for place in settings.domains.places(domain)]
    called = {*names, *(one.columns.user for one in domains)}
    for one in domains:
        called |= {one.name, f"{one.name}_id", f"{one.name}_user", f"{one.name}_user_id"}
    plain = {name.lower() for name in called}
    fitting = [name for name in there if name.lower() in plain]
    return fitting[0] if len(fitting) == 1 else None
