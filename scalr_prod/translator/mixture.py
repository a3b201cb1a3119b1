"""One parameter set's estimators, and how they become one calibrated distribution.

Every estimator e has a score s_e(i | context); popularity is the prior. A *member* is the mixture or one estimator alone:

    P(i | context) = (1 - ε) softmax_i( Σ_e c_e s_e(i | context) + b log P(i) ) + ε P(i)

over the eligible items, with c, b and ε fitted by log-likelihood on a slice of time (`calibration`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from scalr_prod.translator.estimators import SCORED, scores

if TYPE_CHECKING:
    from scalr_prod.translator.batch import Batch

__all__ = ["MEMBERS", "Mixture"]

#: Rows of a calibration table.
MEMBERS: Final = ("mixture", "popularity", *SCORED)


@dataclass(frozen=True)
class Mixture:
    """A parameter set.

    Attributes:
        log_prior: float32 [N]. Log of popularity, calibrated: softmax over the eligible items gives the prior.
        estimators: Names of those with a score, in order.
        parameters: Their tensors.
        calibration: float32 [len(MEMBERS), len(SCORED) + 2]: each member's c_e by estimator, then b, then ε.
    """

    log_prior: torch.Tensor
    estimators: tuple[str, ...]
    parameters: dict[str, dict[str, torch.Tensor]]
    calibration: dict[str, tuple[float, ...]]

    @classmethod
    def of(cls, tensors: dict[str, torch.Tensor], fold: int, estimators: list[str]) -> Mixture:
        """The set of a fold, out of a version's tensors (``<set>/<estimator>/<name>``; set ``shared`` is part of every one)."""
        scored = tuple(name for name in SCORED if name in estimators)
        table = tensors["shared/calibration/all" if fold < 0 else "shared/calibration/held_out"].tolist()
        return cls(
            log_prior=tensors[f"{fold}/popularity/log_prior"],
            estimators=scored,
            parameters={name: _under(tensors, "shared", name) | _under(tensors, str(fold), name) for name in scored},
            calibration={member: tuple(row) for member, row in zip(MEMBERS, table, strict=True)},
        )

    def probabilities(
        self, batch: Batch, *, member: str = "mixture", dtype: Any = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """P(i | context) of a member, and the prior P(i): [B, N] each, 0 for items that are not eligible."""
        weights = self.calibration[member]
        log_prior = self.log_prior.to(dtype)
        items = torch.arange(len(log_prior), device=log_prior.device)
        hidden = items >= batch.eligible[:, None]
        logits = (weights[-2] * log_prior).expand(len(hidden), -1).clone()
        for name, parameters in self.parameters.items():
            weight = weights[SCORED.index(name)]
            if weight != 0:
                logits.add_(scores(name, parameters, batch, log_prior), alpha=weight)
        prior = _softmax(log_prior.expand_as(logits).clone(), hidden, self.calibration["popularity"][-2])
        p = _softmax(logits, hidden, 1.0)
        backoff = weights[-1]
        return (p.mul_(1 - backoff).add_(prior, alpha=backoff) if backoff else p), prior


def _softmax(logits: torch.Tensor, hidden: torch.Tensor, scale: float) -> torch.Tensor:
    logits.mul_(scale).masked_fill_(hidden, -torch.inf)
    top = logits.amax(1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    p = logits.sub_(top).exp_()
    return p.div_(p.sum(1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny))


def _under(tensors: dict[str, torch.Tensor], part: str, name: str) -> dict[str, torch.Tensor]:
    prefix = f"{part}/{name}/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
