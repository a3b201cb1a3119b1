"""Errors: complete, documented, picklable, with an exit code."""

from __future__ import annotations

import pickle

import pytest

from scalr_prod import errors

KINDS = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_crosses_process_borders_whole(kind):
    error = kind("found this", where="a.csv", next_step="do that").at(stage="ingest", run_id="run_1")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(again) is kind
    assert again.to_json() == error.to_json()
    assert str(again) == "a.csv, stage ingest, run run_1: found this\n  next: do that"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_stands_in_the_tree_and_has_an_exit_code(kind):
    assert issubclass(kind, errors.ScalrError)
    assert kind.__name__ in (errors.__doc__ or "")
    assert kind.exit_code == (3 if kind is errors.QualityGateFailed else 1)


def test_stage_and_run_are_set_once():
    error = errors.ScalrError("x").at(stage="first").at(stage="second", run_id="r")
    assert (error.stage, error.run_id) == ("first", "r")
