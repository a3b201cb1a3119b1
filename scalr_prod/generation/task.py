# SPDX-License-Identifier: Apache-2.0
"""One partition's task: translate its shards of contexts into a part on disk. Deterministic for a given run.

Inputs are pinned: tables at the run's versions, rows known by its ``as_of``. The output depends neither on the number of partitions,
workers or batches, nor on where the translator runs.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scalr_prod.core.memory import peak_memory_mb
from scalr_prod.generation import encoding
from scalr_prod.generation.confidence import confidence_weight
from scalr_prod.generation.context_query import SOURCE_TIMESTAMP, RequestEncoder, context_text_sql, sort_for_scoring
from scalr_prod.generation.part_files import open_part_writer, part_identity, part_path, write_manifest
from scalr_prod.generation.shards import read_shards
from scalr_prod.ledger import run_folder
from scalr_prod.schemas import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    ITEM_ID,
    USER_ID,
    Table,
    generated_event_schema,
    id_type_of,
    source_domain_sql,
    source_item_id_sql,
)
from scalr_prod.translator import Samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from scalr_prod.config import Settings
    from scalr_prod.lake import Lake
    from scalr_prod.ledger import RunSpec
    from scalr_prod.serving import LatencyHistogram, Scorer
    from scalr_prod.translator import ItemVocabulary


logger = logging.getLogger(__name__)

#: Why draws did not become events, counted within a partition; `alignment` drops more of them later.
DROP_REASONS: Final = ("below_lift", "none_eligible", "duplicate")
#: Contexts per task on which the shortlist's loss is measured.
_SHORTLIST_CHECK_CONTEXTS: Final = 64


def parts_folder(home: Path, run_id: str) -> Path:
    """Return ``<home>/runs/<run_id>/parts``."""
    return run_folder(home, run_id) / "parts"


def candidate_schema(lake: Lake) -> pa.Schema:
    """Return the schema of generated events for the lake's id types."""
    schema = lake.schema(Table.SYNTHETIC_QUARANTINE)
    types = {"user": USER_ID, "item": ITEM_ID, "source_item": "source_item_id"}
    return generated_event_schema(**{name: id_type_of(schema, column) for name, column in types.items()})


