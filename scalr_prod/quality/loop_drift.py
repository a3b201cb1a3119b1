# SPDX-License-Identifier: Apache-2.0
"""Alarm on the loop: whether real events became less varied, or the translator less calibrated, since synthetic events were published.

Models that were trained on synthetic events shape the next real events, and these train the next translator. Compared are the target
events of up to `DAYS` days before the first publication and of as many days before the run's ``as_of``, but after that publication. The
larger number of events is sampled down to the smaller one, since fewer events are on fewer items.
"""

from __future__ import annotations

import logging
import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from scalr_prod.quality.sample_size import CHANCE
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, Table
from scalr_prod.translator import ReliabilityClass

if TYPE_CHECKING:
    from datetime import datetime

    from numpy.typing import NDArray

    from scalr_prod.config import QualitySettings
    from scalr_prod.lake import Lake
    from scalr_prod.ledger import ModelVersion, RunSpec


logger = logging.getLogger(__name__)

#: Longest period of events that is compared.
DAYS: Final = 28
#: Fewest events of each period.
MIN_EVENTS: Final = 1000
#: Fewest expected outcomes of calibration.
MIN_OUTCOMES: Final = 100
#: The most popular share of the items; the others are the tail.
HEAD: Final = 0.2
#: Classes of probability from here on count for calibration: over all classes, predictions and outcomes both add up to the events.
LIKELY: Final = 0.01


class LoopStart(NamedTuple):
    """The first publication of synthetic events.

    Attributes:
        published_at: When it was.
        translator: The ledger's record of the translator that drew them; None: there is none.
    """

    published_at: datetime
    translator: ModelVersion | None


class Spread(NamedTuple):
    """How events spread over items, with variances of sampling.

    Attributes:
        tail_share: Share of the events on items outside of the most popular fifth, by these events.
        tail_variance: Of ``tail_share``.
        entropy: Of the items, in nats.
        entropy_variance: Of ``entropy``.
    """

    tail_share: float
    tail_variance: float
    entropy: float
    entropy_variance: float


def measure_loop_drift(lake: Lake, spec: RunSpec, loop: LoopStart, translator: ModelVersion | None) -> dict[str, float]:
    """Return the figures of `compare_periods` and `compare_calibration`.

    Args:
        lake: The lake.
        spec: The run.
        loop: When the loop began.
        translator: The ledger's record of the run's translator.
    """
    calibration = compare_calibration(loop.translator, translator)
    if spec.as_of <= loop.published_at:  # as in a backfill of past windows
        return calibration
    return compare_periods(*count_items(lake, spec, loop.published_at)) | calibration


