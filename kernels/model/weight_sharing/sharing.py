"""What all ways of sharing values in a layer have in common: a codebook in the weight's place, and who refers to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.compressed_file import Table
from kernels.model.transform import layer_weights

__all__ = ["Shared", "weights"]


class Shared(nn.Module):
    """A parametrization: from a codebook, which is what is trained, the weight that refers to it.

    The codebook takes the weight's place as the parameter below, so that its gradient is the sum of those of all places
    that refer to an entry.

    Parameters
    ----------
    codes : Tensor of int64
        Entries, in the weight's own order; an entry of d values stands for d neighbours.
    codebook : Tensor of floats, shape (k,) or (k, d)
        To begin with.
    shape : tuple of int
        The weight's.
    zero : bool
        Whether code 0 is a zero that stays, and j refers to entry j - 1.

    Examples
    --------
    >>> layer = nn.Linear(2, 2, bias=False)
    >>> shared = Shared(torch.tensor([1, 0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), (2, 2))
    >>> nn.utils.parametrize.register_parametrization(layer, "weight", shared).weight.detach()
    tensor([[3., 4.],
            [1., 2.]])
    """

    codes: Tensor

    def __init__(self, codes: Tensor, codebook: Tensor, shape: tuple[int, ...], zero: bool = False) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self._begin = [codebook]  # no parameter of this module: the layer holds it, as the original of its weight
        self.shape, self.zero = shape, zero

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The codebook that replaces the weight."""
        return self._begin[0]

    def forward(self, codebook: Tensor) -> Tensor:
        return self._entries(codebook)[self.codes].reshape(self.shape)

    def _entries(self, codebook: Tensor) -> Tensor:
        return torch.cat([codebook.new_zeros(1, *codebook.shape[1:]), codebook]) if self.zero else codebook

    def encoded(self, weight: Tensor) -> Table:
        """Codes and codebook, as `kernels.model.compressed_file` stores them; entries that nobody refers to are not."""
        codes, renumbered = torch.unique(self.codes.flatten(), return_inverse=True)
        entries = torch.zeros(len(codes), weight.numel() // max(1, self.codes.numel()))
        entries[renumbered] = weight.detach().reshape(self.codes.numel(), entries.shape[1])
        return Table.of(renumbered.numpy(), entries.numpy()[None])

    def stored_bits(self, weight: Tensor) -> int:
        """Codes in whole bits, where it pays the non-zero ones alone behind a bitmap or runs; the codebook in FP32."""
        return self.encoded(weight).bits


def weights(network: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """The weights of convolution, linear and recurrent layers: path, layer, name in it, values.

    Raises
    ------
    ValueError
        If `network` has no such layer, or a layer has a weight that is not finite.
    """
    places: list[tuple[Any, str]] = list(layer_weights(network))
    if not places:
        raise ValueError(
            f"network: expected convolution, linear or recurrent layers; {type(network).__name__} has none"
        )
    paths = {id(layer): path for path, layer in network.named_modules()}
    for layer, name in places:
        path, weight = ".".join(filter(None, (paths[id(layer)], name))), getattr(layer, name).detach()
        if not weight.isfinite().all():
            raise ValueError(f"{path}: expected finite weights, got NaN or infinity")
        yield path, layer, name, weight
