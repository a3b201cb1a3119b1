# SPDX-License-Identifier: Apache-2.0
"""Whoever reads the target domain does not read the source log: planted ids of source items are searched for in all that is handed over."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from conftest import make_two_domains, write_toml
from support.byte_search import traces
from support.provenance import published_with_sources
from support.small import LOCAL, lean

from scalr_prod import Project
from scalr_prod.schemas import Table

pytestmark = [pytest.mark.slow, pytest.mark.long]  # a property of the whole pipeline

PLANTED = "planted-source-item-"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Project:
    """A published run of a source log whose items have telling ids and titles, and its training set."""
    domains = make_two_domains(tmp_path_factory.mktemp("firewall") / "logs", users=80)
    for path in (domains.source, domains.source_items):
        log = pd.read_parquet(path)
        log["item_id"] = PLANTED + log["item_id"]
        if "title" in log:
            log["title"] = PLANTED + log["title"]
        log.to_parquet(path)
    with Project.open(lean(write_toml(domains, LOCAL))) as project:
        project.run()
        yield project


def hand_over(project: Project, folder: Path) -> list[Path]:
    """What readers of the target domain may open."""
    training_set = project.training_set()
    (folder / "exports").mkdir()
    training_set.export(folder / "exports" / "rows.csv")
    training_set.export(folder / "exports" / "recbole", "recbole")
    project.export_feast(folder / "feast", "parquet")
    project.export_feast(folder / "feast_delta", "delta")
    (folder / "page").mkdir()
    project.report(output=folder / "page" / "report.html")
    return [
        Path(project.lake.uri(Table.SYNTHETIC_TARGET_EVENTS)),
        Path(project.lake.uri(Table.TARGET_EVENTS)),
        training_set.path,
        *folder.iterdir(),
    ]


def test_no_source_item_is_in_what_target_readers_open(published, tmp_path):
    handed_over = hand_over(published, tmp_path)
    assert [path for path in handed_over if not path.exists()] == []
    found = [place for path in handed_over for place in traces(path if path.is_dir() else path.parent, PLANTED)]
    assert found == []


def test_the_search_finds_them_where_operators_read(published):
    assert traces(Path(published.lake.uri(Table.SYNTHETIC_EVENT_PROVENANCE)), PLANTED)
    sources = published_with_sources(published.lake)
    assert sources["source_item_id"].str.startswith(PLANTED).all()
    event = sources.iloc[0]
    assert published.explain(event["event_id"]).source["item"] == event["source_item_id"]
