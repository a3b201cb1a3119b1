# SPDX-License-Identifier: Apache-2.0
"""`TranslatorModule`: a translator version as one torch module, used in training, in-process and inside Triton.

For each context it computes ``P(i | context)`` over the eligible target items: those seen before the event and not excluded. It samples
items without replacement (`sample`), and scores given ones (`score`). A context names its parameter set:

* ``0, 1, …``: a fold, trained without the target events of its users. Cross-fitted runs translate each user by the user's own fold.
* `ALL_USERS` (-1): trained on all users, for causal runs.
* `COLD_USERS` (-2): the same parameters, calibrated for users without target events.

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
from scalr_prod.translator.estimators.bundled_source import LoadedEstimators, load_bundled_estimators, load_estimator
from scalr_prod.translator.estimators.popularity import events_by_item
from scalr_prod.translator.mixture import Mixture
from scalr_prod.translator.requests import RequestBounds, SampleRequest, check_sampling
from scalr_prod.translator.sampling import sample_topk
from scalr_prod.translator.shortlist import ShortlistIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from scalr_prod.translator.kernels.executor import FusedExecutor
    from scalr_prod.translator.kernels.gpu.gpu_executor import GpuExecutor
    from scalr_prod.translator.kernels.shortlist_executor import ShortlistExecutor


logger = logging.getLogger(__name__)
#: Key of the weights' file's metadata, which is stored as JSON.
METADATA_KEY: Final = "translator"
#: Elements of a [rows, items] tensor processed at a time, so that they stay near the processor's cache.
_CHUNK: Final = 2**19
#: Minimum rows per group of a request that threads share: matrix products of few rows are slow.
_MIN_GROUP_ROWS: Final = 64


class TranslatorModule(torch.nn.Module):
    """All parameter sets of one translator version; loaded with `load`.

    Args:
        tensors: Tensors by name.
        metadata: Metadata of the weights' file.
        device: Device of the parameters.
        threads: Number of groups of rows that are processed concurrently, on a CPU.
        bundled_estimators: Estimators bundled with the version, by name; the others are loaded as installed.
        reference: Run only the reference in plain torch, never a compiled executor.
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
        self._n_concurrent = threads if self.device.type == "cpu" else 1
        self._threads = ThreadPoolExecutor(threads, "translator") if self._n_concurrent > 1 else None
        #: Called after each group of rows of `sample` and `score`, to report progress of a long batch.
        self.on_progress: Callable[[], None] = lambda: None
        self.folds = int(metadata["folds"])
        self.history_length = int(metadata["history_length"])
        names: list[str] = json.loads(metadata["estimators"])
        self.has_popularity = "popularity" in names
        self.estimators = list(scored_estimators(names))
        bundled_estimators = bundled_estimators or {}
        estimators = {
            name: bundled_estimators[name] if name in bundled_estimators else load_estimator(name) for name in self.estimators
        }
        on_device: dict[int, torch.Tensor] = {}  # a tensor may have several names
        tensors = {name: on_device.setdefault(id(tensor), tensor.to(self.device)) for name, tensor in tensors.items()}
        self.first_seen = tensors["shared/first_seen"]
        self.n_target = len(self.first_seen)
        self.n_source = int(metadata["n_source"])
        if "shared/popularity/item" in tensors:  # if missing, Mixture.from_tensors raises
            tensors["shared/popularity/by_item"] = events_by_item({"item": tensors["shared/popularity/item"]})
        self.bounds = RequestBounds(self.n_source, self.n_target, self.folds)
        self._item_words = counter_rng.item_words(self.n_target).to(self.device)
        self.layout = CalibrationLayout.from_metadata(metadata)
        self._mixtures = {
            fold: Mixture.from_tensors(tensors, fold, estimators, self.layout) for fold in range(COLD_USERS, self.folds)
        }
        self._reference = reference

    @cached_property
    def _executor(self) -> FusedExecutor | GpuExecutor | None:
        """Return the compiled executor: numba on a CPU, the Triton language (not the server) on a GPU; None: plain torch."""
        if self._reference:
            return None
        mixtures = tuple(self._mixtures.values())
        try:
            with torch.inference_mode():
                if self.device.type == "cpu":
                    from scalr_prod.translator.kernels import self_test

                    return self_test.build_executor(mixtures, self._item_words, self.first_seen)
                from scalr_prod.translator.kernels.gpu import gpu_self_test

                return gpu_self_test.build_executor(mixtures, self._item_words, self.first_seen, self.n_source)
        except Exception as error:  # of numba or Triton, which may be missing or may not support the machine
            _warn_not_compiled(f"{type(error).__name__}: {error}")
            return None

    @cached_property
    def _shortlists(self) -> ShortlistIndex:
        return ShortlistIndex.from_mixture(self._mixtures[ALL_USERS], self.n_source, self.first_seen, self.on_progress)

    @cached_property
    def _shortlist_executor(self) -> ShortlistExecutor | None:
        """Return the compiled executor for shortlists, on a CPU; None: plain torch."""
        if self.device.type != "cpu":
            logger.warning(
                "shortlists on a GPU use plain torch, which is slower than compiled sampling from the whole catalogue"
            )
            return None
        if self._executor is None:
            return None
        from scalr_prod.translator.kernels.shortlist_executor import ShortlistExecutor

        return ShortlistExecutor(self._mixtures[ALL_USERS].popularity, self._item_words, self._shortlists)

    def parameter_set(self, fold: int) -> Mixture:
        """Return a fold's mixture."""
        return self._mixtures[fold]

    @classmethod
    def load(
        cls, folder: str | Path, device: str = "cpu", threads: int = 1, *, trusted: bool = False, reference: bool = False
    ) -> TranslatorModule:
        """Load a version from its folder.

        Args:
            folder: Folder with ``translator.safetensors``, ``manifest.json``, and the sources of estimators of other packages.
            device: Device of the parameters: ``cpu``, ``cuda``, ``cuda:1``.
            threads: Number of groups of rows that `sample` and `score` process concurrently, on a CPU. Set torch to one thread then:
                threads that share small operations spend more time waiting than working.
            trusted: Whether to run the estimator sources bundled with the version. Set it for folders of `load_version`, which compares
                their checksum with the ledger's. Other folders may contain any code.
            reference: Run only the reference in plain torch.

        Raises:
            TranslatorNotFound: The folder does not exist or has no translator.
            TranslatorError: A file is unreadable or has another checksum; or the version has a bundled estimator, and is not trusted or
                does not load.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(folder) / "translator.safetensors"
        try:
            manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
            with path.open("rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise TranslatorNotFound(
                f"the folder has no translator ({Path(error.filename).name} is missing)",
                where=str(folder),
                next_step="train one: scalr translator train",
            ) from error
        except (OSError, ValueError) as error:
            raise _unusable_file(folder, str(error)) from error
        if checksum != manifest.get("sha256"):
            raise _unusable_file(
                folder, f"its checksum is {checksum[:12]}…, the manifest says {str(manifest.get('sha256'))[:12]}…"
            )
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = json.loads(file.metadata()[METADATA_KEY])
            bundled = _load_bundled(Path(folder), metadata, manifest, trusted=trusted)
            return cls(tensors, metadata, device, threads, bundled_estimators=bundled, reference=reference)
        except KeyError as error:
            raise _unusable_file(folder, f"it has no {error}: another release of the package wrote it") from error
        except (SafetensorError, OSError, TypeError, ValueError) as error:
            raise _unusable_file(folder, str(error)) from error

    def warm_up(self, *, shortlists: bool = False) -> bool:
        """Compile the executors of `sample` and `score` before the first request: takes seconds, once per machine and package version.

        Args:
            shortlists: Also build the shortlist index: about ten seconds per million items.

        Returns:
            Whether compiled code is used.
        """
        if shortlists:
            self._shortlists.warm_up(self._mixtures.values())
            self._shortlist_executor  # noqa: B018 - a cached property
        return self._executor is not None

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
            contexts: B contexts.
            k: Draws per context.
            temperature: 1 draws from P itself; towards 0 the draws become the k most probable items.
            min_lift: A draw with P(i | context) < min_lift × P(i) is returned as ``NO_ITEM``, with its probability.
            shortlist: Draw among about this many likely items, at least k, see `shortlist`. Probabilities are then estimates of those
                over the whole catalogue. None: draw among all items.
            component: ``mixture``, or one estimator alone.

        Returns:
            [B, k] each; see `Samples`.

        Raises:
            InvalidRequest: A context or a parameter is out of range.
        """
        check_sampling(k, temperature, min_lift, shortlist)
        self.bounds.check_contexts(contexts)
        items = np.full((len(contexts), k), NO_ITEM, dtype=np.int32)
        probabilities, prior = np.zeros((2, len(contexts), k), dtype=np.float32)

        needs_float64 = np.zeros(len(contexts), dtype=bool)
        shortlists = self._shortlists if shortlist is not None and shortlist < self.n_target else None
        executor = self._executor if shortlists is None else self._shortlist_executor
        request = SampleRequest(k, temperature, min_lift, component, None if shortlists is None else max(shortlist or 1, k))

        def draw(rows: NDArray[np.int64], mixture: Mixture, dtype: torch.dtype = torch.float32) -> None:
            group = contexts.take(rows)
            batch = ContextBatch.from_contexts(group, self.first_seen)
            if dtype == torch.float32 and executor is not None and executor.supports(mixture, component, k):
                drawn = executor.draw(request, mixture, group, batch)
            else:
                drawn = sample_topk(request, mixture, group, batch, self._item_words, dtype, shortlists)
            items[rows] = _padded(drawn.items, k, NO_ITEM)
            probabilities[rows], prior[rows] = _padded(drawn.probabilities, k, 0), _padded(drawn.prior, k, 0)
            needs_float64[rows] = drawn.needs_float64.cpu().numpy()

        most_rows = 1 if executor is None else executor.max_rows
        self._process_groups(
            draw,
            self._iter_groups(
                contexts, lambda mixture: executor is not None and executor.supports(mixture, component, k), most_rows
            ),
        )
        # All in one pass, since float64 copies every matrix.
        redrawn = np.flatnonzero(needs_float64)
        self._process_groups(
            lambda rows, mixture: draw(redrawn[rows], mixture, torch.float64), self._iter_groups(contexts.take(redrawn))
        )
        return Samples(items=items, probabilities=probabilities, prior=prior)

    def score(
        self, contexts: Contexts, candidates: NDArray[np.int32], *, component: str = "mixture"
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return P(i | context) and the prior P(i) of given candidates.

        Args:
            contexts: B contexts.
            candidates: int32 [B, C]. Target indices; ``NO_ITEM`` and ineligible items get 0.
            component: ``mixture``, or one estimator alone.

        Returns:
            Two float32 arrays [B, C].

        Raises:
            InvalidRequest: A context or a candidate is out of range.
        """
        self.bounds.check_contexts(contexts)
        self.bounds.check_candidates(candidates, len(contexts))
        probabilities, prior = np.zeros((2, *candidates.shape), dtype=np.float32)
        inexact = np.zeros(len(contexts), dtype=bool)
        executor = self._executor

        def score_group(rows: NDArray[np.int64], mixture: Mixture) -> None:
            group = contexts.take(rows)
            batch = ContextBatch.from_contexts(group, self.first_seen)
            if executor is not None and not inexact[rows[0]] and executor.supports(mixture, component):
                probabilities[rows], prior[rows], inexact[rows] = executor.score(
                    mixture, group, batch, candidates[rows], component
                )
                return
            items = torch.from_numpy(candidates[rows]).to(self.device, torch.int64)
            valid = (items >= 0) & (items < batch.eligible[:, None])
            distributions = mixture.distributions(mixture.encode(batch, ("popularity", component)))
            p, q = distributions[component], distributions["popularity"]
            items = items.clamp(min=0)
            probabilities[rows] = torch.where(valid, p.gather(1, items), 0).cpu().numpy()
            prior[rows] = torch.where(valid, q.gather(1, items), 0).cpu().numpy()

        most_rows = 1 if executor is None else executor.max_rows
        self._process_groups(
            score_group,
            self._iter_groups(
                contexts, lambda mixture: executor is not None and executor.supports(mixture, component), most_rows
            ),
        )
        rescored = np.flatnonzero(inexact)
        self._process_groups(
            lambda rows, mixture: score_group(rescored[rows], mixture), self._iter_groups(contexts.take(rescored))
        )
        return probabilities, prior

    @torch.inference_mode()
    def distributions(
        self, contexts: Contexts, components: Sequence[str] = ("mixture",)
    ) -> Iterator[tuple[NDArray[np.int64], list[torch.Tensor]]]:
        """Yield distributions over all items, some rows at a time.

        Args:
            contexts: Any number of contexts.
            components: ``mixture``, or names of estimators.

        Returns:
            int64 [R] rows, and for each component float32 [R, N] probabilities, 0 for ineligible items.
        """
        for rows, mixture in self._iter_groups(contexts):
            encoded = mixture.encode(
                ContextBatch.from_contexts(contexts.take(rows), self.first_seen), tuple(dict.fromkeys(components))
            )
            by_component = mixture.distributions(encoded)
            yield rows, [by_component[component] for component in components]

    def _process_groups(
        self, work: Callable[[NDArray[np.int64], Mixture], None], groups: Iterable[tuple[NDArray[np.int64], Mixture]]
    ) -> None:
        """Process every group of rows, concurrently if there are several threads."""

        @torch.inference_mode()  # a setting of the thread
        def process(group: tuple[NDArray[np.int64], Mixture]) -> None:
            work(*group)

        for _ in map(process, groups) if self._threads is None else self._threads.map(process, groups):
            self.on_progress()

    def _iter_groups(
        self, contexts: Contexts, in_blocks: Callable[[Mixture], bool] = lambda _: False, max_block_rows: int = 1
    ) -> Iterator[tuple[NDArray[np.int64], Mixture]]:
        """Yield groups of rows of one fold, sorted by time, with their mixture.

        Args:
            contexts: All contexts.
            in_blocks: Returns whether a mixture is processed in blocks of items, so that a group may have more rows.
            max_block_rows: Maximum rows of such a group.
        """
        max_dense_rows = max(1, _CHUNK // self.n_target)
        for fold in np.unique(contexts.fold).tolist():
            if fold not in self._mixtures:
                raise TranslatorError(
                    f"a context has fold {fold}; this translator has {self.folds} folds",
                    where="Contexts.fold",
                    next_step="use the fold count of the version's manifest",
                )
            rows = np.flatnonzero(contexts.fold == fold)
            rows = rows[np.argsort(contexts.event_time[rows], kind="stable")]
            max_rows = max_dense_rows
            if in_blocks(self._mixtures[fold]):
                max_rows = min(max_block_rows, max(_MIN_GROUP_ROWS, -(-len(contexts) // self._n_concurrent)))
            step = -(-len(rows) // -(-len(rows) // max_rows))
            for start in range(0, len(rows), step):
                yield rows[start : start + step], self._mixtures[fold]


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

    def with_tensors(self, tensors: dict[str, torch.Tensor]) -> TrainingModule:
        """Return a module in which these tensors, such as calibration tables, replace those of the same names."""
        own, metadata, device = self._source
        return TrainingModule(own | tensors, metadata, device)

    def __reduce__(self) -> tuple[Any, ...]:
        return TrainingModule, (*self._source, LoadedEstimators.from_names(self.estimators))


@cache
def _warn_not_compiled(reason: str) -> None:
    """Log a warning, once in a process."""
    logger.warning("kernels cannot be compiled: translating contexts is several times slower (%s)", reason)


def _load_bundled(folder: Path, metadata: dict[str, str], manifest: dict[str, Any], *, trusted: bool) -> dict[str, Any]:
    """Load the estimators bundled with a version, by name.

    Raises:
        ValueError: Manifest and weights disagree about them, a source is not trusted, or it does not load.
    """
    described = json.loads(metadata.get("carried", "{}"))
    if described != manifest.get("carried", {}):
        raise ValueError("manifest and weights name different sources of estimators")
    if described and not trusted:
        raise ValueError(
            f"it carries the source of {', '.join(described)}, which does not run from a folder that is not trusted"
        )
    return load_bundled_estimators(folder, described)


def _padded(tensor: torch.Tensor, k: int, filler: int) -> NDArray[Any]:
    """Pad [R, C] with a value to k columns."""
    array: NDArray[Any] = tensor.cpu().numpy()
    return np.pad(array, ((0, 0), (0, k - array.shape[1])), constant_values=filler)


def _unusable_file(folder: str | Path, reason: str) -> TranslatorError:
    return TranslatorError(
        f"the translator's file cannot be used: {reason}",
        where=str(folder),
        next_step="restore the folder from a copy, or remove it and train again: scalr translator train",
    )
