# SPDX-License-Identifier: Apache-2.0
"""AdamW (Loshchilov & Hutter 2019) on large tables of which each batch needs a few rows.

A step of AdamW moves every row, also one that the batch did not ask for: its value shrinks, and the mean of its former gradients goes on
to push it. Here a row is moved when it is asked for. What the steps in between would have done to it has a closed form, since nothing but
known factors has changed: with the means m and v after step s, step k pushes by lr_k (m / √v) Π β1 / √β2 and shrinks by 1 - lr_k λ. So a
step costs what the batch's rows cost, whatever the size of the catalogue. The one approximation is ε, which is added to √v as it was at s.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch.optim.adamw import adamw

from scalr_prod.translator.devices import sent
from scalr_prod.translator.estimators.kernels import kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.translator.estimators.kernels import Kernels
    from scalr_prod.translator.pairs import Parameters

__all__ = ["Learner", "Table", "one_cycle"]

_BETA_2: Final = 0.999
_EPSILON: Final = 1e-8
#: After some 700 000 steps both means of a row are 0, and so is what is left to push it.
_NOTHING: Final = 1e-300
#: Steps after which nothing is left of a mean of gradients, were there no more of them: .95 to their power is 0 as a float32.
_PUSHED: Final = 2_048


def one_cycle(step: int, steps: int, highest: float) -> tuple[float, float]:
    """One step's learning rate and β1, as `torch.optim.lr_scheduler.OneCycleLR` gives them.

    Args:
        step: From 0.
        steps: How many there are.
        highest: The highest rate; it is reached after three tenths of the steps, and begins at 1/25 of that.
    """
    turn = 0.3 * steps - 1
    if step <= turn:
        part, rates, betas = step / turn, (highest / 25, highest), (0.95, 0.85)
    else:
        part, rates, betas = (step - turn) / (steps - 1 - turn), (highest, highest / 25 / 1e4), (0.85, 0.95)
    left = math.cos(math.pi * part) + 1
    rate, beta = (end + (begin - end) / 2 * left for begin, end in (rates, betas))
    return rate, beta


class Learner:
    """AdamW in a one-cycle schedule (Smith & Topin 2018), for tensors that each step needs whole and for tables.

    Args:
        whole: Tensors that each step needs, by name; learnt in place, where they lie: all on the CPU, or all on a GPU.
        tables: float32 [N, d] each, by name; learnt in place, on the same device.
        steps: How many there will be.
        rate: The highest learning rate.
        decay: Weight decay λ.
    """

    def __init__(self, whole: Parameters, tables: Parameters, *, steps: int, rate: float, decay: float) -> None:
        self.whole: Parameters = {name: tensor.requires_grad_() for name, tensor in whole.items()}
        # What torch.optim.AdamW holds; the class itself imports torch's compiler, which takes 70 MB and a second.
        self._means, self._squares = ([torch.zeros_like(tensor) for tensor in whole.values()] for _ in range(2))
        self._moved = [torch.zeros((), device=tensor.device) for tensor in whole.values()]
        self._steps, self._rate, self._decay = steps, rate, decay
        self._owed = _Owed(decay, steps)
        self.tables = {name: Table(tensor, self._owed) for name, tensor in tables.items()}

    def step(self, loss: torch.Tensor) -> None:
        """Move what the loss depends on, and owe all other rows their part.

        Args:
            loss: A scalar, of `whole` and of rows that were taken from `tables` since the last step.
        """
        for tensor in self.whole.values():
            tensor.grad = None
        loss.backward()
        rate, beta_1 = one_cycle(self._owed.steps, self._steps + 1, self._rate)
        self._owed.add(rate, beta_1)
        self._move(rate, beta_1)
        for table in self.tables.values():
            table.move()

    @torch.no_grad()
    def _move(self, rate: float, beta_1: float) -> None:
        """One step of AdamW on what is needed whole, as far as the loss depends on it."""
        state = zip(self.whole.values(), self._means, self._squares, self._moved, strict=True)
        asked = [(tensor, tensor.grad, *others) for tensor, *others in state if tensor.grad is not None]
        if not asked:
            return
        tensors, gradients, means, squares, moved = map(list, zip(*asked, strict=True))
        adamw(
            tensors,
            gradients,
            means,
            squares,
            [],
            moved,
            fused=True,
            amsgrad=False,
            beta1=beta_1,
            beta2=_BETA_2,
            lr=rate,
            weight_decay=self._decay,
            eps=_EPSILON,
            maximize=False,
        )

    def learnt(self) -> Parameters:
        """All tensors by name, on the CPU, tables with nothing owed to them."""
        found = {name: tensor.detach().cpu() for name, tensor in self.whole.items()}
        return found | {name: table.all().cpu() for name, table in self.tables.items()}


class Table:
    """A table of which each step moves the rows that it takes.

    Args:
        values: float32 [N, d], written to.
        owed: Of the learner.
    """

    def __init__(self, values: torch.Tensor, owed: _Owed) -> None:
        self._tables = (values, torch.zeros_like(values), torch.zeros_like(values))
        self._device = values.device
        self._since = np.zeros(len(values), np.int64)
        self._owed = owed
        self._taken: tuple[torch.Tensor, torch.Tensor] | None = None

    def take(self, *wanted: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Rows for one step.

        Args:
            wanted: int64 of any shapes, on the CPU. Numbers of rows.

        Returns:
            float32 [R, d], the rows that are wanted, once each and in order, beside row 0; and, in place of each number, where
            among them its row stands: that of row 0 is 0. All on the table's device.
        """
        numbers = np.concatenate([np.zeros(1, np.int64), *(one.numpy().ravel() for one in wanted)])
        rows, places = np.unique(numbers, return_inverse=True)
        found = sent(torch.from_numpy(places[1:]), self._device).split([one.numel() for one in wanted])
        own = torch.from_numpy(rows)
        values = self._caught_up(own).requires_grad_()
        self._taken = own, values
        return values, [place.view(one.shape) for place, one in zip(found, wanted, strict=True)]

    def move(self) -> None:
        """Move the rows that were taken, by their gradients."""
        if self._taken is None:
            return
        (rows, values), self._taken = self._taken, None
        if values.grad is None:
            return
        rates, compiled = self._owed.rates(), self._kernels()
        self._since[rows.numpy()] = self._owed.steps
        if compiled is not None:
            tables = tuple(table.numpy() for table in self._tables)
            compiled.moved(
                tables, rows.numpy(), values.grad.contiguous().numpy(), tuple(map(np.float32, rates)), np.float32(_EPSILON)
            )
            return
        shrink, step, of_mean, of_square, of_root = rates
        rows = sent(rows, self._device)
        value, mean, square = (table[rows] for table in self._tables)
        mean = of_mean * mean + (1 - of_mean) * values.grad
        square = of_square * square + (1 - of_square) * values.grad**2
        value = shrink * value - step * mean / (square.sqrt() * of_root + _EPSILON)
        for table, moved in zip(self._tables, (value, mean, square), strict=True):
            table[rows] = moved

    def all(self) -> torch.Tensor:
        """float32 [N, d]: the values, with nothing owed to them."""
        self._caught_up(torch.arange(len(self._since)))
        return self._tables[0]

    def _caught_up(self, rows: torch.Tensor) -> torch.Tensor:
        """The values of some rows, with nothing owed to them: float32 [R, d]."""
        owed, compiled = self._owed.since(self._since[rows.numpy()]), self._kernels()
        self._since[rows.numpy()] = self._owed.steps
        if compiled is not None:
            out = torch.empty(len(rows), self._tables[0].shape[1])
            tables = tuple(table.numpy() for table in self._tables)
            compiled.caught_up(tables, rows.numpy(), owed, np.float32(_EPSILON), out.numpy())
            return out
        shrink, times, of_mean, of_square = sent(torch.from_numpy(owed), self._device).T[:, :, None]
        rows = sent(rows, self._device)
        value, mean, square = (table[rows] for table in self._tables)
        value = shrink * value - times * (mean / (square.sqrt() + _EPSILON))
        for table, moved in zip(self._tables, (value, mean * of_mean, square * of_square), strict=True):
            table[rows] = moved
        return value

    def _kernels(self) -> Kernels | None:
        return kernels() if self._device.type == "cpu" else None


