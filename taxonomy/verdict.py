"""From the records of an influence to a finding: effect, interval, verdict. The rule stood before most measurements.

In every repetition c = log(baseline / technique) for a cost, its inverse for a gain; positive is better. Accuracy
enters as a difference, never in logs; decibels are logs already, and their difference is one of powers. Each declared
point votes: + (its interval lies beyond the smallest effect that counts), - (beyond it the other way), 0 (inside),
? (else). Bonferroni over the points of a trace. Repetitions that agree to the last digit say nothing of chance: unless
the figure follows from counting, they vote ?.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from taxonomy import schema
from taxonomy import store as stores
from taxonomy.fingerprint import canonical
from taxonomy.measurements import label
from taxonomy.statistics import median, p_beyond, t_interval

__all__ = [
    "Finding",
    "Point",
    "break_even",
    "conclude",
    "contrast",
    "crossover",
    "findings",
    "judge",
    "smallest_effect",
    "vote",
]

Vote = Literal["+", "-", "0", "?"]
Verdict = Literal["supported", "contradicted", "inconclusive"]
SMALLEST = {"time": math.log(1.10), "accuracy": 0.005, "other": math.log(1.05)}
DECIBELS = ("sqnr", "output_sqnr")
TIMES = ("latency", "throughput", "core_utilization")
LEAST_REPETITIONS = 5


@dataclass(frozen=True)
class Point:
    """One declared point of a trace: the contrast c with its interval, and its vote."""

    strength: float | None
    c: float
    low: float
    high: float
    n: int
    vote: Vote


@dataclass(frozen=True)
class Finding:
    """An influence on one workload in one setting, after measurement."""

    influence: str
    workload: str
    setting: str
    metric: str
    points: tuple[Point, ...]
    verdict: Verdict
    because: str
    p: float
    crossover: tuple[float, float, float] | None = None
    stale: bool = False
    by_construction: bool = False

    @property
    def effect(self) -> float:
        """The contrast of the point farthest from nothing."""
        return max((point.c for point in self.points), key=abs)

    @property
    def turn(self) -> str:
        """Where c changes sign, with its interval; else on which side of nothing the trace stays."""
        if self.crossover:
            return "{:.2g} [{:.2g}, {:.2g}]".format(*self.crossover)
        votes = {point.vote for point in self.points}
        return "always ahead" if votes == {"+"} else "never ahead" if "+" not in votes else "undecided"


def smallest_effect(metric: str) -> float:
    """10 % for time, 5 % for other ratios (both in logs), half a point of accuracy."""
    return SMALLEST["time" if metric in TIMES else "accuracy" if metric == "accuracy" else "other"]


def contrast(edge: schema.Influence, record: Mapping[str, Any], metric: str, higher_is_better: bool) -> float:
    """c of one repetition: of the target (effect, crossover), or with the source minus without (interaction)."""
    if edge.estimand == "interaction":
        arms = [("source", "both"), ("neither", "target")]
        c = [_c(metric, record, *pair, higher_is_better=higher_is_better) for pair in arms]
        return c[0] - c[1]
    return _c(metric, record, "baseline", "self", higher_is_better=higher_is_better)


def _c(metric: str, record: Mapping[str, Any], before: str, after: str, *, higher_is_better: bool) -> float:
    times = record.get("times", {})
    if before in times and metric in TIMES:  # equal work is divided by work: rates compare as times do
        work = record.get("works", {})
        ratio = math.log(work.get(after, 1) / work.get(before, 1)) if work else 0.0
        return ratio + math.log(median(b / a for b, a in zip(times[before], times[after], strict=True)))
    old, new = (record["values"][arm][metric] for arm in (before, after))
    if metric == "accuracy":
        return new - old
    if metric in DECIBELS:
        return (new - old) * math.log(10) / 10
    return math.log(new / old) if higher_is_better else math.log(old / new)


def vote(values: Sequence[float], smallest: float, points: int = 1, counted: bool = False) -> Point:
    """The vote of one point from its repetitions; `points` is how many share the error rate.

    Where nothing is drawn (`counted`), repetitions that are all the same are as sure as they look.
    """
    c, low, high = t_interval(values, 0.05 / points)
    symbol: Vote = "?"
    if len(values) >= LEAST_REPETITIONS and (counted or len(set(values)) > 1):
        if low > smallest:
            symbol = "+"
        elif high < -smallest:
            symbol = "-"
        elif low > -smallest and high < smallest:
            symbol = "0"
    return Point(None, c, low, high, len(values), symbol)


def judge(sign: str, votes: Iterable[Vote]) -> Verdict:
    """The verdict on a claimed sign.

    Examples
    --------
    >>> judge("+", ["+", "0", "?"]), judge("+", ["+", "-"]), judge("-", ["0", "0"])
    ('supported', 'contradicted', 'contradicted')
    >>> judge("mixed", ["+", "?", "-"]), judge("mixed", ["+", "0"]), judge("mixed", ["+", "?"])
    ('supported', 'contradicted', 'inconclusive')
    >>> judge("needs", ["-", "0"]), judge("needs", ["0", "0"]), judge("needs", ["-", "?"])
    ('supported', 'contradicted', 'inconclusive')
    """
    ballot = list(votes)
    if sign == "needs":
        if len(ballot) != 2:  # one of the two arms is not measured yet
            return "inconclusive"
        alone, together = ballot
        if alone == "-" and together in "+0":
            return "supported"
        return "contradicted" if alone in "+0" else "inconclusive"
    if sign == "mixed":
        if "+" in ballot and "-" in ballot:
            return "supported"
        return "inconclusive" if "?" in ballot or not ballot else "contradicted"
    opposite = "-" if sign == "+" else "+"
    if opposite in ballot or (ballot and all(v == "0" for v in ballot)):
        return "contradicted"
    return "supported" if sign in ballot else "inconclusive"


def crossover(strengths: Sequence[float], curves: Sequence[Sequence[float]]) -> tuple[float, float, float] | None:
    """Where c changes sign: the root in log strength of each repetition, with a Student-t interval over them.

    Parameters
    ----------
    strengths : sequence of float
        Positive, ascending.
    curves : sequence of sequences
        One repetition each, c at every strength.

    Returns
    -------
    tuple or None
        Strength, low, high; None where a repetition has no change of sign.

    Examples
    --------
    >>> root, low, high = crossover([0.1, 10.0], [[1.0, -1.0], [2.0, -2.0]])
    >>> round(root, 6), round(low, 6), round(high, 6)
    (1.0, 1.0, 1.0)
    """
    roots = []
    for curve in curves:
        signed = [(math.log(s), c) for s, c in zip(strengths, curve, strict=True) if c]  # nothing has no sign to change
        for (left, a), (right, b) in pairwise(signed):
            if a * b < 0:
                roots.append(left + (right - left) * a / (a - b))
                break
        else:
            return None
    centre, low, high = t_interval(roots)
    return math.exp(centre), math.exp(low), math.exp(high)


def conclude(
    edge: schema.Influence,
    samples: Mapping[float | None, Sequence[float]],
    workload: str = "",
    setting: str = "",
    metric: str | None = None,
    counted: bool = False,
) -> Finding:
    """The finding from c by strength, repetition by repetition; on `metric`, the edge's own by default.

    A crossover is only said where points vote both ways, and sought between the last vote of one way and the first of
    the other: around nothing, chance changes the sign.

    The identity (nothing pruned) gives 0 by definition and does not vote: it is not to be among `samples`.
    """
    metric = metric or edge.metric
    smallest = smallest_effect(metric)
    strengths = sorted(samples, key=lambda s: (s is None, s))
    points = []
    for strength in strengths:
        point = vote(samples[strength], smallest, len(strengths), counted)
        points.append(Point(strength, point.c, point.low, point.high, point.n, point.vote))
    verdict = judge(edge.sign, [point.vote for point in points])
    root = None
    decided = [i for i, point in enumerate(points) if point.vote in "+-"]
    turn = next((i for i in pairwise(decided) if points[i[0]].vote != points[i[1]].vote), None)
    if edge.estimand == "crossover" and turn:
        between: Any = strengths[turn[0] : turn[1] + 1]
        repetitions = min(len(samples[s]) for s in between)
        root = crossover(between, [[samples[s][r] for s in between] for r in range(repetitions)])
    p = min(1.0, len(points) * min(p_beyond(samples[s], smallest) for s in strengths))
    return Finding(
        edge.id, workload, setting, metric, tuple(points), verdict, _because(edge, points, verdict, root), p, root
    )  # fmt: skip


def _because(edge: schema.Influence, points: Sequence[Point], verdict: Verdict, root: Any) -> str:
    ballot = "".join(point.vote for point in points)
    text = f"claimed {edge.sign}, points voted {' '.join(ballot)}"
    if root:
        text += f"; c changes sign at {edge.along} {root[0]:.3g} [{root[1]:.3g}, {root[2]:.3g}]"
    if verdict == "inconclusive":
        fewest = min(point.n for point in points)
        if fewest < LEAST_REPETITIONS:
            text += f"; {LEAST_REPETITIONS} repetitions are needed, there are {fewest}"
        elif edge.sign == "needs" and ballot == "--":
            text += "; with the target too the source loses more than the smallest effect that counts"
        elif "?" in ballot:
            text += "; more repetitions, or stronger settings, would decide the points marked ?"
        else:
            text += "; a wider range of strengths would decide it"
    return text


def findings(edge: schema.Influence, records: Iterable[Mapping[str, Any]] | None = None) -> tuple[Finding, ...]:
    """One finding per workload and setting of what the reference store holds, or of `records`.

    Stale records do not blur fresh ones: they count only where there are no others.
    """
    from taxonomy.fingerprint import snapshot
    from taxonomy.freshness import is_stale
    from taxonomy.load import load

    tx, state = load(), snapshot()
    if records is None:
        records = stores.reference.records(edge.address) or stores.here.records(edge.address)
    groups: dict[str, list[tuple[bool, float | None, int, float]]] = defaultdict(list)
    about: dict[str, tuple[str, str, str]] = {}
    counted: dict[str, bool] = {}
    for record in records:
        setting = dict(record["setting"])
        strength = setting.pop(edge.along) if edge.along else None
        name = canonical([record["workload"], setting])
        metric = tx.metric(setting.pop("metric", edge.metric))
        about[name] = (record["workload"], label(setting), metric)
        counted[name] = edge.by_construction and record["type"] == "quality"
        higher = tx.metrics[metric].direction == "higher"
        c = contrast(edge, record, metric, higher)
        groups[name].append((is_stale(tx, edge, record, state), strength, record["seed"], c))
    found = []
    for name, group in groups.items():
        stale = all(old for old, *_ in group)
        samples: dict[float | None, list[float]] = defaultdict(list)
        for old, strength, _, c in sorted(group, key=lambda one: one[2]):
            if old == stale:
                samples[strength].append(c)
        finding = conclude(edge, samples, *about[name], counted=counted[name])
        found.append(replace(finding, stale=stale, by_construction=counted[name]))
    return tuple(sorted(found, key=lambda finding: finding.metric != tx.metric(edge.metric)))


def break_even(
    technique: str,
    along: str = "density",
    who: str = "baseline",
    records: Iterable[Mapping[str, Any]] | None = None,
    **conditions: Any,
) -> tuple[Finding, ...]:
    """How an operator's time compares with a contestant's along a condition, and where it stops being the faster one.

    Parameters
    ----------
    technique : str
        Its id.
    along : str
        A numeric condition of its times, such as the density.
    who : str
        The contestant: `baseline` or a peer.
    records : iterable of records, optional
        Those of the reference store, or this machine's, if absent.
    **conditions
        Parameters and conditions that are wanted, such as `n=64`.

    Returns
    -------
    tuple of Finding
        One a variant, workload and all other conditions, as an influence of that condition would have it; none where
        no time was taken beside the contestant.
    """
    from taxonomy.fingerprint import snapshot
    from taxonomy.freshness import is_stale
    from taxonomy.load import load

    tx, state = load(), snapshot()
    node = tx[technique]
    edge = schema.Influence.model_validate({
        "source": along, "target": node.id, "metric": "latency", "sign": "mixed", "estimand": "crossover",
        "along": along, "mechanism": "", "contrast": "", "attribution": "field", "workloads": node.workloads or ("",),
    })  # fmt: skip
    if records is None:
        kept = (
            [r for r in store.records(node.address) if r["type"] == "timing"]
            for store in (stores.reference, stores.here)
        )
        records = next(filter(None, kept), [])
    samples: dict[tuple[str, str], dict[float | None, list[float]]] = defaultdict(lambda: defaultdict(list))
    stale: dict[tuple[str, str], bool] = defaultdict(bool)
    for record in sorted(records, key=lambda record: record["seed"]):
        if record["type"] != "timing" or along not in record["setting"] or who not in record["times"]:
            continue
        rest = {name: value for name, value in {**record["variant"], **record["setting"]}.items() if name != along}
        if any(rest.get(name) != value for name, value in conditions.items()):
            continue
        at = record["workload"], label(rest)
        samples[at][record["setting"][along]].append(_c("latency", record, who, "self", higher_is_better=False))
        stale[at] |= is_stale(tx, node, record, state)
    return tuple(replace(conclude(edge, found, *at), stale=stale[at]) for at, found in samples.items())
