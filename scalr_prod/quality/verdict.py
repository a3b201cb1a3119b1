# SPDX-License-Identifier: Apache-2.0
"""Verdict of the checks of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import QualityGateFailed
from scalr_prod.quality.gate_report import DESCRIPTION_KEY, format_value

if TYPE_CHECKING:
    from collections.abc import Sequence


Outcome = Literal["passed", "failed", "warning", "skipped"]


@dataclass(frozen=True)
class RuleResult(Jsonable):
    """Result of one expectation of a suite.

    Attributes:
        rule: Its name.
        description: The requirement, in a sentence.
        outcome: ``failed`` rejects the data set; ``warning`` is a failure of lower severity; ``skipped``: a column is missing.
        checked: Number of rows checked.
        failed: Number of rows that break it, or None if it is about the whole data set.
        observed: The observed value, if it is about the whole data set.
        examples: The first values or rows that break it, as text.
        reason: Why it could not be computed, or was skipped.
    """

    rule: str
    description: str
    outcome: Outcome
    checked: int = 0
    failed: int | None = None
    observed: Any = None
    examples: Sequence[str] = ()
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; the description's key is `DESCRIPTION_KEY`."""
        return {DESCRIPTION_KEY if key == "description" else key: value for key, value in super().to_json().items()}

    def __str__(self) -> str:
        if self.reason or self.failed is not None:
            found = self.reason or f"{self.failed} of {self.checked} rows break it"
        else:  # for a query: the number of rows found, and the first one, which shows a share that is out of bounds
            found = ": ".join((f"found {format_value(self.observed)}", *self.examples[:1]))
        return f"{self.rule} ({self.description}): {found}"


@dataclass(frozen=True)
class Verdict(Jsonable):
    """Whether a data set may be trained on.

    Attributes:
        dataset: The data set, as the caller named it.
        kind: ``parquet``, ``delta``, ``feast`` or ``training set``.
        location: Path or URL of its rows.
        suite: The suite's name.
        suite_file: The suite's file, or ``built in``.
        passed: No expectation of severity ``critical`` failed.
        rows: Number of rows.
        columns: Names of its columns.
        rules: One result per expectation.
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

    def to_summary(self) -> dict[str, Any]:
        """Summarize the verdict; failures come last."""
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
        """Return the verdict if it passed.

        Raises:
            QualityGateFailed: It failed; the error names the failures and the data docs.
        """
        if not self.passed:
            failed = [rule for rule in self.rules if rule.outcome == "failed"]
            raise QualityGateFailed(
                f"{self.dataset} failed the suite {self.suite}: {'; '.join(map(str, failed))}",
                where=self.docs,
                next_step=f"read the report, then correct the data set, or the suite {self.suite_file}",
            )
        return self
