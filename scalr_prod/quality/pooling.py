# SPDX-License-Identifier: Apache-2.0
"""Pooling of small runs: rules on distributions judge quiet windows together with the published events before them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.core.delta_log import file_time_bounds, files_dataset
from scalr_prod.core.timestamps import DAY_US, micros_to_datetime, to_micros
from scalr_prod.quality.audit import ACCEPTED_EVENTS
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, USER_ID, Table
from scalr_prod.workspace import timestamp_literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from scalr_prod.lake import Lake
    from scalr_prod.ledger import RunSpec
    from scalr_prod.quality.audit import Audit
    from scalr_prod.quality.rule_protocol import FigureRule


#: Figures of `Audit.distribution_figures` that rules bound; their sample is the effective number of users.
POOLED_FIGURES: Final = ("bucket_distance", "max_item_excess", "effective_items_ratio")
#: Number of earlier events from which on no more are read.
_MAX_EVENTS: Final = 100_000
#: How long before the window events are pooled at most.
_MAX_AGE_US: Final = 3_650 * DAY_US


@dataclass(frozen=True)
class PooledRules:
    """Rules on distributions, some of which judge earlier events as well.

    Attributes:
        rules: All rules, pooled or not.
        figures: The figure ``pooled_<figure>`` of each pooled rule.
        since: Pooled rule → time from which on events are pooled (UTC).
    """

    rules: list[FigureRule]
    figures: dict[str, float] = field(default_factory=dict)
    since: dict[str, str] = field(default_factory=dict)


def pool_small_run(
    audit: Audit, spec: RunSpec, lake: Lake, rules: Sequence[FigureRule], figures: Mapping[str, Any]
) -> PooledRules:
    """Let rules on distributions judge a small run together with the latest published events before its window.

    Each of these rules whose sample is too small gets the shortest stretch of earlier events with which it is large enough. It is left as
    it is if there are too few earlier events, or if the run has no accepted row.

    Args:
        audit: The run's audit.
        spec: The run.
        lake: The lake with the published events.
        rules: Rules on figures.
        figures: The run's own figures.
    """
    small = [rule for rule in rules if rule.figure in POOLED_FIGURES and not rule.is_judged(figures)]
    if not small or not figures["accepted"]:
        return PooledRules(list(rules))
    connection = audit.verdicts.connection
    own = f"SELECT {USER_ID}, count(*) AS events FROM {ACCEPTED_EVENTS} GROUP BY {USER_ID}"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE own_users AS {own}")
    _load_earlier_events(audit, lake, spec, max(rule.min_sample for rule in small))
    pooled: dict[str, FigureRule] = {}
    found: dict[str, float] = {}
    since_by_rule: dict[str, str] = {}
    for rule in small:
        since, users = _pool_start(connection, rule.min_sample)
        if since is None:
            continue
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE pooled_events AS SELECT {USER_ID}, {ITEM_ID} FROM {ACCEPTED_EVENTS} UNION ALL "
            f"SELECT {USER_ID}, {ITEM_ID} FROM earlier_events WHERE {EVENT_TIMESTAMP} >= {timestamp_literal(since)}"
        )
        name = f"pooled_{rule.figure}"
        found[name] = audit.distribution_figures("pooled_events", users)[rule.figure]
        since_by_rule[rule.name] = since.isoformat()
        pooled[rule.name] = replace(
            rule,
            description=f"{rule.description}; judged together with events published from {since.isoformat()} on, because the run is small",
            figure=name,
            sample=None,
        )
    return PooledRules([pooled.get(rule.name, rule) for rule in rules], found, since_by_rule)


def _load_earlier_events(audit: Audit, lake: Lake, spec: RunSpec, users: float) -> None:
    """Create ``earlier_events``: published events before the window, from a time on from which they suffice for so many users."""
    import pyarrow.dataset as ds

    connection, table = audit.verdicts.connection, lake.open_table(Table.SYNTHETIC_TARGET_EVENTS)
    start, span = to_micros(spec.start), to_micros(spec.end) - to_micros(spec.start)
    bounds = file_time_bounds(table, EVENT_TIMESTAMP)
    first = max(min((low for low, _ in bounds.values()), default=start), start - _MAX_AGE_US)
    since = start
    while True:
        since = max(first, since - span)
        moment = ds.field(EVENT_TIMESTAMP)
        window = (moment >= ds.scalar(micros_to_datetime(since))) & (moment < ds.scalar(spec.start))
        names = frozenset(name for name, (low, high) in bounds.items() if low < start and high >= since)
        columns = [USER_ID, ITEM_ID, EVENT_TIMESTAMP]
        scanner = files_dataset(table, names).scanner(columns=columns, filter=window, batch_readahead=2, fragment_readahead=1)
        connection.register("published", scanner.to_reader())
        connection.execute("CREATE OR REPLACE TEMP TABLE earlier_events AS FROM published")
        connection.unregister("published")
        (count,) = audit.verdicts.fetch_row("SELECT count(*) FROM earlier_events")
        if since <= first or count >= _MAX_EVENTS or _pool_start(connection, users)[0] is not None:
            return
        span *= 4


def _pool_start(connection: Any, users: float) -> tuple[datetime | None, float]:
    """Return the latest time from which the earlier events and the run's own reach so many effective users, and their number.

    Effective users are (Σ n)²/Σ n². A user's n-th event adds 1 to the sum and 2n − 1 to the sum of squares.
    """
    found = connection.execute(
        f"""WITH own AS (SELECT coalesce(sum(events), 0) AS n, coalesce(sum(events * events), 0) AS squares FROM own_users),
        numbered AS (
            SELECT {EVENT_TIMESTAMP}, coalesce(events, 0) + row_number() OVER (PARTITION BY {USER_ID} ORDER BY {EVENT_TIMESTAMP} DESC) AS n
            FROM earlier_events LEFT JOIN own_users USING ({USER_ID})),
        moments AS (SELECT {EVENT_TIMESTAMP}, count(*) AS n, sum(2 * n - 1) AS squares FROM numbered GROUP BY {EVENT_TIMESTAMP}),
        reached AS (
            SELECT {EVENT_TIMESTAMP}, own.n + sum(moments.n) OVER latest AS n, own.squares + sum(moments.squares) OVER latest AS squares
            FROM moments, own WINDOW latest AS (ORDER BY {EVENT_TIMESTAMP} DESC))
        SELECT epoch_us({EVENT_TIMESTAMP}), n * n / squares AS users FROM reached WHERE users >= $users
        ORDER BY {EVENT_TIMESTAMP} DESC LIMIT 1""",
        {"users": users},
    ).fetchall()
    return (micros_to_datetime(found[0][0]), float(found[0][1])) if found else (None, 0.0)
