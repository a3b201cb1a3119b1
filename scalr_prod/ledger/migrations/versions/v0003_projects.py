# SPDX-License-Identifier: Apache-2.0
"""Every row belongs to a project. Rows from before are told apart by the homes that their models and data sets lie in.

Each such home becomes a project without a name, which the project of that home claims when it opens the ledger.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic import context, op

from scalr_prod.ledger.orm_tables import UtcDateTime

if TYPE_CHECKING:
    from collections.abc import Callable

revision = "0003"
down_revision = "0002"

#: In an order in which each is dropped before what it refers to.
_TABLES = ("datasets", "model_promotions", "model_versions", "publications", "partitions", "transitions", "runs")


def upgrade() -> None:
    """Make the tables again beside the old ones, carry the rows over with their project, and put the new ones in their place."""
    connection = op.get_bind()
    op.create_table(
        "projects",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(63), unique=True),
        sa.Column("lake", sa.String(1000), unique=True),
        sa.Column("home", sa.String(1000)),
        sa.Column("home_id", sa.String(32)),
        sa.Column("created_at", UtcDateTime(), nullable=False),
    )
    owners = _Owners(connection)
    for make in (_runs, _transitions, _partitions, _publications, _model_versions, _promotions, _datasets):
        make()
    owners.carry("runs", "run_id", owners.of_run)
    owners.carry("model_versions", "name, version", owners.of_path)
    owners.carry("datasets", "name, version", owners.of_path)
    owners.carry("model_promotions", "id", owners.of_promotion)
    for table in ("partitions", "publications"):
        columns = _columns(connection, table)
        connection.execute(
            sa.text(
                f"INSERT INTO new_{table} (project_id, {columns}) "
                f"SELECT runs.project_id, {_columns(connection, table, 'old')} FROM {table} AS old "
                f"JOIN new_runs AS runs ON runs.run_id = old.run_id ORDER BY {'old.id' if table == 'publications' else '1'}"
            )
        )
    connection.execute(
        sa.text(
            f"INSERT INTO new_transitions (project_id, {_columns(connection, 'transitions')}) "
            "SELECT COALESCE(runs.project_id, models.project_id, sets.project_id, CAST(:rest AS INTEGER)), "
            f"{_columns(connection, 'transitions', 'old')} FROM transitions AS old "
            "LEFT JOIN new_runs AS runs ON runs.run_id = old.run_id "
            "LEFT JOIN new_model_versions AS models ON old.subject = 'model' AND ("
            "old.key = models.name || '/' || CAST(models.version AS VARCHAR(20)) OR "
            "(old.key = models.name AND old.to_state = 'version ' || CAST(models.version AS VARCHAR(20)))) "
            "LEFT JOIN new_datasets AS sets ON old.subject = 'dataset' "
            "AND old.key = sets.name || '/' || CAST(sets.version AS VARCHAR(20)) ORDER BY old.id"
        ),
        {"rest": owners.rest},
    )
    for table in _TABLES:
        op.drop_table(table)
    for table in reversed(_TABLES):
        op.rename_table(f"new_{table}", table)
    _indexes()


class _Owners:
    """The home that each old row is evidently of, as a project; made only if there are rows."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        made = [*_rows(connection, "model_versions"), *_rows(connection, "datasets")]
        homes = sorted({home for row in made if (home := _home(row["path"])) is not None})
        self.made_by = {(row["name"], row["version"]): row for row in _rows(connection, "model_versions")}
        if context.config.attributes.get("alone") or len(homes) == 1:
            # The ledger lies in its project's own home, which may have been moved since; or all evidence is of one home.
            self.known: dict[str | None, int] = {}
            self.rest = self._project(homes[0] if len(homes) == 1 else None) if self._any() else None
        else:
            self.known = {home: self._project(home) for home in homes}
            self.rest = self._project(None) if self._any() else None

    def of_run(self, row: dict[str, Any]) -> int | None:
        """By the translator that it is pinned to."""
        spec = json.loads(row["spec"]) if isinstance(row["spec"], str) else row["spec"]
        model = self.made_by.get(("translator", spec["translator_version"]))
        return self.of_path(model) if model and model["sha256"] == spec["translator_sha256"] else self.rest

    def of_promotion(self, row: dict[str, Any]) -> int | None:
        """By the version that was promoted."""
        model = self.made_by.get((row["name"], row["version"]))
        return self.of_path(model) if model else self.rest

    def of_path(self, row: dict[str, Any]) -> int | None:
        """By the folder that it lies in."""
        return self.known.get(_home(row["path"]), self.rest)

    def carry(self, table: str, key: str, owner: Callable[[dict[str, Any]], int | None]) -> None:
        """Copy a table's rows, each with its project, in the order of its key."""
        connection = self.connection
        columns = _columns(connection, table)
        copied = sa.text(
            f"INSERT INTO new_{table} (project_id, {columns}) SELECT CAST(:owner AS INTEGER), {columns} FROM {table} "
            f"WHERE {' AND '.join(f'{name} = :{name}' for name in key.split(', '))}"
        )
        for row in _rows(connection, table, order=key):
            values = {name: row[name] for name in key.split(", ")}
            connection.execute(copied, {"owner": owner(row), **values})

    def _any(self) -> bool:
        return any(self.connection.execute(sa.text(f"SELECT 1 FROM {table} LIMIT 1")).first() for table in _TABLES)

    def _project(self, home: str | None) -> int:
        projects = sa.table("projects", sa.column("id"), sa.column("home", sa.String), sa.column("created_at", UtcDateTime()))
        made = sa.insert(projects).values(home=home, created_at=datetime.now(UTC)).returning(projects.c.id)
        return int(self.connection.scalar(made))


