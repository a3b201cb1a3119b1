# SPDX-License-Identifier: Apache-2.0
"""Sequential estimator: a causal transformer over the source history, whose state after an event predicts the next target events.

It has one attention block (see `attention`); the score is the dot product of the state and the target items' vectors. First the block and
the source items' vectors are pretrained to predict the next source event (see `pretraining`), once for all parameter sets. Then all
parameters maximise the likelihood of target events given the last source event before each. Their popularity at that time is a fixed
offset, so that the state explains what popularity does not. Source vectors are initialised with principal components of the source domain,
target vectors with ridge coefficients of the states.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch

from scalr_prod.translator.devices import to_device, with_cpu_fallback
from scalr_prod.translator.estimators import attention, linear, popularity, sampled_softmax
from scalr_prod.translator.estimators.dot_products import dot_product_scores
from scalr_prod.translator.estimators.lazy_adamw import LazyAdamW
from scalr_prod.translator.estimators.pretraining import pretrain
from scalr_prod.translator.estimators.sampled_softmax import Negatives
from scalr_prod.translator.estimators.window_index import TrainingWindows
from scalr_prod.translator.worker_pool import check_cancelled

if TYPE_CHECKING:
    from scalr_prod.translator.context_batch import ContextBatch
    from scalr_prod.translator.data.training_pairs import Parameters, TrainingSlice


logger = logging.getLogger(__name__)

version: Final = 1

LEARNING_RATE: Final = 2e-3
WEIGHT_DECAY: Final = 1e-2
#: λ of the ridge regression that initialises target vectors, in units of a state's mean squared norm.
RIDGE: Final = 3.0
#: Times at which the popularity offset is computed.
INSTANTS: Final = 256


def share(pairs: TrainingSlice) -> Parameters:
    """Pretrain the block and the source items' vectors (``source`` float32 [n_source + 1, d]) on source events."""
    return with_cpu_fallback(pairs.device, lambda device: _share(replace(pairs, device=device)))


def fit(pairs: TrainingSlice, shared: Parameters) -> Parameters:
    """Train for ``[translator] epochs``, but at most ``sequential_steps``: the tensors of `share`, and ``target`` float32 [n_target, d]."""
    return with_cpu_fallback(pairs.device, lambda device: _fit(replace(pairs, device=device), shared))


def _share(pairs: TrainingSlice) -> Parameters:
    generator = torch.Generator().manual_seed(pairs.settings.seed)
    dim = pairs.settings.dim
    basis = torch.from_numpy(linear.source_basis(pairs, dim))
    # There are fewer than dim components if there are few items or users.
    source = torch.nn.functional.pad(basis, (0, dim - basis.shape[1]))
    source = (source / source[1:].std().clamp(min=1e-12)).contiguous()
    return pretrain(pairs, {"source": source, **attention.initial_weights(dim, generator)}, generator)


def _fit(pairs: TrainingSlice, shared: Parameters) -> Parameters:
    settings = pairs.settings
    windows = TrainingWindows.from_pairs(pairs)
    generator = torch.Generator().manual_seed(settings.seed)
    parameters = {name: tensor.to(pairs.device, copy=True) for name, tensor in shared.items()}
    parameters["target"] = _target_vectors(parameters, windows)
    offsets = _Popularity(pairs)
    wanted = windows.batch_count(settings.batch_size) * settings.epochs
    steps = min(wanted, settings.sequential_steps)
    if steps < wanted:
        logger.info("the sequential estimator takes %d of %d steps: [translator] sequential_steps", steps, wanted)
    tables = {name: parameters.pop(name) for name in ("source", "target")}
    learner = LazyAdamW(parameters, tables, steps=steps, rate=LEARNING_RATE, decay=WEIGHT_DECAY)
    epochs = (windows.iter_epoch(settings.batch_size, generator) for _ in range(settings.epochs))
    for cpu_batch in itertools.islice(itertools.chain.from_iterable(epochs), steps):
        check_cancelled(1 / steps)
        batch = cpu_batch.to(pairs.device)
        source, (items,) = learner.tables["source"].gather(cpu_batch.items)
        state = attention.window_states(
            learner.dense | {"source": source}, items, batch.days, (batch.row, batch.place), generator
        )
        negatives = Negatives.sample(offsets.sampling_probability, generator)
        target, (label, negative_rows) = learner.tables["target"].gather(cpu_batch.item, negatives.items)
        instant = offsets.instant(batch.time)
        loss = sampled_softmax.sampled_softmax_loss(
            state,
            target,
            sampled_softmax.Labels(label, offsets.table[batch.item, instant], instant, batch.weight),
            Negatives(negative_rows, to_device(negatives.log_expected, pairs.device)),
            offsets.table[to_device(negatives.items, pairs.device)].T.contiguous(),
        )
        learner.step(loss)
    return learner.final_parameters()


