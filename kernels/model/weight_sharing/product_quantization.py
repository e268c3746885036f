r"""Product quantization: runs of neighbouring weights are replaced by the nearest of few codewords.

Every row of a layer's weight matrix (all weights of one output) is cut into sub-vectors v of d neighbours. K-means
finds k codewords c, and each sub-vector is replaced by one:

    min over c, z of  sum_i || v_i - c_{z_i} ||^2

A code of log2 k bits then stands for d weights, log2(k) / d bits each. A row is a choice of one codeword for each of
its places: the set of all rows that can be said is a product of codebooks, hence the name.

A product with the layer's input x needs the decoded weights nowhere. With x cut likewise into x_m,

    y_o = sum_m T[m, z_om],   T[m, j] = <c_j, x_m>

every codeword meets every piece of the input once, and each output is a sum of look-ups.

What matters is the layer's output, not its weights. Weighted by the inputs, the distance of a sub-vector from a
codeword is what it changes in the output for the inputs of some training items:

    || X (v - c) ||^2 = (v - c)^T H (v - c),   H = X^T X

with the pieces of all inputs as the rows of X. With H = L L^T this is plain k-means on the points L^T v.

Source: J. Wu et al., "Quantized Convolutional Neural Networks for Mobile Devices", CVPR 2016 (look-ups); P. Stock et
al., "And the Bit Goes Down: Revisiting the Quantization of Neural Networks", ICLR 2020 (weighting).

Examples
--------
>>> layer, x = nn.Linear(8, 30, bias=False), torch.randn(5, 8)
>>> shared = ProductQuantization(codewords=6, length=4).apply(layer)
>>> codes, codebook = parts(shared)
>>> torch.allclose(lookup_product(x, codes, codebook), shared(x), atol=1e-6)
True
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kernels.model.transform import bake, constrain
from kernels.model.weight_sharing.k_means import k_means
from kernels.model.weight_sharing.sharing import Shared, weights

__all__ = ["ProductQuantization", "RandomCodewords", "lookup_product", "parts", "second_moment"]

ITEMS = 256
"""Training items whose inputs weigh the errors."""
RIDGE = 1e-3
"""Added to H's diagonal, over its mean: weights of inputs that are always zero still have to be something."""


