# SPDX-License-Identifier: Apache-2.0
"""Explanation of a synthetic event: its source event, the history as known then, and the terms of the translator's score."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.hashing import hash_bucket
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.errors import EventNotFound, ProvenanceNotFound, TranslatorError
from scalr_prod.generation import (
    HISTORY_ITEMS,
    HISTORY_TIMES,
    SOURCE_TIMESTAMP,
    ConsumptionIndex,
    RequestEncoder,
    read_contexts,
)
from scalr_prod.lake import Lake, open_project_lake
from scalr_prod.ledger import Ledger
from scalr_prod.schemas import EVENT_TIMESTAMP, ITEM_ID, SOURCE_COLUMNS, USER_ID, Table, source_item_key_sql
from scalr_prod.workspace import open_duckdb, staging_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from scalr_prod.config import Settings
    from scalr_prod.ledger import RunSpec
    from scalr_prod.translator import Attribution, ItemVocabulary, TranslatorModule, TranslatorVersion


#: Number of hash buckets of users (large, so that a bucket has few users), and the largest number of users that are read by bucket.
_HASH_BUCKETS: Final = 2**20
_MAX_BUCKETED_USERS: Final = 8


@dataclass(frozen=True)
class Explanation(Jsonable):
    """Explanation of one synthetic event.

    Attributes:
        event: Its id, user, item with title, time, and weight.
        source: The source event: domain, item with title, time.
        probability: ``published``, as stored with the event; ``recomputed``, from the terms over the whole catalogue, while a run with
            shortlists publishes an estimate; ``prior``, of the item for all users at that time; ``lift``: lift over popularity,
            published over prior.
        terms: Terms of the logit: estimators and features of popularity, largest contribution first; see
            `scalr_prod.translator.attribution.Term`.
        history: Items of the history known to the run, latest first, with titles and times; ``known``: in the translator's vocabulary.
        drawn: Items sampled for the source event with title and probability, without those below ``min_lift``.
        drawn_without_history: Items that the same random numbers draw from popularity alone.
        translator: Version, checksum, and the parameters used: ``everybody``, ``newcomers``, or a fold not trained on this user.
        run: Id, mode, window, as_of, seed, and versions of the tables read.
    """

    event: dict[str, Any]
    source: dict[str, Any]
    probability: dict[str, float]
    terms: list[dict[str, Any]]
    history: list[dict[str, Any]]
    drawn: list[dict[str, Any]]
    drawn_without_history: list[dict[str, Any]]
    translator: dict[str, Any]
    run: dict[str, Any]


def explain_event(settings: Settings, event_id: str) -> Explanation:
    """Explain one event of the feature view.

    Raises:
        EventNotFound: The view has no such event.
        ProvenanceNotFound: Its source event is not kept.
        TranslatorNotFound: Its translator version is no longer there.
        TranslatorError: The translator version differs from the run's, or the run's inputs contain no such context.
        LakeError: A table version that the run read is gone.
    """
    return explain_events(settings, [event_id])[0]


def explain_events(settings: Settings, event_ids: Sequence[str]) -> list[Explanation]:
    """Explain several events, in their order; see `explain_event`."""
    lake = open_project_lake(settings)
    with staging_folder(settings, "explain") as folder, open_duckdb(settings, folder) as db, Ledger.open(settings) as ledger:
        rows = read_published_events(db, lake, event_ids)
        found = set(rows["event_id"].to_pylist())
        if missing := [event_id for event_id in event_ids if event_id not in found]:
            raise EventNotFound(
                f"the feature view has no event {missing[0][:40]!r}",
                where=lake.uri(Table.SYNTHETIC_TARGET_EVENTS),
                next_step="use an event_id of synthetic_target_events; events that were rolled back, replaced or disabled are not in the "
                "view: see scalr status, scalr runs list",
            )
        specs = [ledger.runs.get(run_id).spec for run_id in sorted(set(rows["run_id"].to_pylist()))]
    run_ids = rows["run_id"].to_pylist()
    explanations: dict[str, Explanation] = {}
    for spec in specs:
        run_rows = rows.filter([run_id == spec.run_id for run_id in run_ids])
        explanations |= {found.event["event_id"]: found for found in explain_rows(settings, spec, run_rows)}
    return [explanations[event_id] for event_id in event_ids]


def explain_rows(settings: Settings, spec: RunSpec, rows: pa.Table) -> list[Explanation]:
    """Explain rows of one run, in their order, published or not.

    Args:
        settings: The project's settings.
        spec: The run.
        rows: Generated events, or published events from `read_published_events`.

    Raises:
        ProvenanceNotFound: As `explain_event`.
        TranslatorNotFound: As `explain_event`.
        TranslatorError: As `explain_event`.
        LakeError: As `explain_event`.
    """
    import pyarrow as pa

    from scalr_prod.translator import open_worker_pool

    lake, names = Lake.open(settings), settings.domains.source_names
    if missing := rows[SOURCE_TIMESTAMP].null_count:
        is_off = settings.publication.provenance == "none"
        raise ProvenanceNotFound(
            f"the source event is not kept, of {missing} of {len(rows)} events: "
            + ("the settings say so" if is_off else "the run was published without it, or the table was lost"),
            where=lake.uri(Table.SYNTHETIC_EVENT_PROVENANCE),
            next_step=('set [publication] provenance = "separate" in scalr.toml, and ' if is_off else "")
            + f"publish the run again: scalr runs rollback {spec.run_id}, then: scalr runs resume {spec.run_id}",
        ).add_context(run_id=spec.run_id)
    with staging_folder(settings, "explain") as folder, open_duckdb(settings, folder) as db, open_worker_pool(1):
        db.register("events_to_explain", rows.append_column("place", pa.array(range(len(rows)), pa.int64())))
        key = source_item_key_sql("source_domain", "source_item_id", names)
        db.execute(f"CREATE TEMP TABLE keyed_events AS SELECT *, {key} AS source_key FROM events_to_explain")
        for table in (Table.SOURCE_ITEMS, Table.TARGET_ITEMS):
            db.register(table.value, lake.dataset(table))
        return list(_iter_explanations(settings, db, spec, _TitleLookup(db)))


def read_published_events(db: Any, lake: Lake, event_ids: Sequence[str]) -> pa.Table:
    """Read published events by id, of any run, with their source columns: null where these are not kept.

    Args:
        db: A DuckDB connection.
        lake: The lake with the events.
        event_ids: Ids of the events.
    """
    db.register("published_events", lake.dataset(Table.SYNTHETIC_TARGET_EVENTS))
    db.execute("CREATE OR REPLACE TEMP TABLE wanted AS SELECT unnest($ids) AS event_id", {"ids": list(event_ids)})
    chosen = "FROM published_events SEMI JOIN wanted USING (event_id)"
    if set(SOURCE_COLUMNS) <= set(lake.schema(Table.SYNTHETIC_TARGET_EVENTS).names):  # a view of an earlier package version
        return db.sql(chosen).to_arrow_table()
    if not lake.exists(Table.SYNTHETIC_EVENT_PROVENANCE):  # its folder was lost
        return db.sql(f"SELECT *, {', '.join(f'NULL AS {column}' for column in SOURCE_COLUMNS)} {chosen}").to_arrow_table()
    db.register("provenance", lake.dataset(Table.SYNTHETIC_EVENT_PROVENANCE))
    return db.sql(
        f"""SELECT e.*, {", ".join(f"p.{column}" for column in SOURCE_COLUMNS)} FROM ({chosen}) e
            LEFT JOIN (FROM provenance SEMI JOIN wanted USING (event_id)) p USING (run_id, event_id)"""
    ).to_arrow_table()


def _iter_explanations(settings: Settings, db: Any, spec: RunSpec, titles: _TitleLookup) -> Iterator[Explanation]:
    from scalr_prod.features import join_point_in_time, open_feature_store
    from scalr_prod.translator import TranslatorModule, attribute, load_version

    version = load_version(settings, spec.translator_version)
    if version.sha256 != spec.translator_sha256:
        raise TranslatorError(
            f"version {version.version} is not the version that the run used: its checksum differs",
            where=str(version.path),
            next_step="restore the version from a backup",
        ).add_context(run_id=spec.run_id)
    vocabulary = version.vocabulary()
    module = TranslatorModule.load(version.path, trusted=True)
    events = db.sql("SELECT * FROM keyed_events ORDER BY place").to_arrow_table()
    rows, consumed = _read_event_contexts(settings, db, spec, events, vocabulary)
    store = open_feature_store(settings)
    histories = join_point_in_time(
        store,
        rows.select([USER_ID, ITEM_ID, EVENT_TIMESTAMP]),
        ["source_user_history:item_ids", "source_user_history:event_timestamps"],
        known_by=spec.as_of,
        versions=spec.table_versions,
    )
    generation = spec.settings["generation"]
    count = generation["events_per_source_event"]
    options = {"temperature": generation["temperature"], "shortlist": generation.get("shortlist")}
    position = 0
    # One context per batch: rounding depends on the batch, and an event must have the same explanation in every call.
    unbatched = settings.model_copy(update={"generation": settings.generation.model_copy(update={"batch_size": 1})})
    for contexts in RequestEncoder(unbatched, spec, vocabulary, version.folds, store).iter_requests(rows, consumed):
        batch = events.slice(position, len(contexts))
        items = vocabulary.target_index(batch[ITEM_ID].combine_chunks())
        drawn = module.sample(contexts, count, min_lift=generation["min_lift"], **options)
        without = module.sample(contexts, count, component="popularity", **options)
        for row, attribution in enumerate(attribute(module, contexts, items)):
            event = batch.slice(row, 1).to_pylist()[0]
            history = histories.slice(position + row, 1).to_pylist()[0]
            yield Explanation(
                **_describe_event(event, titles),
                probability=_describe_probability(event, attribution),
                terms=[asdict(term) for term in sorted(attribution.terms, key=lambda term: -abs(term.above))],
                history=_describe_history(history, vocabulary, titles, spec),
                drawn=_describe_draws(drawn, row, vocabulary, titles),
                drawn_without_history=_describe_draws(without, row, vocabulary, titles),
                translator=_describe_translator(version, int(contexts.fold[row]), module),
                run=_describe_run(spec),
            )
        position += len(contexts)


def _read_event_contexts(
    settings: Settings, db: Any, spec: RunSpec, events: pa.Table, vocabulary: ItemVocabulary
) -> tuple[pa.Table, ConsumptionIndex | None]:
    """Read the context of each event, as the run requested it from the translator, in their order."""
    import pyarrow as pa

    users = events[USER_ID].combine_chunks().unique()
    buckets = _HASH_BUCKETS if len(users) <= _MAX_BUCKETED_USERS else 1
    parts = [read_contexts(db, settings, spec, number, buckets) for number in sorted(set(hash_bucket(users, buckets).tolist()))]
    db.register("bucket", pa.concat_tables([rows for rows, _ in parts]))
    consumed = [real for _, real in parts if real is not None]
    same_context = " AND ".join(f"b.{name} = a.{name}" for name in (USER_ID, EVENT_TIMESTAMP, SOURCE_TIMESTAMP))
    rows = db.sql(
        f"SELECT b.* FROM keyed_events a JOIN bucket b ON b.{ITEM_ID} = a.source_key AND {same_context} ORDER BY a.place"
    ).to_arrow_table()
    db.unregister("bucket")
    if len(rows) != len(events):
        raise TranslatorError(
            f"{len(events) - len(rows)} of {len(events)} source events are not among those that the run read",
            where=settings.lake_url,
            next_step="check that the tables are those that the run read: scalr runs show " + spec.run_id,
        ).add_context(run_id=spec.run_id)
    return rows, ConsumptionIndex.from_rows(pa.concat_tables(consumed), vocabulary) if consumed else None


class _TitleLookup:
    """Titles of items from the current catalogues, cached."""

    def __init__(self, db: Any) -> None:
        self._db = db
        self._known: dict[tuple[str, Any], str | None] = {}

    def title(self, table: Table, item: Any) -> str | None:
        """Return an item's title; None without one."""
        if (table.value, item) not in self._known:
            row = self._db.execute(
                f"SELECT title FROM {table.value} WHERE {ITEM_ID} = $item LIMIT 1", {"item": item}
            ).fetchone()
            self._known[table.value, item] = row[0] if row else None
        return self._known[table.value, item]