def user(parameters: Parameters, batch: ContextBatch) -> torch.Tensor:
    """Compute the state after the last event: float64 [B, d]; 0 if the history holds no known item."""
    p = {name: tensor if name == "source" else tensor.double() for name, tensor in parameters.items() if name != "target"}
    return attention.last_state(p, batch.items, batch.ages)


def vectors(parameters: Parameters) -> torch.Tensor:
    """Return each target item's vector: float32 [N, d]."""
    return parameters["target"]


def score(parameters: Parameters, batch: ContextBatch, log_prior: torch.Tensor) -> torch.Tensor:
    """Score all target items: [B, N] in the dtype of ``log_prior``; 0 if the history holds no known item."""
    return dot_product_scores(user(parameters, batch), vectors(parameters), log_prior.dtype)


@torch.no_grad()
def _target_vectors(p: Parameters, windows: TrainingWindows) -> torch.Tensor:
    """Regress target items on the states before their events (ridge), scaled to a mean norm of d^-½: float32 [n_target, d].

    One pass over the windows, but at most ``sequential_steps`` batches.
    """
    dim, device, pairs = p["source"].shape[1], p["source"].device, windows.index.pairs
    gram, sums, n_events = torch.zeros(dim, dim).double(), torch.zeros(pairs.n_target, dim).double(), 0
    batches = windows.iter_epoch(pairs.settings.batch_size, torch.Generator().manual_seed(0))
    for cpu_batch in itertools.islice(batches, pairs.settings.sequential_steps):
        batch = cpu_batch.to(device)
        # Summed on the CPU: a GPU sums in a nondeterministic order.
        state = attention.window_states(p, batch.items, batch.days, (batch.row, batch.place)).cpu().double()
        weighted = state if cpu_batch.weight is None else state * cpu_batch.weight[:, None]
        gram += state.T @ weighted
        sums.index_add_(0, cpu_batch.item, weighted)
        n_events += len(state)
    gram += RIDGE * (gram.trace() / max(n_events, 1)).clamp(min=1e-12) * torch.eye(dim)
    coefficients = torch.linalg.solve(gram, sums.T).T.float()
    return (coefficients / (coefficients.norm(dim=1).mean().clamp(min=1e-12) * dim**0.5)).contiguous().to(device, copy=True)


class _Popularity:
    """Approximate log popularity of target items as of an event: the fixed offset of the logits in training.

    Attributes:
        instants: int64 [G], ascending, on the device of the slice. Times of the columns.
        table: float32 [n_target, G], on the same device. Offset of each item at each time.
        sampling_probability: float32 [n_target], on the CPU. Probability of each item to be drawn as a negative.
    """

    def __init__(self, pairs: TrainingSlice) -> None:
        instants = popularity.choose_instants(pairs, INSTANTS)
        recent_weight = 0.8 if "popularity" in pairs.settings.estimators else 0.0
        table = popularity.log_popularity_at(
            popularity.fit(pairs), instants, {"count": 0.5, "days_20": recent_weight}
        ).T.contiguous()
        self.instants, self.table = instants.to(pairs.device), table.to(pairs.device)
        probability = popularity.log_popularity(pairs).exp()
        self.sampling_probability = 0.5 * probability + 0.5 / len(probability)

    def instant(self, time: torch.Tensor) -> torch.Tensor:
        """Return the column of ``table`` for each time: int64 [P]."""
        return (torch.searchsorted(self.instants, time, right=True) - 1).clamp(min=0)
