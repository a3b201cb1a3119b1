"""A small log with known tastes, made without the lake or Feast: what the translator's unit tests learn from."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from scalr_prod.config.sections import TranslatorSettings
from scalr_prod.translator.calibration import CALIBRATION_TABLES, uncalibrated_tables
from scalr_prod.translator.calibration_table import BUILTIN_LAYOUT
from scalr_prod.translator.data.domain_events import DomainEvents
from scalr_prod.translator.data.event_log import EventLog
from scalr_prod.translator.data.training_pairs import TrainingSlice
from scalr_prod.translator.estimators import BUILTIN_ESTIMATORS

DAY = 86_400_000_000
LENGTH = 10
METADATA = {
    "folds": "2",
    "history_length": str(LENGTH),
    "estimators": json.dumps(["popularity", *BUILTIN_ESTIMATORS]),
    "weights": json.dumps(BUILTIN_LAYOUT.weights),
}
SETTINGS = TranslatorSettings(dim=8, epochs=2, folds=2, threads=1, batch_size=64)


def make_log(*, users: int = 120, tastes: int = 4, source_items: int = 40, target_items: int = 24, seed: int = 3) -> EventLog:
    """Users with a taste; each has 12 source and 5 target events over 100 days, some at the same instant."""
    rng = np.random.default_rng(seed)
    taste = rng.integers(0, tastes, users)

    def events(each: int, items: int) -> DomainEvents:
        user = np.repeat(np.arange(users), each)
        own = np.where(rng.random(len(user)) < 0.85, taste[user], rng.integers(0, tastes, len(user)))
        item = rng.integers(0, items // tastes, len(user)) * tastes + own
        time = rng.integers(0, 100, len(user)) * DAY
        order = np.lexsort((item, time, user))
        return DomainEvents(user[order].astype(np.int32), item[order].astype(np.int32), time[order], pa.array(range(items)))

    source, target = events(12, source_items), events(5, target_items)
    history = np.full((len(target), LENGTH), -1, dtype=np.int32)
    for row, (user, time) in enumerate(zip(target.user, target.time, strict=True)):
        before = np.flatnonzero((source.user == user) & (source.time < time))[-LENGTH:]
        history[row, LENGTH - len(before) :] = before
    return EventLog(pa.array(range(users)), (np.arange(users) % 2).astype(np.int32), source, target, history)


def with_weights(pairs: TrainingSlice) -> TrainingSlice:
    """The same slice, its target events counting from .1 to 1."""
    weight = np.linspace(0.1, 1, len(pairs.log.target), dtype=np.float32)
    return replace(pairs, log=replace(pairs.log, target=replace(pairs.log.target, weight=weight)))


def calibration() -> dict[str, torch.Tensor]:
    """A calibration of `calibration_table`, with tastes as they are told."""
    return uncalibrated_tables() | dict.fromkeys(CALIBRATION_TABLES, calibration_table())


def calibration_table() -> torch.Tensor:
    """Every estimator in the mixture, at weights of about the size that calibration gives."""
    names = BUILTIN_LAYOUT.weights
    table = torch.zeros(len(BUILTIN_LAYOUT.components), len(names))
    table[:, names.index("count")] = 0.6
    for name, weight in (("days_20", 0.3), ("days_90_from_4", -0.7), ("days_20_from_1", 0.9)):
        table[:2, names.index(name)] = weight
    for name, weight in (("frequency", 0.5), ("topics", 0.4), ("linear", 2.0), ("factorisation", 1.0), ("sequential", 0.3)):
        table[0, names.index(name)] = table[BUILTIN_LAYOUT.components.index(name), names.index(name)] = weight
    for name, weight in (("days_20_by_taste_count", 0.2), ("count_by_taste_days_3", -0.3), ("days_90_from_4_by_recent", 0.4)):
        table[0, names.index(name)] = weight
    return table
