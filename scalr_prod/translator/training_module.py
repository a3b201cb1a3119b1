# SPDX-License-Identifier: Apache-2.0
"""The translator during training: it travels to a worker as its tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalr_prod.translator.estimators.bundled_source import LoadedEstimators
from scalr_prod.translator.module import TranslatorModule

if TYPE_CHECKING:
    import torch

__all__ = ["TrainingModule"]


class TrainingModule(TranslatorModule):
    """A `TranslatorModule` that can be pickled.

    Args:
        tensors: Tensors by name.
        metadata: Metadata of the weights' file.
        device: Device of the parameters.
        estimators: The estimators; default: the installed ones that the metadata names.
    """

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        metadata: dict[str, str],
        device: str = "cpu",
        estimators: LoadedEstimators | None = None,
    ) -> None:
        super().__init__(tensors, metadata, device, bundled_estimators=estimators)
        self._source = tensors, metadata, device

    def __reduce__(self) -> tuple[Any, ...]:
        return TrainingModule, (*self._source, LoadedEstimators.from_names(self.estimators))
