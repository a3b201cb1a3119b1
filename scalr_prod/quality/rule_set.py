# SPDX-License-Identifier: Apache-2.0
"""The rule set of a run: built-in gate rules, and those named in the settings."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import QualityError
from scalr_prod.plugins import RULES, source_digest
from scalr_prod.quality.rule_protocol import FigureRule, GateRule, RowRule

if TYPE_CHECKING:
    from collections.abc import Collection

    from scalr_prod.config import QualitySettings
    from scalr_prod.quality.rule_protocol import AuditedRun


_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")


class RuleSet:
    """Gate rules by name, built-in rules first.

    Args:
        quality: ``[quality]``; its ``rules`` are added to the built-in ones.

    Raises:
        QualityError: A rule cannot be loaded, or is not a `GateRule`.
    """

    def __init__(self, quality: QualitySettings) -> None:
        self._found: dict[str, Any] = {}
        for name in (*RULES.builtin, *quality.rules):
            found = RULES.load(name, GateRule)
            self._found[name] = found() if isinstance(found, type) else found

    def versions(self) -> dict[str, str]:
        """Return gate rule → version; a plug-in's version includes a digest of its module, which may change without a new number."""
        return {
            name: str(rule.version) if name in RULES.builtin else f"{rule.version}+{source_digest(rule)[:12]}"
            for name, rule in self._found.items()
        }

    def rules(self, run: AuditedRun, reserved_names: Collection[str]) -> tuple[list[RowRule], list[FigureRule]]:
        """Return all row rules and figure rules for a run.

        Args:
            run: The run.
            reserved_names: Names that no rule may use: the columns of the judged rows.

        Raises:
            QualityError: A plug-in gate rule failed, or returned a rule whose name is taken or is not a valid column.
        """
        found: dict[str, RowRule | FigureRule] = {}
        keywords = _keywords()
        for name in self._found:
            for rule in self._of(name, run):
                problem = None
                if not isinstance(rule, RowRule | FigureRule):
                    problem = f"it gave a {type(rule).__name__} instead of a RowRule or a FigureRule"
                elif rule.name in found or rule.name in reserved_names:
                    problem = f"it gave a rule under the name {rule.name!r}, which is taken"
                elif not _NAME.fullmatch(rule.name):
                    problem = (
                        f"it gave a rule under the name {rule.name!r}: only lower-case letters, digits and _ can be a column"
                    )
                elif isinstance(rule, RowRule) and rule.name in keywords:
                    problem = (
                        f"it gave a rule under the name {rule.name!r}, a keyword of SQL, which cannot be a column: rename it"
                    )
                if problem is not None:
                    raise unusable_rule_error(name, problem)
                found[rule.name] = rule
        rows = [rule for rule in found.values() if isinstance(rule, RowRule)]
        return rows, [rule for rule in found.values() if isinstance(rule, FigureRule)]

    def _of(self, name: str, run: AuditedRun) -> list[Any]:
        try:
            return list(self._found[name].rules(run))
        except Exception as error:  # plug-in code may raise anything
            if name in RULES.builtin:
                raise
            raise unusable_rule_error(name, f"it failed: {type(error).__name__}: {error}") from error


@functools.cache
def _keywords() -> frozenset[str]:
    """Return the words that DuckDB does not read as a column."""
    import duckdb

    with duckdb.connect() as connection:
        words = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category IN ('reserved', 'type_function')"
        return frozenset(word for (word,) in connection.execute(words).fetchall())


def unusable_rule_error(name: str, problem: str) -> QualityError:
    """Return the error for a rule that cannot be computed."""
    return QualityError(
        f"the gate rule {name}: {problem}", where=RULES.setting, next_step="correct the rule: see scalr_prod.quality.GateRule"
    )
