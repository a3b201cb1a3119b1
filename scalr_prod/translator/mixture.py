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
from scalr_prod.translator.contexts import EVERYBODY, NEWCOMERS
from scalr_prod.translator.estimators import LOGARITHMS, PRODUCTS, SCORED, module_of, popularity, scores
from scalr_prod.translator.estimators.products import UNIT, lengths, rounding
from scalr_prod.translator.tastes import TASTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scalr_prod.translator.batch import Batch

__all__ = ["MEMBERS", "Mixture", "Summary", "by_member", "tilts", "weight_names"]

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


@dataclass(frozen=True)
class Summary:
    """What a parameter set makes of a batch's histories, once for all items, in float64: rounding adds nothing to it.

    Attributes:
        batch: Of B contexts.
        weights: Member → weights of popularity's features, [F] or [B, F].
        users: Estimator of `PRODUCTS` → users' vectors [B, d].
    """

    batch: Batch
    weights: dict[str, torch.Tensor]
    users: dict[str, torch.Tensor]

    def take(self, rows: torch.Tensor) -> Summary:
        """The named rows."""
        weights = {member: one if one.ndim == 1 else one[rows] for member, one in self.weights.items()}
        return Summary(self.batch.take(rows), weights, {name: user[rows] for name, user in self.users.items()})


@dataclass(frozen=True)
class Sizes:
    """What nothing in a parameter set is larger than, for `Mixture.rounding`.

    Attributes:
        features: float32 [F, N]. Popularity's features.
        scores: Estimator → its scores, or the lengths of its items' vectors: float32 [N].
    """

    features: torch.Tensor
    scores: dict[str, torch.Tensor]

    @classmethod
    def of(cls, parameters: dict[str, dict[str, torch.Tensor]], of_popularity: dict[str, torch.Tensor]) -> Sizes:
        """Those of a parameter set."""
        sizes = {}
        for name, tensors in parameters.items():
            if name in PRODUCTS and name not in LOGARITHMS:
                sizes[name] = lengths(module_of(name).vectors(tensors))
            else:
                sizes[name] = module_of(name).largest(tensors, of_popularity["prior"])
        return cls(popularity.largest(of_popularity), sizes)