def _home(path: str | None) -> str | None:
    """``<home>/models/translator/3`` or ``<home>/datasets/name/v3`` → home."""
    above = PurePath(path or "").parents
    return str(above[2]) if len(above) > 2 and above[1].name in {"models", "datasets"} else None  # noqa: PLR2004 - three above


def _rows(connection: sa.Connection, table: str, *, order: str = "1") -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(sa.text(f"SELECT * FROM {table} ORDER BY {order}")).mappings()]


def _columns(connection: sa.Connection, table: str, alias: str | None = None) -> str:
    """Quoted, without the numbers that the database gives."""
    names = [column["name"] for column in sa.inspect(connection).get_columns(table) if column["name"] != "id"]
    return ", ".join(f'{alias}."{name}"' if alias else f'"{name}"' for name in names)


def _owner(*, key: bool = False) -> sa.Column[int]:
    return sa.Column(
        "project_id", sa.Integer(), sa.ForeignKey("projects.id"), primary_key=key, nullable=False, autoincrement=False
    )


def _run_key() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["project_id", "run_id"], ["new_runs.project_id", "new_runs.run_id"])


def _runs() -> None:
    op.create_table(
        "new_runs",
        _owner(key=True),
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.Column("lease_owner", sa.String(200)),
        sa.Column("lease_expires_at", UtcDateTime()),
    )


def _transitions() -> None:
    op.create_table(
        "new_transitions",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        _owner(),
        sa.Column("subject", sa.String(16), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("run_id", sa.String(64)),
        sa.Column("from_state", sa.String(200)),
        sa.Column("to_state", sa.String(200), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(200)),
        _run_key(),
    )


def _partitions() -> None:
    op.create_table(
        "new_partitions",
        sa.Column("project_id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("partition", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64)),
        sa.Column("path", sa.Text()),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        _run_key(),
    )


def _publications() -> None:
    op.create_table(
        "new_publications",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("start", UtcDateTime(), nullable=False),
        sa.Column("end", UtcDateTime(), nullable=False),
        sa.Column("base_version", sa.BigInteger(), nullable=False),
        sa.Column("delta_version", sa.BigInteger()),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("replaced", sa.JSON(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("published_at", UtcDateTime()),
        sa.Column("rolled_back_at", UtcDateTime()),
        sa.Column("rollback_version", sa.BigInteger()),
        _run_key(),
        sa.UniqueConstraint("project_id", "run_id", "attempt", name="uq_publications_project_run_attempt"),
        sa.UniqueConstraint("project_id", "key", name="uq_publications_key"),
    )


def _model_versions() -> None:
    op.create_table(
        "new_model_versions",
        _owner(key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("trained_until", UtcDateTime(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
    )


def _promotions() -> None:
    op.create_table(
        "new_model_promotions",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        _owner(),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
    )


def _datasets() -> None:
    op.create_table(
        "new_datasets",
        _owner(key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("cutoff", UtcDateTime()),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
    )


def _indexes() -> None:
    op.create_index("ix_runs_run_id", "runs", ["run_id"])
    op.create_index("ix_runs_state", "runs", ["state"])
    op.create_index("ix_runs_created_at", "runs", ["created_at"])
    op.create_index("ix_transitions_run", "transitions", ["project_id", "run_id"])
    op.create_index("ix_transitions_subject", "transitions", ["project_id", "subject", "key"])
    op.create_index("ix_publications_window", "publications", ["project_id", "start", "end"])
    op.create_index("ix_model_versions_fingerprint", "model_versions", ["fingerprint"])
    op.create_index("ix_model_promotions_name", "model_promotions", ["project_id", "name"])
    op.create_index("ix_datasets_fingerprint", "datasets", ["fingerprint"])
