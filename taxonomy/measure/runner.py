"""What is owed, what is missing or stale, and the taking of it: quality in parallel, timing one at a time.

A record is written the moment it is taken, so a run that is killed loses at most the measurements in flight.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from taxonomy import store as stores
from taxonomy.fingerprint import snapshot
from taxonomy.freshness import expected, is_stale
from taxonomy.measure.protocol import Case, Contest, Missing, Protocol, Trial
from taxonomy.statistics import median
from taxonomy.store import Record, Store, key

if TYPE_CHECKING:
    import pandas as pd

    from taxonomy.query import Taxonomy

__all__ = [
    "Job", "MeasurementFailed", "covering", "estimate", "jobs", "measure_now", "pending", "plan", "protocol_of", "run",
    "superfluous", "sweep", "take", "variants_of", "workloads_of",
]  # fmt: skip

_STARTED = snapshot()
"""The house as it was when this process began to import it: what is measured is that."""
PEAK = "the machine's peak"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class MeasurementFailed(RuntimeError):
    """One or more trials raised; all others were taken and kept."""


@dataclass(frozen=True)
class Job:
    """One record that is owed."""

    node: Any
    variant: dict[str, Any]
    workload: str
    trial: Trial

    @property
    def kind(self) -> str:
        return "timing" if self.trial.timing else "quality"

    def header(self) -> Record:
        """The record without what is measured."""
        return {
            "schema": stores.SCHEMA, "subject": self.node.id, "variant": self.variant, "workload": self.workload,
            "setting": dict(self.trial.setting), "type": self.kind, "seed": self.trial.seed,
        }  # fmt: skip

    @property
    def key(self) -> str:
        return key(self.header())

    def __str__(self) -> str:
        conditions = ", ".join(f"{k}={v}" for k, v in {**self.variant, **self.trial.setting}.items())
        return f"{self.node.id} on {self.workload} ({conditions}) {self.kind} {self.trial.seed}"


@lru_cache(maxsize=128)
def protocol_of(name: str) -> Protocol:
    """The protocol of a kind, or of an influence by the dotted path of its experiment."""
    path = name if "." in name else f"taxonomy.measure.protocols.{name.replace('-', '_')}"
    return import_module(path).protocol


def _protocol(node: Any) -> Protocol:
    return protocol_of(getattr(node, "kind", None) or node.implementation)


def workloads_of(tx: Taxonomy, node: Any) -> list[str]:
    """Where a technique or an influence is measured, the unfit left out."""
    names = node.workloads or tx.kinds[node.kind].workloads
    return [name for name in names if name not in getattr(node, "unfit", {})]


def variants_of(tx: Taxonomy, node: Any, workload: str) -> tuple[dict[str, Any], ...]:
    """The grid of a technique on a workload; an influence has none."""
    own = getattr(node, "elsewhere", ()) if tx.workloads[workload].kind == "network-elsewhere" else ()
    return own or getattr(node, "variants", ({},))


def jobs(tx: Taxonomy, names: Sequence[str] | None = None) -> Iterator[Job]:
    """Every record owed by the techniques and influences named (ids; `a--b` for an edge), or by all of them."""
    nodes: Sequence[Any] = tx.nodes
    if names:
        known = {node.id: node for node in nodes}
        nodes = [known[name] if name in known else tx[name] for name in names]
    for node in nodes:
        for workload in workloads_of(tx, node):
            for variant in variants_of(tx, node, workload):
                for trial in _protocol(node).trials(node, dict(variant), tx.workload(workload)):
                    yield Job(node, dict(variant), workload, trial)


def pending(tx: Taxonomy, owed: Iterable[Job], *where: Store) -> list[Job]:
    """Those jobs for which none of the stores holds a fresh record."""
    fresh: dict[str, set[str]] = {}
    state = snapshot()
    left = []
    for job in owed:
        if job.node.id not in fresh:
            fresh[job.node.id] = {
                key(record)
                for store in where
                for record in store.records(job.node.address)
                if record["subject"] == job.node.id and not is_stale(tx, job.node, record, state)
            }
        if job.key not in fresh[job.node.id]:
            left.append(job)
    return left


def superfluous(tx: Taxonomy, names: Sequence[str] | None, store: Store) -> dict[str, list[Record]]:
    """Records that nothing owes any more, by address: of a variant, workload or condition that was given up."""
    owed: dict[Any, set[str]] = defaultdict(set)
    for job in jobs(tx, names):
        owed[job.node.address].add(job.key)
    found = {}
    for address, keys in owed.items():
        found[address] = [record for record in store.records(address) if key(record) not in keys]
    return {address: records for address, records in found.items() if records}


def estimate(tx: Taxonomy, owed: Iterable[Job]) -> dict[tuple[str, str], float]:
    """Seconds that jobs will take, by node and type: from what such records took before, else those of the kind."""
    took: dict[tuple[str, str], list[float]] = defaultdict(list)
    for node in tx.nodes:
        for store in (stores.reference, stores.here):
            for record in store.records(node.address):
                for name in (node.id, getattr(node, "kind", "influence"), "any"):
                    took[name, record["type"]].append(record["provenance"].get("seconds", 0.0))
    mean = {name: sum(past) / len(past) for name, past in took.items()}
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for job in owed:
        names = (job.node.id, getattr(job.node, "kind", "influence"), "any")
        seconds[job.node.id, job.kind] += next((mean[n, job.kind] for n in names if (n, job.kind) in mean), 1.0)
    return dict(seconds)


def plan(tx: Taxonomy, names: Sequence[str] | None = None, store: Store = stores.here) -> list[dict[str, Any]]:
    """What a run would take, and how long: one row a node."""
    left = pending(tx, jobs(tx, names), *covering(store))
    seconds = estimate(tx, left)
    rows = []
    for name in dict.fromkeys(job.node.id for job in left):
        own = [job for job in left if job.node.id == name]
        timed = sum(job.trial.timing for job in own)
        takes = sum(seconds.get((name, kind), 0.0) for kind in ("quality", "timing"))
        rows.append({"id": name, "quality": len(own) - timed, "timing": timed, "seconds": round(takes, 1)})
    return rows


def sweep(tx: Taxonomy) -> dict[str, float]:
    """Core-seconds of measuring everything anew, quality and timing."""
    total = {"quality": 0.0, "timing": 0.0}
    for (_, kind), seconds in estimate(tx, jobs(tx)).items():
        total[kind] += seconds
    return total


def covering(store: Store) -> tuple[Store, ...]:
    """A fresh record of the reference covers this machine too; the reference itself wants its own."""
    return (store,) if store is stores.reference else (stores.reference, store)


# --- taking one record ----------------------------------------------------------------------------------------------


def take(tx: Taxonomy, job: Job, workload: Any = None) -> Record:
    """Measure one record, here and now; whatever library computes, it does so with one thread."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    with threadpool_limits(1):
        return _take(tx, job, workload)


