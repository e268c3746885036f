"""The runner: it measures what is missing and nothing else, survives being killed, and shares a store."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

import taxonomy
from kernels.simd import LANES
from taxonomy import store as stores
from taxonomy.fingerprint import ROOT
from taxonomy.measure import machine, runner
from taxonomy.measure.machine import describe, limits
from taxonomy.measure.protocol import Contest, Missing, Protocol, Trial
from taxonomy.measure.timing import interleave, orders
from taxonomy.store import Store, key

tx = taxonomy.load()
CHEAP = ("zero-space-ecc", "digits-mlp")
PROGRAM = """
import sys, taxonomy
from taxonomy.measure import runner
from taxonomy.store import Store
if __name__ == "__main__":
    tx, store = taxonomy.load(), Store("test", __import__("pathlib").Path(sys.argv[1]))
    owed = [job for job in runner.jobs(tx, [sys.argv[2]]) if job.workload == sys.argv[3]]
    runner.run(tx, runner.pending(tx, owed, store), store, workers=int(sys.argv[4]))
"""


def cheap_jobs():
    return [job for job in runner.jobs(tx, [CHEAP[0]]) if job.workload == CHEAP[1]]


def start(folder, workers=1):
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(folder / "program.py"), str(folder), *CHEAP, str(workers)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def lines(folder):
    path = Store("test", folder).path(tx[CHEAP[0]].address)
    return path.read_text().splitlines() if path.exists() else []


def test_killed_in_the_middle_it_loses_at_most_what_was_in_flight_and_two_then_finish_together(tmp_path):
    owed = cheap_jobs()
    process = start(tmp_path)
    deadline = time.monotonic() + 120
    while len(lines(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = [json.loads(line) for line in lines(tmp_path)]
    assert 3 <= len(kept) < len(owed)
    store = Store("test", tmp_path)
    left = runner.pending(tx, owed, store)
    assert len(left) == len(owed) - len(kept)
    both = [start(tmp_path), start(tmp_path)]
    assert [process.wait() for process in both] == [0, 0]
    assert runner.pending(tx, owed, store) == []
    assert len(lines(tmp_path)) == len(owed)
    again = {line["seed"]: line for line in map(json.loads, lines(tmp_path)) if line in kept}
    assert again, "what was measured before the kill was kept as it was"


def test_a_deleted_record_is_the_only_one_measured_again(tmp_path):
    store = Store("test", tmp_path)
    owed = [job for job in runner.jobs(tx, ["weight-stationary"]) if job.workload == "resnet18-layers"]
    records = [runner.take(tx, job) for job in owed]
    store.write(tx["weight-stationary"].address, records)
    assert runner.pending(tx, owed, store) == []
    path = store.path(tx["weight-stationary"].address)
    kept = path.read_text().splitlines()
    gone = json.loads(kept.pop(1))
    path.write_text("\n".join(kept) + "\n")
    (only,) = runner.pending(tx, owed, store)
    assert (only.variant, dict(only.trial.setting)) == (gone["variant"], gone["setting"])
    assert runner.take(tx, only)["values"] == gone["values"]


def test_records_that_nothing_owes_any_more_are_found_and_dropped_and_no_others(tmp_path):
    address = tx["posit"].address
    there = stores.reference.records(address)
    given_up = [{**there[0], "variant": {"bits": 3}}, {**there[0], "workload": "gone"}, {**there[0], "seed": 99}]
    store = Store("test", tmp_path)
    store.write(address, [*there, *given_up])
    found = runner.superfluous(tx, ["posit"], store)
    assert sorted(map(key, found[address])) == sorted(map(key, given_up))
    store.drop(address, map(key, found[address]))
    assert runner.superfluous(tx, ["posit"], store) == {}
    assert store.path(address).read_text() == stores.reference.path(address).read_text()


def test_networks_trained_elsewhere_have_a_grid_of_their_own_where_there_is_one():
    tx = taxonomy.load()
    pruning, gptq = tx["magnitude-pruning"], tx["gptq"]
    assert runner.variants_of(tx, pruning, "silero-vad") == pruning.elsewhere != pruning.variants
    assert runner.variants_of(tx, pruning, "mnist-cnn") == pruning.variants
    assert runner.variants_of(tx, gptq, "silero-vad") == gptq.variants and not gptq.elsewhere
    (edge,) = tx.influences("magnitude-pruning", "csr")
    assert runner.variants_of(tx, edge, "sparse-gemm") == ({},)
    owed = [job for job in runner.jobs(tx, ["magnitude-pruning"]) if job.workload == "efficientnet-lite0"]
    assert [job.variant for job in owed] == list(pruning.elsewhere) and {job.trial.seed for job in owed} == {0}


def test_what_was_never_measured_takes_as_long_as_its_kind(monkeypatch, tmp_path):
    monkeypatch.setattr(stores, "here", Store("here", tmp_path))
    node = tx["posit"].model_copy(update={"id": "brand-new"})
    jobs = [runner.Job(node, {}, "digits-mlp", Trial())]
    took = [
        record["provenance"]["seconds"]
        for other in tx.find(kind="number-format")
        for record in stores.reference.records(other.address)
        if record["type"] == "quality"
    ]
    assert runner.estimate(tx, jobs)["brand-new", "quality"] == pytest.approx(sum(took) / len(took))


def test_a_record_of_other_code_is_pending(tmp_path):
    store = Store("test", tmp_path)
    job = next(job for job in runner.jobs(tx, ["weight-stationary"]) if job.workload == "resnet18-layers")
    store.write(job.node.address, [{**runner.take(tx, job), "fingerprint": "of other code"}])
    assert runner.pending(tx, [job], store) == [job]


class Fake(Protocol):
    kind = "fake"

    def trials(self, technique, variant, workload):
        return [Trial()]

    def quality(self, case):
        return {"self": {"accuracy": float("nan"), "energy": Missing("why")}}

    def contest(self, case):
        return Contest({"self": lambda: sum(range(10))}, 10.0, "items", missing={"peer": "not installed"})


def test_a_figure_that_is_not_a_number_is_refused(monkeypatch):
    monkeypatch.setattr(runner, "_protocol", lambda node: Fake())
    job = runner.Job(tx["posit"], {"bits": 8, "es": 0}, "array-16m", Trial())
    with pytest.raises(ValueError, match="accuracy of self is no number"):
        runner.take(tx, job)


def test_timing_records_hold_rounds_limits_and_reasons(monkeypatch):
    monkeypatch.setattr(runner, "_protocol", lambda node: Fake())
    record = runner.take(tx, runner.Job(tx["posit"], {"bits": 8, "es": 0}, "array-16m", Trial(timing=True)))
    assert len(record["times"]["self"]) == 15
    assert record["missing"]["peer"]["latency"] == "not installed"
    assert record["provenance"]["peak_flops"] > 1e9 and record["provenance"]["copy_bandwidth"] > 1e8


def test_the_peak_is_that_of_the_rounds_of_the_contest(monkeypatch):
    """A machine that slows down between the start of a process and a contest must not seem to be busier in it."""
    slowed = {"peak_flops": 1.0, "copy_bandwidth": 1.0}  # what was seen once, long before
    monkeypatch.setattr("taxonomy.measure.machine.limits", lambda: slowed)
    job = runner.Job(tx["posit"], {"bits": 8, "es": 0}, "array-16m", Trial(timing=True))
    for unit, own in (("flop", True), ("items", False)):
        fake = Fake()
        fake.contest = lambda case, unit=unit: Contest({"self": lambda: sum(range(10))}, 10.0, unit)
        monkeypatch.setattr(runner, "_protocol", lambda node, fake=fake: fake)
        record = runner.take(tx, job)
        assert set(record["times"]) == {"self"} and len(record["times"]["self"]) == 15
        assert (record["provenance"]["peak_flops"] > 1e9) is own
    assert slowed == {"peak_flops": 1.0, "copy_bandwidth": 1.0}


def test_multiply_adds_are_as_many_as_they_say():
    seeds = np.ones(LANES * 12, np.float32)
    machine._compiled()(seeds, 100)
    assert (seeds == 101).all()  # each step added one times one to each number
    _, flop = machine.multiply_adds()
    assert flop == 2 * seeds.size * 20000


ONE_THREAD = """
import numpy, taxonomy
from threadpoolctl import threadpool_info
from taxonomy.measure import runner
from taxonomy.measure.protocol import Protocol, Trial

