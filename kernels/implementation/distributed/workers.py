"""Workers: real processes that compute side by side, exchange tensors, and count the bytes that they send."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Answer", "Disconnected", "Group", "WorkerFailed", "Workers"]

GRACE = 1.0
"""Seconds in which the cause may follow its consequence: a neighbour's complaint often arrives before the death."""


class WorkerFailed(RuntimeError):
    """A worker raised, was killed, or ended; the message names it. All others have been ended."""


class Disconnected(ConnectionError):
    """Raised in a worker that cannot reach another one."""


@dataclass
class Group:
    """What a worker sees of the others: its place among them, ways to exchange tensors, and a count of what it sent.

    Every exchange is built of messages from one worker to one other, so that the count is of the bytes that leave.
    Tensors of all dtypes, contiguous; each call must be made by all whom it concerns, in the same order.

    Attributes
    ----------
    rank, size : int
        Which worker this is, and of how many.
    sent : int
        Bytes of payload that this worker sent in the present call.
    kept : dict
        Whatever the worker wants to find again in the next call.
    """

    rank: int = 0
    size: int = 1
    sent: int = 0
    kept: dict[str, Any] = field(default_factory=dict)
    _posted: dict[int, tuple[Any, Tensor, int]] = field(default_factory=dict)
    _number: int = 0

    def send(self, x: Tensor, to: int) -> int:
        """Send a tensor on its way, without waiting for it; `x` must stay as it is until it has left.

        Returns
        -------
        int
            The message's number, for `settle`.
        """
        self._count(x)
        if x.numel():
            self._posted[self._number] = self._try(to, dist.isend, x, to), x, to
        self._number += 1
        return self._number - 1

    def receive(self, x: Tensor, source: int) -> Tensor:
        """Fill `x` with what `source` sends, which has its shape and dtype."""
        _contiguous(x)
        if x.numel():
            self._try(source, self._try(source, dist.irecv, x, source).wait)
        return x

    def settle(self, *messages: int) -> None:
        """Wait until these messages have left, or all; it takes no longer than until they are received."""
        for message in messages or list(self._posted):
            if message in self._posted:
                work, _, to = self._posted.pop(message)
                self._try(to, work.wait)

    def swap(self, x: Tensor, to: int, y: Tensor, source: int) -> Tensor:
        """Send `x` to one worker while `y` comes from another."""
        self.send(x, to)
        self.receive(y, source)
        self.settle()
        return y

    def parts(self, x: Tensor) -> list[Tensor]:
        """Views of `x`, flat, one for each worker, of sizes that differ by one at most."""
        return list(_contiguous(x).view(-1).tensor_split(self.size))

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """Sum `x` over all workers, in a ring; each gets its own part of the sum, the rest of `x` is spoilt.

        Returns
        -------
        Tensor
            This worker's part, a view of `x`.
        """
        parts, own = self.parts(x), self.rank
        for r in range(1, self.size):
            target = parts[(own - r - 1) % self.size]
            target += self.swap(parts[(own - r) % self.size], self.right, torch.empty_like(target), self.left)
        return parts[own]

    def all_gather(self, x: Tensor) -> Tensor:
        """Fill the parts of `x` that others own with what they hold there, in a ring."""
        parts, own = self.parts(x), self.rank
        for r in range(self.size - 1):
            self.swap(parts[(own - r) % self.size], self.right, parts[(own - r - 1) % self.size], self.left)
        return x

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum `x` over all workers, in place, to the same bits everywhere: `reduce_scatter`, then `all_gather`.

        Of n workers each sends 2 (n - 1) / n of the tensor, however many they are less than twice of it.
        """
        self.reduce_scatter(x)
        return self.all_gather(x)

    def exchange(self, message: Tensor) -> list[Tensor]:
        """Every worker's message, a flat tensor of one dtype, to every worker; lengths may differ.

        Each sends its own to the n - 1 others. The lengths go ahead, and count as headers of the transport.
        """
        if message.dim() != 1:
            raise ValueError(f"message: expected a flat tensor, got shape {tuple(message.shape)}")
        sent, lengths = self.sent, torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = message.numel()
        self.all_gather(lengths)
        self.sent = sent
        messages = [message.new_empty(int(length)) for length in lengths]
        messages[self.rank] = message
        for r in range(1, self.size):
            to, source = (self.rank + r) % self.size, (self.rank - r) % self.size
            self.send(message, to)
            self.receive(messages[source], source)
        self.settle()
        return messages

    @property
    def left(self) -> int:
        """The worker before this one in the ring."""
        return (self.rank - 1) % self.size

    @property
    def right(self) -> int:
        """The worker after this one in the ring."""
        return (self.rank + 1) % self.size

    def _count(self, x: Tensor) -> None:
        self.sent += _contiguous(x).nbytes

    def _try(self, other: int, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except RuntimeError as error:
            raise Disconnected(f"worker {self.rank} cannot exchange with worker {other}: {error}") from error


def _contiguous(x: Tensor) -> Tensor:
    if not x.is_contiguous():
        raise ValueError(f"x: expected a contiguous tensor, got shape {tuple(x.shape)} with strides {x.stride()}")
    return x


@dataclass(frozen=True)
class Answer:
    """What a worker gives back of one call: the function's value, and the bytes that the worker sent in it."""

    value: Any
    sent: int


