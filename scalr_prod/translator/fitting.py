# SPDX-License-Identifier: Apache-2.0
"""Fit parameter sets on a slice of the log, and calibrate them on the slice after it."""

from __future__ import annotations

import itertools
import json
import logging
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from scalr_prod.errors import ScalrError, TranslatorError
from scalr_prod.plugins import ESTIMATORS
from scalr_prod.resident import give_back
from scalr_prod.translator import effort, tastes
from scalr_prod.translator.calibration import TABLES, calibrate, neutral
from scalr_prod.translator.devices import learning_device, or_on_the_cpu
from scalr_prod.translator.estimators import SCORED, popularity, scored_of
from scalr_prod.translator.estimators.carried import carried, estimator_of
from scalr_prod.translator.information import Asked, Information, measure_information
from scalr_prod.translator.layout import Layout
from scalr_prod.translator.metrics import Figures, measure
from scalr_prod.translator.module import TranslatorModule
from scalr_prod.translator.pairs import ContextSource, Pairs, contexts_at
from scalr_prod.translator.threads import ALONE, Workers, telling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    from scalr_prod.settings import Settings
    from scalr_prod.translator.estimators.carried import Carried
    from scalr_prod.translator.estimators.protocol import Fitted
    from scalr_prod.translator.log import Log
    from scalr_prod.translator.pairs import Parameters

__all__ = [
    "Calibrated",
    "Shared",
    "calibration_slice",
    "cut_at",
    "figures_of",
    "fit_calibration",
    "fit_sets",
    "metadata_of",
    "rows_between",
    "share",
]

logger = logging.getLogger(__name__)

#: Events that figures are of, at most: an NLL's standard error is then some .01 nats at most.
MOST_MEASURED: Final = 50_000


@dataclass(frozen=True)
class Calibrated:
    """Tables by name, ready to travel with any parameter sets of the same recipe, and what is known of the slice they came from.

    Attributes:
        tables: By name.
        layout: Of the tables.
        figures: Every member's, see `figures_of`.
        information: What source histories say of the slice's events; None where it was not asked for.
    """

    tables: dict[str, torch.Tensor]
    layout: Layout
    figures: dict[str, dict[str, Figures]]
    information: Information | None = None

    def weights(self) -> dict[str, dict[str, float]]:
        """The mixture's weights by name, for users with and without target events in training (``all``, ``held_out``)."""
        return {
            name.rpartition("/")[2]: dict(
                zip(self.layout.weights, (round(x, 5) for x in self.tables[name][0].tolist()), strict=True)
            )
            for name in TABLES
        }


@dataclass(frozen=True)
class Shared:
    """What all parameter sets of a slice learn from source events alone.

    Attributes:
        pairs: The slice.
        estimators: By name, those that gave the parameters; the longest work first, so that the shorter fits fill the gaps beside it.
        parameters: Estimator → its tensors.
    """

    pairs: Pairs
    estimators: dict[str, Fitted]
    parameters: dict[str, Parameters]


def cut_at(time: NDArray[np.int64], share: float) -> int:
    """The instant (µs) before which a share of the events lies."""
    ordered = np.sort(time)
    return int(ordered[min(int(share * len(ordered)), len(ordered) - 1)])


def metadata_of(settings: Settings, pairs: Pairs, folds: int) -> dict[str, str]:
    """What the weights' file says of itself."""
    return {
        "folds": str(folds),
        "history_length": str(settings.histories.length),
        "estimators": json.dumps(list(settings.translator.estimators)),
        "n_source": str(pairs.n_source),
        **Layout.of(settings.translator.estimators).described(),
        **_described(carried(settings.translator.estimators)),
    }


def _described(estimators: Mapping[str, Carried]) -> dict[str, str]:
    """Nothing where all estimators are ours, so that their versions are the same bytes as they always were."""
    return {"carried": json.dumps({name: one.described() for name, one in estimators.items()})} if estimators else {}


def share(slices: Sequence[Pairs], workers: Workers = ALONE, done: Callable[[float], None] = lambda _: None) -> list[Shared]:
    """What all parameter sets of each slice learn from source events alone. Each estimator of each slice is a unit of work.

    The longest of them, the sequential estimator's pretraining, has one thread; several slices' run side by side.

    Args:
        slices: The slices.
        workers: Where the units run.
        done: Called with the work that was done since its last call, see `effort`; in any thread.
    """
    # Each slice has instances of its own, as whatever they remember is of one slice.
    made = [{name: estimator_of(name) for name in reversed(scored_of(pairs.settings.estimators))} for pairs in slices]
    units = list(itertools.product(made[0], range(len(slices))))

    def fit(unit: tuple[str, int]) -> Parameters:
        name, number = unit
        with _naming(name), telling(effort.share_work(name, slices[number]), done):
            learnt: Parameters = made[number][name].share(slices[number])
            give_back()
            return learnt

    found = dict(zip(units, workers.map(fit, units), strict=True))
    return [Shared(pairs, made[n], {name: found[name, n] for name in made[n]}) for n, pairs in enumerate(slices)]


