"""Kernels of factorisation and calibration against tensor operations, and metrics counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scalr_prod.translator import metrics, multinomial_logit
from scalr_prod.translator.estimators import compiled_kernels

ROWS, DRAWN, TASTES = 300, 70, 3
COLUMNS = multinomial_logit.LogitColumns([0, 1, 2, 4, 5, 6, 7], [4, 5, 6, 7], [True] * 3 + [False] * 4)


def evidence(*, weighed: bool) -> multinomial_logit.ChoiceData:
    """Choices whose label is the better the higher the first columns; some drawn items are the label, and do not count."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(ROWS, 8, 1 + DRAWN, generator=generator)
    values[:, :5, 0] += 0.8
    tastes = torch.randn(ROWS, TASTES, generator=generator)
    values[:, 5, 0] += 0.8 * tastes[:, 0]
    log_q = torch.randn(ROWS, 1 + DRAWN, generator=generator)
    log_q[:, 0] = 0
    log_q[::3, 5] = torch.inf
    return multinomial_logit.ChoiceData.from_tensors(
        values, tastes, log_q, torch.rand(ROWS, 1, generator=generator) if weighed else None
    )


@pytest.mark.parametrize("dim", [3, 64])
def test_als_kernels_match_dense_matrices(dim):
    """Rows without a cell, with one, and with all."""
    random = np.random.default_rng(0)
    there = random.random((40, 30)) < 0.2
    there[0], there[1], there[1, 7], there[2] = False, False, True, True
    values = np.where(there, random.random(there.shape), 0).astype(np.float32)
    v, y = (random.standard_normal((n, dim)).astype(np.float32) for n in there.shape)
    found, compiled = np.full_like(v, np.nan), compiled_kernels.load_kernels()
    assert compiled is not None, "numba is a dependency"
    start = np.concatenate([[0], there.sum(1).cumsum()])
    compiled.sum_by_row(start, there.nonzero()[1], values[there], v, y, found)
    np.testing.assert_allclose(found, (values * (v @ y.T)) @ y, rtol=1e-4, atol=1e-4)
    assert not found[0].any()


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("rows", [ROWS, 1, 0])
def test_logit_kernels_match_tensor_operations(rows, weighed, monkeypatch):
    some = evidence(weighed=weighed).take(torch.arange(rows))
    weights = torch.randn(1 + TASTES, len(COLUMNS.plain), generator=torch.Generator().manual_seed(1)) * 0.3
    assert multinomial_logit.load_kernels() is not None, "numba is a dependency"

    def found() -> tuple[torch.Tensor, ...]:
        loss = torch.tensor(multinomial_logit._loss(some, COLUMNS.plain, weights))
        return loss, *multinomial_logit._derivatives(some, COLUMNS.plain, weights)

    compiled = found()
    monkeypatch.setattr(multinomial_logit, "load_kernels", lambda: None)
    for mine, theirs in zip(compiled, found(), strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("weighed", [False, True])
def test_logit_weights_match_without_kernels(weighed, monkeypatch):
    some = evidence(weighed=weighed)
    compiled = multinomial_logit.fit_logit(some, COLUMNS)
    assert compiled.shape == (1 + TASTES, len(COLUMNS.plain)), "a taste tilts"
    monkeypatch.setattr(multinomial_logit, "load_kernels", lambda: None)
    torch.testing.assert_close(compiled, multinomial_logit.fit_logit(some, COLUMNS), rtol=1e-3, atol=1e-4)


def test_metrics_match_a_count_by_hand():
    """With items that tie, that cannot be proposed, of a probability that is a bin's limit, and labels that are unknown."""
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(50, 300, generator=generator) ** 6
    p[:, 100:200] = p[:, :100]
    p[:, 200:230] = 0
    p /= p.sum(1, keepdim=True)
    p[0, :26] = 2.0 ** -torch.arange(26)
    p[1] = 0
    labels = torch.randint(0, 300, (50,), generator=generator).numpy().astype(np.int32)
    labels[0], labels[2], labels[3], labels[4] = 3, -1, 210, int(p[4].argmax())
    scores = metrics._score_labels(labels, p)
    assert scores.is_top[4]
    assert not scores.eligible[[1, 2, 3]].any()
    for row, label in enumerate(labels):
        of_row = p[row].numpy().astype(np.float64)
        bins = np.array([23 if x == 0 else min(int(-np.log2(x)), 23) for x in of_row])
        np.testing.assert_allclose(scores.share[row], np.bincount(bins, of_row, minlength=24), rtol=1e-6, atol=1e-12)
        assert scores.pairs[row].tolist() == np.bincount(bins[of_row > 0], minlength=24).tolist()
        if not scores.eligible[row]:
            assert (scores.rank[row], np.isnan(scores.loss[row])) == (np.inf, True)
            continue
        ties = (of_row == of_row[label]).sum()
        assert scores.rank[row] == (of_row > of_row[label]).sum() + (ties + 1) / 2
        assert scores.loss[row] == pytest.approx(-np.log(of_row[label]), rel=1e-6)
        assert scores.label_bin[row] == bins[label]
