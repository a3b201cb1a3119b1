# SPDX-License-Identifier: Apache-2.0
"""Stage hooks: what a plug-in sees of stages, and that it comes from the registry."""

import dataclasses
from contextlib import contextmanager

import pytest

from scalr_prod import pipeline
from scalr_prod.errors import QualityGateFailed
from scalr_prod.pipeline import StageScope, run_hooks, stage_hooks
from scalr_prod.pipeline import hooks as room
from scalr_prod.plugins import STAGE_HOOKS

seen = []


class Recorder:
    @contextmanager
    def around_run(self):
        seen.append("run begins")
        yield
        seen.append("run ends")

    @contextmanager
    def around_stage(self, scope):
        try:
            yield
            seen.append((scope.name, scope.run_id(), "done"))
        except Exception as error:
            seen.append((scope.name, scope.run_id(), type(error).__name__))
            raise


@pytest.fixture
def recorder(monkeypatch):
    group = dataclasses.replace(STAGE_HOOKS, builtin={"recorder": f"{__name__}:Recorder"})
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(Recorder=Recorder))
    monkeypatch.setattr(room, "STAGE_HOOKS", group)
    room._hooks.cache_clear()
    seen.clear()
    yield
    room._hooks.cache_clear()


def test_a_hook_sees_the_run_its_stages_and_how_they_end(recorder):
    with run_hooks():
        with stage_hooks(StageScope(None, "ingest", run_id=lambda: None)):
            pass
        with pytest.raises(QualityGateFailed), stage_hooks(StageScope(None, "validate", run_id=lambda: "r1")):
            raise QualityGateFailed("refused")
    assert seen == ["run begins", ("ingest", None, "done"), ("validate", "r1", "QualityGateFailed"), "run ends"]


def test_lineage_and_metrics_are_hooks_of_this_package():
    assert list(STAGE_HOOKS.builtin) == ["lineage", "metrics"]
    for name in STAGE_HOOKS.builtin:
        assert STAGE_HOOKS.load(name, pipeline.StageHook)
