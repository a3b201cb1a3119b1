# SPDX-License-Identifier: Apache-2.0
"""What the checks of a data set came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from scalr_prod.errors import QualityGateFailed
from scalr_prod.jsonable import Jsonable
from scalr_prod.quality.report import short

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Outcome", "RuleResult", "Verdict"]

Outcome = Literal["passed", "failed", "warning", "skipped"]


@dataclass(frozen=True)
class RuleResult:
    """What one expectation of a suite came to.

    Attributes:
        rule: Its name.
        says: What it asks for.
        outcome: ``failed`` refuses the data set; ``warning`` is a failure of a lesser severity; ``skipped`` for want of a column.
        checked: Rows looked at.
        failed: Rows that break it; None: it is about the data set as a whole.
        observed: What was found, where it is about the whole.
        examples: The first values or rows that break it, as text.
        reason: Why it could not be computed, or was skipped.
    """

    rule: str
    says: str
    outcome: Outcome
    checked: int = 0
    failed: int | None = None
    observed: Any = None
    examples: Sequence[str] = ()
    reason: str | None = None

    def __str__(self) -> str:
        if self.reason or self.failed is not None:
            found = self.reason or f"{self.failed} of {self.checked} rows break it"
        else:  # of a query, the number of rows that it finds, and the first one: a share out of bounds stands in it
            found = ": ".join((f"found {short(self.observed)}", *self.examples[:1]))
        return f"{self.rule} ({self.says}): {found}"


@dataclass(frozen=True)
class Verdict(Jsonable):
    """Whether a data set may be trained on.

    Attributes:
        dataset: As it was asked for.
        kind: ``parquet``, ``delta``, ``feast`` or ``training set``.
        location: Where its rows lie.
        suite: The suite's name.
        suite_file: Where it was read from.
        passed: No expectation of severity ``critical`` failed.
        rows: N, of the data set.
        columns: Names of its columns.
        rules: One result for each expectation.
        docs: Index of the data docs.
    """

    dataset: str
    kind: str
    location: str
    suite: str
    suite_file: str
    passed: bool
    rows: int
    columns: Sequence[str]
    rules: Sequence[RuleResult]
    docs: str

    def for_people(self) -> dict[str, Any]:
        """The same in brief: what failed comes last."""
        shown = [rule for rule in self.rules if rule.outcome != "passed"]
        order = ("skipped", "warning", "failed")
        facts: dict[str, Any] = {
            "dataset": f"{self.dataset} ({self.kind}, {self.rows} rows)",
            "suite": f"{self.suite} ({self.suite_file})",
            "passed": f"{sum(rule.outcome == 'passed' for rule in self.rules)} of {len(self.rules)} rules",
            "docs": self.docs,
        }
        if shown:
            lines = sorted(shown, key=lambda rule: order.index(rule.outcome))
            facts["not passed"] = [{"outcome": rule.outcome, "rule": str(rule)} for rule in lines]
        return facts | {"verdict": "passed" if self.passed else "REFUSED"}

    def require(self) -> Self:
        """The same, if it passed.

        Raises:
            QualityGateFailed: It did not; names what failed, and the data docs.
        """
        if not self.passed:
            failed = [rule for rule in self.rules if rule.outcome == "failed"]
            raise QualityGateFailed(
                f"{self.dataset} is refused by the suite {self.suite}: {'; '.join(map(str, failed))}",
                where=self.docs,
                next_step=f"read the report, then correct the data set, or the suite {self.suite_file}",
            )
        return self
