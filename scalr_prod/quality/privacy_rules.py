# SPDX-License-Identifier: Apache-2.0
"""Gate rules on what a run's rows reveal about users, see `scalr_prod.privacy`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from scalr_prod.errors import TranslatorNotFound
from scalr_prod.quality.rule_protocol import FigureRule, RowRule
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from scalr_prod.workspace import timestamp_literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from scalr_prod.config import Settings
    from scalr_prod.ledger import RunSpec
    from scalr_prod.quality.gate_report import GateReport
    from scalr_prod.quality.rule_protocol import AuditedRun


_MEMBERSHIP: Final = "membership_is_not_inferable"
_RISK: Final = "users_are_not_singled_out_linked_or_inferred"
_EVIDENCE: Final = "item_had_enough_users"
#: Smallest number of attacked users, or of guesses, for a rule on attacks to apply. In smaller logs each user changes any translator
#: measurably.
_MIN_USERS: Final = 500


def attack_figures(settings: Settings, spec: RunSpec, files: Sequence[Path]) -> dict[str, Any]:
    """Attack a run's candidates by what ``max_membership_auc`` and ``max_anonymity_risk`` bound; empty if both are 1.

    Returns:
        ``membership_auc_…`` and ``anonymity_risk_…`` of each attack; ``membership_auc_low`` and ``anonymity_risk_low``, the largest lower
        ends of their intervals; and ``membership_users`` and ``anonymity_guesses``, the numbers of attacked users and of guesses, 0 if
        there were too few or the translator is no longer there.
    """
    membership, risks = settings.quality.max_membership_auc < 1, settings.quality.max_anonymity_risk < 1
    if not (membership or risks):
        return {}
    from pyarrow.parquet import read_metadata

    from scalr_prod.privacy import RunAttacks, attack_run

    try:
        has_rows = any(read_metadata(path).num_rows for path in files)
        found = attack_run(settings, spec, list(files), membership=membership, risks=risks) if has_rows else RunAttacks()
    except TranslatorNotFound:
        found = RunAttacks()
    figures: dict[str, Any] = {}
    if membership:
        figures |= {f"membership_auc_{name}": success.auc.value for name, success in found.membership.items()}
        figures["membership_auc_low"] = max((success.auc.ci95[0] for success in found.membership.values()), default=0.0)
        figures["membership_users"] = max((success.users for success in found.membership.values()), default=0)
    if risks:
        figures |= {f"anonymity_risk_{name}": attack.risk.value for name, attack in found.risks.items()}
        figures["anonymity_risk_low"] = max((attack.risk.ci95[0] for attack in found.risks.values()), default=0.0)
        figures["anonymity_guesses"] = max((attack.guesses for attack in found.risks.values()), default=0)
    return figures


class PrivacyRules:
    """Rules on attacks, and on the number of users behind a row."""

    version = 3

    def rules(self, run: AuditedRun) -> list[RowRule | FigureRule]:
        """Return the rules that ``max_membership_auc``, ``max_anonymity_risk`` and ``min_evidence_users`` ask for; none by default."""
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
        if quality.max_anonymity_risk < 1:
            found.append(
                FigureRule(
                    _RISK,
                    "no attack singles users out, links or infers their events because they trained the translator: the lower end of the "
                    f"95 % interval of its risk is at most {quality.max_anonymity_risk:g}",
                    "anonymity_risk_low",
                    high=quality.max_anonymity_risk,
                    sample="anonymity_guesses",
                    min_sample=_MIN_USERS,
                )
            )
        return found


def privacy_card(figures: Mapping[str, Any]) -> str:
    """Return the data docs' statement, in Markdown, of what was measured of a run's rows, and of what is and is not promised."""
    from scalr_prod.privacy import PROMISE

    limits = {
        "membership_auc": "AUC; 0.5 is chance level",
        "anonymity_risk": "0: training on the users helps the attack nowhere",
    }
    measured = [
        f"- {name}: {value:.3f} ({meaning})"
        for prefix, meaning in limits.items()
        for name, value in figures.items()
        if name.startswith(prefix) and not name.endswith("_low")
    ]
    unmeasured = "The gate did not attack these rows. `scalr privacy` does, and the run's report shows what it found."
    return "\n".join([f"**Privacy.** {PROMISE}\n", *(measured or [unmeasured])])


def extend_next_step(report: GateReport, default: str) -> str:
    """Add what to do if a rule of this module was broken."""
    broken = {rule.rule for rule in report.failures}
    if attacks := broken & {_MEMBERSHIP, _RISK}:
        default += (
            f"; for {' and '.join(sorted(attacks))}: scalr privacy shows which attack succeeds. Remove the estimator that repeats training "
            'events, translate with [generation] mode = "backfill" and exclude_consumed = true, and train again'
        )
    if _EVIDENCE in broken:
        default += f'; for {_EVIDENCE}: set [quality] policy = "quarantine", or lower [translator] max_target_items or min_evidence_users'
    return default
