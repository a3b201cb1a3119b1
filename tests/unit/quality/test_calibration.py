"""The gate refuses a run whose translator's probabilities were seen not to come true."""

from __future__ import annotations

import pytest
from support.examples import sweep
from support.small_project import INFORMED, Handmade

from scalr_prod.errors import QualityGateFailed
from scalr_prod.ledger import RunState
from scalr_prod.quality import validate_run
from scalr_prod.translator import ReliabilityClass


def metrics(*classes: ReliabilityClass) -> dict:
    return {"information": INFORMED, "reliability": [class_.to_json() for class_ in classes]}


LOWEST = ReliabilityClass(0.0, 0.001, 100_000, 70.0, 66)
WRONG = ReliabilityClass(0.9, 1.0, 60, 56.4, 0)
HONEST = {
    "right": metrics(LOWEST, ReliabilityClass(0.9, 1.0, 60, 56.4, 54)),
    "wrong, but of few outcomes": metrics(LOWEST, ReliabilityClass(0.9, 1.0, 22, 20.7, 0)),
    "by chance": metrics(LOWEST, ReliabilityClass(0.01, 0.1, 60, 1.2, 0)),
    "within the factor": metrics(ReliabilityClass(0.1, 0.5, 10_000, 3_000.0, 2_000)),
    "not measured by a former package": {"information": INFORMED},
}


WITHIN_TWO = "[quality]\nmax_probability_factor = 2"


@pytest.fixture
def project(tmp_path) -> Handmade:
    made = Handmade(tmp_path)
    made.configure(WITHIN_TWO)
    return made


@pytest.mark.long
def test_a_wrong_class_is_refused_once_the_settings_ask_for_it(project):
    spec = project.run(metrics=metrics(LOWEST, WRONG))
    project.configure("")
    assert validate_run(project.settings, spec.run_id).passed
    project.configure(WITHIN_TWO)
    with pytest.raises(QualityGateFailed, match="probabilities_are_calibrated") as caught:
        validate_run(project.settings, spec.run_id)
    assert "of 60 with a probability of 0.9 to 1, mean 0.94, 0 came true" in caught.value.found
    assert "max_probability_factor" in caught.value.next_step
    assert project.state(spec.run_id) is RunState.REJECTED


@pytest.mark.parametrize("case", sweep(HONEST, keep=1))
def test_an_honest_one_passes(project, case):
    assert validate_run(project.settings, project.run(metrics=HONEST[case]).run_id).passed
