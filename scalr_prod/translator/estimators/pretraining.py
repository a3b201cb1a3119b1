# SPDX-License-Identifier: Apache-2.0
"""Pretraining of the sequential estimator: predict the next source event.

Uses all users' source events, also those of users without target events; no parameter set has to leave any out. There are usually far
more source than target events, and predicting a user's next source item helps to predict target items. Training time is proportional
to their number; ``[translator] pretraining_events`` limits it to a random sample of windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from scalr_prod.translator.devices import to_device
from scalr_prod.translator.estimators import attention, sampled_softmax
from scalr_prod.translator.estimators.lazy_adamw import LazyAdamW
from scalr_prod.translator.estimators.sampled_softmax import Negatives
from scalr_prod.translator.estimators.window_index import index_source_windows, sample_windows
from scalr_prod.translator.worker_pool import check_cancelled

if TYPE_CHECKING:
    from scalr_prod.translator.data.training_pairs import Parameters, TrainingSlice


EPOCHS: Final = 3
LEARNING_RATE: Final = 2e-3
WEIGHT_DECAY: Final = 1e-2
#: Weight of a source item's log event count as a fixed offset of the logits.
_POPULARITY: Final = 0.75
#: Windows per batch.
_BATCH: Final = 64


def pretrain(pairs: TrainingSlice, parameters: Parameters, generator: torch.Generator) -> Parameters:
    """Train the block and the source item vectors to predict the next source event.

    Args:
        pairs: The training slice.
        parameters: Initial values: those of `attention.initial_weights`, and ``source`` [n_source + 1, d].
        generator: Random generator for the order, the hidden events and the negatives.
    """
    windows = index_source_windows(pairs)
    known = windows.known_event_counts()
    windows, known = windows.take(known > 1), known[known > 1]
    count = torch.from_numpy(windows.item_counts()).float()
    chance = 0.5 * count / count.sum().clamp(min=1) + 0.5 * (count > 0) / (count > 0).sum().clamp(min=1)
    popular = (_POPULARITY * (count + 0.5).log()).to(pairs.device)
    windows = sample_windows(windows, known)
    steps = EPOCHS * -(-len(windows) // _BATCH)
    learner = make_optimizer(parameters, steps=steps, rate=LEARNING_RATE, device=pairs.device)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(windows), generator=generator).split(_BATCH):
            check_cancelled(1 / steps)
            train_step(learner, *windows.read(batch), popular=popular, chance=chance, generator=generator)
    learnt = learner.final_parameters()
    return {name: learnt[name] for name in parameters}


def make_optimizer(parameters: Parameters, *, steps: int, rate: float, device: str) -> LazyAdamW:
    """Create the optimizer of the block, two vectors per source item (as an input, and as a next item), and item biases.

    Args:
        parameters: See `pretrain`.
        steps: The total number of steps.
        rate: The highest learning rate.
        device: The device to train on.
    """
    dense = {name: tensor.to(device, copy=True) for name, tensor in parameters.items()}
    tables = {"source": dense.pop("source")}
    tables["next"] = 0.1 * tables["source"]
    return LazyAdamW(
        dense | {"bias": torch.zeros(len(tables["source"]), device=device)}, tables, steps=steps, rate=rate, decay=WEIGHT_DECAY
    )


def train_step(
    learner: LazyAdamW,
    items: torch.Tensor,
    days: torch.Tensor,
    *,
    popular: torch.Tensor,
    chance: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Take one training step on a batch of windows.

    Args:
        learner: The optimizer of `make_optimizer`.
        items: int64 [W, L], on the CPU. Source vocabulary indices; padded with 0 on the left.
        days: float32 [W, L], on the CPU. Time of each event, in days.
        popular: float32 [n_source + 1]. Fixed offset of each item's logit; on the optimizer's device.
        chance: float32 [n_source + 1]. Probability of each item to be drawn as a negative; on the CPU.
        generator: Random generator for the hidden events and the negatives, on the CPU.

    Returns:
        The loss before the step: float32, a scalar, on the optimizer's device.
    """
    device = learner.dense["bias"].device
    begin = int((items > 0).any(0).to(torch.uint8).argmax())
    trimmed, when = items[:, begin:], to_device(days[:, begin:], device)
    row, position = ((trimmed[:, :-1] > 0) & (trimmed[:, 1:] > 0)).nonzero(as_tuple=True)
    label = trimmed[row, position + 1]
    source, (own,) = learner.tables["source"].gather(trimmed)
    positions = to_device(row, device), to_device(position, device)
    state = attention.window_states(learner.dense | {"source": source}, own, when, positions, generator)
    drawn = Negatives.sample(chance, generator)
    vectors, (own, others) = learner.tables["next"].gather(label, drawn.items)
    offset = popular + learner.dense["bias"]
    loss = sampled_softmax.sampled_softmax_loss(
        state,
        vectors,
        sampled_softmax.Labels(own, offset[to_device(label, device)]),
        Negatives(others, to_device(drawn.log_expected, device)),
        offset[to_device(drawn.items, device)][None],
    )
    learner.step(loss)
    return loss.detach()
