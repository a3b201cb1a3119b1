# SPDX-License-Identifier: Apache-2.0
"""SQLAlchemy tables of the ledger. A change here needs a migration (a test compares the two)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware time in UTC; SQLite, which has no time zones, stores it naive."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to the stored value."""
        if value is None:
            return None
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Convert to a timezone-aware datetime."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base of all tables."""


class ProjectRow(Base):
    """A project with runs here. Every project has a name; the column of version 0.1.0 is nullable."""

    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    name: Mapped[str | None] = mapped_column(String(63), unique=True)
    lake: Mapped[str | None] = mapped_column(String(1000), unique=True)
    home: Mapped[str | None] = mapped_column(String(1000))
    home_id: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


def _run_key() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["project_id", "run_id"], ["runs.project_id", "runs.run_id"])


class RunRow(Base):
    """A run, its state and its lease."""

    __tablename__ = "runs"
    __table_args__ = (Index("ix_runs_run_id", "run_id"),)

    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"), primary_key=True, autoincrement=False)
    run_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(String(16), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class TransitionRow(Base):
    """A state change (append-only)."""

    __tablename__ = "transitions"
    __table_args__ = (
        _run_key(),
        Index("ix_transitions_run", "project_id", "run_id"),
        Index("ix_transitions_subject", "project_id", "subject", "key"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    subject: Mapped[str] = mapped_column(String(16))
    key: Mapped[str] = mapped_column(String(200))
    run_id: Mapped[str | None] = mapped_column(String(64))
    from_state: Mapped[str | None] = mapped_column(String(200))
    to_state: Mapped[str] = mapped_column(String(200))
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    cause: Mapped[str] = mapped_column(Text)
    actor: Mapped[str | None] = mapped_column(String(200))


class PartitionRow(Base):
    """A partition of a run."""

    __tablename__ = "partitions"
    __table_args__ = (_run_key(),)

    project_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    run_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    partition: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(String(16))
    rows: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))
    path: Mapped[str | None] = mapped_column(Text)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    manifest: Mapped[dict[str, Any]] = mapped_column(JSON)


class PublicationRow(Base):
    """An attempt to publish a run: first the intent, then the commit that completed it."""

    __tablename__ = "publications"
    __table_args__ = (
        _run_key(),
        UniqueConstraint("project_id", "run_id", "attempt", name="uq_publications_project_run_attempt"),
        UniqueConstraint("project_id", "key", name="uq_publications_key"),
        Index("ix_publications_window", "project_id", "start", "end"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    project_id: Mapped[int] = mapped_column(Integer)
    run_id: Mapped[str] = mapped_column(String(64))
    attempt: Mapped[int] = mapped_column(Integer)
    key: Mapped[str] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(16))
    start: Mapped[datetime] = mapped_column(UtcDateTime)
    end: Mapped[datetime] = mapped_column(UtcDateTime)
    base_version: Mapped[int] = mapped_column(BigInteger)
    delta_version: Mapped[int | None] = mapped_column(BigInteger)
    rows: Mapped[int] = mapped_column(BigInteger)
    replaced: Mapped[dict[str, int]] = mapped_column(JSON)
    canary: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    widens: Mapped[int | None] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    published_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    rolled_back_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    rollback_version: Mapped[int | None] = mapped_column(BigInteger)


class ModelVersionRow(Base):
    """A trained model."""

    __tablename__ = "model_versions"

    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"), primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    path: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64))
    fingerprint: Mapped[str] = mapped_column(String(64), index=True)
    trained_until: Mapped[datetime] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)


class PromotionRow(Base):
    """A promotion: the version to be served from a time on (append-only)."""

    __tablename__ = "model_promotions"
    __table_args__ = (Index("ix_model_promotions_name", "project_id", "name"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[int] = mapped_column(Integer)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    cause: Mapped[str] = mapped_column(Text)


class DatasetRow(Base):
    """A version of a training set."""

    __tablename__ = "datasets"

    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"), primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    path: Mapped[str] = mapped_column(Text)
    fingerprint: Mapped[str] = mapped_column(String(64), index=True)
    rows: Mapped[int] = mapped_column(BigInteger)
    cutoff: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    manifest: Mapped[dict[str, Any]] = mapped_column(JSON)


class DatasetUseRow(Base):
    """A model that was trained on a version of a training set (append-only)."""

    __tablename__ = "dataset_uses"
    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "dataset", "dataset_version"], ["datasets.project_id", "datasets.name", "datasets.version"]
        ),
    )

    project_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    model: Mapped[str] = mapped_column(String(100), primary_key=True)
    model_version: Mapped[str] = mapped_column(String(100), primary_key=True)
    dataset: Mapped[str] = mapped_column(String(64), primary_key=True)
    dataset_version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
