"""Items that few users had are refused or put aside where the settings say so; membership is judged only where it is measured."""

from __future__ import annotations

import pytest
from support.small_project import QUARANTINE, Handmade, target_rows

from scalr_prod.errors import QualityGateFailed
from scalr_prod.quality import validate_run
from scalr_prod.quality.privacy_rules import privacy_card

#: t0 … t4 have two users before the translator's training ends, at hour 50; t5's second user comes later, t6's is the same user again.
TARGET = [
    *target_rows(),
    *[("second", f"t{item}", -900, -900) for item in range(5)],
    ("second", "t5", 60, 60),
    ("first", "t6", -800, -800),
]


@pytest.fixture
def project(tmp_path) -> Handmade:
    return Handmade(tmp_path, target=TARGET)


def test_the_card_of_the_data_docs_says_what_was_measured():
    card = privacy_card(
        {"membership_auc_own_rows": 0.512, "membership_auc_low": 0.49, "anonymity_risk_inference": 0.01, "rows": 5}
    )
    assert "own_rows: 0.512 (AUC" in card
    assert "inference: 0.010" in card
    assert "_low" not in card
    assert "no differential privacy (ε) is claimed" in card


def test_items_of_fewer_users_are_put_aside(project):
    spec = project.run()
    project.configure(QUARANTINE.replace("0.2", "0.6") + "min_evidence_users = 2")
    report = validate_run(project.settings, spec.run_id)
    candidates = project.candidates(spec)
    of_two = candidates["item_id"].isin([f"t{item}" for item in range(5)])
    assert (report.accepted, report.quarantined) == (of_two.sum(), (~of_two).sum())
    assert {rule.rule for rule in report.rules if rule.failed} == {"item_had_enough_users"}


def test_a_strict_gate_refuses_them_and_says_what_to_do(project):
    spec = project.run()
    project.configure("[quality]\nmin_evidence_users = 2")
    with pytest.raises(QualityGateFailed, match="item_had_enough_users") as caught:
        validate_run(project.settings, spec.run_id)
    assert 'policy = "quarantine"' in caught.value.next_step


def test_nothing_is_measured_by_default_and_few_users_are_not_judged(project):
    spec = project.run()
    figures = validate_run(project.settings, spec.run_id).figures
    assert not {"membership_users", "anonymity_guesses"} & set(figures)
    page = (project.settings.home / "data_docs" / "expectations" / "synthetic_events_figures.html").read_text()
    assert "no differential privacy" in page
    assert "The gate did not attack these rows" in page
    project.configure("[quality]\nmax_membership_auc = 0.75\nmax_anonymity_risk = 0.2")
    report = validate_run(project.settings, spec.run_id)
    assert report.passed
    reasons = {rule.rule: rule.reason for rule in report.rules if rule.success is None}
    assert reasons["membership_is_not_inferable"] == "membership_users is 0: judged from 500 on"
    assert reasons["users_are_not_singled_out_linked_or_inferred"] == "anonymity_guesses is 0: judged from 500 on"
