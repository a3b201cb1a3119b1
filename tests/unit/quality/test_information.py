"""The gate refuses a run whose translator was not shown to know anything of the target from source histories."""

from __future__ import annotations

import pytest
from support.examples import sweep
from support.small_project import INFORMED, Handmade

from scalr_prod.errors import QualityGateFailed
from scalr_prod.ledger import RunState, run_folder
from scalr_prod.quality import validate_run

#: A second audit of the run; one refused and one told are in the others.
long = pytest.mark.long

HOLDS_0 = INFORMED | {"own_over_others": {"nats": 0.012, "ci99": [-0.003, 0.027]}}
REFUSED = {
    "nothing was measured": ({}, "information_was_measured"),
    "too few users to resample": ({"information": INFORMED | {"users": 19}}, "information_was_measured"),
    "the interval holds 0": ({"information": HOLDS_0}, "information_of_source_histories"),
}


@pytest.fixture
def project(tmp_path) -> Handmade:
    return Handmade(tmp_path)


@pytest.mark.parametrize("case", sweep(["the interval holds 0", "nothing was measured", "too few users to resample"], keep=1))
def test_it_is_refused(project, case):
    metrics, rule = REFUSED[case]
    spec = project.run(metrics=metrics)
    with pytest.raises(QualityGateFailed, match=rule) as caught:
        validate_run(project.settings, spec.run_id)
    assert "min_information = 0" in caught.value.next_step
    if metrics.get("information") is HOLDS_0:
        assert "measured +0.012 (-0.003 … +0.027) on 400 events of 100 users" in caught.value.found
    assert project.state(spec.run_id) is RunState.REJECTED
    assert not list((run_folder(project.settings.home, spec.run_id) / "accepted").glob("*.parquet"))


@long
def test_the_settings_can_switch_it_off_and_on_again(project):
    spec = project.run(metrics={"information": HOLDS_0})
    project.configure("[quality]\nmin_information = 0")
    report = validate_run(project.settings, spec.run_id)
    assert report.passed
    assert report.figures["nats_own_over_others_low"] == -0.003, "what was measured is reported all the same"
    project.configure("")
    with pytest.raises(QualityGateFailed, match="information_of_source_histories"):
        validate_run(project.settings, spec.run_id)


@long
def test_what_is_asked_for_can_be_more(project):
    spec = project.run()
    assert validate_run(project.settings, spec.run_id).passed
    project.configure("[quality]\nmin_information = 0.35")
    with pytest.raises(QualityGateFailed, match=r"at least 0\.35 nats"):
        validate_run(project.settings, spec.run_id)