class Workers:
    """Processes of one thread each, joined by torch's gloo on this machine, that call functions together.

    They live until `close`, the end of the ``with`` block, or the end of this process, whatever ends it. When one
    fails, all are ended, and the error says which it was.

    Parameters
    ----------
    size : int
        How many.
    timeout : float
        Seconds in which they must be ready, and answer a call that says nothing else.

    Raises
    ------
    WorkerFailed
        From `call`: a worker raised, was killed, or ended.
    TimeoutError
        From `call`: the workers that it names did not answer in time.

    Notes
    -----
    The processes are forked from a server that has torch and this package loaded, which makes them start in a fraction
    of a second and is safe whatever threads the caller has. A script that starts workers guards its own start with
    ``if __name__ == "__main__"``, as always with `multiprocessing`.

    Examples
    --------
    >>> with Workers(2) as workers:
    ...     answers = workers.call(Group.all_reduce, torch.ones(6))
    >>> answers[1].value, answers[1].sent
    (tensor([2., 2., 2., 2., 2., 2.]), 24)
    """

    def __init__(self, size: int, timeout: float = 60.0) -> None:
        if not (isinstance(size, int) and size >= 1):
            raise ValueError(f"size: expected a positive number of workers, got {size!r}")
        self.size, self.timeout = size, timeout
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        folder = tempfile.mkdtemp(prefix="workers-")
        self.close = weakref.finalize(self, _end, self._processes, self._pipes, folder)
        context = _context()
        try:
            for rank in range(size):
                mine, theirs = context.Pipe()
                self._pipes.append(mine)
                process = context.Process(
                    target=_work, args=(rank, size, os.path.join(folder, "store"), timeout, theirs), daemon=True
                )  # fmt: skip
                process.start()
                self._processes.append(process)
                theirs.close()
            self._answers(timeout)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """The processes' ids, by rank; none once they are closed."""
        return [process.pid or 0 for process in self._processes]

    def call(self, function: Callable[..., Any], *args: Any, timeout: float | None = None) -> list[Answer]:
        """``function(group, *args)`` in every worker at once.

        Parameters
        ----------
        function : callable of (Group, ...)
            One that can be pickled: it stands at the top of a module, not in a notebook's cell.
        *args
            Picklable; the same for all.
        timeout : float, optional
            Seconds.

        Returns
        -------
        list of Answer
            By rank.
        """
        if not self.close.alive:
            raise ValueError("workers: expected open ones, but they have been closed")
        order = _order(function, args)
        try:
            for pipe in self._pipes:
                with contextlib.suppress(BrokenPipeError):  # that a worker is gone comes out below
                    pipe.send_bytes(order)
            return self._answers(self.timeout if timeout is None else timeout)
        except BaseException:
            self.close()
            raise

    def _answers(self, timeout: float) -> list[Answer]:
        deadline = time.monotonic() + timeout
        answers: dict[int, Answer] = {}
        complaint = ""
        while len(answers) < self.size:
            left = [rank for rank in range(self.size) if rank not in answers]
            events: list[Any] = [self._pipes[rank] for rank in left]
            if not wait(events, max(0.0, deadline - time.monotonic())):
                if complaint:
                    raise WorkerFailed(complaint)
                names = " and ".join(map(str, left))
                raise TimeoutError(f"worker {names} of {self.size}: no answer within {timeout:g} s")
            for rank in left:
                if not self._pipes[rank].poll():
                    continue
                answer = self._answer(rank)
                if isinstance(answer, Answer):
                    answers[rank] = answer
                elif answer.cause:
                    raise WorkerFailed(answer.text)
                else:
                    answers[rank] = Answer(None, 0)
                    complaint, deadline = complaint or answer.text, min(deadline, time.monotonic() + GRACE)
        if complaint:
            raise WorkerFailed(complaint)
        return [answers[rank] for rank in range(self.size)]

    def _answer(self, rank: int) -> Answer | _Failure:
        try:
            return pickle.loads(self._pipes[rank].recv_bytes())
        except (EOFError, OSError):  # between two messages, or in the midst of one
            process = self._processes[rank]
            process.join(GRACE)
            code = process.exitcode
            how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with status {code}"
            return _Failure(f"worker {rank} of {self.size} {how}", True)


@dataclass(frozen=True)
class _Failure:
    """What a worker says of its failure; whether it is a cause, or follows from another's."""

    text: str
    cause: bool


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # the first optimizer of a process imports torch._dynamo, which takes longer than all the rest
    context.set_forkserver_preload(["torch._dynamo", "kernels.implementation.distributed.system"])
    return context


def _order(function: Callable[..., Any], args: Sequence[Any]) -> bytes:
    bare: Any = function
    while isinstance(bare, partial):
        bare = bare.func
    name = getattr(bare, "__qualname__", repr(bare))
    typed_in = getattr(bare, "__module__", None) == "__main__" and not hasattr(sys.modules["__main__"], "__file__")
    if typed_in:
        raise TypeError(f"function: expected one that workers can import, got {name}, typed in; put it into a module")
    try:
        return pickle.dumps((function, args))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(f"function, args: expected what can be pickled, got {name} and {error}") from error


def _work(rank: int, size: int, place: str, timeout: float, pipe: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, which is interrupted too, ends its workers
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    store = dist.FileStore(place, size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    group = Group(rank, size)
    pipe.send_bytes(pickle.dumps(Answer(None, 0)))
    while True:
        try:
            order = pipe.recv_bytes()
        except EOFError:
            return
        group.sent = 0
        try:
            function, args = pickle.loads(order)
            value = function(group, *args)
            group.settle()
            reply = pickle.dumps(Answer(value, group.sent))
        except Exception as error:
            text = f"worker {rank} of {size} failed: {type(error).__name__}: {error}\n\n{traceback.format_exc()}"
            reply = pickle.dumps(_Failure(text, not isinstance(error, Disconnected)))
        pipe.send_bytes(reply)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _end(processes: list[BaseProcess], pipes: list[Connection], folder: str) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
        process.close()
    for pipe in pipes:
        pipe.close()
    processes.clear()
    pipes.clear()
    shutil.rmtree(folder, ignore_errors=True)
