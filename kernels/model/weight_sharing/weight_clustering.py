r"""Weight clustering: the weights of a layer share few values, found by k-means and trained on.

Of a layer's n weights w, k-means chooses k values c and one of them for each weight, near in squares:

    min over c, z of  sum_i (w_i - c_{z_i})^2,  z_i in {1 .. k}

What is stored is z, of log2 k bits each, and the codebook c. Which weight refers to which value then stays; the values
are trained further, by the sum of the gradients of all weights that share one:

    dL/dc_j = sum over i with z_i = j of dL/dw_i

Zeros of a network that was pruned stay zeros, outside the codebook: pruning, sharing and coding make a chain.

K-means ends in the local optimum of where it began: with values spread evenly from the least weight to the largest
(*linear*), by the share of weights below them (*density*), or at weights drawn at random. Few weights are large; only
even spreading leaves values among them from the start, which Han et al. find best.

Source: Y. Gong et al., "Compressing Deep Convolutional Networks using Vector Quantization", 2014, arXiv 1412.6115;
S. Han et al., "Deep compression", ICLR 2016, arXiv 1510.00149, section 3.

Examples
--------
>>> layer = nn.Linear(2, 2, bias=False)
>>> with torch.no_grad():
...     _ = layer.weight.copy_(torch.tensor([[0.0, 0.9], [1.1, -2.0]]))
>>> shared = WeightClustering(clusters=2).apply(layer)
>>> shared.weight.detach()
tensor([[ 0.,  1.],
        [ 1., -2.]])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from kernels.model.batch_norm import fold
from kernels.model.transform import bake, constrain
from kernels.model.weight_sharing.k_means import k_means_of_numbers
from kernels.model.weight_sharing.sharing import Shared, weights

__all__ = ["RandomSharing", "WeightClustering", "first_values"]

INITIAL = ("linear", "density", "random")


def first_values(w: np.ndarray, clusters: int, initial: str, random: np.random.Generator) -> np.ndarray:
    """The values that k-means begins with.

    Parameters
    ----------
    w : ndarray of float64, shape (n,)
    clusters : int
    initial : {"linear", "density", "random"}
        Evenly from least to largest; at evenly spaced shares of the sorted weights; different weights at random.
    random : numpy.random.Generator

    Examples
    --------
    >>> w, random = np.array([0.0, 0.1, 0.2, 0.3, 4.0]), np.random.default_rng(0)
    >>> first_values(w, 3, "linear", random), first_values(w, 3, "density", random)
    (array([0., 2., 4.]), array([0. , 0.2, 4. ]))
    """
    if initial == "linear":
        return np.linspace(w.min(), w.max(), clusters)
    if initial == "density":
        return np.quantile(w, np.linspace(0, 1, clusters))
    different = np.unique(w)
    return np.sort(random.choice(different, min(clusters, len(different)), replace=False))


@dataclass(frozen=True)
class WeightClustering:
    r"""Let the weights of each layer share `clusters` values.

    .. math:: \min_{c, z} \sum_i (w_i - c_{z_i})^2, \qquad
       \frac{\partial L}{\partial c_j} = \sum_{i :\, z_i = j} \frac{\partial L}{\partial w_i}

    Parameters
    ----------
    clusters : int
        Values of a layer, zeros that were pruned apart; at least 1. A layer that has fewer different weights keeps
        them all.
    initial : {"linear", "density", "random"}
        Where k-means begins.
    fold : bool
        Fold batch norm into the convolutions first: its scales, in FP32, may outweigh the codes of a small network.
    seed : int
        Of the random beginning.

    Notes
    -----
    Values are fine-tuned by the recipe's own optimizer, together with biases and norms, which stay FP32.

    Source: Gong et al., arXiv 1412.6115, section 3.2 (k-means); Han et al., arXiv 1510.00149, sections 3.1 to 3.3.

    Examples
    --------
    >>> shared = WeightClustering(clusters=4).apply(nn.Linear(30, 20))
    >>> len(shared.weight.unique()), shared.parametrizations.weight.original.shape
    (4, torch.Size([4]))
    """

    clusters: int = 16
    initial: str = "linear"
    fold: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.clusters, int) or self.clusters < 1:
            raise ValueError(f"clusters: expected a positive integer, got {self.clusters!r}")
        if self.initial not in INITIAL:
            raise ValueError(f"initial: expected one of {', '.join(INITIAL)}, got {self.initial!r}")

    def apply(self, network: nn.Module, data: Any = None) -> nn.Module:
        """A copy of `network` that computes with shared weights; fine-tune it, then `kernels.model.transform.bake` it.

        Parameters
        ----------
        network : nn.Module
            Trained; its convolution, linear and recurrent layers are changed. Constraints that it has are baked first.
        data : optional
            Not needed.

        Raises
        ------
        TypeError, ValueError
            If `network` is no module, has no such layer, or a layer has a weight that is not finite.
        """
        random = np.random.default_rng(self.seed)

        def share(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return k_means_of_numbers(w, first_values(w, self.clusters, self.initial, random))

        return _shared(network, share, self.fold)

    def at_random(self, seed: int) -> RandomSharing:
        """As many shared values, but who shares one is drawn: what k-means has to beat."""
        return RandomSharing(self.clusters, self.fold, seed)


@dataclass(frozen=True)
class RandomSharing:
    """Weights share a value with others drawn at random, and begin with the mean of these; otherwise the same.

    Examples
    --------
    >>> len(RandomSharing(clusters=4).apply(nn.Linear(30, 20)).weight.unique())
    4
    """

    clusters: int = 16
    fold: bool = False
    seed: int = 0

    def apply(self, network: nn.Module, data: Any = None) -> nn.Module:
        """A copy of `network` that computes with shared weights."""
        random = np.random.default_rng(self.seed)

        def share(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            labels = random.integers(self.clusters, size=len(w))
            counts = np.bincount(labels, minlength=self.clusters)
            return np.bincount(labels, w, self.clusters) / np.maximum(counts, 1), labels

        return _shared(network, share, self.fold)


def _shared(
    network: nn.Module, share: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], folded: bool
) -> nn.Module:
    """A copy whose layers share the values, and by the labels, that `share` gives for their non-zero weights."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
    network = fold(bake(network)) if folded else bake(network)
    for _, layer, name, weight in list(weights(network)):
        flat = weight.numpy().reshape(-1).astype(np.float64)
        codes, values = np.zeros(flat.size, np.int64), np.zeros(0)
        if flat.any():
            values, labels = share(flat[flat != 0])
            used, labels = np.unique(labels, return_inverse=True)
            values, codes[flat != 0] = values[used], labels + 1
        codebook = torch.tensor(values, dtype=weight.dtype)
        constrain(layer, name, Shared(torch.from_numpy(codes), codebook, tuple(weight.shape), zero=True))
    return network