def _describe_event(event: dict[str, Any], titles: _TitleLookup) -> dict[str, dict[str, Any]]:
    return {
        "event": {
            "event_id": event["event_id"],
            "user": event[USER_ID],
            "item": event[ITEM_ID],
            "title": titles.title(Table.TARGET_ITEMS, event[ITEM_ID]),
            "time": event[EVENT_TIMESTAMP].isoformat(),
            "weight": event["weight"],
        },
        "source": {
            "domain": event["source_domain"],
            "item": event["source_item_id"],
            "title": titles.title(Table.SOURCE_ITEMS, event["source_key"]),
            "time": event[SOURCE_TIMESTAMP].isoformat(),
        },
    }


def _describe_probability(event: dict[str, Any], attribution: Attribution) -> dict[str, float]:
    lift = event["probability"] / attribution.prior if attribution.prior else float("inf")
    return {"published": event["probability"], "recomputed": attribution.probability, "prior": attribution.prior, "lift": lift}


def _describe_history(
    row: dict[str, Any], vocabulary: ItemVocabulary, titles: _TitleLookup, spec: RunSpec
) -> list[dict[str, Any]]:
    items, times = (row[name] or [] for name in (HISTORY_ITEMS, HISTORY_TIMES))
    latest = list(zip(items, times, strict=True))[-spec.settings["histories"]["length"] :]
    known: Any = vocabulary.source_index([item for item, _ in latest]) > 0 if latest else []
    return [
        {
            "item": item,
            "title": titles.title(Table.SOURCE_ITEMS, item),
            "time": time.isoformat(),
            "known": bool(is_known),
        }
        for (item, time), is_known in reversed(list(zip(latest, known, strict=True)))
    ]


