"""A year of small days through the default gate rules: 0 to 20 source events a day, causal, with faults planted on some.

Every honest day is published, so that the rules on distributions judge it together with the days before it.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.small_project import IDS, Handmade, hour

from scalr_prod.config import QualitySettings
from scalr_prod.ledger import RunSpec, RunWindow, TranslatorPin
from scalr_prod.quality.audit import open_audit
from scalr_prod.quality.pooling import pool_small_run
from scalr_prod.quality.rule_protocol import AuditedRun, FigureRule
from scalr_prod.quality.rules import RowRules, RunRules
from scalr_prod.quality.sample_size import min_users_for_distance
from scalr_prod.schemas import Table, generated_event_schema, table_schema

DAYS, USERS, ITEMS, DRAWS = 365, 2_000, 80, 3
#: Planted on this many days each; the last one is of no row, and a single day of it may be missed.
FAULTS = ("shuffled users", "doubled volume", "unknown items", "wrong items")
PLANTED = 20
#: Rules that need more users than a day has.
DISTRIBUTIONS = {"popularity_is_like_the_real_one", "item_shares_are_like_the_real_ones", "effective_items"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A year of source events, and real target events of other users with popular and rare items."""
    rng = np.random.default_rng(36)
    popularity = (1 / np.arange(1, ITEMS + 1)) / (1 / np.arange(1, ITEMS + 1)).sum()
    real = np.maximum(1, (3_000 * popularity).astype(int))
    target = [(f"other{n % 97}", f"t{item}", -1000 - n, -1000) for item in range(ITEMS) for n in range(real[item])]
    source = [
        (f"u{rng.integers(USERS)}", f"s{rng.integers(60)}", when, when)
        for day in range(DAYS)
        for when in 24 * day + np.sort(rng.uniform(0, 24, rng.integers(0, 21))).round(4)
    ]
    return Handmade(tmp_path_factory.mktemp("small"), source=source, target=target), popularity, rng


def make_spec(project: Handmade, day: int) -> RunSpec:
    tables = (Table.SOURCE_EVENTS, Table.TARGET_EVENTS)
    generation = {"events_per_source_event": DRAWS, "exclude_consumed": True, "align_buckets": 10}
    return RunSpec.create(
        mode="causal",
        window=RunWindow(hour(24 * day), hour(24 * day + 24), hour(24 * day + 24)),
        seed=0,
        translator=TranslatorPin(1, "0" * 64, hour(0)),
        table_versions={table.value: project.lake.version(table) for table in tables},
        settings={"generation": generation, "histories": {"length": 50}},
    )


