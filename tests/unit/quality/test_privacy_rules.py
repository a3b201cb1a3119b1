"""Items that few users had are refused or put aside where the settings say so; membership is judged only where it is measured."""

from __future__ import annotations

import pytest
from support.small_project import QUARANTINE, Handmade, target_rows

from scalr_prod.errors import QualityGateFailed
from scalr_prod.quality import validate_run

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
    assert "membership_users" not in validate_run(project.settings, spec.run_id).figures
    project.configure("[quality]\nmax_membership_auc = 0.75")
    report = validate_run(project.settings, spec.run_id)
    assert report.passed
    reasons = {rule.rule: rule.reason for rule in report.rules if rule.success is None}
    assert reasons["membership_is_not_inferable"] == "membership_users is 0: judged from 500 on"