def _describe_draws(drawn: Any, row: int, vocabulary: ItemVocabulary, titles: _TitleLookup) -> list[dict[str, Any]]:
    slots = np.flatnonzero(drawn.items[row] >= 0)
    ids = vocabulary.target_ids(drawn.items[row, slots]).to_pylist()
    return [
        {"item": item, "title": titles.title(Table.TARGET_ITEMS, item), "probability": float(drawn.probabilities[row, slot])}
        for item, slot in zip(ids, slots, strict=True)
    ]


def _describe_translator(version: TranslatorVersion, fold: int, module: TranslatorModule) -> dict[str, Any]:
    from scalr_prod.translator import ALL_USERS, COLD_USERS

    names = {ALL_USERS: "everybody", COLD_USERS: "newcomers"}
    return {
        "version": version.version,
        "sha256": version.sha256,
        "parameters": names.get(fold, f"fold {fold} of {module.folds}"),
    }


def _describe_run(spec: RunSpec) -> dict[str, Any]:
    return {
        "run_id": spec.run_id,
        "mode": spec.mode,
        "start": spec.start.isoformat(),
        "end": spec.end.isoformat(),
        "as_of": spec.as_of.isoformat(),
        "seed": spec.seed,
        "tables": dict(spec.table_versions),
    }
