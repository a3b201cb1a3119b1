# SPDX-License-Identifier: Apache-2.0
"""Values that the ledger returns, and the states of a run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeVar

from scalr_prod.core.jsonable import Jsonable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from _typeshed import DataclassInstance

    from scalr_prod.ledger.run_spec import RunSpec


RecordType = TypeVar("RecordType", bound="DataclassInstance")


class RunState(StrEnum):
    """State of a run. See docs/adr/0003."""

    PLANNED = "planned"
    GENERATING = "generating"
    GENERATED = "generated"
    VALIDATED = "validated"
    REJECTED = "rejected"
    PUBLISHED = "published"
    ROLLED_BACK = "rolled_back"


#: Allowed next states by state. Staying in a state is no transition and always allowed.
#: Until it is published, a run may be generated or audited again (lost files, other quality settings).
ALLOWED_TRANSITIONS: Final[Mapping[RunState, frozenset[RunState]]] = {
    RunState.PLANNED: frozenset({RunState.GENERATING}),
    RunState.GENERATING: frozenset({RunState.GENERATED}),
    RunState.GENERATED: frozenset({RunState.GENERATING, RunState.VALIDATED, RunState.REJECTED}),
    RunState.VALIDATED: frozenset({RunState.GENERATING, RunState.REJECTED, RunState.PUBLISHED}),
    RunState.REJECTED: frozenset({RunState.GENERATING, RunState.VALIDATED}),
    RunState.PUBLISHED: frozenset({RunState.ROLLED_BACK}),
    RunState.ROLLED_BACK: frozenset({RunState.PUBLISHED}),
}


class PublicationStatus(StrEnum):
    """State of a publication: recorded before the commit, confirmed after it."""

    PENDING = "pending"
    PUBLISHED = "published"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True)
class Run(Jsonable):
    """A run of a project. ``created`` is False if `RunRepository.begin` returned an existing one."""

    project: str
    run_id: str
    spec: RunSpec
    state: RunState
    created_at: datetime
    updated_at: datetime
    lease_owner: str | None = None
    lease_expires_at: datetime | None = None
    created: bool = False


@dataclass(frozen=True)
class StateChange(Jsonable):
    """One entry of the ledger's change log.

    Attributes:
        subject: ``run``, ``partition``, ``publication``, ``lease``, ``model``, ``dataset``, ``forgotten`` or ``experiment``.
        key: A run's id, with a partition or attempt after a slash; name and version of a model or data set; or a segment of users and its
            experiment.
        from_state: The state before; None for the first.
        to_state: The new state; for a lease, the new owner.
        at: Time of the change (UTC, the database's clock).
        cause: Reason, in a few words.
        actor: Host and process that made the change; None in entries of an older package version.
    """

    subject: str
    key: str
    from_state: str | None
    to_state: str
    at: datetime
    cause: str
    actor: str | None


@dataclass(frozen=True)
class Partition(Jsonable):
    """A partition of a run: ``rows`` in the file at ``path`` with this checksum; ``manifest`` is what its task reported."""

    run_id: str
    partition: int
    state: str
    rows: int
    sha256: str | None
    path: str | None
    updated_at: datetime
    manifest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Publication(Jsonable):
    """An attempt to publish a run.

    Attributes:
        key: App transaction of its commit in the lake.
        base_version: The table's Delta version before it.
        delta_version: The Delta version that holds it; None while pending.
        rows: Number of committed rows.
        replaced: Rows that it removed from the window, by the run that they came from.
        canary: The users that it was for, see `scalr_prod.workspace.user_assignment.Canary`; None: everybody.
        widens: The earlier attempt, for fewer users, that it replaced.
    """

    run_id: str
    attempt: int
    key: str
    status: PublicationStatus
    start: datetime
    end: datetime
    base_version: int
    delta_version: int | None
    rows: int
    replaced: Mapping[str, int]
    created_at: datetime
    published_at: datetime | None
    rolled_back_at: datetime | None
    rollback_version: int | None
    canary: Mapping[str, Any] | None = None
    widens: int | None = None

    def is_live_at(self, version: int) -> bool:
        """Return whether it was committed, and not rolled back, at a version of the view."""
        made, removed = self.delta_version, self.rollback_version
        return made is not None and made <= version and (removed is None or removed > version)


@dataclass(frozen=True)
class ModelVersion(Jsonable):
    """A trained model."""

    name: str
    version: int
    path: str
    sha256: str
    fingerprint: str
    trained_until: datetime
    created_at: datetime
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Promotion(Jsonable):
    """A promotion: from ``at`` on, this version was to be served."""

    name: str
    version: int
    at: datetime
    cause: str


@dataclass(frozen=True)
class DatasetRecord(Jsonable):
    """A version of a training set."""

    name: str
    version: int
    path: str
    fingerprint: str
    rows: int
    cutoff: datetime | None
    created_at: datetime
    manifest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetUse(Jsonable):
    """A model, trained outside of this package, that learned from a version of a training set.

    Attributes:
        model: The model's name.
        model_version: Its version, as its team writes it.
        dataset: The training set's name.
        dataset_version: The training set's version.
        created_at: Time of the registration (UTC, the database's clock).
        created: False if `DatasetRepository.record_use` returned an existing one.
    """

    model: str
    model_version: str
    dataset: str
    dataset_version: int
    created_at: datetime
    created: bool = False


def record_from_row(row: Any, kind: type[RecordType], **known: Any) -> RecordType:
    """Convert a row to a record: each field is the column of the same name, except those in ``known``."""
    columns = {column.name: getattr(row, column.name) for column in fields(kind) if column.name not in known}
    return kind(**columns, **known)
