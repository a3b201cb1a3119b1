"""Through the command line: users without consent are no contexts and not trained on; who withdraws is in no later run."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import make_two_domains, write_toml
from support.small import LOCAL, lean
from typer.testing import CliRunner

from scalr_prod import Project
from scalr_prod.apps.cli import app
from scalr_prod.config.settings import load_settings
from scalr_prod.errors import InputError
from scalr_prod.evaluation.sandbox import create_sandbox
from scalr_prod.generation import plan_run
from scalr_prod.generation.context_query import count_users_without_consent
from scalr_prod.schemas import Table
from scalr_prod.translator.data.event_log import data_end, read_event_log
from scalr_prod.workspace import ConsentState, ensure_consent_not_withdrawn

pytestmark = pytest.mark.slow


def test_users_without_consent_are_no_contexts_and_not_trained_on(tmp_path, here):
    domains = make_two_domains(tmp_path, users=120)
    config = lean(write_toml(domains, LOCAL))
    text = config.read_text().replace('name = "gadgets"\n', 'name = "gadgets"\nconsent = "consent.csv"\n')
    config.write_text(text.replace("[translator]\n", '[translator]\ntrain_on = "consenting_users"\n'))
    users = sorted(pd.read_parquet(domains.source)["user_id"].unique())
    consents = dict.fromkeys(users, True) | dict.fromkeys(users[::3], False)

    def scalr(*arguments):
        frame = pd.DataFrame({"user_id": list(consents), "consent": list(consents.values())})
        frame.to_csv(tmp_path / "consent.csv", index=False)
        done = CliRunner().invoke(app, [*arguments, "--config", str(config), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    settings = load_settings(config, compute={"dask": here})
    scalr("ingest")
    assert scalr("run", "--dry-run")["users"] == len(users) - len(users[::3])
    first = scalr("run")
    generated = first["stages"]["generate"]
    assert generated["without_consent"] == len(users[::3])
    page = Path(scalr("report")["path"]).read_text()
    assert f"{len(users[::3])} users without consent were left out" in page
    with Project(settings) as project:
        published = project.lake.read(Table.SYNTHETIC_TARGET_EVENTS)["user_id"].unique().to_pylist()
        assert published
        assert not set(published) & set(users[::3])
        log = read_event_log(settings, project.translator().trained_until)
        assert not set(log.users.to_pylist()) & set(users[::3])
        assert project.translator().manifest["consent"]["domains"] == ["gadgets"]
        isolated = create_sandbox(settings, project.translator().trained_until, log.users.slice(0, 0), name="test").settings
        assert ConsentState.from_settings(isolated) == ConsentState.from_settings(settings)

        # A user withdraws: the planned run is refused, the next one does not translate them, and what was published is replaced.
        gone = next(user for user in published if consents[user])
        planned = plan_run(settings.with_sections(generation={"seed": 5}))
        consents[gone] = False
        scalr("ingest")
        with pytest.raises(InputError, match="1 users have withdrawn their consent"):
            project.resume(planned.run_id)
        with pytest.raises(InputError, match="1 users have withdrawn their consent"):
            ensure_consent_not_withdrawn(settings, planned.run_id, planned.settings)
        assert gone in project.lake.read(Table.SYNTHETIC_TARGET_EVENTS)["user_id"].unique().to_pylist()
        again = scalr("run")
        assert again["run_id"] != first["run_id"]
        assert again["stages"]["generate"]["without_consent"] == len(users[::3]) + 1
        assert project.translator().version == 2
        assert gone not in project.lake.read(Table.SYNTHETIC_TARGET_EVENTS)["user_id"].unique().to_pylist()

    # While consent is not required, a user joins whom nobody asks. Runs and training leave them out; users of the target domain alone stay.
    asking = config.read_text()
    config.write_text(asking.replace('consent = "consent.csv"\n', "").replace('train_on = "consenting_users"\n', ""))
    for path, unasked in ((domains.source, ["unasked"]), (domains.target, ["unasked", "target_only"])):
        events = pd.read_parquet(path)
        some = events[events["user_id"] == events["user_id"].iloc[0]]
        pd.concat([events, *(some.assign(user_id=user) for user in unasked)]).to_parquet(path)
    scalr("ingest")
    scalr("histories")
    unasked_run = plan_run(load_settings(config).with_sections(generation={"seed": 7}))
    config.write_text(asking)
    with Project(load_settings(config)) as project:
        log = read_event_log(project.settings, data_end(project.lake))
        assert {"unasked", "target_only"} & set(log.users.to_pylist()) == {"target_only"}
        planned = plan_run(project.settings.with_sections(generation={"seed": 6}))
        assert count_users_without_consent(project.settings, planned) == len(users[::3]) + 2
        with pytest.raises(InputError, match="consent of the users of gadgets was not required when the run was planned"):
            ensure_consent_not_withdrawn(project.settings, unasked_run.run_id, unasked_run.settings)
