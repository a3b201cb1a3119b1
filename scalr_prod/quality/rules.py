# SPDX-License-Identifier: Apache-2.0
"""Built-in gate rules for a run's events.

A row rule is a SQL condition over the candidates ``c``, joined to the lake as known by the run's ``as_of`` (see `audit`).
A run rule is a bound on a figure of the accepted rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalr_prod.generation import has_one_context_per_user
from scalr_prod.quality.rule_protocol import FigureRule, RowRule
from scalr_prod.quality.sample_size import (
    MIN_USERS_FOR_ITEMS,
    min_contexts_for_coverage,
    min_users_for_distance,
    min_users_for_excess,
)
from scalr_prod.schemas import CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID
from scalr_prod.workspace import not_held_out_sql, timestamp_literal

if TYPE_CHECKING:
    from scalr_prod.ledger import RunSpec
    from scalr_prod.quality.rule_protocol import AuditedRun


#: Columns of a synthetic event, in order.
EVENT_COLUMNS = (
    "event_id",
    USER_ID,
    ITEM_ID,
    EVENT_TIMESTAMP,
    "probability",
    "weight",
    "source_domain",
    "source_item_id",
    "source_event_timestamp",
    "translator_version",
    "run_id",
    CREATED_TIMESTAMP,
)


class RowRules:
    """Rules for every row of a run."""

    version = 4

    def rules(self, run: AuditedRun) -> list[RowRule]:
        """Return the rules for every row; see `scalr_prod.quality.GateRule`."""
        spec = run.spec
        rules = [
            RowRule(f"{column}_is_present", f"{column} is not null", f"c.{column} IS NOT NULL") for column in EVENT_COLUMNS
        ]
        rules += [
            RowRule("event_id_is_a_hash", "event_id is 32 hex digits", "regexp_full_match(c.event_id, '[0-9a-f]{32}')"),
            RowRule("event_id_is_unique", "no other row has this event_id", "c.same_event_id = 1"),
            RowRule("user_item_time_is_unique", "no other row has this user, item and time", "c.same_user_item_time = 1"),
            RowRule("probability_is_in_range", "0 < probability <= 1", "c.probability > 0 AND c.probability <= 1"),
            RowRule("weight_is_in_range", "0 <= weight <= 1", "c.weight >= 0 AND c.weight <= 1"),
            RowRule(
                "event_is_in_the_window",
                f"{spec.start.isoformat()} <= {EVENT_TIMESTAMP} < {spec.end.isoformat()}",
                f"c.{EVENT_TIMESTAMP} >= {timestamp_literal(spec.start)} AND c.{EVENT_TIMESTAMP} < {timestamp_literal(spec.end)}",
            ),
            RowRule(
                "known_from_as_of_on",
                f"{CREATED_TIMESTAMP} is the run's as_of, {spec.as_of.isoformat()}",
                f"c.{CREATED_TIMESTAMP} = {timestamp_literal(spec.as_of)}",
            ),
            _at_the_source_event(spec),
            RowRule(
                "source_domain_is_one_of_the_runs",
                f"source_domain is {' or '.join(run.sources)}",
                f"c.source_domain IN ({', '.join(map(_text, run.sources))})",
            ),
            RowRule(
                "source_event_is_real_and_known",
                "the user's event on this item of the source domain is in source_events and was known by as_of",
                "s.found",
            ),
            RowRule("item_is_in_the_catalogue", "the item is one of the target domain known by as_of", "i.found"),
            RowRule(
                "item_was_seen_before",
                "a target event of the item, known by as_of, is strictly before this event",
                f"i.first_seen < c.{EVENT_TIMESTAMP}",
            ),
        ]
        if run.exclude_consumed:
            rules.append(
                RowRule(
                    "user_had_not_consumed_it",
                    "no target event of this user and item, known by as_of, is before this event",
                    f"u.first_consumed IS NULL OR u.first_consumed >= c.{EVENT_TIMESTAMP}",
                )
            )
        if "experiment" in spec.settings:
            holds = not_held_out_sql(spec.settings, f"c.{USER_ID}")
            rules.append(RowRule("user_is_not_held_out", "the user is not one of those that are held out", holds))
        return [
            *rules,
            RowRule(
                "translator_is_the_runs",
                f"translator_version is {spec.translator_version}",
                f"c.translator_version = {spec.translator_version}",
            ),
            RowRule("run_id_matches", f"run_id is {spec.run_id}", f"c.run_id = '{spec.run_id}'"),
        ]


def _at_the_source_event(spec: RunSpec) -> RowRule:
    name = "event_is_at_the_source_event"
    if has_one_context_per_user(spec):  # translated as of the window's end, so never before its source event
        return RowRule(
            name, f"{EVENT_TIMESTAMP} is not before source_event_timestamp", f"c.{EVENT_TIMESTAMP} >= c.source_event_timestamp"
        )
    return RowRule(name, f"{EVENT_TIMESTAMP} is source_event_timestamp", f"c.{EVENT_TIMESTAMP} = c.source_event_timestamp")


class RunRules:
    """Rules for a run as a whole.

    Rules on shares and distributions apply only above a minimum sample size, which `scalr_prod.quality.sample_size` derives; for a smaller
    run, `scalr_prod.quality.pooling` adds earlier events to distributions. All other rules always apply.
    """

    version = 8

    def rules(self, run: AuditedRun) -> list[FigureRule]:
        """Return the rules for a run as a whole; see `scalr_prod.quality.GateRule`."""
        spec, quality, events_per_source_event = run.spec, run.quality, run.events_per_source_event
        limit = "start" if spec.mode == "causal" else "as_of"
        contexts = "users" if has_one_context_per_user(spec) else "source events"
        rules = [
            FigureRule(
                "run_has_events",
                "at least one row is accepted",
                "accepted",
                low=1,
                sample="contexts",
                min_sample=min_contexts_for_coverage(0),
            ),
            FigureRule(
                "translator_trained_until_limit",
                f"the translator's trained_until is no later than the run's {limit} (mode = {spec.mode})",
                "seconds_trained_past_limit",
                high=0,
            ),
            FigureRule(
                "translator_is_the_recorded_one",
                "checksum and trained_until of the run's translator are those that the ledger recorded when it was trained",
                "translator_facts_differing",
                high=0,
            ),
            FigureRule(
                "volume_per_source_event",
                f"at most {events_per_source_event} events for each of the window's {contexts}",
                "max_events_per_source_event",
                high=events_per_source_event,
            ),
            FigureRule(
                "source_coverage",
                f"at least {quality.min_source_coverage:.2%} of the window's {contexts} led to a synthetic event",
                "source_coverage",
                low=quality.min_source_coverage,
                sample="contexts",
                min_sample=min_contexts_for_coverage(quality.min_source_coverage),
            ),
            FigureRule(
                "popularity_is_like_the_real_one",
                f"total variation between the popularity buckets of accepted and of real events is at most "
                f"{quality.max_bucket_distance:g}",
                "bucket_distance",
                high=quality.max_bucket_distance,
                sample="effective_users",
                min_sample=min_users_for_distance(run.popularity_buckets, quality.max_bucket_distance),
            ),
        ]
        if quality.max_item_excess:
            rules.append(
                FigureRule(
                    "item_shares_are_like_the_real_ones",
                    f"no item's share of the accepted events is more than {quality.max_item_excess:g} above its share of real events",
                    "max_item_excess",
                    high=quality.max_item_excess,
                    sample="effective_users",
                    min_sample=min_users_for_excess(quality.max_item_excess),
                )
            )
        if quality.min_effective_items:
            rules.append(
                FigureRule(
                    "effective_items",
                    f"the effective number of items, exp(entropy), is at least {quality.min_effective_items:g} times that of real events "
                    "(for small runs: of the largest number that so many rows and users can reach)",
                    "effective_items_ratio",
                    low=quality.min_effective_items,
                    sample="effective_users",
                    min_sample=MIN_USERS_FOR_ITEMS,
                )
            )
        copies = int(run.exclude_consumed) if quality.max_user_item_copies is None else quality.max_user_item_copies
        if copies:
            rules.append(
                FigureRule(
                    "copies_of_a_user_and_item",
                    f"a user has at most {copies} accepted event{'s' if copies > 1 else ''} on one item",
                    "max_user_item_copies",
                    high=copies,
                )
            )
        if quality.policy == "quarantine":
            rules.append(
                FigureRule(
                    "quarantined_share",
                    f"at most {quality.max_quarantine_share:.2%} of the rows broke a rule",
                    "quarantined_share",
                    high=quality.max_quarantine_share,
                    sample="bad_rows_beyond_chance",
                    min_sample=1,
                )
            )
        return rules


def _text(name: str) -> str:
    return f"'{name}'"
