"""A small evaluator of Prometheus alert rules: the part of PromQL that deploy/prometheus/alerts.yml uses.

`Evaluator.firing` agrees with ``promtool test rules`` except that ``increase`` does not extrapolate.
"""

from __future__ import annotations

import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Evaluator", "Scrape", "parse_textfile"]

Labels = frozenset[tuple[str, str]]
#: Samples of one scrape by metric name and labels.
Scrape = Mapping[tuple[str, Labels], float]
Vector = dict[Labels, float]

LOOKBACK_S = 300
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
TOKEN = re.compile(r'\s*(?:("[^"]*")|([0-9.]+[smhd]\b)|([0-9.]+)|([A-Za-z_][\w]*)|(==|[-+*/<>(){}\[\],=]))')
COMPARISONS: dict[str, Callable[[float, float], bool]] = {">": operator.gt, "<": operator.lt, "==": operator.eq}
ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
#: Operators by rising precedence.
LEVELS = (("or",), ("unless",), tuple(COMPARISONS), ("+", "-"), ("*", "/"))
AGGREGATIONS: dict[str, Callable[[list[float]], float]] = {"sum": sum, "max": max, "min": min}
OVER_TIME: dict[str, Callable[[list[float]], float]] = {
    "min_over_time": min,
    "max_over_time": max,
    "avg_over_time": lambda values: sum(values) / len(values),
    "increase": lambda values: sum(max(after - before, 0) for before, after in pairwise(values)),
}


def parse_textfile(text: str) -> Scrape:
    """Return the samples of a file in Prometheus's text format."""
    families = text_string_to_metric_families(text)
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}


def duration(text: str) -> float:
    """Return a duration such as ``30m`` in seconds."""
    return float(text[:-1]) * UNITS[text[-1]]


class Evaluator:
    """Alert rules over a timeline of scrapes.

    Args:
        scrapes: Time and samples of each scrape, in order; a scrape that failed has no samples.
        step_s: Seconds between two evaluations of the rules.
    """

    def __init__(self, scrapes: Sequence[tuple[float, Scrape]], *, step_s: float = 60) -> None:
        self.scrapes, self.step_s = scrapes, step_s

    def firing(self, rule: Mapping[str, Any], at: float) -> list[dict[str, str]]:
        """Return the labels of the rule's alerts that fire at a time: its expression held for all of ``for``."""
        held, wait = set(self.evaluate(rule["expr"], at)), duration(rule.get("for", "0s"))
        for number in range(1, int(wait / self.step_s) + 1):
            held &= set(self.evaluate(rule["expr"], at - number * self.step_s))
        return [dict(labels) for labels in held]

    def evaluate(self, expression: str, at: float) -> Vector:
        """Return an expression's value at a time."""
        self._at, self._tokens = at, [next(filter(None, groups)) for groups in TOKEN.findall(expression)]
        assert "".join(self._tokens) == re.sub(r"\s", "", expression), f"not understood: {expression}"
        value = self._binary(0)
        assert not self._tokens, f"not understood: {self._tokens}"
        assert isinstance(value, dict)
        return value

    def _binary(self, level: int) -> Any:
        if level == len(LEVELS):
            return self._operand()
        left = self._binary(level + 1)
        while self._tokens and self._tokens[0] in LEVELS[level]:
            name = self._tokens.pop(0)
            on = self._names() if self._accept("on") else None
            left = combine(name, left, self._binary(level + 1), on)
        return left

    def _operand(self) -> Any:
        word = self._tokens.pop(0)
        if word == "(":
            return self._closed(self._binary(0))
        if word[0].isdigit():
            return float(word)
        if word in AGGREGATIONS:
            self._expect("by")
            names = self._names()
            self._expect("(")
            return aggregate(AGGREGATIONS[word], names, self._closed(self._binary(0)))
        return self._closed(self._call(word)) if self._accept("(") else self._selector(word)

    def _call(self, function: str) -> Any:
        if function == "time":
            return self._at
        if function in OVER_TIME:
            return {labels: OVER_TIME[function](values) for labels, values in self._range(self._tokens.pop(0)).items()}
        if function == "absent":
            return {} if self._binary(0) else {frozenset(): 1.0}
        assert function == "histogram_quantile", f"not understood: {function}"
        quantile = self._binary(0)
        self._expect(",")
        return histogram_quantile(quantile, self._binary(0))

    def _selector(self, name: str) -> Vector:
        wanted = self._matchers()
        at, scrape = max(
            ((at, scrape) for at, scrape in self.scrapes if at <= self._at), key=lambda one: one[0], default=(0, {})
        )
        return matching(scrape, name, wanted) if self._at - at < LOOKBACK_S else {}

    def _range(self, name: str) -> dict[Labels, list[float]]:
        wanted = self._matchers()
        self._expect("[")
        since = self._at - duration(self._tokens.pop(0))
        self._expect("]")
        series: dict[Labels, list[float]] = defaultdict(list)
        for at, scrape in self.scrapes:
            if since <= at <= self._at:
                for labels, value in matching(scrape, name, wanted).items():
                    series[labels].append(value)
        return series

    def _matchers(self) -> Labels:
        found = []
        if self._accept("{"):
            while not self._accept("}"):
                name = self._tokens.pop(0)
                self._expect("=")
                found.append((name, self._tokens.pop(0).strip('"')))
                self._accept(",")
        return frozenset(found)

    def _names(self) -> set[str]:
        self._expect("(")
        names = set()
        while not self._accept(")"):
            names.add(self._tokens.pop(0))
            self._accept(",")
        return names

    def _closed(self, value: Any) -> Any:
        self._expect(")")
        return value

    def _accept(self, token: str) -> bool:
        found = bool(self._tokens) and self._tokens[0] == token
        if found:
            self._tokens.pop(0)
        return found

    def _expect(self, token: str) -> None:
        assert self._accept(token), f"{token} expected before {self._tokens}"


