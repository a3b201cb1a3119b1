"""How good a distribution over the whole catalogue is: NDCG@20, Recall@20, NLL and calibration error of one target event each.

An event has one relevant item, so NDCG@20 is 1 / log2(rank + 1) where the rank is within 20; items that tie share the mean of their ranks.
Every eligible item is ranked, consumed ones too. An event whose item was not known in training counts as a miss in the ranking
and is left out of NLL and ECE (a probability of 0 would say nothing but that).

ECE: all (event, item) pairs are put into 24 classes of predicted probability, equal in log p; it is the sum over the classes of
|predicted events - events| over the number of events: the share of probability mass in the wrong class. Even the true distribution has
some, by the chance of what came (`ece_by_chance`: the mean of |x| for normal x, the variance of a class the sum of m (1 - m) over
the events, m an event's mass in the class). The error is stricter than the usual one of the most probable item alone (top-label ECE: how
probable it was said to be against how often it came, 15 classes of equal width; Guo et al., 2017), which stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    from scalr_prod.translator.contexts import Contexts
    from scalr_prod.translator.module import TranslatorModule

__all__ = ["Figures", "gains_of", "measure", "ranks_of"]

DEPTH: Final = 20
_CLASSES: Final = 24
_TOP_CLASSES: Final = 15
_LOWEST: Final = -24.0  # log2 of probability: what is below falls into the lowest class


@dataclass(frozen=True)
class Figures:
    """One member's figures on some events.

    Attributes:
        ndcg: NDCG@20, mean over all events.
        recall: Recall@20, likewise.
        nll: Mean -log P(item), natural logarithm, over events whose item was eligible.
        ece: See the module.
        ece_by_chance: What the same distribution would have if it were the true one, on as many events.
        top_ece: The calibration error of the most probable item alone.
        events: Events.
        eligible: Those whose item was eligible.
    """

    ndcg: float
    recall: float
    nll: float
    ece: float
    ece_by_chance: float
    top_ece: float
    events: int
    eligible: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "ndcg@20": round(self.ndcg, 6),
            "recall@20": round(self.recall, 6),
            "nll": round(self.nll, 6),
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
    members: Sequence[str] = ("mixture",),
) -> dict[str, dict[str, Figures]]:
    """Figures of members on groups of the events: group → member → figures.

    Args:
        module: The translator.
        contexts: [R], strictly before the events.
        labels: int32 [R]. Target indices; -1 for items that training did not know.
        groups: Name → bool [R].
        members: ``mixture``, or estimators alone.
    """
    tallies = {member: _Tally(labels, groups) for member in members}
    for rows, distributions in module.distributions(contexts, members):
        for tally, p in zip(tallies.values(), distributions, strict=True):
            tally.add(rows, p)
    return {group: {member: tally.figures(group) for member, tally in tallies.items()} for group in groups}


class _Tally:
    """What one member said of the events so far; arguments as those of `measure`."""

    def __init__(self, labels: NDArray[np.int32], groups: Mapping[str, NDArray[np.bool_]]) -> None:
        self._labels, self._groups = labels, groups
        self._rank = np.full(len(labels), np.inf)
        self._loss = np.full(len(labels), np.nan)
        self._top, self._came = np.zeros(len(labels)), np.zeros(len(labels), bool)
        self._mass, self._hits, self._variance = ({name: np.zeros(_CLASSES) for name in groups} for _ in range(3))

    def add(self, rows: NDArray[np.int64], p: torch.Tensor) -> None:
        """Distributions [r, N] of some events."""
        import torch

        label = torch.from_numpy(self._labels[rows].astype(np.int64)).to(p.device)
        known = label.clamp(min=0)[:, None]
        own = p.gather(1, known)
        there = (label >= 0) & (own[:, 0] > 0)
        self._rank[rows] = torch.where(there, ranks_of(p, known[:, 0]), torch.inf).cpu().numpy()
        self._loss[rows] = torch.where(there, -own[:, 0].log(), torch.nan).cpu().numpy()
        best, which = p.max(1)
        self._top[rows], self._came[rows] = best.cpu().numpy(), ((which == label) & there).cpu().numpy()
        classes = ((p.log2() / _LOWEST).clamp(0, 1 - 1e-6) * _CLASSES).long()
        share = p.new_zeros(len(p), _CLASSES, dtype=torch.float64).scatter_add_(1, classes, p.double()).cpu().numpy()
        own_class, eligible = classes.gather(1, known)[:, 0].cpu().numpy(), there.cpu().numpy()
        for name, chosen in self._groups.items():
            counted = chosen[rows] & eligible
            self._mass[name] += share[counted].sum(0)
            self._variance[name] += (share[counted] * (1 - share[counted])).clip(min=0).sum(0)
            self._hits[name] += np.bincount(own_class[counted], minlength=_CLASSES)

    def figures(self, group: str) -> Figures:
        """Of a group of the events."""
        chosen = self._groups[group]
        return _figures(
            self._rank[chosen],
            self._loss[chosen],
            ece=np.abs(self._mass[group] - self._hits[group]).sum(),
            ece_by_chance=np.sqrt(2 / np.pi * self._variance[group]).sum(),
            top_ece=_top_ece(self._top[chosen], self._came[chosen], self._rank[chosen]),
        )


def ranks_of(p: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Each row's rank of its label, 1 = the most probable; ties share the mean: p [R, N], label int64 [R] → float [R]."""
    own = p.gather(1, label[:, None])
    return 1 + (p > own).sum(1) + ((p == own).sum(1) - 1) / 2


def gains_of(rank: torch.Tensor) -> torch.Tensor:
    """NDCG@20 of events with these ranks: float64 [R]."""
    import torch

    return torch.where(rank <= DEPTH, 1 / (rank.double() + 1).log2(), 0.0)


def _top_ece(top: NDArray[np.float64], came: NDArray[np.bool_], rank: NDArray[np.float64]) -> float:
    eligible = np.isfinite(rank)
    if not eligible.any():
        return 0.0
    classes = np.minimum((top[eligible] * _TOP_CLASSES).astype(np.int64), _TOP_CLASSES - 1)
    said, seen = (np.bincount(classes, weights, minlength=_TOP_CLASSES) for weights in (top[eligible], came[eligible]))
    return float(np.abs(said - seen).sum() / eligible.sum())


def _figures(
    rank: NDArray[np.float64], loss: NDArray[np.float64], *, ece: float, ece_by_chance: float, top_ece: float
) -> Figures:
    """The two errors are sums over the classes, in events."""
    import torch

    eligible = int(np.isfinite(rank).sum())
    return Figures(
        ndcg=float(gains_of(torch.from_numpy(rank)).mean()) if len(rank) else 0.0,
        recall=float((rank <= DEPTH).mean()) if len(rank) else 0.0,
        nll=float(np.nanmean(loss)) if eligible else 0.0,
        ece=float(ece / max(eligible, 1)),
        ece_by_chance=float(ece_by_chance / max(eligible, 1)),
        top_ece=top_ece,
        events=len(rank),
        eligible=eligible,
    )
