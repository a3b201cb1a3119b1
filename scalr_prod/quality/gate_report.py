# SPDX-License-Identifier: Apache-2.0
"""The gate's report, stored as gate.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from scalr_prod.core.jsonable import Jsonable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


#: Key of a rule's description in JSON, also in the files of earlier versions.
DESCRIPTION_KEY: Final = "says"


@dataclass(frozen=True)
class RuleOutcome(Jsonable):
    """Outcome of one expectation.

    Attributes:
        rule: Its name.
        description: The requirement, in a sentence.
        scope: ``schema``, ``row`` or ``run``.
        success: Whether it held throughout, or None if it was not judged, since the sample is too small.
        checked: Number of rows (or figures) checked.
        failed: Number of them that broke it.
        observed: The value, for figures.
        examples: The first rows that broke it, for row rules.
        reason: Why it was not judged.
    """

    rule: str
    description: str
    scope: Literal["schema", "row", "run"]
    success: bool | None
    checked: int
    failed: int
    observed: Any = None
    examples: Sequence[Mapping[str, Any]] = ()
    reason: str | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read the output of `to_json`."""
        return cls(**{"description" if key == DESCRIPTION_KEY else key: value for key, value in content.items()})

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; the description's key is `DESCRIPTION_KEY`."""
        return {DESCRIPTION_KEY if key == "description" else key: value for key, value in super().to_json().items()}


@dataclass(frozen=True)
class GateReport(Jsonable):
    """The gate's verdict.

    Attributes:
        subject: The run's id, or the training set's folder.
        passed: Whether the accepted rows may be published or used.
        policy: ``strict`` or ``quarantine``.
        rows: Rows checked.
        accepted: Rows that passed.
        quarantined: Rows set aside.
        rules: Every expectation's outcome.
        figures: Figures of the whole.
        files: The accepted files, each with ``path`` (relative to the run's folder), ``rows`` and ``sha256``.
        docs: Index of the data docs.
        rule_set: Gate rule → its version; empty for a training set, and for a run that an old version of the package judged.
        repeated: Whether this is a stored verdict, because nothing has changed since.
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
        return [rule for rule in self.rules if rule.success is False]

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, repeated: bool = False) -> Self:
        """Read the output of `to_json`."""
        rules = [RuleOutcome.from_json(rule) for rule in content["rules"]]
        return cls(**{**content, "rules": rules, "repeated": repeated})


def describe_failures(report: GateReport) -> str:
    """Describe each failed expectation with its result in one sentence."""
    return "; ".join(
        f"{rule.rule} ({rule.description}): "
        + (f"found {format_value(rule.observed)}" if rule.scope == "run" else f"{rule.failed} of {rule.checked} break it")
        for rule in report.failures
    )


def format_value(value: object) -> str:
    """Format a float with six digits, and any other value with ``str``."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