class _Owed:
    """What steps without a gradient do to a row, by the step from which on there was none.

    Args:
        decay: Weight decay.
        most: Steps.
    """

    def __init__(self, decay: float, most: int) -> None:
        self.steps = 0
        self._decay = decay
        #: Of each step: value's factor, pushes, the two means' factors since then; for the last `_PUSHED` steps.
        self._since = np.tile(np.array([1.0, 0.0, 1.0, 1.0]), (most + 2, 1))
        #: Logarithm of the value's factor from the first step to each.
        self._shrunk = np.zeros(most + 2)
        self._rates = (1.0, 0.0, 0.0, 0.0, 0.0)

    def add(self, rate: float, beta_1: float) -> None:
        """One more step, at a learning rate and a decay of the mean of gradients."""
        self.steps += 1
        shrink = 1 - rate * self._decay
        step, of_root = rate / (1 - beta_1**self.steps), (1 - _BETA_2**self.steps) ** -0.5
        before = self._since[max(self.steps - _PUSHED, 0) : self.steps]
        before[:, 2] *= beta_1
        before[:, 3] *= _BETA_2
        before[:, 1] = shrink * before[:, 1] + step / of_root * before[:, 2] / np.sqrt(before[:, 3] + _NOTHING)
        before[:, 0] *= shrink
        self._shrunk[self.steps] = self._shrunk[self.steps - 1] + np.log(shrink)
        self._rates = (shrink, step, beta_1, _BETA_2, of_root)

    def since(self, step: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [R, 4], see `fused.rows.caught_up`, of rows that were moved last in these steps."""
        found = self._since[step]
        until = step + _PUSHED
        if (until < self.steps).any():
            # Nothing is left of their mean: what came later shrank the value, and what was taken from it before.
            until = np.minimum(until, self.steps)
            found[:, :2] *= np.exp(self._shrunk[self.steps] - self._shrunk[until])[:, None]
            found[:, 3] *= _BETA_2 ** (self.steps - until)
        return found.astype(np.float32)

    def rates(self) -> tuple[float, float, float, float, float]:
        """Of the last step, see `fused.rows.moved`."""
        return self._rates
