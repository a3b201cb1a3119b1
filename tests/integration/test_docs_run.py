"""The code blocks of each page, run as written, one after the other: commands by a shell, Python as one program, settings as the project's.

What a page names (`user-17`, `rows.parquet`, `/srv/scalr`) is there, or stands for what is. A block that cannot be run here says why in
a comment before it, ``<!-- not run: … -->``.

Output that a page shows is what comes out, where `…` stands for what changes from run to run (`support/shown.py`): the lines after a
command of a console block, or a ``text`` block, which is of the last command before it. Where it cannot be compared here,
``<!-- not compared: … -->`` says why. A block that names no language is a drawing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from support.shell import shell
from support.shown import Block, blocks_of, difference, said
from support.small import LOCAL, lean
from support.warm import LIBRARIES, OF_AIRFLOW, Warm, run

from scalr_prod import Project
from scalr_prod.config.settings import load_settings
from scalr_prod.schemas import Table

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"))
}
#: Whole pages, or what they have beside commands, that other tests run.
ELSEWHERE = {
    "docs/tutorial.md": "tests/integration/test_docs.py",
    "docs/guides/training-sets.md": "tests/integration/test_docs.py",
    "docs/guides/airflow-partitions.md": "tests/integration/test_airflow_dags.py",
    "docs/guides/dagster.md": "tests/integration/test_dagster.py",
    "docs/guides/plugins.md": "tests/unit/core/test_plugins.py",
    "docs/guides/evaluation.md": "tests/unit/evaluation/test_models.py",
}
#: Blocks that name no language, which nothing looks at.
DRAWINGS = {"README.md": 1, "docs/explanation/architecture.md": 1, "docs/reference/errors.md": 1}
#: Why a block is not run, or not compared.
NEEDED = {
    "a clone of the repository, and minutes",
    "a cluster",
    "a group of the machine",
    "a library that only tests/integration/test_weights.py installs",
    "a database server",
    "a package index",
    "a server that runs until it is stopped",
    "a terminal",
    "an evaluation, which takes minutes",
    "an object store",
    "logs of several domains",
    "these run the tests",
}
#: As tests/support/small.py has it, for projects that a page makes itself.
SMALL = {
    "SCALR_SERVING__SCORER": "local",
    "SCALR_TRANSLATOR__ESTIMATORS": '["popularity", "frequency", "linear"]',
    "SCALR_TRANSLATOR__FOLDS": "2",
    "SCALR_TRANSLATOR__DIM": "16",
    "SCALR_QUALITY__MAX_BUCKET_DISTANCE": "1.0",
    "SCALR_QUALITY__MIN_INFORMATION": "0",
    "OMP_NUM_THREADS": "1",
}


BLOCKS = {page: blocks_of(path.read_text(encoding="utf-8")) for page, path in PAGES.items() if "docs/adr/" not in page}
RUN = [
    page
    for page, blocks in BLOCKS.items()
    if page not in ELSEWHERE and {block.language for block in blocks if block.without != "run"} - {"text", "json"}
]
LEFT_OUT = [
    pytest.param(page, block, id=f"{page}: {block.text.splitlines()[0]}")
    for page, blocks in BLOCKS.items()
    for block in blocks
    if block.without
]


@pytest.mark.parametrize(("page", "block"), LEFT_OUT)
def test_what_is_not_run_or_compared_says_why(page, block):
    """Each is in the list of what was skipped, with its reason; the reason may be the test that compares it."""
    if block.without == "compared" and block.reason.endswith(".py"):
        assert Path(page).name in ROOT.joinpath(block.reason).read_text(encoding="utf-8"), (
            f"{block.reason} does not read {page}"
        )
        return
    assert block.reason in NEEDED
    pytest.skip(f"not {block.without}: {block.reason}")


@pytest.mark.parametrize("page", BLOCKS)
def test_output_is_shown_after_the_command_that_prints_it(page):
    """So that it is compared with it, or says that it is not."""
    before = None
    for block in BLOCKS[page]:
        if block.language == "text" and not block.without:
            assert before is not None, f"no command before:\n{block.text}"
            assert before.without != "run", f"nothing is run that prints:\n{block.text}"
        elif block.language in {"console", "sh"}:
            before = block
            shown = block.language == "console" and any(one.shown for one in said(block.text))
            assert not (block.without == "run" and shown), "output of what is not run is a block of its own, not compared"


@pytest.mark.parametrize("page", BLOCKS)
def test_output_is_in_no_block_that_nothing_looks_at(page):
    fences = re.findall(r"^```", PAGES[page].read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(fences) / 2 - len(BLOCKS[page]) == DRAWINGS.get(page, 0)


def test_no_block_is_left_out_by_mistake():
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES.values())
    assert len(re.findall(r"^<!-- not (?:run|compared):", text, flags=re.MULTILINE)) == len(LEFT_OUT), (
        "a comment before no block"
    )
    for page, path in ELSEWHERE.items():
        assert Path(page).name in ROOT.joinpath(path).read_text(encoding="utf-8"), f"{path} does not read {page}"


@pytest.fixture(scope="module")
def home(make_project, tmp_path_factory, at_hand):
    """A folder with a project that has run, to be brought back before each page; and a copy of it."""
    folder = tmp_path_factory.mktemp("page") / "project"
    config = lean(make_project(folder, LOCAL, users=80).base / "scalr.toml")
    for name in ("s", "t", "ti"):
        rows = pd.read_parquet(folder / f"{name}.parquet")
        ids = {"user_id": ("u", "user-"), "item_id": (name[0], "sku-" if name != "s" else "s")}
        for column, (short, long) in ids.items():
            if column in rows:
                rows[column] = rows[column].str.replace(f"^{short}", long, regex=True)
        rows.to_parquet(folder / f"{name}.parquet")
    with Project.open(config) as project:
        project.run()
    aside = folder.with_name("aside")
    shutil.copytree(folder, aside)
    return folder, aside


@pytest.fixture(scope="module")
def bash(home):
    with tempfile.TemporaryDirectory() as short:  # a socket's path is short
        process = Warm((*LIBRARIES, *OF_AIRFLOW), {**os.environ, **_airflows(home[0])})
        programs = {name: partial(_forked, run, [BIN / name]) for name in ("scalr", "feast")}
        programs["airflow"] = partial(_forked, process.run, [sys.executable, "-m", "airflow"])
        with shell(Path(short), programs) as made:
            yield made
        process.close()


def _forked(by, program, arguments, *, cwd, env):
    return by([*program, *arguments], cwd=cwd, env=env)


def _airflows(folder: Path) -> dict[str, str]:
    """What Airflow reads as soon as it is imported, so that its warm process has it, too."""
    return {
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "airflow_dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder / 'airflow' / 'airflow.db'}",
    }


class Page:
    """A page at work in a folder of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self.blocks, self.folder = BLOCKS[name], folder
        self.names: dict[str, str] = {}
        self.environment = dict(SMALL)
        {"README.md": readme, **OTHERS}.get(name, lambda _: None)(self)

    def text(self, block: Block) -> str:
        """With what the page's names stand for."""
        text = block.text
        for name, meant in self.names.items():
            text = text.replace(name, meant)
        return text

    def add(self, settings: str) -> None:
        """To the project's own."""
        config = self.folder / "scalr.toml"
        own = tomllib.loads(config.read_text()) if config.exists() else {}
        more = tomllib.loads(settings)
        if "sources" in more.get("domains", {}):  # several stand in place of one
            own["domains"].pop("source", None)
        _merge(own, more)
        config.write_text("\n".join(_lines("", own)))
        load_settings(config)

    def only_logs(self, **files: str) -> None:
        """The project's logs by other names, and nothing else."""
        logs = {name: pd.read_parquet(self.folder / f"{name}.parquet") for name in ("s", "t", "ti")}
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        for name, log in files.items():
            _write(logs[log], self.folder / name.replace("__", "."))


