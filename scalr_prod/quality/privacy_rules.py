# SPDX-License-Identifier: Apache-2.0
"""Gate rules on what a run's rows reveal about users, see `scalr_prod.privacy`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import TranslatorNotFound
from scalr_prod.quality.rule_protocol import FigureRule, RowRule
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from scalr_prod.workspace import timestamp_literal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scalr_prod.config import Settings
    from scalr_prod.ledger import RunSpec
    from scalr_prod.quality.gate_report import GateReport
    from scalr_prod.quality.rule_protocol import AuditedRun


_MEMBERSHIP: Final = "membership_is_not_inferable"
_EVIDENCE: Final = "item_had_enough_users"
#: Smallest number of attacked users for the rule to apply. In smaller logs each user changes any translator measurably.
_MIN_USERS: Final = 500


def membership_figures(settings: Settings, spec: RunSpec, files: Sequence[Path]) -> dict[str, Any]:
    """Attack a run's candidates; empty if ``max_membership_auc`` is 1.

    Returns:
        ``membership_auc_…`` of each attack; ``membership_auc_low``, the largest lower end of their intervals; and ``membership_users``,
        the number of attacked users, 0 if there were too few or the translator is no longer there.
    """
    if settings.quality.max_membership_auc >= 1:
        return {}
    from scalr_prod.privacy import measure_run_membership

    try:
        found = measure_run_membership(settings, spec, list(files)) if files else {}
    except TranslatorNotFound:
        found = {}
    return {
        **{f"membership_auc_{name}": success.auc.value for name, success in found.items()},
        "membership_auc_low": max((success.auc.ci95[0] for success in found.values()), default=0.0),
        "membership_users": max((success.users for success in found.values()), default=0),
    }


class PrivacyRules:
    """Rules on membership inference, and on the number of users behind a row."""

    version = 2

    def rules(self, run: AuditedRun) -> list[RowRule | FigureRule]:
        """Return the rules that ``max_membership_auc`` and ``min_evidence_users`` ask for; none by default."""
        quality, found = run.quality, list[RowRule | FigureRule]()
        if quality.min_evidence_users:
            trained = timestamp_literal(run.spec.translator_trained_until)
            found.append(
                RowRule(
                    _EVIDENCE,
                    f"at least {quality.min_evidence_users} users had the item before the end of the translator's training events",
                    f"c.{ITEM_ID} IN (SELECT {ITEM_ID} FROM target_events WHERE {EVENT_TIMESTAMP} < {trained} "
                    f"GROUP BY {ITEM_ID} HAVING count(DISTINCT {USER_ID}) >= {quality.min_evidence_users})",
                )
            )
        if quality.max_membership_auc < 1:
            found.append(
                FigureRule(
                    _MEMBERSHIP,
                    "no attack can tell which users' events trained the translator: the lower end of the 95 % interval of its AUC is at "
                    f"most {quality.max_membership_auc:g}",
                    "membership_auc_low",
                    high=quality.max_membership_auc,
                    sample="membership_users",
                    min_sample=_MIN_USERS,
                )
            )
        return found


def extend_next_step(report: GateReport, default: str) -> str:
    """Add what to do if a rule of this module was broken."""
    broken = {rule.rule for rule in report.failures}
    if _MEMBERSHIP in broken:
        default += (
            f"; for {_MEMBERSHIP}: scalr privacy shows which attack succeeds. Remove the estimator that repeats training events, translate "
            'with [generation] mode = "backfill" and exclude_consumed = true, and train again'
        )
    if _EVIDENCE in broken:
        default += f'; for {_EVIDENCE}: set [quality] policy = "quarantine", or lower [translator] max_target_items or min_evidence_users'
    return default
