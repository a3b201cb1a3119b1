"""What a first verdict leaves out: nothing up to the limits, and no more than it says."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from scalr_prod.config.settings import load_settings
from scalr_prod.evaluation.budget import UNLIMITED, DataBudget, budget_for
from scalr_prod.evaluation.sandbox import Sandbox, _sandbox_settings
from scalr_prod.evaluation.split import EvaluationSplit


def scene(events, *, estimators=("popularity", "sequential"), pretraining_events=None, contexts="events", users=10):
    settings = SimpleNamespace(
        generation=SimpleNamespace(contexts=contexts),
        translator=SimpleNamespace(estimators=estimators, pretraining_events=pretraining_events),
    )
    return SimpleNamespace(source=range(events), settings=settings, numbering=SimpleNamespace(users=range(users)))


@pytest.mark.parametrize(
    ("found", "few"),
    [
        (scene(50_000), UNLIMITED),
        (scene(250_000), DataBudget(50_000, None)),
        (scene(250_001), DataBudget(50_000, 250_000)),
        (scene(250_001, estimators=("popularity", "linear")), DataBudget(50_000, None)),  # nothing is pretrained
        (scene(300_000, pretraining_events=260_000), DataBudget(50_000, 250_000)),
        (scene(300_000, pretraining_events=200_000), DataBudget(50_000, None)),  # the settings leave out more
        (scene(300_000, contexts="users"), DataBudget(None, 250_000)),
        (scene(200_000, contexts="users", users=50_001), DataBudget(50_000, None)),
    ],
)
def test_only_what_there_is_more_of_is_left_out(found, few):
    assert budget_for(found) == few


def test_what_is_learned_from_less_stays_in_its_isolated_home(project, tmp_path):
    """Everything but the pretraining is as the isolated home has it: its place, and that nothing after the cutoff is known."""
    cutoff = datetime(2024, 6, 1, tzinfo=UTC)
    inner = _sandbox_settings(load_settings(project), tmp_path / "isolated", cutoff)
    whole = EvaluationSplit(Sandbox(inner, cutoff), None, None, None, None, None, None, None, None)
    less = DataBudget(pretraining_events=100).apply_to(whole).settings
    assert less.translator.pretraining_events == 100
    assert less.home == inner.home == tmp_path / "isolated"
    assert less.model_dump(exclude={"translator"}) == inner.model_dump(exclude={"translator"})
    assert less.translator.recipe() == inner.translator.recipe() | {"pretraining_events": 100}
    assert UNLIMITED.apply_to(whole) is whole


def test_what_is_left_out_is_said():
    assert UNLIMITED.describe() == ""
    assert (
        DataBudget(50_000, 250_000).describe()
        == ", drawn for 50,000 contexts at most, pretrained on 250,000 source events at most"
    )
    assert UNLIMITED.to_json() == {"contexts_at_most": None, "pretraining_events_at_most": None}