def draw_day(spec: RunSpec, source: list, popularity: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """Distinct items for each user, by popularity and the user's taste; some source events get none."""
    rows = []
    for user, item, when, _ in source:
        taste = popularity * np.random.default_rng(int(user[1:])).gamma(0.5, size=ITEMS)
        if rng.random() < 0.3:
            continue
        drawn = rng.choice(ITEMS, DRAWS, replace=False, p=taste / taste.sum())
        rows += [(user, f"t{number}", hour(when), item) for number in drawn]
    columns = ["user_id", "item_id", "event_timestamp", "source_item_id"]
    frame = pd.DataFrame(rows, columns=columns).drop_duplicates(columns[:2], ignore_index=True)
    return frame.assign(
        event_id=[hashlib.md5(f"{spec.run_id}{n}".encode(), usedforsecurity=False).hexdigest() for n in range(len(frame))],
        probability=np.float32(0.2),
        weight=np.float32(0.5),
        source_domain="source",
        source_event_timestamp=frame["event_timestamp"],
        translator_version=spec.translator_version,
        run_id=spec.run_id,
        created_timestamp=spec.as_of,
    )


def misread(frame: pd.DataFrame) -> pd.DataFrame:
    """The rarest items in place of those drawn, as by a vocabulary that is off: no rule for rows finds it."""
    rare = frame.assign(item_id=[f"t{ITEMS - 1 - number % 20}" for number in range(len(frame))])
    return rare.drop_duplicates(["user_id", "item_id"], ignore_index=True)


def plant(fault: str, frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    if fault == "shuffled users":
        users = frame["user_id"].to_numpy()
        return frame.assign(user_id=np.roll(users, 1 + rng.integers(len(users) - 1)))
    if fault == "unknown items":
        return frame.assign(item_id=[f"t{ITEMS + number}" for number in range(len(frame))])
    if fault == "wrong items":
        return misread(frame)
    again = frame.assign(event_id=[f"{event[:-1]}{'0' if event[-1] != '0' else '1'}" for event in frame["event_id"]])
    return pd.concat([frame, again], ignore_index=True)


def rows_of(frame: pd.DataFrame, *, nullable: bool = False) -> pa.Table:
    """Published rows, or (``nullable``) candidates."""
    schema = table_schema(Table.SYNTHETIC_TARGET_EVENTS, **IDS)
    if nullable:
        schema = pa.schema([column.with_nullable(nullable=True) for column in generated_event_schema(**IDS)])
    return pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)


def publish_day(project: Handmade, spec: RunSpec, frame: pd.DataFrame) -> None:
    """Replace the day's rows in the view's table."""
    if frame.empty:
        return
    table, key = Table.SYNTHETIC_TARGET_EVENTS, f"{spec.run_id}-{len(frame)}-{frame['item_id'].tolist()[:3]}"
    project.lake.replace_window(
        table, rows_of(frame), start=spec.start, end=spec.end, key=key, expected_version=project.lake.version(table)
    )


def judge(project: Handmade, spec: RunSpec, frame: pd.DataFrame) -> tuple[set[str], set[str]]:
    """Return the rules that are broken, and those that are not judged."""
    path = project.folder / f"{spec.run_id}.parquet"
    pq.write_table(rows_of(frame, nullable=True), path)
    run = AuditedRun(
        spec, project.settings.quality, ("source",), exclude_consumed=True, events_per_source_event=DRAWS, translator=None
    )
    rules: list[FigureRule] = RunRules().rules(run)
    with open_audit(project.settings, spec, [path], row_rules := RowRules().rules(run), popularity_buckets=10) as audit:
        figures = audit.figures(run.quality.max_quarantine_share) | {"translator_facts_differing": 0}
        counts = audit.verdicts.fetch_row(
            f"SELECT {', '.join(f'count(*) FILTER (NOT {rule.name})' for rule in row_rules)} FROM judged"
        )
        pooled = pool_small_run(audit, spec, project.lake, rules, figures)
        rules, figures = pooled.rules, figures | pooled.figures
    path.unlink()
    broken = {rule.name for rule, count in zip(row_rules, counts, strict=True) if count}
    not_judged = {rule.name for rule in rules if not rule.is_judged(figures)}
    for rule in rules:
        low, high = -np.inf if rule.low is None else rule.low, np.inf if rule.high is None else rule.high
        if rule.name not in not_judged and not low <= figures[rule.figure] <= high:
            broken.add(rule.name)
    return broken, not_judged


def days_of(project: Handmade) -> dict[int, list]:
    """Source events by day; a day without any has no run."""
    by_day: dict[int, list] = {}
    for row in project.source:
        by_day.setdefault(int(row[2] // 24), []).append(row)
    return by_day


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_year_of_small_honest_days_is_never_refused_and_faults_are_told_as_a_table(world, capsys):
    project, popularity, rng = world
    by_day = days_of(project)
    refused: Counter[str] = Counter()
    fit = [day for day, rows in by_day.items() if len({row[0] for row in rows}) > 4]
    planted = dict(zip(rng.choice(fit, len(FAULTS) * PLANTED, replace=False), FAULTS * PLANTED, strict=True))
    judged_by: dict[str, Counter[str]] = {fault: Counter() for fault in FAULTS}
    judged: Counter[str] = Counter()
    for day, source in by_day.items():
        spec = make_spec(project, day)
        frame = draw_day(spec, source, popularity, rng)
        broken, not_judged = judge(project, spec, frame)
        assert not broken, (day, broken)
        assert {"source_coverage", "run_has_events"} <= not_judged
        judged.update(DISTRIBUTIONS - not_judged)
        if day in planted:
            broken, _ = judge(project, spec, plant(planted[day], frame, rng))
            refused[planted[day]] += bool(broken)
            judged_by[planted[day]].update(broken)
        publish_day(project, spec, frame)
    with capsys.disabled():
        sys.stdout.write(f"\n{'fault':<16}{'days':>6}{'refused':>9}{'missed':>8}  by\n")
        for fault in FAULTS:
            counts = f"{PLANTED:>6}{refused[fault]:>9}{PLANTED - refused[fault]:>8}"
            sys.stdout.write(f"{fault:<16}{counts}  {', '.join(judged_by[fault])}\n")
    assert {fault: refused[fault] for fault in FAULTS[:-1]} == dict.fromkeys(FAULTS[:-1], PLANTED)
    assert min(judged[rule] for rule in DISTRIBUTIONS) > DAYS / 2, "a day alone is never judged by these rules"


@pytest.mark.long
def test_wrong_items_on_small_days_are_found_once_the_days_together_have_enough_users(world, capsys):
    """A day of them is too small to be judged. They are published until the rule that needs the fewest users finds them."""
    project, popularity, rng = world
    by_day = days_of(project)
    frames = {day: draw_day(make_spec(project, day), source, popularity, rng) for day, source in by_day.items()}
    honest = rows_of(pd.concat([frame for frame in frames.values() if len(frame)], ignore_index=True))
    project.lake.replace(Table.SYNTHETIC_TARGET_EVENTS, honest, key="honest")
    needed = min_users_for_distance(10, QualitySettings().max_bucket_distance)
    taken = []
    for first in range(DAYS - 17 * PLANTED, DAYS, 17):
        seen: Counter[str] = Counter()
        for number, day in enumerate((day for day in by_day if day >= first), 1):
            spec, wrong = make_spec(project, day), misread(frames[day])
            seen.update(wrong["user_id"])
            broken, _ = judge(project, spec, wrong)
            if broken:
                assert broken == {"popularity_is_like_the_real_one"}
                taken.append(number)
                break
            assert not seen or seen.total() ** 2 / sum(count**2 for count in seen.values()) < needed, (first, day)
            publish_day(project, spec, wrong)
        project.lake.replace(Table.SYNTHETIC_TARGET_EVENTS, honest, key=f"honest-{first}")
    assert len(taken) == PLANTED
    with capsys.disabled():
        sys.stdout.write(
            f"\nwrong items from a day on: found {PLANTED} of {PLANTED} times, after {min(taken)} to {max(taken)} days\n"
        )
