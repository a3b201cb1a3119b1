# SPDX-License-Identifier: Apache-2.0
"""Attribution of a probability to the terms of an item's logit: estimators, and features of popularity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from scalr_prod.translator.context_batch import ContextBatch
from scalr_prod.translator.estimators import popularity, scores

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from scalr_prod.translator.data.contexts import Contexts
    from scalr_prod.translator.mixture import EncodedBatch, Mixture
    from scalr_prod.translator.module import TranslatorModule


_COMPONENT: Final = "mixture"
#: Contexts that are processed at once.
_ROWS_AT_ONCE: Final = 64


@dataclass(frozen=True)
class Term:
    """One term of an item's logit.

    Attributes:
        name: Name of the estimator, or of the feature of popularity.
        kind: ``estimator`` or ``popularity``.
        logit: Its weight times its score, in nats.
        above: ``logit`` minus its prior-weighted mean over all eligible items: the term's contribution for this item in particular. A value
            of 0.7 doubles the odds.
    """

    name: str
    kind: str
    logit: float
    above: float


@dataclass(frozen=True)
class Attribution:
    """A probability and its terms: ``log P = Σ logit - log_normaliser``.

    Attributes:
        probability: P(item | context), in float64; 0 if the item is not eligible.
        prior: P(item) by popularity at that time, over the same items.
        log_normaliser: Logarithm of the sum of e^logit over all eligible items.
        terms: Terms with a weight other than 0.
    """

    probability: float
    prior: float
    log_normaliser: float
    terms: list[Term]


@torch.inference_mode()
def attribute(module: TranslatorModule, contexts: Contexts, items: NDArray[np.int32]) -> list[Attribution]:
    """Attribute P(item | context) to its terms, for each context.

    Args:
        module: A translator version.
        contexts: B contexts.
        items: int32 [B]. Target indices.

    Returns:
        One attribution per context, in order.
    """
    attributions: dict[int, Attribution] = {}
    for fold in np.unique(contexts.fold).tolist():
        rows = np.flatnonzero(contexts.fold == fold)
        mixture = module.parameter_set(fold)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            chunk = rows[start : start + _ROWS_AT_ONCE]
            batch = ContextBatch.from_contexts(contexts.take(chunk), module.first_seen)
            chunk_items = torch.from_numpy(items[chunk]).to(module.device, torch.int64)
            encoded = mixture.encode(batch, ("popularity", _COMPONENT))
            attributions |= dict(zip(chunk.tolist(), _attribute_batch(mixture, encoded, chunk_items), strict=True))
    return [attributions[row] for row in range(len(items))]


def _attribute_batch(mixture: Mixture, encoded: EncodedBatch, items: torch.Tensor) -> Iterator[Attribution]:
    """Yield the attribution of each context's item, int64 [B]."""
    batch = encoded.batch
    ineligible = batch.ineligible_mask(len(mixture.popularity["prior"]))
    counts = popularity.log_counts(mixture.popularity, batch.time, torch.float64)
    prior_logits = sum(term for _, term in _features(encoded, counts, "popularity")) + torch.zeros(
        ineligible.shape, dtype=torch.float64
    )
    prior = prior_logits.masked_fill(ineligible, -torch.inf).softmax(1).nan_to_num()
    names: list[tuple[str, str]] = []
    logits = torch.zeros_like(prior)
    own, above = [], []
    for name, kind, term in _terms(mixture, encoded, counts):
        names.append((name, kind))
        logits += term
        own.append(term.gather(1, items[:, None])[:, 0])
        above.append(own[-1] - (prior * term).sum(1))
    normaliser = logits.masked_fill(ineligible, -torch.inf).logsumexp(1)
    eligible = ~ineligible.gather(1, items[:, None])[:, 0]
    log_p = logits.gather(1, items[:, None])[:, 0] - normaliser
    for row in range(len(items)):
        terms = [Term(*name, float(a[row]), float(b[row])) for name, a, b in zip(names, own, above, strict=True)]
        p = float(log_p[row].exp()) if eligible[row] else 0.0
        yield Attribution(p, float(prior[row, items[row]]), float(normaliser[row]), terms)


def _terms(
    mixture: Mixture, encoded: EncodedBatch, counts: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield name, kind and value of each term of the mixture's logits, float64 [B, N]."""
    log_prior = mixture.popularity["prior"].double()
    for name, estimator in mixture.estimators.items():
        weight = mixture.calibration[_COMPONENT][name]
        if weight == 0:
            continue
        if name in encoded.scores:
            score = encoded.scores[name].double()
        else:
            user = encoded.user_vectors.get(name)
            score = scores(estimator, mixture.parameters[name], encoded.batch, log_prior, user=user)
        yield name, "estimator", weight * score
    for name, term in _features(encoded, counts, _COMPONENT):
        yield name, "popularity", term


def _features(encoded: EncodedBatch, counts: Mapping[str, torch.Tensor], component: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a component's weighted features of popularity, float64 [B, N]."""
    weights = encoded.feature_weights[component].reshape(-1, len(popularity.FEATURES))
    for number, name in enumerate(popularity.FEATURES):
        if weights[:, number].any():
            yield name, weights[:, number, None] * popularity.feature_values(counts, name)