def _write(rows: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".parquet":
        path.parent.mkdir(exist_ok=True)
        rows.to_parquet(path)
    elif path.suffix in {".inter", ".item"}:
        seconds = {"timestamp": rows["timestamp"].astype("int64") // 10**6} if "timestamp" in rows else {}
        typed = rows.assign(**seconds).rename(
            columns=lambda name: f"{name}:{'float' if name in {'timestamp', 'value'} else 'token'}"
        )
        typed.to_csv(path, sep="\t", index=False)
    elif ".json" in path.name:
        rows.to_json(path, orient="records", lines=True, date_format="iso")
    else:
        rows.to_csv(path, index=False)


def readme(page: Page) -> None:
    page.only_logs(kitchen__csv="s", food__jsonl__gz="t", kitchen__parquet="s", food__parquet="t")
    page.names = {"food.jsonl.gz ": "food.jsonl.gz --yes "}  # there is no terminal to ask on


def airflow(page: Page) -> None:
    shutil.copytree(ROOT / "airflow_dags", page.folder / "airflow_dags")
    page.environment |= {**_airflows(page.folder), "SCALR_AIRFLOW_RETRIES": "0"}
    page.names = {"/srv/scalr": str(page.folder)}
    # What the scheduler does, which is not started here.
    page.names["airflow dags trigger scalr_translator"] = "airflow dags reserialize; airflow dags trigger scalr_translator"


def scheduled(page: Page) -> None:
    airflow(page)  # its database is made by the page on setting Airflow up
    trigger = "airflow dags trigger scalr_backfill"
    page.names[trigger] = f"airflow db migrate; airflow dags reserialize; {trigger}"


def corrected(page: Page) -> None:
    log = pd.read_parquet(page.folder / "s.parquet")
    wrong = (log["timestamp"] >= "2024-06-01") & (log.index % 7 == 0)
    assert wrong.sum() > 10
    log[~wrong].to_parquet(page.folder / "s.parquet")


def outcomes(page: Page) -> None:
    users = range(1000)  # a share of 0.05 of those in the logs is too few to compare
    revenue = pd.DataFrame(
        {"user_id": [f"user-{number}" for number in users], "value": users, "pre_value": [number % 7 for number in users]}
    )
    revenue.to_csv(page.folder / "revenue.csv", index=False)


def of_another_team(page: Page) -> None:
    theirs = page.folder.with_name("features")
    shutil.rmtree(theirs, ignore_errors=True)
    theirs.mkdir()
    (theirs / "feature_store.yaml").write_text(
        "project: theirs\nprovider: local\nregistry: registry.db\nonline_store: {type: sqlite, path: online.db}\n"
        "entity_key_serialization_version: 3\n"
    )


def audited(page: Page) -> None:
    (suite,) = (block.text for block in page.blocks if block.language == "yaml")
    (page.folder / "checks.yaml").write_text(suite)
    with Project.open(page.folder / "scalr.toml") as project:
        project.training_set().to_pandas().to_parquet(page.folder / "rows.parquet")
    page.names = {"training_set_v3": "training_set_v1"}


def contracted(page: Page) -> None:
    columns = [{"name": name} for name in ("customer", "item_id")] + [{"name": "ordered_at", "required": True, "unique": True}]
    theirs = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": "orders", "version": "1.0.0", "status": "active"}
    theirs |= {"domain": "orders", "schema": [{"name": "orders", "properties": columns}]}
    (page.folder / "orders.yaml").write_text(json.dumps(theirs))
    (page.folder / "checks.yaml").write_text(
        "expectations: [{type: expect_table_row_count_to_be_between, kwargs: {min_value: 1}}]"
    )


def reported(page: Page) -> None:
    with Project.open(page.folder / "scalr.toml") as project:
        (made,) = project.runs()
        events = project.lake.read(Table.SYNTHETIC_TARGET_EVENTS)
    page.names = {"run_731827e0691e8570": made.run_id, "0a1f…": events["event_id"][0].as_py()}


def foreign(page: Page) -> None:
    page.only_logs(ratings__csv="s", orders__jsonl__gz="t", food__inter="t", food__item="ti", **{"events/1__parquet": "s"})
    page.names = {"$ scalr init": "$ rm -f scalr.toml; scalr init"}  # each line is one of several ways


OTHERS = {
    "docs/guides/airflow.md": airflow,
    "docs/guides/airflow-windows.md": scheduled,
    "docs/guides/contracts.md": contracted,
    "docs/guides/correct.md": corrected,
    "docs/guides/experiment.md": outcomes,
    "docs/guides/feast-export.md": of_another_team,
    "docs/guides/gate.md": reported,
    "docs/guides/quality.md": audited,
    "docs/guides/report.md": reported,
    "docs/guides/your-data.md": foreign,
}


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", RUN)
def test_its_blocks_run(name, home, bash, here):
    folder, aside = home
    shutil.rmtree(folder)
    shutil.copytree(aside, folder)
    page = Page(name, folder)
    program, printed = "", ("", "")
    for block in page.blocks:
        if block.without:
            continue
        text = page.text(block)
        if block.language == "toml":
            page.add(text)
        elif block.language == "python":
            program += text
        elif block.language == "text":
            if found := difference(text, *printed):
                pytest.fail(found)
        elif block.language in {"console", "sh"}:
            for command, shown in said(text) if block.language == "console" else [(text, "")]:
                done = bash(command, cwd=folder, env=page.environment)
                printed = done.stdout, done.stderr
                assert done.returncode == 0, f"{command}\n{''.join(printed)[-3000:]}"
                if shown and (found := difference(shown, *printed)):
                    pytest.fail(found)
    if program:
        done = run([sys.executable, "-c", program], cwd=folder, env={**os.environ, **page.environment})
        assert done.returncode == 0, f"{program}\n{(done.stdout + done.stderr)[-3000:]}"


def _merge(own: dict, more: dict) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(own.get(key), dict):
            _merge(own[key], value)
        else:
            own[key] = value


def _lines(name: str, table: dict) -> list[str]:
    """A table as TOML."""
    own = [f"{json.dumps(key)} = {_value(value)}" for key, value in table.items() if not isinstance(value, dict)]
    below = [
        line for key, value in table.items() if isinstance(value, dict) for line in _lines(f"{name}.{key}".strip("."), value)
    ]
    return [*([f"[{name}]"] if name else []), *own, *below]


def _value(value: object) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else json.dumps(value, ensure_ascii=False)
