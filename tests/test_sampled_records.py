"""Ten quality records of the reference, taken again: what is committed is what the code gives."""

import hashlib

import pytest

import taxonomy
from taxonomy import store as stores
from taxonomy.measure.protocol import Trial
from taxonomy.measure.runner import Job, take
from taxonomy.store import key

tx = taxonomy.load()
SECONDS = 3.0
"""Only records that took less: the sample is to be repeated on every change."""


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
    again = take(tx, Job(tx[name], record["variant"], record["workload"], trial))
    assert again.get("missing") == record.get("missing")
    for who, figures in record["values"].items():
        for metric, value in figures.items():
            tolerance = {"abs": 0.015} if "accuracy" in metric else {"rel": 1e-4}
            assert again["values"][who][metric] == pytest.approx(value, **tolerance), f"{metric} of {who}"


def test_there_are_records_to_sample():
    assert len(sample()) == 10
