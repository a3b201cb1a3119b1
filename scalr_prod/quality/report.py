# SPDX-License-Identifier: Apache-2.0
"""What the gate found, as a value and as gate.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from scalr_prod.jsonable import Jsonable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["GateReport", "RuleOutcome", "refusal", "short"]


@dataclass(frozen=True)
class RuleOutcome:
    """What one expectation came to.

    Attributes:
        rule: Its name.
        says: What it asks for, in a sentence.
        scope: ``schema``, ``row`` or ``run``.
        success: Whether all of it held.
        checked: Rows (or figures) looked at.
        failed: How many of them broke it.
        observed: For figures: what was found.
        examples: The first rows that broke it, for rows.
    """

    rule: str
    says: str
    scope: Literal["schema", "row", "run"]
    success: bool
    checked: int
    failed: int
    observed: Any = None
    examples: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class GateReport(Jsonable):
    """The gate's verdict.

    Attributes:
        subject: The run's id, or the training set's folder.
        passed: Whether what was accepted may be read by others.
        policy: ``strict`` or ``quarantine``.
        rows: Rows looked at.
        accepted: Rows that passed.
        quarantined: Rows put aside.
        rules: Every expectation's outcome.
        figures: What was measured of the whole.
        files: The accepted files, each with ``path`` (relative to the run's folder), ``rows`` and ``sha256``.
        docs: Index of the data docs.
        rule_set: Gate rule → its version; empty for a training set, and for a run that a former package judged.
        repeated: Whether this verdict was found rather than made: nothing had changed since.
    """

    subject: str
    passed: bool
    policy: str
    rows: int
    accepted: int
    quarantined: int
    rules: Sequence[RuleOutcome]
    figures: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[Mapping[str, Any]] = ()
    docs: str | None = None
    rule_set: Mapping[str, str] = field(default_factory=dict)
    repeated: bool = False

    @property
    def failures(self) -> list[RuleOutcome]:
        """The expectations that did not hold."""
        return [rule for rule in self.rules if not rule.success]

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, repeated: bool = False) -> Self:
        """The report that `to_json` gave."""
        rules = [RuleOutcome(**rule) for rule in content["rules"]]
        return cls(**{**content, "rules": rules, "repeated": repeated})


def refusal(report: GateReport) -> str:
    """The failed expectations in one sentence each, with what was found."""
    return "; ".join(
        f"{rule.rule} ({rule.says}): "
        + (f"found {short(rule.observed)}" if rule.scope == "run" else f"{rule.failed} of {rule.checked} break it")
        for rule in report.failures
    )


def short(value: object) -> str:
    """A figure with six digits, and anything else as it is."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
