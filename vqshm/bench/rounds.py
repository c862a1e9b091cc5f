"""Rounds: all who are compared take turns, in another order each round; then medians, and ratios within a round.

The machine's mood changes from minute to minute (see the probe), and with it every figure. Figures of one round are
of one mood, so their ratio means something; the median over the rounds is what counts.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf, isinf
from typing import Any, Final

from vqshm.bench.measures import MEASURES, Case, Facts, Settings

GIVE_UP: Final = 2  # failures of one case, after which it is not tried again
DISTURBED: Final = 0.12  # of one processor that strangers used, from which on a sample is marked


@dataclass
class Sample:
    """One sample: figures, or why there are none."""

    case: Case
    round: int
    facts: Facts = field(default_factory=dict)
    error: str = ""

    @property
    def value(self) -> float:
        """The figure."""
        return float(self.facts["value"])

    def plain(self) -> Facts:
        """For JSON."""
        case = self.case
        return {
            "measure": case.measure,
            "group": case.group,
            "peer": case.name,
            "mode": case.mode,
            "size": case.size,
            "round": self.round,
            "ok": not self.error,
            **({"error": self.error} if self.error else {}),
            **self.facts,
        }


def plan(names: Iterable[str], settings: Settings) -> list[list[Case]]:
    """The cases in groups, in the order of the measures."""
    groups: dict[tuple[str, str], list[Case]] = {}
    for name in names:
        for case in MEASURES[name].cases(settings):
            groups.setdefault((case.measure, case.group), []).append(case)
    return list(groups.values())


def run(group: list[Case], settings: Settings) -> Iterator[Sample]:
    """Take the samples of one group, round by round."""
    dice = random.Random(len(group))  # noqa: S311 - an order
    failures = dict.fromkeys(group, 0)
    for number in range(settings.rounds):
        for case in dice.sample(group, len(group)):
            if failures[case] >= GIVE_UP:
                continue
            sample = take(case, number, settings)
            failures[case] += bool(sample.error)
            yield sample


def take(case: Case, number: int, settings: Settings) -> Sample:
    """One sample; whatever goes wrong is in it."""
    begin = time.monotonic()
    sample = Sample(case, number)
    try:
        sample.facts = MEASURES[case.measure].take(case, settings)
    except Exception as error:  # noqa: BLE001 - another package may raise anything; the row says what it was
        kind = type(error).__name__
        words = str(error)
        sample.error = words if kind == "SampleFailed" else f"{kind}: {words}" if words else kind
    sample.facts["took"] = round(time.monotonic() - begin, 2)
    return sample


@dataclass
class Row:
    """All samples of one case."""

    case: Case
    samples: list[Sample]
    ratios: dict[tuple[str, str], float] = field(default_factory=dict)  # (peer, mode) → its cost by ours, median

    @property
    def good(self) -> list[Sample]:
        """Those with figures."""
        return [sample for sample in self.samples if not sample.error]

    @property
    def error(self) -> str:
        """Why there is no figure; "" if there is one."""
        return "" if self.good else self.samples[-1].error

    def median(self, *path: str) -> float | None:
        """Of one of the facts, "value" if none is named; None if no sample has it."""
        found = []
        for sample in self.good:
            fact: Any = sample.facts
            for name in path or ("value",):
                fact = fact.get(name) if isinstance(fact, dict) else None
            if isinstance(fact, int | float):
                found.append(float(fact))
        return statistics.median(found) if found else None

    @property
    def span(self) -> tuple[float, float]:
        """The lowest and the highest figure."""
        values = [sample.value for sample in self.good]
        return min(values), max(values)

    @property
    def probe(self) -> float | None:
        """The median of all its cache-line probes, nanoseconds; infinite where the two did not run at the same time."""
        probes = [probe for sample in self.good for probe in sample.facts.get("probe", ())]
        met = [probe for probe in probes if probe is not None]
        if 2 * len(met) < len(probes):
            return inf
        return statistics.median(met) if met else None

    @property
    def disturbed(self) -> bool:
        """Whether strangers used much of the machine in half of its samples, or more."""
        marked = sum(sample.facts.get("strangers", 0.0) > DISTURBED for sample in self.good)
        return bool(2 * marked >= max(1, len(self.good)))

    def best_rival(self, modes: tuple[str, ...] | None = None) -> tuple[str, float] | None:
        """Who of the others comes closest (None: in any mode), and its cost by ours."""
        found = [(ratio, f"{name} {mode}") for (name, mode), ratio in self.ratios.items() if not modes or mode in modes]
        return (min(found)[1], min(found)[0]) if found else None

    def rivals(self) -> tuple[str, ...]:
        """The modes of others that ours is compared with."""
        return MEASURES[self.case.measure].rivals.get(self.case.mode, (self.case.mode,))

    def plain(self) -> Facts:
        """For JSON."""
        case = self.case
        facts: Facts = {
            "measure": case.measure,
            "group": case.group,
            "peer": case.name,
            "mode": case.mode,
            "size": case.size,
            "unit": MEASURES[case.measure].unit,
            "samples": len(self.good),
            "failed": len(self.samples) - len(self.good),
        }
        if self.error:
            return {**facts, "error": self.error}
        low, high = self.span
        facts |= {"median": self.median(), "low": low, "high": high, "disturbed": self.disturbed}
        facts["probe"] = None if self.probe is None or isinf(self.probe) else self.probe
        if self.ratios:
            facts["ratios"] = {f"{name} {mode}": ratio for (name, mode), ratio in self.ratios.items()}
            for word, best in (("best_rival", self.best_rival(self.rivals())), ("best_of_all", self.best_rival())):
                if best:
                    facts[word] = {"who": best[0], "ratio": best[1]}
        return facts


def summarise(samples: Iterable[Sample]) -> list[Row]:
    """A row for each case, in the order of its first sample's group and of the cases in it."""
    rows: dict[Case, Row] = {}
    for sample in samples:
        rows.setdefault(sample.case, Row(sample.case, [])).samples.append(sample)
    for row in rows.values():
        if row.case.ours:
            for other in rows.values():
                if (other.case.measure, other.case.group) == (row.case.measure, row.case.group):
                    _compare(row, other)
    return list(rows.values())


def _compare(row: Row, other: Row) -> None:
    """Note what `other` costs by what we cost, if it is another's: the median of the rounds in which both had one."""
    if other.case.ours:
        return
    ours = {sample.round: sample.value for sample in row.good}
    ratios = [sample.value / ours[sample.round] for sample in other.good if ours.get(sample.round)]
    if ratios:
        row.ratios[other.case.name, other.case.mode] = statistics.median(ratios)
