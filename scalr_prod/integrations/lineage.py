# SPDX-License-Identifier: Apache-2.0
"""OpenLineage events of stages: the inputs that each stage reads, and the table versions that it writes; and of registered models.

Off unless ``[lineage]`` names a target. Best effort: a failure here is logged as a warning and never fails a stage.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from scalr_prod.core.commit_events import collect_commits
from scalr_prod.core.redaction import redact, strip_credentials, url_secrets
from scalr_prod.schemas import Table
from scalr_prod.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from scalr_prod.config import Settings
    from scalr_prod.core.commit_events import CommitEvent
    from scalr_prod.ledger import DatasetUse
    from scalr_prod.pipeline import StageScope


logger = logging.getLogger(__name__)

_EVENT_TABLES: Final = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)
_HISTORY_TABLES: Final = (Table.SOURCE_USER_HISTORY, Table.TARGET_USER_HISTORY, Table.TARGET_ITEM_STATS)
#: Tables that each stage reads.
_INPUT_TABLES: Final[Mapping[str, tuple[Table, ...]]] = {
    "histories": _EVENT_TABLES,
    "translator": _EVENT_TABLES,
    "generate": (*_EVENT_TABLES, Table.SOURCE_USER_HISTORY),
    "validate": (*_EVENT_TABLES, Table.TARGET_ITEMS),
    "publish": (*_EVENT_TABLES, Table.SOURCE_USER_HISTORY),
    "dataset": (Table.TARGET_EVENTS, Table.SYNTHETIC_TARGET_EVENTS, *_HISTORY_TABLES),
}
_PRODUCER: Final = f"scalr_prod/{__version__}"
#: Timeout to connect, and then for the response.
_TIMEOUT_S: Final = 5.0
#: Servers that failed once and get no more events, so that an unresponsive server costs one timeout only.
_failed_servers: ContextVar[set[str] | None] = ContextVar("scalr_lineage_given_up", default=None)


class LineageHook:
    """Sends OpenLineage events of each stage to the targets in ``[lineage]``."""

    @contextmanager
    def around_run(self) -> Iterator[set[str]]:
        """Stop sending to a server once it has failed, for all stages in this block and in nested blocks.

        Yields:
            URLs of servers that failed.
        """
        outer = _failed_servers.get()
        failed_servers = set() if outer is None else outer
        token = _failed_servers.set(failed_servers)
        try:
            yield failed_servers
        finally:
            _failed_servers.reset(token)

    @contextmanager
    def around_stage(self, scope: StageScope) -> Iterator[None]:
        """Send an event when the stage starts, and one with the written versions when it ends. Light stages send none."""
        lineage = scope.settings.lineage
        if scope.light or (lineage.file is None and lineage.url is None):
            yield
            return
        outcome, error = "ABORT", None
        with self.around_run() as failed_servers, collect_commits() as commits:
            events = _StageEvents(scope.settings, scope.name, scope.run_id, failed_servers)
            events.emit("START")
            try:
                yield
                outcome = "COMPLETE"
            except Exception as failed:
                outcome, error = "FAIL", str(failed)
                raise
            finally:
                events.emit(outcome, commits, error)


def emit_dataset_use(settings: Settings, use: DatasetUse) -> None:
    """Send one event for a model that was trained elsewhere: its input is the version of the training set. Off without ``[lineage]``."""
    if settings.lineage.file is not None or settings.lineage.url is not None:
        _DatasetUseEvent(settings, use).emit("COMPLETE")


class _StageEvents:
    """Events of one stage, which share an OpenLineage run id."""

    def __init__(self, settings: Settings, stage: str, run_id: Callable[[], str | None], failed_servers: set[str]) -> None:
        self._settings, self._stage, self._run_id, self._failed_servers = settings, stage, run_id, failed_servers
        self._id: str | None = None

    def emit(self, kind: str, commits: Sequence[CommitEvent] = (), error: str | None = None) -> None:
        """Send one event to each target in the settings."""
        lineage = self._settings.lineage
        if lineage.file is not None:
            self._send(_append_to_file, "the file", kind, commits, error)
        if lineage.url is None or lineage.url in self._failed_servers:
            return
        if not self._send(_post_to_server, "the server", kind, commits, error):
            self._failed_servers.add(lineage.url)

    def _send(
        self, send: Callable[[Settings, Any], None], target: str, kind: str, commits: Sequence[CommitEvent], error: str | None
    ) -> bool:
        try:
            send(self._settings, self._build_event(kind, commits, error))
        except Exception as failed:  # best effort: never fails the stage
            hint = "; install scalr_prod[lineage]" if isinstance(failed, ModuleNotFoundError) else ""
            reason = redact(str(failed), (self._settings.lineage.api_key, *url_secrets(self._settings.lineage.url)))
            logger.warning("%s of lineage did not get an event: %s: %s%s", target, type(failed).__name__, reason, hint)
            return False
        return True

    def _build_event(self, kind: str, commits: Sequence[CommitEvent], error: str | None) -> Any:
        from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
        from openlineage.client.facet_v2 import error_message_run, tags_run
        from openlineage.client.uuid import generate_new_uuid

        self._id = self._id or str(generate_new_uuid())
        facets: dict[str, Any] = {}
        if tags := self._tags():
            fields = [tags_run.TagsRunFacetFields(name, value, "scalr") for name, value in tags.items()]
            facets["tags"] = tags_run.TagsRunFacet(fields, producer=_PRODUCER)
        if error is not None:
            facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(error, "python", producer=_PRODUCER)
        latest = {commit.uri: commit.version for commit in commits}
        return RunEvent(
            eventType=RunState[kind],
            eventTime=datetime.now(UTC).isoformat(),
            producer=_PRODUCER,
            run=Run(self._id, facets),
            job=Job(self._settings.lineage.namespace, f"{self._settings.project_name}.{self._stage}"),
            inputs=[
                InputDataset(*_dataset_name(uri), facets={} if version is None else _version_facet(version))
                for uri, version in self._inputs().items()
            ],
            outputs=[OutputDataset(*_dataset_name(uri), facets=_version_facet(version)) for uri, version in latest.items()],
        )

    def _tags(self) -> dict[str, str]:
        run_id = self._run_id()
        return {} if run_id is None else {"scalr_run_id": run_id}

    def _inputs(self) -> dict[str, int | None]:
        """Return URIs and, where they are known, versions of the inputs."""
        return dict.fromkeys(_input_uris(self._settings, self._stage))


class _DatasetUseEvent(_StageEvents):
    """Event of a model that was trained elsewhere, on a version of a training set."""

    def __init__(self, settings: Settings, use: DatasetUse) -> None:
        super().__init__(settings, f"models.{use.model}", lambda: None, set())
        self._use = use

    def _tags(self) -> dict[str, str]:
        return {"scalr_model_version": self._use.model_version}

    def _inputs(self) -> dict[str, int | None]:
        return {str(self._settings.home / "datasets" / self._use.dataset): self._use.dataset_version}


def _version_facet(version: int) -> dict[str, Any]:
    from openlineage.client.facet_v2 import dataset_version_dataset

    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(str(version), producer=_PRODUCER)}


def _input_uris(settings: Settings, stage: str) -> list[str]:
    """Return the URIs of the tables that a stage reads, for ingest those of the logs; databases of queries are left out."""
    if stage == "ingest":
        places = (*settings.domains.log_keys("source"), *settings.domains.log_keys("target"))
        logs = [settings.domains[place].events for place in places]
        return [log if "://" in log else str(settings.resolve(log)) for log in logs if log is not None]
    return [f"{settings.lake_url.rstrip('/')}/{table.value}" for table in _INPUT_TABLES.get(stage, ())]


def _dataset_name(uri: str) -> tuple[str, str]:
    """Return namespace and name of a dataset by OpenLineage's rules: ``file`` and a path, or ``s3://bucket`` and a key."""
    if "://" not in uri:
        return "file", uri
    parts = urlsplit(strip_credentials(uri))
    return f"{parts.scheme}://{parts.netloc}", parts.path.strip("/") or "/"


def _append_to_file(settings: Settings, event: Any) -> None:
    from openlineage.client.transport.file import FileConfig, FileTransport

    path = settings.resolve(str(settings.lineage.file))
    FileTransport(FileConfig(str(path), append=True)).emit(event)


def _post_to_server(settings: Settings, event: Any) -> None:
    from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport

    logging.getLogger("openlineage").setLevel(logging.INFO)  # its lines at DEBUG repeat address and key
    key = settings.lineage.api_key
    auth = {} if key is None else {"auth": ApiKeyTokenProvider({"apiKey": key})}
    no_retries = {"total": 0, "status_forcelist": []}
    transport = HttpTransport(HttpConfig(str(settings.lineage.url), timeout=_TIMEOUT_S, retry=no_retries, **auth))
    try:
        transport.emit(event)
    finally:
        transport.close()
