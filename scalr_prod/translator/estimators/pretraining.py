# SPDX-License-Identifier: Apache-2.0
"""What the sequential estimator learns before it sees a target event: which source event comes next.

Everybody's source events teach it, those of users without target events too, and no parameter set has to leave any out. There are
usually far more of them than target events, and where a user goes next in one domain says much about the other. Training takes time
in proportion to them; ``[translator] pretraining_events`` takes some of the windows, chosen at random, instead of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from scalr_prod.translator.devices import sent
from scalr_prod.translator.estimators import attention, sampled_softmax
from scalr_prod.translator.estimators.learning import Learner
from scalr_prod.translator.estimators.sampled_softmax import Negatives
from scalr_prod.translator.estimators.windows import source_windows
from scalr_prod.translator.threads import heed_stop

if TYPE_CHECKING:
    from scalr_prod.translator.pairs import Pairs, Parameters

__all__ = ["learner_of", "pretrained", "step"]

EPOCHS: Final = 3
LEARNING_RATE: Final = 2e-3
WEIGHT_DECAY: Final = 1e-2
#: Of a source item's logarithmic number of events, which training takes as given.
_POPULARITY: Final = 0.75
#: Windows in a batch.
_BATCH: Final = 64


def pretrained(pairs: Pairs, parameters: Parameters, generator: torch.Generator) -> Parameters:
    """Parameters of the block and the source items' vectors, trained to predict the next source event.

    Args:
        pairs: The slice.
        parameters: To start from: those of `attention.initial`, and ``source`` [n_source + 1, d].
        generator: Of the order, the hidden events and the negatives.
    """
    windows = source_windows(pairs)
    known = windows.known()
    windows, known = windows.take(known > 1), known[known > 1]
    count = torch.from_numpy(windows.counts()).float()
    chance = 0.5 * count / count.sum().clamp(min=1) + 0.5 * (count > 0) / (count > 0).sum().clamp(min=1)
    popular = (_POPULARITY * (count + 0.5).log()).to(pairs.device)
    if pairs.settings.pretraining_events is not None:
        windows = windows.take(_some(torch.from_numpy(known), pairs.settings.pretraining_events, pairs.settings.seed).numpy())
    steps = EPOCHS * -(-len(windows) // _BATCH)
    learner = learner_of(parameters, steps=steps, rate=LEARNING_RATE, device=pairs.device)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(windows), generator=generator).split(_BATCH):
            heed_stop(1 / steps)
            step(learner, *windows.of(chosen), popular=popular, chance=chance, generator=generator)
    learnt = learner.learnt()
    return {name: learnt[name] for name in parameters}


def learner_of(parameters: Parameters, *, steps: int, rate: float, device: str) -> Learner:
    """What learns parameters: the block, two vectors for each source item (of one that was chosen, and of one that may come next), biases.

    Args:
        parameters: See `pretrained`.
        steps: How many there will be.
        rate: The highest learning rate.
        device: Where it learns.
    """
    here = {name: tensor.to(device, copy=True) for name, tensor in parameters.items()}
    tables = {"source": here.pop("source")}
    tables["next"] = 0.1 * tables["source"]
    return Learner(
        here | {"bias": torch.zeros(len(tables["source"]), device=device)}, tables, steps=steps, rate=rate, decay=WEIGHT_DECAY
    )


def step(
    learner: Learner,
    items: torch.Tensor,
    days: torch.Tensor,
    *,
    popular: torch.Tensor,
    chance: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """One step on a batch of windows.

    Args:
        learner: As `learner_of` gives it.
        items: int64 [W, L], on the CPU. Source vocabulary indices; 0 on the left.
        days: float32 [W, L], on the CPU. When each event happened.
        popular: float32 [n_source + 1]. What training takes as given of each item; on the learner's device.
        chance: float32 [n_source + 1]. By what chance an item is drawn; on the CPU.
        generator: Of the hidden events and the negatives, on the CPU.

    Returns:
        The loss before it: float32, a scalar, on the learner's device.
    """
    device = learner.whole["bias"].device
    begin = int((items > 0).any(0).to(torch.uint8).argmax())
    some, when = items[:, begin:], sent(days[:, begin:], device)
    row, place = ((some[:, :-1] > 0) & (some[:, 1:] > 0)).nonzero(as_tuple=True)
    label = some[row, place + 1]
    source, (own,) = learner.tables["source"].take(some)
    asked = sent(row, device), sent(place, device)
    state = attention.states(learner.whole | {"source": source}, own, when, asked, generator)
    drawn = Negatives.drawn(chance, generator)
    vectors, (own, others) = learner.tables["next"].take(label, drawn.items)
    offset = popular + learner.whole["bias"]
    loss = sampled_softmax.loss(
        state,
        vectors,
        own,
        Negatives(others, sent(drawn.log_expected, device)),
        own=offset[sent(label, device)],
        others=offset[sent(drawn.items, device)][None],
    )
    learner.step(loss)
    return loss.detach()


def _some(known: torch.Tensor, most: int, seed: int) -> torch.Tensor:
    """Windows, chosen at random, in order, that hold so many events at most, but one at least; of the numbers of events in each."""
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    fitting = int((known[order].cumsum(0) <= most).sum())
    return order[: max(fitting, 1)].sort().values
