"""Ten quality records of the reference, taken again: what is committed is what the code gives."""

import hashlib

import pytest

import taxonomy
from datasets.card import NotInstalled
from taxonomy import store as stores
from taxonomy.measure.protocol import Trial
from taxonomy.measure.runner import Job, take
from taxonomy.store import key

tx = taxonomy.load()
SECONDS = 3.0
"""Only records that took less: the sample is to be repeated on every change."""


def tolerance(metric):
    """What another processor may change: the order of sums, and with it what was trained; the width of vectors."""
    if "accuracy" in metric or metric in ("agreement", "regret"):
        return {"abs": 0.03}
    if metric in (
        "output_sqnr",
        "layer_sqnr",
        "worst_layer_sqnr",
    ):  # decibels: a few numbers that round to the other neighbour
        return {"abs": 1.0}
    if metric.endswith("_error"):
        return {"rel": 1.0, "abs": 1e-6}
    return {"rel": 0.05 if metric in ("memory_footprint", "memory_access", "energy") else 1e-3}


def sample(count=10):
    """Records in the order of a hash of their keys, at most one a technique: spread, and the same every time."""
    chosen = {}
    for node in tx:
        quick = [
            record
            for record in stores.reference.records(node.address)
            if record["type"] == "quality" and record["provenance"]["seconds"] < SECONDS
        ]
        if quick:
            chosen[node.id] = min(quick, key=lambda record: hashlib.sha256(key(record).encode()).hexdigest())
    return sorted(chosen.items(), key=lambda item: hashlib.sha256(item[0].encode()).hexdigest())[:count]


@pytest.mark.parametrize("name, record", sample(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_record_is_what_the_code_gives(name, record):
    trial = Trial(record["setting"], record["seed"])
    try:
        again = take(tx, Job(tx[name], record["variant"], record["workload"], trial))
    except NotInstalled as error:
        pytest.skip(str(error))
    assert again.get("missing") == record.get("missing")
    for who, figures in record["values"].items():
        for metric, value in figures.items():
            assert again["values"][who][metric] == pytest.approx(value, **tolerance(metric)), f"{metric} of {who}"


def test_there_are_records_to_sample():
    assert len(sample()) == 10
