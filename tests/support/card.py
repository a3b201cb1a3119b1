"""A GPU that is not there: tensors on it have their numbers on the CPU, but nothing may mix them with the CPU's.

What a card refuses is refused: an operation on tensors of both devices, and numpy's view of a tensor of the card. So code runs here as
on a card, but for speed and the last digits. Code that fails on a card for another reason (a kernel that it lacks) does not fail here.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Final, Self
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

__all__ = ["CARD", "Card"]

#: Its name. Torch knows of a device of this name on every machine, and of ``cuda`` only where it was built for it.
CARD: Final = "meta"

#: What goes from one to the other; and what takes numbers of rows from the CPU, if the rows are the card's.
_ACROSS: Final = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}
_BY_PLACE: Final = {torch.ops.aten.index.Tensor}


class _OnCard(torch.Tensor):  # type: ignore[misc]  # torch is untyped here
    """A tensor of the card."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=CARD
        )
        made.held = held
        return made

    def __getitem__(self, key: Any) -> torch.Tensor:
        whole = key if isinstance(key, tuple) else (key,)
        return super().__getitem__(tuple(torch.tensor(part) if isinstance(part, list) else part for part in whole))

    def new_tensor(self, data: Any) -> torch.Tensor:
        return torch.tensor(data, dtype=self.dtype, device=CARD)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} was called on a tensor of a card that is no more")


def _without_gradients(_mode: bool) -> torch.no_grad:
    return torch.no_grad()


class Card(TorchDispatchMode):  # type: ignore[misc]  # likewise
    """While it is entered, there is a card.

    Attributes:
        operations: How many were done there.
        waits: How often the CPU waited for a number of the card's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.waits = 0

    def __enter__(self) -> Self:
        made = torch.tensor

        def tensor(data: Any, *, device: Any = None, **kwargs: Any) -> torch.Tensor:  # torch moves it where no mode sees that
            return made(data, **kwargs).to(device or "cpu")

        self._patched = ExitStack()
        self._patched.enter_context(mock.patch.object(torch, "tensor", tensor))
        # Tensors of a class of one's own cannot be made in inference mode.
        self._patched.enter_context(mock.patch.object(torch._C, "_InferenceMode", _without_gradients))
        super().__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        self._patched.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        here: list[_OnCard] = []
        elsewhere: list[torch.Tensor] = []

        def seen(x: Any) -> Any:
            if isinstance(x, _OnCard):
                here.append(x)
                return x.held
            if isinstance(x, torch.Tensor):
                if x.device.type == CARD:
                    raise RuntimeError(f"{func}: torch made a tensor on the card where this cannot see it")
                elsewhere.append(x)
            return x

        asked = kwargs.get("device")
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        of_card = bool(args) and isinstance(args[0], _OnCard)
        args, kwargs = tree_map(seen, args), tree_map(seen, kwargs)
        if here and elsewhere and func not in _ACROSS and not (of_card and func in _BY_PLACE):
            raise RuntimeError(
                f"{func}: tensors of the card and of the CPU, the latter of shapes {[tuple(x.shape) for x in elsewhere]}"
            )
        found = func(*args, **kwargs)
        on_card = bool(here) if asked is None else torch.device(asked).type == CARD
        if func is torch.ops.aten.copy_.default:
            on_card = bool(here) and here[0].held is args[0]
        self.operations += on_card
        self.waits += bool(here) and (not on_card or func is torch.ops.aten._local_scalar_dense.default)
        given = {id(x.held): x for x in here}

        def placed(x: Any) -> Any:
            if not isinstance(x, torch.Tensor) or not on_card:
                return x
            return given[id(x)] if id(x) in given else _OnCard(x)

        return tree_map(placed, found)
