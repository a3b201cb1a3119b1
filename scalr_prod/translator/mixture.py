# SPDX-License-Identifier: Apache-2.0
"""Mixture of one parameter set's estimators as one calibrated distribution.

Every estimator e has a score s_e(i | context); popularity has features f(i, t) of an item at a time. A *component* is the mixture or one
estimator alone:

    P(i | context) = softmax_i( Σ_e c_e s_e(i | context) + Σ_f (b_f + Σ_z d_fz z(context)) f(i, t) )

over the eligible items, with c ≥ 0, b and d fitted by log-likelihood on a slice of time (`calibration`). The component ``popularity``,
which has no score, is the prior P(i | t): what all users choose at that time. The mixture is what this user would choose: the same features
weighted by the user's traits z (`history_traits`; only the mixture uses them), and the estimators' scores of the history.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    from collections.abc import Mapping, Sequence

    from scalr_prod.translator.context_batch import ContextBatch


_FEATURES: Final = popularity.FEATURES


@dataclass(frozen=True)
class EncodedBatch:
    """A batch's histories encoded by a parameter set, in float64, so that rounding to float32 happens once.

    Attributes:
        batch: The B contexts.
        feature_weights: Component → weights of popularity's features, [F], or [B, F] if traits modify them.
        user_vectors: Estimator with a product score → user vectors [B, d].
        scores: Estimator with neither a product score nor a log score → scores of all items [B, N].
    """

    batch: ContextBatch
    feature_weights: dict[str, torch.Tensor]
    user_vectors: dict[str, torch.Tensor]
    scores: dict[str, torch.Tensor]

    def take(self, rows: torch.Tensor) -> EncodedBatch:
        """Select rows."""
        weights = {
            component: weight if weight.ndim == 1 else weight[rows] for component, weight in self.feature_weights.items()
        }
        users, scores_ = (
            {name: tensor[rows] for name, tensor in by_name.items()} for by_name in (self.user_vectors, self.scores)
        )
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
        return cls(features, sizes, features.amax(1), {name: bounds.amax() for name, bounds in sizes.items()})


@dataclass
class Mixture:
    """A parameter set.

    Attributes:
        estimators: Estimators with a score, by name, in order.
        parameters: Estimator → its tensors.
        popularity: Tensors of `popularity.fit`, and the log prior.
        traits: Tensors of `history_traits.fit`, and the traits' mean and standard deviation.
        calibration: Component → weight name → weight.
        score_bounds: Bounds of features and scores, for rounding errors.
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
        parameters = {name: _with_prefix(tensors, "shared", name) | _with_prefix(tensors, own, name) for name in scored}
        popularity_parameters = _with_prefix(tensors, "shared", "popularity") | _with_prefix(tensors, own, "popularity")
        return cls(
            estimators={name: estimators[name] for name in scored},
            parameters=parameters,
            popularity=popularity_parameters,
            traits=_with_prefix(tensors, "shared", "tastes"),
            calibration=layout.weights_by_name(table, CalibrationLayout.from_estimators(scored)),
            score_bounds=ScoreBounds.from_parameters(estimators, parameters, popularity_parameters),
        )

    def encode(self, batch: ContextBatch, components: Sequence[str]) -> EncodedBatch:
        """Encode the histories of a batch for some components."""
        users, exact = {}, {}
        for name, estimator in self.estimators.items():
            if all(self.calibration[component][name] == 0 for component in components):
                continue
            if has_product_score(estimator):
                users[name] = estimator.user(self.parameters[name], batch)
            elif not has_log_score(estimator):
                exact[name] = self._exact_scores(name, batch)
        weights = {component: self._feature_weights(component, batch) for component in components}
        return EncodedBatch(batch, weights, users, exact)

    def distributions(self, encoded: EncodedBatch, *, dtype: Any = torch.float32) -> dict[str, torch.Tensor]:
        """Return P(i | context) of the encoded components: component → [B, N], 0 for ineligible items."""
        logits = self.all_logits(encoded, dtype)
        ineligible = encoded.batch.ineligible_mask(len(self.popularity["prior"]))
        is_empty = ineligible.all(1)
        return {component: _softmax(component_logits, ineligible, is_empty) for component, component_logits in logits.items()}

    def all_logits(self, encoded: EncodedBatch, dtype: Any = torch.float32) -> dict[str, torch.Tensor]:
        """Return logits of all items, eligible or not, sharing features and scores among components: component → [B, N]."""
        batch, log_prior = encoded.batch, self.popularity["prior"].to(dtype)
        weights = [feature_weights.to(dtype) for feature_weights in encoded.feature_weights.values()]
        sums = popularity.weighted_features(self.popularity, batch.time, weights, dtype)
        logits = dict(zip(encoded.feature_weights, sums, strict=True))
        for name in self.estimators:
            used = [component for component in logits if self.calibration[component][name] != 0]
            if used:
                score = self._scores(encoded, name, log_prior)
                for component in used:
                    logits[component].add_(score, alpha=self.calibration[component][name])
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

        def select(sizes: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
            return (largest[..., None, None] if items is None else sizes[..., items]).double()

        used = {
            name: abs(self.calibration[component][name]) for name in self.estimators if self.calibration[component][name] != 0
        }
        weights = encoded.feature_weights[component].abs()
        dim = sum(  # products may be one sum, in any order
            encoded.user_vectors[name].shape[1]
            for name in used
            if name in encoded.user_vectors and not has_log_score(self.estimators[name])
        )
        additions = weights.shape[-1] + len(used)
        features = (additions + 6) * select(self.score_bounds.features, self.score_bounds.max_feature) + 6  # [F, B or 1, C]
        error = UNIT_ROUNDOFF * (weights.reshape(-1, weights.shape[-1]).T[..., None] * features).sum(0)
        for name, weight in used.items():
            if name in encoded.scores:
                magnitude = encoded.scores[name].abs()
                size = magnitude.amax(1, keepdim=True) if items is None else magnitude.gather(1, items)
                score = UNIT_ROUNDOFF * size
            elif has_log_score(self.estimators[name]):  # of a product, or of a sum of a few positive terms
                user = encoded.user_vectors.get(name)
                size = select(self.score_bounds.scores[name], self.score_bounds.max_score[name])
                score = UNIT_ROUNDOFF * ((24 if user is None else user.shape[1] + 8) + 4 * size)
            else:
                user = encoded.user_vectors[name]
                size = select(self.score_bounds.scores[name], self.score_bounds.max_score[name]) * user.norm(dim=1)[:, None]
                score = rounding_bound(dim) * size
            error = error + weight * (score + (additions + 2) * UNIT_ROUNDOFF * size)
        return error.expand(len(encoded.batch.time), -1)

    def _scores(
        self, encoded: EncodedBatch, name: str, log_prior: torch.Tensor, items: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return an estimator's scores of all items, or of the given ones, in the dtype of ``log_prior``."""
        if name in encoded.scores:
            score = encoded.scores[name].to(log_prior.dtype)
            return score if items is None else score.gather(1, items)
        return scores(
            self.estimators[name],
            self.parameters[name],
            encoded.batch,
            log_prior,
            user=encoded.user_vectors.get(name),
            items=items,
        )

    def _exact_scores(self, name: str, batch: ContextBatch) -> torch.Tensor:
        return validated_scores(name, self.estimators[name], self.parameters[name], batch, self.popularity["prior"])

    def standardized_traits(self, batch: ContextBatch) -> torch.Tensor:
        """Return the standardized traits of the users: float64 [B, T]."""
        return history_traits.standardize_traits(
            history_traits.raw_traits(self.traits, batch, torch.float64), self.traits["mean"], self.traits["spread"]
        )

    def _feature_weights(self, component: str, batch: ContextBatch) -> torch.Tensor:
        """Return a component's weights of popularity's features: b, float64 [F], or b + Σ_z d_z z(context), [B, F]."""

        def row(names: Sequence[str]) -> torch.Tensor:
            weights = [self.calibration[component][name] for name in names]
            return torch.tensor(weights, dtype=torch.float64, device=batch.time.device)

        tilt = torch.stack([row(trait_columns(trait)) for trait in TRAITS])
        return row(_FEATURES) + self.standardized_traits(batch) @ tilt if tilt.any() else row(_FEATURES)

    def estimator_scores(self, name: str, batch: ContextBatch) -> torch.Tensor:
        """Return one estimator's scores: float32 [B, N]."""
        estimator, prior = self.estimators[name], self.popularity["prior"]
        if has_product_score(estimator) or has_log_score(estimator):
            return scores(estimator, self.parameters[name], batch, prior)
        return self._exact_scores(name, batch).to(prior.dtype)

    def log_counts(self, time: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return logarithms of the items' decayed counts as of times, int64 [U]: name of `popularity.COUNT_NAMES` → [U, N]."""
        return popularity.log_counts(self.popularity, time)


def _softmax(logits: torch.Tensor, ineligible: torch.Tensor, is_empty: torch.Tensor) -> torch.Tensor:
    """Apply softmax over the eligible items, in place; rows without one are 0."""
    logits.masked_fill_(ineligible, -torch.inf)
    p = logits.sub_(logits.amax(1, keepdim=True)).exp_()
    # Summed in float64, so that the rounding errors of many items do not add up.
    p.div_(p.sum(1, keepdim=True, dtype=torch.float64).to(p.dtype))
    p[is_empty] = 0
    return p


def _with_prefix(tensors: dict[str, torch.Tensor], set_name: str, name: str) -> dict[str, torch.Tensor]:
    prefix = f"{set_name}/{name}/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
