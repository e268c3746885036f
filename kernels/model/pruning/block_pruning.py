r"""Block pruning: weights go and stay in aligned blocks as wide as a vector register.

Zeros save time only if skipping them costs less than multiplying them. With scattered zeros a processor that handles
many numbers at once must gather its operands one by one. If the weights of a block fill a vector register together, one
index serves all of them, and every multiply-add of the register counts. A block b of weights is ranked by its root mean
square,

    rms(b) = sqrt( mean over b of w^2 ),

the lowest are masked, and the network is fine-tuned.

Source: J. Yu et al., "Scalpel: Customizing DNN Pruning to the Underlying Hardware Parallelism", ISCA 2017, SIMD-aware
weight pruning.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.pruning.mask import Mask, largest
from kernels.model.transform import constrain, layer_weights

__all__ = ["BlockPruning", "RandomBlocks", "block_scores"]


@dataclass(frozen=True)
class BlockPruning:
    r"""Keep the share `density` of the blocks of weights, those of the largest root mean square.

    .. math:: \tilde w_b = m_b w_b, \qquad m_b = \left[\, \sqrt{\operatorname{mean}_{i \in b} w_i^2}
       \text{ is among the } \mathrm{round}(d B) \text{ largest of } B \,\right]

    Parameters
    ----------
    density : float
        Share of the blocks that remain, 0 < density <= 1.
    rows, columns : int
        Of a block: outputs and inputs. Blocks are aligned; those at the edges may be smaller.

    Notes
    -----
    All layers' blocks compete. Of a convolution the columns are the entries of a patch. Adapted: blocks are masked
    once, as weights are in magnitude pruning, so that the two differ in granularity alone. This book's kernel for
    blocks wants outputs that share an input beside each other, rows > 1 and columns = 1.

    Source: Yu et al. 2017.

    Examples
    --------
    >>> pruned = BlockPruning(density=0.25, rows=4).apply(nn.Linear(8, 8))
    >>> (pruned.weight != 0).unflatten(0, (2, 4)).sum(1).unique()
    tensor([0, 4])
    """

    density: float = 0.2
    rows: int = 8
    columns: int = 1

    def __post_init__(self) -> None:
        _check(self.density, self.rows, self.columns)

    def apply(self, network: nn.Module, data: Any = None) -> nn.Module:
        """A pruned copy of `network`; fine-tune it to regain accuracy, then `kernels.model.transform.bake` it.

        Parameters
        ----------
        network : nn.Module
            Trained; its convolution, linear and recurrent layers are pruned, biases and norms are not.
        data : optional
            Not needed: the weights alone decide.

        Raises
        ------
        TypeError, ValueError
            If `network` is no module, or has no layer to prune.
        """
        return _pruned(network, self, lambda weight: block_scores(weight, self.rows, self.columns))

    def at_random(self, seed: int) -> RandomBlocks:
        """As many blocks of the same shape, drawn at random: what their size has to beat."""
        return RandomBlocks(self.density, self.rows, self.columns, seed)


@dataclass(frozen=True)
class RandomBlocks:
    """Keep the share `density` of the blocks, drawn at random; parameters as for `BlockPruning`."""

    density: float = 0.2
    rows: int = 8
    columns: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.density, self.rows, self.columns)

    def apply(self, network: nn.Module, data: Any = None) -> nn.Module:
        """A pruned copy of `network`."""
        chance = torch.Generator().manual_seed(self.seed)
        return _pruned(
            network, self,
            lambda weight: torch.rand(block_scores(weight, self.rows, self.columns).shape, generator=chance),
        )  # fmt: skip


def block_scores(weight: Tensor, rows: int, columns: int) -> Tensor:
    """The root mean square of every block: (blocks over the outputs, blocks over the inputs).

    Parameters
    ----------
    weight : Tensor of shape (outputs, ...)
    rows, columns : int
        Of a block. What of it lies beyond the edge does not count.

    Examples
    --------
    >>> block_scores(torch.tensor([[3.0, 0.0, 5.0], [4.0, 0.0, 5.0]]), rows=2, columns=1)
    tensor([[3.5355, 0.0000, 5.0000]])
    """
    matrix = weight.flatten(1)
    inside = torch.ones_like(matrix)
    squares, counts = (_blocks(part, rows, columns).sum((2, 3)) for part in (matrix**2, inside))
    return (squares / counts).sqrt()


class BlockMask(Mask):
    """A mask of whole blocks, and what they take."""

    def __init__(self, mask: Tensor, rows: int, columns: int) -> None:
        super().__init__(mask)
        self.rows, self.columns = rows, columns

    def stored_bits(self, weight: Tensor) -> int:
        """The values of the blocks that are kept, in FP32, and a bit for each block."""
        blocks = _blocks(self.mask.flatten(1).float(), self.rows, self.columns)
        return 32 * int(self.mask.sum()) + blocks.shape[0] * blocks.shape[1]


def _blocks(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """(blocks over the outputs, blocks over the inputs, rows, columns), zeros beyond the edges."""
    padded = functional.pad(matrix, (0, -matrix.shape[1] % columns, 0, -matrix.shape[0] % rows))
    return padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).transpose(1, 2)


def _pruned(network: nn.Module, shape: BlockPruning | RandomBlocks, score: Callable[[Tensor], Tensor]) -> nn.Module:
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
    network = copy.deepcopy(network)
    places = list(layer_weights(network))
    if not places:
        raise ValueError(
            f"network: expected convolution, linear or recurrent layers to prune; {type(network).__name__} has none"
        )
    weights = [getattr(layer, name).detach() for layer, name in places]
    scores = [score(weight) for weight in weights]
    together = torch.cat([s.flatten() for s in scores])
    chosen = largest(together, round(shape.density * len(together))).split([s.numel() for s in scores])
    for (layer, name), weight, s, kept in zip(places, weights, scores, chosen, strict=True):
        by_block = kept.view(s.shape).repeat_interleave(shape.rows, 0).repeat_interleave(shape.columns, 1)
        mask = by_block[: len(weight), : weight[0].numel()].reshape(weight.shape)
        constrain(layer, name, BlockMask(mask.clone(), shape.rows, shape.columns))
    return network


def _check(density: float, rows: int, columns: int) -> None:
    if not 0 < density <= 1:
        raise ValueError(f"density: expected 0 < density <= 1, got {density!r}")
    if rows < 1 or columns < 1:
        raise ValueError(f"rows, columns: expected at least 1, got {rows!r} and {columns!r}")
