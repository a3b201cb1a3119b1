# SPDX-License-Identifier: Apache-2.0
"""Metrics of a distribution over the whole catalogue: NDCG@20, Recall@20, NLL and calibration error, each for one target event.

An event has one relevant item, so NDCG@20 is 1 / log2(rank + 1) where the rank is at most 20; tied items share the mean of their ranks.
All items that could be generated are ranked: those seen before the event, minus the excluded ones. An event whose item is not in the
vocabulary counts as a miss in the ranking and is excluded from NLL and ECE.

ECE: all (event, item) pairs are put into 24 bins of predicted probability, equally wide in log p. It is the sum over the bins of
|predicted events - events| divided by the number of events, twice the share of probability mass in the wrong bin. Even the true
distribution has some by chance (`ece_by_chance`: the mean of |x| for normal x, where the variance of a bin is the sum of m (1 - m) over
the events and m is an event's mass in the bin). It is stricter than the usual top-label ECE of the most probable item alone (its predicted
probability against its frequency, 15 bins of equal width; Guo et al., 2017), which is reported as well.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from scalr_prod.translator.reliability import CLASS_LIMITS, ReliabilityClass
from scalr_prod.translator.worker_pool import INLINE, WorkerPool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    from scalr_prod.translator.data.contexts import Contexts
    from scalr_prod.translator.module import TranslatorModule


RANK_CUTOFF: Final = 20
_BINS: Final = 24
_TOP_BINS: Final = 15
#: Events in one unit of work.
_BLOCK_ROWS: Final = 512
#: Each bin's upper limit is half of the previous one's.
_LOWEST: Final = -float(_BINS)  # log2 of probability; lower values fall into the lowest bin


@dataclass(frozen=True)
class CalibrationBin:
    """One of the 24 bins of predicted probability: a point of the calibration curve.

    Attributes:
        pairs: Number of (event, item) pairs: events whose item was eligible, with all eligible items.
        expected: Sum of their probabilities: the expected number of events.
        events: Number of events that occurred.
    """

    pairs: int
    expected: float
    events: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, with ``predicted`` and ``observed``, the mean probability and the frequency of a pair."""
        predicted, observed = self.expected / self.pairs, self.events / self.pairs
        return {**vars(self), "expected": round(self.expected, 6), "predicted": predicted, "observed": observed}


@dataclass(frozen=True)
class DistributionMetrics:
    """Metrics of one component on some events.

    Attributes:
        ndcg: NDCG@20, mean over all events.
        recall: Recall@20, mean over all events.
        nll: Mean -log P(item), natural logarithm, over events whose item was eligible.
        nll_se: Standard error of ``nll``, assuming independent events.
        ece: See the module docstring.
        ece_by_chance: Expected ECE of the same distribution on as many events if it were the true one.
        top_ece: The calibration error of the most probable item alone.
        events: Number of events.
        eligible: Number of events whose item was eligible.
        calibration_curve: Bins that hold a pair, the most probable first; not part of the JSON.
        reliability: Classes of predicted probability that hold a pair, the least probable first; not part of the JSON.
    """

    ndcg: float
    recall: float
    nll: float
    nll_se: float
    ece: float
    ece_by_chance: float
    top_ece: float
    events: int
    eligible: int
    calibration_curve: tuple[CalibrationBin, ...] = ()
    reliability: tuple[ReliabilityClass, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "ndcg@20": round(self.ndcg, 6),
            "recall@20": round(self.recall, 6),
            "nll": round(self.nll, 6),
            "nll_se": round(self.nll_se, 6),
            "ece": round(self.ece, 6),
            "ece_by_chance": round(self.ece_by_chance, 6),
            "top_ece": round(self.top_ece, 6),
            "events": self.events,
            "eligible": self.eligible,
        }


def measure(
    module: TranslatorModule,
    contexts: Contexts,
    labels: NDArray[np.int32],
    groups: Mapping[str, NDArray[np.bool_]],
    components: Sequence[str] = ("mixture",),
    workers: WorkerPool = INLINE,
) -> dict[str, dict[str, DistributionMetrics]]:
    """Measure components on groups of the events: group → component → metrics.

    Args:
        module: The translator.
        contexts: [R], strictly before the events.
        labels: int32 [R]. Target indices; -1 for items outside the vocabulary.
        groups: Name → bool [R].
        components: ``mixture``, or names of estimators.
        workers: Pool that runs the units of work: blocks of rows.
    """
    sums = {component: _MetricSums(len(labels), groups) for component in components}
    blocks = np.split(np.arange(len(labels)), range(_BLOCK_ROWS, len(labels), _BLOCK_ROWS))
    pool = workers if module.device.type == "cpu" else INLINE
    inputs = _MeasuredEvents(module, contexts, labels, tuple(components))
    for rows, scores in itertools.chain.from_iterable(pool.map(_score_block, inputs, blocks)):
        for metric_sums, component_scores in zip(sums.values(), scores, strict=True):
            metric_sums.add(rows, component_scores)
    return {group: {component: metric_sums.metrics(group) for component, metric_sums in sums.items()} for group in groups}


