"""Batch norm folded into the convolution before it: the weights that are looked at are those that run."""

from __future__ import annotations

import copy
import warnings

from torch import nn

__all__ = ["fold"]


def fold(network: nn.Module) -> nn.Module:
    r"""A copy in evaluation mode in which every batch norm that follows a convolution is folded into it.

    .. math:: \tilde w_c = \frac{\gamma_c}{\sqrt{\sigma_c^2 + \epsilon}}\, w_c, \qquad
       \tilde b_c = \frac{\gamma_c}{\sqrt{\sigma_c^2 + \epsilon}}\, (b_c - \mu_c) + \beta_c

    Parameters
    ----------
    network : nn.Module
        Trained, without constraints; left as it is. With batch norm in it, torch.fx must be able to trace it, and the
        copy is a graph module whose layers keep their paths.

    Examples
    --------
    >>> folded = fold(nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2)))
    >>> [type(layer).__name__ for layer in folded.children()], folded.get_submodule("0").bias is not None
    (['Conv2d'], True)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, as it imports itself
        from torch.fx.experimental.optimization import fuse

    network = copy.deepcopy(network).eval()
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        return network
    return fuse(network)
