"""One parameter set's estimators, and how they become one calibrated distribution.

Every estimator e has a score s_e(i | context); popularity has features f(i, t) of an item at a time. A *member* is the mixture or one
estimator alone:

    P(i | context) = softmax_i( Σ_e c_e s_e(i | context) + Σ_f (b_f + Σ_z d_fz z(context)) f(i, t) )

over the eligible items, with c ≥ 0, b and d fitted by log-likelihood on a slice of time (`calibration`). The member ``popularity``, which
has no score, is the prior P(i | t): what everybody chooses just now. The mixture is what this user would choose: the same features,
weighed by the user's tastes z (`tastes`; no other member has them), and what the estimators make of the history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from scalr_prod.translator import tastes
from scalr_prod.translator.estimators import SCORED, popularity, scores
from scalr_prod.translator.tastes import TASTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.translator.batch import Batch

__all__ = ["MEMBERS", "Mixture", "by_member", "tilts", "weight_names"]

#: Rows of a calibration table.
MEMBERS: Final = ("mixture", "popularity", *SCORED)
_FEATURES: Final = popularity.FEATURES


def weight_names() -> tuple[str, ...]:
    """Columns of a calibration table: c of each estimator, b of each feature, d of each feature and taste."""
    return (*SCORED, *_FEATURES, *(name for taste in TASTES for name in tilts(taste)))


def tilts(taste: str) -> tuple[str, ...]:
    """Columns of one taste: d of each feature."""
    return tuple(f"{feature}_by_{taste}" for feature in _FEATURES)


def by_member(table: torch.Tensor, columns: Sequence[str]) -> dict[str, dict[str, float]]:
    """A calibration table, float32 [len(MEMBERS), columns], as member → weight name → weight; what has no column weighs nothing.

    Raises:
        ValueError: A column is none of `weight_names`: another package wrote it.
    """
    unknown = set(columns) - set(weight_names())
    if unknown:
        raise ValueError(
            f"its calibration weighs {', '.join(sorted(unknown))}, which this version of the package does not know"
        )
    nothing = dict.fromkeys(weight_names(), 0.0)
    return {member: nothing | dict(zip(columns, row, strict=True)) for member, row in zip(MEMBERS, table.tolist(), strict=True)}


@dataclass
class Mixture:
    """A parameter set.

    Attributes:
        estimators: Names of those with a score, in order.
        parameters: Their tensors.
        popularity: The prior's tensors.
        tastes: Those that tastes are told with.
        calibration: Member → weight name → weight.
    """

    estimators: tuple[str, ...]
    parameters: dict[str, dict[str, torch.Tensor]]
    popularity: dict[str, torch.Tensor]
    tastes: dict[str, torch.Tensor]
    calibration: dict[str, dict[str, float]]

    @classmethod
    def of(cls, tensors: dict[str, torch.Tensor], fold: int, estimators: Sequence[str], columns: Sequence[str]) -> Mixture:
        """The set of a fold, out of a version's tensors (``<set>/<estimator>/<name>``; set ``shared`` is part of every one).

        Raises:
            KeyError: A tensor is missing: another package wrote the version.
        """
        missing = [name for name in popularity.TENSORS if f"shared/popularity/{name}" not in tensors]
        if missing:
            raise KeyError(f"shared/popularity/{missing[0]}")
        scored = tuple(name for name in SCORED if name in estimators)
        table = tensors["shared/calibration/all" if fold < 0 else "shared/calibration/held_out"]
        return cls(
            estimators=scored,
            parameters={name: _under(tensors, "shared", name) | _under(tensors, str(fold), name) for name in scored},
            popularity=_under(tensors, "shared", "popularity") | _under(tensors, str(fold), "popularity"),
            tastes=_under(tensors, "shared", "tastes"),
            calibration=by_member(table, columns),
        )

    def probabilities(
        self, batch: Batch, *, member: str = "mixture", dtype: Any = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """P(i | context) of a member, and the prior P(i | t): [B, N] each, 0 for items that are not eligible."""
        if member == "popularity":
            (prior,) = self.distributions(batch, (member,), dtype=dtype)
            return prior, prior
        prior, p = self.distributions(batch, ("popularity", member), dtype=dtype)
        return p, prior

    def distributions(self, batch: Batch, members: Sequence[str], *, dtype: Any = torch.float32) -> list[torch.Tensor]:
        """P(i | context) of several members, whose features and scores are worked out once: [B, N] each."""
        weights = [self.calibration[member] for member in members]
        logits = popularity.weighted(
            self.popularity, batch.time, [self._feature_weights(member, batch, dtype) for member in members], dtype
        )
        for name in self.estimators:
            heavy = [(sums, of_member[name]) for sums, of_member in zip(logits, weights, strict=True) if of_member[name] != 0]
            if heavy:
                score = self.score(name, batch, dtype)
                for sums, weight in heavy:
                    sums.add_(score, alpha=weight)
        return [_normalised(sums, batch) for sums in logits]

    def tastes_of(self, batch: Batch, dtype: Any = torch.float32) -> torch.Tensor:
        """The users' tastes, in standard deviations: [B, T]."""
        told = tastes.raw(self.tastes, batch, dtype)
        return tastes.standard(told, self.tastes["mean"], self.tastes["spread"])

    def _feature_weights(self, member: str, batch: Batch, dtype: Any) -> torch.Tensor:
        """b, or b + Σ_z d_z z(context) where tastes tilt it: [F] or [B, F]."""

        def row(names: Sequence[str]) -> torch.Tensor:
            return torch.tensor([self.calibration[member][name] for name in names], dtype=dtype, device=batch.time.device)

        tilt = torch.stack([row(tilts(taste)) for taste in TASTES])
        return row(_FEATURES) + self.tastes_of(batch, dtype) @ tilt if tilt.any() else row(_FEATURES)

    def score(self, name: str, batch: Batch, dtype: Any = torch.float32) -> torch.Tensor:
        """One estimator's scores: [B, N]."""
        return scores(name, self.parameters[name], batch, self.popularity["prior"].to(dtype))

    def log_counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Logarithms of the items' decayed counts as of each event: name of `popularity.COUNTS` → [B, N]."""
        return popularity.log_counts(self.popularity, batch.time)


def _normalised(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Softmax over the eligible items; rows without any come out 0."""
    items = torch.arange(logits.shape[1], device=logits.device)
    p = logits.masked_fill_(items >= batch.eligible[:, None], -torch.inf).softmax(1)
    p[batch.eligible == 0] = 0
    return p


def _under(tensors: dict[str, torch.Tensor], part: str, name: str) -> dict[str, torch.Tensor]:
    prefix = f"{part}/{name}/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
