# SPDX-License-Identifier: Apache-2.0
"""Row verdicts: one boolean column per rule, computed out of core in DuckDB."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.quality.rule_set import unusable_rule_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scalr_prod.quality.rule_protocol import RowRule


_EXAMPLES: Final = 3


class RowVerdicts:
    """The view ``judged`` of a connection: the rows' own columns, one boolean per rule, and ``accepted``.

    Args:
        connection: DuckDB connection; the view is created in it.
        rules: The rules.
        shown: Columns that identify a row in examples.
        query: DuckDB query of the view, which reads files only.
    """

    def __init__(self, connection: Any, rules: Sequence[RowRule], shown: Sequence[str], query: str) -> None:
        self.connection = connection
        self.rules = rules
        self.query = query
        self._shown = shown
        connection.execute(f"CREATE OR REPLACE TEMP VIEW judged AS {query}")

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


def create_verdicts_table(connection: Any, name: str, select: str, rules: Sequence[RowRule], *, columns: Sequence[str]) -> None:
    """Apply every rule to every row of a query, and store the verdicts in a temporary table.

    Args:
        connection: DuckDB.
        name: Name of the table.
        select: The query, with ``{columns}`` in place of its select list.
        rules: Rules over the columns of the query.
        columns: Expressions of the rows' own columns to keep.

    Raises:
        QualityError: A rule's expression cannot be computed; the error names the rule.
    """
    with _naming_the_rule(connection, select, rules):
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {_verdicts_sql(select, rules, columns)}")


def _verdicts_sql(select: str, rules: Sequence[RowRule], columns: Sequence[str]) -> str:
    verdicts = [f"coalesce({rule.holds}, false) AS {rule.name}" for rule in rules]
    all_of = " AND ".join(rule.name for rule in rules)
    return f"SELECT *, {all_of} AS accepted FROM ({select.format(columns=', '.join([*columns, *verdicts]))})"


@contextmanager
def _naming_the_rule(connection: Any, select: str, rules: Sequence[RowRule]) -> Iterator[None]:
    """Raise a `QualityError` for the first rule that fails alone, if the block fails."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        _raise_for_rule(connection, select, rules, error)
        raise


def _raise_for_rule(connection: Any, select: str, rules: Sequence[RowRule], error: Exception) -> None:
    """Compute each rule alone, and raise a `QualityError` for the first that fails."""
    import duckdb

    for rule in rules:
        alone = select.format(columns=f"coalesce({rule.holds}, false) AS held")
        try:
            connection.execute(f"SELECT count(*) FILTER (held) FROM ({alone})").fetchall()
        except duckdb.Error as cause:
            raise unusable_rule_error(rule.name, f"its condition cannot be computed: {cause}") from error
