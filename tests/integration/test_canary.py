"""Runs that are published for a share of users first: on real Delta tables and a real ledger."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace

import pandas as pd
import pytest
from support.small_project import Handmade, events, hour
from support.warm import run
from typer.testing import CliRunner

from scalr_prod.apps.cli import app
from scalr_prod.errors import PublicationDisabled, PublicationError, SettingsError
from scalr_prod.generation.late_events import late_windows, replay_settings
from scalr_prod.ledger import Ledger
from scalr_prod.operations.erasure import erase_users
from scalr_prod.operations.holdout_experiment import analyze_experiment
from scalr_prod.publication import publish, rollback_run
from scalr_prod.publication.canary import widen_canaries, withdraw_canaries
from scalr_prod.publication.toggle import disable_publication, enable_publication, publication_state
from scalr_prod.schemas import Table

#: Fifteen canaries, two to three seconds each; what is published and rolled back for all users: test_publication.py.
pytestmark = pytest.mark.long

VIEW = Table.SYNTHETIC_TARGET_EVENTS
KEY = "a key for tests"
USERS = {f"u{k}" for k in range(20)}


def place(user: str) -> float:
    """Where a user stands between 0 and 1, worked out apart from the package."""
    salt = hashlib.sha256(f"scalr holdout:{KEY}".encode()).hexdigest()[:32]
    digest = hashlib.md5(f"{salt}:{user}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[8:], "little") / 2**64


def canary_users(share: float) -> set[str]:
    return {user for user in USERS if place(user) >= 1 - share}


def with_canary(share: float, holdout: float = 0.0, more: str = "") -> str:
    return f'[experiment]\ncanary = {share}\nholdout = {holdout}\nkey = "{KEY}"\n{more}'


@pytest.fixture
def project(tmp_path) -> Handmade:
    return Handmade(tmp_path, with_canary(0.4))


def rows(project: Handmade, run_id: str | None = None) -> pd.DataFrame:
    frame = project.view()
    frame = frame if run_id is None else frame[frame["run_id"] == run_id]
    return frame.sort_values("event_id", ignore_index=True)


def ids(project: Handmade, run_id: str) -> set[str]:
    return set(rows(project, run_id)["event_id"])


def wanted(project: Handmade, spec, users: set[str] | None = None) -> set[str]:
    frame = project.candidates(spec)
    return set(frame["event_id"] if users is None else frame[frame["user_id"].isin(users)]["event_id"])


def test_only_the_share_is_published_then_all_and_the_rows_are_those_of_a_run_without_canary(project, tmp_path):
    spec, chosen = project.accepted(), canary_users(0.4)
    assert 0 < len(chosen) < 20
    report = publish(project.settings, spec.run_id)
    assert (report.outcome, report.canary, report.rows) == ("published", 0.4, len(rows(project)))
    assert ids(project, spec.run_id) == wanted(project, spec, chosen)
    version = project.lake.version(VIEW)
    assert publish(project.settings, spec.run_id).outcome == "already_published"
    assert project.lake.version(VIEW) == version, "a repeated publication writes nothing"

    done = widen_canaries(project.settings)
    assert [one.outcome for one in done.runs] == ["widened"]
    assert done.canary == []
    assert project.lake.version(VIEW) == version + 1, "one commit"
    other = Handmade(tmp_path / "other")
    plain = other.accepted()
    assert plain.run_id == spec.run_id, "a canary is no part of a run"
    publish(other.settings, plain.run_id)
    pd.testing.assert_frame_equal(rows(project), rows(other), check_exact=True)
    assert publish(project.settings, spec.run_id).outcome == "already_published", "the settings do not narrow it again"
    assert widen_canaries(project.settings).runs == []


def test_others_keep_what_they_had_and_withdrawing_gives_the_rest_back(project):
    project.configure("")
    old, new = project.accepted(seed=1), project.accepted(seed=2)
    publish(project.settings, old.run_id)
    before = rows(project)
    chosen = canary_users(0.4)
    project.configure(with_canary(0.4))
    report = publish(project.settings, new.run_id)
    assert report.replaced == {old.run_id: len(wanted(project, old, chosen))}
    assert ids(project, new.run_id) == wanted(project, new, chosen)
    assert ids(project, old.run_id) == wanted(project, old, USERS - chosen)
    version = project.lake.version(VIEW)
    taken = withdraw_canaries(project.settings).runs
    assert [(one.outcome, dict(one.restored), list(one.replaced_by)) for one in taken] == [
        ("rolled_back", dict(report.replaced), [])
    ]
    assert project.lake.version(VIEW) == version + 1, "one commit"
    pd.testing.assert_frame_equal(rows(project), before, check_exact=True)
    assert withdraw_canaries(project.settings).runs == []
    # Published again, widened, and taken out: all of what it had replaced comes back.
    publish(project.settings, new.run_id)
    widen_canaries(project.settings)
    assert ids(project, new.run_id) == wanted(project, new)
    assert ids(project, old.run_id) == set()
    rollback_run(project.settings, new.run_id)
    pd.testing.assert_frame_equal(rows(project), before, check_exact=True)


def test_canaries_of_several_windows_and_one_over_another(project):
    """Daily runs, and a second run of one day: widening ends where publications without a canary would have ended."""
    days = [project.accepted(start=start, end=start + 20, seed=1) for start in (20, 40, 60)]
    again = project.accepted(start=30, end=50, seed=2)
    for spec in (*days, again):
        publish(project.settings, spec.run_id)
    share = rows(project)
    assert set(share["user_id"]) <= canary_users(0.4)
    status = {one["run_id"]: one["share"] for one in publication_state(project.settings).canary}
    assert status == dict.fromkeys((one.run_id for one in (*days, again)), 0.4)
    assert [one.run_id for one in widen_canaries(project.settings).runs] == [one.run_id for one in (*days, again)]
    plain = Handmade(project.folder / "plain")
    for number, spec in enumerate((*days, again)):
        same = plain.accepted(start=(20, 40, 60, 30)[number], end=(40, 60, 80, 50)[number], seed=2 if spec is again else 1)
        publish(plain.settings, same.run_id)
    pd.testing.assert_frame_equal(rows(project), rows(plain), check_exact=True)


def test_a_widened_run_leaves_later_runs_what_they_have_of_its_window(project):
    """A canary, two later runs over its second half of which one replaced the other, and one beside: as without a canary."""
    first = project.accepted(start=20, end=40, seed=1)
    publish(project.settings, first.run_id)
    project.configure("")
    replaced, later, beside = (
        project.accepted(start=start, end=end, seed=seed) for start, end, seed in ((30, 50, 2), (30, 50, 3), (50, 60, 4))
    )
    for spec in (replaced, later, beside):
        publish(project.settings, spec.run_id)
    done = widen_canaries(project.settings)
    assert [(one.run_id, one.outcome) for one in done.runs] == [(first.run_id, "widened"), (later.run_id, "published")]
    assert done.canary == []
    plain = Handmade(project.folder / "plain")
    for start, end, seed in ((20, 40, 1), (30, 50, 3), (50, 60, 4)):
        publish(plain.settings, plain.accepted(start=start, end=end, seed=seed).run_id)
    pd.testing.assert_frame_equal(rows(project), rows(plain), check_exact=True)
    assert {publish(project.settings, spec.run_id).outcome for spec in (later, beside)} == {"already_published"}
    assert widen_canaries(project.settings).runs == []


def test_a_widening_that_ended_before_later_runs_were_published_again_is_finished_by_the_next(project, monkeypatch):
    first = project.accepted(start=20, end=40, seed=1)
    publish(project.settings, first.run_id)
    project.configure("")
    later = project.accepted(start=30, end=50, seed=3)
    publish(project.settings, later.run_id)
    before = ids(project, later.run_id)
    with monkeypatch.context() as patch:
        patch.setattr("scalr_prod.publication.canary._publish_later_runs", lambda _: [])
        widen_canaries(project.settings)
    assert ids(project, later.run_id) < before
    assert [one.outcome for one in widen_canaries(project.settings, [first.run_id]).runs] == ["published"], "repeated as it was"
    assert ids(project, later.run_id) == before


def test_a_canary_that_a_later_one_replaced_is_not_widened(project):
    first, second = project.accepted(seed=1), project.accepted(seed=2)
    for spec in (first, second):
        publish(project.settings, spec.run_id)
    assert [one["run_id"] for one in publication_state(project.settings).canary] == [second.run_id]
    widen_canaries(project.settings)
    assert project.held() == {second.run_id: 200}
    assert rollback_run(project.settings, second.run_id).restored == {
        first.run_id: len(wanted(project, first, canary_users(0.4)))
    }


def test_a_larger_share_keeps_those_who_are_in_and_a_smaller_one_is_refused(project):
    spec = project.accepted()
    publish(project.settings, spec.run_id)
    project.configure(with_canary(0.7))
    assert publish(project.settings, spec.run_id).outcome == "widened"
    assert ids(project, spec.run_id) == wanted(project, spec, canary_users(0.7)) > wanted(project, spec, canary_users(0.4))
    with pytest.raises(PublicationError, match="fewer"):
        widen_canaries(project.settings, share=0.2)
    project.configure(with_canary(0.2))
    assert publish(project.settings, spec.run_id).outcome == "already_published"
    assert widen_canaries(project.settings, [spec.run_id], share=0.9).runs[0].canary == 0.9
    project.configure("")
    assert publish(project.settings, spec.run_id).outcome == "widened", "without a canary, a run is published for everybody"
    assert widen_canaries(project.settings, [spec.run_id]).runs == [], "it is what was asked for"
    with pytest.raises(PublicationError, match="not published for a share"):
        withdraw_canaries(project.settings, [spec.run_id])


def test_another_key_does_not_mix_two_choices_of_users_in_one_run(project):
    spec = project.accepted()
    publish(project.settings, spec.run_id)
    project.configure(with_canary(0.4).replace(KEY, "another key"))
    with pytest.raises(PublicationError, match="another key"):
        publish(project.settings, spec.run_id)
    # A run of another window, and one over it, take what is theirs, and give it back.
    over = project.accepted(seed=3)
    before = rows(project)
    publish(project.settings, over.run_id)
    rollback_run(project.settings, over.run_id)
    pd.testing.assert_frame_equal(rows(project), before, check_exact=True)
    publish(project.settings, over.run_id)
    widen_canaries(project.settings)
    assert project.held() == {over.run_id: 200}
    rollback_run(project.settings, over.run_id)
    assert project.held() == {spec.run_id: 200}, "it had been widened before"


def test_nobody_is_held_out_and_in_the_canary_and_a_side_is_told_of_each(project, tmp_path):
    settings = project.configure(with_canary(0.4, 0.3))
    report = analyze_experiment(settings, out=tmp_path / "sides.csv")
    sides = pd.read_csv(tmp_path / "sides.csv").set_index("user_id")["side"]
    assert set(sides[sides == "canary"].index) == canary_users(0.4)
    assert set(sides[sides == "held_out"].index) == {user for user in USERS if place(user) < 0.3}
    assert (report.users_canary, report.users_treated) == (len(canary_users(0.4)), 20 - report.users_held_out)
    with pytest.raises(SettingsError, match="more than all users"):
        project.configure(with_canary(0.8, 0.3))


def test_the_effect_of_a_canary_is_measured_against_those_who_wait(project, tmp_path):
    lines = ["user_id,value"]
    for number in range(4000):
        user = f"v{number}"
        gained = 1.0 if place(user) >= 0.6 else 0.0
        lines.append(f"{user},{gained + (number * 7919 % 1000) / 1000}")
    (tmp_path / "outcomes.csv").write_text("\n".join(lines))
    settings = project.configure(with_canary(0.4, 0.1))
    report = analyze_experiment(settings, outcomes=str(tmp_path / "outcomes.csv"))
    assert report.canary_effect.low < 1.0 < report.canary_effect.high
    assert report.canary_effect.srm_p > 0.001
    assert report.effect.low < 0.4 / 0.9 < report.effect.high
    only = analyze_experiment(project.configure(with_canary(0.4)), outcomes=str(tmp_path / "outcomes.csv"))
    assert only.effect is None
    assert only.canary_effect.low < 1.0 < only.canary_effect.high
    small = analyze_experiment(project.configure(with_canary(0.002, 0.1)), outcomes=str(tmp_path / "outcomes.csv"))
    assert small.canary_effect is None, "eight users"
    assert small.effect.users_held_out == report.effect.users_held_out


def test_off_and_on_and_what_is_refused_while_it_is_off(project):
    spec = project.accepted()
    publish(project.settings, spec.run_id)
    before = rows(project)
    disable_publication(project.settings)
    for work in (widen_canaries, withdraw_canaries):
        with pytest.raises(PublicationDisabled):
            work(project.settings)
    assert enable_publication(project.settings).canary[0]["run_id"] == spec.run_id
    pd.testing.assert_frame_equal(rows(project), before, check_exact=True)


def test_a_window_with_late_events_is_published_again_for_whom_it_was(project):
    first, other = project.accepted(), project.accepted(start=100, end=150)
    publish(project.settings, first.run_id)
    project.configure("[generation]\nlookback = 365\n")
    publish(project.settings, other.run_id)
    rows_late = [("u1", "s1", 70, 70), ("u1", "s1", 120, 120)]
    project.lake.append(Table.SOURCE_EVENTS, events(rows_late), key="late")
    now = f'[generation]\nlookback = 365\nshortlist = 50\n[experiment]\ncanary = 0.9\nkey = "{KEY}"\n'
    settings = project.configure(now)
    found = late_windows(settings, hour(200), hour(300), hour(300)).windows
    assert [one.published_by for one in found] == [first.run_id, other.run_id]
    shares = [replay_settings(settings, one)[0].experiment.canary for one in found]
    assert shares == [0.4, 0.0]
    assert {replay_settings(settings, one)[0].generation.shortlist for one in found} == {None}, "their runs scored all"
    ratios = {replay_settings(settings, one)[0].generation.max_synthetic_ratio for one in found}
    assert ratios == {0}, "the volume and the temperature of their runs are limited already"
    widen_canaries(settings)
    assert [one.published_by for one in late_windows(settings, hour(200), hour(300), hour(300)).windows] == [
        first.run_id,
        other.run_id,
    ], "each once, though one has two publications"


def test_the_command_line_and_the_status_say_it(project):
    spec = project.accepted()
    publish(project.settings, spec.run_id)
    config, runner = ["--config", str(project.config), "--json"], CliRunner()
    status = json.loads(runner.invoke(app, ["status", *config]).stdout)["publication"]["canary"]
    assert [(one["run_id"], one["share"]) for one in status] == [(spec.run_id, 0.4)]
    shown = json.loads(runner.invoke(app, ["runs", "show", spec.run_id, *config]).stdout)
    assert shown["publications"][0]["canary"]["share"] == 0.4
    assert (
        json.loads(runner.invoke(app, ["publication", "widen", "--share", "0.6", *config]).stdout)["canary"][0]["share"] == 0.6
    )
    out = json.loads(runner.invoke(app, ["publication", "withdraw", *config]).stdout)
    assert (out["runs"][0]["outcome"], out["canary"]) == ("rolled_back", [])
    assert rows(project).empty
    refused = runner.invoke(app, ["publication", "widen", spec.run_id, *config])
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["error"] == "PublicationError"


KILLED = """
import os, sys
from scalr_prod.config.settings import load_settings
from scalr_prod.lake import Lake
from scalr_prod.ledger.publications import PublicationRepository
from scalr_prod.publication import accepted_rows, canary, commit

