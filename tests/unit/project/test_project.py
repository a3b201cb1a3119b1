"""`Project`: opened from a file, a dictionary or settings; what the package exports; what `help` shows."""

from __future__ import annotations

import inspect
import pydoc

import pytest

import scalr_prod
from scalr_prod import Project, ScalrError
from scalr_prod.errors import SettingsError

EXPORTS = [
    "DownstreamModel",
    "Estimator",
    "EvaluationReport",
    "GateRule",
    "Interactions",
    "LogReader",
    "PipelineReport",
    "Project",
    "ScalrError",
    "Settings",
    "StageState",
    "TrainingSet",
    "__version__",
    "load_settings",
]


def test_what_the_package_exports_is_this_and_no_more():
    assert scalr_prod.__all__ == EXPORTS
    for name in EXPORTS:
        assert getattr(scalr_prod, name) is not None
    assert dir(scalr_prod) == sorted(EXPORTS)
    with pytest.raises(AttributeError, match="no attribute 'Lake'"):
        scalr_prod.Lake  # noqa: B018 - asking is the point


def test_a_project_opens_from_a_file_its_content_or_its_settings(two_domains, settings):
    content = {
        "project": {"home": str(settings.home)},
        "domains": {
            place: {"name": settings.domains[place].name, "events": str(settings.domains[place].events)}
            for place in ("source", "target")
        },
    }
    homes = {Project.open(source).settings.home for source in (settings, settings.base / "scalr.toml", content)}
    assert homes == {settings.home}


def test_sections_are_merged_over_whatever_a_project_is_opened_from(settings):
    wanted = {"generation": {"events_per_source_event": 7}}
    for source in (settings, settings.base / "scalr.toml"):
        found = Project.open(source, **wanted).settings
        assert found.generation.events_per_source_event == 7
        assert found.domains == settings.domains
        assert "generation.events_per_source_event" in found.explicit_keys
        assert found.home == settings.home


@pytest.mark.parametrize("source", ["there/is/no.toml", {"domains": {}}, {"domain": {}}])
def test_what_cannot_be_opened_is_a_clear_error(source):
    with pytest.raises(SettingsError):
        Project.open(source)


def test_an_unknown_key_in_a_section_names_the_key(settings):
    with pytest.raises(SettingsError, match="volume"):
        Project.open(settings, generation={"volume": 3})


def test_every_public_method_is_documented_and_typed():
    methods = [member for name, member in inspect.getmembers(Project) if not name.startswith("_")]
    assert len(methods) > 20
    for method in methods:
        assert inspect.getdoc(method), method
        function = method.fget if isinstance(method, property) else method
        assert "return" in function.__annotations__, method
    assert "Run the quality gate on a generated run" in pydoc.render_doc(Project, renderer=pydoc.plaintext)


def test_stages_are_done_one_after_the_other(settings):
    with Project(settings) as project:
        assert done(project) == ["policy"]
        report = project.ingest()
        assert report.domains["source"].rows_added > 0
        assert done(project) == ["ingest", "policy"]
        project.histories()
        assert done(project) == ["ingest", "histories", "policy", "feast"]
        assert {view.name for view in project.feature_store.list_feature_views()} >= {"source_user_history"}
        assert project.runs() == []
        assert project.translators() == []
        with pytest.raises(ScalrError, match="run_7") as caught:
            project.validate("run_7")
        assert caught.value.next_step


def test_histories_of_other_events_are_not_done(settings, two_domains):
    import pandas as pd

    with Project(settings) as project:
        project.ingest()
        project.histories()
        rows = pd.read_parquet(two_domains.source)
        rows.assign(timestamp=rows["timestamp"] + pd.Timedelta(1, "D")).tail(1).to_parquet(two_domains.source)
        project.ingest()
        assert "histories" not in done(project)


def test_a_closed_project_opens_again_what_it_is_asked_for(settings):
    project = Project(settings)
    first = project.ledger
    assert project.ledger is first
    project.close()
    assert project.ledger is not first
    project.close()


def done(project):
    return [stage.stage for stage in project.status() if stage.done and stage.stage not in {"serving", "features"}]