def _take(tx: Taxonomy, job: Job, workload: Any) -> Record:
    protocol, node = _protocol(job.node), job.node
    subject = node.reference(**job.variant) if hasattr(node, "reference") else None
    workload = tx.workload(job.workload) if workload is None else workload
    case = Case(node, job.variant, subject, workload, dict(job.trial.setting), job.trial.seed)
    clock = time.perf_counter if job.trial.timing else _core_seconds
    start = clock()
    record = job.header()
    record["fingerprint"] = expected(tx, node, job.variant, job.workload, record["setting"])
    from taxonomy.measure.machine import describe, limits, multiply_adds

    provenance = dict(describe())
    if job.trial.timing:
        from taxonomy.measure.timing import interleave

        contest: Contest = protocol.contest(case)
        contestants, machine = dict(contest.contestants), limits()
        if contest.unit == "flop":  # the peak that they are held against is that of their own rounds
            contestants[PEAK], flop = multiply_adds()
        times = interleave(contestants)
        if peak := times.pop(PEAK, None):
            machine = {**machine, "peak_flops": round(flop / median(peak))}
        record["times"] = {who: [_short(t) for t in ts] for who, ts in times.items()}
        record["work"], record["unit"] = contest.work, contest.unit
        if contest.works:
            record["works"] = dict(contest.works)
        _put(record, contest.values)
        for who, reason in contest.missing.items():
            record.setdefault("missing", {}).setdefault(who, {})["latency"] = reason
        provenance.update(machine)
    else:
        _put(record, protocol.quality(case))
    if snapshot() != _STARTED:
        raise MeasurementFailed("kernels or datasets were edited while this was measured; measure again")
    provenance["seconds"] = round(clock() - start, 3)
    provenance["date"] = datetime.now(UTC).date().isoformat()
    record["provenance"] = provenance
    return record


def _core_seconds() -> float:
    """What this process and those it waited for have computed: whatever else runs, a plan can be made with it."""
    return sum(os.times()[:4])


def _short(seconds: float) -> float:
    return float(f"{seconds:.5g}")


def _put(record: Record, values: Any) -> None:
    for who, figures in values.items():
        for metric, value in figures.items():
            if isinstance(value, Missing):
                record.setdefault("missing", {}).setdefault(who, {})[metric] = value.reason
                continue
            number = float(value)
            if number != number:
                raise ValueError(f"{record['subject']}: {metric} of {who} is no number; give Missing(reason) instead")
            record.setdefault("values", {}).setdefault(who, {})[metric] = number if number % 1 else int(number)


