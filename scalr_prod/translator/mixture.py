# SPDX-License-Identifier: Apache-2.0
"""Mixture of one parameter set's estimators as one calibrated distribution.

Every estimator e has a score s_e(i | context); popularity has features f(i, t) of an item at a time. A *component* is the mixture or one
estimator alone:

    P(i | context) = softmax_i( Σ_e c_e s_e(i | context) + Σ_f (b_f + Σ_z d_fz z(context)) f(i, t) )

over the eligible items, with c ≥ 0, b and d fitted by log-likelihood on a slice of time (`calibration`). The component ``popularity``,
which has no score, is the prior P(i | t): what all users choose at that time. The mixture is what this user would choose: the same features
weighted by the user's traits z (`tastes`; only the mixture uses them), and the estimators' scores of the history.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from scalr_prod.translator import tastes
from scalr_prod.translator.contexts import EVERYBODY, NEWCOMERS
from scalr_prod.translator.estimators import exact_scores, is_logarithm, is_product, popularity, scored_of, scores
from scalr_prod.translator.estimators.products import UNIT, lengths, rounding
from scalr_prod.translator.layout import Layout, tilts
from scalr_prod.translator.tastes import TASTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scalr_prod.translator.batch import Batch
    from scalr_prod.translator.pairs import Parameters

__all__ = ["PLAIN", "Histories", "Mixture", "Summary"]

_FEATURES: Final = popularity.FEATURES


@dataclass(frozen=True)
class Histories:
    """Functions that encode histories.

    Attributes:
        told: Computes `tastes.raw` in float64.
        users: Estimator → function used in place of its ``user``.
    """

    told: Callable[[Parameters, Batch], torch.Tensor]
    users: Mapping[Any, Callable[[Parameters, Batch], torch.Tensor]]


#: The plain torch code.
PLAIN: Final = Histories(partial(tastes.raw, dtype=torch.float64), {})


@dataclass(frozen=True)
class Summary:
    """A batch's histories as encoded by a parameter set, once for all uses, in float64 so that rounding adds nothing.

    Attributes:
        batch: The B contexts.
        weights: Member → weights of popularity's features, [F] or [B, F].
        users: Estimator whose score is a product → users' vectors [B, d].
        scores: Estimator that is neither a product nor a logarithm → scores of all items [B, N].
    """

    batch: Batch
    weights: dict[str, torch.Tensor]
    users: dict[str, torch.Tensor]
    scores: dict[str, torch.Tensor]

    def take(self, rows: torch.Tensor) -> Summary:
        """Select rows."""
        weights = {member: one if one.ndim == 1 else one[rows] for member, one in self.weights.items()}
        users, scores_ = ({name: x[rows] for name, x in of_each.items()} for of_each in (self.users, self.scores))
        return Summary(self.batch.take(rows), weights, users, scores_)


@dataclass(frozen=True)
class Sizes:
    """Upper bounds of the sizes of a parameter set's features and scores, for `Mixture.rounding`.

    Attributes:
        features: float32 [F, N]. Popularity's features.
        scores: Estimator that is a product or a logarithm → its scores, or the lengths of its items' vectors: float32 [N].
        any_feature: float32 [F]. Maximum over the items.
        any_score: Estimator → maximum over the items.
    """

    features: torch.Tensor
    scores: dict[str, torch.Tensor]
    any_feature: torch.Tensor
    any_score: dict[str, torch.Tensor]

    @classmethod
    def of(
        cls,
        estimators: Mapping[str, Any],
        parameters: dict[str, dict[str, torch.Tensor]],
        of_popularity: dict[str, torch.Tensor],
    ) -> Sizes:
        """Compute the bounds of a parameter set."""
        sizes = {}
        for name, estimator in estimators.items():
            if is_logarithm(estimator):
                sizes[name] = estimator.largest(parameters[name], of_popularity["prior"])
            elif is_product(estimator):
                sizes[name] = lengths(estimator.vectors(parameters[name]))
        features = popularity.largest(of_popularity)
        return cls(features, sizes, features.amax(1), {name: of_each.amax() for name, of_each in sizes.items()})


@dataclass
class Mixture:
    """A parameter set.

    Attributes:
        estimators: Estimators with a score, by name, in order.
        parameters: Their tensors.
        popularity: The prior's tensors.
        tastes: Tensors that the traits are computed from.
        calibration: Component → weight name → weight.
        sizes: Bounds used for rounding errors.
    """

    estimators: dict[str, Any]
    parameters: dict[str, dict[str, torch.Tensor]]
    popularity: dict[str, torch.Tensor]
    tastes: dict[str, torch.Tensor]
    calibration: dict[str, dict[str, float]]
    sizes: Sizes

    @classmethod
    def of(cls, tensors: dict[str, torch.Tensor], fold: int, estimators: Mapping[str, Any], layout: Layout) -> Mixture:
        """Build a fold's set from a version's tensors (``<set>/<estimator>/<name>``; set ``shared`` is part of every one).

        Args:
            tensors: By name.
            fold: Number of the set.
            estimators: Estimators with a score, by name.
            layout: Layout of its calibration tables.

        Raises:
            KeyError: A tensor is missing: another package wrote the version.
            ValueError: A calibration weight is unknown: another package wrote the version.
        """
        missing = [name for name in popularity.TENSORS if f"shared/popularity/{name}" not in tensors]
        if missing:
            raise KeyError(f"shared/popularity/{missing[0]}")
        scored = scored_of(estimators)
        table = tensors["shared/calibration/all" if fold == EVERYBODY else "shared/calibration/held_out"]
        table = tensors.get(f"{fold}/calibration/held_out", table)  # calibrated without folds: one table for all
        own = str(EVERYBODY if fold == NEWCOMERS else fold)
        parameters = {name: _under(tensors, "shared", name) | _under(tensors, own, name) for name in scored}
        of_popularity = _under(tensors, "shared", "popularity") | _under(tensors, own, "popularity")
        return cls(
            estimators={name: estimators[name] for name in scored},
            parameters=parameters,
            popularity=of_popularity,
            tastes=_under(tensors, "shared", "tastes"),
            calibration=layout.by_name(table, Layout.of(scored)),
            sizes=Sizes.of(estimators, parameters, of_popularity),
        )

    def summary(self, batch: Batch, members: Sequence[str], how: Histories = PLAIN) -> Summary:
        """Encode the histories of a batch for some components."""
        users, exact = {}, {}
        for name, estimator in self.estimators.items():
            if all(self.calibration[member][name] == 0 for member in members):
                continue
            if is_product(estimator):
                users[name] = how.users.get(estimator, estimator.user)(self.parameters[name], batch)
            elif not is_logarithm(estimator):
                exact[name] = self._exact_scores(name, batch)
        weights = {member: self._feature_weights(member, batch, how) for member in members}
        return Summary(batch, weights, users, exact)

    def distributions(self, summary: Summary, *, dtype: Any = torch.float32) -> dict[str, torch.Tensor]:
        """Return P(i | context) of the encoded components: component → [B, N], 0 for items that cannot be proposed."""
        logits = self.logits_of_all(summary, dtype)
        hidden = summary.batch.hidden(len(self.popularity["prior"]))
        nothing = hidden.all(1)
        return {member: _normalised(of_member, hidden, nothing) for member, of_member in logits.items()}

    def logits_of_all(self, summary: Summary, dtype: Any = torch.float32) -> dict[str, torch.Tensor]:
        """Return logits of all items, eligible or not, sharing features and scores among components: component → [B, N]."""
        batch, log_prior = summary.batch, self.popularity["prior"].to(dtype)
        weights = [of_member.to(dtype) for of_member in summary.weights.values()]
        sums = popularity.weighted(self.popularity, batch.time, weights, dtype)
        logits = dict(zip(summary.weights, sums, strict=True))
        for name in self.estimators:
            heavy = [member for member in logits if self.calibration[member][name] != 0]
            if heavy:
                score = self._scores(summary, name, log_prior)
                for member in heavy:
                    logits[member].add_(score, alpha=self.calibration[member][name])
        return logits

    def logits(self, summary: Summary, member: str, items: torch.Tensor) -> torch.Tensor:
        """Return logits of the given items, int64 [B, C], in float64, eligible or not: [B, C]."""
        batch, log_prior = summary.batch, self.popularity["prior"].double()
        total = popularity.weighted_at(self.popularity, batch.time, summary.weights[member], items, torch.float64)
        for name in self.estimators:
            weight = self.calibration[member][name]
            if weight != 0:
                total += weight * self._scores(summary, name, log_prior, items)
        return total

    def rounding(self, summary: Summary, member: str, items: torch.Tensor | None = None) -> torch.Tensor:
        """Bound how far a component's logits in float32 may be from those in float64, whatever the order of summation.

        A feature is the logarithm (error: four units of its size) of a count (error: six units). Weights and users' vectors are
        rounded once, and so are scores computed in float64. Each term may be rounded at every addition that follows.

        Args:
            summary: B encoded contexts.
            member: One of its components.
            items: int64 [B, C]. Default: a bound for any item, [B, 1].

        Returns:
            float64 [B, C].
        """

        def of(sizes: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
            return (largest[..., None, None] if items is None else sizes[..., items]).double()

        heavy = {name: abs(self.calibration[member][name]) for name in self.estimators if self.calibration[member][name] != 0}
        weights = summary.weights[member].abs()
        dim = sum(  # products may be one sum, in any order
            summary.users[name].shape[1] for name in heavy if name in summary.users and not is_logarithm(self.estimators[name])
        )
        additions = weights.shape[-1] + len(heavy)
        features = (additions + 6) * of(self.sizes.features, self.sizes.any_feature) + 6  # [F, B or 1, C]
        off = UNIT * (weights.reshape(-1, weights.shape[-1]).T[..., None] * features).sum(0)
        for name, weight in heavy.items():
            if name in summary.scores:
                exact = summary.scores[name].abs()
                size = exact.amax(1, keepdim=True) if items is None else exact.gather(1, items)
                score = UNIT * size
            elif is_logarithm(self.estimators[name]):  # of a product, or of a sum of a few positive terms
                user = summary.users.get(name)
                size = of(self.sizes.scores[name], self.sizes.any_score[name])
                score = UNIT * ((24 if user is None else user.shape[1] + 8) + 4 * size)
            else:
                user = summary.users[name]
                size = of(self.sizes.scores[name], self.sizes.any_score[name]) * user.norm(dim=1)[:, None]
                score = rounding(dim) * size
            off = off + weight * (score + (additions + 2) * UNIT * size)
        return off.expand(len(summary.batch.time), -1)

    def _scores(self, summary: Summary, name: str, log_prior: torch.Tensor, items: torch.Tensor | None = None) -> torch.Tensor:
        """Return an estimator's scores of all items, or of the given ones, in the dtype of ``log_prior``."""
        if name in summary.scores:
            found = summary.scores[name].to(log_prior.dtype)
            return found if items is None else found.gather(1, items)
        return scores(
            self.estimators[name],
            self.parameters[name],
            summary.batch,
            log_prior,
            user=summary.users.get(name),
            items=items,
        )

    def _exact_scores(self, name: str, batch: Batch) -> torch.Tensor:
        return exact_scores(name, self.estimators[name], self.parameters[name], batch, self.popularity["prior"])

    def tastes_of(self, batch: Batch, how: Histories = PLAIN) -> torch.Tensor:
        """Return the users' traits in standard deviations: float64 [B, T]."""
        return tastes.standard(how.told(self.tastes, batch), self.tastes["mean"], self.tastes["spread"])

    def _feature_weights(self, member: str, batch: Batch, how: Histories) -> torch.Tensor:
        """Return b, or b + Σ_z d_z z(context) where traits tilt it: float64 [F] or [B, F]."""

        def row(names: Sequence[str]) -> torch.Tensor:
            weights = [self.calibration[member][name] for name in names]
            return torch.tensor(weights, dtype=torch.float64, device=batch.time.device)

        tilt = torch.stack([row(tilts(taste)) for taste in TASTES])
        return row(_FEATURES) + self.tastes_of(batch, how) @ tilt if tilt.any() else row(_FEATURES)

    def score(self, name: str, batch: Batch) -> torch.Tensor:
        """Return one estimator's scores: float32 [B, N]."""
        estimator, prior = self.estimators[name], self.popularity["prior"]
        if is_product(estimator) or is_logarithm(estimator):
            return scores(estimator, self.parameters[name], batch, prior)
        return self._exact_scores(name, batch).to(prior.dtype)

    def log_counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return logarithms of the items' decayed counts as of each event: name of `popularity.COUNTS` → [B, N]."""
        return popularity.log_counts(self.popularity, batch.time)


def _normalised(logits: torch.Tensor, hidden: torch.Tensor, nothing: torch.Tensor) -> torch.Tensor:
    """Apply softmax over the items that are not hidden; rows without an item are 0."""
    logits.masked_fill_(hidden, -torch.inf)
    p = logits.sub_(logits.amax(1, keepdim=True)).exp_()
    p.div_(p.sum(1, keepdim=True, dtype=torch.float64).to(p.dtype))  # so exact that many items' rounding does not add up
    p[nothing] = 0
    return p


def _under(tensors: dict[str, torch.Tensor], part: str, name: str) -> dict[str, torch.Tensor]:
    prefix = f"{part}/{name}/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
