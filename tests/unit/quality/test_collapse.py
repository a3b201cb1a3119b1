"""Runs whose events collapse onto few items are refused by the default rules, and honest runs of the same size pass.

The numbers are those of a run at temperature .02 of two logs of reviews: 15 685 accepted rows, of which 18 % are of one item with 86 real
events, and 994 items of 11 265.
"""

from __future__ import annotations

from datetime import UTC, datetime

import duckdb
import numpy as np
import pandas as pd
import pytest

from scalr_prod.config import QualitySettings
from scalr_prod.ledger import RunSpec, RunWindow, TranslatorPin
from scalr_prod.quality.audit import ACCEPTED_EVENTS, Audit
from scalr_prod.quality.audit_tasks import ITEM_EVENTS
from scalr_prod.quality.row_verdicts import RowVerdicts
from scalr_prod.quality.rule_protocol import AuditedRun
from scalr_prod.quality.rules import RunRules

ROWS, ITEMS, LEFT, USERS, REAL = 15_685, 11_265, 994, 2_000, 80_000
HEAD, HEAD_EVENTS, HEAD_SHARE, COPIES = 40, 86, 0.18, 71
START, END = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 8, tzinfo=UTC)


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    """Real events by item: a few popular items and a long tail; item `HEAD` has 86."""
    shares = np.arange(20, ITEMS + 20) ** -0.9
    counts = np.maximum(1, np.round(REAL * shares / shares.sum())).astype(int)
    counts[HEAD] = HEAD_EVENTS
    return counts


def users(rng: np.random.Generator) -> np.ndarray:
    """The rows' users: some are ten times as active as others."""
    activity = rng.lognormal(0, 1, USERS)
    return rng.choice(USERS, ROWS, p=activity / activity.sum())


def broken_rules(real: np.ndarray, made: pd.DataFrame) -> tuple[set[str], dict[str, float]]:
    """Return the broken rules on distributions, all of which are judged, and the figures."""
    target = pd.DataFrame({"item_id": np.arange(ITEMS), "events": real})
    with duckdb.connect() as connection:
        connection.register(ITEM_EVENTS, target)
        connection.register(ACCEPTED_EVENTS, made)
        sizes = made["user_id"].value_counts().to_numpy()
        figures = {"effective_users": sizes.sum() ** 2 / (sizes**2).sum()}
        audit = Audit(RowVerdicts(connection, [], (), f"FROM {ACCEPTED_EVENTS}"), None, None, 10, ())
        figures |= audit.distribution_figures(ACCEPTED_EVENTS, figures["effective_users"])
    spec = RunSpec.create(
        mode="causal",
        window=RunWindow(START, END, END),
        seed=0,
        translator=TranslatorPin(1, "0" * 64, START),
        table_versions={},
        settings={"generation": {}},
    )
    run = AuditedRun(spec, QualitySettings(), ("source",), exclude_consumed=True, events_per_source_event=2, translator=None)
    rules = [rule for rule in RunRules().rules(run) if rule.sample == "effective_users"]
    assert all(rule.is_judged(figures) for rule in rules)
    inside = {rule.name: (rule.low or 0) <= figures[rule.figure] <= (rule.high or np.inf) for rule in rules}
    return {name for name, holds in inside.items() if not holds}, figures


def test_a_run_that_collapsed_onto_an_item_is_refused(real):
    rng = np.random.default_rng(2)
    left = np.append(
        HEAD,
        rng.choice(
            np.delete(np.arange(ITEMS), HEAD), LEFT - 1, replace=False, p=np.delete(real, HEAD) / np.delete(real, HEAD).sum()
        ),
    )
    p = real[left].astype(float) ** 2
    p[0] = HEAD_SHARE / (1 - HEAD_SHARE) * p[1:].sum()
    made = pd.DataFrame({"user_id": users(rng), "item_id": rng.choice(left, ROWS, p=p / p.sum())})
    made.loc[rng.choice(ROWS, 99, replace=False), "user_id"] = 0
    made.loc[made.index[made["user_id"] == 0][:COPIES], "item_id"] = HEAD
    broken, figures = broken_rules(real, made)
    assert figures["max_item_excess"] == pytest.approx(HEAD_SHARE - HEAD_EVENTS / real.sum(), abs=0.02)
    assert "item_shares_are_like_the_real_ones" in broken


@pytest.mark.parametrize("taste", [1.0, 0.1], ids=["mild tastes", "sharp tastes"])
def test_an_honest_run_of_this_size_passes(real, taste):
    """Each user draws from the real distribution times a taste of their own; sharp: most of a user's events are of a few items."""
    rng = np.random.default_rng(3)
    made = pd.DataFrame({"user_id": users(rng), "item_id": 0})
    for user, rows in made.groupby("user_id").indices.items():
        p = real * np.random.default_rng(user).gamma(taste, size=ITEMS)
        made.loc[rows, "item_id"] = rng.choice(ITEMS, len(rows), p=p / p.sum())
    broken, figures = broken_rules(real, made)
    assert not broken, figures


@pytest.mark.parametrize("power", [2.2, 2.5])
def test_an_honest_run_at_a_low_temperature_passes(real, power):
    """Temperature 1/2 squares probabilities, and at one moment demand is more concentrated than over all time."""
    rng = np.random.default_rng(4)
    p = real.astype(float) ** power
    made = pd.DataFrame({"user_id": users(rng), "item_id": rng.choice(ITEMS, ROWS, p=p / p.sum())})
    broken, figures = broken_rules(real, made)
    assert figures["effective_items_ratio"] < 0.1
    assert "effective_items" not in broken, figures
