"""Feast's registry on a real PostgreSQL, with a password that no file holds."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.feast_project import VIEWS, make_project
from support.warm import run

from scalr_prod.config.settings import load_settings
from scalr_prod.errors import FeatureStoreError
from scalr_prod.features import apply_feature_repo, open_feature_store

pytestmark = pytest.mark.slow
#: Starts several processes, among them Feast's own command; test_shared_stores.py applies and reads a registry on PostgreSQL.
long = pytest.mark.long

SECRET = "not-to-be-found"  # noqa: S105 - what is looked for


@pytest.fixture
def registry(postgres):
    return postgres.database("feast").set(password=SECRET).render_as_string(hide_password=False)


@long
def test_applied_and_read_without_a_secret_in_any_file(registry, tmp_path, monkeypatch):
    monkeypatch.setenv("SCALR_FEAST__REGISTRY", registry)
    settings = make_project(tmp_path)
    assert {view.name for view in open_feature_store(settings).list_feature_views()} == {view.value for view in VIEWS}
    assert not apply_feature_repo(settings).applied
    for file in settings.feast_repo.rglob("*"):
        assert b"not-to-be-found" not in (file.read_bytes() if file.is_file() else b"")

    command = [str(Path(sys.executable).with_name("feast")), "-c", str(settings.feast_repo), "feature-services", "list"]
    done = run(command)
    assert "downstream_training_v1" in done.stdout, done.stderr

    # Another registry is another matter: it is empty, and filled.
    monkeypatch.delenv("SCALR_FEAST__REGISTRY")
    assert apply_feature_repo(load_settings(tmp_path / "scalr.toml")).applied


def test_a_registry_that_does_not_answer(registry, tmp_path, monkeypatch):
    settings = make_project(tmp_path)
    monkeypatch.setenv("SCALR_FEAST__REGISTRY", "postgresql+psycopg://me:not-to-be-found@127.0.0.1:1/feast")
    with pytest.raises(FeatureStoreError, match="Feast cannot be opened") as caught:
        apply_feature_repo(load_settings(settings.base / "scalr.toml"))
    assert "not-to-be-found" not in str(caught.value)
    assert "the registry and the online store can be reached" in caught.value.next_step


@long
def test_several_that_open_a_fresh_registry_at_once_all_find_it(registry, postgres, tmp_path, monkeypatch):
    monkeypatch.setenv("SCALR_FEAST__REGISTRY", registry)
    settings = make_project(tmp_path)
    monkeypatch.setenv("SCALR_FEAST__REGISTRY", postgres.database("fresh").render_as_string(hide_password=False))
    settings, together = load_settings(settings.base / "scalr.toml"), threading.Barrier(6)

    def opened(_):
        together.wait()
        return open_feature_store(settings).list_feature_views()

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(opened, range(6))) == [[]] * 6