class Look(Protocol):
    kind = "look"
    def trials(self, technique, variant, workload): return []
    def quality(self, case):
        return {"self": {"macs": max(library["num_threads"] for library in threadpool_info())}}

runner._protocol = lambda node: Look()
tx = taxonomy.load()
record = runner.take(tx, runner.Job(tx["posit"], {"bits": 8, "es": 0}, "array-16m", Trial()))
print(max(library["num_threads"] for library in threadpool_info()), record["values"]["self"]["macs"])
"""


def test_a_blas_that_has_more_threads_measures_with_one():
    many = {name: value for name, value in os.environ.items() if name not in runner.THREADS}
    many |= {"OPENBLAS_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", ONE_THREAD], env=many, capture_output=True, text=True, check=True)
    outside, inside = map(int, found.stdout.split())
    if outside < 2:
        pytest.skip("one core: no library has a second thread")
    assert inside == 1


def test_limits_bound_what_the_machine_does():
    peak = limits()["peak_flops"]
    a = np.ones((512, 512), np.float32)
    seconds = min(interleave({"self": lambda: a @ a}, 3)["self"])
    assert 2 * 512**3 / seconds < 1.15 * peak * (os.cpu_count() or 1)
    assert describe()["cores"] == os.cpu_count()


def test_interleaving_gives_everyone_every_round():
    order = []
    interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    first, second = order.index("a"), order.index("b")
    assert first < second and {"a", "b"} == set(order)


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_everybody_follows_everybody_equally_often(count):
    names = list("abcdefg"[:count])
    found = orders(names, count * (1 + count % 2))
    assert all(sorted(order) == names for order in found)
    followed = Counter(pair for order in found for pair in pairwise(order))
    assert len(followed) == count * (count - 1) and len(set(followed.values())) == 1
    assert len({order[0] for order in found}) == count  # and everybody begins


def test_a_failing_trial_is_named_and_the_others_are_kept(tmp_path):
    store = Store("test", tmp_path)
    good = next(job for job in runner.jobs(tx, ["weight-stationary"]) if job.workload == "resnet18-layers")
    bad = runner.Job(good.node, {"rows": -1}, good.workload, good.trial)
    with pytest.raises(runner.MeasurementFailed, match=r"1 of 2 measurements failed:\n.*got -1"):
        runner.run(tx, [bad, good], store, workers=1)
    assert len(store.records(good.node.address)) == 1


def test_a_readers_own_workload_is_measured_and_leaves_no_trace(monkeypatch, tmp_path):
    from torch import nn

    import datasets
    from taxonomy import store as stores

    monkeypatch.setattr(stores, "here", Store("here", tmp_path))

    def network():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    mine = datasets.Workload("mine", network, datasets.load("digits"), datasets.Recipe(epochs=2))
    frame = tx["zero-space-ecc"].measure(workload=mine, variant={"format": "bfloat16"})
    assert {"accuracy", "stored_bits"} <= set(frame["metric"]) and set(frame["workload"]) == {"mine"}
    assert not list(tmp_path.rglob("*.jsonl"))


def test_what_was_measured_while_the_house_was_edited_is_not_kept(monkeypatch):
    monkeypatch.setattr(runner, "_protocol", lambda node: Fake())
    monkeypatch.setattr(runner, "_STARTED", (("kernels/posit.py", 0),))
    with pytest.raises(runner.MeasurementFailed, match="edited while this was measured"):
        runner.take(tx, runner.Job(tx["posit"], {"bits": 8, "es": 0}, "array-16m", Trial(timing=True)))


def test_what_needs_a_package_that_is_not_here_is_left_out(monkeypatch, tmp_path):
    from concurrent.futures import Future

    from datasets.card import NotInstalled

    tx = taxonomy.load()
    owed = [job for job in runner.jobs(tx, ["bfloat16"]) if job.workload in ("digits-mlp", "vowels-gru")][:4]

    class Pool:
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            return False

        def submit(self, take, name, variant, workload, trial):
            future = Future()
            if workload == "digits-mlp" and trial.setting["on"] == "both":
                future.set_exception(NotInstalled("pip install it"))
            else:
                future.set_result(runner.Job(tx[name], variant, workload, trial).header() | {"fingerprint": "x"})
            return future

    monkeypatch.setattr(runner, "_pool", lambda workers: Pool())
    lines = []
    store = Store("test", tmp_path)
    taken = runner.run(tx, owed, store, report=lines.append)
    left_out = [job for job in owed if job.workload == "digits-mlp" and job.trial.setting["on"] == "both"]
    assert left_out and taken == len(owed) - len(left_out) == len(store.records(tx["bfloat16"].address))
    assert sum(line.startswith("left out: ") and line.endswith("pip install it") for line in lines) == len(left_out)
