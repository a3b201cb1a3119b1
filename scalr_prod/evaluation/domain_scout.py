# SPDX-License-Identifier: Apache-2.0
"""Comparison of all ordered pairs of several domains: which source to translate into which target."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from scalr_prod.core.progress import track
from scalr_prod.errors import SettingsError, TranslatorError
from scalr_prod.evaluation.domain_pair import MAX_EVENTS, PairMeasurement, fit_quick, measure_pair
from scalr_prod.quality import MIN_USERS
from scalr_prod.translator import DomainLog, OwnOverOthers, open_worker_pool, pair_log, quick_settings, with_first_items

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scalr_prod.config import Settings


logger = logging.getLogger(__name__)

#: Largest number of further source domains that are tried for the best pair.
_MAX_FURTHER: Final = 3


@dataclass(frozen=True)
class DomainSize:
    """Size of one domain's log."""

    name: str
    events: int
    users: int
    items: int


@dataclass(frozen=True)
class FurtherSource:
    """A further source domain that was tried for the best pair.

    Attributes:
        name: Its name.
        information: What its histories tell of target events over those of the sources that were taken before it; None: not measured.
        taken: Whether it is among the sources of the settings.
    """

    name: str
    information: OwnOverOthers | None
    taken: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"name": self.name, "adds": self.information and self.information.to_json(), "taken": self.taken}


@dataclass(frozen=True)
class ScoutReport:
    """Result of `scout`.

    Attributes:
        domains: Sizes of the logs.
        pairs: All ordered pairs, the best first.
        further: Further sources that were tried for the best pair.
    """

    domains: tuple[DomainSize, ...]
    pairs: tuple[PairMeasurement, ...]
    further: tuple[FurtherSource, ...] = field(default=())

    @property
    def best(self) -> PairMeasurement | None:
        """The best pair; None: no run is expected to help."""
        return self.pairs[0] if self.pairs[0].reason is None else None

    @property
    def sources(self) -> tuple[str, ...]:
        """Source domains to translate into the best pair's target; empty without a best pair."""
        if self.best is None:
            return ()
        return (self.best.source, *(one.name for one in self.further if one.taken))

    def rows(self) -> list[dict[str, str]]:
        """Return the pairs as a table of texts, best first."""
        return [
            {
                "source": pair.source,
                "target": pair.target,
                "users": f"{pair.common_users:,}",
                "events": f"{pair.source_events:,} → {pair.target_events:,}",
                "own over others": "-" if pair.information is None else pair.information.describe(),
                "lift in time": "-" if pair.lift is None else pair.lift.describe(),
                "gain": "-" if pair.expected_gain_pct is None else f"{pair.expected_gain_pct:+z.0f} %",
                "training": f"{pair.training_minutes:.1f} min",
                "reason": pair.reason or "-",
            }
            for pair in self.pairs
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        best = None
        if self.best is not None:
            further = [one.to_json() for one in self.further]
            best = {"sources": list(self.sources), "target": self.best.target, "further_sources": further}
        return {
            "domains": [vars(one) for one in self.domains],
            "pairs": [pair.to_json() for pair in self.pairs],
            "best": best,
        }


def scout(settings: Settings, *, progress: bool = False) -> ScoutReport:
    """Measure every ordered pair of the domains of the settings, whichever of them is the target there.

    Each log is read once. Nothing is written.

    Args:
        settings: Settings that name the logs.
        progress: Show a progress bar on stderr.

    Raises:
        SettingsError: There are fewer than two domains.
        InputError: A log cannot be read.
    """
    logs = {}
    for place in (*settings.domains.log_keys("source"), "target"):
        logs[settings.domains[place].name] = DomainLog.from_settings(settings, place)
        logger.info("read %s: %d events", settings.domains[place].name, len(logs[settings.domains[place].name]))
    return compare_domains(settings, logs, progress=progress)


def compare_domains(settings: Settings, logs: Mapping[str, DomainLog], *, progress: bool = False) -> ScoutReport:
    """Measure every ordered pair of some logs.

    Args:
        settings: Sections other than ``[domains]`` are read, see `measure_pair`.
        logs: Name → log.
        progress: Show a progress bar on stderr.

    Raises:
        SettingsError: There are fewer than two domains.
    """
    if len(logs) < 2:  # noqa: PLR2004 - a pair
        raise SettingsError(
            f"{len(logs)} log is no pair of domains", where=", ".join(logs), next_step="name the logs of at least two domains"
        )
    units = list(itertools.permutations(logs, 2))
    inputs = _ScoutInputs(settings, dict(logs))
    pairs = []
    with (
        open_worker_pool(settings.translator.threads) as pool,
        track("pairs", show=progress, total=len(units), unit="pairs") as done,
    ):
        for measured in pool.map(_measure_unit, inputs, units):
            pairs.append(measured)
            done(1)
        pairs.sort(key=PairMeasurement.order)
        further = _try_further_sources(settings, logs, pairs)
    sizes = (DomainSize(name, len(log), len(log.users), len(log.events.ids)) for name, log in logs.items())
    return ScoutReport(tuple(sizes), tuple(pairs), further)


class _ScoutInputs(NamedTuple):
    """What all pairs are measured on."""

    settings: Settings
    logs: dict[str, DomainLog]


def _measure_unit(inputs: _ScoutInputs, unit: tuple[str, str]) -> PairMeasurement:
    source, target = unit
    return measure_pair(inputs.settings, unit, inputs.logs[source], inputs.logs[target])


def _try_further_sources(
    settings: Settings, logs: Mapping[str, DomainLog], pairs: Sequence[PairMeasurement]
) -> tuple[FurtherSource, ...]:
    """Add the next best sources of the best pair's target one by one, as long as they add information."""
    best = pairs[0]
    if best.reason is not None:
        return ()
    candidates = [pair.source for pair in pairs[1:] if pair.target == best.target and pair.reason is None][:_MAX_FURTHER]
    taken, tried = [best.source], []
    for name in candidates:
        information = _added_information(settings, logs, [*taken, name], best.target)
        adds = information is not None and information.users >= MIN_USERS and information.nats.low > 0
        tried.append(FurtherSource(name, information, adds))
        taken += [name] if adds else []
    return tuple(tried)


def _added_information(
    settings: Settings, logs: Mapping[str, DomainLog], sources: Sequence[str], target: str
) -> OwnOverOthers | None:
    """Measure what the last source's histories tell over those of the others; None if there are too few events."""
    merged = DomainLog.merged({name: logs[name] for name in sources})
    length, folds = settings.histories.length, settings.translator.folds
    log = pair_log(merged, logs[target], length=length, folds=folds, max_events=MAX_EVENTS)
    others = with_first_items(log, sum(len(logs[name].events.ids) for name in sources[:-1]))
    quick = quick_settings(settings)
    try:
        return fit_quick(quick, log).information_over(fit_quick(quick, others))
    except TranslatorError:
        return None