def matching(scrape: Scrape, name: str, wanted: Labels) -> Vector:
    return {labels: value for (found, labels), value in scrape.items() if found == name and wanted <= labels}


def only(labels: Iterable[tuple[str, str]], names: set[str] | None) -> Labels:
    return frozenset(pair for pair in labels if names is None or pair[0] in names)


def aggregate(function: Callable[[list[float]], float], names: set[str], vector: Vector) -> Vector:
    groups: dict[Labels, list[float]] = defaultdict(list)
    for labels, value in vector.items():
        groups[only(labels, names)].append(value)
    return {labels: function(values) for labels, values in groups.items()}


def combine(name: str, left: Any, right: Any, on: set[str] | None) -> Any:
    if name in {"or", "unless"}:
        others = {only(labels, on) for labels in (right if name == "unless" else left)}
        if name == "unless":
            return {labels: value for labels, value in left.items() if only(labels, on) not in others}
        return left | {labels: value for labels, value in right.items() if only(labels, on) not in others}
    pairs: Vector | dict[Labels, tuple[float, float]]
    if not isinstance(left, dict) and not isinstance(right, dict):
        return ARITHMETIC[name](left, right)
    if not isinstance(right, dict):
        pairs = {labels: (value, right) for labels, value in left.items()}
    elif not isinstance(left, dict):
        pairs = {labels: (left, value) for labels, value in right.items()}
    else:
        by_key = {only(labels, on): value for labels, value in right.items()}
        pairs = {
            only(labels, on): (value, by_key[only(labels, on)]) for labels, value in left.items() if only(labels, on) in by_key
        }
    if name in COMPARISONS:
        return {labels: before for labels, (before, after) in pairs.items() if COMPARISONS[name](before, after)}
    return {labels: ARITHMETIC[name](before, after) for labels, (before, after) in pairs.items()}


def histogram_quantile(quantile: float, vector: Vector) -> Vector:
    """Return the upper bound of the quantile's bucket, without interpolation."""
    groups: dict[Labels, list[tuple[float, float]]] = defaultdict(list)
    for labels, count in vector.items():
        groups[frozenset(pair for pair in labels if pair[0] != "le")].append((float(dict(labels)["le"]), count))
    return {
        labels: min(bound for bound, count in buckets if count >= quantile * max(count for _, count in buckets))
        for labels, buckets in groups.items()
    }
