"""What is stamped anew is what was repeated and came out the same, not what happened to."""

from __future__ import annotations

import copy

import pytest

import taxonomy
from taxonomy import store as stores
from taxonomy.measure import reverify as module
from taxonomy.store import Store

tx = taxonomy.load()
NODE = tx["soft-label-distillation"]


@pytest.fixture
def stale(tmp_path):
    """One group of five seeds, as if their code had been rewritten."""
    records = [r for r in stores.reference.records(NODE.address) if r["workload"] == "digits-mlp"]
    group = [{**r, "fingerprint": "another"} for r in records if r["variant"] == records[0]["variant"]]
    assert len(group) == 5
    store = Store("stale", tmp_path)
    store.write(NODE.address, group)
    return store


@pytest.mark.parametrize("changed, stamped", [((), 5), ((0,), 0), ((4,), 0)])
def test_a_figure_that_stays_the_same_by_chance_for_one_seed_stamps_nothing(stale, monkeypatch, changed, stamped):
    known = {record["seed"]: record for record in stale.records(NODE.address)}
    taken = []

    def take(_, job):
        taken.append(job.trial.seed)
        record = copy.deepcopy(known[job.trial.seed])
        record["values"]["self"]["accuracy"] += 0.01 * (job.trial.seed in changed)
        return record

    monkeypatch.setattr(module, "take", take)
    (line,) = module.reverify(tx, [NODE.id], stale)
    assert sum(r["fingerprint"] != "another" for r in stale.records(NODE.address)) == stamped
    assert ("stamped" if stamped else "changed") in line and taken == ([0] if changed == (0,) else [0, 4])
