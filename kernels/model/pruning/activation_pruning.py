r"""Activation pruning: of what a layer keeps for its backward pass, only the blocks of large numbers stay.

The forward pass is exact. Between it and the backward pass a linear layer or a convolution keeps its input x, to
compute the gradient of its weights. Here x is divided, as a matrix of items by features, in blocks of b x b, and of
these the share d with the largest sums of magnitudes is kept, in a block-sparse form; the others are forgotten, and
read as zero,

.. math:: \hat x_B = x_B \left[ \sum_{i \in B} |x_i| \text{ is among the } \mathrm{round}(d \, n_B)
          \text{ largest} \right], \qquad \hat G_W = g^\top \hat x.

The gradient that is passed on to earlier layers, g W, needs no x, and is exact. What a rectifier keeps is the sign of
its output, one bit each; max pooling keeps where it took its results from. The sparsity is *ephemeral*: it is chosen
anew at every step, and the trained network is dense.

Source: D. Barley and H. Fröning, "Compressing the Backward Pass of Large-Scale Neural Architectures by Structured
Activation Pruning", 2023.

Examples
--------
>>> kept = BlockSparse.of(torch.tensor([[1.0, 2.0, 0.1, 0.2], [3.0, 4.0, 0.3, 0.4]]), density=0.5, block=2)
>>> kept.values.shape, kept.tensor()
(torch.Size([1, 2, 2]), tensor([[1., 2., 0., 0.],
        [3., 4., 0., 0.]]))
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from kernels.model.transform import CONVOLUTIONS

__all__ = ["ActivationPruning", "BlockSparse", "Ephemeral", "Shape", "Signs"]

SMALLEST = 1024
"""Bytes: smaller tensors are kept as they are."""

CHOICES = ("magnitude", "random")


@dataclass(frozen=True)
class BlockSparse:
    """A float tensor, items by features, of which some blocks are left.

    Examples
    --------
    >>> BlockSparse.of(torch.ones(3, 5), density=1.0, block=2).tensor().sum()
    tensor(15.)
    """

    values: Tensor
    places: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, x: Tensor, density: float, block: int, random: torch.Generator | None = None) -> BlockSparse:
        """Keep the share `density` of the blocks, those of the largest sums of magnitudes, or at random.

        Parameters
        ----------
        x : Tensor of shape (items, ...)
        density : float
        block : int
            Items and features of a block; what is missing at the ends counts as zeros.
        random : torch.Generator, optional
            Chooses blindly.
        """
        matrix = x.detach().reshape(len(x), -1)
        rows, columns = (-(-size // block) for size in matrix.shape)
        missing = (columns * block - matrix.shape[1], rows * block - len(matrix))
        if any(missing):
            matrix = functional.pad(matrix, (0, missing[0], 0, missing[1]))
        blocks = matrix.view(rows, block, columns, block).transpose(1, 2)
        if random is None:
            score = torch.linalg.vector_norm(blocks, ord=1, dim=(2, 3)).flatten()
        else:
            score = torch.rand(rows * columns, generator=random)
        places = score.topk(round(density * len(score)), sorted=False).indices
        return cls(blocks[places // columns, places % columns], places.to(torch.int32), x.shape)

    def tensor(self) -> Tensor:
        """The tensor, zero where no block is left."""
        block, items = self.values.shape[-1], self.shape[0]
        features = self.shape.numel() // max(1, items)
        rows, columns = (-(-size // block) for size in (items, features))
        spread, places = self.values.new_zeros(rows, block, columns, block), self.places.long()
        spread.transpose(1, 2)[places // columns, places % columns] = self.values
        return spread.view(rows * block, -1)[:items, :features].reshape(self.shape)


@dataclass(frozen=True)
class Signs:
    """Where a rectifier's output is positive, one bit each: all that its backward pass reads.

    Examples
    --------
    >>> kept = Signs.of(torch.tensor([0.0, 3.0, 0.5]))
    >>> kept.bits.nbytes, kept.tensor()
    (1, tensor([0., 1., 1.]))
    """

    bits: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, x: Tensor) -> Signs:
        """Pack the signs of a tensor that is nowhere negative."""
        flat = functional.pad((x.detach() > 0).flatten().to(torch.uint8), (0, -x.numel() % 8)).view(-1, 8)
        return cls((flat << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8), x.shape)

    def tensor(self) -> Tensor:
        """One where the output was positive, zero elsewhere."""
        flat = (self.bits[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        return flat.flatten()[: self.shape.numel()].float().view(self.shape)


@dataclass(frozen=True)
class Shape:
    """The shape of max pooling's input: its backward pass reads no more of it, beside the places of the maxima.

    Examples
    --------
    >>> Shape(torch.Size([2, 3])).tensor().shape
    torch.Size([2, 3])
    """

    shape: torch.Size

    def tensor(self) -> Tensor:
        """Zeros that take no room."""
        return torch.zeros(()).expand(self.shape)


class Ephemeral(nn.Module):
    """A network whose layers keep for the backward pass what they are told to.

    Parameters
    ----------
    network : nn.Module
        Its parameters are the wrapper's own.
    keep : callable of (layer, tensor)
        Takes the layer that saves, and what it saves, and gives any object; None keeps the tensor.
    give : callable
        Takes that object and gives the tensor to be read.

    Notes
    -----
    Parameters, buffers, the network's input and small tensors stay as they are.
    """

    def __init__(
        self, network: nn.Module, keep: Callable[[nn.Module | None, Tensor], Any], give: Callable[[Any], Tensor]
    ) -> None:
        super().__init__()
        self.network, self.keep, self.give = network, keep, give

    def forward(self, x: Tensor) -> Tensor:
        resident = {_address(tensor) for tensor in (x, *self.network.parameters(), *self.network.buffers())}
        with self._running() as running:

            def pack(tensor: Tensor) -> Any:
                if _address(tensor) in resident or tensor.nbytes < SMALLEST:
                    return tensor
                form = self.keep(running[-1] if running else None, tensor)
                return tensor if form is None else form

            with saved_tensors_hooks(pack, self._given):
                return self.network(x)

    def _given(self, form: Any) -> Tensor:
        return form if isinstance(form, Tensor) else self.give(form)

    @contextmanager
    def _running(self) -> Iterator[list[nn.Module]]:
        """The modules that are computing, the innermost last."""
        running: list[nn.Module] = []

        def leave(*_: Any) -> None:
            running.pop()

        handles = []
        for module in self.network.modules():
            handles.append(module.register_forward_pre_hook(lambda module, _: running.append(module)))
            handles.append(module.register_forward_hook(leave, always_call=True))
        try:
            yield running
        finally:
            for handle in handles:
                handle.remove()


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@dataclass(frozen=True)
class ActivationPruning:
    r"""Train with inputs of layers kept in their blocks of large numbers alone.

    .. math:: \hat x_B = x_B \left[ \sum_{i \in B} |x_i| \text{ is among the largest} \right], \qquad
              \hat G_W = g^\top \hat x

    Parameters
    ----------
    density : float
        Share of the blocks that are kept, 0 < density <= 1.
    block : int
        Items, and features, of a block.
    choice : {"magnitude", "random"}
        Which are kept: the largest, or, to compare, any.
    seed : int
        Of a random choice.

    Notes
    -----
    Inputs of linear layers and convolutions are pruned, a rectifier keeps signs; batch norm keeps its whole input, for
    its gradient has a mean and a deviation in it. Adapted: the paper multiplies block-sparse matrices in kernels of
    its own; here the blocks are spread out again, so that bytes are saved and products are not.

    Source
    ------
    Barley and Fröning, "Compressing the Backward Pass of Large-Scale Neural Architectures by Structured Activation
    Pruning", 2023.

    Examples
    --------
    >>> chain, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), torch.randn(32, 64)
    >>> ActivationPruning(density=0.25).wrap(chain)(x).sum().backward()
    >>> bool(chain[2].weight.grad.any())
    True
    """

    density: float = 0.25
    block: int = 8
    choice: str = "magnitude"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density: expected 0 < density <= 1, got {self.density}")
        if self.block < 1:
            raise ValueError(f"block: expected at least 1, got {self.block}")
        if self.choice not in CHOICES:
            raise ValueError(f"choice: expected one of {', '.join(CHOICES)}, got {self.choice!r}")

    def wrap(self, network: nn.Module, beside: Any = None) -> Ephemeral:
        """The network with its own parameters, its layers' inputs pruned for the backward pass.

        Parameters
        ----------
        network : nn.Module
        beside : optional
            What keeps everything else, and the pruned inputs, in another form again: an object with ``keep`` and
            ``give``, as `kernels.implementation.training_memory.saved_tensors.Keeping`.
        """
        random = torch.Generator().manual_seed(self.seed) if self.choice == "random" else None

        def keep(layer: nn.Module | None, x: Tensor) -> Any:
            if isinstance(layer, nn.ReLU) and x.dtype is torch.float32:
                return Signs.of(x)
            if isinstance(layer, nn.MaxPool2d) and x.is_floating_point():
                return Shape(x.shape)
            if isinstance(layer, (nn.Linear, *CONVOLUTIONS)) and x.is_floating_point() and self.density < 1:
                pruned = BlockSparse.of(x, self.density, self.block, random)
                return pruned if beside is None else (beside.keep(pruned.tensor()), x.shape)
            return None if beside is None else (beside.keep(x.detach()), x.shape)

        def give(form: Any) -> Tensor:
            return beside.give(form[0]).view(form[1]) if isinstance(form, tuple) else form.tensor()

        return Ephemeral(network, keep, give)

    def run(self, recipe: Any, network: nn.Module, data: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Train a copy of the network by the recipe.

        Parameters
        ----------
        recipe : datasets.Recipe
            Anything whose ``train(network, data)`` trains in place and gives a trace.
        network : nn.Module
            Left as it is.
        data : datasets.Data

        Returns
        -------
        network : nn.Module
            The trained copy, plain again, and dense.
        trace : list of dict
            What the recipe reports.
        """
        network = copy.deepcopy(network)
        trace = recipe.train(self.wrap(network), data)
        network.train(False)
        return network, trace
