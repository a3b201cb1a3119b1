"""The Dagster asset graph at work: a translator of one week, the events of a day after it, and days that cannot be translated.

The program of docs/guides/dagster.md makes the definitions.
"""

from __future__ import annotations

import json
import re
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest
from deltalake import DeltaTable
from support.small import LOCAL, lean

pytest.importorskip("dagster", reason="dagster is not installed: scalr-prod[dagster]")

import dagster as dg

from scalr_prod import Project
from scalr_prod.errors import SettingsError
from scalr_prod.integrations.dagster import scalr_definitions
from scalr_prod.ledger import RunState

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("at_hand")]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "dagster.md"
#: A Monday in Berlin, and the week before, whose translator is trained until it.
DAY, WEEK = "2024-06-03", "2024-05-27"
START, END = datetime(2024, 6, 2, 22, tzinfo=UTC), datetime(2024, 6, 3, 22, tzinfo=UTC)


@pytest.fixture(autouse=True, scope="module")
def sigterm():
    """Dagster gives SIGTERM the handler of SIGINT. Where that is ignored, processes of later tests would not end."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


class Shop:
    """A project's definitions, and an instance of Dagster that runs their jobs in this process."""

    def __init__(self, config: Path) -> None:
        self.config, self.instance = config, dg.DagsterInstance.ephemeral()
        (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert "/srv/scalr/scalr.toml" in program
        names = {}
        exec(program.replace("/srv/scalr/scalr.toml", str(config)), names)  # noqa: S102 - the page's own
        self.definitions = names["defs"]

    def run(self, job, partition, *stages):
        """A job's run for a partition; of some of its assets only, where any are named."""
        selected = [dg.AssetKey(["shop", stage]) for stage in stages] or None
        made = self.definitions.resolve_job_def(f"scalr_shop_{job}")
        return made.execute_in_process(
            partition_key=partition, instance=self.instance, asset_selection=selected, raise_on_error=False
        )

    def metadata(self, result, stage):
        (made,) = result.asset_materializations_for_node(f"shop__{stage}")
        return {name: value.value for name, value in made.metadata.items()}


def failure(result, stage):
    """Message and metadata of the one failed step, which was tried once."""
    assert not result.success
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert failed.step_key == f"shop__{stage}"
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    data = failed.step_failure_data.user_failure_data
    return data.description, {name: value.value for name, value in data.metadata.items()}


@pytest.fixture(scope="module")
def shop(make_project, tmp_path_factory):
    config = lean(make_project(tmp_path_factory.mktemp("dagster") / "logs", LOCAL, users=150).base / "scalr.toml")
    config.write_text('[project]\nname = "shop"\ntimezone = "Europe/Berlin"\n' + config.read_text())
    made = Shop(config)
    trained = dg.materialize(
        made.definitions.assets,
        partition_key=WEEK,
        instance=made.instance,
        selection=[dg.AssetKey(["shop", stage]) for stage in ("ingest", "histories", "translator")],
    )
    assert trained.success
    assert made.metadata(trained, "ingest")["rows"] > 1000
    path = Path(config.parent / ".scalr")
    (manifest,) = path.rglob("models/translator/1/manifest.json")
    assert datetime.fromisoformat(json.loads(manifest.read_text())["trained_until"]) == START
    return made


@pytest.fixture(scope="module")
def events(shop):
    result = shop.run("events", DAY)
    assert result.success
    return result


def test_a_day_is_published_and_each_asset_says_what_it_made(shop, events):
    rows = {stage: shop.metadata(events, stage) for stage in ("generate", "validate", "publish", "late", "dataset")}
    with Project.open(shop.config) as project:
        (run,) = [run for run in project.runs() if run.run_id == rows["generate"]["run_id"]]
        published = DeltaTable(str(project.settings.home / "lake" / "synthetic_target_events")).to_pandas()
        published = published[published["run_id"] == run.run_id]
        manifest = json.loads((Path(rows["dataset"]["path"]) / "manifest.json").read_text())
    assert run.state is RunState.PUBLISHED
    assert {rows[stage]["run_id"] for stage in ("generate", "validate", "publish", "late")} == {run.run_id}
    assert published["event_timestamp"].between(START, END, inclusive="left").all()
    assert rows["publish"]["dagster/row_count"] == rows["publish"]["rows"] == len(published) > 5
    assert rows["validate"]["passed"]
    assert rows["validate"]["accepted"] == len(published)
    assert rows["validate"]["report"]["rules"], "the verdict of each rule"
    assert rows["dataset"]["synthetic"] == len(published)
    assert datetime.fromisoformat(manifest["cutoff"]) == END, "all that is published is known"
    assert DAY in shop.instance.get_materialized_partitions(dg.AssetKey(["shop", "publish"]))


def test_a_day_materialized_again_publishes_nothing_twice(shop, events):
    again = shop.run("events", DAY, "generate", "validate", "publish")
    assert again.success
    assert shop.metadata(again, "publish")["outcome"] == "already_published"


def test_a_day_without_source_events_is_materialized_and_makes_no_run(shop, events):
    empty = shop.run("events", "2025-01-01", "generate", "validate", "publish", "late")
    assert empty.success
    for stage in ("generate", "validate", "publish"):
        assert shop.metadata(empty, stage)["skipped"]
    with Project.open(shop.config) as project:
        assert not [run for run in project.runs() if run.spec.start >= datetime(2024, 12, 31, tzinfo=UTC)]


def test_a_day_before_the_translator_fails_at_once_and_says_what_to_do(shop, events):
    done = shop.run("events", "2024-05-20", "generate", "validate", "publish")
    text, facts = failure(done, "generate")
    assert text.startswith("TrainedPastWindow: ")
    assert "next: " in text
    assert "scalr translator train" in facts["next_step"]
    assert not done.asset_materializations_for_node("shop__publish")


def test_publishing_a_day_that_was_not_generated_names_the_asset_to_begin_with(shop, events):
    text, facts = failure(shop.run("events", "2024-06-05", "publish"), "publish")
    assert text.startswith("RunNotFound: partition 2024-06-05: no events have been generated for this window")
    assert facts["next_step"] == "materialize shop/generate for this partition first"


def test_a_week_is_one_window_where_windows_are_weekly(shop, events):
    """A week after the day's own, so that it does not take the place of the day's events."""
    weekly = scalr_definitions(shop.config, first_day="2024-05-01", windows="weekly")
    job = weekly.resolve_job_def("scalr_shop_events")
    stages = [dg.AssetKey(["shop", stage]) for stage in ("generate", "validate", "publish", "late")]
    made = job.execute_in_process(partition_key="2024-06-10", instance=shop.instance, asset_selection=stages)
    start, end = (datetime(2024, 6, day, 22, tzinfo=UTC) for day in (9, 16))
    with Project.open(shop.config) as project:
        (run,) = [run for run in project.runs() if run.spec.end == end]
        assert (run.spec.start, run.state) == (start, RunState.PUBLISHED)
    assert shop.metadata(made, "publish")["rows"] > shop.metadata(events, "publish")["rows"]


@pytest.mark.parametrize(
    ("windows", "key", "cron"),
    [("hourly", "2024-06-05-13:00", "30 * * * *"), ("daily", "2024-06-05", "0 3 * * *"), ("weekly", "2024-06-03", "0 3 * * 1")],
)
def test_a_window_depends_on_the_translator_of_the_week_before(shop, windows, key, cron):
    made = scalr_definitions(shop.config, first_day="2024-05-01", windows=windows)
    graph = made.resolve_asset_graph()
    generate, translator = (graph.get(dg.AssetKey(["shop", stage])) for stage in ("generate", "translator"))
    mapping = generate.partition_mappings[translator.key]
    wanted = generate.partitions_def.subset_with_partition_keys([key])
    found = mapping.get_upstream_mapped_partitions_result_for_partitions(
        wanted, generate.partitions_def, translator.partitions_def
    )
    assert set(found.partitions_subset.get_partition_keys()) == {WEEK}
    schedules = {one.job_name: one.cron_schedule for one in made.get_repository_def().schedule_defs}
    assert schedules == {"scalr_shop_events": cron, "scalr_shop_translator": "0 1 * * 1"}


def test_another_length_is_refused(shop):
    with pytest.raises(SettingsError, match="windows as one of: hourly, daily, weekly"):
        scalr_definitions(shop.config, first_day="2024-05-01", windows="monthly")
