# SPDX-License-Identifier: Apache-2.0
"""Rows with one boolean column per rule, computed in DuckDB, out of core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from scalr_prod.duck import exact
from scalr_prod.quality.rule_set import unusable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import pandas as pd

    from scalr_prod.quality.protocol import RowRule

__all__ = ["Judged", "judge"]

#: Rows of the frame that is given to Great Expectations at once, which takes six times one byte a rule and row.
SLICE_ROWS: Final = 500_000
_EXAMPLES: Final = 3


class Judged:
    """The view ``judged`` of a connection: the rows' own columns, one boolean per rule, and ``accepted``.

    Attributes:
        files: Its Parquet files in their order, as DuckDB is to be given them.
    """

    def __init__(self, connection: Any, rules: Sequence[RowRule], shown: Sequence[str], files: Sequence[str]) -> None:
        self.connection = connection
        self.rules = rules
        self.files = files
        self._shown = shown

    def counts(self) -> tuple[int, int]:
        """Rows in all, and those that keep every rule."""
        rows, good = self.row("SELECT count(*), count(*) FILTER (accepted) FROM judged")
        return int(rows), int(good)

    def frames(self) -> Iterator[pd.DataFrame]:
        """Slices of at most `SLICE_ROWS` rows: boolean columns, True where the rule is kept; one empty slice for no row."""
        import pyarrow as pa

        columns = ", ".join(rule.name for rule in self.rules)
        reader = self.connection.sql(f"SELECT {columns} FROM judged").to_arrow_reader(SLICE_ROWS)
        waiting: list[pa.RecordBatch] = []
        empty = True
        for batch in reader:
            waiting.append(batch)
            if sum(kept.num_rows for kept in waiting) >= SLICE_ROWS:
                yield pa.Table.from_batches(waiting).to_pandas()
                waiting, empty = [], False
        if empty or waiting:
            yield pa.Table.from_batches(waiting, reader.schema).to_pandas()

    def examples(self, rule: RowRule) -> list[dict[str, Any]]:
        """The first rows that break a rule."""
        shown = ", ".join(self._shown)
        query = f"SELECT {shown} FROM judged WHERE NOT {rule.name} ORDER BY {shown} LIMIT {_EXAMPLES}"
        rows = self.connection.sql(query).to_arrow_table().to_pylist()
        return [{key: value if isinstance(value, int) else str(value) for key, value in row.items()} for row in rows]

    def row(self, query: str) -> tuple[Any, ...]:
        """The only row of a query."""
        row: tuple[Any, ...] = self.connection.execute(query).fetchall()[0]
        return row


def judge(
    connection: Any,
    select: str,
    rules: Sequence[RowRule],
    *,
    columns: Sequence[str],
    shown: Sequence[str],
    paths: Iterable[Path],
) -> Judged:
    """Apply every rule to every row of a query, once, or of one query after the other; the result is kept on disk.

    Args:
        connection: DuckDB.
        select: ``WITH … FROM …``, up to and from the select list: holds ``{columns}`` where that goes.
        rules: Their expressions see what the query joins.
        columns: Expressions of the rows' own columns to keep.
        shown: Columns that identify a row in examples.
        paths: Parquet files to write, one or more; what the query gives once each has been taken goes there.

    Raises:
        QualityError: A rule's expression cannot be computed; names the rule.
    """
    import duckdb

    held = [f"coalesce({rule.holds}, false) AS {rule.name}" for rule in rules]
    judged = select.format(columns=", ".join([*columns, *held]))
    all_of = " AND ".join(rule.name for rule in rules)
    written: list[str] = []
    for path in paths:
        quoted = str(path).replace("'", "''")
        try:
            connection.execute(f"COPY (SELECT *, {all_of} AS accepted FROM ({judged})) TO '{quoted}' (FORMAT parquet)")
        except duckdb.Error as error:
            _name_the_rule(connection, select, rules, error)
            raise
        written.append(exact(path))
    connection.read_parquet(written).create_view("judged")
    return Judged(connection, rules, shown, written)


def _name_the_rule(connection: Any, select: str, rules: Sequence[RowRule], error: Exception) -> None:
    """Compute each rule alone, and raise a `QualityError` for the first that fails by itself."""
    import duckdb

    for rule in rules:
        alone = select.format(columns=f"coalesce({rule.holds}, false) AS held")
        try:
            connection.execute(f"SELECT count(*) FILTER (held) FROM ({alone})").fetchall()
        except duckdb.Error as own:
            raise unusable(rule.name, f"its condition cannot be computed: {own}") from error
