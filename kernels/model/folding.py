"""Batch norm folded into the convolution before it: in evaluation both are one affine map."""

from __future__ import annotations

import copy

from torch import nn

__all__ = ["fold"]


def fold(network: nn.Module) -> nn.Module:
    r"""A copy in which every batch norm that follows a convolution is folded into it.

    .. math:: \tilde w_c = \frac{\gamma_c}{\sqrt{\sigma_c^2 + \epsilon}}\, w_c, \qquad
       \tilde b_c = \frac{\gamma_c}{\sqrt{\sigma_c^2 + \epsilon}}\, (b_c - \mu_c) + \beta_c

    Parameters
    ----------
    network : nn.Module
        Trained, without constraints; one that torch.fx can trace, unless it has no batch norm.

    Returns
    -------
    nn.Module
        In evaluation mode.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU()).eval()
    >>> [name for name, _ in fold(network).named_parameters()]
    ['0.weight', '0.bias']
    """
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, as it imports itself
        from torch.fx.experimental.optimization import fuse

    network = copy.deepcopy(network).eval()
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        return network
    return fuse(network)
