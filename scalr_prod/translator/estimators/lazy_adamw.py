# SPDX-License-Identifier: Apache-2.0
"""Lazy AdamW (Loshchilov & Hutter 2019) for large embedding tables of which each batch needs a few rows.

A step of AdamW updates every row, even without a gradient: weight decay shrinks its value, and its momentum still moves it. Here a row
is updated only when a batch reads it. The skipped steps have a closed form, because only known factors changed: with the moments m and v
after step s, step k moves the row by lr_k (m / √v) Π β1 / √β2 and shrinks it by 1 - lr_k λ. So a step costs as much as the batch's rows,
whatever the size of the catalogue. The only approximation is ε, which is added to √v as of step s.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch.optim.adamw import adamw

from scalr_prod.translator.devices import to_device

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scalr_prod.translator.data.training_pairs import Parameters


_BETA_2: Final = 0.999
_EPSILON: Final = 1e-8
#: Avoids 0 / 0: after some 700 000 steps both moments of a row are 0.
_TINY: Final = 1e-300
#: Rows of a table that are updated at a time, which bounds the memory.
_ROWS_AT_ONCE: Final = 1 << 16
#: Steps without a gradient after which the first moment has vanished: 0.95 to this power is 0 in float32.
_MOMENTUM_STEPS: Final = 2_048


def one_cycle_schedule(step: int, steps: int, peak_rate: float) -> tuple[float, float]:
    """Return one step's learning rate and β1, as `torch.optim.lr_scheduler.OneCycleLR` computes them.

    Args:
        step: The step, from 0.
        steps: The total number of steps.
        peak_rate: The highest rate. The schedule starts at 1/25 of it and reaches it after 30 % of the steps.
    """
    peak = 0.3 * steps - 1
    if step <= peak:
        fraction, rates, betas = step / peak, (peak_rate / 25, peak_rate), (0.95, 0.85)
    else:
        fraction, rates, betas = (step - peak) / (steps - 1 - peak), (peak_rate, peak_rate / 25 / 1e4), (0.85, 0.95)
    cosine = math.cos(math.pi * fraction) + 1
    rate, beta = (end + (begin - end) / 2 * cosine for begin, end in (rates, betas))
    return rate, beta


class LazyAdamW:
    """AdamW with a one-cycle schedule (Smith & Topin 2018), for dense tensors and for lazily updated tables.

    Args:
        dense: Tensors that every step needs in full, by name; updated in place. All on the CPU, or all on one GPU.
        tables: float32 [N, d] each, by name; updated in place, on the same device.
        steps: The total number of steps.
        rate: The highest learning rate.
        decay: Weight decay λ.
    """

    def __init__(self, dense: Parameters, tables: Parameters, *, steps: int, rate: float, decay: float) -> None:
        self.dense: Parameters = {name: tensor.requires_grad_() for name, tensor in dense.items()}
        # The state of torch.optim.AdamW. The class itself imports torch's compiler, which takes 70 MB and a second.
        self._means, self._squares = ([torch.zeros_like(tensor) for tensor in dense.values()] for _ in range(2))
        self._counts = [torch.zeros((), device=tensor.device) for tensor in dense.values()]
        self._steps, self._rate, self._decay = steps, rate, decay
        self._deferred = _DeferredUpdates(decay, steps)
        self.tables = {name: LazyTable(tensor, self._deferred) for name, tensor in tables.items()}

    def step(self, loss: torch.Tensor) -> None:
        """Update the parameters that the loss depends on, and defer the update of all other rows.

        Args:
            loss: A scalar, computed from `dense` and from rows taken from `tables` since the last step.
        """
        for tensor in self.dense.values():
            tensor.grad = None
        loss.backward()
        rate, beta_1 = one_cycle_schedule(self._deferred.steps, self._steps + 1, self._rate)
        self._deferred.add(rate, beta_1)
        self._update_dense(rate, beta_1)
        for table in self.tables.values():
            table.apply_gradients()

    @torch.no_grad()
    def _update_dense(self, rate: float, beta_1: float) -> None:
        """Take one step of AdamW on the dense tensors that have a gradient."""
        state = zip(self.dense.values(), self._means, self._squares, self._counts, strict=True)
        with_gradient = [(tensor, tensor.grad, *others) for tensor, *others in state if tensor.grad is not None]
        if not with_gradient:
            return
        tensors, gradients, means, squares, counts = map(list, zip(*with_gradient, strict=True))
        adamw(
            tensors,
            gradients,
            means,
            squares,
            [],
            counts,
            fused=True,
            amsgrad=False,
            beta1=beta_1,
            beta2=_BETA_2,
            lr=rate,
            weight_decay=self._decay,
            eps=_EPSILON,
            maximize=False,
        )

    def final_parameters(self) -> Parameters:
        """Apply all deferred updates and return every tensor by name, on the CPU."""
        dense = {name: tensor.detach().cpu() for name, tensor in self.dense.items()}
        return dense | {name: table.current_values().cpu() for name, table in self.tables.items()}


class LazyTable:
    """A table of which each step updates only the rows that it reads.

    Args:
        values: float32 [N, d], updated in place.
        deferred: The optimizer's record of steps.
    """

    def __init__(self, values: torch.Tensor, deferred: _DeferredUpdates) -> None:
        self._tables = (values, torch.zeros_like(values), torch.zeros_like(values))
        self._device = values.device
        self._updated_at = np.zeros(len(values), np.int64)  # step of each row's last update
        self._deferred = deferred
        #: Rows read since the last step: their numbers, values and two moments.
        self._taken: tuple[torch.Tensor, tuple[torch.Tensor, ...]] | None = None

    def gather(self, *row_numbers: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Read the rows of one step.

        Args:
            row_numbers: int64 of any shapes, on the CPU. Row numbers.

        Returns:
            float32 [R, d]: the distinct rows, ascending, always with row 0 first. And for each tensor of ``row_numbers``, a tensor of its
            shape with each number's position among them. All on the table's device.
        """
        numbers = np.concatenate([np.zeros(1, np.int64), *(tensor.numpy().ravel() for tensor in row_numbers)])
        distinct, inverse = np.unique(numbers, return_inverse=True)
        positions = to_device(torch.from_numpy(inverse[1:]), self._device).split([tensor.numel() for tensor in row_numbers])
        rows = torch.from_numpy(distinct)
        current = self._current_rows(rows)
        values = current[0].requires_grad_()
        self._taken = rows, current
        return values, [position.view(tensor.shape) for position, tensor in zip(positions, row_numbers, strict=True)]

    @torch.no_grad()
    def apply_gradients(self) -> None:
        """Update the rows that were read, by their gradients."""
        if self._taken is None:
            return
        (rows, (value, mean, square)), self._taken = self._taken, None
        if value.grad is None:
            return
        gradient, value = value.grad, value.detach()
        shrink, step, beta_1, beta_2, root_correction = self._deferred.rates
        mean.mul_(beta_1).add_(gradient, alpha=1 - beta_1)
        square.mul_(beta_2).addcmul_(gradient, gradient, value=1 - beta_2)
        value.mul_(shrink).addcdiv_(mean, square.sqrt().mul_(root_correction).add_(_EPSILON), value=-step)
        self._write_rows(rows, (value, mean, square))

    def current_values(self) -> torch.Tensor:
        """Apply all deferred updates and return the values: float32 [N, d]."""
        for rows in torch.arange(len(self._updated_at)).split(_ROWS_AT_ONCE):
            self._write_rows(rows, self._current_rows(rows))
        return self._tables[0]

    def _current_rows(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the values and the two moments of some rows with the deferred updates applied: float32 [R, d] each."""
        deferred = self._deferred.since(self._updated_at[rows.numpy()])
        shrink, step, mean_factor, square_factor = to_device(torch.from_numpy(deferred), self._device).T[:, :, None]
        rows = to_device(rows, self._device)
        value, mean, square = (table[rows] for table in self._tables)
        value.mul_(shrink).sub_((mean / square.sqrt().add_(_EPSILON)).mul_(step))
        return value, mean.mul_(mean_factor), square.mul_(square_factor)

    def _write_rows(self, rows: torch.Tensor, current: tuple[torch.Tensor, ...]) -> None:
        self._updated_at[rows.numpy()] = self._deferred.steps
        rows = to_device(rows, self._device)
        for table, updated in zip(self._tables, current, strict=True):
            table[rows] = updated


class _DeferredUpdates:
    """The combined effect of all steps since a given one on a row without a gradient.

    Args:
        decay: Weight decay.
        max_steps: The maximum number of steps.
    """

    def __init__(self, decay: float, max_steps: int) -> None:
        self.steps = 0
        self._decay = decay
        #: Since each of the last `_MOMENTUM_STEPS` steps: the value's factor, the sum of momentum updates, the factors of the two moments.
        self._since = np.tile(np.array([1.0, 0.0, 1.0, 1.0]), (max_steps + 2, 1))
        #: Logarithm of the value's factor from the first step to each step.
        self._log_shrink = np.zeros(max_steps + 2)
        #: The last step: the value's factor, the step size, β1, β2, and the bias correction of the second moment's root.
        self.rates = (1.0, 0.0, 0.0, 0.0, 0.0)

    def add(self, rate: float, beta_1: float) -> None:
        """Record one more step with its learning rate and β1."""
        self.steps += 1
        shrink = 1 - rate * self._decay
        step, root_correction = rate / (1 - beta_1**self.steps), (1 - _BETA_2**self.steps) ** -0.5
        before = self._since[max(self.steps - _MOMENTUM_STEPS, 0) : self.steps]
        before[:, 2] *= beta_1
        before[:, 3] *= _BETA_2
        before[:, 1] = shrink * before[:, 1] + step / root_correction * before[:, 2] / np.sqrt(before[:, 3] + _TINY)
        before[:, 0] *= shrink
        self._log_shrink[self.steps] = self._log_shrink[self.steps - 1] + np.log(shrink)
        self.rates = (shrink, step, beta_1, _BETA_2, root_correction)

    def since(self, step: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the deferred updates of rows that were last updated in these steps: float32 [R, 4], in the order of `_since`."""
        updates = self._since[step]
        until = step + _MOMENTUM_STEPS
        if (until < self.steps).any():
            # Their momentum has vanished: later steps only shrank the value and the sum of momentum updates.
            until = np.minimum(until, self.steps)
            updates[:, :2] *= np.exp(self._log_shrink[self.steps] - self._log_shrink[until])[:, None]
            updates[:, 3] *= _BETA_2 ** (self.steps - until)
        return updates.astype(np.float32)