def _worker(parent: int) -> None:
    """A worker ends with its parent, however that ends, and computes with one thread."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    os.environ.update(dict.fromkeys(THREADS, "1"))


def _take_by_key(name: str, variant: dict[str, Any], workload: str, trial: Trial) -> Record:
    import taxonomy

    tx = taxonomy.load()
    node = next(node for node in tx.nodes if node.id == name)
    return take(tx, Job(node, variant, workload, trial))


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_worker, initargs=(os.getpid(),))


# --- taking many ----------------------------------------------------------------------------------------------------


def run(
    tx: Taxonomy,
    owed: Sequence[Job],
    store: Store,
    workers: int = 2,
    report: Callable[[str], None] = lambda line: None,
) -> int:
    """Take these records and write each to the store as it comes.

    Quality runs in `workers` processes of one thread; timing runs alone on the machine, each repetition in a fresh
    process, under a lock that holds for all runs on the machine.

    What needs a package that is not installed is left out, and reported with the command that installs it.

    Returns
    -------
    int
        How many were taken.

    Raises
    ------
    MeasurementFailed
        After all else is done, if any trial raised; the message says which and why.
    """
    saved = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # inherited by the workers before they import anything
    try:
        return _run(tx, owed, store, workers, report)
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _run(tx: Taxonomy, owed: Sequence[Job], store: Store, workers: int, report: Callable[[str], None]) -> int:
    progress = _Progress(tx, owed, report)
    from datasets.card import NotInstalled

    failures: list[str] = []
    left_out = 0

    def finish(job: Job, future: Future[Record]) -> None:
        try:
            store.write(job.node.address, [future.result()])
        except NotInstalled as error:
            nonlocal left_out
            left_out += 1
            report(f"left out: {job}: {error}")
        except Exception as error:
            failures.append(f"{job}: {type(error).__name__}: {error}")
        progress.done(job)

    quality = [job for job in owed if not job.trial.timing]
    if quality:
        with _pool(min(workers, len(quality))) as pool:
            waiting = {pool.submit(_take_by_key, *_ticket(job)): job for job in quality}
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    finish(waiting.pop(future), future)
    repetitions: dict[int, list[Job]] = defaultdict(list)
    for job in owed:
        if job.trial.timing:
            repetitions[job.trial.seed].append(job)
    if repetitions:
        with _machine_alone():
            for repetition in sorted(repetitions):
                with _pool(1) as pool:
                    for job in repetitions[repetition]:
                        future = pool.submit(_take_by_key, *_ticket(job))
                        wait([future])
                        finish(job, future)
    if failures:
        raise MeasurementFailed("\n  ".join([f"{len(failures)} of {len(owed)} measurements failed:", *failures]))
    return len(owed) - left_out


def _ticket(job: Job) -> tuple[Any, ...]:
    return job.node.id, job.variant, job.workload, job.trial


def _machine_alone() -> Any:
    import tempfile
    from pathlib import Path

    from filelock import FileLock

    return FileLock(Path(tempfile.gettempdir()) / "executable-survey-timing.lock")


class _Progress:
    """A line now and then with what is done and the time left, from what the records of each node took."""

    def __init__(self, tx: Taxonomy, owed: Sequence[Job], report: Callable[[str], None]):
        self.total, self.count, self.report = len(owed), 0, report
        seconds = estimate(tx, owed)
        counts = Counter((job.node.id, job.kind) for job in owed)
        self.weight = {name: max(seconds[name], 0.01) / counts[name] for name in counts}
        self.all = sum(max(s, 0.01) for s in seconds.values())
        self.spent = 0.0
        self.start = self.last = time.monotonic()

    def done(self, job: Job) -> None:
        self.count += 1
        self.spent += self.weight[job.node.id, job.kind]
        now = time.monotonic()
        if now - self.last > 2 or self.count == self.total:
            self.last = now
            left = (now - self.start) * max(self.all / self.spent - 1, 0.0)
            self.report(f"{self.count}/{self.total} measured, about {_clock(left)} left: {job}")


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def measure_now(node: Any, workload: Any = None, variant: dict[str, Any] | None = None) -> pd.DataFrame:
    """Measure a technique now, in this process; the rows, as `tx.measurements` gives them.

    Parameters
    ----------
    node : Technique
    workload : str or datasets.Workload, optional
        An id, or one of the reader's own; all of the technique's own if absent.
    variant : dict, optional
        One of the technique's variants or a setting of its parameters of the reader's own; all variants if absent.

    Notes
    -----
    What has an id of its own goes to this machine's store; a reader's own workload leaves no trace. A timing of this
    process is one repetition, without an interval.
    """
    import pandas as pd

    import taxonomy
    from taxonomy.measurements import COLUMNS, rows

    tx = taxonomy.load()
    names = workloads_of(tx, node) if workload is None else [workload]
    records = []
    for name in names:
        own = not isinstance(name, str)
        target: Any = name if own else tx.workload(name)
        for parameters in [variant] if variant is not None else node.variants if own else variants_of(tx, node, name):
            trials = _protocol(node).trials(node, dict(parameters), target)
            for trial in trials:
                if trial.timing and trial.seed:
                    continue
                job = Job(node, dict(parameters), target.id, trial)
                record = take(tx, job, target)
                records.append(record)
                if not own:
                    stores.here.write(node.address, [record])
    return pd.DataFrame(rows(tx, node, records), columns=list(COLUMNS))
