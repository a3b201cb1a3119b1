# SPDX-License-Identifier: Apache-2.0
"""Generate a run: shard the contexts in one pass over the logs, translate the shards in tasks, then match popularity.

Only the driver writes to the ledger. Complete parts are reused, so that an interrupted run resumes.
"""

from __future__ import annotations

import json
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from scalr_prod.compute import is_distributed, open_cluster, preload_workers, progress_channel, run_worker_task
from scalr_prod.core.atomic_io import write_json
from scalr_prod.core.disk_errors import translate_disk_errors
from scalr_prod.core.jsonable import Jsonable
from scalr_prod.core.logging import log_context
from scalr_prod.core.progress import track
from scalr_prod.generation.context_query import count_users_without_consent
from scalr_prod.generation.part_files import read_part, remove_stale_parts
from scalr_prod.generation.popularity_matching import align_parts
from scalr_prod.generation.shards import remove_shards, write_shards
from scalr_prod.generation.task import DROP_REASONS, candidate_schema, close_session, generate_part, parts_folder
from scalr_prod.lake import Lake
from scalr_prod.ledger import Ledger, RunState, run_folder
from scalr_prod.schemas import Table
from scalr_prod.workspace import ensure_consent_not_withdrawn

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from scalr_prod.config import Settings
    from scalr_prod.generation.popularity_matching import AlignmentResult
    from scalr_prod.ledger import RunSpec


#: Topic on which workers report how many contexts they have translated.
_PROGRESS_TOPIC: Final = "scalr-translated"

#: Processor time of a context, in seconds: a fixed part, and one for each target item that is scored; see ADR 0093.
_CONTEXT_WORK_S: Final = 1e-4
_SCORE_WORK_S: Final = 2.1e-8

#: Advice of errors of the cluster.
_RESUME: Final = "resume the run: scalr runs resume RUN"
_SMALLER_TASKS: Final = "lower [compute] workers or raise [generation] partitions"

#: Runs in these states stay in them when lost files are generated again.
_FINISHED_STATES: Final = frozenset({RunState.PUBLISHED, RunState.ROLLED_BACK})


