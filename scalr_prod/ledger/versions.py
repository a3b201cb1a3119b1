# SPDX-License-Identifier: Apache-2.0
"""Registry of model versions, their promotions, training sets, and the models that were trained on these."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import sqlalchemy as sa

from scalr_prod.errors import LedgerError, TrainingSetError, TranslatorNotFound
from scalr_prod.ledger.database import insert_or_get
from scalr_prod.ledger.dto import DatasetRecord, DatasetUse, ModelVersion, Promotion, record_from_row
from scalr_prod.ledger.orm_tables import DatasetRow, DatasetUseRow, ModelVersionRow, PromotionRow

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy.orm import Session

    from scalr_prod.ledger.change_log import ChangeLog, ChangeSubject
    from scalr_prod.ledger.tenancy import ProjectScope


_TRANSLATOR = "translator"
#: Names and versions of models that are trained outside of this package.
_MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/@+=-]{0,99}")
Row = TypeVar("Row", ModelVersionRow, DatasetRow)


class ModelRepository:
    """Versions of the translator and their promotions in the ledger. A recorded version never changes."""

    def __init__(self, scope: ProjectScope, changes: ChangeLog) -> None:
        self._scope = scope
        self._database = scope.database
        self._changes = changes

    def record(
        self,
        version: int,
        *,
        path: str,
        sha256: str,
        fingerprint: str,
        trained_until: datetime,
        metrics: Mapping[str, Any],
    ) -> ModelVersion:
        """Record a trained model; recording the same one again changes nothing.

        Raises:
            LedgerError: Another model has this version.
        """
        row = ModelVersionRow(
            name=_TRANSLATOR,
            version=version,
            path=path,
            sha256=sha256,
            fingerprint=fingerprint,
            trained_until=trained_until,
            metrics=_json(metrics),
        )
        with self._database.write_session() as session:
            row.project_id, row.created_at = self._scope.ensure_project_id(session), self._database.now(session)
            recorded = _insert_once(session, row, self._changes, sha256=sha256, fingerprint=fingerprint)
            return record_from_row(recorded, ModelVersion)

    def find(self) -> list[ModelVersion]:
        """List the versions of the project's translator, oldest first."""
        query = sa.select(ModelVersionRow).where(ModelVersionRow.name == _TRANSLATOR).order_by(ModelVersionRow.version)
        return [record_from_row(row, ModelVersion) for row in self._scope.select_own(query)]

    def promote(self, version: int, *, cause: str) -> Promotion:
        """Make this the version to be served. Promoting the promoted version changes nothing.

        Raises:
            TranslatorNotFound: No such version is recorded.
        """
        with self._database.write_session() as session:
            own = self._scope.ensure_project_id(session)
            if session.get(ModelVersionRow, (own, _TRANSLATOR, version)) is None:
                raise TranslatorNotFound(
                    f"translator has no version {version}{self._other_owners_suffix(session, version)}",
                    where=self._database.address,
                    next_step="list them: scalr translator list",
                )
            last = self._last_promotion(session)
            if last is None or last.version != version:
                former = None if last is None else f"version {last.version}"
                self._changes.add(session, "model", _TRANSLATOR, former, f"version {version}", cause=cause)
                last = PromotionRow(
                    project_id=own, name=_TRANSLATOR, version=version, at=self._database.now(session), cause=cause
                )
                session.add(last)
            return record_from_row(last, Promotion)

    def promoted_version(self) -> int | None:
        """Return the version to be served, or None if none was promoted."""
        with self._database.read_session() as session:
            last = self._last_promotion(session)
            return None if last is None else last.version

    def promotions(self) -> list[Promotion]:
        """List the promotions, oldest first."""
        query = sa.select(PromotionRow).where(PromotionRow.name == _TRANSLATOR).order_by(PromotionRow.id)
        return [record_from_row(row, Promotion) for row in self._scope.select_own(query)]

    def _last_promotion(self, session: Session) -> PromotionRow | None:
        query = sa.select(PromotionRow).where(
            PromotionRow.project_id == self._scope.project_id(session), PromotionRow.name == _TRANSLATOR
        )
        return session.scalars(query.order_by(PromotionRow.id.desc()).limit(1)).one_or_none()

    def describe_other_owners(self, version: int) -> str:
        """Name the other projects that have this version, as the end of a sentence; empty if none has."""
        if not 0 < version < 2**31:  # out of the column's range
            return ""
        with self._database.read_session() as session:
            return self._other_owners_suffix(session, version)

    def _other_owners_suffix(self, session: Session, version: int) -> str:
        with_it = sa.select(ModelVersionRow.project_id).where(
            ModelVersionRow.name == _TRANSLATOR, ModelVersionRow.version == version
        )
        others = self._scope.other_projects_with(session, with_it)
        return f"; there is one of {' and of '.join(self._scope.describe_project(row) for row in others)}" if others else ""


