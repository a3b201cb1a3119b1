"""One parameter set's estimators, and how they become one calibrated distribution.

Every estimator e has a score s_e(i | context); popularity has features f(i, t) of an item at a time. A *member* is the mixture or one
estimator alone:

    P(i | context) = (1 - ε) softmax_i( Σ_e c_e s_e(i | context) + Σ_f b_f f(i, t) ) + ε P(i | t)

over the eligible items, with c, b and ε fitted by log-likelihood on a slice of time (`calibration`). The prior P(i | t) is the member
``popularity``, which has no score.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

from scalr_prod.translator.estimators import SCORED, popularity, scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.translator.batch import Batch

__all__ = ["MEMBERS", "Mixture", "weight_names"]

#: Rows of a calibration table.
MEMBERS: Final = ("mixture", "popularity", *SCORED)
_FEATURES: Final = popularity.FEATURES


def weight_names() -> tuple[str, ...]:
    """Columns of a calibration table: c of each estimator, b of each feature, ε."""
    return (*SCORED, *_FEATURES, "backoff")


@dataclass
class Mixture:
    """A parameter set.

    Attributes:
        estimators: Names of those with a score, in order.
        parameters: Their tensors.
        popularity: The prior's tensors.
        calibration: Member → weight name → weight.
    """

    estimators: tuple[str, ...]
    parameters: dict[str, dict[str, torch.Tensor]]
    popularity: dict[str, torch.Tensor]
    calibration: dict[str, dict[str, float]]
    _tables: dict[tuple[str, Any], torch.Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, tensors: dict[str, torch.Tensor], fold: int, estimators: Sequence[str]) -> Mixture:
        """The set of a fold, out of a version's tensors (``<set>/<estimator>/<name>``; set ``shared`` is part of every one)."""
        scored = tuple(name for name in SCORED if name in estimators)
        table = tensors["shared/calibration/all" if fold < 0 else "shared/calibration/held_out"].tolist()
        return cls(
            estimators=scored,
            parameters={name: _under(tensors, "shared", name) | _under(tensors, str(fold), name) for name in scored},
            popularity=_under(tensors, str(fold), "popularity"),
            calibration={
                member: dict(zip(weight_names(), row, strict=True)) for member, row in zip(MEMBERS, table, strict=True)
            },
        )

    def probabilities(
        self, batch: Batch, *, member: str = "mixture", dtype: Any = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """P(i | context) of a member, and the prior P(i | t): [B, N] each, 0 for items that are not eligible."""
        weights = self.calibration[member]
        instant = self._instant(batch)
        prior = _normalised(self._table("popularity", dtype)[instant], batch)
        if member == "popularity":
            return prior, prior
        logits = self._table(member, dtype)[instant]
        for name in self.estimators:
            if weights[name] != 0:
                logits.add_(self.score(name, batch, dtype), alpha=weights[name])
        p = _normalised(logits, batch)
        backoff = weights["backoff"]
        return (p.mul_(1 - backoff).add_(prior, alpha=backoff) if backoff else p), prior

    def score(self, name: str, batch: Batch, dtype: Any = torch.float32) -> torch.Tensor:
        """One estimator's scores: [B, N]."""
        return scores(name, self.parameters[name], batch, self._table("log_prior", dtype))

    def features(self, batch: Batch) -> list[torch.Tensor]:
        """Popularity's features as of each event: [B, N] for each of `popularity.FEATURES`."""
        instant = self._instant(batch)
        return [self.popularity[name][instant] for name in _FEATURES]

    def _instant(self, batch: Batch) -> torch.Tensor:
        return (torch.searchsorted(self.popularity["instants"], batch.time, right=True) - 1).clamp(min=0)

    def _table(self, name: str, dtype: Any) -> torch.Tensor:
        """A member's weighted features [G, N], or ``log_prior`` [N]; worked out once."""
        if (name, dtype) not in self._tables:
            if name == "log_prior":
                table = popularity.log_prior(self.popularity)
            else:
                weights = self.calibration[name]
                table = torch.stack([weights[feature] * self.popularity[feature] for feature in _FEATURES]).sum(0)
            self._tables[name, dtype] = table.to(dtype)
        return self._tables[name, dtype]


def _normalised(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Softmax over the eligible items, in place; rows without any come out 0."""
    items = torch.arange(logits.shape[1], device=logits.device)
    logits.masked_fill_(items >= batch.eligible[:, None], -torch.inf)
    top = logits.amax(1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    p = logits.sub_(top).exp_()
    return p.div_(p.sum(1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny))


def _under(tensors: dict[str, torch.Tensor], part: str, name: str) -> dict[str, torch.Tensor]:
    prefix = f"{part}/{name}/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
