# SPDX-License-Identifier: Apache-2.0
"""The translator as one torch module, used alike in training, in-process and inside Triton.

For every context it computes ``P(i | context)`` over the target items that had been seen before the event and are not excluded for it,
samples from it without replacement, and scores given candidates. Parameter sets: ``-1`` was trained on every user; ``-2`` is the same set
with the weights for users without target events; ``0, 1, …`` were trained on all but the target events of that fold's users.
Only torch, numpy, safetensors and, if installed, numba are imported.
"""

from __future__ import annotations

import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from scalr_prod.errors import TranslatorError, TranslatorNotFound
from scalr_prod.translator import counter_rng
from scalr_prod.translator.calibration_table import CalibrationLayout
from scalr_prod.translator.context_batch import ContextBatch
from scalr_prod.translator.data.contexts import ALL_USERS, COLD_USERS, NO_ITEM, Contexts, Samples
from scalr_prod.translator.estimators import scored_estimators
from scalr_prod.translator.estimators.bundled_source import load_bundled_estimators, load_estimator
from scalr_prod.translator.estimators.popularity import events_by_item
from scalr_prod.translator.mixture import Mixture
from scalr_prod.translator.sampling import SampleRequest, sample_topk
from scalr_prod.translator.shortlist import ShortlistIndex
from scalr_prod.translator.validation import RequestBounds, check_sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from scalr_prod.translator.kernels.executor import FusedExecutor
    from scalr_prod.translator.kernels.gpu.gpu_executor import GpuExecutor as OnGpu
    from scalr_prod.translator.kernels.shortlist_executor import ShortlistExecutor

__all__ = ["METADATA_KEY", "TranslatorModule"]

logger = logging.getLogger(__name__)
#: Key of the weights' file's metadata, which is stored as JSON.
METADATA_KEY: Final = "translator"
#: Elements of a [rows, items] tensor processed at a time, so that they stay near the processor's cache.
_CHUNK: Final = 2**19
#: Minimum rows for each thread of a shared request: products of few rows are slow.
_LEAST_ROWS: Final = 64


