"""Metrics against a plain count of (event, item) pairs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scalr_prod.translator.metrics import measure

EVENTS, ITEMS = 900, 50


@pytest.fixture(scope="module")
def world() -> SimpleNamespace:
    rng = np.random.default_rng(4)
    p = rng.dirichlet(np.full(ITEMS, 0.2), EVENTS)
    p[:, -5:] = 0  # not there yet
    p /= p.sum(1, keepdims=True)
    labels = np.array([rng.choice(ITEMS, p=row) for row in p]).astype(np.int32)
    labels[:7] = -1  # not known in training
    labels[7:12] = ITEMS - 1
    warm = rng.random(EVENTS) < 0.4
    p = p.astype(np.float32)

    def distributions(contexts, members):
        assert members == ("mixture", "the same backwards")
        # In two parts, the second one backwards: rows say whose they are.
        for rows in (np.arange(150), np.arange(len(contexts.rows) - 1, 149, -1)):
            part = p[contexts.rows[rows]]
            yield rows, [torch.from_numpy(part.copy()), torch.from_numpy(part[:, ::-1].copy())]

    module = SimpleNamespace(distributions=distributions, device=torch.device("cpu"))
    contexts = SimpleNamespace(take=lambda rows: SimpleNamespace(rows=rows))
    groups = {"all": np.ones(EVENTS, bool), "warm": warm}
    by_group = measure(module, contexts, labels, groups, ("mixture", "the same backwards"))
    found = {group: members["mixture"] for group, members in by_group.items()}
    other = by_group["all"]["the same backwards"]
    return SimpleNamespace(p=p.astype(np.float64), labels=labels, warm=warm, found=found, other=other)


@pytest.fixture(params=["all", "warm"])
def group(request, world) -> SimpleNamespace:
    rows = np.flatnonzero(world.warm) if request.param == "warm" else np.arange(EVENTS)
    usable = [row for row in rows if world.labels[row] >= 0 and world.p[row, world.labels[row]] > 0]
    return SimpleNamespace(p=world.p, labels=world.labels, rows=rows, usable=usable, found=world.found[request.param])


def test_unknown_items_count_as_misses_in_the_ranking(group):
    gain = hits = 0.0
    for row in group.usable:
        own = group.p[row, group.labels[row]]
        rank = 1 + (group.p[row] > own).sum() + ((group.p[row] == own).sum() - 1) / 2
        gain += 1 / np.log2(rank + 1) if rank <= 20 else 0
        hits += rank <= 20
    assert group.found.ndcg == pytest.approx(gain / len(group.rows))
    assert group.found.recall == pytest.approx(hits / len(group.rows))
    assert (group.found.events, group.found.eligible) == (len(group.rows), len(group.usable))


def test_components_are_measured_separately(world):
    assert world.other.nll > world.found["all"].nll + 1
    assert world.other.eligible != world.found["all"].eligible


def test_the_likelihood_excludes_unknown_items(group):
    nll = -np.mean([np.log(group.p[row, group.labels[row]]) for row in group.usable])
    assert group.found.nll == pytest.approx(nll, rel=1e-5)
    spread = np.std([np.log(group.p[row, group.labels[row]]) for row in group.usable])
    assert group.found.nll_se == pytest.approx(spread / len(group.usable) ** 0.5, rel=1e-5)


def test_the_calibration_error_is_the_mass_in_the_wrong_bin(group):
    said, seen = np.zeros(24), np.zeros(24)
    for row in group.usable:
        for item in range(ITEMS):
            p = group.p[row, item]
            place = min(max(int(-np.log2(p)), 0), 23) if p > 0 else 23
            said[place] += p
            seen[place] += item == group.labels[row]
    assert group.found.ece == pytest.approx(np.abs(said - seen).sum() / len(group.usable), abs=1e-4)


def test_the_calibration_curve_matches_a_plain_count(group):
    pairs = [
        (min(max(int(-np.log2(p)), 0), 23), p, item == group.labels[row])
        for row in group.usable
        for item, p in enumerate(group.p[row])
        if p > 0
    ]
    classes = sorted({place for place, _, _ in pairs})
    assert len(group.found.calibration_curve) == len(classes) > 10
    for found, place in zip(group.found.calibration_curve, classes, strict=True):
        inside = [(p, came) for where, p, came in pairs if where == place]
        facts = found.to_json()
        # A probability on the border of two classes may be rounded into either.
        assert facts["pairs"] == pytest.approx(len(inside), abs=2)
        assert facts["predicted"] == pytest.approx(np.mean([p for p, _ in inside]), rel=0.01)
        assert facts["events"] == pytest.approx(sum(came for _, came in inside), abs=1)
        assert facts["observed"] == facts["events"] / facts["pairs"]
    assert sum(found.events for found in group.found.calibration_curve) == len(group.usable)


def test_the_error_by_chance_is_that_of_the_true_distribution(world):
    """The whole slice is answered anew, many times, by the distribution itself."""
    random = np.random.default_rng(4)
    rows = np.flatnonzero(world.p.sum(1) > 0.5)
    classes = np.clip(-np.log2(np.maximum(world.p[rows], 2.0**-30)), 0, 23).astype(int)
    said = np.bincount(classes.ravel(), world.p[rows].ravel(), minlength=24)
    share = world.p[rows] / world.p[rows].sum(1, keepdims=True)
    errors = []
    for _ in range(200):
        drawn = (share.cumsum(1) > random.random((len(rows), 1))).argmax(1)
        seen = np.bincount(classes[np.arange(len(rows)), drawn], minlength=24)
        errors.append(np.abs(said - seen).sum() / len(rows))
    eligible = [row for row in rows if world.labels[row] >= 0 and world.p[row, world.labels[row]] > 0]
    expected = np.mean(errors) * np.sqrt(len(rows) / len(eligible))
    assert world.found["all"].ece_by_chance == pytest.approx(expected, rel=0.05)


def test_the_top_label_error_matches_a_plain_count(group):
    top = group.p[group.usable].max(1)
    came = group.p[group.usable].argmax(1) == group.labels[group.usable]
    error = 0.0
    for place in range(15):
        here = (top >= place / 15) & (top < (place + 1) / 15)
        if here.any():
            error += here.sum() / len(top) * abs(top[here].mean() - came[here].mean())
    assert group.found.top_ece == pytest.approx(error, abs=1e-6)
    assert error > 0.005, "as good as none: the comparison would hold whatever was counted"