def parts(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Codes (outputs, pieces) and codebook (k, d) of a linear layer that computes with codewords."""
    shared = layer.parametrizations.weight  # type: ignore[union-attr]
    return shared[0].codes.reshape(shared[0].shape[0], -1), shared.original.detach()  # type: ignore


def lookup_product(x: Tensor, codes: Tensor, codebook: Tensor) -> Tensor:
    r"""The product of inputs and decoded weights, by tables.

    .. math:: y_o = \sum_m T_{m, z_{om}}, \qquad T_{mj} = \langle c_j, x_m \rangle

    It multiplies k n times an item in place of n o, for n inputs and o outputs.

    Parameters
    ----------
    x : Tensor of shape (items, n)
    codes : Tensor of int64, shape (o, n / d)
    codebook : Tensor of shape (k, d)

    Returns
    -------
    Tensor of shape (items, o)

    Examples
    --------
    >>> lookup_product(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0, 1]]), torch.eye(2))
    tensor([[5.]])
    """
    pieces = x.unflatten(1, (-1, codebook.shape[1]))
    tables = pieces @ codebook.T  # items, pieces, k
    places = torch.arange(codes.shape[1])
    return tables[:, places, codes].sum(-1)


def second_moment(network: nn.Module, layer: nn.Module, x: Tensor, length: int) -> Tensor:
    """H of a linear or convolution layer, over the pieces of its inputs when the network is given `x`.

    Returns
    -------
    Tensor of float64, shape (length, length)
    """
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        network(x)
    handle.remove()
    inputs = seen[0]
    if isinstance(layer, nn.Conv2d):
        options = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        inputs = nn.functional.unfold(inputs, *options).transpose(1, 2)  # type: ignore[arg-type]
    pieces = inputs.reshape(-1, length).double()
    return pieces.T @ pieces


@dataclass(frozen=True)
class ProductQuantization:
    r"""Replace runs of `length` neighbouring weights by the nearest of `codewords` vectors.

    .. math:: \min_{c, z} \sum_i (v_i - c_{z_i})^\top H (v_i - c_{z_i}), \qquad
       H = X^\top X \text{ or the identity}

    Parameters
    ----------
    codewords : int
        k of a layer; one that has fewer different sub-vectors keeps them all.
    length : int
        d; where it does not divide a row, the largest divisor of the row below it. Of a convolution a row is ordered
        by input channel, then by place in the kernel.
    inputs : bool
        Whether errors are weighed by the layer's inputs; of linear and 2-d convolution layers in one group, all others
        are not.
    seed : int
        Of the sub-vectors that k-means begins with, drawn from all.

    Notes
    -----
    One codebook serves all places of a layer, as in Stock et al.; Wu et al. have one for each place, for which the
    layers here are too small. Codewords are fine-tuned by the recipe, codes stay; Stock et al. distil layer by layer.

    Source: Wu et al., CVPR 2016; Stock et al., ICLR 2020.

    Examples
    --------
    >>> shared = ProductQuantization(codewords=8, length=4).apply(nn.Linear(32, 20))
    >>> len(shared.weight.reshape(-1, 4).unique(dim=0)), shared.parametrizations.weight.original.shape
    (8, torch.Size([8, 4]))
    """

    codewords: int = 32
    length: int = 4
    inputs: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("codewords", "length"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")

    def apply(self, network: nn.Module, data: Any = None) -> nn.Module:
        """A copy of `network` that computes with codewords; fine-tune it, then `kernels.model.transform.bake` it.

        Parameters
        ----------
        network : nn.Module
            Trained; its convolution, linear and recurrent layers are changed. Constraints that it has are baked first.
        data : datasets.Data, optional
            Needed where `inputs` weigh.

        Raises
        ------
        TypeError, ValueError
            If `network` is no module, has no such layer, a layer has a weight that is not finite, or data are missing.
        """
        if self.inputs and data is None:
            raise ValueError("data: expected training data, whose inputs weigh the errors, got None")
        random = np.random.default_rng(self.seed)
        items = torch.tensor(data.train.x[:ITEMS]) if self.inputs else None
        plain = bake(network) if isinstance(network, nn.Module) else network

        def share(path: str, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            measure = np.eye(points.shape[1])
            layer = plain.get_submodule(path.rpartition(".")[0])
            if items is not None and _weighable(layer):
                h = second_moment(plain.eval(), layer, items, points.shape[1]).numpy()
                h += RIDGE * np.trace(h) / len(h) * np.eye(len(h))
                measure = np.linalg.cholesky(h)
            different = np.unique(points, axis=0)
            begin = different[random.choice(len(different), min(self.codewords, len(different)), replace=False)]
            _, labels = k_means(points @ measure, begin @ measure)
            return _means(points, labels, len(begin)), labels

        return _replaced(network, self.length, share)

    def at_random(self, seed: int) -> RandomCodewords:
        """As many codewords, but who refers to one is drawn: what k-means has to beat."""
        return RandomCodewords(self.codewords, self.length, seed)


@dataclass(frozen=True)
class RandomCodewords:
    """Sub-vectors share a codeword with others drawn at random, and begin with the mean of these.

    Examples
    --------
    >>> shared = RandomCodewords(codewords=8).apply(nn.Linear(32, 20))
    >>> len(shared.weight.reshape(-1, 4).unique(dim=0))
    8
    """

    codewords: int = 32
    length: int = 4
    seed: int = 0

    def apply(self, network: nn.Module, data: Any = None) -> nn.Module:
        """A copy of `network` that computes with codewords."""
        random = np.random.default_rng(self.seed)

        def share(path: str, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            labels = random.integers(self.codewords, size=len(points))
            return _means(points, labels, self.codewords), labels

        return _replaced(network, self.length, share)


def _weighable(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.groups == 1 and not isinstance(layer.padding, str)
    )


def _means(points: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    sums = np.stack([np.bincount(labels, column, k) for column in points.T], axis=1)
    return sums / np.maximum(np.bincount(labels, minlength=k), 1)[:, None]


Sharing = Callable[[str, np.ndarray], tuple[np.ndarray, np.ndarray]]


def _replaced(network: nn.Module, length: int, share: Sharing) -> nn.Module:
    """A copy whose layers' sub-vectors are the codewords, and by the labels, that `share` gives."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
    network = bake(network)
    for path, layer, name, weight in list(weights(network)):
        row = weight[0].numel()
        d = max(divisor for divisor in range(1, length + 1) if row % divisor == 0)
        codewords, labels = share(path, weight.numpy().reshape(-1, d).astype(np.float64))
        used, labels = np.unique(labels, return_inverse=True)
        codebook = torch.tensor(codewords[used], dtype=weight.dtype)
        constrain(layer, name, Shared(torch.from_numpy(labels), codebook, tuple(weight.shape)))
    return network