work, point, config, run_id = sys.argv[1:]

def die(*_args, **_options):
    os._exit(77)

def half(*given):
    import pyarrow as pa
    def batches():
        yield from read(*given)
        die()
    return batches()

read = commit.stream_accepted_rows
if point == "before the commit":
    Lake.replace_window = Lake.replace_window_with_files = Lake.replace_where = Lake.delete = die
elif point == "within the commit":
    commit.stream_accepted_rows = accepted_rows.stream_accepted_rows = half
elif point == "before the confirmation":
    PublicationRepository.confirm = PublicationRepository.record_rollback = die
settings = load_settings(config)
commit.publish(settings, run_id) if work == "publish" else getattr(canary, work)(settings)
"""


def killed(project: Handmade, work: str, point: str, run_id: str) -> None:
    done = run([sys.executable, "-c", KILLED, work, point, project.config, run_id])
    assert done.returncode == 77, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before the commit", "within the commit", "before the confirmation"])
def test_killed_at_any_point_each_step_is_done_once(project, point):
    project.configure("")
    old = project.accepted(seed=1)
    publish(project.settings, old.run_id)
    before = rows(project)
    new, chosen = project.accepted(seed=2), canary_users(0.4)
    project.configure(with_canary(0.4))
    steps = [
        ("publish", wanted(project, new, chosen), wanted(project, old, USERS - chosen)),
        ("widen_canaries", wanted(project, new), set()),
    ]
    for work, of_new, of_old in steps:
        stood = ids(project, new.run_id), ids(project, old.run_id)
        version = project.lake.version(VIEW)
        killed(project, work, point, new.run_id)
        landed = point == "before the confirmation"
        assert (ids(project, new.run_id), ids(project, old.run_id)) == ((of_new, of_old) if landed else stood), "all or nothing"
        publish(project.settings, new.run_id) if work == "publish" else widen_canaries(project.settings)
        assert (ids(project, new.run_id), ids(project, old.run_id)) == (of_new, of_old)
        assert project.lake.version(VIEW) == version + 1, "committed once"
    rollback_run(project.settings, new.run_id)
    pd.testing.assert_frame_equal(rows(project), before, check_exact=True)

    publish(project.settings, new.run_id)
    version = project.lake.version(VIEW)
    if point != "within the commit":  # a rollback reads no accepted file
        killed(project, "withdraw_canaries", point, new.run_id)
    withdraw_canaries(project.settings)
    assert project.lake.version(VIEW) == version + 1
    pd.testing.assert_frame_equal(rows(project), before, check_exact=True)


@pytest.mark.slow
def test_a_widening_that_was_killed_can_be_taken_out_instead(project):
    spec = project.accepted()
    publish(project.settings, spec.run_id)
    killed(project, "widen_canaries", "before the commit", spec.run_id)
    assert rollback_run(project.settings, spec.run_id).outcome == "rolled_back"
    assert rows(project).empty
    with Ledger.open(project.settings) as ledger:
        assert ledger.publications.live() == []
    assert publish(project.settings, spec.run_id).rows == len(wanted(project, spec, canary_users(0.4)))


def test_who_is_forgotten_while_a_canary_stands_is_in_no_widening(project):
    """One of the share, whose rows are there, and one of those who wait, whose rows lie in the home."""
    spec, chosen = project.accepted(), canary_users(0.4)
    publish(project.settings, spec.run_id)
    gone = {min(chosen), min(USERS - chosen)}
    erase_users(project.settings, sorted(gone))
    assert ids(project, spec.run_id) == wanted(project, spec, chosen - gone)
    assert [one.outcome for one in widen_canaries(project.settings).runs] == ["widened"]
    assert ids(project, spec.run_id) == wanted(project, spec, USERS - gone)
    withdraw_canaries(project.settings)
    rollback_run(project.settings, spec.run_id)
    assert publish(project.settings, spec.run_id).canary == 0.4
    assert ids(project, spec.run_id) == wanted(project, spec, chosen - gone), "nor in what is published again"


def test_pieces_of_times_and_users_share_nothing_and_leave_nothing_out():
    """Against users and hours one by one."""
    import itertools

    from scalr_prod.publication.regions import ViewRegion
    from scalr_prod.workspace.user_assignment import Canary

    salts = [hashlib.sha256(name).hexdigest()[:32] for name in (b"a", b"b")]
    canaries = [Canary(share, salt) for share, salt in itertools.product((0.3, 0.6), salts)]
    users = [f"u{k}" for k in range(60)]
    import pyarrow as pa

    chosen = {one: set(pa.array(users).filter(one.membership_mask(pa.array(users))).to_pylist()) for one in canaries}

    def cells(piece: ViewRegion) -> set[tuple[int, str]]:
        there = {
            user
            for user in users
            if all(user in chosen[one] for one in piece.included_canaries)
            and not any(user in chosen[one] for one in piece.excluded_canaries)
        }
        return {(at, user) for at in range(30) for user in there if piece.start <= hour(at) < piece.end}

    some = [ViewRegion(hour(0), hour(20)), ViewRegion(hour(5), hour(10), included_canaries=frozenset(canaries[:1]))]
    some += [
        ViewRegion(hour(8), hour(25), included_canaries=frozenset({one}), excluded_canaries=frozenset({two}))
        for one, two in itertools.permutations(canaries, 2)
    ]
    for one, other in itertools.product(some, repeat=2):
        rest = [cells(piece) for piece in one.difference(other)]
        assert sum(map(len, rest)) == len(set().union(*rest)), "they share nothing"
        assert set().union(*rest) == cells(one) - cells(other)
        both = one.intersection(other)
        assert (cells(both) if both else set()) == cells(one) & cells(other)
    assert replace(some[0], end=hour(20)) == some[0]
