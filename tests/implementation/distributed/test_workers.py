"""Real processes: what they exchange is right and counted to the byte, and none outlives its team, whatever happens."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from kernels.implementation.distributed.workers import Group, WorkerFailed, Workers


@pytest.fixture(scope="module")
def teams():
    """Workers by their number, started once."""
    found = {n: Workers(n) for n in (1, 2, 3)}
    yield found
    for team in found.values():
        team.close()


def gone(pids):
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


# --- what workers run: importable, as it must be --------------------------------------------------------------------


def drawn(group, length, dtype):
    torch.manual_seed(group.rank)
    return (torch.randn(length) * 100).to(dtype)


def reduced(group, length, dtype):
    own, theirs = drawn(group, length, dtype), drawn(group, length, dtype)
    dist.all_reduce(theirs)
    return group.all_reduce(own), theirs


def scattered(group, length):
    return group.reduce_scatter(drawn(group, length, torch.float64)).clone()


def messages(group, lengths, dtype):
    return group.exchange(drawn(group, lengths[group.rank], dtype))


def remember(group, key):
    group.kept[key] = group.kept.get(key, 0) + 1
    return group.kept[key], os.getpid(), torch.get_num_threads()


def fails(group, rank):
    if group.rank == rank:
        raise KeyError("a fault of its own")
    group.all_reduce(torch.ones(4))


def leaves(group, rank):
    if group.rank == rank:
        sys.exit(3)
    group.all_reduce(torch.ones(4))


def busy(group, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        group.all_reduce(torch.ones(1000))


def stuck(group, rank):
    if group.rank == rank:
        time.sleep(60)


def refused(group, case):
    x = torch.ones(4, 4)
    return group.all_reduce(x.T[:2]) if case == "strides" else group.exchange(x)


# --- exchanges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32])
@pytest.mark.parametrize("length", [0, 1, 2, 5, 600])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_sum_is_that_of_torch_and_the_same_everywhere(teams, n, length, dtype):
    answers = teams[n].call(reduced, length, dtype)
    for answer in answers:
        own, theirs = answer.value
        assert torch.equal(own, answers[0].value[0])
        torch.testing.assert_close(own, theirs)
    parts = [len(p) for p in np.array_split(np.empty(length), n)]
    size = torch.empty((), dtype=dtype).nbytes
    for rank, answer in enumerate(answers):  # twice all but one part
        assert answer.sent == (n > 1) * size * (2 * length - parts[rank] - parts[(rank + 1) % n])
    if length % n == 0:
        assert {answer.sent for answer in answers} == {2 * (n - 1) * size * length // n}


@pytest.mark.parametrize("n", [1, 2, 3])
def test_each_worker_gets_its_part_of_the_sum(teams, n):
    answers = teams[n].call(scattered, 7)
    whole = sum(drawn(Group(rank), 7, torch.float64) for rank in range(n))
    torch.testing.assert_close(torch.cat([a.value for a in answers]), whole)
    assert sum(a.sent for a in answers) == (n - 1) * 7 * 8


@given(lengths=st.lists(st.integers(0, 40), min_size=3, max_size=3), dtype=st.sampled_from([torch.uint8, torch.bool]))
def test_messages_of_any_length_reach_all(teams, lengths, dtype):
    answers = teams[3].call(messages, lengths, dtype)
    expected = [drawn(Group(rank), length, dtype) for rank, length in enumerate(lengths)]
    for answer, length in zip(answers, lengths, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(answer.value, expected, strict=True))
        assert answer.sent == 2 * length


def test_a_group_of_one_needs_no_processes():
    group, x = Group(), torch.ones(3)
    assert group.all_reduce(x) is x and group.exchange(x)[0] is x and group.sent == 0


def test_workers_are_processes_of_one_thread_that_remember(teams):
    first, second = teams[2].call(remember, "a"), teams[2].call(remember, "a")
    assert [a.value[0] for a in first] == [1, 1] and [a.value[0] for a in second] == [2, 2]
    assert [a.value[1] for a in first] == [a.value[1] for a in second] == teams[2].pids
    assert os.getpid() not in teams[2].pids and {a.value[2] for a in first} == {1}


# --- failure --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_killed_worker_is_named_and_none_is_left(rank):
    team = Workers(3)
    pids, start = team.pids, time.monotonic()
    killer = threading.Timer(0.3, os.kill, (pids[rank], signal.SIGKILL))
    killer.start()
    with pytest.raises(WorkerFailed, match=f"worker {rank} of 3 was killed by SIGKILL"):
        team.call(busy, 30)
    assert time.monotonic() - start < 10
    killer.join()
    gone(pids)
    with pytest.raises(ValueError, match="they have been closed"):
        team.call(busy, 0)


def test_a_worker_killed_between_calls_is_named():
    team = Workers(2)
    pids = team.pids
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(WorkerFailed, match="worker 1 of 2 was killed by SIGKILL"):
        team.call(busy, 30)
    gone(pids)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failing_worker_is_named_with_its_error(rank):
    team = Workers(2)
    pids = team.pids
    with pytest.raises(WorkerFailed, match=f"worker {rank} of 2 failed: KeyError: 'a fault of its own'"):
        team.call(fails, rank)
    gone(pids)


def test_a_worker_that_ends_is_named():
    with Workers(2) as team, pytest.raises(WorkerFailed, match="worker 1 of 2 ended with status 3"):
        team.call(leaves, 1)


def test_a_stuck_worker_is_named_and_ended():
    team = Workers(3)
    pids = team.pids
    team.call(remember, "a")  # from here on they know this module
    with pytest.raises(TimeoutError, match=r"worker 1 of 3: no answer within 2 s"):
        team.call(stuck, 1, timeout=2)
    gone(pids)


def test_the_end_of_a_block_and_of_the_last_name_end_the_workers():
    with Workers(2) as team:
        pids = team.pids
    gone(pids)
    team = Workers(2)
    pids = team.pids
    del team
    gc.collect()
    gone(pids)


def test_workers_end_with_a_parent_that_is_killed():
    script = """
        import os, signal
        from kernels.implementation.distributed.workers import Workers
        if __name__ == "__main__":
            team = Workers(2)
            print(*team.pids, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=100)
    pids, end = [int(pid) for pid in done.stdout.split()], time.monotonic() + 10
    assert len(pids) == 2 and not done.stderr
    while time.monotonic() < end and any(alive(pid) for pid in pids):
        time.sleep(0.02)
    assert not any(alive(pid) for pid in pids)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as status:  # one that nobody has waited for yet is dead, too
        return status.read().rpartition(")")[2].split()[0] != "Z"


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_bad_sizes_are_named(size):
    with pytest.raises(ValueError, match="size: expected a positive number of workers"):
        Workers(size)


def test_what_cannot_be_sent_is_named():
    with (
        Workers(1) as team,
        pytest.raises(TypeError, match=r"function, args: expected what can be pickled, got .*lambda"),
    ):
        team.call(lambda group: 1)


def test_a_function_typed_in_is_named(monkeypatch):
    monkeypatch.setattr(remember, "__module__", "__main__")
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with Workers(1) as team, pytest.raises(TypeError, match="one that workers can import, got remember, typed in"):
        team.call(partial(remember, key="a"))


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("strides", r"x: expected a contiguous tensor, got shape \(2, 4\) with strides \(1, 4\)"),
        ("shape", r"message: expected a flat tensor, got shape \(4, 4\)"),
    ],
)
def test_bad_tensors_are_named(case, text):
    with Workers(1) as team, pytest.raises(WorkerFailed, match=text):
        team.call(partial(refused, case=case))
