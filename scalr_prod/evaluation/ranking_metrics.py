# SPDX-License-Identifier: Apache-2.0
"""Ranking metrics over the full catalogue, exposure metrics and calibration metrics.

NDCG, recall and MRR are means over users. A user's relevant items are those of the test period that are not in the user's training
history. NE is log loss over the entropy of the base rate (He et al., ADKDD 2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.evaluation.statistics import MetricContributions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.evaluation.interactions import ItemScorer


_USER_BATCH: Final = 128
_BINS: Final = 20


@dataclass(frozen=True)
class Ranking:
    """One fitted model's rankings of V test users, with metrics by user.

    Attributes:
        top: int32 [V, k]. Each user's first k items, best first.
        gain: float64 [V, k]. What each rank adds to the user's NDCG; 0 where the item is not relevant.
        ndcg: float64 [V].
        recall: float64 [V].
        mrr: float64 [V]. Reciprocal rank of the first relevant item within k.
        head: float64 [V]. NDCG with only head items as relevant; NaN for users without one.
        tail: float64 [V]. The same with tail items.
    """

    top: NDArray[np.int32]
    gain: NDArray[np.float64]
    ndcg: NDArray[np.float64]
    recall: NDArray[np.float64]
    mrr: NDArray[np.float64]
    head: NDArray[np.float64]
    tail: NDArray[np.float64]

    def hits(self) -> MetricContributions:
        """Return what each hit adds to a user's NDCG; cases are positions of users."""
        user, rank = np.nonzero(self.gain)
        return MetricContributions(user, self.top[user, rank].astype(np.int64), self.gain[user, rank])


def rank_users(
    model: ItemScorer, users: NDArray[np.int64], *, relevant: Any, seen: Any, is_head: NDArray[np.bool_], k: int
) -> Ranking:
    """Rank the full catalogue for each user, excluding items of the user's training history.

    Args:
        model: A fitted model; columns of its scores beyond the catalogue are ignored.
        users: int64 [V].
        relevant: scipy CSR [U, N]; non-zero where a user interacted with an item in the test period.
        seen: scipy CSR [U, N]; non-zero where the training data holds an event of the user and the item.
        is_head: bool [N]. The most popular items that make up half of the training events.
        k: Length of the rankings.
    """
    n_items = relevant.shape[1]
    relevant = relevant.astype(bool).tocsr()
    relevant.sum_duplicates()
    relevant.eliminate_zeros()
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    top = np.zeros((len(users), k), dtype=np.int32)
    gains = np.zeros((len(users), k))
    columns = {name: np.zeros(len(users)) for name in ("ndcg", "recall", "mrr", "head", "tail")}
    for start in range(0, len(users), _USER_BATCH):
        rows = np.s_[start : start + _USER_BATCH]
        chosen = users[rows]
        scores = np.array(model.score(chosen)[:, :n_items], dtype=np.float32)
        scores[_cells(seen[chosen])] = -np.inf
        top[rows] = _top_k(scores, k)
        user, item = _cells(relevant[chosen])
        is_relevant = np.zeros((len(chosen), n_items), dtype=bool)
        is_relevant[user, item] = True
        hit = np.take_along_axis(is_relevant, top[rows], 1)
        wanted = np.bincount(user, minlength=len(chosen))
        first_rank = hit.argmax(1)
        gains[rows] = hit * discount / ideal[np.minimum(wanted, k)].clip(1e-12)[:, None]
        columns["ndcg"][rows] = gains[rows].sum(1)
        columns["recall"][rows] = hit.sum(1) / wanted.clip(1)
        columns["mrr"][rows] = np.where(hit.any(1), 1 / (first_rank + 1), 0)
        for name, items in (("head", is_head), ("tail", ~is_head)):
            count = np.bincount(user[items[item]], minlength=len(chosen))
            gain = (hit & items[top[rows]]) @ discount
            columns[name][rows] = np.where(count > 0, gain / ideal[np.minimum(count, k)].clip(1e-12), np.nan)
    return Ranking(top=top, gain=gains, **columns)


def exposure_metrics(top: NDArray[np.int32], n_items: int, is_head: NDArray[np.bool_]) -> dict[str, float]:
    """Return how recommendations [V, k] spread over the catalogue: coverage, Gini index of exposure, share of tail items."""
    exposure = np.sort(np.bincount(top.ravel(), minlength=n_items).astype(np.float64))
    total = exposure.sum()
    gini = 2 * (np.arange(1, n_items + 1) * exposure).sum() / (n_items * total) - (n_items + 1) / n_items if total else 0.0
    return {
        "coverage": float((exposure > 0).mean()),
        "gini": float(gini),
        "tail_share": float((~is_head[top]).mean()),
    }


def calibration_metrics(probability: NDArray[np.float32], label: NDArray[np.bool_]) -> dict[str, float]:
    """Return NE, calibration ratio (predicted over observed positives), and ECE over 20 bins with equal numbers of pairs."""
    p = probability.astype(np.float64).clip(1e-7, 1 - 1e-7)
    base = label.mean()
    loss = -np.where(label, np.log(p), np.log1p(-p)).mean()
    entropy = -(base * np.log(base) + (1 - base) * np.log1p(-base))
    bins = np.array_split(np.argsort(p, kind="stable"), _BINS)
    ece = sum(abs(p[rows].sum() - label[rows].sum()) for rows in bins) / len(p)
    return {"ne": float(loss / entropy), "calibration": float(p.sum() / label.sum()), "ece": float(ece)}


def _cells(matrix: Any) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return row and column of each stored value of a CSR matrix."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), matrix.indices


def _top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.int32]:
    """Return the k highest of each row, best first; ties go to the lower item number."""
    candidates = (
        np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
        if k < scores.shape[1]
        else np.arange(scores.shape[1])[None].repeat(len(scores), 0)
    )
    order = np.argsort(-np.take_along_axis(scores, candidates, 1), axis=1, kind="stable")
    return np.take_along_axis(candidates, order, 1)[:, :k].astype(np.int32)