def count_items(lake: Lake, spec: RunSpec, first_publication: datetime) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the events of each item before the first publication and lately: int64 [items] each; an item has an event in one of them.

    Args:
        lake: The lake.
        spec: The run; its version of the table is read, and what was known by its ``as_of``.
        first_publication: When synthetic events were first published.
    """
    import duckdb

    dataset = lake.dataset(Table.TARGET_EVENTS, version=spec.table_versions[Table.TARGET_EVENTS])
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("real_events", dataset)
        found = connection.execute(
            f"""SELECT count(*) FILTER ({EVENT_TIMESTAMP} < $first) AS before, count(*) FILTER ({EVENT_TIMESTAMP} >= $first) AS lately
                FROM real_events WHERE {CREATED_TIMESTAMP} <= $as_of AND {EVENT_TIMESTAMP} >= $before AND {EVENT_TIMESTAMP} < $as_of
                    AND ({EVENT_TIMESTAMP} < $first OR {EVENT_TIMESTAMP} >= $lately)
                GROUP BY {ITEM_ID} ORDER BY {ITEM_ID}""",
            {
                "first": first_publication,
                "as_of": spec.as_of,
                "before": first_publication - timedelta(days=DAYS),
                "lately": max(first_publication, spec.as_of - timedelta(days=DAYS)),
            },
        ).fetchnumpy()
    return found["before"].astype(np.int64), found["lately"].astype(np.int64)


def compare_periods(before: NDArray[np.int64], lately: NDArray[np.int64]) -> dict[str, float]:
    """Compare how the events of two periods spread over items; empty if either has fewer than `MIN_EVENTS`.

    Args:
        before: int64 [items]. Events of each item.
        lately: The same of the later period.

    Returns:
        ``loop_tail_share`` and ``loop_effective_items``, exp(entropy), of the later period; the same of the earlier one, with ``_before``;
        and by what share each has fallen, ``…_fall``, 0 if chance may have done it.
    """
    events = int(min(before.sum(), lately.sum()))
    if events < MIN_EVENTS:
        return {}
    rng = np.random.default_rng(0)
    former, latter = (
        _spread(rng.multivariate_hypergeometric(counts, events, method="marginals")) for counts in (before, lately)
    )
    tail_lost, entropy_lost = former.tail_share - latter.tail_share, former.entropy - latter.entropy
    tail_error = math.sqrt(former.tail_variance + latter.tail_variance)
    entropy_error = math.sqrt(former.entropy_variance + latter.entropy_variance)
    return {
        "loop_events": events,
        "loop_tail_share": latter.tail_share,
        "loop_tail_share_before": former.tail_share,
        "loop_tail_share_fall": tail_lost / former.tail_share if tail_lost > _quantile() * tail_error else 0.0,
        "loop_effective_items": math.exp(latter.entropy),
        "loop_effective_items_before": math.exp(former.entropy),
        "loop_effective_items_fall": -math.expm1(-entropy_lost) if entropy_lost > _quantile() * entropy_error else 0.0,
    }


def compare_calibration(before: ModelVersion | None, now: ModelVersion | None) -> dict[str, float]:
    """Compare which share of the probability of likely items came true, as measured when two translators were trained.

    Args:
        before: The ledger's record of the translator of the first publication.
        now: That of the run's translator.

    Returns:
        ``loop_calibration``, ``loop_calibration_before``, and by what share it has fallen, ``loop_calibration_fall``, 0 if chance may have
        done it; empty if either was not measured on enough outcomes.
    """
    (expected, true), (now_expected, now_true) = map(_likely, (before, now))
    if min(expected, now_expected) < MIN_OUTCOMES:
        return {}
    share, now_share = true / expected, now_true / now_expected
    error = math.hypot(math.sqrt(true) / expected, math.sqrt(now_true) / now_expected)  # outcomes are nearly Poisson
    return {
        "loop_calibration": now_share,
        "loop_calibration_before": share,
        "loop_calibration_fall": 1 - now_share / share if share - now_share > _quantile() * error else 0.0,
    }


def warn_on_loop_drift(figures: dict[str, Any], quality: QualitySettings) -> None:
    """Log a warning for figures that have fallen by more than ``[quality] max_loop_drift_warn``."""
    limit = quality.max_loop_drift_warn
    fallen = {name: figures.get(f"loop_{name}_fall", 0.0) for name in ("tail_share", "effective_items", "calibration")}
    over = [f"{name} by {fall:.0%}" for name, fall in fallen.items() if limit and fall > limit]
    if over:
        logger.warning(
            "since synthetic events were first published, these figures of real events and of the translator fell by more than [quality] "
            "max_loop_drift_warn = %g: %s; mark the events that recommendations led to ([domains.target.columns] recommended_by), lower λ "
            "([training_set] synthetic_weight), and look at scalr experiment",
            limit,
            ", ".join(over),
        )


def _spread(counts: NDArray[np.int64]) -> Spread:
    events = counts.sum()
    share = np.sort(counts / events)[::-1]
    tail = float(share[int(HEAD * len(share)) :].sum())
    seen = share[share > 0]
    entropy = float(-(seen * np.log(seen)).sum())
    return Spread(tail, tail * (1 - tail) / events, entropy, float((seen * np.log(seen) ** 2).sum() - entropy**2) / events)


def _likely(record: ModelVersion | None) -> tuple[float, int]:
    """Return the probability that was predicted in the likely classes, and how many events came true."""
    found = [] if record is None else record.metrics.get("reliability") or []
    likely = [one for one in map(ReliabilityClass.from_json, found) if one.low >= LIKELY]
    return sum(one.expected for one in likely), sum(one.events for one in likely)


def _quantile() -> float:
    from scipy import special

    return float(special.ndtri(1 - CHANCE))
