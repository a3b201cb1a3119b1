# SPDX-License-Identifier: Apache-2.0
"""Row verdicts: one boolean column per rule, computed out of core in DuckDB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from scalr_prod.quality.rule_set import unusable_rule_error
from scalr_prod.workspace import escape_glob

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from scalr_prod.quality.rule_protocol import RowRule


_EXAMPLES: Final = 3


class RowVerdicts:
    """The view ``judged`` of a connection: the rows' own columns, one boolean per rule, and ``accepted``.

    Attributes:
        files: Its Parquet files in order, escaped for DuckDB.
    """

    def __init__(self, connection: Any, rules: Sequence[RowRule], shown: Sequence[str], files: Sequence[str]) -> None:
        self.connection = connection
        self.rules = rules
        self.files = files
        self._shown = shown

    def counts(self) -> tuple[int, int]:
        """Count all rows, and those that pass every rule."""
        rows, good = self.fetch_row("SELECT count(*), count(*) FILTER (accepted) FROM judged")
        return int(rows), int(good)

    def examples(self, rule: RowRule) -> list[dict[str, Any]]:
        """Return the first rows that break a rule."""
        shown = ", ".join(self._shown)
        query = f"SELECT {shown} FROM judged WHERE NOT {rule.name} ORDER BY {shown} LIMIT {_EXAMPLES}"
        rows = self.connection.sql(query).to_arrow_table().to_pylist()
        return [{key: value if isinstance(value, int) else str(value) for key, value in row.items()} for row in rows]

    def fetch_row(self, query: str) -> tuple[Any, ...]:
        """Return the only row of a query."""
        row: tuple[Any, ...] = self.connection.execute(query).fetchall()[0]
        return row


def evaluate_rules(
    connection: Any,
    select: str,
    rules: Sequence[RowRule],
    *,
    columns: Sequence[str],
    shown: Sequence[str],
    paths: Iterable[Path],
) -> RowVerdicts:
    """Apply every rule to every row of a query, once per output file, and store the verdicts on disk.

    Args:
        connection: DuckDB.
        select: The query, with ``{columns}`` in place of its select list.
        rules: Rules over the columns of the query.
        columns: Expressions of the rows' own columns to keep.
        shown: Columns that identify a row in examples.
        paths: One or more Parquet files to write. The query runs again for each path taken from the iterable, which may prepare its tables.

    Raises:
        QualityError: A rule's expression cannot be computed; the error names the rule.
    """
    import duckdb

    verdicts = [f"coalesce({rule.holds}, false) AS {rule.name}" for rule in rules]
    judged = select.format(columns=", ".join([*columns, *verdicts]))
    all_of = " AND ".join(rule.name for rule in rules)
    written: list[str] = []
    for path in paths:
        quoted = str(path).replace("'", "''")
        try:
            connection.execute(f"COPY (SELECT *, {all_of} AS accepted FROM ({judged})) TO '{quoted}' (FORMAT parquet)")
        except duckdb.Error as error:
            _raise_for_rule(connection, select, rules, error)
            raise
        written.append(escape_glob(path))
    connection.read_parquet(written).create_view("judged")
    return RowVerdicts(connection, rules, shown, written)


def _raise_for_rule(connection: Any, select: str, rules: Sequence[RowRule], error: Exception) -> None:
    """Compute each rule alone, and raise a `QualityError` for the first that fails."""
    import duckdb

    for rule in rules:
        alone = select.format(columns=f"coalesce({rule.holds}, false) AS held")
        try:
            connection.execute(f"SELECT count(*) FILTER (held) FROM ({alone})").fetchall()
        except duckdb.Error as cause:
            raise unusable_rule_error(rule.name, f"its condition cannot be computed: {cause}") from error