@dataclass(frozen=True)
class GenerationReport(Jsonable):
    """Outcome of a run's generation.

    Attributes:
        run_id: The run.
        contexts: Contexts that were translated: users, or source events.
        drawn: Requested draws: contexts times ``events_per_source_event``.
        dropped: Draws that became no event, by reason: ``below_lift``, ``none_eligible`` (no eligible item left),
            ``duplicate`` (another draw gave the user this item; at the same time, if ``exclude_consumed`` is false) and ``alignment``
            (downsampled).
        events: Synthetic events staged as candidates.
        users: Distinct users among them.
        items: Distinct target items among them.
        sources: ``contexts`` translated and resulting ``events``, by source domain.
        coverage: Share of the translator's target items among them.
        bucket_distance: Total variation between the value buckets of the real and of the staged events, before and after the
            alignment.
        left_out: Share of the `measured` contexts whose draw from the whole catalogue is missing from their shortlist, an estimate of the
            probability (at the run's temperature) that shortlists leave out; None without shortlists.
        measured: Contexts drawn with and without the shortlist for it.
        without_consent: Users of the window who were left out because they have not consented; None if consent is not required.
        seconds: Wall-clock seconds of this call.
        contexts_per_s: Contexts translated by this call, per second.
        events_per_s: Events staged, per second.
        parts_made: Parts that this call made.
        parts_kept: Verified parts of an earlier call.
        worker_mb: Largest peak memory of a process that translated (a worker or this one) at the end of a part, in MiB; None if unknown.
    """

    run_id: str
    contexts: int
    drawn: int
    dropped: Mapping[str, int]
    events: int
    users: int
    items: int
    coverage: float
    sources: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    bucket_distance: Mapping[str, float] = field(default_factory=dict)
    left_out: float | None = None
    measured: int = 0
    without_consent: int | None = None
    seconds: float = 0.0
    contexts_per_s: float = 0.0
    events_per_s: float = 0.0
    parts_made: int = 0
    parts_kept: int = 0
    worker_mb: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; ``without_consent`` only if a domain requires consent."""
        found = super().to_json()
        return found if self.without_consent is not None else {k: v for k, v in found.items() if k != "without_consent"}


def generate(
    settings: Settings,
    spec: RunSpec,
    *,
    serving: Callable[[], AbstractContextManager[None]] = nullcontext,
    progress: bool = False,
) -> GenerationReport:
    """Translate every context of the run and stage the candidates in ``<home>/runs/<run_id>/candidates``.

    A generated run with complete files is left as it is.

    Args:
        settings: The project's settings.
        spec: The run, from `plan_run` or the ledger.
        serving: Returns a context manager that keeps the translator served (`serving.ensure_serving`); entered only if parts are
            missing. Default: it is served already, or workers load it.
        progress: Show a progress bar on stderr.

    Raises:
        LedgerError: Another driver works on this run.
        SchedulerUnreachable: The Dask scheduler does not answer.
        ComputeError: A task failed.
        GenerationError: A task found its input missing.
        InputError: Users have withdrawn their consent since the run was planned.
        ScalrError: Of the lake, the feature store or the scorer.
    """
    started = time.perf_counter()
    with Ledger.open(settings) as ledger, ledger.leases.hold(spec.run_id) as lease:
        state = ledger.runs.get(spec.run_id).state
        done = _finished_report(settings.home, spec, verify_files=state is not RunState.PUBLISHED)
        if done is not None and state not in {RunState.PLANNED, RunState.GENERATING}:
            return replace(
                done,
                seconds=round(time.perf_counter() - started, 3),
                contexts_per_s=0.0,
                events_per_s=0.0,
                parts_made=0,
                parts_kept=done.parts_made + done.parts_kept,
            )
        if state not in _FINISHED_STATES:
            ledger.runs.set_state(spec.run_id, RunState.GENERATING, cause="generate")
        write_json(run_folder(settings.home, spec.run_id) / "run.json", spec.to_json())
        manifests, made = _generate_parts(settings, spec, ledger, serving, progress=progress)
        lease.check()
        aligned = align_parts(
            settings,
            spec,
            parts=parts_folder(settings.home, spec.run_id),
            candidates=_candidates_folder(settings.home, spec.run_id),
            partitions=settings.generation.partitions,
            schema=candidate_schema(Lake.open(settings)),
        )
        lease.check()
        report = _report(
            spec,
            manifests,
            made,
            aligned,
            catalogue=_catalogue_size(settings, spec),
            sources=settings.domains.source_names,
            seconds=time.perf_counter() - started,
        )
        report = replace(report, without_consent=count_users_without_consent(settings, spec))
        write_json(_report_path(settings.home, spec.run_id), {"partitions": len(manifests), "report": report.to_json()})
        if state not in _FINISHED_STATES:
            ledger.runs.set_state(spec.run_id, RunState.GENERATED, cause=f"{report.events} events staged")
    return report


def _generate_parts(
    settings: Settings,
    spec: RunSpec,
    ledger: Ledger,
    serving: Callable[[], AbstractContextManager[None]],
    *,
    progress: bool,
) -> tuple[list[dict[str, Any]], list[int]]:
    """The manifests of all parts, and which of them were made now."""
    partitions = settings.generation.partitions
    folder = parts_folder(settings.home, spec.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(folder, partitions)
    kept = {number: read_part(folder, spec, number, partitions) for number in range(partitions)}
    manifests = {number: manifest for number, manifest in kept.items() if manifest is not None}
    ledger.runs.record_partitions(spec.run_id, sorted(manifests.items()), partitions=partitions)
    missing = [number for number in range(partitions) if number not in manifests]
    if missing:
        ensure_consent_not_withdrawn(settings, spec.run_id, spec.settings)
        # Fail here once, not in every worker.
        Lake.open(settings).open_tables(map(Table, spec.table_versions), versions=spec.table_versions)
        total = write_shards(settings, spec, partitions)
        done = sum(manifest["contexts"] for manifest in manifests.values())
        items = _catalogue_size(settings, spec)
        has_workers = _has_workers(settings, tasks=len(missing), contexts=total - done, items=items)
        if has_workers:
            preload_workers(settings.compute)
        run_tasks = _run_on_workers if has_workers else _run_here
        with (
            serving(),
            track("translating", show=progress, total=total, unit="contexts", done=done) as advance,
            closing(run_tasks(settings, spec, missing, advance)) as parts,
        ):
            for manifest in parts:
                manifests[manifest["partition"]] = manifest
                ledger.runs.record_partitions(spec.run_id, [(manifest["partition"], manifest)])
    remove_shards(settings.home, spec)
    return [manifests[number] for number in range(partitions)], missing


def _has_workers(settings: Settings, *, tasks: int, contexts: int, items: int) -> bool:
    """Return whether workers translate, since this process would take longer, or would use one of several Triton servers."""
    work_s = contexts * (_CONTEXT_WORK_S + items * _SCORE_WORK_S)
    return len(settings.serving.urls) > 1 or is_distributed(settings.compute, tasks=tasks, work_s=work_s)


def _catalogue_size(settings: Settings, spec: RunSpec) -> int:
    """Return the translator's number of target items."""
    from scalr_prod.translator import load_version

    return len(load_version(settings, spec.translator_version).vocabulary().first_seen)