class DatasetRepository:
    """Versions of training sets in the ledger, and the models that were trained on them. A recorded version never changes."""

    def __init__(self, scope: ProjectScope, changes: ChangeLog) -> None:
        self._scope = scope
        self._database = scope.database
        self._changes = changes

    def record(
        self,
        name: str,
        version: int,
        *,
        path: str,
        fingerprint: str,
        rows: int,
        cutoff: datetime | None,
        manifest: Mapping[str, Any],
    ) -> DatasetRecord:
        """Record a version of a training set; recording the same one again changes nothing.

        Raises:
            LedgerError: Another training set has this version.
        """
        row = DatasetRow(
            name=name, version=version, path=path, fingerprint=fingerprint, rows=rows, cutoff=cutoff, manifest=_json(manifest)
        )
        with self._database.write_session() as session:
            row.project_id, row.created_at = self._scope.ensure_project_id(session), self._database.now(session)
            return record_from_row(_insert_once(session, row, self._changes, fingerprint=fingerprint), DatasetRecord)

    def find(self, name: str | None = None) -> list[DatasetRecord]:
        """List the training-set versions of the project, or those of one name, oldest first."""
        query = sa.select(DatasetRow).order_by(DatasetRow.name, DatasetRow.version)
        if name is not None:
            query = query.where(DatasetRow.name == name)
        return [record_from_row(row, DatasetRecord) for row in self._scope.select_own(query)]

    def record_use(self, name: str, version: int | None = None, *, model: str, model_version: str) -> DatasetUse:
        """Record that a model was trained on a version of a training set; recording the same again changes nothing.

        Args:
            name: The training set's name.
            version: Its version; default: the latest recorded.
            model: The model's name.
            model_version: The model's version.

        Raises:
            LedgerError: A name or version of a model is empty, too long, or has other characters than letters, digits, blanks and
                ``._:/@+=-``.
            TrainingSetError: No such version is recorded.
        """
        if invalid := [text for text in (model, model_version) if not _MODEL_NAME.fullmatch(text)]:
            raise LedgerError(
                f"{invalid[0]!r} is no name or version of a model",
                where="model",
                next_step="use at most 100 letters, digits, blanks or characters of ._:/@+=-, beginning with a letter or digit",
            )
        recorded = [record.version for record in self.find(name)]
        if version is None and recorded:
            version = recorded[-1]
        if version not in recorded:
            known = f"; there are {', '.join(map(str, recorded))}" if recorded else ""
            raise TrainingSetError(
                f"training set {name} has no version{'' if version is None else f' {version}'}{known}",
                where=self._database.address,
                next_step="name the version that the model was trained on" if recorded else "build one: scalr dataset build",
            )
        with self._database.write_session() as session:
            key = (self._scope.ensure_project_id(session), model, model_version, name, version)
            row = session.get(DatasetUseRow, key)
            created = False
            if row is None:
                columns = ("project_id", "model", "model_version", "dataset", "dataset_version")
                use = DatasetUseRow(**dict(zip(columns, key, strict=True)), created_at=self._database.now(session))
                row, created = insert_or_get(session, use)
            if created:
                cause = f"by {model} {model_version}"
                self._changes.add(session, "dataset", f"{name}/{version}", "recorded", "used", cause=cause)
            return record_from_row(row, DatasetUse, created=created)

    def uses(self) -> list[DatasetUse]:
        """List the models that were trained on training sets of the project, in order of registration."""
        order = (DatasetUseRow.created_at, DatasetUseRow.model, DatasetUseRow.model_version, DatasetUseRow.dataset_version)
        query = sa.select(DatasetUseRow).order_by(*order)
        return [record_from_row(row, DatasetUse, created=False) for row in self._scope.select_own(query)]


def _insert_once(session: Session, row: Row, changes: ChangeLog, **identity: str) -> Row:
    """Insert a version, or return the recorded one if its columns in ``identity`` are the same."""
    kind, primary_key = type(row), (row.project_id, row.name, row.version)
    recorded = session.get(kind, primary_key)
    if recorded is None:
        recorded, created = insert_or_get(session, row)
        if created:
            subject: ChangeSubject = "model" if kind is ModelVersionRow else "dataset"
            changes.add(session, subject, f"{row.name}/{row.version}", None, "recorded", cause="made")
            return row
    differing = [name for name, value in identity.items() if getattr(recorded, name) != value]
    if differing:
        raise LedgerError(
            f"{row.name} version {row.version} is recorded already, with another {' and '.join(differing)}",
            where=changes.address,
            next_step="record it under the next version",
        )
    return recorded


def _json(content: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(content), default=str))
    return plain