@dataclass
class Mixture:
    """A parameter set.

    Attributes:
        estimators: Names of those with a score, in order.
        parameters: Their tensors.
        popularity: The prior's tensors.
        tastes: Those that tastes are told with.
        calibration: Member → weight name → weight.
        sizes: What bounds rounding.
    """

    estimators: tuple[str, ...]
    parameters: dict[str, dict[str, torch.Tensor]]
    popularity: dict[str, torch.Tensor]
    tastes: dict[str, torch.Tensor]
    calibration: dict[str, dict[str, float]]
    sizes: Sizes

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
        table = tensors["shared/calibration/all" if fold == EVERYBODY else "shared/calibration/held_out"]
        table = tensors.get(f"{fold}/calibration/held_out", table)  # calibrated without folds: one table for all
        own = str(EVERYBODY if fold == NEWCOMERS else fold)
        parameters = {name: _under(tensors, "shared", name) | _under(tensors, own, name) for name in scored}
        of_popularity = _under(tensors, "shared", "popularity") | _under(tensors, own, "popularity")
        return cls(
            estimators=scored,
            parameters=parameters,
            popularity=of_popularity,
            tastes=_under(tensors, "shared", "tastes"),
            calibration=by_member(table, columns),
            sizes=Sizes.of(parameters, of_popularity),
        )

    def summary(self, batch: Batch, members: Sequence[str]) -> Summary:
        """What members need to know of the histories of a batch."""
        heavy = [name for name in self.estimators if any(self.calibration[member][name] != 0 for member in members)]
        return Summary(
            batch=batch,
            weights={member: self._feature_weights(member, batch) for member in members},
            users={name: module_of(name).user(self.parameters[name], batch) for name in heavy if name in PRODUCTS},
        )

    def distributions(self, summary: Summary, *, dtype: Any = torch.float32) -> dict[str, torch.Tensor]:
        """P(i | context) of the summary's members: member → [B, N], 0 for items that cannot be proposed."""
        logits = self.logits_of_all(summary, dtype)
        hidden = summary.batch.hidden(len(self.popularity["prior"]))
        nothing = hidden.all(1)
        return {member: _normalised(of_member, hidden, nothing) for member, of_member in logits.items()}

    def logits_of_all(self, summary: Summary, dtype: Any = torch.float32) -> dict[str, torch.Tensor]:
        """Logits of all items, eligible or not; features and scores are worked out once for all members: member → [B, N]."""
        batch, log_prior = summary.batch, self.popularity["prior"].to(dtype)
        weights = [of_member.to(dtype) for of_member in summary.weights.values()]
        sums = popularity.weighted(self.popularity, batch.time, weights, dtype)
        logits = dict(zip(summary.weights, sums, strict=True))
        for name in self.estimators:
            heavy = [member for member in logits if self.calibration[member][name] != 0]
            if heavy:
                score = scores(name, self.parameters[name], batch, log_prior, user=summary.users.get(name))
                for member in heavy:
                    logits[member].add_(score, alpha=self.calibration[member][name])
        return logits

    def logits(self, summary: Summary, member: str, items: torch.Tensor) -> torch.Tensor:
        """Logits of named items, int64 [B, C], in float64: [B, C]. Eligible or not."""
        batch, log_prior = summary.batch, self.popularity["prior"].double()
        total = popularity.weighted_at(self.popularity, batch.time, summary.weights[member], items, torch.float64)
        for name in self.estimators:
            weight = self.calibration[member][name]
            if weight != 0:
                user = summary.users.get(name)
                total += weight * scores(name, self.parameters[name], batch, log_prior, user=user, items=items)
        return total

    def rounding(self, summary: Summary, member: str, items: torch.Tensor | None = None) -> torch.Tensor:
        """How far a member's logits in float32 may be from those in float64, whatever the order of summation.

        A feature is a logarithm (off by four units of its size) of a count (off by four units); weights and users' vectors are
        rounded once; each of the terms may be rounded at every addition that follows.

        Args:
            summary: Of B contexts.
            member: One of its members.
            items: int64 [B, C]. Default: a bound for whatever item, [B, 1].

        Returns:
            float64 [B, C].
        """

        def of(sizes: torch.Tensor) -> torch.Tensor:
            return (sizes.amax(-1)[..., None, None] if items is None else sizes[..., items]).double()

        heavy = {name: abs(self.calibration[member][name]) for name in self.estimators if self.calibration[member][name] != 0}
        weights = summary.weights[member].abs()
        additions = weights.shape[-1] + len(heavy)
        features = (additions + 6) * of(self.sizes.features) + 4  # [F, B or 1, C]
        off = UNIT * (weights.reshape(-1, weights.shape[-1]).T[..., None] * features).sum(0)
        for name, weight in heavy.items():
            size = of(self.sizes.scores[name])
            if name in LOGARITHMS:
                score = UNIT * (summary.users[name].shape[1] + 8 + 4 * size)
            elif name in PRODUCTS:
                user = summary.users[name]
                size = size * user.norm(dim=1)[:, None]
                score = rounding(user.shape[1]) * size
            else:  # a logarithm of a sum of a few positive terms
                score = UNIT * (24 + 4 * size)
            off = off + weight * (score + (additions + 2) * UNIT * size)
        return off.expand(len(summary.batch.time), -1)

    def tastes_of(self, batch: Batch, dtype: Any = torch.float32) -> torch.Tensor:
        """The users' tastes, in standard deviations: [B, T]."""
        told = tastes.raw(self.tastes, batch, dtype)
        return tastes.standard(told, self.tastes["mean"], self.tastes["spread"])

    def _feature_weights(self, member: str, batch: Batch) -> torch.Tensor:
        """b, or b + Σ_z d_z z(context) where tastes tilt it: float64 [F] or [B, F]."""

        def row(names: Sequence[str]) -> torch.Tensor:
            weights = [self.calibration[member][name] for name in names]
            return torch.tensor(weights, dtype=torch.float64, device=batch.time.device)

        tilt = torch.stack([row(tilts(taste)) for taste in TASTES])
        return row(_FEATURES) + self.tastes_of(batch, torch.float64) @ tilt if tilt.any() else row(_FEATURES)

    def score(self, name: str, batch: Batch) -> torch.Tensor:
        """One estimator's scores: float32 [B, N]."""
        return scores(name, self.parameters[name], batch, self.popularity["prior"])

    def log_counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Logarithms of the items' decayed counts as of each event: name of `popularity.COUNTS` → [B, N]."""
        return popularity.log_counts(self.popularity, batch.time)


def _normalised(logits: torch.Tensor, hidden: torch.Tensor, nothing: torch.Tensor) -> torch.Tensor:
    """Softmax over the items that are not hidden; rows where nothing is left come out 0."""
    logits.masked_fill_(hidden, -torch.inf)
    p = logits.sub_(logits.amax(1, keepdim=True)).exp_()
    p.div_(p.sum(1, keepdim=True, dtype=torch.float64).to(p.dtype))  # so exact that many items' rounding does not add up
    p[nothing] = 0
    return p


def _under(tensors: dict[str, torch.Tensor], part: str, name: str) -> dict[str, torch.Tensor]:
    prefix = f"{part}/{name}/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