def _run_here(
    settings: Settings, spec: RunSpec, parts: Sequence[int], advance: Callable[[float], None]
) -> Generator[dict[str, Any], None, None]:
    """Generate parts one after the other in this process; yield their manifests."""
    try:
        for number in parts:
            with translate_disk_errors(settings.home), log_context(**_log_fields(spec, number)):
                manifest = generate_part(settings, spec, number, settings.generation.partitions, on_translated=advance)
            yield manifest
    finally:
        close_session()


def _run_on_workers(
    settings: Settings, spec: RunSpec, parts: Sequence[int], advance: Callable[[float], None]
) -> Generator[dict[str, Any], None, None]:
    """Generate parts on Dask workers; yield their manifests as they complete."""
    with open_cluster(settings, tasks=len(parts), resume=_RESUME, smaller_tasks=_SMALLER_TASKS) as cluster:
        cluster.subscribe(_PROGRESS_TOPIC, advance)
        lean, partitions = _worker_settings(settings), settings.generation.partitions
        calls = ((lean, _log_fields(spec, number), _run_task, lean, spec, number, partitions) for number in parts)
        yield from cluster.map(run_worker_task, calls)


def _log_fields(spec: RunSpec, partition: int) -> dict[str, Any]:
    return {"run_id": spec.run_id, "stage": "generate", "partition": partition}


def _run_task(settings: Settings, spec: RunSpec, partition: int, partitions: int) -> dict[str, Any]:
    """Generate one part, in a worker."""
    with progress_channel(_PROGRESS_TOPIC) as translated:
        return generate_part(settings, spec, partition, partitions, on_translated=translated)


def _worker_settings(settings: Settings) -> Settings:
    """Return the settings with the threads divided among the workers of this machine."""
    if settings.compute.dask != "local":
        return settings
    threads = max(1, settings.serving.threads // settings.compute.workers)
    return settings.model_copy(update={"serving": settings.serving.model_copy(update={"threads": threads})})


def _candidates_folder(home: Path, run_id: str) -> Path:
    return run_folder(home, run_id) / "candidates"


def _report_path(home: Path, run_id: str) -> Path:
    return run_folder(home, run_id) / "generation.json"


def _finished_report(home: Path, spec: RunSpec, *, verify_files: bool) -> GenerationReport | None:
    """The report of an earlier call; with ``verify_files``, None unless every candidate file is complete."""
    try:
        content = json.loads(_report_path(home, spec.run_id).read_text(encoding="utf-8"))
        partitions, report = int(content["partitions"]), GenerationReport(**content["report"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    folder = _candidates_folder(home, spec.run_id)
    for number in range(partitions) if verify_files else ():
        if read_part(folder, spec, number, partitions) is None:
            return None
    return report


def _report(
    spec: RunSpec,
    manifests: list[dict[str, Any]],
    made: list[int],
    aligned: AlignmentResult,
    *,
    catalogue: int,
    sources: Sequence[str],
    seconds: float,
) -> GenerationReport:
    translated = sum(manifests[number]["contexts"] for number in made)
    measured, others = (
        sum(manifest.get("left_out", {}).get(what, 0) for manifest in manifests) for what in ("contexts", "others")
    )
    dropped = {reason: sum(manifest["dropped"][reason] for manifest in manifests) for reason in DROP_REASONS}
    return GenerationReport(
        run_id=spec.run_id,
        contexts=sum(manifest["contexts"] for manifest in manifests),
        drawn=sum(manifest["drawn"] for manifest in manifests),
        dropped=dropped | {"alignment": aligned.dropped},
        events=aligned.events,
        users=aligned.users,
        items=aligned.items,
        sources={
            name: {
                "contexts": sum(manifest["sources"].get(name, 0) for manifest in manifests),
                "events": aligned.sources.get(name, 0),
            }
            for name in sources
        },
        coverage=round(aligned.items / catalogue, 6) if catalogue else 0.0,
        bucket_distance=aligned.bucket_distance,
        left_out=round(others / measured, 4) if measured else None,
        measured=measured,
        seconds=round(seconds, 3),
        contexts_per_s=round(translated / seconds, 1),
        events_per_s=round(aligned.events / seconds, 1) if made else 0.0,
        parts_made=len(made),
        parts_kept=len(manifests) - len(made),
        worker_mb=max((manifest["memory_mb"] for manifest in manifests if manifest.get("memory_mb")), default=None),
    )