class TranslatorModule(torch.nn.Module):
    """All parameter sets of one translator version; loaded with `load`.

    Args:
        tensors: Tensors by name.
        metadata: Metadata of the weights' file.
        device: Device of the parameters.
        threads: Number of row groups that are processed side by side.
        bundled_estimators: Estimators bundled with the version, by name; all others are the installed ones.
        reference: Run only the plain torch code, which the fused execution is compared with.
    """

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        metadata: dict[str, str],
        device: str = "cpu",
        threads: int = 1,
        *,
        bundled_estimators: Mapping[str, Any] | None = None,
        reference: bool = False,
    ) -> None:
        super().__init__()
        self.device = torch.device(device)
        self._shares = threads if self.device.type == "cpu" else 1
        self._threads = ThreadPoolExecutor(threads, "translator") if self._shares > 1 else None
        #: Called after each group of rows of `sample` and `score`, to report progress of a long batch.
        self.on_progress: Callable[[], None] = lambda: None
        self.folds = int(metadata["folds"])
        self.history_length = int(metadata["history_length"])
        named: list[str] = json.loads(metadata["estimators"])
        self.has_popularity = "popularity" in named
        self.estimators = list(scored_estimators(named))
        bundled_estimators = bundled_estimators or {}
        estimators = {
            name: bundled_estimators[name] if name in bundled_estimators else load_estimator(name) for name in self.estimators
        }
        moved: dict[int, torch.Tensor] = {}  # a tensor may stand under several names
        tensors = {name: moved.setdefault(id(tensor), tensor.to(self.device)) for name, tensor in tensors.items()}
        self.first_seen = tensors["shared/first_seen"]
        self.n_target = len(self.first_seen)
        self.n_source = int(metadata["n_source"])
        if "shared/popularity/item" in tensors:  # else the version is refused below
            tensors["shared/popularity/by_item"] = events_by_item({"item": tensors["shared/popularity/item"]})
        self.bounds = RequestBounds(self.n_source, self.n_target, self.folds)
        self._numbers = counter_rng.item_words(self.n_target).to(self.device)
        self.layout = CalibrationLayout.from_metadata(metadata)
        self._sets = {
            fold: Mixture.from_tensors(tensors, fold, estimators, self.layout) for fold in range(COLD_USERS, self.folds)
        }
        self._reference = reference

    @cached_property
    def _fused(self) -> FusedExecutor | OnGpu | None:
        """The compiled execution, where available: numba on a CPU, the Triton language (not the server) on a GPU."""
        if self._reference:
            return None
        sets = tuple(self._sets.values())
        try:
            with torch.inference_mode():
                if self.device.type == "cpu":
                    from scalr_prod.translator.kernels import self_test

                    return self_test.build_executor(sets, self._numbers, self.first_seen)
                from scalr_prod.translator.kernels.gpu import gpu_self_test as on_gpu

                return on_gpu.build_executor(sets, self._numbers, self.first_seen, self.n_source)
        except Exception as error:  # of numba or Triton, which may be missing, or not know the machine
            _warn_not_compiled(f"{type(error).__name__}: {error}")
            return None

    @cached_property
    def _lists(self) -> ShortlistIndex:
        return ShortlistIndex.from_mixture(self._sets[ALL_USERS], self.n_source, self.first_seen, self.on_progress)

    @cached_property
    def _listed(self) -> ShortlistExecutor | None:
        """The fused execution of shortlists, where available: on a CPU."""
        if self.device.type != "cpu":
            logger.warning("on a GPU the plain code draws from shortlists, slower than compiled code from the whole catalogue")
            return None
        if self._fused is None:
            return None
        from scalr_prod.translator.kernels.shortlist_executor import ShortlistExecutor

        return ShortlistExecutor(self._sets[ALL_USERS].popularity, self._numbers, self._lists)

    def parameter_set(self, fold: int) -> Mixture:
        """Return a fold's mixture."""
        return self._sets[fold]

    @classmethod
    def load(
        cls, folder: str | Path, device: str = "cpu", threads: int = 1, *, trusted: bool = False, reference: bool = False
    ) -> TranslatorModule:
        """Load a version from its folder.

        Args:
            folder: Holds ``translator.safetensors`` and ``manifest.json``, and the source files of estimators of other packages.
            device: Device of the parameters: ``cpu``, ``cuda``, ``cuda:1``.
            threads: Row groups that `sample` and `score` process side by side, on a CPU. Torch itself should then have one thread:
                threads that share each small operation spend more time waiting than working.
            trusted: Run the sources of estimators that the version carries. Set it for folders from `load_version`, which has compared
                their checksum with the ledger's. Other folders may hold any code.
            reference: Run only the plain torch code.

        Raises:
            TranslatorNotFound: The folder does not exist, or holds no translator.
            TranslatorError: A file was changed (its checksum differs) or cannot be read; or the version carries an
                estimator's source, and is not trusted or does not load.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(folder) / "translator.safetensors"
        try:
            manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise TranslatorNotFound(
                f"there is no translator here ({Path(error.filename).name} is missing)",
                where=str(folder),
                next_step="train one: scalr translator train",
            ) from error
        except (OSError, ValueError) as error:
            raise _unreadable(folder, str(error)) from error
        if found != manifest.get("sha256"):
            raise _unreadable(folder, f"its checksum is {found[:12]}…, the manifest says {str(manifest.get('sha256'))[:12]}…")
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = json.loads(file.metadata()[METADATA_KEY])
            travelled = _travelled(Path(folder), metadata, manifest, trusted=trusted)
            return cls(tensors, metadata, device, threads, bundled_estimators=travelled, reference=reference)
        except KeyError as error:
            raise _unreadable(folder, f"it has no {error}, as those of former packages") from error
        except (SafetensorError, OSError, TypeError, ValueError) as error:
            raise _unreadable(folder, str(error)) from error

    def warm_up(self, *, shortlists: bool = False) -> bool:
        """Compile what `sample` and `score` run, so that no request waits for it: takes seconds, once for each machine and package.

        Args:
            shortlists: Also build the shortlists' blocks and their mean vectors: ten seconds for each million items.

        Returns:
            Whether the compiled code is used, not the plain code.
        """
        if shortlists:
            self._lists.warm_up(self._sets.values())
            self._listed  # noqa: B018 - made, and kept
        return self._fused is not None

    def sample(
        self,
        contexts: Contexts,
        k: int,
        *,
        temperature: float = 1.0,
        min_lift: float = 0.0,
        shortlist: int | None = None,
        component: str = "mixture",
    ) -> Samples:
        """Draw k items for each context without replacement, in proportion to P^(1 / temperature).

        The draw is a pure function of (context, noise key, k, temperature, shortlist): it does not depend on the batch.

        Args:
            contexts: B of them.
            k: Draws for each.
            temperature: 1 draws from P itself; towards 0 it becomes the k most probable.
            min_lift: A draw with P(i | context) < min_lift × P(i) is returned as ``NO_ITEM``, with its probability.
            shortlist: Draw among about this many likely items, at least k, see `shortlist.ShortlistIndex`; probabilities are then estimates
                of those over the whole catalogue. None: draw among all items.
            component: ``mixture``, or one estimator alone.

        Returns:
            [B, k] each; see `Samples`.

        Raises:
            InvalidRequest: A context, or one of the numbers, is outside of the model's tables or limits.
        """
        check_sampling(k, temperature, min_lift, shortlist)
        self.bounds.check_contexts(contexts)
        items = np.full((len(contexts), k), NO_ITEM, dtype=np.int32)
        probabilities, prior = np.zeros((2, len(contexts), k), dtype=np.float32)

        unsure = np.zeros(len(contexts), dtype=bool)
        lists = self._lists if shortlist is not None and shortlist < self.n_target else None
        fused = self._fused if lists is None else self._listed
        request = SampleRequest(k, temperature, min_lift, component, None if lists is None else max(shortlist or 1, k))

        def draw(rows: NDArray[np.int64], mixture: Mixture, dtype: torch.dtype = torch.float32) -> None:
            part = contexts.take(rows)
            batch = ContextBatch.from_contexts(part, self.first_seen)
            if dtype == torch.float32 and fused is not None and fused.supports(mixture, component, k):
                drawn = fused.draw(request, mixture, part, batch)
            else:
                drawn = sample_topk(request, mixture, part, batch, self._numbers, dtype, lists)
            items[rows] = _padded(drawn.items, k, NO_ITEM)
            probabilities[rows], prior[rows] = _padded(drawn.probabilities, k, 0), _padded(drawn.prior, k, 0)
            unsure[rows] = drawn.needs_float64.cpu().numpy()

        most_rows = 1 if fused is None else fused.max_rows
        self._each(
            draw, self._groups(contexts, lambda mixture: fused is not None and fused.supports(mixture, component, k), most_rows)
        )
        # All at once: float64 takes a copy of every matrix.
        again = np.flatnonzero(unsure)
        self._each(lambda rows, mixture: draw(again[rows], mixture, torch.float64), self._groups(contexts.take(again)))
        return Samples(items=items, probabilities=probabilities, prior=prior)

    def score(
        self, contexts: Contexts, candidates: NDArray[np.int32], *, component: str = "mixture"
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return P(i | context) and the prior P(i) of given candidates.

        Args:
            contexts: B of them.
            candidates: int32 [B, C], target indices; ``NO_ITEM``, excluded and not yet seen items get 0.
            component: ``mixture``, or one estimator alone.

        Returns:
            Two float32 arrays [B, C].

        Raises:
            InvalidRequest: A context or a candidate is outside of the model's tables.
        """
        self.bounds.check_contexts(contexts)
        self.bounds.check_candidates(candidates, len(contexts))
        probabilities, prior = np.zeros((2, *candidates.shape), dtype=np.float32)
        inexact = np.zeros(len(contexts), dtype=bool)
        fused = self._fused

        def look_up(rows: NDArray[np.int64], mixture: Mixture) -> None:
            part = contexts.take(rows)
            batch = ContextBatch.from_contexts(part, self.first_seen)
            if fused is not None and not inexact[rows[0]] and fused.supports(mixture, component):
                probabilities[rows], prior[rows], inexact[rows] = fused.score(mixture, part, batch, candidates[rows], component)
                return
            chosen = torch.from_numpy(candidates[rows]).to(self.device, torch.int64)
            named = (chosen >= 0) & (chosen < batch.eligible[:, None])
            found = mixture.distributions(mixture.encode(batch, ("popularity", component)))
            p, q = found[component], found["popularity"]
            chosen = chosen.clamp(min=0)
            probabilities[rows] = torch.where(named, p.gather(1, chosen), 0).cpu().numpy()
            prior[rows] = torch.where(named, q.gather(1, chosen), 0).cpu().numpy()

        most_rows = 1 if fused is None else fused.max_rows
        self._each(
            look_up, self._groups(contexts, lambda mixture: fused is not None and fused.supports(mixture, component), most_rows)
        )
        again = np.flatnonzero(inexact)
        self._each(lambda rows, mixture: look_up(again[rows], mixture), self._groups(contexts.take(again)))
        return probabilities, prior

    @torch.inference_mode()
    def distributions(
        self, contexts: Contexts, components: Sequence[str] = ("mixture",)
    ) -> Iterator[tuple[NDArray[np.int64], list[torch.Tensor]]]:
        """Yield whole distributions, a few rows at a time.

        Args:
            contexts: Of any number.
            components: ``mixture``, or estimators alone.

        Returns:
            Row numbers [R], and for each member float32 [R, N] probabilities, 0 for what cannot be proposed.
        """
        for rows, mixture in self._groups(contexts):
            summary = mixture.encode(
                ContextBatch.from_contexts(contexts.take(rows), self.first_seen), tuple(dict.fromkeys(components))
            )
            found = mixture.distributions(summary)
            yield rows, [found[member] for member in components]

    def _each(
        self, work: Callable[[NDArray[np.int64], Mixture], None], groups: Iterable[tuple[NDArray[np.int64], Mixture]]
    ) -> None:
        """Process every group, several at a time where there are threads for it."""

        @torch.inference_mode()  # holds for the thread that it is called in
        def one(group: tuple[NDArray[np.int64], Mixture]) -> None:
            work(*group)

        for _ in map(one, groups) if self._threads is None else self._threads.map(one, groups):
            self.on_progress()

    def _groups(
        self, contexts: Contexts, in_blocks: Callable[[Mixture], bool] = lambda _: False, most_rows: int = 1
    ) -> Iterator[tuple[NDArray[np.int64], Mixture]]:
        """Yield rows of one fold at a time, in order of time, in groups of limited size.

        Args:
            contexts: All contexts.
            in_blocks: Whether a parameter set is processed in blocks of items, so that a group may have more rows.
            most_rows: Maximum rows of such a group.
        """
        of_whole_rows = max(1, _CHUNK // self.n_target)
        for fold in np.unique(contexts.fold).tolist():
            if fold not in self._sets:
                raise TranslatorError(
                    f"a context asks for fold {fold}; this translator has {self.folds}",
                    where="Contexts.fold",
                    next_step="use the fold count of the version's manifest",
                )
            rows = np.flatnonzero(contexts.fold == fold)
            rows = rows[np.argsort(contexts.event_time[rows], kind="stable")]
            most = of_whole_rows
            if in_blocks(self._sets[fold]):
                most = min(most_rows, max(_LEAST_ROWS, -(-len(contexts) // self._shares)))
            step = -(-len(rows) // -(-len(rows) // most))
            for start in range(0, len(rows), step):
                yield rows[start : start + step], self._sets[fold]


@cache
def _warn_not_compiled(reason: str) -> None:
    """Log a warning, once in a process."""
    logger.warning("nothing can be compiled here, so that contexts are translated several times slower (%s)", reason)


def _travelled(folder: Path, metadata: dict[str, str], manifest: dict[str, Any], *, trusted: bool) -> dict[str, Any]:
    """Load the estimators whose sources a version carries, by name.

    Raises:
        ValueError: Manifest and weights name different ones, or they must not run.
    """
    described = json.loads(metadata.get("carried", "{}"))
    if described != manifest.get("carried", {}):
        raise ValueError("manifest and weights do not name the same sources of estimators")
    if described and not trusted:
        raise ValueError(
            f"it carries the source of {', '.join(described)}, which may not run from a folder that is not trusted"
        )
    return load_bundled_estimators(folder, described)


def _padded(tensor: torch.Tensor, k: int, filler: int) -> NDArray[Any]:
    array: NDArray[Any] = tensor.cpu().numpy()
    return np.pad(array, ((0, 0), (0, k - array.shape[1])), constant_values=filler)


def _unreadable(folder: str | Path, reason: str) -> TranslatorError:
    return TranslatorError(
        f"the translator's file cannot be used: {reason}",
        where=str(folder),
        next_step="restore the folder from a copy, or remove it and train again: scalr translator train",
    )
