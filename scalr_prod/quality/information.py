# SPDX-License-Identifier: Apache-2.0
"""Gate rules on the information gain measured when the translator was trained, see `scalr_prod.translator.information_gain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from scalr_prod.quality.rule_protocol import FigureRule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalr_prod.ledger import ModelVersion
    from scalr_prod.quality.gate_report import GateReport
    from scalr_prod.quality.rule_protocol import AuditedRun


#: A bootstrap over fewer users gives no usable interval.
MIN_USERS: Final = 20


def information_figures(record: ModelVersion | None) -> dict[str, Any]:
    """Return the information figures that the ledger recorded for the translator; zeros if nothing was measured."""
    found = _recorded(record)
    figures: dict[str, Any] = {"information_users": int(found.get("users", 0))}
    for name in ("own_over_others", "over_popularity", "others_over_popularity"):
        figures[f"nats_{name}"] = float(found[name]["nats"]) if found else 0.0
    low = float(found["own_over_others"]["ci99"][0]) if found else 0.0
    return figures | {"nats_own_over_others_low": low, "draws_at_prior": float(found.get("draws_at_prior", 1.0))}


class InformationRules:
    """Rules on the measured information gain of source histories."""

    version = 3

    def rules(self, run: AuditedRun) -> list[FigureRule]:
        """Return the rules; none if ``min_information`` is 0, or if the ledger has no record of the translator (see `RunRules`)."""
        if run.translator is None or not run.quality.min_information:
            return []
        return [
            FigureRule(
                "information_was_measured",
                f"the information of source histories was measured at training, on at least {MIN_USERS} held-out users",
                "information_users",
                low=MIN_USERS,
            ),
            FigureRule(
                "information_of_source_histories",
                "a user's own source history predicts target events better than other users' histories, by at least "
                f"{run.quality.min_information:g} nats per event with 99 % confidence; {_measured(_recorded(run.translator))}",
                "nats_own_over_others_low",
                low=run.quality.min_information,
            ),
        ]


def extend_next_step(report: GateReport, default: str) -> str:
    """Add what to do if rules of this module were broken, alone or among others."""
    broken = [rule.rule.startswith("information_") for rule in report.failures]
    if not any(broken):
        return default
    is_measured = all(rule.rule != "information_was_measured" for rule in report.failures)
    next_step = _NEXT_STEP if is_measured else f"{_TRAIN}; {_NEXT_STEP}"
    return next_step if all(broken) else f"{default}; for information_*: {next_step}"


_NEXT_STEP: Final = (
    "check that user ids name the same people in both logs, and add shared users or events. "
    "To publish events without information on purpose, set [quality] min_information = 0"
)
_TRAIN: Final = "if the translator is of an earlier package, run: scalr translator train"


def _recorded(record: ModelVersion | None) -> Mapping[str, Any]:
    found: Mapping[str, Any] = {} if record is None else record.metrics.get("information") or {}
    return found


def _measured(found: Mapping[str, Any]) -> str:
    if not found:
        return "nothing was measured"
    own = found["own_over_others"]
    low, high = own["ci99"]
    return f"measured {own['nats']:+z.3f} ({low:+z.3f} … {high:+z.3f}) on {found['events']} events of {found['users']} users"