def generate_part(
    settings: Settings,
    spec: RunSpec,
    partition: int,
    partitions: int,
    *,
    on_translated: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Translate one task's shards of contexts, which `shards.write_shards` wrote, into a part.

    Args:
        settings: The project's settings.
        spec: The run.
        partition: The task's number.
        partitions: Number of tasks.
        on_translated: Called with the number of contexts translated since the last call.

    Returns:
        The part's manifest: plain JSON values.

    Raises:
        GenerationError: Its input is missing.
        ScalrError: Raised by the feature store or the scorer.
    """
    from scalr_prod.workspace import open_duckdb, staging_folder

    started = time.perf_counter()
    session = open_session(settings, spec, server_index=partition)
    session.latencies.drain()  # discard counts of opening and of a failed task
    counts = _PartCounts()
    path = part_path(parts_folder(settings.home, spec.run_id), partition)
    with staging_folder(settings, "generate") as folder, open_duckdb(settings, folder) as connection:
        connection.execute("SET threads = 1")  # one core per task: the other cores run other tasks
        with open_part_writer(path, session.schema) as write:
            for rows, consumed_rows in read_shards(settings.home, spec, partition, partitions):
                consumed = (
                    None if consumed_rows is None else encoding.ConsumptionIndex.from_rows(consumed_rows, session.vocabulary)
                )
                contexts = sort_for_scoring(rows, spec, session.folds)
                if not counts.left_out and not counts.contexts:
                    encoder = session.encoder(settings, spec, connection)
                    counts.left_out = _measure_shortlist_loss(session, encoder, contexts, consumed)
                    session.latencies.drain()  # discard the counts of the measurement
                samples, table = sample_events(
                    settings, connection, spec, session, contexts, consumed, on_translated=on_translated
                )
                counts.add(contexts, samples, table)
                counts.count_sources(connection, contexts, session.source_names)
                write(table)
    facts = part_identity(spec, partition, partitions) | counts.to_manifest() | {"scoring": session.latencies.drain()}
    logger.debug("%d contexts, %d events in %.1f s", counts.contexts, counts.rows, time.perf_counter() - started)
    return write_manifest(path, facts | {"seconds": round(time.perf_counter() - started, 3), "memory_mb": peak_memory_mb()})


def sample_events(
    settings: Settings,
    connection: DuckDBPyConnection,
    spec: RunSpec,
    session: WorkerSession,
    rows: pa.Table,
    consumed: encoding.ConsumptionIndex | None,
    *,
    on_translated: Callable[[int], None] = lambda _: None,
) -> tuple[Samples, pa.Table]:
    """Sample the run's events for contexts (rows of `read_contexts`): the scorer's answers, and rows of the feature view.

    Raises:
        ScalrError: Raised by the feature store or the scorer.
    """
    answers = []
    for answer in _sample_stream(session, session.encoder(settings, spec, connection), rows, consumed):
        answers.append(answer)
        on_translated(len(answer))
    samples = Samples.concat(answers)
    return samples, _to_event_rows(connection, spec, session, rows, samples)


@dataclass(frozen=True)
class WorkerSession:
    """Resources that a worker opens once and reuses for all tasks of a run."""

    scorer: Scorer
    vocabulary: ItemVocabulary
    folds: int
    schema: pa.Schema
    source_names: tuple[str, ...]
    latencies: LatencyHistogram
    feature_store: Any  # a feast.FeatureStore; only the package `features` imports Feast

    def encoder(self, settings: Settings, spec: RunSpec, connection: DuckDBPyConnection) -> RequestEncoder:
        """Return an encoder of the run's contexts that uses this session's feature store."""
        return RequestEncoder(settings, spec, self.vocabulary, self.folds, self.feature_store, connection)


_thread_session = threading.local()


def open_session(settings: Settings, spec: RunSpec, *, server_index: int = 0) -> WorkerSession:
    """Return this thread's scorer, vocabulary and feature store, opened on first use; they are never pickled."""
    from scalr_prod.features import open_feature_store
    from scalr_prod.lake import Lake
    from scalr_prod.serving import LatencyHistogram, open_scorer
    from scalr_prod.translator import load_version

    key = (settings.model_dump_json(), settings.home, spec.translator_version, spec.translator_sha256)
    if getattr(_thread_session, "key", None) != key:
        close_session()
        version = load_version(settings, spec.translator_version)
        latencies = LatencyHistogram()
        store, schema = open_feature_store(settings), candidate_schema(Lake.open(settings))
        scorer = open_scorer(
            settings, spec.translator_version, has_watchdog=True, latencies=latencies, server_index=server_index
        )
        _thread_session.session = WorkerSession(
            scorer, version.vocabulary(), version.folds, schema, settings.domains.source_names, latencies, store
        )
        _thread_session.key = key
    session: WorkerSession = _thread_session.session
    return session


def close_session() -> None:
    """Close the resources of this thread."""
    if getattr(_thread_session, "key", None) is not None:
        _thread_session.key = None
        _thread_session.session.scorer.close()
        del _thread_session.session


def _measure_shortlist_loss(
    session: WorkerSession, encoder: RequestEncoder, rows: pa.Table, consumed: encoding.ConsumptionIndex | None
) -> dict[str, int]:
    """Count, on a sample of contexts, how often the shortlist changes the drawn item; empty without shortlists.

    Both draws use the same random numbers, so they differ only if the item is not on the shortlist. The share that differs estimates the
    omitted probability.
    """
    import pyarrow as pa

    options: Mapping[str, Any] = encoder.spec.settings["generation"]
    if options.get("shortlist") is None or not len(rows):
        return {}
    sample = rows.take(pa.array(np.unique(np.linspace(0, len(rows) - 1, _SHORTLIST_CHECK_CONTEXTS).round().astype(np.int64))))
    counts, number = {"contexts": 0, "others": 0}, options["events_per_source_event"]
    for contexts in encoder.iter_requests(sample, consumed):
        full_draw, shortlist_draw = (
            session.scorer.sample(contexts, number, temperature=options["temperature"], shortlist=shortlist).items[:, 0]
            for shortlist in (None, options["shortlist"])
        )
        counts["contexts"] += int((full_draw >= 0).sum())
        counts["others"] += int(((full_draw >= 0) & (full_draw != shortlist_draw)).sum())
    return counts


def _sample_stream(
    session: WorkerSession, encoder: RequestEncoder, rows: pa.Table, consumed: encoding.ConsumptionIndex | None
) -> Iterator[Samples]:
    """Yield the draws for each context, in order, with several requests in flight."""
    options: Mapping[str, Any] = encoder.spec.settings["generation"]
    return session.scorer.sample_stream(
        encoder.iter_requests(rows, consumed),
        options["events_per_source_event"],
        temperature=options["temperature"],
        min_lift=options["min_lift"],
        shortlist=options.get("shortlist"),
    )


def _to_event_rows(
    connection: DuckDBPyConnection, spec: RunSpec, session: WorkerSession, rows: pa.Table, samples: Samples
) -> pa.Table:
    """Return draws as rows of the feature view, in canonical order: one per user, item and time.

    If consumed items are excluded, one per user and item: the first, since a later one would repeat what the user then has.
    """
    import pyarrow as pa

    key = f"{USER_ID}, {ITEM_ID}" + ("" if spec.settings["generation"]["exclude_consumed"] else f", {EVENT_TIMESTAMP}")
    row, rank = np.nonzero(samples.items >= 0)
    probability = samples.probabilities[row, rank].astype(np.float64)
    prior = samples.prior[row, rank].astype(np.float64)
    context_rows = rows.take(pa.array(row))
    connection.register(
        "drawn",
        pa.table(
            {
                USER_ID: context_rows[USER_ID],
                ITEM_ID: session.vocabulary.target_ids(samples.items[row, rank]),
                EVENT_TIMESTAMP: context_rows[EVENT_TIMESTAMP],
                SOURCE_TIMESTAMP: context_rows[SOURCE_TIMESTAMP],
                "probability": probability.astype(np.float32),
                "weight": confidence_weight(probability, prior),
                "source_key": context_rows[ITEM_ID],
            }
        ),
    )
    # Scorers agree to about 1e-7, compiled and plain code to 4e-6: probabilities are compared to a thousandth, so that rounding hardly ever
    # changes which draw is kept.
    source_item = source_item_id_sql("source_key", session.source_names, id_type_of(session.schema, "source_item_id"))
    table = connection.sql(
        f"""SELECT event_id, {USER_ID}, {ITEM_ID}, {EVENT_TIMESTAMP}, probability, weight,
                   {source_domain_sql("source_key", session.source_names)} AS source_domain, {source_item} AS source_item_id,
                   {SOURCE_TIMESTAMP}, CAST($version AS BIGINT) AS translator_version,
                   $run_id AS run_id, CAST($as_of AS TIMESTAMPTZ) AS {CREATED_TIMESTAMP}
            FROM (SELECT *, md5(concat($sha, ':', $seed, ':', {context_text_sql("source_key")}, ':', {ITEM_ID})) AS event_id
                  FROM drawn)
            QUALIFY row_number() OVER (PARTITION BY {key}
                                       ORDER BY {EVENT_TIMESTAMP}, round(1000 * ln(greatest(probability, 1e-30))) DESC, event_id) = 1
            ORDER BY {USER_ID}, {EVENT_TIMESTAMP}, {ITEM_ID}""",
        params={
            "version": spec.translator_version,
            "run_id": spec.run_id,
            "as_of": spec.as_of,
            "sha": spec.translator_sha256,
            "seed": spec.seed,
        },
    ).to_arrow_table()
    connection.unregister("drawn")
    return table.cast(session.schema)


@dataclass
class _PartCounts:
    """Counts of a partition's draws, by outcome."""

    contexts: int = 0
    drawn: int = 0
    rows: int = 0
    users: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DROP_REASONS, 0))
    left_out: dict[str, int] = field(default_factory=dict)

    def add(self, contexts: pa.Table, samples: Samples, table: pa.Table) -> None:
        """Add one shard."""
        import pyarrow.compute as pc

        absent = samples.items < 0
        below = int((absent & (samples.probabilities > 0)).sum())
        self.contexts += len(contexts)
        self.drawn += samples.items.size
        self.rows += len(table)
        self.users += pc.count_distinct(table[USER_ID]).as_py()
        self.dropped["below_lift"] += below
        self.dropped["none_eligible"] += int(absent.sum()) - below
        self.dropped["duplicate"] += samples.items.size - int(absent.sum()) - len(table)

    def count_sources(self, connection: DuckDBPyConnection, contexts: pa.Table, names: tuple[str, ...]) -> None:
        """Add one shard's contexts by source domain."""
        connection.register("contexts", contexts)
        rows = connection.sql(f"SELECT {source_domain_sql(ITEM_ID, names)}, count(*) FROM contexts GROUP BY ALL").fetchall()
        connection.unregister("contexts")
        for name, count in rows:
            self.sources[name] = self.sources.get(name, 0) + count

    def to_manifest(self) -> dict[str, Any]:
        """Return JSON values for the manifest."""
        return {
            "contexts": self.contexts,
            "drawn": self.drawn,
            "rows": self.rows,
            "users": self.users,
            "sources": dict(self.sources),
            "dropped": dict(self.dropped),
            **({"left_out": self.left_out} if self.left_out else {}),
        }