def fit_sets(
    pairs: Pairs,
    held_out: dict[int, NDArray[np.bool_]],
    done: Callable[[float], None],
    workers: Workers = ALONE,
    *,
    shared: Shared | None = None,
) -> dict[str, torch.Tensor]:
    """Fit parameter sets on one slice. Popularity, tastes, and each estimator of each set are units of work.

    Args:
        pairs: The slice.
        held_out: Set number → bool [U], users whose target events must not shape it; popularity as of an event, which is no
            parameter of a set, counts everybody's that came before.
        done: Called with the work that was done since its last call, see `effort`; in any thread.
        workers: Where the units run.
        shared: What `share` gave for the slice; default: it is worked out here.

    Returns:
        Tensors named as `Mixture.of` expects them, calibration aside.
    """
    import torch

    tensors = {"shared/first_seen": torch.from_numpy(pairs.first_seen)}
    shared = shared or share([pairs], workers)[0]
    estimators, common = shared.estimators, shared.parameters
    learn = {number: pairs.without(users) for number, users in held_out.items()}
    tensors |= {f"{number}/popularity/prior": popularity.prior(slice_) for number, slice_ in learn.items()}

    # Tables of what every event found: those of a long log are large, and are made only when a set goes with them.
    tables: dict[str, Callable[[Pairs], Parameters]] = {"popularity": popularity.fit, "tastes": tastes.fit}

    def fit(unit: tuple[int | None, str]) -> dict[str, torch.Tensor]:
        number, name = unit
        if number is None:
            with telling(effort.share_work(name, pairs), done):
                learnt = _named(f"shared/{name}", tables[name](pairs))
        else:
            with _naming(name), telling(effort.fit_work(name, pairs), done):
                learnt = _named(f"{number}/{name}", estimators[name].fit(learn[number], common[name]))
        give_back()
        return learnt

    for found in workers.map(fit, [*itertools.product(learn, estimators), *((None, name) for name in tables)]):
        tensors |= found
    # What every set has of its own was only where its fit started from.
    own = {name.partition("/")[2] for name in tensors if not name.startswith("shared/")}
    for name, parts in common.items():
        tensors |= {key: x for key, x in _named(f"shared/{name}", parts).items() if key.removeprefix("shared/") not in own}
    return tensors


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Name an estimator of another package in whatever its fit raises, and see that it gives tensors.

    Raises:
        TranslatorError: It failed.
    """
    try:
        yield
    except (ScalrError, CancelledError):
        raise
    except Exception as error:
        if name in SCORED:
            raise
        raise TranslatorError(
            f"the estimator {name} could not be fitted: {type(error).__name__}: {error}",
            where=ESTIMATORS.setting,
            next_step="correct its share and fit: see scalr_prod.translator.Estimator",
        ) from error


def _named(prefix: str, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # Copied, since numpy's memory begins anywhere and torch's at multiples of 64 bytes: a product may round by where a matrix begins.
    # One after the other, so that a large one goes when its copy is made and nobody else holds it.
    left = dict(parts)
    del parts
    return {f"{prefix}/{key}": left.pop(key).clone() for key in list(left)}


def calibration_slice(settings: Settings, log: Log, begin: int, end: int) -> Pairs:
    """What `fit_calibration` fits its one set on.

    Raises:
        TranslatorError: Too little to learn from.
    """
    device = learning_device(settings.compute.device)
    return Pairs.of(log, begin, settings.translator, popularity_until=end, device=device)


def fit_calibration(
    settings: Settings,
    log: Log,
    held_out: NDArray[np.bool_],
    begin: int,
    end: int,
    done: Callable[[float], None],
    workers: Workers = ALONE,
    *,
    shared: Shared | None = None,
    informed: bool = False,
) -> Calibrated:
    """Fit one set before ``begin`` without the held-out users' target events, and its calibration on ``[begin, end)``.

    The held-out users are of all folds: what they teach can weigh every fold's set, each without the fold's own users.
    With ``informed``, measure as well what the held-out users' source histories say. ``shared`` is what `share` gave for the
    `calibration_slice`; by default it is worked out here.

    Raises:
        TranslatorError: One of the two slices is empty.
    """
    pairs = shared.pairs if shared else calibration_slice(settings, log, begin, end)
    tensors = fit_sets(pairs, {-1: held_out}, done, workers, shared=shared)
    rows = rows_between(log, begin, end)
    contexts = ContextSource(log, rows, pairs.source_index, pairs.target_index)
    user = log.target.user[rows]
    layout, metadata = Layout.of(settings.translator.estimators), metadata_of(settings, pairs, 0)
    counted, seed = log.label_weights(end), settings.translator.seed

    def tables_on(device: str) -> dict[str, torch.Tensor]:
        module = TranslatorModule(tensors | neutral(layout), metadata, device)
        give_back()
        return calibrate(
            module,
            contexts,
            contexts.labels,
            held_out[user],
            seed=seed,
            fold=log.fold[user],
            weight=None if counted is None else counted[rows],
            workers=workers,
        )

    tables = or_on_the_cpu(pairs.device, tables_on)
    figures = figures_of(settings, log, pairs, tensors | tables, rows, held_out, workers)
    information = None
    if informed:
        own = np.flatnonzero(log.possible & held_out[log.target.user] & (log.target.time < end))
        everything, later = (_asked_of(log, pairs, log.in_proportion(some, end, seed), held_out) for some in (own, rows))
        information = or_on_the_cpu(
            pairs.device, lambda device: measure_information(tensors, metadata, everything, later, seed=seed, device=device)
        )
    done(effort.calibration_work(len(rows)))
    return Calibrated(tables, layout, figures, information)


def _asked_of(log: Log, pairs: Pairs, rows: NDArray[np.int64], held_out: NDArray[np.bool_]) -> Asked:
    """Events at their positions in ``log.target``."""
    contexts, user = ContextSource(log, rows, pairs.source_index, pairs.target_index), log.target.user[rows]
    return Asked(contexts, contexts.labels, user, held_out[user])


def rows_between(log: Log, begin: int, end: int) -> NDArray[np.int64]:
    """Positions of the labels with ``begin <= time < end``.

    Raises:
        TranslatorError: There are none.
    """
    rows = np.flatnonzero(log.possible & (log.target.time >= begin) & (log.target.time < end))
    if not len(rows):
        raise TranslatorError(
            f"no target event lies in [{np.datetime64(begin, 'us')}, {np.datetime64(end, 'us')})",
            where="the validation slice",
            next_step="ingest more target events, or raise translator.validation_fraction",
        )
    return rows


def figures_of(
    settings: Settings,
    log: Log,
    pairs: Pairs,
    tensors: dict[str, torch.Tensor],
    rows: NDArray[np.int64],
    held_out: NDArray[np.bool_],
    workers: Workers = ALONE,
) -> dict[str, dict[str, Figures]]:
    """Every member's figures: group of users (``all``, ``cold`` = held out, ``warm``) → member → figures.

    Where events weigh differently, they are asked of in proportion. Of more than `MOST_MEASURED` events, so many are drawn.

    Held-out users are asked of as in a run: with parameters that never saw them, weighed by their fold's own table.
    """
    folds = settings.translator.folds
    seen = {name.removeprefix("-1/"): tensor for name, tensor in tensors.items() if name.startswith("-1/")}
    twins = {f"{fold}/{name}": tensor for fold in range(folds) for name, tensor in seen.items()}
    seed = settings.translator.seed
    rows = log.in_proportion(rows, int(log.target.time[rows].max()) + 1, seed)
    if len(rows) > MOST_MEASURED:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST_MEASURED, replace=False))
    user = log.target.user[rows]
    cold = held_out[user]
    fold = np.where(cold, log.fold[user], -1).astype(np.int32)
    contexts, labels = contexts_at(log, rows, source_index=pairs.source_index, target_index=pairs.target_index, fold=fold)
    groups = {"all": np.ones(len(rows), bool), "cold": cold, "warm": ~cold}

    def figures_on(device: str) -> dict[str, dict[str, Figures]]:
        module = TranslatorModule(tensors | twins, metadata_of(settings, pairs, folds), device)
        return measure(module, contexts, labels, groups, members(module), workers)

    return or_on_the_cpu(pairs.device, figures_on)


def members(module: TranslatorModule) -> list[str]:
    """The mixture and those it is made of."""
    return [member for member in module.layout.members if member in {"mixture", "popularity", *module.estimators}]
