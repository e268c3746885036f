"""Data parallelism: every worker holds the network and takes a share of each batch; gradients are summed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.implementation.distributed.system import SplitBatch
from kernels.implementation.distributed.workers import Group

__all__ = ["DataParallel", "SynchronizedNorm", "ring_bytes"]


def ring_bytes(size: int, workers: int) -> float:
    """Bytes that each of n workers sends to sum a tensor of `size` bytes in a ring: 2 (n - 1) / n of it.

    Where n does not divide the number of elements, some send an element more or less.

    Examples
    --------
    >>> [ring_bytes(1000, n) for n in (1, 2, 4, 1000)]
    [0.0, 1000.0, 1500.0, 1998.0]
    """
    return 2 * (workers - 1) / workers * size


class _Sum(torch.autograd.Function):
    """A tensor summed over all workers; so is its gradient, since every worker's loss depends on the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.all_reduce(x.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return ctx.group.all_reduce(gradient.clone(memory_format=torch.contiguous_format)), None


class SynchronizedNorm(nn.Module):
    """A batch norm whose statistics, while it trains, are those of the items of all workers.

    Parameters
    ----------
    norm : nn.BatchNorm1d, nn.BatchNorm2d or nn.BatchNorm3d
        Its parameters and running statistics are the ones used.
    group : Group

    Examples
    --------
    >>> norm, x = nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    >>> torch.allclose(SynchronizedNorm(norm, Group())(x), nn.BatchNorm2d(3)(x), atol=1e-6)
    True
    """

    def __init__(self, norm: Any, group: Group) -> None:
        super().__init__()
        self.norm, self.group = norm, group

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if not norm.training:
            return norm(x)
        norm._check_input_dim(x)
        dims, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        items = x.new_tensor([x.numel() // norm.num_features])
        *_, n = sums = _Sum.apply(torch.cat([x.sum(dims), items]), self.group)
        mean = sums[:-1] / n
        x = x - mean.view(shape)
        variance = _Sum.apply(x.square().sum(dims), self.group) / n
        if norm.track_running_stats:
            with torch.no_grad():
                norm.num_batches_tracked += 1
                share = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
                norm.running_mean.lerp_(mean, share)
                norm.running_var.lerp_(variance * n / (n - 1), share)
        x = x * (variance + norm.eps).rsqrt().view(shape)
        return x * norm.weight.view(shape) + norm.bias.view(shape) if norm.affine else x


@dataclass(frozen=True)
class DataParallel(SplitBatch):
    r"""Train with each batch split among n workers, which sum their gradients in a ring.

    The gradient of a mean over items is the mean of the gradients, so that of the batch B is put together from those of
    the shares,

    .. math:: \nabla L(B) = \sum_{k=1}^n \frac{|B_k|}{|B|} \nabla L(B_k),

    and all workers make the same update. Equal it is as far as sums in another order are, if the loss is a mean over
    items that know nothing of each other. Batch norm breaks that: its statistics are those of a share, unless
    `synchronize` sums them too, in four small exchanges a layer. A ring sends

    .. math:: \frac{2 (n - 1)}{n} |w|

    bytes a worker, of gradients as large as the weights w. A network with batch norm that is not synchronized comes
    back with the running statistics of the first worker.

    Parameters
    ----------
    workers : int
        n; a process each.
    synchronize : bool
        Take batch norm's statistics over all workers.

    Source: Li et al., "Scaling Distributed Machine Learning with the Parameter Server", OSDI 2014; statistics of a
    share of the batch: Goyal et al., "Accurate, Large Minibatch SGD", arXiv 1706.02677, section 2.3.

    Examples
    --------
    >>> import datasets
    >>> mlp, batch = datasets.workload("digits-mlp"), datasets.load("digits").train[:32]
    >>> x, y = torch.tensor(batch.x), torch.tensor(batch.y)
    >>> with DataParallel(workers=2).start(mlp.recipe, mlp.network(), x, y) as stepping:
    ...     step = stepping.look()
    >>> step.sent, ring_bytes(sum(p.nbytes for p in mlp.network().parameters()), workers=2)
    ([26280, 26280], 26280.0)
    """

    workers: int = 2
    synchronize: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.workers, int) and self.workers >= 1):
            raise ValueError(f"workers: expected a positive number of processes, got {self.workers!r}")

    def part(self, group: Group, network: nn.Module) -> nn.Module:
        return _synchronized(network, group) if self.synchronize else network

    def idle(self, network: nn.Module, nothing: Tensor) -> None:
        if self.synchronize:
            network(nothing).sum().backward()


def _synchronized(network: nn.Module, group: Group) -> nn.Module:
    if isinstance(network, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return SynchronizedNorm(network, group)
    for name, child in network.named_children():
        setattr(network, name, _synchronized(child, group))
    return network
