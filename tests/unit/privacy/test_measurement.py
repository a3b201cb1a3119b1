"""Tables of a report: newcomers beside the others, risks in words, and files of earlier versions."""

from __future__ import annotations

import json

import numpy as np

from scalr_prod.privacy import PrivacyReport, describe_privacy
from scalr_prod.privacy.attack_statistics import bootstrap_mean, measure_attack, measure_risk
from scalr_prod.privacy.source_inference import SourceInference

YES, NO = np.ones(200, bool), np.zeros(200, bool)
SOME, ALL = bootstrap_mean(np.array([0.0, 1.0] * 50)), bootstrap_mean(np.ones(100))


def report() -> PrivacyReport:
    return PrivacyReport(
        "run",
        "backfill",
        {"newcomers_control": measure_attack(np.arange(300.0), np.arange(300.0))},
        SourceInference(300, 100, SOME, ALL, ALL),
        SourceInference(100, 100, None, SOME, ALL),
        {"linkability": measure_risk(YES, NO, NO), "inference": measure_risk(NO, NO, YES)},
        {"2": 0.25},
    )


def test_newcomers_are_apart_and_risks_in_words():
    tables = describe_privacy(report().to_json())
    assert [(row["guessed from"], row["users"]) for row in tables["source_inference"]] == [
        ("the user's real target events (control)", 300),
        ("published rows", 300),
        ("published rows and their source items", 300),
        ("newcomers: published rows", 100),
        ("newcomers: published rows and their source items", 100),
    ]
    assert [row["attack"] for row in tables["membership"]] == [
        "control: most similar rows of a newcomer, by two sets trained on the user"
    ]
    linked, inferred = tables["risks"]
    assert linked["attack"].startswith("linkability")
    assert linked["right by the control"] == "0.94%"  # the centre of Wilson's interval of 0 in 200
    assert "chance" not in linked["risk"]
    assert inferred["risk"].endswith("no better than chance")


def test_a_report_of_an_earlier_version_is_read():
    stored = json.loads(json.dumps(report().to_json()))
    for name in ("risks", "newcomers_source_inference"):
        del stored[name]
    tables = describe_privacy(stored)
    assert len(tables["source_inference"]) == 3
    assert tables["risks"] == []
    assert report().to_summary()["is a user singled out, linked or inferred?"]