class _MeasuredEvents(NamedTuple):
    """Events to measure components on, see `measure`."""

    module: TranslatorModule
    contexts: Contexts
    labels: NDArray[np.int32]
    components: tuple[str, ...]


def _score_block(inputs: _MeasuredEvents, block: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], list[_LabelScores]]]:
    """Score a block of events: rows, and each component's scores."""
    return [
        (block[rows], [_score_labels(inputs.labels[block[rows]], p) for p in distributions])
        for rows, distributions in inputs.module.distributions(inputs.contexts.take(block), inputs.components)
    ]


@dataclass(frozen=True)
class _LabelScores:
    """Scores of one component on r events.

    Attributes:
        rank: float [r]. Rank of the event's item; infinite if it is not eligible.
        loss: float [r]. -log P(item); NaN if it is not eligible.
        top: float [r]. Probability of the most probable item.
        is_top: bool [r]. Whether the event's item is the most probable one.
        eligible: bool [r].
        share: float64 [r, bins]. Probability mass in each bin.
        pairs: float64 [r, bins]. Eligible items in each bin.
        label_bin: int64 [r]. Bin of the event's item.
        class_share: float64 [r, classes]. Probability mass in each class of `reliability`.
        class_pairs: float64 [r, classes]. Eligible items in each class.
        label_class: int64 [r]. Class of the event's item.
    """

    rank: NDArray[Any]
    loss: NDArray[Any]
    top: NDArray[Any]
    is_top: NDArray[np.bool_]
    eligible: NDArray[np.bool_]
    share: NDArray[np.float64]
    pairs: NDArray[np.float64]
    label_bin: NDArray[np.int64]
    class_share: NDArray[np.float64]
    class_pairs: NDArray[np.float64]
    label_class: NDArray[np.int64]


def _score_labels(labels: NDArray[np.int32], p: torch.Tensor) -> _LabelScores:
    """Score distributions [r, N] on events with labels [r]."""
    import torch

    label = torch.from_numpy(labels.astype(np.int64)).to(p.device)
    known = label.clamp(min=0)[:, None]
    label_p = p.gather(1, known)
    eligible = (label >= 0) & (label_p[:, 0] > 0)
    best, top_item = p.max(1)
    bins = ((p.log2() / _LOWEST).clamp(0, 1 - 1e-6) * _BINS).long()
    share = p.new_zeros(len(p), _BINS, dtype=torch.float64).scatter_add_(1, bins, p.double())
    pairs = torch.zeros_like(share).scatter_add_(1, bins, (p > 0).double())
    class_share, class_pairs = _class_sums(p, pairs.sum(1), share.sum(1))
    limits = torch.tensor(CLASS_LIMITS, dtype=p.dtype, device=p.device)
    tensors = (
        torch.where(eligible, label_ranks(p, known[:, 0]), torch.inf),
        torch.where(eligible, -label_p[:, 0].log(), torch.nan),
        best,
        (top_item == label) & eligible,
        eligible,
        share,
        pairs,
        bins.gather(1, known)[:, 0],
        class_share,
        class_pairs,
        torch.bucketize(label_p[:, 0].contiguous(), limits, right=True),
    )
    return _LabelScores(*(tensor.cpu().numpy() for tensor in tensors))


