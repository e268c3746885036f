"""The store: nothing measured is lost or silently replaced."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from taxonomy.store import BrokenRecord, Store, key


def record(seed=0, value=1.0, **other):
    base = {"schema": 1, "subject": "posit", "variant": {"bits": 8}, "workload": "w", "setting": {}, "type": "quality",
            "seed": seed, "fingerprint": "f", "values": {"self": {"accuracy": value}}}  # fmt: skip
    return {**base, **other}


def test_a_record_replaces_only_the_one_with_its_key(tmp_path):
    store = Store("test", tmp_path)
    store.write("a/b/posit", [record(0), record(1)])
    store.write("a/b/posit", [record(1, value=2.0)])
    values = {r["seed"]: r["values"]["self"]["accuracy"] for r in store.records("a/b/posit")}
    assert values == {0: 1.0, 1: 2.0}
    assert key(record(1)) == key(record(1, value=2.0, fingerprint="other")) != key(record(2))


def test_a_truncated_line_is_reported_with_its_number_and_set_aside(tmp_path):
    store = Store("test", tmp_path)
    store.write("posit", [record(0), record(1), record(2)])
    path = store.path("posit")
    lines = path.read_text().splitlines()
    lines[1] = lines[1][: len(lines[1]) // 2]
    path.write_text("\n".join(lines) + "\n")
    with pytest.warns(BrokenRecord, match=r"posit\.jsonl:2: not a record"):
        assert len(store.records("posit")) == 2
    store.write("posit", [record(5)])
    assert len(Store("test", tmp_path).records("posit")) == 3
    assert path.with_suffix(".jsonl.broken").read_text() == lines[1] + "\n"


def _write_many(root, first):
    store = Store("test", root)
    for seed in range(first, first + 25):
        store.write("posit", [record(seed)])


def test_two_writers_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(tmp_path, first)) for first in (0, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {r["seed"] for r in Store("test", tmp_path).records("posit")} == {*range(25), *range(100, 125)}


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    context = multiprocessing.get_context("spawn")
    writer = context.Process(target=_write_many, args=(tmp_path, 0))
    writer.start()
    path = tmp_path / "posit.jsonl"
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    lines = path.read_text().splitlines()
    assert lines and all(json.loads(line)["subject"] == "posit" for line in lines)
    Store("test", tmp_path).write("posit", [record(999)])  # the lock died with its holder
    assert len(path.read_text().splitlines()) == len(lines) + 1
