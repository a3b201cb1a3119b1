# SPDX-License-Identifier: Apache-2.0
"""Mixture of one parameter set's estimators as one calibrated distribution.

Every estimator e has a score s_e(i | context); popularity has features f(i, t) of an item at a time. A *component* is the mixture or one
estimator alone:

    P(i | context) = softmax_i( Σ_e c_e s_e(i | context) + Σ_f (b_f + Σ_z d_fz z(context)) f(i, t) )

over the eligible items, with c ≥ 0, b and d fitted by log-likelihood on a slice of time (`calibration`). The component ``popularity``,
which has no score, is the prior P(i | t): what all users choose at that time. The mixture is what this user would choose: the same features
weighted by the user's traits z (`traits`; only the mixture uses them), and the estimators' scores of the history.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from scalr_prod.translator.calibration_table import CalibrationLayout, trait_columns
from scalr_prod.translator.data import history_traits
from scalr_prod.translator.data.contexts import ALL_USERS, COLD_USERS
from scalr_prod.translator.data.history_traits import TRAITS
from scalr_prod.translator.estimators import (
    has_log_score,
    has_product_score,
    popularity,
    scored_estimators,
    scores,
    validated_scores,
)
from scalr_prod.translator.estimators.dot_products import UNIT_ROUNDOFF, norm_bounds, rounding_bound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scalr_prod.translator.context_batch import ContextBatch
    from scalr_prod.translator.data.training_pairs import Parameters

__all__ = ["TORCH_BACKEND", "EncodedBatch", "EncoderBackend", "Mixture"]

_FEATURES: Final = popularity.FEATURES


@dataclass(frozen=True)
class EncoderBackend:
    """Functions that encode histories.

    Attributes:
        raw_traits: Computes `history_traits.raw_traits` in float64.
        user_encoders: Estimator → function used in place of its ``user``.
    """

    raw_traits: Callable[[Parameters, ContextBatch], torch.Tensor]
    user_encoders: Mapping[Any, Callable[[Parameters, ContextBatch], torch.Tensor]]


#: The plain torch code.
TORCH_BACKEND: Final = EncoderBackend(partial(history_traits.raw_traits, dtype=torch.float64), {})


@dataclass(frozen=True)
class EncodedBatch:
    """A batch's histories as encoded by a parameter set, once for all uses, in float64 so that rounding adds nothing.

    Attributes:
        batch: The B contexts.
        feature_weights: Member → weights of popularity's features, [F] or [B, F].
        user_vectors: Estimator whose score is a product → users' vectors [B, d].
        scores: Estimator that is neither a product nor a logarithm → scores of all items [B, N].
    """

    batch: ContextBatch
    feature_weights: dict[str, torch.Tensor]
    user_vectors: dict[str, torch.Tensor]
    scores: dict[str, torch.Tensor]

    def take(self, rows: torch.Tensor) -> EncodedBatch:
        """Select rows."""
        weights = {member: one if one.ndim == 1 else one[rows] for member, one in self.feature_weights.items()}
        users, scores_ = ({name: x[rows] for name, x in of_each.items()} for of_each in (self.user_vectors, self.scores))
        return EncodedBatch(self.batch.take(rows), weights, users, scores_)


@dataclass(frozen=True)
class ScoreBounds:
    """Upper bounds of the sizes of a parameter set's features and scores, for `Mixture.rounding_bound`.

    Attributes:
        features: float32 [F, N]. Popularity's features.
        scores: Estimator that is a product or a logarithm → its scores, or the lengths of its items' vectors: float32 [N].
        max_feature: float32 [F]. Maximum over the items.
        max_score: Estimator → maximum over the items.
    """

    features: torch.Tensor
    scores: dict[str, torch.Tensor]
    max_feature: torch.Tensor
    max_score: dict[str, torch.Tensor]

    @classmethod
    def from_parameters(
        cls,
        estimators: Mapping[str, Any],
        parameters: dict[str, dict[str, torch.Tensor]],
        popularity_parameters: dict[str, torch.Tensor],
    ) -> ScoreBounds:
        """Compute the bounds of a parameter set."""
        sizes = {}
        for name, estimator in estimators.items():
            if has_log_score(estimator):
                sizes[name] = estimator.largest(parameters[name], popularity_parameters["prior"])
            elif has_product_score(estimator):
                sizes[name] = norm_bounds(estimator.vectors(parameters[name]))
        features = popularity.feature_bounds(popularity_parameters)
        return cls(features, sizes, features.amax(1), {name: of_each.amax() for name, of_each in sizes.items()})


@dataclass
class Mixture:
    """A parameter set.

    Attributes:
        estimators: Estimators with a score, by name, in order.
        parameters: Their tensors.
        popularity: The prior's tensors.
        traits: Tensors that the traits are computed from.
        calibration: Component → weight name → weight.
        score_bounds: Bounds used for rounding errors.
    """

    estimators: dict[str, Any]
    parameters: dict[str, dict[str, torch.Tensor]]
    popularity: dict[str, torch.Tensor]
    traits: dict[str, torch.Tensor]
    calibration: dict[str, dict[str, float]]
    score_bounds: ScoreBounds

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, torch.Tensor], fold: int, estimators: Mapping[str, Any], layout: CalibrationLayout
    ) -> Mixture:
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
        missing = [name for name in popularity.TENSOR_NAMES if f"shared/popularity/{name}" not in tensors]
        if missing:
            raise KeyError(f"shared/popularity/{missing[0]}")
        scored = scored_estimators(estimators)
        table = tensors["shared/calibration/all" if fold == ALL_USERS else "shared/calibration/held_out"]
        table = tensors.get(f"{fold}/calibration/held_out", table)  # calibrated without folds: one table for all
        own = str(ALL_USERS if fold == COLD_USERS else fold)
        parameters = {name: _under(tensors, "shared", name) | _under(tensors, own, name) for name in scored}
        of_popularity = _under(tensors, "shared", "popularity") | _under(tensors, own, "popularity")
        return cls(
            estimators={name: estimators[name] for name in scored},
            parameters=parameters,
            popularity=of_popularity,
            traits=_under(tensors, "shared", "tastes"),
            calibration=layout.weights_by_name(table, CalibrationLayout.from_estimators(scored)),
            score_bounds=ScoreBounds.from_parameters(estimators, parameters, of_popularity),
        )

    def encode(self, batch: ContextBatch, components: Sequence[str], backend: EncoderBackend = TORCH_BACKEND) -> EncodedBatch:
        """Encode the histories of a batch for some components."""
        users, exact = {}, {}
        for name, estimator in self.estimators.items():
            if all(self.calibration[member][name] == 0 for member in components):
                continue
            if has_product_score(estimator):
                users[name] = backend.user_encoders.get(estimator, estimator.user)(self.parameters[name], batch)
            elif not has_log_score(estimator):
                exact[name] = self._exact_scores(name, batch)
        weights = {member: self._feature_weights(member, batch, backend) for member in components}
        return EncodedBatch(batch, weights, users, exact)

    def distributions(self, encoded: EncodedBatch, *, dtype: Any = torch.float32) -> dict[str, torch.Tensor]:
        """Return P(i | context) of the encoded components: component → [B, N], 0 for items that cannot be proposed."""
        logits = self.all_logits(encoded, dtype)
        hidden = encoded.batch.ineligible_mask(len(self.popularity["prior"]))
        nothing = hidden.all(1)
        return {member: _normalised(of_member, hidden, nothing) for member, of_member in logits.items()}

    def all_logits(self, encoded: EncodedBatch, dtype: Any = torch.float32) -> dict[str, torch.Tensor]:
        """Return logits of all items, eligible or not, sharing features and scores among components: component → [B, N]."""
        batch, log_prior = encoded.batch, self.popularity["prior"].to(dtype)
        weights = [of_member.to(dtype) for of_member in encoded.feature_weights.values()]
        sums = popularity.weighted_features(self.popularity, batch.time, weights, dtype)
        logits = dict(zip(encoded.feature_weights, sums, strict=True))
        for name in self.estimators:
            heavy = [member for member in logits if self.calibration[member][name] != 0]
            if heavy:
                score = self._scores(encoded, name, log_prior)
                for member in heavy:
                    logits[member].add_(score, alpha=self.calibration[member][name])
        return logits

    def logits(self, encoded: EncodedBatch, component: str, items: torch.Tensor) -> torch.Tensor:
        """Return logits of the given items, int64 [B, C], in float64, eligible or not: [B, C]."""
        batch, log_prior = encoded.batch, self.popularity["prior"].double()
        total = popularity.weighted_item_features(
            self.popularity, batch.time, encoded.feature_weights[component], items, torch.float64
        )
        for name in self.estimators:
            weight = self.calibration[component][name]
            if weight != 0:
                total += weight * self._scores(encoded, name, log_prior, items)
        return total

    def rounding_bound(self, encoded: EncodedBatch, component: str, items: torch.Tensor | None = None) -> torch.Tensor:
        """Bound how far a component's logits in float32 may be from those in float64, whatever the order of summation.

        A feature is the logarithm (error: four units of its size) of a count (error: six units). Weights and users' vectors are
        rounded once, and so are scores computed in float64. Each term may be rounded at every addition that follows.

        Args:
            encoded: B encoded contexts.
            component: One of its components.
            items: int64 [B, C]. Default: a bound for any item, [B, 1].

        Returns:
            float64 [B, C].
        """

        def of(sizes: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
            return (largest[..., None, None] if items is None else sizes[..., items]).double()

        heavy = {
            name: abs(self.calibration[component][name]) for name in self.estimators if self.calibration[component][name] != 0
        }
        weights = encoded.feature_weights[component].abs()
        dim = sum(  # products may be one sum, in any order
            encoded.user_vectors[name].shape[1]
            for name in heavy
            if name in encoded.user_vectors and not has_log_score(self.estimators[name])
        )
        additions = weights.shape[-1] + len(heavy)
        features = (additions + 6) * of(self.score_bounds.features, self.score_bounds.max_feature) + 6  # [F, B or 1, C]
        off = UNIT_ROUNDOFF * (weights.reshape(-1, weights.shape[-1]).T[..., None] * features).sum(0)
        for name, weight in heavy.items():
            if name in encoded.scores:
                exact = encoded.scores[name].abs()
                size = exact.amax(1, keepdim=True) if items is None else exact.gather(1, items)
                score = UNIT_ROUNDOFF * size
            elif has_log_score(self.estimators[name]):  # of a product, or of a sum of a few positive terms
                user = encoded.user_vectors.get(name)
                size = of(self.score_bounds.scores[name], self.score_bounds.max_score[name])
                score = UNIT_ROUNDOFF * ((24 if user is None else user.shape[1] + 8) + 4 * size)
            else:
                user = encoded.user_vectors[name]
                size = of(self.score_bounds.scores[name], self.score_bounds.max_score[name]) * user.norm(dim=1)[:, None]
                score = rounding_bound(dim) * size
            off = off + weight * (score + (additions + 2) * UNIT_ROUNDOFF * size)
        return off.expand(len(encoded.batch.time), -1)

    def _scores(
        self, summary: EncodedBatch, name: str, log_prior: torch.Tensor, items: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return an estimator's scores of all items, or of the given ones, in the dtype of ``log_prior``."""
        if name in summary.scores:
            found = summary.scores[name].to(log_prior.dtype)
            return found if items is None else found.gather(1, items)
        return scores(
            self.estimators[name],
            self.parameters[name],
            summary.batch,
            log_prior,
            user=summary.user_vectors.get(name),
            items=items,
        )

    def _exact_scores(self, name: str, batch: ContextBatch) -> torch.Tensor:
        return validated_scores(name, self.estimators[name], self.parameters[name], batch, self.popularity["prior"])

    def standardized_traits(self, batch: ContextBatch, backend: EncoderBackend = TORCH_BACKEND) -> torch.Tensor:
        """Return the users' traits in standard deviations: float64 [B, T]."""
        return history_traits.standardize_traits(
            backend.raw_traits(self.traits, batch), self.traits["mean"], self.traits["spread"]
        )

    def _feature_weights(self, member: str, batch: ContextBatch, how: EncoderBackend) -> torch.Tensor:
        """Return b, or b + Σ_z d_z z(context) where traits tilt it: float64 [F] or [B, F]."""

        def row(names: Sequence[str]) -> torch.Tensor:
            weights = [self.calibration[member][name] for name in names]
            return torch.tensor(weights, dtype=torch.float64, device=batch.time.device)

        tilt = torch.stack([row(trait_columns(taste)) for taste in TRAITS])
        return row(_FEATURES) + self.standardized_traits(batch, how) @ tilt if tilt.any() else row(_FEATURES)

    def estimator_scores(self, name: str, batch: ContextBatch) -> torch.Tensor:
        """Return one estimator's scores: float32 [B, N]."""
        estimator, prior = self.estimators[name], self.popularity["prior"]
        if has_product_score(estimator) or has_log_score(estimator):
            return scores(estimator, self.parameters[name], batch, prior)
        return self._exact_scores(name, batch).to(prior.dtype)

    def log_counts(self, batch: ContextBatch) -> dict[str, torch.Tensor]:
        """Return logarithms of the items' decayed counts as of each event: name of `popularity.COUNT_NAMES` → [B, N]."""
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