def _class_sums(p: torch.Tensor, n_items: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probability mass and the number of items in each class of `reliability`: float64 [r, classes] each.

    Args:
        p: [r, N]. Probabilities, 0 for ineligible items.
        n_items: float64 [r]. Number of eligible items.
        total: float64 [r]. Sum of the probabilities.
    """
    import torch

    limits = torch.tensor(CLASS_LIMITS, dtype=p.dtype, device=p.device)
    mass, count = p.new_zeros(2, len(p), len(CLASS_LIMITS) + 1, dtype=torch.float64)
    row, item = torch.nonzero(p >= limits[0], as_tuple=True)  # nearly all pairs are in the lowest class
    values = p[row, item]
    cell = row, torch.bucketize(values, limits, right=True)
    mass.index_put_(cell, values.double(), accumulate=True)
    count.index_put_(cell, torch.ones_like(values, dtype=torch.float64), accumulate=True)
    mass[:, 0], count[:, 0] = (total - mass.sum(1)).clamp(min=0), n_items - count.sum(1)
    return mass, count


class _MetricSums:
    """Accumulated scores of one component, by groups of the events."""

    def __init__(self, events: int, groups: Mapping[str, NDArray[np.bool_]]) -> None:
        self._groups = groups
        self._rank = np.full(events, np.inf)
        self._loss = np.full(events, np.nan)
        self._top, self._is_top = np.zeros(events), np.zeros(events, bool)
        self._mass, self._hits, self._variance, self._pairs = ({name: np.zeros(_BINS) for name in groups} for _ in range(4))
        classes = len(CLASS_LIMITS) + 1
        self._class_mass, self._class_hits, self._class_pairs = ({name: np.zeros(classes) for name in groups} for _ in range(3))

    def add(self, rows: NDArray[np.int64], scores: _LabelScores) -> None:
        """Add the scores of the events in these rows."""
        self._rank[rows], self._loss[rows], self._top[rows], self._is_top[rows] = (
            scores.rank,
            scores.loss,
            scores.top,
            scores.is_top,
        )
        for name, mask in self._groups.items():
            selected = mask[rows] & scores.eligible
            share = scores.share[selected]
            self._mass[name] += share.sum(0)
            self._pairs[name] += scores.pairs[selected].sum(0)
            self._variance[name] += (share * (1 - share)).clip(min=0).sum(0)
            self._hits[name] += np.bincount(scores.label_bin[selected], minlength=_BINS)
            self._class_mass[name] += scores.class_share[selected].sum(0)
            self._class_pairs[name] += scores.class_pairs[selected].sum(0)
            self._class_hits[name] += np.bincount(scores.label_class[selected], minlength=len(CLASS_LIMITS) + 1)

    def metrics(self, group: str) -> DistributionMetrics:
        """Return the metrics of a group of the events."""
        mask = self._groups[group]
        return _distribution_metrics(
            self._rank[mask],
            self._loss[mask],
            ece=np.abs(self._mass[group] - self._hits[group]).sum(),
            ece_by_chance=np.sqrt(2 / np.pi * self._variance[group]).sum(),
            top_ece=_top_ece(self._top[mask], self._is_top[mask], self._rank[mask]),
            curve=tuple(
                CalibrationBin(int(pairs), float(mass), int(hits))
                for pairs, mass, hits in zip(self._pairs[group], self._mass[group], self._hits[group], strict=True)
                if pairs
            ),
            reliability=tuple(
                ReliabilityClass(low, high, int(pairs), float(mass), int(hits))
                for (low, high), pairs, mass, hits in zip(
                    itertools.pairwise((0.0, *CLASS_LIMITS, 1.0)),
                    self._class_pairs[group],
                    self._class_mass[group],
                    self._class_hits[group],
                    strict=True,
                )
                if pairs
            ),
        )


def label_ranks(p: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return the rank of each row's label, 1 = most probable; ties share the mean: p [R, N], label int64 [R] → float [R]."""
    label_p = p.gather(1, label[:, None])
    return 1 + (p > label_p).sum(1) + ((p == label_p).sum(1) - 1) / 2


def ndcg_gains(rank: torch.Tensor) -> torch.Tensor:
    """Return NDCG@20 of events with these ranks: float64 [R]."""
    import torch

    return torch.where(rank <= RANK_CUTOFF, 1 / (rank.double() + 1).log2(), 0.0)


def _top_ece(top: NDArray[np.float64], is_top: NDArray[np.bool_], rank: NDArray[np.float64]) -> float:
    eligible = np.isfinite(rank)
    if not eligible.any():
        return 0.0
    bins = np.minimum((top[eligible] * _TOP_BINS).astype(np.int64), _TOP_BINS - 1)
    expected, observed = (np.bincount(bins, weights, minlength=_TOP_BINS) for weights in (top[eligible], is_top[eligible]))
    return float(np.abs(expected - observed).sum() / eligible.sum())


def _distribution_metrics(
    rank: NDArray[np.float64],
    loss: NDArray[np.float64],
    *,
    ece: float,
    ece_by_chance: float,
    top_ece: float,
    curve: tuple[CalibrationBin, ...],
    reliability: tuple[ReliabilityClass, ...],
) -> DistributionMetrics:
    """Compute the metrics; both calibration errors are given as sums over the bins, in events."""
    import torch

    eligible = int(np.isfinite(rank).sum())
    return DistributionMetrics(
        ndcg=float(ndcg_gains(torch.from_numpy(rank)).mean()) if len(rank) else 0.0,
        recall=float((rank <= RANK_CUTOFF).mean()) if len(rank) else 0.0,
        nll=float(np.nanmean(loss)) if eligible else 0.0,
        nll_se=float(np.nanstd(loss) / np.sqrt(eligible)) if eligible else 0.0,
        ece=float(ece / max(eligible, 1)),
        ece_by_chance=float(ece_by_chance / max(eligible, 1)),
        top_ece=top_ece,
        events=len(rank),
        eligible=eligible,
        calibration_curve=curve,
        reliability=reliability,
    )
